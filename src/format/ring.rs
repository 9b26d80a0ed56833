//! The ring of batches, and the walk along its chain that finds what counts (L2).
//!
//! The same walk serves a growing part: a ring as long as the file, whose addresses are offsets.

use super::BLOCK;
use super::batch::{self, BatchHeader, MAX_BATCH_BYTES, RecordMeta, TermRef};
use super::superblock::RING_START;
use crate::buf::Payload;
use crate::core::{IoError, Lsn};
use bincode::{Decode, Encode};
use std::ops::Range;

/// Smallest ring: an empty one has room for any batch, wherever the chain stands.
pub const MIN_RING_BYTES: u64 = 2 * MAX_BATCH_BYTES;

/// Bytes read at once while walking and probing.
const CHUNK: u64 = 1 << 20;

/// A log that is too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a log of {log_size} bytes is too small: at least {least} bytes are needed")]
pub struct LogTooSmall {
    pub log_size: u64,
    pub least: u64,
}

/// Where a ring lies in its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes from the start of the part.
    pub start: u64,
    /// Bytes; a multiple of 4096.
    pub size: u64,
}

impl Geometry {
    /// The ring of a log of `log_size` bytes in all: what follows the superblocks, in whole blocks.
    pub fn of_log(log_size: u64) -> Result<Geometry, LogTooSmall> {
        let size = log_size.saturating_sub(RING_START) / BLOCK as u64 * BLOCK as u64;
        if size < MIN_RING_BYTES {
            return Err(LogTooSmall { log_size, least: RING_START + MIN_RING_BYTES });
        }
        Ok(Geometry { start: RING_START, size })
    }

    /// Where in the part the byte with this address is. The ring must not be empty.
    pub fn offset(&self, address: u64) -> u64 {
        self.start + address % self.size
    }

    /// Whether a batch of `bytes` at `address` ends inside the ring.
    fn fits(&self, address: u64, bytes: u64) -> bool {
        bytes <= self.size - address % self.size
    }

    /// The address for a batch of `bytes` (at most the ring's size) when the chain goes on at `next`: a batch is never
    /// split, so that one which does not fit before the end stands at the start of the next lap.
    pub fn place(&self, next: u64, bytes: u64) -> u64 {
        debug_assert!(bytes <= self.size, "a batch of {bytes} bytes in a ring of {}", self.size);
        if self.fits(next, bytes) { next } else { next.next_multiple_of(self.size) }
    }
}

/// Where a chain of batches begins or goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ScanStart {
    pub address: u64,
    /// Checksum of the header of the batch before it; [`batch::seed`] for the stream's first.
    pub prev_crc: u32,
    /// Lsn of the first record of the batch that stands there, or would.
    pub first: Lsn,
}

/// A batch of which at least one record counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchEntry {
    /// The batch's place: moving the tail to this batch means storing this.
    pub start: ScanStart,
    /// Bytes of the whole batch.
    pub bytes: u64,
    pub term: TermRef,
    /// The records that count, from the batch's first on: neither voided nor past a torn one.
    pub metas: Vec<RecordMeta>,
}

impl BatchEntry {
    /// Lsn of the last record that counts.
    pub fn last(&self) -> Lsn {
        Lsn(self.start.first.0 + self.metas.len() as u64 - 1)
    }
}

/// Intact records that a later batch has ended: orphans, which can still be read and salvaged (R4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoidRun {
    /// The place of their batch.
    pub start: ScanStart,
    /// Bytes of the whole batch.
    pub bytes: u64,
    pub term: TermRef,
    /// Which of the batch's records.
    pub indexes: Range<usize>,
}

impl VoidRun {
    /// First and last lsn of the run.
    pub fn lsns(&self) -> (Lsn, Lsn) {
        let first = self.start.first.0;
        (Lsn(first + self.indexes.start as u64), Lsn(first + self.indexes.end as u64 - 1))
    }
}

/// What is behind the last record that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing that was ever known to be durable.
    End,
    /// Records were durable from `lsn` on at least up to `lsn`, and cannot be read any more.
    Damage {
        /// The first one that is lost.
        lsn: Lsn,
        /// Address of the batch that holds it, or should.
        address: u64,
    },
}

/// Takes in what a walk finds, batch by batch, so that a long chain needs no memory of its length.
pub trait Sink {
    /// A batch of which at least one record counts, and its bytes.
    fn push(&mut self, batch: BatchEntry, body: &Payload);
    /// The same of a batch whose last records are torn: `batch` has those before them.
    fn push_torn(&mut self, batch: BatchEntry, body: &Payload) {
        self.push(batch, body);
    }
    /// Records from `first` on do not count after all, if there are any; and the batch that comes next does not stand right
    /// behind the last one that counts.
    fn void_from(&mut self, first: Lsn);
}

/// What a chain holds, all at once: for short ones.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Oldest first; lsns follow each other without a gap.
    pub entries: Vec<BatchEntry>,
    /// Oldest voiding first.
    pub voids: Vec<VoidRun>,
    pub walked: Walked,
}

impl std::ops::Deref for Scan {
    type Target = Walked;

    fn deref(&self) -> &Walked {
        &self.walked
    }
}

/// Where a walk came to.
#[derive(Clone, Copy, Debug)]
pub struct Walked {
    /// The last record that counts, or the one before `ScanStart::first` if there is none.
    pub end: Lsn,
    /// Term of the chain's last header, none for an empty chain.
    pub term: Option<TermRef>,
    /// Where the chain goes on (see [`Geometry::place`]).
    pub next: u64,
    /// The `prev_crc` of the batch that goes on there.
    pub prev_crc: u32,
    /// The largest position that a header of the chain says was durable, 0 if none does.
    pub durable: Lsn,
    /// The last batch, if not all of its records are intact. Those before the first bad one count.
    pub torn: Option<ScanStart>,
    /// The first record that could not be read of those that nobody needs: `end` is the last of these, and the chain goes on behind it.
    pub missing: Option<Lsn>,
    pub verdict: Verdict,
}

/// Walks the chain of `stream` from its tail, and judges where it stops.
///
/// A batch goes on the chain if stream, address and the checksum of the header before it match, its term is not older,
/// and it leaves no gap: its first lsn is at most the one expected. Where it is lower, it voids all older records from
/// there on. A batch torn in its payload counts up to the record before the first bad one, and the chain goes on
/// behind it only with a batch that starts no later than that bad record.
///
/// Where the chain stops, damage is told from the end by what is known to have been durable: by the headers of the
/// chain, and by any intact header of the stream that stands further on, which is why the whole ring is read.
///
/// `read` gets an offset in the part and a length, both multiples of 4096 and inside the ring.
///
/// # Errors
/// The first error of `read`.
pub fn scan(
    geometry: &Geometry,
    stream: u128,
    from: ScanStart,
    read: impl FnMut(u64, u64) -> Result<Payload, IoError>,
) -> Result<Scan, IoError> {
    let mut found = Collected::default();
    let walked = scan_into(geometry, stream, from, Lsn(0), read, &mut found)?;
    Ok(Scan { entries: found.entries, voids: found.voids, walked })
}

/// The same, batch by batch into `sink`. The payloads of records up to `held` are not looked at, and that they are missing is no damage:
/// what they did is kept elsewhere.
pub fn scan_into(
    geometry: &Geometry,
    stream: u128,
    from: ScanStart,
    held: Lsn,
    read: impl FnMut(u64, u64) -> Result<Payload, IoError>,
    sink: &mut dyn Sink,
) -> Result<Walked, IoError> {
    let mut ring = Reader { geometry: *geometry, read, window: None };
    let mut walk = Walk::new(*geometry, stream, from);
    while let Some((header, metas)) = walk.find_next(&mut ring)? {
        let body = ring.get(header.fields.address, header.bytes())?;
        let unseen = (held.next().0.saturating_sub(header.fields.first.0) as usize).min(metas.len());
        let good = unseen + metas[unseen..].iter().take_while(|meta| batch::payload_ok(meta, &body)).count();
        walk.take(&header, metas, good, &body, sink);
    }
    if walk.torn.is_some() {
        sink.void_from(walk.expected);
    }
    let missing = (walk.expected <= held).then_some(walk.expected);
    walk.expected = walk.expected.max(held.next());
    let verdict = walk.judge(&mut ring)?;
    Ok(Walked {
        end: walk.expected.prev(),
        term: walk.term,
        next: walk.next,
        prev_crc: walk.prev_crc,
        durable: walk.durable,
        torn: walk.torn,
        missing,
        verdict,
    })
}

/// Offsets in the part of the headers of `stream` that stand at `next` or further on: left behind where a chain stopped.
///
/// # Errors
/// The first error of `read`.
pub fn headers_ahead(
    geometry: &Geometry,
    stream: u128,
    next: u64,
    read: impl FnMut(u64, u64) -> Result<Payload, IoError>,
) -> Result<Vec<u64>, IoError> {
    let mut ring = Reader { geometry: *geometry, read, window: None };
    let mut found = Vec::new();
    for at in (0..geometry.size / BLOCK as u64).map(|n| n * BLOCK as u64) {
        let block = ring.get(at, BLOCK as u64)?;
        let is_ahead = |header: &BatchHeader| {
            let fields = &header.fields;
            fields.stream == stream && fields.address >= next && fields.address % geometry.size == at
        };
        if block[..batch::MAGIC.len()] == batch::MAGIC && batch::decode_header(&block).is_ok_and(|(h, _)| is_ahead(&h))
        {
            found.push(geometry.start + at);
        }
    }
    Ok(found)
}

/// Everything that a walk finds.
#[derive(Default)]
struct Collected {
    entries: Vec<BatchEntry>,
    voids: Vec<VoidRun>,
}

impl Sink for Collected {
    fn push(&mut self, batch: BatchEntry, _body: &Payload) {
        self.entries.push(batch);
    }

    fn void_from(&mut self, first: Lsn) {
        let from = self.voids.len();
        while let Some(entry) = self.entries.last_mut().filter(|entry| entry.last() >= first) {
            let keep = first.0.saturating_sub(entry.start.first.0) as usize;
            let indexes = keep..entry.metas.len();
            self.voids.push(VoidRun { start: entry.start, bytes: entry.bytes, term: entry.term, indexes });
            entry.metas.truncate(keep);
            if keep == 0 {
                self.entries.pop();
            }
        }
        self.voids[from..].reverse();
    }
}

/// Reads the ring in chunks: batches are often a few KiB, and one read for each would take long.
struct Reader<R> {
    geometry: Geometry,
    read: R,
    /// Offset in the ring, and the bytes there.
    window: Option<(u64, Payload)>,
}

impl<R: FnMut(u64, u64) -> Result<Payload, IoError>> Reader<R> {
    /// `length` bytes at an address, which must not reach past the end of the ring.
    fn get(&mut self, address: u64, length: u64) -> Result<Payload, IoError> {
        let at = address % self.geometry.size;
        if let Some((from, bytes)) = &self.window
            && at >= *from
            && at + length <= *from + bytes.len() as u64
        {
            return Ok(bytes.slice((at - *from) as usize, length as usize));
        }
        let ahead = length.max(CHUNK).min(self.geometry.size - at);
        // The old window's memory goes back to the pool before the new one is taken.
        self.window = None;
        let bytes = (self.read)(self.geometry.start + at, ahead)?;
        let wanted = bytes.slice(0, length as usize);
        self.window = Some((at, bytes));
        Ok(wanted)
    }
}

/// The state of a walk.
struct Walk {
    geometry: Geometry,
    stream: u128,
    /// No chain is longer than the ring: addresses from here on are not part of it.
    limit: u64,
    next: u64,
    prev_crc: u32,
    /// The lsn that the chain would go on with.
    expected: Lsn,
    term: Option<TermRef>,
    durable: Lsn,
    /// The last batch, if it is torn.
    torn: Option<ScanStart>,
}

impl Walk {
    fn new(geometry: Geometry, stream: u128, from: ScanStart) -> Walk {
        Walk {
            geometry,
            stream,
            limit: from.address.saturating_add(geometry.size),
            next: from.address,
            prev_crc: from.prev_crc,
            // Lsns begin at 1.
            expected: from.first.max(Lsn(1)),
            term: None,
            durable: Lsn(0),
            torn: None,
        }
    }

    /// The header that goes on the chain: at `next`, or at the start of the next lap.
    fn find_next<R>(&self, ring: &mut Reader<R>) -> Result<Option<(BatchHeader, Vec<RecordMeta>)>, IoError>
    where
        R: FnMut(u64, u64) -> Result<Payload, IoError>,
    {
        let lap = self.next.checked_next_multiple_of(self.geometry.size).filter(|lap| *lap != self.next);
        for address in [Some(self.next), lap].into_iter().flatten() {
            // An empty ring ends here: its limit is its start.
            if address >= self.limit || !self.geometry.fits(address, BLOCK as u64) {
                continue;
            }
            let block = ring.get(address, BLOCK as u64)?;
            if let Ok((header, metas)) = batch::decode_header(&block)
                && self.goes_on(&header, address)
            {
                return Ok(Some((header, metas)));
            }
        }
        Ok(None)
    }

    fn goes_on(&self, header: &BatchHeader, address: u64) -> bool {
        let fields = &header.fields;
        fields.stream == self.stream
            && fields.address == address
            && fields.prev_crc == self.prev_crc
            && self.geometry.fits(address, header.bytes())
            && header.bytes() <= self.limit - address
            && fields.first.0 > 0
            && fields.first <= self.expected
            && self.term.is_none_or(|term| fields.term.number >= term.number)
    }

    /// Adds a batch whose first `good` records are intact.
    fn take(
        &mut self,
        header: &BatchHeader,
        mut metas: Vec<RecordMeta>,
        good: usize,
        body: &Payload,
        sink: &mut dyn Sink,
    ) {
        let fields = header.fields;
        if fields.first < self.expected || self.torn.is_some() {
            sink.void_from(fields.first);
        }
        if self.term.is_some_and(|term| term.id != fields.term.id) {
            // What was durable of another term's orphans says nothing about the records that take their lsns.
            self.durable = self.durable.min(fields.first.prev());
        }
        self.durable = self.durable.max(durable_of(header));
        self.term = Some(fields.term);
        let start = ScanStart { address: fields.address, prev_crc: self.prev_crc, first: fields.first };
        self.torn = (good < metas.len()).then_some(start);
        metas.truncate(good);
        if good > 0 {
            let batch = BatchEntry { start, bytes: header.bytes(), term: fields.term, metas };
            match self.torn {
                Some(_) => sink.push_torn(batch, body),
                None => sink.push(batch, body),
            }
        }
        self.expected = header.lsn(good);
        self.next = fields.address + header.bytes();
        self.prev_crc = header.crc;
    }

    /// Whether the record that the chain stopped at had been durable.
    fn judge<R>(&self, ring: &mut Reader<R>) -> Result<Verdict, IoError>
    where
        R: FnMut(u64, u64) -> Result<Payload, IoError>,
    {
        if self.expected <= self.durable || self.evidence_ahead(ring)? {
            let address = self.torn.map_or(self.next, |batch| batch.address);
            return Ok(Verdict::Damage { lsn: self.expected, address });
        }
        Ok(Verdict::End)
    }

    /// Whether any header from `next` on proves that the expected record was durable. One that was written together
    /// with the torn end, or left by an earlier crash, does not.
    fn evidence_ahead<R>(&self, ring: &mut Reader<R>) -> Result<bool, IoError>
    where
        R: FnMut(u64, u64) -> Result<Payload, IoError>,
    {
        let mut at = 0;
        while at + BLOCK as u64 <= self.geometry.size {
            let block = ring.get(at, BLOCK as u64)?;
            if self.is_evidence(&block, at) {
                return Ok(true);
            }
            at += BLOCK as u64;
        }
        Ok(false)
    }

    fn is_evidence(&self, block: &[u8], at: u64) -> bool {
        // Cheap first: most blocks of a ring are payload.
        if block[..batch::MAGIC.len()] != batch::MAGIC {
            return false;
        }
        let Ok((header, _)) = batch::decode_header(block) else { return false };
        let fields = &header.fields;
        fields.stream == self.stream
            && fields.address >= self.next
            && fields.address % self.geometry.size == at
            && self.term.is_none_or(|term| fields.term.number >= term.number)
            && durable_of(&header) >= self.expected
    }
}

/// What a header says was durable. No batch is durable before it is written, whatever its bytes say.
fn durable_of(header: &BatchHeader) -> Lsn {
    header.fields.durable.min(header.fields.first.prev())
}

#[cfg(test)]
mod tests;
