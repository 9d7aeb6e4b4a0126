//! The pool against a naive twin, under threads, at its ceiling, and at the end of its life.

use std::sync::Barrier;
use std::sync::mpsc;

use proptest::prelude::*;

use super::memory::CountedMemory;
use super::*;

const MIB: usize = 1024 * 1024;

fn pool(ceiling_bytes: usize, cache: u16) -> Pool {
    Pool::new(PoolConfig { ceiling_bytes, cache, ..PoolConfig::default() })
}

#[test]
fn a_buffer_goes_round() {
    let pool = pool(16 * MIB, 64);
    let mut cache = pool.cache();
    let mut buf = cache.alloc(1_500, 128).expect("room");
    assert_eq!((buf.len(), buf.headroom(), buf.capacity()), (0, 128, 2_048));
    assert_eq!(buf.append(b"payload"), 7);
    buf.prepend(3).expect("headroom").copy_from_slice(b"ip ");
    assert_eq!(buf.as_slice(), b"ip payload");
    assert_eq!(pool.stats().live_bytes, 2_048);
    cache.free(buf);
    let stats = pool.stats();
    assert_eq!((stats.buffers_allocated, stats.buffers_freed, stats.grow_stalls, stats.live_bytes), (1, 1, 1, 0));
}

#[test]
fn the_window_never_leaves_the_block() {
    let pool = pool(16 * MIB, 4);
    let mut buf = pool.cache().alloc(256, 100).expect("room");
    assert_eq!(buf.spare_mut().len(), 156);
    assert!(buf.spare_mut().iter().all(|&byte| byte == 0), "fresh memory is zeroed");
    assert!(!buf.set_len(157));
    assert!(buf.set_len(156));
    assert_eq!((buf.tailroom(), buf.append(b"x")), (0, 0));
    assert!(buf.prepend(101).is_none());
    assert_eq!(buf.prepend(100).expect("headroom").len(), 100);
    assert_eq!((buf.len(), buf.headroom()), (256, 0));
    buf.advance(1_000);
    assert_eq!((buf.len(), buf.headroom(), buf.tailroom()), (0, 256, 0));
    buf.grow(1);
    assert!(buf.is_empty());
    buf.reset(usize::MAX);
    assert_eq!((buf.headroom(), buf.as_slice()), (256, &[][..]));
    buf.reset(0);
    buf.grow(usize::MAX);
    assert_eq!(buf.len(), 256);
    buf.truncate(usize::MAX);
    buf.truncate(10);
    assert_eq!((buf.len(), buf.tailroom()), (10, 246));
}

#[test]
fn classes_hold_what_they_promise() {
    let pool = pool(64 * MIB, 8);
    let mut cache = pool.cache();
    for len in (0..=70_000).step_by(13).chain(CLASSES).chain(CLASSES.map(|size| size + 1)) {
        let fits = CLASSES.iter().position(|&size| size >= len);
        match (fits, cache.alloc(len, 0)) {
            (Some(class), Ok(buf)) => {
                assert_eq!((buf.class(), buf.capacity()), (class, CLASSES[class]));
                cache.free(buf);
            }
            (None, Err(PoolExhausted)) => {}
            (_, result) => panic!("{len} bytes: {result:?}"),
        }
    }
    assert!(cache.alloc(0, 70_000).is_err(), "headroom alone can be too much");
    let buf = cache.alloc(0, 300).expect("room");
    assert_eq!((buf.class(), buf.headroom()), (1, 300));
}

#[test]
fn the_ceiling_refuses_and_counts() {
    for cache_size in [0, 1, 64] {
        let pool = pool(MIB, cache_size);
        let mut cache = pool.cache();
        let mut held = Vec::new();
        while let Ok(buf) = cache.alloc(2_000, 0) {
            held.push(buf);
        }
        assert_eq!(held.len(), 512, "four slabs of 128");
        assert!(cache.alloc(2_000, 0).is_err() && cache.alloc(10, 0).is_err());
        let stats = pool.stats();
        assert_eq!((stats.refused, stats.heap_bytes, stats.live_bytes), (3, MIB, MIB));
        held.drain(..).for_each(|buf| cache.free(buf));
        assert!(cache.alloc(2_000, 0).is_ok(), "freed memory serves again");
        assert_eq!(pool.stats().heap_peak_bytes, MIB);
    }
}

#[test]
fn at_the_ceiling_a_class_gets_what_another_leaves_idle() {
    let pool = pool(2 * MIB, 16);
    let mut cache = pool.cache();
    let held: Vec<_> = std::iter::from_fn(|| cache.alloc(2_000, 0).ok()).collect();
    assert_eq!(held.len(), 1_024);
    for buf in held {
        cache.free(buf);
    }
    cache.flush();
    let large = cache.alloc(60_000, 0).expect("the idle slabs of the small class make room");
    assert!(pool.stats().heap_bytes <= 2 * MIB);
    cache.free(large);
    assert_eq!(pool.stats().live_bytes, 0);
}

#[test]
fn idle_memory_goes_back_after_two_quiet_intervals() {
    let pool = pool(64 * MIB, 64);
    let mut cache = pool.cache();
    let burst = |cache: &mut PoolCache| {
        let held: Vec<_> = (0..10_000).map(|_| cache.alloc(2_000, 0).expect("room")).collect();
        for buf in held {
            cache.free(buf);
        }
    };
    burst(&mut cache);
    let peak = pool.stats().heap_bytes;
    assert!(peak >= 10_000 * 2_048);
    pool.give_back();
    pool.give_back();
    assert_eq!(pool.stats().heap_bytes, peak, "the burst may come again");
    burst(&mut cache);
    let misses = pool.stats().grow_stalls;
    (0..4).for_each(|_| pool.give_back());
    assert!(pool.stats().heap_bytes < peak / 10, "only slabs of the cached buffers stay: {:?}", pool.stats());
    cache.flush();
    (0..4).for_each(|_| pool.give_back());
    assert_eq!(pool.stats().heap_bytes, 0);
    burst(&mut cache);
    let stats = pool.stats();
    assert_eq!((stats.heap_bytes, stats.grow_stalls), (peak, 2 * misses));
}

#[test]
fn a_busy_pool_keeps_its_working_set() {
    let pool = pool(64 * MIB, 8);
    let mut cache = pool.cache();
    let mut held = Vec::new();
    for round in 0..50 {
        held.extend((0..1_000).map(|_| cache.alloc(2_000, 0).expect("room")));
        cache.preallocate();
        held.drain(..).for_each(|buf| cache.free(buf));
        cache.flush();
        pool.give_back();
        if round == 5 {
            assert_eq!((pool.stats().grow_stalls, pool.stats().preallocated_slabs), (8, 1));
        }
    }
    let stats = pool.stats();
    assert_eq!((stats.grow_stalls, stats.preallocated_slabs), (8, 1), "what each interval needs is never given back");
}

#[test]
fn live_buffers_gather_so_that_slabs_empty() {
    let pool = pool(256 * MIB, 16);
    let mut cache = pool.cache();
    let mut held: Vec<_> = (0..40_000).map(|_| cache.alloc(2_000, 0).expect("room")).collect();
    // Every 400th buffer survives the burst, spread over all slabs; then the survivors are replaced one by one.
    let mut n = 0;
    let mut survivors: Vec<_> = held
        .drain(..)
        .filter_map(|buf| {
            n += 1;
            if n % 400 == 0 {
                Some(buf)
            } else {
                cache.free(buf);
                None
            }
        })
        .collect();
    cache.flush();
    (0..4).for_each(|_| pool.give_back());
    assert!(pool.stats().heap_bytes >= 100 * 128 * 1024, "each survivor keeps its slab");
    let fresh: Vec<_> = (0..100).map(|_| cache.alloc(2_000, 0).expect("room")).collect();
    survivors.drain(..).for_each(|buf| cache.free(buf));
    cache.flush();
    (0..4).for_each(|_| pool.give_back());
    let stats = pool.stats();
    assert_eq!(stats.live_buffers, 100);
    assert_eq!(stats.heap_bytes, 256 * 1024, "{stats:?}");
    drop(fresh);
}

#[test]
fn between_turns_the_pool_grows_before_anything_waits() {
    static MEMORY: CountedMemory = CountedMemory::new(usize::MAX);
    for cache_size in [0, 64] {
        let pool = Pool::new(PoolConfig { memory: &MEMORY, cache: cache_size, ..PoolConfig::default() });
        let mut cache = pool.cache();
        cache.preallocate();
        assert_eq!(MEMORY.mapped(), 0, "nothing was ever needed");
        let mut held = Vec::new();
        for _ in 0..100 {
            held.extend((0..64).map(|_| cache.alloc(2_000, 0).expect("room")));
            cache.preallocate();
        }
        let stats = pool.stats();
        assert_eq!(
            (stats.grow_stalls, stats.preallocated_slabs),
            (1, 50),
            "6,400 buffers fill 50 slabs, and one is spare"
        );
        assert_eq!(MEMORY.mapped(), 51);
        held.drain(..).for_each(|buf| cache.free(buf));
        for _ in 0..1_000 {
            let buf = cache.alloc(2_000, 0).expect("room");
            cache.preallocate();
            cache.free(buf);
        }
        assert_eq!(pool.stats().preallocated_slabs, 50, "there is plenty");
        cache.flush();
        pool.reclaim();
        assert_eq!((pool.stats().heap_bytes, MEMORY.mapped()), (0, 0));
    }
}

#[test]
fn what_was_mapped_ahead_makes_room_at_the_ceiling() {
    let pool = pool(2_300_000, 64);
    let mut cache = pool.cache();
    let small: Vec<_> = (0..65).map(|_| cache.alloc(2_000, 0).expect("room")).collect();
    assert!(cache.preallocate() && !cache.preallocate());
    assert_eq!((pool.stats().heap_bytes, pool.stats().preallocated_slabs), (MIB / 2, 1));
    let large: Vec<_> = (0..16).map(|_| cache.alloc(60_000, 0).expect("the spare slab makes room")).collect();
    assert_eq!(pool.stats().heap_bytes, memory::slab_bytes(1) + 2 * memory::slab_bytes(3));
    (0..CLASSES.len()).for_each(|_| assert!(!cache.preallocate(), "no slab of any class would fit beside it"));
    let stats = pool.stats();
    assert_eq!((stats.grow_stalls, stats.preallocated_slabs, stats.refused), (3, 1, 0));
    small.into_iter().chain(large).for_each(|buf| cache.free(buf));
    cache.flush();
    pool.reclaim();
    assert_eq!(pool.stats().heap_bytes, 0);
}

#[test]
fn a_spare_slab_goes_when_nobody_has_needed_it() {
    let pool = pool(64 * MIB, 8);
    let mut cache = pool.cache();
    let held: Vec<_> = (0..128).map(|_| cache.alloc(2_000, 0).expect("room")).collect();
    assert!(cache.preallocate());
    pool.give_back();
    assert_eq!(pool.stats().heap_bytes, MIB / 2, "the last interval had use for it");
    pool.give_back();
    assert_eq!(pool.stats().heap_bytes, MIB / 4, "this one had not");
    for buf in held {
        cache.free(buf);
    }
    cache.flush();
    (0..3).for_each(|_| pool.give_back());
    assert_eq!(pool.stats().heap_bytes, 0);
}

#[test]
fn growing_ahead_without_memory_refuses_nothing() {
    static MEMORY: CountedMemory = CountedMemory::new(1);
    let pool = Pool::new(PoolConfig { memory: &MEMORY, ..PoolConfig::default() });
    let mut cache = pool.cache();
    let held: Vec<_> = (0..1_000).map(|_| cache.alloc(100, 0).expect("room")).collect();
    assert!(cache.preallocate());
    let stats = pool.stats();
    assert_eq!((MEMORY.refused(), stats.refused, stats.preallocated_slabs, stats.heap_bytes), (1, 0, 0, MIB / 4));
    for buf in held {
        cache.free(buf);
    }
}

#[test]
fn threads_that_preallocate_stay_below_the_ceiling() {
    const ROUNDS: usize = if cfg!(miri) { 5 } else { 300 };
    let pool = pool(4 * MIB, 16);
    std::thread::scope(|scope| {
        for thread in 0..3_usize {
            let pool = &pool;
            scope.spawn(move || {
                let mut cache = pool.cache();
                let mut held = Vec::new();
                for round in 0..ROUNDS {
                    let len = [100, 2_000, 9_000, 60_000][(round + thread) % 4];
                    for _ in 0..200 {
                        held.extend(cache.alloc(len, 0));
                        cache.preallocate();
                    }
                    assert!(pool.stats().heap_peak_bytes <= 4 * MIB);
                    held.drain(..).for_each(|buf| cache.free(buf));
                    if round % 3 == 0 {
                        cache.give_back();
                    }
                }
            });
        }
    });
    let stats = pool.stats();
    assert!(stats.refused > 0 && stats.preallocated_slabs > 0, "{stats:?}");
    pool.reclaim();
    assert_eq!((pool.stats().heap_bytes, pool.stats().live_bytes), (0, 0));
}

#[test]
fn a_system_without_memory_is_a_refusal() {
    static MEMORY: CountedMemory = CountedMemory::new(2);
    let pool = Pool::new(PoolConfig { memory: &MEMORY, cache: 4, ..PoolConfig::default() });
    let mut cache = pool.cache();
    let small = cache.alloc(100, 0).expect("room");
    let large = cache.alloc(60_000, 0).expect("room");
    assert!(cache.alloc(2_000, 0).is_err());
    let stats = pool.stats();
    assert_eq!((stats.refused, stats.grow_stalls), (1, 2));
    drop((small, large, cache));
    pool.reclaim();
    assert_eq!((pool.stats().heap_bytes, MEMORY.mapped()), (0, 0));
}

#[test]
fn buffers_outlive_every_handle_and_take_the_memory_with_them() {
    static MEMORY: CountedMemory = CountedMemory::new(usize::MAX);
    for cache_size in [0, 4, 64] {
        let pool = Pool::new(PoolConfig { memory: &MEMORY, cache: cache_size, ..PoolConfig::default() });
        let mut cache = pool.cache();
        let mut held: Vec<_> = (0..1_000).map(|n| cache.alloc([100, 2_000, 9_000][n % 3], 0).expect("room")).collect();
        while cache.preallocate() {}
        assert!(pool.stats().preallocated_slabs > 0);
        held.drain(500..).for_each(|buf| cache.free(buf));
        drop(pool);
        drop(cache);
        assert!(MEMORY.mapped() > 0);
        let keep = held.pop().expect("500 are held");
        std::thread::spawn(move || drop(held)).join().expect("no panic");
        assert_eq!(MEMORY.mapped(), 1, "one buffer keeps one slab");
        assert!(keep.as_slice().is_empty());
        drop(keep);
        assert_eq!(MEMORY.mapped(), 0);
    }
}

#[test]
fn a_dropped_buffer_is_not_lost() {
    let pool = pool(MIB, 16);
    let mut cache = pool.cache();
    for _ in 0..10 {
        let held: Vec<_> = std::iter::from_fn(|| cache.alloc(2_000, 0).ok()).collect();
        assert_eq!(held.len(), 512);
        drop(held);
    }
    let stats = pool.stats();
    assert_eq!((stats.buffers_allocated, stats.buffers_freed, stats.live_bytes), (5_120, 5_120, 0));
}

#[test]
fn a_buffer_of_another_pool_goes_home() {
    let (one, two) = (pool(MIB, 4), pool(MIB, 4));
    let (mut first, mut second) = (one.cache(), two.cache());
    second.free(first.alloc(100, 0).expect("room"));
    assert_eq!((one.stats().live_bytes, two.stats().buffers_freed), (0, 0));
    drop((first, one));
    assert_eq!(two.stats().heap_bytes, 0);
    assert!(second.alloc(100, 0).is_ok());
}

#[test]
fn threads_hand_buffers_on_without_loss() {
    const ROUNDS: usize = if cfg!(miri) { 20 } else { 2_000 };
    for cache_size in [0, 3, 64] {
        let pool = pool(64 * MIB, cache_size);
        let (sender, receiver) = mpsc::sync_channel::<Buf>(128);
        std::thread::scope(|scope| {
            for thread in 0..3_u8 {
                let (sender, pool) = (sender.clone(), &pool);
                scope.spawn(move || {
                    let mut cache = pool.cache();
                    for round in 0..ROUNDS {
                        cache.preallocate();
                        let len = [64, 1_500, 9_000, 65_000][(round + thread as usize) % 4];
                        let mut buf = cache.alloc(len, 0).expect("room");
                        buf.grow(len);
                        buf.as_mut_slice().iter_mut().step_by(61).for_each(|byte| *byte = thread + 1);
                        match round % 5 {
                            0 => cache.free(buf),
                            1 => drop(buf),
                            _ => sender.send(buf).expect("the reader lives"),
                        }
                    }
                });
            }
            drop(sender);
            let pool = &pool;
            scope.spawn(move || {
                let mut cache = pool.cache();
                for (n, buf) in receiver.into_iter().enumerate() {
                    let first = buf.as_slice()[0];
                    assert!((1..=3).contains(&first));
                    assert!(buf.as_slice().iter().step_by(61).all(|&byte| byte == first), "one owner at a time");
                    if n % 7 == 0 { drop(buf) } else { cache.free(buf) }
                }
            });
            scope.spawn(move || {
                for _ in 0..ROUNDS / 10 {
                    pool.give_back();
                    let stats = pool.stats();
                    assert!(stats.heap_bytes <= stats.heap_peak_bytes && stats.heap_peak_bytes <= 64 * MIB);
                    std::thread::yield_now();
                }
            });
        });
        let stats = pool.stats();
        assert_eq!((stats.buffers_allocated, stats.buffers_freed), (3 * ROUNDS as u64, 3 * ROUNDS as u64));
        assert_eq!((stats.live_bytes, stats.live_buffers, stats.refused), (0, 0, 0));
        pool.reclaim();
        assert_eq!(pool.stats().heap_bytes, 0);
    }
}

#[test]
fn the_last_handle_may_go_while_buffers_do() {
    static MEMORY: CountedMemory = CountedMemory::new(usize::MAX);
    for _ in 0..if cfg!(miri) { 3 } else { 300 } {
        let pool = Pool::new(PoolConfig { memory: &MEMORY, cache: 2, ..PoolConfig::default() });
        let mut cache = pool.cache();
        let mut held: Vec<_> = (0..24).map(|_| cache.alloc(60_000, 0).expect("room")).collect();
        assert!(cache.preallocate());
        let other = held.split_off(12);
        let start = Barrier::new(3);
        std::thread::scope(|scope| {
            let start = &start;
            for bufs in [held, other] {
                scope.spawn(move || {
                    start.wait();
                    drop(bufs);
                });
            }
            start.wait();
            drop((pool, cache));
        });
        assert_eq!(MEMORY.mapped(), 0);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Alloc { len: usize, headroom: usize },
    Free(usize),
    Drop(usize),
    Flush,
    Preallocate,
    GiveBack,
    Reclaim,
    Write { at: usize, byte: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let len =
        prop_oneof![4 => 0_usize..300, 4 => 300_usize..2_100, 2 => 2_100_usize..12_000, 1 => 12_000_usize..70_000];
    prop_oneof![
        12 => (len, 0_usize..200).prop_map(|(len, headroom)| Step::Alloc { len, headroom }),
        8 => any::<usize>().prop_map(Step::Free),
        1 => any::<usize>().prop_map(Step::Drop),
        1 => Just(Step::Flush),
        3 => Just(Step::Preallocate),
        1 => Just(Step::GiveBack),
        1 => Just(Step::Reclaim),
        4 => (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Step::Write { at, byte }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, ..ProptestConfig::default() })]

    /// The twin: each buffer is a `Vec` of its own. Contents stay apart, counters agree, the ceiling holds.
    #[test]
    fn behaves_like_separate_vectors(
        steps in prop::collection::vec(step(), 1..if cfg!(miri) { 60 } else { 400 }),
        cache_size in 0_u16..20,
    ) {
        let ceiling = 3 * MIB;
        let pool = pool(ceiling, cache_size);
        let mut cache = pool.cache();
        let mut held: Vec<(Buf, Vec<u8>)> = Vec::new();
        let (mut allocs, mut frees, mut refusals) = (0, 0, 0);
        for step in steps {
            match step {
                Step::Alloc { len, headroom } => {
                    if let Ok(mut buf) = cache.alloc(len, headroom) {
                        prop_assert!(buf.capacity() >= len.max(headroom));
                        prop_assert_eq!((buf.len(), buf.headroom()), (0, headroom));
                        buf.grow(usize::MAX);
                        buf.as_mut_slice().fill(held.len() as u8);
                        let twin = buf.as_slice().to_vec();
                        held.push((buf, twin));
                        allocs += 1;
                    } else {
                        refusals += 1;
                        let too_large = len.max(headroom) > CLASSES[3];
                        prop_assert!(too_large || pool.stats().heap_bytes + MIB > ceiling, "refused below the ceiling");
                    }
                }
                Step::Free(n) if !held.is_empty() => {
                    let (buf, twin) = held.swap_remove(n % held.len());
                    prop_assert_eq!(buf.as_slice(), &twin[..]);
                    cache.free(buf);
                    frees += 1;
                }
                Step::Drop(n) if !held.is_empty() => {
                    held.swap_remove(n % held.len());
                    frees += 1;
                }
                Step::Write { at, byte } if !held.is_empty() => {
                    let n = at % held.len();
                    let (buf, twin) = &mut held[n];
                    if !twin.is_empty() {
                        let place = at % twin.len();
                        buf.as_mut_slice()[place] = byte;
                        twin[place] = byte;
                    }
                }
                Step::Free(_) | Step::Drop(_) | Step::Write { .. } => {}
                Step::Flush => cache.flush(),
                Step::Preallocate => drop(cache.preallocate()),
                Step::GiveBack => pool.give_back(),
                Step::Reclaim => pool.reclaim(),
            }
            let stats = pool.stats();
            let live: usize = held.iter().map(|(buf, _)| buf.capacity()).sum();
            prop_assert_eq!((stats.buffers_allocated, stats.buffers_freed, stats.refused), (allocs, frees, refusals));
            prop_assert_eq!((stats.live_bytes, stats.live_buffers), (live, held.len()));
            prop_assert!(live <= stats.heap_bytes && stats.heap_bytes <= ceiling);
        }
        for (buf, twin) in &held {
            prop_assert_eq!(buf.as_slice(), &twin[..]);
        }
        drop(held);
        drop(cache);
        pool.reclaim();
        prop_assert_eq!((pool.stats().live_bytes, pool.stats().heap_bytes), (0, 0));
    }
}
