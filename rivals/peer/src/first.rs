//! `peer first`: when does a tunnel that is being started carry its first byte?
//!
//! Waits for the device, gives it addresses and routes with one call of `ip -batch`, then tries to get one byte echoed,
//! each time a little more patiently. Times are those of the system's clock, so that the starter of the tunnel can
//! compare them with its own.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::dial::{Service, Way};

/// How often the device is looked for.
const LOOK: Duration = Duration::from_micros(200);
/// The first try waits this long for the connect; each further one 5 ms longer.
const FIRST_TRY: Duration = Duration::from_millis(20);
const MORE: Duration = Duration::from_millis(5);

/// Runs it; fails when `--within` seconds are over.
pub(crate) fn run(way: &Way, mut arguments: Arguments) -> io::Result<Value> {
    let (device, batch): (String, String) = (arguments.take("device")?, arguments.take("batch")?);
    let within = arguments.seconds("within")?;
    arguments.finish()?;
    println!("ready");
    let start = Instant::now();
    let path = Path::new("/sys/class/net").join(&device);
    while !fs::exists(&path)? {
        if start.elapsed() > within {
            return Err(io::Error::other(format!("no device {device}")));
        }
        thread::sleep(LOOK);
    }
    let device_at = now()?;
    let done = Command::new("ip").args(["-batch", &batch]).output()?;
    if !done.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&done.stderr).into_owned()));
    }
    let routed_at = now()?;
    let mut timeout = FIRST_TRY;
    loop {
        let tried = way.stream_within(Service::Echo, timeout).and_then(|mut stream| {
            let mut byte = [7];
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)
        });
        match tried {
            Ok(()) => return Ok(json!({ "device_at": device_at, "routed_at": routed_at, "answered_at": now()? })),
            Err(error) if start.elapsed() > within => return Err(error),
            Err(_) => timeout += MORE,
        }
        thread::sleep(LOOK);
    }
}

/// Seconds since 1970.
fn now() -> io::Result<f64> {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_secs_f64()).map_err(io::Error::other)
}
