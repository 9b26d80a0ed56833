//! The index against a ring in memory whose every record is known.

use super::*;
use crate::core::dirty::DirtySet;
use crate::format::batch::{BatchFields, TermRef, batch_bytes, buffers, encode, metas, seed};
use proptest::prelude::*;
use std::collections::BTreeMap;

const STREAM: u128 = 77;
const SIZES: [u64; 1] = [1 << 43];

struct Ring {
    geometry: Geometry,
    disk: Vec<u8>,
    index: LogIndex,
    next: u64,
    prev_crc: u32,
    end: Lsn,
    /// What each record that counts changed.
    live: BTreeMap<Lsn, Extent>,
    numbers: u64,
}

impl Ring {
    fn new(blocks: u64, limit: u64) -> Ring {
        let geometry = Geometry { start: 0, size: blocks * BLOCK as u64 };
        let (disk, index) = (vec![0; geometry.size as usize], LogIndex::new(geometry.size, limit));
        let prev_crc = seed(STREAM);
        Ring { geometry, disk, index, next: 0, prev_crc, end: Lsn(0), live: BTreeMap::new(), numbers: 1 }
    }

    fn number(&mut self, below: u64) -> u64 {
        self.numbers = self.numbers.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.numbers >> 24) % below
    }

    /// Writes a batch; the oldest units go where there is no room for it.
    fn append(&mut self, records: u64, payload: usize) {
        let records: Vec<Record> = (0..records)
            .map(|i| {
                let length = if payload > 0 { payload as u64 } else { 8192 };
                let bytes = vec![i as u8; payload];
                let kind = if payload > 0 { Kind::Write } else { Kind::Discard };
                let crc = if payload > 0 { crc32fast::hash(&bytes) } else { 0 };
                let (lsn, offset) = (Lsn(self.end.0 + 1 + i), self.number(1 << 31) * 4096);
                Record { lsn, volume: VolumeId(0), kind, offset, length, crc, payload: Payload::copy_of(&bytes) }
            })
            .collect();
        let bytes = batch_bytes(&records);
        let address = self.geometry.place(self.next, bytes);
        while let Some(front) = self.index.front().filter(|f| address + bytes > f.address + self.geometry.size) {
            self.index.drop_front();
            let first = self.index.front().map_or(Lsn(u64::MAX), |f| f.first);
            assert!(first > front.first);
            self.live.retain(|lsn, _| *lsn >= first);
        }
        let term = TermRef { number: 1, id: TermId(1) };
        let first = records[0].lsn;
        let fields =
            BatchFields { stream: STREAM, address, prev_crc: self.prev_crc, term, first, durable: first.prev() };
        let (header, crc) = encode(&fields, &records);
        let mut at = (address % self.geometry.size) as usize;
        for buf in buffers(header, &records) {
            self.disk[at..at + buf.len()].copy_from_slice(&buf);
            at += buf.len();
        }
        let start = ScanStart { address, prev_crc: self.prev_crc, first };
        self.index.push(&BatchEntry { start, bytes, term, metas: metas(&records) });
        (self.next, self.prev_crc) = (address + bytes, crc);
        self.end = records[records.len() - 1].lsn;
        self.live.extend(records.iter().map(|r| (r.lsn, r.extent())));
    }

    fn truncate(&mut self, end: Lsn) {
        self.index.truncate(end);
        self.end = end;
        self.live.retain(|lsn, _| *lsn <= end);
    }

    /// Reads a record as a lagging peer's feed does. Says how many reads it took.
    fn find(&self, wanted: Lsn) -> (Option<Extent>, usize) {
        let Some(mut place) = self.index.locate(wanted) else { return (None, 0) };
        for reads in 1.. {
            let (offset, length) = place.read(&self.geometry);
            let body = Payload::copy_of(&self.disk[offset as usize..(offset + length) as usize]);
            match look(&self.geometry, STREAM, &place, wanted, &body) {
                Look::Records(records, behind) => {
                    assert!(records.iter().all(|r| self.live.get(&r.lsn) == Some(&r.extent())), "{records:?}");
                    if let Some(behind) = behind {
                        assert!(records[records.len() - 1].lsn < behind.last);
                    }
                    return (Some(records[0].extent()), reads);
                }
                Look::Next(next) => place = next,
                Look::Lost => return (None, reads),
            }
        }
        unreachable!()
    }

    fn check(&self) {
        let first = self.live.keys().next();
        assert_eq!(self.index.front().map(|f| f.first), first.copied());
        for (lsn, extent) in &self.live {
            assert_eq!(self.find(*lsn).0, Some(*extent), "{lsn:?} of {:?}", self.live.keys());
        }
        assert_eq!(self.find(self.end.next()).0, None);
        let after = Lsn(first.map_or(0, |f| f.0) + self.live.len() as u64 / 2);
        let mut found = DirtySet::new(&SIZES);
        self.index.changed(after, self.end).for_each(|e| found.add(e));
        let covered: u64 = self.live.range(after.next()..).map(|(_, e)| e.length).sum();
        assert!(self.index.covered_after(after) >= covered);
        for extent in self.live.range(after.next()..).map(|(_, e)| e) {
            let all = (extent.offset..extent.offset + extent.length).step_by(4096);
            assert!(all.clone().all(|at| found.contains(extent.volume, at)), "{extent:?} is missing");
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Append(u64, usize),
    Truncate(u64),
    Drop,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (1..6u64, prop_oneof![Just(0usize), Just(512), Just(4096), Just(9000)]).prop_map(|(n, p)| Op::Append(n, p)),
        2 => (0..40u64).prop_map(Op::Truncate),
        1 => Just(Op::Drop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Whatever is written, voided and dropped: every record that counts is found, and none that does not.
    #[test]
    fn every_record_that_counts_is_found(ops in prop::collection::vec(op(), 1..120), blocks in 24..80u64) {
        let mut ring = Ring::new(blocks, 1024);
        for op in ops {
            match op {
                Op::Append(records, payload) => ring.append(records, payload),
                Op::Truncate(back) => {
                    let first = ring.live.keys().next().map_or(ring.end, |l| l.prev());
                    ring.truncate(Lsn(ring.end.0.saturating_sub(back)).max(first));
                }
                Op::Drop => {
                    ring.index.drop_front();
                    let first = ring.index.front().map_or(Lsn(u64::MAX), |f| f.first);
                    ring.live.retain(|lsn, _| *lsn >= first);
                }
            }
            ring.check();
        }
    }
}

/// Index a ring of `ring` bytes that is full of batches of `records` 4 KiB writes all over 8 TiB.
fn full(ring: u64, records: u64, limit: u64) -> LogIndex {
    let mut numbers = 1u64;
    let mut index = LogIndex::new(ring, limit);
    let term = TermRef { number: 1, id: TermId(1) };
    let (mut address, mut lsn) = (0, 1);
    let bytes = BLOCK as u64 * (records + 1);
    while address + bytes <= ring {
        let meta = |i: u64| {
            numbers = numbers.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let offset = (numbers >> 33) * 4096;
            let payload_at = BLOCK as u64 * (i + 1);
            RecordMeta { kind: Kind::Write, volume: VolumeId(0), crc: 0, offset, length: 4096, payload_at }
        };
        let start = ScanStart { address, prev_crc: 0, first: Lsn(lsn) };
        index.push(&BatchEntry { start, bytes, term, metas: (0..records).map(meta).collect() });
        (address, lsn) = (address + bytes, lsn + records);
    }
    index
}

/// Issue 2: memory does not grow with the log. 4 GiB of 4 KiB writes are known exactly; 16 GiB coarsely.
#[test]
fn a_large_log_takes_bounded_memory() {
    const LIMIT: u64 = 6 << 20;
    for (ring, records) in [(4 << 30, 1), (4 << 30, 32), (16 << 30, 32)] {
        let index = full(ring, records, LIMIT);
        println!("{} GiB, {records} a batch: {} KiB", ring >> 30, index.memory() >> 10);
        assert!(index.memory() as u64 <= LIMIT + (3 << 20), "{} GiB: {} bytes", ring >> 30, index.memory());
    }
    let index = full(4 << 30, 32, LIMIT);
    let covered: u64 = index.changed(Lsn(0), Lsn(u64::MAX)).map(|e| e.length).sum();
    assert!(covered <= 4 << 30, "coarse: {covered} bytes");
    // A walk to any record is short.
    assert!(index.old.iter().rev().skip(1).all(|s| s.marks.len() >= 32), "few marks");
}
