//! The receiving side of a resync: contents and records go straight to the store, in groups; what a block held at the
//! rollback position is durable in the history before its first overwrite (R1, R2, R3).

use super::api::*;
use super::backlog::Backlog;
use super::dirty::{DIRTY_BLOCK, DirtySet};
use super::lineage::Lineage;
use super::node::{Node, Purpose};
use super::overlay::Overlay;
use super::peer::TargetStage;
use super::store::piece_op;
use super::superblock::Then;
use super::types::*;
use super::view::data_record;
use crate::buf::Payload;

/// Contents and records handled together, in bytes.
const GROUP_BYTES: u64 = 4 << 20;
/// A longer discard is split where the store holds data: what is a hole needs no undo.
const LONG_DISCARD: u64 = 1 << 20;

/// No room.
pub(super) const ENOSPC: i32 = 28;

/// A resync being received.
#[derive(Debug)]
pub struct ResyncTarget {
    /// Where a rollback leads to: all that this node holds for sure until the superblock that closes the gap is durable.
    pub rollback: Lsn,
    pub(super) lineage: Vec<Term>,
    zero: bool,
    incoming: Backlog<Work>,
    pub(super) step: Step,
    /// Contents done with, as the source counts them.
    taken: u64,
    /// The newest record in the store, once the contents are there.
    through: Lsn,
    /// The newest record received.
    received: Lsn,
    /// With the records up to here the contents are an image; none while contents still come.
    until: Option<Lsn>,
    /// Committed in the active's lineage, which need not be this store's (S1).
    pub committed: Lsn,
}

#[derive(Debug)]
pub(super) enum Work {
    Content(Record),
    Record(Record),
    /// A part of a record that is too long to be taken in one piece, and what follows the last one.
    Part(Record),
    Passed(Lsn),
    /// All contents up to this count have come.
    Mark(u64),
    End {
        base: Lsn,
        until: Lsn,
    },
}

#[derive(Debug)]
pub(super) enum Step {
    Idle,
    /// Looks how much this side's stores hold: no more can be overwritten, whatever comes.
    Census {
        at: (VolumeId, u64),
        bytes: u64,
        runs: u64,
    },
    /// Asks for so much room in the history (R1).
    Reserve {
        needed: u64,
        counted: bool,
    },
    /// The superblock that gives up the way back is being written (contract 3).
    GiveUp,
    /// Looks where the store holds data in a long discard.
    Search(Work),
    /// Reads what the group will overwrite.
    Read {
        group: Group,
        old: Vec<(Extent, Option<Payload>)>,
        missing: usize,
    },
    Save(Group),
    Write {
        group: Group,
        writing: usize,
    },
    Flush(usize),
    /// The superblock that closes the gap is being written.
    Close,
}

/// What is written to the store together.
#[derive(Debug, Default)]
pub(super) struct Group {
    records: Vec<Record>,
    taken: u64,
    through: Option<Lsn>,
}

impl ResyncTarget {
    pub fn new(rollback: Lsn, lineage: Vec<Term>, zero: bool) -> ResyncTarget {
        ResyncTarget {
            rollback,
            lineage,
            zero,
            incoming: Backlog::default(),
            step: Step::Idle,
            taken: 0,
            through: Lsn(0),
            received: Lsn(0),
            until: None,
            committed: Lsn(0),
        }
    }

    /// Bytes of contents that are in the store.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    pub fn take_records(&mut self, records: Vec<Record>) {
        records.into_iter().for_each(|r| self.incoming.push_back(Work::Record(r)));
    }

    /// Whether the source has sent more than its window.
    pub fn is_flooded(&self, window: u64) -> bool {
        // Contents and records have a window each.
        self.incoming.exceeds(window, 2)
    }

    /// Whether the gap is being closed: the lineage is the active's, and not durable yet.
    pub fn is_closing(&self) -> bool {
        matches!(self.step, Step::Close)
    }

    pub fn fill_ack(&self, ack: &mut Ack) {
        ack.term = self.lineage.last().map(|t| t.id);
        ack.resync_bytes = self.taken;
        // Received and durable stay where a rollback leads to: what came since counts for flow control alone.
        ack.streamed = self.through;
    }

    /// The next group, as far as committed allows (S1). What closes the contents is taken in on the way.
    fn next_group(&mut self, committed: Lsn) -> Result<Group, &'static str> {
        let mut group = Group { taken: self.taken, ..Group::default() };
        let mut bytes = 0;
        while let Some(work) = self.incoming.front() {
            let length = match work {
                Work::Content(r) | Work::Part(r) if is_long(r) => break,
                // Without payload too: what its blocks held is read and saved.
                Work::Content(r) | Work::Part(r) => r.length,
                Work::Record(r) if r.lsn > committed || self.until.is_none() || is_long(r) => break,
                Work::Record(r) if r.lsn <= self.received => return Err("records out of order"),
                Work::Record(r) => r.length,
                Work::Mark(_) | Work::Passed(_) | Work::End { .. } => 0,
            };
            if bytes > 0 && bytes + length > GROUP_BYTES {
                break;
            }
            bytes += length;
            match self.incoming.pop_front() {
                Some(Work::Content(record)) => {
                    self.until = None;
                    group.records.push(record);
                }
                Some(Work::Record(record)) => {
                    if record.lsn != self.received.next() {
                        return Err("records out of order");
                    }
                    self.received = record.lsn;
                    group.through = Some(record.lsn);
                    group.records.push(record);
                }
                Some(Work::Part(record)) => group.records.push(record),
                Some(Work::Passed(lsn)) => {
                    self.received = lsn;
                    group.through = Some(lsn);
                }
                Some(Work::Mark(taken)) => group.taken = taken,
                Some(Work::End { base, until }) => {
                    if base < self.received || until < base {
                        return Err("a resync that ends before it began");
                    }
                    self.received = base;
                    self.until = Some(until);
                    group.through = Some(base);
                }
                None => break,
            }
        }
        Ok(group)
    }

    /// Takes a long discard from the front, to look where the store holds data in it: what is a hole needs no undo. One of the
    /// stream is over when its last part is.
    fn take_long(&mut self) -> Result<Option<Work>, &'static str> {
        let turn = match self.incoming.front() {
            Some(Work::Content(r) | Work::Part(r)) => is_long(r),
            Some(Work::Record(r)) => is_long(r) && r.lsn <= self.committed && self.until.is_some(),
            _ => false,
        };
        if !turn {
            return Ok(None);
        }
        match self.incoming.pop_front() {
            Some(Work::Content(record)) => {
                self.until = None;
                Ok(Some(Work::Content(record)))
            }
            Some(Work::Record(record)) if record.lsn == self.received.next() => {
                self.incoming.push_front(Work::Passed(record.lsn));
                Ok(Some(Work::Part(record)))
            }
            Some(Work::Record(_)) => Err("records out of order"),
            part => Ok(part),
        }
    }
}

/// A discard that is not taken in one piece.
fn is_long(record: &Record) -> bool {
    record.kind != Kind::Write && record.length > LONG_DISCARD
}

impl Group {
    fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

impl Node {
    pub(super) fn resync_mut(&mut self, node: NodeId) -> Option<&mut ResyncTarget> {
        match &mut self.peers[node.0 as usize].target_mut()?.stage {
            TargetStage::Resync(resync) => Some(resync),
            _ => None,
        }
    }

    pub(super) fn contents_came(&mut self, node: NodeId, records: Vec<Record>, sent_bytes: u64) {
        if let Err(why) = self.check_records(&records) {
            return self.close_link(node, why, true);
        }
        let window = self.cfg.window;
        let Some(resync) = self.resync_mut(node) else {
            return self.close_link(node, "contents outside a resync", true);
        };
        records.into_iter().for_each(|r| resync.incoming.push_back(Work::Content(r)));
        resync.incoming.push_back(Work::Mark(sent_bytes));
        if resync.is_flooded(window) {
            return self.sends_too_much(node);
        }
        self.poll_resync_target(node);
    }

    pub(super) fn contents_ended(&mut self, node: NodeId, base: Lsn, until: Lsn) {
        let Some(resync) = self.resync_mut(node) else {
            return self.close_link(node, "the end of a resync that is not", true);
        };
        resync.incoming.push_back(Work::End { base, until });
        self.poll_resync_target(node);
    }

    pub(super) fn poll_resync_target(&mut self, node: NodeId) {
        let Some(resync) = self.resync_mut(node) else { return };
        let committed = resync.committed;
        if !matches!(resync.step, Step::Idle) {
            return;
        }
        match resync.take_long() {
            Err(why) => return self.close_link(node, why, true),
            Ok(Some(work @ (Work::Content(_) | Work::Part(_)))) => {
                let (Work::Content(record) | Work::Part(record)) = &work else { return };
                let (part, op) = (Part::Store(record.volume), IoOp::NextData { offset: record.offset });
                resync.step = Step::Search(work);
                return self.resync_io(node, part, op, 0);
            }
            Ok(_) => {}
        }
        match resync.next_group(committed) {
            Err(why) => self.close_link(node, why, true),
            Ok(group) if group.is_empty() => {
                resync.taken = group.taken;
                resync.through = group.through.unwrap_or(resync.through);
                if resync.until.is_some_and(|until| resync.through >= until && committed >= until) {
                    self.flush_image(node);
                }
            }
            Ok(group) => self.read_old(node, group),
        }
    }

    pub(super) fn resync_io(&mut self, node: NodeId, part: Part, op: IoOp, index: usize) {
        if let Some(session) = self.peers[node.0 as usize].session() {
            self.resync_ios += 1;
            self.io(Purpose::Resync { peer: node, session, index }, part, op);
        }
    }

    /// Blocks of undo that the group touches and that are not yet held, each once, as runs.
    fn unsaved(&self, records: &[Record]) -> Vec<Extent> {
        let Some(gap) = self.gap.as_ref().filter(|g| g.state.rollback.is_some()) else { return Vec::new() };
        let grain = gap.state.grain;
        let mut wanted = DirtySet::of_grain(&self.volume_sizes(), grain);
        for record in records {
            let mut at = record.offset / grain * grain;
            while at < record.end() {
                if !gap.saved.contains(record.volume, at) {
                    wanted.add(Extent { volume: record.volume, offset: at, length: grain });
                }
                at += grain;
            }
        }
        let mut runs = Vec::new();
        let mut from = (VolumeId(0), 0);
        while let Some(run) = wanted.next(from, LONG_DISCARD) {
            from = (run.volume, run.offset + run.length);
            runs.push(run);
        }
        runs
    }

    fn read_old(&mut self, node: NodeId, group: Group) {
        let wanted = self.unsaved(&group.records);
        let Some(resync) = self.resync_mut(node) else { return };
        if wanted.is_empty() {
            return self.write_group(node, group);
        }
        let missing = wanted.len();
        resync.step = Step::Read { group, old: wanted.iter().map(|e| (*e, None)).collect(), missing };
        for (index, extent) in wanted.into_iter().enumerate() {
            let op = IoOp::Read { offset: extent.offset, length: extent.length };
            self.resync_io(node, Part::Store(extent.volume), op, index);
        }
    }

    /// R1: durable in the history before the first overwrite.
    fn save_old(&mut self, node: NodeId, group: Group, old: Vec<(Extent, Option<Payload>)>) {
        let records =
            old.into_iter().filter_map(|(e, payload)| Some(data_record(e.volume, e.offset, payload?))).collect();
        let limit = self.cfg.history_size;
        let Some(gap) = &mut self.gap else { return };
        let records: Vec<Record> = records;
        let end = gap.chain.address + gap.cost_of(&records);
        if end > limit {
            return self.history_ran_out(node, end, limit);
        }
        let (offset, bufs) = gap.save(records);
        if let Some(resync) = self.resync_mut(node) {
            resync.step = Step::Save(group);
        }
        if let Some(session) = self.peers[node.0 as usize].session() {
            self.resync_ios += 1;
            self.io(Purpose::Undo { peer: node, session }, Part::History, IoOp::Write { offset, bufs, sync: true });
        }
    }

    fn write_group(&mut self, node: NodeId, group: Group) {
        let mut newest = Overlay::new(self.cfg.volumes.len());
        for (index, record) in group.records.iter().enumerate() {
            newest.insert(&Record { lsn: Lsn(index as u64 + 1), ..record.clone() });
        }
        let pieces = newest.plan(Lsn(u64::MAX));
        if let Some(resync) = self.resync_mut(node) {
            resync.step = Step::Write { group, writing: pieces.len() };
        }
        for piece in pieces {
            self.resync_io(node, Part::Store(piece.volume), piece_op(piece), 0);
        }
    }

    fn flush_image(&mut self, node: NodeId) {
        let volumes = self.cfg.volumes.len();
        if let Some(resync) = self.resync_mut(node) {
            resync.step = Step::Flush(volumes);
        }
        for volume in 0..volumes {
            self.resync_io(node, Part::Store(VolumeId(volume as u16)), IoOp::Flush, 0);
        }
    }

    pub(super) fn undo_written(&mut self, node: NodeId, session: SessionId, result: Result<IoData, IoError>) {
        let Some(gap) = &mut self.gap else { return };
        let wanted = gap.chain.address;
        gap.save_is_over(result.is_ok());
        self.say_how_much_is_saved();
        let Some(gap) = &mut self.gap else { return };
        let room = gap.chain.address;
        if result.as_ref().is_err_and(|e| e.errno == ENOSPC) && self.peers[node.0 as usize].session() == Some(session) {
            self.resync_ios -= 1;
            return self.history_ran_out(node, wanted, room);
        }
        self.resync_io_done(node, session, 0, result);
    }

    pub(super) fn resync_io_done(
        &mut self,
        node: NodeId,
        session: SessionId,
        index: usize,
        result: Result<IoData, IoError>,
    ) {
        self.resync_ios -= 1;
        if self.peers[node.0 as usize].session() != Some(session) {
            return;
        }
        let data = match result {
            Ok(data) => data,
            Err(error) => {
                // The gap stays open and the undo stays: the next session begins where this one did.
                self.part_failed("resync", error.errno);
                let words = super::trouble::errno_words(error.errno);
                return self.refuse(node, format!("the resync cannot go on, its storage failed: {words}"));
            }
        };
        let Some(resync) = self.resync_mut(node) else { return };
        match std::mem::replace(&mut resync.step, Step::Idle) {
            Step::Census { at, bytes, runs } => return self.counted(node, at, bytes, runs, &data),
            Step::Search(work) => self.searched(node, work, data),
            Step::Read { group, mut old, missing } => {
                if let IoData::Bytes(payload) = data {
                    old[index].1 = Some(payload);
                }
                if missing > 1 {
                    resync.step = Step::Read { group, old, missing: missing - 1 };
                } else {
                    self.save_old(node, group, old);
                }
            }
            Step::Save(group) => self.write_group(node, group),
            Step::Write { group, writing } if writing > 1 => {
                resync.step = Step::Write { group, writing: writing - 1 };
            }
            Step::Write { group, .. } => {
                resync.taken = group.taken;
                resync.through = group.through.unwrap_or(resync.through);
            }
            Step::Flush(left) if left > 1 => resync.step = Step::Flush(left - 1),
            Step::Flush(_) => self.close_gap(node, session),
            step @ (Step::Idle | Step::Close | Step::GiveUp | Step::Reserve { .. }) => resync.step = step,
        }
        self.poll_resync_target(node);
    }

    /// Of a long discard only what holds data is written and saved.
    fn searched(&mut self, node: NodeId, work: Work, data: IoData) {
        let (record, again): (Record, fn(Record) -> Work) = match work {
            Work::Content(record) => (record, Work::Content),
            Work::Part(record) => (record, Work::Part),
            _ => return,
        };
        let Some(resync) = self.resync_mut(node) else { return };
        let IoData::Extent(Some((offset, length))) = data else { return };
        let start = offset.max(record.offset) / DIRTY_BLOCK * DIRTY_BLOCK;
        let start = start.max(record.offset);
        if start >= record.end() {
            return;
        }
        let piece = (offset + length).next_multiple_of(DIRTY_BLOCK).min(record.end()).min(start + LONG_DISCARD) - start;
        let rest = record.end() - start - piece;
        if rest > 0 {
            resync.incoming.push_front(again(Record { offset: start + piece, length: rest, ..record.clone() }));
        }
        resync.incoming.push_front(again(Record { offset: start, length: piece, ..record }));
    }

    /// The image is whole and stable: one superblock closes the gap, moves the checkpoint and ends the old log.
    fn close_gap(&mut self, node: NodeId, session: SessionId) {
        let Some(resync) = self.resync_mut(node) else { return };
        resync.step = Step::Close;
        let (through, lineage, zero) = (resync.through, resync.lineage.clone(), resync.zero);
        let committed = resync.committed.max(through);
        self.gap = None;
        self.lost = None;
        self.history_floor = 0;
        self.part_works("resync");
        self.lineage = Lineage::new(lineage);
        self.zero = zero;
        let log_stream = self.draw_id();
        self.log_restarts_at(through);
        self.log.restart_at(through, log_stream);
        self.store.set_applied(through);
        self.committed = committed;
        self.superblock.lower_checkpoint(through);
        // What this node knew of others was of the past that the resync replaced.
        self.forget_bitmaps(through);
        self.leave_history(Then::GapClosed { peer: node, session, position: through });
    }

    pub(super) fn gap_is_closed(&mut self, node: NodeId, session: SessionId, position: Lsn) {
        self.free_history();
        // The orphans that it has cannot come back by a rollback any more.
        self.set_aside = None;
        let name = self.cfg.name(node).to_string();
        self.notice(super::notice::Notice::ResyncFinished { peer: name, position: position.0 });
        if self.peers[node.0 as usize].session() != Some(session) {
            return;
        }
        let Some(target) = self.peers[node.0 as usize].target_mut() else { return };
        let TargetStage::Resync(resync) = std::mem::replace(&mut target.stage, TargetStage::Stream) else { return };
        let rest: Vec<Record> = resync
            .incoming
            .into_items()
            .filter_map(|w| match w {
                Work::Record(record) => Some(record),
                _ => None,
            })
            .collect();
        if !rest.is_empty() {
            target.deferred.push_back(super::peer::Deferred::Records(rest));
        }
        self.send(node, session, PeerMsg::ResyncDone { position });
        self.poll_target(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discard(lsn: u64, length: u64) -> Record {
        let (volume, kind, payload) = (VolumeId(0), Kind::Discard, Payload::empty());
        Record { lsn: Lsn(lsn), volume, kind, offset: 0, length, crc: 0, payload }
    }

    fn in_the_stream(records: Vec<Record>) -> ResyncTarget {
        let mut resync = ResyncTarget::new(Lsn(0), Vec::new(), false);
        resync.committed = Lsn(u64::MAX);
        resync.incoming.push_back(Work::End { base: Lsn(0), until: Lsn(0) });
        resync.take_records(records);
        resync
    }

    /// All that a group overwrites is read and saved at once.
    #[test]
    fn discards_count_for_what_their_blocks_held() {
        let mut resync = in_the_stream((1..=1000).map(|n| discard(n, LONG_DISCARD)).collect());
        let group = resync.next_group(Lsn(u64::MAX)).unwrap();
        assert_eq!(group.records.len() as u64, GROUP_BYTES / LONG_DISCARD);
        assert_eq!(group.through, Some(Lsn(4)));
    }

    #[test]
    fn a_long_discard_of_the_stream_is_taken_in_parts() {
        let mut resync = in_the_stream(vec![discard(1, 4 << 30), discard(2, 4096)]);
        let group = resync.next_group(Lsn(u64::MAX)).unwrap();
        assert!(group.is_empty() && group.through == Some(Lsn(0)), "{group:?}");
        let Ok(Some(Work::Part(long))) = resync.take_long() else { panic!("it is its turn") };
        assert_eq!(long.length, 4 << 30);
        // Where data was found in it.
        resync.incoming.push_front(Work::Part(discard(1, LONG_DISCARD)));
        let group = resync.next_group(Lsn(u64::MAX)).unwrap();
        assert_eq!((group.records.len(), group.through), (3 - 1, Some(Lsn(2))));
        assert!(resync.until.is_some(), "parts of a record are no contents");
    }
}
