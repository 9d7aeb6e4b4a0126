//! `peer serve`: the services of [`Service`](crate::dial::Service) at four ports in a row, at each of some addresses.
//!
//! Each stream has a thread of its own, but for those that ask once: a few threads accept and answer them in place, so
//! that no thread start is part of what is measured.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::{self, Builder};
use std::time::Duration;

use t2s_sys::socket::{self, SocketOption};

use crate::arguments::Arguments;
use crate::dial::Service;

/// Bytes that one read or write moves at most.
pub(crate) const BLOCK: usize = 128 << 10;
/// Stack of a thread; what a stream needs is on the heap.
pub(crate) const STACK: usize = 64 << 10;
/// Threads that accept and answer those that ask once.
const ANSWERERS: usize = 32;
/// A client that is silent for so long is gone; idle flows are held far shorter.
const SILENCE: Duration = Duration::from_secs(120);
/// Longest request of those that ask once.
const REQUEST_MAX: usize = 64 << 10;
/// Bytes of the echo's receive buffer; the kernel's own limit may be lower.
const DATAGRAM_BUFFER: i32 = 4 << 20;

/// Serves until the process is ended.
pub(crate) fn run(mut arguments: Arguments) -> io::Result<()> {
    let (listen, port): (String, u16) = (arguments.take("listen")?, arguments.take("port")?);
    arguments.finish()?;
    for address in listen.split(',') {
        let ip: IpAddr = address.parse().map_err(|error| io::Error::other(format!("--listen {address}: {error}")))?;
        let at = |service: Service| (ip, port + service as u16);
        streams(TcpListener::bind(at(Service::Sink))?, sink)?;
        streams(TcpListener::bind(at(Service::Source))?, source)?;
        streams(TcpListener::bind(at(Service::Echo))?, echo)?;
        let answers = TcpListener::bind(at(Service::Answer))?;
        for _ in 0..ANSWERERS {
            let listener = answers.try_clone()?;
            Builder::new().stack_size(STACK).spawn(move || {
                let mut room = vec![0; REQUEST_MAX];
                for stream in listener.incoming() {
                    // A client that breaks off is its own affair.
                    let _ = stream.and_then(|stream| answer(stream, &mut room));
                }
            })?;
        }
        datagrams(UdpSocket::bind(at(Service::Echo))?)?;
    }
    println!("ready");
    loop {
        thread::park();
    }
}

/// Accepts for ever, with a thread a stream.
fn streams(listener: TcpListener, serve: fn(TcpStream) -> io::Result<()>) -> io::Result<()> {
    Builder::new().stack_size(STACK).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let work = move || {
                let _ = stream.set_nodelay(true);
                let _ = stream.set_read_timeout(Some(SILENCE));
                let _ = stream.set_write_timeout(Some(SILENCE));
                // A client that breaks off is its own affair.
                let _ = serve(stream);
            };
            if let Err(error) = Builder::new().stack_size(STACK).spawn(work) {
                eprintln!("peer: no thread: {error}");
            }
        }
    })?;
    Ok(())
}

fn sink(mut stream: TcpStream) -> io::Result<()> {
    let (mut room, mut total) = (vec![0; BLOCK], 0_u64);
    loop {
        match stream.read(&mut room)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            len => total += len as u64,
        }
    }
}

fn source(mut stream: TcpStream) -> io::Result<()> {
    let block = vec![0x5a; BLOCK];
    loop {
        stream.write_all(&block)?;
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut room = vec![0; BLOCK];
    loop {
        match stream.read(&mut room)? {
            0 => return Ok(()),
            len => stream.write_all(&room[..len])?,
        }
    }
}

/// Reads a request that starts with its length, answers with the same bytes, and closes. It waits for no close of the
/// client's: a tunnel that is slow to pass that on would hold a thread here, and the next clients would wait for it.
fn answer(mut stream: TcpStream, room: &mut [u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(crate::dial::IO_TIMEOUT))?;
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let total = u32::from_be_bytes(len) as usize;
    let Some(request) = room.get_mut(..total).filter(|request| request.len() >= len.len()) else { return Ok(()) };
    request[..len.len()].copy_from_slice(&len);
    stream.read_exact(&mut request[len.len()..])?;
    stream.write_all(request)
}

fn datagrams(socket: UdpSocket) -> io::Result<()> {
    // The kernel cuts it to its limit; a smaller buffer is no reason to stop.
    let _ = socket::set(&socket, SocketOption::ReceiveBuffer, DATAGRAM_BUFFER);
    Builder::new().spawn(move || {
        let mut room = vec![0; 65_536];
        loop {
            // An error here is a client's port that was closed; the next datagram is another's.
            if let Ok((len, from)) = socket.recv_from(&mut room) {
                let _ = socket.send_to(&room[..len], from);
            }
        }
    })?;
    Ok(())
}
