//! Domain names: at most 255 bytes of labels (RFC 1035, section 3.1), compared without regard to case (RFC 4343).

use core::fmt;
use core::hash::{Hash, Hasher};
use core::net::IpAddr;

use super::Malformed;

/// Longest name on the wire, bytes, with length bytes and the root (RFC 1035, section 2.3.4).
pub(super) const NAME_MAX: usize = 255;
/// Longest label, bytes.
const LABEL_MAX: usize = 63;
/// Pointers that one name may follow. It has 127 labels at most: a compressor that spends a pointer on each needs no
/// more.
const HOPS_MAX: u32 = 127;

/// Steps (labels and pointers) that the names of one message may still take.
///
/// Names share their tails, so a message can name far more labels than it has bytes. What a record costs must stay in
/// proportion to its size: a reverse name of IPv6 has 34 labels, a record that points to it 12 bytes and its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work(u32);

impl Work {
    /// Steps for each byte of the message, and for any message.
    const PER_BYTE: u32 = 2;
    const BASE: u32 = 256;

    /// What a message of this many bytes may cost.
    pub(super) fn of(message: &[u8]) -> Self {
        Self(Self::BASE + Self::PER_BYTE * u32::from(u16::try_from(message.len()).unwrap_or(u16::MAX)))
    }

    #[inline]
    fn step(&mut self) -> Result<(), Malformed> {
        self.0 = self.0.checked_sub(1).ok_or(Malformed::Name)?;
        Ok(())
    }
}

/// A name in wire form, lower case, without compression.
#[derive(Clone, Copy)]
pub struct Name {
    len: u8,
    /// `bytes[..len]` are labels, each behind its length, and the root's 0.
    bytes: [u8; NAME_MAX],
}

impl Name {
    /// The root.
    pub const ROOT: Self = Self { len: 1, bytes: [0; NAME_MAX] };

    /// Reads the name at `at` of a message, following compression; with it the offset behind it.
    pub(super) fn parse(message: &[u8], at: usize) -> Result<(Self, usize), Malformed> {
        let mut name = Self { len: 0, bytes: [0; NAME_MAX] };
        let end = walk(message, at, &mut Work::of(message), |label| name.push(label))?;
        name.push(&[]);
        Ok((name, end))
    }

    /// A name from its text, with or without the last dot. `None` if it is too long or has an empty label; escapes are
    /// not known, bytes stand for themselves.
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Some(Self::ROOT);
        }
        let mut name = Self { len: 0, bytes: [0; NAME_MAX] };
        // Each label has a length byte, the root too.
        if text.len() + 2 > NAME_MAX {
            return None;
        }
        for label in text.split('.') {
            if label.is_empty() || label.len() > LABEL_MAX {
                return None;
            }
            name.push(label.as_bytes());
        }
        name.push(&[]);
        Some(name)
    }

    /// The wire form.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// A name from its wire form as [`Name::as_bytes`] gave it.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let mut name = Self { len: bytes.len().min(NAME_MAX) as u8, bytes: [0; NAME_MAX] };
        if let Some(room) = name.bytes.get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
        }
        name
    }

    /// The labels, without the root.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.as_bytes();
        core::iter::from_fn(move || {
            let (&len, tail) = rest.split_first().filter(|(len, _)| **len != 0)?;
            let label = tail.get(..usize::from(len))?;
            rest = tail.get(usize::from(len)..)?;
            Some(label)
        })
    }

    /// The name as a proxy is told it: `None` for the root, and for labels with anything but letters, digits, `-` and
    /// `_`, which no host has (RFC 1123, section 2.1) and which might mean something where names are written as text.
    pub fn host(&self) -> Option<String> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let plain = self.labels().flatten().all(|&byte| good(byte));
        (plain && self.len > 1).then(|| self.to_string())
    }

    /// The address that a name under `in-addr.arpa` (RFC 1035, section 3.5) or `ip6.arpa` (RFC 3596, section 2.5)
    /// stands for.
    pub fn reverse(&self) -> Option<IpAddr> {
        let mut labels: Vec<&[u8]> = self.labels().collect();
        labels.reverse();
        match labels.as_slice() {
            [b"arpa", b"in-addr", octets @ ..] => {
                let mut address = [0; 4];
                for (byte, label) in address.iter_mut().zip(octets) {
                    // `parse` takes a sign, which no octet has.
                    let digits = label.iter().all(u8::is_ascii_digit);
                    *byte = core::str::from_utf8(label).ok().filter(|_| digits)?.parse().ok()?;
                }
                (octets.len() == address.len()).then(|| IpAddr::V4(address.into()))
            }
            [b"arpa", b"ip6", nibbles @ ..] => {
                let mut address = 0_u128;
                for label in nibbles {
                    let [digit] = label else { return None };
                    address = address << 4 | u128::from(char::from(*digit).to_digit(16)?);
                }
                (nibbles.len() == 32).then(|| IpAddr::V6(address.into()))
            }
            _ => None,
        }
    }

    /// Appends a label; the caller keeps to the limits.
    fn push(&mut self, label: &[u8]) {
        let at = usize::from(self.len);
        if let Some((len, room)) = self.bytes.get_mut(at..=at + label.len()).and_then(<[u8]>::split_first_mut) {
            *len = label.len() as u8;
            room.copy_from_slice(label);
            room.make_ascii_lowercase();
            self.len += 1 + label.len() as u8;
        }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Display for Name {
    /// As text without the last dot; bytes that are not printable, and dots within labels, as `\DDD` (RFC 1035,
    /// section 5.1).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.len <= 1 {
            return f.write_str(".");
        }
        for (index, label) in self.labels().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            for &byte in label {
                if byte.is_ascii_graphic() && byte != b'.' && byte != b'\\' {
                    write!(f, "{}", char::from(byte))?;
                } else {
                    write!(f, "\\{byte:03}")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Checks the name at `at` and returns the offset behind it; `work` is what is left to all names of the message.
#[inline]
pub(super) fn skip(message: &[u8], at: usize, work: &mut Work) -> Result<usize, Malformed> {
    walk(message, at, work, |_| {})
}

/// Visits the labels of the name at `at`; returns the offset behind it.
///
/// A pointer must lead before the labels that it continues, so that each jump goes further back. That alone leaves
/// thousands of jumps to a name and thousands of names to a message: both have bounds.
#[inline]
fn walk(message: &[u8], mut at: usize, work: &mut Work, mut visit: impl FnMut(&[u8])) -> Result<usize, Malformed> {
    let mut end = None;
    let mut start = at;
    let mut len = 1;
    let mut hops = 0;
    loop {
        work.step()?;
        let byte = *message.get(at).ok_or(Malformed::Truncated)?;
        match byte {
            0 => return Ok(end.unwrap_or(at + 1)),
            1..=63 => {
                let label = message.get(at + 1..=at + usize::from(byte)).ok_or(Malformed::Truncated)?;
                len += label.len() + 1;
                if len > NAME_MAX {
                    return Err(Malformed::Name);
                }
                visit(label);
                at += label.len() + 1;
            }
            0xc0.. => {
                let low = *message.get(at + 1).ok_or(Malformed::Truncated)?;
                let target = usize::from(byte & 0x3f) << 8 | usize::from(low);
                hops += 1;
                if target >= start || target < super::message::HEADER || hops > HOPS_MAX {
                    return Err(Malformed::Name);
                }
                end.get_or_insert(at + 2);
                start = target;
                at = target;
            }
            // 01 and 10 are reserved (RFC 6891, section 5, gave the extended labels up).
            64..=0xbf => return Err(Malformed::Name),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message whose 12 header bytes are 0.
    fn message(names: &[u8]) -> Vec<u8> {
        [&[0; 12][..], names].concat()
    }

    #[test]
    fn compression_case_and_text() {
        let bytes = message(b"\x03Www\x07eXample\x03org\0\x04mail\xc0\x10\xc0\x1d\x01a\xc0\x1d");
        let (name, end) = Name::parse(&bytes, 12).expect("plain");
        assert_eq!((name.to_string().as_str(), end), ("www.example.org", 29));
        let (mail, end) = Name::parse(&bytes, 29).expect("a pointer behind a label");
        assert_eq!((mail.to_string().as_str(), end), ("mail.example.org", 36));
        let (again, end) = Name::parse(&bytes, 36).expect("a pointer to a pointer");
        assert_eq!((again, end), (mail, 38));
        assert_eq!(Name::parse(&bytes, 38).expect("two pointers").0.to_string(), "a.mail.example.org");
        assert_eq!(Name::from_text("WWW.example.org."), Some(name));
        assert_eq!(Name::from_bytes(name.as_bytes()), name);
        assert_eq!(name.labels().collect::<Vec<_>>(), [&b"www"[..], b"example", b"org"]);
        assert_eq!(Name::parse(&message(b"\x04a.b\x07\0"), 12).expect("odd").0.to_string(), r"a\046b\007");
        assert_eq!((Name::ROOT.to_string().as_str(), Name::from_text(".")), (".", Some(Name::ROOT)));
        for bad in ["a..b", ".a", &"a".repeat(64), &["a"; 127].join(".").repeat(2)] {
            assert_eq!(Name::from_text(bad), None, "{bad}");
        }
        let longest = [["a".repeat(63).as_str(); 3].join("."), "a".repeat(61)].join(".");
        assert_eq!(Name::from_text(&longest).map(|name| name.as_bytes().len()), Some(255));
        assert_eq!(Name::from_text(&format!("{longest}a")), None);
    }

    #[test]
    fn hosts_and_addresses() {
        let name = |text: &str| Name::from_text(text).expect("good");
        assert_eq!(name("_Sip.x-1.example.").host().as_deref(), Some("_sip.x-1.example"));
        for bad in [".", "a b", "a:80", "a/b", "[::1]", "b\u{fc}cher.example"] {
            assert_eq!(name(bad).host(), None, "{bad}");
        }
        let address = |text: &str| name(text).reverse().map(|address| address.to_string());
        assert_eq!(address("7.0.18.198.in-addr.arpa").as_deref(), Some("198.18.0.7"));
        let v6 = format!("1.{}c.F.IP6.arpa", "0.".repeat(29));
        assert_eq!(address(&v6).as_deref(), Some("fc00::1"));
        for bad in [
            "in-addr.arpa",
            "18.198.in-addr.arpa",
            "1.7.0.18.198.in-addr.arpa",
            "+7.0.18.198.in-addr.arpa",
            "256.0.18.198.in-addr.arpa",
            "7.0.18.198.example",
            "c.f.ip6.arpa",
            &format!("0.{v6}"),
            &v6.replacen('1', "10", 1),
        ] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn loops_and_reserved_labels_are_refused() {
        for (names, error) in [
            (&b"\xc0\x0c"[..], Malformed::Name),
            (b"\x01a\xc0\x0c", Malformed::Name),
            (b"\xc0\x0e\0", Malformed::Name),
            // Into the header.
            (b"\xc0\x00", Malformed::Name),
            (b"\x40a", Malformed::Name),
            (b"\x80a", Malformed::Name),
            (b"", Malformed::Truncated),
            (b"\x01a", Malformed::Truncated),
            (b"\x05abc", Malformed::Truncated),
            (b"\xc0", Malformed::Truncated),
        ] {
            assert_eq!(Name::parse(&message(names), 12).map(|(_, end)| end), Err(error), "{names:?}");
        }
        let long = message(&b"\x3f0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde".repeat(4));
        let long = [&long[..], &[0]].concat();
        assert_eq!(skip(&long, 12, &mut Work::of(&long)), Err(Malformed::Name));
    }

    #[test]
    fn a_name_follows_a_bounded_number_of_pointers() {
        // The root, then pointers, each to the one before it.
        let chain = |pointers: u16| {
            let mut bytes = message(b"\0");
            let mut target = 12_u16;
            for _ in 0..pointers {
                let at = bytes.len() as u16;
                bytes.extend((0xc000 | target).to_be_bytes());
                target = at;
            }
            let at = bytes.len() - 2;
            Name::parse(&bytes, at).map(|(name, _)| name)
        };
        assert_eq!(chain(HOPS_MAX as u16), Ok(Name::ROOT));
        assert_eq!(chain(HOPS_MAX as u16 + 1), Err(Malformed::Name));
        assert_eq!(chain(8_000), Err(Malformed::Name));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xc0), 0u8..20], 0..400), at in 0usize..400) {
            let skipped = skip(&bytes, at, &mut Work::of(&bytes));
            match Name::parse(&bytes, at) {
                Ok((name, end)) => {
                    prop_assert_eq!(skipped, Ok(end));
                    prop_assert!(end <= bytes.len() && name.as_bytes().len() <= NAME_MAX);
                    let plain = [&[0; 12][..], name.as_bytes()].concat();
                    prop_assert_eq!(Name::parse(&plain, 12), Ok((name, plain.len())));
                }
                Err(error) => prop_assert_eq!(skipped, Err(error)),
            }
        }

        #[test]
        fn text_round_trip(labels in prop::collection::vec("[a-z0-9-]{1,20}", 1..10)) {
            let text = labels.join(".");
            prop_assert_eq!(Name::from_text(&text).map(|name| name.to_string()), Some(text));
        }
    }
}
