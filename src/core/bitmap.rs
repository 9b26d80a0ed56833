//! What a peer lacks of the records that the ring no longer holds (B1, B2): bits in memory, and a list on disk that is
//! appended to before the ring drops anything, and folded into a new one when it has grown.

use super::api::*;
use super::dirty::DirtySet;
use super::node::{Node, Purpose};
use super::runs::piece_record;
use super::trouble::{RETRY_MS, is_no_room};
use super::types::*;
use crate::buf::Payload;
use crate::format::batch::{self, BatchFields, TermRef};
use crate::format::superblock::BitmapState;

/// A list longer than this, and than twice what folding left, is folded.
const FOLD_BYTES: u64 = 4 << 20;

/// Bits for one peer.
#[derive(Clone, Debug)]
pub struct Bitmap {
    pub bits: DirtySet,
    /// Whoever is durable at or past this position is told all that it lacks by the bits and the ring (B2).
    pub from: Lsn,
    /// The newest record that went into the bits.
    newest: Lsn,
    half: u8,
    stream: u128,
    list: Chain,
    /// The list's length after the latest folding.
    folded: u64,
}

/// Where a growing part of batches goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    pub address: u64,
    pub prev_crc: u32,
    /// Number of the next entry.
    pub next: Lsn,
}

impl Chain {
    /// The beginning of a part with this stream id.
    pub fn start(stream: u128) -> Chain {
        Chain { address: 0, prev_crc: batch::seed(stream), next: Lsn(1) }
    }

    /// The buffers that append `records`, whose lsns are set here; the chain moves past them.
    pub fn append(&mut self, stream: u128, term: TermRef, records: &mut [Record]) -> Vec<Payload> {
        let mut bufs = Vec::new();
        let mut rest = records;
        while !rest.is_empty() {
            let (these, others) = rest.split_at_mut(batch::fitting(rest));
            for record in these.iter_mut() {
                record.lsn = self.next;
                self.next = self.next.next();
            }
            let fields = BatchFields {
                stream,
                address: self.address,
                prev_crc: self.prev_crc,
                term,
                first: these[0].lsn,
                durable: these[0].lsn.prev(),
            };
            let (header, crc) = batch::encode(&fields, these);
            bufs.extend(batch::buffers(header, these));
            self.address += batch::batch_bytes(these);
            self.prev_crc = crc;
            rest = others;
        }
        bufs
    }
}

impl Bitmap {
    /// No bits, complete for everyone who holds what there is up to `from`; `bits` is an empty set.
    pub fn new(bits: DirtySet, stream: u128, from: Lsn) -> Bitmap {
        let list = Chain::start(stream);
        Bitmap { bits, from, newest: Lsn(0), half: 0, stream, list, folded: 0 }
    }

    /// What recovery read.
    pub fn recovered(bits: DirtySet, state: &BitmapState, list: Chain) -> Bitmap {
        let BitmapState { from, half, stream, newest, .. } = *state;
        Bitmap { bits, from, newest, half, stream, list, folded: 0 }
    }

    /// What recovery could not read: a new list in the other half, which is complete for nobody.
    pub fn lost(bits: DirtySet, state: &BitmapState, stream: u128) -> Bitmap {
        Bitmap { half: state.half ^ 1, ..Bitmap::new(bits, stream, Lsn(u64::MAX)) }
    }

    pub fn state(&self, peer: &str) -> BitmapState {
        BitmapState {
            peer: peer.to_string(),
            half: self.half,
            stream: self.stream,
            from: self.from,
            from_term: None,
            listed: self.list.address,
            newest: self.newest,
        }
    }

    /// Takes in what dropped records changed, and gives what makes that durable: offset in the current half, and bytes.
    fn list(&mut self, changed: &DirtySet, newest: Lsn) -> (u64, Vec<Payload>) {
        self.bits.add_all(changed);
        self.newest = self.newest.max(newest);
        let offset = self.list.address;
        (offset, self.list.append(self.stream, NO_TERM, &mut as_records(changed)))
    }

    /// Starts the other half with all bits in it. The superblock switches to it once it is written.
    fn fold(&mut self, stream: u128) -> Vec<Payload> {
        self.half ^= 1;
        self.stream = stream;
        self.list = Chain::start(stream);
        let bufs = self.list.append(stream, NO_TERM, &mut as_records(&self.bits));
        self.folded = self.list.address;
        bufs
    }
}

const NO_TERM: TermRef = TermRef { number: 0, id: TermId(0) };

/// A list holds sets as records whose payloads are packed runs.
fn as_records(set: &DirtySet) -> Vec<Record> {
    set.pieces().map(|piece| piece_record(&piece)).collect()
}

/// A write to a list.
#[derive(Clone, Debug)]
pub(super) struct ListWrite {
    peer: NodeId,
    half: u8,
    offset: u64,
    bufs: Vec<Payload>,
}

/// Batches on their way out of the ring.
#[derive(Debug, Default)]
pub struct Reclaim {
    /// Records up to here go once the lists are durable; none while nothing is to go.
    up_to: Option<Lsn>,
    writing: usize,
    failed: bool,
    /// Writes that found no room, to be done again at a time.
    again: Vec<ListWrite>,
    again_at: Time,
    /// The newest record that could not be read back, and when that was found.
    lost: Option<(Lsn, Time)>,
    /// No part of the ring up to here is of use: it goes as soon as it may.
    useless: Option<Lsn>,
    /// A record whose read has failed once.
    doubtful: Option<Lsn>,
}

impl Reclaim {
    /// Recovery found this record and older ones to be in the ring no more.
    pub fn without(lost: Option<Lsn>, now: Time) -> Reclaim {
        Reclaim { lost: lost.map(|lsn| (lsn, now)), ..Reclaim::default() }
    }
}

impl Node {
    /// An empty set of what a peer lacks, within its share of the memory.
    pub(super) fn new_bits(&self) -> DirtySet {
        DirtySet::bounded(&self.volume_sizes(), self.cfg.bits_limit())
    }

    /// What a peer surely holds, in this node's lineage, for as long as it keeps its disks.
    fn surely_durable(&self, node: NodeId) -> Lsn {
        let peer = &self.peers[node.0 as usize];
        let name = self.cfg.name(node);
        let listed = self.charter.member(name).is_some() || self.charter.active.as_deref() == Some(name);
        if self.role() == Role::Passive && listed { peer.known.max(self.committed) } else { peer.known }
    }

    /// Lists are on their way, behind which room is made.
    pub(super) fn is_reclaiming(&self) -> bool {
        self.reclaim.writing > 0
    }

    /// Lists are not on disk yet: no other is begun, and nothing is dropped.
    fn is_listing(&self) -> bool {
        self.reclaim.writing > 0 || !self.reclaim.again.is_empty()
    }

    /// When what found no room is written again.
    pub(super) fn reclaim_deadline(&self) -> Option<Time> {
        (self.reclaim.writing == 0 && self.fault.is_none() && !self.reclaim.again.is_empty())
            .then_some(self.reclaim.again_at)
    }

    /// A record that the ring should hold could not be read back. At the second time the medium has lost it: that costs reach, no
    /// more, since only what is checkpointed is read from the ring (L2). True if it is to be read once more.
    pub(super) fn could_not_be_read(&mut self, lsn: Lsn) -> bool {
        if self.reclaim.doubtful.replace(lsn) != Some(lsn) {
            return true;
        }
        self.reclaim.useless = self.reclaim.useless.max(Some(lsn));
        if self.reclaim.lost.is_none_or(|(lost, _)| lost != lsn) {
            self.reclaim.lost = Some((lsn, self.now));
            self.notice(super::notice::Notice::LogUnreadable { lsn: lsn.0 });
        }
        false
    }

    /// Records after `fork` are others from now on.
    pub(super) fn keep_useless_up_to(&mut self, fork: Lsn) {
        self.reclaim.useless = self.reclaim.useless.map(|lsn| lsn.min(fork));
        self.reclaim.doubtful = None;
    }

    /// The newest record that could not be read back, and when that was.
    pub(super) fn lost_record(&self) -> Option<(Lsn, Time)> {
        self.reclaim.lost
    }

    /// Begins well before the ring is full, and frees enough for a while (L5). What cannot be read back goes at once: whoever
    /// needs it then gets the contents of what changed.
    pub(super) fn poll_reclaim(&mut self) {
        if self.reclaim_deadline().is_some_and(|at| at <= self.now) {
            for write in std::mem::take(&mut self.reclaim.again) {
                self.write_list(write);
            }
        }
        let size = self.log.size();
        self.reclaim.useless = self.reclaim.useless.filter(|useless| *useless >= self.log.from());
        let useless = self.reclaim.useless;
        let is_time = self.log.held() > size / 2 || useless.is_some();
        if self.is_listing() || self.reclaim.failed || self.fault.is_some() || !is_time {
            return;
        }
        let checkpointed = self.superblock.checkpoint();
        let held = self.log.held();
        let mut last = Lsn(0);
        for unit in self.log.units() {
            let freed = unit.end - self.log.tail().address;
            let enough = last > Lsn(0) && held - freed < size / 3 && useless.is_none_or(|lsn| last >= lsn);
            if unit.last > checkpointed || enough {
                break;
            }
            last = unit.last;
        }
        if last == Lsn(0) {
            return;
        }
        self.reclaim.up_to = Some(last);
        for node in self.cfg.peers() {
            self.list_for(node, last);
        }
        self.finish_reclaim();
    }

    /// B1: what the peer has not reported durable is listed, durably, before it is dropped.
    fn list_for(&mut self, node: NodeId, last: Lsn) {
        let known = self.surely_durable(node);
        let at = node.0 as usize;
        let bitmap = &mut self.bitmaps[at];
        let first_bits = bitmap.bits.is_empty();
        if first_bits {
            // No bits: whoever holds everything that has been dropped so far lacks nothing else.
            bitmap.from = bitmap.from.max(known.min(last));
            if known >= last {
                return;
            }
        }
        // Once there are bits they stay complete from `from` on, whatever the peer has reported since.
        let after = if first_bits { known } else { known.min(bitmap.newest) };
        let mut changed = self.new_bits();
        self.log.changed(after, last).for_each(|e| changed.add(e));
        if first_bits {
            let peer = self.cfg.name(node).to_string();
            self.notice(super::notice::Notice::LogOverflow { peer });
        }
        self.missed_by(node, last, &changed);
        let (offset, bufs) = self.bitmaps[at].list(&changed, last);
        let half = self.bitmaps[at].half;
        self.write_list(ListWrite { peer: node, half, offset, bufs });
        let list = self.bitmaps[at].list.address;
        if list > FOLD_BYTES && list > 2 * self.bitmaps[at].folded {
            let stream = self.draw_id();
            let bufs = self.bitmaps[at].fold(stream);
            let half = self.bitmaps[at].half;
            self.write_list(ListWrite { peer: node, half, offset: 0, bufs });
        }
    }

    fn write_list(&mut self, write: ListWrite) {
        if write.bufs.is_empty() {
            return;
        }
        self.reclaim.writing += 1;
        let part = Part::Bitmap { peer: write.peer, half: write.half };
        let op = IoOp::Write { offset: write.offset, bufs: write.bufs.clone(), sync: true };
        self.io(Purpose::Bitmap { write }, part, op);
    }

    /// Without the list nothing may be dropped (B1). A full disk has room again some time; until then the ring fills, and writes wait.
    pub(super) fn bitmap_written(&mut self, write: ListWrite, result: Result<IoData, IoError>) {
        self.reclaim.writing -= 1;
        match result {
            Ok(_) if !self.is_listing() => self.part_works("bitmap"),
            Ok(_) => {}
            Err(IoError { errno }) if is_no_room(errno) => {
                self.reclaim.again.push(write);
                self.reclaim.again_at = self.now.plus_ms(RETRY_MS);
                self.part_failed("bitmap", errno);
            }
            Err(IoError { errno }) => {
                self.reclaim.failed = true;
                self.storage_failed("bitmap", errno);
            }
        }
        self.finish_reclaim();
    }

    fn finish_reclaim(&mut self) {
        if self.is_listing() || self.reclaim.failed {
            return;
        }
        let Some(up_to) = self.reclaim.up_to.take() else { return };
        while self.log.units().next().is_some_and(|unit| unit.last <= up_to) {
            self.log.drop_oldest();
        }
        self.persist(super::superblock::Then::Nothing);
    }

    /// The log begins anew after `position`: what it held is in no list, so that whoever is older will be compared in full (B2).
    pub(super) fn log_restarts_at(&mut self, position: Lsn) {
        (self.reclaim.up_to, self.reclaim.useless) = (None, None);
        for bitmap in &mut self.bitmaps {
            bitmap.from = bitmap.from.max(position);
        }
    }

    /// After a resync the past is another one: nobody's bits are known, and everyone starts from here.
    pub(super) fn forget_bitmaps(&mut self, position: Lsn) {
        self.reclaim.again.clear();
        for node in self.cfg.peers() {
            let stream = self.draw_id();
            let half = self.bitmaps[node.0 as usize].half ^ 1;
            let bitmap = Bitmap { half, ..Bitmap::new(self.new_bits(), stream, position) };
            self.bitmaps[node.0 as usize] = bitmap;
            self.peers[node.0 as usize].known = Lsn(0);
        }
    }

    /// The peer holds everything up to `durable`: bits of records up to there are proven to be of no use (R3).
    pub(super) fn clear_bits(&mut self, node: NodeId, durable: Lsn) {
        let at = node.0 as usize;
        if self.bitmaps[at].bits.is_empty() || durable < self.bitmaps[at].newest || self.is_listing() {
            return;
        }
        let stream = self.draw_id();
        let from = self.log.from().prev();
        let bitmap = &mut self.bitmaps[at];
        bitmap.bits.clear();
        bitmap.fold(stream);
        bitmap.from = from;
        self.persist(super::superblock::Then::Nothing);
    }
}
