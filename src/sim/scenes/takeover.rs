//! Two nodes and a witness: who takes over, and who does not.

use super::*;
use crate::sim::plan::VotingPlan;

/// Alpha active, beta in sync, w1 votes too.
fn pair(change: impl FnOnce(&mut Plan)) -> Scene {
    voted(2, change)
}

fn voted(nodes: usize, change: impl FnOnce(&mut Plan)) -> Scene {
    Scene::of(nodes, |plan| {
        plan.voting = Some(VotingPlan { witness: true, lease_ms: 500, round_ms: 100 });
        plan.stall_ms = 2000;
        change(plan);
    })
}

impl Scene {
    fn active(&self, node: NodeId) -> bool {
        self.0.slots[node.0 as usize].brain.as_ref().is_some_and(|b| b.role() == Role::Active)
    }

    fn cut_off_from_the_witness(&mut self, node: NodeId) {
        self.0.cut_witness(node, u64::MAX);
    }
}

/// C3: the active dies, and the passive serves by itself; what comes back follows, and is in sync again with no operator.
#[test]
fn a_dead_active_is_taken_over_and_comes_back_as_passive() {
    let mut scene = pair(|_| ());
    scene.load(ALPHA);
    scene.run(SECOND / 5);
    scene.0.stop(ALPHA, false);
    let died = scene.0.now;
    scene.until("beta serves", |s| s.serves(BETA));
    let took = scene.0.now - died;
    // lease, its drift, a round, and what the rounds take.
    assert!(took > SECOND / 2 && took < SECOND, "it took {took} µs");
    scene.0.start(ALPHA).expect("alpha starts");
    scene.until("alpha is in sync", |s| s.members(BETA) == 2);
    assert!(!scene.serves(ALPHA));
}

/// C2, C3, C4: with the link between them cut, whoever is active stays so: it has the other dropped before that one loses its patience.
#[test]
fn a_cut_link_changes_nothing_but_who_is_in_sync() {
    let mut scene = pair(|plan| plan.habits.depth = 16);
    scene.load(ALPHA);
    scene.run(SECOND / 5);
    scene.part(ALPHA, BETA);
    scene.run(5 * SECOND);
    assert!(scene.serves(ALPHA) && !scene.active(BETA));
    assert_eq!(scene.members(ALPHA), 1);
    scene.0.mend(ALPHA, BETA);
    scene.until("beta is in sync", |s| s.members(ALPHA) == 2);
    assert_eq!(scene.0.counts.get("notice Deposed"), 0);
}

/// C1, C3, C6: an active that is cut off completes nothing that the next one lacks, shows nothing old, and follows once it hears.
#[test]
fn an_active_that_is_cut_off_is_taken_over_and_steps_down() {
    let mut scene = pair(|plan| plan.habits.depth = 16);
    scene.load(ALPHA);
    scene.run(SECOND / 5);
    scene.part(ALPHA, BETA);
    scene.cut_off_from_the_witness(ALPHA);
    scene.until("beta serves", |s| s.serves(BETA));
    scene.load(BETA);
    scene.run(2 * SECOND);
    assert!(scene.serves(ALPHA), "it does not know yet");
    scene.0.mend(ALPHA, BETA);
    scene.0.mend_witness();
    scene.until("alpha has stepped down", |s| !s.serves(ALPHA) && !s.active(ALPHA));
    scene.until("alpha is in sync", |s| s.members(BETA) == 2);
}

/// C1, C6: an active that is stopped for longer than its lease.
#[test]
fn a_frozen_active_is_taken_over_and_completes_nothing_when_it_thaws() {
    let mut scene = pair(|plan| plan.habits.depth = 16);
    scene.load(ALPHA);
    scene.run(SECOND / 5);
    scene.0.slot(ALPHA).frozen = Some(Vec::new());
    scene.until("beta serves", |s| s.serves(BETA));
    scene.run(SECOND);
    scene.0.thaw(ALPHA).expect("nothing wrong is done");
    scene.until("alpha has stepped down", |s| !s.serves(ALPHA));
    scene.until("alpha is in sync", |s| s.members(BETA) == 2);
}

/// Witness and passive gone: the active waits; with the witness back it goes on alone.
#[test]
fn without_a_majority_writes_wait_and_nobody_is_dropped() {
    let mut scene = pair(|_| ());
    scene.cut_off_from_the_witness(ALPHA);
    scene.0.stop(BETA, false);
    scene.run(SECOND);
    let answered = scene.0.counts.answered;
    scene.load(ALPHA);
    scene.run(3 * SECOND);
    assert_eq!(scene.0.counts.answered, answered, "nothing completes that one node alone holds");
    scene.0.mend_witness();
    scene.until("alpha goes on alone", |s| s.0.counts.answered > answered);
    assert_eq!(scene.members(ALPHA), 1);
}

/// A demoted resource stays so, and a switchover needs no lease to run out.
#[test]
fn what_an_operator_demotes_nobody_takes_over() {
    let mut scene = pair(|_| ());
    let began = scene.0.now;
    scene.order(ALPHA, Command::Switchover { to: "beta".into() });
    scene.until("beta serves", |s| s.serves(BETA));
    assert!(scene.0.now - began < SECOND / 3, "{} µs", scene.0.now - began);
    scene.until("alpha is in sync", |s| s.members(BETA) == 2);
    scene.order(BETA, Command::Demote { force: false });
    scene.run(10 * SECOND);
    assert!(!scene.serves(ALPHA) && !scene.serves(BETA));
    scene.promote(ALPHA);
    scene.until("alpha serves", |s| s.serves(ALPHA));
}

/// C3, C4: a dropped node does not take over, whatever becomes of the active.
#[test]
fn a_dropped_node_never_takes_over() {
    let mut scene = pair(|_| ());
    scene.part(ALPHA, BETA);
    scene.load(ALPHA);
    scene.until("alpha is alone", |s| s.members(ALPHA) == 1);
    scene.0.stop(ALPHA, false);
    scene.0.mend(ALPHA, BETA);
    scene.run(10 * SECOND);
    assert!(!scene.active(BETA));
    scene.0.start(ALPHA).expect("alpha starts");
    scene.until("alpha serves by itself", |s| s.serves(ALPHA));
}

/// Both machines lose their power: whoever is listed goes on, and nothing that was flushed is gone (the world looks at that).
#[test]
fn after_a_power_cut_of_both_one_of_them_serves() {
    let mut scene = pair(|_| ());
    scene.load(ALPHA);
    scene.run(SECOND / 5);
    [ALPHA, BETA].into_iter().for_each(|n| scene.0.stop(n, true));
    scene.0.mend_witness();
    [ALPHA, BETA].into_iter().for_each(|n| scene.0.start(n).expect("it starts"));
    scene.until("one of them serves", |s| s.serves(ALPHA) || s.serves(BETA));
    scene.until("both are in sync", |s| s.members(if s.serves(ALPHA) { ALPHA } else { BETA }) == 2);
}

#[test]
fn the_phases_of_a_takeover_are_told() {
    let mut scene = pair(|_| ());
    scene.until("beta knows that it is in sync", |s| s.members(BETA) == 2);
    scene.0.stop(ALPHA, false);
    scene.until("beta serves", |s| s.serves(BETA));
    let status = scene.brain(BETA).status(scene.0.slots[1].clock(scene.0.now));
    let takeover = status.keeper.course.clone().expect("a takeover");
    let phases = [Some(takeover.detected_ms), takeover.durable_ms, takeover.agreed_ms, takeover.opened_ms];
    assert!(phases.iter().all(Option::is_some) && phases.is_sorted(), "{phases:?}");
    assert_eq!(
        status.keeper.voters.iter().filter(|v| v.votes && v.heard_s.is_some()).count(),
        2,
        "{:?}",
        status.keeper
    );
}
