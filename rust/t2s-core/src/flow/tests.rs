//! The map against a naive twin, at its bound, over long churn, and under threads.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

fn key(n: u32) -> FlowKey {
    FlowKey::new([10, 0, (n >> 24) as u8, (n >> 16) as u8].into(), n as u16, [192, 0, 2, 1].into(), 443, 6)
}

fn map(shards: usize, capacity: usize) -> FlowMap<u32> {
    FlowMap::new(FlowMapConfig { shards, capacity, hash_key: [1, 2, 3, 4], clock: no_clock })
}

#[test]
fn a_flow_comes_and_goes() {
    let map = map(2, 16);
    let hash = map.hash(&key(1));
    let mut shard = map.lock(map.shard_of(hash));
    assert_eq!(shard.insert(hash, key(1), 5, Instant::ZERO), Ok(None));
    assert_eq!(shard.insert(hash, key(1), 6, Instant::ZERO), Ok(Some(5)));
    assert_eq!(shard.get(hash, &key(1)), Some(&6));
    assert_eq!(shard.get(hash, &key(2)), None);
    assert_eq!(shard.get_mut(hash, &key(1)).map(|value| std::mem::replace(value, 7)), Some(6));
    assert_eq!(shard.remove(hash, &key(1)), Some(7));
    assert_eq!(shard.remove(hash, &key(1)), None);
    drop(shard);
    assert!(map.is_empty());
    let total = map.stats().total;
    assert_eq!((total.lookups, total.len, total.peak), (7, 0, 1));
}

#[test]
fn a_key_gives_back_what_it_was_made_of() {
    let v4 = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
    let v6 = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 6));
    let low = IpAddr::V6(Ipv6Addr::LOCALHOST);
    for (src, dst) in [(v4, v4), (v6, v4), (v4, low), (low, v6)] {
        let key = FlowKey::new(src, 65_535, dst, 1, 17);
        assert_eq!((key.src(), key.dst(), key.protocol()), (src, dst, 17));
        assert_eq!((key.source().port(), key.destination().port()), (65_535, 1));
        assert_ne!(key, FlowKey::new(src, 65_535, dst, 1, 6));
        assert_ne!(key, FlowKey::new(src, 65_535, dst, 2, 17));
        assert_ne!(key, FlowKey::new(dst, 1, src, 65_535, 17));
    }
    let mapped = FlowKey::new(IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()), 1, v4, 2, 6);
    assert_eq!(mapped.src(), IpAddr::V4(Ipv4Addr::LOCALHOST));
}

#[test]
fn the_bound_refuses_and_changes_nothing() {
    for capacity in [0, 1, 7, 100, 1_000] {
        let map = map(1, capacity);
        let insert = |n: u32| map.lock(0).insert(map.hash(&key(n)), key(n), n, Instant::ZERO);
        for n in 0..capacity as u32 {
            assert_eq!(insert(n), Ok(None));
        }
        assert_eq!(insert(u32::MAX), Err(TableFull));
        assert_eq!((map.len(), map.stats().total.refused), (capacity, 1));
        if capacity > 0 {
            assert_eq!(insert(0), Ok(Some(0)), "a known flow may be replaced at the bound");
            assert!(map.lock(0).remove(map.hash(&key(0)), &key(0)).is_some());
            assert_eq!(insert(u32::MAX), Ok(None));
        }
    }
}

#[test]
fn long_churn_at_the_bound_changes_nothing() {
    const LIMIT: u32 = 5_461; // two thirds of 8,192 slots: no bound makes the load higher
    const CHURN: u32 = if cfg!(miri) { 6_000 } else { 200 * LIMIT };
    let map = map(1, LIMIT as usize);
    let reserved = map.lock(0).table().reserved();
    assert_eq!(reserved.0, 8_192);
    let mut longest = 0;
    for n in 0..CHURN {
        let mut shard = map.lock(0);
        if n >= LIMIT {
            let old = key(n - LIMIT);
            assert_eq!(shard.remove(map.hash(&old), &old), Some(n - LIMIT));
        }
        shard.insert(map.hash(&key(n)), key(n), n, Instant::ZERO).expect("below the bound");
        if n % LIMIT == LIMIT - 1 {
            longest = longest.max(shard.table().longest_probe());
        }
    }
    assert_eq!(map.lock(0).table().reserved(), reserved, "nothing grows");
    assert!(longest < 200, "{longest} slots: deletions leave nothing behind that lengthens probes");
}

#[test]
fn idle_flows_expire_within_their_budget() {
    let map = map(1, 1_000);
    for n in 0..1_000 {
        map.lock(0).insert(map.hash(&key(n)), key(n), n, Instant::from_millis(u64::from(n))).expect("room");
    }
    for n in 0..100 {
        assert!(map.lock(0).touch(map.hash(&key(n)), &key(n), Instant::from_millis(5_000)).is_some());
    }
    let mut gone = Vec::new();
    let mut calls = 0;
    while map.len() > 600 {
        let before = gone.len();
        map.remove_expired(0, Instant::from_millis(500), 64, |key, n| gone.push((key, n)));
        assert!(gone.len() - before <= 64);
        calls += 1;
        assert!(calls < 100, "a sweep comes round");
    }
    gone.sort_unstable();
    assert_eq!(gone, (100..500).map(|n| (key(n), n)).collect::<Vec<_>>());
    assert_eq!(map.remove_expired(0, Instant::ZERO, usize::MAX, |_, _| ()), 0);
    assert_eq!(map.remove_expired(0, Instant::FAR, usize::MAX, |_, _| ()), 600);
    assert!(map.is_empty());
}

#[test]
fn shards_share_the_flows_evenly() {
    let map = map(4, 200_000);
    for n in 0..100_000 {
        let hash = map.hash(&key(n));
        map.lock(map.shard_of(hash)).insert(hash, key(n), n, Instant::ZERO).expect("room");
    }
    for shard in map.stats().per_shard {
        assert!((24_000..26_000).contains(&shard.len), "{shard:?}");
    }
    let flows = map.snapshot();
    assert_eq!(flows.len(), 100_000);
    assert!(flows.is_sorted_by_key(|&(key, _)| key));
    assert!(flows.iter().all(|&(flow, n)| flow == key(n)));
}

#[test]
fn the_hash_depends_on_its_key() {
    let one = FlowMap::<u32>::new(FlowMapConfig { hash_key: [1, 2, 3, 4], ..FlowMapConfig::default() });
    let other = FlowMap::<u32>::new(FlowMapConfig { hash_key: [1, 2, 3, 5], ..FlowMapConfig::default() });
    assert_eq!(one.hash(&key(1)), one.hash(&key(1)));
    assert!((0..100).all(|n| one.hash(&key(n)) != other.hash(&key(n))));
}

#[test]
fn waiting_for_a_shard_is_timed() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    fn clock() -> u64 {
        NOW.fetch_add(1_000, Ordering::SeqCst)
    }
    let map = FlowMap::<u32>::new(FlowMapConfig { shards: 2, clock, ..FlowMapConfig::default() });
    drop(map.lock(0));
    assert_eq!(NOW.load(Ordering::SeqCst), 0, "the uncontended path reads no clock");
    let guard = map.lock(0);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| drop(map.lock(0)));
        drop(map.lock(1));
        while NOW.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        drop(guard);
        waiting.join().expect("no panic");
    });
    let stats = map.stats();
    assert_eq!((stats.per_shard[0].lock_wait_ns, stats.per_shard[1].lock_wait_ns), (1_000, 0));
}

#[test]
fn threads_on_any_shard_lose_nothing() {
    const EACH: u32 = if cfg!(miri) { 50 } else { 20_000 };
    for shards in [1, 3] {
        let map = map(shards, 4 * EACH as usize + 1_000);
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (map, start) = (&map, &start);
                scope.spawn(move || {
                    start.wait();
                    for n in (thread * EACH..).take(EACH as usize) {
                        let hash = map.hash(&key(n));
                        let mut shard = map.lock(map.shard_of(hash));
                        shard.insert(hash, key(n), n, Instant::ZERO).expect("room");
                        if n % 2 == 0 {
                            assert_eq!(shard.remove(hash, &key(n)), Some(n));
                        }
                    }
                });
            }
        });
        let total = map.stats().total;
        assert_eq!(map.len(), 2 * EACH as usize);
        assert_eq!(total.lookups, 6 * u64::from(EACH), "each insertion, and each second removal");
        assert!(map.snapshot().iter().all(|&(flow, n)| flow == key(n) && n % 2 == 1));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u32, u32),
    Remove(u32),
    Touch(u32),
    Expire(u64),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_an_ordered_map(
        steps in prop::collection::vec(
            prop_oneof![
                6 => (0_u32..80, any::<u32>()).prop_map(|(n, value)| Step::Insert(n, value)),
                3 => (0_u32..80).prop_map(Step::Remove),
                3 => (0_u32..80).prop_map(Step::Touch),
                1 => (0_u64..60).prop_map(Step::Expire),
            ],
            1..400,
        ),
        limit in 0_usize..70,
    ) {
        let map = map(1, limit);
        let mut twin: BTreeMap<FlowKey, (u32, u64)> = BTreeMap::new();
        for (now, step) in steps.into_iter().enumerate() {
            let now = now as u64;
            let at = Instant::from_millis(now);
            match step {
                Step::Insert(n, value) => {
                    let result = map.lock(0).insert(map.hash(&key(n)), key(n), value, at);
                    if twin.len() >= limit && !twin.contains_key(&key(n)) {
                        prop_assert_eq!(result, Err(TableFull));
                    } else {
                        let old = twin.insert(key(n), (value, now)).map(|(value, _)| value);
                        prop_assert_eq!(result, Ok(old));
                    }
                }
                Step::Remove(n) => {
                    let old = map.lock(0).remove(map.hash(&key(n)), &key(n));
                    prop_assert_eq!(old, twin.remove(&key(n)).map(|(value, _)| value));
                }
                Step::Touch(n) => {
                    let value = map.lock(0).touch(map.hash(&key(n)), &key(n), at).copied();
                    let mine = twin.get_mut(&key(n));
                    prop_assert_eq!(value, mine.map(|entry| { entry.1 = now; entry.0 }));
                }
                Step::Expire(age) => {
                    let limit = now.saturating_sub(age);
                    let mut gone = Vec::new();
                    map.remove_expired(0, Instant::from_millis(limit), usize::MAX, |key, value| gone.push((key, value)));
                    gone.sort_unstable();
                    let mut expected = Vec::new();
                    twin.retain(|&key, &mut (value, touched)| {
                        if touched < limit {
                            expected.push((key, value));
                        }
                        touched >= limit
                    });
                    prop_assert_eq!(gone, expected);
                }
            }
            prop_assert_eq!(map.len(), twin.len());
            map.lock(0).table().longest_probe();
        }
        let flows: Vec<_> = twin.into_iter().map(|(key, (value, _))| (key, value)).collect();
        prop_assert_eq!(map.snapshot(), flows);
    }
}
