//! Settings that are one of a few words: each is one enum, here, with its names; shells and results use these.

/// A word that names no value of a setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {setting} {name:?}; choose one of: {known}")]
pub struct UnknownName {
    /// The setting, in words.
    pub setting: &'static str,
    /// What was asked for.
    pub name: String,
    /// The names there are, separated by commas.
    pub known: String,
}

/// An enum whose variants have names: `ALL`, `name`, `by_name`, `Display`, and serde's traits by these names.
macro_rules! named {
    (
        $(#[$meta:meta])* $enum:ident is a $setting:literal {
            $($(#[$variant_meta:meta])* $variant:ident = $name:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $enum {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $enum {
            /// All values, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name, as it stands in settings and results.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The value of that name.
            pub fn by_name(name: &str) -> Result<Self, $crate::named::UnknownName> {
                Self::ALL.iter().copied().find(|value| value.name() == name).ok_or_else(|| $crate::named::UnknownName {
                    setting: $setting,
                    name: name.to_owned(),
                    known: Self::ALL.iter().map(|value| value.name()).collect::<Vec<_>>().join(", "),
                })
            }
        }

        impl core::fmt::Display for $enum {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(self.name())
            }
        }

        #[cfg(feature = "serde")]
        impl serde::Serialize for $enum {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        #[cfg(feature = "serde")]
        impl<'de> serde::Deserialize<'de> for $enum {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                Self::by_name(&name).map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use named;

#[cfg(test)]
mod tests {
    use crate::config::{CongestionControl, DnsCheck, Reassembly, SynAck};

    #[test]
    fn names_and_values_match() {
        fn check<T: Copy + PartialEq + core::fmt::Debug>(
            all: &[T],
            name: fn(T) -> &'static str,
            find: fn(&str) -> Option<T>,
        ) {
            assert!(all.len() > 1);
            for &value in all {
                assert_eq!(find(name(value)), Some(value));
            }
            assert_eq!(find("no such name"), None);
        }
        check(SynAck::ALL, SynAck::name, |name| SynAck::by_name(name).ok());
        check(CongestionControl::ALL, CongestionControl::name, |name| CongestionControl::by_name(name).ok());
        check(Reassembly::ALL, Reassembly::name, |name| Reassembly::by_name(name).ok());
        check(DnsCheck::ALL, DnsCheck::name, |name| DnsCheck::by_name(name).ok());
        let error = SynAck::by_name("late").unwrap_err().to_string();
        assert_eq!(error, "no SYN-ACK mode \"late\"; choose one of: after-connect, immediate");
    }
}
