//! The voters of the world: small things that promise and accept and do not forget, beside the nodes or on a site of their own. What
//! travels to them and back is lost, late, doubled and out of order.

use super::brain::Brain;
use super::invariants::Violation;
use super::plan::name;
use super::world::{Happening, World};
use crate::core::register::{Acceptor, Answer, Question, Vote, VoterId};
use crate::core::{Event, NodeId};
use std::collections::BTreeMap;

/// A voter, as its file has it: what it answers is durable.
#[derive(Debug)]
pub struct SimVoter {
    name: String,
    /// The node that it runs beside; none for a witness.
    beside: Option<NodeId>,
    acceptor: Acceptor,
    down_until: u64,
}

/// What is under way to a voter, or back to a node.
#[derive(Clone, Debug)]
enum Letter {
    Question { from: NodeId, voter: usize, question: Question },
    Answer { to: NodeId, voter: usize, answer: Answer },
}

/// All of them, and their post.
#[derive(Debug, Default)]
pub struct Voters {
    all: Vec<SimVoter>,
    letters: BTreeMap<u64, Letter>,
    next: u64,
    /// Ways between a node and a witness that are broken, until when.
    cut: BTreeMap<(NodeId, usize), u64>,
    /// How often the witness has lost its file, and how often somebody had seen to it.
    pub(super) losses: u64,
    pub(super) seen_to: u64,
    /// Maintenance may be on.
    pub(super) maintenance: bool,
}

impl<B: Brain> World<B> {
    /// Every node has a voter of its own, whether the file names it or not: a promotion by force needs it.
    pub(super) fn make_voters(&mut self) {
        let Some(voting) = self.plan.voting.clone() else { return };
        let nodes = self.nodes().map(|n| (name(n.0 as usize), Some(n)));
        let all: Vec<_> = nodes.chain(voting.witness.then(|| ("w1".to_string(), None))).collect();
        for (name, beside) in all {
            let vote = Vote { id: VoterId(self.rng.next_u128()), ..Vote::default() };
            self.voters.all.push(SimVoter { name, beside, acceptor: Acceptor::new(vote), down_until: 0 });
        }
    }

    fn post(&mut self, letter: Letter, least: u64) {
        if self.rng.per_mille(20) {
            return;
        }
        let copies = if self.rng.per_mille(30) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = least + 1 + self.rng.around(self.plan.net_delay_us);
            self.voters.next += 1;
            let id = self.voters.next;
            self.voters.letters.insert(id, letter.clone());
            self.later(delay, Happening::Letter(id));
        }
    }

    pub(super) fn ask_voter(&mut self, from: NodeId, voter: &str, question: Question) {
        self.counts.one("questions to voters");
        match self.voters.all.iter().position(|v| v.name == voter) {
            Some(voter) => self.post(Letter::Question { from, voter, question }, 0),
            None => self.say(|| format!("there is no voter {voter}")),
        }
    }

    /// Whether anything passes between a node and a voter, in this direction.
    fn passes(&self, node: NodeId, voter: usize, to_voter: bool) -> bool {
        match self.voters.all[voter].beside {
            Some(beside) if beside == node => true,
            Some(beside) if to_voter => self.net.clear_way(node, beside),
            Some(beside) => self.net.clear_way(beside, node),
            None => self.voters.cut.get(&(node, voter)).is_none_or(|until| *until <= self.now),
        }
    }

    fn voter_runs(&self, voter: usize) -> bool {
        let voter = &self.voters.all[voter];
        voter.down_until <= self.now && voter.beside.is_none_or(|n| self.slots[n.0 as usize].runs())
    }

    pub(super) fn letter_came(&mut self, id: u64) -> Result<(), Violation> {
        match self.voters.letters.remove(&id) {
            Some(Letter::Question { from, voter, question })
                if self.passes(from, voter, true) && self.voter_runs(voter) =>
            {
                let fresh = VoterId(self.rng.next_u128());
                let before = self.voters.all[voter].acceptor.clone();
                let answer = self.voters.all[voter].acceptor.asked(&question, fresh);
                if self.storm && self.rng.per_mille(5) {
                    // It ends before it has answered; what it has promised is in its file, or is not.
                    if self.rng.coin() {
                        self.voters.all[voter].acceptor = before;
                    }
                    self.counts.one("voters ended in the middle of an answer");
                    self.voters.all[voter].down_until = self.now + self.rng.around(300_000);
                    return Ok(());
                }
                let flush = self.plan.disk.flush_us;
                self.post(Letter::Answer { to: from, voter, answer }, flush);
                Ok(())
            }
            Some(Letter::Answer { to, voter, answer }) if self.passes(to, voter, false) => {
                let voter = self.voters.all[voter].name.clone();
                self.mix(answer.ballot.number);
                self.handle(to, Event::VoterAnswered { voter, answer })
            }
            _ => Ok(()),
        }
    }

    /// The witness goes away for a while, or a node cannot reach it.
    pub(super) fn impair_witness(&mut self, cut_from: Option<NodeId>) {
        let until = self.now + self.rng.around(1_500_000);
        let Some(witness) = self.voters.all.iter().position(|v| v.beside.is_none()) else { return };
        match cut_from {
            Some(node) => {
                self.voters.cut.insert((node, witness), until);
            }
            None => self.voters.all[witness].down_until = until,
        }
    }

    /// A node does not reach the witness until then.
    #[cfg(test)]
    pub(super) fn cut_witness(&mut self, node: NodeId, until: u64) {
        let witness = self.voters.all.iter().position(|v| v.beside.is_none()).expect("a witness");
        self.voters.cut.insert((node, witness), until);
    }

    /// The witness's file is gone: it is a blank voter, and another one.
    pub(super) fn lose_witness(&mut self) {
        let id = VoterId(self.rng.next_u128());
        if let Some(witness) = self.voters.all.iter_mut().find(|v| v.beside.is_none()) {
            witness.acceptor = Acceptor::new(Vote { id, ..Vote::default() });
            self.voters.losses += 1;
        }
    }

    pub(super) fn mend_witness(&mut self) {
        self.voters.cut.clear();
        self.voters.all.iter_mut().for_each(|v| v.down_until = 0);
    }
}
