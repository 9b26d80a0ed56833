//! The dirty set against one bool per block.

use super::*;
use proptest::prelude::*;

const CHUNK_BYTES: u64 = CHUNK * DIRTY_BLOCK;

/// Several chunks and a short last block; less than a word; exactly one chunk; nothing but a short block; two whole
/// chunks, so that runs end at the end of a chunk and begin at the start of a volume.
const SIZES: [u64; 5] = [2 * CHUNK_BYTES + 70 * DIRTY_BLOCK + 512, 3 * DIRTY_BLOCK, CHUNK_BYTES, 1536, 2 * CHUNK_BYTES];

fn extent(volume: u16, offset: u64, length: u64) -> Extent {
    Extent { volume: VolumeId(volume), offset, length }
}

/// One bool per block, by volume.
#[derive(Clone)]
struct Model(Vec<Vec<bool>>);

impl Model {
    fn new() -> Model {
        Model(SIZES.iter().map(|size| vec![false; size.div_ceil(DIRTY_BLOCK) as usize]).collect())
    }

    /// The bytes of a block, as far as the volume has them.
    fn span(volume: usize, block: usize) -> (u64, u64) {
        let start = block as u64 * DIRTY_BLOCK;
        (start, (start + DIRTY_BLOCK).min(SIZES[volume]))
    }

    fn change(&mut self, e: Extent, dirty: bool) {
        let volume = e.volume.0 as usize;
        let Some(blocks) = self.0.get_mut(volume) else { return };
        let end = e.offset.saturating_add(e.length);
        for (index, block) in blocks.iter_mut().enumerate() {
            let (start, stop) = Model::span(volume, index);
            let hit = match dirty {
                true => e.length > 0 && e.offset < stop && end > start,
                false => e.offset <= start && end >= stop,
            };
            if hit {
                *block = dirty;
            }
        }
    }

    fn runs(&self) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        for (volume, blocks) in self.0.iter().enumerate() {
            for index in (0..blocks.len()).filter(|&i| blocks[i]) {
                let (start, stop) = Model::span(volume, index);
                match runs.last_mut() {
                    Some(run) if run.volume.0 as usize == volume && run.offset + run.length == start => {
                        run.length += stop - start
                    }
                    _ => runs.push(extent(volume as u16, start, stop - start)),
                }
            }
        }
        runs
    }

    /// The first run at or after a place, out of all runs.
    fn next(runs: &[Extent], from: (VolumeId, u64), max_bytes: u64) -> Option<Extent> {
        let run = runs.iter().find(|r| (r.volume, r.offset + r.length - 1) >= from)?;
        let end = run.offset + run.length;
        let start = if run.volume == from.0 { run.offset.max(from.1) } else { run.offset };
        let whole_blocks = start.saturating_add(max_bytes) / DIRTY_BLOCK * DIRTY_BLOCK;
        let first_block = (start / DIRTY_BLOCK + 1) * DIRTY_BLOCK;
        let stop = whole_blocks.max(first_block).min(end);
        Some(Extent { volume: run.volume, offset: start, length: stop - start })
    }
}

/// A place: near the borders of words, chunks and volumes more often than elsewhere.
fn place() -> impl Strategy<Value = (u16, u64)> {
    let block = prop_oneof![
        4 => (prop_oneof![Just(0), Just(64), Just(CHUNK), Just(2 * CHUNK), Just(2 * CHUNK + 70)], -3..4i64)
            .prop_map(|(at, d)| (at as i64 + d).max(0) as u64),
        1 => 0..2 * CHUNK + 80,
    ];
    let skew = prop_oneof![4 => Just(0), 1 => Just(512u64), 1 => Just(3584)];
    let volume = prop_oneof![1 => Just(0), 1 => 0..SIZES.len() as u16 + 1];
    (volume, block, skew).prop_map(|(volume, block, skew)| (volume, block * DIRTY_BLOCK + skew))
}

fn extents() -> impl Strategy<Value = Extent> {
    let length = prop_oneof![
        1 => Just(0),
        2 => Just(512),
        4 => (1..200u64).prop_map(|n| n * DIRTY_BLOCK),
        3 => (0..2u64, -2..3i64).prop_map(|(n, d)| (((n + 1) * CHUNK) as i64 + d) as u64 * DIRTY_BLOCK),
        1 => Just(u64::MAX),
    ];
    (place(), length).prop_map(|((volume, offset), length)| extent(volume, offset, length))
}

#[derive(Clone, Debug)]
enum Op {
    Add(Extent),
    Remove(Extent),
    AddAll(Vec<Extent>),
    Next((u16, u64), u64),
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    let max = prop_oneof![
        Just(0),
        Just(512u64),
        Just(10_000),
        Just(1 << 20),
        (1..12u64).prop_map(|n| n * 2048),
        Just(u64::MAX)
    ];
    prop_oneof![
        8 => extents().prop_map(Op::Add),
        6 => extents().prop_map(Op::Remove),
        2 => prop::collection::vec(extents(), 0..4).prop_map(Op::AddAll),
        6 => (place(), max).prop_map(|(place, max)| Op::Next(place, max)),
        1 => Just(Op::Clear),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn agrees_with_a_bool_per_block(ops in prop::collection::vec(op(), 1..24), probes in prop::collection::vec(place(), 8)) {
        let mut set = DirtySet::new(&SIZES);
        let mut model = Model::new();
        let mut runs = Vec::new();
        for op in ops {
            match op {
                Op::Add(e) => {
                    set.add(e);
                    model.change(e, true);
                }
                Op::Remove(e) => {
                    set.remove(e);
                    model.change(e, false);
                }
                Op::AddAll(extents) => {
                    let mut other = DirtySet::new(&SIZES);
                    for e in extents {
                        other.add(e);
                        model.change(e, true);
                    }
                    set.add_all(&other);
                }
                Op::Next((volume, offset), max) => {
                    let from = (VolumeId(volume), offset);
                    prop_assert_eq!(set.next(from, max), Model::next(&runs, from, max));
                    continue;
                }
                Op::Clear => {
                    set.clear();
                    model = Model::new();
                }
            }
            runs = model.runs();
            prop_assert_eq!(set.extents().collect::<Vec<_>>(), runs.clone());
            prop_assert_eq!(set.bytes(), runs.iter().map(|r| r.length).sum::<u64>());
            prop_assert_eq!(set.is_empty(), runs.is_empty());
            for &(volume, offset) in &probes {
                let inside = runs.iter().any(|r| {
                    r.volume.0 == volume && (r.offset..r.offset + r.length).contains(&offset)
                });
                prop_assert_eq!(set.contains(VolumeId(volume), offset), inside, "{} at {}", volume, offset);
            }
            // One form for one content: built anew from its runs it is the same, compact form included.
            let mut again = DirtySet::new(&SIZES);
            set.extents().for_each(|e| again.add(e));
            prop_assert!(again == set, "{:?} is not {:?}", again, set);
        }
    }
}

#[test]
fn a_fully_dirty_tebibyte_holds_no_bits() {
    let mut set = DirtySet::new(&[1 << 40]);
    // In parts, so that the chunks become full rather than being added full.
    set.add(extent(0, 4096, (1 << 40) - 4096));
    set.add(extent(0, 0, 4096));
    assert_eq!(set.extents().collect::<Vec<_>>(), [extent(0, 0, 1 << 40)]);
    assert_eq!((set.bytes(), set.chunks.len()), (1 << 40, 8192));
    assert!(set.chunks.values().all(|chunk| *chunk == Chunk::Full));
}

#[test]
fn a_block_that_is_partly_removed_stays_dirty() {
    let mut set = DirtySet::new(&[3 * DIRTY_BLOCK]);
    set.add(extent(0, 0, 3 * DIRTY_BLOCK));
    set.remove(extent(0, 512, 2 * DIRTY_BLOCK));
    assert_eq!(set.extents().collect::<Vec<_>>(), [extent(0, 0, 4096), extent(0, 8192, 4096)]);
}

#[test]
fn a_walk_by_max_bytes_ends_at_a_short_last_block() {
    let mut set = DirtySet::new(&[DIRTY_BLOCK + 512, 1536]);
    set.add(extent(0, 0, u64::MAX));
    set.add(extent(1, 0, u64::MAX));
    let (mut seen, mut place) = (Vec::new(), (VolumeId(0), 0));
    while let Some(run) = set.next(place, 4096) {
        place = (run.volume, run.offset + run.length);
        seen.push(run);
        assert!(seen.len() < 10, "no end: {seen:?}");
    }
    assert_eq!(seen, [extent(0, 0, 4096), extent(0, 4096, 512), extent(1, 0, 1536)]);
    assert_eq!(set.next((VolumeId(u16::MAX), 0), 4096), None);
}

#[test]
fn a_run_ends_at_a_chunk_that_is_clean() {
    let mut set = DirtySet::new(&SIZES);
    let expected = [extent(0, CHUNK_BYTES - 4096, 4096), extent(0, 2 * CHUNK_BYTES, 8192)];
    expected.iter().for_each(|e| set.add(*e));
    assert_eq!(set.extents().collect::<Vec<_>>(), expected);
}

#[test]
fn a_run_from_within_a_block_is_as_long_as_allowed_across_chunks() {
    let mut set = DirtySet::new(&SIZES);
    set.add(extent(0, 0, 2 * CHUNK_BYTES));
    let from = CHUNK_BYTES - 4096 + 3584;
    // 512 bytes of the first block and one whole block, not one byte less.
    assert_eq!(set.next((VolumeId(0), from), 4096 + 512), Some(extent(0, from, 512 + 4096)));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// A set with a limit holds all that one without holds, and stays within it, whatever is taken out meanwhile.
    #[test]
    fn a_limit_errs_to_dirty(ops in prop::collection::vec((any::<bool>(), extents()), 1..40), limit in 400..20_000u64) {
        let mut exact = DirtySet::new(&SIZES);
        let mut bounded = DirtySet::bounded(&SIZES, limit);
        for (add, extent) in ops {
            if add {
                exact.add(extent);
                bounded.add(extent);
            } else {
                exact.remove(extent);
                bounded.remove(extent);
            }
            let floor = SIZES.len() as u64 * (CHUNK_COST + WORDS as u64 * 8);
            prop_assert!(bounded.memory() <= limit.max(floor) + WORDS as u64 * 8, "{bounded:?}: {}", bounded.memory());
            let held: u64 = bounded.chunks.values().map(Chunk::cost).sum();
            prop_assert_eq!(bounded.memory(), held);
            for run in exact.extents() {
                let blocks = (run.offset..run.offset + run.length).step_by(DIRTY_BLOCK as usize);
                prop_assert!(blocks.step_by(97).all(|at| bounded.contains(run.volume, at)), "{run:?}");
                prop_assert!(bounded.contains(run.volume, run.offset + run.length - 1), "{run:?}");
            }
            prop_assert_eq!(bounded.bytes(), bounded.extents().map(|e| e.length).sum::<u64>());
            prop_assert!(bounded.runs() as usize >= bounded.extents().count());
        }
    }

    /// All of it is given out, in pieces that are no longer than asked for, even where blocks are.
    #[test]
    fn everything_is_taken_out_piece_by_piece(list in prop::collection::vec(extents(), 1..10), limit in 300..3000u64) {
        let mut set = DirtySet::bounded(&SIZES, limit);
        list.into_iter().for_each(|e| set.add(e));
        let expected: Vec<Extent> = set.extents().collect();
        let (mut cursor, mut run, mut seen) = ((VolumeId(0), 0), None, DirtySet::of_grain(&SIZES, set.grain()));
        let mut bytes = 0;
        while let Some(piece) = set.take(&mut cursor, &mut run, 64 << 20) {
            prop_assert!(piece.length <= 64 << 20);
            bytes += piece.length;
            seen.add(piece);
        }
        prop_assert!(set.is_empty());
        prop_assert_eq!(bytes, expected.iter().map(|e| e.length).sum::<u64>());
        prop_assert_eq!(seen.extents().collect::<Vec<_>>(), expected);
    }
}

/// Issue 2: ten million blocks all over 8 TiB, and any volume however large.
#[test]
fn scattered_blocks_take_bounded_memory() {
    const LIMIT: u64 = 6 << 20;
    for (size, blocks) in [(8u64 << 40, 1_000_000), (8 << 40, 10_000_000), (1 << 50, 3_000_000)] {
        let mut set = DirtySet::bounded(&[size], LIMIT);
        let mut numbers = 1u64;
        for _ in 0..blocks {
            numbers = numbers.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            set.add(extent(0, (numbers >> 8) % (size / 4096) * 4096, 4096));
        }
        println!("{blocks} blocks in {} TiB: {} KiB, blocks of {} KiB", size >> 40, set.memory >> 10, set.grain >> 10);
        assert!(set.memory() <= LIMIT, "{} bytes", set.memory());
    }
    let mut set = DirtySet::bounded(&[1 << 50], LIMIT);
    set.add(extent(0, 0, 1 << 50));
    assert!(set.memory() <= LIMIT && set.bytes() == 1 << 50);
}

#[test]
fn the_grain_of_undo_lets_all_bits_fit() {
    let limit = 6 << 20;
    assert_eq!(DirtySet::grain_within(&[1 << 37], limit), 4096);
    let grain = DirtySet::grain_within(&[1 << 42, 1 << 30], limit);
    assert_eq!(grain, 128 << 10);
    let mut set = DirtySet::of_grain(&[1 << 42, 1 << 30], grain);
    for block in (0..1u64 << 42).step_by(2 * grain as usize) {
        set.add(extent(0, block, grain));
    }
    assert!(set.memory() <= limit, "{} bytes", set.memory());
}
