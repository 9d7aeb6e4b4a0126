//! The proxy over real sockets of this host, spoken to through the crate's own client.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::*;
use crate::dial::{ConnectError, Connector, Done, Progress, ProxyEndpoint, Target};

fn start(user: Option<&str>) -> Proxy {
    let config = ProxyConfig {
        listen: "127.0.0.1:0".into(),
        username: user.map(Into::into),
        password: user.map(|_| "pw".into()),
        log_level: Level::Off,
    };
    Proxy::start(&config, Arc::new(|_, _| {})).unwrap()
}

fn dial(proxy: &Proxy, login: &str, pipelined: bool, target: &Target) -> Result<(OwnedFd, Done), ConnectError> {
    let mut endpoint =
        ProxyEndpoint::resolve(&format!("socks5://{login}{}", proxy.address()).parse().unwrap()).unwrap();
    endpoint.pipelined = pipelined;
    let (fd, mut attempt) = Connector::connect(&endpoint, None, target)?;
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

fn stream(fd: OwnedFd) -> TcpStream {
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// A server that answers with all it got, after the client's end: half-close must get through both ways.
fn echo_after_end() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let (mut stream, mut bytes) = (stream.unwrap(), Vec::new());
                stream.read_to_end(&mut bytes).unwrap();
                stream.write_all(&bytes).unwrap();
            });
        }
    });
    address
}

#[test]
fn bytes_and_half_close_get_through_both_ways() {
    let proxy = start(None);
    let target = echo_after_end();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7) as u8).collect();
    for pipelined in [false, true] {
        for target in [Target::Ip(target), Target::Domain("localhost".into(), target.port())] {
            let (fd, _) = dial(&proxy, "", pipelined, &target).unwrap();
            let mut stream = stream(fd);
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            assert!(received == sent, "{target:?}: {} bytes", received.len());
        }
    }
    proxy.stop();
}

#[test]
fn refusals_have_their_codes() {
    let proxy = start(None);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(dial(&proxy, "", false, &Target::Ip(closed)).unwrap_err(), ConnectError::Reply(5));
    let nowhere = Target::Domain("name.invalid".into(), 80);
    assert_eq!(dial(&proxy, "", false, &nowhere).unwrap_err(), ConnectError::Reply(4));
}

#[test]
fn passwords_are_asked_for() {
    let proxy = start(Some("user"));
    let target = Target::Ip(echo_after_end());
    for pipelined in [false, true] {
        assert!(dial(&proxy, "user:pw@", pipelined, &target).is_ok());
        assert_eq!(dial(&proxy, "user:no@", pipelined, &target).unwrap_err(), ConnectError::Credentials);
        assert_eq!(dial(&proxy, "", pipelined, &target).unwrap_err(), ConnectError::Credentials);
    }
}

#[test]
fn datagrams_go_out_and_come_back() {
    let proxy = start(None);
    let (_control, done) = dial(&proxy, "", true, &Target::Associate).unwrap();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    client.connect(done.bound.unwrap()).unwrap();
    for len in [0, 1, 1_400, 60_000] {
        let mut datagram = vec![0; HEADER];
        assert_eq!(t2s_core::socks5::udp_header::emit(server.local_addr().unwrap(), &mut datagram), Some(HEADER));
        datagram.extend((0..len).map(|n| n as u8));
        client.send(&datagram).unwrap();
        let mut room = vec![0; 70_000];
        let (got, from) = server.recv_from(&mut room).unwrap();
        assert!(room[..got] == datagram[HEADER..]);
        server.send_to(&room[..got], from).unwrap();
        let got = client.recv(&mut room).unwrap();
        assert!(room[..got] == datagram[..], "{len}");
    }
}

#[test]
fn datagrams_to_names_go_where_the_names_lead() {
    let proxy = start(None);
    let (_control, done) = dial(&proxy, "", true, &Target::Associate).unwrap();
    // `localhost` may be either family's, so both listen at one port.
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let other = UdpSocket::bind(("::1", port)).ok();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for socket in other.into_iter().chain([server]) {
        std::thread::spawn(move || {
            let mut room = [0; 2_000];
            while let Ok((len, from)) = socket.recv_from(&mut room) {
                socket.send_to(&room[..len], from).unwrap();
            }
        });
    }
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    client.connect(done.bound.unwrap()).unwrap();
    let written = |name: &str, payload: &[u8]| {
        let head = [&[0, 0, 0, 3, name.len() as u8][..], name.as_bytes(), &port.to_be_bytes()].concat();
        [&head[..], payload].concat()
    };
    client.send(&written("name.invalid", b"lost")).unwrap();
    for payload in [b"first", b"again"] {
        client.send(&written("localhost", payload)).unwrap();
        let mut room = [0; 2_000];
        let len = client.recv(&mut room).unwrap();
        let (from, header) = t2s_core::socks5::udp_header::parse(&room[..len]).unwrap();
        assert_eq!((from.port(), from.ip().is_loopback(), &room[header..len]), (port, true, &payload[..]));
    }
}

/// A header with an IPv4 address.
const HEADER: usize = 10;

#[test]
fn stopping_ends_connections() {
    let proxy = start(None);
    let (fd, _) = dial(&proxy, "", false, &Target::Ip(echo_after_end())).unwrap();
    let mut stream = stream(fd);
    proxy.stop();
    proxy.stop();
    assert!(!matches!(stream.read(&mut [0; 1]), Ok(1..)));
}
