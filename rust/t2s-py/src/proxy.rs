//! `Proxy`: the small SOCKS5 server.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyAny;
use t2s_tunnel::proxy::{self, ProxyConfig};

use crate::errors::OrRaise;
use crate::log_lines::LogLines;
use crate::request::{End, end_of};

/// A running SOCKS5 server: CONNECT and UDP ASSOCIATE, for trying things out.
///
/// `config` is JSON with `listen`, `username`, `password` and `log_level`; `t2s.Proxy` writes it. It runs from
/// construction until `stop`, the end of its `with` block, or its last reference. Raises `ConfigError` for settings
/// that cannot be, and `TunnelError` when it cannot listen.
///
/// >>> from t2s._core import Proxy
/// >>> with Proxy('{"listen": "127.0.0.1:0", "log_level": "off"}') as proxy:
/// ...     print(proxy.address[0])
/// 127.0.0.1
#[pyclass(frozen, module = "t2s")]
pub(crate) struct Proxy {
    server: proxy::Proxy,
    lines: Arc<LogLines>,
}

#[pymethods]
impl Proxy {
    #[new]
    fn new(py: Python<'_>, config: &str) -> PyResult<Self> {
        let config = ProxyConfig::from_json(config).or_raise()?;
        let lines = Arc::new(LogLines::default());
        let sink = lines.sink();
        let server = py.detach(|| proxy::Proxy::start(&config, sink)).or_raise()?;
        Ok(Self { server, lines })
    }

    /// Where it listens: `(address, port)`.
    #[getter]
    fn address(&self) -> End {
        end_of(self.server.address())
    }

    /// Return the lines of the log since the last call, as `(level, text)`, oldest first; the newest 1,024 are kept.
    fn lines(&self) -> Vec<(&'static str, String)> {
        self.lines.take()
    }

    /// End all connections and the server's thread. Stopping twice is harmless.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.server.stop());
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) {
        self.stop(py);
    }
}
