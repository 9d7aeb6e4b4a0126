//! The thread that keeps a tunnel's route up to date, away from the packet path.
//!
//! At the start it finds out what the proxy can do: it asks for a UDP association with the whole handshake in one
//! segment. A proxy that reads so answers twice; one that takes a segment for a message answers once and stays silent,
//! and is asked again step by step, and so is one that does not want the password. Until that is known connections are
//! made step by step too. Other credentials are a reason to ask anew. When workers report that the proxy cannot be
//! reached, its name is resolved again.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use super::connect::{Attempt, Progress, Target};
use super::failure::Failure;
use super::resolve::Route;
use super::url::{Host, ProxyUrl, Scheme};
use crate::config::Pipeline;
use crate::log::Level;
use crate::sys::clock::monotonic_nanos;
use crate::sys::epoll::{Epoll, Events, Interest};
use crate::worker::Shared;

/// Time for one question, nanoseconds. A far proxy takes some 0.3 s for the three round trips of a slow one.
const PATIENCE: u64 = 1_500_000_000;
/// Least time between two resolutions of the proxy's name, nanoseconds.
const RESOLVE_EVERY: u64 = 5_000_000_000;

/// What a proxy has shown of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Abilities {
    answered: bool,
    udp: Option<bool>,
}

/// Runs until the tunnel stops.
pub(crate) fn run(shared: &Shared, url: &ProxyUrl) -> io::Result<()> {
    let epoll = Epoll::new()?;
    epoll.add(&shared.guide, Interest::LEVEL_IN, 0)?;
    let mut events = Events::with_capacity(4);
    explore(shared, &epoll, &mut events)?;
    let (mut seen, mut resolved) = (shared.unreachable.load(Ordering::Relaxed), monotonic_nanos());
    loop {
        epoll.wait(&mut events, None)?;
        shared.guide.clear();
        if shared.stopping.load(Ordering::Acquire) {
            return Ok(());
        }
        if shared.unexplored.swap(false, Ordering::AcqRel) {
            explore(shared, &epoll, &mut events)?;
        }
        let reports = shared.unreachable.load(Ordering::Relaxed);
        let now = monotonic_nanos();
        if reports == seen || now.saturating_sub(resolved) < RESOLVE_EVERY {
            continue;
        }
        (seen, resolved) = (reports, now);
        if matches!(url.host, Host::Name(_)) {
            shared.resolving.store(true, Ordering::Release);
            match Route::resolve(url) {
                Ok(fresh) => shared.route.update(|route| route.addresses = fresh.addresses),
                Err(error) => shared.logger.say(Level::Warn, format_args!("cannot resolve {}: {error}", url.host)),
            }
            shared.resolving.store(false, Ordering::Release);
        } else {
            // Another address may answer where the first does not.
            shared.route.update(|route| {
                if route.addresses.len() > 1 {
                    route.addresses.rotate_left(1);
                }
            });
        }
    }
}

/// Finds out what the proxy can do.
fn explore(shared: &Shared, epoll: &Epoll, events: &mut Events) -> io::Result<()> {
    let mut route = Route::clone(&shared.route.get());
    if route.scheme != Scheme::Socks5 {
        return Ok(());
    }
    let mut abilities = Abilities { answered: false, udp: None };
    if shared.config.pipeline != Pipeline::Off {
        route.pipelined = true;
        abilities = ask(shared, &route, epoll, events)?;
        if abilities.answered || shared.config.pipeline == Pipeline::On {
            shared.route.update(|route| route.pipelined = true);
        }
    }
    if !abilities.answered && !shared.stopping.load(Ordering::Acquire) {
        route.pipelined = false;
        abilities = ask(shared, &route, epoll, events)?;
    }
    if abilities.udp.is_some() {
        shared.route.update(|route| route.udp = abilities.udp);
    }
    let pipelined = shared.route.get().pipelined;
    let (pipelining, udp) = (
        if pipelined { "yes" } else { "no" },
        match abilities.udp {
            Some(true) => "yes",
            Some(false) => "no: DNS goes over TCP, other datagrams are refused",
            None => "unknown",
        },
    );
    shared.logger.say(Level::Info, format_args!("proxy: handshake in one segment: {pipelining}; UDP: {udp}"));
    Ok(())
}

fn ask(shared: &Shared, route: &Route, epoll: &Epoll, events: &mut Events) -> io::Result<Abilities> {
    let silent = Abilities { answered: false, udp: None };
    let (fd, mut attempt): (OwnedFd, Attempt) = match Attempt::connect(route, shared.config.mark, &Target::Associate) {
        Ok(started) => started,
        Err(_) => return Ok(silent),
    };
    epoll.add(&fd, Interest::EDGES, 1)?;
    let until = monotonic_nanos() + PATIENCE;
    loop {
        match attempt.advance(&fd) {
            Progress::Waiting => {}
            Progress::Done(_) => return Ok(Abilities { answered: true, udp: Some(true) }),
            Progress::Failed(failure) => {
                return Ok(match failure {
                    Failure::Reply(7) => Abilities { answered: true, udp: Some(false) },
                    Failure::Reply(_) => Abilities { answered: true, udp: None },
                    // In one segment the password is all that can be offered. Step by step a proxy may want none.
                    Failure::Credentials if route.pipelined => silent,
                    Failure::Credentials => {
                        shared.logger.say(Level::Error, format_args!("{failure}"));
                        Abilities { answered: true, udp: None }
                    }
                    _ => silent,
                });
            }
        }
        let now = monotonic_nanos();
        if now >= until || shared.stopping.load(Ordering::Acquire) {
            return Ok(silent);
        }
        epoll.wait(events, Some(until - now))?;
    }
}
