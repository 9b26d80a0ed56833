//! Room for the undo of a resync (R1): how much it may take is known, and reserved, before anything is overwritten. Where there is no
//! room the resync is refused in words, or, where the file allows it, done without a way back (contract 3).

use super::api::*;
use super::node::{Node, Purpose};
use super::notice::Notice;
use super::resync_source::data_run;
use super::resync_target::Step;
use super::superblock::Then;
use super::types::*;
use crate::format::BLOCK;

/// Contents that come in one message: each may begin a batch of undo, with a header of its own.
const MESSAGE_BYTES: u64 = 256 << 10;

impl Node {
    /// So much will come.
    pub(super) fn contents_announced(&mut self, node: NodeId, bytes: u64, runs: u64, whole: bool) {
        let peer = self.cfg.name(node).to_string();
        let has_way_back = self.gap.as_ref().is_some_and(|g| g.state.rollback.is_some());
        if self.resync_mut(node).filter(|r| matches!(r.step, Step::Idle)).is_none() {
            return self.close_link(node, "contents announced outside a resync", true);
        }
        self.notice(Notice::ResyncStarted { peer, bytes });
        match whole {
            _ if !has_way_back => {}
            true => self.take_census(node, (VolumeId(0), 0), 0, 0),
            false => self.reserve(node, bytes, runs, false),
        }
    }

    /// Counts this side's data: no more than that can be overwritten, whatever comes.
    fn take_census(&mut self, node: NodeId, at: (VolumeId, u64), bytes: u64, runs: u64) {
        if let Some(resync) = self.resync_mut(node) {
            resync.step = Step::Census { at, bytes, runs };
        }
        self.resync_io(node, Part::Store(at.0), IoOp::NextData { offset: at.1 }, 0);
    }

    /// A run of this side's data.
    pub(super) fn counted(&mut self, node: NodeId, at: (VolumeId, u64), bytes: u64, runs: u64, found: &IoData) {
        let volumes = &self.cfg.volumes;
        let size = volumes[at.0.0 as usize].size;
        let run = data_run(at.0, at.1, size, found);
        let (bytes, runs) = run.map_or((bytes, runs), |r| (bytes + r.length, runs + 1));
        let next = run.map_or(size, |r| r.offset + r.length);
        let at = match next < size {
            true => (at.0, next),
            false if usize::from(at.0.0) + 1 < volumes.len() => (VolumeId(at.0.0 + 1), 0),
            false => return self.reserve(node, bytes, runs, true),
        };
        self.take_census(node, at, bytes, runs);
    }

    /// Asks for room for the undo of so many bytes in so many runs, less what is there already.
    fn reserve(&mut self, node: NodeId, bytes: u64, runs: u64, counted: bool) {
        let all: u64 = self.cfg.volumes.iter().map(|v| v.size).sum();
        let limit = self.cfg.history_size;
        let Some(gap) = &self.gap else { return };
        let (grain, block) = (gap.state.grain, BLOCK as u64);
        // Undo is saved by whole grains: a block touches one, a run two more than it fills.
        let ends = runs.saturating_mul(2 * (grain - block));
        let grains =
            bytes.saturating_add(ends).min((bytes / block).saturating_add(runs).saturating_mul(grain)).min(all);
        // This side's own data has been overwritten in part, where there is undo: only announced contents count it again.
        let unsaved = if counted { grains } else { grains.saturating_sub(gap.saved.bytes()) };
        let headers = runs.saturating_add(unsaved / MESSAGE_BYTES + 1).min(unsaved / block + 1) * block;
        let needed = (gap.chain.address + unsaved + headers).max(self.history_floor);
        if needed > limit {
            return self.no_room(node, needed, limit, counted);
        }
        let Some(session) = self.peers[node.0 as usize].session() else { return };
        if let Some(resync) = self.resync_mut(node) {
            resync.step = Step::Reserve { needed, counted };
        }
        self.resync_ios += 1;
        self.io(Purpose::Reserve { peer: node, session }, Part::History, IoOp::Reserve { length: needed });
    }

    pub(super) fn room_found(&mut self, node: NodeId, session: SessionId, result: Result<IoData, IoError>) {
        self.resync_ios -= 1;
        if self.peers[node.0 as usize].session() != Some(session) {
            return;
        }
        let Some(resync) = self.resync_mut(node) else { return };
        let Step::Reserve { needed, counted } = resync.step else { return };
        match result {
            Ok(IoData::Room(room)) if room < needed => self.no_room(node, needed, room, counted),
            Ok(_) => {
                resync.step = Step::Idle;
                self.poll_resync_target(node);
            }
            Err(error) => {
                self.notice(Notice::StorageFailed { part: "history".into(), errno: error.errno });
                let why = format!("room for the history of a resync could not be found (errno {})", error.errno);
                self.refuse(node, why);
            }
        }
    }

    fn no_room(&mut self, node: NodeId, needed: u64, room: u64, counted: bool) {
        if !counted {
            // What was announced may be more than there is here to overwrite.
            return self.take_census(node, (VolumeId(0), 0), 0, 0);
        }
        let peer = self.cfg.name(node).to_string();
        if !self.cfg.allow_invalid {
            let limited = self.cfg.history_size < needed;
            let remedy = if limited { "raise history_size" } else { "make room in the node's dir" };
            let why = format!(
                "a resync from {peer} may need {needed} bytes of history here, to be able to go back, and there is room for {room}: {remedy}, \
                 or set allow_invalid = true and do without a valid image while it lasts"
            );
            if self.peers[node.0 as usize].why.as_deref() != Some(why.as_str()) {
                self.notice(Notice::HistoryTooSmall { peer, needed, room });
            }
            return self.refuse(node, why);
        }
        // Only without room for a history, and only where the file says so (contract 3).
        let Some(session) = self.peers[node.0 as usize].session() else { return };
        let Some(resync) = self.resync_mut(node) else { return };
        resync.step = Step::GiveUp;
        resync.rollback = Lsn(0);
        let term = resync.lineage.last().map(|t| t.id);
        if let Some(gap) = &mut self.gap {
            gap.state.rollback = None;
            gap.state.overwritten_in = term;
        }
        self.persist(Then::Invalid { peer: node, session });
    }

    /// It is durably known that there is no way back: the resync may write.
    pub(super) fn is_invalid(&mut self, node: NodeId, session: SessionId) {
        let peer = self.cfg.name(node).to_string();
        self.notice(Notice::ImageGivenUp { peer });
        if self.peers[node.0 as usize].session() != Some(session) {
            return;
        }
        if let Some(resync) = self.resync_mut(node).filter(|r| matches!(r.step, Step::GiveUp)) {
            resync.step = Step::Idle;
            self.poll_resync_target(node);
        }
    }

    /// In the middle of a resync: records have changed more than was announced, or the room that was there is gone. The undo is put
    /// back; the next session announces what this one has learnt.
    pub(super) fn history_ran_out(&mut self, node: NodeId, needed: u64, room: u64) {
        let peer = self.cfg.name(node).to_string();
        self.notice(Notice::HistoryTooSmall { peer: peer.clone(), needed, room });
        self.unwind = true;
        self.history_floor = self.history_floor.max(needed);
        let why = format!(
            "the history of the resync from {peer} has run out: it needs more than {needed} bytes and has room for {room}. The replica goes back \
             to where it was, and tries again when there is room"
        );
        self.refuse(node, why);
    }
}
