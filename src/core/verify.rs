//! Comparing with the passives under writes, each chunk at one log position (contract 5): no false alarms.
//!
//! The active reads a chunk; if nothing that touches it was accepted meanwhile, the checksums hold at the present end of
//! the log, and go into the peer's stream right after that record. The passive reads its own copy when the stream is
//! there, and answers "again" if a later record touched the chunk before the read was over. A repair is the active's
//! content written once more, as an ordinary record (R2).

use super::api::*;
use super::node::{Node, Purpose, Stage};
use super::notice::{Notice, Refusal};
use super::peer::TargetStage;
use super::types::*;
use super::view::ViewRead;
use serde::Serialize;
use std::collections::BTreeMap;

/// Bytes compared at once.
const CHUNK: u64 = 256 << 10;
/// Bytes of one checksum.
const GRAIN: u32 = 4096;
/// Chunks under way for one peer.
const PARALLEL: usize = 4;
/// A chunk that is written to all the time is left out after so many attempts, and said to be.
const MAX_TRIES: u32 = 200;
/// Ranges named in an answer for one peer; the events name all.
const MAX_RANGES: usize = 10_000;
/// Ranges in the events, for each peer.
const MAX_SAID: u64 = 100;

/// What a comparison came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct VerifyReport {
    /// Everything that was to be compared was, and is the same now.
    pub equal: bool,
    pub peers: Vec<Compared>,
    pub not_compared: Vec<NotCompared>,
}

/// One peer, compared.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Compared {
    pub peer: String,
    /// Bytes of which both sides' checksums were compared.
    pub compared_bytes: u64,
    pub differing_bytes: u64,
    /// What differed was written anew from the active's content.
    pub repaired: bool,
    /// What differed, in the order in which it was found.
    pub ranges: Vec<Range>,
    /// Ranges that are not listed, since there are too many.
    pub more_ranges: u64,
    /// Bytes that were written to all the time, and so left out.
    pub busy_bytes: u64,
    /// Why the comparison ended before its end.
    pub unfinished: Option<String>,
}

impl Compared {
    /// All of it was compared, and is the same now.
    fn is_equal(&self) -> bool {
        self.unfinished.is_none() && self.busy_bytes == 0 && (self.differing_bytes == 0 || self.repaired)
    }
}

/// Bytes that differed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    pub volume: String,
    pub offset: u64,
    pub length: u64,
}

/// A peer that there was nothing to compare with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotCompared {
    pub peer: String,
    pub why: String,
}

/// A verification that an operator asked for.
#[derive(Debug)]
pub struct Verify {
    command: CommandId,
    repair: bool,
    peers: BTreeMap<NodeId, PeerRun>,
    jobs: BTreeMap<u64, Job>,
    report: VerifyReport,
}

#[derive(Debug)]
struct PeerRun {
    session: SessionId,
    /// The next chunk; none when all have been begun.
    cursor: Option<(VolumeId, u64)>,
    found: Compared,
    /// A repair could not be made: its block was written to all the time.
    not_mended: bool,
    /// Ranges that differ, in the events or not.
    said: u64,
}

#[derive(Debug)]
struct Job {
    peer: NodeId,
    extent: Extent,
    tries: u32,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// Reading here; the end of the log when it began.
    Read(ViewRead, Lsn),
    Asked,
    Repair(ViewRead, Lsn),
}

/// A question that a passive works on.
#[derive(Debug)]
pub struct Question {
    pub id: u64,
    crcs: Vec<u32>,
    read: ViewRead,
    began: Lsn,
}

impl Node {
    pub(super) fn begin_verify(&mut self, command: CommandId, repair: bool) -> Result<(), Refusal> {
        self.check_active()?;
        if self.verify.is_some() {
            return Err(Refusal::Busy { what: "verify" });
        }
        let mut peers = BTreeMap::new();
        let mut report = VerifyReport::default();
        for node in self.cfg.peers() {
            let peer = &self.peers[node.0 as usize];
            let name = self.cfg.name(node).to_string();
            let Some(session) = peer.session().filter(|_| peer.is_streamed()) else {
                let state = self.peer_state(node, peer).replace('_', " ");
                let why = peer.why.as_ref().map_or(format!("it is {state}"), |why| format!("it is {state}: {why}"));
                report.not_compared.push(NotCompared { peer: name, why });
                continue;
            };
            self.notice(Notice::VerifyStarted { peer: name.clone() });
            let found = Compared { peer: name, ..Compared::default() };
            peers.insert(node, PeerRun { session, cursor: Some((VolumeId(0), 0)), found, not_mended: false, said: 0 });
        }
        if peers.is_empty() {
            let peers = report.not_compared.into_iter().map(|n| (n.peer, n.why)).collect();
            return Err(Refusal::NobodyToCompare { peers });
        }
        self.verify = Some(Verify { command, repair, peers, jobs: BTreeMap::new(), report });
        Ok(())
    }

    pub(super) fn poll_verify(&mut self) {
        let Some(verify) = &self.verify else { return };
        if self.stage != Stage::Active {
            let command = verify.command;
            self.verify = None;
            let what = "this node stopped serving while it was verifying".to_string();
            return self.act(Action::CommandDone { id: command, result: Err(Refusal::TimedOut { what }) });
        }
        let nodes: Vec<NodeId> = verify.peers.keys().copied().collect();
        for node in nodes {
            self.step_verify(node);
        }
        if self.verify.as_ref().is_some_and(|v| v.peers.is_empty())
            && let Some(Verify { command, mut report, .. }) = self.verify.take()
        {
            report.equal = report.peers.iter().all(Compared::is_equal);
            self.act(Action::CommandDone { id: command, result: Ok(Answer::Verified(Box::new(report))) });
        }
    }

    fn step_verify(&mut self, node: NodeId) {
        loop {
            let lost = {
                let Some(run) = self.verify.as_ref().and_then(|v| v.peers.get(&node)) else { return };
                self.peers[node.0 as usize].session() != Some(run.session)
            };
            if lost {
                return self.end_verify(node, Some("the connection was lost before the end"));
            }
            let Some(verify) = &mut self.verify else { return };
            let under_way = verify.jobs.values().filter(|j| j.peer == node).count();
            let Some(run) = verify.peers.get_mut(&node) else { return };
            let Some((volume, offset)) = run.cursor else {
                if under_way == 0 {
                    self.end_verify(node, None);
                }
                return;
            };
            if under_way >= PARALLEL {
                return;
            }
            let size = self.cfg.volumes[volume.0 as usize].size;
            let length = CHUNK.min(size - offset);
            let next = offset + length;
            run.cursor = match next < size {
                true => Some((volume, next)),
                false if usize::from(volume.0) + 1 < self.cfg.volumes.len() => Some((VolumeId(volume.0 + 1), 0)),
                false => None,
            };
            self.verify_jobs += 1;
            let id = self.verify_jobs;
            self.read_chunk(id, node, Extent { volume, offset, length }, 0, false);
        }
    }

    fn read_chunk(&mut self, id: u64, peer: NodeId, extent: Extent, tries: u32, repair: bool) {
        let (read, parts) = ViewRead::start(&self.overlay, extent);
        let end = self.log.end();
        let done = read.is_done();
        let step = if repair { Step::Repair(read, end) } else { Step::Read(read, end) };
        if let Some(verify) = &mut self.verify {
            verify.jobs.insert(id, Job { peer, extent, tries, step });
        }
        for (part, offset, length) in parts {
            self.io(Purpose::Verify { job: id, part }, Part::Store(extent.volume), IoOp::Read { offset, length });
        }
        if done {
            self.chunk_is_read(id);
        }
    }

    pub(super) fn verify_read(&mut self, job: u64, part: usize, result: Result<IoData, IoError>) {
        let Some(found) = self.verify.as_mut().and_then(|v| v.jobs.get_mut(&job)) else { return };
        let peer = found.peer;
        match (result, &mut found.step) {
            (Ok(IoData::Bytes(payload)), Step::Read(read, _) | Step::Repair(read, _)) => {
                read.fill(part, payload);
                if read.is_done() {
                    self.chunk_is_read(job);
                }
            }
            _ => self.end_verify(peer, Some("a block could not be read here")),
        }
    }

    /// Whether a record after `since` touches the range, or might.
    pub(super) fn touched_since(&self, since: Lsn, extent: Extent) -> bool {
        self.log.touched_since(since, extent)
    }

    fn chunk_is_read(&mut self, id: u64) {
        let Some(verify) = &mut self.verify else { return };
        let Some(job) = verify.jobs.remove(&id) else { return };
        let (read, began, repair) = match job.step {
            Step::Read(read, began) => (read, began, false),
            Step::Repair(read, began) => (read, began, true),
            Step::Asked => return,
        };
        if self.touched_since(began, job.extent) {
            return self.try_again(id, job.peer, job.extent, job.tries, repair);
        }
        if repair {
            for record in read.into_records() {
                self.take_record(Record { lsn: self.log.end().next(), ..record });
            }
            return;
        }
        let crcs = checksums(read);
        let end = self.log.end();
        let message = PeerMsg::VerifyAsk { id, extent: job.extent, crcs, chunk: GRAIN };
        if let Some(verify) = &mut self.verify {
            verify.jobs.insert(id, Job { peer: job.peer, extent: job.extent, tries: job.tries, step: Step::Asked });
        }
        if let Some(source) = self.peers[job.peer.0 as usize].source_mut() {
            source.marks.push_back((end, message));
        }
    }

    fn try_again(&mut self, id: u64, peer: NodeId, extent: Extent, tries: u32, repair: bool) {
        if tries < MAX_TRIES {
            return self.read_chunk(id, peer, extent, tries + 1, repair);
        }
        if let Some(run) = self.verify.as_mut().and_then(|v| v.peers.get_mut(&peer)) {
            match repair {
                true => run.not_mended = true,
                false => run.found.busy_bytes += extent.length,
            }
        }
    }

    pub(super) fn verify_answered(&mut self, node: NodeId, id: u64, differing: Vec<Extent>, retry: bool) {
        let Some(verify) = &mut self.verify else { return };
        let Some(job) = verify.jobs.remove(&id).filter(|j| j.peer == node && matches!(j.step, Step::Asked)) else {
            return;
        };
        if retry {
            return self.try_again(id, node, job.extent, job.tries, false);
        }
        let repair = verify.repair;
        // The peer's word, but only within what was asked.
        let inside = |e: &Extent| {
            e.volume == job.extent.volume
                && e.offset >= job.extent.offset
                && e.length > 0
                && e.offset.checked_add(e.length).is_some_and(|end| end <= job.extent.offset + job.extent.length)
        };
        let peer = self.cfg.name(node).to_string();
        if let Some(run) = verify.peers.get_mut(&node) {
            run.found.compared_bytes += job.extent.length;
        }
        for extent in differing.into_iter().filter(inside) {
            let Extent { volume, offset, length } = extent;
            if let Some(run) = self.verify.as_mut().and_then(|v| v.peers.get_mut(&node)) {
                run.found.differing_bytes += length;
                if run.found.ranges.len() < MAX_RANGES {
                    let volume = self.cfg.volumes[volume.0 as usize].name.clone();
                    run.found.ranges.push(Range { volume, offset, length });
                } else {
                    run.found.more_ranges += 1;
                }
                run.said += 1;
                if run.said <= MAX_SAID {
                    self.notice(Notice::VerifyDiffers { peer: peer.clone(), volume: volume.0, offset, length });
                }
            }
            if repair {
                self.verify_jobs += 1;
                self.read_chunk(self.verify_jobs, node, extent, 0, true);
            }
        }
    }

    fn end_verify(&mut self, node: NodeId, why: Option<&str>) {
        let Some(verify) = &mut self.verify else { return };
        verify.jobs.retain(|_, j| j.peer != node);
        let Some(run) = verify.peers.remove(&node) else { return };
        let peer = self.cfg.name(node).to_string();
        let mut found = run.found;
        found.repaired = verify.repair && found.differing_bytes > 0 && why.is_none() && !run.not_mended;
        found.unfinished = why.map(str::to_string);
        let (differing_bytes, repaired) = (found.differing_bytes, found.repaired);
        verify.report.peers.push(found);
        if run.said > MAX_SAID {
            self.notice(Notice::VerifyMoreDiffer { peer: peer.clone(), ranges: run.said - MAX_SAID });
        }
        self.notice(Notice::VerifyFinished { peer, differing_bytes, repaired });
    }

    /// A question of the active, at its place in the stream.
    pub(super) fn question_came(&mut self, node: NodeId, id: u64, extent: Extent, crcs: Vec<u32>) {
        let probe = Record {
            lsn: Lsn(0),
            volume: extent.volume,
            kind: Kind::Discard,
            offset: extent.offset,
            length: extent.length,
            crc: 0,
            payload: crate::buf::Payload::empty(),
        };
        let counted = extent.length <= CHUNK && extent.length.div_ceil(u64::from(GRAIN)) == crcs.len() as u64;
        if self.check_records(&[probe]).is_err() || !counted {
            return self.close_link(node, "a question about a range that does not exist", true);
        }
        let (read, parts) = ViewRead::start(&self.overlay, extent);
        let done = read.is_done();
        let began = self.log.end();
        let Some(session) = self.peers[node.0 as usize].session() else { return };
        if let Some(target) = self.peers[node.0 as usize].target_mut() {
            if target.questions.len() >= PARALLEL {
                return self.close_link(node, "more questions at a time than are ever asked", true);
            }
            target.questions.push(Question { id, crcs, read, began });
        }
        for (part, offset, length) in parts {
            let purpose = Purpose::Question { peer: node, session, id, part };
            self.io(purpose, Part::Store(extent.volume), IoOp::Read { offset, length });
        }
        if done {
            self.answer_question(node, session, id);
        }
    }

    pub(super) fn question_read(
        &mut self,
        node: NodeId,
        session: SessionId,
        id: u64,
        part: usize,
        result: Result<IoData, IoError>,
    ) {
        if self.peers[node.0 as usize].session() != Some(session) {
            return;
        }
        let Ok(IoData::Bytes(payload)) = result else {
            return self.close_link(node, "a block could not be read for verify", true);
        };
        let Some(target) = self.peers[node.0 as usize].target_mut() else { return };
        let Some(question) = target.questions.iter_mut().find(|q| q.id == id) else { return };
        question.read.fill(part, payload);
        if question.read.is_done() {
            self.answer_question(node, session, id);
        }
    }

    fn answer_question(&mut self, node: NodeId, session: SessionId, id: u64) {
        let Some(target) = self.peers[node.0 as usize].target_mut() else { return };
        let Some(at) = target.questions.iter().position(|q| q.id == id) else { return };
        let in_stream = matches!(target.stage, TargetStage::Stream);
        let question = target.questions.swap_remove(at);
        let extent = question.read.extent;
        let retry = !in_stream || self.touched_since(question.began, extent);
        let mut differing: Vec<Extent> = Vec::new();
        if !retry {
            for (index, (mine, theirs)) in checksums(question.read).iter().zip(&question.crcs).enumerate() {
                if mine == theirs {
                    continue;
                }
                let offset = extent.offset + index as u64 * u64::from(GRAIN);
                let length = u64::from(GRAIN).min(extent.offset + extent.length - offset);
                match differing.last_mut() {
                    Some(last) if last.offset + last.length == offset => last.length += length,
                    _ => differing.push(Extent { volume: extent.volume, offset, length }),
                }
            }
        }
        self.send(node, session, PeerMsg::VerifyAnswer { id, differing, retry });
    }
}

/// A checksum for each grain.
fn checksums(read: ViewRead) -> Vec<u32> {
    let mut bytes = Vec::with_capacity(read.extent.length as usize);
    for record in read.into_records() {
        match record.kind {
            Kind::Write => bytes.extend_from_slice(&record.payload),
            Kind::Zeroes | Kind::Discard => bytes.resize(bytes.len() + record.length as usize, 0),
        }
    }
    bytes.chunks(GRAIN as usize).map(crc32fast::hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_not_called_equal() {
        let found = Compared { compared_bytes: 1 << 20, ..Compared::default() };
        assert!(found.is_equal());
        assert!(!Compared { busy_bytes: 4096, ..found.clone() }.is_equal());
        assert!(!Compared { unfinished: Some("the connection was lost".into()), ..found.clone() }.is_equal());
        assert!(!Compared { differing_bytes: 4096, ..found.clone() }.is_equal());
        assert!(Compared { differing_bytes: 4096, repaired: true, ..found }.is_equal());
    }
}
