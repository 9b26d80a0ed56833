//! The receiving side: what a passive does before it is ready, and with the records that come.

use super::api::*;
use super::hello::Hello;
use super::lineage::{Lineage, Relation};
use super::node::{Node, Purpose};
use super::notice::Notice;
use super::peer::{Link, Target, TargetStage};
use super::superblock::Then;
use super::types::*;
use crate::format::batch::{self, BatchFields, TermRef};
use std::collections::VecDeque;

/// On the way to being ready.
#[derive(Debug)]
pub struct Prepare {
    /// The last record that both lineages share.
    fork: Lsn,
    /// The active's lineage, to be adopted.
    lineage: Vec<Term>,
    step: Step,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Waits until all that is held is durable and no round of applying is under way.
    Settle,
    /// Orphans are being set aside.
    SetAside { records: u64, bytes: u64 },
    /// The superblock with the new lineage is being written.
    Adopt,
}

impl Node {
    pub(super) fn become_target(&mut self, node: NodeId, session: SessionId, hello: &Hello) {
        let (fork, verdict) = match self.verdict(hello) {
            Ok(found) => found,
            Err(why) => return self.refuse(node, why),
        };
        let peer = self.cfg.name(node).to_string();
        self.notice(Notice::Handshake { peer, verdict });
        let prepare = Prepare { fork, lineage: hello.lineage.clone(), step: Step::Settle };
        let target = Target {
            session,
            stage: TargetStage::Preparing(prepare),
            echo_us: 0,
            told: (Lsn(0), Lsn(0), Lsn(0), 0, 0),
            accepted: hello.received,
            deferred: VecDeque::new(),
        };
        self.link_stands(node, Link::Target(Box::new(target)));
        self.may_resume = false;
    }

    /// What is to be done to follow this active: the fork, and the verdict in words; or why it cannot be done.
    fn verdict(&self, hello: &Hello) -> Result<(Lsn, String), String> {
        let (end, applied, active) = (self.log.end(), self.store.applied(), &hello.node);
        if self.lineage.is_fresh() {
            // A fresh replica matches nobody (B3); but zeros are the image at position 0 of a lineage that began with zeros.
            if self.zero && hello.zero && hello.log_from <= Lsn(1) {
                return Ok((
                    Lsn(0),
                    format!("this replica is fresh: catching up from the log of {active}, from its first record"),
                ));
            }
            return Err(format!(
                "this replica is fresh and the log of {active} no longer reaches its first record: a full resync is needed"
            ));
        }
        match self.lineage.relation(end, &hello.lineage, hello.received) {
            Relation::Unrelated => Err(format!(
                "this replica and the one of {active} have no term in common: they were never one. Create one of them anew"
            )),
            Relation::Common { fork } if applied > fork => Err(format!(
                "this replica has applied records up to {} that {active} does not have (they part at {}): a resync is needed",
                applied.0, fork.0
            )),
            Relation::Common { fork } if hello.log_from > fork.next() => Err(format!(
                "the log of {active} begins at {}, this replica ends at {}: a resync is needed",
                hello.log_from.0, fork.0
            )),
            Relation::Common { fork } if end > fork => Ok((
                fork,
                format!(
                    "{} record(s) after {} are orphans: setting them aside, then catching up from the log of {active}",
                    end.0 - fork.0,
                    fork.0
                ),
            )),
            Relation::Common { fork } => {
                let behind = hello.received.0.saturating_sub(fork.0);
                Ok((fork, format!("catching up from the log of {active}, {behind} record(s)")))
            }
        }
    }

    /// Whether a passive waits for its own log and store to come to rest.
    pub(super) fn settling(&self) -> bool {
        false
    }

    pub(super) fn poll_target(&mut self, node: NodeId) {
        self.take_deferred(node);
        let at = node.0 as usize;
        let Some(target) = self.peers[at].target_mut() else { return };
        let TargetStage::Preparing(prepare) = &target.stage else { return };
        if prepare.step != Step::Settle {
            return;
        }
        let (fork, session) = (prepare.fork, target.session);
        let end = self.log.end();
        if !self.log.is_settled() || !self.store.is_resting() {
            return self.log.want_durable(end);
        }
        if self.store.applied() > fork {
            // A round that was under way when the verdict fell has applied more: say Hello again.
            return self.close_link(node, "applied past the fork meanwhile", true);
        }
        if end > fork { self.set_aside(node, session, fork) } else { self.adopt(node, session) }
    }

    fn prepare_mut(&mut self, node: NodeId) -> Option<&mut Prepare> {
        match &mut self.peers[node.0 as usize].target_mut()?.stage {
            TargetStage::Preparing(prepare) => Some(prepare),
            TargetStage::Stream => None,
        }
    }

    /// Orphans go to a salvage file before anything ends them (contract 5).
    fn set_aside(&mut self, node: NodeId, session: SessionId, fork: Lsn) {
        let records: Vec<Record> = self.overlay.records_from(fork.next()).cloned().collect();
        let bytes = records.iter().map(|r| r.length).sum();
        let stream = self.draw_id();
        let bufs = self.salvage_batches(stream, &records);
        if let Some(prepare) = self.prepare_mut(node) {
            prepare.step = Step::SetAside { records: records.len() as u64, bytes };
        }
        let part = Part::Salvage(self.next_salvage);
        self.io(Purpose::Salvage { peer: node, session }, part, IoOp::Write { offset: 0, bufs, sync: true });
    }

    fn salvage_batches(&self, stream: u128, records: &[Record]) -> Vec<crate::buf::Payload> {
        let (mut bufs, mut address, mut prev_crc) = (Vec::new(), 0, batch::seed(stream));
        let mut rest = records;
        while let Some(first) = rest.first() {
            // Held records are of known terms.
            let term =
                self.lineage.term_at(first.lsn).copied().unwrap_or(Term { number: 0, id: TermId(0), first: Lsn(0) });
            let count = batch::fitting(rest);
            let (these, others) = rest.split_at(count);
            let fields = BatchFields {
                prev_crc,
                stream,
                address,
                term: TermRef { number: term.number, id: term.id },
                first: first.lsn,
                durable: first.lsn.prev(),
            };
            let (header, crc) = batch::encode(&fields, these);
            bufs.extend(batch::buffers(header, these));
            address += batch::batch_bytes(these);
            prev_crc = crc;
            rest = others;
        }
        bufs
    }

    pub(super) fn salvage_written(&mut self, node: NodeId, session: SessionId, result: Result<IoData, IoError>) {
        if let Err(error) = result {
            let part = format!("salvage {}", self.next_salvage);
            self.notice(Notice::StorageFailed { part, errno: error.errno });
            let why =
                format!("orphaned writes could not be set aside (errno {}): make room in the node's dir", error.errno);
            if self.peers[node.0 as usize].session() == Some(session) {
                self.refuse(node, why);
            }
            return;
        }
        if self.peers[node.0 as usize].session() != Some(session) {
            return; // The next session sets them aside again.
        }
        let Some(prepare) = self.prepare_mut(node) else { return };
        let Step::SetAside { records, bytes } = prepare.step else { return };
        let fork = prepare.fork;
        let salvage = self.next_salvage;
        self.next_salvage += 1;
        self.log.truncate(fork);
        self.overlay.truncate(fork);
        self.committed = self.committed.min(fork);
        self.notice(Notice::OrphansSetAside { records, bytes, salvage });
        self.adopt(node, session);
    }

    fn adopt(&mut self, node: NodeId, session: SessionId) {
        let Some(prepare) = self.prepare_mut(node) else { return };
        prepare.step = Step::Adopt;
        let lineage = std::mem::take(&mut prepare.lineage);
        self.lineage = Lineage::new(lineage);
        self.persist(Then::Ready { peer: node, session });
    }

    /// The lineage entry is durable: from now on this node acknowledges in the active's term (L1).
    pub(super) fn lineage_adopted(&mut self, node: NodeId, session: SessionId) {
        if self.peers[node.0 as usize].session() != Some(session) {
            return;
        }
        let (received, durable) = (self.log.end(), self.log.durable());
        if let Some(target) = self.peers[node.0 as usize].target_mut() {
            target.stage = TargetStage::Stream;
            self.send(node, session, PeerMsg::Ready { received, durable });
        }
    }

    pub(super) fn records_came(&mut self, node: NodeId, records: Vec<Record>, watermarks: Watermarks) {
        let Some(target) = self.peers[node.0 as usize].target_mut() else { return };
        target.echo_us = watermarks.clock_us;
        target.accepted = watermarks.accepted;
        if !matches!(target.stage, TargetStage::Stream) {
            if !records.is_empty() {
                self.close_link(node, "records before Ready", true);
            }
            return;
        }
        if !records.is_empty() {
            if let Err(why) = self.check_records(&records) {
                return self.close_link(node, why, true);
            }
            if let Some(target) = self.peers[node.0 as usize].target_mut() {
                target.deferred.push_back(records);
            }
        }
        self.committed = self.committed.max(watermarks.committed);
        self.flush_to = watermarks.flush_to;
        self.take_deferred(node);
    }

    fn check_records(&self, records: &[Record]) -> Result<(), &'static str> {
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

    /// Takes received records in while there is room; what waits is not acknowledged, so the active's window bounds it.
    fn take_deferred(&mut self, node: NodeId) {
        loop {
            let full = self.overlay.memory() >= self.cfg.memory.min(self.log.size() / 4);
            let Some(target) = self.peers[node.0 as usize].target_mut() else { return };
            if full || target.deferred.is_empty() {
                break;
            }
            for record in target.deferred.pop_front().into_iter().flatten() {
                if record.lsn != self.log.end().next() {
                    return self.close_link(node, "records out of order", true);
                }
                self.take_record(record);
            }
        }
        let wanted = self.flush_to.min(self.log.end());
        self.log.want_durable(wanted);
    }

    /// What an idle passive tells another.
    pub(super) fn idle_ack(&self) -> Ack {
        Ack {
            term: self.lineage.last().map(|t| t.id),
            received: self.log.end(),
            durable: self.log.durable(),
            applied: self.store.applied(),
            resync_bytes: 0,
            echo_us: 0,
        }
    }

    pub(super) fn acknowledge(&mut self) {
        if self.fault.is_some() {
            return;
        }
        for node in self.cfg.peers() {
            let ack = self.idle_ack();
            let Some(target) = self.peers[node.0 as usize].target_mut() else { continue };
            let now_told = (ack.received, ack.durable, ack.applied, 0, target.echo_us);
            if matches!(target.stage, TargetStage::Stream) && target.told != now_told {
                self.send_ack(node);
            }
        }
    }

    pub(super) fn send_ack(&mut self, node: NodeId) {
        let mut ack = self.idle_ack();
        let Some(target) = self.peers[node.0 as usize].target_mut() else { return };
        ack.echo_us = target.echo_us;
        target.told = (ack.received, ack.durable, ack.applied, 0, target.echo_us);
        let session = target.session;
        self.send(node, session, PeerMsg::Ack(ack));
    }
}
