//! Packets are cut by a fragmenter of the test's own and by [`fragment`], and must come back as they were.

use core::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::buf::{Pool, PoolConfig};
use crate::fragment::fragment;
use crate::time::SECONDS;
use crate::wire::IpRepr;

const LIMITS: FragmentLimits = FragmentLimits { total_bytes: 1 << 20, datagrams: 8, fragments: 64, age: 30 * SECONDS };
const KEY: [u64; 4] = [1, 2, 3, 4];

fn pool() -> Pool {
    Pool::new(PoolConfig { ceiling_bytes: 64 << 20, ..PoolConfig::default() })
}

fn repr(v6: bool, protocol: u8, len: usize) -> IpRepr {
    let (src, dst) = if v6 {
        (
            IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
        )
    } else {
        (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)))
    };
    IpRepr { src, dst, protocol, ttl: 64, ecn: 0, payload_len: len as u32, id: 0, dont_fragment: false }
}

/// A payload that starts as a transport header that passes as whole (data offset 5).
fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| if at == 12 { 0x50 } else { (at ^ (at >> 8)) as u8 }).collect()
}

/// A whole packet.
fn whole(repr: &IpRepr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; repr.header_len() + payload.len()];
    IpRepr { payload_len: payload.len() as u32, ..*repr }.emit(&mut packet);
    packet[repr.header_len()..].copy_from_slice(payload);
    packet
}

/// A fragment with any offset, flag and content.
fn part(repr: &IpRepr, id: u32, offset: usize, more: bool, payload: &[u8]) -> Vec<u8> {
    if repr.src.is_ipv4() {
        let mut packet = whole(&IpRepr { id: id as u16, ..*repr }, payload);
        packet[6..8].copy_from_slice(&(u16::from(more) << 13 | (offset / 8) as u16).to_be_bytes());
        fill_v4_header_checksum(&mut packet);
        return packet;
    }
    let mut extended = vec![repr.protocol, 0];
    extended.extend((offset as u16 | u16::from(more)).to_be_bytes());
    extended.extend(id.to_be_bytes());
    extended.extend(payload);
    whole(&IpRepr { protocol: 44, ..*repr }, &extended)
}

struct Bench {
    pool: Pool,
    cache: PoolCache,
    table: FragmentReassembler,
    now: Instant,
}

impl Bench {
    fn new(limits: FragmentLimits) -> Self {
        let pool = pool();
        let cache = pool.cache();
        Self {
            pool,
            cache,
            table: FragmentReassembler::new(limits, Reassembly::Bounded, KEY),
            now: Instant::from_millis(5),
        }
    }

    fn handle(&mut self, packet: &[u8]) -> Outcome {
        let ip = Ip::parse(packet).expect("the test sends headers that parse");
        let buf = self.cache.alloc_copy(packet, 0).expect("the pool is large");
        let outcome = self.table.handle(self.now, buf, &ip, &mut self.cache);
        let stats = self.table.stats();
        let held: Vec<&Piece> = self.table.datagrams.iter().flat_map(|datagram| &datagram.pieces).collect();
        assert_eq!(stats.bytes, held.iter().map(|piece| piece.buf.capacity() as u64).sum::<u64>());
        assert!(stats.bytes <= self.table.limits.total_bytes && stats.bytes <= stats.bytes_peak);
        assert!(stats.datagrams <= usize::from(self.table.limits.datagrams));
        assert!(self.table.datagrams.iter().all(|it| it.pieces.len() <= usize::from(self.table.limits.fragments)));
        outcome
    }

    fn completes(&mut self, packet: &[u8]) -> Vec<u8> {
        match self.handle(packet) {
            Outcome::Complete(buf) => {
                let bytes = buf.as_slice().to_vec();
                self.cache.free(buf);
                bytes
            }
            other => panic!("not complete: {other:?}"),
        }
    }

    fn pends(&mut self, packet: &[u8]) {
        let outcome = self.handle(packet);
        assert!(matches!(outcome, Outcome::Pending), "{outcome:?}");
    }

    fn drops(&mut self, packet: &[u8], reason: DropReason) {
        let outcome = self.handle(packet);
        assert!(matches!(outcome, Outcome::Dropped(why) if why == reason), "{outcome:?}");
    }

    /// Gives up what is too old; the first fragments that came of it.
    fn expire(&mut self) -> Vec<Vec<u8>> {
        let mut firsts = Vec::new();
        while let Some(first) = self.table.handle_timeout(self.now, &mut self.cache) {
            firsts.push(first.as_slice().to_vec());
            self.cache.free(first);
        }
        firsts
    }

    /// Nothing is held any more, anywhere.
    fn ends_empty(mut self) {
        self.table.clear(&mut self.cache);
        assert_eq!((self.table.stats().bytes, self.table.stats().datagrams), (0, 0));
        assert_eq!(self.table.next_timeout(), None);
        drop(self.cache);
        assert_eq!(self.pool.stats().live_bytes, 0);
    }
}

#[test]
fn a_packet_that_is_no_fragment_passes() {
    let mut bench = Bench::new(LIMITS);
    let packet = whole(&repr(false, 17, 0), &payload(100));
    assert_eq!(bench.completes(&packet), packet);
    bench.ends_empty();
}

#[test]
fn two_fragments_in_both_orders_and_versions() {
    for v6 in [false, true] {
        let repr = repr(v6, 17, 0);
        let data = payload(100);
        let (first, last) = (part(&repr, 7, 0, true, &data[..64]), part(&repr, 7, 64, false, &data[64..]));
        let mut bench = Bench::new(LIMITS);
        bench.pends(&first);
        let mut want = whole(&IpRepr { id: 7, ..repr }, &data);
        assert_eq!(bench.completes(&last), want);
        bench.pends(&last);
        // Padding of the link behind the packet is not part of it.
        let mut padded = first.clone();
        padded.extend([0xee; 9]);
        assert_eq!(bench.completes(&padded), want);
        // Another datagram with the same identification later.
        want.truncate(want.len());
        bench.pends(&first);
        bench.ends_empty();
    }
}

#[test]
fn overlaps_end_the_datagram_and_leave_a_tombstone() {
    for (offset, len) in [(8usize, 64usize), (56, 16), (0, 32), (0, 128), (0, 64)] {
        let repr = repr(true, 17, 0);
        let mut bench = Bench::new(LIMITS);
        bench.pends(&part(&repr, 9, 0, true, &payload(64)));
        bench.drops(&part(&repr, 9, offset, true, &vec![0xff; len]), DropReason::FragmentOverlap);
        assert_eq!(bench.table.stats().bytes, 0);
        assert_eq!(bench.table.lost().get(DropReason::FragmentOverlap), 1);
        bench.drops(&part(&repr, 9, 64, false, &[1; 8]), DropReason::FragmentOverlap);
        bench.drops(&part(&repr, 9, 0, true, &payload(64)), DropReason::FragmentOverlap);
        // Another datagram is not concerned.
        bench.pends(&part(&repr, 10, 0, true, &payload(64)));
        // And after its time nor is this identification.
        bench.now = bench.now.plus(LIMITS.age);
        assert_eq!(bench.expire().len(), 1, "the other one; a poisoned datagram holds nothing");
        bench.pends(&part(&repr, 9, 0, true, &payload(64)));
        bench.ends_empty();
    }
}

#[test]
fn exact_duplicates_are_ignored() {
    let repr = repr(false, 17, 0);
    let data = payload(48);
    let mut bench = Bench::new(LIMITS);
    for _ in 0..3 {
        bench.pends(&part(&repr, 1, 8, true, &data[8..40]));
        bench.pends(&part(&repr, 1, 40, false, &data[40..]));
    }
    assert_eq!(bench.table.stats().duplicates, 4);
    // The same place and length, but it says that more follows.
    let mut other = Bench::new(LIMITS);
    other.pends(&part(&repr, 1, 40, false, &data[40..]));
    other.drops(&part(&repr, 1, 40, true, &data[40..]), DropReason::FragmentOverlap);
    assert_eq!(bench.completes(&part(&repr, 1, 0, true, &data[..8])), whole(&IpRepr { id: 1, ..repr }, &data));
    bench.ends_empty();
}

#[test]
fn malformed_fragments_are_refused() {
    for v6 in [false, true] {
        let (udp, tcp) = (repr(v6, 17, 0), repr(v6, 6, 0));
        let mut bench = Bench::new(LIMITS);
        let bad = [
            // Not a multiple of 8, and not the last.
            part(&udp, 1, 0, true, &payload(63)),
            // The "ping of death", and the same from far away.
            part(&udp, 1, 65_528, false, &[0; 24]),
            part(&udp, 1, 65_528, true, &[0; 8]),
            part(&udp, 1, 65_400, true, &[0; 1400]),
            // Empty.
            part(&udp, 1, 80, false, &[]),
            // Tiny first fragments.
            part(&tcp, 1, 0, true, &payload(8)),
            part(&tcp, 1, 0, true, &payload(16)),
            // A TCP header longer than the first fragment.
            part(&tcp, 1, 0, true, &[0xf0; 56]),
            // Would overwrite the TCP header's flags.
            part(&tcp, 1, 8, true, &payload(24)),
        ];
        for packet in bad {
            bench.drops(&packet, DropReason::FragmentBad);
            assert_eq!(bench.table.stats().datagrams, 0);
        }
        bench.pends(&part(&tcp, 1, 0, true, &payload(24)));
        bench.ends_empty();
    }
    // Extension headers behind the fragment header must be whole too (RFC 7112).
    let options = repr(true, 60, 0);
    let mut bench = Bench::new(LIMITS);
    bench.drops(&part(&options, 1, 0, true, &[17, 1, 1, 4, 0, 0, 0, 0]), DropReason::FragmentBad);
    bench.drops(&part(&options, 1, 0, true, &[17, 0, 1, 4, 0, 0, 0, 0]), DropReason::FragmentBad);
    bench.pends(&part(&options, 1, 0, true, &[17, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3, 4, 0, 8, 0, 0]));
}

#[test]
fn data_behind_the_declared_end_poisons() {
    let repr = repr(false, 17, 0);
    let poisoned = |first: Vec<u8>, second: Vec<u8>| {
        let mut bench = Bench::new(LIMITS);
        bench.pends(&first);
        bench.drops(&second, DropReason::FragmentBad);
        bench.drops(&part(&repr, 1, 0, true, &payload(32)), DropReason::FragmentBad);
        bench.ends_empty();
    };
    poisoned(part(&repr, 1, 64, false, &[1; 8]), part(&repr, 1, 72, true, &[1; 8]));
    poisoned(part(&repr, 1, 64, false, &[1; 8]), part(&repr, 1, 48, false, &[1; 8]));
    poisoned(part(&repr, 1, 64, true, &[1; 8]), part(&repr, 1, 48, false, &[1; 8]));
}

#[test]
fn forged_congestion_marks_poison_and_true_ones_stay() {
    for v6 in [false, true] {
        let with = |ecn: u8| IpRepr { ecn, ..repr(v6, 17, 0) };
        let mut bench = Bench::new(LIMITS);
        bench.pends(&part(&with(0), 1, 0, true, &payload(32)));
        bench.drops(&part(&with(3), 1, 32, false, &[0; 8]), DropReason::FragmentBad);
        bench.pends(&part(&with(2), 2, 0, true, &payload(32)));
        let packet = bench.completes(&part(&with(3), 2, 32, false, &[0; 8]));
        assert_eq!(Ip::parse(&packet).map(|ip| ip.ecn), Ok(3));
        bench.ends_empty();
    }
}

#[test]
fn the_oldest_goes_when_datagrams_run_out() {
    let repr = repr(false, 17, 0);
    let mut bench = Bench::new(LIMITS);
    for id in 0..20 {
        bench.pends(&part(&repr, id, 0, true, &payload(32)));
    }
    assert_eq!(bench.table.lost().get(DropReason::FragmentFull), 12);
    // Under such a flood a datagram whose parts come together gets through.
    bench.pends(&part(&repr, 100, 0, true, &payload(32)));
    let _ = bench.completes(&part(&repr, 100, 32, false, &[1; 8]));
    bench.ends_empty();
}

#[test]
fn the_oldest_go_when_bytes_run_out() {
    let repr = repr(false, 17, 0);
    let mut bench = Bench::new(FragmentLimits { total_bytes: 3 * 2048, ..LIMITS });
    for id in 0..3 {
        bench.pends(&part(&repr, id, 0, true, &payload(1400)));
    }
    bench.pends(&part(&repr, 2, 1400, true, &payload(1400)));
    assert_eq!((bench.table.stats().datagrams, bench.table.lost().get(DropReason::FragmentFull)), (2, 1));
    bench.pends(&part(&repr, 2, 2800, true, &payload(1400)));
    // Only this datagram is left: its next fragment is refused, and it stays.
    bench.drops(&part(&repr, 2, 4200, true, &payload(1400)), DropReason::FragmentFull);
    assert_eq!(bench.table.stats().datagrams, 1);
    bench.ends_empty();
}

#[test]
fn too_many_fragments_poison() {
    let repr = repr(false, 17, 0);
    let mut bench = Bench::new(LIMITS);
    for index in 0..64 {
        bench.pends(&part(&repr, 1, index * 16, true, &payload(8)));
    }
    bench.drops(&part(&repr, 1, 64 * 16, true, &payload(8)), DropReason::FragmentFull);
    assert_eq!(bench.table.lost().get(DropReason::FragmentFull), 64);
    bench.ends_empty();
}

#[test]
fn the_first_fragment_of_a_late_datagram_comes_back() {
    for v6 in [false, true] {
        let repr = repr(v6, 17, 0);
        let mut bench = Bench::new(LIMITS);
        let first = part(&repr, 1, 0, true, &payload(64));
        bench.pends(&first);
        bench.pends(&part(&repr, 1, 128, true, &payload(64)));
        bench.pends(&part(&repr, 2, 64, true, &payload(64)));
        assert!(bench.expire().is_empty(), "not yet");
        bench.now = bench.now.plus(LIMITS.age);
        assert_eq!(bench.expire(), [first], "of the other one the first is missing");
        assert_eq!(bench.table.lost().get(DropReason::FragmentTimeout), 3);
        assert_eq!((bench.table.stats().bytes, bench.table.stats().abandoned), (0, 2));
        bench.ends_empty();
    }
}

#[test]
fn unbounded_ignores_caps() {
    let repr = repr(false, 17, 0);
    let mut bench = Bench::new(LIMITS);
    let tight = FragmentLimits { total_bytes: 1, datagrams: 0, fragments: 1, age: SECONDS };
    let mut table = FragmentReassembler::new(tight, Reassembly::Unbounded, KEY);
    for index in 0..100 {
        let packet = part(&repr, 1, index * 16, true, &payload(8));
        let buf = bench.cache.alloc_copy(&packet, 0).expect("the pool is large");
        let ip = Ip::parse(&packet).expect("valid");
        assert!(matches!(table.handle(bench.now, buf, &ip, &mut bench.cache), Outcome::Pending));
    }
    assert_eq!(table.next_timeout(), Some(bench.now.plus(SECONDS)));
    let first = table.handle_timeout(bench.now.plus(SECONDS), &mut bench.cache).expect("offset 0 is there");
    bench.cache.free(first);
    assert!(table.handle_timeout(bench.now.plus(SECONDS), &mut bench.cache).is_none());
    assert_eq!(table.lost().get(DropReason::FragmentTimeout), 100);
    bench.ends_empty();
}

#[test]
fn small_fragments_do_not_hold_large_buffers() {
    let packet = part(&repr(false, 17, 0), 1, 0, true, &payload(64));
    let mut bench = Bench::new(LIMITS);
    let mut buf = bench.cache.alloc(65_535, 0).expect("the pool is large");
    buf.append(&packet);
    let ip = Ip::parse(&packet).expect("valid");
    assert!(matches!(bench.table.handle(bench.now, buf, &ip, &mut bench.cache), Outcome::Pending));
    assert_eq!(bench.table.stats().bytes, 256);
    bench.ends_empty();
}

#[test]
fn ipv4_options_and_ipv6_extensions_of_the_first_fragment_stay() {
    let mut bench = Bench::new(LIMITS);
    let data = payload(72);
    // Three no-operations and the end of the list.
    let mut first = part(&repr(false, 17, 0), 3, 0, true, &data[..64]);
    first.splice(20..20, [1, 1, 1, 0]);
    first[0] = 0x46;
    first[3] += 4;
    fill_v4_header_checksum(&mut first);
    bench.pends(&first);
    let packet = bench.completes(&part(&repr(false, 17, 0), 3, 64, false, &data[64..]));
    let ip = Ip::parse(&packet).expect("valid");
    assert_eq!((ip.payload, ip.fragment, &packet[24..]), (24, None, &data[..]));
    // Destination options in front of the fragment header.
    let v6 = repr(true, 17, 0);
    let extend = |mut packet: Vec<u8>| {
        packet.splice(40..40, [44, 0, 1, 4, 0, 0, 0, 0]);
        packet[6] = 60;
        let len = packet.len() as u16 - 40;
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        packet
    };
    bench.pends(&extend(part(&v6, 4, 0, true, &data[..64])));
    let packet = bench.completes(&part(&v6, 4, 64, false, &data[64..]));
    let ip = Ip::parse(&packet).expect("valid");
    assert_eq!((ip.payload, ip.protocol, ip.fragment, &packet[48..]), (48, 17, None, &data[..]));
    bench.ends_empty();
}

#[test]
fn the_largest_datagrams() {
    for (v6, len) in [(false, 65_515usize), (true, 65_535)] {
        let repr = repr(v6, 17, 0);
        let data = payload(len);
        let mut bench = Bench::new(LIMITS);
        let parts: Vec<Vec<u8>> = fragment(&repr, &data, 1500, 5)
            .expect("fits the length field")
            .map(|it| [it.header(), it.payload].concat())
            .collect();
        assert!(parts.iter().all(|part| part.len() <= 1500));
        let (last, rest) = parts.split_last().expect("several");
        for part in rest {
            bench.pends(part);
        }
        assert_eq!(bench.completes(last), whole(&IpRepr { id: 5, ..repr }, &data));
        assert!(fragment(&repr, &vec![0; len + 1], 1500, 5).is_err());
        bench.ends_empty();
    }
}

proptest! {
    /// Cut anyhow, in any order, some parts twice: the packet comes out once, as it was.
    #[test]
    fn what_was_cut_comes_back(
        v6 in any::<bool>(),
        len in 24usize..3_000,
        cuts in prop::collection::btree_set(3usize..375, 0..20),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..80),
    ) {
        let repr = repr(v6, 6, 0);
        let data = payload(len);
        let mut edges = vec![0];
        edges.extend(cuts.into_iter().map(|cut| cut * 8).filter(|&cut| cut < len));
        edges.push(len);
        let parts: Vec<Vec<u8>> = edges
            .windows(2)
            .map(|edge| part(&repr, 77, edge[0], edge[1] < len, &data[edge[0]..edge[1]]))
            .collect();
        prop_assume!(parts.len() > 1);
        let mut bench = Bench::new(LIMITS);
        let mut missing: Vec<usize> = (0..parts.len()).collect();
        let picks: Vec<usize> = order.iter().map(|index| index.index(parts.len())).chain(0..parts.len()).collect();
        for pick in picks {
            missing.retain(|&other| other != pick);
            match bench.handle(&parts[pick]) {
                Outcome::Pending => prop_assert!(!missing.is_empty()),
                Outcome::Complete(packet) => {
                    prop_assert!(missing.is_empty());
                    prop_assert_eq!(packet.as_slice(), whole(&IpRepr { id: 77, ..repr }, &data));
                    break;
                }
                Outcome::Dropped(reason) => prop_assert!(false, "{:?}", reason),
            }
        }
        prop_assert_eq!(bench.table.stats().completed, 1);
        bench.ends_empty();
    }

    /// Any fragments at all: no panic, no cap exceeded (`handle`), nothing left behind, and what completes is made of
    /// bytes that were sent.
    #[test]
    fn anything_goes(parts in prop::collection::vec(
        (any::<bool>(), 0u32..4, 0usize..40, any::<bool>(), 0usize..60, any::<u8>(), any::<bool>(), 0u8..4), 0..120)
    ) {
        let mut bench = Bench::new(FragmentLimits { total_bytes: 8 << 10, datagrams: 3, fragments: 6, age: SECONDS });
        let mut dropped = 0;
        let mut completed = 0;
        let total = parts.len() as u64;
        for (v6, id, offset, more, len, fill, aligned, ecn) in parts {
            let len = if aligned { len / 8 * 8 } else { len };
            let mut content = vec![fill; len];
            if let Some(byte) = content.get_mut(12) {
                *byte = 0x50;
            }
            let repr = IpRepr { ecn, ..repr(v6, 6, 0) };
            bench.now = bench.now.plus(SECONDS / 20);
            let _ = bench.expire();
            let before = bench.table.datagrams.iter().map(|it| it.pieces.len()).sum::<usize>() as u64;
            let packet = part(&repr, id, offset * 8, more, &content);
            if Ip::parse(&packet).is_ok_and(|ip| ip.fragment.is_none()) {
                completed += 1;
                continue;
            }
            match bench.handle(&packet) {
                Outcome::Pending => {}
                Outcome::Dropped(_) => dropped += 1,
                Outcome::Complete(buf) => {
                    let after = bench.table.datagrams.iter().map(|it| it.pieces.len()).sum::<usize>() as u64;
                    completed += before + 1 - after;
                    prop_assert!(Ip::parse(buf.as_slice()).is_ok_and(|ip| ip.fragment.is_none()));
                    bench.cache.free(buf);
                }
            }
        }
        // Every fragment is accounted for.
        bench.table.clear(&mut bench.cache);
        let stats = bench.table.stats();
        prop_assert_eq!(total, dropped + completed + stats.duplicates + bench.table.lost().total());
        bench.ends_empty();
    }
}
