//! What is looked at as nodes step: who is in sync, what they have said of themselves, and what holds between them.

use super::brain::{Brain, Marks};
use super::client::Client;
use super::invariants::{Violation, broken, order, salvage};
use super::plan::{Plan, name};
use super::truth::Pos;
use super::world::World;
use crate::core::hello::Member;
use crate::core::{Mode, NodeId, OnStall, PeerMsg, ReqId};

impl<B: Brain> World<B> {
    /// A node that takes over is another one from then on (C3).
    pub(super) fn learn_incarnation(&mut self, node: NodeId) {
        let slot = &mut self.slots[node.0 as usize];
        let present = slot.brain.as_ref().and_then(B::incarnation).map_or(slot.incarnation, |i| i.0);
        if present != slot.incarnation {
            slot.incarnation = present;
            self.processes += 1;
        }
    }

    /// Notes who is in sync by this node's charter. What clients are told counts for those who were before and are now.
    pub(super) fn learn_members(&mut self, node: NodeId) -> Result<(), Violation> {
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
        let listed = |m: &Member| {
            self.nodes()
                .find(|n| name(n.0 as usize) == m.node && self.slots[n.0 as usize].incarnation == m.incarnation.0)
        };
        let now: Vec<NodeId> = charter.in_sync.iter().filter_map(listed).collect();
        self.slot(node).seen_charter = Some(seen);
        let generation = seen.0;
        let before = std::mem::replace(&mut self.slot(node).members, now.clone());
        // By id: two operators may each have founded one of the same number.
        self.slot(node).unaware &= generation != self.orders.generation;
        let slot = &self.slots[node.0 as usize];
        if slot.serves() && !slot.unaware && slot.deposed.is_none() {
            for member in now.iter().filter(|n| !before.contains(n) && **n != node) {
                self.durability.admitted(node, *member, &self.truth);
            }
        }
        self.slot(node).stayed = now.into_iter().filter(|n| before.contains(n)).collect();
        Ok(())
    }

    /// What a node says of itself binds it (invariant 2).
    pub(super) fn note_report(&mut self, node: NodeId, message: &PeerMsg) -> Result<(), Violation> {
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
        let Some((term, lsn)) = said else { return Ok(()) };
        let pos = Pos { term, lsn };
        slot.reported = Some(pos);
        match self.truth.settle(pos) {
            Some(at) if at.lsn > self.truth.end(at.term) => {
                Err(broken("4 records", format!("{node:?} says that it holds {pos:?}, which nobody ever wrote")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check_only_active(&mut self, node: NodeId) -> Result<(), Violation> {
        let others =
            self.nodes().find(|n| *n != node && self.slots[n.0 as usize].serves() && !self.slots[n.0 as usize].unaware);
        let charter = |n: NodeId| self.slots[n.0 as usize].brain.as_ref().map(B::charter);
        let overtakes = |one: NodeId, another: NodeId| {
            self.plan.voting.is_some()
                && charter(one).zip(charter(another)).is_some_and(|(one, another)| one.overtakes(another))
        };
        let next = ReqId(self.next_request);
        match others {
            // Whoever was taken over goes on until it hears of it; what it may still do is looked at.
            Some(other) if overtakes(node, other) => {
                self.counts.one("actives taken over while they lived");
                self.slot(other).deposed = Some(next);
                Ok(())
            }
            // It was replaced while it opened its term.
            Some(other) if overtakes(other, node) => {
                self.counts.one("actives taken over before they served");
                self.slot(node).deposed = Some(next);
                Ok(())
            }
            Some(other) => Err(broken("5 one active", format!("{node:?} serves while {other:?} does"))),
            None => Ok(()),
        }
    }

    /// A node that has taken over another lineage has set aside what only it held (invariant 6).
    pub(super) fn check_orphans(&mut self, node: NodeId) -> Result<(), Violation> {
        let slot = &mut self.slots[node.0 as usize];
        let Some(brain) = &slot.brain else { return Ok(()) };
        let Some(term) = brain.lineage().last().map(|t| t.id) else { return Ok(()) };
        if !brain.has_image() && (self.plan.allow_invalid || brain.is_damaged()) {
            // What it held has been overwritten, as the file allows (`allow_invalid`), or was lost with the log in the middle of a round
            // of applying (L2): nothing of it is left to set aside.
            slot.held_at = None;
            return Ok(());
        }
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
    pub(super) fn check_holder(
        &self,
        member: NodeId,
        kept: Option<Pos>,
        durable: Option<Pos>,
    ) -> Result<(), Violation> {
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

    pub(super) fn check_marks(&mut self, node: NodeId) -> Result<(), Violation> {
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
        let may_hang = self.plan.on_stall == OnStall::Suspend || slot.suspended || self.plan.voting.is_some();
        slot.stall.note(now, serving.is_none() || may_hang || slot.impaired || storm_of_io);
        if let Some(oldest) = client.and_then(Client::oldest) {
            slot.isolation.check(now, node, now - oldest, self.plan.patience_us())?;
            slot.stall.check(now, node, now - oldest, self.plan.stalls_us())?;
        }
        let watched = serving.is_some() && !slot.unaware && slot.deposed.is_none();
        let Marks { accepted, written, durable, committed, applied, checkpointed } = marks;
        let state = [accepted, written, durable, committed, applied, checkpointed];
        self.mix(u64::from(node.0));
        state.into_iter().for_each(|mark| self.mix(mark.0));
        if watched { self.check_applied(node) } else { Ok(()) }
    }

    /// S1, from outside: nobody of the active's lineage has applied past what a member holds.
    fn check_applied(&self, active: NodeId) -> Result<(), Violation> {
        let term = |n: NodeId| self.slots[n.0 as usize].brain.as_ref()?.lineage().last().map(|t| t.id);
        let marks = |n: NodeId| self.slots[n.0 as usize].brain.as_ref().map_or_else(Marks::default, B::marks);
        let here = term(active);
        let of_the_term = || self.nodes().filter(|n| here.is_some() && term(*n) == here);
        let members = &self.slots[active.0 as usize].members;
        let Some(least) = of_the_term().filter(|n| members.contains(n)).min_by_key(|n| marks(*n).durable) else {
            return Ok(());
        };
        let durable = marks(least).durable;
        of_the_term().try_for_each(|node| order::check_applied(node, marks(node).applied, least, durable))
    }
}

fn all_async(plan: &Plan, node: NodeId) -> bool {
    plan.nodes().filter(|n| *n != node).all(|n| plan.modes[n.0 as usize] == Mode::Async)
}
