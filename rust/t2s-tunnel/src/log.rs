//! What a tunnel has to say, to whoever started it: five levels, one callback, no global state.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Level {
    /// Nothing at all (as a threshold).
    Off,
    /// The tunnel does not do what it is for.
    Error,
    /// Something is wrong outside, and the tunnel copes.
    Warn,
    /// Start, stop, and what changes once.
    Info,
    /// One line a connection.
    Debug,
}

impl Level {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// Where lines go. Called from the tunnel's threads; it must not block for long.
pub type Sink = Arc<dyn Fn(Level, &str) + Send + Sync>;

/// A sink with a threshold that can be changed while the tunnel runs.
#[derive(Clone)]
pub struct Logger {
    sink: Sink,
    threshold: Arc<AtomicU8>,
}

impl Logger {
    /// A logger that hands lines of at least this importance to `sink`.
    pub fn new(threshold: Level, sink: Sink) -> Self {
        Self { sink, threshold: Arc::new(AtomicU8::new(threshold as u8)) }
    }

    /// A logger without listeners.
    pub fn silent() -> Self {
        Self::new(Level::Off, Arc::new(|_, _| {}))
    }

    /// Changes the threshold, for all copies of this logger.
    pub fn set_level(&self, threshold: Level) {
        self.threshold.store(threshold as u8, Ordering::Relaxed);
    }

    /// Whether a line of this level would be heard; asked before a line is put together.
    #[inline]
    pub fn hears(&self, level: Level) -> bool {
        level as u8 <= self.threshold.load(Ordering::Relaxed)
    }

    /// Says a line; the arguments are formatted only when somebody listens.
    pub fn say(&self, level: Level, line: fmt::Arguments<'_>) {
        if self.hears(level) {
            match line.as_str() {
                Some(text) => (self.sink)(level, text),
                None => (self.sink)(level, &line.to_string()),
            }
        }
    }
}

impl fmt::Debug for Logger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logger").field("threshold", &self.threshold).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn the_threshold_is_shared_and_changeable() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&lines);
        let logger =
            Logger::new(Level::Warn, Arc::new(move |level, text| heard.lock().unwrap().push((level, text.to_owned()))));
        let copy = logger.clone();
        copy.say(Level::Info, format_args!("unheard"));
        logger.set_level(Level::Debug);
        copy.say(Level::Info, format_args!("heard {}", 1));
        assert_eq!(*lines.lock().unwrap(), [(Level::Info, "heard 1".to_owned())]);
    }
}
