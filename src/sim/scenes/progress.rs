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
    assert_eq!(members(&scene), ["gamma"], "beta is a member of a promotion of which gamma holds nothing");
    scene.run(5 * SECOND);
    scene.0.load = false;
    scene.run(SECOND);
    let [end, .., applied, _] = scene.brain(BETA).watermarks();
    assert_eq!((end, applied), (scene.brain(GAMMA).accepted(), end), "beta is not whole");
    assert_eq!(scene.members(GAMMA), 2);
}

/// Alpha's log is smaller than those of the others, and hangs while gamma, the active, and beta take more records than it can hold. Then
/// gamma is gone, and alpha restarted. The fourth node, if there is one, is parted from all and lacks all of it.
fn a_tail_that_fits_no_ring(nodes: usize) -> Scene {
    let mut scene = Scene::of(nodes, |plan| {
        plan.log_sizes = vec![384 << 10, 2 << 20, 2 << 20, 2 << 20];
        (plan.geometry.block, plan.stall_ms) = (512, 60_000);
        (plan.flush_ms, plan.apply_ms) = (1000, 60_000);
        (plan.habits.depth, plan.habits.max_blocks, plan.habits.think_us) = (256, 1, 100);
        (plan.habits.reads, plan.habits.flushes, plan.habits.fua_per_mille) = (0, 0, 0);
    });
    scene.order(ALPHA, Command::Switchover { to: "gamma".into() });
    let all_follow = |s: &Scene| s.brain(GAMMA).status(Time(0)).peers.iter().all(|p| p.state == "in_sync");
    scene.until("gamma has taken over", |s| s.serves(GAMMA) && all_follow(s));
    scene.0.slot(ALPHA).disk.mood.access_us = 3600 * SECOND;
    if nodes > 3 {
        [ALPHA, BETA, GAMMA].into_iter().for_each(|n| scene.part(n, OFFSITE));
    }
    scene.load(GAMMA);
    scene.until("beta has more than alpha's ring", |s| s.brain(BETA).accepted() > Lsn(105));
    scene.0.load = false;
    scene.run(2 * SECOND);
    [GAMMA, ALPHA].into_iter().for_each(|n| scene.0.stop(n, false));
    scene.0.slot(ALPHA).disk.mood.access_us = 20;
    scene.0.start(ALPHA).expect("it starts");
    scene.until("it has met beta", |s| s.brain(ALPHA).status(Time(0)).peers.iter().any(|p| p.state == "idle"));
    scene
}

/// Alpha fetches what its member holds; its ring is full of what both have durable, and nobody is there to say that this is committed.
#[test]
fn a_full_ring_takes_in_a_fetched_tail() {
    let mut scene = a_tail_that_fits_no_ring(3);
    let end = scene.brain(BETA).accepted();
    scene.force(ALPHA, &["gamma"]);
    scene.until("alpha serves", |s| s.serves(ALPHA));
    scene.until("beta is in sync", |s| s.members(ALPHA) == 2);
    scene.until("alpha has all of it", |s| s.brain(ALPHA).watermarks()[2] >= end);
}

/// Where a member lacks all of it, nothing of it is committed: the promotion comes to an end, in words, and an operator can decide.
#[test]
fn a_tail_that_does_not_fit_is_refused_in_words() {
    let mut scene = a_tail_that_fits_no_ring(4);
    [ALPHA, BETA].into_iter().for_each(|n| scene.0.mend(n, OFFSITE));
    scene.run(SECOND);
    scene.force(ALPHA, &["gamma"]);
    scene.run(15 * SECOND);
    assert_eq!(scene.0.counts.get("refused NoRoom"), 1, "it holds its claim for ever: {}", scene.0.counts);
    assert!(!scene.serves(ALPHA));
    scene.0.stop(OFFSITE, false);
    scene.run(SECOND);
    scene.force(BETA, &["gamma", "offsite"]);
    scene.until("beta serves", |s| s.serves(BETA));
    scene.until("alpha is in sync", |s| s.members(BETA) == 2);
}

/// S1: whatever the blocks are, no more is accepted than every ring can hold, headers and padding included: here one whose member's log
/// hangs, so that nothing can be committed.
#[test]
fn a_ring_holds_all_that_is_not_committed() {
    for block in [512, 4096] {
        let mut scene = Scene::of(2, |plan| {
            (plan.geometry.block, plan.log_sizes, plan.stall_ms) = (block, vec![384 << 10; 2], 60_000);
            (plan.habits.depth, plan.habits.max_blocks, plan.habits.think_us) = (256, 1, 100);
            (plan.habits.reads, plan.habits.flushes, plan.habits.fua_per_mille) = (0, 0, 0);
            (plan.habits.zeroes, plan.habits.discards) = (3, 3);
        });
        scene.0.slot(BETA).disk.mood.access_us = 3600 * SECOND;
        scene.load(ALPHA);
        scene.run(SECOND);
        let [accepted, written, .., applied, _] = scene.brain(ALPHA).watermarks();
        assert!(accepted.0 - applied.0 >= 16, "next to nothing is accepted: {accepted:?}");
        assert_eq!(written, accepted, "the ring has no room for what was accepted");
        scene.0.slot(BETA).disk.mood.access_us = 20;
        scene.0.load = false;
        scene.0.stop(BETA, false);
        scene.0.start(BETA).expect("it starts");
        scene.until("beta is in sync", |s| {
            s.members(ALPHA) == 2 && s.brain(BETA).accepted() == s.brain(ALPHA).accepted()
        });
    }
}

/// What rots in the ring of an active that goes on running costs reach and no more: the peer that needs it gets contents instead (L2).
#[test]
fn rot_in_the_ring_of_an_active_costs_reach() {
    let mut scene = Scene::of(2, |plan| (plan.log_sizes, plan.flush_ms, plan.apply_ms) = (vec![1 << 20; 2], 5, 5));
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

/// B1: a list that finds the disk full is written again until there is room. Nothing leaves the ring before, nobody is given up, and it is
/// said (L4 does not count it as a failed disk).
#[test]
fn a_list_that_finds_no_room_is_written_again() {
    let mut scene = Scene::of(2, |plan| (plan.log_sizes, plan.flush_ms, plan.apply_ms) = (vec![384 << 10; 2], 5, 5));
    scene.part(ALPHA, BETA);
    scene.until("alpha is alone", |s| s.members(ALPHA) == 1);
    scene.0.slot(ALPHA).disk.mood.full = true;
    scene.load(ALPHA);
    let told = |s: &Scene| s.brain(ALPHA).status(Time(0)).problems.iter().any(|p| p.part == "bitmap");
    scene.until("it says that the list cannot be written", told);
    scene.run(5 * SECOND);
    let status = scene.brain(ALPHA).status(Time(0));
    assert_eq!((status.fault, status.log.from), (None, Lsn(1)), "it was given up, or has dropped what is in no list");
    assert!(scene.0.counts.get("notice StorageFailed") == 1 && told(&scene));
    scene.0.slot(ALPHA).disk.mood.full = false;
    scene.until("writes go on", |s| s.brain(ALPHA).status(Time(0)).log.from > Lsn(100));
    assert!(!told(&scene));
    scene.0.load = false;
    scene.0.mend(ALPHA, BETA);
    scene.until("beta is in sync", |s| s.members(ALPHA) == 2);
    scene.run(SECOND);
    scene.0.inspect(BETA).expect("what beta holds is right");
}

/// R3: while the superblock that ends a resync is being written, nobody hears where this node stands: a crash could still take it back.
#[test]
fn nobody_is_greeted_while_a_gap_is_being_closed() {
    let mut scene = Scene::of(3, |plan| (plan.log_sizes, plan.flush_ms, plan.apply_ms) = (vec![384 << 10; 3], 5, 5));
    [ALPHA, BETA].into_iter().for_each(|n| scene.part(n, GAMMA));
    scene.until("gamma is dropped", |s| s.members(ALPHA) == 2);
    scene.load(ALPHA);
    scene.until("the logs no longer reach back", |s| s.brain(ALPHA).status(Time(0)).log.from > Lsn(50));
    scene.0.load = false;
    scene.run(SECOND);
    scene.0.slot(GAMMA).disk.mood.flush_us = 400_000;
    scene.0.mend(ALPHA, GAMMA);
    for _ in 0..1000 {
        scene.0.mend(BETA, GAMMA);
        scene.run(SECOND / 20);
        scene.0.inspect(GAMMA).unwrap_or_else(|violation| panic!("it has said more than it holds: {violation:?}"));
        let (now, world) = (scene.0.now, &mut scene.0);
        let due = world.net.cut(now, BETA, GAMMA, &mut world.rng);
        world.deliver_later(due);
    }
    assert_eq!((scene.members(ALPHA), scene.0.counts.get("notice ResyncFinished") > 0), (3, true));
}
