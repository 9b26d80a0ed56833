//! Who is in sync: the keeper `alone` (C9). The set is the active's opinion; a change of it counts only when it is durable
//! here and at every remaining member, and until then the active waits for old and new members alike (C4).

use super::api::*;
use super::hello::{Charter, Member};
use super::node::{Node, Stage};
use super::notice::Notice;
use super::superblock::Then;
use super::types::*;
use crate::format::batch::MAX_RECORD_BYTES;
use std::collections::BTreeSet;

/// A change that is not over.
#[derive(Debug)]
pub struct Change {
    /// What is asked for.
    pub charter: Charter,
    /// Everyone listed in the charter in force or in any that was asked for since (C4).
    union: Vec<Member>,
    /// Members of the asked-for charter that have not confirmed it.
    unconfirmed: BTreeSet<NodeId>,
    own: bool,
    since: Time,
    dropped: Vec<(NodeId, String)>,
}

impl Node {
    /// The members, this node not among them, that completions wait for, with their proven positions: (received, durable).
    /// Whoever has restarted since it was listed has proven nothing (C1).
    pub(super) fn required_positions(&self) -> Vec<(Lsn, Lsn)> {
        self.required().into_iter().map(|(_, received, durable)| (received, durable)).collect()
    }

    fn required(&self) -> Vec<(NodeId, Lsn, Lsn)> {
        let listed = self.change.as_ref().map_or(&self.charter.in_sync, |c| &c.union);
        let mut required: Vec<(NodeId, Lsn, Lsn)> = Vec::with_capacity(listed.len());
        for member in listed {
            let Some(node) = self.cfg.find(&member.node).filter(|n| *n != self.cfg.me) else { continue };
            let peer = &self.peers[node.0 as usize];
            let proven = peer.incarnation == Some(member.incarnation);
            let (received, durable) = if proven { (peer.received, peer.durable) } else { (Lsn(0), Lsn(0)) };
            required.push((node, received, durable));
        }
        for node in self.cfg.peers() {
            let peer = &self.peers[node.0 as usize];
            if peer.joining.is_some() && !required.iter().any(|(n, _, _)| *n == node) {
                required.push((node, peer.received, peer.durable));
            }
        }
        required
    }

    /// Whether a node is listed, with the incarnation that it has now.
    pub(super) fn is_member(&self, node: NodeId) -> bool {
        let member = self.charter.member(self.cfg.name(node));
        member.is_some_and(|m| self.peers[node.0 as usize].incarnation == Some(m.incarnation))
    }

    /// Looks after the in-sync set: drops who holds writes up for too long, admits who has caught up.
    pub(super) fn poll_charter(&mut self) {
        if self.role() != Role::Active || self.fault.is_some() {
            return;
        }
        self.watch_members();
        self.admit_peers();
        self.check_suspension();
    }

    /// `stall_ms` from the first write, flush or charter change that waits for a member to its end (C4, C10).
    fn watch_members(&mut self) {
        // What this node's own log holds back is no fault of a member.
        let accepted = self.held_back().map_or(self.log.end(), |first| Lsn(first.0 - 1));
        let flush_to = self.flush_to;
        let mut late: Vec<(NodeId, &'static str)> = Vec::new();
        for (node, received, durable) in self.required() {
            let unconfirmed = self.change.as_ref().is_some_and(|c| c.unconfirmed.contains(&node));
            let down = self.peers[node.0 as usize].down_since;
            let behind = received < accepted || durable < flush_to.min(accepted);
            let marked = match self.peers[node.0 as usize].waiting {
                _ if !behind => None,
                // A mark stands until the record that set it is there: progress elsewhere does not help a waiting write.
                Some((mark, since)) if received < mark || durable < flush_to.min(mark) => Some((mark, since)),
                _ => Some((accepted, self.now.plus_ms(self.limit_ms(node, received)))),
            };
            let peer = &mut self.peers[node.0 as usize];
            peer.waiting = marked;
            let stall_us = self.cfg.stall_ms * 1000;
            let stalled = |since: Time| self.now.since_us(since) >= stall_us;
            if peer.waiting.is_some_and(|(_, since)| stalled(since)) {
                late.push((node, "a write waited for it longer than stall_ms"));
            } else if unconfirmed && self.change.as_ref().is_some_and(|c| stalled(c.since)) {
                late.push((node, "it did not confirm the charter within stall_ms"));
            } else if down.is_some_and(stalled) {
                late.push((node, "it has been unreachable for longer than stall_ms"));
            }
        }
        for (node, why) in late {
            self.drop_member(node, why);
        }
    }

    /// How long the limit of a peer's bandwidth makes the records after `received` take: that is no stall of the peer.
    fn limit_ms(&self, node: NodeId, received: Lsn) -> u64 {
        let Some(bandwidth) = self.cfg.nodes[node.0 as usize].bandwidth else { return 0 };
        let bytes: u64 = self.overlay.records_from(received.next()).map(|r| r.payload.len() as u64).sum();
        // Before them the frame that went last must be paid for, and a record is not cut.
        let debt = self.frame_bytes(node) + MAX_RECORD_BYTES;
        (bytes + debt).saturating_mul(1000) / bandwidth
    }

    /// Takes a node out of the in-sync set, or out of those about to join. With `on_stall = "suspend"` the set keeps two.
    pub(super) fn drop_member(&mut self, node: NodeId, why: &str) {
        let end = self.log.end();
        let present = self.change.as_ref().map_or(&self.charter, |c| &c.charter);
        let listed = present.member(self.cfg.name(node)).is_some();
        if listed && self.cfg.on_stall == OnStall::Suspend && self.copies(present) <= 2 {
            return self.set_suspended(true, why); // It stays, and what waits for it waits on.
        }
        let mut charter = present.clone();
        let peer = &mut self.peers[node.0 as usize];
        peer.joining = None;
        peer.waiting = None;
        peer.rejoin_from = end;
        if !listed {
            return;
        }
        let name = self.cfg.name(node).to_string();
        charter.in_sync.retain(|m| m.node != name);
        self.ask(charter, Some((node, why.to_string())));
    }

    /// A member came back as another incarnation: what it had in memory is gone (C1).
    pub(super) fn check_incarnation(&mut self, node: NodeId) {
        if self.role() != Role::Active {
            return;
        }
        let present = self.change.as_ref().map_or(&self.charter, |c| &c.charter);
        let listed = present.member(self.cfg.name(node)).map(|m| m.incarnation);
        if listed.is_some_and(|i| Some(i) != self.peers[node.0 as usize].incarnation) {
            self.unlist(node, "its daemon was restarted");
        }
    }

    /// Takes a node out of the set that is known not to be in sync. With `on_stall = "suspend"` too: waiting for it would never
    /// end, since it is made whole only by what is committed.
    pub(super) fn unlist(&mut self, node: NodeId, why: &str) {
        let name = self.cfg.name(node).to_string();
        let mut charter = self.change.as_ref().map_or(&self.charter, |c| &c.charter).clone();
        if charter.member(&name).is_some() {
            charter.in_sync.retain(|m| m.node != name);
            self.ask(charter, Some((node, why.to_string())));
        }
    }

    fn admit_peers(&mut self) {
        if self.stage != Stage::Active {
            return;
        }
        for node in self.cfg.peers() {
            let at = node.0 as usize;
            let sync = self.cfg.nodes[at].mode == Mode::Sync;
            if !sync || !self.peers[at].is_streamed() || self.is_listed(node) {
                continue;
            }
            match self.peers[at].joining {
                None if self.is_close(node) => self.begin_joining(node),
                // Durable past all that completed before, and past committed: it may be listed (S1, C4).
                Some(mark) if self.peers[at].durable >= mark.max(self.committed) && self.change.is_none() => {
                    self.admit(node);
                }
                _ => {}
            }
        }
    }

    fn is_listed(&self, node: NodeId) -> bool {
        let present = self.change.as_ref().map_or(&self.charter, |c| &c.charter);
        present.member(self.cfg.name(node)).is_some()
    }

    /// Few enough records behind that waiting for it will not be felt.
    fn is_close(&self, node: NodeId) -> bool {
        let peer = &self.peers[node.0 as usize];
        let lag = self.log.end().0.saturating_sub(peer.received.0);
        lag <= 64 && peer.durable >= peer.rejoin_from
    }

    /// From now on every write waits for it; once it is durable past what completed before, it is listed.
    fn begin_joining(&mut self, node: NodeId) {
        let mark = self.log.end();
        self.peers[node.0 as usize].joining = Some(mark);
        self.peers[node.0 as usize].waiting = None;
        self.flush_to = self.flush_to.max(mark);
        self.log.want_durable(mark);
    }

    fn admit(&mut self, node: NodeId) {
        let mut charter = self.charter.clone();
        // A streamed peer has said Hello, and that names its incarnation.
        let Some(incarnation) = self.peers[node.0 as usize].incarnation else { return };
        charter.in_sync.push(Member { node: self.cfg.name(node).to_string(), incarnation });
        self.ask(charter, None);
    }

    /// Asks for a charter: durable here, and at every member that it lists. A change under way is replaced, its members
    /// stay in the union (C4).
    pub(super) fn ask(&mut self, mut charter: Charter, dropped: Option<(NodeId, String)>) {
        let (mut union, mut drops, version) = match self.change.take() {
            Some(change) => (change.union, change.dropped, change.charter.version),
            None => (self.charter.in_sync.clone(), Vec::new(), self.charter.version),
        };
        charter.version = version + 1;
        for member in &charter.in_sync {
            if !union.contains(member) {
                union.push(member.clone());
            }
        }
        drops.extend(dropped);
        let me = self.cfg.me;
        let unconfirmed: BTreeSet<NodeId> =
            charter.in_sync.iter().filter_map(|m| self.cfg.find(&m.node)).filter(|n| *n != me).collect();
        let version = charter.version;
        for node in &unconfirmed {
            self.send_charter(*node, charter.clone());
        }
        self.change = Some(Change { charter, union, unconfirmed, own: false, since: self.now, dropped: drops });
        self.persist(Then::CharterStands { version });
    }

    fn send_charter(&mut self, node: NodeId, charter: Charter) {
        let peer = &self.peers[node.0 as usize];
        if let (true, Some(session)) = (peer.is_streamed(), peer.session()) {
            self.send(node, session, PeerMsg::Charter(charter));
        }
    }

    /// A member that had not heard of the change is reached again.
    pub(super) fn tell_charter(&mut self, node: NodeId) {
        if let Some(change) = &self.change {
            let charter = change.charter.clone();
            self.send_charter(node, charter);
        } else if self.charter.generation != (0, 0) {
            let charter = self.charter.clone();
            self.send_charter(node, charter);
        }
    }

    pub(super) fn charter_stands(&mut self, version: u64) {
        if let Some(change) = self.change.as_mut().filter(|c| c.charter.version == version) {
            change.own = true;
        }
        self.finish_change();
    }

    pub(super) fn charter_confirmed(&mut self, node: NodeId, version: u64) {
        if let Some(change) = self.change.as_mut().filter(|c| c.charter.version == version) {
            change.unconfirmed.remove(&node);
        }
        self.finish_change();
    }

    fn finish_change(&mut self) {
        if !self.change.as_ref().is_some_and(|c| c.own && c.unconfirmed.is_empty()) {
            return;
        }
        // Just seen.
        let change = self.change.take().expect("a change");
        let before = std::mem::replace(&mut self.charter, change.charter);
        for (node, why) in change.dropped {
            let peer = self.cfg.name(node).to_string();
            if before.member(&peer).is_some() {
                self.notice(Notice::Dropped { peer, why });
            }
        }
        for member in self.charter.in_sync.clone() {
            let Some(node) = self.cfg.find(&member.node).filter(|n| *n != self.cfg.me) else { continue };
            if before.member(&member.node) != Some(&member) {
                self.peers[node.0 as usize].joining = None;
                self.notice(Notice::InSync { peer: member.node });
            }
        }
        // Before anything completes by the new set: "suspend" allows nothing to complete on one node alone.
        self.check_suspension();
        self.charter_changed();
    }

    fn check_suspension(&mut self) {
        if self.cfg.on_stall != OnStall::Suspend || self.stage != Stage::Active || self.is_outvoted {
            return;
        }
        let others_sync = self.cfg.peers().any(|n| self.cfg.nodes[n.0 as usize].mode == Mode::Sync);
        let alone = self.copies(&self.charter) < 2 && others_sync;
        let late = self.cfg.peers().any(|n| {
            let peer = &self.peers[n.0 as usize];
            let unconfirmed = self.change.as_ref().is_some_and(|c| c.unconfirmed.contains(&n) && self.stalled(c.since));
            let waited_for = peer.waiting.is_some_and(|(_, t)| self.stalled(t));
            self.is_listed(n) && (peer.down_since.is_some() || unconfirmed || waited_for)
        });
        if alone {
            self.set_suspended(true, "fewer than two members are in sync, and on_stall is \"suspend\"");
        } else if !late {
            self.set_suspended(false, "");
        }
    }

    /// Members that are waited for, this node among them: no others are a second copy.
    fn copies(&self, charter: &Charter) -> usize {
        let counts = |m: &&Member| m.node == self.cfg.my_name() || self.is_sync(&m.node);
        charter.in_sync.iter().filter(counts).count()
    }

    /// Whether this node's file knows a node by this name, and that it is sync.
    pub(super) fn is_sync(&self, name: &str) -> bool {
        self.cfg.find(name).is_some_and(|n| self.cfg.nodes[n.0 as usize].mode == Mode::Sync)
    }

    fn stalled(&self, since: Time) -> bool {
        self.now.since_us(since) >= self.cfg.stall_ms * 1000
    }

    pub(super) fn set_suspended(&mut self, suspended: bool, why: &str) {
        if self.suspended != suspended {
            self.suspended = suspended;
            let notice = if suspended { Notice::Suspended { why: why.into() } } else { Notice::Resumed };
            self.notice(notice);
        }
    }
}
