//! How long things took lately: histograms with eight buckets for each power of two, so a percentile is overstated by an eighth at most.

use super::types::*;
use serde::Serialize;

/// A figure covers the last interval that is over and the one under way: 10 to 20 s.
const INTERVAL_US: u64 = 10_000_000;
/// Buckets of a histogram: 0 to 7 µs one by one, then eight for each doubling, up to more than an hour.
const BUCKETS: usize = 240;

/// What took how long in the last interval. In µs, no less than the truth by more than an eighth, and `max` exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Latency {
    pub p50: u64,
    pub p95: u64,
    pub p99: u64,
    pub max: u64,
    /// How many were measured.
    pub count: u64,
}

/// Counts for one interval.
#[derive(Clone, Debug)]
struct Histogram {
    counts: Box<[u32; BUCKETS]>,
    max: u64,
}

/// The interval under way, and the one before it.
#[derive(Clone, Debug)]
pub struct Latencies {
    since: Time,
    current: Histogram,
    last: Histogram,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: Box::new([0; BUCKETS]), max: 0 }
    }
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { since: Time(0), current: Histogram::default(), last: Histogram::default() }
    }
}

/// The bucket of a duration.
fn bucket(us: u64) -> usize {
    if us < 8 {
        return us as usize;
    }
    let octave = 63 - us.leading_zeros() as usize;
    let eighth = (us >> (octave - 3)) as usize & 7;
    ((octave - 2) * 8 + eighth).min(BUCKETS - 1)
}

/// The longest duration that belongs to a bucket.
fn upper(bucket: usize) -> u64 {
    if bucket < 8 {
        return bucket as u64;
    }
    let (shift, eighth) = (bucket / 8 - 1, bucket as u64 % 8);
    ((8 + eighth + 1) << shift) - 1
}

impl Histogram {
    fn add(&mut self, us: u64) {
        let count = &mut self.counts[bucket(us)];
        *count = count.saturating_add(1);
        self.max = self.max.max(us);
    }

    fn clear(&mut self) {
        self.counts.fill(0);
        self.max = 0;
    }
}

impl Latencies {
    /// Something took so long.
    pub fn add(&mut self, now: Time, us: u64) {
        let age = now.since_us(self.since);
        if age >= INTERVAL_US {
            std::mem::swap(&mut self.current, &mut self.last);
            self.current.clear();
            if age >= 2 * INTERVAL_US {
                self.last.clear();
            }
            self.since = now;
        }
        self.current.add(us);
    }

    /// What was measured lately; none if nothing was.
    pub fn lately(&self, now: Time) -> Option<Latency> {
        let age = now.since_us(self.since);
        let none = Histogram::default();
        let (current, last) = match age {
            0..INTERVAL_US => (&self.current, &self.last),
            _ if age < 2 * INTERVAL_US => (&none, &self.current),
            _ => (&none, &none),
        };
        let of = |i: usize| u64::from(current.counts[i]) + u64::from(last.counts[i]);
        let (count, max) = ((0..BUCKETS).map(of).sum::<u64>(), current.max.max(last.max));
        let at = |per_cent: u64| {
            let rank = (count * per_cent).div_ceil(100);
            let mut seen = 0;
            let found = (0..BUCKETS).find(|i| {
                seen += of(*i);
                seen >= rank
            });
            found.map_or(max, upper).min(max)
        };
        (count > 0).then(|| Latency { p50: at(50), p95: at(95), p99: at(99), max, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_belongs_to_a_bucket_that_is_an_eighth_wide_at_most() {
        let mut before = 0;
        for us in (0..100_000).chain((17..42).map(|n| (1 << n) - 1)).chain((17..31).map(|n| 1 << n)) {
            let top = upper(bucket(us));
            if us < 1 << 31 {
                assert!(top >= us && top - us <= us / 8, "{us} is in the bucket up to {top}");
            }
            if us < 100_000 {
                assert!(bucket(us) == before || bucket(us) == before + 1, "no bucket is left out at {us}");
                before = bucket(us);
            }
        }
    }

    #[test]
    fn percentiles_are_of_the_last_interval() {
        let mut latencies = Latencies::default();
        let start = Time(50_000_000);
        assert_eq!(latencies.lately(start), None);
        (1..=100).for_each(|i| latencies.add(start, i * 100));
        let seen = latencies.lately(start).unwrap();
        assert_eq!((seen.count, seen.max), (100, 10_000));
        let near = |found: u64, truth: u64| found >= truth && found <= truth + truth / 8;
        assert!(near(seen.p50, 5000) && near(seen.p95, 9500) && near(seen.p99, 9900), "{seen:?}");
        // Still told of while the next interval is under way, and then forgotten.
        assert_eq!(latencies.lately(Time(start.0 + 15_000_000)), Some(seen));
        latencies.add(Time(start.0 + 12_000_000), 7);
        assert_eq!(latencies.lately(Time(start.0 + 12_000_000)).unwrap().count, 101);
        assert_eq!(latencies.lately(Time(start.0 + 31_000_000)).unwrap().count, 1);
        assert_eq!(latencies.lately(Time(start.0 + 90_000_000)), None);
    }
}
