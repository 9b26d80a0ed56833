//! The sending side: records to the passives, in order, from memory or from the log (F1).

use super::api::*;
use super::log_index::{Look, Place};
use super::node::{Node, Purpose};
use super::peer::{Feed, Link, Peer};
use super::types::*;

/// Records in one frame at most.
const FRAME_RECORDS: usize = 256;
/// Payload bytes in one frame at most.
const FRAME_BYTES: u64 = 4 << 20;
/// The same, at least, to a peer whose bandwidth is limited.
const LEAST_FRAME_BYTES: u64 = 64 << 10;
/// Records that wait for the log are sent before their turn once they are so many bytes.
const EARLY_BYTES: u64 = 64 << 10;
/// Nobody waits for what an async peer gets: it goes out once it is so many records, or this old, in µs. Sent one by one, each would cost
/// both nodes as much as a frame of all of them.
const LAZY_RECORDS: u64 = 32;
const LAZY_US: u64 = 1000;
/// What a record without payload counts against the window.
const RECORD_BYTES: u64 = 64;

impl Node {
    /// What may be under way to a peer: no more than its own file says either, or it would be taken for one that exceeds its window.
    pub(super) fn window_of(&self, node: NodeId) -> u64 {
        let theirs = self.peers[node.0 as usize].hello.as_ref().and_then(|h| h.setting(super::config::WINDOW));
        let theirs = theirs.and_then(|w| w.parse().ok()).unwrap_or(u64::MAX);
        self.cfg.window_of(node).min(theirs)
    }

    pub(super) fn my_watermarks(&self) -> Watermarks {
        Watermarks {
            committed: self.committed,
            accepted: self.log.end(),
            flush_to: self.flush_to.min(self.log.end()),
            clock_us: self.now.0,
        }
    }

    /// The passive has prepared itself: its position is proven in this term from now on.
    pub(super) fn peer_ready(&mut self, node: NodeId, received: Lsn, durable: Lsn) {
        if received > self.log.end() || durable > received {
            return self.close_link(node, "Ready past the end of the active's log", true);
        }
        let (from, end) = (self.log.from(), self.log.end());
        let peer = &mut self.peers[node.0 as usize];
        let Some(source) = peer.source_mut() else {
            return self.close_link(node, "Ready without an active", true);
        };
        if !matches!(source.feed, Feed::Preparing) {
            return self.close_link(node, "Ready for the second time, or in the middle of a resync", true);
        }
        if received.next() < from {
            return self.close_link(node, "the log no longer reaches that far back", true);
        }
        source.feed = Feed::Stream { next: received.next(), reading: false };
        source.lags = received < end;
        // Within an incarnation neither decreases (C1): what was proven before in this term is a lower bound.
        peer.received = peer.received.max(received);
        peer.durable = peer.durable.max(durable);
        peer.known = peer.known.max(durable);
        self.tell_charter(node);
    }

    pub(super) fn peer_acknowledged(&mut self, node: NodeId, ack: Ack) {
        let term = self.lineage.last().map(|t| t.id);
        let (now, end) = (self.now, self.log.end());
        let peer = &mut self.peers[node.0 as usize];
        if let (Link::Idle(_), Some(hello)) = (&peer.link, &mut peer.hello) {
            // Two passives: where the other stands now counts when one of them is promoted.
            if hello.lineage.last().map(|t| t.id) == ack.term {
                (hello.received, hello.durable, hello.applied) = (ack.received, ack.durable, ack.applied);
            }
            return;
        }
        let Some(source) = peer.source_mut() else { return };
        // An acknowledgement counts only in this term (C1).
        if ack.term != term {
            return;
        }
        match &mut source.feed {
            Feed::Preparing => return,
            Feed::Resync(pass) => {
                pass.acked = pass.acked.max(ack.resync_bytes.min(pass.sent));
                return;
            }
            Feed::Stream { .. } => {}
        }
        if source.gap_open {
            // For flow control alone (R3).
            source.resync_acked = source.resync_acked.max(ack.resync_bytes.min(source.resync_sent));
            source.streamed = source.streamed.max(ack.streamed);
            return source.acknowledged(ack.streamed);
        }
        if ack.received > end || ack.durable > ack.received {
            return self.close_link(node, "an acknowledgement of what was never sent", true);
        }
        source.acknowledged(ack.received);
        if source.all_sent.is_some_and(|mark| ack.received >= mark) {
            (source.lags, source.all_sent) = (false, None);
        }
        peer.received = peer.received.max(ack.received);
        peer.durable = peer.durable.max(ack.durable);
        peer.applied = peer.applied.max(ack.applied);
        peer.known = peer.known.max(ack.durable);
        peer.lease = peer.lease.max(Time(ack.echo_us).min(now));
        peer.measure(now, &ack);
        self.clear_bits(node, ack.durable);
    }

    /// The first record that waits for this node's own log. Group commit for all nodes: what cannot complete before the next batch
    /// goes to the peers with it, in one frame rather than in many that wake them one by one.
    pub(super) fn held_back(&self) -> Option<Lsn> {
        let (first, bytes) = self.log.queued().filter(|_| self.log.is_busy())?;
        (bytes < EARLY_BYTES).then_some(first)
    }

    pub(super) fn feed_peers(&mut self) {
        if self.role() != Role::Active || self.fault.is_some() {
            return;
        }
        for node in self.cfg.peers() {
            while self.feed_contents(node) || self.feed_once(node) {}
        }
    }

    /// Sends one frame or starts one read; false when there is nothing to do now.
    fn feed_once(&mut self, node: NodeId) -> bool {
        if self.waits_for_more(node) {
            return false;
        }
        let (window, watermarks) = (self.window_of(node), self.my_watermarks());
        let held_back = self.held_back();
        let is_waited_for = self.is_member(node) || self.peers[node.0 as usize].joining.is_some();
        let Some(source) = self.peers[node.0 as usize].source_mut() else { return false };
        let session = source.session;
        let Feed::Stream { next, reading: false } = source.feed else { return false };
        if source.marks.front().is_some_and(|(after, _)| *after < next)
            && let Some((_, message)) = source.marks.pop_front()
        {
            self.send(node, session, message);
            return true;
        }
        let nothing_more = next > watermarks.accepted;
        let window_is_full = source.in_flight_bytes >= window;
        if nothing_more || window_is_full || held_back.is_some_and(|first| next >= first) {
            if nothing_more && source.lags {
                source.all_sent.get_or_insert(watermarks.accepted);
            }
            // Nothing to send now: but somebody may wait for a flush of what was sent before.
            let untold = source.told_flush < watermarks.flush_to.min(next.prev());
            // Or for room there, which it makes from what is committed: a member with a small log would wait for the next heartbeat (S1).
            let has_no_room = source.in_flight_bytes > 0 && source.told_committed < watermarks.committed;
            if (untold && !window_is_full) || (has_no_room && is_waited_for) {
                source.told_flush = watermarks.flush_to;
                source.told_committed = watermarks.committed;
                self.send(node, session, PeerMsg::Heartbeat { watermarks });
            }
            return false;
        }
        if self.overlay.first().is_some_and(|first| first <= next) {
            // A mark stands right after its record: what follows goes into another frame.
            let last = source.marks.front().map_or(Lsn(u64::MAX), |(after, _)| *after);
            let records =
                frame(self.overlay.records_from(next).take_while(|r| r.lsn <= last).cloned(), self.frame_bytes(node));
            self.send_records(node, records);
            return true;
        }
        self.read_for(node, session, next)
    }

    /// Whether an async peer is told later what there is to tell; notes since when.
    fn waits_for_more(&mut self, node: NodeId) -> bool {
        let (now, watermarks) = (self.now, self.my_watermarks());
        let lazy = self.cfg.nodes[node.0 as usize].mode == Mode::Async;
        let Some(source) = self.peers[node.0 as usize].source_mut().filter(|_| lazy) else { return false };
        let since = source.news_since.take().unwrap_or(now);
        let Feed::Stream { next, reading: false } = source.feed else { return false };
        let records = watermarks.accepted.next().0.saturating_sub(next.0);
        let untold = source.told_flush < watermarks.flush_to.min(next.prev());
        let waits = (records > 0 || untold) && records < LAZY_RECORDS && now.since_us(since) < LAZY_US;
        source.news_since = waits.then_some(since);
        waits
    }

    /// When an async peer is to be told what there is.
    pub(super) fn feed_deadline(&self) -> Option<Time> {
        let since = |peer: &Peer| match &peer.link {
            Link::Source(source) => source.news_since,
            _ => None,
        };
        let feeds = self.role() == Role::Active && self.fault.is_none();
        self.peers.iter().filter(|_| feeds).filter_map(since).min().map(|t| Time(t.0 + LAZY_US))
    }

    fn send_records(&mut self, node: NodeId, records: Vec<Record>) {
        let watermarks = self.my_watermarks();
        let Some(last) = records.last().map(|r| r.lsn) else { return };
        let bytes = records.iter().map(|r| r.payload.len() as u64 + RECORD_BYTES).sum();
        let Some(source) = self.peers[node.0 as usize].source_mut() else { return };
        source.sent(last, bytes);
        source.told_flush = watermarks.flush_to;
        source.told_committed = watermarks.committed;
        source.feed = Feed::Stream { next: last.next(), reading: false };
        let session = source.session;
        self.send(node, session, PeerMsg::Append { records, watermarks });
    }

    /// Payload bytes in one frame to a peer, at most. A frame goes as a whole and is paid for afterwards, so under a limit it is small.
    pub(super) fn frame_bytes(&self, node: NodeId) -> u64 {
        let bandwidth = self.cfg.nodes[node.0 as usize].bandwidth;
        bandwidth.map_or(FRAME_BYTES, |b| (b / 8).clamp(LEAST_FRAME_BYTES, FRAME_BYTES))
    }

    /// A lagging peer is fed from the log.
    fn read_for(&mut self, node: NodeId, session: SessionId, next: Lsn) -> bool {
        let behind = match self.peers[node.0 as usize].source_mut().and_then(|s| s.behind.take()) {
            Some((lsn, place)) if lsn == next => Some(place),
            _ => None,
        };
        let Some(place) = behind.or_else(|| self.log.locate(next)) else {
            self.close_link(node, "the log no longer reaches what it needs", true);
            return false;
        };
        if let Some(source) = self.peers[node.0 as usize].source_mut() {
            source.feed = Feed::Stream { next, reading: true };
            (source.lags, source.all_sent) = (true, None);
        }
        self.feed_from(node, session, next, place);
        false
    }

    fn feed_from(&mut self, node: NodeId, session: SessionId, from: Lsn, place: Place) {
        let op = self.log.read_of(&place);
        self.io(Purpose::Feed { peer: node, session, from, place }, Part::Log, op);
    }

    pub(super) fn feed_read(
        &mut self,
        node: NodeId,
        session: SessionId,
        from: Lsn,
        place: Place,
        result: Result<IoData, IoError>,
    ) {
        let stands = self.peers[node.0 as usize].source_mut().is_some_and(|s| {
            s.session == session && matches!(s.feed, Feed::Stream { next, reading: true } if next == from)
        });
        if !stands {
            return;
        }
        let found = match result {
            Ok(IoData::Bytes(body)) => self.log.look(&place, from, &body),
            _ => Look::Lost,
        };
        match found {
            Look::Records(mut records, behind) => {
                let Some(source) = self.peers[node.0 as usize].source_mut() else { return };
                source.behind = records.last().map(|r| r.lsn.next()).zip(behind);
                let mark = source.marks.front().map(|m| m.0);
                records.retain(|r| mark.is_none_or(|last| r.lsn <= last));
                self.send_records(node, records);
            }
            Look::Next(place) => self.feed_from(node, session, from, place),
            Look::Lost if from >= self.log.from() && self.could_not_be_read(from) => {
                if let Some(source) = self.peers[node.0 as usize].source_mut() {
                    source.feed = Feed::Stream { next: from, reading: false };
                }
            }
            Look::Lost => self.close_link(node, "a record could not be read back from the log", true),
        }
    }
}

impl Peer {
    /// An acknowledgement tells how long the way was, without what the peer did in between, and how long its log took.
    fn measure(&mut self, now: Time, ack: &Ack) {
        if ack.disk_us > 0 {
            self.disk_times.add(now, ack.disk_us);
        }
        if ack.echo_us <= self.last_echo_us {
            return; // The same frame once more: it says how long nothing was sent, and nothing of the way.
        }
        self.last_echo_us = ack.echo_us;
        let sample = now.0.saturating_sub(ack.echo_us).saturating_sub(ack.held_us);
        self.wire_times.add(now, sample);
        self.round_trip_us = if self.round_trip_us == 0 { sample } else { (self.round_trip_us * 7 + sample) / 8 };
    }
}

/// As many records as fit one frame.
pub(super) fn frame(records: impl Iterator<Item = Record>, most: u64) -> Vec<Record> {
    let mut bytes = 0;
    records
        .take(FRAME_RECORDS)
        .take_while(|r| {
            let fits = bytes == 0 || bytes + r.payload.len() as u64 <= most;
            bytes += r.payload.len() as u64;
            fits
        })
        .collect()
}
