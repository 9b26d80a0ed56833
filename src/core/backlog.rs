//! What an active has sent and this passive has no room for yet. An active that keeps to its window sends no more than a passive
//! may hold; one that does not loses its session.

use super::peer::Deferred;
use super::resync_target::Work;
use super::types::Record;
use std::collections::VecDeque;

/// What a record counts beside its payload: as much as it does for the sender's window.
const RECORD_BYTES: u64 = 64;
/// A window is exceeded by one frame at most, which is no longer than this on the wire.
const FRAME_BYTES: u64 = 9 << 20;

/// What something costs while it waits.
pub trait Cost {
    fn cost(&self) -> u64;
}

impl Cost for Record {
    fn cost(&self) -> u64 {
        self.payload.len() as u64 + RECORD_BYTES
    }
}

impl Cost for Deferred {
    fn cost(&self) -> u64 {
        match self {
            Deferred::Records(records) => records.iter().map(Cost::cost).sum(),
            Deferred::Question { crcs, .. } => crcs.len() as u64 * 4 + RECORD_BYTES,
        }
    }
}

impl Cost for Work {
    fn cost(&self) -> u64 {
        match self {
            Work::Content(record) | Work::Record(record) | Work::Part(record) => record.cost(),
            Work::Passed(_) | Work::Mark(_) | Work::End { .. } => RECORD_BYTES,
        }
    }
}

/// A queue that knows what it holds.
#[derive(Debug)]
pub struct Backlog<T> {
    queue: VecDeque<T>,
    bytes: u64,
}

impl<T> Default for Backlog<T> {
    fn default() -> Backlog<T> {
        Backlog { queue: VecDeque::new(), bytes: 0 }
    }
}

impl<T: Cost> Backlog<T> {
    pub fn push_back(&mut self, item: T) {
        self.bytes += item.cost();
        self.queue.push_back(item);
    }

    pub fn push_front(&mut self, item: T) {
        self.bytes += item.cost();
        self.queue.push_front(item);
    }

    pub fn pop_front(&mut self) -> Option<T> {
        let item = self.queue.pop_front()?;
        self.bytes -= item.cost();
        Some(item)
    }

    pub fn front(&self) -> Option<&T> {
        self.queue.front()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn into_items(self) -> impl Iterator<Item = T> {
        self.queue.into_iter()
    }

    /// Whether it holds more than an active that keeps to so many windows can have sent.
    pub fn exceeds(&self, window: u64, windows: u64) -> bool {
        self.bytes > windows * (window + FRAME_BYTES)
    }
}
