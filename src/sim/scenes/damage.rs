//! Logs that were damaged while their node was down (L2).

use super::*;
use crate::core::BlockingDisk;
use crate::format::batch::decode_header;
use crate::format::superblock::{RING_START, SLOT_BYTES, SLOT_OFFSETS, choose};
use crate::sim::disk::Blocking;

const PAGE: u64 = 4096;

/// Alpha has written, beta has it, and both are at rest. `apply_ms` decides whether it is in the stores.
fn written(apply_ms: u64) -> Scene {
    let mut scene = Scene::of(2, |plan| {
        (plan.log_sizes, plan.flush_ms, plan.apply_ms) = (vec![16 << 20; 2], 5, apply_ms);
        (plan.habits.depth, plan.habits.max_blocks, plan.habits.reads) = (4, 4, 0);
    });
    scene.load(ALPHA);
    scene.until("beta holds some", |s| s.brain(BETA).watermarks()[2] > Lsn(60));
    scene.0.load = false;
    scene.run(2 * SECOND);
    scene
}

/// Ends a node and damages the header of the first batch of its log that begins after `after`.
fn damage(scene: &mut Scene, node: NodeId, after: Lsn) {
    scene.0.stop(node, false);
    let disk = &mut scene.0.slot(node).disk;
    let pages = RING_START / PAGE..disk.size(Part::Log) / PAGE;
    let headers = pages.filter_map(|n| Some((n, decode_header(&disk.page(Part::Log, n)?).ok()?.0)));
    let (page, _) =
        headers.filter(|(_, h)| h.fields.first > after).min_by_key(|(_, h)| h.fields.first).expect("a batch");
    disk.turn_over(Part::Log, page * PAGE + 100, 1);
    scene.0.slot(node).rotten = true;
}

fn problem(scene: &Scene, node: NodeId) -> bool {
    scene.brain(node).status(Time(0)).problems.iter().any(|p| p.part == "log" && p.what.starts_with("damaged"))
}

#[test]
fn damage_below_the_checkpoint_costs_reach() {
    for node in [BETA, ALPHA] {
        let mut scene = written(5);
        let [end, .., checkpointed] = scene.brain(node).watermarks();
        assert_eq!(end, checkpointed, "all of it is in the store");
        damage(&mut scene, node, Lsn(10));
        scene.0.start(node).expect("it starts");
        assert_eq!(scene.brain(node).accepted(), end, "nothing is lost");
        assert!(scene.brain(node).status(Time(0)).log.from > Lsn(10));
        scene.until("both are in sync again", |s| s.members(ALPHA) == 2 && s.serves(ALPHA));
        let counts = &scene.0.counts;
        let seen = ["notice LogUnreadable", "notice LogDamaged", "notice ResyncFinished"].map(|n| counts.get(n));
        assert_eq!(seen, [1, 0, 0]);
        scene.0.inspect(node).expect("what it holds is right");
    }
}

#[test]
fn a_passive_whose_log_is_damaged_gets_it_back_from_its_active() {
    let mut scene = written(60_000);
    let end = scene.brain(BETA).accepted();
    damage(&mut scene, BETA, Lsn(20));
    scene.0.start(BETA).expect("it starts");
    let held = scene.brain(BETA).accepted();
    assert!(held >= Lsn(20) && held < end && problem(&scene, BETA), "{held:?} of {end:?}");
    // The damage is not found again behind what takes its place.
    scene.0.slot(BETA).rotten = true;
    scene.0.stop(BETA, false);
    scene.0.start(BETA).expect("it starts once more");
    assert!(scene.brain(BETA).accepted() == held && problem(&scene, BETA), "it has forgotten that something is lost");
    scene.until("it has all of it", |s| s.members(ALPHA) == 2 && s.brain(BETA).watermarks()[2] == end);
    scene.run(SECOND);
    assert!(!problem(&scene, BETA) && scene.0.counts.get("notice LogMended") == 1);
    scene.0.stop(BETA, false);
    scene.0.start(BETA).expect("it starts");
    assert!(scene.brain(BETA).accepted() == end && !problem(&scene, BETA));
    scene.0.inspect(BETA).expect("what it holds is right");
}

#[test]
fn an_active_whose_log_is_damaged_is_promoted_by_force_alone() {
    for beta_is_there in [true, false] {
        let mut scene = written(60_000);
        let end = scene.brain(ALPHA).accepted();
        damage(&mut scene, ALPHA, Lsn(20));
        scene.0.start(ALPHA).expect("it starts");
        scene.run(10 * SECOND);
        assert!(!scene.serves(ALPHA), "it has resumed without what it had promised");
        scene.promote(ALPHA);
        scene.run(SECOND);
        assert!(!scene.serves(ALPHA) && scene.0.counts.get("refused Damaged") == 1, "{}", scene.0.counts);
        if beta_is_there {
            scene.promote(BETA);
            scene.until("alpha follows beta", |s| s.serves(BETA) && s.members(BETA) == 2);
            scene.until("alpha has all of it", |s| s.brain(ALPHA).watermarks()[2] >= end && !problem(s, ALPHA));
        } else {
            scene.0.stop(BETA, false);
            scene.run(SECOND);
            scene.force(ALPHA, &["beta"]);
            scene.until("alpha serves what it has", |s| s.serves(ALPHA));
            assert!(scene.brain(ALPHA).accepted() < end && !problem(&scene, ALPHA));
        }
    }
}

/// Checkpoint, and how far the round of applying goes that is under way, by the newest superblock.
fn round(scene: &Scene, node: NodeId) -> Option<(Lsn, Lsn)> {
    let mut disk = scene.0.slots[node.0 as usize].disk.clone();
    let mut disk = Blocking { disk: &mut disk, calls: None };
    let slots = SLOT_OFFSETS.map(|at| disk.read(Part::Log, at, SLOT_BYTES as u64).expect("a superblock"));
    let (newest, _) = choose(&slots[0], &slots[1]).expect("a superblock");
    (newest.applying > newest.checkpoint).then_some((newest.checkpoint, newest.applying))
}

/// Its position says that it holds what it acknowledged, and its stores are no image: nobody asks it for that.
#[test]
fn a_passive_that_lost_its_image_with_its_log_owes_nothing() {
    let mut scene = written(5);
    scene.0.load = true;
    scene.until("beta applies some", |s| round(s, BETA).is_some());
    let (checkpoint, _) = round(&scene, BETA).expect("just seen");
    // Ending it changes nothing on its disk.
    damage(&mut scene, BETA, checkpoint);
    scene.0.start(BETA).expect("it starts");
    assert!(!scene.brain(BETA).has_image(), "the round was not cut");
    for _ in 0..5 {
        scene.0.inspect(BETA).expect("a copy says that it holds no image");
    }
    assert!(scene.0.counts.get("images refused") > 0 && scene.0.counts.get("images lost to rot") == 1);
    scene.until("it is made whole", |s| s.members(ALPHA) == 2 && s.brain(BETA).has_image());
}
