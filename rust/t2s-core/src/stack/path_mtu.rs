//! Path MTU discovery: "too big" from a router on the client's side, about a packet that we sent.

use core::net::IpAddr;

use super::Inner;
use super::api::{Disposition, Packet};
use super::flows::context;
use super::owner::{session_key, worker_of};
use crate::flow::{FlowKey, FlowMap};
use crate::path_mtu::believable;
use crate::stats::DropReason;
use crate::time::Instant;
use crate::wire::icmp::{ICMP_HEADER, Quote};
use crate::wire::ip::Ip;
use crate::wire::protocol;
use crate::wire::virtio::VirtioNetHdr;

impl Inner {
    /// A router says that a packet of ours was too big for a link that takes `mtu` bytes.
    ///
    /// It is believed when it quotes a packet that is on its way: one of a flow here, whose sequence number is not
    /// acknowledged yet, or a datagram to the client of a session (RFC 5927, section 4.1; RFC 8201, section 4).
    pub(super) fn too_big(
        &mut self,
        now: Instant,
        mut packet: Packet,
        ip: &Ip,
        mtu: u32,
        map: &FlowMap<u32>,
    ) -> Disposition {
        let quoted = packet.buf.as_slice().get(usize::from(ip.payload) + ICMP_HEADER..ip.total as usize);
        let quote = quoted.and_then(|quoted| Quote::parse(ip.is_v4(), quoted));
        // The error comes to who sent the packet.
        let Some(quote) = quote.filter(|quote| quote.src == ip.dst) else {
            return self.refuse(packet, DropReason::IcmpMalformed);
        };
        let (target_port, client_port) = quote.ports();
        let key = match quote.protocol {
            protocol::TCP => FlowKey::new(quote.dst, client_port, quote.src, target_port, protocol::TCP),
            protocol::UDP => session_key(quote.dst, client_port),
            _ => return self.refuse(packet, DropReason::IcmpIgnored),
        };
        let hash = map.hash(&key);
        let owner = worker_of(map, self.workers, hash);
        if owner != self.worker {
            packet.checksum_trusted = true;
            self.foreign.push_back((owner, packet));
            return Disposition::Foreign;
        }
        let index = (quote.protocol == protocol::TCP)
            .then(|| map.lock(map.shard_of(hash)).get(hash, &key).copied())
            .flatten()
            .filter(|&index| {
                self.flows.at(index).is_some_and(|flow| flow.life.is_alive() && flow.tcb.has_sent(quote.seq()))
            });
        let client = core::net::SocketAddr::new(quote.dst, client_port);
        let is_ours = index.is_some() || (quote.protocol == protocol::UDP && self.sessions.lookup(client).is_some());
        let Some(mtu) = believable(quote.dst, mtu, quote.total).filter(|_| is_ours) else {
            return self.refuse(packet, DropReason::IcmpIgnored);
        };
        self.paths.learn(now, quote.dst, mtu);
        if let Some(index) = index {
            self.limit_flow(now, index);
        }
        self.pool.free(packet.buf);
        Disposition::Accepted
    }

    /// Keeps a flow's segments within what the path to its client takes.
    pub(super) fn limit_flow(&mut self, now: Instant, index: u32) {
        let Inner { flows, config, pool, budget, memory, stats, paths, .. } = self;
        let Some(flow) = flows.at_mut(index) else { return };
        let Some(mtu) = paths.get(now, flow.ends().0.ip()) else { return };
        let headers = if flow.is_v4() { 40 } else { 60 };
        let mut ctx = context(now, config, pool, budget, memory, stats);
        flow.tcb.limit_payload(&mut ctx, mtu.saturating_sub(headers));
        self.touch(index);
    }

    /// Bytes of a packet to `client` at most.
    #[inline]
    pub(super) fn mtu_to(&self, now: Instant, client: IpAddr) -> u16 {
        self.paths.get(now, client).map_or(self.config.mtu, |mtu| mtu.min(self.config.mtu))
    }

    /// Sends an answer that is whole: at once, or in fragments.
    pub(super) fn answer(&mut self, now: Instant, request: &Ip, reply: crate::buf::Buf) {
        let mtu = self.mtu_to(now, request.src);
        if reply.len() > usize::from(mtu) {
            self.echo_in_fragments(request, reply, mtu);
        } else {
            self.enqueue_raw(reply, VirtioNetHdr::default());
        }
    }
}
