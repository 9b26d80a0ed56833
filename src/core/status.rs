//! What `understudy status` shows; `docs/status.md` documents the fields.

use super::latency::Latency;
use super::node::{Node, Stage};
use super::peer::{Feed, Link, Peer};
use super::progress::Progress;
use super::trouble::Problem;
use super::types::*;
use serde::Serialize;

/// The whole of it. Times in microseconds or seconds as named, sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub resource: String,
    pub node: String,
    pub role: Role,
    /// serving, suspended, faulted, promoting, demoting or passive.
    pub state: &'static str,
    pub term: Option<TermStatus>,
    /// Names of the members, as far as this node knows.
    pub in_sync: Vec<String>,
    pub active: Option<String>,
    /// It is active by its own charter, and has heard that another node was promoted since: its term is over.
    pub outvoted: bool,
    pub watermarks: WatermarkStatus,
    pub volumes: Vec<VolumeStatus>,
    pub log: LogStatus,
    pub memory: MemoryStatus,
    pub peers: Vec<PeerStatus>,
    pub fault: Option<String>,
    /// It was active when it ended, and waits for others before it resumes.
    pub waiting: Option<Waiting>,
    /// What this replica could be brought up as.
    pub image: ImageStatus,
    /// Whatever is wrong with this node's storage, and what to do.
    pub problems: Vec<Problem>,
    pub latency_us: LatencyStatus,
}

/// What an active that was restarted waits for.
#[derive(Clone, Debug, Serialize)]
pub struct Waiting {
    pub what: String,
    pub remedy: String,
    pub since_s: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct ImageStatus {
    /// Whether it could be promoted, as far as its own image goes.
    pub valid: bool,
    /// In the middle of a resync: where it would go back to.
    pub rollback: Option<Lsn>,
    /// Why it is not valid, for people.
    pub why: Option<&'static str>,
}

/// How long things took here lately; none where nothing was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LatencyStatus {
    /// A client's write, from its arrival to its answer; and a flush.
    pub write: Option<Latency>,
    pub flush: Option<Latency>,
    /// One write or flush of the log.
    pub local_disk: Option<Latency>,
}

/// The same of a peer.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PeerLatencyStatus {
    /// There and back.
    pub wire: Option<Latency>,
    /// One write or flush of its log.
    pub disk: Option<Latency>,
}

#[derive(Clone, Debug, Serialize)]
pub struct TermStatus {
    pub number: u64,
    pub id: String,
    pub first: Lsn,
}

#[derive(Clone, Debug, Serialize)]
pub struct WatermarkStatus {
    pub accepted: Lsn,
    pub written: Lsn,
    pub durable: Lsn,
    pub committed: Lsn,
    pub applied: Lsn,
    pub checkpointed: Lsn,
}

#[derive(Clone, Debug, Serialize)]
pub struct VolumeStatus {
    pub name: String,
    pub size: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct LogStatus {
    pub size: u64,
    pub used: u64,
    /// The oldest record that the log still holds.
    pub from: Lsn,
}

#[derive(Clone, Debug, Serialize)]
pub struct MemoryStatus {
    pub used: u64,
    pub limit: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    pub name: String,
    /// down, connecting, handshake, idle, preparing, catching_up, joining, in_sync, async or following.
    pub state: &'static str,
    pub mode: Mode,
    pub received: Lsn,
    pub durable: Lsn,
    pub applied: Lsn,
    pub lag: Lag,
    pub round_trip_us: u64,
    pub latency_us: PeerLatencyStatus,
    /// How far a catch-up or resync is; none where there is none.
    pub progress: Option<Progress>,
    pub why: Option<String>,
    /// What its file says otherwise than this node's.
    pub differs: Vec<String>,
}

/// How far a peer is behind this node, the active.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Lag {
    pub writes: u64,
    pub bytes: u64,
    pub seconds: f64,
}

impl Node {
    pub fn status(&self, now: Time) -> Status {
        let [accepted, written, durable, committed, applied, checkpointed] = self.watermarks();
        let term = self.lineage.last();
        Status {
            resource: self.cfg.resource.clone(),
            node: self.cfg.my_name().to_string(),
            role: self.role(),
            state: self.state_name(),
            term: term.map(|t| TermStatus { number: t.number, id: format!("{:032x}", t.id.0), first: t.first }),
            in_sync: self.charter.in_sync.iter().map(|m| m.node.clone()).collect(),
            active: self.charter.active.clone(),
            outvoted: self.is_outvoted(),
            watermarks: WatermarkStatus { accepted, written, durable, committed, applied, checkpointed },
            volumes: self.cfg.volumes.iter().map(|v| VolumeStatus { name: v.name.clone(), size: v.size }).collect(),
            log: LogStatus { size: self.log.size(), used: self.log.used(), from: self.log.from() },
            memory: MemoryStatus { used: self.overlay.memory(), limit: self.cfg.memory },
            peers: self.cfg.peers().map(|n| self.peer_status(n, now)).collect(),
            fault: self.fault.clone(),
            waiting: self.waiting(now),
            image: self.image_status(),
            problems: self.problems(now),
            latency_us: LatencyStatus {
                write: self.write_times.lately(now),
                flush: self.flush_times.lately(now),
                local_disk: self.log_times.lately(now),
            },
        }
    }

    fn image_status(&self) -> ImageStatus {
        let Some(state) = self.gap.as_ref().map(|g| g.state) else {
            return ImageStatus { valid: true, rollback: None, why: None };
        };
        let why = match (state.rollback, state.overwritten_in) {
            (Some(_), _) => None,
            (None, Some(_)) => {
                Some("a resync overwrites it in place (allow_invalid): it cannot be promoted until that has ended")
            }
            (None, None) if !self.lineage.is_fresh() => {
                Some("what led back to an image is damaged or lost: it cannot be promoted until a resync has ended")
            }
            (None, None) => Some("its first full resync has not ended: it cannot be promoted before"),
        };
        ImageStatus { valid: state.rollback.is_some(), rollback: state.rollback, why }
    }

    fn state_name(&self) -> &'static str {
        match self.stage {
            _ if self.fault.is_some() => "faulted",
            Stage::Active if self.suspended => "suspended",
            Stage::Active => "serving",
            Stage::Promoting => "promoting",
            Stage::Demoting => "demoting",
            Stage::Passive => "passive",
        }
    }

    fn peer_status(&self, node: NodeId, now: Time) -> PeerStatus {
        let peer = &self.peers[node.0 as usize];
        PeerStatus {
            name: self.cfg.name(node).to_string(),
            state: self.peer_state(node, peer),
            mode: self.cfg.nodes[node.0 as usize].mode,
            received: peer.received,
            durable: peer.durable,
            applied: peer.applied,
            lag: self.lag(peer, now),
            round_trip_us: peer.round_trip_us,
            latency_us: PeerLatencyStatus { wire: peer.wire_times.lately(now), disk: peer.disk_times.lately(now) },
            progress: self.progress(peer, now),
            why: peer.why.clone(),
            differs: peer.differs.clone(),
        }
    }

    pub(super) fn peer_state(&self, node: NodeId, peer: &Peer) -> &'static str {
        match &peer.link {
            Link::Down | Link::Hearing(_) => "down",
            Link::Dialing if !peer.wanted => "down",
            Link::Dialing => "connecting",
            Link::Greeting(_) => "handshake",
            Link::Idle(_) => "idle",
            Link::Target(_) => "following",
            Link::Source(source) => match source.feed {
                Feed::Preparing => "preparing",
                Feed::Resync(_) => "resyncing",
                Feed::Stream { .. } if source.gap_open => "resyncing",
                Feed::Stream { .. } if self.is_member(node) => "in_sync",
                Feed::Stream { .. } if peer.joining.is_some() => "joining",
                Feed::Stream { .. } if self.cfg.nodes[node.0 as usize].mode == Mode::Async => "async",
                Feed::Stream { .. } => "catching_up",
            },
        }
    }

    /// Writes and bytes that the peer has not received; seconds since the oldest of them was accepted.
    fn lag(&self, peer: &Peer, now: Time) -> Lag {
        if self.role() != Role::Active {
            return Lag::default();
        }
        // Until it has been heard in this term, it is where it stood before.
        let received = peer.received.max(peer.heard.min(self.log.end()));
        let writes = self.log.end().0 - received.0.min(self.log.end().0);
        let bytes = self.log.covered_after(received);
        let seconds = self.accept_times.since(received, now);
        Lag { writes, bytes, seconds }
    }
}
