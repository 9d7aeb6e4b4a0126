//! `peer rr` and `peer crr`: requests over lasting connections, and a connection for each request.
//!
//! Closed loops: each connection or worker has one request under way. What comes back is compared with what went out.

use std::io::{self, Read as _, Write as _};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::dial::{FAILURES_MAX, Service, Way};
use crate::latency::Latency;
use crate::server::STACK;

/// The time that counts.
#[derive(Clone, Copy)]
struct Window {
    start: Instant,
    length: Duration,
}

impl Window {
    fn take(arguments: &mut Arguments) -> io::Result<Self> {
        let (warmup, length) = (arguments.seconds("warmup")?, arguments.seconds("seconds")?);
        Ok(Self { start: Instant::now() + warmup, length })
    }

    fn is_over(&self) -> bool {
        self.start.elapsed() >= self.length
    }

    /// Records what ended within it.
    fn record(&self, latency: &mut Latency, began: Instant) {
        let now = Instant::now();
        if now >= self.start && now < self.start + self.length {
            latency.record(now - began);
        }
    }
}

/// What one thread saw.
struct Seen {
    latency: Latency,
    failures: u64,
    failure: Option<String>,
}

/// One request at a time over each of some connections.
pub(crate) fn requests(way: &Way, mut arguments: Arguments) -> io::Result<Value> {
    let (connections, bytes) = (arguments.count("connections")?, arguments.count("bytes")?);
    let streams = (0..connections).map(|_| way.stream(Service::Echo)).collect::<io::Result<Vec<_>>>()?;
    let window = Window::take(&mut arguments)?;
    arguments.finish()?;
    let request = pattern(bytes);
    let work = streams.into_iter().map(|mut stream| {
        let request = request.clone();
        move || {
            let mut seen = Seen { latency: Latency::new()?, failures: 0, failure: None };
            let mut answer = vec![0; request.len()];
            while !window.is_over() {
                let began = Instant::now();
                if let Err(error) = stream.write_all(&request).and_then(|()| stream.read_exact(&mut answer)) {
                    seen.failures += 1;
                    seen.failure = Some(error.to_string());
                    break;
                }
                if answer != request {
                    return Err(io::Error::other("the answer is not the request"));
                }
                window.record(&mut seen.latency, began);
            }
            Ok(seen)
        }
    });
    gather(work, window)
}

/// Connect, ask, be answered, close: again and again in each of some workers. Both ends close at once: waiting for the
/// other's close would take seconds with tunnels that do not pass on the first of two.
pub(crate) fn connections(way: &Way, mut arguments: Arguments) -> io::Result<Value> {
    let (workers, bytes) = (arguments.count("workers")?, arguments.count("bytes")?);
    let window = Window::take(&mut arguments)?;
    arguments.finish()?;
    let mut request = pattern(bytes.max(4));
    let len = u32::try_from(request.len()).map_err(io::Error::other)?;
    request[..4].copy_from_slice(&len.to_be_bytes());
    let work = (0..workers).map(|_| {
        let (way, request) = (*way, request.clone());
        move || {
            let mut seen = Seen { latency: Latency::new()?, failures: 0, failure: None };
            let (mut answer, mut in_a_row) = (vec![0; request.len()], 0);
            while !window.is_over() && in_a_row < FAILURES_MAX {
                let began = Instant::now();
                let done = way.stream(Service::Answer).and_then(|mut stream| {
                    stream.write_all(&request)?;
                    stream.read_exact(&mut answer)
                });
                match done {
                    Ok(()) if answer == request => {
                        in_a_row = 0;
                        window.record(&mut seen.latency, began);
                    }
                    Ok(()) => return Err(io::Error::other("the answer is not the request")),
                    Err(error) => {
                        in_a_row += 1;
                        seen.failures += 1;
                        seen.failure = Some(error.to_string());
                    }
                }
            }
            Ok(seen)
        }
    });
    gather(work, window)
}

/// Bytes with a prime period, so that no shifted answer looks right.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Runs all threads and sums up what they saw.
fn gather<F>(work: impl Iterator<Item = F>, window: Window) -> io::Result<Value>
where
    F: FnOnce() -> io::Result<Seen> + Send + 'static,
{
    let threads = work.map(|work| Builder::new().stack_size(STACK).spawn(work)).collect::<io::Result<Vec<_>>>()?;
    let (mut latency, mut failures, mut failure) = (Latency::new()?, 0, None);
    for thread in threads {
        let seen = join(thread)??;
        latency.add(&seen.latency)?;
        failures += seen.failures;
        failure = failure.or(seen.failure);
    }
    if latency.count() == 0 {
        return Err(io::Error::other(failure.unwrap_or_else(|| "nothing came back".into())));
    }
    Ok(json!({
        "per_s": latency.count() as f64 / window.length.as_secs_f64(),
        "count": latency.count(),
        "failures": failures,
        "failure": failure,
        "latency": latency.to_json(),
    }))
}

/// The result of a thread; its panic is an error.
pub(crate) fn join<T>(thread: thread::JoinHandle<T>) -> io::Result<T> {
    thread.join().map_err(|_| io::Error::other("a thread panicked"))
}
