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

/// Its first superblock is on the disk, and no more: whoever forced it was told of no success, and the others go on as before (C7).
#[test]
fn a_term_that_stands_in_one_slot_was_never_served_in() {
    let mut duo = Duo::in_sync();
    duo.part();
    duo.run_ms(4000);
    duo.sides[BETA].io_us = 10_000;
    let before = slots(&mut duo.sides[BETA].disk);
    let force = Command::Promote { force: true, off: vec!["alpha".into()] };
    duo.tell(BETA, Event::Command { id: CommandId(1_000_000), command: force });
    while slots(&mut duo.sides[BETA].disk) == before {
        duo.run_ms(1);
    }
    assert!(!duo.sides[BETA].serves);
    duo.stop(BETA);
    duo.sides[BETA].io_us = 50;
    duo.start(BETA);
    assert_eq!((duo.status(BETA).active.as_deref(), duo.node(BETA).lineage().len()), (Some("alpha"), 1));
    duo.parted = false;
    duo.run_ms(5000);
    assert!(duo.sides[ALPHA].serves && duo.status(ALPHA).in_sync.len() == 2);
}
