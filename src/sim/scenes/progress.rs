//! Where a world once stood still for ever (invariant 7).

use super::*;

/// With `on_stall = "suspend"` a member that has parted from a forced active was waited for, and could be made whole only by what
/// that one had committed.
#[test]
fn a_member_that_needs_a_resync_is_not_waited_for() {
    let mut scene = Scene::of(3, |plan| (plan.on_stall, plan.flush_ms, plan.apply_ms) = (OnStall::Suspend, 5, 5));
    scene.0.stop(GAMMA, false);
    scene.until("gamma is dropped", |s| s.members(ALPHA) == 2);
    // In a later term, or gamma would fetch what beta holds.
    scene.order(ALPHA, Command::Demote { force: false });
    scene.until("alpha is passive", |s| !s.serves(ALPHA));
    scene.run(SECOND);
    scene.promote(ALPHA);
    scene.until("beta follows", |s| s.serves(ALPHA) && s.members(ALPHA) == 2);
    scene.load(ALPHA);
    scene.until("beta has applied what gamma lacks", |s| s.brain(BETA).watermarks()[4] > Lsn(20));
    scene.0.stop(ALPHA, false);
    scene.0.start(GAMMA).expect("gamma starts");
    scene.run(SECOND);
    scene.force(GAMMA, &["alpha"]);
    scene.until("gamma serves", |s| s.serves(GAMMA));
    let members = |s: &Scene| s.brain(GAMMA).charter().in_sync.iter().map(|m| m.node.clone()).collect::<Vec<_>>();
    assert!(members(&scene).contains(&"beta".to_string()), "the case is about a listed member");
    scene.run(5 * SECOND);
    scene.0.load = false;
    scene.run(SECOND);
    let [end, .., applied, _] = scene.brain(BETA).watermarks();
    assert_eq!((end, applied), (scene.brain(GAMMA).accepted(), end), "beta is not whole");
    assert_eq!(scene.members(GAMMA), 2);
}

/// Small blocks fill a ring with headers and padding. alpha's log hangs while the others take more records than a ring can hold, then
/// alpha is restarted. gamma, if there is one, is parted from both and lacks all of it.
fn a_tail_that_fits_no_ring(nodes: usize) -> Scene {
    let mut scene = Scene::of(nodes, |plan| {
        (plan.geometry.block, plan.log_size, plan.stall_ms) = (512, 384 << 10, 60_000);
        (plan.flush_ms, plan.apply_ms) = (1000, 60_000);
        (plan.habits.depth, plan.habits.max_blocks, plan.habits.think_us) = (256, 1, 100);
        (plan.habits.reads, plan.habits.flushes, plan.habits.fua_per_mille) = (0, 0, 0);
    });
    scene.0.slot(ALPHA).disk.mood.access_us = 3600 * SECOND;
    if nodes > 2 {
        [ALPHA, BETA].into_iter().for_each(|n| scene.part(n, GAMMA));
    }
    scene.load(ALPHA);
    scene.until("beta has more than a ring", |s| s.brain(BETA).accepted() > Lsn(105));
    scene.0.load = false;
    scene.run(2 * SECOND);
    scene.0.stop(ALPHA, false);
    scene.0.slot(ALPHA).disk.mood.access_us = 20;
    scene.0.start(ALPHA).expect("it starts");
    scene
}

/// A restarted active fetches what its member holds; its ring is full of what both have durable, and nobody is there to say that this is
/// committed.
#[test]
fn a_full_ring_takes_in_a_fetched_tail() {
    let mut scene = a_tail_that_fits_no_ring(2);
    let end = scene.brain(BETA).accepted();
    scene.until("alpha serves again", |s| s.serves(ALPHA));
    scene.until("all are in sync", |s| s.members(ALPHA) == 2);
    scene.until("alpha has all of it", |s| s.brain(ALPHA).watermarks()[2] >= end);
}

/// Where a member lacks all of it, nothing of it is committed: the promotion comes to an end, in words, and an operator can decide.
#[test]
fn a_tail_that_does_not_fit_is_refused_in_words() {
    let mut scene = a_tail_that_fits_no_ring(3);
    [ALPHA, BETA].into_iter().for_each(|n| scene.0.mend(n, GAMMA));
    scene.run(15 * SECOND);
    assert!(!scene.serves(ALPHA), "the case is about a tail that does not fit");
    scene.promote(ALPHA);
    scene.run(15 * SECOND);
    assert_eq!(scene.0.counts.get("refused NoRoom"), 1, "it holds its claim for ever: {}", scene.0.counts);
    scene.0.stop(GAMMA, false);
    scene.run(SECOND);
    scene.force(BETA, &["gamma"]);
    scene.until("beta serves", |s| s.serves(BETA));
    scene.until("alpha is in sync", |s| s.members(BETA) == 2);
}

/// What rots in the ring of an active that goes on running costs reach and no more: the peer that needs it gets contents instead (L2).
#[test]
fn rot_in_the_ring_of_an_active_costs_reach() {
    let mut scene = Scene::of(2, |plan| (plan.log_size, plan.flush_ms, plan.apply_ms) = (1 << 20, 5, 5));
    scene.part(ALPHA, BETA);
    scene.until("alpha is alone", |s| s.members(ALPHA) == 1);
    let began = scene.brain(ALPHA).accepted();
    scene.load(ALPHA);
    scene.until("beta lacks what alpha has applied", |s| s.brain(ALPHA).watermarks()[5] > Lsn(began.0 + 20));
    scene.0.load = false;
    scene.run(SECOND);
    assert_eq!(scene.0.counts.get("notice LogOverflow"), 0, "the log still reaches back to what beta lacks");
    scene.0.rot_ring(ALPHA);
    scene.0.mend(ALPHA, BETA);
    scene.until("beta is in sync", |s| s.members(ALPHA) == 2);
    assert!(scene.0.counts.get("notice LogUnreadable") > 0 && scene.0.counts.get("notice ResyncFinished") > 0);
    let status = scene.brain(ALPHA).status(Time(0));
    assert!(status.problems.iter().any(|p| p.part == "log" && p.what.contains("could not be read back")));
    scene.0.inspect(BETA).expect("what beta holds is right");
}
