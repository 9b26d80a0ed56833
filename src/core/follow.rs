//! Whom a node follows, and what it makes of hearing that another was promoted (C7, C8).

use super::api::PeerMsg;
use super::hello::{Charter, Hello};
use super::links::{FAILED, MAX_BACKOFF_MS};
use super::node::Node;
use super::notice::{Notice, Refusal};
use super::peer::Link;
use super::split_brain;
use super::superblock::Then;
use super::types::*;

/// Whether `passive` may follow `active`, by what both say of themselves: none that, as the passive has durably seen, another
/// promotion has overtaken (C7, C8). Versions of one promotion's charter are all its active's own, and do not matter here.
pub(super) fn may_follow(passive: &Hello, active: &Hello) -> Result<(), String> {
    let name = &active.node;
    if passive.lineage.is_empty() {
        return Ok(()); // It holds nothing that another decision could touch.
    }
    if passive.charter.generation.0 > active.charter.generation.0 {
        return Err(split_brain::replaced(name));
    }
    if active.charter.conflicts_with(&passive.charter) {
        return Err(split_brain::conflict(name, &passive.node));
    }
    if passive.charter.overtakes(&active.charter) {
        let by = passive.charter.active.as_deref().or(passive.charter.heir.as_deref());
        return Err(split_brain::overtaken(name, by.unwrap_or("another node")));
    }
    Ok(())
}

impl Node {
    /// Of a node with which no session is wanted, or can be had, nothing is heard but that it runs and who was promoted; and it is told only
    /// that it is active no more, if it does not know (C8).
    pub(super) fn overheard(&mut self, node: NodeId, hello: &Hello) {
        if self.check_identity(node, hello).is_ok() {
            self.hear_of_promotions(node, hello);
            let session = self.peers[node.0 as usize].session();
            let outdated = hello.role == Role::Active && self.charter_in_force().overtakes(&hello.charter);
            if let Some(session) = session.filter(|_| outdated) {
                let hello = Box::new(self.my_hello());
                self.send(node, session, PeerMsg::Hello(hello));
            }
        }
        self.close_link(node, if self.fault.is_some() { FAILED } else { "disconnected by the operator" }, true);
        let peer = &mut self.peers[node.0 as usize];
        peer.answered_at = Some(self.now);
        peer.retry_at = self.now.plus_ms(MAX_BACKOFF_MS);
    }

    /// Who was promoted counts in whatever session it is heard, also in one that is not wanted or that only asks (C7, C8).
    pub(super) fn hear_of_promotions(&mut self, node: NodeId, hello: &Hello) {
        self.check_claim(node, &hello.charter);
        match self.role() {
            Role::Active if hello.charter.overtakes(&self.charter) => self.overtaken(node, &hello.charter),
            Role::Active => {}
            Role::Passive => self.hear_charter(&hello.charter),
        }
    }

    pub(super) fn check_claim(&mut self, node: NodeId, charter: &Charter) {
        if self.claim_is_outdated(charter) {
            let peer = self.cfg.name(node).to_string();
            self.contradict(Refusal::Claimed { peer });
        }
    }

    /// Somebody was promoted since this node was: its term is over. It has released the role, or it was taken for dead (C8).
    pub(super) fn overtaken(&mut self, node: NodeId, later: &Charter) {
        match self.is_released() {
            true => {
                self.released_to(later);
                self.close_link(node, "it has stepped down", true);
            }
            false => self.outvoted(node),
        }
    }

    /// Whoever was followed is followed no more when a later promotion is heard of (C7, C8): the next Hello tells it so.
    fn leave_the_overtaken(&mut self) {
        for node in self.cfg.peers() {
            let peer = &self.peers[node.0 as usize];
            let followed = matches!(peer.link, Link::Target(_));
            let Some(charter) = peer.hello.as_ref().filter(|_| followed).map(|h| h.charter.clone()) else { continue };
            if self.charter.overtakes(&charter) {
                self.close_link(node, "another node was promoted since", true);
            }
        }
    }

    /// Whether an active may be followed: only one at a time, and see [`may_follow`].
    pub(super) fn check_follow(&self, node: NodeId, hello: &Hello) -> Result<(), String> {
        let name = self.cfg.name(node);
        // One that released its role and does not know yet that this one has taken it is left.
        let left =
            |of: &Hello| of.charter.generation == hello.charter.generation && hello.charter.overtakes(&of.charter);
        let followed = |n: &NodeId| {
            let peer = &self.peers[n.0 as usize];
            *n != node && matches!(peer.link, Link::Target(_)) && !peer.hello.as_deref().is_some_and(left)
        };
        if let Some(other) = self.cfg.peers().find(followed) {
            return Err(split_brain::two_actives(self.cfg.name(other), name));
        }
        may_follow(&self.my_hello(), hello)
    }

    /// A passive follows the newest charter that it meets (C7).
    pub(super) fn hear_charter(&mut self, charter: &Charter) {
        if charter.newer_than(&self.charter) {
            self.charter = charter.clone();
            if self.charter.active.as_deref() != Some(self.cfg.my_name()) {
                self.may_resume = false;
            }
            self.persist(Then::Remember);
            self.leave_the_overtaken();
        }
    }

    pub(super) fn charter_came(&mut self, node: NodeId, session: SessionId, charter: Charter) {
        if self.peers[node.0 as usize].target_mut().is_none() {
            return;
        }
        if self.charter.overtakes(&charter) || self.charter.conflicts_with(&charter) {
            return self.close_link(node, "another node was promoted since", true);
        }
        let version = charter.version;
        self.hear_charter(&charter);
        self.persist(Then::ConfirmCharter { peer: node, session, version });
    }

    /// Its term is over, and it has not stepped down.
    pub fn is_outvoted(&self) -> bool {
        self.is_outvoted && self.role() == Role::Active
    }

    /// A node with a higher generation was met: clients are served no more, and an operator decides (C8).
    pub(super) fn outvoted(&mut self, node: NodeId) {
        let peer = self.cfg.name(node).to_string();
        if !self.is_outvoted {
            self.notice(Notice::SplitBrain { peer: peer.clone() });
            self.stop_serving();
        }
        self.is_outvoted = true;
        // Restarted, it still knows: it does not resume before that node has said what came of it.
        self.pledge = Some(peer.clone());
        self.persist(Then::Remember);
        self.set_suspended(true, "another node was promoted by force since: demote this one");
        let me = self.cfg.my_name().to_string();
        self.refuse(node, split_brain::outvoted(&me, &peer));
    }
}
