//! The exception tree, and the one place where errors of the core become exceptions.
//!
//! Each error type of the core is matched in full, so that a new variant does not compile until it has its exception.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use t2s_core::checksum::UnknownKernel;
use t2s_lab::lab::LabError as CoreLabError;

create_exception!(t2s, T2sError, PyException, "The root of all exceptions that t2s raises on its own account.");
create_exception!(t2s, LabError, T2sError, "A phase of the lab that did not run, or has no result (yet).");
create_exception!(t2s, PacketError, T2sError, "Bytes that are not the packet they should be.");
create_exception!(t2s, ConfigError, T2sError, "A setting that is unknown, impossible, or not of this machine.");
create_exception!(t2s, DecodeError, T2sError, "A file or text that does not decode: a histogram, a capture, a result.");
create_exception!(
    t2s,
    PoolExhausted,
    T2sError,
    "The pool is at its ceiling, or was asked for more than one buffer holds."
);
create_exception!(t2s, TunnelError, T2sError, "A tunnel or proxy that did not start, or ended by itself.");
create_exception!(t2s, TableFull, T2sError, "A bounded table has no room for another entry.");

/// An error of the core as the exception that stands for it.
pub(crate) trait IntoPyErr {
    /// The exception, its message the error's sentence.
    fn into_py_err(self) -> PyErr;
}

/// `?` for results whose error has an exception.
pub(crate) trait OrRaise<T> {
    /// The value, or the exception.
    fn or_raise(self) -> PyResult<T>;
}

impl<T, E: IntoPyErr> OrRaise<T> for Result<T, E> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(IntoPyErr::into_py_err)
    }
}

impl IntoPyErr for UnknownKernel {
    fn into_py_err(self) -> PyErr {
        ConfigError::new_err(self.to_string())
    }
}

impl IntoPyErr for t2s_core::buf::PoolExhausted {
    fn into_py_err(self) -> PyErr {
        PoolExhausted::new_err(self.to_string())
    }
}

impl IntoPyErr for t2s_core::flow::TableFull {
    fn into_py_err(self) -> PyErr {
        TableFull::new_err(self.to_string())
    }
}

impl IntoPyErr for CoreLabError {
    fn into_py_err(self) -> PyErr {
        let text = self.to_string();
        match self {
            Self::Spec(_) => ConfigError::new_err(text),
            Self::Capture(_) => DecodeError::new_err(text),
            Self::AlreadyStarted | Self::NotDone | Self::Thread(_) | Self::Panicked(_) => LabError::new_err(text),
        }
    }
}

impl IntoPyErr for t2s_tunnel::config::ConfigError {
    fn into_py_err(self) -> PyErr {
        ConfigError::new_err(self.to_string())
    }
}

impl IntoPyErr for t2s_tunnel::tun::OpenError {
    fn into_py_err(self) -> PyErr {
        let text = self.to_string();
        match self {
            Self::Range { .. } | Self::InheritedQueues => ConfigError::new_err(text),
            Self::CloneDevice(_) | Self::Attach { .. } | Self::Inherited { .. } | Self::Setting { .. } => {
                TunnelError::new_err(text)
            }
        }
    }
}

impl IntoPyErr for t2s_tunnel::privilege::PrivilegeError {
    fn into_py_err(self) -> PyErr {
        let text = self.to_string();
        match self {
            Self::Unknown(_) => ConfigError::new_err(text),
            Self::Lookup { .. } | Self::Become { .. } | Self::Mark(_) | Self::Capabilities(_) => {
                TunnelError::new_err(text)
            }
        }
    }
}

impl IntoPyErr for t2s_tunnel::tunnel::StartError {
    fn into_py_err(self) -> PyErr {
        match self {
            Self::Config(error) => error.into_py_err(),
            Self::Device(error) => error.into_py_err(),
            Self::Privilege(error) => error.into_py_err(),
            Self::Resolve { .. } | Self::System(_) => TunnelError::new_err(self.to_string()),
        }
    }
}

impl IntoPyErr for t2s_tunnel::tunnel::RunError {
    fn into_py_err(self) -> PyErr {
        let text = self.to_string();
        match self {
            Self::Device { .. } | Self::Panic(_) => TunnelError::new_err(text),
        }
    }
}

impl IntoPyErr for t2s_tunnel::proxy::ProxyError {
    fn into_py_err(self) -> PyErr {
        let text = self.to_string();
        match self {
            Self::Credentials => ConfigError::new_err(text),
            Self::Listen { .. } | Self::System(_) => TunnelError::new_err(text),
        }
    }
}

impl IntoPyErr for t2s_lab::replay::CaptureError {
    fn into_py_err(self) -> PyErr {
        match self {
            // A path that does not exist is Python's own kind of error.
            Self::Io(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => error.into(),
            Self::Io(_) | Self::Format(_) | Self::LinkType(_) | Self::TooLarge => {
                DecodeError::new_err(self.to_string())
            }
        }
    }
}

impl IntoPyErr for t2s_core::stats::DropReason {
    /// All reasons are one exception: what tells them apart is their stable name, the same as in counters.
    fn into_py_err(self) -> PyErr {
        PacketError::new_err(self.name())
    }
}
