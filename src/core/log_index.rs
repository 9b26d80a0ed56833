//! What the ring holds, in bounded memory: the newest batches one by one, the older ones as stretches.
//!
//! Of a stretch only some batches' places are known; the others are found by walking from header to header, which is safe
//! because a stretch never reaches over a void batch: all in it counts, up to its last record. Which blocks its
//! records changed is told for the stretch as a whole, and errs to more.

use super::runs::Runs;
use super::types::*;
use crate::buf::Payload;
use crate::format::BLOCK;
use crate::format::batch::{self, RecordMeta};
use crate::format::ring::{BatchEntry, Geometry, ScanStart, Sink};
use std::collections::VecDeque;

/// Records that are known one by one.
const EXACT: usize = 16 << 10;
/// Stretches that the ring is divided into, about.
const STRETCHES: u64 = 32;
/// Places that are known in the ring, about.
const MARKS: u64 = 2048;
/// Ranges gathered before they are packed.
const PENDING: usize = 4096;

/// A batch that is known by itself.
#[derive(Clone, Debug)]
struct Entry {
    start: ScanStart,
    bytes: u64,
    last: Lsn,
    /// It stands right behind the batch before it, all of whose records count.
    follows: bool,
    ranges: Box<[Extent]>,
    /// Bytes of payload.
    payload: u64,
}

/// Batches, one behind the other.
#[derive(Clone, Debug)]
struct Stretch {
    /// Some of its batches, the first one among them.
    marks: Vec<ScanStart>,
    /// The last record that counts.
    last: Lsn,
    /// Address behind its last batch.
    end: u64,
    changed: Runs,
    /// Ranges that are not packed yet.
    pending: Vec<Extent>,
    /// Bytes that its records cover, and bytes of payload among them.
    covers: u64,
    payload: u64,
    batches: u64,
}

impl Stretch {
    fn first(&self) -> Lsn {
        self.marks[0].first
    }

    fn pack(&mut self, limit: usize) {
        if !self.pending.is_empty() {
            self.changed = self.changed.with(std::mem::take(&mut self.pending)).within(limit);
        }
    }

    fn ranges(&self) -> impl Iterator<Item = Extent> + '_ {
        self.changed.iter().chain(self.pending.iter().copied())
    }
}

/// Batches that leave the ring together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    pub last: Lsn,
    /// Address behind it.
    pub end: u64,
}

/// Where a record may be found: in the batch at this address, or in one behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub address: u64,
    pub prev_crc: u32,
    /// Bytes of the batch, where they are known.
    pub bytes: Option<u64>,
    /// The last record that counts from here on.
    pub last: Lsn,
    /// The batch may stand at the start of the next lap instead.
    pub or_next_lap: bool,
}

impl Place {
    /// What to read of the part: offset and length.
    pub fn read(&self, geometry: &Geometry) -> (u64, u64) {
        (geometry.offset(self.address), self.bytes.unwrap_or(BLOCK as u64))
    }
}

/// What was found at a [`Place`].
#[derive(Debug)]
pub enum Look {
    /// The wanted record and those behind it in its batch; and the place of the next batch, if it follows.
    Records(Vec<Record>, Option<Place>),
    /// To be read next.
    Next(Place),
    /// Not what should be there.
    Lost,
}

/// Looks for `wanted` in what was read at `place`.
pub fn look(geometry: &Geometry, stream: u128, place: &Place, wanted: Lsn, body: &Payload) -> Look {
    let found = batch::decode_header(body).ok().filter(|(header, _)| {
        let fields = &header.fields;
        (fields.stream, fields.address, fields.prev_crc) == (stream, place.address, place.prev_crc)
    });
    let Some((header, metas)) = found else {
        let lap = place.address.next_multiple_of(geometry.size);
        return match place.or_next_lap && lap != place.address {
            true => Look::Next(Place { address: lap, or_next_lap: false, bytes: None, ..*place }),
            false => Look::Lost,
        };
    };
    let last = header.lsn(metas.len() - 1);
    let behind = Place {
        address: place.address + header.bytes(),
        prev_crc: header.crc,
        bytes: None,
        last: place.last,
        or_next_lap: true,
    };
    if wanted < header.fields.first || wanted > place.last {
        return Look::Lost;
    }
    if last < wanted {
        return Look::Next(behind);
    }
    if header.bytes() > body.len() as u64 {
        return Look::Next(Place { bytes: Some(header.bytes()), ..*place });
    }
    let live = (place.last.min(last).0 - header.fields.first.0 + 1) as usize;
    let good = |meta: &RecordMeta| batch::payload_ok(meta, body);
    // Whatever has become of those before it: they may be applied long since (L2).
    let skipped = (wanted.0 - header.fields.first.0) as usize;
    if !metas[skipped..live].iter().all(good) {
        return Look::Lost;
    }
    let mut records = batch::records(&header, &metas[..live], body);
    records.retain(|r| r.lsn >= wanted);
    Look::Records(records, (place.last > last).then_some(behind))
}

/// See the module.
#[derive(Clone, Debug)]
pub struct LogIndex {
    /// Bytes of the ring.
    ring: u64,
    /// Bytes of memory for the runs of a stretch.
    share: usize,
    exact: usize,
    old: VecDeque<Stretch>,
    recent: VecDeque<Entry>,
    recent_records: usize,
    /// The next batch does not stand behind the last one that counts.
    broken: bool,
}

impl LogIndex {
    /// For a ring of so many bytes, in `limit` bytes of memory beside the newest batches.
    pub fn new(ring: u64, limit: u64) -> LogIndex {
        let share = (limit / STRETCHES).max(64) as usize;
        // The newest batches take about as much as all the rest.
        let exact = ((limit / 128) as usize).clamp(8, EXACT);
        LogIndex { ring, share, exact, old: VecDeque::new(), recent: VecDeque::new(), recent_records: 0, broken: false }
    }

    /// The next batch.
    pub fn push(&mut self, batch: &BatchEntry) {
        let range = |m: &RecordMeta| Extent { volume: m.volume, offset: m.offset, length: m.length };
        let follows = !std::mem::replace(&mut self.broken, false) && !self.is_empty();
        self.recent_records += batch.metas.len();
        self.recent.push_back(Entry {
            start: batch.start,
            bytes: batch.bytes,
            last: batch.last(),
            follows,
            ranges: batch.metas.iter().map(range).collect(),
            payload: batch.metas.iter().map(RecordMeta::payload_bytes).sum(),
        });
        while self.recent_records > self.exact && self.recent.len() > 1 {
            self.age();
        }
    }

    /// The oldest of the newest batches joins a stretch.
    fn age(&mut self) {
        let Some(entry) = self.recent.pop_front() else { return };
        self.recent_records -= entry.ranges.len();
        let share = self.share;
        let (span, spacing) = (self.ring / STRETCHES, self.ring / MARKS);
        let joins = |s: &&mut Stretch| entry.follows && entry.start.address - s.marks[0].address < span;
        if self.old.back_mut().filter(joins).is_none() {
            self.old.iter_mut().next_back().into_iter().for_each(|s| s.pack(share));
            self.old.push_back(Stretch {
                marks: vec![entry.start],
                last: entry.last,
                end: 0,
                changed: Runs::default(),
                pending: Vec::new(),
                covers: 0,
                payload: 0,
                batches: 0,
            });
        }
        // There is one: the last, or the one just made.
        let stretch = self.old.back_mut().expect("a stretch");
        if stretch.marks.last().is_some_and(|m| entry.start.address - m.address >= spacing.max(1)) {
            stretch.marks.push(entry.start);
        }
        stretch.last = entry.last;
        stretch.end = entry.start.address + entry.bytes;
        stretch.covers += entry.ranges.iter().map(|e| e.length).sum::<u64>();
        stretch.payload += entry.payload;
        stretch.batches += 1;
        stretch.pending.extend(entry.ranges);
        if stretch.pending.len() >= PENDING {
            stretch.pack(share);
        }
    }

    /// Records after `end` are void; what comes next does not stand behind what is left.
    pub fn truncate(&mut self, end: Lsn) {
        self.broken = true;
        while let Some(entry) = self.recent.back_mut().filter(|e| e.last > end) {
            let keep = (end.next().0.saturating_sub(entry.start.first.0)) as usize;
            self.recent_records -= entry.ranges.len() - keep;
            if keep > 0 {
                entry.ranges = entry.ranges[..keep].into();
                entry.payload = entry.payload.min(covered(&entry.ranges));
                entry.last = end;
                break;
            }
            self.recent.pop_back();
        }
        while let Some(stretch) = self.old.back_mut().filter(|s| s.last > end) {
            if stretch.first() <= end {
                // What it says to have changed may be more than what is left of it.
                stretch.marks.retain(|m| m.first <= end);
                stretch.last = end;
                break;
            }
            self.old.pop_back();
        }
    }

    pub fn clear(&mut self) {
        self.old.clear();
        self.recent.clear();
        self.recent_records = 0;
        self.broken = false;
    }

    pub fn is_empty(&self) -> bool {
        self.old.is_empty() && self.recent.is_empty()
    }

    /// The oldest batch that is left.
    pub fn front(&self) -> Option<ScanStart> {
        self.old.front().map(|s| s.marks[0]).or(self.recent.front().map(|e| e.start))
    }

    /// What can be dropped, oldest first.
    pub fn units(&self) -> impl Iterator<Item = Unit> + '_ {
        let recent = self.recent.iter().map(|e| Unit { last: e.last, end: e.start.address + e.bytes });
        self.old.iter().map(|s| Unit { last: s.last, end: s.end }).chain(recent)
    }

    /// Drops the oldest unit.
    pub fn drop_front(&mut self) {
        if self.old.pop_front().is_none()
            && let Some(entry) = self.recent.pop_front()
        {
            self.recent_records -= entry.ranges.len();
        }
    }

    /// Where to look for a record.
    pub fn locate(&self, lsn: Lsn) -> Option<Place> {
        let at = self.recent.partition_point(|e| e.last < lsn);
        if let Some(entry) = self.recent.get(at).filter(|e| e.start.first <= lsn) {
            let ScanStart { address, prev_crc, .. } = entry.start;
            return Some(Place { address, prev_crc, bytes: Some(entry.bytes), last: entry.last, or_next_lap: false });
        }
        let stretch = self.old.get(self.old.partition_point(|s| s.last < lsn)).filter(|s| s.first() <= lsn)?;
        let mark = stretch.marks[stretch.marks.partition_point(|m| m.first <= lsn) - 1];
        let (address, prev_crc) = (mark.address, mark.prev_crc);
        Some(Place { address, prev_crc, bytes: None, last: stretch.last, or_next_lap: false })
    }

    /// The batch that holds a record, or one before it.
    pub fn start_of(&self, lsn: Lsn) -> Option<ScanStart> {
        let at = self.recent.partition_point(|e| e.last < lsn);
        if let Some(entry) = self.recent.get(at).filter(|e| e.start.first <= lsn) {
            return Some(entry.start);
        }
        let stretch = self.old.get(self.old.partition_point(|s| s.last < lsn)).filter(|s| s.first() <= lsn)?;
        Some(stretch.marks[stretch.marks.partition_point(|m| m.first <= lsn) - 1])
    }

    /// What the records after `after` up to `last` changed, and perhaps more.
    pub fn changed(&self, after: Lsn, last: Lsn) -> impl Iterator<Item = Extent> + '_ {
        let old = self.old.iter().filter(move |s| s.last > after && s.first() <= last);
        old.flat_map(Stretch::ranges).chain(self.newest_changed(after).filter(move |(l, _)| *l <= last).map(|(_, e)| e))
    }

    /// The records after `after` among those that are known one by one.
    pub fn newest_changed(&self, after: Lsn) -> impl Iterator<Item = (Lsn, Extent)> + '_ {
        let at = self.recent.partition_point(|e| e.last <= after);
        let each = |e: &'_ Entry| {
            let first = e.start.first.0;
            e.ranges.iter().copied().zip(first..).map(|(range, lsn)| (Lsn(lsn), range)).collect::<Vec<_>>()
        };
        self.recent.range(at..).flat_map(each).filter(move |(lsn, _)| *lsn > after)
    }

    /// The first record that is known by itself; none if no batch is.
    pub fn exact_from(&self) -> Option<Lsn> {
        self.recent.front().map(|e| e.start.first)
    }

    /// Bytes that the records after `after` cover; more where it lies within a stretch.
    pub fn covered_after(&self, after: Lsn) -> u64 {
        let old = self.old.iter().filter(|s| s.last > after).map(|s| s.covers);
        old.sum::<u64>() + self.newest_changed(after).map(|(_, e)| e.length).sum::<u64>()
    }

    /// Bytes of payload of the records after `after`; about, where it lies within a batch or a stretch.
    pub fn payload_after(&self, after: Lsn) -> u64 {
        let of_stretch = |s: &Stretch| {
            let (all, behind) = (s.last.0 + 1 - s.first().0, s.last.0 - after.0.max(s.first().0 - 1));
            (u128::from(s.payload) * u128::from(behind) / u128::from(all)) as u64
        };
        let of_batch = |e: &Entry| {
            let skipped = after.next().0.saturating_sub(e.start.first.0) as usize;
            e.payload.min(covered(&e.ranges[skipped..]))
        };
        let old = self.old.iter().filter(|s| s.last > after).map(of_stretch);
        old.sum::<u64>() + self.recent.iter().filter(|e| e.last > after).map(of_batch).sum::<u64>()
    }

    /// Batches; too many where a stretch has been cut.
    pub fn batches(&self) -> u64 {
        self.old.iter().map(|s| s.batches).sum::<u64>() + self.recent.len() as u64
    }

    /// Bytes of memory, about.
    pub fn memory(&self) -> usize {
        let stretch = |s: &Stretch| 128 + s.marks.len() * 24 + s.changed.bytes() + s.pending.len() * 24;
        let entry = |e: &Entry| 88 + e.ranges.len() * 24;
        self.old.iter().map(stretch).sum::<usize>() + self.recent.iter().map(entry).sum::<usize>()
    }
}

fn covered(ranges: &[Extent]) -> u64 {
    ranges.iter().map(|e| e.length).sum()
}

impl Sink for LogIndex {
    fn push(&mut self, batch: BatchEntry, _body: &Payload) {
        LogIndex::push(self, &batch);
    }

    fn void_from(&mut self, first: Lsn) {
        self.truncate(first.prev());
    }
}

#[cfg(test)]
#[path = "log_index_tests.rs"]
mod tests;
