//! A limit of bytes a second.

use crate::core::Time;

/// What was not used is saved up for this long, so that a loop that wakes a little late loses nothing.
const SAVED_US: u64 = 50_000;

/// A token bucket that may go into debt: a frame is never cut, and the next one waits until it is paid for.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    /// In millionths of a byte: what a microsecond brings is `bytes_per_second` of them.
    credit: i128,
    at: Time,
}

impl Pace {
    pub fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second: bytes_per_second.max(1), credit: 0, at: Time(0) }
    }

    /// Whether something may be sent now.
    pub fn open(&mut self, now: Time) -> bool {
        let most = i128::from(self.bytes_per_second) * i128::from(SAVED_US);
        let earned = i128::from(now.since_us(self.at)) * i128::from(self.bytes_per_second);
        self.credit = (self.credit + earned).min(most);
        self.at = self.at.max(now);
        self.credit >= 0
    }

    pub fn spend(&mut self, bytes: u64) {
        self.credit -= i128::from(bytes) * 1_000_000;
    }

    /// When something may be sent again.
    pub fn opens_at(&self) -> Time {
        let debt = (-self.credit).max(0) as u128;
        let wait_us = debt.div_ceil(u128::from(self.bytes_per_second));
        Time(self.at.0.saturating_add(u64::try_from(wait_us).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends frames as soon as they may go, and says when the last one went.
    fn send(pace: &mut Pace, from: Time, frames: &[u64]) -> Time {
        let mut now = from;
        for bytes in frames {
            while !pace.open(now) {
                assert!(pace.opens_at() > now);
                now = pace.opens_at();
            }
            pace.spend(*bytes);
        }
        now
    }

    #[test]
    fn in_the_long_run_the_rate_is_kept_whatever_the_frames() {
        for frame in [512, 4096, 1 << 20, 7 << 20] {
            let mut pace = Pace::new(1 << 20);
            let frames = vec![frame; (64 << 20) / frame as usize];
            let took = send(&mut pace, Time(5_000_000), &frames).since_us(Time(5_000_000)) as f64 / 1e6;
            // The last one goes when those before it are paid for.
            let due = (frame * (frames.len() as u64 - 1)) as f64 / (1 << 20) as f64;
            assert!((due - 0.06..due + 0.01).contains(&took), "{frame}: {took} s, not {due} s");
        }
    }

    #[test]
    fn what_was_not_used_is_not_saved_up_for_long() {
        let mut pace = Pace::new(1_000_000);
        assert!(pace.open(Time(3_600_000_000)));
        pace.spend(150_000);
        assert!(!pace.open(Time(3_600_000_000)));
        assert_eq!(pace.opens_at(), Time(3_600_100_000));
        assert!(pace.open(Time(3_600_100_000)));
    }
}
