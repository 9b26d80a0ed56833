//! Keeps the superblock on disk in step with the node: one write at a time, to the two slots by turns, and what may only
//! happen once a write is durable stands here as data (`Then`). Where the newest slot rots, a node starts from the other: so whatever
//! follows only once it is on record follows once both slots hold it, one after the other, that a torn write leaves one whole.

use super::api::*;
use super::gap::GapState;
use super::node::{Node, Purpose};
use super::types::*;
use crate::format::superblock::{self, Superblock};
use std::collections::VecDeque;

/// What waits for a superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// It is progress, which may be made again.
    Nothing,
    /// Nothing waits for it, and it is not to be forgotten.
    Remember,
    /// The term stands: the node is active (L1).
    TermOpened,
    /// The own part of a charter change (C9).
    CharterStands { version: u64 },
    /// The charter of the active is held here.
    ConfirmCharter { peer: NodeId, session: SessionId, version: u64 },
    /// The stores may be written to: what they will hold is on record (R1).
    Apply,
    /// The claimed charter is held here: whoever asked may go on.
    GrantClaim { peer: NodeId, session: SessionId, version: u64 },
    /// The active's lineage is adopted: ready for its records (L1).
    Ready { peer: NodeId, session: SessionId },
    /// The gap is open, and is known to be after a crash (R1).
    GapOpen { peer: NodeId, session: SessionId },
    /// The way back is given up for good (contract 3): the resync may overwrite in place.
    Invalid { peer: NodeId, session: SessionId },
    /// The undo that was put back is not counted on any more: it may be cut off.
    Rewind,
    /// No gap is open any more: its history takes no room.
    FreeHistory,
    /// The image is whole (R3).
    GapClosed { peer: NodeId, session: SessionId, position: Lsn },
}

/// What a slot holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    state: u64,
    /// Address of the ring's tail.
    tail: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Super {
    /// What is on disk, or on its way there.
    content: Superblock,
    /// Of each slot; and which is written next.
    held: [Held; 2],
    slot: usize,
    /// States are counted: the newest that was asked for.
    asked: u64,
    /// What is being written, and its checkpoint.
    writing: Option<(Held, Lsn)>,
    /// A write has failed: what is in its slot is not known, and the other is left alone.
    failed: bool,
    checkpoint: Lsn,
    then: VecDeque<(u64, Then)>,
    /// The log has failed, in this process or before, and no term was opened since (C5).
    log_errors: bool,
}

impl Super {
    /// Both slots hold `content`.
    pub fn new(content: Superblock, slot: u8) -> Super {
        let (checkpoint, log_errors) = (content.checkpoint, content.log_errors);
        Super {
            held: [Held { state: 0, tail: content.tail.address }; 2],
            slot: usize::from(slot),
            asked: 0,
            writing: None,
            failed: false,
            checkpoint,
            then: VecDeque::new(),
            log_errors,
            content,
        }
    }

    fn newest(&self) -> u64 {
        self.held[0].state.max(self.held[1].state)
    }

    /// The newest state that neither slot is without.
    fn in_both(&self) -> u64 {
        self.held[0].state.min(self.held[1].state)
    }

    /// Something is not on disk yet, or not in both slots and to be there: what somebody waits for, and the tail (L5).
    fn is_wanted(&self) -> bool {
        let waits = self.asked > self.newest() || !self.then.is_empty();
        !self.failed && (waits || self.held[0].tail != self.held[1].tail)
    }

    /// The checkpoint of the newest durable superblock (L5).
    pub fn checkpoint(&self) -> Lsn {
        self.checkpoint
    }

    /// What was asked for is on disk.
    pub fn is_settled(&self) -> bool {
        self.writing.is_none() && !self.is_wanted()
    }

    /// Bytes of the history that the newest superblock, on disk or on its way there, counts on.
    pub fn history_said(&self) -> u64 {
        self.content.history_bytes
    }

    /// The superblock that closes a gap is not durable yet.
    pub fn is_closing_gap(&self) -> bool {
        self.then.iter().any(|(_, then)| matches!(then, Then::GapClosed { .. }))
    }

    /// Nothing waits any more: what it would have confirmed is no longer so (L4).
    pub fn log_failed(&mut self) {
        self.log_errors = true;
        self.then.clear();
    }

    /// A term begins with a log that works.
    pub fn clear_log_errors(&mut self) {
        self.log_errors = false;
    }

    /// The checkpoint of another lineage may be lower.
    pub fn lower_checkpoint(&mut self, lsn: Lsn) {
        self.checkpoint = self.checkpoint.min(lsn);
    }
}

impl Node {
    /// Asks for the present state to be made durable; `then` follows it.
    pub(super) fn persist(&mut self, then: Then) {
        self.superblock.asked += 1;
        if then != Then::Nothing {
            self.superblock.then.push_back((self.superblock.asked, then));
        }
    }

    pub(super) fn poll_superblock(&mut self) {
        if self.superblock.writing.is_some() || !self.superblock.is_wanted() {
            return;
        }
        self.snapshot();
        let bytes = match superblock::encode(&self.superblock.content) {
            Ok(bytes) => bytes,
            // The lineage is cut to what fits, names are bounded by the configuration: it cannot grow past its slot.
            Err(error) => unreachable!("{error}"),
        };
        let held = Held { state: self.superblock.asked, tail: self.log.tail().address };
        self.superblock.writing = Some((held, self.store.applied()));
        let offset = superblock::SLOT_OFFSETS[self.superblock.slot];
        self.io(Purpose::Super, Part::Log, IoOp::Write { offset, bufs: vec![bytes], sync: true });
    }

    fn snapshot(&mut self) {
        let tail = self.log.tail();
        let content = &mut self.superblock.content;
        content.sequence += 1;
        content.stream = self.log.stream();
        content.lineage = self.lineage.terms().to_vec();
        content.charter = self.change.as_ref().map_or(&self.charter, |c| &c.charter).clone();
        content.incarnation = self.cfg.incarnation;
        content.boot = self.cfg.boot;
        content.checkpoint = self.store.applied();
        content.applying = self.store.may_hold();
        // L5: a superblock never says that a record is gone which the store does not hold.
        assert!(tail.first <= self.store.applied().next(), "tail {tail:?}, applied {:?}", self.store.applied());
        content.tail = tail;
        content.zero = self.zero;
        content.pledge = self.pledge.clone();
        content.next_salvage = self.next_salvage;
        content.gap = self.gap.as_ref().map(|g| g.state);
        content.history_stream = self.history_stream;
        content.history_bytes = self.gap.as_ref().map_or(0, GapState::durable_bytes);
        let names = self.cfg.peers().map(|n| (n, self.cfg.name(n)));
        content.bitmaps = names.map(|(n, name)| self.bitmaps[n.0 as usize].state(name)).collect();
        content.log_errors = self.superblock.log_errors;
        content.behind = self.log.behind(self.store.applied());
        content.lost = self.lost;
    }

    pub(super) fn superblock_written(&mut self, result: Result<IoData, IoError>) {
        let of = &mut self.superblock;
        // One write is in flight whenever one completes.
        let (held, checkpoint) = of.writing.take().expect("a superblock was being written");
        if let Err(error) = result {
            of.failed = true;
            return self.storage_failed("superblock", error.errno);
        }
        of.held[of.slot] = held;
        of.slot ^= 1;
        // A gap that was closed meanwhile may have led to a lower position of another lineage.
        of.checkpoint = checkpoint.min(self.store.applied());
        self.log.tail_is_durable(of.held[0].tail.min(of.held[1].tail));
        let in_both = of.in_both();
        while let Some((at, _)) = self.superblock.then.front() {
            if *at > in_both {
                break;
            }
            // Just seen.
            let (_, then) = self.superblock.then.pop_front().expect("a waiter");
            self.carry_out(then);
        }
    }

    fn carry_out(&mut self, then: Then) {
        match then {
            Then::Nothing | Then::Remember => {}
            Then::Apply => self.round_is_noted(),
            Then::TermOpened => self.term_opened(),
            Then::CharterStands { version } => self.charter_stands(version),
            Then::ConfirmCharter { peer, session, version } => {
                self.send_in(peer, session, PeerMsg::CharterAck { version });
            }
            Then::GrantClaim { peer, session, version } => {
                self.send_in(peer, session, PeerMsg::ClaimAnswer { version, granted: true });
            }
            Then::Ready { peer, session } => self.lineage_adopted(peer, session),
            Then::GapOpen { peer, session } => self.gap_is_open(peer, session),
            Then::Rewind => self.rewind(),
            Then::FreeHistory => self.free_history(),
            Then::Invalid { peer, session } => self.is_invalid(peer, session),
            Then::GapClosed { peer, session, position } => self.gap_is_closed(peer, session, position),
        }
    }
}
