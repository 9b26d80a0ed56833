//! Invariant 1: a completed flush survives the loss of any one in-sync node, a completed write (or one that a read has
//! shown) the death of a process.
//!
//! For each node the world keeps what it *owes*: the newest promise made while it was listed in sync, or was active itself.
//! A power cut takes from it what was not flushed, the end of a passive's process what it had in memory. Whoever opens a
//! term must hold what he owes; where nobody forced anything, what anybody owes.

use super::super::truth::{Pos, Truth};
use super::{Violation, broken};
use crate::core::NodeId;

const NAME: &str = "1 durability";

#[derive(Clone, Copy, Debug, Default)]
struct Debt {
    kept: Option<Pos>,
    durable: Option<Pos>,
    /// What it had only in memory is gone, and it was not admitted since.
    forgot: bool,
}

/// What each node owes.
#[derive(Debug)]
pub struct Durability {
    debts: Vec<Debt>,
}

/// Moves a mark on to `pos`, unless what it stands at holds that already.
pub fn raise(debt: &mut Option<Pos>, pos: Pos, truth: &Truth) {
    if debt.is_none_or(|old| !truth.contains(old, pos)) {
        *debt = Some(pos);
    }
}

impl Durability {
    pub fn new(nodes: usize) -> Durability {
        Durability { debts: vec![Debt::default(); nodes] }
    }

    /// A promise was made to a client while these nodes were in sync.
    pub fn promise(
        &mut self,
        holders: impl Iterator<Item = NodeId>,
        kept: Option<Pos>,
        durable: Option<Pos>,
        truth: &Truth,
    ) {
        for node in holders {
            let debt = &mut self.debts[node.0 as usize];
            for pos in [kept, durable].into_iter().flatten() {
                raise(&mut debt.kept, pos, truth);
            }
            if let Some(pos) = durable {
                raise(&mut debt.durable, pos, truth);
            }
        }
    }

    /// What the active has promised so far is now also this node's, who was admitted (C4).
    pub fn admitted(&mut self, active: NodeId, node: NodeId, truth: &Truth) {
        let Debt { kept, durable, .. } = self.debts[active.0 as usize];
        self.debts[node.0 as usize].forgot = false;
        self.promise([node].into_iter(), kept, durable, truth);
    }

    /// The node lost its memory, or what its disk had not made stable.
    pub fn forgot(&mut self, node: NodeId) {
        let debt = &mut self.debts[node.0 as usize];
        debt.kept = debt.durable;
        debt.forgot = true;
    }

    /// Somebody decided that what the node holds is of no worth.
    pub fn gave_up(&mut self, node: NodeId) {
        self.debts[node.0 as usize] = Debt::default();
    }

    /// What the node must hold after a power cut.
    pub fn durable(&self, node: NodeId) -> Option<Pos> {
        self.debts[node.0 as usize].durable
    }

    /// What it must hold while its process lives.
    pub fn kept(&self, node: NodeId) -> Option<Pos> {
        self.debts[node.0 as usize].kept
    }

    /// A node opens a term after `at`, none for an empty replica. Says how many nodes' debts were given up, by an operator; or, where
    /// voters agreed to one that had lost its memory, because nobody who had not could be reached (C5).
    pub fn opened(
        &mut self,
        node: NodeId,
        at: Option<Pos>,
        forced: bool,
        voted: bool,
        truth: &Truth,
    ) -> Result<u64, Violation> {
        let has_forgotten = voted && std::mem::take(&mut self.debts[node.0 as usize].forgot);
        let holds = |pos: Pos| at.is_some_and(|at| truth.contains(at, pos));
        let mut given_up = 0;
        for (i, debt) in self.debts.iter_mut().enumerate() {
            let who = NodeId(i as u8);
            if let Some(owed) = debt.kept.filter(|p| !holds(*p)) {
                let flushed = debt.durable.is_none_or(holds);
                if who == node || !(forced || has_forgotten && flushed) {
                    let by = if who == node { "it" } else { "another node" };
                    return Err(broken(
                        NAME,
                        format!(
                            "{node:?} opens a term after {at:?} (forced: {forced}), which lacks {owed:?}, promised to a client and owed by {by} ({who:?})"
                        ),
                    ));
                }
                debt.kept = None;
                given_up += 1;
            }
            if debt.durable.is_some_and(|p| !holds(p)) {
                debt.durable = None;
            }
        }
        Ok(given_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Lsn, Term, TermId, VolumeId};
    use crate::sim::truth::{Geometry, Span};

    const A: NodeId = NodeId(0);
    const B: NodeId = NodeId(1);

    fn truth() -> Truth {
        let mut truth = Truth::new(Geometry { block: 512, volumes: vec![4] });
        truth.learn(&[Term { number: 1, id: TermId(1), first: Lsn(1) }]).unwrap();
        for stamp in 1..=9 {
            truth.append(TermId(1), Span { volume: VolumeId(0), block: 0, count: 1, stamp });
        }
        truth
    }

    fn pos(lsn: u64) -> Pos {
        Pos { term: TermId(1), lsn: Lsn(lsn) }
    }

    #[test]
    fn whoever_opens_a_term_holds_what_was_promised() {
        let truth = truth();
        let mut owed = Durability::new(2);
        owed.promise([A, B].into_iter(), Some(pos(5)), Some(pos(3)), &truth);
        assert_eq!(owed.opened(B, Some(pos(5)), false, false, &truth), Ok(0));
        owed.forgot(B);
        assert_eq!(owed.opened(B, Some(pos(3)), true, false, &truth), Ok(1), "the rest is A's, and was given up");
        assert_eq!(owed.opened(B, Some(pos(3)), false, false, &truth), Ok(0));
        assert!(owed.opened(B, Some(pos(2)), true, false, &truth).is_err(), "its own, and durable");
    }

    #[test]
    fn without_force_nobodys_promise_is_given_up() {
        let truth = truth();
        let mut owed = Durability::new(2);
        owed.promise([A].into_iter(), Some(pos(5)), None, &truth);
        assert!(owed.opened(B, Some(pos(4)), false, false, &truth).is_err());
        assert!(owed.opened(B, None, false, false, &truth).is_err());
        assert_eq!(owed.opened(B, Some(pos(4)), true, false, &truth), Ok(1));
    }
}
