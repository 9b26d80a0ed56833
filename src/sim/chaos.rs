//! What goes wrong: processes and machines, links and disks; and the looks at what a node would be if it were all that is
//! left.

use super::brain::Brain;
use super::disk::{Blocking, Class, DiskMood, PAGE, SimDisk};
use super::invariants::{Violation, alone, broken};
use super::plan::{Trouble, name};
use super::rng::Rng;
use super::rot;
use super::truth::Pos;
use super::world::{Happening, World};
use crate::core::{Command, Keeper, Lsn, NodeId, Part};

impl<B: Brain> World<B> {
    /// One trouble, drawn from the seed's mix; now and then a look at a copy of a disk, and at the resource as a whole.
    pub(super) fn trouble(&mut self) -> Result<(), Violation> {
        if !self.storm {
            return Ok(());
        }
        let pause = 1 + self.rng.around(self.plan.trouble_us);
        self.later(pause, Happening::Trouble);
        let all: Vec<NodeId> = self.nodes().collect();
        if self.rng.per_mille(self.plan.inspect_per_mille) {
            let node = self.rng.pick(&all);
            self.inspect(node)?;
        }
        if self.rng.per_mille(400) {
            let force = self.rng.per_mille(200) && self.plan.voting.is_none();
            self.steward(force)?;
        }
        let total: u64 = self.plan.troubles.iter().map(|(_, w)| w).sum();
        let mut at = self.rng.below(total);
        let drawn = self.plan.troubles.iter().find(|(_, weight)| {
            let found = at < *weight;
            at = at.saturating_sub(*weight);
            found
        });
        let Some((trouble, _)) = drawn.copied() else { return Ok(()) };
        let node = self.rng.pick(&all);
        let others: Vec<NodeId> = all.into_iter().filter(|n| *n != node).collect();
        let other = self.rng.pick(&others);
        self.troubles.drawn.push(trouble);
        let number = self.troubles.drawn.len() as u64;
        if self.plan.less.skips(number, trouble) {
            return Ok(());
        }
        self.troubles.struck.push((number, trouble));
        self.counts.one(&format!("trouble {trouble:?}"));
        self.say(|| format!("!! {number} {trouble:?} {} {}", name(node.0 as usize), name(other.0 as usize)));
        self.strike(trouble, node, other)
    }

    fn strike(&mut self, trouble: Trouble, node: NodeId, other: NodeId) -> Result<(), Violation> {
        match trouble {
            Trouble::Crash => self.crash(node, false),
            Trouble::PowerCut => self.crash(node, true),
            Trouble::PowerCutAll => self.nodes().for_each(|n| self.crash(n, true)),
            Trouble::Freeze => self.freeze(node),
            Trouble::Cut => {
                let due = self.net.cut(self.now, node, other, &mut self.rng);
                self.deliver_later(due);
            }
            Trouble::Garble => self.net.garble(node, other, &mut self.rng),
            Trouble::Partition | Trouble::OneWay | Trouble::Hang | Trouble::SlowLink => {
                self.impair_link(trouble, node, other)
            }
            Trouble::ReadErrors
            | Trouble::WriteErrors
            | Trouble::FlushErrors
            | Trouble::SlowDisk
            | Trouble::FullDisk => self.impair_disk(trouble, node),
            Trouble::Rot => self.rot(node),
            Trouble::WitnessDown => self.impair_witness(None),
            Trouble::WitnessLost => self.lose_witness(),
            Trouble::Maintenance => {
                let on = self.rng.coin();
                return self.order_active(Command::Maintenance { on });
            }
            Trouble::WitnessCut => self.impair_witness(Some(node)),
            Trouble::Promote => return self.order(node, Command::Promote { force: false, off: Vec::new() }),
            Trouble::Force => return self.force(node),
            Trouble::Demote => {
                let force = self.rng.coin();
                return self.order(node, Command::Demote { force });
            }
            Trouble::Switchover => return self.order_active(Command::Switchover { to: name(other.0 as usize) }),
            Trouble::Verify => {
                let repair = self.rng.coin();
                return self.order_active(Command::Verify { repair });
            }
            Trouble::Connect => {
                return self.order(
                    node,
                    Command::Connect { peer: name(other.0 as usize), dry_run: self.now.is_multiple_of(4) },
                );
            }
            Trouble::Disconnect => {
                let force = self.rng.coin();
                return self.order(node, Command::Disconnect { peer: name(other.0 as usize), force });
            }
        }
        Ok(())
    }

    /// Whoever serves is told.
    fn order_active(&mut self, command: Command) -> Result<(), Violation> {
        match self.nodes().find(|n| self.slots[n.0 as usize].serves()) {
            Some(active) => self.order(active, command),
            None => Ok(()),
        }
    }

    fn impair_link(&mut self, trouble: Trouble, a: NodeId, b: NodeId) {
        match trouble {
            Trouble::Partition => [(a, b), (b, a)].into_iter().for_each(|(x, y)| self.net.block(x, y)),
            Trouble::OneWay => self.net.block(a, b),
            Trouble::Hang => self.net.hang(a, b),
            _ => {
                let times = self.rng.pick(&[10, 100]);
                self.net.slow_down(a, b, times);
            }
        }
        let length = self.rng.around(1_500_000);
        self.later(length, Happening::Mend { a, b });
    }

    pub(super) fn mend(&mut self, a: NodeId, b: NodeId) {
        let due = self.net.mend(a, b, &mut self.rng);
        self.deliver_later(due);
    }

    fn impair_disk(&mut self, trouble: Trouble, node: NodeId) {
        let only = self.rng.pick(&[None, Some(Class::Log), Some(Class::Store), Some(Class::Growing)]);
        let ppm = self.rng.pick(&[1_000, 20_000, 500_000]);
        let slow = self.rng.pick(&[5, 50]);
        let calm = self.plan.disk.clone();
        let mood = match trouble {
            Trouble::ReadErrors => DiskMood { read_error_ppm: ppm, only, ..calm },
            Trouble::WriteErrors => DiskMood { write_error_ppm: ppm, only, ..calm },
            Trouble::FlushErrors => DiskMood { flush_error_ppm: ppm, only, ..calm },
            Trouble::FullDisk => DiskMood { full: true, ..calm },
            _ => DiskMood { slow, ..calm },
        };
        let slot = self.slot(node);
        slot.impaired = true;
        slot.disk.mood = mood;
        let length = self.rng.around(500_000);
        self.later(length, Happening::DiskWell { node });
    }

    fn freeze(&mut self, node: NodeId) {
        let slot = self.slot(node);
        if slot.brain.is_none() || slot.frozen.is_some() {
            return;
        }
        slot.frozen = Some(Vec::new());
        slot.isolation.note(0, true);
        slot.stall.note(0, true);
        let length = self.rng.around(1_500_000);
        self.later(length, Happening::Thaw { node });
    }

    /// A stopped process goes on, and finds everything that came meanwhile.
    pub(super) fn thaw(&mut self, node: NodeId) -> Result<(), Violation> {
        let Some(inbox) = self.slot(node).frozen.take() else { return Ok(()) };
        self.slot(node).poll_at = None;
        inbox.into_iter().try_for_each(|event| self.handle(node, event))?;
        self.poll(node)
    }

    /// The process ends, or the machine loses its power; it comes back after a while.
    pub(super) fn crash(&mut self, node: NodeId, power: bool) {
        if self.slots[node.0 as usize].brain.is_none() {
            return;
        }
        self.stop(node, power);
        let length = self.rng.around(800_000);
        self.later(length, Happening::Restart { node });
    }

    pub(super) fn stop(&mut self, node: NodeId, power: bool) {
        let boot = self.rng.next_u128();
        self.processes += 1;
        let slot = &mut self.slots[node.0 as usize];
        rot::cure(&mut slot.disk, &std::mem::take(&mut slot.bad_pages));
        // What a passive had in memory is gone; what the active had completed was written.
        let was_active = slot.client.as_ref().is_some_and(|c| c.live);
        match power {
            true => slot.disk.power_cut(&mut self.rng),
            false => slot.disk.process_crash(&mut self.rng),
        }
        // What it has said is in the other slot too.
        let rots = self.storm && self.plan.troubles.iter().any(|(t, _)| *t == Trouble::Rot);
        if rots && self.rng.per_mille(200) && rot::rot_newest_slot(&mut slot.disk, &mut self.rng) {
            self.counts.one("newest superblocks gone bad");
        }
        slot.brain = None;
        slot.life += 1;
        slot.incarnation = 0;
        slot.frozen = None;
        slot.poll_at = None;
        slot.client = None;
        slot.members.clear();
        slot.seen_charter = None;
        slot.reported = None;
        slot.held_at = None;
        slot.isolation.note(0, true);
        slot.stall.note(0, true);
        slot.suspended = false;
        slot.outvoted_at = None;
        slot.deposed = None;
        let resyncing = std::mem::take(&mut slot.resyncing);
        if power {
            slot.boot = boot;
        }
        if power || !was_active {
            self.durability.forgot(node);
        }
        if resyncing {
            self.counts.one("processes ended in mid-resync");
        }
        self.orders.forget(node);
        self.release_held();
        let due = self.net.gone(self.now, node, power, &mut self.rng);
        self.deliver_later(due);
    }

    pub(super) fn restart(&mut self, node: NodeId) -> Result<(), Violation> {
        if self.slots[node.0 as usize].brain.is_some() {
            return Ok(());
        }
        let others: Vec<NodeId> = self.nodes().filter(|n| *n != node).collect();
        if self.slots[node.0 as usize].held {
            self.later(50_000, Happening::Restart { node });
            return Ok(());
        }
        if self.slots[node.0 as usize].unaware {
            // Whoever was given up is brought back with its links mended, so that it hears of it.
            others.into_iter().for_each(|n| self.mend(node, n));
        }
        self.start(node)
    }

    /// Recovers a node's disk, and starts a process on it. Sometimes the machine goes down again in the middle of that.
    pub fn start(&mut self, node: NodeId) -> Result<(), Violation> {
        let incarnation = self.rng.next_u128();
        let calls = (self.storm && self.now > 0 && self.rng.per_mille(100)).then(|| self.rng.below(40));
        let slot = &mut self.slots[node.0 as usize];
        let config = self.plan.config(node, incarnation, slot.boot);
        let clock = slot.clock(self.now);
        match B::start(config, &mut Blocking { disk: &mut slot.disk, calls }, clock) {
            Ok(brain) => {
                let known = brain.charter().generation.0;
                slot.given_up_by = slot.given_up_by.filter(|g| known < g.0);
                slot.unaware |= slot.given_up_by.is_some();
                slot.brain = Some(brain);
            }
            Err(_) if calls.is_some() => {
                slot.disk.power_cut(&mut self.rng);
                self.durability.forgot(node);
                self.counts.one("recoveries cut short");
                self.later(10_000, Happening::Restart { node });
                return Ok(());
            }
            Err(error) => {
                let who = name(node.0 as usize);
                return Err(broken("2 a valid image", format!("{who} cannot start from what it left: {error}")));
            }
        }
        slot.incarnation = incarnation;
        self.processes += 1;
        slot.life += 1;
        slot.impaired = false;
        self.counts.one("starts");
        self.check_start(node)?;
        self.poll(node)
    }

    /// What a restarted node recovered holds what it owes.
    fn check_start(&mut self, node: NodeId) -> Result<(), Violation> {
        let Some(brain) = &self.slots[node.0 as usize].brain else { return Ok(()) };
        self.truth.learn(brain.lineage()).map_err(|e| broken("4 records", e))?;
        let at = brain.lineage().last().map(|t| Pos { term: t.id, lsn: brain.marks().accepted });
        let has_image = brain.has_image();
        let rotten = std::mem::take(&mut self.slots[node.0 as usize].rotten);
        if rotten && !has_image {
            // It lay in a round of applying that was under way: what is left is said to be no image (L2), whatever position it names.
            self.counts.one("images lost to rot");
            self.durability.gave_up(node);
            return Ok(());
        }
        let lacks = |owed: &Pos| at.is_none_or(|at| !self.truth.contains(at, *owed));
        match self.durability.kept(node).filter(lacks) {
            None => Ok(()),
            Some(_) if rotten => {
                // Nothing tells that what rotted at the end had ever been written (L2).
                self.counts.one("rot taken for the end");
                self.durability.gave_up(node);
                Ok(())
            }
            Some(owed) => {
                let who = name(node.0 as usize);
                Err(broken("1 durability", format!("{who} recovered up to {at:?}, and owes {owed:?}")))
            }
        }
    }

    /// Brings up a copy of a node's disk, as it would be after a power cut or the end of the process now.
    pub(super) fn inspect(&mut self, node: NodeId) -> Result<(), Violation> {
        let mut rng = self.rng.fork();
        let slot = &self.slots[node.0 as usize];
        let mut disk = slot.disk.clone();
        rot::cure(&mut disk, &slot.bad_pages);
        let power = rng.per_mille(700);
        match power {
            true => disk.power_cut(&mut rng),
            false => disk.process_crash(&mut rng),
        }
        // Whatever rots in a log, what is left is an image of some prefix, or said to be none (L2).
        let mut rotten = slot.rotten;
        if rng.per_mille(150) {
            rot::rot_log(&mut disk, &mut rng);
            rotten = true;
        } else if rng.per_mille(100) {
            rot::rot_newest_slot(&mut disk, &mut rng);
        }
        disk.mood = self.plan.disk.clone();
        let mut config = self.plan.config(node, rng.next_u128(), rng.next_u128());
        // Nobody is there to vote.
        config.keeper = Keeper::Alone;
        let lineage = slot.brain.as_ref().map(|b| b.lineage().to_vec()).unwrap_or_default();
        let reported = slot.reported.filter(|_| !rotten);
        let survives = !power && slot.client.as_ref().is_some_and(|c| c.live);
        let owed = if survives { self.durability.kept(node) } else { self.durability.durable(node) };
        let owed = owed.filter(|_| !rotten);
        self.counts.one("images looked at");
        self.inspect_without_history(node, disk.clone(), &mut rng)?;
        let with_name =
            |v: Violation| broken(v.invariant, format!("a copy of {}: {}", name(node.0 as usize), v.detail));
        match alone::bring_up::<B>(config, disk, rng).map_err(with_name)? {
            alone::Outcome::Serves { lineage: found, at, blocks } => {
                // On its way to another lineage it may already have ended what it had reported in the old one.
                let moved_on = found.iter().any(|t| !lineage.iter().any(|l| l.id == t.id));
                let present = lineage.last().map(|t| Pos { term: t.id, lsn: Lsn(u64::MAX) });
                let stands = |p: &Pos| !moved_on && present.is_some_and(|whole| self.truth.contains(whole, *p));
                let least: Vec<Pos> = owed.into_iter().chain(reported.filter(stands)).collect();
                self.truth.learn(&found).map_err(|e| broken("4 records", e))?;
                alone::check_image(&found, at, &blocks, &least, &self.truth).map_err(with_name)
            }
            // Without history, where the file allows it, and only then (contract 3).
            alone::Outcome::Refused(why) if self.plan.allow_invalid && why.contains("overwritten in place") => {
                self.counts.one("images given up, by name");
                Ok(())
            }
            alone::Outcome::Refused(why) if owed.is_none() => {
                self.counts.one("images refused");
                self.say(|| format!("a copy of {} refused to serve: {why}", name(node.0 as usize)));
                Ok(())
            }
            alone::Outcome::Refused(why) => {
                Err(with_name(broken("2 a valid image", format!("it refused to serve, and owes {owed:?}: {why}"))))
            }
        }
    }
    /// The same copy, its history gone or its first page gone bad: an open gap has no way back then, and what stands between two
    /// positions is served to nobody.
    fn inspect_without_history(&mut self, node: NodeId, mut disk: SimDisk, rng: &mut Rng) -> Result<(), Violation> {
        if disk.size(Part::History) == 0 {
            return Ok(());
        }
        match rng.coin() {
            true => disk.lose(Part::History),
            false => disk.turn_over(Part::History, rng.below(PAGE), 1 << rng.below(8)),
        }
        let mut config = self.plan.config(node, rng.next_u128(), rng.next_u128());
        // Nobody is there to vote.
        config.keeper = Keeper::Alone;
        let with_name = |v: Violation| {
            broken(v.invariant, format!("a copy of {} without its history: {}", name(node.0 as usize), v.detail))
        };
        match alone::bring_up::<B>(config, disk, rng.fork()).map_err(with_name)? {
            alone::Outcome::Serves { lineage, at, blocks } => {
                self.truth.learn(&lineage).map_err(|e| broken("4 records", e))?;
                alone::check_image(&lineage, at, &blocks, &[], &self.truth).map_err(with_name)
            }
            alone::Outcome::Refused(_) => {
                self.counts.one("images refused without their history");
                Ok(())
            }
        }
    }
}
