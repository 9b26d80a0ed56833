//! What operators ask: promote, demote, switch over, connect, disconnect. Each is refused by name, or done whole.

use super::api::*;
use super::hello::{Charter, Hello, Member};
use super::lineage::{Lineage, Relation};
use super::node::{Node, Stage};
use super::notice::{Notice, Refusal};
use super::peer::Link;
use super::superblock::Then;
use super::types::*;
use std::collections::BTreeSet;

mod claim;
mod resume;
mod settle;
mod switchover;

/// A demotion or switchover that takes longer is given up waiting for.
const PATIENCE_MS: u64 = 10_000;
/// A peer that was refused a session is tried again each second; what it said then counts for so long.
const REFUSED_LATELY_MS: u64 = 3000;

/// The command under way; one at a time.
#[derive(Debug)]
pub struct Operation {
    /// Whom to answer; none where the node acts by itself.
    id: Option<CommandId>,
    kind: Kind,
    since: Time,
    /// What was learnt while the superblock with the new term was on its way: the node does not serve in it.
    contradicted: Option<Refusal>,
}

#[derive(Debug)]
enum Kind {
    /// Waits for the log to settle, then opens a term.
    Promote {
        forced: bool,
        gave_up: String,
        /// Where this node comes from, once the term is being opened.
        before: Option<Box<Before>>,
        opening: Box<Charter>,
        unanswered: BTreeSet<NodeId>,
        fetching: Option<NodeId>,
        /// What an active had said is committed.
        committed: Lsn,
        /// The term that the new one continues (C6).
        continues: Option<TermId>,
    },
    /// Waits for the members, then releases.
    Demote { to: Option<NodeId>, forced: bool, released: bool },
    /// Waits until the other node serves.
    Watch { to: NodeId },
}

/// What an opened term replaces: it stands again if the node does not come to serve in it.
#[derive(Debug)]
struct Before {
    charter: Charter,
    lineage: Lineage,
    pledge: Option<String>,
    lost: Option<Lsn>,
}

impl Node {
    pub(super) fn command(&mut self, id: CommandId, command: Command) {
        let begun = match command {
            Command::Promote { force, off } => self.begin_promote(Some(id), force, &off),
            Command::Demote { force } => self.begin_demote(id, None, force),
            Command::Switchover { to } => self.begin_switchover(id, &to),
            Command::Connect { peer, dry_run: true } => self.begin_forecast(id, &peer),
            Command::Connect { peer, dry_run: false } => self.connect(id, &peer),
            Command::Disconnect { peer, force } => self.disconnect(id, &peer, force),
            Command::Verify { repair } => self.begin_verify(id, repair),
            Command::Log => {
                let report = Box::new(self.log_report());
                self.act(Action::CommandDone { id, result: Ok(Answer::Log(report)) });
                Ok(())
            }
        };
        if let Err(refusal) = begun {
            self.act(Action::CommandDone { id, result: Err(refusal) });
        }
    }

    fn node_called(&self, name: &str) -> Result<NodeId, Refusal> {
        self.cfg.find(name).ok_or_else(|| Refusal::UnknownNode {
            name: name.to_string(),
            known: self.cfg.nodes.iter().map(|n| n.name.clone()).collect(),
        })
    }

    /// The same, but not this node itself.
    pub(super) fn other_node_called(&self, name: &str) -> Result<NodeId, Refusal> {
        match self.node_called(name)? {
            node if node == self.cfg.me => Err(Refusal::Itself { node: name.to_string() }),
            node => Ok(node),
        }
    }

    fn check_free(&self) -> Result<(), Refusal> {
        if let Some(what) = &self.fault {
            return Err(Refusal::Faulted { what: what.clone() });
        }
        match &self.operation {
            None if self.granted.is_some() => Err(Refusal::Busy { what: "another node is being promoted" }),
            None => Ok(()),
            Some(Operation { kind: Kind::Promote { .. }, .. }) => Err(Refusal::Busy { what: "promote" }),
            Some(Operation { kind: Kind::Demote { .. }, .. }) => Err(Refusal::Busy { what: "demote" }),
            Some(Operation { kind: Kind::Watch { .. }, .. }) => Err(Refusal::Busy { what: "switchover" }),
        }
    }

    fn begin_promote(&mut self, id: Option<CommandId>, forced: bool, off: &[String]) -> Result<(), Refusal> {
        self.check_free()?;
        if self.stage != Stage::Passive {
            return Err(Refusal::AlreadyActive { node: self.cfg.my_name().to_string() });
        }
        let off = off.iter().map(|name| self.node_called(name)).collect::<Result<Vec<NodeId>, Refusal>>()?;
        if off.contains(&self.cfg.me) {
            return Err(Refusal::OffItself { node: self.cfg.my_name().to_string() });
        }
        let gave_up = self.guard_promotion(forced, &off)?;
        self.may_resume = false;
        let opening = self.opening_charter(forced, &off);
        self.set_stage(Stage::Promoting);
        let mut unanswered = BTreeSet::new();
        for node in self.cfg.peers() {
            match self.peers[node.0 as usize].link {
                Link::Target(_) => self.close_link(node, "it is being promoted", true),
                Link::Idle(session) => {
                    unanswered.insert(node);
                    self.send(node, session, PeerMsg::Claim(opening.clone()));
                }
                _ => {}
            }
        }
        let continues = if forced { None } else { self.own_last_term() };
        let (opening, committed) = (Box::new(opening), self.committed);
        let kind =
            Kind::Promote { forced, gave_up, before: None, opening, unanswered, fetching: None, committed, continues };
        self.operation = Some(Operation { id, kind, since: self.now, contradicted: None });
        Ok(())
    }

    /// This node's own last term, if it was the last of all: its charter, which every other node that was promoted would have replaced
    /// at the members, still says that it is active.
    fn own_last_term(&self) -> Option<TermId> {
        let mine = self.charter.active.as_deref() == Some(self.cfg.my_name());
        self.lineage.last().filter(|_| mine).map(|t| t.id)
    }

    /// The storage failed: what is under way comes to nothing.
    pub(super) fn abandon_operation(&mut self, what: &str) {
        let opened = matches!(self.operation, Some(Operation { kind: Kind::Promote { before: Some(_), .. }, .. }));
        self.take_back_term();
        if let Some(operation) = self.operation.take() {
            let what = match opened {
                false => what.into(),
                true => format!(
                    "{what}, while the promotion was being written. It may stand on the disk: see `understudy status` when the node has started again"
                ),
            };
            self.answer(operation.id, Err(Refusal::Faulted { what }));
        }
        if self.stage == Stage::Promoting {
            self.set_stage(Stage::Passive);
        }
    }

    /// May this node become active (C8, C9)? What it would give up, in words.
    fn guard_promotion(&self, forced: bool, off: &[NodeId]) -> Result<String, Refusal> {
        let mut unreachable = Vec::new();
        let mut gave_up = Vec::new();
        let heir = self.pledge.is_none()
            && self.charter.heir.as_deref() == Some(self.cfg.my_name())
            && self.charter.active.is_none()
            && self.charter.released.is_some_and(|end| end <= self.log.end());
        for node in self.cfg.peers() {
            let peer = &self.peers[node.0 as usize];
            let name = self.cfg.name(node).to_string();
            let Some(hello) = peer.hello.as_ref().filter(|_| peer.is_greeted()) else {
                if !off.contains(&node) {
                    self.check_last_word(node, forced)?;
                    self.check_claimed_lately(node, forced)?;
                }
                if forced && self.answers(node) {
                    return Err(Refusal::Answers { why: self.why_parted(node), peer: name });
                }
                if forced && off.contains(&node) && self.may_have_gone_on(node) {
                    gave_up.push(format!(
                        "whatever {name} completed alone after it lost this node, if it did (set aside when it returns)"
                    ));
                }
                // Forced, every node that does not answer is named as confirmed off (C8).
                let asked = if forced { !off.contains(&node) } else { self.must_answer(node) && !heir };
                if asked {
                    unreachable.push(name);
                }
                continue;
            };
            if off.contains(&node) {
                return Err(Refusal::NotOff { peer: name });
            }
            if !forced && hello.charter.conflicts_with(&self.charter) {
                return Err(Refusal::Conflict { peer: name });
            }
            if hello.role == Role::Active {
                return Err(Refusal::PeerIsActive { peer: name, me: self.cfg.my_name().to_string() });
            }
            if let Some(ahead) = self.ahead_of_me(node, hello) {
                // What a node outside the in-sync set holds past this one's end completed for nobody because of it (L1).
                let counts = self.charter.generation == (0, 0) || self.charter.member(&name).is_some();
                if self.can_fetch_from(node, hello) && counts {
                    continue; // It will be fetched (L1).
                }
                if !forced && counts {
                    return Err(Refusal::Behind { peer: name, records: ahead, end: hello.received.0 });
                }
                gave_up.push(format!("{ahead} record(s) that {name} holds"));
            }
        }
        if !unreachable.is_empty() {
            let alone = |name: &String| self.cfg.find(name).is_some_and(|n| self.may_have_gone_on(n));
            let alone = unreachable.iter().filter(|n| alone(n)).cloned().collect();
            return Err(Refusal::Unreachable { peers: unreachable, alone });
        }
        let unknown = self.listed_and_unknown();
        if !forced && !unknown.is_empty() {
            return Err(Refusal::NotInFile { peers: unknown });
        }
        if let Some(gap) = self.gap.as_ref().filter(|g| g.state.rollback.is_none()) {
            return Err(if gap.state.overwritten_in.is_some() { Refusal::Overwritten } else { Refusal::NoImage });
        }
        let founded = self.charter.generation != (0, 0);
        if founded && !forced && self.charter.member(self.cfg.my_name()).is_none() {
            let active = self.charter.active.clone().or(self.charter.in_sync.first().map(|m| m.node.clone()));
            return Err(Refusal::Dropped { active: active.unwrap_or_else(|| "the former active".into()) });
        }
        if !forced && self.pledge.as_deref() == Some(self.cfg.my_name()) {
            return Err(Refusal::Unserved { node: self.cfg.my_name().to_string() });
        }
        gave_up.extend(self.guard_damage(forced)?);
        Ok(gave_up.join(", "))
    }

    /// A peer with which no session comes about is between two attempts at any moment: what it said in the latest one is the
    /// answer, not that it cannot be reached. That it was promoted by force beside this node does not pass with time.
    fn check_last_word(&self, node: NodeId, forced: bool) -> Result<(), Refusal> {
        let peer = &self.peers[node.0 as usize];
        let Some(hello) = &peer.hello else { return Ok(()) };
        let name = self.cfg.name(node).to_string();
        if !forced && hello.charter.conflicts_with(&self.charter) {
            return Err(Refusal::Conflict { peer: name });
        }
        let lately = peer.refused_at.is_some_and(|at| self.now.since_us(at) < REFUSED_LATELY_MS * 1000);
        if lately && hello.role == Role::Active {
            return Err(Refusal::PeerIsActive { peer: name, me: self.cfg.my_name().to_string() });
        }
        Ok(())
    }

    /// Whether a node with which there is no session was heard lately all the same: it runs (C8).
    fn answers(&self, node: NodeId) -> bool {
        let answered = self.peers[node.0 as usize].answered_at;
        answered.is_some_and(|at| self.now.since_us(at) < REFUSED_LATELY_MS * 1000)
    }

    fn why_parted(&self, node: NodeId) -> String {
        let peer = &self.peers[node.0 as usize];
        match &peer.why {
            _ if !peer.wanted => format!("{} was told to disconnect from it", self.cfg.my_name()),
            Some(why) => why.clone(),
            None => "none has come about".into(),
        }
    }

    /// A node that this one has let be promoted ends its sessions once it is, and for a moment nothing is heard of it.
    fn check_claimed_lately(&self, node: NodeId, forced: bool) -> Result<(), Refusal> {
        let (peer, name) = (&self.peers[node.0 as usize], self.cfg.name(node));
        let lately = peer.down_since.is_some_and(|at| self.now.since_us(at) < REFUSED_LATELY_MS * 1000);
        if !forced && lately && self.pledge.as_deref() == Some(name) {
            return Err(Refusal::Claimed { peer: name.to_string() });
        }
        Ok(())
    }

    /// It was active when this node last heard, or was let become so; and nothing kept it from dropping this node and going on.
    fn may_have_gone_on(&self, node: NodeId) -> bool {
        let name = self.cfg.name(node);
        let active = self.charter.active.as_deref() == Some(name) || self.pledge.as_deref() == Some(name);
        let sync_nodes = self.cfg.nodes.iter().filter(|n| n.mode == Mode::Sync).count();
        let member = self.charter.member(self.cfg.my_name()).is_some();
        // With two sync nodes and `suspend` it waits for this one.
        active && !(member && self.cfg.on_stall == OnStall::Suspend && sync_nodes <= 2)
    }

    /// Nodes that the charter names and this node's file does not.
    fn listed_and_unknown(&self) -> Vec<String> {
        let listed = self.charter.in_sync.iter().map(|m| &m.node).chain(&self.charter.active).chain(&self.charter.heir);
        let unknown: BTreeSet<&String> = listed.filter(|name| self.cfg.find(name).is_none()).collect();
        unknown.into_iter().cloned().collect()
    }

    /// Whose word a promotion needs: a founder needs everyone's; later the members' and the active's.
    fn must_answer(&self, node: NodeId) -> bool {
        let name = self.cfg.name(node);
        let founded = self.charter.generation != (0, 0);
        !founded
            || self.pledge.as_deref() == Some(name)
            || self.charter.member(name).is_some()
            || self.charter.active.as_deref() == Some(name)
            // Dropped after the release or not: it may have taken over without asking anybody.
            || self.charter.heir.as_deref() == Some(name)
    }

    /// Records that a connected peer of the same lineage holds past this node's end.
    fn ahead_of_me(&self, node: NodeId, hello: &super::hello::Hello) -> Option<u64> {
        use super::lineage::Relation;
        if hello.gap.is_some_and(|g| g.rollback.is_none()) {
            return None; // It holds no image, whatever it has received.
        }
        let received = hello.received.max(self.peers[node.0 as usize].received);
        match self.lineage.relation(self.log.end(), &hello.lineage, received) {
            // It descends from this node's end: everything past the fork is missing here.
            Relation::Common { fork } if received > fork && fork == self.log.end() => Some(received.0 - fork.0),
            Relation::Unrelated if self.lineage.is_fresh() && !hello.lineage.is_empty() => Some(received.0.max(1)),
            _ => None,
        }
    }

    pub(super) fn poll_operation(&mut self) {
        self.poll_resume();
        let Some(operation) = &self.operation else { return };
        match operation.kind {
            Kind::Promote { ref unanswered, .. } if !unanswered.is_empty() => {
                if self.operation_is_late() {
                    let peers = unanswered.iter().map(|n| self.cfg.name(*n).to_string()).collect();
                    self.give_up_claim(Refusal::Unreachable { peers, alone: Vec::new() });
                }
            }
            Kind::Promote { before: None, fetching: Some(_), .. } => {}
            Kind::Promote { before: None, .. } if self.best_tail().is_some() && self.gap.is_none() => self.fetch_tail(),
            Kind::Promote { before: Some(_), .. } => {}
            Kind::Promote { .. } if self.gap.is_some() => {
                if self.resync_ios == 0 {
                    self.start_rollback(false);
                }
            }
            Kind::Promote { .. } => self.settle_to_open(),
            Kind::Demote { to, forced, released } => self.poll_demote(to, forced, released),
            Kind::Watch { to } => self.poll_watch(to),
        }
    }

    /// All that is held is durable: the term may be opened (L1).
    fn open_term(&mut self) {
        let id = TermId(self.draw_id());
        let former = self.charter.active.as_deref().and_then(|name| self.cfg.find(name));
        let Some(Operation { kind: Kind::Promote { before, opening, forced, .. }, .. }) = &mut self.operation else {
            return;
        };
        let end = self.log.end();
        // Whoever finds it on its disk so was forced, gave others up, and may never have served: an operator decides once more (C7).
        let unserved = forced.then(|| self.cfg.my_name().to_string());
        *before = Some(Box::new(Before {
            charter: std::mem::replace(&mut self.charter, (**opening).clone()),
            lineage: self.lineage.clone(),
            pledge: std::mem::replace(&mut self.pledge, unserved),
            lost: self.lost.take(),
        }));
        self.lineage.open(id, end, self.charter.term - 1);
        // Opening a term caps every peer's known position just below its first lsn.
        self.cap_positions(end);
        self.committed = self.committed.min(end);
        self.superblock.clear_log_errors();
        for peer in &mut self.peers {
            peer.heard = peer.heard.max(peer.known).min(end);
            peer.forget_positions();
        }
        if let Some(former) = former.filter(|n| *n != self.cfg.me) {
            // All that this node holds came from it, unless it has said otherwise.
            let former = &mut self.peers[former.0 as usize];
            if !former.is_greeted() {
                former.heard = end;
            }
        }
        self.persist(Then::TermOpened);
    }

    /// The newest record that no listed member has parted from before: what is applied here before a resync need not be
    /// committed, and a member may follow another lineage.
    fn shared_with_members(&self) -> Lsn {
        let hellos = self.charter.in_sync.iter().filter_map(|m| self.cfg.find(&m.node)).filter(|n| *n != self.cfg.me);
        let hellos = hellos.filter_map(|n| self.peers[n.0 as usize].hello.as_ref());
        let fork = |h: &Hello| match self.lineage.relation(self.log.end(), &h.lineage, h.received) {
            Relation::Common { fork } => fork,
            Relation::Unrelated => Lsn(0),
        };
        // One that only ends earlier shares all of it: what it lacks was committed without it, or is waited for anyway.
        let parts = |h: &Hello, fork: Lsn| h.received > fork;
        hellos.map(|h| (h, fork(h))).filter(|(h, f)| parts(h, *f)).map(|(_, f)| f).min().unwrap_or(Lsn(u64::MAX))
    }

    pub(super) fn term_opened(&mut self) {
        let contradicted = self.operation.as_mut().and_then(|o| o.contradicted.take());
        if let Some(why) = contradicted {
            self.take_back_term();
            return self.give_up_claim(why);
        }
        let Some(Operation { id, kind: Kind::Promote { forced, gave_up, committed, continues, .. }, .. }) =
            self.operation.take()
        else {
            return;
        };
        // Opened just before this state was written.
        let term = *self.lineage.last().expect("an opened term");
        self.set_stage(Stage::Active);
        if forced {
            self.pledge = None;
            self.persist(Then::Remember);
        }
        // What the members of the in-sync set may lack has not completed: a read of it waits for them, or for their drop (S2).
        let shared = self.committed.min(committed).min(self.log.end()).min(self.shared_with_members());
        let dropped = self.clients.reset(shared, self.log.end());
        self.clients.are_in_stores(self.store.applied());
        debug_assert!(dropped.is_empty(), "a passive has no clients");
        self.suspended = false;
        self.is_outvoted = false;
        for peer in &mut self.peers {
            peer.down_since = Some(self.now);
        }
        self.notice(Notice::TermOpened { number: term.number, id: format!("{:?}", term.id), first: term.first.0 });
        self.notice(Notice::Promoted { forced, gave_up: gave_up.clone() });
        self.act(Action::Serve { term: term.id, continues });
        let text = match gave_up.as_str() {
            "" => format!("{} is active, term {}", self.cfg.my_name(), term.number),
            lost => format!("{} is active, term {}; given up: {lost}", self.cfg.my_name(), term.number),
        };
        self.answer(id, Ok(text));
        self.renegotiate("it was promoted");
    }

    fn answer(&mut self, id: Option<CommandId>, result: Result<String, Refusal>) {
        if let Some(id) = id {
            self.act(Action::CommandDone { id, result: result.map(Answer::Text) });
        }
    }

    pub(super) fn check_active(&self) -> Result<(), Refusal> {
        if self.stage == Stage::Active {
            return Ok(());
        }
        let node = self.cfg.my_name().to_string();
        let active = match &self.charter.active {
            None => "nobody, as far as this node knows".into(),
            Some(name) if *name == node => format!("nobody now, and {node} was the last"),
            Some(name) => name.clone(),
        };
        Err(Refusal::NotActive { node, active })
    }

    fn connect(&mut self, id: CommandId, name: &str) -> Result<(), Refusal> {
        let node = self.other_node_called(name)?;
        if matches!(self.peers[node.0 as usize].link, Link::Hearing(_)) {
            self.close_link(node, "to begin anew", true); // No Hello was sent in it.
        }
        let now = self.now;
        let peer = &mut self.peers[node.0 as usize];
        peer.wanted = true;
        peer.retry_at = now;
        peer.why = None;
        self.answer(Some(id), Ok(format!("connecting to {name}")));
        Ok(())
    }

    fn disconnect(&mut self, id: CommandId, name: &str, force: bool) -> Result<(), Refusal> {
        let node = self.other_node_called(name)?;
        let last = self.role() == Role::Active && self.is_member(node) && self.charter.in_sync.len() == 2;
        if last && !force {
            return Err(Refusal::LastMember { peer: name.to_string() });
        }
        self.peers[node.0 as usize].wanted = false;
        self.close_link(node, "disconnected by the operator", true);
        if self.role() == Role::Active {
            self.drop_member(node, "disconnected by the operator");
        }
        self.answer(
            Some(id),
            Ok(format!("disconnected from {name}, until `understudy connect {name}` or a restart of this daemon")),
        );
        Ok(())
    }

    /// A change of the charter is over: everyone connected hears of it.
    pub(super) fn charter_changed(&mut self) {
        for node in self.cfg.peers() {
            if !self.is_member(node) {
                self.tell_charter(node);
            }
        }
    }
}
