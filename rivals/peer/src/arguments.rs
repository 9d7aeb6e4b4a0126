//! The command line: a mode, then pairs of `--name value`. Refuses what no mode asked for.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::str::FromStr;
use std::time::Duration;

/// Longest time that an argument may state: a limit for typing errors, far above any use.
const LONGEST: f64 = 3_600.0;

/// What stands on the command line and was not taken yet.
pub(crate) struct Arguments {
    mode: String,
    pairs: BTreeMap<String, String>,
}

impl Arguments {
    /// Those of this process.
    pub(crate) fn of_process() -> io::Result<Self> {
        let mut words = std::env::args().skip(1);
        let mode = words.next().ok_or_else(|| io::Error::other("usage: peer MODE [--NAME VALUE]..."))?;
        let mut pairs = BTreeMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| io::Error::other(format!("{word:?} has no --")))?;
            let value = words.next().ok_or_else(|| io::Error::other(format!("--{name} has no value")))?;
            pairs.insert(name.to_owned(), value);
        }
        Ok(Self { mode, pairs })
    }

    /// The first word.
    pub(crate) fn mode(&self) -> &str {
        &self.mode
    }

    /// A value that may be missing.
    pub(crate) fn optional<T: FromStr<Err: Display>>(&mut self, name: &str) -> io::Result<Option<T>> {
        let Some(text) = self.pairs.remove(name) else { return Ok(None) };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(io::Error::other(format!("--{name} {text}: {error}"))),
        }
    }

    /// A value that must be there.
    pub(crate) fn take<T: FromStr<Err: Display>>(&mut self, name: &str) -> io::Result<T> {
        self.optional(name)?.ok_or_else(|| io::Error::other(format!("--{name} is missing")))
    }

    /// A number of at least one.
    pub(crate) fn count(&mut self, name: &str) -> io::Result<usize> {
        match self.take(name)? {
            0 => Err(io::Error::other(format!("--{name} must be at least 1"))),
            count => Ok(count),
        }
    }

    /// A time in seconds.
    pub(crate) fn seconds(&mut self, name: &str) -> io::Result<Duration> {
        let seconds: f64 = self.take(name)?;
        if !(0.0..=LONGEST).contains(&seconds) {
            return Err(io::Error::other(format!("--{name} must be 0 to {LONGEST} seconds")));
        }
        Ok(Duration::from_secs_f64(seconds))
    }

    /// Refuses what is left.
    pub(crate) fn finish(self) -> io::Result<()> {
        match self.pairs.keys().next() {
            Some(name) => Err(io::Error::other(format!("{} takes no --{name}", self.mode))),
            None => Ok(()),
        }
    }
}
