//! The Python face of t2s: exports, conversion and error mapping only.

use pyo3::prelude::*;

/// The compiled core of t2s.
#[pymodule]
mod _core {}
