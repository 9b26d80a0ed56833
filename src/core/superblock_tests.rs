//! The newest superblock goes bad between two processes: the other one says all that anybody was told.

use super::duo_tests::{ALPHA, BETA, Duo, MemDisk};
use super::*;
use crate::format::superblock::{SLOT_BYTES, SLOT_OFFSETS, Superblock, decode};

fn superblocks(disk: &mut MemDisk) -> [Option<Superblock>; 2] {
    SLOT_OFFSETS.map(|at| decode(&disk.read(Part::Log, at, SLOT_BYTES as u64).unwrap()).ok())
}

fn slots(disk: &mut MemDisk) -> [Option<u64>; 2] {
    superblocks(disk).map(|s| s.map(|s| s.sequence))
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

/// Both slots of a node say this.
fn both_say(duo: &mut Duo, side: usize, what: impl Fn(&Superblock) -> bool) -> bool {
    superblocks(&mut duo.sides[side].disk).iter().all(|s| s.as_ref().is_some_and(&what))
}

/// C9: whoever let another node be promoted does not forget it, or it could be promoted beside that one.
#[test]
fn a_pledge_stands_before_the_claim_is_granted() {
    let mut duo = Duo::new();
    duo.run_ms(100);
    duo.sides[BETA].io_us = 20_000;
    // So that beta does not follow it, and forget the pledge, in the same millisecond.
    duo.wire_us = 5000;
    duo.tell(
        ALPHA,
        Event::Command { id: CommandId(1_000_000), command: Command::Promote { force: false, off: vec![] } },
    );
    while !duo.sides[ALPHA].serves {
        duo.run_ms(1);
    }
    assert!(both_say(&mut duo, BETA, |s| s.pledge.as_deref() == Some("alpha")));
}

/// C9: a drop counts when it is durable here, or a restart would wait for a member that may have been without what completed since.
#[test]
fn a_drop_stands_before_it_counts() {
    let mut duo = Duo::in_sync();
    duo.run_ms(500);
    duo.sides[ALPHA].io_us = 20_000;
    duo.part();
    while duo.status(ALPHA).in_sync.len() == 2 {
        duo.run_ms(1);
    }
    assert!(both_say(&mut duo, ALPHA, |s| s.charter.in_sync.len() == 1));
}

/// One slot was enough for the program before: what was written in the term counts.
#[test]
fn a_term_that_has_records_was_served_in() {
    let mut duo = Duo::in_sync();
    duo.stop(ALPHA);
    let before = duo.sides[BETA].disk.parts[&Part::Log][..SLOT_OFFSETS[1] as usize + SLOT_BYTES].to_vec();
    duo.run_ms(4000);
    duo.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] }).unwrap();
    duo.write(BETA, 0, true);
    duo.run_ms(50);
    duo.stop(BETA);
    // The older slot as it was before the promotion.
    let older = slots(&mut duo.sides[BETA].disk).iter().enumerate().min_by_key(|(_, s)| **s).map(|(n, _)| n).unwrap();
    let range = SLOT_OFFSETS[older] as usize..SLOT_OFFSETS[older] as usize + SLOT_BYTES;
    duo.sides[BETA].disk.parts.get_mut(&Part::Log).unwrap()[range.clone()].copy_from_slice(&before[range]);
    duo.start(BETA);
    assert_eq!((duo.node(BETA).lineage().len(), duo.node(BETA).accepted()), (2, Lsn(1)));
}
