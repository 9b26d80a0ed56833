//! An open gap: the store is between two positions, and the history leads back to the first (R1).

use super::api::*;
use super::bitmap::Chain;
use super::dirty::DirtySet;
use super::hello::Gap;
use super::node::{Node, Purpose, Stage};
use super::notice::Notice;
use super::overlay::Overlay;
use super::runs::{PIECE_VOLUME, piece_record};
use super::store::piece_op;
use super::superblock::Then;
use super::types::*;
use crate::buf::Payload;
use crate::format::BLOCK;
use crate::format::batch::{self, TermRef};
use crate::format::ring::{BatchEntry, Sink};

/// A piece without runs.
const NO_RUNS: [u8; 2] = [0, 0];
/// So much undo may be durable without the superblock saying so; of small volumes, the 64th part of them.
const UNSAID_BYTES: u64 = 16 << 20;

const NO_TERM: TermRef = TermRef { number: 0, id: TermId(0) };

/// What stands between this store and a valid image.
#[derive(Clone, Debug)]
pub struct GapState {
    /// What the superblock says of it.
    pub state: Gap,
    /// Blocks whose content at the rollback position is in the history: the first undo wins. Exact: it knows no block smaller than
    /// `state.grain`, and undo is saved by such blocks.
    pub saved: DirtySet,
    /// What this side had changed since the fork: to be fetched whatever the source changed (R4). Noted in the history too,
    /// since the log that told it is gone.
    pub changed: DirtySet,
    pub chain: Chain,
    /// Where the notes end and the undo begins.
    noted: Chain,
    /// The write under way: where the chain stood before it, and what counts as saved only because of it.
    pending: Option<(Chain, Vec<Extent>)>,
    pub stream: u128,
}

/// Putting the undo back, one batch after the other.
#[derive(Debug)]
pub struct Rollback {
    address: u64,
    writing: usize,
    flushing: usize,
    /// The gap stays open, to be tried again when there is room; otherwise this node is about to be promoted.
    stays: bool,
}

impl GapState {
    pub fn new(state: Gap, sizes: &[u64], changed_limit: u64, stream: u128) -> GapState {
        let chain = Chain::start(stream);
        GapState {
            state,
            saved: DirtySet::of_grain(sizes, state.grain),
            changed: DirtySet::bounded(sizes, changed_limit),
            chain,
            noted: chain,
            pending: None,
            stream,
        }
    }

    /// The write that `save` asked for is over. If it failed nothing of it is there, and the next one takes its place: a hole
    /// in the chain would hide all undo behind it.
    pub fn save_is_over(&mut self, written: bool) {
        if let Some((chain, extents)) = self.pending.take()
            && !written
        {
            self.chain = chain;
            extents.into_iter().for_each(|e| self.saved.remove(e));
        }
    }

    /// What makes the set of own changes durable, before there is any undo: offset in the history, and bytes.
    /// A history in which it is not found is not this gap's, or has lost it: so it is written where there is nothing to note too.
    pub fn note_changed(&mut self, changed: &DirtySet) -> (u64, Vec<Payload>) {
        let offset = self.chain.address;
        self.changed.add_all(changed);
        let mut notes: Vec<Record> = self.changed.pieces().map(|piece| piece_record(&piece)).collect();
        if notes.is_empty() {
            notes.push(piece_record(&NO_RUNS));
        }
        let bufs = self.chain.append(self.stream, NO_TERM, &mut notes);
        self.noted = self.chain;
        (offset, bufs)
    }

    /// The notes could not be written: there is no way back, and a restart will not know what changed here.
    pub fn without_notes(self, sizes: &[u64], changed_limit: u64) -> GapState {
        let state = Gap { rollback: None, everything: true, ..self.state };
        GapState::new(state, sizes, changed_limit, self.stream)
    }

    /// Bytes of the history that are durable: if fewer are found, undo is lost.
    pub fn durable_bytes(&self) -> u64 {
        self.pending.as_ref().map_or(self.chain, |(before, _)| *before).address
    }

    /// What recovery found of the history ends before what was durable: there is no way back, and no telling what is between two positions.
    pub fn is_lost(&mut self) {
        self.state.rollback = None;
        self.state.everything = true;
    }

    /// What the old contents of some ranges will take of the history.
    pub fn cost_of(&self, old: &[Record]) -> u64 {
        let headers = old.len().div_ceil(batch::MAX_RECORDS) as u64 + 2;
        old.iter().map(batch::record_bytes).sum::<u64>() + headers * BLOCK as u64
    }

    /// What makes the old contents of some ranges durable: offset in the history, and bytes.
    pub fn save(&mut self, mut old: Vec<Record>) -> (u64, Vec<Payload>) {
        let offset = self.chain.address;
        let extents: Vec<Extent> = old.iter().map(Record::extent).collect();
        extents.iter().for_each(|e| self.saved.add(*e));
        self.pending = Some((self.chain, extents));
        let bufs = self.chain.append(self.stream, NO_TERM, &mut old);
        (offset, bufs)
    }

    /// The next piece of what is to be fetched whatever the source changed.
    pub fn lacks(&self, at: &mut LacksAt) -> Option<Vec<u8>> {
        self.changed.piece(&mut at.changed).or_else(|| self.saved.piece(&mut at.saved))
    }
}

/// How far the list of what is to be fetched has been told.
#[derive(Clone, Copy, Debug)]
pub struct LacksAt {
    changed: Option<(VolumeId, u64)>,
    saved: Option<(VolumeId, u64)>,
}

impl LacksAt {
    pub fn start() -> LacksAt {
        LacksAt { changed: Some((VolumeId(0), 0)), saved: Some((VolumeId(0), 0)) }
    }
}

/// Takes in a history that recovery walks.
impl Sink for GapState {
    fn push(&mut self, batch: BatchEntry, body: &Payload) {
        let mut is_note = self.saved.is_empty();
        for meta in &batch.metas {
            let range = Extent { volume: meta.volume, offset: meta.offset, length: meta.length };
            if meta.volume != PIECE_VOLUME {
                is_note = false;
                self.saved.add(range);
                continue;
            }
            let at = meta.payload_at as usize;
            // The walk has checked that the payload is there.
            if self.changed.add_piece(&body[at..at + meta.length as usize]).is_err() {
                self.state.everything = true;
            }
        }
        if is_note && let Ok((header, _)) = batch::decode_header(body) {
            let address = batch.start.address + batch.bytes;
            self.noted = Chain { address, prev_crc: header.crc, next: batch.last().next() };
        }
    }

    /// What is torn protects nothing: the store is written after it.
    fn push_torn(&mut self, _batch: BatchEntry, _body: &Payload) {}

    /// Only the end of a history can be torn.
    fn void_from(&mut self, _first: Lsn) {}
}

impl Node {
    pub(super) fn volume_sizes(&self) -> Vec<u64> {
        self.cfg.volumes.iter().map(|v| v.size).collect()
    }

    /// Begins to put the undo back; a promotion waits for it, and closes the gap by it.
    pub(super) fn start_rollback(&mut self, stays: bool) {
        if self.rollback.is_none() {
            self.rollback = Some(Rollback { address: 0, writing: 0, flushing: 0, stays });
            self.step_rollback();
        }
    }

    /// After the history ran out the undo is put back as soon as nothing more is under way.
    pub(super) fn poll_unwind(&mut self) {
        if self.unwind && self.resync_ios == 0 && self.rollback.is_none() && self.fault.is_none() {
            self.unwind = false;
            if self.gap.as_ref().is_some_and(|g| g.state.rollback.is_some()) && self.stage == Stage::Passive {
                self.start_rollback(true);
            }
        }
    }

    fn step_rollback(&mut self) {
        let (Some(rollback), Some(gap)) = (&self.rollback, &self.gap) else { return };
        if rollback.address < gap.chain.address {
            let op = IoOp::Read { offset: rollback.address, length: BLOCK as u64 };
            return self.io(Purpose::RollbackHeader, Part::History, op);
        }
        let volumes = self.cfg.volumes.len();
        if let Some(rollback) = &mut self.rollback {
            rollback.flushing = volumes;
        }
        for volume in 0..volumes {
            self.io(Purpose::RollbackFlush, Part::Store(VolumeId(volume as u16)), IoOp::Flush);
        }
    }

    pub(super) fn rollback_header(&mut self, result: Result<IoData, IoError>) {
        let header = match &result {
            Ok(IoData::Bytes(block)) => batch::decode_header(block).ok(),
            _ => None,
        };
        let Some(rollback) = &self.rollback else { return };
        match header {
            Some((header, _)) if header.fields.address == rollback.address => {
                let op = IoOp::Read { offset: rollback.address, length: header.bytes() };
                self.io(Purpose::RollbackBody, Part::History, op);
            }
            _ => self.rollback_failed(result.err()),
        }
    }

    pub(super) fn rollback_body(&mut self, result: Result<IoData, IoError>) {
        let records = match &result {
            Ok(IoData::Bytes(body)) => whole_batch(body),
            _ => None,
        };
        let Some(records) = records else { return self.rollback_failed(result.err()) };
        let mut undo = Overlay::new(self.cfg.volumes.len());
        records.iter().filter(|r| r.volume != PIECE_VOLUME).for_each(|r| undo.insert(r));
        let pieces = undo.plan(Lsn(u64::MAX));
        if let Some(rollback) = &mut self.rollback {
            rollback.address += batch::batch_bytes(&records);
            rollback.writing = pieces.len();
        }
        if pieces.is_empty() {
            return self.step_rollback();
        }
        for piece in pieces {
            self.io(Purpose::RollbackWrite, Part::Store(piece.volume), piece_op(piece));
        }
    }

    pub(super) fn rollback_written(&mut self, result: Result<IoData, IoError>) {
        if let Err(error) = result {
            return self.rollback_failed(Some(error));
        }
        if let Some(rollback) = &mut self.rollback {
            rollback.writing -= 1;
            if rollback.writing == 0 {
                self.step_rollback();
            }
        }
    }

    pub(super) fn rollback_flushed(&mut self, result: Result<IoData, IoError>) {
        if let Err(error) = result {
            return self.rollback_failed(Some(error));
        }
        let Some(rollback) = &mut self.rollback else { return };
        rollback.flushing -= 1;
        if rollback.flushing > 0 {
            return;
        }
        let stays = rollback.stays;
        let Some(gap) = &mut self.gap else { return };
        let to = gap.state.rollback.unwrap_or(Lsn(0));
        gap.chain = gap.noted;
        self.notice(Notice::RolledBack { to: to.0 });
        if stays {
            return self.persist(Then::Rewind);
        }
        self.rollback = None;
        self.gap = None;
        self.leave_history(Then::FreeHistory);
    }

    /// The gap is closed: what the history holds is of no use once the superblock says so, and no other gap is opened on it before
    /// it is cut.
    pub(super) fn leave_history(&mut self, then: Then) {
        self.history_stream = self.draw_id();
        self.resync_ios += 1;
        self.persist(then);
    }

    /// The superblock no longer speaks of what the history holds.
    pub(super) fn free_history(&mut self) {
        self.io(Purpose::HistoryCut, Part::History, IoOp::Truncate { length: 0 });
    }

    /// The superblock counts on the notes alone.
    pub(super) fn rewind(&mut self) {
        let Some(length) = self.gap.as_ref().map(|g| g.noted.address) else { return };
        self.io(Purpose::Rewound, Part::History, IoOp::Truncate { length });
    }

    /// The superblock is told now and then how much undo there is, so that a history that is cut off later is known to be.
    pub(super) fn say_how_much_is_saved(&mut self) {
        let all: u64 = self.cfg.volumes.iter().map(|v| v.size).sum();
        let step = (all / 64).clamp(BLOCK as u64, UNSAID_BYTES);
        let bytes = self.gap.as_ref().map_or(0, GapState::durable_bytes);
        if bytes >= self.superblock.history_said() + step {
            self.persist(Then::Nothing);
        }
    }

    /// The undo is put back and gone: the gap is as it was when it was opened.
    pub(super) fn rewound(&mut self, result: Result<IoData, IoError>) {
        if let Err(error) = result {
            return self.rollback_failed(Some(error));
        }
        self.rollback = None;
        let sizes = self.volume_sizes();
        if let Some(gap) = &mut self.gap {
            gap.saved = DirtySet::of_grain(&sizes, gap.state.grain);
        }
    }

    /// The way back is gone: the node does not serve.
    fn rollback_failed(&mut self, error: Option<IoError>) {
        if self.rollback.take().is_some() {
            self.storage_failed("history", error.map_or(5, |e| e.errno));
        }
    }
}

/// The records of a batch whose every byte is in order.
pub fn whole_batch(body: &Payload) -> Option<Vec<Record>> {
    let (header, metas) = batch::decode_header(body).ok()?;
    let whole = header.bytes() == body.len() as u64 && metas.iter().all(|m| batch::payload_ok(m, body));
    whole.then(|| batch::records(&header, &metas, body))
}
