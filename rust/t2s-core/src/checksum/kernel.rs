//! Names, availability and dispatch of the kernels: the one place that knows all of them.
//!
//! Dispatch is a `match` on two words that never change, which the branch predictor learns; no table of pointers, so
//! short inputs can be inlined.

#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::{Sum, scalar, swar};
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};

/// A checksum kernel that this CPU can run: holding the value proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Inner);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inner {
    Scalar,
    Swar,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

/// A kernel name that is unknown or that this CPU cannot run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no checksum kernel `{name}` on this CPU; choose one of: auto, {available}")]
pub struct UnknownKernel {
    /// What was asked for.
    pub name: String,
    /// Names of the kernels that can run here, separated by commas.
    pub available: String,
}

impl Kernel {
    /// The loop of RFC 1071, 16 bits at a time: the reference.
    pub const SCALAR: Self = Self(Inner::Scalar);
    /// 64-bit lanes: the fastest that runs everywhere.
    pub const SWAR: Self = Self(Inner::Swar);

    /// The fastest kernel of this CPU. The features are looked up once by the standard library and cached.
    #[must_use]
    pub fn auto() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernel) = Avx512::new().map(Inner::Avx512).or_else(|| Avx2::new().map(Inner::Avx2)) {
            return Self(kernel);
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(kernel) = Neon::new() {
            return Self(Inner::Neon(kernel));
        }
        Self::SWAR
    }

    /// The kernel of that name, or the fastest for `auto`.
    pub fn by_name(name: &str) -> Result<Self, UnknownKernel> {
        if name == "auto" {
            return Ok(Self::auto());
        }
        let available = Self::available();
        available.iter().copied().find(|kernel| kernel.name() == name).ok_or_else(|| UnknownKernel {
            name: name.to_owned(),
            available: available.iter().map(|kernel| kernel.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// The name: `scalar`, `swar`, `avx2`, `avx512` or `neon`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Inner::Scalar => "scalar",
            Inner::Swar => "swar",
            #[cfg(target_arch = "x86_64")]
            Inner::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Inner::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Inner::Neon(_) => "neon",
        }
    }

    /// All kernels that this CPU can run, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let vectors = [Avx2::new().map(Inner::Avx2), Avx512::new().map(Inner::Avx512)];
        #[cfg(target_arch = "aarch64")]
        let vectors = [Neon::new().map(Inner::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let vectors = [None];
        [Self::SCALAR, Self::SWAR].into_iter().chain(vectors.into_iter().flatten().map(Self)).collect()
    }

    /// Adds `data`, which starts at an even offset, to a partial sum.
    #[inline]
    #[must_use]
    pub fn sum(self, data: &[u8], initial: Sum) -> Sum {
        match self.0 {
            Inner::Scalar => scalar::sum(data, initial),
            Inner::Swar => swar::sum(data, initial),
            #[cfg(target_arch = "x86_64")]
            Inner::Avx2(kernel) => kernel.sum(data, initial),
            #[cfg(target_arch = "x86_64")]
            Inner::Avx512(kernel) => kernel.sum(data, initial),
            #[cfg(target_arch = "aarch64")]
            Inner::Neon(kernel) => kernel.sum(data, initial),
        }
    }

    /// Copies `src` to `dst` and adds it to a partial sum, reading each byte once.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    #[must_use]
    pub fn copy_and_sum(self, dst: &mut [u8], src: &[u8], initial: Sum) -> Sum {
        assert_eq!(dst.len(), src.len(), "copy_and_sum needs equal lengths");
        match self.0 {
            Inner::Scalar => {
                dst.copy_from_slice(src);
                scalar::sum(src, initial)
            }
            Inner::Swar => swar::copy_and_sum(dst, src, initial),
            #[cfg(target_arch = "x86_64")]
            Inner::Avx2(kernel) => kernel.copy_and_sum(dst, src, initial),
            #[cfg(target_arch = "x86_64")]
            Inner::Avx512(kernel) => kernel.copy_and_sum(dst, src, initial),
            #[cfg(target_arch = "aarch64")]
            Inner::Neon(kernel) => kernel.copy_and_sum(dst, src, initial),
        }
    }

    /// The checksum ([`Sum::finish`]) of each of `data`, written to the same place of `out`; the shorter decides.
    pub fn sum_batch(self, data: &[&[u8]], out: &mut [u16]) {
        for (data, out) in data.iter().zip(out) {
            *out = self.sum(data, Sum::ZERO).finish();
        }
    }
}
