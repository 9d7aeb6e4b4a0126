//! UDP sessions and ICMP as the stack keeps them.

use core::net::{IpAddr, SocketAddr};

use super::api::{Disposition, Packet, Request};
use super::egress::HOPS;
use super::owner::{session_key, worker_of};
use super::{Inner, Stack};
use crate::buf::Buf;
use crate::config::DnsCheck;
use crate::dns;
use crate::flow::{FlowKey, FlowMap};
use crate::fragment::fragment;
use crate::icmp::echo_reply;
use crate::stats::{DropReason, Stage};
use crate::time::Instant;
use crate::udp::{Closed, SessionId};
use crate::wire::icmp::{ERROR_MAX_V6, Icmp, IcmpError};
use crate::wire::ip::{Ip, IpRepr, parameter_problem};
use crate::wire::tcp::{Flags, Options, SeqNumber, Tcp, TcpRepr};
use crate::wire::udp::{UDP_HEADER, Udp, UdpRepr};
use crate::wire::virtio::{self, VirtioNetHdr};
use crate::wire::{self, protocol};

/// Room that [`Stack::datagram`] wants in front of a payload: IPv6 and UDP headers.
pub(super) const DATAGRAM_HEADROOM: usize = 48;

/// The port of DNS.
const DNS_PORT: u16 = 53;

impl Stack {
    /// Takes the datagram of `session` that has waited longest, with where it goes.
    pub fn pop_datagram(&mut self, session: SessionId) -> Option<(SocketAddr, Buf)> {
        self.inner.sessions.pop(session)
    }

    /// Puts a datagram back in front, because the upstream was not ready for it.
    pub fn unpop_datagram(&mut self, session: SessionId, target: SocketAddr, payload: Buf) {
        if let Err(payload) = self.inner.sessions.unpop(session, target, payload) {
            self.inner.pool.free(payload);
        }
    }

    /// A datagram from `from` to the client of `session` (from whatever remote end: filtering is endpoint-independent).
    ///
    /// Wants 48 bytes of headroom in `payload`; without them the payload is copied. Larger than the MTU, it leaves in
    /// fragments. Counted and dropped when the session is gone, the families differ, or it is longer than 65,507 bytes.
    pub fn datagram(&mut self, now: Instant, session: SessionId, from: SocketAddr, payload: Buf) {
        self.inner.datagram(now, session, from, payload, 0);
    }

    /// Whether datagrams of `size` bytes may go to a client as one super-datagram ([`Stack::datagram_run`]).
    pub fn takes_runs(&self, size: usize) -> bool {
        let offload = self.inner.config.offload;
        offload.uso && offload.tx_checksum && size > 0 && size + DATAGRAM_HEADROOM <= usize::from(self.inner.config.mtu)
    }

    /// Datagrams of `size` bytes, the last one maybe shorter, back to back in one buffer: they leave as one
    /// super-datagram, which the device cuts. To be asked for only where [`Stack::takes_runs`]; else as
    /// [`Stack::datagram`].
    pub fn datagram_run(&mut self, now: Instant, session: SessionId, from: SocketAddr, run: Buf, size: u16) {
        debug_assert!(self.takes_runs(size.into()));
        let size = if run.len() > usize::from(size) { size } else { 0 };
        self.inner.datagram(now, session, from, run, size);
    }

    /// Says to the client of `session` that `target` cannot be reached by UDP (ICMP port unreachable).
    pub fn udp_unreachable(&mut self, now: Instant, session: SessionId, target: SocketAddr) {
        let inner = &mut self.inner;
        inner.stats.drops.add(DropReason::UdpRefused);
        let Some(client) = inner.sessions.client(session) else { return };
        let mut segment = [0; UDP_HEADER];
        UdpRepr { src_port: client.port(), dst_port: target.port(), payload_len: 0 }.emit(&mut segment);
        inner.send_synthetic_error(now, client, target, protocol::UDP, &segment, IcmpError::PortUnreachable);
    }

    /// Ends a session, with what waits in it.
    pub fn close_session(&mut self, session: SessionId) {
        let inner = &mut self.inner;
        if let Some(closed) = inner.sessions.close(session, &mut inner.pool) {
            inner.session_closed(&closed);
        }
    }

    /// The client's end of a session; `None` when it is gone.
    pub fn session_client(&self, session: SessionId) -> Option<SocketAddr> {
        self.inner.sessions.client(session)
    }
}

impl Inner {
    pub(super) fn udp_packet(&mut self, now: Instant, mut packet: Packet, ip: &Ip, map: &FlowMap<u32>) -> Disposition {
        let bytes = packet.buf.as_slice();
        // The length field of a super-datagram is that of the whole.
        let udp = match Udp::parse(&bytes[usize::from(ip.payload)..]) {
            Ok(udp) => udp,
            Err(reason) => return self.refuse(packet, reason),
        };
        let client = SocketAddr::new(ip.src, udp.src_port);
        // Before the checksum, which takes about as long as the index needs to come.
        let sought = self.sessions.seek(client);
        self.probe.mark(Stage::Parse);
        if !packet.checksum_trusted && !wire::verify_transport(self.config.checksum, ip, bytes) {
            return self.refuse(packet, DropReason::UdpChecksum);
        }
        self.probe.mark(Stage::Checksum);
        if !ip.dst_is_unicast() {
            return self.refuse(packet, DropReason::BadAddress);
        }
        if self.workers > 1 {
            let owner = worker_of(map, self.workers, map.hash(&session_key(ip.src, udp.src_port)));
            if owner != self.worker {
                packet.checksum_trusted = true;
                self.foreign.push_back((owner, packet));
                return Disposition::Foreign;
            }
        }
        let start = usize::from(ip.payload) + UDP_HEADER;
        let end = usize::from(ip.payload) + usize::from(udp.len);
        let target = SocketAddr::new(ip.dst, udp.dst_port);
        if udp.dst_port == DNS_PORT && self.config.dns == DnsCheck::Strict {
            match dns::Message::parse(&bytes[start..end]) {
                Ok(message) if message.is_query() => self.stats.dns_queries += 1,
                Ok(_) | Err(_) => return self.refuse(packet, DropReason::DnsMalformed),
            }
        }
        let opened = match self.sessions.open(now, sought, target, &mut self.pool) {
            Ok(opened) => opened,
            Err(reason) => return self.refuse(packet, reason),
        };
        if let Some(evicted) = opened.evicted {
            self.stats.sessions_evicted += 1;
            self.session_closed(&evicted);
        }
        if opened.fresh {
            self.stats.sessions_opened += 1;
            self.requests.push_back(Request::UdpOpen { session: opened.id, client });
        }
        self.probe.mark(Stage::Lookup);
        let first = self.sessions.queued(opened.id) == 0;
        packet.buf.truncate(end);
        packet.buf.advance(start);
        let disposition = self.queue_datagrams(now, opened.id, target, packet);
        if first && self.sessions.queued(opened.id) > 0 {
            self.requests.push_back(Request::Datagrams(opened.id));
        }
        self.probe.mark(Stage::Datagram);
        disposition
    }

    /// Queues a payload, a super-datagram cut into its parts.
    fn queue_datagrams(&mut self, now: Instant, session: SessionId, target: SocketAddr, packet: Packet) -> Disposition {
        let size = usize::from(packet.gso_size);
        if size == 0 || packet.buf.len() <= size {
            return match self.sessions.push(now, session, target, packet.buf) {
                Ok(()) => {
                    self.stats.datagrams_up += 1;
                    Disposition::Accepted
                }
                Err((payload, reason)) => self.refuse(Packet::plain(payload), reason),
            };
        }
        let mut disposition = Disposition::Accepted;
        for part in packet.buf.as_slice().chunks(size) {
            // With room for a relay's header, as a packet of its own has.
            let Ok(copy) = self.pool.alloc_copy(part, DATAGRAM_HEADROOM) else {
                self.stats.drops.add(DropReason::PoolExhausted);
                disposition = Disposition::Dropped(DropReason::PoolExhausted);
                break;
            };
            match self.sessions.push(now, session, target, copy) {
                Ok(()) => self.stats.datagrams_up += 1,
                Err((payload, reason)) => disposition = self.refuse(Packet::plain(payload), reason),
            }
        }
        self.pool.free(packet.buf);
        disposition
    }

    fn datagram(&mut self, now: Instant, session: SessionId, from: SocketAddr, payload: Buf, gso_size: u16) {
        let Some(client) = self.sessions.client(session) else {
            return self.drop_reply(payload, DropReason::UdpRefused);
        };
        if client.is_ipv4() != from.is_ipv4() {
            return self.drop_reply(payload, DropReason::BadAddress);
        }
        let ip_len = if client.is_ipv4() { 20 } else { 40 };
        let mtu = usize::from(self.mtu_to(now, client.ip()));
        if gso_size != 0 && ip_len + UDP_HEADER + usize::from(gso_size) > mtu {
            return self.cut_run(now, session, from, payload, gso_size);
        }
        let len = payload.len() + UDP_HEADER;
        if len + if client.is_ipv4() { ip_len } else { 0 } > 65_535 {
            return self.drop_reply(payload, DropReason::TooBig);
        }
        self.sessions.touch(now, session, payload.len());
        let mut buf = payload;
        if buf.headroom() < ip_len + UDP_HEADER {
            let Ok(copy) = self.pool.alloc_copy(buf.as_slice(), DATAGRAM_HEADROOM) else {
                return self.drop_reply(buf, DropReason::PoolExhausted);
            };
            self.pool.free(core::mem::replace(&mut buf, copy));
        }
        let udp = UdpRepr { src_port: from.port(), dst_port: client.port(), payload_len: buf.len() as u16 };
        self.ip_id = self.ip_id.wrapping_add(1);
        let ip = IpRepr {
            src: from.ip(),
            dst: client.ip(),
            protocol: protocol::UDP,
            ttl: HOPS,
            ecn: 0,
            payload_len: len as u32,
            id: self.ip_id,
            dont_fragment: false,
        };
        if let Some(header) = buf.prepend(UDP_HEADER) {
            udp.emit(header);
        }
        self.stats.datagrams_down += if gso_size == 0 { 1 } else { udp.payload_len.div_ceil(gso_size).into() };
        if gso_size == 0 && ip_len + len > mtu {
            return self.send_fragments(&ip, buf, mtu as u16);
        }
        if let Some(header) = buf.prepend(ip_len) {
            ip.emit(header);
        }
        let gso_type = if gso_size == 0 { virtio::GSO_NONE } else { virtio::GSO_UDP_L4 };
        let hdr_len = if gso_size == 0 { 0 } else { (ip_len + UDP_HEADER) as u16 };
        let virtio = VirtioNetHdr { gso_type, hdr_len, gso_size, ..VirtioNetHdr::default() };
        self.send_raw(buf, virtio, ip.src, ip.dst, protocol::UDP, ip_len);
    }

    /// The path to the client takes less than the datagrams of a run, which the device would cut: each for itself.
    fn cut_run(&mut self, now: Instant, session: SessionId, from: SocketAddr, run: Buf, size: u16) {
        for part in run.as_slice().chunks(usize::from(size)) {
            let Ok(copy) = self.pool.alloc_copy(part, DATAGRAM_HEADROOM) else {
                self.stats.drops.add(DropReason::PoolExhausted);
                break;
            };
            self.datagram(now, session, from, copy, 0);
        }
        self.pool.free(run);
    }

    /// Sends a datagram (UDP header and payload in `buf`) in fragments.
    fn send_fragments(&mut self, ip: &IpRepr, mut buf: Buf, mtu: u16) {
        // A fragment's checksum is the whole datagram's: no device completes it.
        wire::fill_transport_checksum(self.config.checksum, ip.src, ip.dst, protocol::UDP, buf.as_mut_slice());
        self.send_parts(ip, buf, mtu);
    }

    /// Sends what stands behind an IP header in fragments.
    fn send_parts(&mut self, ip: &IpRepr, upper: Buf, mtu: u16) {
        let Ok(fragments) = fragment(ip, upper.as_slice(), mtu, u32::from(ip.id)) else {
            return self.drop_reply(upper, DropReason::TooBig);
        };
        for fragment in fragments {
            let header = fragment.header();
            let Ok(mut part) = self.pool.alloc(header.len() + fragment.payload.len(), 0) else {
                self.stats.drops.add(DropReason::PoolExhausted);
                break;
            };
            part.append(header);
            part.append(fragment.payload);
            if self.raw.len() >= super::RAW_QUEUE {
                self.pool.free(part);
                self.stats.raw_dropped += 1;
                break;
            }
            self.raw.push_back(super::Raw { buf: part, virtio: VirtioNetHdr::default() });
        }
        self.pool.free(upper);
    }

    fn drop_reply(&mut self, payload: Buf, reason: DropReason) {
        self.pool.free(payload);
        self.stats.drops.add(reason);
    }

    fn session_closed(&mut self, closed: &Closed) {
        self.stats.drops.add_n(DropReason::UdpRefused, u64::from(closed.dropped));
        self.requests.push_back(Request::UdpClosed(closed.id));
    }

    pub(super) fn expire_sessions(&mut self, now: Instant, most: usize) {
        for _ in 0..most {
            let Some(closed) = self.sessions.expire(now, &mut self.pool) else { break };
            self.session_closed(&closed);
        }
    }

    pub(super) fn close_sessions(&mut self) {
        while let Some(closed) = self.sessions.close_any(&mut self.pool) {
            self.session_closed(&closed);
        }
    }

    pub(super) fn icmp_packet(&mut self, now: Instant, packet: Packet, ip: &Ip, map: &FlowMap<u32>) -> Disposition {
        let bytes = packet.buf.as_slice();
        if !packet.checksum_trusted && !wire::verify_transport(self.config.checksum, ip, bytes) {
            return self.refuse(packet, DropReason::IcmpMalformed);
        }
        self.probe.mark(Stage::Checksum);
        match Icmp::parse(ip, &bytes[usize::from(ip.payload)..]) {
            Ok(Icmp::EchoRequest(_)) if self.config.icmp_echo => {}
            Ok(Icmp::Error { error: IcmpError::TooBig { mtu } }) => return self.too_big(now, packet, ip, mtu, map),
            Ok(_) => return self.refuse(packet, DropReason::IcmpIgnored),
            Err(reason) => return self.refuse(packet, reason),
        }
        let mut packet = packet;
        if let Err(reason) = echo_reply(ip, &mut packet.buf) {
            return self.refuse(packet, reason);
        }
        self.stats.icmp_echoes += 1;
        self.answer(now, ip, packet.buf);
        self.probe.mark(Stage::Datagram);
        Disposition::Accepted
    }

    /// A reply to a request that came in fragments leaves in fragments.
    pub(super) fn echo_in_fragments(&mut self, request: &Ip, mut reply: Buf, mtu: u16) {
        let header = if request.is_v4() { 20 } else { 40 };
        reply.advance(header);
        self.ip_id = self.ip_id.wrapping_add(1);
        let ip = IpRepr {
            src: request.dst,
            dst: request.src,
            protocol: request.protocol,
            ttl: HOPS,
            ecn: 0,
            payload_len: reply.len() as u32,
            id: self.ip_id,
            dont_fragment: false,
        };
        self.send_parts(&ip, reply, mtu);
    }

    /// An ICMP error about a packet that is here.
    pub(super) fn send_error(&mut self, now: Instant, ip: &Ip, original: &[u8], error: IcmpError) {
        let Ok(mut out) = self.pool.alloc(ERROR_MAX_V6, 0) else { return };
        out.grow(ERROR_MAX_V6);
        match self.icmp_errors.build(now, self.config.checksum, ip, original, None, error, out.as_mut_slice()) {
            Some(len) => {
                out.truncate(len);
                self.stats.icmp_errors += 1;
                self.enqueue_raw(out, VirtioNetHdr::default());
            }
            None => self.pool.free(out),
        }
    }

    /// Refuses a packet whose IP headers are wrong; a sender of IPv6 learns where, if it may.
    #[cold]
    pub(super) fn misformed(&mut self, now: Instant, packet: Packet, reason: DropReason) -> Disposition {
        if reason == DropReason::BadExtension
            && let Some((ip, error)) = parameter_problem(packet.buf.as_slice())
        {
            self.send_error(now, &ip, packet.buf.as_slice(), error);
        }
        self.refuse(packet, reason)
    }

    /// Tells the sender of a datagram that was given up incomplete; `first` is its first fragment (RFC 1122, section
    /// 3.3.2; RFC 8200, section 4.5).
    pub(super) fn reassembly_late(&mut self, now: Instant, first: Buf) {
        if let Ok(ip) = Ip::parse(first.as_slice()) {
            self.send_error(now, &ip, first.as_slice(), IcmpError::TimeExceeded { code: 1 });
        }
        self.pool.free(first);
    }

    /// An ICMP error about a packet of which only the ends are still known.
    fn send_synthetic_error(
        &mut self,
        now: Instant,
        client: SocketAddr,
        target: SocketAddr,
        upper: u8,
        segment: &[u8],
        error: IcmpError,
    ) {
        let repr = IpRepr {
            src: client.ip(),
            dst: target.ip(),
            protocol: upper,
            ttl: HOPS,
            ecn: 0,
            payload_len: segment.len() as u32,
            id: 0,
            dont_fragment: true,
        };
        let mut original = [0; 60];
        let ip_len = repr.header_len();
        let original = &mut original[..ip_len + segment.len()];
        repr.emit(&mut original[..ip_len]);
        original[ip_len..].copy_from_slice(segment);
        if let Ok(ip) = Ip::parse(original) {
            self.send_error(now, &ip, original, error);
        }
    }

    /// An ICMP error about a SYN.
    pub(super) fn send_tcp_unreachable(
        &mut self,
        now: Instant,
        client: SocketAddr,
        target: SocketAddr,
        seq: SeqNumber,
        error: IcmpError,
    ) {
        let syn = TcpRepr {
            src_port: client.port(),
            dst_port: target.port(),
            seq,
            ack: SeqNumber(0),
            flags: Flags::SYN,
            window: 0,
            options: Options::NONE,
        };
        let mut segment = [0; 20];
        syn.emit(&mut segment);
        self.send_synthetic_error(now, client, target, protocol::TCP, &segment, error);
    }

    /// Answers a segment that no flow wants with RST (RFC 9293, section 3.10.7.1).
    pub(super) fn reset_stranger(&mut self, key: &FlowKey, segment: &Tcp, payload: usize) {
        let group = match key.dst() {
            IpAddr::V4(dst) => dst.is_multicast() || dst.is_broadcast(),
            IpAddr::V6(dst) => dst.is_multicast(),
        };
        if segment.flags.rst() || group {
            return;
        }
        let (seq, ack, flags) = if segment.flags.ack() {
            (segment.ack, SeqNumber(0), Flags::RST)
        } else {
            (SeqNumber(0), segment.seq + segment.sequence_len(payload as u32), Flags::RST.with(Flags::ACK))
        };
        let repr = TcpRepr {
            src_port: segment.dst_port,
            dst_port: segment.src_port,
            seq,
            ack,
            flags,
            window: 0,
            options: Options::NONE,
        };
        let ip = IpRepr {
            src: key.dst(),
            dst: key.src(),
            protocol: protocol::TCP,
            ttl: HOPS,
            ecn: 0,
            payload_len: repr.header_len() as u32,
            id: 0,
            dont_fragment: true,
        };
        let len = ip.header_len() + repr.header_len();
        let Ok(mut out) = self.pool.alloc(len, 0) else { return };
        out.grow(len);
        let (head, tail) = out.as_mut_slice().split_at_mut(ip.header_len());
        ip.emit(head);
        repr.emit(tail);
        self.stats.resets_sent += 1;
        self.send_raw(out, VirtioNetHdr::default(), ip.src, ip.dst, protocol::TCP, ip.header_len());
    }
}
