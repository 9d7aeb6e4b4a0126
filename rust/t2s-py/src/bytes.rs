//! The doorway for bytes from Python: any object with the buffer protocol, read where it lies.
//!
//! Promises: nothing is copied to be read; only `bytes`, which never change, are read with the interpreter lock
//! released. Refuses: buffers that are not contiguous or not of 8-bit items (`BufferError`), and whatever has no buffer
//! (`TypeError`).
#![allow(unsafe_code)]

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Below this many bytes a checksum or a copy is over sooner than the interpreter lock changes hands (about 10 µs).
const RELEASE_FROM: usize = 64 * 1024;

/// Bytes lent by a Python object for the length of one call.
pub(crate) struct Lent {
    buffer: PyBuffer<u8>,
    /// The lender is exactly `bytes`, whose contents nobody can change.
    immutable: bool,
}

impl<'py> FromPyObject<'_, 'py> for Lent {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::<u8>::get(&object)?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("the bytes must be contiguous: pass bytes(...) of this view"));
        }
        Ok(Self { buffer, immutable: object.is_exact_instance_of::<PyBytes>() })
    }
}

impl Lent {
    /// Bytes lent.
    pub(crate) fn len(&self) -> usize {
        self.buffer.item_count()
    }

    /// Calls `read` with the bytes; with the interpreter lock released when they are many and cannot change.
    pub(crate) fn read<R: Send>(&self, py: Python<'_>, read: impl FnOnce(&[u8]) -> R + Send) -> R {
        let bytes = self.slice(py);
        if self.immutable && bytes.len() >= RELEASE_FROM { py.detach(|| read(bytes)) } else { read(bytes) }
    }

    /// Copies the bytes to `target`, which must be as long as they are (`BufferError`).
    pub(crate) fn copy_to(&self, py: Python<'_>, target: &mut [u8]) -> PyResult<()> {
        self.buffer.copy_to_slice(py, target)
    }

    /// The bytes, for as long as the interpreter lock is held, or for ever when they are immutable.
    fn slice<'a>(&'a self, _py: Python<'a>) -> &'a [u8] {
        match self.buffer.as_slice_ptr() {
            // SAFETY: the pointer and length are those of a contiguous buffer of u8 that `self.buffer` keeps exported,
            // so it can neither be freed nor resized. Its contents do not change: Python code that could write runs
            // only with the interpreter lock, which `_py` proves to be held, and `read` gives that lock away only
            // for `bytes`, which have no writers.
            Some(pointer) if self.len() > 0 => unsafe { pointer.as_ref() },
            _ => &[],
        }
    }
}

/// A `bytes` object made of pieces, each copied once.
pub(crate) fn join<'py, 'a>(
    py: Python<'py>,
    pieces: impl Iterator<Item = &'a [u8]> + Clone,
) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, pieces.clone().map(<[u8]>::len).sum(), |mut rest| {
        for piece in pieces {
            let (here, later) = rest.split_at_mut(piece.len());
            here.copy_from_slice(piece);
            rest = later;
        }
        Ok(())
    })
}
