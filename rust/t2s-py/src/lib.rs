//! The Python face of t2s: exports, conversion and error mapping only.
//!
//! One file a class. Classes are frozen: what changes sits behind a lock of its own, so that every method takes `&self`
//! and no borrow can fail at run time. Such a lock is never held while Python objects that hold others are made: making
//! them may run any Python code, which may wait for the lock. Long calls release the interpreter lock. Each docstring
//! example runs as a test, and `python/t2s/_core.pyi` says the same in types; `stubtest` compares the two.

// PyO3 passes arguments by value and methods by `&self`, whatever a body needs.
#![allow(clippy::needless_pass_by_value, clippy::unused_self)]
// Comments on exported items are Python docstrings, with Python's quotes and names.
#![allow(clippy::doc_markdown, clippy::doc_link_with_quotes)]

mod buffer;
mod bytes;
mod checksum;
mod errors;
mod flow_map;
mod fragment;
mod histogram;
mod lab;
mod log_lines;
mod pool;
mod proxy;
mod replay;
mod request;
mod stack;
mod stream;
mod tunnel;
mod wait;

use pyo3::prelude::*;

/// So that the lab knows what the heaps of its threads hold; Python's own allocations do not pass here.
#[global_allocator]
static ALLOCATOR: t2s_sys::heap::CountingAllocator = t2s_sys::heap::CountingAllocator;

/// The compiled core of t2s.
#[pymodule(gil_used = true)]
mod _core {
    #[pymodule_export]
    use crate::buffer::Buffer;
    #[pymodule_export]
    use crate::checksum::{checksum, checksum_kernels};
    #[pymodule_export]
    use crate::errors::{
        ConfigError, DecodeError, LabError, PacketError, PoolExhausted, T2sError, TableFull, TunnelError,
    };
    #[pymodule_export]
    use crate::flow_map::FlowMap;
    #[pymodule_export]
    use crate::fragment::{FragmentReassembler, fragment};
    #[pymodule_export]
    use crate::histogram::Histogram;
    #[pymodule_export]
    use crate::lab::Lab;
    #[pymodule_export]
    use crate::pool::MemoryPool;
    #[pymodule_export]
    use crate::proxy::Proxy;
    #[pymodule_export]
    use crate::replay::{Replay, ReplayFlow, replay};
    #[pymodule_export]
    use crate::request::Request;
    #[pymodule_export]
    use crate::stack::Stack;
    #[pymodule_export]
    use crate::stream::StreamReassembler;
    #[pymodule_export]
    use crate::tunnel::{Tunnel, open_tun};

    /// The version of the compiled core; the package has the same one.
    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
