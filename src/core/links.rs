//! Connections: dialing, the handshake and its verdict, keepalive, loss.

use super::api::*;
use super::hello::{FEATURES, Hello, PROTOCOL};
use super::lineage::Relation;
use super::node::{Node, Stage};
use super::notice::Notice;
use super::peer::{Feed, Link, Source};
use super::split_brain;
use super::types::*;
use std::collections::{BTreeSet, VecDeque};

/// Pauses between two attempts to connect, in ms: each is twice the one before.
const MIN_BACKOFF_MS: u64 = 10;
pub(super) const MAX_BACKOFF_MS: u64 = 1000;
/// A session that stood this long was of use: after it the pauses begin anew. One that ends sooner does not count, however far its
/// handshake came; or two nodes that cannot work together would dial, greet and part without a pause.
const OF_USE_MS: u64 = 1000;
/// Heartbeats missed until a session is given up.
const SILENT_HEARTBEATS: u64 = 10;
/// Bytes of a peer's words that are shown; its longest ones are those about a split brain.
const MOST_SAID: usize = 1000;

/// Why there is no session with a node that could not be connected to.
const UNREACHABLE: &str = "it cannot be reached";

/// Why there is none with a node whose storage failed.
pub(super) const FAILED: &str = "its storage failed";

/// What another node says, for this one's events and status: on one line, and not without end.
fn harmless(words: &str) -> String {
    let mut said = String::new();
    for c in words.chars() {
        if said.len() >= MOST_SAID {
            said.push_str("...");
            break;
        }
        match c.is_control() {
            true => said.extend(c.escape_default()),
            false => said.push(c),
        }
    }
    said
}

impl Node {
    fn peer_mut(&mut self, node: NodeId) -> &mut super::peer::Peer {
        &mut self.peers[node.0 as usize]
    }

    /// Of two nodes the one whose name sorts lower dials.
    fn dials(&self, node: NodeId) -> bool {
        self.cfg.me < node
    }

    pub(super) fn send(&mut self, peer: NodeId, session: SessionId, message: PeerMsg) {
        let now = self.now;
        self.peer_mut(peer).last_sent = now;
        self.act(Action::Send { peer, session, message });
    }

    /// Sends if that session still stands.
    pub(super) fn send_in(&mut self, peer: NodeId, session: SessionId, message: PeerMsg) {
        if self.peer_mut(peer).session() == Some(session) {
            self.send(peer, session, message);
        }
    }

    pub(super) fn poll_links(&mut self) {
        for node in self.cfg.peers() {
            self.poll_dial(node);
            self.poll_probe(node);
            self.poll_pace(node);
            self.poll_keepalive(node);
            self.poll_target(node);
        }
    }

    fn poll_dial(&mut self, node: NodeId) {
        let (now, dials) = (self.now, self.dials(node));
        let peer = self.peer_mut(node);
        // Whoever wants no session, or cannot have one, dials too: the other side is to hear that it runs, and it who was promoted (C7, C8).
        if matches!(peer.link, Link::Down) && dials && peer.retry_at <= now {
            peer.link = Link::Dialing;
            self.act(Action::Connect { peer: node });
        }
    }

    fn poll_keepalive(&mut self, node: NodeId) {
        let silent_us = self.cfg.heartbeat_ms * SILENT_HEARTBEATS * 1000;
        let beat_us = self.cfg.heartbeat_ms * 1000;
        let (now, watermarks) = (self.now, self.my_watermarks());
        // While a superblock is on its way, where this node stands is not durable yet.
        let idle = self.superblock.is_settled().then(|| self.idle_ack());
        let acknowledges = self.target_ack(node).is_some();
        let peer = self.peer_mut(node);
        let Some(session) = peer.session() else { return };
        if now.since_us(peer.last_heard) >= silent_us {
            return self.close_link(node, "no word for ten heartbeats", false);
        }
        if now.since_us(peer.last_sent) < beat_us {
            return;
        }
        match &peer.link {
            Link::Source(_) => self.send(node, session, PeerMsg::Heartbeat { watermarks }),
            Link::Idle(_) => self.send(node, session, idle.map_or(PeerMsg::Heartbeat { watermarks }, PeerMsg::Ack)),
            // What is set aside, applied or closed first may take long, and the other side must not take it for silence.
            Link::Target(_) if !acknowledges => self.send(node, session, PeerMsg::Heartbeat { watermarks }),
            Link::Target(_) => self.send_ack(node),
            Link::Down | Link::Dialing | Link::Greeting(_) | Link::Hearing(_) => {}
        }
    }

    pub(super) fn link_deadline(&self) -> Option<Time> {
        let beat = self.cfg.heartbeat_ms;
        let mut earliest: Option<Time> = None;
        for node in self.cfg.peers() {
            let peer = &self.peers[node.0 as usize];
            let at = match peer.link {
                Link::Down if self.dials(node) => Some(peer.retry_at),
                Link::Down | Link::Dialing => None,
                // Nothing is said to it.
                Link::Hearing(_) => Some(peer.last_heard.plus_ms(beat * SILENT_HEARTBEATS)),
                _ => Some(peer.last_sent.plus_ms(beat).min(peer.last_heard.plus_ms(beat * SILENT_HEARTBEATS))),
            };
            let (drop, probe) = (self.drop_deadline(node), self.probe_deadline(node));
            earliest = [earliest, at, drop, probe].into_iter().flatten().min();
        }
        // Never in the past: what is due has been done by the poll that precedes this call.
        earliest.map(|t| t.max(self.now.plus_ms(1)))
    }

    /// When a member that holds up a write, or is gone, will be dropped (C4).
    fn drop_deadline(&self, node: NodeId) -> Option<Time> {
        let peer = &self.peers[node.0 as usize];
        if self.role() != Role::Active || self.fault.is_some() || self.suspended {
            return None;
        }
        let listed = self.charter.member(self.cfg.name(node)).is_some() || peer.joining.is_some();
        let since = [peer.waiting.map(|(_, t)| t), peer.down_since].into_iter().flatten().min()?;
        listed.then(|| since.plus_ms(self.cfg.stall_ms))
    }

    pub(super) fn peer_up(&mut self, node: NodeId, session: SessionId) {
        if self.peer_mut(node).session().is_some() {
            self.lose_link(node, "replaced by a new connection");
        }
        if self.superblock.is_closing_gap() {
            // The image is whole, and not yet durably so: whatever a Hello said now a crash could take back (R3). In a moment, then.
            self.act(Action::Close { peer: node, session });
            let retry_at = self.now.plus_ms(MIN_BACKOFF_MS);
            let peer = self.peer_mut(node);
            (peer.link, peer.retry_at) = (Link::Down, retry_at);
            return;
        }
        let asks = self.fault.is_none() && self.probe_begins(node, session);
        let (now, failed) = (self.now, self.fault.is_some());
        let peer = self.peer_mut(node);
        peer.last_heard = now;
        if failed {
            // It is told at once; what it says first is heard all the same: who was promoted meanwhile.
            peer.link = Link::Hearing(session);
            return self.send(node, session, PeerMsg::Bye { why: FAILED.into() });
        }
        if !asks && !peer.wanted {
            peer.link = Link::Hearing(session);
            return;
        }
        peer.link = Link::Greeting(session);
        let hello = Box::new(Hello { probe: asks, ..self.my_hello() });
        self.send(node, session, PeerMsg::Hello(hello));
    }

    pub(super) fn connect_failed(&mut self, node: NodeId) {
        if matches!(self.peer_mut(node).link, Link::Dialing) {
            self.back_off(node);
            let why = &mut self.peer_mut(node).why;
            why.get_or_insert_with(|| UNREACHABLE.to_string());
            self.probe_ends(node, UNREACHABLE);
        }
    }

    pub(super) fn peer_down(&mut self, node: NodeId, session: SessionId) {
        if self.peer_mut(node).session() == Some(session) {
            self.lose_link(node, "the connection was closed");
        }
    }

    /// Ends a session from this side; with `bye` the peer is told why.
    pub(super) fn close_link(&mut self, node: NodeId, why: &str, bye: bool) {
        let Some(session) = self.peer_mut(node).session() else { return };
        if bye {
            self.act(Action::Send { peer: node, session, message: PeerMsg::Bye { why: why.into() } });
        }
        self.act(Action::Close { peer: node, session });
        self.lose_link(node, why);
    }

    fn lose_link(&mut self, node: NodeId, why: &str) {
        let (now, name) = (self.now, self.cfg.name(node).to_string());
        if self.granted.is_some_and(|(n, _)| n == node) {
            self.granted = None;
        }
        self.claim_lost(node);
        self.probe_ends(node, why);
        self.tail_is_not_to_be_had(node);
        let peer = self.peer_mut(node);
        let was_greeted = peer.is_greeted();
        // Positions stay: within an incarnation they never decrease (C1).
        peer.joining = None;
        if was_greeted {
            peer.why = Some(why.to_string());
            peer.down_since = Some(now);
        }
        if was_greeted && now >= peer.stands_since.plus_ms(OF_USE_MS) {
            peer.backoff_ms = MIN_BACKOFF_MS;
        }
        self.back_off(node);
        if was_greeted {
            self.notice(Notice::PeerLost { peer: name, why: why.into() });
        }
    }

    fn back_off(&mut self, node: NodeId) {
        let now = self.now;
        let peer = self.peer_mut(node);
        peer.link = Link::Down;
        peer.retry_at = now.plus_ms(peer.backoff_ms);
        peer.backoff_ms = (peer.backoff_ms * 2).min(MAX_BACKOFF_MS);
    }

    /// Ends all sessions so that they are negotiated anew: the role of this node has changed.
    pub(super) fn renegotiate(&mut self, why: &str) {
        for node in self.cfg.peers() {
            self.close_link(node, why, true);
            self.peer_mut(node).backoff_ms = MIN_BACKOFF_MS;
            let now = self.now;
            self.peer_mut(node).retry_at = now;
        }
    }

    pub(super) fn my_hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            resource: self.cfg.resource.clone(),
            node: self.cfg.my_name().to_string(),
            incarnation: self.cfg.incarnation,
            role: self.role(),
            volumes: self.cfg.volumes.iter().map(|v| (v.name.clone(), v.size)).collect(),
            block: self.cfg.block,
            lineage: self.lineage_in_force().terms().to_vec(),
            zero: self.zero,
            received: self.log.end(),
            durable: self.log.durable(),
            committed: self.committed,
            applied: self.store.may_hold(),
            log_from: self.log.from(),
            charter: self.charter_in_force().clone(),
            promoting: self.stage == Stage::Promoting,
            gap: self.gap.as_ref().map(|g| g.state),
            features: FEATURES.map(String::from).to_vec(),
            settings: self.cfg.shared_settings(),
            probe: false,
        }
    }

    pub(super) fn peer_heard(&mut self, node: NodeId, session: SessionId) {
        let now = self.now;
        let peer = self.peer_mut(node);
        if peer.session() == Some(session) {
            peer.last_heard = now;
        }
    }

    pub(super) fn peer_message(&mut self, node: NodeId, session: SessionId, message: PeerMsg) {
        if self.peer_mut(node).session() != Some(session) {
            return; // Of a session that is over.
        }
        let now = self.now;
        self.peer_mut(node).last_heard = now;
        match message {
            PeerMsg::Hello(hello) if matches!(self.peer_mut(node).link, Link::Hearing(_)) => {
                self.overheard(node, &hello)
            }
            PeerMsg::Hello(hello) if self.is_asking(node, session, &hello) => self.probe_greeted(node, session, hello),
            PeerMsg::Entry(_) => {} // Of voters that this node's file does not have.
            PeerMsg::Share(share) => self.share_came(node, session, share),
            PeerMsg::Hello(hello) => self.greeted(node, session, hello),
            PeerMsg::Bye { why } => self.bye_came(node, &why),
            PeerMsg::Ready { received, durable } => self.peer_ready(node, received, durable),
            PeerMsg::Ack(ack) => self.peer_acknowledged(node, ack),
            PeerMsg::CharterAck { version } => self.charter_confirmed(node, version),
            PeerMsg::Fetch { after, term } => self.tail_wanted(node, session, after, term),
            PeerMsg::Append { records, .. } if self.is_fetching_from(node) => self.tail_came(node, records),
            PeerMsg::Append { records, watermarks } => self.records_came(node, records, watermarks),
            PeerMsg::Heartbeat { watermarks } => self.records_came(node, Vec::new(), watermarks),
            PeerMsg::Charter(charter) => self.charter_came(node, session, charter),
            PeerMsg::Claim(charter) => self.claim_came(node, session, charter),
            PeerMsg::ClaimAnswer { version, granted } => self.claim_answered(node, version, granted),
            PeerMsg::TakeOver => self.take_over(node),
            PeerMsg::Lacks { piece } => self.lacks_came(node, &piece),
            PeerMsg::LacksTaken => self.lacks_taken(node),
            PeerMsg::ReadyResync { since, everything } => self.peer_ready_for_resync(node, since, everything),
            PeerMsg::ResyncBegin { bytes, runs, whole } => self.contents_announced(node, bytes, runs, whole),
            PeerMsg::ResyncData { records, sent_bytes } => self.contents_came(node, records, sent_bytes),
            PeerMsg::ResyncEnd { base, until } => self.contents_ended(node, base, until),
            PeerMsg::ResyncDone { position } => self.resync_done(node, position),
            PeerMsg::VerifyAsk { id, extent, crcs, chunk: _ } => self.question_deferred(node, id, extent, crcs),
            PeerMsg::VerifyAnswer { id, differing, retry } => self.verify_answered(node, id, differing, retry),
        }
    }

    fn bye_came(&mut self, node: NodeId, why: &str) {
        let why = format!("{} ended the session: {}", self.cfg.name(node), harmless(why));
        let now = self.now;
        let peer = self.peer_mut(node);
        if !peer.is_greeted() {
            peer.answered_at = Some(now);
            if peer.why.as_deref().is_none_or(|w| w == UNREACHABLE) {
                peer.why = Some(why.clone());
            }
        }
        self.close_link(node, &why, false);
    }

    /// Either side has only a question.
    fn is_asking(&self, node: NodeId, session: SessionId, hello: &Hello) -> bool {
        let greeting = matches!(self.peers[node.0 as usize].link, Link::Greeting(_));
        greeting && (hello.probe || self.is_probe(node, session))
    }

    fn greeted(&mut self, node: NodeId, session: SessionId, hello: Box<Hello>) {
        if !matches!(self.peer_mut(node).link, Link::Greeting(_)) {
            return self.close_link(node, "a second Hello", true);
        }
        self.hello_for_probe(node, &hello);
        if let Err(why) = self.check_identity(node, &hello) {
            return self.refuse(node, why);
        }
        self.check_claim(node, &hello.charter);
        if self.pledge.as_deref() == Some(hello.node.as_str()) && hello.role == Role::Passive && !hello.promoting {
            self.pledge = None; // It has given up.
        }
        let newcomer = self.peer_mut(node).incarnation != Some(hello.incarnation);
        let peer = self.peer_mut(node);
        peer.incarnation = Some(hello.incarnation);
        peer.hello = Some(hello.clone());
        if newcomer {
            peer.forget_positions();
        }
        self.compare_files(node, &hello);
        let heard = match self.lineage.relation(self.log.end(), &hello.lineage, hello.received) {
            Relation::Common { fork } => fork,
            Relation::Unrelated => Lsn(0),
        };
        self.peer_mut(node).heard = heard;
        match (self.role(), hello.role) {
            (Role::Active, _) if hello.charter.overtakes(&self.charter) => self.overtaken(node, &hello.charter),
            (Role::Active, Role::Active) => {
                let me = self.cfg.my_name().to_string();
                let why = split_brain::words(&me, &self.charter, &hello.node, &hello.charter);
                if self.peer_mut(node).why.as_deref() != Some(why.as_str()) {
                    self.notice(Notice::SplitBrain { peer: hello.node.clone() });
                }
                self.refuse(node, why);
            }
            (Role::Active, Role::Passive) => {
                self.link_stands(node, Link::Source(Box::new(Source::new(session))));
                self.check_incarnation(node);
            }
            (Role::Passive, Role::Active) if self.stage != Stage::Passive => {
                self.contradict(super::notice::Refusal::PeerIsActive {
                    peer: hello.node.clone(),
                    me: self.cfg.my_name().into(),
                });
                self.refuse(node, "this node is changing its role; it will be asked again".into());
            }
            (Role::Passive, Role::Active) => {
                if let Err(why) = self.check_follow(node, &hello) {
                    return self.refuse(node, why);
                }
                if self.lineage.is_fresh() {
                    self.charter = hello.charter.clone();
                    self.persist(super::superblock::Then::Remember);
                }
                self.hear_charter(&hello.charter);
                self.become_target(node, session, &hello);
            }
            (Role::Passive, Role::Passive) => {
                self.hear_charter(&hello.charter);
                self.link_stands(node, Link::Idle(session));
            }
        }
    }

    pub(super) fn link_stands(&mut self, node: NodeId, link: Link) {
        let (now, name) = (self.now, self.cfg.name(node).to_string());
        let peer = self.peer_mut(node);
        peer.link = link;
        peer.stands_since = now;
        peer.down_since = None;
        peer.why = None;
        peer.refused_at = None;
        self.notice(Notice::PeerConnected { peer: name });
    }

    /// Ends a session whose other side cannot be worked with, and says so once.
    pub(super) fn refuse(&mut self, node: NodeId, why: String) {
        let known = self.peer_mut(node).why.as_deref() == Some(why.as_str());
        if !known {
            let peer = self.cfg.name(node).to_string();
            self.notice(Notice::HandshakeRefused { peer, why: why.clone() });
        }
        self.close_link(node, &why, true);
        let now = self.now;
        let peer = self.peer_mut(node);
        peer.why = Some(why);
        (peer.refused_at, peer.answered_at) = (Some(now), Some(now));
        peer.backoff_ms = MAX_BACKOFF_MS;
        peer.retry_at = now.plus_ms(MAX_BACKOFF_MS);
    }

    pub(super) fn check_identity(&self, node: NodeId, hello: &Hello) -> Result<(), String> {
        let name = self.cfg.name(node);
        if hello.protocol != PROTOCOL {
            let (theirs, me) = (hello.protocol, self.cfg.my_name());
            let older = if theirs < PROTOCOL { name } else { me };
            return Err(format!("{name} speaks peer protocol {theirs}, and {me} speaks {PROTOCOL}: upgrade {older}"));
        }
        if hello.node != name || hello.resource != self.cfg.resource {
            let (n, r) = (&hello.node, &hello.resource);
            return Err(format!("expected {name} of {:?}, met {n} of {r:?}", self.cfg.resource));
        }
        let mine = self.cfg.volumes.iter().map(|v| (&v.name, v.size));
        if !mine.clone().eq(hello.volumes.iter().map(|(n, s)| (n, *s))) {
            let (mine, theirs) = (mine.collect::<Vec<_>>(), &hello.volumes);
            return Err(format!("volumes differ: {mine:?} here, {theirs:?} on {name}; make both files the same"));
        }
        if hello.block != self.cfg.block {
            return Err(format!("block size differs: {} here, {} on {name}", self.cfg.block, hello.block));
        }
        Ok(())
    }

    /// The files should be the same on all nodes. What differs and does no harm at once is said.
    fn compare_files(&mut self, node: NodeId, hello: &Hello) {
        let name = self.cfg.name(node).to_string();
        let mine = self.cfg.shared_settings();
        let of = |all: &[(String, String)], key: &str| {
            all.iter().find(|(k, _)| k == key).map_or_else(|| "nothing".to_string(), |(_, v)| v.clone())
        };
        let keys: BTreeSet<&String> = mine.iter().chain(&hello.settings).map(|(k, _)| k).collect();
        let differs = keys.into_iter().map(|k| (k, of(&mine, k), of(&hello.settings, k))).filter(|(_, m, t)| m != t);
        let differs: Vec<String> = differs.map(|(k, m, t)| format!("{k} is {m} here, {t} on {name}")).collect();
        if !differs.is_empty() && self.peer_mut(node).differs != differs {
            self.notice(Notice::FilesDiffer { peer: name, what: differs.join("; ") });
        }
        self.peer_mut(node).differs = differs;
    }
}

impl Source {
    pub fn new(session: SessionId) -> Source {
        Source {
            session,
            feed: Feed::Preparing,
            gap_open: false,
            until: Lsn(0),
            resync_sent: 0,
            resync_acked: 0,
            lacks: None,
            marks: VecDeque::new(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            behind: None,
            told_flush: Lsn(0),
            told_committed: Lsn(0),
            news_since: None,
            lags: false,
            all_sent: None,
            confirmed: 0,
            streamed: Lsn(0),
        }
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
pub(super) mod tests;
