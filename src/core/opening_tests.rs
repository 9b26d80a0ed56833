//! What a charter opens with, and when a node that was active goes on by it: files that were changed meanwhile, and promotions that ended
//! before they served.

use super::duo_tests::{ALPHA, BETA, Duo};
use super::hello::Member;
use super::notice::Refusal;
use super::*;
use crate::format::superblock::{SLOT_BYTES, SLOT_OFFSETS, decode};

/// alpha's charter lists a node that no file knows.
fn with_a_ghost(duo: &mut Duo) {
    duo.node(ALPHA).charter.in_sync.push(Member { node: "gamma".into(), incarnation: Incarnation(7) });
}

fn plainly() -> Command {
    Command::Promote { force: false, off: vec![] }
}

fn force_beta() -> Command {
    Command::Promote { force: true, off: vec!["alpha".into()] }
}

/// An async node is never in sync, so nothing waits for it (contract 2), though it was in sync when the active ended.
#[test]
fn a_member_that_became_async_is_listed_no_more() {
    let mut duo = Duo::in_sync();
    duo.stop(ALPHA);
    duo.tune = |c| c.nodes[BETA].mode = Mode::Async;
    duo.start(ALPHA);
    duo.run_ms(5000);
    assert!(duo.sides[ALPHA].serves);
    assert_eq!(duo.status(ALPHA).in_sync, ["alpha"]);
}

/// With `suspend` nothing completes on one node alone: a member that the file does not know is no second copy.
#[test]
fn a_member_that_is_not_in_the_file_is_no_second_copy() {
    let mut duo = Duo::tuned(|c| c.on_stall = OnStall::Suspend);
    duo.promote();
    with_a_ghost(&mut duo);
    duo.stop(BETA);
    duo.run_ms(3000);
    let req = duo.write(ALPHA, 0, true);
    duo.run_ms(3000);
    assert_eq!(duo.status(ALPHA).state, "suspended");
    assert!(duo.sides[ALPHA].replies.iter().all(|(_, r, _)| *r != req), "nobody else has it");
}

#[test]
fn a_restarted_active_says_why_it_does_not_resume() {
    let mut duo = Duo::in_sync();
    with_a_ghost(&mut duo);
    duo.write(ALPHA, 0, true);
    duo.run_ms(1000);
    duo.stop(ALPHA);
    duo.start(ALPHA);
    duo.run_ms(5000);
    assert!(!duo.sides[ALPHA].serves);
    let waiting = duo.status(ALPHA).waiting.expect("a word about it");
    assert!(waiting.what.contains("gamma is in sync or active"), "{}", waiting.what);
    assert!(!waiting.remedy.contains("gamma"), "no node of that name can be given: {}", waiting.remedy);
    // Nor does it say that it waits for gamma while the other one is away too.
    duo.stop(BETA);
    duo.run_ms(5000);
    let waiting = duo.status(ALPHA).waiting.expect("a word about it");
    assert!(!waiting.remedy.contains("gamma") && waiting.remedy.contains("--off beta"), "{}", waiting.remedy);
}

fn both_slots_say_generation_2(duo: &mut Duo, side: usize) -> bool {
    SLOT_OFFSETS.iter().all(|at| {
        let slot = duo.sides[side].disk.read(Part::Log, *at, SLOT_BYTES as u64).unwrap();
        decode(&slot).is_ok_and(|s| s.charter.generation.0 == 2)
    })
}

/// The superblocks are written, and the node dies before it serves, or hears that they failed: the command was answered with no success,
/// so the operator may have gone on elsewhere. It does not go on by itself, nor at a plain word (C7).
#[test]
fn a_forced_promotion_that_ended_before_it_served_is_decided_anew() {
    let mut duo = Duo::in_sync();
    duo.part();
    duo.run_ms(4000);
    duo.sides[BETA].io_us = 10_000;
    duo.tell(BETA, Event::Command { id: CommandId(1_000_000), command: force_beta() });
    while !both_slots_say_generation_2(&mut duo, BETA) {
        duo.run_ms(1);
    }
    assert!(!duo.sides[BETA].serves);
    duo.stop(BETA);
    duo.sides[BETA].io_us = 50;
    duo.start(BETA);
    duo.run_ms(5000);
    assert!(!duo.sides[BETA].serves, "it has resumed");
    let waiting = duo.status(BETA).waiting.expect("a word about it");
    assert!(waiting.what.contains("is not known to have served"), "{}", waiting.what);
    let refused = duo.order(BETA, plainly());
    assert!(matches!(&refused, Err(Refusal::Unserved { .. })), "{refused:?}");
    duo.order(BETA, force_beta()).unwrap();
    // That one has served: it goes on after a restart.
    duo.run_ms(100);
    duo.stop(BETA);
    duo.start(BETA);
    duo.run_ms(5000);
    assert!(duo.sides[BETA].serves);
}

#[test]
fn a_promotion_whose_superblock_failed_may_stand_and_says_so() {
    let mut duo = Duo::in_sync();
    duo.part();
    duo.run_ms(4000);
    duo.sides[BETA].disk.broken.insert(Part::Log, 5);
    let refused = duo.order(BETA, force_beta());
    assert!(
        matches!(&refused, Err(Refusal::Faulted { what }) if what.contains("may stand on the disk")),
        "{refused:?}"
    );
    // This process was never active, and outvotes nobody.
    assert_eq!(duo.status(BETA).active.as_deref(), Some("alpha"));
    duo.parted = false;
    duo.run_ms(5000);
    assert!(duo.sides[ALPHA].serves);
}
