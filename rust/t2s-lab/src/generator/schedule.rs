//! When packets are due: one every `1 / rate` seconds, each the turn of the component that is furthest behind its
//! share.
//!
//! One train of evenly spaced packets, not one a component: schedules of their own would meet now and then (or always,
//! where their rates have a common divisor), and a packet would be late by what another one takes. A component that
//! cannot send when it is due owes the packet, or skips it where the peer's window is meant to forbid it; the others
//! keep their times.

/// Fraction bits of a time: 1/256 ns keeps a rate of 10 million packets/s right to 0.004 %.
const FRACTION: u32 = 8;

/// One component's part; times have [`FRACTION`] bits.
#[derive(Debug)]
struct Part {
    /// Time between two of its packets.
    interval: u64,
    /// When its next packet would be due by its own rate.
    next: u64,
    /// Packets that it owes, and since when the first.
    owed: u64,
    owed_since: u64,
}

/// The schedule of one generator; times are nanoseconds since the epoch.
#[derive(Debug)]
pub struct Schedule {
    interval: u64,
    next: u64,
    parts: Vec<Part>,
}

impl Schedule {
    /// `rate` packets a second, shared out by weight.
    pub fn new(rate: f64, weights: &[f64]) -> Self {
        let interval = |rate: f64| (1e9 * f64::from(1_u32 << FRACTION) / rate).max(1.0) as u64;
        let total: f64 = weights.iter().sum();
        let part = |&weight: &f64| {
            let interval = interval(rate * weight / total);
            Part { interval, next: interval, owed: 0, owed_since: 0 }
        };
        Self { interval: interval(rate), next: 0, parts: weights.iter().map(part).collect() }
    }

    /// When the next packet is due, and whose it is; `None` without components.
    #[inline]
    pub fn next(&self) -> Option<(u64, usize)> {
        let (part, _) = self.parts.iter().enumerate().min_by_key(|(_, part)| part.next)?;
        Some((self.next >> FRACTION, part))
    }

    /// The packet that was due next went out, as so many packets (a fragmented one takes several places), or was
    /// skipped.
    #[inline]
    pub fn advance(&mut self, part: usize, packets: u64) {
        self.next += self.interval * packets;
        self.parts[part].next += self.parts[part].interval * packets;
    }

    /// The packet that was due next cannot go out now and stays due.
    pub fn owe(&mut self, part: usize) {
        let due = self.next;
        self.advance(part, 1);
        let part = &mut self.parts[part];
        if part.owed == 0 {
            part.owed_since = due;
        }
        part.owed += 1;
    }

    /// Since when the component owes a packet, if it does.
    #[inline]
    pub fn owed(&self, part: usize) -> Option<u64> {
        let part = self.parts.get(part)?;
        (part.owed > 0).then_some(part.owed_since >> FRACTION)
    }

    /// The component sent what it owed longest, as so many packets.
    pub fn pay(&mut self, part: usize, packets: u64) {
        let place = &mut self.parts[part];
        let paid = packets.min(place.owed);
        place.owed -= paid;
        place.owed_since += place.interval * paid;
        self.advance(part, packets - paid);
    }

    /// Packets that were due before `end` and have not gone out.
    pub fn overdue(&self, end: u64) -> u64 {
        let owed: u64 = self.parts.iter().map(|part| part.owed).sum();
        owed + (end << FRACTION).saturating_sub(self.next).div_ceil(self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_evenly_spaced_and_shared_by_weight() {
        let mut schedule = Schedule::new(1e6, &[5.0, 3.0, 2.0]);
        let mut sent = [0_u64; 3];
        for n in 0..10_000 {
            let (due, part) = schedule.next().unwrap();
            assert_eq!(due, n * 1_000);
            sent[part] += 1;
            schedule.advance(part, 1);
            let shares = [5, 3, 2].map(|weight| (n + 1) * weight / 10);
            assert!(sent.iter().zip(shares).all(|(&a, b)| a.abs_diff(b) <= 1), "{sent:?} of {shares:?}");
        }
        assert_eq!(schedule.overdue(10_000_000), 0);
        assert_eq!(schedule.overdue(10_001_500), 2);
    }

    #[test]
    fn a_burst_takes_as_many_places_as_it_has_packets() {
        let mut schedule = Schedule::new(1e6, &[1.0, 1.0]);
        let (_, first) = schedule.next().unwrap();
        schedule.advance(first, 3);
        let order: Vec<_> = (0..4)
            .map(|_| {
                let next = schedule.next().unwrap();
                schedule.advance(next.1, 1);
                next
            })
            .collect();
        assert_eq!(order[..2], [(3_000, 1 - first), (4_000, 1 - first)]);
        assert_eq!(order[2].0, 5_000);
    }

    #[test]
    fn what_is_owed_stays_due_and_holds_up_nobody() {
        let mut schedule = Schedule::new(1e6, &[1.0, 1.0]);
        let (_, blocked) = schedule.next().unwrap();
        for n in 0..10 {
            let (due, part) = schedule.next().unwrap();
            assert_eq!(due, n * 1_000);
            if part == blocked { schedule.owe(part) } else { schedule.advance(part, 1) }
        }
        assert_eq!((schedule.owed(blocked), schedule.owed(1 - blocked), schedule.overdue(10_000)), (Some(0), None, 5));
        schedule.pay(blocked, 2);
        assert_eq!((schedule.owed(blocked), schedule.overdue(10_000)), (Some(4_000), 3));
        // More than was owed takes places to come.
        schedule.pay(blocked, 5);
        assert_eq!((schedule.owed(blocked), schedule.next().unwrap().0), (None, 12_000));
    }

    #[test]
    fn a_fraction_of_a_nanosecond_is_not_lost() {
        let mut schedule = Schedule::new(3e6, &[1.0]);
        for _ in 0..3_000_000 {
            schedule.advance(0, 1);
        }
        assert!(schedule.next().unwrap().0.abs_diff(1_000_000_000) < 5_000);
    }
}
