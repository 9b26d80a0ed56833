//! The sending side of a resync: contents of what the peer lacks, then the records since the pass began (R2).

use super::api::*;
use super::dirty::{DIRTY_BLOCK, DirtySet};
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
    /// What is still to be read, but for `run`.
    left: DirtySet,
    cursor: (VolumeId, u64),
    /// Taken from `left`, or found by the search: being cut into messages.
    run: Option<Extent>,
    /// All records after this one are streamed once the contents are sent.
    base: Lsn,
    jobs: BTreeMap<u64, ViewRead>,
    next_job: u64,
    reading_bytes: u64,
    pub sent: u64,
    pub acked: u64,
    pub total: u64,
    search: Search,
    searching: bool,
    /// The peer's stores are zero wherever nothing was sent.
    peer_is_zero: bool,
}

/// Where everything is compared: first how much there is, then the contents; what lies between data is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Search {
    Nothing,
    Count { at: (VolumeId, u64), runs: u64 },
    Send { at: (VolumeId, u64) },
}

impl ResyncSource {
    fn new(left: DirtySet, base: Lsn) -> ResyncSource {
        ResyncSource {
            total: left.bytes(),
            left,
            cursor: (VolumeId(0), 0),
            run: None,
            base,
            jobs: BTreeMap::new(),
            next_job: 0,
            reading_bytes: 0,
            sent: 0,
            acked: 0,
            search: Search::Nothing,
            searching: false,
            peer_is_zero: false,
        }
    }

    /// Contents that the peer has not confirmed.
    pub fn left_bytes(&self) -> u64 {
        match self.search {
            Search::Nothing => {
                let run = self.run.map_or(0, |r| r.length);
                self.left.bytes() + run + self.reading_bytes + self.sent.saturating_sub(self.acked)
            }
            _ => self.total.saturating_sub(self.acked),
        }
    }

    pub fn base(&self) -> Lsn {
        self.base
    }

    /// How much there is to send is still being counted.
    pub fn is_counting(&self) -> bool {
        matches!(self.search, Search::Count { .. })
    }

    fn is_reading(&self, extent: Extent) -> bool {
        let overlaps = |e: &Extent| {
            e.volume == extent.volume && e.offset < extent.offset + extent.length && extent.offset < e.offset + e.length
        };
        self.jobs.values().any(|job| overlaps(&job.extent))
    }

    /// The next contents to read.
    fn take(&mut self) -> Option<Extent> {
        self.left.take(&mut self.cursor, &mut self.run, JOB_BYTES)
    }

    /// What was just taken is to be read later.
    fn put_back(&mut self, taken: Extent) {
        let rest = self.run.map_or(0, |r| r.length);
        self.run = Some(Extent { length: taken.length + rest, ..taken });
    }
}

impl Node {
    /// A piece of what the passive lacks beside what this node knows.
    pub(super) fn lacks_came(&mut self, node: NodeId, piece: &[u8]) {
        let empty = self.new_bits();
        let source = self.peers[node.0 as usize].source_mut().filter(|s| matches!(s.feed, Feed::Preparing));
        let Some(source) = source else {
            return self.close_link(node, "a list of blocks without an active", true);
        };
        let session = source.session;
        if source.lacks.get_or_insert_with(|| Box::new(empty)).add_piece(piece).is_err() {
            return self.close_link(node, "a list of blocks that makes no sense", true);
        }
        self.send(node, session, PeerMsg::LacksTaken);
    }

    /// The passive asks for contents: what changed after `since`, and what it has listed; or all there is.
    pub(super) fn peer_ready_for_resync(&mut self, node: NodeId, since: Lsn, everything: bool) {
        let at = node.0 as usize;
        let end = self.log.end();
        if since > end {
            return self.close_link(node, "ReadyResync past the end of the active's log", true);
        }
        let zero = self.peers[at].hello.as_ref().is_some_and(|h| h.zero && h.lineage.is_empty());
        let fresh = self.peers[at].hello.as_ref().is_some_and(|h| h.lineage.is_empty());
        if !matches!(&self.peers[at].link, Link::Source(s) if matches!(s.feed, Feed::Preparing)) {
            return self.close_link(node, "ReadyResync without an active", true);
        }
        self.unlist(node, "it has parted from this node and needs a resync");
        // B1: while its gap is open, its durable position is where it would roll back to.
        self.peers[at].known = self.peers[at].known.min(since);
        let whole = fresh || everything || since < self.bitmaps[at].from;
        let mut left = self.new_bits();
        let lacks = self.peers[at].source_mut().and_then(|s| s.lacks.take());
        if whole {
            // The search finds what is in the store: what is accepted and not yet there comes after it.
            self.overlay.records_from(Lsn(0)).for_each(|r| left.add(r.extent()));
        } else {
            left.add_all(&self.bitmaps[at].bits);
            self.log.changed(since, end).for_each(|e| left.add(e));
            lacks.iter().for_each(|l| left.add_all(l));
        }
        let runs = left.runs();
        let mut pass = ResyncSource::new(left, end);
        pass.peer_is_zero = zero && self.zero;
        if whole {
            pass.search = Search::Count { at: (VolumeId(0), 0), runs };
        }
        let Some(source) = self.peers[at].source_mut() else { return };
        source.gap_open = true;
        source.feed = Feed::Resync(Box::new(pass));
        if !whole {
            self.announce(node, runs, false);
        }
    }

    /// How much will come, before it comes (R1).
    fn announce(&mut self, node: NodeId, runs: u64, whole: bool) {
        let Some(source) = self.peers[node.0 as usize].source_mut() else { return };
        let session = source.session;
        let Feed::Resync(pass) = &source.feed else { return };
        let bytes = pass.total;
        let peer = self.cfg.name(node).to_string();
        self.notice(Notice::ResyncStarted { peer, bytes });
        self.send(node, session, PeerMsg::ResyncBegin { bytes, runs, whole });
    }

    /// Records that the ring drops and the peer has not had: their blocks join the pass, or begin another one.
    pub(super) fn missed_by(&mut self, node: NodeId, last: Lsn, changed: &DirtySet) {
        let end = self.log.end();
        let mut left = self.new_bits();
        let Some(source) = self.peers[node.0 as usize].source_mut() else { return };
        if !source.gap_open {
            return; // A plain stream that falls off the ring negotiates anew.
        }
        match &mut source.feed {
            Feed::Resync(pass) if pass.base < last => {
                let before = pass.left.bytes();
                pass.left.add_all(changed);
                pass.total += pass.left.bytes() - before;
                pass.base = last;
                // What lies behind the cursor is found in another turn.
            }
            Feed::Stream { next, .. } if *next <= last => {
                left.add_all(changed);
                // Records up to the new base that were not sent are in the ring still: their blocks belong to the pass too.
                self.log.changed(last, end).for_each(|e| left.add(e));
                let Some(source) = self.peers[node.0 as usize].source_mut() else { return };
                let mut pass = ResyncSource::new(left, end);
                pass.next_job = 1 << 32;
                (pass.sent, pass.acked) = (source.resync_sent, source.resync_acked);
                pass.total += pass.sent;
                source.feed = Feed::Resync(Box::new(pass));
            }
            _ => {}
        }
    }

    /// Starts reads, or ends the pass; false when there is nothing to do now.
    pub(super) fn feed_contents(&mut self, node: NodeId) -> bool {
        let window = self.window_of(node);
        let Some(source) = self.peers[node.0 as usize].source_mut() else { return false };
        let session = source.session;
        let Feed::Resync(pass) = &mut source.feed else { return false };
        let busy = pass.jobs.len() >= JOBS || pass.sent - pass.acked + pass.reading_bytes >= window;
        if pass.searching || busy {
            return false;
        }
        match pass.search {
            Search::Count { at: (volume, offset), .. } | Search::Send { at: (volume, offset) }
                if pass.run.is_none() =>
            {
                pass.searching = true;
                let purpose = Purpose::Search { peer: node, session };
                self.io(purpose, Part::Store(volume), IoOp::NextData { offset });
                return true;
            }
            _ => {}
        }
        match pass.take() {
            // A block that joined the pass again while it was being read: the older contents must not come after the newer.
            Some(extent) if pass.is_reading(extent) => {
                pass.put_back(extent);
                false
            }
            Some(extent) => {
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
        let Some(source) = self.peers[node.0 as usize].source_mut() else { return };
        let Feed::Resync(pass) = &mut source.feed else { return };
        pass.searching = false;
        let (Search::Count { at: (volume, from), .. } | Search::Send { at: (volume, from) }) = pass.search else {
            return;
        };
        let size = sizes[volume.0 as usize];
        let Ok(found) = result else {
            return self.close_link(node, "its store could not be searched for data", true);
        };
        let run = data_run(volume, from, size, &found);
        let next = run.map_or(size, |r| r.offset + r.length);
        let on = match next {
            next if next < size => Some((volume, next)),
            _ if usize::from(volume.0) + 1 < sizes.len() => Some((VolumeId(volume.0 + 1), 0)),
            _ => None,
        };
        if let Search::Count { runs, .. } = pass.search {
            pass.total += run.map_or(0, |r| r.length);
            let runs = runs + run.map_or(0, |_| 1);
            pass.search = on.map_or(Search::Send { at: (VolumeId(0), 0) }, |at| Search::Count { at, runs });
            return if on.is_none() {
                self.announce(node, runs, true)
            };
        }
        pass.search = on.map_or(Search::Nothing, |at| Search::Send { at });
        pass.run = run;
        let hole = Extent { volume, offset: from, length: run.map_or(size, |r| r.offset) - from };
        let sent_bytes = pass.sent;
        if !pass.peer_is_zero && hole.length > 0 {
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

/// The run of data at or after `from` that a store has told of, in whole blocks.
pub(super) fn data_run(volume: VolumeId, from: u64, size: u64, found: &IoData) -> Option<Extent> {
    let IoData::Extent(Some((offset, length))) = found else { return None };
    // Block devices and files may know finer runs than a block.
    let start = (offset / DIRTY_BLOCK * DIRTY_BLOCK).max(from);
    let end = offset.saturating_add(*length).min(size).next_multiple_of(DIRTY_BLOCK).min(size);
    (start < end).then(|| Extent { volume, offset: start, length: end - start })
}
