//! The newest superblock goes bad between two processes: the other one says all that anybody was told.

use super::duo_tests::{ALPHA, BETA, Duo, MemDisk};
use super::*;
use crate::format::superblock::{SLOT_BYTES, SLOT_OFFSETS, decode};

fn slots(disk: &mut MemDisk) -> [Option<u64>; 2] {
    SLOT_OFFSETS.map(|at| {
        let slot = disk.read(Part::Log, at, SLOT_BYTES as u64).unwrap();
        decode(&slot).ok().map(|s| s.sequence)
    })
}

/// Stops a node, turns a bit of its newest superblock over, and starts it.
fn restart_without_the_newest(duo: &mut Duo, side: usize) {
    duo.stop(side);
    let disk = &mut duo.sides[side].disk;
    let newest = slots(disk).iter().enumerate().max_by_key(|(_, sequence)| **sequence).map(|(n, _)| n).unwrap();
    disk.parts.get_mut(&Part::Log).unwrap()[SLOT_OFFSETS[newest] as usize + 100] ^= 1;
    duo.start(side);
}

#[test]
fn a_term_outlives_the_newest_superblock() {
    let mut duo = Duo::new();
    duo.run_ms(100);
    duo.order(ALPHA, Command::Promote { force: false, off: vec![] }).unwrap();
    // Before anything else is written.
    for _ in 0..3 {
        restart_without_the_newest(&mut duo, ALPHA);
        let terms = duo.node(ALPHA).lineage().len();
        assert!(terms == 1 && duo.status(ALPHA).active.as_deref() == Some("alpha"), "{terms} terms");
    }
}

/// A member has adopted a lineage before it acknowledges anything in it: without it what it holds would be nobody's.
#[test]
fn a_lineage_outlives_the_newest_superblock() {
    let mut duo = Duo::new();
    duo.run_ms(100);
    duo.order(ALPHA, Command::Promote { force: false, off: vec![] }).unwrap();
    while duo.status(ALPHA).peers[0].state == "preparing" || duo.status(ALPHA).peers[0].state == "handshake" {
        duo.run_ms(1);
    }
    restart_without_the_newest(&mut duo, BETA);
    assert_eq!(duo.node(BETA).lineage().len(), 1);
}

/// No slot is left behind by a start: what it says is what the node goes by from then on.
#[test]
fn a_start_writes_the_other_slot() {
    let mut duo = Duo::in_sync();
    duo.stop(BETA);
    let before = slots(&mut duo.sides[BETA].disk);
    duo.start(BETA);
    let after = slots(&mut duo.sides[BETA].disk);
    assert!(before.iter().max() < after.iter().min(), "{before:?}, {after:?}");
}
