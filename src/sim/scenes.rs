//! Scenes that chance would play too seldom: each was found by reading, and failed before its rule was kept.

use super::plan::{Plan, Scope};
use super::rng::Rng;
use super::world::World;
use crate::core::config::TABLES;
use crate::core::{Command, Lsn, Mode, Node, NodeId, OnStall, Part, Role, Time, VolumeId};

mod damage;
mod progress;
mod takeover;

const ALPHA: NodeId = NodeId(0);
const BETA: NodeId = NodeId(1);
const GAMMA: NodeId = NodeId(2);
const OFFSITE: NodeId = NodeId(3);
const SECOND: u64 = 1_000_000;

struct Scene(World<Node>);

impl Scene {
    /// So many nodes, all sync, without faults and without load, alpha active and all in sync.
    fn of(nodes: usize, change: impl FnOnce(&mut Plan)) -> Scene {
        let mut plan = Plan::draw(&mut Rng::new(1), &Scope { large_logs: true, ..Scope::default() });
        (plan.modes, plan.log_sizes) = (vec![Mode::Sync; nodes], vec![1 << 30; nodes]);
        plan.voting = None;
        plan.on_stall = OnStall::Degrade;
        (plan.stall_ms, plan.heartbeat_ms, plan.flush_ms, plan.apply_ms) = (500, 50, 50, 50);
        (plan.net_delay_us, plan.batch_us, plan.durable_write) = (200, 0, false);
        (plan.disk.access_us, plan.disk.flush_us) = (20, 50);
        (plan.memory, plan.window) = (8 << 20, 4 << 20);
        (plan.tables, plan.disk.room) = (TABLES, None);
        (plan.history_size, plan.allow_invalid) = (u64::MAX, false);
        change(&mut plan);
        let mut world = World::new(1, plan, None).expect("a world");
        (world.storm, world.load) = (false, false);
        let mut scene = Scene(world);
        scene.until("all have met", |s| s.all_idle());
        scene.promote(ALPHA);
        scene.until("all are in sync", |s| s.members(ALPHA) == nodes);
        scene
    }

    fn brain(&self, node: NodeId) -> &Node {
        self.0.slots[node.0 as usize].brain.as_ref().expect("a running node")
    }

    fn serves(&self, node: NodeId) -> bool {
        self.0.slots[node.0 as usize].serves()
    }

    fn members(&self, node: NodeId) -> usize {
        self.brain(node).charter().in_sync.len()
    }

    fn all_idle(&self) -> bool {
        let idle = |n: NodeId| self.brain(n).status(Time(0)).peers.iter().all(|p| p.state == "idle");
        self.0.nodes().all(idle)
    }

    #[track_caller]
    fn run(&mut self, us: u64) {
        let until = self.0.now + us;
        self.0.run_until(until).unwrap_or_else(|violation| panic!("{violation:?}"));
    }

    #[track_caller]
    fn until(&mut self, what: &str, happens: impl Fn(&Scene) -> bool) {
        for _ in 0..1_000_000 {
            if happens(self) {
                return;
            }
            self.run(20);
        }
        let status = self.0.slots.iter().filter_map(|s| s.brain.as_ref()).map(|b| b.status(Time(0)));
        panic!("it never happens that {what}:\n{}\n{:#?}", self.0.counts, status.collect::<Vec<_>>());
    }

    #[track_caller]
    fn order(&mut self, node: NodeId, command: Command) {
        self.0.order(node, command).unwrap_or_else(|violation| panic!("{violation:?}"));
    }

    fn promote(&mut self, node: NodeId) {
        self.order(node, Command::Promote { force: false, off: Vec::new() });
    }

    /// Clients of a node begin to write.
    fn load(&mut self, node: NodeId) {
        self.0.load = true;
        let (life, lineage) = (self.0.slots[node.0 as usize].life, self.brain(node).lineage());
        let term = lineage.last().expect("a term").id;
        self.0.later(1, super::world::Happening::Ask { node, life, term });
    }

    fn force(&mut self, node: NodeId, off: &[&str]) {
        let off = off.iter().map(ToString::to_string).collect();
        self.order(node, Command::Promote { force: true, off });
    }

    fn part(&mut self, a: NodeId, b: NodeId) {
        self.0.net.block(a, b);
        self.0.net.block(b, a);
    }
}

/// C9: the heir may have taken over without asking; dropped or not, whoever wants to be promoted instead needs its word.
#[test]
fn an_heir_that_is_dropped_after_the_release_is_asked_all_the_same() {
    let mut scene = Scene::of(2, |_| ());
    scene.order(ALPHA, Command::Switchover { to: "beta".into() });
    scene.until("beta is the heir", |s| s.brain(BETA).charter().heir.is_some());
    scene.part(ALPHA, BETA);
    scene.until("alpha has dropped it", |s| s.members(ALPHA) == 1);
    scene.run(15 * SECOND);
    scene.promote(BETA);
    scene.run(SECOND);
    assert!(scene.serves(BETA), "the release permits it");
    scene.promote(ALPHA);
    scene.run(SECOND);
    assert!(!scene.serves(ALPHA), "two actives, and nobody forced it");
}

/// C1, C7: the heir serves by right while the old active still waits for the release to be confirmed. Whoever has acknowledged
/// to the heir does not go back to the old active, which would have it set aside what was promised on its account.
#[test]
fn a_follower_of_the_heir_does_not_go_back_to_the_active_that_released() {
    let mut scene = Scene::of(3, |plan| {
        plan.on_stall = OnStall::Suspend; // Alpha never drops its last member: the release stays open for its ten seconds.
        plan.habits.reads = 0;
    });
    scene.part(ALPHA, GAMMA);
    scene.order(ALPHA, Command::Switchover { to: "beta".into() });
    scene.until("beta is the heir", |s| s.brain(BETA).charter().heir.is_some());
    scene.part(ALPHA, BETA);
    scene.run(SECOND);
    scene.0.load = true;
    scene.promote(BETA);
    scene.until("beta and gamma are in sync without alpha", |s| s.serves(BETA) && s.members(BETA) == 2);
    scene.run(SECOND / 10);
    scene.0.load = false;
    scene.run(SECOND / 10);
    let term = scene.brain(BETA).lineage().last().expect("a term").id;
    let end = scene.brain(BETA).watermarks()[0];
    assert!(end > Lsn(0) && scene.brain(GAMMA).watermarks()[0] == end, "gamma holds what beta's clients were told");
    assert!(scene.brain(ALPHA).role() == Role::Active, "alpha has not stepped down");
    scene.part(BETA, GAMMA);
    scene.0.mend(ALPHA, GAMMA);
    scene.run(12 * SECOND); // Longer than alpha waits for its heir.
    assert_eq!(scene.brain(GAMMA).lineage().last().map(|t| t.id), Some(term), "gamma follows alpha");
    scene.0.stop(BETA, false);
    scene.order(GAMMA, Command::Promote { force: true, off: vec!["beta".into()] });
    scene.until("gamma serves, with all that was promised", |s| s.serves(GAMMA));
    scene.0.start(BETA).expect("beta starts");
    [(ALPHA, BETA), (BETA, GAMMA)].into_iter().for_each(|(a, b)| scene.0.mend(a, b));
    scene.until("all are in sync", |s| s.members(GAMMA) == 3);
}

/// C8: of two nodes that were each promoted by force, neither goes on by a plain promotion, also while the other is away.
#[test]
fn two_that_were_each_forced_are_not_promoted_without_force() {
    let mut scene = Scene::of(2, |_| ());
    scene.part(ALPHA, BETA);
    scene.until("alpha is alone", |s| s.members(ALPHA) == 1);
    let forced = |off: &str| Command::Promote { force: true, off: vec![off.into()] };
    scene.order(BETA, forced("alpha"));
    scene.order(ALPHA, Command::Demote { force: true });
    scene.until("alpha is passive", |s| s.brain(ALPHA).role() == Role::Passive);
    scene.order(ALPHA, forced("beta"));
    scene.until("both serve", |s| s.serves(ALPHA) && s.serves(BETA));
    scene.order(ALPHA, Command::Demote { force: true });
    scene.order(BETA, Command::Demote { force: true });
    scene.run(SECOND);
    scene.0.mend(ALPHA, BETA);
    scene.until("both have met", |s| s.all_idle());
    scene.promote(ALPHA);
    scene.run(SECOND);
    assert!(!scene.serves(ALPHA), "whose data is to be kept is an operator's to decide");
    scene.part(ALPHA, BETA);
    scene.run(5 * SECOND);
    scene.promote(ALPHA);
    scene.run(SECOND);
    assert!(!scene.serves(ALPHA), "that does not change when the other one is away");
}

/// C8: an active hears of a later promotion in whatever session: one that it does not want, and one in which it only asks.
#[test]
fn an_active_hears_of_a_later_promotion_in_any_session() {
    for asks in [ALPHA, BETA] {
        let mut scene = Scene::of(2, |_| ());
        scene.order(ALPHA, Command::Disconnect { peer: "beta".into(), force: true });
        scene.run(SECOND);
        scene.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] });
        scene.until("beta serves too: the operator was wrong", |s| s.serves(BETA));
        scene.run(SECOND);
        let peer = if asks == ALPHA { "beta" } else { "alpha" };
        let suspended = |s: &Scene| s.brain(ALPHA).status(Time(0)).state == "suspended";
        // What is under way when the other side ends the session may be lost: a person asks again.
        for _ in 0..20 {
            scene.order(asks, Command::Connect { peer: peer.into(), dry_run: true });
            scene.run(SECOND / 5);
        }
        assert!(suspended(&scene), "{asks:?} has asked");
    }
}

/// C10: with `on_stall = "suspend"` nothing completes on one node alone, also not when its member comes back as another one.
#[test]
fn a_member_that_restarts_lets_nothing_complete_without_it() {
    let mut scene = Scene::of(2, |plan| {
        plan.on_stall = OnStall::Suspend;
        plan.stall_ms = 60_000;
        (plan.habits.reads, plan.habits.depth) = (0, 16);
    });
    scene.0.load = true;
    let life = scene.0.slots[0].life;
    let term = scene.brain(ALPHA).lineage().last().expect("a term").id;
    scene.0.later(1, super::world::Happening::Ask { node: ALPHA, life, term });
    scene.run(SECOND / 10);
    assert!(scene.0.counts.answered > 0);
    scene.0.stop(BETA, false);
    scene.run(SECOND / 10);
    scene.0.start(BETA).expect("beta starts");
    let mut alone = false;
    // A dial into the void may take seconds.
    for _ in 0..500_000 {
        let answered = scene.0.counts.answered;
        scene.run(20);
        if scene.members(ALPHA) < 2 {
            alone = true;
            assert_eq!(scene.0.counts.answered, answered, "requests were answered, and one node holds them");
        } else if alone {
            break;
        }
    }
    assert!(alone && scene.members(ALPHA) == 2, "it was dropped and came back");
}

/// C8: an active that meets a higher generation suspends, whatever the other one does, and does not forget it.
#[test]
fn an_outvoted_active_suspends_and_does_not_resume_after_a_restart() {
    let mut scene = Scene::of(2, |_| ());
    scene.part(ALPHA, BETA);
    scene.until("alpha is alone", |s| s.members(ALPHA) == 1);
    scene.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] });
    scene.run(SECOND);
    assert!(scene.serves(ALPHA) && scene.serves(BETA), "the operator was wrong");
    scene.0.mend(ALPHA, BETA);
    scene.run(5 * SECOND);
    assert!(scene.brain(ALPHA).status(Time(0)).state == "suspended", "it goes on completing writes");
    assert!(scene.brain(BETA).status(Time(0)).state != "suspended");
    scene.part(ALPHA, BETA);
    scene.0.stop(ALPHA, false);
    scene.0.start(ALPHA).expect("alpha starts");
    scene.run(10 * SECOND);
    assert!(!scene.serves(ALPHA), "it has forgotten that it was outvoted");
}

/// Contract 1: a flush covers what completed before the takeover, too.
#[test]
fn a_flush_after_a_takeover_covers_what_completed_before_it() {
    let mut scene = Scene::of(3, |plan| {
        (plan.flush_ms, plan.apply_ms, plan.stall_ms) = (60_000, 60_000, 60_000);
        (plan.habits.reads, plan.habits.flushes, plan.habits.fua_per_mille) = (0, 0, 0);
    });
    scene.0.load = true;
    let (life, term) = (scene.0.slots[0].life, scene.brain(ALPHA).lineage()[0].id);
    scene.0.later(1, super::world::Happening::Ask { node: ALPHA, life, term });
    scene.run(SECOND / 10);
    scene.0.load = false;
    scene.run(SECOND / 10);
    let end = scene.brain(GAMMA).watermarks()[0];
    assert!(end > Lsn(0) && scene.brain(GAMMA).watermarks()[2] < end, "gamma holds what is not durable there");
    scene.0.stop(ALPHA, false);
    scene.run(SECOND);
    scene.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] });
    scene.until("beta serves", |s| s.serves(BETA));
    scene.part(BETA, GAMMA);
    let answered = scene.0.counts.answered;
    scene.0.ask_directly(BETA, VolumeId(0), true).expect("a flush");
    scene.run(SECOND / 5);
    let durable = scene.brain(GAMMA).watermarks()[2];
    assert!(
        durable >= end || scene.0.counts.answered == answered,
        "flushed, and gamma is durable only up to {durable:?} of {end:?}"
    );
}

/// A node whose file lacks one that its charter lists asks that one's word all the same, by not being promoted.
#[test]
fn a_node_that_is_gone_from_the_file_still_counts() {
    let mut scene = Scene::of(2, |_| ());
    scene.part(ALPHA, BETA);
    scene.0.stop(BETA, false);
    scene.0.plan.modes = vec![Mode::Sync; 2];
    let mut config = scene.0.plan.config(BETA, 7, 7);
    config.nodes.remove(0);
    config.me = NodeId(0);
    let disk = &mut scene.0.slots[1].disk;
    let mut blocking = super::disk::Blocking { disk, calls: None };
    let recovered = crate::core::recovery::recover(&config, &mut blocking).expect("a good disk");
    let mut node = Node::new(config, recovered, Time(0));
    let id = crate::core::CommandId(1);
    let command = Command::Promote { force: false, off: Vec::new() };
    node.handle(Time(1), crate::core::Event::Command { id, command });
    let refusal = std::iter::from_fn(|| node.next_action()).find_map(|action| match action {
        crate::core::Action::CommandDone { result, .. } => Some(result.map_err(|r| r.to_string())),
        _ => None,
    });
    let text = refusal.expect("an answer at once").expect_err("a refusal");
    assert!(text.contains("alpha is in sync or active"), "{text}");
}

/// A passive that is busy setting orphans aside is not silent.
#[test]
fn setting_aside_may_take_long() {
    let mut scene = Scene::of(2, |plan| plan.heartbeat_ms = 20);
    scene.0.load = true;
    let (life, term) = (scene.0.slots[0].life, scene.brain(ALPHA).lineage()[0].id);
    scene.0.later(1, super::world::Happening::Ask { node: ALPHA, life, term });
    scene.run(SECOND / 5);
    scene.part(ALPHA, BETA);
    scene.until("alpha is alone", |s| s.members(ALPHA) == 1);
    scene.run(SECOND / 5);
    scene.0.stop(ALPHA, false);
    scene.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] });
    scene.run(SECOND);
    scene.0.load = false;
    scene.0.mend(ALPHA, BETA);
    scene.0.slots[0].disk.mood.flush_us = 1_500_000;
    scene.0.start(ALPHA).expect("alpha starts");
    let state = |s: &Scene| s.brain(ALPHA).status(Time(0)).peers[0].state;
    scene.until("alpha follows", |s| state(s) == "following");
    while scene.0.slots[0].disk.size(Part::Salvage(1)) == 0
        || scene.brain(BETA).status(Time(0)).peers[0].state == "preparing"
    {
        assert_eq!(state(&scene), "following", "it was taken for silent");
        scene.run(1000);
    }
    scene.0.slots[0].disk.mood.flush_us = 50;
    scene.until("alpha is in sync", |s| s.members(BETA) == 2);
}
