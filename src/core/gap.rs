//! An open gap: the store is between two positions, and the history leads back to the first (R1).

use super::api::*;
use super::bitmap::Chain;
use super::dirty::DirtySet;
use super::node::{Node, Purpose};
use super::notice::Notice;
use super::overlay::Overlay;
use super::store::piece_op;
use super::superblock::Then;
use super::types::*;
use super::view::zero_record;
use crate::buf::Payload;
use crate::format::BLOCK;
use crate::format::batch::{self, TermRef};

const NO_TERM: TermRef = TermRef { number: 0, id: TermId(0) };

/// In a history: a range that is to be fetched. Undo is data or a discard.
const CHANGED: Kind = Kind::Zeroes;

/// What stands between this store and a valid image.
#[derive(Clone, Debug)]
pub struct GapState {
    /// Where the undo leads back to; none where there is no way back.
    pub rollback: Option<Lsn>,
    /// `changed` holds what this side changed after this record.
    pub since: Lsn,
    /// Blocks whose content at that position is in the history: the first undo wins.
    pub saved: DirtySet,
    /// What this side had changed since the fork: to be fetched whatever the source changed (R4). Noted in the history too,
    /// since the log that told it is gone.
    pub changed: DirtySet,
    pub chain: Chain,
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
}

impl GapState {
    pub fn new(rollback: Option<Lsn>, since: Lsn, sizes: &[u64], stream: u128) -> GapState {
        GapState {
            rollback,
            since,
            saved: DirtySet::new(sizes),
            changed: DirtySet::new(sizes),
            chain: Chain::start(stream),
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

    /// What makes the list of own changes durable: offset in the history, and bytes.
    pub fn note_changed(&mut self, extents: &[Extent]) -> (u64, Vec<Payload>) {
        let offset = self.chain.address;
        extents.iter().for_each(|e| self.changed.add(*e));
        let mut notes: Vec<Record> = extents.iter().map(|e| Record { kind: CHANGED, ..zero_record(*e) }).collect();
        let bufs = self.chain.append(self.stream, NO_TERM, &mut notes);
        (offset, bufs)
    }

    /// Takes in an entry of the history that recovery found.
    pub fn recovered(&mut self, kind: Kind, extent: Extent) {
        if kind == CHANGED { self.changed.add(extent) } else { self.saved.add(extent) }
    }

    /// What makes the old contents of some ranges durable: offset in the history, and bytes.
    pub fn save(&mut self, mut old: Vec<Record>) -> (u64, Vec<Payload>) {
        let offset = self.chain.address;
        let extent = |r: &Record| Extent { volume: r.volume, offset: r.offset, length: r.length };
        let extents: Vec<Extent> = old.iter().map(extent).collect();
        extents.iter().for_each(|e| self.saved.add(*e));
        self.pending = Some((self.chain, extents));
        let bufs = self.chain.append(self.stream, NO_TERM, &mut old);
        (offset, bufs)
    }
}

impl Node {
    pub(super) fn volume_sizes(&self) -> Vec<u64> {
        self.cfg.volumes.iter().map(|v| v.size).collect()
    }

    /// Begins to put the undo back; a promotion waits for it.
    pub(super) fn start_rollback(&mut self) {
        if self.rollback.is_none() {
            self.rollback = Some(Rollback { address: 0, writing: 0, flushing: 0 });
            self.step_rollback();
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
        records.iter().filter(|r| r.kind != CHANGED).for_each(|r| undo.insert(r));
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
        self.rollback = None;
        let to = self.gap.take().and_then(|g| g.rollback).unwrap_or(Lsn(0));
        self.notice(Notice::RolledBack { to: to.0 });
        self.history_stream = self.draw_id();
        self.persist(Then::Nothing);
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
