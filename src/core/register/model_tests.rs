//! The register in every order of events that there is, for two data nodes and one witness, within small bounds: messages are lost,
//! delayed, doubled and overtake each other, askers restart and forget their rounds, a voter loses its file and is replaced, rounds are
//! repeated. Checked with stateright; the number of states is printed.

use super::super::hello::Member;
use super::super::types::Incarnation;
use super::*;
use stateright::{Checker, Model, Property};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

const FRESH: VoterId = VoterId(999);
const NAMES: [&str; 3] = ["alpha", "beta", "w1"];

/// What may happen, and how often.
#[derive(Clone)]
struct Bounds {
    founded: bool,
    /// Rounds that each of the two data nodes may begin.
    rounds: [u8; 2],
    retries: u8,
    restarts: u8,
    losses: u8,
    /// Answers that never come. Questions that never come are not counted: each may.
    unheard: u8,
    goals: &'static [Want],
}

/// What a data node may want of the charter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Want {
    Read,
    /// To be active, in a new term.
    TakeOver,
    /// The other one out of the in-sync set.
    Drop,
    /// The witness that is there in place of the one that is listed.
    Replace,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Data {
    proposer: Proposer,
    /// The newest version that anybody had been told when this round began.
    floor: u64,
    rounds: u8,
    incarnation: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    voters: Vec<Arc<Acceptor>>,
    data: Vec<Arc<Data>>,
    /// Everything that was ever asked, by whom, and may come once, twice, late or never.
    questions: Arc<BTreeSet<(usize, Message)>>,
    retries: u8,
    restarts: u8,
    losses: u8,
    unheard: u8,
    /// What anybody was told, by version.
    told: Arc<BTreeMap<u64, Entry>>,
    wrong: Option<&'static str>,
}

/// A question, by its place among all that were ever asked: cheap to copy, to order and to hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Message(usize);

static ASKED: Mutex<Vec<Arc<Question>>> = Mutex::new(Vec::new());

impl Message {
    fn of(question: &Question) -> Message {
        let mut asked = ASKED.lock().unwrap();
        let at = asked.iter().position(|q| **q == *question).unwrap_or_else(|| {
            asked.push(Arc::new(question.clone()));
            asked.len() - 1
        });
        Message(at)
    }

    fn question(self) -> Arc<Question> {
        Arc::clone(&ASKED.lock().unwrap()[self.0])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Begin(usize, Want),
    Retry(usize),
    Restart(usize),
    LoseFile(usize),
    /// A question comes to its voter. Its answer comes at once or never: that it comes late tells nothing more, since what the asker
    /// does upon it is to ask, and those questions may come late.
    Ask {
        by: usize,
        question: Message,
        heard: bool,
    },
}

fn first_ids() -> Vec<Voter> {
    NAMES.iter().zip(1..).map(|(name, id)| Voter { name: (*name).into(), id: VoterId(id) }).collect()
}

fn member(node: usize) -> Member {
    Member { node: NAMES[node].into(), incarnation: Incarnation(1) }
}

fn root(by: usize) -> Entry {
    let charter = Charter {
        generation: (1, by as u128 + 1),
        term: 1,
        version: 1,
        active: Some(NAMES[by].into()),
        in_sync: vec![member(0), member(1)],
        ..Charter::default()
    };
    Entry { charter, voters: first_ids(), former: Vec::new(), maintenance: false }
}

impl World {
    fn new(bounds: &Bounds) -> World {
        let accepted = bounds.founded.then(|| (Ballot { number: 1, by: 1 }, root(0)));
        let promised = accepted.as_ref().map_or(Ballot::default(), |a| a.0);
        let voter = |v: Voter| {
            Acceptor::new(Vote {
                id: v.id,
                generation: u64::from(bounds.founded),
                promised,
                accepted: accepted.clone(),
            })
        };
        let known = if bounds.founded { root(0) } else { Entry::default() };
        let data = |node: usize| Data {
            proposer: Proposer::new(node as u128 + 2, known.clone()),
            floor: 0,
            rounds: 0,
            incarnation: 0,
        };
        World {
            voters: first_ids().into_iter().map(|v| Arc::new(voter(v))).collect(),
            data: vec![Arc::new(data(0)), Arc::new(data(1))],
            questions: Arc::default(),
            retries: 0,
            restarts: 0,
            losses: 0,
            unheard: 0,
            told: Arc::new(if bounds.founded { BTreeMap::from([(1, root(0))]) } else { BTreeMap::new() }),
            wrong: None,
        }
    }

    /// What a node would ask for, by what it knows.
    fn goal(&self, node: usize, want: Want) -> Option<Goal> {
        let known = self.data[node].proposer.known();
        if known.version() == 0 {
            return (want == Want::TakeOver).then(|| Goal::Found(Entry { voters: self.present(), ..root(node) }));
        }
        let mut next = Entry { former: Vec::new(), ..known.clone() };
        next.charter.version += 1;
        let (me, other) = (NAMES[node], NAMES[1 - node]);
        match want {
            Want::Read => return Some(Goal::Read),
            Want::TakeOver => {
                known.charter.member(me)?;
                next.charter.term += 1;
                next.charter.active = Some(me.into());
            }
            Want::Drop => {
                known.charter.member(other).filter(|_| known.charter.active.as_deref() == Some(me))?;
                next.charter.in_sync = vec![member(node)];
            }
            Want::Replace if known.voters == self.present() => return None,
            Want::Replace => next.voters = self.present(),
        }
        Some(Goal::Replace(next))
    }

    /// The voters that are there now, as each says of itself.
    fn present(&self) -> Vec<Voter> {
        NAMES.iter().zip(&self.voters).map(|(n, a)| Voter { name: (*n).into(), id: a.vote().id }).collect()
    }

    fn send(&mut self, node: usize, questions: Vec<(Voter, Question)>) {
        Arc::make_mut(&mut self.questions).extend(questions.iter().map(|(_, q)| (node, Message::of(q))));
    }

    fn decided(&mut self, node: usize, entry: Entry) {
        let newest = self.told.last_key_value().map_or(0, |(v, _)| *v);
        if entry.version() < self.data[node].floor {
            self.wrong = Some("a round ended with a version older than one that was told before it began");
        }
        if self.told.get(&entry.version()).is_some_and(|e| *e != entry) {
            self.wrong = Some("one version, two charters");
        }
        let mine = &entry.charter;
        if self.told.values().any(|e| e.charter.term == mine.term && e.charter.active != mine.active) {
            self.wrong = Some("two active nodes in one term");
        }
        if entry.version() > newest + 2 {
            self.wrong = Some("a version came out of nothing");
        }
        Arc::make_mut(&mut self.told).insert(entry.version(), entry);
    }
}

impl Model for Bounds {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for node in 0..2 {
            let data = &world.data[node];
            if data.rounds < self.rounds[node] && !data.proposer.is_busy() {
                let wants = self.goals.iter().filter(|w| world.goal(node, **w).is_some());
                steps.extend(wants.map(|w| Step::Begin(node, *w)));
            }
            if data.proposer.is_busy() && world.retries < self.retries {
                steps.push(Step::Retry(node));
            }
            if data.proposer.is_busy() && world.restarts < self.restarts {
                steps.push(Step::Restart(node));
            }
        }
        if world.losses < self.losses {
            steps.push(Step::LoseFile(2));
        }
        for (by, message) in world.questions.iter() {
            let question = message.question();
            let Some(voter) = world.voters.iter().find(|v| v.vote().id == question.to) else { continue };
            // What changes nothing leads nowhere.
            let mut after = (**voter).clone();
            let said = after.asked(&question, FRESH).said;
            let counts = matches!(said, Said::Promised(_) | Said::Accepted);
            if counts && world.data[*by].proposer.awaits(&question) {
                steps.push(Step::Ask { by: *by, question: *message, heard: true });
            }
            if after != **voter && world.unheard < self.unheard {
                steps.push(Step::Ask { by: *by, question: *message, heard: false });
            }
        }
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut world = before.clone();
        match step {
            Step::Begin(node, want) => {
                let goal = world.goal(node, want)?;
                let data = Arc::make_mut(&mut world.data[node]);
                data.rounds += 1;
                data.floor = world.told.last_key_value().map_or(0, |(v, _)| *v);
                let questions = data.proposer.start(goal);
                world.send(node, questions);
            }
            Step::Retry(node) => {
                world.retries += 1;
                // Refusals are told when they matter: what to go past.
                let newest = world.voters.iter().map(|v| v.vote().promised).max().unwrap_or_default();
                let outbid = Answer { from: VoterId(0), ballot: newest, said: Said::Outbid(newest) };
                let proposer = &mut Arc::make_mut(&mut world.data[node]).proposer;
                let _ = proposer.answered(&outbid);
                let questions = proposer.retry();
                world.send(node, questions);
            }
            Step::Restart(node) => {
                world.restarts += 1;
                let data = Arc::make_mut(&mut world.data[node]);
                data.incarnation += 1;
                let by = node as u128 + 2 + 10 * u128::from(data.incarnation);
                data.proposer = Proposer::new(by, data.proposer.known().clone());
            }
            Step::LoseFile(voter) => {
                world.losses += 1;
                let id = VoterId(100 + u128::from(world.losses));
                world.voters[voter] = Arc::new(Acceptor::new(Vote { id, ..Vote::default() }));
            }
            Step::Ask { by, question, heard } => {
                let question = question.question();
                let voter = world.voters.iter_mut().find(|v| v.vote().id == question.to)?;
                // Durable before it is answered: a crash in between is a question that never came.
                let answer = Arc::make_mut(voter).asked(&question, FRESH);
                world.unheard += u8::from(!heard);
                if heard {
                    let (questions, outcome) = Arc::make_mut(&mut world.data[by]).proposer.answered(&answer);
                    world.send(by, questions);
                    match outcome {
                        Outcome::Decided(entry) => world.decided(by, entry),
                        Outcome::Stuck(_) => world.wrong = Some("voters forgot"),
                        Outcome::Open | Outcome::Outbid => {}
                    }
                }
            }
        }
        if world == *before {
            return None;
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Bounds>> {
        vec![
            Property::always(
                "no version is forgotten, each is one charter, and a term has one active",
                |_, world: &World| world.wrong.is_none(),
            ),
            Property::sometimes("a round ends", |bounds: &Bounds, world: &World| {
                world.told.len() > usize::from(bounds.founded)
            }),
        ]
    }
}

fn check(name: &str, bounds: Bounds) {
    let checker = bounds.checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states, {} of them distinct", checker.state_count(), checker.unique_state_count());
    if let Some(path) = checker.discovery("no version is forgotten, each is one charter, and a term has one active") {
        let (world, steps) = (path.last_state().clone(), path.into_actions());
        panic!("{name}: {:?} after {steps:#?}", world.wrong);
    }
    checker.assert_properties();
}

fn bounds(rounds: [u8; 2], goals: &'static [Want]) -> Bounds {
    Bounds { founded: true, rounds, retries: 0, restarts: 0, losses: 0, unheard: 1, goals }
}

#[test]
fn two_that_want_to_be_active() {
    check("two takeovers, one repeated", Bounds { retries: 1, ..bounds([1, 1], &[Want::TakeOver]) });
}

#[test]
fn a_drop_a_takeover_and_a_read() {
    check("a drop, a takeover or a read", bounds([1, 1], &[Want::TakeOver, Want::Drop, Want::Read]));
    check("two of these and one", Bounds { unheard: 0, ..bounds([2, 1], &[Want::TakeOver, Want::Drop]) });
}

#[test]
fn an_asker_that_restarts() {
    check(
        "a drop and a takeover, with a restart",
        Bounds { restarts: 1, unheard: 0, ..bounds([2, 1], &[Want::TakeOver, Want::Drop]) },
    );
}

#[test]
fn a_voter_that_is_replaced() {
    check(
        "a file is lost and its voter replaced",
        Bounds { losses: 1, unheard: 0, ..bounds([2, 1], &[Want::TakeOver, Want::Replace]) },
    );
}

#[test]
fn two_founders() {
    let bounds = Bounds { founded: false, retries: 1, losses: 1, ..bounds([1, 1], &[Want::TakeOver]) };
    check("two founders, a file is lost", bounds);
}
