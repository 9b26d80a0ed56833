//! A promotion is claimed from every connected node before its term is opened (C9), and leaves no trace where nothing comes of it.

use super::*;

impl Node {
    /// What this node will hold once it is active. The members stay: they acknowledge in the new term, or are dropped (C3, C4).
    pub(super) fn opening_charter(&mut self, forced: bool, off: &[NodeId]) -> Charter {
        let mut charter = self.charter.clone();
        if forced || charter.generation == (0, 0) {
            let names: Vec<&str> = off.iter().map(|n| self.cfg.name(*n)).collect();
            // The members are those of the charter's promotion. If it is not the one that this node's own records end in, they say
            // nothing of these: a node that could not rejoin is forced beside a newer active's followers.
            let of_mine = self.lineage.last().is_some_and(|t| t.number == charter.term);
            charter.in_sync.retain(|m| of_mine && !names.contains(&m.node.as_str()));
            // A first promotion founds generation 1; by force it is a higher one, above all that this node has heard of.
            let heard = self.peers.iter().filter_map(|p| p.hello.as_ref()).map(|h| h.charter.generation.0).max();
            let highest = charter.generation.0.max(heard.unwrap_or(0));
            let number = if forced { (highest + 1).max(2) } else { 1 };
            charter.generation = (number, self.draw_id());
        }
        let me = Member { node: self.cfg.my_name().to_string(), incarnation: self.cfg.incarnation };
        // So is the term that it opens above all others: two promotions of one generation never have the same number (C7).
        let hellos = self.peers.iter().filter_map(|p| p.hello.as_ref());
        let heard = hellos.map(|h| h.charter.term.max(h.lineage.last().map_or(0, |t| t.number))).max();
        let own = self.lineage.last().map_or(0, |t| t.number);
        charter.term = charter.term.max(own).max(heard.unwrap_or(0)) + 1;
        charter.version += 1;
        charter.active = Some(me.node.clone());
        charter.heir = None;
        charter.released = None;
        // Nobody would wait for one that the file knows no more, and it would count as a second copy; one that is async now is waited for no
        // more.
        charter.in_sync.retain(|m| m.node != me.node && self.is_sync(&m.node));
        charter.in_sync.push(me);
        charter
    }

    /// Another node is about to be promoted. Of two that claim at once the one whose name sorts lower goes on.
    pub(in crate::core) fn claim_came(&mut self, node: NodeId, session: SessionId, charter: Charter) {
        let version = charter.version;
        let claiming = matches!(self.operation, Some(Operation { kind: Kind::Promote { before: None, .. }, .. }));
        let yields = self.stage == Stage::Promoting && claiming && node < self.cfg.me;
        let free =
            self.stage == Stage::Passive && self.operation.is_none() && self.granted.is_none_or(|(n, _)| n == node);
        let idle = matches!(self.peers[node.0 as usize].link, Link::Idle(_));
        // Only force goes past what was pledged to somebody else: that node may serve by now.
        let name = self.cfg.name(node);
        let pledged =
            self.pledge.as_deref().is_some_and(|to| to != name) && charter.generation == self.charter.generation;
        if !idle || pledged || !(free || yields) || !charter.newer_than(&self.charter) || self.fault.is_some() {
            return self.send(node, session, PeerMsg::ClaimAnswer { version, granted: false });
        }
        if yields {
            let name = self.cfg.name(node).to_string();
            self.give_up_claim(Refusal::Claimed { peer: name });
        }
        self.granted = Some((node, session));
        // It will not be promoted itself before it has heard that nothing came of this.
        self.pledge = Some(self.cfg.name(node).to_string());
        self.persist(Then::GrantClaim { peer: node, session, version });
    }

    /// Whether a promotion that does not serve yet has been overtaken by what another node knows, or began from something outdated.
    pub(in crate::core) fn claim_is_outdated(&self, charter: &Charter) -> bool {
        match &self.operation {
            Some(Operation { kind: Kind::Promote { opening, .. }, .. }) => {
                let began_from = self.charter_in_force();
                charter.newer_than(opening)
                    || charter.conflicts_with(opening)
                    || (charter.generation == opening.generation && charter.newer_than(began_from))
            }
            _ => false,
        }
    }

    fn before(&self) -> Option<&Before> {
        match &self.operation {
            Some(Operation { kind: Kind::Promote { before, .. }, .. }) => before.as_deref(),
            _ => None,
        }
    }

    /// What this node tells others: a promotion is nobody's business until it serves, or it could not be taken back.
    pub(in crate::core) fn charter_in_force(&self) -> &Charter {
        self.before().map_or(&self.charter, |b| &b.charter)
    }

    pub(in crate::core) fn lineage_in_force(&self) -> &Lineage {
        self.before().map_or(&self.lineage, |b| &b.lineage)
    }

    /// The term was opened, and nothing was written in it or told of it: it leaves no trace, or nobody who follows the active that
    /// this node met would be followed by this one again (C7).
    pub(super) fn take_back_term(&mut self) {
        let Some(Operation { kind: Kind::Promote { before, opening, .. }, .. }) = &mut self.operation else { return };
        let Some(before) = before.take() else { return };
        if self.charter == **opening {
            self.charter = before.charter;
        }
        self.lineage = before.lineage;
        self.pledge = before.pledge;
        self.lost = before.lost;
        self.persist(Then::Remember);
    }

    pub(in crate::core) fn claim_answered(&mut self, node: NodeId, of: u64, granted: bool) {
        let Some(Operation { kind: Kind::Promote { before: None, opening, unanswered, .. }, .. }) = &mut self.operation
        else {
            return;
        };
        if opening.version != of {
            return;
        }
        unanswered.remove(&node);
        if !granted {
            let peer = self.cfg.name(node).to_string();
            self.give_up_claim(Refusal::Claimed { peer });
        }
    }

    pub(super) fn fetch_tail(&mut self) {
        let (Some((node, session)), Some(term)) = (self.best_tail(), self.lineage.last().map(|t| t.id)) else { return };
        if let Some(Operation { kind: Kind::Promote { fetching, .. }, .. }) = &mut self.operation {
            *fetching = Some(node);
        }
        let after = self.log.end();
        self.send(node, session, PeerMsg::Fetch { after, term });
    }

    pub(in crate::core) fn is_fetching_from(&self, node: NodeId) -> bool {
        matches!(&self.operation, Some(Operation { kind: Kind::Promote { fetching: Some(n), .. }, .. }) if *n == node)
    }

    pub(in crate::core) fn tail_taken(&mut self, node: NodeId) {
        if let Some(Operation { kind: Kind::Promote { fetching, .. }, .. }) = &mut self.operation
            && *fetching == Some(node)
        {
            *fetching = None;
        }
    }

    /// Whoever held more cannot give it: this node is not promoted past it without the operator's word.
    pub(in crate::core) fn tail_is_not_to_be_had(&mut self, node: NodeId) {
        if self.is_fetching_from(node) {
            let peer = self.cfg.name(node).to_string();
            let end = self.peers[node.0 as usize].hello.as_ref().map_or(0, |h| h.received.0);
            let records = end.saturating_sub(self.log.end().0);
            self.give_up_claim(Refusal::Behind { peer, records, end });
        }
    }

    /// The session with a node that was asked is over: its word is not to be had.
    pub(in crate::core) fn claim_lost(&mut self, node: NodeId) {
        let lost = matches!(&self.operation, Some(Operation { kind: Kind::Promote { before: None, unanswered, .. }, .. })
            if unanswered.contains(&node));
        if lost {
            let peer = self.cfg.name(node).to_string();
            self.give_up_claim(Refusal::Unreachable { peers: vec![peer], alone: Vec::new() });
        }
    }

    /// Another node serves, or was promoted: this one does not go on.
    pub(in crate::core) fn contradict(&mut self, why: Refusal) {
        match &mut self.operation {
            Some(Operation { kind: Kind::Promote { before: None, .. }, .. }) => self.give_up_claim(why),
            Some(operation @ Operation { kind: Kind::Promote { .. }, .. }) => operation.contradicted = Some(why),
            _ => {}
        }
    }

    pub(in crate::core) fn give_up_claim(&mut self, why: Refusal) {
        let id = self.operation.take().and_then(|o| o.id);
        self.set_stage(Stage::Passive);
        self.answer(id, Err(why));
        // Whoever granted the claim is free again once the session is over.
        for node in self.cfg.peers() {
            if matches!(self.peers[node.0 as usize].link, Link::Idle(_)) {
                self.close_link(node, "its promotion was given up", true);
            }
        }
    }
}
