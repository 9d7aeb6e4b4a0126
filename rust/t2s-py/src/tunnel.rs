//! `Tunnel`: a TUN device, its workers and the proxy behind them.

use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyAny, PyDict};
use t2s_tunnel::config::TunnelConfig;
use t2s_tunnel::dial::Credentials;
use t2s_tunnel::log::Level;
use t2s_tunnel::tun::{Device, DeviceConfig, MTU_MIN, OpenError};
use t2s_tunnel::tunnel;

use crate::errors::{ConfigError, OrRaise, TunnelError};
use crate::log_lines::LogLines;
use crate::request::end_of;
use crate::wait::{seconds, wait};

/// Counters that are counts by name.
const BY_NAME: [&str; 3] = ["flows_closed", "packets_dropped", "dial_failures"];

/// A running tunnel: what clients send into its TUN device leaves through its proxy.
///
/// `config` is JSON; `t2s.Tunnel` writes it. The tunnel runs from construction until `stop`, the end of its `with`
/// block, or its last reference. Several live in one process. Addresses and routes are the caller's. Raises
/// `ConfigError` for settings that cannot be, and `TunnelError` for a device or proxy that cannot be had.
///
/// >>> from t2s import ConfigError
/// >>> from t2s._core import Tunnel
/// >>> try:
/// ...     Tunnel('{"proxy": "gopher://localhost"}')
/// ... except ConfigError as error:
/// ...     print(error)
/// proxy: unknown proxy scheme "gopher"; use socks5://, http:// or direct://
#[pyclass(frozen, module = "t2s")]
pub(crate) struct Tunnel {
    engine: Arc<tunnel::Tunnel>,
    lines: Arc<LogLines>,
}

/// Reads what serde writes.
fn parsed(py: Python<'_>, json: serde_json::Result<String>) -> PyResult<Bound<'_, PyAny>> {
    let json = json.map_err(|error| TunnelError::new_err(error.to_string()))?;
    py.import("json")?.call_method1("loads", (json,))
}

#[pymethods]
impl Tunnel {
    #[new]
    fn new(py: Python<'_>, config: &str) -> PyResult<Self> {
        let config = TunnelConfig::from_json(config).or_raise()?;
        let lines = Arc::new(LogLines::default());
        let sink = lines.sink();
        let engine = py.detach(|| tunnel::Tunnel::start(config, sink)).or_raise()?;
        Ok(Self { engine: Arc::new(engine), lines })
    }

    /// Return every key of the settings with its default; `password` has none and is left out.
    #[staticmethod]
    fn defaults(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        parsed(py, serde_json::to_string(&TunnelConfig::default()))
    }

    /// The interface's name.
    #[getter]
    fn name(&self) -> &str {
        self.engine.name()
    }

    /// The interface's MTU, bytes.
    #[getter]
    fn mtu(&self) -> u16 {
        self.engine.mtu()
    }

    /// What the device granted when it was opened: `rx_checksum`, `tx_checksum`, `tso` and `uso`.
    #[getter]
    fn offload<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let offload = self.engine.offload();
        let dict = PyDict::new(py);
        dict.set_item("rx_checksum", offload.rx_checksum)?;
        dict.set_item("tx_checksum", offload.tx_checksum)?;
        dict.set_item("tso", offload.tso)?;
        dict.set_item("uso", offload.uso)?;
        Ok(dict)
    }

    /// Whether packets are still carried.
    #[getter]
    fn running(&self) -> bool {
        self.engine.is_running()
    }

    /// Return all counters by name, summed over workers. They stay readable after the end.
    ///
    /// Those that end in `_times` are histograms: `count`, `sum_ns`, and `buckets`, of which number `i` counts
    /// durations of at most 2^i µs and the last all that are longer.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let stats = py.detach(|| self.engine.stats());
        let dict = parsed(py, serde_json::to_string(&stats))?;
        for key in BY_NAME {
            dict.set_item(key, PyDict::from_sequence(&dict.get_item(key)?)?)?;
        }
        Ok(dict)
    }

    /// Return a dict for each TCP flow and each UDP session: `worker`, `protocol`, `client` and `target` as `(address,
    /// port)`, `domain` (the name that `target` stands for, None for a real address), `state` (None for UDP),
    /// `bytes_up`, `bytes_down`, `rate_up`, `rate_down`, `age_ns`, and the times since its SYN at which the proxy was
    /// reached (`connect_ns`), had answered (`reply_ns`) and the target's first byte came (`first_byte_ns`); 0 for what
    /// has not happened yet.
    ///
    /// Rates are bytes a second since the call before, and since the flow's start at the first; calls within half a
    /// second of each other return the same rates. The target of a UDP session is that of its first datagram.
    fn flows<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let rows = py.detach(|| self.engine.flows());
        rows.into_iter()
            .map(|row| {
                let dict = PyDict::new(py);
                dict.set_item("worker", row.worker)?;
                dict.set_item("protocol", row.protocol)?;
                dict.set_item("client", end_of(row.client))?;
                dict.set_item("target", end_of(row.target))?;
                dict.set_item("domain", row.domain)?;
                dict.set_item("state", row.state)?;
                dict.set_item("bytes_up", row.bytes_up)?;
                dict.set_item("bytes_down", row.bytes_down)?;
                dict.set_item("rate_up", row.rate_up)?;
                dict.set_item("rate_down", row.rate_down)?;
                dict.set_item("age_ns", row.age_ns)?;
                dict.set_item("connect_ns", row.connect_ns)?;
                dict.set_item("reply_ns", row.reply_ns)?;
                dict.set_item("first_byte_ns", row.first_byte_ns)?;
                Ok(dict)
            })
            .collect()
    }

    /// Return the lines of the log since the last call, as `(level, text)`, oldest first; the newest 1,024 are kept.
    fn lines(&self) -> Vec<(&'static str, String)> {
        self.lines.take()
    }

    /// Change the proxy's credentials, for connections from now on, and the log's threshold; `None` leaves as it is.
    ///
    /// Raises `ConfigError`, and changes nothing, for a password without user name, one that SOCKS5 cannot carry, or an
    /// unknown level.
    #[pyo3(signature = (*, username=None, password=None, log_level=None))]
    fn reload(&self, username: Option<&str>, password: Option<&str>, log_level: Option<&str>) -> PyResult<()> {
        let credentials = match (username, password) {
            (None, None) => None,
            (None, Some(_)) => return Err(ConfigError::new_err("password: needs a username")),
            (Some(user), password) => Some(
                Credentials::new(user, password.unwrap_or_default())
                    .map_err(|error| ConfigError::new_err(error.to_string()))?,
            ),
        };
        let level = log_level.map(level_of).transpose()?;
        self.engine.reload(credentials, level);
        Ok(())
    }

    /// Stop: new connections are refused at once, and flows that are left after `shutdown_timeout_s` seconds are reset.
    ///
    /// Returns when all threads have ended. Ctrl-C ends the wait, not the stopping. Stopping twice is harmless.
    #[pyo3(signature = (shutdown_timeout_s=0.0))]
    fn stop(&self, py: Python<'_>, shutdown_timeout_s: f64) -> PyResult<()> {
        let timeout = seconds("shutdown_timeout_s", shutdown_timeout_s)?;
        let engine = Arc::clone(&self.engine);
        let (told, ended) = mpsc::channel::<()>();
        let stopper = std::thread::Builder::new().name("t2s-stop".into()).spawn(move || {
            engine.stop(timeout);
            drop(told);
        })?;
        wait(py, Duration::MAX, move |step| ended.recv_timeout(step) == Err(mpsc::RecvTimeoutError::Disconnected))?;
        py.detach(|| stopper.join()).map_err(|_| TunnelError::new_err("stopping panicked; this is a defect of t2s"))
    }

    /// Wait up to `timeout_s` seconds for the end; return whether it has come. Ctrl-C ends the wait, not the tunnel.
    ///
    /// Raises `TunnelError`, once, when the tunnel ended by itself: its device failed or was removed.
    fn wait(&self, py: Python<'_>, timeout_s: f64) -> PyResult<bool> {
        let ended = wait(py, seconds("timeout_s", timeout_s)?, |step| self.engine.wait(Some(step)))?;
        match py.detach(|| if ended { self.engine.take_failure() } else { None }) {
            Some(failure) => Err(failure).or_raise(),
            None => Ok(ended),
        }
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.stop(py, 0.0)
    }
}

/// Open a TUN device in the network namespace of the calling thread, set it up, and return `(descriptor, name, mtu)`.
///
/// The caller owns the descriptor; a tunnel takes it as `tun_fd`, with the same `mtu`, in this namespace or any other.
/// `name` may be a pattern such as `t2s%d`. Without `mtu` it is what a tunnel would choose. Raises `ConfigError` for an
/// MTU that cannot be, and `TunnelError` for a device that cannot be had.
///
/// >>> import t2s
/// >>> try:
/// ...     t2s.open_tun("a name with spaces", mtu=100)
/// ... except t2s.ConfigError as error:
/// ...     print(error)
/// mtu must lie between 1280 and 65535, not 100
#[pyfunction]
#[pyo3(signature = (name, *, mtu=None, offload=true))]
pub(crate) fn open_tun(name: &str, mtu: Option<u32>, offload: bool) -> PyResult<(i32, String, u16)> {
    let mtu = mtu.map(|value| {
        let (min, max) = (MTU_MIN.into(), u16::MAX.into());
        u16::try_from(value).map_err(|_| OpenError::Range { what: "mtu", value, min, max })
    });
    let mtu = mtu.transpose().or_raise()?;
    let config = DeviceConfig { name: name.to_owned(), mtu, queues: 1, offload, up: true, ..DeviceConfig::default() };
    let device = Device::open(&config).or_raise()?;
    let queue = device.queues.into_iter().next().ok_or_else(|| TunnelError::new_err("the device has no queue"))?;
    Ok((OwnedFd::from(queue).into_raw_fd(), device.name, device.mtu))
}

fn level_of(word: &str) -> PyResult<Level> {
    let levels = [Level::Off, Level::Error, Level::Warn, Level::Info, Level::Debug];
    levels.into_iter().find(|level| level.name() == word).ok_or_else(|| {
        let names = levels.map(Level::name).join(", ");
        ConfigError::new_err(format!("log_level: {word:?} is none of {names}"))
    })
}
