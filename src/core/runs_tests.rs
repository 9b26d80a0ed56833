//! Packed runs against plain lists and sets.

use super::*;
use proptest::prelude::*;

const SIZES: [u64; 3] = [1 << 40, 5 * DIRTY_BLOCK + 512, 1 << 30];

fn extents() -> impl Strategy<Value = Vec<Extent>> {
    let one = (0..3u16, prop_oneof![0..8u64, 0..1u64 << 28], prop_oneof![1..4u64, 1..100_000u64]);
    let make = |(volume, block, blocks): (u16, u64, u64)| Extent {
        volume: VolumeId(volume),
        offset: block * DIRTY_BLOCK,
        length: blocks * DIRTY_BLOCK,
    };
    prop::collection::vec(one.prop_map(make), 0..40)
}

fn set_of(extents: impl IntoIterator<Item = Extent>) -> DirtySet {
    let mut set = DirtySet::new(&SIZES);
    extents.into_iter().for_each(|e| set.add(e));
    set
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn a_set_comes_back_from_its_pieces_and_from_a_record(list in extents()) {
        let set = set_of(list);
        let mut again = DirtySet::new(&SIZES);
        for piece in set.pieces() {
            again.add_piece(&piece).unwrap();
        }
        prop_assert!(again == set);
        let mut padded = DirtySet::new(&SIZES);
        for piece in set.pieces() {
            let record = piece_record(&piece);
            prop_assert_eq!(record.length % BLOCK as u64, 0);
            padded.add_piece(&record.payload).unwrap();
        }
        prop_assert!(padded == set);
    }

    #[test]
    fn runs_are_the_union_of_what_was_added(first in extents(), second in extents()) {
        let runs = Runs::default().with(first.clone()).with(second.clone());
        prop_assert!(set_of(runs.iter()) == set_of(first.iter().chain(&second).copied()));
        let sorted: Vec<Extent> = runs.iter().collect();
        prop_assert!(sorted.windows(2).all(|w| (w[0].volume, w[0].offset + w[0].length) < (w[1].volume, w[1].offset)));
    }

    #[test]
    fn within_a_limit_more_counts_and_nothing_less(list in extents(), limit in 16..200usize) {
        let exact = Runs::default().with(list.clone());
        let coarse = exact.clone().within(limit);
        prop_assert!(coarse.bytes() <= limit.max(30), "{} bytes", coarse.bytes());
        let found = set_of(coarse.iter());
        for e in set_of(exact.iter()).extents() {
            let blocks = (e.offset..e.offset + e.length).step_by(DIRTY_BLOCK as usize).take(50);
            prop_assert!(blocks.into_iter().all(|at| found.contains(e.volume, at)), "{e:?}");
        }
        // What comes later is rounded alike.
        let more = coarse.with(list.clone()).within(limit);
        prop_assert!(more.bytes() <= limit.max(30));
    }

    #[test]
    fn bytes_from_strangers_are_refused_or_runs(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        for run in unpack(&bytes).flatten() {
            prop_assert!(run.length > 0 && run.offset.checked_add(run.length).is_some());
        }
    }
}

#[test]
fn scattered_writes_take_five_bytes() {
    let mut numbers = 1u64;
    let list: Vec<Extent> = (0..100_000)
        .map(|_| {
            numbers = numbers.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            Extent { volume: VolumeId(0), offset: (numbers >> 33) * DIRTY_BLOCK, length: DIRTY_BLOCK }
        })
        .collect();
    let runs = Runs::default().with(list);
    assert!(runs.bytes() <= 5 * 100_000, "{} bytes", runs.bytes());
}

#[test]
fn a_run_that_is_cut_off_is_an_error() {
    let mut packed = Packer::default();
    packed.push(Extent { volume: VolumeId(0), offset: 1 << 30, length: 1 << 20 });
    let bytes = packed.into_bytes();
    assert_eq!(unpack(&bytes[..bytes.len() - 1]).last(), Some(Err(BadRuns)));
}
