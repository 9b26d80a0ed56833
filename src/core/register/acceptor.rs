//! A voter: promises, and accepts, and does not forget (C7).

use super::{Answer, Question, Said, Vote, VoterId};

/// See the module. What it holds in memory may be newer than what is durable, so its answers wait.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acceptor {
    vote: Vote,
}

impl Acceptor {
    /// A voter that goes on where its file says.
    pub fn new(vote: Vote) -> Acceptor {
        Acceptor { vote }
    }

    pub fn vote(&self) -> &Vote {
        &self.vote
    }

    /// Answers a question. The answer may be sent only once [`Acceptor::vote`], as it is now, is durable. `fresh` is drawn for this
    /// call, for a voter that must give its id up.
    #[must_use]
    pub fn asked(&mut self, question: &Question, fresh: VoterId) -> Answer {
        let said = self.say(question, fresh);
        Answer { from: self.vote.id, ballot: question.ballot, said }
    }

    fn say(&mut self, question: &Question, fresh: VoterId) -> Said {
        let vote = &mut self.vote;
        if question.to != vote.id {
            return Said::Stranger;
        }
        if question.generation < vote.generation {
            return Said::Left { generation: vote.generation };
        }
        if question.generation > vote.generation {
            // Its own generation goes on without it (C8).
            *vote = Vote { id: vote.id, generation: question.generation, ..Vote::default() };
        }
        if vote.promised < question.seen {
            return self.give_up(fresh);
        }
        if question.ballot < vote.promised {
            return Said::Outbid(vote.promised);
        }
        vote.promised = question.ballot;
        match &question.accept {
            None => Said::Promised(vote.accepted.clone()),
            Some(entry) => {
                // One attempt writes one entry; a question that comes twice brings the same.
                let same = vote.accepted.as_ref().filter(|(ballot, _)| *ballot == question.ballot);
                assert!(same.is_none_or(|(_, before)| before == entry), "two entries under {:?}", question.ballot);
                vote.accepted = Some((question.ballot, entry.clone()));
                Said::Accepted
            }
        }
    }

    /// It once confirmed more than it holds: what else it has forgotten nobody knows, so it is a new and blank voter from now on.
    fn give_up(&mut self, fresh: VoterId) -> Said {
        assert_ne!(fresh, self.vote.id, "an id that is drawn is new");
        self.vote = Vote { id: fresh, ..Vote::default() };
        Said::Stranger
    }
}
