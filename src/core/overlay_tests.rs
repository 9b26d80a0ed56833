//! The overlay against the naive thing: all accepted records replayed, in order, onto plain bytes.

use super::*;
use proptest::prelude::*;

/// Small blocks: the overlay does not care, and a failing case stays readable.
const BLOCK: u64 = 8;
const BLOCKS: u64 = 20;
const VOLUMES: usize = 3;

type Volumes = Vec<Vec<u8>>;

/// What the stores hold before the first record: nothing that a record writes.
fn blank() -> Volumes {
    vec![vec![0xee; (BLOCKS * BLOCK) as usize]; VOLUMES]
}

fn record(lsn: u64, volume: usize, kind: Kind, block: u64, blocks: u64) -> Record {
    let payload = match kind {
        Kind::Write => {
            // Every block of every record differs, so a wrong slice shows.
            let bytes: Vec<u8> = (block..block + blocks)
                .flat_map(|b| [lsn as u8, (lsn >> 8) as u8 | 0x40, b as u8, 1, 2, 3, 4, 5])
                .collect();
            Payload::copy_of(&bytes)
        }
        _ => Payload::empty(),
    };
    let (offset, length) = (block * BLOCK, blocks * BLOCK);
    Record { lsn: Lsn(lsn), volume: VolumeId(volume as u16), kind, offset, length, crc: 0, payload }
}

fn replayed<'a>(mut volumes: Volumes, records: impl IntoIterator<Item = &'a Record>) -> Volumes {
    for r in records {
        let bytes = &mut volumes[r.volume.0 as usize][r.offset as usize..r.end() as usize];
        match r.kind {
            Kind::Write => bytes.copy_from_slice(&r.payload),
            _ => bytes.fill(0),
        }
    }
    volumes
}

/// Carries a plan out, holding it to what it promises: each block at most once, in order, merged as far as allowed.
fn applied(mut volumes: Volumes, plan: &[Piece]) -> Volumes {
    let mut reached = (0, 0);
    for piece in plan {
        let (volume, start, length) = (piece.volume.0 as usize, piece.offset, piece.length());
        assert!(length > 0, "an empty piece: {piece:?}");
        assert!((volume, start) >= reached, "{piece:?} after {reached:?}");
        reached = (volume, start + length);
        let bytes = &mut volumes[volume][start as usize..(start + length) as usize];
        match &piece.content {
            Content::Data(bufs) => bytes.copy_from_slice(&bufs.iter().flat_map(|b| b.to_vec()).collect::<Vec<_>>()),
            Content::Zero { .. } => bytes.fill(0),
        }
    }
    for pair in plan.windows(2) {
        let adjacent = pair[0].volume == pair[1].volume && pair[0].offset + pair[0].length() == pair[1].offset;
        let alike = match (&pair[0].content, &pair[1].content) {
            (Content::Data(_), Content::Data(_)) => true,
            (Content::Zero { discard: a, .. }, Content::Zero { discard: b, .. }) => a == b,
            _ => false,
        };
        assert!(!(adjacent && alike), "not merged: {pair:?}");
    }
    volumes
}

/// The overlay, the stores it is applied to, and all that was ever accepted.
struct Bench {
    overlay: Overlay,
    store: Volumes,
    accepted: Vec<Record>,
    retired: u64,
}

impl Bench {
    fn new() -> Bench {
        Bench { overlay: Overlay::new(VOLUMES), store: blank(), accepted: Vec::new(), retired: 0 }
    }

    fn accept(&mut self, volume: usize, kind: Kind, block: u64, blocks: u64) {
        let lsn = self.accepted.len() as u64 + 1;
        let record = record(lsn, volume, kind, block, blocks);
        self.overlay.insert(&record);
        self.accepted.push(record);
    }

    /// An lsn between the last one retired and a little past the last one accepted.
    fn pick(&self, share: u64) -> u64 {
        self.retired + share % (self.accepted.len() as u64 - self.retired + 2)
    }

    fn upto(&self, lsn: u64) -> &[Record] {
        &self.accepted[..(lsn as usize).min(self.accepted.len())]
    }

    /// Plans, checks the plan, and carries it out if `keep`.
    fn apply(&mut self, up_to: u64, keep: bool) {
        let plan = self.overlay.plan(Lsn(up_to));
        let store = applied(self.store.clone(), &plan);
        assert_eq!(store, replayed(blank(), self.upto(up_to)), "plan up to {up_to}");
        self.check_kinds(&plan, up_to);
        if keep {
            self.overlay.retire(Lsn(up_to));
            self.retired = up_to.min(self.accepted.len() as u64);
            self.store = store;
        }
    }

    /// Each planned byte is of the kind that its newest record up to `up_to` has: a discard is not made a zeroing.
    fn check_kinds(&self, plan: &[Piece], up_to: u64) {
        let newest = self.newest_upto(up_to);
        let mut planned = vec![vec![None; (BLOCKS * BLOCK) as usize]; VOLUMES];
        for piece in plan {
            let kind = match piece.content {
                Content::Data(_) => Kind::Write,
                Content::Zero { discard, .. } => [Kind::Zeroes, Kind::Discard][discard as usize],
            };
            let range = piece.offset as usize..(piece.offset + piece.length()) as usize;
            planned[piece.volume.0 as usize][range].fill(Some(kind));
        }
        for (planned, newest) in planned.iter().zip(&newest) {
            let expected = newest.iter().map(|&lsn| (lsn > self.retired).then(|| self.accepted[lsn as usize - 1].kind));
            assert_eq!(*planned, expected.collect::<Vec<_>>(), "kinds up to {up_to}");
        }
    }

    /// For each byte the newest record up to `up_to` on it, 0 for none.
    fn newest_upto(&self, up_to: u64) -> Vec<Vec<u64>> {
        let mut newest = vec![vec![0; (BLOCKS * BLOCK) as usize]; VOLUMES];
        for r in self.upto(up_to) {
            newest[r.volume.0 as usize][r.offset as usize..r.end() as usize].fill(r.lsn.0);
        }
        newest
    }

    fn truncate(&mut self, after: u64) {
        self.overlay.truncate(Lsn(after));
        self.accepted.truncate(after as usize);
    }

    fn check_read(&self, volume: usize, block: u64, blocks: u64) {
        let (offset, length) = (block * BLOCK, blocks * BLOCK);
        let plan = self.overlay.read(VolumeId(volume as u16), offset, length);
        let mut bytes = Vec::new();
        for part in &plan.parts {
            let before = bytes.len();
            match part {
                ReadPart::Data(payload) => bytes.extend_from_slice(payload),
                ReadPart::Zero(n) => bytes.resize(bytes.len() + *n as usize, 0),
                ReadPart::Store { offset: at, length } => {
                    assert_eq!(*at, offset + bytes.len() as u64, "a part out of its place: {plan:?}");
                    bytes.extend_from_slice(&self.store[volume][*at as usize..(*at + *length) as usize]);
                }
            }
            assert!(bytes.len() > before, "an empty part: {plan:?}");
        }
        let range = offset as usize..(offset + length) as usize;
        assert_eq!(bytes, replayed(blank(), &self.accepted)[volume][range.clone()], "{plan:?}");
        let newest = self.newest_upto(u64::MAX)[volume][range].iter().copied().max().unwrap_or(0);
        let newest = if newest > self.retired { newest } else { 0 };
        // Exactly the newest visible one: 0 once that is retired, although an older one may have been beside it.
        assert_eq!(plan.newest, Lsn(newest), "{plan:?}");
    }

    fn check(&self) {
        (0..VOLUMES).for_each(|volume| self.check_read(volume, 0, BLOCKS));
        let queued = &self.accepted[self.retired as usize..];
        assert_eq!(self.overlay.len(), queued.len());
        assert_eq!(self.overlay.is_empty(), queued.is_empty());
        assert_eq!(self.overlay.first(), queued.first().map(|r| r.lsn));
        assert_eq!(self.overlay.last(), queued.last().map(|r| r.lsn));
        let memory: u64 = queued.iter().map(|r| r.payload.len() as u64 + RECORD_OVERHEAD_BYTES).sum();
        assert_eq!(self.overlay.memory(), memory);
        if queued.is_empty() {
            assert!(self.overlay.view.iter().all(RangeMap::is_empty), "the view outlives its records");
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Accept { volume: usize, kind: Kind, block: u64, blocks: u64 },
    Read { volume: usize, block: u64, blocks: u64 },
    Plan { share: u64 },
    Apply { share: u64 },
    Truncate { share: u64 },
    RecordsFrom { lsn: u64 },
}

/// A range of blocks: mostly short, as overlaps of short ranges have the most corners.
fn blocks() -> impl Strategy<Value = (u64, u64)> {
    (0..BLOCKS, prop_oneof![3 => 1..5u64, 1 => 1..=BLOCKS]).prop_map(|(at, n)| (at, n.min(BLOCKS - at)))
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![3 => Just(Kind::Write), 1 => Just(Kind::Zeroes), 1 => Just(Kind::Discard)];
    prop_oneof![
        12 => (0..VOLUMES, kind, blocks()).prop_map(|(volume, kind, (block, blocks))| Op::Accept { volume, kind, block, blocks }),
        2 => (0..VOLUMES, blocks()).prop_map(|(volume, (block, blocks))| Op::Read { volume, block, blocks }),
        1 => any::<u64>().prop_map(|share| Op::Plan { share }),
        2 => any::<u64>().prop_map(|share| Op::Apply { share }),
        1 => any::<u64>().prop_map(|share| Op::Truncate { share }),
        1 => (0..70u64).prop_map(|lsn| Op::RecordsFrom { lsn }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// S1, S2, S3: whatever comes in whatever order, reads show all that was accepted, and a plan brings the stores to
    /// exactly the state after the records up to its lsn, though newer ones overlap them.
    #[test]
    fn agrees_with_replaying_the_records(ops in prop::collection::vec(op(), 1..60)) {
        let mut bench = Bench::new();
        for op in ops {
            match op {
                Op::Accept { volume, kind, block, blocks } => bench.accept(volume, kind, block, blocks),
                Op::Read { volume, block, blocks } => bench.check_read(volume, block, blocks),
                Op::Plan { share } => bench.apply(bench.pick(share), false),
                Op::Apply { share } => bench.apply(bench.pick(share), true),
                Op::Truncate { share } => bench.truncate(bench.pick(share)),
                Op::RecordsFrom { lsn } => {
                    let queued = &bench.accepted[bench.retired as usize..];
                    prop_assert!(bench.overlay.records_from(Lsn(lsn)).eq(queued.iter().filter(|r| r.lsn.0 >= lsn)));
                }
            }
            bench.check();
        }
    }
}

#[test]
fn s1_a_plan_shows_the_older_version_under_a_newer_one() {
    let mut bench = Bench::new();
    bench.accept(0, Kind::Write, 0, 4);
    bench.accept(0, Kind::Write, 1, 2);
    bench.accept(0, Kind::Discard, 2, 2);
    let plan = bench.overlay.plan(Lsn(1));
    assert_eq!(plan.len(), 1);
    let Content::Data(bufs) = &plan[0].content else { panic!("data was written there: {plan:?}") };
    assert_eq!(bufs.iter().flat_map(|b| b.to_vec()).collect::<Vec<u8>>(), bench.accepted[0].payload.to_vec());
    // The newer ones are still what reads see once the older one is retired.
    bench.apply(1, true);
    bench.check();
    assert_eq!(bench.overlay.read(VolumeId(0), 0, 4 * BLOCK).newest, Lsn(3));
    assert_eq!(bench.overlay.read(VolumeId(0), 0, BLOCK).newest, Lsn(0));
}

#[test]
fn reads_share_the_memory_of_the_record() {
    let mut overlay = Overlay::new(1);
    let record = record(1, 0, Kind::Write, 0, 4);
    overlay.insert(&record);
    let plan = overlay.read(VolumeId(0), BLOCK, BLOCK);
    let [ReadPart::Data(part)] = &plan.parts[..] else { panic!("{plan:?}") };
    assert_eq!(part.as_ptr(), record.payload[BLOCK as usize..].as_ptr());
}

#[test]
fn adjacent_data_is_merged_up_to_a_mebibyte() {
    let write = |lsn: u64, offset: u64, length: u64| {
        let payload = crate::buf::BufMut::zeroed(length as usize).freeze();
        Record { lsn: Lsn(lsn), volume: VolumeId(0), kind: Kind::Write, offset, length, crc: 0, payload }
    };
    let mut overlay = Overlay::new(1);
    for i in 0..260 {
        overlay.insert(&write(i + 1, i * 4096, 4096));
    }
    overlay.insert(&write(300, 260 * 4096, 3 << 20));
    let lengths: Vec<_> = overlay.plan(Lsn(300)).iter().map(Piece::length).collect();
    // The long one is not cut, and takes nothing with it.
    assert_eq!(lengths, [1 << 20, 4 * 4096, 3 << 20]);
}

#[test]
fn one_io_has_no_more_buffers_than_linux_takes() {
    let mut overlay = Overlay::new(1);
    for i in 0..1500 {
        overlay.insert(&record(i + 1, 0, Kind::Write, i, 1));
    }
    let plan = overlay.plan(Lsn(1500));
    let bufs: Vec<_> = plan.iter().map(|p| if let Content::Data(bufs) = &p.content { bufs.len() } else { 0 }).collect();
    assert_eq!(bufs, [1024, 476]);
}

#[test]
fn ranges_of_different_volumes_are_not_merged() {
    let mut overlay = Overlay::new(2);
    overlay.insert(&record(1, 0, Kind::Discard, 0, 2));
    overlay.insert(&record(2, 1, Kind::Discard, 2, 2));
    let plan = overlay.plan(Lsn(2));
    assert_eq!(plan.iter().map(|p| (p.volume.0, p.offset, p.length())).collect::<Vec<_>>(), [(0, 0, 16), (1, 16, 16)]);
}

#[test]
fn a_range_at_the_end_of_all_offsets_is_read_without_overflow() {
    let overlay = Overlay::new(1);
    let offset = u64::MAX - 4095;
    assert_eq!(overlay.read(VolumeId(0), offset, 4095).parts, [ReadPart::Store { offset, length: 4095 }]);
    assert_eq!(overlay.read(VolumeId(0), 0, 0).parts, []);
}
