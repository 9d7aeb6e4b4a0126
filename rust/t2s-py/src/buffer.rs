//! `Buffer`: bytes of a pool, which Python reads and writes where they lie.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use t2s_core::buf::Buf;

use crate::bytes::Lent;
use crate::pool::SharedPool;

/// Bytes of a pool, handed out by `MemoryPool.alloc`: a writable buffer, read and written without a copy.
///
/// It goes back to its pool with `free`, at the end of a `with` block, or when nothing refers to it any more.
///
/// >>> from t2s import MemoryPool
/// >>> with MemoryPool().alloc_copy(b"payload", headroom=64) as buffer:
/// ...     buffer.prepend(b"header ")
/// ...     bytes(buffer)
/// b'header payload'
#[pyclass(frozen, module = "t2s")]
pub(crate) struct Buffer {
    /// `None` once freed. Exports point into the block, so while there are any it is neither freed nor resized.
    buf: Mutex<Option<Buf>>,
    /// Memory views that point into the block now.
    exports: AtomicUsize,
    pool: Arc<SharedPool>,
}

impl Buffer {
    pub(crate) fn new(buf: Buf, pool: &Arc<SharedPool>) -> Self {
        Self { buf: Mutex::new(Some(buf)), exports: AtomicUsize::new(0), pool: Arc::clone(pool) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Buf>> {
        self.buf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unexported(&self) -> PyResult<()> {
        match self.exports.load(Relaxed) {
            0 => Ok(()),
            n => Err(PyBufferError::new_err(format!("{n} memory views of this buffer exist; release them first"))),
        }
    }
}

fn freed() -> PyErr {
    PyBufferError::new_err("this buffer was given back to its pool")
}

#[pymethods]
impl Buffer {
    /// Bytes that it can hold, headroom included.
    #[getter]
    fn capacity(&self) -> PyResult<usize> {
        self.lock().as_ref().map(Buf::capacity).ok_or_else(freed)
    }

    /// Bytes free in front of its content.
    #[getter]
    fn headroom(&self) -> PyResult<usize> {
        self.lock().as_ref().map(Buf::headroom).ok_or_else(freed)
    }

    /// Put `data` in front of the content, into the headroom.
    ///
    /// Raises `BufferError` when it does not fit, or while memory views of the buffer exist.
    fn prepend(&self, py: Python<'_>, data: Lent) -> PyResult<()> {
        self.unexported()?;
        let mut lock = self.lock();
        let buf = lock.as_mut().ok_or_else(freed)?;
        let headroom = buf.headroom();
        let room = buf.prepend(data.len()).ok_or_else(|| {
            PyBufferError::new_err(format!("{} bytes do not fit into a headroom of {headroom}", data.len()))
        })?;
        data.copy_to(py, room)
    }

    /// Give the buffer back to its pool; again is harmless.
    ///
    /// Raises `BufferError` while memory views of it exist.
    fn free(&self) -> PyResult<()> {
        self.unexported()?;
        if let Some(buf) = self.lock().take() {
            self.pool.cache().free(buf);
        }
        Ok(())
    }

    fn __len__(&self) -> PyResult<usize> {
        self.lock().as_ref().map(Buf::len).ok_or_else(freed)
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.lock().as_ref().map(|buf| PyBytes::new(py, buf.as_slice())).ok_or_else(freed)
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.free()
    }

    fn __repr__(&self) -> String {
        match &*self.lock() {
            Some(buf) => format!("Buffer(len={}, capacity={}, headroom={})", buf.len(), buf.capacity(), buf.headroom()),
            None => "Buffer(freed)".to_owned(),
        }
    }

    /// # Safety
    /// `view` is valid for writes; only the interpreter calls this.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let mut lock = this.lock();
        let bytes = lock.as_mut().ok_or_else(freed)?.as_mut_slice();
        let len = isize::try_from(bytes.len()).map_err(|_| PyBufferError::new_err("larger than a buffer can be"))?;
        // SAFETY: `view` is the interpreter's; the pointer and length are those of the block, which stays where it is
        // and as large as it is while `exports` is not 0; `slf` becomes the view's owner, so the block outlives the
        // view.
        let failed =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), bytes.as_mut_ptr().cast(), len, 0, flags) } != 0;
        if failed {
            return Err(PyErr::fetch(slf.py()));
        }
        this.exports.fetch_add(1, Relaxed);
        Ok(())
    }

    /// # Safety
    /// Called by the interpreter once for each view that `__getbuffer__` filled.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.exports.fetch_sub(1, Relaxed);
    }
}
