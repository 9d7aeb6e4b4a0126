//! `peer udp-closed` and `peer udp-open`: echoes of datagrams, as many as come back, and at a rate that is held.
//!
//! The closed loop keeps a number of datagrams under way in each flow and replaces what has come back; what is not back
//! within a while is lost. The open loop sends on a schedule, whatever comes back; latency counts from the due time.

use std::io;
use std::sync::Arc;
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::dial::{Datagrams, HEADER_MAX, Way};
use crate::exchange::{join, pattern};
use crate::latency::Latency;

/// What is not back after this is lost (closed loop), or no longer waited for (open loop).
const LOST: Duration = Duration::from_millis(300);
/// How often the open loop sends what is due.
const TICK: Duration = Duration::from_micros(500);
/// Payload of the open loop starts with its number and due time, 8 bytes each.
const MARKS: usize = 16;

/// As many echoes as come back.
pub(crate) fn closed_loop(way: &Way, mut arguments: Arguments) -> io::Result<Value> {
    let (flows, under_way) = (arguments.count("flows")?, arguments.count("window")?);
    let bytes = arguments.count("bytes")?;
    let (warmup, seconds) = (arguments.seconds("warmup")?, arguments.seconds("seconds")?);
    arguments.finish()?;
    let sockets = (0..flows).map(|_| way.datagrams()).collect::<io::Result<Vec<_>>>()?;
    let start = Instant::now() + warmup;
    let threads: Vec<_> = sockets
        .into_iter()
        .map(|socket| Builder::new().spawn(move || bounce(&socket, bytes, under_way, start, seconds)))
        .collect::<io::Result<_>>()?;
    let (mut counted, mut sent, mut back) = (0_u64, 0_u64, 0);
    for thread in threads {
        let seen = join(thread)??;
        counted += seen.counted;
        sent += seen.sent;
        back += seen.back;
    }
    if back == 0 {
        return Err(io::Error::other("no datagram came back"));
    }
    Ok(json!({
        "per_s": counted as f64 / seconds.as_secs_f64(),
        "sent": sent,
        "back": back,
        "lost": sent.saturating_sub(back),
    }))
}

#[derive(Default)]
struct Bounced {
    /// Came back within the window that counts.
    counted: u64,
    sent: u64,
    back: u64,
}

fn bounce(
    datagrams: &Datagrams,
    bytes: usize,
    under_way: usize,
    start: Instant,
    length: Duration,
) -> io::Result<Bounced> {
    let mut datagram = datagrams.header.clone();
    datagram.extend(pattern(bytes));
    let mut room = vec![0; bytes + HEADER_MAX + 1];
    let mut seen = Bounced::default();
    let mut flying = 0;
    datagrams.socket.set_read_timeout(Some(LOST))?;
    while start.elapsed() < length {
        while flying < under_way {
            flying += 1;
            seen.sent += u64::from(datagrams.socket.send(&datagram).is_ok());
        }
        match datagrams.socket.recv(&mut room) {
            Ok(len) => {
                if datagrams.payload(&room[..len]) != Some(&datagram[datagrams.header.len()..]) {
                    return Err(io::Error::other("the echo is not what was sent"));
                }
                flying = flying.saturating_sub(1);
                seen.back += 1;
                seen.counted += u64::from(Instant::now() >= start);
            }
            // Nothing came for so long: what is under way is lost, and a new window starts.
            Err(_) => flying = 0,
        }
    }
    datagrams.socket.set_read_timeout(Some(LOST))?;
    while seen.back < seen.sent && datagrams.socket.recv(&mut room).is_ok() {
        seen.back += 1;
    }
    Ok(seen)
}

/// A rate that is held, and what is lost of it.
pub(crate) fn open_loop(way: &Way, mut arguments: Arguments) -> io::Result<Value> {
    let (rate, bytes) = (arguments.count("rate")?, arguments.count("bytes")?.max(MARKS));
    let seconds = arguments.seconds("seconds")?;
    arguments.finish()?;
    let datagrams = Arc::new(way.datagrams()?);
    let intended = (rate as f64 * seconds.as_secs_f64()) as u64;
    let due = move |number: u64| Duration::from_nanos(number * 1_000_000_000 / rate as u64);
    greet(&datagrams)?;
    let start = Instant::now();
    let receiver = {
        let datagrams = Arc::clone(&datagrams);
        Builder::new().spawn(move || receive(&datagrams, start, intended, seconds))?
    };
    let mut datagram = datagrams.header.clone();
    let marks = datagram.len();
    datagram.extend(pattern(bytes));
    let (mut number, mut unsent, mut late) = (0, 0_u64, Duration::ZERO);
    while number < intended {
        let now = start.elapsed();
        let early = due(number).saturating_sub(now);
        if !early.is_zero() {
            thread::sleep(TICK.max(early));
            continue;
        }
        late = late.max(now.saturating_sub(due(number)));
        datagram[marks..marks + 8].copy_from_slice(&number.to_be_bytes());
        datagram[marks + 8..marks + MARKS].copy_from_slice(&(due(number).as_nanos() as u64).to_be_bytes());
        // What the kernel does not take counts as lost, as everything that was due.
        unsent += u64::from(datagrams.socket.send(&datagram).is_err());
        number += 1;
    }
    let (back, twice, latency) = join(receiver)??;
    Ok(json!({
        "intended": intended,
        "unsent": unsent,
        "back": back,
        "twice": twice,
        "lost": intended - back,
        "latest_send_us": late.as_secs_f64() * 1e6,
        "latency": latency.to_json(),
    }))
}

/// Opens the session before the schedule starts, so that its set-up is not part of it.
fn greet(datagrams: &Datagrams) -> io::Result<()> {
    let mut hello = datagrams.header.clone();
    hello.extend(u64::MAX.to_be_bytes());
    let mut room = [0; 64];
    datagrams.socket.set_read_timeout(Some(LOST))?;
    for _ in 0..10 {
        datagrams.socket.send(&hello)?;
        if datagrams.socket.recv(&mut room).is_ok() {
            return Ok(());
        }
    }
    Err(io::Error::other("no datagram came back"))
}

/// Receives until nothing comes any more: how many came, how many twice, and how late.
fn receive(datagrams: &Datagrams, start: Instant, intended: u64, length: Duration) -> io::Result<(u64, u64, Latency)> {
    let mut latency = Latency::new()?;
    let (mut came, mut back, mut twice) = (vec![false; intended as usize], 0, 0);
    let mut room = vec![0; 65_536];
    loop {
        let Ok(len) = datagrams.socket.recv(&mut room) else {
            if start.elapsed() > length + LOST {
                return Ok((back, twice, latency));
            }
            continue;
        };
        let now = start.elapsed();
        let Some((number, due)) = datagrams.payload(&room[..len]).and_then(marks) else { continue };
        match came.get_mut(number as usize) {
            Some(seen) if !*seen => {
                *seen = true;
                back += 1;
                latency.record(now.saturating_sub(Duration::from_nanos(due)));
            }
            Some(_) => twice += 1,
            None => {}
        }
        if back == intended || start.elapsed() > length + 10 * LOST {
            return Ok((back, twice, latency));
        }
    }
}

/// The number and the due time that a payload carries.
fn marks(payload: &[u8]) -> Option<(u64, u64)> {
    let (number, rest) = payload.split_first_chunk()?;
    Some((u64::from_be_bytes(*number), u64::from_be_bytes(*rest.first_chunk()?)))
}
