//! Force used wrongly: `--off` said of a node that runs, on a network that works, where the two have no session because the operator
//! parted them or because one refuses the other. What the node that is asked can hear must not be passed over (C8).

use super::duo_tests::{ALPHA, BETA, Duo};
use super::notice::{Notice, Refusal};
use super::*;

const NAMES: [&str; 2] = ["alpha", "beta"];

/// alpha is active; `by` has parted the two.
fn parted_by(by: usize) -> Duo {
    let mut duo = Duo::in_sync();
    duo.write(ALPHA, 0, true);
    duo.run_ms(500);
    duo.order(by, Command::Disconnect { peer: NAMES[1 - by].into(), force: true }).unwrap();
    duo.run_ms(5000);
    duo
}

fn promote_beta(duo: &mut Duo) -> Result<Answer, Refusal> {
    duo.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] })
}

#[test]
fn a_node_that_answers_is_not_off_though_the_operator_has_parted_from_it() {
    for by in [ALPHA, BETA] {
        let mut duo = parted_by(by);
        assert_eq!(duo.status(ALPHA).state, "serving");
        let refused = promote_beta(&mut duo);
        assert!(
            matches!(&refused, Err(Refusal::Answers { peer, .. }) if peer == "alpha"),
            "{}: {refused:?}",
            NAMES[by]
        );
        // Once it is off indeed, it goes on.
        duo.stop(ALPHA);
        duo.run_ms(3500);
        promote_beta(&mut duo).unwrap();
    }
}

#[test]
fn a_node_whose_storage_failed_answers_and_is_not_off() {
    let mut duo = Duo::in_sync();
    duo.sides[ALPHA].disk.broken.insert(Part::Log, 5);
    duo.write(ALPHA, 0, true);
    duo.run_ms(3000);
    assert_eq!(duo.status(ALPHA).state, "faulted");
    let refused = promote_beta(&mut duo);
    assert!(matches!(&refused, Err(Refusal::Answers { .. })), "{refused:?}");
    duo.stop(ALPHA);
    duo.run_ms(3500);
    promote_beta(&mut duo).unwrap();
}

/// The operator parted them, then the network did, and beta was promoted by force meanwhile: when the network is back nobody
/// connects them, and still alpha must hear of it.
#[test]
fn an_active_hears_of_a_forced_promotion_by_a_node_that_it_is_parted_from() {
    for by in [ALPHA, BETA] {
        let mut duo = parted_by(by);
        duo.part();
        duo.run_ms(4000);
        promote_beta(&mut duo).unwrap();
        duo.parted = false;
        duo.run_ms(5000);
        assert_eq!((duo.status(ALPHA).state, duo.status(BETA).state), ("suspended", "serving"), "{}", NAMES[by]);
        assert!(!duo.sides[ALPHA].serves, "what is above its device is to go");
        let said = |s: usize| duo.sides[s].notices.iter().any(|n| matches!(n, Notice::SplitBrain { .. }));
        assert!(said(ALPHA), "{}", NAMES[by]);
    }
}

/// It is known that another serves: what was read here would be older than that (contract 4).
#[test]
fn an_active_that_has_heard_of_a_forced_promotion_shows_nothing_old() {
    let mut duo = parted_by(BETA);
    duo.part();
    duo.run_ms(4000);
    promote_beta(&mut duo).unwrap();
    duo.write(BETA, 0, true);
    duo.parted = false;
    duo.run_ms(5000);
    assert!(!duo.sides[ALPHA].serves && duo.status(ALPHA).outvoted);
    let read = ReqId(1_000_000);
    let op = ClientOp::Read { volume: VolumeId(0), offset: 0, length: 4096 };
    duo.tell(ALPHA, Event::Client { req: read, op });
    let write = duo.write(ALPHA, 1, true);
    for req in [read, write] {
        let answer = duo.sides[ALPHA].replies.iter().find(|(_, r, _)| *r == req).map(|(.., a)| a.clone());
        assert!(matches!(answer, Some(Err(ClientError::NotActive))), "{req:?}: {answer:?}");
    }
    duo.order(ALPHA, Command::Demote { force: true }).unwrap();
    assert!(!duo.status(ALPHA).outvoted);
}

/// What clients wait for fails for ever, rather than until an operator comes (C6): the file system above is to know.
#[test]
fn what_waits_at_an_active_that_is_outvoted_fails() {
    let mut duo = Duo::tuned(|c| c.on_stall = OnStall::Suspend);
    duo.promote();
    duo.part();
    let write = duo.write(ALPHA, 0, true);
    duo.run_ms(4000);
    promote_beta(&mut duo).unwrap();
    assert!(duo.sides[ALPHA].replies.iter().all(|(_, r, _)| *r != write), "nobody else has it");
    duo.parted = false;
    duo.run_ms(5000);
    let answer = duo.sides[ALPHA].replies.iter().find(|(_, r, _)| *r == write).map(|(.., a)| a.clone());
    assert!(matches!(answer, Some(Err(ClientError::NotActive))), "{answer:?}");
    // Nor does it serve on when nobody lets it step down.
    assert!(duo.order(ALPHA, Command::Demote { force: false }).is_err());
    assert!(!duo.sides[ALPHA].serves);
}

/// A node without a log goes on showing what is in its stores, for whom nobody else serves; it hears when somebody does.
#[test]
fn a_faulted_active_stops_when_it_hears_of_a_later_promotion() {
    let mut duo = Duo::in_sync();
    duo.part();
    duo.sides[ALPHA].disk.broken.insert(Part::Log, 5);
    duo.write(ALPHA, 0, true);
    duo.run_ms(4000);
    assert!(duo.status(ALPHA).state == "faulted" && duo.sides[ALPHA].serves);
    promote_beta(&mut duo).unwrap();
    duo.parted = false;
    duo.run_ms(5000);
    assert!(!duo.sides[ALPHA].serves, "it shows what may be outdated");
}

/// A node that the file knows no more is no second copy: with on_stall = "suspend" nothing completes for its sake.
#[test]
fn a_member_that_is_not_in_the_file_goes_with_a_forced_promotion() {
    let mut duo = Duo::in_sync();
    duo.run_ms(500);
    duo.node(BETA).charter.in_sync.push(hello::Member { node: "gamma".into(), incarnation: Incarnation(7) });
    duo.stop(ALPHA);
    duo.run_ms(4000);
    assert!(matches!(
        duo.order(BETA, Command::Promote { force: false, off: vec![] }),
        Err(Refusal::Unreachable { .. })
    ));
    promote_beta(&mut duo).unwrap();
    assert_eq!(duo.status(BETA).in_sync, ["beta"]);
}
