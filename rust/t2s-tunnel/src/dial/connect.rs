//! One connection on its way to its target, as a state machine over a non-blocking socket.
//!
//! It promises: no call waits; every way to fail is a [`ConnectError`] that says what the client shall be told and what
//! people shall read; bytes that the target sends right behind the proxy's answer are not lost ([`Done::early_data`]).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::endpoint::ProxyEndpoint;
use super::error::ConnectError;
use super::handshake::ProxyHandshake;
use super::target::Target;
use super::url::Scheme;
use t2s_sys::socket::{self, SocketOption};

/// Room for a proxy's answer, bytes: the longest SOCKS5 reply has 262, an HTTP one with headers some hundred.
const ANSWER: usize = 1_024;

/// A connection that is ready for bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The address that the proxy has bound: the relay of an association.
    pub bound: Option<SocketAddr>,
    /// Bytes of the target that came right behind the answer.
    pub early_data: Vec<u8>,
    /// The last read came back short: an edge will tell of more.
    pub drained: bool,
}

/// How far a connection has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It waits for the socket.
    Waiting,
    /// It is there.
    Done(Done),
    /// It will not come.
    Failed(ConnectError),
}

/// A connection on its way.
#[derive(Debug)]
pub struct Connector {
    handshake: Option<ProxyHandshake>,
    scheme: Scheme,
    connected: bool,
    /// Something came since the target was named.
    heard: bool,
    /// The address that was dialled: relays that are bound to no address of their own are there.
    dialled: SocketAddr,
}

impl Connector {
    /// Opens a socket and starts to connect.
    ///
    /// # Errors
    /// What can be told at once: no socket, no mark, no endpoint.
    pub fn connect(
        endpoint: &ProxyEndpoint,
        fwmark: Option<u32>,
        target: &Target,
    ) -> Result<(OwnedFd, Self), ConnectError> {
        let address = match (endpoint.scheme, target) {
            (Scheme::Direct, Target::Ip(address)) => *address,
            (Scheme::Direct, _) => {
                return Err(ConnectError::Protocol("a name without a proxy that resolves it".into()));
            }
            _ => *endpoint.addresses.first().ok_or_else(|| ConnectError::Protocol("no address".into()))?,
        };
        Self::dial(endpoint, fwmark, address, ProxyHandshake::new(endpoint, target)?)
    }

    /// Opens a socket and starts to connect to the proxy, for a target that is not known yet: [`Connector::prepare`]
    /// until that is there, then [`Connector::aim`].
    ///
    /// # Errors
    /// What can be told at once.
    pub fn preconnect(endpoint: &ProxyEndpoint, fwmark: Option<u32>) -> Result<(OwnedFd, Self), ConnectError> {
        let address = *endpoint.addresses.first().ok_or_else(|| ConnectError::Protocol("no address".into()))?;
        Self::dial(endpoint, fwmark, address, ProxyHandshake::greeting(endpoint)?)
    }

    fn dial(
        endpoint: &ProxyEndpoint,
        fwmark: Option<u32>,
        address: SocketAddr,
        handshake: Option<ProxyHandshake>,
    ) -> Result<(OwnedFd, Self), ConnectError> {
        let fd = socket::tcp(address).map_err(|error| ConnectError::system(&error))?;
        socket::set(&fd, SocketOption::NoDelay, 1).map_err(|error| ConnectError::system(&error))?;
        if let Some(fwmark) = fwmark {
            socket::set(&fd, SocketOption::Mark, fwmark as i32).map_err(|error| ConnectError::system(&error))?;
        }
        let this = Self { handshake, scheme: endpoint.scheme, connected: false, heard: false, dialled: address };
        match socket::connect(&fd, address) {
            Ok(_) => Ok((fd, this)),
            Err(error) => Err(this.unreachable(&error)),
        }
    }

    /// Whether there is talk with the proxy before the target is known: then [`Connector::prepare`] wants to be called
    /// whenever the socket becomes ready, else once when the target is there.
    pub fn greets_before_target(&self) -> bool {
        self.handshake.is_some()
    }

    /// Takes a connection ahead of its target as far as it goes without waiting; true once it only wants that target.
    ///
    /// # Errors
    /// What made it useless, the proxy's end of the connection among that.
    pub fn prepare(&mut self, fd: impl AsFd) -> Result<bool, ConnectError> {
        let fd = fd.as_fd();
        if self.handshake.is_none() {
            return self.stands(fd);
        }
        loop {
            self.send(fd)?;
            let Some(handshake) = &mut self.handshake else { return Ok(false) };
            if handshake.wants_target() {
                return Ok(true);
            }
            if !self.connected {
                return Ok(false);
            }
            let mut room = [0; ANSWER];
            let Some(len) = self.receive(fd, &mut room)? else { return Ok(false) };
            let Some(handshake) = &mut self.handshake else { return Ok(false) };
            // Until it is asked for something a proxy has no more to say than what the greeting is answered with.
            if handshake.handle(&room[..len])? < len || handshake.outcome().is_some() {
                return Err(ConnectError::Protocol("an answer before the request".into()));
            }
        }
    }

    /// Whether a connection on which nothing was said is there; one that the proxy has ended, or spoken on, is of no
    /// use.
    fn stands(&mut self, fd: BorrowedFd<'_>) -> Result<bool, ConnectError> {
        match socket::peek(fd) {
            Ok(0) => return Err(ConnectError::Closed),
            Ok(_) => return Err(ConnectError::Protocol("an answer before the request".into())),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(self.unreachable(&error)),
        }
        self.connected = socket::is_connected(fd);
        Ok(self.connected)
    }

    /// Names the target of a connection that was made ahead of it; it goes on with [`Connector::advance`].
    ///
    /// # Errors
    /// A target that the proxy cannot be asked for.
    pub fn aim(&mut self, endpoint: &ProxyEndpoint, target: &Target) -> Result<(), ConnectError> {
        if let Some(handshake) = &mut self.handshake {
            return handshake.ask(target);
        }
        self.handshake = ProxyHandshake::new(endpoint, target)?;
        Ok(())
    }

    /// Whether the proxy has answered the request, or begun to.
    pub fn is_heard(&self) -> bool {
        self.heard
    }

    /// Whether the socket is connected, to the proxy or (without one) to the target.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Takes the handshake as far as it goes without waiting. To be called when the socket became ready, and once right
    /// after [`Connector::connect`]: a proxy on this host has often accepted by then.
    pub fn advance(&mut self, fd: impl AsFd) -> Progress {
        match self.step(fd.as_fd()) {
            Ok(Some(done)) => Progress::Done(done),
            Ok(None) => Progress::Waiting,
            Err(failure) => Progress::Failed(failure),
        }
    }

    fn step(&mut self, fd: BorrowedFd<'_>) -> Result<Option<Done>, ConnectError> {
        if self.handshake.is_none() {
            return self.step_direct(fd);
        }
        let mut early_data = None;
        loop {
            self.send(fd)?;
            let Some(handshake) = &self.handshake else { return Ok(None) };
            if let Some(outcome) = handshake.outcome() {
                let (early_data, drained) = early_data.unwrap_or_default();
                let bound = outcome?.bound.and_then(|bound| bound.relay(self.dialled.ip()));
                return Ok(Some(Done { bound, early_data, drained }));
            }
            if !self.connected {
                return Ok(None);
            }
            let mut room = [0; ANSWER];
            let Some(len) = self.receive(fd, &mut room)? else { return Ok(None) };
            self.heard = true;
            let Some(handshake) = &mut self.handshake else { return Ok(None) };
            let taken = handshake.handle(&room[..len])?;
            early_data = Some((room[taken..len].to_vec(), len < ANSWER));
        }
    }

    /// Reads what the proxy says; `None` while that is nothing.
    fn receive(&self, fd: BorrowedFd<'_>, room: &mut [u8]) -> Result<Option<usize>, ConnectError> {
        loop {
            match socket::recv(fd, room) {
                Ok(0) => return Err(ConnectError::Closed),
                Ok(len) => return Ok(Some(len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.unreachable(&error)),
            }
        }
    }

    /// Writes what the handshake has to say.
    fn send(&mut self, fd: BorrowedFd<'_>) -> Result<(), ConnectError> {
        while let Some(bytes) = self.handshake.as_ref().and_then(ProxyHandshake::transmit) {
            match socket::send(fd, bytes) {
                Ok(len) => {
                    self.connected = true;
                    if let Some(handshake) = &mut self.handshake {
                        handshake.sent(len);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Behind `EPIPE` stands what the connect came to.
                    let cause = socket::take_error(fd).ok().flatten().unwrap_or(error);
                    return Err(self.unreachable(&cause));
                }
            }
        }
        Ok(())
    }

    /// Without a proxy the connection itself is all.
    fn step_direct(&mut self, fd: BorrowedFd<'_>) -> Result<Option<Done>, ConnectError> {
        if let Some(error) = socket::take_error(fd).map_err(|error| ConnectError::system(&error))? {
            return Err(self.unreachable(&error));
        }
        if !socket::is_connected(fd) {
            return Ok(None);
        }
        self.connected = true;
        Ok(Some(Done { bound: None, early_data: Vec::new(), drained: false }))
    }

    fn unreachable(&self, error: &io::Error) -> ConnectError {
        let (kind, code) = (error.kind(), error.raw_os_error());
        match self.scheme {
            Scheme::Direct => ConnectError::Target(kind, code),
            Scheme::Socks5 | Scheme::Http if self.connected => ConnectError::Closed,
            Scheme::Socks5 | Scheme::Http => ConnectError::Proxy(kind, code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use t2s_core::http_connect::HttpConnect;
    use t2s_sys::epoll::{Epoll, Events, Interest};

    fn run(endpoint: &ProxyEndpoint, target: &Target) -> Result<(OwnedFd, Done), ConnectError> {
        let (fd, mut attempt) = Connector::connect(endpoint, None, target)?;
        let (epoll, mut events) = (Epoll::new().unwrap(), Events::with_capacity(1));
        epoll.add(&fd, Interest::EDGES, 0).unwrap();
        loop {
            match attempt.advance(&fd) {
                Progress::Waiting => epoll.wait(&mut events, Some(5_000_000_000)).unwrap(),
                Progress::Done(done) => return Ok((fd, done)),
                Progress::Failed(failure) => return Err(failure),
            }
        }
    }

    /// A proxy that follows a script: reads exactly these bytes, writes those.
    fn scripted(url: &str, script: Vec<(Vec<u8>, Vec<u8>)>) -> (ProxyEndpoint, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = url.replace("HERE", &listener.local_addr().unwrap().to_string());
        let endpoint = ProxyEndpoint::resolve(&url.parse().unwrap()).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for (read, write) in script {
                let mut bytes = vec![0; read.len()];
                stream.read_exact(&mut bytes).unwrap();
                assert_eq!(bytes, read);
                stream.write_all(&write).unwrap();
            }
        });
        (endpoint, thread)
    }

    fn target() -> Target {
        Target::Ip("192.0.2.1:80".parse().unwrap())
    }

    const REQUEST: [u8; 10] = [5, 1, 0, 1, 192, 0, 2, 1, 0, 80];
    const GRANTED: [u8; 10] = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

    #[test]
    fn socks_step_by_step_keeps_early_bytes() {
        let granted = [&GRANTED[..], b"220 hello"].concat();
        let script = vec![(vec![5, 1, 0], vec![5, 0]), (REQUEST.to_vec(), granted)];
        let (endpoint, proxy) = scripted("socks5://HERE", script);
        let (_fd, done) = run(&endpoint, &target()).unwrap();
        proxy.join().unwrap();
        assert_eq!((done.early_data.as_slice(), done.drained), (&b"220 hello"[..], true));
    }

    /// Preconnects and, once that is done, to the target.
    fn run_preconnected(endpoint: &ProxyEndpoint, target: &Target) -> Result<(OwnedFd, Done), ConnectError> {
        let (fd, mut attempt) = Connector::preconnect(endpoint, None)?;
        let (epoll, mut events) = (Epoll::new().unwrap(), Events::with_capacity(1));
        epoll.add(&fd, Interest::EDGES, 0).unwrap();
        while !attempt.prepare(&fd)? {
            epoll.wait(&mut events, Some(5_000_000_000)).unwrap();
        }
        attempt.aim(endpoint, target)?;
        loop {
            match attempt.advance(&fd) {
                Progress::Waiting => epoll.wait(&mut events, Some(5_000_000_000)).unwrap(),
                Progress::Done(done) => return Ok((fd, done)),
                Progress::Failed(failure) => return Err(failure),
            }
        }
    }

    #[test]
    fn connections_ahead_of_their_target() {
        let granted = [&GRANTED[..], b"220 hello"].concat();
        let script = vec![(vec![5, 1, 0], vec![5, 0]), (REQUEST.to_vec(), granted.clone())];
        let (endpoint, proxy) = scripted("socks5://HERE", script);
        assert_eq!(run_preconnected(&endpoint, &target()).unwrap().1.early_data, b"220 hello");
        proxy.join().unwrap();
        let login = vec![1, 1, b'u', 2, b'p', b'w'];
        let script = vec![(vec![5, 2, 0, 2], vec![5, 2]), (login, vec![1, 0]), (REQUEST.to_vec(), granted.clone())];
        let (endpoint, proxy) = scripted("socks5://u:pw@HERE", script);
        assert_eq!(run_preconnected(&endpoint, &target()).unwrap().1.early_data, b"220 hello");
        proxy.join().unwrap();
        // A proxy that reads all at once is told nothing before the target is known.
        let script = vec![([&[5, 1, 0][..], &REQUEST].concat(), [&[5, 0][..], &granted].concat())];
        let (mut endpoint, proxy) = scripted("socks5://HERE", script);
        endpoint.pipelined = true;
        assert_eq!(run_preconnected(&endpoint, &target()).unwrap().1.early_data, b"220 hello");
        proxy.join().unwrap();
    }

    #[test]
    fn a_connection_ahead_fails_where_its_proxy_does() {
        let (endpoint, _proxy) = scripted("socks5://HERE", vec![(vec![5, 1, 0], vec![5, 0xff])]);
        assert_eq!(run_preconnected(&endpoint, &target()).unwrap_err(), ConnectError::Credentials);
        let (endpoint, _proxy) = scripted("socks5://HERE", vec![(vec![5, 1, 0], [&[5, 0][..], &GRANTED].concat())]);
        assert!(matches!(run_preconnected(&endpoint, &target()).unwrap_err(), ConnectError::Protocol(_)));
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for url in [format!("socks5://{address}"), format!("http://{address}")] {
            let endpoint = ProxyEndpoint::resolve(&url.parse().unwrap()).unwrap();
            assert!(run_preconnected(&endpoint, &target()).unwrap_err().is_proxy());
        }
    }

    #[test]
    fn socks_with_password_in_one_segment() {
        let login = [&[5, 1, 2][..], &[1, 1, b'u', 2, b'p', b'w'], &REQUEST].concat();
        let script = vec![(login, [&[5, 2, 1, 0][..], &GRANTED].concat())];
        let (mut endpoint, proxy) = scripted("socks5://u:pw@HERE", script);
        endpoint.pipelined = true;
        run(&endpoint, &target()).unwrap();
        proxy.join().unwrap();
    }

    #[test]
    fn replies_and_broken_proxies_are_told_apart() {
        let refused = [5, 5, 0, 1, 0, 0, 0, 0, 0, 0];
        let script = vec![(vec![5, 1, 0], vec![5, 0]), (REQUEST.to_vec(), refused.to_vec())];
        let (endpoint, _proxy) = scripted("socks5://HERE", script);
        assert_eq!(run(&endpoint, &target()).unwrap_err(), ConnectError::Reply(5));
        let (endpoint, _proxy) = scripted("socks5://HERE", vec![(vec![5, 1, 0], vec![5, 0xff])]);
        assert_eq!(run(&endpoint, &target()).unwrap_err(), ConnectError::Credentials);
        let (endpoint, _proxy) = scripted("socks5://HERE", vec![(vec![5, 1, 0], b"HTTP".to_vec())]);
        assert!(matches!(run(&endpoint, &target()).unwrap_err(), ConnectError::Protocol(_)));
        let (endpoint, _proxy) = scripted("socks5://HERE", vec![(vec![5, 1, 0], vec![])]);
        assert_eq!(run(&endpoint, &target()).unwrap_err(), ConnectError::Closed);
    }

    #[test]
    fn an_absent_proxy_is_no_absent_target() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let endpoint = ProxyEndpoint::resolve(&format!("socks5://{address}").parse().unwrap()).unwrap();
        assert!(run(&endpoint, &target()).unwrap_err().is_proxy());
        let direct = ProxyEndpoint::resolve(&"direct://".parse().unwrap()).unwrap();
        let failure = run(&direct, &Target::Ip(address)).unwrap_err();
        assert!(!failure.is_proxy() && failure.refusal() == t2s_core::stack::Refusal::Refused);
    }

    #[test]
    fn associations_name_their_relay() {
        let request = vec![5, 3, 0, 1, 0, 0, 0, 0, 0, 0];
        let bound = vec![5, 0, 0, 1, 0, 0, 0, 0, 0x10, 0x01];
        let (endpoint, _proxy) = scripted("socks5://HERE", vec![(vec![5, 1, 0], vec![5, 0]), (request, bound)]);
        let (_fd, done) = run(&endpoint, &Target::Associate).unwrap();
        assert_eq!(done.bound, Some("127.0.0.1:4097".parse().unwrap()));
    }

    #[test]
    fn http_connect_ends_at_the_empty_line() {
        // The whole request: a proxy that closes with bytes unread would reset the connection.
        let mut whole = HttpConnect::new(&"192.0.2.1:80".parse::<SocketAddr>().unwrap().into(), None).unwrap();
        let request = whole.poll_transmit().unwrap().to_vec();
        whole.handle_sent(request.len());
        let answer = b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\nearly".to_vec();
        let (endpoint, _proxy) = scripted("http://HERE", vec![(request, answer)]);
        let (_fd, done) = run(&endpoint, &target()).unwrap();
        assert_eq!(done.early_data, b"early");
    }
}
