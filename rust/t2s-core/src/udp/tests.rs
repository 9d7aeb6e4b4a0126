//! Against a naive twin: a list of sessions in order of last use.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};

use proptest::prelude::*;

use super::*;
use crate::buf::{Pool, PoolConfig};
use crate::time::SECONDS;

const CONFIG: UdpConfig =
    UdpConfig { idle_timeout: 120 * SECONDS, dns_idle_timeout: 10 * SECONDS, queue: 3, queued_bytes: 10 * 256 };

fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * SECONDS)
}

fn client(n: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 1_000 + n)
}

fn target(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), port)
}

struct Bench {
    pool: Pool,
    cache: PoolCache,
    table: Sessions,
}

impl Bench {
    fn new(config: UdpConfig, capacity: u32) -> Self {
        let pool = Pool::new(PoolConfig { ceiling_bytes: 16 << 20, ..PoolConfig::default() });
        let cache = pool.cache();
        Self { pool, cache, table: Sessions::new(config, capacity, [1, 2, 3, 4]) }
    }

    fn open(&mut self, now: u64, n: u16, port: u16) -> Opened {
        let sought = self.table.seek(client(n));
        self.table.open(at(now), sought, target(port), &mut self.cache).expect("the table has room for one")
    }

    fn push(&mut self, now: u64, id: SessionId, port: u16, byte: u8) -> Result<(), DropReason> {
        let buf = self.cache.alloc_copy(&[byte], 0).expect("the pool is large");
        self.table.push(at(now), id, target(port), buf).map_err(|(buf, reason)| {
            self.cache.free(buf);
            reason
        })
    }

    fn pop(&mut self, id: SessionId) -> Option<(u16, u8)> {
        let (target, buf) = self.table.pop(id)?;
        let byte = buf.as_slice()[0];
        self.cache.free(buf);
        Some((target.port(), byte))
    }

    fn ends_empty(mut self) {
        while self.table.close_any(&mut self.cache).is_some() {}
        assert!(self.table.is_empty());
        assert_eq!((self.table.queued_bytes(), self.table.next_timeout()), (0, None));
        drop(self.cache);
        assert_eq!(self.pool.stats().live_bytes, 0);
    }
}

#[test]
fn one_mapping_a_client_whatever_it_speaks_to() {
    let mut bench = Bench::new(CONFIG, 4);
    let first = bench.open(0, 1, 500);
    assert!(first.fresh && first.evicted.is_none());
    assert_eq!(bench.open(0, 1, 501), Opened { fresh: false, ..first });
    assert_ne!(bench.open(0, 2, 500).id, first.id);
    assert_eq!(bench.table.lookup(client(1)), Some(first.id));
    assert_eq!(bench.table.client(first.id), Some(client(1)));
    assert_eq!(SessionId::from_u64(first.id.to_u64()), first.id);
    assert_eq!(bench.table.iter().count(), 2);
    bench.ends_empty();
}

#[test]
fn flow_label_and_scope_do_not_make_a_client() {
    let mut bench = Bench::new(CONFIG, 4);
    let ip = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let with = |flow, scope| SocketAddr::V6(SocketAddrV6::new(ip, 1, flow, scope));
    let opened = bench.table.open(at(0), bench.table.seek(with(1, 2)), target(1), &mut bench.cache).expect("room");
    assert_eq!(bench.table.lookup(with(3, 4)), Some(opened.id));
}

#[test]
fn a_session_tells_its_ends_and_bytes() {
    let mut bench = Bench::new(CONFIG, 4);
    let id = bench.open(1, 1, 500).id;
    assert_eq!(bench.push(2, id, 501, 0), Ok(()));
    assert!(bench.table.touch(at(3), id, 700));
    let told: Vec<SessionInfo> = bench.table.iter().collect();
    let (client, target) = (client(1), target(500));
    assert_eq!(
        told,
        [SessionInfo { id, client, target, bytes_up: 1, bytes_down: 700, opened_at: at(1), last_used: at(3) }]
    );
    // Whoever has its place next starts from nothing.
    assert!(bench.table.close(id, &mut bench.cache).is_some());
    assert_eq!(bench.table.iter().count(), 0);
    let _ = bench.open(4, 2, 502);
    let next = bench.table.iter().next().expect("one is open");
    assert_eq!((next.bytes_up, next.bytes_down, next.opened_at), (0, 0, at(4)));
    bench.ends_empty();
}

#[test]
fn datagrams_leave_in_order_and_queues_are_bounded() {
    let mut bench = Bench::new(CONFIG, 8);
    let id = bench.open(0, 1, 500).id;
    for byte in 0..3 {
        assert_eq!(bench.push(0, id, 500 + u16::from(byte), byte), Ok(()));
    }
    assert_eq!(bench.push(0, id, 500, 9), Err(DropReason::UdpQueueFull));
    assert_eq!(bench.pop(id), Some((500, 0)));
    let (address, buf) = bench.table.pop(id).expect("two wait");
    bench.table.unpop(id, address, buf).expect("the session is there");
    assert_eq!(bench.table.queued(id), 2);
    assert_eq!((bench.pop(id), bench.pop(id), bench.pop(id)), (Some((501, 1)), Some((502, 2)), None));
    // Bytes over all sessions: ten small buffers.
    for n in 0..4u16 {
        let id = bench.open(0, n, 500).id;
        for byte in 0..3 {
            let want = if n == 3 && byte > 0 { Err(DropReason::UdpQueueFull) } else { Ok(()) };
            assert_eq!(bench.push(0, id, 500, byte), want, "{n} {byte}");
        }
    }
    assert_eq!(bench.table.stats().bytes_peak, 10 * 256);
    assert_eq!(bench.table.stats().refused, 3);
    bench.ends_empty();
}

#[test]
fn sessions_expire_by_their_own_timeout() {
    let mut bench = Bench::new(CONFIG, 8);
    let (dns, both, other) = (bench.open(0, 1, 53).id, bench.open(0, 2, 53).id, bench.open(1, 3, 443).id);
    assert_eq!(bench.push(2, dns, 53, 0), Ok(()));
    assert_eq!(bench.push(3, both, 53, 0), Ok(()));
    // Speaks to another port: an ordinary session from now on.
    assert_eq!(bench.push(4, both, 5353, 0), Ok(()));
    assert!(bench.table.touch(at(5), other, 0));
    assert_eq!(bench.table.next_timeout(), Some(at(12)));
    assert_eq!(bench.table.expire(at(11), &mut bench.cache), None);
    let closed = bench.table.expire(at(12), &mut bench.cache).expect("the DNS session is due");
    assert_eq!((closed.id, closed.client, closed.dropped), (dns, client(1), 1));
    assert_eq!(bench.table.next_timeout(), Some(at(124)));
    assert_eq!(bench.table.expire(at(124), &mut bench.cache).map(|closed| closed.id), Some(both));
    assert_eq!(bench.table.expire(at(124), &mut bench.cache), None);
    assert_eq!(bench.table.expire(at(125), &mut bench.cache).map(|closed| closed.id), Some(other));
    assert_eq!(bench.table.stats().expired, 3);
    bench.ends_empty();
}

#[test]
fn the_longest_idle_makes_room() {
    let mut bench = Bench::new(CONFIG, 3);
    let ids: Vec<SessionId> = (0..3).map(|n| bench.open(u64::from(n), n, if n == 1 { 53 } else { 443 }).id).collect();
    assert!(bench.table.touch(at(9), ids[0], 0));
    let opened = bench.open(10, 7, 443);
    assert_eq!(opened.evicted.map(|closed| closed.id), Some(ids[1]));
    assert_eq!(bench.open(11, 8, 443).evicted.map(|closed| closed.id), Some(ids[2]));
    assert_eq!(bench.table.len(), 3);
    // The evicted ids are stale, though their places are taken again.
    for stale in &ids[1..] {
        assert_eq!(bench.push(11, *stale, 443, 1), Err(DropReason::UdpRefused));
        assert!(!bench.table.touch(at(11), *stale, 0));
        assert!(bench.table.pop(*stale).is_none());
        assert!(bench.table.close(*stale, &mut bench.cache).is_none());
    }
    bench.ends_empty();
}

#[test]
fn a_search_outlives_what_others_open() {
    let mut bench = Bench::new(CONFIG, 64);
    let sought = bench.table.seek(client(0));
    for n in 1..=40 {
        assert!(bench.open(0, n, 80).fresh);
    }
    let opened = bench.table.open(at(0), sought, target(80), &mut bench.cache).expect("room");
    assert!(opened.fresh);
    assert_eq!(bench.table.lookup(client(0)), Some(opened.id));
    bench.ends_empty();
}

#[test]
fn a_table_without_room_refuses() {
    let mut bench = Bench::new(CONFIG, 0);
    bench.table.prepare();
    let refused = bench.table.open(at(0), bench.table.seek(client(1)), target(1), &mut bench.cache);
    assert_eq!(refused, Err(DropReason::FlowTableFull));
}

#[test]
fn slots_made_ready_are_taken_and_not_shown() {
    let mut bench = Bench::new(CONFIG, 40);
    bench.table.prepare();
    assert!(bench.table.slots.is_empty(), "an unused table takes no memory");
    let first = bench.open(1, 0, 80).id;
    bench.table.prepare();
    assert_eq!((bench.table.slots.len(), bench.table.len(), bench.table.iter().count()), (33, 1, 1));
    for n in 1..40 {
        assert!(bench.open(1, n, 80).fresh);
        bench.table.prepare();
    }
    assert_eq!((bench.table.slots.len(), bench.table.len()), (40, 40));
    assert_eq!(bench.open(2, 40, 80).evicted.map(|closed| closed.id), Some(first));
    bench.ends_empty();
}

#[test]
fn churn_at_the_cap_changes_nothing() {
    const CAPACITY: u32 = 5_461; // two thirds of the index: no cap makes the load higher
    const CHURN: u32 = if cfg!(miri) { 6_000 } else { 20 * CAPACITY };
    let mut bench = Bench::new(CONFIG, CAPACITY);
    let reserved = bench.table.by_client.slots();
    assert_eq!(reserved, 8_192);
    let mut longest = 0;
    for n in 0..CHURN {
        let client = SocketAddr::from(([10, 1, (n >> 16) as u8, 1], n as u16));
        let opened =
            bench.table.open(at(u64::from(n)), bench.table.seek(client), target(443), &mut bench.cache).expect("room");
        assert_eq!((opened.fresh, opened.evicted.is_some()), (true, n >= CAPACITY));
        if n % CAPACITY == CAPACITY - 1 {
            longest = longest.max(bench.table.by_client.longest_probe());
        }
    }
    assert_eq!(bench.table.by_client.slots(), reserved, "nothing grows");
    assert!(longest < 200, "{longest} slots: evictions leave nothing behind that lengthens probes");
    bench.ends_empty();
}

#[test]
#[cfg_attr(miri, ignore = "131,072 sessions; growth alone is tested in `index`")]
fn a_table_beyond_its_reserve_grows() {
    let mut bench = Bench::new(CONFIG, u32::MAX);
    let reserved = bench.table.by_client.slots();
    let client = |n: u32| SocketAddr::from(([10, (n >> 16) as u8, 0, 1], n as u16));
    for n in 0..2 * RESERVED_MAX {
        assert!(
            bench
                .table
                .open(at(0), bench.table.seek(client(n)), target(443), &mut bench.cache)
                .is_ok_and(|opened| opened.fresh)
        );
    }
    assert!(bench.table.by_client.slots() > reserved);
    assert!((0..2 * RESERVED_MAX).all(|n| bench.table.lookup(client(n)).is_some()));
    bench.ends_empty();
}

#[derive(Clone, Debug)]
enum Step {
    Open { n: u16, port: u16 },
    Push { n: u16, port: u16, byte: u8 },
    Pop { n: u16 },
    Touch { n: u16 },
    Close { n: u16 },
    Wait { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let port = prop_oneof![Just(53u16), Just(443)];
    prop_oneof![
        4 => (0u16..8, port.clone()).prop_map(|(n, port)| Step::Open { n, port }),
        6 => (0u16..8, port, any::<u8>()).prop_map(|(n, port, byte)| Step::Push { n, port, byte }),
        3 => (0u16..8).prop_map(|n| Step::Pop { n }),
        2 => (0u16..8).prop_map(|n| Step::Touch { n }),
        1 => (0u16..8).prop_map(|n| Step::Close { n }),
        3 => (1u64..40).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// One session of the twin; the vector that holds them is in order of last use.
#[derive(Debug)]
struct TwinSession {
    n: u16,
    id: SessionId,
    dns: bool,
    used: u64,
    queue: Vec<(u16, u8)>,
}

proptest! {
    #[test]
    fn same_as_the_twin(steps in prop::collection::vec(step(), 0..150)) {
        const CAPACITY: usize = 5;
        let mut bench = Bench::new(CONFIG, CAPACITY as u32);
        let mut twin: Vec<TwinSession> = Vec::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Open { n, port } => {
                    let opened = bench.open(now, n, port);
                    if let Some(known) = twin.iter().find(|it| it.n == n) {
                        prop_assert_eq!(opened, Opened { id: known.id, fresh: false, evicted: None });
                    } else {
                        prop_assert!(opened.fresh);
                        if twin.len() == CAPACITY {
                            let oldest = twin.iter().map(|it| it.used).min().expect("full");
                            let evicted = opened.evicted.expect("full");
                            let index = twin.iter().position(|it| it.id == evicted.id).expect("was there");
                            prop_assert_eq!(twin[index].used, oldest);
                            prop_assert_eq!(twin.remove(index).queue.len(), usize::from(evicted.dropped));
                        } else {
                            prop_assert_eq!(opened.evicted, None);
                        }
                        twin.push(TwinSession { n, id: opened.id, dns: port == 53, used: now, queue: vec![] });
                    }
                }
                Step::Push { n, port, byte } => {
                    let total: usize = twin.iter().map(|it| it.queue.len()).sum();
                    let Some(known) = twin.iter_mut().find(|it| it.n == n) else { continue };
                    let full = known.queue.len() == 3 || total == 10;
                    let want = if full { Err(DropReason::UdpQueueFull) } else { Ok(()) };
                    prop_assert_eq!(bench.push(now, known.id, port, byte), want);
                    if !full {
                        known.queue.push((port, byte));
                        known.used = now;
                        known.dns &= port == 53;
                    }
                }
                Step::Pop { n } => {
                    let Some(known) = twin.iter_mut().find(|it| it.n == n) else { continue };
                    let want = (!known.queue.is_empty()).then(|| known.queue.remove(0));
                    prop_assert_eq!(bench.pop(known.id), want);
                }
                Step::Touch { n } => {
                    let Some(known) = twin.iter_mut().find(|it| it.n == n) else { continue };
                    known.used = now;
                    prop_assert!(bench.table.touch(at(now), known.id, 0));
                }
                Step::Close { n } => {
                    let Some(index) = twin.iter().position(|it| it.n == n) else { continue };
                    let known = twin.remove(index);
                    let closed = bench.table.close(known.id, &mut bench.cache).expect("was open");
                    prop_assert_eq!(usize::from(closed.dropped), known.queue.len());
                }
                Step::Wait { seconds } => now += seconds,
            }
            let due = |it: &TwinSession| it.used + if it.dns { 10 } else { 120 };
            prop_assert_eq!(bench.table.next_timeout(), twin.iter().map(due).min().map(at));
            while let Some(closed) = bench.table.expire(at(now), &mut bench.cache) {
                let index = twin.iter().position(|it| it.id == closed.id).expect("was open");
                prop_assert!(due(&twin.remove(index)) <= now);
            }
            prop_assert!(twin.iter().all(|it| due(it) > now));
            prop_assert_eq!(bench.table.len(), twin.len());
            for n in 0..8 {
                prop_assert_eq!(bench.table.lookup(client(n)), twin.iter().find(|it| it.n == n).map(|it| it.id));
            }
        }
        bench.ends_empty();
    }
}
