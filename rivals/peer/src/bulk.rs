//! `peer bulk`: many bytes in one direction, over some streams, for a while.
//!
//! What counts is the window between the warm-up and the end. Upwards the server says at the end how much came, and
//! that is what `total_bytes` holds; a stream that cannot hear it (half of it must stay open for that) is unconfirmed.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::dial::{FAILURES_MAX, IO_TIMEOUT, Service, Way};
use crate::exchange::join;
use crate::server::{BLOCK, STACK};

/// A blocked stream looks this often whether the time is over.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    /// Bytes so far.
    moved: AtomicU64,
}

/// All that a stream moved.
struct Total {
    bytes: u64,
    /// Whether the receiver counted them.
    confirmed: bool,
}

/// Runs it.
pub(crate) fn run(way: &Way, mut arguments: Arguments) -> io::Result<Value> {
    let direction: String = arguments.take("direction")?;
    let count = arguments.count("streams")?;
    let (warmup, seconds) = (arguments.seconds("warmup")?, arguments.seconds("seconds")?);
    arguments.finish()?;
    let (service, work): (_, fn(TcpStream, &Shared) -> Total) = match direction.as_str() {
        "up" => (Service::Sink, up),
        "down" => (Service::Source, down),
        other => return Err(io::Error::other(format!("--direction {other}: up or down"))),
    };
    let (mut streams, mut failures, mut failure) = (Vec::with_capacity(count), 0, None);
    // All connect before any of them loads the way that the others have to take.
    while streams.len() + failures < count && failures < FAILURES_MAX {
        match way.stream(service) {
            Ok(stream) => streams.push(stream),
            Err(error) => {
                failures += 1;
                failure = Some(error);
            }
        }
    }
    if let (true, Some(error)) = (streams.is_empty(), &failure) {
        return Err(io::Error::other(format!("no stream could be opened: {error}")));
    }
    let mut threads = Vec::with_capacity(count);
    for stream in streams {
        let shared = Arc::new(Shared::default());
        let mine = Arc::clone(&shared);
        threads.push((shared, Builder::new().stack_size(STACK).spawn(move || work(stream, &mine))?));
    }
    let moved = || threads.iter().map(|(shared, _)| shared.moved.load(Ordering::Relaxed)).collect::<Vec<_>>();
    thread::sleep(warmup);
    let (start, before) = (Instant::now(), moved());
    thread::sleep(seconds);
    let (elapsed, after) = (start.elapsed(), moved());
    for (shared, _) in &threads {
        shared.over.store(true, Ordering::Relaxed);
    }
    let opened = threads.len();
    let (mut total, mut unconfirmed) = (0, 0);
    for (_, thread) in threads {
        let stream = join(thread)?;
        total += stream.bytes;
        unconfirmed += u64::from(!stream.confirmed);
    }
    let each: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
    Ok(json!({
        "bytes_per_s": each.iter().sum::<u64>() as f64 / elapsed.as_secs_f64(),
        "seconds": elapsed.as_secs_f64(),
        "streams": opened,
        "refused": count - opened,
        "starved": each.iter().filter(|bytes| **bytes == 0).count(),
        "least_bytes": each.iter().min(),
        "most_bytes": each.iter().max(),
        "total_bytes": total,
        "unconfirmed": unconfirmed,
        "failure": failure.map(|error| error.to_string()),
    }))
}

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Sends, and returns what the server says that came; without that, what was sent.
fn up(mut stream: TcpStream, shared: &Shared) -> Total {
    let block = vec![0x5a; BLOCK];
    let _ = stream.set_write_timeout(Some(LOOK));
    while !shared.over.load(Ordering::Relaxed) {
        match stream.write(&block) {
            Ok(len) => _ = shared.moved.fetch_add(len as u64, Ordering::Relaxed),
            Err(error) if again(&error) => {}
            Err(_) => break,
        }
    }
    let mut came = [0; 8];
    let told = stream.shutdown(Shutdown::Write).and_then(|()| {
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.read_exact(&mut came)
    });
    match told {
        Ok(()) => Total { bytes: u64::from_be_bytes(came), confirmed: true },
        Err(_) => Total { bytes: shared.moved.load(Ordering::Relaxed), confirmed: false },
    }
}

/// Receives, and returns how much.
fn down(mut stream: TcpStream, shared: &Shared) -> Total {
    let mut room = vec![0; BLOCK];
    let _ = stream.set_read_timeout(Some(LOOK));
    while !shared.over.load(Ordering::Relaxed) {
        match stream.read(&mut room) {
            Ok(0) => break,
            Ok(len) => _ = shared.moved.fetch_add(len as u64, Ordering::Relaxed),
            Err(error) if again(&error) => {}
            Err(_) => break,
        }
    }
    Total { bytes: shared.moved.load(Ordering::Relaxed), confirmed: true }
}
