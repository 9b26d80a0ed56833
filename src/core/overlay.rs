//! What a node has accepted and not yet applied to its stores: reads see it (S2), applying takes from it (S3).
//!
//! The same records twice: a queue in lsn order, from which rounds of apply and peers are fed, and per volume a
//! *view* that shows the newest version of every byte, from which reads are answered. The view holds slices of the
//! queue's payloads, so it costs no bytes of data. Overwrites within one round reach the store once.

use super::extents::{RangeMap, Sliceable};
use super::types::*;
use crate::buf::Payload;
use crate::format::batch;
use std::collections::VecDeque;

/// Bytes that a queued record costs beside its payload, about: the record itself and its ranges in the view. Counted so
/// that a flood of records without payload is bounded too.
pub const RECORD_OVERHEAD_BYTES: u64 = 256;

/// Adjacent data is merged into one I/O up to this many bytes. A longer payload stays one I/O.
const MERGE_BYTES: u64 = 1 << 20;

/// Most buffers in one I/O: Linux refuses more than 1024 in a vectored write.
const MERGE_BUFS: usize = 1024;

/// The newest version of a range.
#[derive(Clone, Debug)]
struct Version {
    lsn: Lsn,
    bytes: Bytes,
}

#[derive(Clone, Debug)]
enum Bytes {
    Data(Payload),
    Zero { discard: bool },
}

impl Version {
    fn of(record: &Record) -> Version {
        let bytes = match record.kind {
            Kind::Write => Bytes::Data(record.payload.clone()),
            Kind::Zeroes => Bytes::Zero { discard: false },
            Kind::Discard => Bytes::Zero { discard: true },
        };
        Version { lsn: record.lsn, bytes }
    }
}

impl Sliceable for Version {
    fn slice(&self, at: u64, length: u64) -> Version {
        let bytes = match &self.bytes {
            // No truncation: both are within a payload's length, which is a usize.
            Bytes::Data(payload) => Bytes::Data(payload.slice(at as usize, length as usize)),
            zero => zero.clone(),
        };
        Version { lsn: self.lsn, bytes }
    }
}

/// How to answer a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPlan {
    /// In order, covering the range exactly; none is empty.
    pub parts: Vec<ReadPart>,
    /// The newest record that the answer shows; 0 if it comes from the store alone. In sync mode the read waits until
    /// this record may complete.
    pub newest: Lsn,
}

/// A piece of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadPart {
    Data(Payload),
    /// So many zero bytes.
    Zero(u64),
    /// To be read from the volume's store, in bytes.
    Store {
        offset: u64,
        length: u64,
    },
}

impl ReadPlan {
    fn zero(&mut self, length: u64) {
        match self.parts.last_mut() {
            Some(ReadPart::Zero(n)) => *n += length,
            _ => self.parts.push(ReadPart::Zero(length)),
        }
    }

    fn store(&mut self, offset: u64, end: u64) {
        if offset < end {
            self.parts.push(ReadPart::Store { offset, length: end - offset });
        }
    }
}

/// One I/O that applying needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub volume: VolumeId,
    /// Bytes from the start of the volume.
    pub offset: u64,
    pub content: Content,
}

/// What a [`Piece`] makes of its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// One after the other.
    Data(Vec<Payload>),
    /// So many bytes read as zeros; with `discard` their space may be given back (S4).
    Zero { length: u64, discard: bool },
}

impl Piece {
    /// Bytes of the volume that it changes.
    pub fn length(&self) -> u64 {
        match &self.content {
            Content::Data(bufs) => bufs.iter().map(|b| b.len() as u64).sum(),
            Content::Zero { length, .. } => *length,
        }
    }
}

/// The accepted records that are not yet applied. See the [module](self).
#[derive(Debug)]
pub struct Overlay {
    /// In lsn order.
    queue: VecDeque<Record>,
    /// By volume: exactly what the queue's records, replayed in order, would show.
    view: Vec<RangeMap<Version>>,
    /// Maintained for [`Overlay::memory`] and [`Overlay::ring_bytes`].
    memory: u64,
    ring_bytes: u64,
}

impl Overlay {
    /// An empty overlay for a resource with so many volumes.
    pub fn new(volumes: usize) -> Overlay {
        Overlay { queue: VecDeque::new(), view: vec![RangeMap::new(); volumes], memory: 0, ring_bytes: 0 }
    }

    /// Accepts a record; from now on reads show it.
    ///
    /// # Panics
    /// If the record is not newer than the last one, if its volume does not exist, or if its payload does not fit its
    /// length: records are checked where they come in, long before.
    pub fn insert(&mut self, record: &Record) {
        assert!(self.last().is_none_or(|last| last < record.lsn), "{:?} after {:?}", record.lsn, self.last());
        let payload = if record.kind == Kind::Write { record.length } else { 0 };
        assert_eq!(record.payload.len() as u64, payload, "payload of {:?}", record.lsn);
        overwrite(&mut self.view, record);
        self.memory += cost(record);
        self.ring_bytes += batch::most_bytes(record);
        self.queue.push_back(record.clone());
    }

    /// How to read `length` bytes at `offset` so that every accepted record is seen (S2).
    ///
    /// # Panics
    /// If the volume does not exist.
    pub fn read(&self, volume: VolumeId, offset: u64, length: u64) -> ReadPlan {
        let end = offset.saturating_add(length);
        let mut plan = ReadPlan { parts: Vec::new(), newest: Lsn(0) };
        let mut at = offset;
        for (start, stop, version) in self.view[volume.0 as usize].overlapping(offset, end) {
            let (from, to) = (start.max(offset), stop.min(end));
            plan.store(at, from);
            match version.slice(from - start, to - from).bytes {
                Bytes::Data(payload) => plan.parts.push(ReadPart::Data(payload)),
                Bytes::Zero { .. } => plan.zero(to - from),
            }
            plan.newest = plan.newest.max(version.lsn);
            at = to;
        }
        plan.store(at, end);
        plan
    }

    /// What must be written so that the stores hold every record up to `up_to` and none past it (S1): each byte at most
    /// once, by volume and offset. Nothing is forgotten: that is for [`Overlay::retire`], once all of it is written.
    pub fn plan(&self, up_to: Lsn) -> Vec<Piece> {
        let mut pieces = Pieces::default();
        for (volume, map) in self.view.iter().enumerate() {
            // No truncation: there are as many volumes as VolumeIds at most.
            let volume = VolumeId(volume as u16);
            let hidden = self.hidden(volume, up_to);
            for (start, end, version) in map.iter() {
                if version.lsn <= up_to {
                    pieces.push(volume, start, end, &version.bytes);
                } else {
                    hidden.overlapping(start, end).for_each(|(s, e, older)| pieces.push(volume, s, e, &older.bytes));
                }
            }
        }
        pieces.done
    }

    /// What the records up to `up_to` show in the ranges where the view shows a newer one.
    fn hidden(&self, volume: VolumeId, up_to: Lsn) -> RangeMap<Version> {
        let mut hidden = RangeMap::new();
        let count = self.index_past(up_to);
        if count == self.queue.len() {
            return hidden;
        }
        let newer = self.view[volume.0 as usize].iter().filter(|(_, _, version)| version.lsn > up_to);
        let newer: Vec<(u64, u64)> = newer.map(|(start, end, _)| (start, end)).collect();
        for record in self.queue.range(..count).filter(|r| r.volume == volume) {
            let at = newer.partition_point(|(_, end)| *end <= record.offset);
            for (start, end) in newer[at..].iter().take_while(|(start, _)| *start < record.end()) {
                let (from, to) = ((*start).max(record.offset), (*end).min(record.end()));
                hidden.insert(from, to, Version::of(record).slice(from - record.offset, to - from));
            }
        }
        hidden
    }

    /// Forgets the records up to `up_to`: the stores hold them now.
    pub fn retire(&mut self, up_to: Lsn) {
        let count = self.index_past(up_to);
        let mut ranges = Vec::with_capacity(count);
        for record in self.queue.drain(..count) {
            self.memory -= cost(&record);
            self.ring_bytes -= batch::most_bytes(&record);
            ranges.push((record.volume, record.offset, record.end()));
        }
        // In order, so that ranges overwritten many times are walked once.
        ranges.sort_unstable();
        let mut walked = (VolumeId(0), 0);
        for (volume, start, end) in ranges {
            let start = if walked.0 == volume { start.max(walked.1) } else { start };
            if start < end {
                // A version this old lies wholly within these ranges, so what begins in one ends in it too.
                self.view[volume.0 as usize].remove_starting_in(start, end, |version| version.lsn <= up_to);
                walked = (volume, end);
            }
        }
    }

    /// Forgets the records past `after`: orphans that were cut off. Older versions show again. Slow: it replays the rest.
    pub fn truncate(&mut self, after: Lsn) {
        let keep = self.index_past(after);
        if keep < self.queue.len() {
            self.queue.truncate(keep);
            self.view = replay(self.view.len(), self.queue.iter());
            self.memory = self.queue.iter().map(cost).sum();
            self.ring_bytes = self.queue.iter().map(batch::most_bytes).sum();
        }
    }

    /// Bytes of memory that the queued records cost, about.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// The most that the queued records take of any node's ring.
    pub fn ring_bytes(&self) -> u64 {
        self.ring_bytes
    }

    /// Queued records.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether everything accepted is applied.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The oldest queued record.
    pub fn first(&self) -> Option<Lsn> {
        self.queue.front().map(|r| r.lsn)
    }

    /// The newest queued record.
    pub fn last(&self) -> Option<Lsn> {
        self.queue.back().map(|r| r.lsn)
    }

    /// The queued records from `lsn` on, in order.
    pub fn records_from(&self, lsn: Lsn) -> impl Iterator<Item = &Record> {
        self.queue.range(self.queue.partition_point(|r| r.lsn < lsn)..)
    }

    /// How many queued records are not past `lsn`.
    fn index_past(&self, lsn: Lsn) -> usize {
        self.queue.partition_point(|r| r.lsn <= lsn)
    }
}

fn cost(record: &Record) -> u64 {
    record.payload.len() as u64 + RECORD_OVERHEAD_BYTES
}

fn overwrite(view: &mut [RangeMap<Version>], record: &Record) {
    view[record.volume.0 as usize].insert(record.offset, record.end(), Version::of(record));
}

/// The view that these records, in order, make.
fn replay<'a>(volumes: usize, records: impl Iterator<Item = &'a Record>) -> Vec<RangeMap<Version>> {
    let mut view = vec![RangeMap::new(); volumes];
    records.for_each(|record| overwrite(&mut view, record));
    view
}

/// Ranges on their way to becoming I/Os: what is adjacent and alike is merged.
#[derive(Default)]
struct Pieces {
    done: Vec<Piece>,
    /// Volume and end of the last of `done`.
    reached: Option<(VolumeId, u64)>,
    /// Bytes in the last of `done`.
    last_bytes: u64,
}

impl Pieces {
    fn push(&mut self, volume: VolumeId, start: u64, end: u64, bytes: &Bytes) {
        let adjacent = self.reached == Some((volume, start));
        let merged = adjacent && self.extend(end - start, bytes);
        if merged {
            self.last_bytes += end - start;
        } else {
            let content = match bytes {
                Bytes::Data(payload) => Content::Data(vec![payload.clone()]),
                Bytes::Zero { discard } => Content::Zero { length: end - start, discard: *discard },
            };
            self.done.push(Piece { volume, offset: start, content });
            self.last_bytes = end - start;
        }
        self.reached = Some((volume, end));
    }

    /// Appends to the last piece, if that is of the same sort and has room.
    fn extend(&mut self, more: u64, bytes: &Bytes) -> bool {
        match (self.done.last_mut().map(|piece| &mut piece.content), bytes) {
            (Some(Content::Data(bufs)), Bytes::Data(payload))
                if self.last_bytes + more <= MERGE_BYTES && bufs.len() < MERGE_BUFS =>
            {
                bufs.push(payload.clone());
                true
            }
            (Some(Content::Zero { length, discard }), Bytes::Zero { discard: next }) if discard == next => {
                *length += more;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;
