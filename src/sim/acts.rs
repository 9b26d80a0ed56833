//! What nodes do: the actions that come out of them, and the clients of those that serve.

use super::brain::Brain;
use super::client::Client;
use super::invariants::durability;
use super::invariants::{Violation, broken, records};
use super::plan::name;
use super::truth::Pos;
use super::world::{Happening, World};
use crate::core::notice::Notice;
use crate::core::{Action, Event, Lsn, NodeId, PeerMsg, Reply, ReqId, TermId, VolumeId};

impl<B: Brain> World<B> {
    pub(super) fn act(&mut self, node: NodeId, action: Action) -> Result<(), Violation> {
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
            Action::AskVoter { voter, question } => {
                self.ask_voter(node, &voter, question);
                Ok(())
            }
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
        self.note_report(node, &message)?;
        let due = self.net.send(self.now, node, session, &message, &mut self.rng);
        let due = due.map_err(|e| broken("4 records", format!("{node:?} sends what cannot travel: {e}")))?;
        self.deliver_later(due);
        Ok(())
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

    /// What belongs to a term goes on in a later one only if nobody else has served in between (C6): nothing does to one that was not
    /// served in (`daemon::tenure`). Of a generation that was founded by force, with this node said to be off, it need not know.
    fn check_continues(&mut self, node: NodeId, term: TermId, continues: Option<TermId>) -> Result<(), Violation> {
        if continues.is_some_and(|before| before != term) {
            self.counts.one("terms that continue another");
        }
        let generation = self.slots[node.0 as usize].brain.as_ref().map(|b| b.charter().generation);
        let last = self.served_last.replace((node, generation));
        let since = last.filter(|(n, g)| *n != node && *g == generation);
        let served_in = self.slot(node).served_in.replace(term);
        match (continues.filter(|before| Some(*before) == served_in), since) {
            (Some(before), Some((other, _))) => {
                let what = format!("{node:?} continues {before:?} in {term:?}, and {other:?} served in between");
                Err(broken("5 one active (C6)", what))
            }
            _ => Ok(()),
        }
    }

    /// A node opened a term and serves it.
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
        self.slot(node).deposed = None;
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
            let slot = &self.slots[node.0 as usize];
            let in_force = !slot.unaware && slot.deposed.is_none();
            if in_force {
                let at = lineage.len().checked_sub(2).map(|i| Pos { term: lineage[i].id, lsn: start });
                let at = at.and_then(|p| self.truth.settle(p));
                self.counts.one("promotions checked");
                let voted = self.plan.voting.is_some();
                let given_up = self.durability.opened(node, at, forced, voted, &self.truth)?;
                let how = if forced { "debts given up by force" } else { "debts that nobody was left to pay (C5)" };
                self.counts.add(how, given_up);
            }
            let whole = Pos { term, lsn: start };
            if in_force {
                self.newest_began = Some(whole);
            }
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

    pub(super) fn ask(&mut self, node: NodeId, term: TermId) -> Result<(), Violation> {
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

    /// C1, contract 4: whoever was taken over and does not know it completes nothing that the next active lacks.
    fn check_deposed(&mut self, node: NodeId, owed: Option<Pos>) -> Result<(), Violation> {
        self.counts.one("answers of actives that were taken over");
        let lacks = |pos: &Pos| self.newest_began.is_none_or(|at| !self.truth.contains(at, *pos));
        match owed.filter(lacks) {
            Some(pos) => {
                let detail =
                    format!("{node:?} completes {pos:?}, and the next active began at {:?}", self.newest_began);
                Err(broken("1 durability", detail))
            }
            None => Ok(()),
        }
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
        // One that was asked before is answered with what was there then.
        let asked_since = slot.deposed.is_some_and(|first| req >= first);
        if asked_since && matches!(&result, Ok(Reply::Data(_) | Reply::Extents(_))) {
            let detail = format!("{node:?} answers {req:?}, and another node had taken over when it was asked");
            return Err(broken("5 one active (C2)", detail));
        }
        if let Some(took) = promise.took_us {
            slot.isolation.check(now, node, took, self.plan.patience_us())?;
            slot.stall.check(now, node, took, self.plan.stalls_us())?;
        }
        let changed = promise.done.is_some() || promise.durable.is_some();
        if changed && slot.outvoted_at.is_some_and(|at| at < now) {
            let detail = format!("{node:?} told a client that {req:?} is done, and has met a later promotion");
            return Err(broken("5 one active", detail));
        }
        if changed && slot.brain.as_ref().is_some_and(|b| b.charter().in_sync.len() < 2) && self.plan.keeps_two(node) {
            let detail = format!("{node:?} told a client that {req:?} is done, and nobody else is in sync");
            return Err(broken("10 suspension", detail));
        }
        if slot.unaware {
            return Ok(());
        }
        if slot.deposed.is_some() {
            return self.check_deposed(node, promise.kept.or(promise.durable));
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
}
