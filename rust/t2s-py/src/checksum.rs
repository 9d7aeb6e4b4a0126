//! `checksum` and `checksum_kernels`.

use pyo3::prelude::*;
use t2s_core::checksum::{Kernel, Sum};

use crate::bytes::Lent;
use crate::errors::OrRaise;

/// Return the Internet checksum of `data` (RFC 1071), as the number to write big-endian into a header.
///
/// `data` is anything with the buffer protocol, of any length; an odd last byte counts as the high half of a word.
/// It is read where it lies. `kernel` is `"auto"` or one of `checksum_kernels()`; all give the same result, at
/// different speed. `initial` is a 16-bit partial sum to start from, say that of a pseudo-header.
///
/// Raises `ConfigError` for a kernel that is unknown or that this CPU cannot run.
///
/// >>> import t2s
/// >>> hex(t2s.checksum(bytes.fromhex("0001f203f4f5f6f7")))  # the example of RFC 1071, section 3
/// '0x220d'
/// >>> t2s.checksum(b"") == 0xFFFF
/// True
#[pyfunction]
#[pyo3(signature = (data, kernel = "auto", *, initial = 0))]
pub(crate) fn checksum(py: Python<'_>, data: Lent, kernel: &str, initial: u16) -> PyResult<u16> {
    let kernel = Kernel::by_name(kernel).or_raise()?;
    Ok(data.read(py, move |bytes| kernel.sum(bytes, Sum::ZERO.add_u16(initial)).finish()))
}

/// Return the names of the checksum kernels that this CPU can run, slowest first.
///
/// `scalar` is the loop of RFC 1071, 16 bits at a time; `swar` adds 64-bit lanes; `avx2`, `avx512` and `neon` use the
/// instructions that they are named after.
///
/// >>> import t2s
/// >>> t2s.checksum_kernels()[:2]
/// ['scalar', 'swar']
#[pyfunction]
pub(crate) fn checksum_kernels() -> Vec<&'static str> {
    Kernel::available().into_iter().map(Kernel::name).collect()
}
