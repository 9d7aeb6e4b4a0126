//! The thread that keeps a tunnel's endpoint up to date, away from the packet path.
//!
//! At the start it finds out what the proxy can do: it asks for a UDP association with the whole handshake in one
//! segment. A proxy that reads so answers twice; one that takes a segment for a message answers once and stays silent,
//! and is asked again step by step, and so is one that does not want the password. Until that is known connections are
//! made step by step too. Other credentials are a reason to ask anew. When workers report that the proxy cannot be
//! reached, its name is resolved again.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use crate::config::SocksPipelining;
use crate::dial::endpoint::ProxyEndpoint;
use crate::dial::error::ConnectError;
use crate::dial::url::{Host, ProxyUrl, Scheme};
use crate::dial::{Connector, Progress, Target};
use crate::log::Level;
use crate::worker::Shared;
use t2s_sys::clock::monotonic_nanos;
use t2s_sys::epoll::{Epoll, Events, Interest};

/// Time for one question, nanoseconds. A far proxy takes some 0.3 s for the three round trips of a slow one.
const PROBE_TIMEOUT: u64 = 1_500_000_000;
/// Least time between two resolutions of the proxy's name, nanoseconds.
const RESOLVE_EVERY: u64 = 5_000_000_000;

/// What a proxy has shown of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProxyCapabilities {
    answered: bool,
    udp: Option<bool>,
}

/// Runs until the tunnel stops.
pub(crate) fn run(shared: &Shared, url: &ProxyUrl) -> io::Result<()> {
    let epoll = Epoll::new()?;
    epoll.add(&shared.proxy_probe, Interest::LEVEL_IN, 0)?;
    let mut events = Events::with_capacity(4);
    probe(shared, &epoll, &mut events)?;
    let (mut seen, mut resolved) = (shared.unreachable.load(Ordering::Relaxed), monotonic_nanos());
    loop {
        epoll.wait(&mut events, None)?;
        shared.proxy_probe.clear();
        if shared.stopping.load(Ordering::Acquire) {
            return Ok(());
        }
        if shared.probe_pending.swap(false, Ordering::AcqRel) {
            probe(shared, &epoll, &mut events)?;
        }
        let reports = shared.unreachable.load(Ordering::Relaxed);
        let now = monotonic_nanos();
        if reports == seen || now.saturating_sub(resolved) < RESOLVE_EVERY {
            continue;
        }
        (seen, resolved) = (reports, now);
        if matches!(url.host, Host::Name(_)) {
            shared.resolving.store(true, Ordering::Release);
            match ProxyEndpoint::resolve(url) {
                Ok(fresh) => shared.endpoint.update(|endpoint| endpoint.addresses = fresh.addresses),
                Err(error) => shared.logger.say(Level::Warn, format_args!("cannot resolve {}: {error}", url.host)),
            }
            shared.resolving.store(false, Ordering::Release);
        } else {
            // Another address may answer where the first does not.
            shared.endpoint.update(|endpoint| {
                if endpoint.addresses.len() > 1 {
                    endpoint.addresses.rotate_left(1);
                }
            });
        }
    }
}

/// Finds out what the proxy can do.
fn probe(shared: &Shared, epoll: &Epoll, events: &mut Events) -> io::Result<()> {
    let mut endpoint = ProxyEndpoint::clone(&shared.endpoint.get());
    if endpoint.scheme != Scheme::Socks5 {
        return Ok(());
    }
    let mut capabilities = ProxyCapabilities { answered: false, udp: None };
    if shared.config.socks_pipelining != SocksPipelining::Off {
        endpoint.pipelined = true;
        capabilities = ask(shared, &endpoint, epoll, events)?;
        if capabilities.answered || shared.config.socks_pipelining == SocksPipelining::On {
            shared.endpoint.update(|endpoint| endpoint.pipelined = true);
        }
    }
    if !capabilities.answered && !shared.stopping.load(Ordering::Acquire) {
        endpoint.pipelined = false;
        capabilities = ask(shared, &endpoint, epoll, events)?;
    }
    if capabilities.udp.is_some() {
        shared.endpoint.update(|endpoint| endpoint.udp = capabilities.udp);
    }
    let pipelined = shared.endpoint.get().pipelined;
    let (pipelining, udp) = (
        if pipelined { "yes" } else { "no" },
        match capabilities.udp {
            Some(true) => "yes",
            Some(false) => "no: DNS goes over TCP, other datagrams are refused",
            None => "unknown",
        },
    );
    shared.logger.say(Level::Info, format_args!("proxy: handshake in one segment: {pipelining}; UDP: {udp}"));
    Ok(())
}

fn ask(shared: &Shared, endpoint: &ProxyEndpoint, epoll: &Epoll, events: &mut Events) -> io::Result<ProxyCapabilities> {
    let silent = ProxyCapabilities { answered: false, udp: None };
    let (fd, mut attempt): (OwnedFd, Connector) =
        match Connector::connect(endpoint, shared.config.fwmark, &Target::Associate) {
            Ok(started) => started,
            Err(_) => return Ok(silent),
        };
    epoll.add(&fd, Interest::EDGES, 1)?;
    let until = monotonic_nanos() + PROBE_TIMEOUT;
    loop {
        match attempt.advance(&fd) {
            Progress::Waiting => {}
            Progress::Done(_) => return Ok(ProxyCapabilities { answered: true, udp: Some(true) }),
            Progress::Failed(failure) => {
                return Ok(match failure {
                    ConnectError::Reply(7) => ProxyCapabilities { answered: true, udp: Some(false) },
                    ConnectError::Reply(_) => ProxyCapabilities { answered: true, udp: None },
                    // In one segment the password is all that can be offered. Step by step a proxy may want none.
                    ConnectError::Credentials if endpoint.pipelined => silent,
                    ConnectError::Credentials => {
                        shared.logger.say(Level::Error, format_args!("{failure}"));
                        ProxyCapabilities { answered: true, udp: None }
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
