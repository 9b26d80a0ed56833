//! A place for a node: its machine, and the process that may run on it.

use super::brain::Brain;
use super::client::Client;
use super::disk::SimDisk;
use super::invariants::isolation::Isolation;
use super::invariants::order::Order;
use super::truth::Pos;
use crate::buf::Payload;
use crate::core::{Event, NodeId, ReqId, TermId, Time};

/// A node's machine and process.
#[derive(Debug)]
pub struct Slot<B> {
    pub brain: Option<B>,
    pub disk: SimDisk,
    /// Counts processes: what belongs to an earlier one comes to nothing.
    pub life: u64,
    /// Of the process that runs; 0 when none does.
    pub incarnation: u128,
    /// Changes with each boot of the machine.
    pub boot: u128,
    /// What waits for a process that is stopped.
    pub frozen: Option<Vec<Event>>,
    /// When the process is polled next, in world time.
    pub poll_at: Option<u64>,
    pub client: Option<Client>,
    pub order: Order,
    pub isolation: Isolation,
    /// The same for requests that may wait for peers, each of which may hold them up for `stall_ms`.
    pub stall: Isolation,
    /// When, serving, it met a node that knows of a later promotion: its term is over (C7, C8).
    pub outvoted_at: Option<u64>,
    /// Another node serves by the voters' word, and this one does not know yet: the first request that comes after that.
    pub deposed: Option<ReqId>,
    /// It has said that it is suspended.
    pub suspended: bool,
    /// A resync of it has begun and not ended.
    pub resyncing: bool,
    /// Members in sync by its own charter, after its latest step.
    pub members: Vec<NodeId>,
    /// What `members` was made of: generation, version and members of the charter, and the number of processes so far.
    pub seen_charter: Option<((u64, u128), u64, usize, u64)>,
    /// Those who were so before that step, too: what clients were told in it is theirs to keep.
    pub stayed: Vec<NodeId>,
    /// The newest place that it held in the lineage that it has.
    pub held_at: Option<Pos>,
    /// What it last told anybody to be durable here.
    pub reported: Option<Pos>,
    /// Its disk has failed or been slow since its process started.
    pub impaired: bool,
    /// A sector of its log or lists has gone bad since its process started.
    pub rotten: bool,
    /// The last term that it served in; its daemon notes that.
    pub served_in: Option<TermId>,
    /// Pages of its ring that have gone bad under it while it served, each as it reads since; a restart finds them well.
    pub bad_pages: Vec<(u64, Payload)>,
    /// An operator has said that it is off: it stays so.
    pub held: bool,
    /// It was given up by a forced promotion that it has not heard of.
    pub unaware: bool,
    /// The generation that gave it up, until that is known to be on its disk: what it has only heard it forgets again.
    pub given_up_by: Option<(u64, u128)>,
    /// Its clock: world time, so many µs ahead, running so many millionths fast.
    pub ahead_us: u64,
    pub fast_ppm: u64,
}

impl<B: Brain> Slot<B> {
    /// The node's own time.
    pub fn clock(&self, now: u64) -> Time {
        Time(self.ahead_us + now + now / 1_000_000 * self.fast_ppm + now % 1_000_000 * self.fast_ppm / 1_000_000)
    }

    /// When the node's clock will show `time`, at the earliest.
    pub fn when(&self, time: Time) -> u64 {
        let wanted = u128::from(time.0.saturating_sub(self.ahead_us));
        let mut at = (wanted * 1_000_000 / u128::from(1_000_000 + self.fast_ppm)) as u64;
        while self.clock(at) < time {
            at += 1;
        }
        at
    }

    /// The process runs, and is not stopped.
    pub fn runs(&self) -> bool {
        self.brain.is_some() && self.frozen.is_none()
    }

    /// Clients can use the device here.
    pub fn serves(&self) -> bool {
        self.brain.is_some() && self.client.as_ref().is_some_and(|c| c.live)
    }
}
