//! On the way to a term: the log comes to rest, and where its ring is too full for that, room is made or the promotion refused.

use super::*;

impl Node {
    /// All that is held is made durable, then the term may be opened (L1).
    pub(super) fn settle_to_open(&mut self) {
        if self.rollback.is_none() && self.log.is_settled() && self.store.is_resting() {
            return self.open_term();
        }
        let end = self.log.end();
        self.log.want_durable(end);
        self.commit_what_members_hold();
        // What the members have only written they flush by themselves before long (L3).
        if self.operation_is_late() && self.is_out_of_room() {
            let last = self.log.written().0;
            let records = end.0 - last;
            let holds = |n: &NodeId| self.peers[n.0 as usize].hello.as_ref().is_some_and(|h| h.received >= end);
            let peers = self.cfg.peers().filter(holds).map(|n| self.cfg.name(n).to_string()).collect();
            self.give_up_claim(Refusal::NoRoom { records, last, peers });
        }
    }

    /// The ring is full, and nothing is under way that would free any of it.
    fn is_out_of_room(&self) -> bool {
        let flushed = !self.log.is_busy() && self.log.durable() == self.log.written();
        let resting = flushed && self.store.is_resting() && self.superblock.is_settled();
        let all_applied = self.store.applied() >= self.committed.min(self.log.durable());
        resting && all_applied && self.log.is_full() && !self.is_reclaiming()
    }

    /// Committed is what is durable here and on each member (S1). There is no active to say so: the members' own words count, and free
    /// a ring that is full of what has been committed long since.
    fn commit_what_members_hold(&mut self) {
        let Some(Operation { kind: Kind::Promote { opening, .. }, .. }) = &self.operation else { return };
        let mut committed = self.log.durable();
        for member in opening.in_sync.iter().filter(|m| m.node != self.cfg.my_name()) {
            let peer = self.cfg.find(&member.node).map(|n| &self.peers[n.0 as usize]);
            let hello = peer.filter(|p| matches!(p.link, Link::Idle(_))).and_then(|p| p.hello.as_ref());
            let Some(hello) = hello.filter(|h| h.gap.is_none()) else { return };
            match self.lineage.relation(self.log.end(), &hello.lineage, hello.durable) {
                Relation::Common { fork } => committed = committed.min(fork),
                Relation::Unrelated => return,
            }
        }
        self.committed = self.committed.max(committed);
    }
}
