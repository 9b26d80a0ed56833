//! How far a catch-up or resync is, and when it will be over, judged by the last seconds alone.

use super::node::Node;
use super::peer::{Feed, Link, Peer, TargetStage};
use super::types::*;
use serde::Serialize;
use std::collections::VecDeque;

/// A look each so often, in ms, and so many are remembered: 5 s.
const LOOK_MS: u64 = 500;
const LOOKS: usize = 11;

/// What `status` shows of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Progress {
    pub what: What,
    /// Bytes done in this session.
    pub done_bytes: u64,
    /// Bytes in all, as far as is known now; none while they are being counted.
    pub total_bytes: Option<u64>,
    /// Bytes done in a second, over the last seconds; none at the beginning.
    pub bytes_per_s: Option<u64>,
    /// Seconds until nothing is left, if it goes on as in the last seconds; none where that is not known, or not in sight.
    pub left_s: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    CatchUp,
    Resync,
}

/// How much is done and left, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stand {
    what: What,
    done: u64,
    /// None while it is being counted.
    left: Option<u64>,
}

/// Stands of the last seconds.
#[derive(Debug, Default)]
pub struct Pace {
    looks: VecDeque<(Time, Stand)>,
}

impl Pace {
    fn look(&mut self, now: Time, stand: Option<Stand>) {
        let Some(stand) = stand else { return self.looks.clear() };
        // Another session, or the contents after the counting: what was before says nothing.
        if self.looks.back().is_some_and(|(_, s)| s.what != stand.what || s.done > stand.done) {
            self.looks.clear();
        }
        self.looks.push_back((now, stand));
        if self.looks.len() > LOOKS {
            self.looks.pop_front();
        }
    }

    fn is_due(&self, now: Time) -> bool {
        self.looks.back().is_none_or(|(at, _)| now.since_us(*at) >= LOOK_MS * 1000)
    }

    fn progress(&self, now: Time, stand: Stand) -> Progress {
        let before = self.looks.front().filter(|(at, s)| now.since_us(*at) >= LOOK_MS * 1000 && s.what == stand.what);
        let seconds = before.map_or(0.0, |(at, _)| now.since_us(*at) as f64 / 1e6);
        let bytes_per_s = before.map(|(_, s)| (stand.done.saturating_sub(s.done) as f64 / seconds) as u64);
        // New writes may come as fast as old ones go: what counts is how fast that which is left becomes less.
        let closing = before.and_then(|(_, s)| Some(s.left?.saturating_sub(stand.left?) as f64 / seconds));
        let left_s = match stand.left {
            Some(0) => Some(0.0),
            Some(left) => closing.filter(|c| *c >= 1.0).map(|c| left as f64 / c),
            None => None,
        };
        let total_bytes = stand.left.map(|left| stand.done.saturating_add(left));
        Progress { what: stand.what, done_bytes: stand.done, total_bytes, bytes_per_s, left_s }
    }
}

impl Node {
    pub(super) fn poll_pace(&mut self, node: NodeId) {
        let now = self.now;
        if self.peers[node.0 as usize].pace.is_due(now) {
            let stand = self.stand(&self.peers[node.0 as usize]);
            self.peers[node.0 as usize].pace.look(now, stand);
        }
    }

    pub(super) fn progress(&self, peer: &Peer, now: Time) -> Option<Progress> {
        self.stand(peer).map(|stand| peer.pace.progress(now, stand))
    }

    /// What is done and left in the session with a peer; none where nothing is to be caught up with.
    fn stand(&self, peer: &Peer) -> Option<Stand> {
        match &peer.link {
            Link::Source(source) => match &source.feed {
                Feed::Resync(pass) => {
                    let left = pass.left_bytes().saturating_add(self.log.payload_after(pass.base()));
                    let counted = !pass.is_counting();
                    Some(Stand { what: What::Resync, done: pass.acked, left: counted.then_some(left) })
                }
                Feed::Stream { .. } if source.gap_open => {
                    let contents = source.resync_sent.saturating_sub(source.resync_acked);
                    let left = contents.saturating_add(self.log.payload_after(source.streamed));
                    Some(Stand { what: What::Resync, done: source.resync_acked, left: Some(left) })
                }
                Feed::Stream { .. } if source.lags => {
                    let left = self.log.payload_after(peer.received);
                    Some(Stand { what: What::CatchUp, done: source.confirmed, left: Some(left) })
                }
                Feed::Stream { .. } | Feed::Preparing => None,
            },
            Link::Target(target) => match &target.stage {
                TargetStage::Resync(resync) => {
                    let done = resync.taken();
                    let left = target.resync_bytes.filter(|total| *total > 0).and_then(|t| t.checked_sub(done));
                    Some(Stand { what: What::Resync, done, left })
                }
                _ => None,
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stand(done: u64, left: u64) -> Stand {
        Stand { what: What::CatchUp, done, left: Some(left) }
    }

    #[test]
    fn the_time_left_is_of_the_last_seconds_and_unknown_where_nothing_moves() {
        let mut pace = Pace::default();
        let at = |ms: u64| Time(1_000_000 + ms * 1000);
        assert_eq!(pace.progress(at(0), stand(0, 1000)).left_s, None, "nothing is known at first");
        pace.look(at(0), Some(stand(0, 100_000)));
        let seen = pace.progress(at(1000), stand(10_000, 90_000));
        assert_eq!((seen.bytes_per_s, seen.left_s, seen.total_bytes), (Some(10_000), Some(9.0), Some(100_000)));
        // As much is written as is sent: it never ends, whatever the rate.
        let seen = pace.progress(at(1000), stand(10_000, 100_000));
        assert_eq!((seen.bytes_per_s, seen.left_s), (Some(10_000), None));
        // It was fast, and has come to a halt: after some seconds only that counts.
        (1..40).for_each(|i| pace.look(at(500 * i), Some(stand(10_000, 90_000))));
        let seen = pace.progress(at(20_000), stand(10_000, 90_000));
        assert_eq!((seen.bytes_per_s, seen.left_s), (Some(0), None));
        assert_eq!(pace.progress(at(20_000), stand(100_000, 0)).left_s, Some(0.0));
        // What is still being counted has no end in sight.
        let counting = Stand { left: None, ..stand(10_000, 0) };
        assert_eq!(
            (pace.progress(at(20_000), counting).left_s, pace.progress(at(20_000), counting).total_bytes),
            (None, None)
        );
        pace.look(at(20_000), Some(Stand { what: What::Resync, ..stand(0, 5) }));
        assert_eq!(pace.looks.len(), 1, "another kind of work begins anew");
    }
}
