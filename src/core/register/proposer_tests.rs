//! One round and its ends, with voters that answer, that do not, and that are others than they were.

use super::*;
use std::collections::BTreeMap;

/// Voters by name. Whoever is not here does not answer.
struct Voters(BTreeMap<String, Acceptor>);

fn voter(name: &str) -> Voter {
    let id = name.bytes().fold(0u128, |id, b| id << 8 | u128::from(b));
    Voter { name: name.into(), id: VoterId(id) }
}

fn voters(names: &[&str]) -> Vec<Voter> {
    names.iter().map(|n| voter(n)).collect()
}

impl Voters {
    fn blank(names: &[&str]) -> Voters {
        let one = |n: &&str| (n.to_string(), Acceptor::new(Vote { id: voter(n).id, ..Vote::default() }));
        Voters(names.iter().map(one).collect())
    }

    /// Carries questions and answers until nobody has anything to say.
    fn run(&mut self, proposer: &mut Proposer, first: Vec<(Voter, Question)>) -> Outcome {
        let (mut questions, mut outcome) = (first, Outcome::Open);
        while let Some((to, question)) = questions.pop() {
            let Some(acceptor) = self.0.get_mut(&to.name) else { continue };
            let answer = acceptor.asked(&question, VoterId(question.to.0 + 1));
            let (more, came) = proposer.answered(&answer);
            questions.extend(more);
            // The last word, but what is decided stays so.
            if came != Outcome::Open && !matches!(outcome, Outcome::Decided(_)) {
                outcome = came;
            }
        }
        outcome
    }

    /// The same until no other attempt is in the way.
    fn go(&mut self, proposer: &mut Proposer, goal: Goal) -> Outcome {
        let first = proposer.start(goal);
        match self.run(proposer, first) {
            Outcome::Outbid => self.again(proposer),
            outcome => outcome,
        }
    }

    /// The first phase whole: the questions of the second.
    fn prepare(&mut self, proposer: &mut Proposer, goal: Goal) -> Vec<(Voter, Question)> {
        let mut accepts = Vec::new();
        for (to, question) in proposer.start(goal) {
            let answer = self.0.get_mut(&to.name).unwrap().asked(&question, VoterId(0));
            accepts.extend(proposer.answered(&answer).0);
        }
        accepts
    }

    fn again(&mut self, proposer: &mut Proposer) -> Outcome {
        let questions = proposer.retry();
        self.run(proposer, questions)
    }

    fn only(&self, names: &[&str]) -> Voters {
        Voters(
            self.0.iter().filter(|(n, _)| names.contains(&n.as_str())).map(|(n, a)| (n.clone(), a.clone())).collect(),
        )
    }

    fn take(&mut self, from: Voters) {
        self.0.extend(from.0);
    }
}

fn first(names: &[&str]) -> Entry {
    let charter = Charter { generation: (1, 5), version: 1, term: 1, ..Charter::default() };
    Entry { charter, voters: voters(names), former: Vec::new(), maintenance: false }
}

fn next(entry: &Entry, active: &str) -> Entry {
    let version = entry.version() + 1;
    let charter = Charter { version, active: Some(active.into()), ..entry.charter.clone() };
    Entry { charter, former: Vec::new(), ..entry.clone() }
}

const THREE: [&str; 3] = ["alpha", "beta", "w1"];

/// Three voters with a charter, and two who know it.
fn founded() -> (Voters, Proposer, Proposer, Entry) {
    let mut all = Voters::blank(&THREE);
    let (mut alpha, mut beta) = (Proposer::new(1, Entry::default()), Proposer::new(2, Entry::default()));
    let entry = first(&THREE);
    assert_eq!(all.go(&mut alpha, Goal::Found(entry.clone())), Outcome::Decided(entry.clone()));
    beta.learn(&entry);
    (all, alpha, beta, entry)
}

#[test]
fn a_replacement_is_read_by_the_other() {
    let (mut all, mut alpha, mut beta, entry) = founded();
    let second = next(&entry, "alpha");
    assert_eq!(all.go(&mut alpha, Goal::Replace(second.clone())), Outcome::Decided(second.clone()));
    assert_eq!(all.go(&mut beta, Goal::Read), Outcome::Decided(second.clone()));
    assert_eq!(beta.known(), &second);
}

#[test]
fn of_two_replacements_of_one_version_the_later_one_reads_the_earlier() {
    let (mut all, mut alpha, mut beta, entry) = founded();
    let (mine, theirs) = (next(&entry, "alpha"), next(&entry, "beta"));
    assert_eq!(all.go(&mut beta, Goal::Replace(theirs.clone())), Outcome::Decided(theirs.clone()));
    assert_eq!(all.go(&mut alpha, Goal::Replace(mine)), Outcome::Decided(theirs));
}

#[test]
fn without_a_majority_nothing_is_decided_and_a_retry_goes_on() {
    let (mut all, mut alpha, _, entry) = founded();
    let second = next(&entry, "alpha");
    let mut one = all.only(&["alpha"]);
    assert_eq!(one.go(&mut alpha, Goal::Replace(second.clone())), Outcome::Open);
    assert_eq!(alpha.silent(), ["beta", "w1"]);
    all.take(one);
    let again = alpha.retry();
    assert_eq!(all.run(&mut alpha, again), Outcome::Decided(second));
    assert!(!alpha.is_busy() && alpha.retry().is_empty());
}

/// C4: what one voter alone has accepted may be chosen or not; whoever comes next decides which.
#[test]
fn c4_an_ask_that_was_cut_off_is_finished_or_dead_after_the_next_round() {
    for finder in [["alpha", "beta"], ["beta", "w1"]] {
        let (mut all, mut alpha, mut beta, entry) = founded();
        let mine = next(&entry, "alpha");
        // Prepared everywhere; accepted by alpha alone.
        let accepts = all.prepare(&mut alpha, Goal::Replace(mine.clone()));
        let at_alpha = accepts.iter().find(|(to, _)| to.name == "alpha").unwrap();
        let said = all.0.get_mut("alpha").unwrap().asked(&at_alpha.1, VoterId(0));
        assert_eq!(alpha.answered(&said).1, Outcome::Open);
        let mut some = all.only(&finder);
        let theirs = next(&entry, "beta");
        let came = some.go(&mut beta, Goal::Replace(theirs.clone()));
        let decided = if finder.contains(&"alpha") { mine.clone() } else { theirs.clone() };
        assert_eq!(came, Outcome::Decided(decided.clone()));
        all.take(some);
        assert_eq!(all.again(&mut alpha), Outcome::Outbid);
        assert_eq!(all.again(&mut alpha), Outcome::Decided(decided), "found by {finder:?}");
    }
}

#[test]
fn c7_founding_needs_every_voter() {
    let mut two = Voters::blank(&["alpha", "w1"]);
    let mut alpha = Proposer::new(1, Entry::default());
    assert_eq!(two.go(&mut alpha, Goal::Found(first(&THREE))), Outcome::Open);
    assert_eq!(alpha.silent(), ["beta"]);
}

#[test]
fn c7_a_charter_that_is_there_is_found_and_not_founded_again() {
    let (mut all, _, _, entry) = founded();
    let mut late = Proposer::new(3, Entry::default());
    let mut other = first(&THREE);
    other.charter.generation = (1, 6);
    assert_eq!(all.go(&mut late, Goal::Found(other)), Outcome::Decided(entry));
}

#[test]
fn c7_a_voter_that_lost_its_file_does_not_vote_until_it_is_listed() {
    let (mut all, mut alpha, mut beta, entry) = founded();
    let blank = Voter { name: "w1".into(), id: VoterId(99) };
    all.0.insert("w1".into(), Acceptor::new(Vote { id: blank.id, ..Vote::default() }));
    let mut with_blank = all.only(&["alpha", "w1"]);
    assert_eq!(with_blank.go(&mut alpha, Goal::Read), Outcome::Open);
    assert_eq!(alpha.silent(), ["beta", "w1"], "a promise was given by alpha alone");
    all.take(with_blank);
    // The other two are a majority, and list it.
    let replaced = Entry { voters: [&voters(&["alpha", "beta"])[..], &[blank]].concat(), ..next(&entry, "alpha") };
    let came = all.go(&mut alpha, Goal::Replace(replaced.clone()));
    let expected = Entry { former: entry.voters.clone(), ..replaced };
    assert_eq!(came, Outcome::Decided(expected.clone()));
    // From now on it votes, also for somebody who does not know of it yet.
    let mut without_alpha = all.only(&["beta", "w1"]);
    assert_eq!(
        without_alpha.go(&mut beta, Goal::Read),
        Outcome::Open,
        "beta knows the old voters, of whom it alone answers"
    );
    beta.learn(&expected);
    beta.give_up();
    let again = beta.start(Goal::Read);
    assert_eq!(without_alpha.run(&mut beta, again), Outcome::Decided(expected));
}

/// No node accepts a version that is older than one that it has seen.
#[test]
fn c7_voters_that_forgot_are_not_believed() {
    let (mut all, mut alpha, mut beta, entry) = founded();
    let old = all.only(&THREE);
    let second = next(&entry, "alpha");
    assert_eq!(all.go(&mut alpha, Goal::Replace(second.clone())), Outcome::Decided(second.clone()));
    beta.learn(&second);
    all.take(old);
    let came = all.go(&mut beta, Goal::Read);
    assert_eq!(came, Outcome::Stuck(Stuck::Forgotten { known: 2, found: 1 }));
    let came = all.go(&mut alpha, Goal::Read);
    assert_eq!(came, Outcome::Open, "alpha had their word: all three have given their ids up");
}

#[test]
fn c8_a_forced_generation_takes_the_voters_with_it() {
    let (mut all, mut alpha, mut beta, _) = founded();
    let mut forced = first(&["beta"]);
    (forced.charter.generation, forced.charter.version) = ((2, 9), 9);
    let mut own = all.only(&["beta"]);
    assert_eq!(own.go(&mut beta, Goal::Found(forced.clone())), Outcome::Decided(forced.clone()));
    all.take(own);
    let three = Entry { voters: voters(&THREE), ..next(&forced, "beta") };
    let mut own = all.only(&["beta"]);
    assert_eq!(own.go(&mut beta, Goal::Replace(three.clone())), Outcome::Open, "those who come need a majority, too");
    all.take(own);
    let expected = Entry { former: voters(&["beta"]), ..three.clone() };
    assert_eq!(all.go(&mut beta, Goal::Replace(three)), Outcome::Decided(expected));
    assert_eq!(all.go(&mut alpha, Goal::Read), Outcome::Stuck(Stuck::Left { generation: 2 }));
}

/// A change of voters that was cut off: whoever finishes it may not know the voters that it replaces, and others know only them.
#[test]
fn c7_who_finishes_a_change_of_voters_needs_those_before_it() {
    let mut all = Voters::blank(&["a", "b", "c", "d", "e"]);
    let (mut one, mut late) = (Proposer::new(1, Entry::default()), Proposer::new(2, Entry::default()));
    let root = first(&["a"]);
    assert_eq!(all.go(&mut one, Goal::Found(root.clone())), Outcome::Decided(root.clone()));
    late.learn(&root);
    let second = Entry { voters: voters(&["b", "c", "d"]), ..next(&root, "a") };
    let Outcome::Decided(second) = all.go(&mut one, Goal::Replace(second)) else { panic!("not decided") };
    let third = Entry { voters: voters(&["c", "d", "e"]), ..next(&second, "a") };
    let accepts = all.prepare(&mut one, Goal::Replace(third));
    let (to, question) = accepts.iter().find(|(to, _)| to.name == "c").unwrap();
    let _ = all.0.get_mut(&to.name).unwrap().asked(question, VoterId(0));
    // `late` knows the first voters; it finds the second, and at c the third. b and d, a majority of the second, could still
    // replace them without having heard of the third.
    let mut some = all.only(&["a", "c", "e"]);
    let mut came = some.go(&mut late, Goal::Read);
    if came == Outcome::Outbid {
        came = some.again(&mut late);
    }
    assert_eq!(came, Outcome::Open);
    all.take(some);
    assert!(matches!(all.again(&mut late), Outcome::Decided(e) if e.version() == 3));
}

/// A founder died half-way, and a voter lost its file since: whoever founds next finishes what it finds.
#[test]
fn c7_a_founding_that_was_cut_off_is_finished_without_a_voter_that_is_gone() {
    let mut all = Voters::blank(&THREE);
    let (mut one, mut next) = (Proposer::new(1, Entry::default()), Proposer::new(2, Entry::default()));
    let root = first(&THREE);
    let accepts = all.prepare(&mut one, Goal::Found(root.clone()));
    let (to, question) = accepts.iter().find(|(to, _)| to.name == "alpha").unwrap();
    let _ = all.0.get_mut(&to.name).unwrap().asked(question, VoterId(0));
    let blank = Voter { name: "w1".into(), id: VoterId(99) };
    all.0.insert("w1".into(), Acceptor::new(Vote { id: blank.id, ..Vote::default() }));
    let other = Entry { voters: [&voters(&["alpha", "beta"])[..], &[blank]].concat(), ..first(&[]) };
    assert_eq!(all.go(&mut next, Goal::Found(other)), Outcome::Decided(root));
}

/// What was learnt while a round was under way is not forgotten when it ends (C7).
#[test]
fn c7_the_end_of_a_round_forgets_nothing_newer() {
    let (mut all, mut alpha, mut beta, root) = founded();
    let second = next(&root, "alpha");
    let accepts = all.prepare(&mut alpha, Goal::Replace(second.clone()));
    let answers: Vec<Answer> =
        accepts.iter().map(|(to, q)| all.0.get_mut(&to.name).unwrap().asked(q, VoterId(0))).collect();
    let Outcome::Decided(found) = all.go(&mut beta, Goal::Read) else { panic!("not decided") };
    let third = next(&found, "beta");
    assert_eq!(all.go(&mut beta, Goal::Replace(third.clone())), Outcome::Decided(third.clone()));
    alpha.learn(&third);
    let came: Vec<Outcome> = answers.iter().map(|a| alpha.answered(a).1).collect();
    assert!(came.contains(&Outcome::Decided(second)), "its own was chosen too, earlier: {came:?}");
    assert_eq!(alpha.known(), &third);
}
