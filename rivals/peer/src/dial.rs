//! The way to a service: plain (the tunnel carries it), or through a SOCKS5 proxy that the client speaks to itself.
//!
//! The handshake is an ordinary client's (RFC 1928): greeting, answer, request, answer. Nothing is pipelined, because
//! this is the ceiling that a tunnel is compared with.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use t2s_sys::socket::{self, SocketOption};

use crate::arguments::Arguments;

/// Nothing here waits longer for a single answer.
pub(crate) const IO_TIMEOUT: Duration = Duration::from_secs(5);
/// After so many failures no more connections are tried: each may take the whole timeout.
pub(crate) const FAILURES_MAX: usize = 10;
/// Bytes of a socket's receive buffer for datagrams; the kernel's own limit may be lower.
const DATAGRAM_BUFFER: i32 = 4 << 20;
/// Longest header of a relayed datagram (RFC 1928, section 7, with an IPv6 address).
pub(crate) const HEADER_MAX: usize = 22;

/// A service of `peer serve`, as a distance from its first port.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Service {
    /// Reads to the end, then says how many bytes came.
    Sink = 0,
    /// Writes until the client is gone.
    Source = 1,
    /// Sends back what comes, streams and datagrams.
    Echo = 2,
    /// Reads one request, answers with as many bytes, closes.
    Answer = 3,
}

/// How to reach the services of one server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    target: SocketAddr,
    socks: Option<SocketAddr>,
}

impl Way {
    /// From `--to` (address and first port) and, if there is one, `--socks`.
    pub(crate) fn take(arguments: &mut Arguments) -> io::Result<Self> {
        Ok(Self { target: arguments.take("to")?, socks: arguments.optional("socks")? })
    }

    fn address(&self, service: Service) -> SocketAddr {
        SocketAddr::new(self.target.ip(), self.target.port() + service as u16)
    }

    /// A stream to a service, with limits on every wait.
    pub(crate) fn stream(&self, service: Service) -> io::Result<TcpStream> {
        self.stream_within(service, IO_TIMEOUT)
    }

    /// The same, where the connect alone has another limit.
    pub(crate) fn stream_within(&self, service: Service, connect: Duration) -> io::Result<TcpStream> {
        let target = self.address(service);
        let mut stream = TcpStream::connect_timeout(&self.socks.unwrap_or(target), connect)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        if self.socks.is_some() {
            ask(&mut stream, 1, target)?;
        }
        Ok(stream)
    }

    /// A socket whose datagrams reach the echo service.
    pub(crate) fn datagrams(&self) -> io::Result<Datagrams> {
        let target = self.address(Service::Echo);
        let (header, to, control) = match self.socks {
            None => (Vec::new(), target, None),
            Some(proxy) => {
                let mut stream = TcpStream::connect_timeout(&proxy, IO_TIMEOUT)?;
                stream.set_read_timeout(Some(IO_TIMEOUT))?;
                let mut relay = ask(&mut stream, 3, SocketAddr::new(unspecified(proxy.ip()), 0))?;
                if relay.ip().is_unspecified() {
                    relay.set_ip(proxy.ip());
                }
                let mut header = vec![0, 0, 0];
                push_address(&mut header, target);
                (header, relay, Some(stream))
            }
        };
        let local = SocketAddr::new(unspecified(to.ip()), 0);
        let socket = UdpSocket::bind(local)?;
        // The kernel cuts it to its limit; a smaller buffer is no reason to stop.
        let _ = socket::set(&socket, SocketOption::ReceiveBuffer, DATAGRAM_BUFFER);
        socket.connect(to)?;
        Ok(Datagrams { socket, header, _control: control })
    }
}

/// A connected datagram socket, with the header that a relay wants.
pub(crate) struct Datagrams {
    /// The socket; what it sends must start with the header.
    pub(crate) socket: UdpSocket,
    /// What stands before each payload; empty without a relay.
    pub(crate) header: Vec<u8>,
    /// The relay lives as long as this stream does.
    _control: Option<TcpStream>,
}

impl Datagrams {
    /// The payload of what was received; nothing when it is malformed.
    pub(crate) fn payload<'a>(&self, datagram: &'a [u8]) -> Option<&'a [u8]> {
        if self.header.is_empty() {
            return Some(datagram);
        }
        let header = match datagram.get(3)? {
            1 => 10,
            4 => HEADER_MAX,
            _ => return None,
        };
        datagram.get(header..)
    }
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn push_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.push(1);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

/// Greets, asks, and returns the address that the proxy names.
fn ask(stream: &mut TcpStream, command: u8, target: SocketAddr) -> io::Result<SocketAddr> {
    stream.write_all(&[5, 1, 0])?;
    let mut choice = [0; 2];
    stream.read_exact(&mut choice)?;
    if choice != [5, 0] {
        return Err(io::Error::other(format!("the proxy wants method {choice:?}")));
    }
    let mut request = vec![5, command, 0];
    push_address(&mut request, target);
    stream.write_all(&request)?;
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let ip: IpAddr = match head {
        [5, 0, _, 1] => read_bytes::<4>(stream)?.into(),
        [5, 0, _, 4] => read_bytes::<16>(stream)?.into(),
        [5, 0, _, kind] => return Err(io::Error::other(format!("the proxy names an address of type {kind}"))),
        [_, reply, ..] => return Err(io::Error::other(format!("the proxy refuses with code {reply}"))),
    };
    Ok(SocketAddr::new(ip, u16::from_be_bytes(read_bytes(stream)?)))
}

fn read_bytes<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
