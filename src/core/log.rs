//! The log of one node: records in, batches out, and the two watermarks that rest on it (L2, L3, L4).
//!
//! A batch fills while the one before it is written (group commit); a long one does not wait. A batch is written stable (`sync`) where
//! somebody waits for it and nothing unstable lies before it; otherwise a flush follows, since a stable write says nothing of the writes
//! before it. What is under way is in [`Flights`].

use super::api::{IoOp, Part};
use super::flights::{Flights, LogIo};
use super::log_index::{LogIndex, Look, Place, Unit, look};
use super::types::*;
use crate::buf::Payload;
use crate::format::BLOCK;
use crate::format::batch::{self, BatchFields, TermRef};
use crate::format::ring::{BatchEntry, Geometry, ScanStart};
use std::collections::VecDeque;

/// Unstable bytes after which the log flushes by itself (L3).
const FLUSH_BYTES: u64 = 16 << 20;
/// A batch of so many bytes gains nothing by waiting for more, and the disk is idle meanwhile. In a small ring less is long.
const LONG_BYTES: u64 = 128 << 10;
const LONG_SHARE: u64 = 64;
/// So many writes may be under way, the last ones long.
const WRITES: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct Log {
    geometry: Geometry,
    stream: u128,
    /// Where a scan of the ring would begin.
    tail: ScanStart,
    /// Ring space before this address may be written over: the tail of the newest durable superblock (L2).
    reusable: u64,
    next: u64,
    prev_crc: u32,
    /// The largest term number in the chain: a chain never goes back to a lower one.
    term_number: u64,
    queue: VecDeque<(Record, Term)>,
    /// Bytes that the queue takes in the ring.
    queue_bytes: u64,
    flights: Flights,
    /// The newest record handed to the log.
    end: Lsn,
    written: Lsn,
    durable: Lsn,
    /// Somebody waits until this record is durable.
    wanted: Lsn,
    index: LogIndex,
    failed: Option<i32>,
    /// The next batch waits for room in the ring.
    full: bool,
    /// Every batch is written stable.
    always_stable: bool,
    flush_ms: u64,
    /// No I/O begins before the one before it is over.
    one_by_one: bool,
}

/// What the log starts from: a fresh ring, or what recovery found.
#[derive(Clone, Debug)]
pub struct LogStart {
    pub geometry: Geometry,
    pub stream: u128,
    pub tail: ScanStart,
    pub next: u64,
    pub prev_crc: u32,
    pub term_number: u64,
    /// The newest valid record; all up to it are durable.
    pub end: Lsn,
    pub index: LogIndex,
}

impl Log {
    pub fn new(start: LogStart, always_stable: bool, flush_ms: u64) -> Log {
        let mut log = Log {
            geometry: start.geometry,
            stream: start.stream,
            tail: start.tail,
            reusable: start.tail.address,
            next: start.next,
            prev_crc: start.prev_crc,
            term_number: start.term_number,
            queue: VecDeque::new(),
            queue_bytes: 0,
            flights: Flights::default(),
            end: start.end,
            written: start.end,
            durable: start.end,
            wanted: start.end,
            index: start.index,
            failed: None,
            full: false,
            always_stable,
            flush_ms,
            one_by_one: false,
        };
        log.forget_orphans();
        log
    }

    pub fn end(&self) -> Lsn {
        self.end
    }

    pub fn written(&self) -> Lsn {
        self.written
    }

    pub fn durable(&self) -> Lsn {
        self.durable
    }

    pub fn tail(&self) -> ScanStart {
        self.tail
    }

    pub fn stream(&self) -> u128 {
        self.stream
    }

    pub fn failed(&self) -> Option<i32> {
        self.failed
    }

    /// Bytes of the ring that hold what may not be written over.
    pub fn used(&self) -> u64 {
        self.next - self.reusable
    }

    pub fn size(&self) -> u64 {
        self.geometry.size
    }

    /// Records wait, and the ring has no room for them.
    pub fn is_full(&self) -> bool {
        self.full && !self.queue.is_empty()
    }

    /// Nothing queued, nothing in flight, nothing unstable.
    pub fn is_settled(&self) -> bool {
        self.queue.is_empty() && !self.flights.is_busy() && self.durable == self.end
    }

    /// An I/O is in flight.
    pub fn is_busy(&self) -> bool {
        self.flights.is_busy()
    }

    /// Records that wait for an I/O in flight to end: the first of them, and the bytes that they take in the ring.
    pub fn queued(&self) -> Option<(Lsn, u64)> {
        self.queue.front().map(|(record, _)| (record.lsn, self.queue_bytes))
    }

    /// The oldest record that the ring holds; `end + 1` if it holds none.
    pub fn from(&self) -> Lsn {
        self.index.front().map_or(self.written.next(), |start| start.first)
    }

    /// The next record of the order.
    pub fn push(&mut self, record: Record, term: Term) {
        assert_eq!(record.lsn, self.end.next(), "records come in order, without holes");
        self.end = record.lsn;
        self.queue_bytes += batch::record_bytes(&record);
        self.queue.push_back((record, term));
    }

    /// Somebody waits until `lsn` is durable.
    pub fn want_durable(&mut self, lsn: Lsn) {
        assert!(lsn <= self.end, "cannot make durable what was not accepted");
        self.wanted = self.wanted.max(lsn);
    }

    /// For a log behind the page cache. Linux tells a failed write-back of a file to one caller alone: of two stable writes at once the wrong
    /// one could hear of it, and the other would count as durable (L4).
    pub fn go_one_by_one(&mut self) {
        self.one_by_one = true;
    }

    /// The next I/O to do, if one is to be done now. There may be more.
    pub fn poll(&mut self, now: Time) -> Option<(LogIo, Part, IoOp)> {
        if self.failed.is_some() || (self.one_by_one && self.flights.is_busy()) {
            return None;
        }
        if self.flush_due().is_some_and(|due| due <= now)
            || (self.flights.unstable_bytes() >= FLUSH_BYTES && !self.flights.is_flushing())
        {
            self.wanted = self.wanted.max(self.written);
        }
        if self.wanted <= self.written && self.may_flush() {
            return Some(self.start_flush(now));
        }
        // A ring without room gets it only from what is durable: what is written and waited for is flushed first.
        self.start_batch(now).or_else(|| (self.is_full() && self.may_flush()).then(|| self.start_flush(now)))
    }

    /// Somebody waits for what is written, and a flush would make it durable.
    fn may_flush(&self) -> bool {
        self.wanted > self.durable && !self.flights.is_flushing() && self.flights.unstable_bytes() > 0
    }

    /// When the log flushes by itself (L3).
    pub fn flush_due(&self) -> Option<Time> {
        let since = self.flights.unstable_since().filter(|_| !self.flights.is_flushing());
        since.map(|since| since.plus_ms(self.flush_ms))
    }

    fn start_flush(&mut self, now: Time) -> (LogIo, Part, IoOp) {
        (self.flights.flush(self.written, now), Part::Log, IoOp::Flush)
    }

    /// Whether the next batch need not wait for what is under way.
    fn may_write(&self) -> bool {
        let long = self.queue_bytes >= LONG_BYTES.min(self.geometry.size / LONG_SHARE);
        !self.flights.is_busy() || (long && self.flights.writing() < WRITES)
    }

    fn start_batch(&mut self, now: Time) -> Option<(LogIo, Part, IoOp)> {
        let term = self.queue.front().filter(|_| self.may_write())?.1;
        let mut bytes = BLOCK as u64;
        let mut count = 0;
        // A small ring takes smaller batches, or it could never be emptied behind one.
        let most = batch::MAX_BATCH_BYTES.min(self.geometry.size / 8);
        for (record, of) in self.queue.iter().take(batch::MAX_RECORDS) {
            let more = batch::record_bytes(record);
            if of.id != term.id || (count > 0 && bytes + more > most) {
                break;
            }
            bytes += more;
            count += 1;
        }
        let address = self.geometry.place(self.next, bytes);
        // Until the tail moves (L5).
        self.full = address + bytes > self.reusable + self.geometry.size;
        if self.full {
            return None;
        }
        let records: Vec<Record> = self.queue.drain(..count).map(|(r, _)| r).collect();
        self.queue_bytes -= bytes - BLOCK as u64;
        // A term that an unrelated promotion opened with a lower number still goes on the chain: ids tell terms apart.
        self.term_number = self.term_number.max(term.number);
        let fields = BatchFields {
            prev_crc: self.prev_crc,
            stream: self.stream,
            address,
            term: TermRef { number: self.term_number, id: term.id },
            first: records[0].lsn,
            durable: self.durable,
        };
        let (header, crc) = batch::encode(&fields, &records);
        // A stable write covers itself alone: it will do only where all before it is stable.
        let stable = self.flights.may_be_stable() && (self.always_stable || self.wanted >= fields.first);
        let start = ScanStart { address, prev_crc: self.prev_crc, first: fields.first };
        let entry = BatchEntry { start, bytes, term: fields.term, metas: batch::metas(&records) };
        let io = self.flights.write(entry, stable, now);
        self.next = address + bytes;
        self.prev_crc = crc;
        let offset = self.geometry.offset(address);
        Some((io, Part::Log, IoOp::Write { offset, bufs: batch::buffers(header, &records), sync: stable }))
    }

    /// An I/O of `poll` is over; when it began. A failure is final (L4): nothing moves any more.
    pub fn done(&mut self, io: LogIo, result: Result<(), i32>) -> Time {
        let (began, covers) = self.flights.done(io);
        if let Err(errno) = result {
            self.failed.get_or_insert(errno);
        }
        if self.failed.is_some() {
            self.flights.give_up_landed();
            return began;
        }
        self.advance(covers.unwrap_or(self.durable));
        while let Some(entry) = self.flights.next_written() {
            self.written = entry.last();
            self.index.push(&entry);
        }
        self.advance(self.durable);
        assert!(self.durable <= self.written && self.written <= self.end);
        began
    }

    /// Moves what is durable, where a flush has covered all up to `covered`.
    fn advance(&mut self, covered: Lsn) {
        while let Some(durable) = self.flights.next_durable(covered) {
            self.durable = durable;
        }
    }

    /// Ends all records after `end` (L1): the next batch voids what the ring still holds of them.
    ///
    /// # Panics
    /// If an I/O is in flight, or records before `end` are not durable: the caller waits for that first.
    pub fn truncate(&mut self, end: Lsn) {
        assert!(!self.flights.is_busy() && end <= self.end && self.durable >= end);
        self.queue.clear();
        self.queue_bytes = 0;
        self.end = end;
        self.written = end;
        self.durable = end;
        self.wanted = self.wanted.min(end);
        self.flights.forget();
        self.index.truncate(end);
        self.forget_orphans();
    }

    /// Where no record counts any more, what the ring still holds are orphans: they need no room.
    fn forget_orphans(&mut self) {
        if self.index.is_empty() && !self.flights.is_busy() {
            self.tail = ScanStart { address: self.next, prev_crc: self.prev_crc, first: self.end.next() };
        }
    }

    /// Empties the log at a position that the store holds (the two ends of a resync). The new stream id makes everything
    /// that the ring still holds foreign.
    pub fn restart_at(&mut self, end: Lsn, stream: u128) {
        assert!(!self.flights.is_busy() && self.queue.is_empty());
        self.index.clear();
        self.stream = stream;
        self.prev_crc = batch::seed(stream);
        self.term_number = 0;
        self.tail = ScanStart { address: self.next, prev_crc: self.prev_crc, first: end.next() };
        self.end = end;
        self.written = end;
        self.durable = end;
        self.wanted = end;
        self.flights.forget();
    }

    /// What can leave the ring, oldest first.
    pub fn units(&self) -> impl Iterator<Item = Unit> + '_ {
        self.index.units()
    }

    /// From where all records past `lsn`, which is written, can be read: the batch of the first, or one before it, or the chain's end.
    pub fn behind(&self, lsn: Lsn) -> ScanStart {
        self.index.start_of(lsn.next()).unwrap_or_else(|| self.chain_end())
    }

    /// Where what is written ends.
    fn chain_end(&self) -> ScanStart {
        let end = ScanStart { address: self.next, prev_crc: self.prev_crc, first: self.written.next() };
        self.flights.entries().next().map_or(end, |oldest| oldest.start)
    }

    /// Drops the oldest unit. Its space is reusable once `tail()` is durable in a superblock.
    pub fn drop_oldest(&mut self) {
        self.index.drop_front();
        self.tail = self.index.front().unwrap_or_else(|| self.chain_end());
    }

    /// Bytes from the tail to where the next batch will stand.
    pub fn held(&self) -> u64 {
        self.next - self.tail.address
    }

    /// A superblock with this tail is durable.
    pub fn tail_is_durable(&mut self, address: u64) {
        self.reusable = self.reusable.max(address);
    }

    /// Where a record is to be looked for.
    pub fn locate(&self, lsn: Lsn) -> Option<Place> {
        self.index.locate(lsn)
    }

    /// The read of a place.
    pub fn read_of(&self, place: &Place) -> IoOp {
        let (offset, length) = place.read(&self.geometry);
        IoOp::Read { offset, length }
    }

    /// Looks for `wanted` in what was read at `place`.
    pub fn look(&self, place: &Place, wanted: Lsn, body: &Payload) -> Look {
        match wanted < self.from() {
            true => Look::Lost, // Dropped meanwhile.
            false => look(&self.geometry, self.stream, place, wanted, body),
        }
    }

    /// What the records after `after` up to `last` changed, and perhaps more.
    pub fn changed(&self, after: Lsn, last: Lsn) -> impl Iterator<Item = Extent> + '_ {
        let newest = self.unindexed().filter(move |(lsn, _)| *lsn > after && *lsn <= last).map(|(_, e)| e);
        self.index.changed(after, last).chain(newest)
    }

    /// Whether a record after `after` touches the range, or might.
    pub fn touched_since(&self, after: Lsn, extent: Extent) -> bool {
        let overlaps = |e: &Extent| {
            e.volume == extent.volume && e.offset < extent.offset + extent.length && extent.offset < e.offset + e.length
        };
        // What is not known record by record may have touched anything.
        !self.knows_each_after(after)
            || self.index.newest_changed(after).any(|(_, e)| overlaps(&e))
            || self.unindexed().any(|(lsn, e)| lsn > after && overlaps(&e))
    }

    /// Whether it knows record by record what was changed after `after`.
    pub fn knows_each_after(&self, after: Lsn) -> bool {
        self.index.exact_from().unwrap_or(self.from()) <= after.next()
    }

    /// Bytes that the records after `after` cover, or somewhat more.
    pub fn covered_after(&self, after: Lsn) -> u64 {
        let newest = self.unindexed().filter(|(lsn, _)| *lsn > after).map(|(_, e)| e.length);
        self.index.covered_after(after) + newest.sum::<u64>()
    }

    /// Bytes of payload of the records after `after`, or somewhat more.
    pub fn payload_after(&self, after: Lsn) -> u64 {
        let first = self.written.next();
        let flying = self.flights.entries().flat_map(|entry| &entry.metas).zip(first.0..);
        let flying = flying.filter(|(_, lsn)| *lsn > after.0).map(|(m, _)| m.payload_bytes());
        let queued = self.queue.iter().filter(|(r, _)| r.lsn > after).map(|(r, _)| r.payload.len() as u64);
        self.index.payload_after(after) + flying.sum::<u64>() + queued.sum::<u64>()
    }

    /// Batches that it holds; about, where a stretch has been cut.
    pub fn batches(&self) -> u64 {
        self.index.batches()
    }

    /// Ranges of the records that are not written yet.
    fn unindexed(&self) -> impl Iterator<Item = (Lsn, Extent)> + '_ {
        let queued =
            self.queue.iter().map(|(r, _)| (r.lsn, Extent { volume: r.volume, offset: r.offset, length: r.length }));
        self.flights.entries().flat_map(entry_extents).chain(queued)
    }
}

/// What the records of a batch cover.
fn entry_extents(entry: &BatchEntry) -> impl Iterator<Item = (Lsn, Extent)> + '_ {
    let first = entry.start.first.0;
    entry
        .metas
        .iter()
        .enumerate()
        .map(move |(i, m)| (Lsn(first + i as u64), Extent { volume: m.volume, offset: m.offset, length: m.length }))
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
