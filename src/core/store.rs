//! Applying: committed records reach the store in rounds; each round is a checkpoint (S1, S3, L4).

use super::api::*;
use super::node::{Node, Purpose};
use super::overlay::{Content, Piece};
use super::superblock::Then;
use super::trouble::RETRY_MS;
use super::types::*;
use std::collections::{BTreeSet, VecDeque};

/// Store writes in flight at once: the most, where room is short or somebody waits for a round's end.
const PARALLEL: u64 = 32;
/// The fewest: applying then takes little of the disk from the log, for which clients wait.
const PARALLEL_AT_EASE: u64 = 2;
/// What each of them stands for in bytes. Long ones fill the disk's queue, and the log's next write waits behind all that is in it.
const PARALLEL_BYTES: u64 = 128 << 10;

/// How far the store is.
#[derive(Debug)]
pub struct Store {
    applied: Lsn,
    /// The newest record of which the stores may hold a part: the end of the round under way, or of one that a crash
    /// interrupted.
    may_hold: Lsn,
    round: Option<Round>,
    /// When the newest round ended, or failed.
    rested: Time,
    /// Since when something could be applied.
    waits_since: Option<Time>,
    failed: bool,
}

/// Writes everything committed since the round before, each block once.
#[derive(Debug)]
struct Round {
    to: Lsn,
    /// The superblock says that this round is under way.
    noted: bool,
    pieces: VecDeque<Piece>,
    writing: u64,
    writing_bytes: u64,
    touched: BTreeSet<VolumeId>,
    flushing: usize,
    error: Option<i32>,
}

impl Store {
    /// `applied` is checkpointed; a round up to `may_hold` may have been interrupted.
    pub fn new(applied: Lsn, may_hold: Lsn, now: Time) -> Store {
        Store { applied, may_hold: may_hold.max(applied), round: None, rested: now, waits_since: None, failed: false }
    }

    /// Everything up to here is in the store and stable there.
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    pub fn may_hold(&self) -> Lsn {
        self.may_hold
    }

    pub fn is_resting(&self) -> bool {
        self.round.is_none()
    }

    /// The store holds the image of this position by other means (the end of a resync).
    pub fn set_applied(&mut self, lsn: Lsn) {
        assert!(self.round.is_none());
        self.applied = lsn;
        self.may_hold = lsn;
    }
}

impl Node {
    /// What may be applied: committed, and durable here (S1).
    fn applicable(&self) -> Lsn {
        self.committed.min(self.log.durable())
    }

    pub(super) fn poll_store(&mut self) {
        let waits = self.store.round.is_none() && self.applicable() > self.store.applied;
        self.store.waits_since = waits.then(|| self.store.waits_since.unwrap_or(self.now));
        if self.store.round.is_none() && self.round_is_due() {
            let to = self.applicable();
            let pieces: VecDeque<Piece> = self.overlay.plan(to).into();
            let touched = pieces.iter().map(|p| p.volume).collect();
            let (noted, error) = (false, None);
            self.store.round =
                Some(Round { to, noted, pieces, writing: 0, writing_bytes: 0, touched, flushing: 0, error });
            // A restarted node must know that its stores are ahead of the checkpoint, and how far.
            self.store.may_hold = self.store.may_hold.max(to);
            self.persist(Then::Apply);
        }
    }

    pub(super) fn round_is_noted(&mut self) {
        if let Some(round) = &mut self.store.round {
            round.noted = true;
        }
        self.step_round();
    }

    fn round_is_due(&self) -> bool {
        // In an open gap the store is not this node's log, applied.
        if self.applicable() <= self.store.applied || self.fault.is_some() || self.gap.is_some() || self.is_turning() {
            return false;
        }
        if self.store.failed {
            return self.now >= self.store.rested.plus_ms(RETRY_MS);
        }
        let waited = self.store.waits_since.is_some_and(|since| self.now >= since.plus_ms(self.cfg.apply_ms));
        waited || self.store.may_hold > self.store.applied || self.apply_parallel() > PARALLEL_AT_EASE
    }

    /// What is accepted and not applied yet, and how much of it there may be: as memory, and as what it can take of this ring. A ring must
    /// be able to hold all that is not committed (S1), with its headers, padding, and what is left free at the end of a lap.
    fn held(&self) -> [(u64, u64); 2] {
        let ring = self.log.size();
        [(self.overlay.memory(), self.cfg.memory.min(ring / 4)), (self.overlay.ring_bytes(), ring / 2)]
    }

    /// Whether another record may be accepted.
    pub(super) fn has_room(&self) -> bool {
        self.held().iter().all(|(used, of)| used < of)
    }

    /// How many store writes may be in flight: the more, the fuller memory and ring are past their half. A burst that is shorter has the disk
    /// for itself.
    fn apply_parallel(&self) -> u64 {
        if self.clients.waiting_for_room() > 0 || self.has_deferred() || self.settling() {
            return PARALLEL;
        }
        let share = |used: u64, of: u64| used.saturating_sub(of / 2).saturating_mul(2 * PARALLEL) / of.max(1);
        let unapplied = self.held().map(|(used, of)| share(used, of)).into_iter().max();
        share(self.log.used(), self.log.size()).max(unapplied.unwrap_or(0)).clamp(PARALLEL_AT_EASE, PARALLEL)
    }

    pub(super) fn store_deadline(&self) -> Option<Time> {
        if self.fault.is_some() || self.gap.is_some() {
            return None;
        }
        let since = self.store.waits_since?;
        Some(if self.store.failed { self.store.rested.plus_ms(RETRY_MS) } else { since.plus_ms(self.cfg.apply_ms) })
    }

    fn step_round(&mut self) {
        let mut ios = Vec::new();
        let parallel = self.apply_parallel();
        let bytes = parallel * PARALLEL_BYTES;
        if let Some(round) = self.store.round.as_mut().filter(|r| r.noted) {
            // Many at once, rather than one for each that completes: they then share one submission to the disk.
            let refill = round.writing <= parallel / 2 && round.writing_bytes <= bytes / 2;
            while refill && round.writing < parallel && round.writing_bytes < bytes && round.error.is_none() {
                let Some(piece) = round.pieces.pop_front() else { break };
                let purpose = Purpose::ApplyWrite { bytes: piece.length() };
                round.writing += 1;
                round.writing_bytes += piece.length();
                ios.push((purpose, Part::Store(piece.volume), piece_op(piece)));
            }
            if round.pieces.is_empty() && round.writing == 0 && round.flushing == 0 {
                for volume in std::mem::take(&mut round.touched) {
                    round.flushing += 1;
                    ios.push((Purpose::ApplyFlush, Part::Store(volume), IoOp::Flush));
                }
            }
        }
        for (purpose, part, op) in ios {
            self.io(purpose, part, op);
        }
        self.finish_round();
    }

    pub(super) fn apply_written(&mut self, bytes: u64, result: Result<IoData, IoError>) {
        if let Some(round) = &mut self.store.round {
            round.writing -= 1;
            round.writing_bytes -= bytes;
            if let Err(error) = result {
                round.error.get_or_insert(error.errno);
            }
        }
        self.step_round();
    }

    pub(super) fn apply_flushed(&mut self, result: Result<IoData, IoError>) {
        if let Some(round) = &mut self.store.round {
            round.flushing -= 1;
            if let Err(error) = result {
                round.error.get_or_insert(error.errno);
            }
        }
        self.step_round();
    }

    fn finish_round(&mut self) {
        let Some(round) = &self.store.round else { return };
        if round.writing > 0 || round.flushing > 0 || !round.noted {
            return;
        }
        if let Some(errno) = round.error {
            // Never a checkpoint: the records stay, and the whole round is written again (L4).
            self.store.round = None;
            self.store.rested = self.now;
            self.store.failed = true;
            return self.part_failed("store", errno);
        }
        if !round.pieces.is_empty() || !round.touched.is_empty() {
            return;
        }
        let to = round.to;
        self.store.round = None;
        self.store.rested = self.now;
        self.store.failed = false;
        self.store.applied = to;
        self.part_works("store");
        self.overlay.retire(to);
        self.persist(Then::Nothing);
    }
}

/// The I/O that puts a piece into the store.
pub(super) fn piece_op(piece: Piece) -> IoOp {
    match piece.content {
        Content::Data(bufs) => IoOp::Write { offset: piece.offset, bufs, sync: false },
        Content::Zero { length, discard } => IoOp::Zero { offset: piece.offset, length, discard },
    }
}
