//! The seam between what wants a charter and who keeps it. Under `alone` a change is confirmed by the members (`core/charter.rs`); under
//! `voters` it is a round with the register: *ask*, *read*, and what was decided. See `docs/charter.md`.

use super::api::*;
use super::charter::Change;
use super::command::Wish;
use super::config::{Keeper, Voting};
use super::hello::{Charter, Member};
use super::node::Node;
use super::notice::Notice;
use super::register::{self, Ballot, Entry, Goal, Outcome, Proposer, Question, Stuck, Voter, VoterId};
use super::superblock::Then;
use super::types::*;
use std::collections::BTreeMap;

/// Unanswered questions are repeated so often in `round_ms`.
const REPEATS: u64 = 4;

/// What this node knows of its voters, and its round with them.
#[derive(Debug)]
pub struct Voters {
    proposer: Proposer,
    round: Option<For>,
    /// Questions of the round; those that still count are repeated.
    open: Vec<(Voter, Question)>,
    repeat_at: Time,
    /// Another attempt came in between: the round is tried again then, under a higher ballot.
    again_at: Option<Time>,
    /// A founder's charter, until all voters have said who they are.
    founding: Option<Charter>,
    /// What an operator wants of the entry, and whether its newcomer is being asked who it is.
    wish: Option<Wish>,
    meets: Option<String>,
    met: BTreeMap<String, VoterId>,
    /// When each was last heard.
    heard: BTreeMap<String, Time>,
    /// Why the register is of no use to this node.
    pub(super) stuck: Option<Stuck>,
}

/// What a round is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// A change that the active asks for.
    Change,
    /// A promotion: what is there is read first where this node may not know the newest.
    Learning,
    Promotion,
}

impl Voters {
    /// `known` is what the superblock says.
    pub fn new(by: u128, known: Entry) -> Voters {
        Voters {
            proposer: Proposer::new(by, known),
            round: None,
            open: Vec::new(),
            repeat_at: Time(0),
            again_at: None,
            founding: None,
            wish: None,
            meets: None,
            met: BTreeMap::new(),
            heard: BTreeMap::new(),
            stuck: None,
        }
    }

    /// The newest entry that is known to be chosen.
    pub fn known(&self) -> &Entry {
        self.proposer.known()
    }

    /// When a voter was last heard.
    pub fn heard(&self, voter: &str) -> Option<Time> {
        self.heard.get(voter).copied()
    }

    pub fn is_busy(&self) -> bool {
        self.round.is_some() || self.founding.is_some() || self.meets.is_some()
    }

    /// What is asked, in words.
    pub fn asking(&self) -> Option<&'static str> {
        match self.round {
            _ if self.founding.is_some() => Some("who they are, to found the charter"),
            Some(For::Change) => Some("to change who is in sync"),
            Some(For::Learning) => Some("what the charter is"),
            Some(For::Promotion) => Some("to be active"),
            None => None,
        }
    }

    pub fn has_wish(&self) -> bool {
        self.wish.is_some()
    }

    pub fn forget_wish(&mut self) {
        (self.wish, self.meets) = (None, None);
    }

    /// The entry that an operator wants, where that can be asked for and does not stand.
    fn wished(&self) -> Option<Entry> {
        let wish = self.wish.as_ref().filter(|_| self.meets.is_none())?;
        let newcomer = wish.newcomer().and_then(|name| Some(Voter { name: name.clone(), id: *self.met.get(name)? }));
        let wanted = wish.applied(self.known(), newcomer.as_ref());
        (wanted != *self.known()).then_some(wanted)
    }

    /// Who has not answered what is asked.
    pub fn silent(&self, all: &[String]) -> Vec<String> {
        if let Some(name) = &self.meets {
            return vec![name.clone()];
        }
        match &self.founding {
            Some(_) => all.iter().filter(|name| !self.met.contains_key(*name)).cloned().collect(),
            None => self.proposer.silent().into_iter().map(String::from).collect(),
        }
    }
}

/// A question that nobody has a vote on: its answer says who is there.
fn who_are_you() -> Question {
    let nobody = VoterId::default();
    Question { to: nobody, generation: 0, ballot: Ballot::default(), seen: Ballot::default(), accept: None }
}

impl Node {
    pub(super) fn voting(&self) -> Option<&Voting> {
        match &self.cfg.keeper {
            Keeper::Alone => None,
            Keeper::Voters(voting) => Some(voting),
        }
    }

    /// What a change of the charter begins from: the newest that this node wants.
    pub(super) fn wanted_charter(&self) -> &Charter {
        self.change.as_ref().map_or(&self.charter, |c| &c.charter)
    }

    fn start_round(&mut self, round: For, goal: Goal) {
        let Some(voters) = &mut self.voters else { return };
        voters.stuck = None;
        let questions = voters.proposer.start(goal);
        (voters.round, voters.again_at) = (Some(round), None);
        voters.open.clear();
        self.put(questions);
    }

    fn put(&mut self, questions: Vec<(Voter, Question)>) {
        let (now, Some(every)) = (self.now, self.repeat_ms()) else { return };
        for (voter, question) in &questions {
            self.act(Action::AskVoter { voter: voter.name.clone(), question: question.clone() });
        }
        if let Some(voters) = &mut self.voters {
            voters.open.extend(questions);
            voters.repeat_at = now.plus_ms(every);
        }
    }

    fn repeat_ms(&self) -> Option<u64> {
        self.voting().map(|v| (v.round_ms / REPEATS).max(1))
    }

    /// What is wanted, in place of the version that this node has seen (C4).
    fn replacement(&self, charter: Charter) -> Option<Entry> {
        let known = self.voters.as_ref()?.known();
        Some(Entry { charter, former: Vec::new(), ..known.clone() })
    }

    /// Asks the voters for a change. One at a time: what is wanted meanwhile is asked when it is over. Writes, commits and leases wait for
    /// the members of all three until then (C4).
    pub(super) fn ask_voters(&mut self, charter: Charter, dropped: Option<(NodeId, String)>) {
        let mut change = self.change.take().unwrap_or_else(|| Change::new(self.charter.clone(), self.now));
        change.charter = charter;
        change.dropped.extend(dropped);
        let asks = change.asked.is_none();
        change.unite(&self.charter);
        self.change = Some(change);
        if asks {
            self.ask_next();
        }
    }

    fn ask_next(&mut self) {
        let version = self.charter.version + 1;
        let Some(change) = &mut self.change else { return };
        change.charter.version = version;
        let charter = change.charter.clone();
        change.asked = Some(charter.clone());
        if let Some(entry) = self.replacement(charter) {
            let wished = self.voters.as_ref().and_then(|v| v.wished());
            let Entry { voters, maintenance, .. } = wished.unwrap_or_else(|| entry.clone());
            self.start_round(For::Change, Goal::Replace(Entry { voters, maintenance, ..entry }));
        }
    }

    /// An operator wants something of the entry beside its charter.
    pub(super) fn wish(&mut self, wish: Wish) {
        let Some(voters) = &mut self.voters else { return };
        voters.meets = wish.newcomer().cloned();
        voters.wish = Some(wish);
        match voters.meets.clone() {
            Some(name) => {
                voters.met.remove(&name);
                self.meet();
            }
            None => self.ask_for_the_wish(),
        }
    }

    fn ask_for_the_wish(&mut self) {
        match self.voters.as_mut().map(|v| v.wished().is_some()) {
            Some(true) => self.ask_voters(self.wanted_charter().clone(), None),
            _ => {
                if let Some(voters) = &mut self.voters {
                    voters.wish = None; // It is so already.
                }
            }
        }
    }

    fn meet(&mut self) {
        let (now, Some(every)) = (self.now, self.repeat_ms()) else { return };
        let Some(voters) = &mut self.voters else { return };
        voters.repeat_at = now.plus_ms(every);
        if let Some(voter) = voters.meets.clone() {
            self.act(Action::AskVoter { voter, question: who_are_you() });
        }
    }

    /// Asks to be active in place of what is there (C3), or to found the charter (C7).
    pub(super) fn ask_to_be_active(&mut self, opening: Charter) {
        let Some(voters) = &mut self.voters else { return };
        if voters.known().voters.is_empty() || voters.known().charter.generation != opening.generation {
            voters.founding = Some(opening);
            voters.met.clear();
            return self.introduce();
        }
        if voters.known().charter != self.charter {
            // A charter of which it was only told: who its voters are it must read.
            return self.start_round(For::Learning, Goal::Read);
        }
        if let Some(entry) = self.replacement(opening) {
            self.start_round(For::Promotion, Goal::Replace(entry));
        }
    }

    /// Whoever is not known is asked who it is. Founded is with all of them or not at all (C7).
    fn introduce(&mut self) {
        let Some(mut names) = self.voting().map(|v| v.voters.clone()) else { return };
        let Some(every) = self.repeat_ms() else { return };
        let now = self.now;
        let Some(voters) = &mut self.voters else { return };
        let Some(charter) = voters.founding.clone() else { return };
        if charter.generation.0 > 1 {
            names = vec![self.cfg.my_name().to_string()]; // By force: nobody else has a say in it (C8).
        }
        let unknown: Vec<String> = names.iter().filter(|n| !voters.met.contains_key(*n)).cloned().collect();
        voters.repeat_at = now.plus_ms(every);
        if unknown.is_empty() {
            voters.founding = None;
            let listed = names.into_iter().map(|name| Voter { id: voters.met[&name], name }).collect();
            let entry = Entry { charter, voters: listed, former: Vec::new(), maintenance: false };
            return self.start_round(For::Promotion, Goal::Found(entry));
        }
        for voter in unknown {
            self.act(Action::AskVoter { voter, question: who_are_you() });
        }
    }

    pub(super) fn voter_answered(&mut self, name: &str, answer: &register::Answer) {
        let now = self.now;
        let Some(voters) = &mut self.voters else { return };
        voters.heard.insert(name.to_string(), now);
        if answer.ballot == Ballot::default() {
            let news = voters.met.insert(name.to_string(), answer.from).is_none();
            if voters.founding.is_some() && news {
                self.introduce();
            } else if voters.meets.as_deref() == Some(name) {
                voters.meets = None;
                self.ask_for_the_wish();
            }
            return;
        }
        let (questions, outcome) = voters.proposer.answered(answer);
        self.put(questions);
        match outcome {
            Outcome::Open => {}
            Outcome::Outbid => self.outbid(),
            Outcome::Decided(entry) => self.decided(&entry),
            Outcome::Stuck(stuck) => self.is_stuck(stuck),
        }
    }

    /// Two that ask at once must not go on outbidding each other.
    fn outbid(&mut self) {
        let Some(ms) = self.voting().map(|v| v.round_ms) else { return };
        let pause = self.draw_id() as u64 % ms.max(1);
        let at = self.now.plus_ms(pause / 2);
        if let Some(voters) = &mut self.voters {
            voters.again_at.get_or_insert(at);
        }
    }

    fn is_stuck(&mut self, stuck: Stuck) {
        self.notice(Notice::VotersStuck { why: stuck.to_string() });
        let Some(voters) = &mut self.voters else { return };
        voters.stuck = Some(stuck);
        match voters.round.take() {
            Some(For::Change) | None => {}
            Some(For::Learning | For::Promotion) => self.vote_failed(),
        }
    }

    /// The round is given up; what it asked for may be chosen all the same, and this node learns of it (C4).
    pub(super) fn leave_round(&mut self) {
        if let Some(voters) = &mut self.voters {
            voters.proposer.give_up();
            (voters.round, voters.founding, voters.again_at) = (None, None, None);
            voters.forget_wish();
            voters.open.clear();
        }
    }

    pub(super) fn poll_keeper(&mut self) {
        let now = self.now;
        let Some(voters) = &mut self.voters else { return };
        if voters.again_at.is_some_and(|at| at <= now) {
            voters.again_at = None;
            voters.open.clear();
            let questions = voters.proposer.retry();
            return self.put(questions);
        }
        if voters.repeat_at > now || !voters.is_busy() {
            return;
        }
        if voters.founding.is_some() {
            return self.introduce();
        }
        if voters.meets.is_some() {
            self.meet();
        }
        let Some(voters) = &mut self.voters else { return };
        let open = std::mem::take(&mut voters.open);
        let open = open.into_iter().filter(|(_, question)| voters.proposer.awaits(question)).collect();
        self.put(open);
    }

    pub(super) fn keeper_deadline(&self) -> Option<Time> {
        let voters = self.voters.as_ref()?;
        let repeat = voters.is_busy().then_some(voters.repeat_at);
        [repeat, voters.again_at, self.takeover_deadline()].into_iter().flatten().min()
    }

    /// A round has ended with this entry: every round that began before it has ended, too.
    fn decided(&mut self, entry: &Entry) {
        let Some(voters) = &mut self.voters else { return };
        let round = voters.round.take();
        voters.open.clear();
        voters.again_at = None;
        self.persist(Then::Nothing);
        match round {
            Some(For::Change) if self.change.as_ref().is_some_and(|c| c.asked.as_ref() == Some(&entry.charter)) => {
                self.change_decided();
            }
            Some(For::Promotion) if self.is_asked(&entry.charter) => self.agreed(entry.charter.clone()),
            Some(For::Learning) if entry.charter == self.charter => {
                if let Some(opening) = self.asked_opening() {
                    self.ask_to_be_active(opening);
                }
            }
            Some(For::Learning | For::Promotion) => {
                self.adopt(&entry.charter);
                self.vote_failed();
            }
            Some(For::Change) | None => self.adopt(&entry.charter),
        }
    }

    /// What this node asked for stands.
    fn change_decided(&mut self) {
        let Some(mut change) = self.change.take() else { return };
        let Some(asked) = change.asked.take() else { return };
        let before = std::mem::replace(&mut self.charter, asked);
        let same = Charter { version: self.charter.version, ..change.charter.clone() } == self.charter;
        let is_over = same && !self.is_wish_open();
        let dropped = std::mem::take(&mut change.dropped);
        let (gone, still): (Vec<_>, Vec<_>) =
            dropped.into_iter().partition(|(n, _)| self.charter.member(self.cfg.name(*n)).is_none());
        if !is_over {
            change.dropped = still;
            change.unite(&self.charter);
            self.change = Some(change);
        }
        self.tell_of_members(&before, gone);
        self.check_suspension();
        self.charter_changed();
        if self.change.is_some() {
            self.ask_next();
        }
    }

    /// What an operator wants of the entry stands, or is still to be asked for.
    fn is_wish_open(&mut self) -> bool {
        let Some(voters) = self.voters.as_mut().filter(|v| v.meets.is_none()) else { return false };
        let open = voters.wished().is_some();
        if !open {
            voters.wish = None;
        }
        open
    }

    /// A charter that the voters have agreed to, and that this node did not ask for.
    pub(super) fn adopt(&mut self, charter: &Charter) {
        match self.role() {
            Role::Active if charter.overtakes(&self.charter) => self.deposed(charter),
            Role::Active => {}
            Role::Passive => self.hear_charter(charter),
        }
    }

    /// Another node says what the voters have agreed to.
    pub(super) fn entry_came(&mut self, node: NodeId, entry: &Entry) {
        let Some(voters) = &mut self.voters else { return };
        voters.proposer.learn(entry);
        self.persist(Then::Nothing);
        self.check_claim(node, &entry.charter);
        let followed = self.peers[node.0 as usize].target_mut().is_some();
        if followed && self.charter.overtakes(&entry.charter) {
            return self.close_link(node, "another node was promoted since", true);
        }
        self.adopt(&entry.charter);
    }

    /// Whoever takes over must know the voters.
    pub(super) fn tell_entry(&mut self, node: NodeId) {
        let Some(known) = self.voters.as_ref().map(|v| v.known().clone()) else { return };
        let session = self.peers[node.0 as usize].session().filter(|_| known.charter.generation != (0, 0));
        if let Some(session) = session {
            self.send(node, session, PeerMsg::Entry(Box::new(known)));
        }
    }

    /// The listed entry of this node.
    pub(super) fn my_member(&self) -> Option<&Member> {
        self.charter.member(self.cfg.my_name())
    }
}
