//! What the world asks of a node's core. The real one is the only one in earnest; the tests of the world bring a small
//! one that can be made to lie.

use crate::core::hello::Charter;
use crate::core::{Action, BlockingDisk, Event, FormatIds, Lsn, Node, NodeConfig, Term, Time, recovery};

/// How far a node is, each mark at most as high as the one before it is required to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    pub accepted: Lsn,
    pub written: Lsn,
    pub durable: Lsn,
    pub committed: Lsn,
    pub applied: Lsn,
    pub checkpointed: Lsn,
}

/// One node's state machine, as a driver sees it.
pub trait Brain: Sized {
    /// Makes a blank disk a replica that holds nothing.
    fn format(config: &NodeConfig, disk: &mut dyn BlockingDisk, ids: [u128; 2]) -> Result<(), String>;
    /// Recovers what the disk holds, and starts from there.
    fn start(config: NodeConfig, disk: &mut dyn BlockingDisk, now: Time) -> Result<Self, String>;
    fn handle(&mut self, now: Time, event: Event);
    fn poll(&mut self, now: Time);
    fn next_action(&mut self) -> Option<Action>;
    fn deadline(&self) -> Option<Time>;
    fn marks(&self) -> Marks;
    fn lineage(&self) -> &[Term];
    fn charter(&self) -> &Charter;
    fn has_image(&self) -> bool;
    /// What it had made durable is lost, from some record on (L2).
    fn is_damaged(&self) -> bool;
    /// A failure of its storage has put it out of action until it is restarted.
    fn is_faulted(&self) -> bool;
    /// Another was promoted since it was, and it does not step down by itself.
    fn is_outvoted(&self) -> bool;
}

impl Brain for Node {
    fn format(config: &NodeConfig, disk: &mut dyn BlockingDisk, ids: [u128; 2]) -> Result<(), String> {
        let ids = FormatIds { log_stream: ids[0], history_stream: ids[1] };
        recovery::format(config, disk, ids, true).map_err(|e| e.to_string())
    }

    fn start(config: NodeConfig, disk: &mut dyn BlockingDisk, now: Time) -> Result<Node, String> {
        let recovered = recovery::recover(&config, disk).map_err(|e| e.to_string())?;
        Ok(Node::new(config, recovered, now))
    }

    fn handle(&mut self, now: Time, event: Event) {
        Node::handle(self, now, event);
    }

    fn poll(&mut self, now: Time) {
        Node::poll(self, now);
    }

    fn next_action(&mut self) -> Option<Action> {
        Node::next_action(self)
    }

    fn deadline(&self) -> Option<Time> {
        Node::deadline(self)
    }

    fn marks(&self) -> Marks {
        let [accepted, written, durable, committed, applied, checkpointed] = self.watermarks();
        Marks { accepted, written, durable, committed, applied, checkpointed }
    }

    fn lineage(&self) -> &[Term] {
        Node::lineage(self)
    }

    fn charter(&self) -> &Charter {
        Node::charter(self)
    }

    fn has_image(&self) -> bool {
        Node::has_image(self)
    }

    fn is_damaged(&self) -> bool {
        Node::is_damaged(self)
    }

    fn is_faulted(&self) -> bool {
        self.status(Time(0)).fault.is_some()
    }

    fn is_outvoted(&self) -> bool {
        Node::is_outvoted(self) && self.stage() == crate::core::node::Stage::Active
    }
}
