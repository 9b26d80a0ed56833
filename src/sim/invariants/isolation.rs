//! Invariant 8: an active that waits for nobody answers at the speed of its own disk; and one that waits for peers gives each of
//! them up after `stall_ms` (C4, C10).

use super::{Violation, broken};
use crate::core::NodeId;

/// Since when a node's own storage is well and no peer is in sync with it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Isolation {
    alone_since: Option<u64>,
}

impl Isolation {
    /// The state of the active now: `waits` if a peer is in sync or about to be, or its own disk or process is impaired.
    pub fn note(&mut self, now: u64, waits: bool) {
        self.alone_since = if waits { None } else { self.alone_since.or(Some(now)) };
    }

    /// A request took so long, or is so old and not answered.
    pub fn check(&self, now: u64, node: NodeId, took_us: u64, limit_us: u64) -> Result<(), Violation> {
        let waited_for_nobody = self.alone_since.is_some_and(|since| now - since >= took_us);
        if waited_for_nobody && took_us > limit_us {
            let detail =
                format!("a request to {node:?}, which need not wait so long, took {took_us} µs (limit {limit_us})");
            return Err(broken("8 isolation", detail));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_alone_counts() {
        let mut isolation = Isolation::default();
        let slow = |i: &Isolation, now, took| i.check(now, NodeId(0), took, 100).is_err();
        isolation.note(0, true);
        assert!(!slow(&isolation, 500, 400));
        isolation.note(500, false);
        assert!(!slow(&isolation, 700, 400), "a part of it waited for a peer");
        assert!(slow(&isolation, 1000, 400));
        assert!(!slow(&isolation, 1000, 99));
        isolation.note(1000, true);
        assert!(!slow(&isolation, 1500, 400));
    }
}
