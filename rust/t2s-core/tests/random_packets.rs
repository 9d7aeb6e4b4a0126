//! Random lives of a stack on stable Rust: what the fuzz target explores, for a bounded time in every test run.

mod drive;

/// Lives of one run; about two seconds in a test build.
const LIVES: u64 = 1_000;

/// xorshift64* (Vigna 2016): enough to choose, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[test]
fn random_lives_keep_every_promise() {
    let mut met = [0; 8];
    for seed in 1..=LIVES {
        let mut random = Random(seed);
        let len = 64 + random.next() as usize % 8192;
        let mut data: Vec<u8> = std::iter::repeat_with(|| (random.next() >> 56) as u8).take(len).collect();
        // Most of them in small numbers, which means the same few clients, in-order segments and short payloads.
        if seed % 4 != 0 {
            for byte in &mut data {
                *byte &= 0x1f;
            }
        }
        println!("seed {seed}"); // shown when the life below fails
        let stats = drive::drive(&data);
        let reached = [
            stats.flows_opened,
            stats.tcp.established,
            stats.tcp.bytes_in,
            stats.tcp.out_of_order,
            stats.tcp.bytes_acked,
            stats.fragment_bytes_total,
            stats.datagrams_up,
            stats.datagrams_down,
        ];
        for (sum, count) in met.iter_mut().zip(reached) {
            *sum += count;
        }
    }
    println!("{met:?}");
    assert!(met.iter().all(|&sum| sum > 1_000), "random lives reach every part: {met:?}");
}
