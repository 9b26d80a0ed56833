//! The sending side of a resync: contents of what the peer lacks, then the records since the pass began (R2).

use super::api::*;
use super::dirty::DirtySet;
use super::node::{Node, Purpose};
use super::notice::Notice;
use super::peer::{Feed, Link};
use super::types::*;
use super::view::{ViewRead, zero_record};
use std::collections::BTreeMap;

/// Contents read for one message.
const JOB_BYTES: u64 = 256 << 10;
/// Reads under way at once.
const JOBS: usize = 8;

/// A pass over what the peer lacks.
#[derive(Debug)]
pub struct ResyncSource {
    /// What is still to be read.
    left: DirtySet,
    cursor: (VolumeId, u64),
    /// All records after this one are streamed once the contents are sent.
    base: Lsn,
    jobs: BTreeMap<u64, ViewRead>,
    next_job: u64,
    reading_bytes: u64,
    pub sent: u64,
    pub acked: u64,
    pub total: u64,
    /// Where the search for data goes on, if everything is compared.
    search: Option<(VolumeId, u64)>,
    searching: bool,
    /// The peer's stores are zero wherever nothing was sent.
    peer_is_zero: bool,
}

impl ResyncSource {
    /// Contents that the peer has not confirmed.
    pub fn left_bytes(&self) -> u64 {
        self.left.bytes() + self.reading_bytes + self.sent.saturating_sub(self.acked)
    }

    pub fn base(&self) -> Lsn {
        self.base
    }

    /// What there is to send is still being looked for.
    pub fn is_searching(&self) -> bool {
        self.search.is_some()
    }

    fn is_reading(&self, extent: Extent) -> bool {
        let overlaps = |e: &Extent| {
            e.volume == extent.volume && e.offset < extent.offset + extent.length && extent.offset < e.offset + e.length
        };
        self.jobs.values().any(|job| overlaps(&job.extent))
    }
}

impl Node {
    /// The passive names a part of what it will ask for.
    pub(super) fn peer_changed(&mut self, node: NodeId, extents: &[Extent]) {
        let sizes = self.volume_sizes();
        match self.peers[node.0 as usize].source_mut().filter(|s| matches!(s.feed, Feed::Preparing)) {
            Some(source) => {
                let changed = source.changed.get_or_insert_with(|| Box::new(DirtySet::new(&sizes)));
                extents.iter().for_each(|e| changed.add(*e));
            }
            None => self.close_link(node, "Changed without an active", true),
        }
    }

    /// The passive asks for contents: what changed after `since`, and `extents`.
    pub(super) fn peer_ready_for_resync(&mut self, node: NodeId, since: Lsn, extents: Vec<Extent>) {
        let at = node.0 as usize;
        if since > self.log.end() {
            return self.close_link(node, "ReadyResync past the end of the active's log", true);
        }
        let zero = self.peers[at].hello.as_ref().is_some_and(|h| h.zero && h.lineage.is_empty());
        let fresh = self.peers[at].hello.as_ref().is_some_and(|h| h.lineage.is_empty());
        if !matches!(&self.peers[at].link, Link::Source(s) if matches!(s.feed, Feed::Preparing)) {
            return self.close_link(node, "ReadyResync without an active", true);
        }
        // B1: while its gap is open, its durable position is where it would roll back to.
        self.peers[at].known = self.peers[at].known.min(since);
        let whole = fresh || since < self.bitmaps[at].from;
        let mut left = if whole { DirtySet::new(&self.volume_sizes()) } else { self.bitmaps[at].bits.clone() };
        self.log.extents_after(since).for_each(|(_, e)| left.add(e));
        extents.iter().for_each(|e| left.add(*e));
        let named = self.peers[at].source_mut().and_then(|s| s.changed.take());
        named.iter().for_each(|changed| left.add_all(changed));
        let base = self.log.end();
        let total = left.bytes();
        let pass = ResyncSource {
            left,
            cursor: (VolumeId(0), 0),
            base,
            jobs: BTreeMap::new(),
            next_job: 0,
            reading_bytes: 0,
            sent: 0,
            acked: 0,
            total,
            search: whole.then_some((VolumeId(0), 0)),
            searching: false,
            peer_is_zero: zero && self.zero,
        };
        let peer = &mut self.peers[at];
        let Some(source) = peer.source_mut() else { return };
        source.gap_open = true;
        source.feed = Feed::Resync(Box::new(pass));
        let session = source.session;
        let name = self.cfg.name(node).to_string();
        self.notice(Notice::ResyncStarted { peer: name, bytes: total });
        self.send(node, session, PeerMsg::ResyncBegin { bytes: total });
    }

    /// Records that the ring drops and the peer has not had: their blocks join the pass, or begin another one.
    pub(super) fn missed_by(&mut self, node: NodeId, last: Lsn, extents: &[Extent]) {
        let sizes = self.volume_sizes();
        let end = self.log.end();
        let Some(source) = self.peers[node.0 as usize].source_mut() else { return };
        if !source.gap_open {
            return; // A plain stream that falls off the ring negotiates anew.
        }
        match &mut source.feed {
            Feed::Resync(pass) if pass.base < last => {
                extents.iter().for_each(|e| pass.left.add(*e));
                pass.total += extents.iter().map(|e| e.length).sum::<u64>();
                pass.base = last;
                // What lies behind the cursor is found in another turn.
            }
            Feed::Stream { next, .. } if *next <= last => {
                let mut left = DirtySet::new(&sizes);
                extents.iter().for_each(|e| left.add(*e));
                let total = left.bytes();
                let (sent, acked) = (source.resync_sent, source.resync_acked);
                source.feed = Feed::Resync(Box::new(ResyncSource {
                    left,
                    cursor: (VolumeId(0), 0),
                    base: end,
                    jobs: BTreeMap::new(),
                    next_job: 1 << 32,
                    reading_bytes: 0,
                    sent,
                    acked,
                    total: sent + total,
                    search: None,
                    searching: false,
                    peer_is_zero: false,
                }));
                // Records up to the new base that were not sent are in the ring still: their blocks belong to the pass too.
                let rest: Vec<Extent> = self.log.extents_after(last).map(|(_, e)| e).collect();
                if let Some(Feed::Resync(pass)) = self.peers[node.0 as usize].source_mut().map(|s| &mut s.feed) {
                    rest.iter().for_each(|e| pass.left.add(*e));
                }
            }
            _ => {}
        }
    }

    /// Starts reads, or ends the pass; false when there is nothing to do now.
    pub(super) fn feed_contents(&mut self, node: NodeId) -> bool {
        let window = self.cfg.window_of(node);
        let Some(source) = self.peers[node.0 as usize].source_mut() else { return false };
        let session = source.session;
        let Feed::Resync(pass) = &mut source.feed else { return false };
        if let Some((volume, offset)) = pass.search
            && !pass.searching
        {
            pass.searching = true;
            let purpose = Purpose::Search { peer: node, session };
            self.io(purpose, Part::Store(volume), IoOp::NextData { offset });
            return true;
        }
        let busy = pass.jobs.len() >= JOBS || pass.sent - pass.acked + pass.reading_bytes >= window;
        if pass.searching || busy {
            return false;
        }
        let next = pass.left.next(pass.cursor, JOB_BYTES).or_else(|| pass.left.next((VolumeId(0), 0), JOB_BYTES));
        match next {
            // A block that joined the pass again while it was being read: the older contents must not come after the newer.
            Some(extent) if pass.is_reading(extent) => false,
            Some(extent) => {
                pass.cursor = (extent.volume, extent.offset + extent.length);
                pass.left.remove(extent);
                self.start_job(node, session, extent);
                true
            }
            None if pass.jobs.is_empty() => {
                self.end_pass(node, session);
                true
            }
            None => false,
        }
    }

    /// Where the store holds data, while everything is compared. What lies between is zero.
    pub(super) fn search_done(&mut self, node: NodeId, session: SessionId, result: Result<IoData, IoError>) {
        if self.peers[node.0 as usize].session() != Some(session) {
            return;
        }
        let sizes = self.volume_sizes();
        let unapplied: Vec<Extent> = self
            .overlay
            .records_from(Lsn(0))
            .map(|r| Extent { volume: r.volume, offset: r.offset, length: r.length })
            .collect();
        let Some(source) = self.peers[node.0 as usize].source_mut() else { return };
        let Feed::Resync(pass) = &mut source.feed else { return };
        pass.searching = false;
        let Some((volume, from)) = pass.search else { return };
        let size = sizes[volume.0 as usize];
        let (hole_end, next) = match result {
            Ok(IoData::Extent(Some((offset, length)))) if offset < size => {
                // Block devices and files may know finer runs than a block.
                let (offset, end) = (offset / 4096 * 4096, (offset + length).min(size));
                pass.left.add(Extent { volume, offset, length: end - offset });
                (offset, end)
            }
            Ok(_) => (size, size),
            Err(_) => {
                let why = "its store could not be searched for data";
                return self.close_link(node, why, true);
            }
        };
        let hole = Extent { volume, offset: from, length: hole_end.saturating_sub(from) };
        pass.total = pass.left.bytes() + pass.sent;
        pass.search = match next {
            next if next < size => Some((volume, next)),
            _ if usize::from(volume.0) + 1 < sizes.len() => Some((VolumeId(volume.0 + 1), 0)),
            _ => {
                // What is accepted and not yet in the store counts as data.
                unapplied.iter().for_each(|e| pass.left.add(*e));
                None
            }
        };
        let must_tell = !pass.peer_is_zero && hole.length > 0;
        let sent_bytes = pass.sent;
        if must_tell {
            let records = vec![zero_record(hole)];
            self.send(node, session, PeerMsg::ResyncData { records, sent_bytes });
        }
    }

    fn start_job(&mut self, node: NodeId, session: SessionId, extent: Extent) {
        let (read, parts) = ViewRead::start(&self.overlay, extent);
        let Some(source) = self.peers[node.0 as usize].source_mut() else { return };
        let Feed::Resync(pass) = &mut source.feed else { return };
        let job = pass.next_job;
        pass.next_job += 1;
        pass.reading_bytes += extent.length;
        pass.jobs.insert(job, read);
        for (part, offset, length) in parts {
            let purpose = Purpose::Content { peer: node, session, job, part };
            self.io(purpose, Part::Store(extent.volume), IoOp::Read { offset, length });
        }
        self.finish_job(node, session, job);
    }

    pub(super) fn content_read(
        &mut self,
        node: NodeId,
        session: SessionId,
        job: u64,
        part: usize,
        result: Result<IoData, IoError>,
    ) {
        if self.peers[node.0 as usize].session() != Some(session) {
            return;
        }
        let Ok(IoData::Bytes(payload)) = result else {
            return self.close_link(node, "a block could not be read for the resync", true);
        };
        let Some(source) = self.peers[node.0 as usize].source_mut() else { return };
        let Feed::Resync(pass) = &mut source.feed else { return };
        let Some(found) = pass.jobs.get_mut(&job) else { return };
        found.fill(part, payload);
        self.finish_job(node, session, job);
    }

    fn finish_job(&mut self, node: NodeId, session: SessionId, job: u64) {
        let Some(source) = self.peers[node.0 as usize].source_mut() else { return };
        let Feed::Resync(pass) = &mut source.feed else { return };
        if !pass.jobs.get(&job).is_some_and(ViewRead::is_done) {
            return;
        }
        let Some(read) = pass.jobs.remove(&job) else { return };
        let extent = read.extent;
        pass.reading_bytes -= extent.length;
        pass.sent += extent.length;
        let sent_bytes = pass.sent;
        source.resync_sent = sent_bytes;
        let records = read.into_records();
        self.send(node, session, PeerMsg::ResyncData { records, sent_bytes });
    }

    /// All contents are sent; with the records up to `until` they are an image.
    fn end_pass(&mut self, node: NodeId, session: SessionId) {
        let until = self.log.end();
        let Some(source) = self.peers[node.0 as usize].source_mut() else { return };
        let Feed::Resync(pass) = &source.feed else { return };
        let base = pass.base;
        source.resync_acked = pass.acked;
        source.streamed = base;
        source.feed = Feed::Stream { next: base.next(), reading: false };
        source.until = until;
        self.send(node, session, PeerMsg::ResyncEnd { base, until });
    }

    /// The passive's image is whole: only this clears bits (R3).
    pub(super) fn resync_done(&mut self, node: NodeId, position: Lsn) {
        let end = self.log.end();
        let peer = &mut self.peers[node.0 as usize];
        let Some(source) = peer.source_mut().filter(|s| s.gap_open && matches!(s.feed, Feed::Stream { .. })) else {
            return self.close_link(node, "ResyncDone without a resync", true);
        };
        if position < source.until || position > end {
            return self.close_link(node, "ResyncDone at a position that cannot be", true);
        }
        source.gap_open = false;
        peer.received = peer.received.max(position);
        peer.durable = peer.durable.max(position);
        peer.known = peer.known.max(position);
        self.clear_bits(node, position);
        let name = self.cfg.name(node).to_string();
        self.notice(Notice::ResyncFinished { peer: name, position: position.0 });
        self.tell_charter(node);
    }
}
