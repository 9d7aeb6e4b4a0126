//! The way out: segments of flows and packets built whole, one at a time, in front of the device.

use core::net::IpAddr;

use super::api::{MAX_SLICES, Transmit};
use super::flows::context;
use super::{Inner, Raw};
use crate::config::Config;
use crate::stats::Stage;
use crate::tcp::{OutSegment, SegmentLimits};
use crate::time::Instant;
use crate::wire::ip::IpRepr;
use crate::wire::protocol;
use crate::wire::virtio::{self, VirtioNetHdr};
use crate::wire::{fill_pseudo_sum, fill_transport_checksum_parts};

/// Segments that a flow may send in a row before the next flow's iteration. With super-segments that is half a
/// megabyte: long enough for the caches, short enough that a thousand mice do not wait for an elephant.
const BURST: u32 = 8;

/// Hop limit of packets to clients: they are one hop away, 64 is what hosts use (RFC 1700).
pub(super) const HOPS: u8 = 64;

/// What the next `staged` hands out.
#[derive(Debug)]
pub(super) enum Staged {
    Nothing,
    /// `Inner::last` holds a whole packet.
    Raw(VirtioNetHdr),
    /// `Inner::header` holds the headers, the flow's send queue the payload.
    Segment {
        index: u32,
        header: usize,
        offset: usize,
        len: usize,
        virtio: VirtioNetHdr,
    },
}

impl Inner {
    /// Finds the next packet and writes its headers; false when there is none.
    pub(super) fn stage_transmit(&mut self, now: Instant) -> bool {
        if let Some(buf) = self.last.take() {
            self.pool.free(buf);
        }
        self.settle_dirty(now);
        if let Some(Raw { buf, virtio }) = self.raw.pop_front() {
            self.stats.packets_out += 1;
            self.stats.bytes_out += buf.len() as u64;
            self.last = Some(buf);
            self.staged = Staged::Raw(virtio);
            return true;
        }
        while let Some(id) = self.transmit.front(&self.flows) {
            let index = id.index;
            self.probe_out.begin();
            if let Some(segment) = self.next_segment(now, index) {
                self.build(index, &segment);
                self.probe_out.mark(Stage::Transmit);
                self.probe_out.end();
                self.burst += 1;
                if self.burst >= BURST {
                    self.burst = 0;
                    self.transmit.rotate();
                }
                return true;
            }
            self.probe_out.end();
            self.burst = 0;
            self.transmit.pop(&mut self.flows);
            // What was sent may have armed a timer, or have been the last word.
            self.settle_sent(now, index);
        }
        self.staged = Staged::Nothing;
        false
    }

    fn next_segment(&mut self, now: Instant, index: u32) -> Option<OutSegment> {
        let Inner { flows, config, pool, budget, memory, stats, .. } = self;
        let flow = flows.at_mut(index)?;
        let limits = limits(config, flow.is_v4());
        let mut ctx = context(now, config, pool, budget, memory, stats);
        flow.tcb.poll_segment(&mut ctx, &limits)
    }

    /// What one segment to a client may hold.
    pub(super) fn limits(&self, v4: bool) -> SegmentLimits {
        limits(&self.config, v4)
    }

    /// Writes IP and TCP headers of a segment into `self.header`.
    fn build(&mut self, index: u32, segment: &OutSegment) {
        let Inner { flows, config, header, stats, ip_id, .. } = self;
        let Some(flow) = flows.at(index) else { return };
        let (client, target) = flow.ends();
        let tcp_len = segment.repr.header_len();
        *ip_id = ip_id.wrapping_add(1);
        let ip = IpRepr {
            src: target.ip(),
            dst: client.ip(),
            protocol: protocol::TCP,
            ttl: HOPS,
            ecn: 0,
            payload_len: (tcp_len + segment.payload_len) as u32,
            id: *ip_id,
            dont_fragment: true,
        };
        let ip_len = ip.header_len();
        ip.emit(&mut header[..ip_len]);
        let tcp = &mut header[ip_len..ip_len + tcp_len];
        let mut repr = segment.repr;
        repr.src_port = target.port();
        repr.dst_port = client.port();
        repr.emit(tcp);
        let mut virtio = VirtioNetHdr::default();
        if config.offload.tx_checksum {
            fill_pseudo_sum(ip.src, ip.dst, protocol::TCP, ip.payload_len, tcp);
            virtio.flags = virtio::F_NEEDS_CSUM;
            virtio.csum_start = ip_len as u16;
            virtio.csum_offset = 16;
        } else {
            let payload = flow.tcb.payload(segment.payload_offset, segment.payload_len);
            fill_transport_checksum_parts(config.checksum, ip.src, ip.dst, protocol::TCP, tcp, payload);
        }
        if let Some(size) = segment.gso_size {
            virtio.gso_type = if ip.src.is_ipv4() { virtio::GSO_TCPV4 } else { virtio::GSO_TCPV6 };
            virtio.gso_size = size;
            virtio.hdr_len = (ip_len + tcp_len) as u16;
        }
        stats.packets_out += 1;
        stats.bytes_out += (ip_len + tcp_len + segment.payload_len) as u64;
        self.staged = Staged::Segment {
            index,
            header: ip_len + tcp_len,
            offset: segment.payload_offset,
            len: segment.payload_len,
            virtio,
        };
    }

    /// The packet that `stage_transmit` has found.
    pub(super) fn staged(&self) -> Transmit<'_> {
        let mut slices: [&[u8]; MAX_SLICES] = [&[]; MAX_SLICES];
        match self.staged {
            Staged::Nothing => Transmit { header: &[], slices, count: 0, virtio: VirtioNetHdr::default() },
            Staged::Raw(virtio) => {
                let header = self.last.as_ref().map_or(&[][..], crate::buf::Buf::as_slice);
                Transmit { header, slices, count: 0, virtio }
            }
            Staged::Segment { index, header, offset, len, virtio } => {
                let mut count = 0;
                if len > 0
                    && let Some(flow) = self.flows.at(index)
                {
                    for (slot, slice) in slices.iter_mut().zip(flow.tcb.payload(offset, len)) {
                        *slot = slice;
                        count += 1;
                    }
                }
                Transmit { header: &self.header[..header], slices, count, virtio }
            }
        }
    }

    /// Queues a packet that is whole but for its transport checksum; `virtio` says whether it is a super-packet.
    pub(super) fn send_raw(
        &mut self,
        mut buf: crate::buf::Buf,
        mut virtio: VirtioNetHdr,
        src: IpAddr,
        dst: IpAddr,
        upper: u8,
        ip_len: usize,
    ) {
        let checksum = self.config.checksum;
        let segment = &mut buf.as_mut_slice()[ip_len..];
        if self.config.offload.tx_checksum && matches!(upper, protocol::TCP | protocol::UDP) {
            fill_pseudo_sum(src, dst, upper, segment.len() as u32, segment);
            virtio.flags = virtio::F_NEEDS_CSUM;
            virtio.csum_start = ip_len as u16;
            virtio.csum_offset = if upper == protocol::TCP { 16 } else { 6 };
        } else {
            crate::wire::fill_transport_checksum(checksum, src, dst, upper, segment);
        }
        self.enqueue_raw(buf, virtio);
    }

    /// Queues a packet that is whole.
    pub(super) fn enqueue_raw(&mut self, buf: crate::buf::Buf, virtio: VirtioNetHdr) {
        if self.raw.len() >= super::RAW_QUEUE {
            self.pool.free(buf);
            self.stats.raw_dropped += 1;
            return;
        }
        self.raw.push_back(Raw { buf, virtio });
    }
}

fn limits(config: &Config, v4: bool) -> SegmentLimits {
    let headers: u16 = if v4 { 40 } else { 60 };
    // The IP length field bounds a super-packet: 65,535 bytes with the IPv4 header or without the IPv6 header. 40 bytes
    // are left for TCP options.
    let tso_max = if config.offload.tso { 65_535 - usize::from(headers) - 40 } else { 0 };
    SegmentLimits { mss: config.mtu.saturating_sub(headers).max(8), tso_max, slices: MAX_SLICES }
}
