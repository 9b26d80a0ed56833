//! A promotion under the keeper `voters`: this node ends its incarnation, makes durable what it holds, has the charter replaced, and
//! fetches what the other members hold past its end (C3, C5).

use super::*;
use crate::core::takeover::Course;

/// How far a promotion is with the voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vote {
    /// There are none to be asked, or all that comes of them is over.
    Over,
    /// The active may still think that it has a lease.
    Silence,
    /// What is held is made durable: should this node be named and restart, it is named for that (C3).
    Settling {
        whole: bool,
    },
    Asked {
        whole: bool,
    },
    /// Agreed. Until then it waits for members that may hold more.
    Tails {
        until: Time,
    },
}

impl Node {
    /// Begins a promotion, an operator's or its own.
    pub(in crate::core) fn promote_by_vote(&mut self, id: Option<CommandId>) -> Result<(), Refusal> {
        self.check_free()?;
        if self.stage != Stage::Passive {
            return Err(Refusal::AlreadyActive { node: self.cfg.my_name().to_string() });
        }
        self.guard_vote()?;
        self.begin_vote(id, self.charter.clone(), false, String::new(), Vote::Silence);
        Ok(())
    }

    /// By force: in a generation of its own, of which this node is the only voter (C8).
    pub(super) fn promote_by_force(&mut self, id: Option<CommandId>, off: &[NodeId]) -> Result<(), Refusal> {
        let gave_up = self.guard_promotion(true, off)?;
        self.begin_vote(id, self.charter.clone(), true, gave_up, Vote::Settling { whole: true });
        self.end_incarnation();
        let opening = Box::new(self.opening_charter(true, off));
        if let Some(Operation { kind: Kind::Promote { opening: o, .. }, .. }) = &mut self.operation {
            *o = opening;
        }
        self.poll_vote();
        Ok(())
    }

    fn begin_vote(&mut self, id: Option<CommandId>, opening: Charter, forced: bool, gave_up: String, vote: Vote) {
        self.set_stage(Stage::Promoting);
        let continues = if forced { None } else { self.own_last_term() };
        let kind = Kind::Promote {
            forced,
            gave_up,
            before: None,
            opening: Box::new(opening),
            unanswered: BTreeSet::new(),
            fetching: None,
            committed: self.committed,
            continues,
            vote,
        };
        self.operation = Some(Operation { id, kind, since: self.now, contradicted: None });
        if vote == Vote::Silence {
            self.poll_vote();
        }
    }

    /// May this node ask to be active? Founded, the voters decide; a founder needs everyone's word, as under any keeper (C7).
    fn guard_vote(&self) -> Result<(), Refusal> {
        if self.charter.generation == (0, 0) {
            return self.guard_promotion(false, &[]).map(|_| ());
        }
        let (me, active) = (self.cfg.my_name(), self.charter.active.clone());
        let serves = |n: &NodeId| {
            let peer = &self.peers[n.0 as usize];
            let hello = peer.hello.as_ref().filter(|_| peer.is_greeted());
            hello.is_some_and(|h| h.role == Role::Active && !self.charter.overtakes(&h.charter))
                && self.charter.active.as_deref() == Some(self.cfg.name(*n))
        };
        if let Some(peer) = self.cfg.peers().find(serves) {
            return Err(Refusal::PeerIsActive { peer: self.cfg.name(peer).to_string(), me: me.to_string() });
        }
        if let Some(gap) = self.gap.as_ref().filter(|g| g.state.rollback.is_none()) {
            return Err(if gap.state.overwritten_in.is_some() { Refusal::Overwritten } else { Refusal::NoImage });
        }
        if self.charter.member(me).is_none() {
            let active = active.or(self.charter.in_sync.first().map(|m| m.node.clone()));
            return Err(Refusal::Dropped { active: active.unwrap_or_else(|| "the former active".into()) });
        }
        self.guard_damage(false).map(|_| ())
    }

    fn vote(&self) -> Option<Vote> {
        match &self.operation {
            Some(Operation { kind: Kind::Promote { vote, before: None, .. }, .. }) => Some(*vote),
            _ => None,
        }
    }

    fn set_vote(&mut self, next: Vote) {
        if let Some(Operation { kind: Kind::Promote { vote, .. }, .. }) = &mut self.operation {
            *vote = next;
        }
    }

    pub(in crate::core) fn vote_deadline(&self) -> Option<Time> {
        match self.vote()? {
            Vote::Over | Vote::Settling { .. } => None,
            Vote::Silence => Some(self.silent_until()),
            Vote::Asked { .. } => self.operation.as_ref().map(|o| o.since.plus_ms(PATIENCE_MS + 1)),
            Vote::Tails { until } => Some(until),
        }
    }

    /// The step that is due, of a promotion that is not over with the voters.
    pub(super) fn poll_vote(&mut self) {
        match self.vote() {
            Some(Vote::Silence) if self.now >= self.silent_until() => {
                let whole = self.is_whole() || self.charter.generation == (0, 0);
                self.end_incarnation();
                let opening = Box::new(self.opening_by_vote());
                if let Some(Operation { kind: Kind::Promote { opening: o, .. }, .. }) = &mut self.operation {
                    *o = opening;
                }
                self.set_vote(Vote::Settling { whole });
                self.poll_vote();
            }
            Some(Vote::Settling { whole }) => {
                let end = self.log.end();
                if self.log.durable() >= end {
                    self.set_vote(Vote::Asked { whole });
                    self.note_course(|course, now| course.asked = Some(now));
                    if let Some(opening) = self.asked_opening() {
                        self.ask_to_be_active(opening);
                    }
                    return;
                }
                self.log.want_durable(end);
                if self.operation_is_late() {
                    let what = "what this node holds could not be made durable".into();
                    self.give_up_claim(Refusal::TimedOut { what });
                }
            }
            Some(Vote::Asked { .. }) if self.operation_is_late() => {
                let names = self.voting().map_or(Vec::new(), |v| v.voters.clone());
                let voters = self.voters.as_ref().map_or(Vec::new(), |v| v.silent(&names));
                self.give_up_claim(Refusal::VotersSilent { voters });
            }
            Some(Vote::Tails { until }) => self.poll_tails(until),
            _ => {}
        }
    }

    fn poll_tails(&mut self, until: Time) {
        if matches!(&self.operation, Some(Operation { kind: Kind::Promote { fetching: Some(_), .. }, .. })) {
            return;
        }
        if self.best_tail().is_some() {
            return self.fetch_tail();
        }
        let others = self.charter.in_sync.iter().filter(|m| m.node != self.cfg.my_name());
        let mut others = others.filter_map(|m| self.cfg.find(&m.node));
        let all_have_spoken = others.all(|n| matches!(self.peers[n.0 as usize].link, Link::Idle(_)));
        if all_have_spoken || self.now >= until {
            self.set_vote(Vote::Over);
        }
    }

    /// Whoever holds more cannot give it: what completed is here all the same, or nobody has it any more (C5).
    pub(super) fn goes_on_without_tail(&mut self) -> bool {
        let waits = matches!(self.vote(), Some(Vote::Tails { .. }));
        if waits {
            self.set_vote(Vote::Over);
            if let Some(Operation { kind: Kind::Promote { fetching, .. }, .. }) = &mut self.operation {
                *fetching = None;
            }
        }
        waits
    }

    /// The charter in which this node is active: the replaced members stay, but for an active that did not release (C3).
    fn opening_by_vote(&mut self) -> Charter {
        let former = self.charter.active.clone().filter(|name| name != self.cfg.my_name());
        let mut opening = self.opening_charter(false, &[]);
        opening.in_sync.retain(|m| Some(&m.node) != former.as_ref());
        // Whom the file knows no more, or as async, nobody waits for: it must not stay one that could take over.
        opening.in_sync.retain(|m| m.node == self.cfg.my_name() || self.is_sync(&m.node));
        opening
    }

    /// What this node has asked the voters for.
    pub(in crate::core) fn asked_opening(&self) -> Option<Charter> {
        match &self.operation {
            Some(Operation { kind: Kind::Promote { vote: Vote::Asked { .. }, opening, .. }, .. }) => {
                Some((**opening).clone())
            }
            _ => None,
        }
    }

    pub(in crate::core) fn is_asked(&self, charter: &Charter) -> bool {
        matches!(&self.operation, Some(Operation { kind: Kind::Promote { vote: Vote::Asked { .. }, opening, .. }, .. })
            if **opening == *charter)
    }

    /// Whether the voters have agreed to the promotion under way.
    pub(in crate::core) fn has_agreed(&self) -> bool {
        self.stage == Stage::Promoting
            && self.voters.is_some()
            && matches!(&self.operation, Some(Operation { kind: Kind::Promote { opening, .. }, .. }) if **opening == self.charter)
    }

    pub(in crate::core) fn agreed(&mut self, charter: Charter) {
        let Some(Vote::Asked { whole }) = self.vote() else { return };
        let Some(voting) = self.voting() else { return };
        let limit = if whole { voting.round_ms } else { voting.lease_ms + voting.round_ms };
        self.charter = charter;
        self.set_vote(Vote::Tails { until: self.now.plus_ms(limit) });
        self.note_course(|course, now| course.agreed = Some(now));
        self.persist(Then::Nothing);
    }

    /// The voters hold something else than this node has asked to replace, or cannot be asked.
    pub(in crate::core) fn vote_failed(&mut self) {
        let peer = self.charter.active.clone().unwrap_or_else(|| "another node".into());
        self.contradict(Refusal::Claimed { peer });
    }

    pub(in crate::core) fn note_course(&mut self, note: impl FnOnce(&mut Course, Time)) {
        let now = self.now;
        if let Some(course) = &mut self.watch.course {
            note(course, now);
        }
    }

    /// Another node is active: whoever gave the command hears so.
    pub(in crate::core) fn abandon_by(&mut self, why: Refusal) {
        let id = self.operation.take().and_then(|o| o.id);
        self.answer(id, Err(why));
    }
}
