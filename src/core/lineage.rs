//! Lineages: which terms a replica's records belong to, and where two replicas part (L1).

use super::types::*;

/// Terms that a lineage keeps, the newest: a superblock has room for them.
pub const MAX_TERMS: usize = 256;

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
        let mut lineage = Lineage(terms);
        lineage.cut();
        lineage
    }

    fn cut(&mut self) {
        let excess = self.0.len().saturating_sub(MAX_TERMS);
        self.0.drain(..excess);
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

    /// Whether the record at `lsn` is of a term that was cut off for its age: all that is known of it is that it belongs here.
    pub fn is_before_memory(&self, lsn: Lsn) -> bool {
        self.0.len() >= MAX_TERMS && self.0.first().is_some_and(|oldest| lsn < oldest.first)
    }

    /// The term under which a record is logged: its own, or the oldest that is known.
    pub fn term_to_log(&self, lsn: Lsn) -> Option<&Term> {
        self.term_at(lsn).or(self.0.first())
    }

    /// Opens a term right after `end`. Terms that began past it are not part of this replica's past: it never held a record of them.
    /// Nor is one kept that ended without a record: whoever shares it shares the one before it up to the same record. The root
    /// stays, by which relatives know each other.
    pub fn open(&mut self, id: TermId, end: Lsn, number_above: u64) -> Term {
        let number = self.0.last().map_or(0, |t| t.number).max(number_above) + 1;
        self.0.retain(|t| t.first <= end.next());
        while self.0.len() > 1 && self.0.last().is_some_and(|t| t.first == end.next()) {
            self.0.pop();
        }
        let term = Term { number, id, first: end.next() };
        self.0.push(term);
        self.cut();
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
        assert_eq!(mine.terms(), &[term(1, 10, 1), term(3, 30, 10)]);
        assert_eq!(mine.term_at(Lsn(10)).map(|t| t.id), Some(TermId(30)));
        let other = [term(1, 10, 1), term(2, 20, 10)];
        assert_eq!(mine.relation(Lsn(20), &other, Lsn(15)), Relation::Common { fork: Lsn(9) });
    }

    #[test]
    fn a_root_without_records_still_tells_relatives() {
        let mut mine = Lineage::default();
        mine.open(TermId(10), Lsn(0), 0);
        mine.open(TermId(20), Lsn(0), 0);
        mine.open(TermId(30), Lsn(0), 0);
        assert_eq!(mine.terms(), &[term(1, 10, 1), term(3, 30, 1)]);
        assert_eq!(mine.relation(Lsn(5), &[term(1, 10, 1)], Lsn(7)), Relation::Common { fork: Lsn(0) });
    }

    #[test]
    fn many_terms_are_cut_and_older_records_stay_a_part_of_the_past() {
        let mut mine = Lineage::default();
        for n in 1..=300 {
            mine.open(TermId(n), Lsn(n as u64 - 1), 0);
        }
        assert_eq!(mine.terms().len(), MAX_TERMS);
        assert_eq!(mine.terms()[0], term(45, 45, 45));
        assert!(mine.is_before_memory(Lsn(44)) && !mine.is_before_memory(Lsn(45)));
        assert_eq!(mine.term_at(Lsn(44)), None);
        assert_eq!(mine.term_to_log(Lsn(44)).map(|t| t.id), Some(TermId(45)));
        let few = Lineage::new(vec![term(1, 10, 5)]);
        assert!(!few.is_before_memory(Lsn(4)), "nothing was cut off");
    }
}
