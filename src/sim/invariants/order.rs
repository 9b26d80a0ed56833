//! Invariant 9: the order of the watermarks, at every step; and nobody applies what is not committed (S1).

use super::super::brain::Marks;
use super::{Violation, broken};
use crate::core::{Lsn, NodeId, TermId};

const NAME: &str = "9 order";

/// One node's marks, compared with those before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Order {
    before: Option<(TermId, Marks)>,
}

impl Order {
    /// Checks the marks of a node. `serving` is its term while it serves: then no mark goes back.
    pub fn check(&mut self, node: NodeId, marks: Marks, serving: Option<TermId>) -> Result<(), Violation> {
        let Marks { accepted, written, durable, committed, applied, checkpointed } = marks;
        // A passive that moves to another lineage may still have the checkpoint of the old one on its disk.
        let ordered = accepted >= written
            && written >= durable
            && durable.min(committed) >= applied
            && (applied >= checkpointed || serving.is_none());
        if !ordered {
            return Err(broken(NAME, format!("{node:?} is at {marks:?}")));
        }
        let Some(term) = serving else {
            self.before = None;
            return Ok(());
        };
        if let Some((_, b)) = self.before.filter(|(t, _)| *t == term) {
            let forward = accepted >= b.accepted
                && written >= b.written
                && durable >= b.durable
                && committed >= b.committed
                && applied >= b.applied
                && checkpointed >= b.checkpointed;
            if !forward || committed > durable {
                return Err(broken(NAME, format!("the active {node:?} went from {b:?} to {marks:?}")));
            }
        }
        self.before = Some((term, marks));
        Ok(())
    }
}

/// Nobody has applied past what each in-sync member holds durably.
pub fn check_applied(node: NodeId, applied: Lsn, member: NodeId, durable: Lsn) -> Result<(), Violation> {
    if applied > durable {
        let detail =
            format!("{node:?} applied up to {applied:?}, and {member:?}, in sync, is durable up to {durable:?}");
        return Err(broken("9 order (S1)", detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(m: [u64; 6]) -> Marks {
        let [accepted, written, durable, committed, applied, checkpointed] = m.map(Lsn);
        Marks { accepted, written, durable, committed, applied, checkpointed }
    }

    #[test]
    fn marks_are_ordered_and_an_active_never_goes_back() {
        let term = Some(TermId(1));
        let mut order = Order::default();
        let mut check = |m, serving| order.check(NodeId(0), marks(m), serving).is_ok();
        assert!(check([9, 8, 7, 6, 5, 4], term));
        assert!(!check([9, 8, 7, 5, 5, 4], term), "committed went back");
        assert!(!check([9, 8, 7, 6, 8, 4], term), "applied past committed");
        assert!(!check([9, 8, 7, 8, 5, 4], term), "committed past durable");
        assert!(check([9, 8, 7, 8, 5, 4], None), "a passive may know of more than it holds");
        assert!(check([3, 3, 3, 3, 3, 3], None), "and may end orphans");
        assert!(check_applied(NodeId(0), Lsn(5), NodeId(1), Lsn(4)).is_err());
    }
}
