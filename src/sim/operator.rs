//! The operators: commands at bad moments, and a steward who looks after a resource that nobody serves. They know the
//! world's truth where a person would go and look: they say of a node that it is off only when it is, and keep it so until the
//! command is over.

use super::brain::Brain;
use super::invariants::Violation;
use super::plan::name;
use super::world::World;
use crate::core::notice::Refusal;
use crate::core::{Answer, Command, CommandId, Event, NodeId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
struct Order {
    node: NodeId,
    forced: bool,
    off: Vec<NodeId>,
}

/// Commands under way, and what forced promotions have founded.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    pending: BTreeMap<CommandId, Order>,
    next: u64,
    /// Whom the newest forced promotion of a node said to be off.
    named: BTreeMap<NodeId, Vec<NodeId>>,
    /// Generations in which somebody has served.
    pub served: BTreeSet<(u64, u128)>,
    /// The newest generation that a forced promotion founded.
    pub generation: (u64, u128),
}

impl Orders {
    /// A forced promotion of this node is under way.
    pub fn is_forced(&self, node: NodeId) -> bool {
        self.pending.values().any(|o| o.node == node && o.forced)
    }

    /// A command to this node is under way.
    pub fn is_busy(&self, node: NodeId) -> bool {
        self.pending.values().any(|o| o.node == node)
    }

    /// A forced promotion of this node was cut short after its generation stood on its disk: it takes effect now. Generations
    /// are numbered from 2 on where force founded them.
    pub fn is_late(&self, node: NodeId, generation: (u64, u128)) -> bool {
        self.named.contains_key(&node) && generation.0 >= 2 && !self.served.contains(&generation)
    }

    /// The nodes said to be off in it.
    pub fn off(&self, node: NodeId) -> Vec<NodeId> {
        self.named.get(&node).cloned().unwrap_or_default()
    }

    /// Its process is gone, and the command with it.
    pub fn forget(&mut self, node: NodeId) {
        self.pending.retain(|_, o| o.node != node);
    }

    fn is_held(&self, node: NodeId) -> bool {
        self.pending.values().any(|o| o.off.contains(&node))
    }
}

impl<B: Brain> World<B> {
    /// Gives a command to a node.
    pub fn order(&mut self, node: NodeId, command: Command) -> Result<(), Violation> {
        if self.slots[node.0 as usize].brain.is_none() {
            return Ok(());
        }
        let id = CommandId(self.orders.next);
        self.orders.next += 1;
        let (forced, off) = match &command {
            Command::Promote { force: true, off } => {
                (true, self.nodes().filter(|n| off.contains(&name(n.0 as usize))).collect())
            }
            _ => (false, Vec::new()),
        };
        for n in &off {
            self.slot(*n).held = true;
        }
        if forced {
            self.orders.named.insert(node, off.clone());
        }
        self.orders.pending.insert(id, Order { node, forced, off });
        self.handle(node, Event::Command { id, command })
    }

    /// Forces the promotion of a node, naming all that are really down. Nobody in his right mind forces a node that holds
    /// nothing, or one that was given up, where there is another.
    pub fn force(&mut self, node: NodeId) -> Result<(), Violation> {
        let slot = &self.slots[node.0 as usize];
        let fresh = slot.brain.as_ref().is_some_and(|b| b.lineage().is_empty());
        if slot.unaware || (fresh && self.truth.is_begun()) {
            return Ok(());
        }
        let down = |n: &NodeId| *n != node && self.slots[n.0 as usize].brain.is_none();
        let off = self.nodes().filter(down).map(|n| name(n.0 as usize)).collect();
        self.order(node, Command::Promote { force: true, off })
    }

    pub(super) fn command_done(&mut self, node: NodeId, id: CommandId, result: Result<Answer, Refusal>) {
        self.orders.pending.remove(&id);
        self.release_held();
        match &result {
            Ok(_) => self.counts.one("commands done"),
            Err(refusal) => {
                let kind = format!("{refusal:?}");
                let kind = kind.split([' ', '{', '(']).next().unwrap_or_default();
                self.counts.one(&format!("refused {kind}"));
            }
        }
        self.say(|| format!("{} ## {id:?}: {result:?}", name(node.0 as usize)));
    }

    /// Lets go of nodes that were kept off for a command that is over.
    pub(super) fn release_held(&mut self) {
        for node in self.nodes() {
            let held = self.orders.is_held(node);
            self.slot(node).held &= held;
        }
    }

    /// Somebody looks after things: a node that serves what was given up is demoted; where nobody serves, one is promoted;
    /// with `force` also where that needs it.
    pub fn steward(&mut self, force: bool) -> Result<(), Violation> {
        let serving = |s: &super::slot::Slot<B>| s.serves() && s.frozen.is_none();
        if let Some(given_up) =
            self.nodes().find(|n| serving(&self.slots[n.0 as usize]) && self.slots[n.0 as usize].unaware)
        {
            return self.order(given_up, Command::Demote { force: true });
        }
        let over = |n: &NodeId| {
            let slot = &self.slots[n.0 as usize];
            let stands = slot.brain.as_ref().is_some_and(|b| b.is_outvoted() && !b.is_faulted());
            slot.runs() && stands
        };
        if let Some(over) = self.nodes().find(over) {
            return self.order(over, Command::Demote { force: true });
        }
        if self.slots.iter().any(|s| s.serves()) {
            return Ok(());
        }
        let running: Vec<NodeId> = self.nodes().filter(|n| self.slots[n.0 as usize].runs()).collect();
        if running.is_empty() {
            return Ok(());
        }
        let node = self.rng.pick(&running);
        match force {
            true => self.force(node),
            false => self.order(node, Command::Promote { force: false, off: Vec::new() }),
        }
    }
}
