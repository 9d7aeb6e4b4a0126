//! `Lab`: one phase of one scenario on the memory driver.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::OrRaise;
use crate::wait::{seconds, wait};

/// One phase of one scenario: generator, device, core and simulated upstream, in threads of their own.
///
/// `spec` is JSON: scenario, phase (`"load"`, `"capacity"` or `"null"`), seed, seconds, settings and load; the
/// runner writes it. Nothing runs before `start`. Raises `ConfigError` with all that is wrong with the spec.
///
/// >>> from t2s import ConfigError
/// >>> from t2s._core import Lab
/// >>> try:
/// ...     Lab("{}")
/// ... except ConfigError as error:
/// ...     print("refused")
/// refused
#[pyclass(frozen, module = "t2s")]
pub(crate) struct Lab(t2s_lab::lab::Lab);

#[pymethods]
impl Lab {
    /// Offered below this part of intended makes a load phase invalid.
    #[classattr]
    const OFFERED_RATIO_MIN: f64 = t2s_lab::summary::OFFERED_RATIO_MIN;

    #[new]
    fn new(spec: &str) -> PyResult<Self> {
        t2s_lab::lab::Lab::new(spec).map(Self).or_raise()
    }

    /// Start the threads and return at once.
    ///
    /// Raises `LabError` when it was started before, or a thread cannot be made.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.start()).or_raise()
    }

    /// Return where the phase is: `elapsed` and `seconds`, packets `offered` and `forwarded`, and `pps` just now.
    fn progress<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let progress = self.0.progress();
        let dict = PyDict::new(py);
        dict.set_item("elapsed", progress.elapsed)?;
        dict.set_item("seconds", progress.seconds)?;
        dict.set_item("offered", progress.offered)?;
        dict.set_item("forwarded", progress.forwarded)?;
        dict.set_item("pps", progress.pps)?;
        Ok(dict)
    }

    /// Wait up to `timeout_s` seconds for the end; return whether it has come. Ctrl-C ends the wait, not the phase.
    fn wait(&self, py: Python<'_>, timeout_s: f64) -> PyResult<bool> {
        wait(py, seconds("timeout_s", timeout_s)?, |step| self.0.wait(step))
    }

    /// Ask the phase to end now; it still drains, and its result covers what was measured.
    fn stop(&self) {
        self.0.stop();
    }

    /// Return the result as JSON.
    ///
    /// Raises `LabError` before the end, or when a thread of the phase failed.
    fn result(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| self.0.result()).or_raise()
    }
}
