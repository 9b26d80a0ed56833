//! The receiving side: what a passive does before it is ready, and with the records that come.

use super::api::*;
use super::backlog::Backlog;
use super::dirty::DirtySet;
use super::gap::{GapState, LacksAt};
use super::hello::{Gap, Hello};
use super::lineage::{Lineage, Relation};
use super::node::{Node, Purpose};
use super::notice::Notice;
use super::peer::{Deferred, Link, Target, TargetStage};
use super::resync_target::ResyncTarget;
use super::salvage::SetAside;
use super::superblock::Then;
use super::types::*;

/// On the way to being ready.
#[derive(Debug)]
pub struct Prepare {
    plan: Plan,
    /// The active's lineage, to be adopted; and whether its position 0 means zeros.
    lineage: Vec<Term>,
    zero: bool,
    step: Step,
}

/// The verdict of the handshake, as the passive carries it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The last record that both lineages share.
    pub fork: Lsn,
    /// The log does not do; contents must come first.
    pub resync: bool,
}

#[derive(Debug)]
enum Step {
    /// Waits until all that is held is durable and no round of applying is under way.
    Settle,
    /// Orphans are being set aside.
    SetAside(Box<SetAside>),
    /// The history notes what changed on this side, for the gap that is to be opened.
    Note(Box<GapState>),
    /// The superblock with the new lineage, or the open gap, is being written.
    Write,
    /// The source is being told what is to be fetched whatever it changed.
    Tell(LacksAt),
}

/// What `passive` is to do to follow `hello`, the active, and the verdict in words; or why it cannot be done.
pub(super) fn verdict(passive: &Hello, hello: &Hello) -> Result<(Plan, String), String> {
    let (end, applied, active) = (passive.received, passive.applied, &hello.node);
    let lineage = Lineage::new(passive.lineage.clone());
    let plan = |fork, resync, text: String| Ok((Plan { fork, resync }, text));
    let related = lineage.relation(end, &hello.lineage, hello.received) != Relation::Unrelated;
    // A founder that crashed before its first record is as good as fresh.
    if lineage.is_fresh() || (!related && end == Lsn(0) && applied == Lsn(0)) {
        // A fresh replica matches nobody (B3); but zeros are the image at position 0 of a lineage that began with zeros.
        if passive.zero && hello.zero && hello.log_from <= Lsn(1) && passive.gap.is_none() {
            let text = format!("this replica is fresh: catching up from the log of {active}, from its first record");
            return plan(Lsn(0), false, text);
        }
        return plan(Lsn(0), true, format!("this replica is fresh: full resync from {active}"));
    }
    let fork = match lineage.relation(end, &hello.lineage, hello.received) {
        Relation::Unrelated => {
            return Err(format!(
                "this replica and the one of {active} have no term in common: they were never one. If this one holds \
                 nothing of worth, create it anew (`understudy create --force`)"
            ));
        }
        Relation::Common { fork } => fork,
    };
    let orphans = end.0 - fork.0;
    if let Some(gap) = &passive.gap {
        let text = match gap.since > fork {
            true if gap.rollback.is_none() => format!(
                "{orphans} record(s) after {} are orphans, of which this replica holds no image that could be set aside: its resync begins anew from {active}",
                fork.0
            ),
            true => format!(
                "{orphans} record(s) after {} are orphans: rolling back the resync under way, setting them aside, then resync from {active}",
                fork.0
            ),
            false => format!("the resync from {active} goes on, from {}", fork.0),
        };
        return plan(fork, true, text);
    }
    if applied > fork {
        let text = format!(
            "{orphans} record(s) after {} are orphans, and some are applied: setting them aside, then resync from {active}",
            fork.0
        );
        return plan(fork, true, text);
    }
    if hello.log_from > fork.next() {
        let from = hello.log_from.0;
        let text = format!("the log of {active} begins at {from}, this replica ends at {}: resync", fork.0);
        return plan(fork, true, text);
    }
    let text = match orphans {
        0 => {
            let behind = hello.received.0.saturating_sub(fork.0);
            format!("catching up from the log of {active}, {behind} record(s)")
        }
        _ => format!(
            "{orphans} record(s) after {} are orphans: setting them aside, then catching up from the log of {active}",
            fork.0
        ),
    };
    plan(fork, false, text)
}

impl Node {
    pub(super) fn become_target(&mut self, node: NodeId, session: SessionId, hello: &Hello) {
        let (plan, verdict) = match verdict(&self.my_hello(), hello) {
            Ok(found) => found,
            Err(why) => return self.refuse(node, why),
        };
        let peer = self.cfg.name(node).to_string();
        self.notice(Notice::Handshake { peer, verdict });
        // The active's word counts for the records that it shares with this node.
        self.committed = self.committed.max(hello.committed.min(plan.fork));
        let prepare = Prepare { plan, lineage: hello.lineage.clone(), zero: hello.zero, step: Step::Settle };
        let target = Target {
            session,
            stage: TargetStage::Preparing(prepare),
            echo_us: 0,
            frame_at: self.now,
            disk_us: 0,
            resync_bytes: None,
            told: (Lsn(0), Lsn(0), Lsn(0), 0, 0),
            accepted: hello.received,
            deferred: Backlog::default(),
            questions: Vec::new(),
        };
        self.link_stands(node, Link::Target(Box::new(target)));
        self.may_resume = false;
        self.pledge = None;
    }

    /// Whether a passive waits for its own log and store to come to rest.
    pub(super) fn settling(&self) -> bool {
        self.peers.iter().any(|p| {
            matches!(&p.link, Link::Target(t)
                if matches!(&t.stage, TargetStage::Preparing(p) if p.plan.resync && matches!(p.step, Step::Settle)))
        })
    }

    /// Whether a passive is on its way to another past: nothing is applied meanwhile.
    pub(super) fn is_turning(&self) -> bool {
        self.peers.iter().any(|p| {
            matches!(&p.link, Link::Target(t)
                if matches!(&t.stage, TargetStage::Preparing(p) if !matches!(p.step, Step::Settle)))
        })
    }

    pub(super) fn poll_target(&mut self, node: NodeId) {
        match self.peers[node.0 as usize].target_mut().map(|t| &t.stage) {
            Some(TargetStage::Preparing(_)) => self.poll_prepare(node),
            Some(TargetStage::Stream) => {
                self.take_deferred(node);
                self.damage_is_mended(node);
            }
            Some(TargetStage::Resync(_)) => self.poll_resync_target(node),
            None => {}
        }
    }

    fn poll_prepare(&mut self, node: NodeId) {
        let Some(target) = self.peers[node.0 as usize].target_mut() else { return };
        let TargetStage::Preparing(Prepare { plan, step: Step::Settle, .. }) = &target.stage else { return };
        let (plan, session) = (*plan, target.session);
        let end = self.log.end();
        if self.goes_on(node, plan) {
            return self.lineage_adopted(node, session);
        }
        if self.only_goes_further(plan) {
            return self.prepared(node, session, None);
        }
        if plan.resync && self.gap.is_none() && !self.is_unwinding() {
            // What was reported durable must be found again by a rollback (R1): all of it is applied before the gap is opened,
            // committed or not. What of it is an orphan is set aside first (R4).
            self.committed = self.committed.max(self.log.durable());
        }
        if !self.log.is_settled() || !self.store.is_resting() || self.is_unwinding() {
            return self.log.want_durable(end);
        }
        if !self.superblock.is_settled() {
            return; // One that is on its way may still be the only one to say what the history holds (R1).
        }
        if self.gap.as_ref().is_some_and(|g| g.state.since > plan.fork && g.state.rollback.is_some()) {
            // Another source, which parts from this lineage earlier than the one before: what lies between is an orphan now, and
            // only the image at the rollback position still has it (R4). It is brought back, and all begins anew from there.
            return self.start_rollback(false);
        }
        // R1: a resync begins with everything committed applied, so that going back never loses what was reported durable.
        if self.store.applied() < self.store.may_hold()
            || (plan.resync && self.gap.is_none() && self.store.applied() < end)
        {
            return;
        }
        if !plan.resync && self.store.applied() > plan.fork {
            // A round that was under way when the verdict fell has applied more: say Hello again.
            return self.close_link(node, "applied past the fork meanwhile", true);
        }
        // In an open gap the orphans are safe already, or gone with the way back.
        if end <= plan.fork || self.gap.is_some() {
            let nothing = DirtySet::new(&self.volume_sizes());
            return self.prepared(node, session, Some(nothing));
        }
        if let Some(changed) = self.already_set_aside(plan.fork) {
            return self.prepared(node, session, changed);
        }
        let changed = self.changed_since(node, plan.fork);
        let aside = self.begin_set_aside(node, session, plan.fork, changed);
        self.put_aside(node, aside);
    }

    /// A resync before this one is not over with yet.
    fn is_unwinding(&self) -> bool {
        self.unwind || self.rollback.is_some() || self.resync_ios > 0
    }

    /// Whether the session is but the next one of a term that this node follows already (C1): nothing is to be ended, set aside or
    /// adopted.
    fn goes_on(&mut self, node: NodeId, plan: Plan) -> bool {
        let same_end = plan.fork == self.log.end();
        let Some(TargetStage::Preparing(prepare)) = self.peers[node.0 as usize].target_mut().map(|t| &t.stage) else {
            return false;
        };
        same_end && prepare.lineage == self.lineage.terms() && self.only_goes_further(plan)
    }

    /// Whether nothing that this node holds is ended: then nothing of it needs to be durable or applied first. A ring full of what is
    /// not committed comes to rest only once the active hears of it.
    fn only_goes_further(&self, plan: Plan) -> bool {
        let at_rest = self.superblock.is_settled() && !self.is_unwinding() && self.gap.is_none();
        at_rest && !plan.resync && self.log.end() <= plan.fork && !self.lineage.is_fresh()
    }

    fn prepare_mut(&mut self, node: NodeId, session: SessionId) -> Option<&mut Prepare> {
        match self.peers[node.0 as usize].target_mut() {
            Some(Target { session: s, stage: TargetStage::Preparing(prepare), .. }) if *s == session => Some(prepare),
            _ => None,
        }
    }

    pub(super) fn take_aside(&mut self, node: NodeId, session: SessionId) -> Option<SetAside> {
        let prepare = self.prepare_mut(node, session)?;
        match std::mem::replace(&mut prepare.step, Step::Write) {
            Step::SetAside(aside) => Some(*aside),
            other => {
                prepare.step = other;
                None
            }
        }
    }

    pub(super) fn put_aside(&mut self, node: NodeId, aside: SetAside) {
        if let Some(Target { stage: TargetStage::Preparing(prepare), .. }) = self.peers[node.0 as usize].target_mut() {
            prepare.step = Step::SetAside(Box::new(aside));
        }
    }

    pub(super) fn orphans_are_safe(&mut self, node: NodeId, session: SessionId, changed: Option<DirtySet>) {
        self.prepared(node, session, changed);
    }

    /// Nothing is lost by going on: end what is past the fork, or open the gap, durably.
    fn prepared(&mut self, node: NodeId, session: SessionId, changed: Option<DirtySet>) {
        let Some(prepare) = self.prepare_mut(node, session) else { return };
        let (plan, lineage) = (prepare.plan, prepare.lineage.clone());
        prepare.step = Step::Write;
        if plan.resync {
            return self.open_gap(node, session, changed);
        }
        if self.log.end() > plan.fork {
            self.log.truncate(plan.fork);
            self.overlay.truncate(plan.fork);
        }
        self.committed = self.committed.min(plan.fork).max(self.store.applied());
        self.cap_positions(plan.fork);
        self.lineage = Lineage::new(lineage);
        self.persist(Then::Ready { peer: node, session });
    }

    /// Peers' positions past the fork were of another lineage (L1).
    pub(super) fn cap_positions(&mut self, fork: Lsn) {
        self.keep_useless_up_to(fork);
        for peer in &mut self.peers {
            peer.known = peer.known.min(fork);
        }
    }

    /// `changed` is what changed on this side since the fork; none where that is not known any more.
    fn open_gap(&mut self, node: NodeId, session: SessionId, changed: Option<DirtySet>) {
        let Some(prepare) = self.prepare_mut(node, session) else { return };
        let (fork, term) = (prepare.plan.fork, prepare.lineage.last().map(|t| t.id));
        if let Some(gap) = &mut self.gap {
            let state = &mut gap.state;
            // Another source, which parts from this lineage earlier, and no way back: what changed here since is no longer known (R4). Or one
            // that need not know what another has written over this replica.
            let other_term = state.overwritten_in.is_some() && state.overwritten_in != term;
            if fork < state.since || other_term {
                state.everything = true;
                state.since = fork.min(state.since);
                state.overwritten_in = state.overwritten_in.and(term);
            }
            return self.persist(Then::GapOpen { peer: node, session });
        }
        let state = Gap {
            rollback: (!self.lineage.is_fresh()).then_some(self.store.applied()),
            since: fork,
            everything: changed.is_none(),
            grain: self.cfg.undo_grain(),
            overwritten_in: None,
        };
        let (sizes, stream) = (self.volume_sizes(), self.draw_id());
        let mut gap = GapState::new(state, &sizes, self.cfg.changed_limit(), stream);
        let (offset, bufs) = gap.note_changed(&changed.unwrap_or_else(|| DirtySet::new(&sizes)));
        let Some(prepare) = self.prepare_mut(node, session) else { return };
        prepare.step = Step::Note(Box::new(gap));
        let purpose = Purpose::GapNoted { peer: node, session };
        // Counted, so that another attempt does not write beside it.
        self.resync_ios += 1;
        self.io(purpose, Part::History, IoOp::Write { offset, bufs, sync: true });
    }

    /// The history can be found; now the superblock may say that the gap is open.
    pub(super) fn gap_noted(&mut self, node: NodeId, session: SessionId, result: Result<IoData, IoError>) {
        self.resync_ios -= 1;
        if let Err(error) = result {
            if error.errno == super::resync_target::ENOSPC && self.goes_on_without_notes(node, session) {
                return self.gap_is_noted(node, session);
            }
            self.part_failed("history", error.errno);
            let words = super::trouble::errno_words(error.errno);
            return self.refuse(node, format!("the history cannot be written: {words}. Make room for it"));
        }
        self.gap_is_noted(node, session);
    }

    /// No room for the notes at all: a replica that has no way back, or may do without one (contract 3), does without them.
    fn goes_on_without_notes(&mut self, node: NodeId, session: SessionId) -> bool {
        let (sizes, limit, allowed) = (self.volume_sizes(), self.cfg.changed_limit(), self.cfg.allow_invalid);
        let Some(prepare) = self.prepare_mut(node, session) else { return false };
        let term = prepare.lineage.last().map(|t| t.id);
        let Step::Note(gap) = &mut prepare.step else { return false };
        if gap.state.rollback.is_some() {
            if !allowed {
                return false;
            }
            gap.state.overwritten_in = term;
        }
        **gap = gap.clone().without_notes(&sizes, limit);
        true
    }

    fn gap_is_noted(&mut self, node: NodeId, session: SessionId) {
        let applied = self.store.applied();
        let Some(prepare) = self.prepare_mut(node, session) else { return };
        let Step::Note(gap) = std::mem::replace(&mut prepare.step, Step::Write) else { return };
        self.history_stream = gap.stream;
        self.gap = Some(*gap);
        let log_stream = self.draw_id();
        self.log_restarts_at(applied);
        self.log.restart_at(applied, log_stream);
        self.overlay.truncate(applied);
        self.zero = false;
        self.persist(Then::GapOpen { peer: node, session });
    }

    /// The gap is durably open: the source is told what is lacking, and contents may come.
    pub(super) fn gap_is_open(&mut self, node: NodeId, session: SessionId) {
        self.part_works("history");
        if let Some(prepare) = self.prepare_mut(node, session) {
            prepare.step = Step::Tell(LacksAt::start());
            self.tell_lacks(node, session);
        }
    }

    pub(super) fn lacks_taken(&mut self, node: NodeId) {
        if let Some(session) = self.peers[node.0 as usize].session() {
            self.tell_lacks(node, session);
        }
    }

    /// One piece at a time, so that neither side holds more of them.
    fn tell_lacks(&mut self, node: NodeId, session: SessionId) {
        let Some(Step::Tell(mut at)) = self.prepare_mut(node, session).map(|p| match &p.step {
            Step::Tell(at) => Step::Tell(*at),
            _ => Step::Write,
        }) else {
            return;
        };
        let Some(gap) = &self.gap else { return };
        let everything = gap.state.everything;
        if !everything && let Some(piece) = gap.lacks(&mut at) {
            if let Some(prepare) = self.prepare_mut(node, session) {
                prepare.step = Step::Tell(at);
            }
            return self.send(node, session, PeerMsg::Lacks { piece });
        }
        let applied = self.store.applied();
        let rollback = gap.state.rollback.unwrap_or(Lsn(0));
        let Some(prepare) = self.prepare_mut(node, session) else { return };
        let since = prepare.plan.fork.min(applied);
        let resync = ResyncTarget::new(rollback, std::mem::take(&mut prepare.lineage), prepare.zero);
        if let Some(target) = self.peers[node.0 as usize].target_mut() {
            target.stage = TargetStage::Resync(Box::new(resync));
        }
        self.send(node, session, PeerMsg::ReadyResync { since, everything });
    }

    /// The lineage entry is durable: from now on this node acknowledges in the active's term (L1).
    pub(super) fn lineage_adopted(&mut self, node: NodeId, session: SessionId) {
        if self.peers[node.0 as usize].session() != Some(session) {
            return;
        }
        // The orphans that it has are ended: nobody sets them aside again.
        self.set_aside = None;
        let (received, durable) = (self.log.end(), self.log.durable());
        if let Some(target) = self.peers[node.0 as usize].target_mut() {
            target.stage = TargetStage::Stream;
            self.send(node, session, PeerMsg::Ready { received, durable });
        }
    }

    pub(super) fn records_came(&mut self, node: NodeId, records: Vec<Record>, watermarks: Watermarks) {
        if let Err(why) = self.check_records(&records) {
            return self.close_link(node, why, true);
        }
        let (now, window) = (self.now, self.cfg.window);
        let Some(target) = self.peers[node.0 as usize].target_mut() else { return };
        // A heartbeat may overtake records whose turn has not come (a limited bandwidth): older watermarks take nothing back.
        if watermarks.clock_us >= target.echo_us {
            (target.echo_us, target.frame_at) = (watermarks.clock_us, now);
        }
        target.accepted = target.accepted.max(watermarks.accepted);
        match &mut target.stage {
            TargetStage::Preparing(_) if records.is_empty() => return,
            TargetStage::Preparing(_) => return self.close_link(node, "records before Ready", true),
            TargetStage::Stream if records.is_empty() => {}
            TargetStage::Stream => target.deferred.push_back(Deferred::Records(records)),
            TargetStage::Resync(resync) => {
                resync.take_records(records);
                resync.committed = resync.committed.max(watermarks.committed);
                if resync.is_flooded(window) {
                    return self.sends_too_much(node);
                }
                return self.poll_target(node);
            }
        }
        self.committed = self.committed.max(watermarks.committed);
        self.flush_to = self.flush_to.max(watermarks.flush_to);
        self.poll_target(node);
        self.check_deferred(node);
    }

    /// What waits here is bounded by the window of an active that keeps to it.
    fn check_deferred(&mut self, node: NodeId) {
        let window = self.cfg.window;
        if self.peers[node.0 as usize].target_mut().is_some_and(|t| t.deferred.exceeds(window, 1)) {
            self.sends_too_much(node);
        }
    }

    pub(super) fn sends_too_much(&mut self, node: NodeId) {
        let why = format!("it has sent more than a window ({} bytes) that is not acknowledged", self.cfg.window);
        self.close_link(node, &why, true);
    }

    pub(super) fn check_records(&self, records: &[Record]) -> Result<(), &'static str> {
        let block = u64::from(self.cfg.block);
        for record in records {
            let Some(volume) = self.cfg.volumes.get(record.volume.0 as usize) else {
                return Err("a record for a volume that does not exist");
            };
            let inside = record.offset.checked_add(record.length).is_some_and(|end| end <= volume.size);
            let aligned = record.offset.is_multiple_of(block) && record.length.is_multiple_of(block);
            let payload = if record.kind == Kind::Write { record.length } else { 0 };
            if !inside || !aligned || record.length == 0 || payload != record.payload.len() as u64 {
                return Err("a record that does not fit its volume");
            }
        }
        Ok(())
    }

    /// Whether received records wait for room.
    pub(super) fn has_deferred(&self) -> bool {
        self.peers.iter().any(|p| matches!(&p.link, Link::Target(t) if !t.deferred.is_empty()))
    }

    /// Takes received records in while there is room; what waits is not acknowledged, so the active's window bounds it.
    fn take_deferred(&mut self, node: NodeId) {
        while self.has_room() {
            let Some(target) = self.peers[node.0 as usize].target_mut() else { return };
            let mut records = match target.deferred.pop_front() {
                Some(Deferred::Records(records)) => records.into_iter(),
                Some(Deferred::Question { id, extent, crcs }) => {
                    self.question_came(node, id, extent, crcs);
                    continue;
                }
                None => break,
            };
            while self.has_room()
                && let Some(record) = records.next()
            {
                if record.lsn != self.log.end().next() {
                    return self.close_link(node, "records out of order", true);
                }
                self.take_record(record);
            }
            if let (Some(target), true) = (self.peers[node.0 as usize].target_mut(), records.len() > 0) {
                target.deferred.push_front(Deferred::Records(records.collect()));
            }
        }
        let wanted = self.flush_to.min(self.log.end());
        self.log.want_durable(wanted);
    }

    /// A question waits until the records before it have been taken in.
    pub(super) fn question_deferred(&mut self, node: NodeId, id: u64, extent: Extent, crcs: Vec<u32>) {
        match self.peers[node.0 as usize].target_mut() {
            Some(target) if matches!(target.stage, TargetStage::Stream) => {
                target.deferred.push_back(Deferred::Question { id, extent, crcs });
                self.poll_target(node);
                self.check_deferred(node);
            }
            _ => self.close_link(node, "a question outside the stream", true),
        }
    }

    /// Where this node stands; what an idle passive tells another.
    pub(super) fn idle_ack(&self) -> Ack {
        let resync = self.peers.iter().find_map(|p| match &p.link {
            Link::Target(t) => match &t.stage {
                TargetStage::Resync(resync) => Some(resync.rollback),
                _ => None,
            },
            _ => None,
        });
        Ack {
            term: self.lineage.last().map(|t| t.id),
            received: resync.unwrap_or(self.log.end()),
            durable: resync.unwrap_or(self.log.durable()),
            applied: resync.unwrap_or(self.store.applied()),
            streamed: self.log.end(),
            resync_bytes: 0,
            echo_us: 0,
            held_us: 0,
            disk_us: 0,
        }
    }

    /// None where nothing can be said: before it is ready, and while the superblock that closes its gap is being written. The lineage is
    /// the active's already then, and what could be rolled back to is of this node's own (R3).
    pub(super) fn target_ack(&mut self, node: NodeId) -> Option<(SessionId, Ack)> {
        let (now, mut ack) = (self.now, self.idle_ack());
        let target = self.peers[node.0 as usize].target_mut()?;
        ack.echo_us = target.echo_us;
        ack.held_us = now.since_us(target.frame_at);
        ack.disk_us = target.disk_us;
        match &target.stage {
            TargetStage::Preparing(_) => return None,
            TargetStage::Stream => {}
            TargetStage::Resync(resync) if resync.is_closing() => return None,
            // For flow control alone (R3): the source counts none of it as held.
            TargetStage::Resync(resync) => resync.fill_ack(&mut ack),
        }
        Some((target.session, ack))
    }

    pub(super) fn acknowledge(&mut self) {
        if self.fault.is_some() {
            return;
        }
        for node in self.cfg.peers() {
            let Some((_, ack)) = self.target_ack(node) else { continue };
            let told = (ack.streamed, ack.durable, ack.applied, ack.resync_bytes, ack.echo_us);
            let durable_soon = self.durable_soon();
            let news = |t: &mut Target| {
                let waits = durable_soon && matches!(t.stage, TargetStage::Stream);
                t.told != told && !(waits && (t.told.1, t.told.2) == (ack.durable, ack.applied))
            };
            if self.peers[node.0 as usize].target_mut().is_some_and(news) {
                self.send_ack(node);
            }
        }
    }

    /// Somebody waits until all that was received is durable, and it is being written: the acknowledgement of that says all
    /// that one sent now would, at half the messages.
    fn durable_soon(&self) -> bool {
        self.log.is_busy() && self.flush_to >= self.log.end() && self.log.end() > self.log.durable()
    }

    pub(super) fn send_ack(&mut self, node: NodeId) {
        let Some((session, ack)) = self.target_ack(node) else { return };
        if let Some(target) = self.peers[node.0 as usize].target_mut() {
            target.told = (ack.streamed, ack.durable, ack.applied, ack.resync_bytes, ack.echo_us);
            target.disk_us = 0;
        }
        self.send(node, session, PeerMsg::Ack(ack));
    }
}
