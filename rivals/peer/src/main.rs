//! The far ends of the measuring rig (`bench/`): `peer serve` answers, all other modes load a tunnel or a proxy.
//!
//! Promises: each mode ends within its own limits, checks what comes back, and prints one line of JSON. Refuses:
//! unknown modes and arguments. It shares no code with the tunnel that it measures; threads and blocking sockets do.

mod arguments;
mod bulk;
mod datagrams;
mod dial;
mod exchange;
mod first;
mod idle;
mod latency;
mod server;

use std::io;
use std::process::ExitCode;

use arguments::Arguments;
use dial::Way;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let mut arguments = Arguments::of_process()?;
    let mode = arguments.mode().to_owned();
    let result = match mode.as_str() {
        "serve" => return server::run(arguments),
        "idle" => return idle::run(&Way::take(&mut arguments)?, arguments),
        "first" => first::run(&Way::take(&mut arguments)?, arguments),
        "bulk" => bulk::run(&Way::take(&mut arguments)?, arguments),
        "rr" => exchange::requests(&Way::take(&mut arguments)?, arguments),
        "crr" => exchange::connections(&Way::take(&mut arguments)?, arguments),
        "udp-closed" => datagrams::closed_loop(&Way::take(&mut arguments)?, arguments),
        "udp-open" => datagrams::open_loop(&Way::take(&mut arguments)?, arguments),
        other => Err(io::Error::other(format!(
            "unknown mode {other:?}; there are serve, bulk, rr, crr, udp-closed, udp-open, idle, first"
        ))),
    }?;
    println!("{result}");
    Ok(())
}
