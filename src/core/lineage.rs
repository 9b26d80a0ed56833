//! Lineages: which terms a replica's records belong to, and where two replicas part (L1).

use super::types::*;

/// Terms, oldest first. `first` never decreases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage(Vec<Term>);

/// How two lineages relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// No term in common.
    Unrelated,
    /// Equal up to this record, which may be the end of one or both.
    Common { fork: Lsn },
}

impl Lineage {
    pub fn new(terms: Vec<Term>) -> Lineage {
        debug_assert!(terms.windows(2).all(|w| w[0].first <= w[1].first));
        Lineage(terms)
    }

    pub fn terms(&self) -> &[Term] {
        &self.0
    }

    /// A fresh replica has no lineage (B3).
    pub fn is_fresh(&self) -> bool {
        self.0.is_empty()
    }

    pub fn last(&self) -> Option<&Term> {
        self.0.last()
    }

    /// The term that the record at `lsn` belongs to.
    pub fn term_at(&self, lsn: Lsn) -> Option<&Term> {
        self.0.iter().rev().find(|t| t.first <= lsn)
    }

    /// Opens a term right after `end`. Terms that began past it are not part of this replica's past: it never held a record of them.
    pub fn open(&mut self, id: TermId, end: Lsn, number_above: u64) -> Term {
        let number = self.0.last().map_or(0, |t| t.number).max(number_above) + 1;
        self.0.retain(|t| t.first <= end.next());
        let term = Term { number, id, first: end.next() };
        self.0.push(term);
        term
    }

    /// Compares by id, never by number. `my_end` and `their_end` are the newest records that each side holds.
    pub fn relation(&self, my_end: Lsn, theirs: &[Term], their_end: Lsn) -> Relation {
        let common = self.0.iter().enumerate().rev().find_map(|(i, mine)| {
            let j = theirs.iter().position(|t| t.id == mine.id)?;
            Some(term_end(&self.0, i, my_end).min(term_end(theirs, j, their_end)))
        });
        match common {
            Some(fork) => Relation::Common { fork },
            None => Relation::Unrelated,
        }
    }
}

/// The newest record of term `i` that a replica with this end holds; below `first` if it holds none.
fn term_end(terms: &[Term], i: usize, end: Lsn) -> Lsn {
    match terms.get(i + 1) {
        Some(next) => next.first.prev().min(end),
        None => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(number: u64, id: u128, first: u64) -> Term {
        Term { number, id: TermId(id), first: Lsn(first) }
    }

    #[test]
    fn the_fork_is_the_lower_end_of_the_last_common_term() {
        let mine = Lineage::new(vec![term(1, 10, 1), term(2, 20, 100)]);
        // The other was active in term 1 up to 120, and restarted nowhere.
        assert_eq!(mine.relation(Lsn(150), &[term(1, 10, 1)], Lsn(120)), Relation::Common { fork: Lsn(99) });
        // It stopped before the fork: it holds a prefix.
        assert_eq!(mine.relation(Lsn(150), &[term(1, 10, 1)], Lsn(50)), Relation::Common { fork: Lsn(50) });
        // Same number, other id: told apart by id (the classic mistake is to compare numbers).
        let other = [term(1, 10, 1), term(2, 21, 100)];
        assert_eq!(mine.relation(Lsn(150), &other, Lsn(150)), Relation::Common { fork: Lsn(99) });
        assert_eq!(mine.relation(Lsn(150), &[term(1, 11, 1)], Lsn(5)), Relation::Unrelated);
    }

    #[test]
    fn a_term_known_but_not_reached_is_no_part_of_the_past() {
        let mut mine = Lineage::new(vec![term(1, 10, 1), term(2, 20, 100)]);
        // Caught up to 50 only, then promoted.
        let opened = mine.open(TermId(30), Lsn(50), 0);
        assert_eq!(opened, term(3, 30, 51));
        assert_eq!(mine.terms(), &[term(1, 10, 1), term(3, 30, 51)]);
        let other = [term(1, 10, 1), term(2, 20, 100)];
        assert_eq!(mine.relation(Lsn(60), &other, Lsn(120)), Relation::Common { fork: Lsn(50) });
    }

    #[test]
    fn an_empty_term_keeps_its_place() {
        let mut mine = Lineage::new(vec![term(1, 10, 1)]);
        mine.open(TermId(20), Lsn(9), 0);
        mine.open(TermId(30), Lsn(9), 0);
        assert_eq!(mine.term_at(Lsn(10)).map(|t| t.id), Some(TermId(30)));
        let other = [term(1, 10, 1), term(2, 20, 10)];
        assert_eq!(mine.relation(Lsn(20), &other, Lsn(15)), Relation::Common { fork: Lsn(9) });
    }
}
