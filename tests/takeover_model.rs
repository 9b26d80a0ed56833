//! The protocol of `docs/charter.md` above its register, in every order of events within small bounds: two data nodes, and a witness that
//! has a part in the register alone. The register stands here as what it was shown to be (`core/register/model_tests.rs`): linearizable, with
//! replacements that arrive late or never. Checked with stateright, which prints how many states there are.
//!
//! Wanted: no write completes that the next active lacks, whatever clocks do (contract 4); and while clocks keep their bound, no
//! read is older than what completed in a later term.

use stateright::{Checker, Model, Property};
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// Ticks that a lease lasts, and how long a passive hears nothing before it asks (C2, C3).
const LEASE: u8 = 1;
const PATIENCE: u8 = 2;

/// A rule that is left out, to see that it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// C3: what the taker holds is not made durable before it asks. A restart after that finds itself named as active, and what it had
    /// acknowledged as a passive is gone.
    Durable,
    /// C1: what an earlier incarnation acknowledged counts for the present one.
    Listed,
    /// C3: the taker goes on acknowledging as the one that is listed.
    EndedIncarnation,
    /// C3: no heartbeat needs to be missed.
    Patience,
    /// C4: from asking on only the asked-for set is waited for.
    Union,
    /// C4: an ask that was not answered is taken for failed.
    Unknown,
    /// C3: membership is not judged by the version that is replaced.
    Version,
    /// C5: a member that has restarted takes over like any other.
    Unrestarted,
}

#[derive(Clone)]
struct Bounds {
    without: Without,
    /// Time passes, and reads are looked at. Else anybody may lose patience at any moment, as where clocks lie.
    clocks: bool,
    ticks: u8,
    writes: u8,
    sends: u8,
    asks: u8,
    restarts: u8,
}

type Inc = u8;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Charter {
    version: u8,
    term: u8,
    active: usize,
    /// The listed incarnation of each node that is in sync.
    in_sync: [Option<Inc>; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Records {
        term: u8,
        to: usize,
        log: Vec<u8>,
        sent: u8,
    },
    Ack {
        term: u8,
        by: usize,
        inc: Inc,
        length: u8,
        echo: u8,
    },
    /// For the register.
    Ask {
        expected: u8,
        charter: Charter,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    inc: Inc,
    /// The oldest incarnation that this process has had: of whatever is older it has lost the memory.
    since: Inc,
    /// The term in which it serves.
    serves: Option<u8>,
    /// The newest term whose records it takes.
    term: u8,
    log: Vec<u8>,
    /// How much of it outlives the process.
    written: u8,
    seen: Charter,
    /// What it has asked for, while that is not over.
    asked: Option<Charter>,
    /// What the other one has acknowledged in this node's term.
    acked: Option<(Inc, u8, u8)>,
    heard: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    now: u8,
    charter: Charter,
    nodes: [Node; 2],
    messages: BTreeSet<Message>,
    written: u8,
    completed: BTreeSet<u8>,
    sends: u8,
    asks: u8,
    restarts: u8,
    wrong: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Tick,
    Write(usize),
    /// Records, or a heartbeat.
    Send(usize),
    Deliver(Message),
    Flush(usize),
    Complete(usize),
    Drop(usize),
    Admit(usize),
    /// The ask is taken for failed: only without C4.
    Forget(usize),
    TakeOver(usize),
    Learn(usize),
    Open(usize),
    Read(usize),
    Restart(usize),
}

fn node(me: usize, charter: &Charter) -> Node {
    Node {
        inc: 1,
        since: 1,
        serves: (me == 0).then_some(1),
        term: 1,
        log: Vec::new(),
        written: 0,
        seen: charter.clone(),
        asked: None,
        acked: (me == 0).then_some((1, 0, 0)),
        heard: 0,
    }
}

impl Bounds {
    /// Whoever completions and reads wait for beside the node itself (C4), by the incarnations that are or may be listed.
    fn union(&self, node: &Node, other: usize) -> BTreeSet<Inc> {
        let asked = node.asked.as_ref();
        let present = Some(&node.seen).filter(|_| asked.is_none() || self.without != Without::Union);
        [present, asked].into_iter().flatten().filter_map(|c| c.in_sync[other]).collect()
    }

    fn has_acked(&self, node: &Node, inc: Inc, length: u8) -> bool {
        node.acked.is_some_and(|(i, l, _)| i == inc && l >= length)
    }

    fn has_leases(&self, world: &World, node: &Node, other: usize) -> bool {
        self.union(node, other)
            .iter()
            .all(|inc| node.acked.is_some_and(|(i, _, echo)| i == *inc && world.now < echo + LEASE))
    }

    /// C3, C5: whether a passive may ask to be active.
    fn may_take_over(&self, world: &World, me: usize) -> bool {
        let node = &world.nodes[me];
        let Some(listed) = node.seen.in_sync[me] else { return false };
        let restarted = listed < node.since;
        // Whoever is named as active had all that it had promised in its log when it asked to be, and all since.
        let whole = !restarted || node.seen.active == me || self.without == Without::Unrestarted;
        let silent = !self.clocks || world.now >= node.heard + PATIENCE || self.without == Without::Patience;
        let of_itself = node.seen.active == me && restarted;
        node.serves.is_none() && node.asked.is_none() && whole && (silent || of_itself)
    }

    fn ask(&self, world: &mut World, me: usize, charter: Charter) {
        world.asks += 1;
        world.messages.insert(Message::Ask { expected: charter.version - 1, charter: charter.clone() });
        world.nodes[me].asked = Some(charter);
    }

    fn open(&self, world: &mut World, me: usize) {
        let node = &mut world.nodes[me];
        let term = node.seen.term;
        (node.serves, node.term, node.acked) = (Some(term), term, None);
        if world.completed.iter().any(|w| !node.log.contains(w)) {
            world.wrong = Some("the next active lacks a write that had completed");
        }
    }
}

impl Model for Bounds {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let charter = Charter { version: 1, term: 1, active: 0, in_sync: [Some(1), Some(1)] };
        vec![World {
            now: 0,
            nodes: [node(0, &charter), node(1, &charter)],
            charter,
            messages: BTreeSet::new(),
            written: 0,
            completed: BTreeSet::new(),
            sends: 0,
            asks: 0,
            restarts: 0,
            wrong: None,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if self.clocks && world.now < self.ticks {
            steps.push(Step::Tick);
        }
        for me in 0..2 {
            let node = &world.nodes[me];
            let may_ask = world.asks < self.asks && node.asked.is_none();
            if node.seen != world.charter {
                steps.push(Step::Learn(me));
            }
            if world.restarts < self.restarts {
                steps.push(Step::Restart(me));
            }
            if usize::from(node.written) < node.log.len() {
                steps.push(Step::Flush(me));
            }
            if node.serves.is_some() {
                let listed = node.seen.in_sync[1 - me].is_some();
                let can = [
                    (world.written < self.writes, Step::Write(me)),
                    (world.sends < self.sends, Step::Send(me)),
                    (node.log.iter().any(|w| !world.completed.contains(w)), Step::Complete(me)),
                    (may_ask && listed, Step::Drop(me)),
                    (may_ask && !listed, Step::Admit(me)),
                    (node.asked.is_some() && self.without == Without::Unknown, Step::Forget(me)),
                    (self.clocks, Step::Read(me)),
                ];
                steps.extend(can.into_iter().filter(|(may, _)| *may).map(|(_, step)| step));
            } else {
                if may_ask && self.may_take_over(world, me) {
                    steps.push(Step::TakeOver(me));
                }
                let agreed =
                    node.seen.active == me && node.seen.in_sync[me] == Some(node.inc) && node.seen.term > node.term;
                if agreed {
                    steps.push(Step::Open(me));
                }
            }
        }
        steps.extend(world.messages.iter().cloned().map(Step::Deliver));
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut world = before.clone();
        match step {
            Step::Tick => world.now += 1,
            Step::Write(me) => {
                world.written += 1;
                let node = &mut world.nodes[me];
                node.log.push(before.written + 1);
                // Written to its own log before it completes.
                node.written = node.log.len() as u8;
            }
            Step::Send(me) => {
                world.sends += 1;
                let (term, log) = (world.nodes[me].term, world.nodes[me].log.clone());
                world.messages.insert(Message::Records { term, to: 1 - me, log, sent: before.now });
            }
            Step::Flush(me) => world.nodes[me].written = world.nodes[me].log.len() as u8,
            Step::Complete(me) => self.complete(&mut world, me)?,
            Step::Drop(me) => {
                let mut charter = world.nodes[me].seen.clone();
                charter.version += 1;
                charter.in_sync[1 - me] = None;
                self.ask(&mut world, me, charter);
            }
            Step::Admit(me) => {
                let node = &world.nodes[me];
                let (inc, length, _) = node.acked?;
                let done = node.log.iter().rposition(|w| world.completed.contains(w)).map_or(0, |at| at + 1);
                if usize::from(length) < done {
                    return None;
                }
                let mut charter = node.seen.clone();
                charter.version += 1;
                charter.in_sync[1 - me] = Some(inc);
                self.ask(&mut world, me, charter);
            }
            Step::Forget(me) => world.nodes[me].asked = None,
            Step::TakeOver(me) => {
                let node = &mut world.nodes[me];
                if self.without != Without::EndedIncarnation {
                    node.inc += 1;
                }
                if self.without != Without::Durable {
                    node.written = node.log.len() as u8;
                }
                let mut charter = node.seen.clone();
                (charter.version, charter.term, charter.active) = (charter.version + 1, charter.term + 1, me);
                charter.in_sync = [None, None];
                charter.in_sync[me] = Some(node.inc);
                self.ask(&mut world, me, charter);
            }
            Step::Learn(me) => {
                let charter = world.charter.clone();
                let node = &mut world.nodes[me];
                let over = node.asked.as_ref().is_some_and(|asked| charter.version >= asked.version);
                if over {
                    node.asked = None;
                }
                if charter.active != me || node.serves.is_some_and(|term| term != charter.term) {
                    node.serves = None;
                }
                node.seen = charter;
            }
            Step::Open(me) => self.open(&mut world, me),
            Step::Read(me) => {
                let node = &world.nodes[me];
                let stale = world.completed.iter().any(|w| !node.log.contains(w));
                if !(stale && self.has_leases(&world, node, 1 - me)) {
                    return None;
                }
                world.wrong = Some("a read is older than what had completed in a later term");
            }
            Step::Restart(me) => {
                world.restarts += 1;
                let node = &mut world.nodes[me];
                node.inc += 1;
                node.since = node.inc;
                node.log.truncate(node.written.into());
                (node.serves, node.asked, node.acked, node.heard) = (None, None, None, before.now);
            }
            Step::Deliver(message) => self.deliver(&mut world, message)?,
        }
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Bounds>> {
        vec![
            Property::always(SAFE, |_, world: &World| world.wrong.is_none()),
            Property::sometimes("the other one serves", |_, world: &World| world.nodes[1].serves.is_some()),
            Property::sometimes("a write completes after a takeover", |_, world: &World| {
                let node = &world.nodes[1];
                node.serves.is_some()
                    && node.log.last().is_some_and(|w| world.completed.contains(w) && *w == world.written)
            }),
        ]
    }
}

const SAFE: &str = "no write and no read goes past what the charter says";

impl Bounds {
    fn complete(&self, world: &mut World, me: usize) -> Option<()> {
        let node = &world.nodes[me];
        let next = node.log.iter().position(|w| !world.completed.contains(w))?;
        let (write, length) = (node.log[next], next as u8 + 1);
        let fenced = self.union(node, 1 - me).iter().all(|inc| self.has_acked(node, *inc, length));
        if !fenced {
            return None;
        }
        // Whoever has opened a later term meanwhile, or is bound to, must have it.
        let later = world.nodes.iter().any(|n| n.serves.is_some_and(|t| t > node.term) && !n.log.contains(&write));
        world.completed.insert(write);
        if later {
            world.wrong = Some("a write completes that the present active lacks");
        }
        Some(())
    }

    fn deliver(&self, world: &mut World, message: Message) -> Option<()> {
        match message {
            Message::Records { term, to, log, sent } => {
                let now = world.now;
                let node = &mut world.nodes[to];
                let newer = term > node.term;
                if node.serves.is_some()
                    || term < node.term
                    || node.seen.active == to
                    || node.asked.is_some() && !self.acknowledges_on()
                {
                    return None;
                }
                // Of a later term its records end what parts from them (L1); within one the received position never decreases.
                if newer || log.len() > node.log.len() {
                    let shared = node.log.iter().zip(&log).take_while(|(a, b)| a == b).count() as u8;
                    node.written = node.written.min(shared);
                    node.log = log;
                }
                (node.term, node.heard) = (term, now);
                let (inc, length) = (node.inc, node.log.len() as u8);
                world.messages.insert(Message::Ack { term, by: to, inc, length, echo: sent });
            }
            Message::Ack { term, by, inc, length, echo } => {
                let node = &mut world.nodes[1 - by];
                if node.serves != Some(term) {
                    return None;
                }
                let before = node.acked.unwrap_or((inc, 0, 0));
                // Another incarnation begins anew; a late word of an older one counts no more.
                node.acked = Some(match inc.cmp(&before.0) {
                    _ if self.without == Without::Listed => {
                        (inc.max(before.0), before.1.max(length), before.2.max(echo))
                    }
                    Ordering::Less => before,
                    Ordering::Equal => (inc, before.1.max(length), before.2.max(echo)),
                    Ordering::Greater => (inc, length, echo),
                });
            }
            Message::Ask { expected, charter } => {
                let same_version = world.charter.version == expected;
                let late = self.without == Without::Version && world.charter.version < charter.version + 1;
                if !(same_version || late && charter != world.charter) {
                    return None;
                }
                let version = world.charter.version + 1;
                world.charter = Charter { version, ..charter };
            }
        }
        Some(())
    }

    /// Whoever has asked to take over follows nobody until that is over; but for the rule that is left out.
    fn acknowledges_on(&self) -> bool {
        self.without == Without::EndedIncarnation
    }
}

fn bounds(clocks: bool) -> Bounds {
    Bounds { without: Without::Nothing, clocks, ticks: 4, writes: 2, sends: 2, asks: 2, restarts: 1 }
}

fn check(name: &str, bounds: Bounds) -> Option<&'static str> {
    let checker = bounds.clone().checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states, {} of them distinct", checker.state_count(), checker.unique_state_count());
    let found = checker.discovery(SAFE);
    if bounds.without == Without::Nothing {
        if let Some(path) = found {
            let (world, steps) = (path.last_state().clone(), path.into_actions());
            panic!("{name}: {:?} after {steps:#?}", world.wrong);
        }
        checker.assert_properties();
        return None;
    }
    found.and_then(|path| path.last_state().wrong)
}

#[test]
fn no_write_completes_that_the_next_active_lacks_whatever_clocks_do() {
    assert_eq!(check("clocks that lie", bounds(false)), None);
}

#[test]
fn no_read_is_older_than_a_later_term_while_clocks_keep_their_bound() {
    assert_eq!(check("clocks that keep their bound", Bounds { writes: 1, ..bounds(true) }), None);
}

/// Each rule is there for something.
#[test]
fn without_any_of_its_rules_it_fails() {
    use Without::*;
    for (without, clocks) in [
        (Durable, false),
        (Listed, false),
        (Union, false),
        (Unknown, false),
        (Version, false),
        (Unrestarted, false),
        (EndedIncarnation, true),
        (Patience, true),
    ] {
        let writes = if clocks { 1 } else { 2 };
        // In these a member is dropped and admitted before it can do harm.
        let asks = if matches!(without, Listed | Unknown) { 3 } else { 2 };
        let wrong = check(&format!("without {without:?}"), Bounds { without, writes, asks, ..bounds(clocks) });
        assert!(wrong.is_some(), "nothing goes wrong without {without:?}");
    }
}
