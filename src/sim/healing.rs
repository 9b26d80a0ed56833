//! Invariant 7: once the faults stop, within so many simulated seconds all replicas are in sync and equal, and no request
//! hangs.

use super::brain::Brain;
use super::invariants::{Violation, broken};
use super::plan::name;
use super::world::World;
use crate::core::{Command, Mode, NodeId, VolumeId};

const NAME: &str = "7 progress";
/// Simulated time within which all must be well.
const LIMIT_US: u64 = 90_000_000;
const TICK_US: u64 = 250_000;
/// For so long the clients go on after the faults.
const LOAD_US: u64 = 500_000;

impl<B: Brain> World<B> {
    /// Mends everything, and demands that it becomes well.
    pub fn heal(&mut self) -> Result<(), Violation> {
        self.storm = false;
        self.say(|| "!! all is mended from here on".into());
        self.mend_everything()?;
        let from = self.now;
        let (mut flushed, mut why) = (false, String::new());
        while self.now < from + LIMIT_US {
            self.run_until(self.now + TICK_US)?;
            self.load = self.now < from + LOAD_US;
            self.look_after()?;
            why = match self.unwell() {
                Some(why) => why,
                None if !flushed => {
                    flushed = true;
                    self.ask_for_all()?;
                    continue;
                }
                None => {
                    self.counts.add("seconds to heal", (self.now - from) / 1_000_000);
                    self.compare()?;
                    return if self.plan.audit { self.audit() } else { Ok(()) };
                }
            };
        }
        Err(broken(NAME, format!("{} s after all was mended: {why}", LIMIT_US / 1_000_000)))
    }

    fn mend_everything(&mut self) -> Result<(), Violation> {
        let all: Vec<NodeId> = self.nodes().collect();
        self.mend_witness();
        for node in &all {
            self.slot(*node).disk.mood = self.calm();
            self.thaw(*node)?;
            all.iter().filter(|n| *n > node).for_each(|n| self.mend(*node, *n));
        }
        for node in all {
            let slot = &self.slots[node.0 as usize];
            // A bad sector shows when the log is read: at the next start.
            if slot.rotten || slot.brain.as_ref().is_some_and(B::is_faulted) {
                self.stop(node, false);
            }
            if self.slots[node.0 as usize].brain.is_none() && !self.slots[node.0 as usize].held {
                self.restart(node)?;
            }
        }
        Ok(())
    }

    /// What an operator does: restarts what an I/O that was begun before has failed, connects what was disconnected, promotes where
    /// nobody serves.
    fn look_after(&mut self) -> Result<(), Violation> {
        let all: Vec<NodeId> = self.nodes().collect();
        for node in &all {
            if self.slots[node.0 as usize].brain.as_ref().is_some_and(B::is_faulted) {
                self.stop(*node, false);
                self.restart(*node)?;
            }
            for other in all.iter().filter(|n| *n != node) {
                self.order(*node, Command::Connect { peer: name(other.0 as usize), dry_run: false })?;
            }
        }
        self.resolve()?;
        self.steward(false)
    }

    fn ask_for_all(&mut self) -> Result<(), Violation> {
        let Some(active) = self.active() else { return Ok(()) };
        for n in 0..self.plan.geometry.volumes.len() {
            self.ask_directly(active, VolumeId(n as u16), true)?;
            self.ask_directly(active, VolumeId(n as u16), false)?;
        }
        Ok(())
    }

    pub(super) fn active(&self) -> Option<NodeId> {
        let serves = |s: &super::slot::Slot<B>| s.serves() && !s.unaware && s.deposed.is_none();
        self.nodes().find(|n| serves(&self.slots[n.0 as usize]))
    }

    /// What is not well yet, in words.
    fn unwell(&self) -> Option<String> {
        let Some(active) = self.active() else { return Some("nobody serves".into()) };
        let slot = &self.slots[active.0 as usize];
        let (brain, client) = (slot.brain.as_ref()?, slot.client.as_ref()?);
        if client.in_flight() > 0 {
            return Some(format!("a request hangs: {}", client.describe_oldest()));
        }
        if self.load {
            return Some("clients still write".into());
        }
        let (end, term) = (brain.marks().accepted, brain.lineage().last()?.id);
        for node in self.nodes() {
            let who = name(node.0 as usize);
            let Some(other) = &self.slots[node.0 as usize].brain else { return Some(format!("{who} is down")) };
            let marks = other.marks();
            if other.lineage().last().map(|t| t.id) != Some(term) {
                return Some(format!("{who} is at {:?}, not in the term {term:?}", other.lineage().last()));
            }
            if [marks.accepted, marks.durable, marks.committed, marks.applied].iter().any(|m| *m != end) {
                return Some(format!("{who} is at {marks:?}, the active ends at {end:?}"));
            }
            let listed = slot.members.contains(&node);
            if self.plan.modes[node.0 as usize] == Mode::Sync && !listed {
                return Some(format!("{who} is not in sync: {:?}", slot.members));
            }
        }
        None
    }

    fn compare(&mut self) -> Result<(), Violation> {
        self.counts.one("worlds healed");
        let all: Vec<NodeId> = self.nodes().collect();
        all.into_iter().try_for_each(|node| self.inspect(node))
    }
}
