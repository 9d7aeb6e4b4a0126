//! What a capture says about its client and its servers, as steps to replay.
//!
//! The client is who sent SYNs (or, in a capture without TCP, the first sender). Its packets are replayed as they are.
//! The servers' packets are not: of them only the byte streams, datagrams, answers and endings are kept, since it is
//! the live stack that answers. Promises: steps stand in the capture's order. Refuses (counts): TCP connections that
//! the capture joined midway, since a stack needs their SYN.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use t2s_core::buf::{Pool, PoolCache, PoolConfig};
use t2s_core::config::{Config, Reassembly};
use t2s_core::fragment::{FragmentReassembler, Outcome};
use t2s_core::time::Instant;
use t2s_core::wire::icmp::{Icmp, IcmpError};
use t2s_core::wire::ip::Ip;
use t2s_core::wire::protocol;
use t2s_core::wire::tcp::{Flags, SeqNumber, Tcp};
use t2s_core::wire::udp::{UDP_HEADER, Udp};

use super::capture::Capture;

/// How a captured server answered a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Connected,
    Refused,
    HostUnreachable,
    NetUnreachable,
    Prohibited,
}

/// The TCP part of a client's packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientSegment {
    pub(super) flow: usize,
    pub(super) syn: bool,
    /// Bytes and flags of the server's stream that it acknowledges, the SYN included; `None` without ACK.
    pub(super) ack: Option<u32>,
    /// Bytes that the client has sent with this packet and before, each counted once.
    pub(super) sent: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// The client sends this packet.
    Client { packet: Vec<u8>, segment: Option<ClientSegment> },
    /// The upstream answers the connect.
    Answer { flow: usize, answer: Answer },
    /// The upstream has its stream up to this byte.
    Bytes { flow: usize, upto: usize },
    /// The upstream has no more bytes.
    Finish { flow: usize },
    /// The upstream breaks.
    Reset { flow: usize },
    /// A datagram comes for the client.
    Datagram { client: SocketAddr, from: SocketAddr, payload: Vec<u8> },
}

/// One TCP connection of the capture.
#[derive(Clone, Debug)]
pub(super) struct ScriptFlow {
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    /// The captured server's initial sequence number, once seen.
    pub(super) server_isn: Option<SeqNumber>,
    /// The captured server's bytes; what the capture missed but the client acknowledged is zeros.
    pub(super) bytes: Vec<u8>,
    /// Of these, bytes that the capture missed.
    pub(super) missing: usize,
    /// Bytes that the client sent, each counted once.
    sent: u64,
    client_isn: SeqNumber,
    waiting: BTreeMap<usize, Vec<u8>>,
    fin: Option<usize>,
    answered: bool,
    ended: bool,
}

/// All that is to be replayed.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    /// Each with its time since the capture's start, nanoseconds.
    pub(super) steps: Vec<(u64, Step)>,
    pub(super) flows: Vec<ScriptFlow>,
    /// Client TCP packets of connections whose SYN the capture does not have.
    pub(super) midway: u64,
    /// Packets that are neither from nor to a client, or do not parse (those of clients are replayed nevertheless).
    pub(super) other: u64,
}

impl Script {
    pub(super) fn new(capture: &Capture) -> Self {
        let clients = clients(capture);
        let pool = Pool::new(PoolConfig::default());
        let mut writer = Writer {
            script: Self::default(),
            open: BTreeMap::new(),
            fragments: FragmentReassembler::new(
                Config::default().fragment,
                Reassembly::Bounded,
                Config::default().secrets.flow_hash,
            ),
            pool: pool.cache(),
        };
        for captured in &capture.packets {
            let Ok(ip) = Ip::parse(&captured.packet) else {
                // Broken packets are part of what a client sends; whose they are cannot be told, so the core judges.
                writer.step(captured.at, Step::Client { packet: captured.packet.clone(), segment: None });
                continue;
            };
            if clients.contains(&ip.src) {
                writer.client_packet(captured.at, &ip, &captured.packet);
            } else if clients.contains(&ip.dst) {
                writer.server_packet(captured.at, &ip, &captured.packet);
            } else {
                writer.script.other += 1;
            }
        }
        writer.script
    }
}

/// Who sent SYNs; without any, who sent first.
fn clients(capture: &Capture) -> BTreeSet<IpAddr> {
    let mut clients = BTreeSet::new();
    let mut first = None;
    for captured in &capture.packets {
        let Ok(ip) = Ip::parse(&captured.packet) else { continue };
        first = first.or(Some(ip.src));
        if let Some(tcp) = tcp_of(&ip, &captured.packet)
            && tcp.flags.syn()
            && !tcp.flags.ack()
        {
            clients.insert(ip.src);
        }
    }
    if clients.is_empty() {
        clients.extend(first);
    }
    clients
}

fn tcp_of(ip: &Ip, packet: &[u8]) -> Option<Tcp> {
    if ip.protocol != protocol::TCP || ip.fragment.is_some() {
        return None;
    }
    Tcp::parse(packet.get(usize::from(ip.payload)..ip.total as usize)?).ok()
}

struct Writer {
    script: Script,
    /// The latest connection of each pair of ends, client first.
    open: BTreeMap<(SocketAddr, SocketAddr), usize>,
    fragments: FragmentReassembler,
    pool: PoolCache,
}

impl Writer {
    fn step(&mut self, at: u64, step: Step) {
        self.script.steps.push((at, step));
    }

    fn client_packet(&mut self, at: u64, ip: &Ip, packet: &[u8]) {
        let Some(tcp) = tcp_of(ip, packet) else {
            return self.step(at, Step::Client { packet: packet.to_vec(), segment: None });
        };
        let ends = (SocketAddr::new(ip.src, tcp.src_port), SocketAddr::new(ip.dst, tcp.dst_port));
        let syn = tcp.flags.syn() && !tcp.flags.ack();
        let known = self.open.get(&ends).copied().filter(|&flow| !(syn && self.script.flows[flow].ended));
        let flow = match known {
            Some(flow) => flow,
            None if syn => {
                self.script.flows.push(ScriptFlow {
                    client: ends.0,
                    server: ends.1,
                    server_isn: None,
                    bytes: Vec::new(),
                    missing: 0,
                    sent: 0,
                    client_isn: tcp.seq,
                    waiting: BTreeMap::new(),
                    fin: None,
                    answered: false,
                    ended: false,
                });
                self.open.insert(ends, self.script.flows.len() - 1);
                self.script.flows.len() - 1
            }
            None => {
                self.script.midway += 1;
                return;
            }
        };
        let entry = &mut self.script.flows[flow];
        let payload = ip.payload_len() - usize::from(tcp.header_len);
        if payload > 0 {
            // Relative to what is known, so that streams beyond 4 GiB do not wrap.
            let ahead = (tcp.seq + payload as u32) - (entry.client_isn + 1 + entry.sent as u32);
            entry.sent += u64::from(ahead.max(0) as u32);
        }
        let ack = match entry.server_isn {
            Some(isn) if tcp.flags.ack() => Some((tcp.ack - isn).max(0) as u32),
            _ => None,
        };
        // An acknowledgement of bytes that the capture does not have: they existed, their content is unknown.
        if let Some(ack) = ack {
            let end = (ack as usize).saturating_sub(1 + usize::from(entry.fin.is_some()));
            if end > entry.bytes.len() && entry.fin.is_none_or(|fin| end <= fin) {
                entry.missing += end - entry.bytes.len();
                entry.bytes.resize(end, 0);
                self.stream_grew(at, flow);
            }
        }
        if tcp.flags.rst() {
            self.script.flows[flow].ended = true;
        }
        let sent = self.script.flows[flow].sent;
        self.step(at, Step::Client { packet: packet.to_vec(), segment: Some(ClientSegment { flow, syn, ack, sent }) });
    }

    fn server_packet(&mut self, at: u64, ip: &Ip, packet: &[u8]) {
        if ip.fragment.is_some() {
            let Ok(buf) = self.pool.alloc_copy(packet, 0) else { return };
            if let Outcome::Complete(whole) = self.fragments.handle(Instant::from_nanos(at), buf, ip, &mut self.pool) {
                let bytes = whole.as_slice().to_vec();
                self.pool.free(whole);
                if let Ok(ip) = Ip::parse(&bytes)
                    && ip.fragment.is_none()
                {
                    self.server_packet(at, &ip, &bytes);
                }
            }
            return;
        }
        let Some(upper) = packet.get(usize::from(ip.payload)..ip.total as usize) else { return };
        match ip.protocol {
            protocol::TCP => {
                if let Ok(tcp) = Tcp::parse(upper) {
                    self.server_segment(at, ip, &tcp, &upper[usize::from(tcp.header_len)..]);
                }
            }
            protocol::UDP => {
                if let Ok(udp) = Udp::parse(upper) {
                    self.step(
                        at,
                        Step::Datagram {
                            client: SocketAddr::new(ip.dst, udp.dst_port),
                            from: SocketAddr::new(ip.src, udp.src_port),
                            payload: upper[UDP_HEADER..usize::from(udp.len)].to_vec(),
                        },
                    );
                }
            }
            _ => self.server_error(at, ip, upper),
        }
    }

    /// An ICMP error about a SYN is an answer to it.
    fn server_error(&mut self, at: u64, ip: &Ip, message: &[u8]) {
        let Ok(Icmp::Error { error }) = Icmp::parse(ip, message) else { return };
        let Some(quoted) = message.get(8..) else { return };
        let v4 = ip.src.is_ipv4();
        let (header, source, target) = if v4 { (20, 12..16, 16..20) } else { (40, 8..24, 24..40) };
        let (Some(source), Some(target), Some(ports)) =
            (quoted.get(source), quoted.get(target), quoted.get(header..header + 4))
        else {
            return;
        };
        let address = |bytes: &[u8]| -> Option<IpAddr> {
            if v4 {
                Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?))
            } else {
                Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?))
            }
        };
        let (Some(source), Some(target)) = (address(source), address(target)) else { return };
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        let Some(&flow) = self.open.get(&(SocketAddr::new(source, port(0)), SocketAddr::new(target, port(2)))) else {
            return;
        };
        let answer = match error {
            IcmpError::NetUnreachable => Answer::NetUnreachable,
            IcmpError::Prohibited => Answer::Prohibited,
            IcmpError::PortUnreachable => Answer::Refused,
            IcmpError::HostUnreachable => Answer::HostUnreachable,
            _ => return,
        };
        self.answer(at, flow, answer);
    }

    fn answer(&mut self, at: u64, flow: usize, answer: Answer) {
        if !core::mem::replace(&mut self.script.flows[flow].answered, true) {
            self.step(at, Step::Answer { flow, answer });
        }
    }

    fn server_segment(&mut self, at: u64, ip: &Ip, tcp: &Tcp, payload: &[u8]) {
        let ends = (SocketAddr::new(ip.dst, tcp.dst_port), SocketAddr::new(ip.src, tcp.src_port));
        let Some(&flow) = self.open.get(&ends) else { return };
        if tcp.flags.contains(Flags::SYN.with(Flags::ACK)) {
            self.script.flows[flow].server_isn.get_or_insert(tcp.seq);
            return self.answer(at, flow, Answer::Connected);
        }
        let Some(isn) = self.script.flows[flow].server_isn else {
            if tcp.flags.rst() {
                self.script.flows[flow].ended = true;
                self.answer(at, flow, Answer::Refused);
            }
            return;
        };
        if tcp.flags.rst() {
            self.script.flows[flow].ended = true;
            return self.step(at, Step::Reset { flow });
        }
        let entry = &mut self.script.flows[flow];
        // Relative to what is known, so that streams beyond 4 GiB do not wrap.
        let here = isn + 1 + entry.bytes.len() as u32;
        let offset = entry.bytes.len() as i64 + i64::from(tcp.seq - here);
        let Ok(offset) = usize::try_from(offset) else { return };
        if !payload.is_empty() {
            let held = entry.waiting.entry(offset).or_default();
            if held.len() < payload.len() {
                *held = payload.to_vec();
            }
        }
        if tcp.flags.fin() {
            entry.fin.get_or_insert(offset + payload.len());
        }
        self.stream_grew(at, flow);
    }

    /// Joins what has become contiguous.
    fn stream_grew(&mut self, at: u64, flow: usize) {
        let entry = &mut self.script.flows[flow];
        while let Some((&offset, _)) = entry.waiting.first_key_value()
            && offset <= entry.bytes.len()
        {
            let Some((_, bytes)) = entry.waiting.pop_first() else { break };
            if let Some(new) = bytes.get(entry.bytes.len() - offset..) {
                entry.bytes.extend_from_slice(new);
            }
        }
        let upto = entry.bytes.len();
        let finished = entry.fin == Some(upto) && !entry.ended;
        entry.ended |= finished;
        self.step(at, Step::Bytes { flow, upto });
        if finished {
            self.step(at, Step::Finish { flow });
        }
    }
}
