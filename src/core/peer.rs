//! What this node knows of each other node: the link, and the positions that its acknowledgements prove.

use super::api::PeerMsg;
use super::backlog::Backlog;
use super::dirty::DirtySet;
use super::forecast::Probe;
use super::hello::Hello;
use super::latency::Latencies;
use super::progress::Pace;
use super::resync_source::ResyncSource;
use super::resync_target::ResyncTarget;
use super::types::*;
use super::verify::Question;
use std::collections::VecDeque;

/// One other node of the resource.
#[derive(Debug)]
pub struct Peer {
    pub link: Link,
    /// The operator wants a connection.
    pub wanted: bool,
    /// Do not dial before this time.
    pub retry_at: Time,
    /// The next pause between two attempts, in ms.
    pub backoff_ms: u64,
    /// When the present or latest session was agreed on by both.
    pub stands_since: Time,
    pub last_heard: Time,
    pub last_sent: Time,
    /// The other side's first message in the present or latest session.
    pub hello: Option<Box<Hello>>,
    /// Positions in this node's own lineage, proven in this term and by this incarnation; 0 until then (L1, C1).
    pub incarnation: Option<Incarnation>,
    pub received: Lsn,
    pub durable: Lsn,
    pub applied: Lsn,
    /// What it surely holds durable, in this node's lineage, whatever term it was proven in: for the bitmap alone (B1).
    pub known: Lsn,
    /// Up to where it held this node's lineage when it was last heard: for the operator's eyes alone.
    pub heard: Lsn,
    /// What its file says otherwise than this node's.
    pub differs: Vec<String>,
    /// Since when a write has waited for this peer, and for which record.
    pub waiting: Option<(Lsn, Time)>,
    /// All that had completed when this node began to wait for the peer on every write (C4); none while it does not.
    pub joining: Option<Lsn>,
    /// After a drop it is waited for again only once it is durable up to here: or a peer that cannot go on would be dropped and
    /// joined by turns, and writes would wait all the time.
    pub rejoin_from: Lsn,
    /// Why the link is not up or not in sync, for people.
    pub why: Option<String>,
    /// When a session with it was last refused from this side.
    pub refused_at: Option<Time>,
    /// When it was last heard and no session came of it: it runs, whatever else (C8).
    pub answered_at: Option<Time>,
    /// There and back, without what the peer did in between, smoothed, in µs.
    pub round_trip_us: u64,
    /// The newest echo that was measured by: an echo that comes again tells nothing.
    pub last_echo_us: u64,
    /// The same, not smoothed; and how long the peer's log took.
    pub wire_times: Latencies,
    pub disk_times: Latencies,
    /// How fast a catch-up or resync is.
    pub pace: Pace,
    /// When the newest frame was sent that it has acknowledged, by this node's clock (C2).
    pub lease: Time,
    /// When the link went down, for the drop of a member that is gone (C4).
    pub down_since: Option<Time>,
    /// An operator asks what a session would do.
    pub probe: Option<Probe>,
}

/// The state of the connection. All changes go through `Node::set_link`.
#[derive(Debug)]
pub enum Link {
    Down,
    Dialing,
    /// Hello sent, theirs not yet here.
    Greeting(SessionId),
    /// The operator wants no session with it: its Hello is awaited only to hear who was promoted.
    Hearing(SessionId),
    /// Both passive.
    Idle(SessionId),
    /// This node is active and feeds the peer.
    Source(Box<Source>),
    /// The peer is active and feeds this node.
    Target(Box<Target>),
}

/// The sending side of a session.
#[derive(Debug)]
pub struct Source {
    pub session: SessionId,
    pub feed: Feed,
    /// The peer's store is between two positions: nothing that it acknowledges counts (R3).
    pub gap_open: bool,
    /// With the records up to here the contents sent are an image.
    pub until: Lsn,
    /// Contents sent and acknowledged in this session, in bytes.
    pub resync_sent: u64,
    pub resync_acked: u64,
    /// What the peer says it lacks beside what this node knows, until the contents begin.
    pub lacks: Option<Box<DirtySet>>,
    /// Messages that go into the stream right after a record, in order.
    pub marks: VecDeque<(Lsn, PeerMsg)>,
    /// Frames sent and not yet acknowledged: last record and bytes of each.
    pub in_flight: VecDeque<(Lsn, u64)>,
    pub in_flight_bytes: u64,
    /// Where the record stands in the log that follows what was last read back.
    pub behind: Option<(Lsn, super::log_index::Place)>,
    /// The newest `flush_to` and `committed` told to the peer.
    pub told_flush: Lsn,
    pub told_committed: Lsn,
    /// Since when there is something to tell, where that may wait for more.
    pub news_since: Option<Time>,
    /// It has not caught up with what the log held when it came, or when it last had to be fed from the log.
    pub lags: bool,
    /// Once all was sent: it has caught up when it confirms this record.
    pub all_sent: Option<Lsn>,
    /// Bytes of records that it has confirmed in this session.
    pub confirmed: u64,
    /// While a gap is open: the newest record that it has taken.
    pub streamed: Lsn,
}

/// Where the stream stands.
#[derive(Debug)]
pub enum Feed {
    /// The passive ends orphans, sets them aside, adopts the lineage.
    Preparing,
    /// Records in order, the next one to send being `next`.
    Stream { next: Lsn, reading: bool },
    /// Contents first (R2).
    Resync(Box<ResyncSource>),
}

/// The receiving side of a session.
#[derive(Debug)]
pub struct Target {
    pub session: SessionId,
    pub stage: TargetStage,
    /// The active's clock in its newest frame, and when that came.
    pub echo_us: u64,
    pub frame_at: Time,
    /// The longest write or flush of the log since the last acknowledgement.
    pub disk_us: u64,
    /// What the active said that its contents are.
    pub resync_bytes: Option<u64>,
    /// What was last acknowledged: received, durable, applied, resync bytes, echo.
    pub told: (Lsn, Lsn, Lsn, u64, u64),
    /// The active's newest record.
    pub accepted: Lsn,
    /// Frames that wait for room in memory; not acknowledged.
    pub deferred: Backlog<Deferred>,
    /// Chunks that the active wants compared.
    pub questions: Vec<Question>,
}

/// What waits for its turn in the stream.
#[derive(Debug)]
pub enum Deferred {
    Records(Vec<Record>),
    Question { id: u64, extent: Extent, crcs: Vec<u32> },
}

#[derive(Debug)]
pub enum TargetStage {
    /// Waits for its own disk before it may adopt the active's lineage.
    Preparing(super::target::Prepare),
    Stream,
    /// Contents and records go straight to the store.
    Resync(Box<ResyncTarget>),
}

impl Default for Peer {
    fn default() -> Peer {
        Peer {
            link: Link::Down,
            wanted: true,
            retry_at: Time(0),
            backoff_ms: 10,
            stands_since: Time(0),
            last_heard: Time(0),
            last_sent: Time(0),
            hello: None,
            incarnation: None,
            received: Lsn(0),
            durable: Lsn(0),
            applied: Lsn(0),
            known: Lsn(0),
            heard: Lsn(0),
            differs: Vec::new(),
            waiting: None,
            joining: None,
            rejoin_from: Lsn(0),
            why: None,
            refused_at: None,
            answered_at: None,
            round_trip_us: 0,
            last_echo_us: 0,
            wire_times: Latencies::default(),
            disk_times: Latencies::default(),
            pace: Pace::default(),
            lease: Time(0),
            down_since: None,
            probe: None,
        }
    }
}

impl Peer {
    /// The session, whatever it does.
    pub fn session(&self) -> Option<SessionId> {
        match &self.link {
            Link::Down | Link::Dialing => None,
            Link::Greeting(s) | Link::Hearing(s) | Link::Idle(s) => Some(*s),
            Link::Source(source) => Some(source.session),
            Link::Target(target) => Some(target.session),
        }
    }

    /// A session in which both have said who they are.
    pub fn is_greeted(&self) -> bool {
        matches!(self.link, Link::Idle(_) | Link::Source(_) | Link::Target(_))
    }

    /// Forgets what the peer had proven: a new term, or a new incarnation.
    pub fn forget_positions(&mut self) {
        self.received = Lsn(0);
        self.durable = Lsn(0);
        self.applied = Lsn(0);
        self.waiting = None;
        self.joining = None;
        self.lease = Time(0);
        self.rejoin_from = Lsn(0);
    }

    pub fn source_mut(&mut self) -> Option<&mut Source> {
        match &mut self.link {
            Link::Source(source) => Some(source),
            _ => None,
        }
    }

    pub fn target_mut(&mut self) -> Option<&mut Target> {
        match &mut self.link {
            Link::Target(target) => Some(target),
            _ => None,
        }
    }

    /// Whether records (not contents) are being streamed to it.
    pub fn is_streamed(&self) -> bool {
        matches!(&self.link, Link::Source(s) if matches!(s.feed, Feed::Stream { .. }) && !s.gap_open)
    }
}

impl Source {
    /// Counts a frame against the window (F1).
    pub fn sent(&mut self, last: Lsn, bytes: u64) {
        self.in_flight.push_back((last, bytes));
        self.in_flight_bytes += bytes;
    }

    /// Takes acknowledged frames out of the window.
    pub fn acknowledged(&mut self, received: Lsn) {
        while let Some(&(last, bytes)) = self.in_flight.front() {
            if last > received {
                break;
            }
            self.in_flight.pop_front();
            self.in_flight_bytes -= bytes;
            self.confirmed += bytes;
        }
    }
}
