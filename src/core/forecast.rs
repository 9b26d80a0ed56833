//! What a session with a peer would do, before there is one (`connect --dry-run`): the verdict that the handshake will come
//! to, how much would be sent, and which records would be set aside.
//!
//! Where there is no session the peer is asked: a connection whose Hello says that it is only a question. The other side answers
//! with its own Hello, its [`Share`], and goodbye; nothing changes on either side.

use super::api::*;
use super::dirty::DIRTY_BLOCK;
use super::hello::{Hello, Share};
use super::lineage::{Lineage, Relation};
use super::node::{Node, Stage};
use super::notice::Refusal;
use super::peer::Link;
use super::target::{Plan, verdict};
use super::types::*;
use serde::Serialize;

/// A peer that does not answer a question is waited for so long, in ms.
const PATIENCE_MS: u64 = 6000;

/// The answer to `connect --dry-run`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    pub peer: String,
    pub outcome: Outcome,
    /// The verdict in words, or why it would be refused.
    pub verdict: String,
    /// Who would send to whom; none where nothing would be sent.
    pub from: Option<String>,
    pub to: Option<String>,
    /// Records of the log that would be sent, and bytes in all; none where that is not known.
    pub records: Option<u64>,
    pub bytes: Option<u64>,
    /// No more than `bytes`, perhaps much less.
    pub at_most: bool,
    /// Records that one side has and the other has not, where the two have parted.
    pub orphans: Vec<Orphans>,
    pub learnt: Learnt,
    /// Seconds since the peer's last word, where it was not asked now.
    pub age_s: Option<f64>,
}

/// What would come of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// There is one already.
    Connected,
    /// Neither is active: nothing would be sent.
    Idle,
    CatchUp,
    Resync,
    Refused,
    Unknown,
}

/// Where the answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Learnt {
    /// The peer answered just now.
    Asked,
    /// From the session that stands.
    Session,
    /// From the peer's last word.
    Earlier,
    /// This node has never heard from it.
    Nothing,
}

/// Records of one side that the other does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Orphans {
    pub node: String,
    pub records: u64,
    /// What the blocks that they touch hold; none where that is not known.
    pub bytes: Option<u64>,
    /// The session would set them aside; else they only would be if this side gives way.
    pub set_aside: bool,
}

/// A question under way.
#[derive(Debug)]
pub struct Probe {
    commands: Vec<CommandId>,
    since: Time,
    /// The session that asks; none while none stands.
    session: Option<SessionId>,
    hello: Option<Box<Hello>>,
}

/// What would come of a session, and where the two part.
struct Judgement {
    fork: Option<Lsn>,
    way: Result<Option<Way>, String>,
}

/// One follows the other.
struct Way {
    i_feed: bool,
    plan: Plan,
    text: String,
}

impl Node {
    pub(super) fn begin_forecast(&mut self, id: CommandId, name: &str) -> Result<(), Refusal> {
        let node = self.other_node_called(name)?;
        if let Some(what) = &self.fault {
            return Err(Refusal::Faulted { what: what.clone() });
        }
        if matches!(self.peers[node.0 as usize].link, Link::Hearing(_)) {
            self.close_link(node, "to begin anew", true); // No Hello was sent in it.
        }
        let now = self.now;
        let peer = &mut self.peers[node.0 as usize];
        if peer.is_greeted() {
            let answer = self.forecast_of_session(node);
            self.act(Action::CommandDone { id, result: Ok(Answer::Forecast(Box::new(answer))) });
            return Ok(());
        }
        match &mut peer.probe {
            Some(probe) => probe.commands.push(id),
            None => peer.probe = Some(Probe { commands: vec![id], since: now, session: None, hello: None }),
        }
        if matches!(peer.link, Link::Down) {
            peer.link = Link::Dialing;
            self.act(Action::Connect { peer: node });
        }
        Ok(())
    }

    /// A connection stands while a question waits for one: it asks, and does nothing else.
    pub(super) fn probe_begins(&mut self, node: NodeId, session: SessionId) -> bool {
        let probe = self.peers[node.0 as usize].probe.as_mut();
        probe.map(|p| p.session = Some(session)).is_some()
    }

    /// This session was opened to ask.
    pub(super) fn is_probe(&self, node: NodeId, session: SessionId) -> bool {
        self.peers[node.0 as usize].probe.as_ref().is_some_and(|p| p.session == Some(session))
    }

    /// The other side's Hello in a session that is a question of either side.
    pub(super) fn probe_greeted(&mut self, node: NodeId, session: SessionId, hello: Box<Hello>) {
        if hello.probe && self.check_identity(node, &hello).is_ok() {
            let share = self.my_share(node, &hello);
            self.send(node, session, PeerMsg::Share(share));
        }
        let asked = self.peers[node.0 as usize].probe.as_mut().filter(|p| p.session == Some(session));
        let it_asks = asked.is_none();
        if let Some(probe) = asked {
            probe.hello = Some(hello.clone());
        }
        if self.check_identity(node, &hello).is_ok() {
            self.hear_of_promotions(node, &hello);
        }
        if it_asks {
            self.close_link(node, "it only asked", true);
        }
    }

    /// A session that was on its way already when somebody asked: should it be refused, that is the answer.
    pub(super) fn hello_for_probe(&mut self, node: NodeId, hello: &Hello) {
        if let Some(probe) = &mut self.peers[node.0 as usize].probe {
            probe.hello = Some(Box::new(hello.clone()));
        }
    }

    pub(super) fn share_came(&mut self, node: NodeId, session: SessionId, share: Share) {
        if self.is_probe(node, session) {
            self.finish_probe(node, Some(share), None);
            self.close_link(node, "it only asked", true);
        }
    }

    /// A session, or an attempt at one, is over: whoever asked by it is answered with what is known.
    pub(super) fn probe_ends(&mut self, node: NodeId, why: &str) {
        self.finish_probe(node, None, Some(why));
    }

    pub(super) fn poll_probe(&mut self, node: NodeId) {
        let Some(probe) = &self.peers[node.0 as usize].probe else { return };
        let (session, late) = (probe.session, self.now.since_us(probe.since) >= PATIENCE_MS * 1000);
        if self.peers[node.0 as usize].is_greeted() {
            // A session that was on its way already has come about.
            let answer = self.forecast_of_session(node);
            self.answer_probe(node, answer);
        } else if late {
            self.finish_probe(node, None, Some("no answer in time"));
            if session.is_some() {
                self.close_link(node, "no answer in time", true);
            }
        }
    }

    pub(super) fn probe_deadline(&self, node: NodeId) -> Option<Time> {
        self.peers[node.0 as usize].probe.as_ref().map(|p| p.since.plus_ms(PATIENCE_MS))
    }

    fn finish_probe(&mut self, node: NodeId, share: Option<Share>, why: Option<&str>) {
        let Some(probe) = &mut self.peers[node.0 as usize].probe else { return };
        let answer = match probe.hello.take() {
            Some(hello) => self.forecast(node, &hello, share.as_ref(), Learnt::Asked),
            None => self.forecast_unasked(node, why.unwrap_or("no answer")),
        };
        self.answer_probe(node, answer);
    }

    fn answer_probe(&mut self, node: NodeId, answer: Forecast) {
        let Some(probe) = self.peers[node.0 as usize].probe.take() else { return };
        for id in probe.commands {
            self.act(Action::CommandDone { id, result: Ok(Answer::Forecast(Box::new(answer.clone()))) });
        }
    }

    /// What comes of it when this node and one that says `theirs` meet; changes nothing.
    fn judge(&self, node: NodeId, theirs: &Hello) -> Judgement {
        let mine = self.my_hello();
        let relation = Lineage::new(mine.lineage.clone()).relation(mine.received, &theirs.lineage, theirs.received);
        let fork = match relation {
            Relation::Common { fork } => Some(fork),
            Relation::Unrelated => None,
        };
        let way = self.check_identity(node, theirs).and_then(|()| self.way(node, &mine, theirs));
        Judgement { fork, way }
    }

    fn way(&self, node: NodeId, mine: &Hello, theirs: &Hello) -> Result<Option<Way>, String> {
        let name = self.cfg.name(node);
        match (mine.role, theirs.role) {
            (Role::Passive, Role::Passive) => Ok(None),
            (Role::Active, Role::Active) => {
                Err(super::split_brain::words(&mine.node, &mine.charter, name, &theirs.charter))
            }
            (Role::Active, Role::Passive) if theirs.charter.overtakes(&mine.charter) => {
                Err(super::split_brain::outvoted(&mine.node, name))
            }
            (Role::Active, Role::Passive) => {
                super::follow::may_follow(theirs, mine)?;
                verdict(theirs, mine).map(|(plan, text)| Some(Way { i_feed: true, plan, text }))
            }
            (Role::Passive, Role::Active) if self.stage != Stage::Passive => {
                Err("this node is changing its role".into())
            }
            (Role::Passive, Role::Active) => {
                self.check_follow(node, theirs)?;
                verdict(mine, theirs).map(|(plan, text)| Some(Way { i_feed: false, plan, text }))
            }
        }
    }

    /// What this side alone knows of a session with one that says `theirs`.
    fn my_share(&self, node: NodeId, theirs: &Hello) -> Share {
        let judged = self.judge(node, theirs);
        let end = self.log.end();
        let mut share = Share { records: 0, bytes: Some(0), send: 0, at_most: false, again: 0 };
        if let Some(gap) = &self.gap {
            share.again = gap.changed.bytes() + gap.saved.bytes();
        } else if let Some(fork) = judged.fork.filter(|f| *f < end) {
            share.records = end.0 - fork.0;
            share.bytes = self.changed_since(node, fork).map(|set| set.bytes());
        }
        if let Ok(Some(Way { i_feed: true, plan, .. })) = judged.way {
            (share.send, share.at_most) = self.would_send(node, plan, theirs);
        }
        share
    }

    /// Bytes that this node would send, and whether that is only the most it can be.
    fn would_send(&self, node: NodeId, plan: Plan, theirs: &Hello) -> (u64, bool) {
        if !plan.resync {
            return (self.log.payload_after(plan.fork), false);
        }
        let bitmap = &self.bitmaps[node.0 as usize];
        let everything = theirs.gap.as_ref().is_some_and(|gap| gap.everything);
        if theirs.lineage.is_empty() || everything || plan.fork < bitmap.from {
            // Everything that the stores hold; what is a hole is not sent.
            return (self.cfg.volumes.iter().map(|v| v.size).sum(), true);
        }
        let mut lacks = bitmap.bits.clone();
        self.log.changed(plan.fork, self.log.end()).for_each(|e| lacks.add(e));
        // Where memory is short, sets err to more.
        let exact = self.log.knows_each_after(plan.fork.max(self.log.from().prev()));
        (lacks.bytes(), lacks.grain() > DIRTY_BLOCK || !exact)
    }

    /// The answer, from what the peer says of itself and, where it was asked, from its share.
    fn forecast(&self, node: NodeId, theirs: &Hello, share: Option<&Share>, learnt: Learnt) -> Forecast {
        let (me, peer) = (self.cfg.my_name().to_string(), self.cfg.name(node).to_string());
        let judged = self.judge(node, theirs);
        let mine = self.my_share(node, theirs);
        let past_fork = |end: Lsn| judged.fork.map_or(0, |f| end.0.saturating_sub(f.0));
        let their_records = share.map_or(past_fork(theirs.received), |s| s.records);
        let their_bytes = if their_records == 0 { Some(0) } else { share.and_then(|s| s.bytes) };
        let ours = Orphans { node: me.clone(), records: mine.records, bytes: mine.bytes, set_aside: false };
        let others = Orphans { node: peer.clone(), records: their_records, bytes: their_bytes, set_aside: false };
        let mut answer = Forecast { learnt, ..blank(&peer) };
        match judged.way {
            Err(why) => {
                (answer.outcome, answer.verdict) = (Outcome::Refused, why);
                answer.orphans = vec![ours, others];
            }
            Ok(None) => {
                answer.outcome = Outcome::Idle;
                answer.verdict = idle_words(&me, &peer, judged.fork, &ours, &others);
                answer.orphans = vec![ours, others];
            }
            Ok(Some(Way { i_feed, plan, text })) => {
                answer.verdict = text;
                answer.outcome = if plan.resync { Outcome::Resync } else { Outcome::CatchUp };
                let (source, target) = if i_feed { (Some(&mine), share) } else { (share, Some(&mine)) };
                let end = if i_feed { self.log.end() } else { theirs.received };
                answer.records = (!plan.resync).then_some(end.0.saturating_sub(plan.fork.0));
                // What the passive changed itself is fetched too (R4), and what has undo is sent once more (R3).
                let changed = target.map_or(0, |t| t.bytes.unwrap_or(0).saturating_add(t.again));
                let more = if plan.resync { changed } else { 0 };
                answer.bytes = source.map(|s| s.send.saturating_add(more));
                answer.at_most = source.is_some_and(|s| s.at_most) || more > 0 || (plan.resync && target.is_none());
                let loses = if i_feed { others } else { ours };
                answer.orphans = vec![Orphans { set_aside: true, ..loses }];
                (answer.from, answer.to) = if i_feed { (Some(me), Some(peer)) } else { (Some(peer), Some(me)) };
            }
        }
        answer.orphans.retain(|o| o.records > 0);
        answer
    }

    /// There is a session: what it does, and what it has still to do.
    fn forecast_of_session(&self, node: NodeId) -> Forecast {
        let peer = &self.peers[node.0 as usize];
        let (me, name) = (self.cfg.my_name().to_string(), self.cfg.name(node).to_string());
        let mut answer = Forecast { outcome: Outcome::Connected, learnt: Learnt::Session, ..blank(&name) };
        let state = self.peer_state(node, peer).replace('_', " ");
        answer.verdict = match peer.link {
            Link::Source(_) => format!("there is a session: {me} is active, {name} is {state}"),
            Link::Target(_) => format!("there is a session: {name} is active, {me} follows it"),
            _ => "there is a session: neither is active".into(),
        };
        if let Link::Source(source) = &peer.link {
            let streamed = peer.is_streamed();
            answer.records = streamed.then(|| self.log.end().0.saturating_sub(peer.received.0));
            answer.bytes = match &source.feed {
                _ if streamed => Some(self.log.payload_after(peer.received)),
                super::peer::Feed::Resync(pass) => Some(pass.total.saturating_sub(pass.acked)),
                _ => None,
            };
            (answer.from, answer.to) = (Some(me), Some(name));
        }
        answer
    }

    /// The peer does not answer: what its last word says, if it ever said any.
    fn forecast_unasked(&self, node: NodeId, why: &str) -> Forecast {
        let peer = &self.peers[node.0 as usize];
        let name = self.cfg.name(node);
        let Some(hello) = &peer.hello else {
            let verdict =
                format!("{name} does not answer ({why}), and this node has not heard from it since it was started");
            return Forecast { verdict, ..blank(name) };
        };
        let mut theirs = (**hello).clone();
        if self.role() == Role::Active && peer.received > Lsn(0) {
            // It has followed this node since: that is what it was last known to hold.
            (theirs.lineage, theirs.received, theirs.durable) =
                (self.lineage.terms().to_vec(), peer.received, peer.durable);
            theirs.applied = theirs.applied.max(peer.applied);
        } else if self.role() == Role::Passive && theirs.role == Role::Active && self.gap.is_none() {
            // This node has followed it since: what it has of that term came from there.
            let terms = self.lineage.terms();
            if terms.last().map(|t| t.id) == theirs.lineage.last().map(|t| t.id) {
                theirs.received = theirs.received.max(self.log.end());
            }
        }
        let mut answer = self.forecast(node, &theirs, None, Learnt::Earlier);
        answer.verdict = format!("{name} does not answer ({why}). If it stands where it stood: {}", answer.verdict);
        answer.age_s = Some(self.now.since_us(peer.last_heard) as f64 / 1e6);
        answer
    }
}

fn blank(peer: &str) -> Forecast {
    Forecast {
        peer: peer.to_string(),
        outcome: Outcome::Unknown,
        verdict: String::new(),
        from: None,
        to: None,
        records: None,
        bytes: None,
        at_most: false,
        orphans: Vec::new(),
        learnt: Learnt::Nothing,
        age_s: None,
    }
}

fn idle_words(me: &str, peer: &str, fork: Option<Lsn>, ours: &Orphans, others: &Orphans) -> String {
    let stand = match (fork, ours.records, others.records) {
        (None, ..) => "they have no term in common".to_string(),
        (Some(f), 0, 0) => format!("both end at {}", f.0),
        (Some(f), 0, n) => format!("{me} ends at {}, {peer} holds {n} record(s) more", f.0),
        (Some(f), n, 0) => format!("{peer} ends at {}, {me} holds {n} record(s) more", f.0),
        (Some(f), n, m) => format!("they part after {}: {n} record(s) on {me}, {m} on {peer}", f.0),
    };
    format!("neither is active, so nothing is sent until one is promoted; {stand}")
}
