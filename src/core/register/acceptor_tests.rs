//! What one voter says, and what it must never say.

use super::*;

const ME: VoterId = VoterId(7);
const FRESH: VoterId = VoterId(8);

fn blank() -> Acceptor {
    Acceptor::new(Vote { id: ME, ..Vote::default() })
}

fn ballot(number: u64) -> Ballot {
    Ballot { number, by: 1 }
}

fn entry(version: u64) -> Entry {
    Entry { charter: Charter { generation: (1, 1), version, ..Charter::default() }, ..Entry::default() }
}

fn prepare(number: u64) -> Question {
    Question { to: ME, generation: 1, ballot: ballot(number), seen: Ballot::default(), accept: None }
}

fn accept(number: u64, version: u64) -> Question {
    Question { accept: Some(entry(version)), ..prepare(number) }
}

fn say(voter: &mut Acceptor, question: &Question) -> Said {
    let answer = voter.asked(question, FRESH);
    assert_eq!((answer.from, answer.ballot), (voter.vote().id, question.ballot));
    answer.said
}

#[test]
fn a_promise_holds_against_older_attempts_and_against_no_newer_one() {
    let mut voter = blank();
    assert_eq!(say(&mut voter, &prepare(5)), Said::Promised(None));
    assert_eq!(say(&mut voter, &accept(4, 1)), Said::Outbid(ballot(5)));
    assert_eq!(say(&mut voter, &prepare(4)), Said::Outbid(ballot(5)));
    assert_eq!(say(&mut voter, &accept(5, 1)), Said::Accepted);
    assert_eq!(say(&mut voter, &prepare(6)), Said::Promised(Some((ballot(5), entry(1)))));
    assert_eq!(say(&mut voter, &accept(5, 1)), Said::Outbid(ballot(6)), "a question that comes late counts no more");
    assert_eq!(voter.vote().accepted, Some((ballot(5), entry(1))));
}

#[test]
fn what_comes_twice_is_answered_twice_and_changes_nothing() {
    let mut voter = blank();
    let asked = [prepare(1), prepare(1), accept(1, 1), accept(1, 1)];
    let said: Vec<Said> = asked.iter().map(|q| say(&mut voter, q)).collect();
    assert_eq!(said, [Said::Promised(None), Said::Promised(None), Said::Accepted, Said::Accepted]);
}

/// The numbers of two processes may be equal; the attempts are not.
#[test]
fn two_attempts_of_one_number_are_two() {
    let mut voter = blank();
    let other = Question { ballot: Ballot { number: 5, by: 2 }, ..prepare(5) };
    assert_eq!(say(&mut voter, &other), Said::Promised(None));
    assert_eq!(say(&mut voter, &accept(5, 1)), Said::Outbid(other.ballot));
}

#[test]
fn c7_another_voter_of_the_same_name_answers_for_nobody() {
    let mut voter = blank();
    let before = voter.clone();
    assert_eq!(say(&mut voter, &Question { to: VoterId(9), ..prepare(5) }), Said::Stranger);
    assert_eq!(voter, before);
}

#[test]
fn c7_a_voter_that_once_confirmed_more_gives_its_id_up() {
    let mut voter = blank();
    assert_eq!(say(&mut voter, &accept(5, 1)), Said::Accepted);
    let copy = voter.clone();
    assert_eq!(say(&mut voter, &accept(6, 2)), Said::Accepted);
    let later = Question { seen: ballot(6), ..prepare(7) };
    assert_eq!(say(&mut voter.clone(), &later), Said::Promised(Some((ballot(6), entry(2)))));
    // Its file was restored from a copy.
    voter = copy;
    assert_eq!(say(&mut voter, &later), Said::Stranger);
    assert_eq!(voter.vote(), &Vote { id: FRESH, ..Vote::default() }, "it is blank, for everybody");
    assert_eq!(say(&mut voter, &prepare(9)), Said::Stranger);
}

#[test]
fn c8_a_voter_leaves_a_generation_for_good() {
    let mut voter = blank();
    assert_eq!(say(&mut voter, &accept(5, 1)), Said::Accepted);
    let forced = Question { generation: 2, ..prepare(1) };
    assert_eq!(
        say(&mut voter, &forced),
        Said::Promised(None),
        "another register: what it accepted in the first is not of it"
    );
    assert_eq!(say(&mut voter, &prepare(99)), Said::Left { generation: 2 });
    assert_eq!(say(&mut voter, &accept(99, 2)), Said::Left { generation: 2 });
}
