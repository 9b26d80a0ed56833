//! The walk over rings in memory: a small writer that does what the log does, power cuts, and bit rot.

use super::super::batch::{BatchFields, batch_bytes, buffers, encode, records, seed};
use super::*;
use crate::core::{Kind, Record, TermId, VolumeId};
use proptest::prelude::*;

const STREAM: u128 = 0xfeed << 64;
const START: u64 = 65536;
const SECTOR: usize = 512;

fn term(number: u64) -> TermRef {
    TermRef { number, id: TermId(u128::from(number) << 64) }
}

/// A batch as written: where, and what it should read as.
#[derive(Clone)]
struct Written {
    start: ScanStart,
    bytes: u64,
    records: Vec<Record>,
    term: TermRef,
}

/// A ring on a disk of memory, and the log's writer.
#[derive(Clone)]
struct Ring {
    geometry: Geometry,
    disk: Vec<u8>,
    tail: ScanStart,
    next: u64,
    prev_crc: u32,
    lsn: u64,
    term: TermRef,
    durable: u64,
    batches: Vec<Written>,
    /// Makes payloads differ from lap to lap.
    salt: u8,
}

impl Ring {
    fn new(blocks: u64) -> Ring {
        let geometry = Geometry { start: START, size: blocks * 4096 };
        let tail = ScanStart { address: 0, prev_crc: seed(STREAM), first: Lsn(1) };
        let disk = vec![0; geometry.size as usize];
        let (prev_crc, term) = (tail.prev_crc, term(1));
        Ring { geometry, disk, tail, next: 0, prev_crc, lsn: 1, term, durable: 0, batches: Vec::new(), salt: 0 }
    }

    /// Records of these sizes in bytes; 0 makes a discard.
    fn records(&mut self, sizes: &[usize]) -> Vec<Record> {
        self.salt = self.salt.wrapping_add(1);
        let salt = self.salt;
        let record = |(index, size): (usize, &usize)| {
            let bytes: Vec<u8> = (0..*size).map(|i| (i / SECTOR) as u8 ^ salt ^ index as u8 | 0x80).collect();
            let crc = if *size > 0 { crc32fast::hash(&bytes) } else { 0 };
            let (kind, length) = if *size > 0 { (Kind::Write, *size as u64) } else { (Kind::Discard, 1 << 20) };
            let lsn = Lsn(self.lsn + index as u64);
            Record { lsn, volume: VolumeId(0), kind, offset: 4096, length, crc, payload: Payload::copy_of(&bytes) }
        };
        sizes.iter().enumerate().map(record).collect()
    }

    /// Writes a batch; false if the ring has no room for it.
    fn append(&mut self, sizes: &[usize]) -> bool {
        let list = self.records(sizes);
        let bytes = batch_bytes(&list);
        if bytes > self.geometry.size {
            return false;
        }
        let address = self.geometry.place(self.next, bytes);
        if address + bytes > self.tail.address + self.geometry.size {
            return false;
        }
        let start = ScanStart { address, prev_crc: self.prev_crc, first: Lsn(self.lsn) };
        let fields = BatchFields { address, ..self.fields() };
        let (head, crc) = encode(&fields, &list);
        let mut at = (address % self.geometry.size) as usize;
        for buf in buffers(head, &list) {
            self.disk[at..at + buf.len()].copy_from_slice(&buf);
            at += buf.len();
        }
        self.next = address + bytes;
        self.prev_crc = crc;
        self.lsn += list.len() as u64;
        self.batches.push(Written { start, bytes, records: list, term: self.term });
        true
    }

    /// Of a batch that would stand at `next`.
    fn fields(&self) -> BatchFields {
        BatchFields {
            stream: STREAM,
            address: self.next,
            prev_crc: self.prev_crc,
            term: self.term,
            first: Lsn(self.lsn),
            durable: Lsn(self.durable),
        }
    }

    /// Writes a header without its payloads.
    fn put_header(&mut self, fields: BatchFields, list: &[Record]) {
        let (head, _) = encode(&fields, list);
        let at = (fields.address % self.geometry.size) as usize;
        self.disk[at..at + 4096].copy_from_slice(&head);
    }

    /// A new term whose first record is `first`, no later than the next one: all from there on is void.
    fn open_term(&mut self, first: u64) {
        self.term = term(self.term.number + 1);
        self.lsn = first;
        self.durable = self.durable.min(first - 1);
    }

    fn flush(&mut self) {
        self.durable = self.lsn - 1;
    }

    /// Drops the oldest batches, as far as what is left begins with a batch that still has its first record.
    fn drop_batches(&mut self, count: usize) {
        let count = count.min(self.batches.len());
        self.batches.drain(..count);
        self.tail = match self.batches.first() {
            Some(batch) => batch.start,
            None => ScanStart { address: self.next, prev_crc: self.prev_crc, first: Lsn(self.lsn) },
        };
    }

    /// What counts, by the rule and not by the walk: each lsn's newest record, up to the last batch's end.
    fn live(&self) -> Vec<(Record, TermRef)> {
        let mut live: Vec<(Record, TermRef)> = Vec::new();
        for batch in &self.batches {
            live.retain(|(record, _)| record.lsn < batch.start.first);
            live.extend(batch.records.iter().map(|record| (record.clone(), batch.term)));
        }
        live
    }

    fn scan(&self) -> Scan {
        scan_disk(&self.geometry, &self.disk, self.tail)
    }

    fn found(&self, scan: &Scan) -> Vec<(Record, TermRef)> {
        let mut found = Vec::new();
        for entry in &scan.entries {
            let at = (entry.start.address % self.geometry.size) as usize;
            let body = Payload::copy_of(&self.disk[at..at + entry.bytes as usize]);
            let (header, _) = batch::decode_header(&body).unwrap();
            let list = records(&header, &entry.metas, &body);
            assert_eq!(list.last().map(|r| r.lsn), Some(entry.last()));
            found.extend(list.into_iter().map(|record| (record, entry.term)));
        }
        found
    }

    fn assert_whole(&self) {
        let scan = self.scan();
        assert_eq!(scan.verdict, Verdict::End);
        assert!(self.found(&scan) == self.live(), "{} records of {}", self.found(&scan).len(), self.live().len());
        assert_eq!((scan.next, scan.prev_crc, scan.end), (self.next, self.prev_crc, Lsn(self.lsn - 1)));
        assert!(scan.durable.0 <= self.durable);
    }

    /// Where in the ring byte `at` of the n-th batch from the end is.
    fn byte(&mut self, from_end: usize, at: usize) -> &mut u8 {
        let batch = &self.batches[self.batches.len() - 1 - from_end];
        let offset = (batch.start.address % self.geometry.size) as usize + at;
        &mut self.disk[offset]
    }
}

fn scan_disk(geometry: &Geometry, disk: &[u8], from: ScanStart) -> Scan {
    let read = |offset: u64, length: u64| {
        assert!(offset.is_multiple_of(4096) && length.is_multiple_of(4096) && length > 0, "{length} bytes at {offset}");
        let at = (offset - geometry.start) as usize;
        Ok(Payload::copy_of(&disk[at..at + length as usize]))
    };
    scan(geometry, STREAM, from, read).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    Drop(usize),
    Flush,
    /// A new term that voids this many records.
    Term(u64),
}

fn any_sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![1 => Just(0usize), 4 => (1usize..20).prop_map(|n| n * SECTOR), 2 => Just(4096usize)];
    prop::collection::vec(size, 1..6)
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any_sizes().prop_map(Step::Append),
        4 => (1usize..4).prop_map(Step::Drop),
        2 => Just(Step::Flush),
        1 => (0u64..12).prop_map(Step::Term),
    ]
}

fn run(ring: &mut Ring, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::Append(sizes) => {
                while !ring.append(&sizes) {
                    ring.drop_batches(1);
                }
            }
            Step::Drop(count) => ring.drop_batches(count),
            Step::Flush => ring.flush(),
            Step::Term(void) => {
                let oldest = ring.live().first().map_or(ring.lsn, |(record, _)| record.lsn.0);
                ring.open_term(ring.lsn.saturating_sub(void).max(oldest));
                while !ring.append(&[4096]) {
                    ring.drop_batches(1);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn many_laps_read_back_exactly(blocks in 30u64..80, steps in prop::collection::vec(any_step(), 1..120)) {
        let mut ring = Ring::new(blocks);
        for step in steps {
            run(&mut ring, vec![step]);
            ring.assert_whole();
        }
    }

    /// A power cut in the last write: any sectors of it may be missing, the old lap's being there instead.
    #[test]
    fn a_torn_write_ends_the_log_exactly(
        blocks in 30u64..60, steps in prop::collection::vec(any_step(), 0..60), last in any_sizes(),
        lost in prop::collection::vec(prop::bool::weighted(0.15), 200), cut in prop::option::of(0usize..200), flushed: bool,
    ) {
        let mut ring = Ring::new(blocks);
        run(&mut ring, steps);
        if flushed {
            ring.flush();
        }
        let mut before = ring.clone();
        while !ring.append(&last) {
            ring.drop_batches(1);
            before.drop_batches(1);
        }
        let torn = ring.batches.last().unwrap().clone();
        let at = (torn.start.address % ring.geometry.size) as usize;
        let whole = ring.disk.clone();
        for sector in 0..torn.bytes as usize / SECTOR {
            if lost[sector % lost.len()] || cut.is_some_and(|cut| sector >= cut) {
                let range = at + sector * SECTOR..at + (sector + 1) * SECTOR;
                ring.disk[range.clone()].copy_from_slice(&before.disk[range]);
            }
        }
        // Judged by comparing bytes, not checksums.
        let mut expect = before.live();
        if ring.disk[at..at + 4096] == whole[at..at + 4096] {
            expect.retain(|(record, _)| record.lsn < torn.start.first);
            let mut from = at + 4096;
            for record in &torn.records {
                let end = from + record.payload.len();
                if ring.disk[from..end] != whole[from..end] {
                    break;
                }
                expect.push((record.clone(), torn.term));
                from += record.payload.len().next_multiple_of(4096);
            }
        }
        let scan = ring.scan();
        prop_assert_eq!(scan.verdict, Verdict::End);
        prop_assert!(ring.found(&scan) == expect);

        // And the log goes on from there, the torn rest left behind.
        ring.lsn = scan.end.0 + 1;
        ring.next = scan.next;
        ring.prev_crc = scan.prev_crc;
        ring.flush();
        ring.term = term(ring.term.number + 1);
        while !ring.append(&[512, 4096]) {
            ring.drop_batches(1);
        }
        let first = ring.tail.first;
        expect.extend(ring.batches.last().unwrap().records.iter().map(|r| (r.clone(), ring.term)));
        expect.retain(|(record, _)| record.lsn >= first);
        let scan = ring.scan();
        prop_assert_eq!(scan.verdict, Verdict::End);
        let mut found = ring.found(&scan);
        found.retain(|(record, _)| record.lsn >= first);
        prop_assert!(found == expect);
    }

    /// Any byte of any batch: either it made no difference, or damage is told exactly where it was durable.
    #[test]
    fn bit_rot_is_damage_where_it_was_durable_and_the_end_where_not(
        sizes in prop::collection::vec(any_sizes(), 2..10), flush_after in 0usize..10, victim: prop::sample::Index, at: prop::sample::Index,
    ) {
        let mut ring = Ring::new(400);
        for (index, sizes) in sizes.iter().enumerate() {
            prop_assert!(ring.append(sizes));
            if index == flush_after {
                ring.flush();
            }
        }
        let victim = victim.index(ring.batches.len());
        let batch = ring.batches[victim].clone();
        let at = at.index(batch.bytes as usize);
        *ring.byte(sizes.len() - 1 - victim, at) ^= 0x04;

        let first = batch.start.first.0;
        let mut payload_at = 4096;
        let mut bad = (at < 4096).then_some(first);
        for record in &batch.records {
            if (payload_at..payload_at + record.payload.len()).contains(&at) {
                bad = Some(record.lsn.0);
            }
            payload_at += record.payload.len().next_multiple_of(4096);
        }
        let scan = ring.scan();
        let Some(bad) = bad else {
            ring.assert_whole();
            return Ok(());
        };
        prop_assert_eq!(scan.end, Lsn(bad - 1));
        // The flush is told of by the batches written after it, if there are any left to read.
        let told = ring.batches.iter().enumerate().any(|(i, _)| i > flush_after && (i != victim || at >= 4096));
        let damage = told && bad <= ring.durable;
        let expect = if damage { Verdict::Damage { lsn: Lsn(bad), address: batch.start.address } } else { Verdict::End };
        prop_assert_eq!(scan.verdict, expect);
    }

    #[test]
    fn hostile_rings_never_panic(
        steps in prop::collection::vec(any_step(), 0..40), noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..30),
        address: u64, prev_crc: u32, first: u64, blocks in 0u64..40,
    ) {
        let mut ring = Ring::new(40);
        run(&mut ring, steps);
        for (at, value) in noise {
            let at = at.index(ring.disk.len() / 8) * 8;
            ring.disk[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        ring.scan();
        let geometry = Geometry { start: START, size: blocks * 4096 };
        scan_disk(&geometry, &ring.disk, ScanStart { address: address / 4096 * 4096, prev_crc, first: Lsn(first) });
        scan_disk(&geometry, &ring.disk, ring.tail);
    }
}

/// Batches of one length that divides the ring: the old lap's headers stand exactly where new ones are looked for.
#[test]
fn an_old_laps_batch_is_never_taken_where_sizes_align() {
    let mut ring = Ring::new(16);
    for step in 0..100 {
        while !ring.append(&[4096]) {
            ring.drop_batches(1);
        }
        if step % 3 == 0 {
            ring.flush();
        }
        ring.assert_whole();
        let mut empty = ring.clone();
        empty.drop_batches(usize::MAX);
        empty.assert_whole();
    }
}

/// Each thing that ties a header to its place, wrong on its own.
#[test]
fn a_header_counts_only_if_all_of_it_matches() {
    let mut ring = Ring::new(64);
    for _ in 0..3 {
        ring.append(&[4096]);
    }
    let spoil = |edit: &dyn Fn(&mut BatchFields)| {
        let mut ring = ring.clone();
        ring.open_term(ring.lsn);
        let list = ring.records(&[4096]);
        let mut fields = ring.fields();
        edit(&mut fields);
        let (head, _) =
            encode(&fields, &list.iter().cloned().map(|r| Record { lsn: fields.first, ..r }).collect::<Vec<_>>());
        let at = ring.next as usize;
        ring.disk[at..at + 4096].copy_from_slice(&head);
        ring.disk[at + 4096..at + 8192].copy_from_slice(&list[0].payload);
        let scan = ring.scan();
        assert_eq!(scan.verdict, Verdict::End);
        scan.end.0
    };
    assert_eq!(spoil(&|_| ()), 4);
    assert_eq!(spoil(&|f| f.stream += 1), 3);
    assert_eq!(spoil(&|f| f.address += 64 * 4096), 3);
    assert_eq!(spoil(&|f| f.prev_crc ^= 1), 3);
    assert_eq!(spoil(&|f| f.term.number = 0), 3);
    assert_eq!(spoil(&|f| f.first = Lsn(5)), 3, "a gap is no continuation");
    assert_eq!(spoil(&|f| f.first = Lsn(2)), 2, "but an earlier lsn voids");
    assert_eq!(spoil(&|f| f.first = Lsn(0)), 3, "lsns begin at 1");
}

#[test]
fn a_new_term_voids_records_of_several_batches_and_they_can_be_salvaged() {
    let mut ring = Ring::new(64);
    for _ in 0..3 {
        ring.append(&[4096, 0, 512]);
    }
    let orphans = ring.batches.clone();
    ring.open_term(3);
    ring.append(&[512]);
    ring.assert_whole();
    let scan = ring.scan();
    let voids: Vec<_> = scan.voids.iter().map(|v| (v.start, v.indexes.clone(), v.lsns())).collect();
    let expect = [(0, 2..3, (3, 3)), (1, 0..3, (4, 6)), (2, 0..3, (7, 9))];
    let expect = expect.map(|(i, indexes, (a, b))| (orphans[i].start, indexes, (Lsn(a), Lsn(b))));
    assert_eq!(voids, expect);
    assert!(scan.voids.iter().all(|v| v.term == term(1)));
    assert_eq!(scan.entries.last().unwrap().start.first, Lsn(3));

    // Once more, through what voided the others.
    ring.open_term(2);
    ring.append(&[512, 512, 512]);
    ring.assert_whole();
    let lsns: Vec<_> = ring.scan().voids.iter().map(|v| (v.term.number, v.lsns().0.0, v.lsns().1.0)).collect();
    assert_eq!(lsns, [(1, 3, 3), (1, 4, 6), (1, 7, 9), (1, 2, 2), (2, 3, 3)]);
}

/// What a torn batch holds past its first bad record is neither live nor salvage.
#[test]
fn a_torn_tail_is_left_behind_only_by_a_batch_that_covers_it() {
    let mut ring = Ring::new(64);
    ring.append(&[4096]);
    ring.append(&[4096, 4096, 4096]);
    *ring.byte(0, 4096 + 4096) ^= 1;
    let scan = ring.scan();
    assert_eq!((scan.end, scan.verdict), (Lsn(2), Verdict::End));

    let mut ends_it = ring.clone();
    ends_it.open_term(3);
    ends_it.append(&[512]);
    let scan = ends_it.scan();
    assert_eq!((scan.end, scan.verdict, scan.next), (Lsn(3), Verdict::End, ends_it.next));
    assert_eq!(scan.entries.iter().map(|e| e.metas.len()).collect::<Vec<_>>(), [1, 1, 1]);
    assert!(scan.voids.is_empty());

    // Written together with it, and whole: it begins past the bad record.
    ring.append(&[512]);
    let scan = ring.scan();
    assert_eq!((scan.end, scan.verdict), (Lsn(2), Verdict::End));
}

/// What an earlier crash left beyond the end, from a term that has been voided since, proves nothing.
#[test]
fn a_voided_terms_leftover_is_no_evidence() {
    let mut ring = Ring::new(64);
    ring.append(&[4096; 4]);
    ring.flush();
    ring.append(&[4096; 4]);
    let cut = ring.clone();
    // Written together: the first is lost, the second is there and says that 4 is durable.
    ring.append(&[4096]);
    ring.append(&[4096]);
    let at = cut.next as usize;
    ring.disk[at..at + 8192].fill(0);
    let mut after = Ring { disk: ring.disk.clone(), ..cut };
    after.assert_whole();
    after.open_term(3);
    after.append(&[4096]);
    after.assert_whole();
    // The new term's first record is torn: neither the old term's headers in the chain nor those beyond count.
    *after.byte(0, 4096) ^= 1;
    let scan = after.scan();
    assert_eq!((scan.end, scan.verdict), (Lsn(2), Verdict::End));
    assert_eq!(scan.durable, Lsn(2));
}

/// The same term written again over records that the chain itself says were durable: that is a repair, and its loss is one too.
#[test]
fn durable_in_the_chain_makes_damage() {
    let mut ring = Ring::new(64);
    ring.append(&[4096; 4]);
    ring.flush();
    ring.append(&[4096]);
    ring.lsn = 3;
    ring.durable = 2;
    ring.append(&[4096, 4096]);
    ring.assert_whole_but_durable(4);
    *ring.byte(0, 4096) ^= 1;
    let address = ring.batches[2].start.address;
    assert_eq!(ring.scan().verdict, Verdict::Damage { lsn: Lsn(3), address });
}

impl Ring {
    fn assert_whole_but_durable(&self, durable: u64) {
        let scan = self.scan();
        assert!(self.found(&scan) == self.live());
        assert_eq!((scan.verdict, scan.durable), (Verdict::End, Lsn(durable)));
    }
}

#[test]
fn evidence_is_found_in_the_next_lap_and_in_the_place_of_the_lost_batch() {
    let mut ring = Ring::new(16);
    ring.append(&[4096; 9]);
    ring.drop_batches(1);
    ring.append(&[4096]);
    ring.flush();
    // Does not fit before the end of the ring.
    ring.append(&[4096; 5]);
    assert_eq!(ring.batches.last().unwrap().start.address, 16 * 4096);
    *ring.byte(1, 4096) ^= 1;
    assert_eq!(ring.scan().verdict, Verdict::Damage { lsn: Lsn(10), address: 10 * 4096 });

    // A predecessor that is lost so that another one took its place: the successor does not chain to it.
    let mut ring = Ring::new(16);
    ring.append(&[4096]);
    ring.flush();
    ring.append(&[4096]);
    ring.tail.prev_crc ^= 1;
    let scan = ring.scan();
    assert_eq!((scan.end, scan.verdict), (Lsn(0), Verdict::Damage { lsn: Lsn(1), address: 0 }));
}

#[test]
fn a_batch_is_never_split() {
    let geometry = Geometry { start: START, size: 10 * 4096 };
    assert_eq!(geometry.place(8 * 4096, 2 * 4096), 8 * 4096);
    assert_eq!(geometry.place(8 * 4096, 3 * 4096), 10 * 4096);
    assert_eq!(geometry.place(20 * 4096, 10 * 4096), 20 * 4096);
    assert_eq!(geometry.offset(21 * 4096), START + 4096);
}

/// Headers that say more than there is room for: past the ring's end, and past the tail.
#[test]
fn a_batch_that_cannot_be_there_is_not_read() {
    let mut ring = Ring::new(16);
    ring.append(&[4096; 9]);
    let geometry = Geometry { size: 8 * 4096, ..ring.geometry };
    assert_eq!(scan_disk(&geometry, &ring.disk, ring.tail).end, Lsn(0));
    ring.append(&[4096; 5]);
    let (end, verdict) = (ring.scan().end, ring.scan().verdict);
    assert_eq!((end, verdict), (Lsn(14), Verdict::End));
    let geometry = Geometry { size: 14 * 4096, ..ring.geometry };
    let scan = scan_disk(&geometry, &ring.disk, ring.tail);
    assert_eq!((scan.end, scan.next), (Lsn(9), 10 * 4096));

    // A header before the end of the ring, with room up to the tail but not up to that end.
    let mut split = Ring::new(16);
    split.append(&[4096; 9]);
    split.drop_batches(1);
    split.append(&[4096; 3]);
    for (blocks, next) in [(1, 16), (2, 14)] {
        let mut ring = split.clone();
        let list = ring.records(&vec![4096; blocks]);
        ring.put_header(ring.fields(), &list);
        assert_eq!(ring.scan().next, next * 4096, "a header and {blocks} blocks");
    }

    // A header in the next lap, for more than there is before the tail.
    ring.drop_batches(1);
    for (blocks, next) in [(9, 26), (10, 16)] {
        let mut ring = ring.clone();
        let list = ring.records(&vec![4096; blocks]);
        ring.put_header(ring.fields(), &list);
        assert_eq!(ring.scan().next, next * 4096, "a header and {blocks} blocks");
    }
}

/// Headers beyond the end that say that the lost record was durable, and are not to be believed.
#[test]
fn only_a_header_of_this_stream_at_its_own_place_is_evidence() {
    let mut ring = Ring::new(64);
    ring.append(&[4096; 4]);
    let told = |edit: &dyn Fn(&mut BatchFields)| {
        let mut ring = ring.clone();
        let place = ring.next + 20 * 4096;
        let mut fields = BatchFields { address: place, first: Lsn(9), durable: Lsn(8), ..ring.fields() };
        edit(&mut fields);
        ring.lsn = fields.first.0;
        let list = ring.records(&[4096]);
        let shift = place as i64 - fields.address as i64;
        ring.put_header(fields, &list);
        if shift != 0 {
            // Where the address would have it, it goes; the copy stands elsewhere, as a payload might.
            let from = (fields.address % ring.geometry.size) as usize;
            let block = ring.disk[from..from + 4096].to_vec();
            ring.disk[from..from + 4096].fill(0);
            ring.disk[place as usize..place as usize + 4096].copy_from_slice(&block);
        }
        ring.scan().verdict != Verdict::End
    };
    assert!(told(&|_| ()));
    assert!(told(&|f| f.durable = Lsn(5)));
    assert!(!told(&|f| f.durable = Lsn(4)));
    assert!(!told(&|f| f.stream += 1));
    assert!(!told(&|f| f.address += 4096));
    assert!(!told(&|f| f.term.number = 0));
    assert!(!told(&|f| f.first = Lsn(5)), "no batch is durable before it is written");
}

#[test]
fn a_start_without_a_first_lsn_is_the_start_of_everything() {
    let ring = Ring::new(16);
    let scan = scan_disk(&ring.geometry, &ring.disk, ScanStart::default());
    assert_eq!((scan.end, scan.verdict), (Lsn(0), Verdict::End));
}

#[test]
fn a_growing_part_is_walked_as_a_ring_of_its_length() {
    let mut ring = Ring::new(64);
    for _ in 0..3 {
        ring.append(&[4096, 512]);
    }
    let geometry = Geometry { start: START, size: ring.next };
    assert_eq!(scan_disk(&geometry, &ring.disk, ring.tail).end, Lsn(6));
    // Cut in the last batch.
    let geometry = Geometry { start: START, size: ring.next - 4096 };
    assert_eq!(scan_disk(&geometry, &ring.disk, ring.tail).end, Lsn(4));
    let scan = scan_disk(&Geometry { start: START, size: 0 }, &ring.disk, ring.tail);
    assert_eq!((scan.end, scan.verdict), (Lsn(0), Verdict::End));
}

#[test]
fn a_read_error_is_passed_on() {
    let ring = Ring::new(16);
    let error = scan(&ring.geometry, STREAM, ring.tail, |_, _| Err(IoError { errno: 5 })).unwrap_err();
    assert_eq!(error, IoError { errno: 5 });
}

#[test]
fn a_log_without_room_is_refused() {
    let least = START + MIN_RING_BYTES;
    assert_eq!(Geometry::of_log(least - 1), Err(LogTooSmall { log_size: least - 1, least }));
    assert_eq!(Geometry::of_log(least + 4095), Ok(Geometry { start: START, size: MIN_RING_BYTES }));
    assert!(Geometry::of_log(0).is_err());
}
