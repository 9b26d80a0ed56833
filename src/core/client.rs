//! What clients wait for: writes, flushes and reads of the active node.

use super::api::*;
use super::node::{Node, Purpose, Stage};
use super::overlay::ReadPart;
use super::types::*;
use crate::buf::Payload;
use crate::format::batch::MAX_RECORD_BYTES;
use std::collections::{BTreeMap, VecDeque};

/// So many flushes among the last eight requests that change or flush something: then a flush will most likely follow the next write too.
const FLUSHES: u32 = 3;

/// Requests under way.
#[derive(Debug)]
pub struct Clients {
    /// The last eight writes and flushes, the newest lowest; a flush is 1.
    habit: u8,
    /// Accepted plain writes, by their last record, in order, and when they came.
    writes: VecDeque<(Lsn, ReqId, Time)>,
    /// FUA writes and flushes, by the record that must be committed.
    flushes: BTreeMap<Lsn, Vec<Waiting>>,
    reads: BTreeMap<u64, PendingRead>,
    next_read: u64,
    maps: BTreeMap<u64, PendingMap>,
    /// Writes that found no room in memory or log.
    pending: VecDeque<(ReqId, ClientOp, Time)>,
    /// The newest record of each volume.
    newest: Vec<Lsn>,
    /// All records up to here have completed towards clients, or could.
    completed: Lsn,
    /// Where the log ended when the term was opened: any record up to there may have completed in an earlier term.
    opened_at: Lsn,
    /// What the stores hold already, and not every member: every read waits for it (S2).
    in_stores: Lsn,
}

/// A request that waits until a record is committed.
#[derive(Debug)]
struct Waiting {
    req: ReqId,
    since: Time,
    /// A write with FUA; else a flush.
    writes: bool,
}

#[derive(Debug)]
struct PendingRead {
    req: ReqId,
    slots: Vec<Option<Segment>>,
    missing: usize,
    /// Where the range is, for another attempt.
    extent: Extent,
    /// The end of the log when the store was asked: what was accepted since and applied meanwhile may show in halves.
    began: Lsn,
    /// The newest write that it saw: it may not be shown before that one may complete (S2).
    wait: Lsn,
    failed: Option<i32>,
}

/// A question about what is zero, under way.
#[derive(Debug)]
struct PendingMap {
    req: ReqId,
    volume: VolumeId,
    /// What memory does not know, still to be asked of the store: nearest first.
    runs: Vec<(u64, bool)>,
    parts: VecDeque<ReadPart>,
}

impl PendingMap {
    fn push(&mut self, length: u64, zero: bool) {
        match self.runs.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.1 == zero => last.0 += length,
            _ => self.runs.push((length, zero)),
        }
    }
}

impl Clients {
    pub fn new(volumes: usize) -> Clients {
        Clients {
            habit: 0,
            writes: VecDeque::new(),
            flushes: BTreeMap::new(),
            reads: BTreeMap::new(),
            next_read: 0,
            maps: BTreeMap::new(),
            pending: VecDeque::new(),
            newest: vec![Lsn(0); volumes],
            completed: Lsn(0),
            opened_at: Lsn(0),
            in_stores: Lsn(0),
        }
    }

    pub fn waiting_for_room(&self) -> usize {
        self.pending.len()
    }

    /// Since when the write that has waited longest has found no room.
    pub fn waiting_since(&self) -> Option<Time> {
        self.pending.front().map(|(.., since)| *since)
    }

    /// Begins anew with a log that ends at `end`, of which everything up to `completed` is surely with every member: what an earlier term left is gone (C6).
    pub fn reset(&mut self, completed: Lsn, end: Lsn) -> Vec<ReqId> {
        let mut dropped: Vec<ReqId> = self.writes.drain(..).map(|(_, r, _)| r).collect();
        dropped.extend(std::mem::take(&mut self.flushes).into_values().flatten().map(|w| w.req));
        dropped.extend(std::mem::take(&mut self.reads).into_values().map(|r| r.req));
        dropped.extend(std::mem::take(&mut self.maps).into_values().map(|m| m.req));
        dropped.extend(self.pending.drain(..).map(|(r, ..)| r));
        self.newest.fill(end);
        self.completed = completed;
        self.opened_at = end;
        self.in_stores = Lsn(0);
        dropped
    }

    fn note_habit(&mut self, flush: bool) {
        self.habit = self.habit << 1 | u8::from(flush);
    }

    fn flush_will_follow(&self) -> bool {
        self.habit.count_ones() >= FLUSHES
    }

    /// The stores hold everything up to `applied`, whoever of the members lacks it.
    pub fn are_in_stores(&mut self, applied: Lsn) {
        self.in_stores = applied;
    }
}

impl Node {
    pub(super) fn client_request(&mut self, req: ReqId, op: ClientOp) {
        if self.stage != Stage::Active || self.is_outvoted {
            return self.complete(req, Err(ClientError::NotActive));
        }
        if let Err(error) = self.check_range(&op) {
            return self.complete(req, Err(error));
        }
        match op {
            ClientOp::Read { volume, offset, length } => self.start_read(req, volume, offset, length),
            ClientOp::Flush { volume } => self.start_flush(req, volume),
            ClientOp::Extents { volume, offset, length } => self.start_map(req, volume, offset, length),
            write => self.clients.pending.push_back((req, write, self.now)),
        }
    }

    /// Takes in the writes that have room. In order: a write is never overtaken by a later one (S3).
    pub(super) fn poll_clients(&mut self) {
        if self.stage != Stage::Active || self.fault.is_some() {
            return;
        }
        while self.has_room() {
            let Some((req, op, since)) = self.clients.pending.pop_front() else { break };
            if let Some(rest) = self.accept(req, op, since) {
                self.clients.pending.push_front((req, rest, since));
            }
        }
    }

    fn check_range(&self, op: &ClientOp) -> Result<(), ClientError> {
        let (volume, offset, length) = match op {
            ClientOp::Write { volume, offset, payload, .. } => (*volume, *offset, payload.len() as u64),
            ClientOp::Read { volume, offset, length }
            | ClientOp::Zeroes { volume, offset, length, .. }
            | ClientOp::Discard { volume, offset, length, .. }
            | ClientOp::Extents { volume, offset, length } => (*volume, *offset, *length),
            ClientOp::Flush { volume } => (*volume, 0, u64::from(self.cfg.block)),
        };
        let size = self.cfg.volumes.get(volume.0 as usize).ok_or(ClientError::OutOfRange)?.size;
        if length == 0 || offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(ClientError::OutOfRange);
        }
        let block = u64::from(self.cfg.block);
        if !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
            return Err(ClientError::Misaligned);
        }
        Ok(())
    }

    /// Takes in one record, and gives back what is left of a write that is longer: a ring need not have room for all of it at once.
    fn accept(&mut self, req: ReqId, op: ClientOp, since: Time) -> Option<ClientOp> {
        let (volume, fua) = match op {
            ClientOp::Write { volume, offset, payload, fua } => {
                let length = payload.len().min(MAX_RECORD_BYTES as usize);
                self.append(volume, Kind::Write, offset, length as u64, payload.slice(0, length));
                if length < payload.len() {
                    let (offset, payload) = (offset + length as u64, payload.slice(length, payload.len() - length));
                    self.clients.newest[volume.0 as usize] = self.log.end();
                    return Some(ClientOp::Write { volume, offset, payload, fua });
                }
                (volume, fua)
            }
            ClientOp::Zeroes { volume, offset, length, fua, may_discard } => {
                let kind = if may_discard { Kind::Discard } else { Kind::Zeroes };
                self.append(volume, kind, offset, length, Payload::empty());
                (volume, fua)
            }
            ClientOp::Discard { volume, offset, length, fua } => {
                self.append(volume, Kind::Discard, offset, length, Payload::empty());
                (volume, fua)
            }
            ClientOp::Read { .. } | ClientOp::Flush { .. } | ClientOp::Extents { .. } => return None,
        };
        let last = self.log.end();
        self.clients.newest[volume.0 as usize] = last;
        self.clients.note_habit(false);
        if fua || self.cfg.durable_write {
            self.wait_committed(last, Waiting { req, since, writes: true });
        } else {
            if self.clients.flush_will_follow() {
                // One stable write, here and on the peers, in place of a write and a flush; the flush then finds nothing to do.
                self.want_committed(last);
            }
            self.clients.writes.push_back((last, req, since));
        }
        None
    }

    fn append(&mut self, volume: VolumeId, kind: Kind, offset: u64, length: u64, payload: Payload) {
        let crc = if payload.is_empty() { 0 } else { crc32fast::hash(&payload) };
        let record = Record { lsn: self.log.end().next(), volume, kind, offset, length, crc, payload };
        self.take_record(record);
    }

    /// A record enters this node's order: overlay and log, in that order of lsn.
    pub(super) fn take_record(&mut self, record: Record) {
        // Only a node with a lineage takes records: the active has opened a term, a passive has adopted the active's.
        let term = *self.lineage.term_to_log(record.lsn).expect("a record of a known term");
        self.overlay.insert(&record);
        self.log.push(record, term);
    }

    /// Every node makes it durable as soon as can be.
    fn want_committed(&mut self, lsn: Lsn) {
        self.flush_to = self.flush_to.max(lsn);
        self.log.want_durable(lsn);
    }

    fn wait_committed(&mut self, lsn: Lsn, waiting: Waiting) {
        self.want_committed(lsn);
        self.clients.flushes.entry(lsn).or_default().push(waiting);
    }

    /// A flush waits for the last write of its volume that had completed when it came (S3), in an earlier term too: a client
    /// that comes back after a takeover flushes what it was told before.
    fn start_flush(&mut self, req: ReqId, volume: VolumeId) {
        self.clients.note_habit(true);
        let completed = self.clients.completed.max(self.clients.opened_at);
        let lsn = self.clients.newest[volume.0 as usize].min(completed);
        // Where there is nothing to wait for it is answered all the same by the poll, which knows who is in sync by then.
        self.wait_committed(lsn, Waiting { req, since: self.now, writes: false });
    }

    fn start_read(&mut self, req: ReqId, volume: VolumeId, offset: u64, length: u64) {
        let plan = self.overlay.read(volume, offset, length);
        let (extent, began) = (Extent { volume, offset, length }, self.log.end());
        let wait = plan.newest.max(self.clients.in_stores);
        let read = self.clients.next_read;
        self.clients.next_read += 1;
        let mut slots = Vec::with_capacity(plan.parts.len());
        let mut missing = 0;
        for (slot, part) in plan.parts.into_iter().enumerate() {
            slots.push(match part {
                ReadPart::Data(payload) => Some(Segment::Data(payload)),
                ReadPart::Zero(length) => Some(Segment::Zero(length)),
                ReadPart::Store { offset, length } => {
                    missing += 1;
                    self.io(Purpose::Read { read, slot }, Part::Store(volume), IoOp::Read { offset, length });
                    None
                }
            });
        }
        self.clients.reads.insert(read, PendingRead { req, slots, missing, extent, began, wait, failed: None });
        self.finish_read(read);
    }

    pub(super) fn read_done(&mut self, read: u64, slot: usize, result: Result<IoData, IoError>) {
        let Some(pending) = self.clients.reads.get_mut(&read) else { return };
        pending.missing -= 1;
        match result {
            Ok(IoData::Bytes(payload)) => pending.slots[slot] = Some(Segment::Data(payload)),
            Ok(_) => pending.failed = Some(libc_eio()),
            Err(error) => pending.failed = Some(error.errno),
        }
        let (missing, began, extent) = (pending.missing, pending.began, pending.extent);
        if missing == 0 && self.store.may_hold() > began && self.touched_since(began, extent) {
            // A write accepted since may have been applied while the store was read: its halves are no value at all.
            let Some(pending) = self.clients.reads.remove(&read) else { return };
            return self.start_read(pending.req, extent.volume, extent.offset, extent.length);
        }
        self.finish_read(read);
    }

    fn finish_read(&mut self, read: u64) {
        let completed = self.clients.completed;
        let Some(pending) = self.clients.reads.get(&read) else { return };
        if pending.missing > 0 || pending.wait > completed {
            return;
        }
        // Just found there.
        let pending = self.clients.reads.remove(&read).expect("a pending read");
        let result = match pending.failed {
            Some(errno) => Err(ClientError::Io(errno)),
            None => Ok(Reply::Data(pending.slots.into_iter().flatten().collect())),
        };
        self.complete(pending.req, result);
    }

    /// Which runs read as zeros: memory knows of what is not applied, the store of its holes.
    fn start_map(&mut self, req: ReqId, volume: VolumeId, offset: u64, length: u64) {
        let parts = self.overlay.read(volume, offset, length).parts.into();
        let map = self.clients.next_read;
        self.clients.next_read += 1;
        self.clients.maps.insert(map, PendingMap { req, volume, runs: Vec::new(), parts });
        self.step_map(map);
    }

    fn step_map(&mut self, map: u64) {
        let Some(pending) = self.clients.maps.get_mut(&map) else { return };
        while let Some(part) = pending.parts.pop_front() {
            match part {
                ReadPart::Data(payload) => pending.push(payload.len() as u64, false),
                ReadPart::Zero(length) => pending.push(length, true),
                ReadPart::Store { offset, .. } => {
                    let volume = pending.volume;
                    pending.parts.push_front(part);
                    return self.io(Purpose::Map { map }, Part::Store(volume), IoOp::NextData { offset });
                }
            }
        }
        if let Some(pending) = self.clients.maps.remove(&map) {
            self.complete(pending.req, Ok(Reply::Extents(pending.runs)));
        }
    }

    pub(super) fn map_read(&mut self, map: u64, result: Result<IoData, IoError>) {
        let Some(pending) = self.clients.maps.get_mut(&map) else { return };
        let Some(ReadPart::Store { offset, length }) = pending.parts.pop_front() else { return };
        let end = offset + length;
        let block = u64::from(self.cfg.block);
        let (hole_end, data_end) = match result {
            Ok(IoData::Extent(Some((at, run)))) => {
                // A file's runs need not end at blocks: a block that holds any data is data.
                let start = (at / block * block).clamp(offset, end);
                (start, at.saturating_add(run).next_multiple_of(block).clamp(start, end))
            }
            Ok(_) => (end, end),
            // What cannot be asked is data.
            Err(_) => (offset, end),
        };
        pending.push(hole_end - offset, true);
        pending.push(data_end - hole_end, false);
        if data_end < end {
            pending.parts.push_front(ReadPart::Store { offset: data_end, length: end - data_end });
        }
        self.step_map(map);
    }

    /// Moves the watermarks of the active as far as the log and the members allow, and answers who waited.
    pub(super) fn advance(&mut self) {
        if self.role() != Role::Active || self.fault.is_some() {
            return;
        }
        let (mut received, mut durable) = (self.log.written(), self.log.durable());
        for (member_received, member_durable) in self.required_positions() {
            received = received.min(member_received);
            durable = durable.min(member_durable);
        }
        // Suspended, what is held goes on being committed, or a passive could never become whole again; it is clients who wait.
        self.committed = self.committed.max(durable);
        if self.suspended {
            return;
        }
        let completed = if self.cfg.durable_write { self.committed } else { received };
        self.clients.completed = self.clients.completed.max(completed);
        self.answer_waiting();
    }

    fn answer_waiting(&mut self) {
        let (completed, committed) = (self.clients.completed, self.committed);
        while let Some(&(lsn, req, since)) = self.clients.writes.front() {
            if lsn > completed {
                break;
            }
            self.clients.writes.pop_front();
            self.write_times.add(self.now, self.now.since_us(since));
            self.complete(req, Ok(Reply::Done));
        }
        while let Some(first) = self.clients.flushes.first_entry() {
            if *first.key() > committed {
                break;
            }
            for Waiting { req, since, writes } in first.remove() {
                let times = if writes { &mut self.write_times } else { &mut self.flush_times };
                times.add(self.now, self.now.since_us(since));
                self.complete(req, Ok(Reply::Done));
            }
        }
        let ready: Vec<u64> =
            self.clients.reads.iter().filter(|(_, r)| r.missing == 0 && r.wait <= completed).map(|(k, _)| *k).collect();
        for read in ready {
            self.finish_read(read);
        }
    }

    /// The term is over though its active has not stepped down: what clients wait for fails for ever (C6), and nothing is shown that may be
    /// older than what the next active shows (contract 4).
    pub(super) fn stop_serving(&mut self) {
        if self.stage == Stage::Active {
            self.act(Action::StopServing);
        }
        for req in self.clients.reset(self.clients.completed, self.log.end()) {
            self.complete(req, Err(ClientError::NotActive));
        }
    }

    pub(super) fn complete(&mut self, req: ReqId, result: Result<Reply, ClientError>) {
        self.act(Action::Complete { req, result });
    }
}

/// EIO: what a driver's answer of the wrong kind is reported as.
fn libc_eio() -> i32 {
    5
}
