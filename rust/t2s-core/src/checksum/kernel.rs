//! Names, availability and dispatch of the kernels.

use super::{Sum, scalar, swar};

/// A checksum kernel that this CPU can run: holding the value proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Inner);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inner {
    Scalar,
    Swar,
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

    /// The fastest kernel of this CPU.
    #[must_use]
    pub fn auto() -> Self {
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
        }
    }

    /// All kernels that this CPU can run, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        vec![Self::SCALAR, Self::SWAR]
    }

    /// Adds `data`, which starts at an even offset, to a partial sum.
    #[inline]
    #[must_use]
    pub fn sum(self, data: &[u8], initial: Sum) -> Sum {
        match self.0 {
            Inner::Scalar => scalar::sum(data, initial),
            Inner::Swar => swar::sum(data, initial),
        }
    }

    /// Copies `src` to `dst` and adds it to a partial sum, in one pass where the kernel can.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    #[must_use]
    pub fn copy_and_sum(self, dst: &mut [u8], src: &[u8], initial: Sum) -> Sum {
        dst.copy_from_slice(src);
        self.sum(dst, initial)
    }

    /// The checksum ([`Sum::finish`]) of each of `data`, written to the same place of `out`; the shorter decides.
    pub fn sum_batch(self, data: &[&[u8]], out: &mut [u16]) {
        for (data, out) in data.iter().zip(out) {
            *out = self.sum(data, Sum::ZERO).finish();
        }
    }
}
