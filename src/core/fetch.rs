//! Before a node opens a term it fetches what in-sync members of its own lineage hold past its end (L1, C5): what the active
//! had sent and not written when it died is with the passives, and completed or not, it is the better end.

use super::api::*;
use super::hello::Hello;
use super::log_index::{Look, Place};
use super::node::{Node, Purpose};
use super::peer::Link;
use super::source::frame;
use super::types::*;

impl Node {
    /// Whether the peer's records past this node's end can simply be appended: both are of one newest term.
    pub(super) fn can_fetch_from(&self, node: NodeId, hello: &Hello) -> bool {
        let same_term = self.lineage.last().map(|t| t.id) == hello.lineage.last().map(|t| t.id);
        let idle = matches!(self.peers[node.0 as usize].link, Link::Idle(_));
        same_term && !self.lineage.is_fresh() && idle && self.gap.is_none() && hello.gap.is_none()
    }

    /// The connected peer that holds most past this node's end, if any does.
    pub(super) fn best_tail(&self) -> Option<(NodeId, SessionId)> {
        let ahead = |node: NodeId| {
            let peer = &self.peers[node.0 as usize];
            let hello = peer.hello.as_ref()?;
            let (true, Link::Idle(session)) = (self.can_fetch_from(node, hello), &peer.link) else { return None };
            let counts = self.charter.member(self.cfg.name(node)).is_some();
            (counts && hello.received > self.log.end()).then_some((hello.received, node, *session))
        };
        self.cfg.peers().filter_map(ahead).max_by_key(|(end, _, _)| *end).map(|(_, node, session)| (node, session))
    }

    /// A node that is being promoted asks for the records after `after`.
    pub(super) fn tail_wanted(&mut self, node: NodeId, session: SessionId, after: Lsn, term: TermId) {
        if !matches!(self.peers[node.0 as usize].link, Link::Idle(_)) {
            return self.close_link(node, "a question for records between nodes that are not idle", true);
        }
        let from = after.next();
        // What this node said of itself may be old: it may have followed another term since, whose records are not what is asked for.
        if self.lineage.term_at(from).map(|t| t.id) != Some(term) {
            return self.send_tail(node, session, Vec::new());
        }
        if self.overlay.first().is_some_and(|first| first <= from) {
            let records = frame(self.overlay.records_from(from).cloned(), self.frame_bytes(node));
            return self.send_tail(node, session, records);
        }
        match self.log.locate(from) {
            Some(place) => self.tail_from(node, session, from, place),
            None => self.send_tail(node, session, Vec::new()),
        }
    }

    fn tail_from(&mut self, node: NodeId, session: SessionId, from: Lsn, place: Place) {
        let op = self.log.read_of(&place);
        self.io(Purpose::Tail { peer: node, session, from, place }, Part::Log, op);
    }

    pub(super) fn tail_read(
        &mut self,
        node: NodeId,
        session: SessionId,
        from: Lsn,
        place: Place,
        result: Result<IoData, IoError>,
    ) {
        let found = match result {
            Ok(IoData::Bytes(body)) => self.log.look(&place, from, &body),
            _ => Look::Lost,
        };
        match found {
            Look::Records(records, _) => self.send_tail(node, session, records),
            Look::Next(place) => self.tail_from(node, session, from, place),
            Look::Lost => self.send_tail(node, session, Vec::new()),
        }
    }

    /// Records of one term: those of the first one's.
    fn send_tail(&mut self, node: NodeId, session: SessionId, mut records: Vec<Record>) {
        let term_of = |r: &Record| self.lineage.term_at(r.lsn).map(|t| t.id);
        if let Some(term) = records.first().and_then(term_of) {
            records.retain(|r| term_of(r) == Some(term));
        }
        let watermarks = self.my_watermarks();
        self.send_in(node, session, PeerMsg::Append { records, watermarks });
    }

    /// Records that this node asked for; none means that the peer cannot give them.
    pub(super) fn tail_came(&mut self, node: NodeId, records: Vec<Record>) {
        let sound =
            self.check_records(&records).is_ok() && records.first().is_some_and(|r| r.lsn == self.log.end().next());
        if !sound {
            return self.tail_is_not_to_be_had(node);
        }
        for record in records {
            if record.lsn != self.log.end().next() {
                return self.tail_is_not_to_be_had(node);
            }
            self.take_record(record);
        }
        self.tail_taken(node);
    }
}
