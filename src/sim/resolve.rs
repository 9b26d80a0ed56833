//! What only a person decides, and would: which node goes on where none may by itself, whose forced promotion counts where
//! there were two, and that a replica which was never one with the others is made anew.

use super::brain::Brain;
use super::invariants::Violation;
use super::plan::name;
use super::world::World;
use crate::core::{Command, NodeId};

/// Looks, one in each tick of the healing, that a person waits before he steps in, and between two decisions.
const PATIENCE: u32 = 16;

/// How long things have been stuck, and what was decided.
#[derive(Clone, Debug, Default)]
pub struct Resolver {
    looks: u32,
    /// Whom the next forced promotion is for.
    chosen: Option<NodeId>,
    tries: usize,
}

impl<B: Brain> World<B> {
    /// Steps in where nothing has moved for some time.
    pub(super) fn resolve(&mut self) -> Result<(), Violation> {
        if self.plan.voting.is_some() {
            return Ok(());
        }
        let stuck = match self.active() {
            None => true,
            Some(active) => {
                self.resolver.chosen = None;
                self.rival(active).is_some() || self.stranger(active).is_some()
            }
        };
        self.resolver.looks = if stuck { self.resolver.looks + 1 } else { 0 };
        if self.resolver.looks < PATIENCE {
            return Ok(());
        }
        self.resolver.looks = 0;
        let Some(active) = self.active() else { return self.decide() };
        if let Some(rival) = self.rival(active) {
            self.counts.one("conflicts of generations resolved");
            self.say(|| format!("!! {active:?} shall win over {rival:?}"));
            self.resolver.chosen = Some(active);
            self.resolver.looks = PATIENCE - 4;
            return self.order(active, Command::Demote { force: true });
        }
        match self.stranger(active) {
            Some(stranger) => self.create_anew(stranger),
            None => Ok(()),
        }
    }

    /// Nobody serves, and nobody may by itself: the node that holds most is promoted by force, then the others by turns.
    fn decide(&mut self) -> Result<(), Violation> {
        let known = self.orders.generation;
        let mut candidates: Vec<(bool, bool, u64, NodeId)> = Vec::new();
        for node in self.nodes() {
            let slot = &self.slots[node.0 as usize];
            let Some(brain) = slot.brain.as_ref().filter(|b| !b.lineage().is_empty()) else { continue };
            let of_the_newest = brain.charter().generation == known && !slot.unaware;
            let chosen = self.resolver.chosen == Some(node);
            candidates.push((chosen, of_the_newest, brain.marks().accepted.0, node));
        }
        candidates.sort();
        let Some((.., node)) = candidates.iter().rev().cycle().nth(self.resolver.tries).copied() else { return Ok(()) };
        self.resolver.tries += 1;
        self.counts.one("deadlocks resolved by force");
        self.say(|| format!("!! {} shall go on", name(node.0 as usize)));
        self.slot(node).unaware = false;
        self.slot(node).given_up_by = None;
        self.force(node)
    }

    /// A node whose charter was founded by force as the active's was, the number being the same, or later, which suspends the
    /// active: nobody said that the active is off when the promotion that founded it came to nothing.
    fn rival(&self, active: NodeId) -> Option<NodeId> {
        let charter = self.slots[active.0 as usize].brain.as_ref()?.charter();
        let rivals = |n: &NodeId| {
            let theirs = self.slots[n.0 as usize].brain.as_ref().map(B::charter);
            theirs.is_some_and(|c| c.conflicts_with(charter) || c.generation.0 > charter.generation.0)
        };
        self.nodes().find(|n| *n != active && rivals(n))
    }

    /// A node that holds something, and shares no term with the active.
    fn stranger(&self, active: NodeId) -> Option<NodeId> {
        let lineage = self.slots[active.0 as usize].brain.as_ref()?.lineage();
        let strange = |n: &NodeId| {
            let theirs = self.slots[n.0 as usize].brain.as_ref().map_or(&[][..], B::lineage);
            !theirs.is_empty() && !theirs.iter().any(|t| lineage.iter().any(|l| l.id == t.id))
        };
        self.nodes().find(|n| *n != active && strange(n))
    }

    pub(super) fn create_anew(&mut self, node: NodeId) -> Result<(), Violation> {
        self.counts.one("nodes created anew");
        self.say(|| format!("!! {} is created anew", name(node.0 as usize)));
        self.stop(node, true);
        self.durability.gave_up(node);
        self.slot(node).unaware = false;
        self.slot(node).given_up_by = None;
        let disk = self.blank_disk(node)?;
        self.slot(node).disk = disk;
        self.slot(node).rotten = false;
        self.restart(node)
    }
}
