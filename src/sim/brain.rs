//! What the world asks of a node's core. The real one is the only one in earnest; the tests of the world bring a small
//! one that can be made to lie.

use crate::core::hello::Charter;
use crate::core::{Action, BlockingDisk, Event, Lsn, NodeConfig, Term, Time};

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
    /// A failure of its storage has put it out of action until it is restarted.
    fn is_faulted(&self) -> bool;
}
