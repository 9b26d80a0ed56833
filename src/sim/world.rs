//! The world of one seed: what is to happen, in order, and how events go into nodes.

use super::audit::Flip;
use super::brain::Brain;
use super::disk::{DiskMood, SimDisk};
use super::invariants::durability::Durability;
use super::invariants::{Violation, broken};
use super::net::{Due, Lane, Net};
use super::operator::Orders;
use super::plan::{Plan, Trouble, name};
use super::report::{Counts, Trace};
use super::resolve::Resolver;
use super::rng::Rng;
use super::slot::Slot;
use super::truth::{Pos, Truth};
use crate::core::{Event, NodeId, Part, PeerMsg, TermId, VolumeId};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Polls without any progress of time after which a node is held to spin.
const SPIN: u64 = 2000;

/// Something that is to happen.
#[derive(Clone, Copy, Debug)]
pub enum Happening {
    Io {
        node: NodeId,
        token: u64,
    },
    Deliver(Lane),
    /// To or from a voter.
    Letter(u64),
    Dialed {
        from: NodeId,
        to: NodeId,
        life: u64,
    },
    DialFailed {
        from: NodeId,
        to: NodeId,
        life: u64,
    },
    Poll {
        node: NodeId,
        life: u64,
    },
    Ask {
        node: NodeId,
        life: u64,
        term: TermId,
    },
    Trouble,
    Restart {
        node: NodeId,
    },
    Thaw {
        node: NodeId,
    },
    Mend {
        a: NodeId,
        b: NodeId,
    },
    DiskWell {
        node: NodeId,
    },
}

/// When, and in which order among what happens at the same time; what.
#[derive(Clone, Copy, Debug)]
struct Entry(u64, u64, Happening);

impl Entry {
    fn key(&self) -> (u64, u64) {
        (self.0, self.1)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// See the module.
pub struct World<B> {
    pub plan: Plan,
    pub rng: Rng,
    /// µs since the beginning.
    pub now: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    next_order: u64,
    pub slots: Vec<Slot<B>>,
    pub net: Net,
    pub(super) voters: super::voters::Voters,
    pub truth: Truth,
    pub durability: Durability,
    pub orders: Orders,
    pub(super) resolver: Resolver,
    pub(super) flip: Option<Flip>,
    pub counts: Counts,
    pub trace: Option<Trace>,
    /// Faults and commands go on.
    pub storm: bool,
    /// Clients ask for more.
    pub load: bool,
    /// The newest change of each volume that a client was told to be done.
    pub(super) done: Vec<Option<Pos>>,
    pub(super) stamps: u64,
    pub(super) next_request: u64,
    digest: u64,
    spins: (u64, u64),
    /// Somebody has served.
    pub(super) is_founded: bool,
    /// Who served last, of those whom nobody has given up, and of which generation.
    pub(super) served_last: Option<(NodeId, Option<(u64, u128)>)>,
    /// Where the newest term began: what is completed anywhere from then on is in it.
    pub(super) newest_began: Option<Pos>,
    /// Counts the beginnings and ends of processes.
    pub(super) processes: u64,
    pub(super) troubles: Troubles,
    /// Things that have happened.
    pub steps: u64,
}

/// Troubles so far: which were drawn, and which of them struck, numbered from 1.
#[derive(Clone, Debug, Default)]
pub struct Troubles {
    pub drawn: Vec<Trouble>,
    pub struck: Vec<(u64, Trouble)>,
}

impl<B: Brain> World<B> {
    /// A world with formatted, running nodes.
    pub fn new(seed: u64, plan: Plan, trace: Option<Trace>) -> Result<World<B>, Violation> {
        let rng = Rng::new(seed ^ 0x5eed);
        let nodes = plan.modes.len();
        let mut net = Net::new(plan.net_delay_us);
        net.compress = plan.compress;
        net.overtaking = plan.overtaking;
        let truth = Truth::new(plan.geometry.clone());
        let mut world = World {
            rng,
            now: 0,
            queue: BinaryHeap::new(),
            next_order: 0,
            slots: Vec::new(),
            net,
            voters: Default::default(),
            truth,
            durability: Durability::new(nodes),
            orders: Orders::default(),
            resolver: Resolver::default(),
            flip: None,
            counts: Counts::default(),
            trace,
            storm: true,
            load: true,
            done: vec![None; plan.geometry.volumes.len()],
            stamps: 1,
            next_request: 1,
            digest: 0xcbf2_9ce4_8422_2325,
            spins: (0, 0),
            is_founded: false,
            served_last: None,
            newest_began: None,
            processes: 0,
            troubles: Troubles::default(),
            steps: 0,
            plan,
        };
        for node in world.plan.nodes() {
            world.make_node(node)?;
        }
        world.make_voters();
        for node in world.plan.nodes() {
            world.start(node)?;
        }
        world.later(1000, Happening::Trouble);
        Ok(world)
    }

    /// A disk formatted for a node.
    pub(super) fn blank_disk(&mut self, node: NodeId) -> Result<SimDisk, Violation> {
        let config = self.plan.config(node, self.rng.next_u128(), self.rng.next_u128());
        let stores = config.volumes.iter().enumerate().map(|(i, v)| (Part::Store(VolumeId(i as u16)), v.size));
        let parts: Vec<(Part, u64)> = stores.chain([(Part::Log, config.log_size)]).collect();
        let mut disk = SimDisk::new(&parts, self.plan.tells_holes, self.plan.disk.clone());
        let ids = [self.rng.next_u128(), self.rng.next_u128()];
        B::format(&config, &mut super::disk::Blocking { disk: &mut disk, calls: None }, ids)
            .map_err(|e| broken("2 a valid image", format!("format of a blank disk failed: {e}")))?;
        Ok(disk)
    }

    fn make_node(&mut self, node: NodeId) -> Result<(), Violation> {
        let disk = self.blank_disk(node)?;
        self.slots.push(Slot {
            brain: None,
            disk,
            life: 0,
            incarnation: 0,
            boot: self.rng.next_u128(),
            frozen: None,
            poll_at: None,
            client: None,
            order: Default::default(),
            isolation: Default::default(),
            stall: Default::default(),
            outvoted_at: None,
            deposed: None,
            suspended: false,
            resyncing: false,
            members: Vec::new(),
            seen_charter: None,
            held_at: None,
            reported: None,
            stayed: Vec::new(),
            impaired: false,
            rotten: false,
            served_in: None,
            bad_pages: Vec::new(),
            held: false,
            unaware: false,
            given_up_by: None,
            ahead_us: self.rng.below(1 << 40),
            fast_ppm: self.rng.below(10_000),
        });
        Ok(())
    }

    pub fn slot(&mut self, node: NodeId) -> &mut Slot<B> {
        &mut self.slots[node.0 as usize]
    }

    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<B> {
        self.plan.nodes()
    }

    /// Writes a line into the trace, if there is one.
    pub fn say(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.line(format!("{:>4}.{:06} {}", now / 1_000_000, now % 1_000_000, line()));
        }
    }

    pub(super) fn mix(&mut self, n: u64) {
        self.digest = (self.digest ^ n).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    /// A number that stands for everything that happened, in order.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    pub fn later(&mut self, delay: u64, what: Happening) {
        self.next_order += 1;
        self.queue.push(Reverse(Entry(self.now + delay, self.next_order, what)));
    }

    pub fn deliver_later(&mut self, due: impl IntoIterator<Item = Due>) {
        for (delay, lane) in due {
            self.later(delay, Happening::Deliver(lane));
        }
    }

    /// Lets everything happen up to a moment.
    pub fn run_until(&mut self, until: u64) -> Result<(), Violation> {
        while self.queue.peek().is_some_and(|Reverse(e)| e.0 <= until)
            && let Some(Reverse(Entry(at, order, what))) = self.queue.pop()
        {
            self.watch_for_spinning(at, what)?;
            self.steps += 1;
            self.now = at;
            self.mix(at);
            self.mix(order);
            self.happen(what)?;
        }
        self.now = until;
        Ok(())
    }

    /// Polls that were planned for a deadline which has moved since do not count: each event of a busy node leaves one behind.
    fn watch_for_spinning(&mut self, at: u64, what: Happening) -> Result<(), Violation> {
        if let Happening::Poll { node, life } = what {
            let slot = &self.slots[node.0 as usize];
            if slot.life != life || slot.poll_at != Some(at) {
                return Ok(());
            }
        }
        self.spins = if at / 1000 == self.spins.0 { (self.spins.0, self.spins.1 + 1) } else { (at / 1000, 0) };
        if self.spins.1 > SPIN * 10 {
            return Err(broken("7 progress", format!("{} things happened within one millisecond", self.spins.1)));
        }
        Ok(())
    }

    fn happen(&mut self, what: Happening) -> Result<(), Violation> {
        match what {
            Happening::Io { node, token } => {
                let slot = &mut self.slots[node.0 as usize];
                let Some((id, result)) = slot.disk.complete(token, &mut self.rng) else { return Ok(()) };
                self.mix(id.0 << 1 | u64::from(result.is_err()));
                if let Err(error) = &result {
                    self.counts.one("I/O errors");
                    self.slot(node).impaired = true;
                    let errno = error.errno;
                    self.say(|| format!("{} {id:?} failed, errno {errno}", name(node.0 as usize)));
                }
                self.handle(node, Event::IoDone { id, result })
            }
            Happening::Deliver(lane) => {
                let Some((node, event, due)) = self.net.deliver(self.now, lane, &mut self.rng) else { return Ok(()) };
                self.deliver_later(due);
                self.handle(node, event)
            }
            Happening::Letter(id) => self.letter_came(id),
            Happening::Dialed { from, to, life } => {
                let stands = self.slots[from.0 as usize].life == life
                    && self.slots[to.0 as usize].brain.is_some()
                    && self.net.reachable(from, to);
                if stands {
                    let due = self.net.connect(self.now, from, to, &mut self.rng);
                    self.deliver_later(due);
                } else {
                    let quick = self.net.reachable(from, to) && self.rng.coin();
                    let delay = if quick { 100 } else { self.rng.around(500_000) };
                    self.later(delay, Happening::DialFailed { from, to, life });
                }
                Ok(())
            }
            Happening::DialFailed { from, to, life } if self.slots[from.0 as usize].life == life => {
                self.handle(from, Event::ConnectFailed { peer: to })
            }
            Happening::Poll { node, life } if self.slots[node.0 as usize].life == life => self.poll(node),
            Happening::Ask { node, life, term } if self.slots[node.0 as usize].life == life => self.ask(node, term),
            Happening::DialFailed { .. } | Happening::Poll { .. } | Happening::Ask { .. } => Ok(()),
            Happening::Trouble => self.trouble(),
            Happening::Restart { node } => self.restart(node),
            Happening::Thaw { node } => self.thaw(node),
            Happening::Mend { a, b } => {
                self.mend(a, b);
                Ok(())
            }
            Happening::DiskWell { node } => {
                self.slot(node).disk.mood = self.calm();
                Ok(())
            }
        }
    }

    /// Gives an event to a node's process; a stopped one gets it when it goes on.
    pub fn handle(&mut self, node: NodeId, event: Event) -> Result<(), Violation> {
        let slot = &mut self.slots[node.0 as usize];
        let clock = slot.clock(self.now);
        let Some(brain) = &mut slot.brain else { return Ok(()) };
        if let Some(inbox) = &mut slot.frozen {
            inbox.push(event);
            return Ok(());
        }
        if let Some(trace) = &mut self.trace {
            let now = self.now;
            trace.line(format!("{:>4}.{:06} {} <- {event:?}", now / 1_000_000, now % 1_000_000, name(node.0 as usize)));
        }
        if let Event::PeerMessage { message: PeerMsg::Hello(hello), .. } = &event
            && slot.client.as_ref().is_some_and(|c| c.live)
            && hello.charter.overtakes(brain.charter())
        {
            // What was decided in the same batch of events, before this one, is answered with it.
            slot.outvoted_at.get_or_insert(self.now + self.plan.batch_us);
            let forced = hello.charter.generation != brain.charter().generation;
            self.counts.one(if forced {
                "actives that met a higher generation"
            } else {
                "actives that met a later promotion"
            });
        }
        brain.handle(clock, event);
        self.learn_incarnation(node);
        self.take_accepted(node)?;
        let batch = self.plan.batch_us;
        let delay = self.rng.below(batch + 1);
        self.poll_by(node, self.now + delay);
        Ok(())
    }

    /// Sees to it that a node is polled at this time or before.
    fn poll_by(&mut self, node: NodeId, at: u64) {
        let now = self.now;
        let slot = self.slot(node);
        if slot.poll_at.is_some_and(|p| p <= at && p >= now) {
            return;
        }
        slot.poll_at = Some(at);
        let life = slot.life;
        self.later(at - now, Happening::Poll { node, life });
    }

    fn take_accepted(&mut self, node: NodeId) -> Result<(), Violation> {
        let slot = &mut self.slots[node.0 as usize];
        let (Some(brain), Some(client)) = (&slot.brain, &mut slot.client) else { return Ok(()) };
        if brain.lineage().last().is_some_and(|t| t.id == client.term) {
            let accepted = brain.marks().accepted;
            client.accepted(accepted, &mut self.truth).map_err(|e| broken("3 reads", e))?;
        }
        Ok(())
    }

    /// Polls a node and carries out what it wants done.
    pub fn poll(&mut self, node: NodeId) -> Result<(), Violation> {
        let slot = &mut self.slots[node.0 as usize];
        let clock = slot.clock(self.now);
        let (Some(brain), None) = (&mut slot.brain, &slot.frozen) else { return Ok(()) };
        if slot.poll_at.is_some_and(|p| p <= self.now) {
            slot.poll_at = None;
        }
        brain.poll(clock);
        self.learn_incarnation(node);
        self.take_accepted(node)?;
        self.learn_members(node)?;
        self.check_orphans(node)?;
        while let Some(action) = self.slots[node.0 as usize].brain.as_mut().and_then(Brain::next_action) {
            self.act(node, action)?;
        }
        let slot = &self.slots[node.0 as usize];
        if let Some(at) = slot.brain.as_ref().and_then(Brain::deadline).map(|t| slot.when(t)) {
            let late = self.rng.below(500);
            self.poll_by(node, at.max(self.now + 1) + late);
        }
        self.check_marks(node)
    }

    /// A disk without faults: while things go wrong it may have little room all the same.
    pub fn calm(&self) -> DiskMood {
        let room = self.plan.disk.room.filter(|_| self.storm);
        DiskMood { room, ..self.plan.disk.clone() }
    }
}
