//! Drives a [`Stack`] in memory: a TCP client (smoltcp's) connects through it to an echo server that is a few lines here.
//!
//! `cargo run --example echo`. A real driver does the same with a TUN device in the place of `Wire`, and sockets in the
//! place of `Echo`. It ends with an error if the client did not get back what it sent, or something was left behind.

use std::collections::VecDeque;

use smoltcp::iface::{Config as ClientConfig, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as ClientInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use t2s_core::buf::{Pool, PoolConfig};
use t2s_core::config::Config;
use t2s_core::stack::{FlowId, Packet, Request, Stack};
use t2s_core::time::Instant;

const MESSAGE: &[u8] = b"to the echo and back";
/// Milliseconds of virtual time after which the example gives up.
const TIME_LIMIT: u64 = 10_000;
/// Room in front of payload for the headers that the stack writes, bytes.
const HEADROOM: usize = 128;

/// The wire between client and stack: packets on their way, in both directions.
#[derive(Default)]
struct Wire {
    to_stack: VecDeque<Vec<u8>>,
    to_client: VecDeque<Vec<u8>>,
}

/// The upstream: whatever a flow sends comes back to it.
#[derive(Default)]
struct Echo {
    finished: Vec<FlowId>,
}

impl Echo {
    /// Does what the stack asks for.
    fn handle_requests(&mut self, stack: &mut Stack, now: Instant) -> Result<(), String> {
        while let Some(request) = stack.poll_request(now) {
            println!("{:>5} ms: {request:?}", now.nanos() / 1_000_000);
            match request {
                // A real driver dials `target` and answers when the connection stands.
                Request::Connect { flow, .. } => stack.connected(now, flow),
                Request::Readable(flow) => {
                    let bytes: Vec<u8> = stack.readable(flow).flatten().copied().collect();
                    stack.consume(now, flow, bytes.len());
                    let mut buf = stack.alloc(bytes.len(), HEADROOM).ok_or("the pool is empty")?;
                    buf.append(&bytes);
                    stack.upstream_data(now, flow, buf).map_err(|_| "the flow is gone")?;
                }
                // The client has finished: so does the echo.
                Request::Finish(flow) => self.finished.push(flow),
                Request::Closed(..)
                | Request::Writable(_)
                | Request::UdpOpen { .. }
                | Request::Datagrams(_)
                | Request::UdpClosed(_) => {}
            }
        }
        for flow in self.finished.drain(..) {
            stack.upstream_eof(now, flow);
        }
        Ok(())
    }
}

fn main() -> Result<(), String> {
    let pool = Pool::new(PoolConfig::default());
    let mut stack = Stack::new(Config::default(), &pool, Instant::from_millis(0));
    let mut echo = Echo::default();
    let mut wire = Wire::default();

    let mut client = Interface::new(ClientConfig::new(HardwareAddress::Ip), &mut wire, ClientInstant::ZERO);
    client.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(IpAddress::v4(10, 0, 0, 1), 24)).expect("room for one address");
    });
    client.routes_mut().add_default_ipv4_route([10, 0, 0, 2].into()).map_err(|error| error.to_string())?;
    let buffer = || tcp::SocketBuffer::new(vec![0; 4_096]);
    let mut sockets = SocketSet::new(Vec::new());
    let handle = sockets.add(tcp::Socket::new(buffer(), buffer()));
    let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
    socket.connect(client.context(), (IpAddress::v4(192, 0, 2, 7), 7), 49_152).map_err(|error| error.to_string())?;

    let (mut sent, mut answer) = (false, Vec::new());
    for millis in 0..TIME_LIMIT {
        let now = Instant::from_millis(millis);
        client.poll(ClientInstant::from_millis(millis as i64), &mut wire, &mut sockets);
        for packet in wire.to_stack.drain(..) {
            let mut buf = stack.alloc(packet.len(), 0).ok_or("the pool is empty")?;
            buf.append(&packet);
            stack.handle_packet(now, Packet::plain(buf));
        }
        stack.handle_timeout(now);
        echo.handle_requests(&mut stack, now)?;
        while let Some(transmit) = stack.poll_transmit(now) {
            let mut packet = vec![0; transmit.len()];
            transmit.copy_to(&mut packet);
            wire.to_client.push_back(packet);
        }

        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.can_send() && !sent {
            socket.send_slice(MESSAGE).map_err(|error| error.to_string())?;
            sent = true;
        }
        if socket.can_recv() {
            let read = socket.recv(|bytes| (bytes.len(), bytes.to_vec())).map_err(|error| error.to_string())?;
            answer.extend(read);
        }
        if answer == MESSAGE && socket.may_send() {
            println!("{millis:>5} ms: the client read {:?} and closes", String::from_utf8_lossy(&answer));
            socket.close();
        }
        if sent && !socket.is_active() && stack.stats().flows == 0 {
            let live = pool.stats().live_buffers;
            println!("{millis:>5} ms: no flow is left, {live} buffers are in use");
            return if live == 0 { Ok(()) } else { Err(format!("{live} buffers leaked")) };
        }
    }
    Err(format!("not done after {TIME_LIMIT} ms; the client read {answer:?}"))
}

struct Rx(Vec<u8>);

struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; len];
        let result = write(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: ClientInstant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.to_client.pop_front()?), Tx(&mut self.to_stack)))
    }

    fn transmit(&mut self, _: ClientInstant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.to_stack))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1_500;
        capabilities
    }
}
