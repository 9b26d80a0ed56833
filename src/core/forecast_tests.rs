use super::duo_tests::{ALPHA, BETA, Duo};
use super::forecast::*;
use super::*;

fn dry_run(duo: &mut Duo, side: usize) -> Forecast {
    let peer = if side == ALPHA { "beta" } else { "alpha" };
    match duo.order(side, Command::Connect { peer: peer.into(), dry_run: true }) {
        Ok(Answer::Forecast(forecast)) => *forecast,
        other => panic!("{other:?}"),
    }
}

fn disconnected() -> Duo {
    let mut duo = Duo::in_sync();
    duo.write(ALPHA, 0, true);
    duo.run_ms(500);
    duo.order(ALPHA, Command::Disconnect { peer: "beta".into(), force: true }).unwrap();
    duo.run_ms(500);
    duo
}

#[test]
fn both_sides_foresee_the_same_catch_up_and_asking_changes_nothing() {
    let mut duo = disconnected();
    for block in 1..4 {
        duo.write(ALPHA, block, false);
    }
    duo.run_ms(100);
    let said = [duo.sides[ALPHA].notices.len(), duo.sides[BETA].notices.len()];
    let seen = dry_run(&mut duo, ALPHA);
    assert_eq!((seen.outcome, seen.learnt), (Outcome::CatchUp, Learnt::Asked), "{seen:?}");
    assert_eq!((seen.from.as_deref(), seen.to.as_deref()), (Some("alpha"), Some("beta")));
    assert_eq!((seen.records, seen.bytes, seen.at_most), (Some(3), Some(3 * 4096), false));
    assert!(
        seen.orphans.is_empty() && seen.verdict.contains("catching up from the log of alpha, 3 record(s)"),
        "{seen:?}"
    );
    assert_eq!(said, [duo.sides[ALPHA].notices.len(), duo.sides[BETA].notices.len()], "nothing happened");
    assert_eq!(duo.status(ALPHA).peers[0].state, "down");
    // Who parted is the other: it is not wanted there, and what it would come to is known all the same.
    duo.order(ALPHA, Command::Connect { peer: "beta".into(), dry_run: false }).unwrap();
    duo.run_ms(500);
    assert_eq!(duo.status(ALPHA).peers[0].state, "in_sync");
    duo.order(BETA, Command::Disconnect { peer: "alpha".into(), force: true }).unwrap();
    duo.run_ms(500);
    for block in 1..6 {
        duo.write(ALPHA, block, false);
    }
    duo.run_ms(100);
    let seen = dry_run(&mut duo, BETA);
    assert_eq!((seen.outcome, seen.learnt), (Outcome::CatchUp, Learnt::Asked), "{seen:?}");
    assert_eq!((seen.from.as_deref(), seen.records, seen.bytes), (Some("alpha"), Some(5), Some(5 * 4096)));
    let refused = dry_run(&mut duo, ALPHA);
    assert!(refused.verdict.contains("disconnected by the operator"), "{refused:?}");
    assert_eq!(refused.learnt, Learnt::Earlier);
}

#[test]
fn a_log_that_has_gone_round_foretells_a_resync_of_the_changed_blocks() {
    let mut duo = disconnected();
    for round in 0..40 {
        for block in 0..64 {
            duo.write(ALPHA, block, false);
        }
        duo.run_ms(200 + round);
    }
    let seen = dry_run(&mut duo, ALPHA);
    assert_eq!(seen.outcome, Outcome::Resync, "{seen:?}");
    assert_eq!((seen.bytes, seen.at_most, seen.records), (Some(64 * 4096), false, None));
    assert_eq!(dry_run(&mut duo, ALPHA), seen, "the same question has the same answer");
    duo.order(ALPHA, Command::Connect { peer: "beta".into(), dry_run: false }).unwrap();
    duo.run_ms(2000);
    assert_eq!(duo.status(ALPHA).peers[0].state, "in_sync");
}

#[test]
fn a_split_brain_is_refused_and_both_sides_orphans_are_counted() {
    let mut duo = Duo::in_sync();
    duo.write(ALPHA, 0, true);
    duo.run_ms(500);
    duo.part();
    duo.run_ms(1500);
    duo.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] }).unwrap();
    duo.write(ALPHA, 1, false);
    duo.write(BETA, 2, false);
    duo.write(BETA, 3, false);
    duo.run_ms(300);
    let unasked = dry_run(&mut duo, BETA);
    assert_eq!(unasked.learnt, Learnt::Earlier, "{unasked:?}");
    assert!(unasked.verdict.contains("alpha does not answer"), "{unasked:?}");
    assert!(unasked.age_s.is_some_and(|s| s > 1.0));
    duo.order(BETA, Command::Disconnect { peer: "alpha".into(), force: true }).unwrap();
    duo.parted = false;
    let seen = dry_run(&mut duo, BETA);
    assert_eq!((seen.outcome, seen.learnt), (Outcome::Refused, Learnt::Asked), "{seen:?}");
    assert!(seen.verdict.contains("split brain"));
    let of =
        |node: &str, records| Orphans { node: node.into(), records, bytes: Some(records * 4096), set_aside: false };
    assert_eq!(seen.orphans, [of("beta", 2), of("alpha", 1)]);
    // One gives way: what it wrote is what would be set aside.
    duo.order(BETA, Command::Demote { force: true }).unwrap();
    let seen = dry_run(&mut duo, BETA);
    assert_eq!(seen.outcome, Outcome::Refused, "alpha's charter is the older one: {seen:?}");
    duo.order(ALPHA, Command::Demote { force: true }).unwrap();
    let seen = dry_run(&mut duo, BETA);
    assert_eq!(seen.outcome, Outcome::Idle, "{seen:?}");
    assert!(seen.verdict.contains("2 record(s) on beta, 1 on alpha"), "{seen:?}");
    duo.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] }).unwrap();
    let seen = dry_run(&mut duo, BETA);
    // alpha went on alone, so it has applied what is an orphan now: that is fetched anew, too.
    assert_eq!((seen.outcome, seen.to.as_deref()), (Outcome::Resync, Some("alpha")), "{seen:?}");
    assert_eq!((seen.bytes, seen.at_most), (Some(3 * 4096), true));
    assert_eq!(seen.orphans, [Orphans { set_aside: true, ..of("alpha", 1) }]);
    assert!(seen.verdict.contains("1 record(s) after 1 are orphans"), "{seen:?}");
}

#[test]
fn a_session_that_stands_is_told_of_and_a_node_that_was_never_met_is_not_made_up() {
    let mut duo = Duo::in_sync();
    let seen = dry_run(&mut duo, ALPHA);
    assert_eq!((seen.outcome, seen.learnt, seen.bytes), (Outcome::Connected, Learnt::Session, Some(0)), "{seen:?}");
    assert!(seen.verdict.contains("beta is in sync"));
    assert!(dry_run(&mut duo, BETA).verdict.contains("alpha is active, beta follows it"));
    duo.stop(ALPHA);
    duo.stop(BETA);
    duo.start(ALPHA);
    let seen = dry_run(&mut duo, ALPHA);
    assert_eq!((seen.outcome, seen.learnt), (Outcome::Unknown, Learnt::Nothing), "{seen:?}");
    for name in ["alpha", "gamma"] {
        let refused = duo.order(ALPHA, Command::Connect { peer: name.into(), dry_run: true }).unwrap_err();
        assert!(refused.to_string().contains(name), "{refused}");
    }
}

#[test]
fn what_a_dead_active_had_sent_is_no_orphan_of_the_one_that_followed_it() {
    let mut duo = disconnected();
    duo.order(ALPHA, Command::Connect { peer: "beta".into(), dry_run: false }).unwrap();
    duo.run_ms(500);
    for block in 1..4 {
        duo.write(ALPHA, block, true);
    }
    duo.run_ms(2000);
    duo.stop(ALPHA);
    duo.run_ms(3000);
    let seen = dry_run(&mut duo, BETA);
    assert_eq!((seen.outcome, seen.learnt), (Outcome::CatchUp, Learnt::Earlier), "{seen:?}");
    assert!(seen.orphans.is_empty() && seen.records == Some(0), "{seen:?}");
    assert_eq!(duo.status(BETA).peers[0].why.as_deref(), Some("the connection was closed"));
}

#[test]
fn the_log_of_a_passive_does_not_take_its_active_for_one_that_lacks_everything() {
    let mut duo = Duo::in_sync();
    duo.write(ALPHA, 0, true);
    duo.run_ms(2000);
    let Ok(Answer::Log(log)) = duo.order(BETA, Command::Log) else { panic!("no answer") };
    assert_eq!((log.peers[0].durable, log.peers[0].reached), (Lsn(1), true), "{log:?}");
}
