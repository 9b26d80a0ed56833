//! When records were accepted, coarsely: enough to say a lag in seconds.

use super::types::*;
use std::collections::VecDeque;

/// Marks kept at most; older ones are thinned out.
const MARKS: usize = 1024;

/// Pairs of (time, newest record accepted by then).
#[derive(Debug, Default)]
pub struct AcceptTimes {
    marks: VecDeque<(Time, Lsn)>,
}

impl AcceptTimes {
    /// `lsn` is the newest record at `now`.
    pub fn mark(&mut self, now: Time, lsn: Lsn) {
        match self.marks.back_mut() {
            Some((_, last)) if *last >= lsn => return,
            // Within 10 ms the first mark stands for all: a lag is never said to be shorter than it is.
            Some((at, last)) if now.since_us(*at) < 10_000 => {
                *last = lsn;
                return;
            }
            _ => {}
        }
        self.marks.push_back((now, lsn));
        if self.marks.len() > MARKS {
            // Two become one: the earlier time with the later record, so that no lag is understated.
            let pairs: Vec<(Time, Lsn)> = self.marks.drain(..).collect();
            self.marks.extend(pairs.chunks(2).map(|p| (p[0].0, p[p.len() - 1].1)));
        }
    }

    /// Seconds since the first record after `received` was accepted; 0 if there is none.
    pub fn since(&self, received: Lsn, now: Time) -> f64 {
        let at = self.marks.partition_point(|(_, lsn)| *lsn <= received);
        self.marks.get(at).map_or(0.0, |(t, _)| now.since_us(*t) as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_is_counted_from_the_first_record_that_is_missing() {
        let mut times = AcceptTimes::default();
        times.mark(Time(1_000_000), Lsn(10));
        times.mark(Time(2_000_000), Lsn(20));
        assert_eq!(times.since(Lsn(20), Time(5_000_000)), 0.0);
        assert_eq!(times.since(Lsn(15), Time(5_000_000)), 3.0);
        assert_eq!(times.since(Lsn(3), Time(5_000_000)), 4.0);
    }

    #[test]
    fn marks_are_bounded() {
        let mut times = AcceptTimes::default();
        for i in 0..100_000u64 {
            times.mark(Time(i * 20_000), Lsn(i + 1));
        }
        assert!(times.marks.len() <= MARKS);
        assert_eq!(times.since(Lsn(100_000), Time(0)), 0.0);
    }
}
