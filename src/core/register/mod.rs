//! The charter's register under the keeper `voters`: CASPaxos (Rystsov 2018), which is Paxos that rewrites one value in place
//! instead of filling a log. [`Acceptor`] is a voter's part, [`Proposer`] that of whoever reads or replaces the charter. See
//! `docs/charter.md`.

mod acceptor;
#[cfg(test)]
mod acceptor_tests;
#[cfg(test)]
mod model_tests;
mod proposer;
#[cfg(test)]
mod proposer_tests;

pub use acceptor::Acceptor;
pub use proposer::{Goal, Outcome, Proposer, Stuck};

use super::hello::Charter;
use bincode::{Decode, Encode};

/// Random identity of a voter, drawn when its file is made: one that lost its file is another voter (C7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct VoterId(pub u128);

/// A voter as a charter lists it. Where it is to be found, the configuration says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Voter {
    pub name: String,
    pub id: VoterId,
}

/// What the register holds: the charter, and who keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Entry {
    pub charter: Charter,
    /// A majority of them decides.
    pub voters: Vec<Voter>,
    /// The voters of the version that this one replaces, where they were others: their majority is needed as well.
    pub former: Vec<Voter>,
    /// An operator is at work: nobody takes over by itself.
    pub maintenance: bool,
}

impl Entry {
    /// The number of the generation: registers of two generations have nothing to do with each other (C8).
    fn generation(&self) -> u64 {
        self.charter.generation.0
    }

    /// Counts the replacements of a generation, whatever they change.
    pub fn version(&self) -> u64 {
        self.charter.version
    }
}

/// The number of an attempt. No two attempts have the same: `by` is drawn by each process anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Ballot {
    pub number: u64,
    pub by: u128,
}

/// What a voter must not forget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Vote {
    pub id: VoterId,
    /// The number of the generation that `promised` and `accepted` are of (C8).
    pub generation: u64,
    pub promised: Ballot,
    pub accepted: Option<(Ballot, Entry)>,
}

/// A question to one voter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Question {
    /// The voter that is meant: another one of the same name does not answer for it.
    pub to: VoterId,
    pub generation: u64,
    pub ballot: Ballot,
    /// The newest ballot of this generation that this voter has ever confirmed to the asker.
    pub seen: Ballot,
    /// What to accept; none asks for a promise.
    pub accept: Option<Entry>,
}

/// A voter's answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Answer {
    /// The id that the voter has.
    pub from: VoterId,
    /// The question's.
    pub ballot: Ballot,
    pub said: Said,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Said {
    /// It takes part in no older attempt any more; what it accepted last.
    Promised(Option<(Ballot, Entry)>),
    Accepted,
    /// It has promised a newer attempt.
    Outbid(Ballot),
    /// It votes in a later generation (C8).
    Left {
        generation: u64,
    },
    /// Whom the question names is not there any more: its file was lost, or it has given its id up. `Answer::from` is who is there
    /// instead, and whoever knows nobody there asks with the default id to hear it.
    Stranger,
}

/// Whether more than half of `voters` are in `of`. No voters are no majority.
fn majority(voters: &[Voter], of: impl Fn(VoterId) -> bool) -> bool {
    voters.iter().filter(|v| of(v.id)).count() * 2 > voters.len()
}
