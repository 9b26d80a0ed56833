//! The world of one seed: what is to happen, in order, and how events go into nodes and actions come out.

use super::audit::Flip;
use super::brain::Brain;
use super::client::Client;
use super::disk::{DiskMood, SimDisk};
use super::invariants::durability::{self, Durability};
use super::invariants::{Violation, broken, order, records, salvage};
use super::net::{Due, Lane, Net};
use super::operator::Orders;
use super::plan::{Plan, name};
use super::report::{Counts, Trace};
use super::resolve::Resolver;
use super::rng::Rng;
use super::slot::Slot;
use super::truth::{Pos, Truth};
use crate::core::notice::Notice;
use crate::core::{Action, Event, Lsn, NodeId, OnStall, Part, PeerMsg, ReqId, TermId, VolumeId};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Polls without any progress of time after which a node is held to spin.
const SPIN: u64 = 2000;

/// Something that is to happen.
#[derive(Clone, Copy, Debug)]
pub enum Happening {
    Io { node: NodeId, token: u64 },
    Deliver(Lane),
    Dialed { from: NodeId, to: NodeId, life: u64 },
    DialFailed { from: NodeId, to: NodeId, life: u64 },
    Poll { node: NodeId, life: u64 },
    Ask { node: NodeId, life: u64, term: TermId },
    Trouble,
    Restart { node: NodeId },
    Thaw { node: NodeId },
    Mend { a: NodeId, b: NodeId },
    DiskWell { node: NodeId },
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
    done: Vec<Option<Pos>>,
    stamps: u64,
    next_request: u64,
    digest: u64,
    spins: (u64, u64),
    /// Somebody has served.
    is_founded: bool,
    /// Who served last, of those whom nobody has given up.
    served_last: Option<(NodeId, Option<(u64, u128)>)>,
    /// Counts the beginnings and ends of processes.
    pub(super) processes: u64,
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
            processes: 0,
            plan,
        };
        for node in world.plan.nodes() {
            world.make_node(node)?;
        }
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
            suspended: false,
            resyncing: false,
            members: Vec::new(),
            seen_charter: None,
            held_at: None,
            reported: None,
            stayed: Vec::new(),
            impaired: false,
            rotten: false,
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

    fn mix(&mut self, n: u64) {
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
            self.watch_for_spinning(at)?;
            self.now = at;
            self.mix(at);
            self.mix(order);
            self.happen(what)?;
        }
        self.now = until;
        Ok(())
    }

    fn watch_for_spinning(&mut self, at: u64) -> Result<(), Violation> {
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
            && hello.charter.generation.0 > brain.charter().generation.0
        {
            slot.outvoted_at.get_or_insert(self.now);
            self.counts.one("actives that met a higher generation");
        }
        brain.handle(clock, event);
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

    /// Notes who is in sync by this node's charter. What clients are told counts for those who were before and are now.
    fn learn_members(&mut self, node: NodeId) -> Result<(), Violation> {
        let slot = &self.slots[node.0 as usize];
        let Some(brain) = &slot.brain else { return Ok(()) };
        let charter = brain.charter();
        let seen = (charter.generation, charter.version, charter.in_sync.len(), self.processes);
        if slot.seen_charter == Some(seen) {
            if slot.stayed.len() != slot.members.len() {
                self.slot(node).stayed = self.slots[node.0 as usize].members.clone();
            }
            return Ok(());
        }
        let listed = |m: &crate::core::hello::Member| {
            self.nodes()
                .find(|n| name(n.0 as usize) == m.node && self.slots[n.0 as usize].incarnation == m.incarnation.0)
        };
        let now: Vec<NodeId> = charter.in_sync.iter().filter_map(listed).collect();
        self.slot(node).seen_charter = Some(seen);
        let generation = seen.0;
        let before = std::mem::replace(&mut self.slot(node).members, now.clone());
        // By id: two operators may each have founded one of the same number.
        self.slot(node).unaware &= generation != self.orders.generation;
        if self.slots[node.0 as usize].serves() && !self.slots[node.0 as usize].unaware {
            for member in now.iter().filter(|n| !before.contains(n) && **n != node) {
                self.durability.admitted(node, *member, &self.truth);
            }
        }
        self.slot(node).stayed = now.into_iter().filter(|n| before.contains(n)).collect();
        Ok(())
    }

    fn act(&mut self, node: NodeId, action: Action) -> Result<(), Violation> {
        if self.trace.is_some() && !matches!(action, Action::Notice(_)) {
            self.say(|| format!("{} -> {action:?}", name(node.0 as usize)));
        }
        match action {
            Action::Io { id, part, op } => {
                let slot = &mut self.slots[node.0 as usize];
                let submitted = slot.disk.submit(id, part, op, &mut self.rng);
                let (token, delay) =
                    submitted.map_err(|e| broken("9 disk", format!("{}: {e}", name(node.0 as usize))))?;
                self.later(delay, Happening::Io { node, token });
                Ok(())
            }
            Action::Complete { req, result } => {
                self.mix(req.0);
                self.completed(node, req, result)
            }
            Action::Connect { peer } => {
                let life = self.slots[node.0 as usize].life;
                let delay = self.plan.net_delay_us + 1;
                self.later(delay, Happening::Dialed { from: node, to: peer, life });
                Ok(())
            }
            Action::Send { session, message, .. } => self.send(node, session, message),
            Action::Close { session, .. } => {
                let due = self.net.close(self.now, node, session, &mut self.rng);
                self.deliver_later(due);
                Ok(())
            }
            Action::CommandDone { id, result } => {
                self.command_done(node, id, result);
                Ok(())
            }
            Action::Notice(notice) => {
                self.noticed(node, &notice);
                self.check_difference(&notice)
            }
            Action::Serve { term, continues } => self.serve(node, term, continues),
            Action::StopServing => {
                self.counts.one("stops of serving");
                if let Some(client) = &mut self.slot(node).client {
                    client.abandon();
                }
                Ok(())
            }
        }
    }

    fn send(&mut self, node: NodeId, session: crate::core::SessionId, message: PeerMsg) -> Result<(), Violation> {
        if let PeerMsg::Append { records, .. } = &message {
            let Some(brain) = &self.slots[node.0 as usize].brain else { return Ok(()) };
            records::check(brain.lineage(), records, &self.truth)?;
            records::check_order(records)?;
            self.counts.records_sent += records.len() as u64;
            let unheard = self.net.unheard(node, session);
            if !records.is_empty() && unheard >= self.plan.window {
                let detail = format!("{node:?} sends on {session:?}, where {unheard} bytes are under way");
                return Err(broken("F1 window", detail));
            }
            let last = records.last().map_or(0, |r| r.lsn.0);
            self.mix(last);
        }
        self.note_report(node, &message);
        let due = self.net.send(self.now, node, session, &message, &mut self.rng);
        let due = due.map_err(|e| broken("4 records", format!("{node:?} sends what cannot travel: {e}")))?;
        self.deliver_later(due);
        Ok(())
    }

    /// What a node says of itself binds it (invariant 2).
    fn note_report(&mut self, node: NodeId, message: &PeerMsg) {
        let slot = &mut self.slots[node.0 as usize];
        let newest = slot.brain.as_ref().and_then(|b| b.lineage().last()).map(|t| t.id);
        let said = match message {
            PeerMsg::Hello(hello) => hello.lineage.last().map(|t| (t.id, hello.durable)),
            PeerMsg::Ready { durable, .. } => newest.map(|term| (term, *durable)),
            PeerMsg::ResyncDone { position } => newest.map(|term| (term, *position)),
            // In an open gap the term is the active's already, and what is durable is this node's own.
            PeerMsg::Ack(ack) if ack.term == newest => newest.map(|term| (term, ack.durable)),
            _ => None,
        };
        if let Some((term, lsn)) = said {
            slot.reported = Some(Pos { term, lsn });
        }
    }

    fn noticed(&mut self, node: NodeId, notice: &Notice) {
        let kind = format!("{notice:?}");
        let kind = kind.split([' ', '{', '(']).next().unwrap_or_default();
        self.counts.one(&format!("notice {kind}"));
        let slot = self.slot(node);
        match notice {
            Notice::Suspended { .. } => slot.suspended = true,
            Notice::Resumed | Notice::TermOpened { .. } => slot.suspended = false,
            Notice::ResyncStarted { .. } => slot.resyncing = slot.client.as_ref().is_none_or(|c| !c.live),
            Notice::ResyncFinished { .. } | Notice::PeerLost { .. } => slot.resyncing = false,
            _ => {}
        }
        self.say(|| format!("{} == {notice:?}", name(node.0 as usize)));
        if matches!(notice, Notice::ImageGivenUp { .. }) {
            // The file allows it: what it holds is of no worth until it is whole again.
            self.durability.gave_up(node);
        }
    }

    /// A node opened a term and serves it.
    /// What belongs to a term goes on in a later one only if nobody else has served in between (C6). Of a generation that was founded
    /// by force, with this node said to be off, it need not know.
    fn check_continues(&mut self, node: NodeId, term: TermId, continues: Option<TermId>) -> Result<(), Violation> {
        if continues.is_some_and(|before| before != term) {
            self.counts.one("terms that continue another");
        }
        let generation = self.slots[node.0 as usize].brain.as_ref().map(|b| b.charter().generation);
        let last = self.served_last.replace((node, generation));
        let since = last.filter(|(n, g)| *n != node && *g == generation);
        match (continues, since) {
            (Some(before), Some((other, _))) => {
                let what = format!("{node:?} continues {before:?} in {term:?}, and {other:?} served in between");
                Err(broken("5 one active (C6)", what))
            }
            _ => Ok(()),
        }
    }

    fn serve(&mut self, node: NodeId, term: TermId, continues: Option<TermId>) -> Result<(), Violation> {
        let slot = &self.slots[node.0 as usize];
        let Some(brain) = &slot.brain else { return Ok(()) };
        let lineage = brain.lineage().to_vec();
        let Some(opened) = lineage.last().copied().filter(|t| t.id == term) else {
            return Err(broken("4 records", format!("{node:?} serves {term:?}, its lineage is {lineage:?}")));
        };
        let again = slot.client.as_ref().is_some_and(|c| c.term == term);
        let generation = brain.charter().generation;
        let forced = self.orders.is_forced(node) || self.orders.is_late(node, generation);
        if lineage.len() == 1 && !again && !forced && !slot.unaware && self.is_founded {
            return Err(broken("5 one active", format!("{node:?} founds a second lineage, and nobody forced it")));
        }
        self.truth.learn(&lineage).map_err(|e| broken("4 records", e))?;
        self.mix(opened.first.0);
        if forced {
            self.orders.generation = generation;
            for off in self.orders.off(node) {
                self.slot(off).unaware = true;
                self.slot(off).given_up_by = Some(generation);
            }
        }
        self.slot(node).unaware &= generation != self.orders.generation;
        if !self.slots[node.0 as usize].unaware {
            self.check_only_active(node)?;
            self.check_continues(node, term, continues)?;
        } else {
            self.counts.one("terms of a node that was given up");
        }
        self.is_founded = true;
        self.orders.served.insert(generation);
        self.counts.one(if forced { "terms opened by force" } else { "terms opened" });
        if !again {
            let start = opened.first.prev();
            if !self.slots[node.0 as usize].unaware {
                let at = lineage.len().checked_sub(2).map(|i| Pos { term: lineage[i].id, lsn: start });
                let at = at.and_then(|p| self.truth.settle(p));
                self.counts.one("promotions checked");
                let given_up = self.durability.opened(node, at, forced, &self.truth)?;
                self.counts.add("debts given up by force", given_up);
            }
            let whole = Pos { term, lsn: start };
            let held = |done: &Option<Pos>| done.filter(|p| self.truth.contains(whole, *p)).map_or(Lsn(0), |p| p.lsn);
            let completed = self.done.iter().map(held).collect();
            self.slot(node).client = Some(Client::new(term, start, completed));
            self.slot(node).outvoted_at = None;
        } else if let Some(client) = &mut self.slot(node).client {
            client.live = true;
        }
        let life = self.slots[node.0 as usize].life;
        self.later(1, Happening::Ask { node, life, term });
        Ok(())
    }

    fn check_only_active(&self, node: NodeId) -> Result<(), Violation> {
        let other =
            self.nodes().find(|n| *n != node && self.slots[n.0 as usize].serves() && !self.slots[n.0 as usize].unaware);
        match other {
            Some(other) => Err(broken("5 one active", format!("{node:?} serves while {other:?} does"))),
            None => Ok(()),
        }
    }

    fn ask(&mut self, node: NodeId, term: TermId) -> Result<(), Violation> {
        let slot = &mut self.slots[node.0 as usize];
        let Some(client) = slot.client.as_mut().filter(|c| c.live && c.term == term) else { return Ok(()) };
        let habits = &self.plan.habits;
        let mut asked = Vec::new();
        let room = habits.depth.saturating_sub(client.in_flight() as u64);
        if self.load && room > 0 {
            for _ in 0..self.rng.between(1, room.min(8)) {
                let id = ReqId(self.next_request);
                self.next_request += 1;
                let geometry = &self.plan.geometry;
                asked.push((id, client.ask(id, self.now, habits, geometry, &mut self.stamps, &mut self.rng)));
            }
        }
        let life = slot.life;
        let pause = 1 + self.rng.around(habits.think_us);
        self.later(pause, Happening::Ask { node, life, term });
        self.counts.requests += asked.len() as u64;
        asked.into_iter().try_for_each(|(req, op)| self.handle(node, Event::Client { req, op }))
    }

    /// A request of the healing phase: reads everything, or flushes.
    pub fn ask_directly(&mut self, node: NodeId, volume: VolumeId, flush: bool) -> Result<(), Violation> {
        let req = ReqId(self.next_request);
        self.next_request += 1;
        let (now, geometry) = (self.now, self.plan.geometry.clone());
        let Some(client) = &mut self.slot(node).client else { return Ok(()) };
        let op = if flush { client.ask_flush(req, now, volume) } else { client.ask_all(req, now, volume, &geometry) };
        self.handle(node, Event::Client { req, op })
    }

    fn completed(
        &mut self,
        node: NodeId,
        req: ReqId,
        result: Result<crate::core::Reply, crate::core::ClientError>,
    ) -> Result<(), Violation> {
        let now = self.now;
        let slot = &mut self.slots[node.0 as usize];
        let Some(client) = &mut slot.client else { return Ok(()) };
        let impaired = slot.impaired;
        let promise = client.completed(req, now, &result, impaired, &self.truth).map_err(|e| broken("3 reads", e))?;
        if result.is_err() {
            self.counts.one("requests that failed");
            return Ok(());
        }
        self.counts.answered += 1;
        if let Some(took) = promise.took_us {
            slot.isolation.check(now, node, took, self.plan.patience_us())?;
            slot.stall.check(now, node, took, self.plan.stalls_us())?;
        }
        let changed = promise.done.is_some() || promise.durable.is_some();
        if changed && slot.outvoted_at.is_some_and(|at| at < now) {
            let detail = format!("{node:?} told a client that {req:?} is done, and has met a higher generation");
            return Err(broken("5 one active", detail));
        }
        if changed && slot.brain.as_ref().is_some_and(|b| b.charter().in_sync.len() < 2) && self.plan.keeps_two(node) {
            let detail = format!("{node:?} told a client that {req:?} is done, and nobody else is in sync");
            return Err(broken("10 suspension", detail));
        }
        if slot.unaware {
            return Ok(());
        }
        if let Some((volume, pos)) = promise.done {
            durability::raise(&mut self.done[volume.0 as usize], pos, &self.truth);
        }
        let others: Vec<NodeId> = slot.stayed.iter().copied().filter(|n| *n != node).collect();
        for other in &others {
            self.check_holder(*other, promise.kept, promise.durable)?;
        }
        let holders = [node].into_iter().chain(others);
        self.durability.promise(holders, promise.kept, promise.durable, &self.truth);
        Ok(())
    }

    /// A node that has taken over another lineage has set aside what only it held (invariant 6).
    fn check_orphans(&mut self, node: NodeId) -> Result<(), Violation> {
        let slot = &mut self.slots[node.0 as usize];
        let Some(brain) = &slot.brain else { return Ok(()) };
        let Some(term) = brain.lineage().last().map(|t| t.id) else { return Ok(()) };
        let now = Pos { term, lsn: brain.marks().accepted };
        match slot.held_at {
            Some(before) if before.term == term => {
                slot.held_at = Some(Pos { lsn: before.lsn.max(now.lsn), ..now });
                return Ok(());
            }
            None => slot.held_at = Some(now),
            Some(before) => {
                slot.held_at = Some(now);
                self.truth.learn(brain.lineage()).map_err(|e| broken("4 records", e))?;
                let orphans = salvage::check(node, before, term, &slot.disk, &self.truth)?;
                self.counts.add("orphaned blocks found in a salvage", orphans);
            }
        }
        Ok(())
    }

    /// A member that a client was promised something by holds it, at this moment.
    fn check_holder(&self, member: NodeId, kept: Option<Pos>, durable: Option<Pos>) -> Result<(), Violation> {
        let Some(brain) = &self.slots[member.0 as usize].brain else { return Ok(()) };
        let Some(term) = brain.lineage().last().map(|t| t.id) else { return Ok(()) };
        let marks = brain.marks();
        for (owed, has) in [(kept, marks.accepted), (durable, marks.durable)] {
            let Some(owed) = owed else { continue };
            if !self.truth.contains(Pos { term, lsn: has }, owed) {
                let detail =
                    format!("{member:?}, in sync, is at {marks:?} of {term:?}, and clients were told of {owed:?}");
                return Err(broken("1 durability", detail));
            }
        }
        Ok(())
    }

    fn check_marks(&mut self, node: NodeId) -> Result<(), Violation> {
        let now = self.now;
        let storm_of_io = self.plan.disk.access_us + self.plan.disk.flush_us > 1500;
        let slot = &mut self.slots[node.0 as usize];
        let Some(brain) = &slot.brain else { return Ok(()) };
        let marks = brain.marks();
        let client = slot.client.as_ref().filter(|c| c.live);
        let serving = client.map(|c| c.term);
        slot.order.check(node, marks, serving)?;
        let others_async = slot.members.iter().all(|m| *m == node) && all_async(&self.plan, node);
        slot.isolation.note(now, serving.is_none() || !others_async || slot.impaired || storm_of_io);
        let may_hang = self.plan.on_stall == OnStall::Suspend || slot.suspended;
        slot.stall.note(now, serving.is_none() || may_hang || slot.impaired || storm_of_io);
        if let Some(oldest) = client.and_then(Client::oldest) {
            slot.isolation.check(now, node, now - oldest, self.plan.patience_us())?;
            slot.stall.check(now, node, now - oldest, self.plan.stalls_us())?;
        }
        if serving.is_some() && !slot.unaware { self.check_applied(node) } else { Ok(()) }
    }

    /// S1, from outside: nobody of the active's lineage has applied past what a member holds.
    fn check_applied(&self, active: NodeId) -> Result<(), Violation> {
        let of = |n: NodeId| {
            let brain = self.slots[n.0 as usize].brain.as_ref()?;
            Some((brain.lineage().last()?.id, brain.marks()))
        };
        let Some((term, _)) = of(active) else { return Ok(()) };
        let marks: Vec<(NodeId, super::brain::Marks)> =
            self.nodes().filter_map(|n| of(n).filter(|(t, _)| *t == term).map(|(_, m)| (n, m))).collect();
        let members = &self.slots[active.0 as usize].members;
        for (member, held) in marks.iter().filter(|(n, _)| members.contains(n)) {
            for (node, applied) in marks.iter().map(|(n, m)| (*n, m.applied)) {
                order::check_applied(node, applied, *member, held.durable)?;
            }
        }
        Ok(())
    }
}

fn all_async(plan: &Plan, node: NodeId) -> bool {
    plan.nodes().filter(|n| *n != node).all(|n| plan.modes[n.0 as usize] == crate::core::Mode::Async)
}
