//! What the log holds, for `understudy log`.

use super::node::Node;
use super::peer::Link;
use super::types::*;
use serde::Serialize;

/// The answer to `understudy log`. Positions are lsns, sizes bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogReport {
    pub node: String,
    pub size: u64,
    pub used: u64,
    pub free: u64,
    /// The oldest and the newest record in it; `to` is below `from` where it holds none.
    pub from: Lsn,
    pub to: Lsn,
    pub durable: Lsn,
    pub batches: u64,
    /// What its records cover.
    pub covers_bytes: u64,
    pub terms: Vec<TermInLog>,
    /// Records up to here could be dropped if room were needed: the store holds them.
    pub droppable_to: Lsn,
    pub held_by: HeldBy,
    pub peers: Vec<PeerInLog>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TermInLog {
    pub number: u64,
    pub id: String,
    pub from: Lsn,
    pub to: Lsn,
}

/// Why the oldest records are still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldBy {
    /// Nobody needs them: they stay until the room is wanted, for peers that come back.
    Nobody,
    /// The store does not have them yet.
    Store,
}

/// What a peer would be fed from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerInLog {
    pub name: String,
    /// What it surely holds.
    pub durable: Lsn,
    /// The log reaches back to what it lacks; else it needs a resync.
    pub reached: bool,
    /// What is listed for it because the log has dropped it.
    pub listed_bytes: u64,
}

impl Node {
    pub(super) fn log_report(&self) -> LogReport {
        let (from, to, checkpointed) = (self.log.from(), self.log.end(), self.superblock.checkpoint());
        let used = self.log.used().min(self.log.size());
        LogReport {
            node: self.cfg.my_name().to_string(),
            size: self.log.size(),
            used,
            free: self.log.size() - used,
            from,
            to,
            durable: self.log.durable(),
            batches: self.log.batches(),
            covers_bytes: self.log.covered_after(from.prev()),
            terms: self.terms_in_log(from, to),
            droppable_to: checkpointed,
            held_by: if checkpointed < from && from <= to { HeldBy::Store } else { HeldBy::Nobody },
            peers: self.cfg.peers().map(|n| self.peer_in_log(n, from)).collect(),
        }
    }

    fn terms_in_log(&self, from: Lsn, to: Lsn) -> Vec<TermInLog> {
        let terms = self.lineage.terms();
        let span = |(i, t): (usize, &Term)| {
            let end = terms.get(i + 1).map_or(to, |next| next.first.prev().min(to));
            let (from, to) = (t.first.max(from), end);
            (from <= to).then(|| TermInLog { number: t.number, id: format!("{:032x}", t.id.0), from, to })
        };
        terms.iter().enumerate().filter_map(span).collect()
    }

    fn peer_in_log(&self, node: NodeId, from: Lsn) -> PeerInLog {
        let peer = &self.peers[node.0 as usize];
        let mut durable = peer.known.max(peer.durable);
        if matches!(peer.link, Link::Target(_)) {
            // It is the active that this node follows: what is committed is durable there.
            durable = durable.max(self.committed);
        }
        let bitmap = &self.bitmaps[node.0 as usize];
        let name = self.cfg.name(node).to_string();
        PeerInLog { name, durable, reached: durable.next() >= from, listed_bytes: bitmap.bits.bytes() }
    }
}
