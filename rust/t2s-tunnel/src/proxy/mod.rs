//! `t2s proxy`: a small SOCKS5 server for trying things out, for demonstrations and for the lab.
//!
//! It promises: CONNECT and UDP ASSOCIATE over IPv4 and IPv6, half-close both ways, optional user and password, no
//! thread or descriptor left after [`Proxy::stop`]. It listens where it is told, which by default is loopback: without
//! a password it would serve everybody who reaches it. It refuses BIND.

mod associate;
mod relay;
mod resolve;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use t2s_core::socks5::{Address, Command, Credentials, Reply, ServerHandshake, ServerOutcome};

use crate::config::{self, ConfigError};
use crate::log::{Level, Logger, Sink};
use t2s_sys::epoll::{Epoll, Events, Interest};
use t2s_sys::event::Waker;
use t2s_sys::socket;

use associate::Association;
use relay::Relay;

/// Connections at once; a small server says no rather than running out of descriptors.
const CONNECTIONS: usize = 16_384;
/// Names that are resolved at once.
const RESOLVERS: usize = 32;
/// Bytes that one read takes: few enough to stay in a second-level cache until they are written.
const SCRATCH: usize = 128 * 1024;
/// Events of one wait.
const EVENTS: usize = 256;
/// Tokens that are no connection.
const LISTENER: u64 = u64::MAX;
const WAKER: u64 = u64::MAX - 1;

/// Settings of a proxy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// Where to listen: address and port; port 0 lets the kernel choose.
    pub listen: String,
    /// User name that clients must know; with it a password.
    pub username: Option<String>,
    /// Password that clients must know.
    #[serde(skip_serializing)]
    pub password: Option<String>,
    /// What is worth a line.
    pub log_level: Level,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:1080".into(), username: None, password: None, log_level: Level::Info }
    }
}

impl ProxyConfig {
    /// Settings from JSON.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let this: Self = config::read(text)?;
        if this.password.is_some() && this.username.is_none() { Err(ConfigError::PasswordAlone) } else { Ok(this) }
    }
}

/// Why a proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The address to listen at.
    #[error("cannot listen at {address}: {error}")]
    Listen {
        /// The address.
        address: String,
        /// What is wrong with it.
        error: io::Error,
    },
    /// User name or password.
    #[error("user name and password must have 1 to 255 and 0 to 255 bytes")]
    Credentials,
    /// Descriptors or threads.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    waker: Arc<Waker>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Proxy {
    /// Listens, and serves in a thread of its own.
    pub fn start(config: &ProxyConfig, sink: Sink) -> Result<Self, ProxyError> {
        let refuse = |error| ProxyError::Listen { address: config.listen.clone(), error };
        let credentials = match &config.username {
            Some(user) => {
                let password = config.password.as_deref().unwrap_or_default();
                let known = Credentials::new(user.as_bytes(), password.as_bytes());
                Some(known.map_err(|_| ProxyError::Credentials)?)
            }
            None => None,
        };
        let mut addresses = config.listen.to_socket_addrs().map_err(refuse)?;
        let address = addresses.next().ok_or_else(|| refuse(io::ErrorKind::NotFound.into()))?;
        let listener = std::net::TcpListener::bind(address).map_err(refuse)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let logger = Logger::new(config.log_level, sink);
        logger.say(Level::Info, format_args!("listening at {address}"));
        let (stopping, waker) = (Arc::new(AtomicBool::new(false)), Arc::new(Waker::new()?));
        let epoll = Epoll::new()?;
        epoll.add(&listener, Interest::LEVEL_IN, LISTENER)?;
        epoll.add(&*waker, Interest::EDGE_IN, WAKER)?;
        let (resolved, names) = mpsc::channel();
        let server = Server {
            listener,
            epoll,
            credentials,
            logger,
            slots: Vec::new(),
            free: Vec::new(),
            generation: 0,
            started: Vec::new(),
            scratch: vec![0; SCRATCH],
            resolved,
            names,
            resolving: 0,
            waker: Arc::clone(&waker),
            stopping: Arc::clone(&stopping),
        };
        let thread = std::thread::Builder::new().name("t2s-proxy".into()).spawn(move || server.run())?;
        Ok(Self { address, stopping, waker, thread: Mutex::new(Some(thread)) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections and the thread. Stopping twice is harmless.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a connection does.
enum Role {
    /// It says what it wants.
    Handshake { handshake: Box<ServerHandshake>, client: OwnedFd },
    /// Its target's name is being resolved.
    Resolving { handshake: Box<ServerHandshake>, client: OwnedFd, early: Vec<u8> },
    /// Bytes flow, or the target is being connected.
    Relay(Box<Relay>),
    /// Datagrams flow.
    Associate(Box<Association>),
}

struct Slot {
    generation: u32,
    role: Role,
}

/// A name that was resolved, and for which connection.
struct Resolved {
    index: usize,
    generation: u32,
    name: String,
    addresses: Vec<SocketAddr>,
}

struct Server {
    listener: std::net::TcpListener,
    epoll: Epoll,
    credentials: Option<Credentials>,
    logger: Logger,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    generation: u32,
    /// Relays that were made in this iteration: the next one moves their first bytes.
    started: Vec<(usize, u32)>,
    scratch: Vec<u8>,
    resolved: Sender<Resolved>,
    names: Receiver<Resolved>,
    resolving: usize,
    waker: Arc<Waker>,
    stopping: Arc<AtomicBool>,
}

/// The side of a connection that a descriptor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Side {
    Client = 0,
    Target = 1,
    Relay = 2,
}

fn token(index: usize, generation: u32, side: Side) -> u64 {
    // 32 bits of index are plenty; 28 of generation and 2 of side leave the tokens of listener and waker alone.
    u64::from(generation & 0x0fff_ffff) << 34 | (side as u64) << 32 | index as u64 & 0xffff_ffff
}

impl Server {
    fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        // Connections that have more to do than their share of an iteration allowed.
        let mut busy: Vec<(usize, u32)> = Vec::new();
        while !self.stopping.load(Ordering::Acquire) {
            let timeout = if busy.is_empty() { None } else { Some(0) };
            if let Err(error) = self.epoll.wait(&mut events, timeout) {
                return self.logger.say(Level::Error, format_args!("proxy: {error}"));
            }
            let mut again = std::mem::take(&mut busy);
            for event in events.iter() {
                match event.token {
                    LISTENER => self.accept(),
                    WAKER => self.collect_names(),
                    token => {
                        let (index, generation) = (token as u32 as usize, (token >> 34) as u32);
                        let side = match token >> 32 & 3 {
                            0 => Side::Client,
                            1 => Side::Target,
                            _ => Side::Relay,
                        };
                        if let Some(slot) = self.slot(index, generation) {
                            match &mut slot.role {
                                Role::Relay(relay) => relay.note(side, event),
                                Role::Associate(association) => association.note(side, event),
                                Role::Handshake { .. } | Role::Resolving { .. } => {}
                            }
                            again.push((index, generation));
                        }
                    }
                }
            }
            again.sort_unstable();
            again.dedup();
            for (index, generation) in again {
                if self.advance(index, generation) {
                    busy.push((index, generation));
                }
            }
            busy.append(&mut self.started);
        }
    }

    fn slot(&mut self, index: usize, generation: u32) -> Option<&mut Slot> {
        self.slots.get_mut(index)?.as_mut().filter(|slot| slot.generation == generation)
    }

    fn accept(&mut self) {
        for _ in 0..64 {
            let Ok((stream, _)) = self.listener.accept() else { return };
            if self.slots.len() - self.free.len() >= CONNECTIONS {
                continue;
            }
            let _ = stream.set_nodelay(true);
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let client: OwnedFd = stream.into();
            let index = self.free.pop().unwrap_or(self.slots.len());
            self.generation = self.generation.wrapping_add(1) & 0x0fff_ffff;
            let generation = self.generation;
            if self.epoll.add(&client, Interest::EDGES, token(index, generation, Side::Client)).is_err() {
                if index < self.slots.len() {
                    self.free.push(index);
                }
                continue;
            }
            let handshake = Box::new(ServerHandshake::new(self.credentials.clone()));
            let slot = Some(Slot { generation, role: Role::Handshake { handshake, client } });
            if index == self.slots.len() {
                self.slots.push(slot);
            } else {
                self.slots[index] = slot;
            }
            self.advance(index, generation);
        }
    }

    fn close(&mut self, index: usize) {
        if self.slots[index].take().is_some() {
            self.free.push(index);
        }
    }

    /// Takes a connection as far as it goes now; true when it has more to do than its share of an iteration allowed.
    fn advance(&mut self, index: usize, generation: u32) -> bool {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut wanted = Vec::new();
        let more = match self.slot(index, generation).map(|slot| &mut slot.role) {
            None | Some(Role::Resolving { .. }) => Ok(false),
            Some(Role::Handshake { .. }) => self.shake(index, generation).map(|()| false),
            Some(Role::Relay(relay)) => relay.advance(&mut scratch),
            Some(Role::Associate(association)) => {
                let more = association.advance();
                wanted = association.take_wanted();
                more
            }
        };
        self.scratch = scratch;
        for name in wanted {
            self.resolve(index, generation, name, 0);
        }
        more.unwrap_or_else(|Ended| {
            self.close(index);
            false
        })
    }

    /// Goes on with what a client has to say.
    fn shake(&mut self, index: usize, generation: u32) -> Result<(), Ended> {
        let Some(slot) = self.slot(index, generation) else { return Ok(()) };
        let Role::Handshake { handshake, client } = &mut slot.role else { return Ok(()) };
        let mut early = Vec::new();
        let mut room = [0; 4_096];
        while handshake.outcome().is_none() {
            let len = match socket::recv(&*client, &mut room) {
                Ok(0) => return Err(Ended),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Err(Ended),
            };
            let taken = handshake.handle(&room[..len]);
            if handshake.outcome().is_none() || taken.is_err() {
                say(handshake, client)?;
            }
            match taken {
                Ok(taken) => early.extend_from_slice(&room[taken..len]),
                Err(error) => {
                    self.logger.say(Level::Debug, format_args!("client: {error}"));
                    return Err(Ended);
                }
            }
        }
        let Some(ServerOutcome::Request(request)) = handshake.outcome().cloned() else {
            let _ = say(handshake, client);
            return Err(Ended);
        };
        let Some(slot) = self.slots[index].take() else { return Ok(()) };
        let Role::Handshake { handshake, client } = slot.role else { return Ok(()) };
        match (request.command, request.target) {
            (Command::Connect, Address::Ip(target)) => {
                self.start_relay(index, generation, Relay::connect(client, handshake, early, vec![target]));
            }
            (Command::Connect, Address::Domain(name, port)) => {
                self.resolve(index, generation, name.into(), port);
                self.slots[index] = Some(Slot { generation, role: Role::Resolving { handshake, client, early } });
            }
            (Command::UdpAssociate, _) => {
                let opened = Association::open(client, handshake).and_then(|association| {
                    association.register(&self.epoll, |side| token(index, generation, side))?;
                    Ok(association)
                });
                match opened {
                    Ok(association) => {
                        self.slots[index] = Some(Slot { generation, role: Role::Associate(Box::new(association)) });
                    }
                    Err(error) => {
                        self.logger.say(Level::Warn, format_args!("no association: {error}"));
                        self.abandon(index);
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives a slot back whose connection was taken out of it.
    fn abandon(&mut self, index: usize) {
        self.free.push(index);
    }

    fn start_relay(&mut self, index: usize, generation: u32, mut relay: Relay) {
        if relay.dial(&self.epoll, token(index, generation, Side::Target)).is_err() {
            return self.abandon(index);
        }
        self.slots[index] = Some(Slot { generation, role: Role::Relay(Box::new(relay)) });
        self.started.push((index, generation));
    }

    /// Resolves a name in a thread of its own: the system's resolver waits.
    fn resolve(&mut self, index: usize, generation: u32, name: String, port: u16) {
        let (resolved, waker) = (self.resolved.clone(), Arc::clone(&self.waker));
        let asked = name.clone();
        let work = move || {
            let addresses = (name.as_str(), port).to_socket_addrs().map(Iterator::collect).unwrap_or_default();
            if resolved.send(Resolved { index, generation, name, addresses }).is_ok() {
                waker.wake();
            }
        };
        let full = self.resolving >= RESOLVERS;
        self.resolving += 1;
        if full || std::thread::Builder::new().name("t2s-resolve".into()).spawn(work).is_err() {
            let _ = self.resolved.send(Resolved { index, generation, name: asked, addresses: Vec::new() });
            self.waker.wake();
        }
    }

    fn collect_names(&mut self) {
        self.waker.clear();
        while let Ok(Resolved { index, generation, name, addresses }) = self.names.try_recv() {
            self.resolving = self.resolving.saturating_sub(1);
            match self.slot(index, generation).map(|slot| &mut slot.role) {
                Some(Role::Resolving { .. }) => {}
                Some(Role::Associate(association)) => {
                    association.resolved(&name, &addresses);
                    continue;
                }
                Some(Role::Handshake { .. } | Role::Relay(_)) | None => continue,
            }
            let Some(Slot { role: Role::Resolving { mut handshake, client, early }, .. }) = self.slots[index].take()
            else {
                continue;
            };
            if addresses.is_empty() {
                handshake.reply(Reply::HostUnreachable, &Address::Ip(unspecified()));
                let _ = say(&mut handshake, &client);
                self.abandon(index);
            } else {
                self.start_relay(index, generation, Relay::connect(client, handshake, early, addresses));
            }
        }
    }
}

/// A connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ended;

/// The address that says nothing.
fn unspecified() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}

/// Sends what a handshake has to say. It is short: a socket that does not take it is stuck.
fn say(handshake: &mut ServerHandshake, client: &OwnedFd) -> Result<(), Ended> {
    while let Some(bytes) = handshake.poll_transmit() {
        let len = socket::send(client, bytes).map_err(|_| Ended)?;
        handshake.handle_sent(len);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
