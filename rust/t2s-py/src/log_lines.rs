//! Lines of the log on their way to Python: kept until they are asked for, so that no thread of a tunnel ever waits for
//! the interpreter.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use t2s_tunnel::log::{Level, Sink};

/// Lines that wait at most; beyond, the oldest go and are counted.
const KEPT: usize = 1_024;

#[derive(Default)]
pub(crate) struct LogLines(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    lines: VecDeque<(Level, String)>,
    lost: u64,
}

impl LogLines {
    /// A sink that fills the queue.
    pub(crate) fn sink(self: &Arc<Self>) -> Sink {
        let this = Arc::clone(self);
        Arc::new(move |level, text| {
            let mut waiting = this.0.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.lines.len() == KEPT {
                waiting.lines.pop_front();
                waiting.lost += 1;
            }
            waiting.lines.push_back((level, text.to_owned()));
        })
    }

    /// Everything that waits, oldest first; a line of its own tells what was lost.
    pub(crate) fn take(&self) -> Vec<(&'static str, String)> {
        let waiting = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let lost = (waiting.lost > 0).then(|| (Level::Warn, format!("{} earlier lines were lost", waiting.lost)));
        lost.into_iter().chain(waiting.lines).map(|(level, text)| (level.name(), text)).collect()
    }
}
