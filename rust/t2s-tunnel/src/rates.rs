//! Bytes per second of each flow, from its counters at two questions.
//!
//! Nothing is kept on the packet path: whoever asks for flows remembers what they had at the question before. A rate is
//! the mean since that question, and since the flow's start at the first. A question within [`SHORTEST`] of the last
//! one gets that one's rates again, so that several askers do not cut each other's intervals to noise.
//!
//! It promises to forget a flow at the first question that does not see it.

use std::collections::HashMap;

use crate::worker::FlowRow;

/// Shortest interval that a rate is taken over, nanoseconds: some hundred iterations of a busy worker.
pub(crate) const SHORTEST: u64 = 500_000_000;

/// A flow at a question.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    age: u64,
    up: u64,
    down: u64,
    /// The rates that were answered there; none before the first.
    rates: Option<(f64, f64)>,
}

/// What flows had at the question before.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    /// By worker, protocol and id, which together no other flow ever has again.
    samples: HashMap<(usize, &'static str, u64), Sample>,
}

impl Rates {
    /// Fills the rates of all flows in, and remembers what they have now.
    pub(crate) fn fill(&mut self, rows: &mut [FlowRow]) {
        let mut samples = HashMap::with_capacity(rows.len());
        for row in rows {
            let key = (row.worker, row.protocol, row.id);
            let mut sample = self.samples.get(&key).copied().unwrap_or_default();
            let elapsed = row.age_ns.saturating_sub(sample.age);
            let rate = |now: u64, before: u64| {
                if elapsed == 0 { 0.0 } else { now.saturating_sub(before) as f64 * 1e9 / elapsed as f64 }
            };
            let fresh = || (rate(row.bytes_up, sample.up), rate(row.bytes_down, sample.down));
            let told = if elapsed >= SHORTEST { fresh() } else { sample.rates.unwrap_or_else(fresh) };
            if elapsed >= SHORTEST {
                sample = Sample { age: row.age_ns, up: row.bytes_up, down: row.bytes_down, rates: Some(told) };
            }
            (row.rate_up, row.rate_down) = told;
            samples.insert(key, sample);
        }
        self.samples = samples;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn row(id: u64, age_ns: u64, bytes_up: u64) -> FlowRow {
        let end = "192.0.2.1:80".parse().unwrap();
        FlowRow {
            worker: 0,
            id,
            protocol: "tcp",
            client: end,
            target: end,
            domain: None,
            state: None,
            bytes_up,
            bytes_down: bytes_up * 2,
            rate_up: 0.0,
            rate_down: 0.0,
            age_ns,
            connect_ns: 0,
            reply_ns: 0,
            first_byte_ns: 0,
        }
    }

    fn asked(rates: &mut Rates, mut row: FlowRow) -> (f64, f64) {
        rates.fill(std::slice::from_mut(&mut row));
        (row.rate_up, row.rate_down)
    }

    #[test]
    fn a_rate_is_the_mean_since_the_question_before() {
        let mut rates = Rates::default();
        assert_eq!(asked(&mut rates, row(1, 0, 0)), (0.0, 0.0));
        assert_eq!(asked(&mut rates, row(1, 2 * SECOND, 1_000)), (500.0, 1_000.0));
        assert_eq!(asked(&mut rates, row(1, 3 * SECOND, 4_000)), (3_000.0, 6_000.0));
        assert_eq!(asked(&mut rates, row(1, 5 * SECOND, 4_000)), (0.0, 0.0));
    }

    #[test]
    fn a_second_asker_hears_the_same() {
        let mut rates = Rates::default();
        assert_eq!(asked(&mut rates, row(1, SHORTEST / 2, 100)), (400.0, 800.0));
        assert_eq!(asked(&mut rates, row(1, SHORTEST, 1_000)), (2_000.0, 4_000.0));
        assert_eq!(asked(&mut rates, row(1, SHORTEST + 1, 9_000)), (2_000.0, 4_000.0));
        assert_eq!(asked(&mut rates, row(1, 2 * SHORTEST, 2_000)), (2_000.0, 4_000.0));
    }

    #[test]
    fn flows_that_are_gone_are_forgotten() {
        let mut rates = Rates::default();
        asked(&mut rates, row(1, SECOND, 100));
        asked(&mut rates, row(2, SECOND, 100));
        assert_eq!(rates.samples.len(), 1);
        rates.fill(&mut []);
        assert!(rates.samples.is_empty());
    }
}
