//! The I/Os of a log that are under way, and what they make of its two watermarks: written and durable (L2, L4).
//!
//! Batches may be completed in any order. They count in that of their records: what a crash leaves behind one that is torn is no part of
//! the chain, and nothing of it was acknowledged. A batch written stable says nothing of those before it; a flush covers what was written
//! when it began.

use super::types::*;
use crate::format::ring::BatchEntry;
use std::collections::VecDeque;

/// Names an I/O of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIo(u64);

/// See the module.
#[derive(Debug, Default)]
pub struct Flights {
    started: u64,
    /// In the order of their records, from the first one on that is not written.
    writes: VecDeque<Write>,
    flush: Option<Flush>,
    /// What is written and not durable, oldest first.
    stretches: VecDeque<Stretch>,
}

#[derive(Debug)]
struct Write {
    io: LogIo,
    entry: BatchEntry,
    stable: bool,
    began: Time,
    /// Done, but one before it is not.
    landed: bool,
}

#[derive(Debug)]
struct Flush {
    io: LogIo,
    covers: Lsn,
    began: Time,
}

/// Batches of one kind that follow each other.
#[derive(Debug)]
struct Stretch {
    last: Lsn,
    bytes: u64,
    /// Written stable: it waits only for what is before it.
    stable: bool,
    since: Time,
}

impl Flights {
    fn next_io(&mut self) -> LogIo {
        self.started += 1;
        LogIo(self.started)
    }

    /// A batch is being written.
    pub fn write(&mut self, entry: BatchEntry, stable: bool, began: Time) -> LogIo {
        let io = self.next_io();
        self.writes.push_back(Write { io, entry, stable, began, landed: false });
        io
    }

    /// A flush has begun; all up to `covers` is written.
    pub fn flush(&mut self, covers: Lsn, began: Time) -> LogIo {
        assert!(self.flush.is_none(), "one flush at a time");
        let io = self.next_io();
        self.flush = Some(Flush { io, covers, began });
        io
    }

    /// An I/O is over, well or not: when it began, and for a flush what it has covered.
    ///
    /// # Panics
    /// If it is not under way: the driver answers each once.
    pub fn done(&mut self, io: LogIo) -> (Time, Option<Lsn>) {
        if let Some(flush) = self.flush.take_if(|f| f.io == io) {
            return (flush.began, Some(flush.covers));
        }
        let write = self.writes.iter_mut().find(|w| w.io == io && !w.landed);
        let write = write.expect("an I/O of the log that is under way");
        write.landed = true;
        (write.began, None)
    }

    /// The next batch that is written, as are all before it.
    pub fn next_written(&mut self) -> Option<BatchEntry> {
        self.writes.front().filter(|w| w.landed)?;
        let write = self.writes.pop_front()?;
        let (last, bytes) = (write.entry.last(), write.entry.bytes);
        let covers = self.flush.as_ref().map(|f| f.covers);
        match self.stretches.back_mut() {
            // What a flush under way covers stays apart from what it does not.
            Some(s) if s.stable == write.stable && covers.is_none_or(|c| s.last > c) => {
                s.last = last;
                s.bytes += bytes;
            }
            _ => self.stretches.push_back(Stretch { last, bytes, stable: write.stable, since: write.began }),
        }
        Some(write.entry)
    }

    /// The next position that is durable, where a flush has covered all up to `covered`.
    pub fn next_durable(&mut self, covered: Lsn) -> Option<Lsn> {
        self.stretches.front().filter(|s| s.stable || s.last <= covered)?;
        self.stretches.pop_front().map(|s| s.last)
    }

    /// Writes under way that nobody knows to be done.
    pub fn writing(&self) -> usize {
        self.writes.iter().filter(|w| !w.landed).count()
    }

    pub fn is_flushing(&self) -> bool {
        self.flush.is_some()
    }

    /// Something is under way.
    pub fn is_busy(&self) -> bool {
        self.flush.is_some() || !self.writes.is_empty()
    }

    /// The batches under way, oldest first.
    pub fn entries(&self) -> impl Iterator<Item = &BatchEntry> {
        self.writes.iter().map(|w| &w.entry)
    }

    /// Whether a batch that is written stable now is durable once all before it is written.
    pub fn may_be_stable(&self) -> bool {
        let covers = self.flush.as_ref().map_or(Lsn(0), |f| f.covers);
        self.stretches.iter().all(|s| s.stable || s.last <= covers) && self.writes.iter().all(|w| w.stable)
    }

    /// Written bytes that only a flush makes durable.
    pub fn unstable_bytes(&self) -> u64 {
        self.stretches.iter().filter(|s| !s.stable).map(|s| s.bytes).sum()
    }

    /// Since when there are some.
    pub fn unstable_since(&self) -> Option<Time> {
        self.stretches.iter().find(|s| !s.stable).map(|s| s.since)
    }

    /// Nothing that was written counts any more.
    pub fn forget(&mut self) {
        assert!(!self.is_busy());
        self.stretches.clear();
    }

    /// The log has failed: what is still under way will be of no use.
    pub fn give_up_landed(&mut self) {
        self.writes.retain(|w| !w.landed);
    }
}
