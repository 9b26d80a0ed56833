//! What was seen: counts, so that one that stays at zero is noticed, and the trace of a run.

use super::plan::{OF_WITNESSES, TROUBLES};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// What some seeds of any two thousand come to, beside each kind of trouble. One that stays at zero means that the simulator
/// never got there, and proves nothing about it.
const EXPECTED: [&str; 57] = [
    "I/O errors",
    "actives that met a higher generation",
    "damaged frames refused",
    "deadlocks resolved by force",
    "debts given up by force",
    "flips found by verify",
    "images looked at",
    "images given up, by name",
    "images refused",
    "newest superblocks gone bad",
    "notice Demoted",
    "notice Deposed",
    "notice Dropped",
    "notice HandshakeRefused",
    "notice HistoryTooSmall",
    "notice ImageGivenUp",
    "notice InSync",
    "notice LogDamaged",
    "notice LogOverflow",
    "notice LogUnreadable",
    "notice OrphansSetAside",
    "notice Promoted",
    "notice Resumed",
    "notice ResyncFinished",
    "notice RolledBack",
    "notice SplitBrain",
    "notice StorageFailed",
    "notice Suspended",
    "notice TookOver",
    "notice VerifyDiffers",
    "notice VerifyFinished",
    "orphaned blocks found in a salvage",
    "processes ended in mid-resync",
    "promotions checked",
    "recoveries cut short",
    "refused Behind",
    "refused Claimed",
    "refused Dropped",
    "refused PeerIsActive",
    "refused Unreachable",
    "requests that failed",
    "rings gone bad under an active",
    "sectors gone bad",
    "stops of serving",
    "terms opened",
    "terms opened by force",
    "terms that continue another",
    "worlds of durable writes",
    "worlds of five nodes",
    "worlds of logs of different sizes",
    "worlds of small blocks",
    "worlds of two volumes",
    "worlds that suspend",
    "worlds with a witness",
    "worlds with packed frames",
    "worlds with three nodes that vote",
    "worlds without holes",
];

/// Counts by name: those of faults and events, in alphabetical order, are made as they come; those that every request
/// adds to stand apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    named: BTreeMap<String, u64>,
    pub requests: u64,
    pub answered: u64,
    pub records_sent: u64,
}

impl Counts {
    pub fn add(&mut self, name: &str, n: u64) {
        match self.named.get_mut(name) {
            Some(count) => *count += n,
            None => {
                self.named.insert(name.into(), n);
            }
        }
    }

    pub fn one(&mut self, name: &str) {
        self.add(name, 1);
    }

    pub fn get(&self, name: &str) -> u64 {
        self.named.get(name).copied().unwrap_or(0)
    }

    /// Which of the things that the simulator is there for never happened.
    pub fn unseen(&self) -> Vec<String> {
        let troubles = TROUBLES.iter().chain(&OF_WITNESSES).map(|(trouble, _)| format!("trouble {trouble:?}"));
        let expected = EXPECTED.iter().map(|name| (*name).to_string());
        troubles.chain(expected).filter(|name| self.get(name) == 0).collect()
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Counts) {
        other.named.iter().for_each(|(name, n)| self.add(name, *n));
        self.requests += other.requests;
        self.answered += other.answered;
        self.records_sent += other.records_sent;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frequent =
            [("requests", self.requests), ("requests answered", self.answered), ("records sent", self.records_sent)];
        frequent.iter().try_for_each(|(name, n)| writeln!(f, "  {n:>12}  {name}"))?;
        self.named.iter().try_for_each(|(name, n)| writeln!(f, "  {n:>12}  {name}"))
    }
}

/// What happened, line by line: the newest lines are kept, or all are printed.
#[derive(Debug)]
pub struct Trace {
    pub print: bool,
    lines: VecDeque<String>,
    keep: usize,
}

impl Trace {
    pub fn new(print: bool, keep: usize) -> Trace {
        Trace { print, lines: VecDeque::new(), keep }
    }

    pub fn line(&mut self, line: String) {
        if self.print {
            println!("{line}");
        }
        if self.lines.len() == self.keep {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}
