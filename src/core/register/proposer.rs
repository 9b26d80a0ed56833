//! Whoever reads the charter or replaces it: one round at a time, repeated under a higher ballot until one ends.

use super::{Answer, Ballot, Entry, Question, Said, Voter, VoterId, majority};
use std::collections::{BTreeMap, BTreeSet};

/// What a round is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Goal {
    Read,
    /// This entry in place of the version before its own. Where another version is there, that is read.
    Replace(Entry),
    /// The first entry of its generation, if all its voters are blank.
    Found(Entry),
}

/// What came of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet.
    Open,
    /// Another attempt came in between. This one may end all the same, but should be repeated.
    Outbid,
    /// This entry was chosen; every round that began before this one did has ended, too.
    Decided(Entry),
    /// The round will not end by itself.
    Stuck(Stuck),
}

/// Why a round is not to be repeated as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stuck {
    /// Voters have gone on to a later generation: whoever promoted itself by force there is active (C8).
    #[error("a voter belongs to generation {generation}, which was founded by force since")]
    Left { generation: u64 },
    /// A majority answers, and does not hold what it once agreed to.
    #[error(
        "the voters hold version {found}, and had agreed to version {known}: files of voters were lost or are old copies"
    )]
    Forgotten { known: u64, found: u64 },
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposer {
    by: u128,
    /// Of the newest attempt that was made or heard of.
    number: u64,
    /// The newest entry that is known to be chosen (C7).
    known: Entry,
    /// What each voter has confirmed, by generation: it may not hold less later.
    confirmed: BTreeMap<VoterId, (u64, Ballot)>,
    round: Option<Round>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Round {
    goal: Goal,
    /// The number of the generation that it is about.
    generation: u64,
    ballot: Ballot,
    /// The newest entry that was known to be chosen when the round began: what is found may not be older (C7).
    known: Entry,
    /// To whom this round's present questions went.
    asked: BTreeSet<VoterId>,
    /// Who has promised, and the newest entry that any of them had accepted.
    promised: BTreeSet<VoterId>,
    found: Option<(Ballot, Entry)>,
    /// What is being written, and who has accepted it.
    writing: Option<Entry>,
    accepted: BTreeSet<VoterId>,
}

impl Proposer {
    /// `by` is drawn anew by each process; `known` is the newest entry that its disk says was chosen.
    pub fn new(by: u128, known: Entry) -> Proposer {
        Proposer { by, number: 0, known, confirmed: BTreeMap::new(), round: None }
    }

    /// The newest entry that is known to be chosen.
    pub fn known(&self) -> &Entry {
        &self.known
    }

    pub fn is_busy(&self) -> bool {
        self.round.is_some()
    }

    /// Begins a round. One that is under way is given up: whether its entry was or will be chosen is unknown until this one ends.
    pub fn start(&mut self, goal: Goal) -> Vec<(Voter, Question)> {
        // Whoever replaces a version has seen it chosen: so its voters are those that `former` must name.
        if let Goal::Replace(entry) = &goal {
            assert!(
                entry.version() <= self.known.version() + 1,
                "{} replaces {}",
                entry.version(),
                self.known.version()
            );
        }
        let generation = match &goal {
            Goal::Found(entry) => entry.generation(),
            _ => self.known.generation(),
        };
        self.number += 1;
        let ballot = Ballot { number: self.number, by: self.by };
        self.round = Some(Round {
            goal,
            generation,
            ballot,
            known: self.known.clone(),
            asked: BTreeSet::new(),
            promised: BTreeSet::new(),
            found: None,
            writing: None,
            accepted: BTreeSet::new(),
        });
        self.ask_more()
    }

    /// The same goal again under a higher ballot: answers were lost, or another attempt came in between.
    pub fn retry(&mut self) -> Vec<(Voter, Question)> {
        match self.round.take() {
            Some(round) => self.start(round.goal),
            None => Vec::new(),
        }
    }

    /// The round is of no use any more. What it asked for may be chosen all the same.
    pub fn give_up(&mut self) {
        self.round = None;
    }

    /// An entry that another node knows to be chosen.
    pub fn learn(&mut self, entry: &Entry) {
        if entry.generation() > self.known.generation()
            || entry.charter.generation == self.known.charter.generation && entry.version() > self.known.version()
        {
            self.known = entry.clone();
        }
    }

    /// Whether an answer to this question would still count.
    pub fn awaits(&self, question: &Question) -> bool {
        self.round.as_ref().is_some_and(|round| {
            let answered = if round.writing.is_some() { &round.accepted } else { &round.promised };
            round.ballot == question.ballot && round.writing == question.accept && !answered.contains(&question.to)
        })
    }

    /// Voters that have not answered this round, for people.
    pub fn silent(&self) -> Vec<&str> {
        let Some(round) = &self.round else { return Vec::new() };
        let answered = if round.writing.is_some() { &round.accepted } else { &round.promised };
        let silent = Self::voters(round).into_iter().filter(|v| !answered.contains(&v.id));
        silent.map(|v| v.name.as_str()).collect()
    }

    /// Takes an answer in: further questions, and what came of the round.
    pub fn answered(&mut self, answer: &Answer) -> (Vec<(Voter, Question)>, Outcome) {
        if let Said::Outbid(ballot) = &answer.said {
            self.number = self.number.max(ballot.number);
        }
        let Some(round) = self.round.as_mut().filter(|r| r.ballot == answer.ballot) else {
            return (Vec::new(), Outcome::Open); // Of an attempt that is over.
        };
        if matches!(answer.said, Said::Promised(_) | Said::Accepted) {
            let before = self.confirmed.entry(answer.from).or_default();
            *before = (round.generation, round.ballot).max(*before);
        }
        match &answer.said {
            Said::Promised(accepted) if round.writing.is_none() => {
                round.promised.insert(answer.from);
                if accepted.as_ref().map(|a| a.0) > round.found.as_ref().map(|f| f.0) {
                    round.found.clone_from(accepted);
                }
                self.advance()
            }
            Said::Accepted if round.writing.is_some() => {
                round.accepted.insert(answer.from);
                self.advance()
            }
            Said::Left { generation } if *generation > round.generation => {
                self.round = None;
                (Vec::new(), Outcome::Stuck(Stuck::Left { generation: *generation }))
            }
            Said::Outbid(_) => (Vec::new(), Outcome::Outbid),
            _ => (Vec::new(), Outcome::Open),
        }
    }

    /// All sets of voters that each step needs a majority of. The voters of a version that was being replaced count too: whoever
    /// knows only them must meet what was agreed.
    fn quorums(round: &Round) -> Vec<&[Voter]> {
        // A generation's first voters have nothing to do with those of the one before (C8).
        let first = match &round.goal {
            Goal::Found(entry) => entry,
            _ => &round.known,
        };
        let mut sets = vec![&first.voters];
        if let Some((_, found)) = &round.found {
            sets.push(&found.voters);
            // Nobody knows yet that it was chosen, so nobody may count on its voters alone.
            if *found != round.known {
                sets.push(&found.former);
            }
        }
        sets.extend(round.writing.as_ref().map(|c| &c.voters));
        sets.into_iter().map(Vec::as_slice).filter(|voters| !voters.is_empty()).collect()
    }

    fn voters(round: &Round) -> BTreeSet<&Voter> {
        Self::quorums(round).into_iter().flatten().collect()
    }

    fn has_quorum(round: &Round, of: &BTreeSet<VoterId>) -> bool {
        let quorums = Self::quorums(round);
        !quorums.is_empty() && quorums.iter().all(|voters| majority(voters, |id| of.contains(&id)))
    }

    /// A founder needs the promise of everyone whom it lists: a majority that is no longer whole would otherwise not be noticed (C7).
    fn all_promised(round: &Round) -> bool {
        match &round.goal {
            Goal::Found(entry) => entry.voters.iter().all(|v| round.promised.contains(&v.id)),
            _ => true,
        }
    }

    fn advance(&mut self) -> (Vec<(Voter, Question)>, Outcome) {
        let Some(round) = &self.round else { return (Vec::new(), Outcome::Open) };
        if let Some(entry) = &round.writing {
            if !Self::has_quorum(round, &round.accepted) {
                return (Vec::new(), Outcome::Open);
            }
            let decided = entry.clone();
            self.round = None;
            self.learn(&decided); // Something newer may have been learnt meanwhile.
            return (Vec::new(), Outcome::Decided(decided));
        }
        if !Self::has_quorum(round, &round.promised) || !Self::all_promised(round) {
            return (self.ask_more(), Outcome::Open);
        }
        match Self::to_write(round) {
            Ok(entry) => {
                if let Some(round) = &mut self.round {
                    round.writing = Some(entry);
                    round.asked.clear();
                }
                (self.ask_more(), Outcome::Open)
            }
            Err(stuck) => {
                self.round = None;
                (Vec::new(), Outcome::Stuck(stuck))
            }
        }
    }

    /// The entry of the second phase: what was found, or what replaces it.
    fn to_write(round: &Round) -> Result<Entry, Stuck> {
        let known = &round.known;
        let Some((_, found)) = &round.found else {
            return match &round.goal {
                Goal::Found(entry) => Ok(entry.clone()),
                _ => Err(Stuck::Forgotten { known: known.version(), found: 0 }),
            };
        };
        if found.generation() == known.generation() && found.version() < known.version() {
            return Err(Stuck::Forgotten { known: known.version(), found: found.version() });
        }
        match &round.goal {
            Goal::Replace(entry)
                if entry.charter.generation == found.charter.generation && entry.version() == found.version() + 1 =>
            {
                let former = if entry.voters == found.voters { Vec::new() } else { found.voters.clone() };
                Ok(Entry { former, ..entry.clone() })
            }
            _ => Ok(found.clone()),
        }
    }

    /// Questions of the present phase to those who have not been asked.
    fn ask_more(&mut self) -> Vec<(Voter, Question)> {
        let Some(round) = &self.round else { return Vec::new() };
        let new: Vec<Voter> =
            Self::voters(round).into_iter().filter(|v| !round.asked.contains(&v.id)).cloned().collect();
        let (generation, ballot, accept) = (round.generation, round.ballot, round.writing.clone());
        let question = |voter: Voter| {
            let seen =
                self.confirmed.get(&voter.id).filter(|(g, _)| *g == generation).map_or(Ballot::default(), |c| c.1);
            let question = Question { to: voter.id, generation, ballot, seen, accept: accept.clone() };
            (voter, question)
        };
        let questions: Vec<(Voter, Question)> = new.into_iter().map(question).collect();
        if let Some(round) = &mut self.round {
            round.asked.extend(questions.iter().map(|(v, _)| v.id));
        }
        questions
    }
}
