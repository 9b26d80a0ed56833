//! What an operator reads, and whether it is so: the advice in a split brain is followed to the letter, what a restarted active waits for is
//! named, and the files of two nodes are compared.

use super::duo_tests::{ALPHA, BETA, Duo};
use super::notice::Notice;
use super::*;

fn force() -> Command {
    Command::Promote { force: true, off: vec![] }
}

fn why(duo: &Duo, side: usize) -> String {
    duo.status(side).peers[0].why.clone().unwrap_or_default()
}

/// alpha has gone on alone, and beta was promoted by force meanwhile; then they meet.
fn split() -> Duo {
    let mut duo = Duo::in_sync();
    duo.write(ALPHA, 0, true);
    duo.run_ms(500);
    duo.part();
    duo.run_ms(1500);
    duo.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] }).unwrap();
    duo.write(ALPHA, 1, false);
    duo.write(BETA, 2, false);
    duo.run_ms(100);
    duo.parted = false;
    duo.run_ms(3000);
    duo
}

fn follow(duo: &mut Duo, active: usize) {
    duo.run_ms(3000);
    let status = duo.status(active);
    assert_eq!((status.state, status.in_sync.len()), ("serving", 2), "{status:?}");
    let passive = duo.status(1 - active);
    assert_eq!(passive.peers[0].state, "following", "{passive:?}");
    let aside = |n: &Notice| matches!(n, Notice::OrphansSetAside { .. });
    assert_eq!(duo.sides[1 - active].notices.iter().filter(|n| aside(n)).count(), 1);
    assert!(!duo.sides[active].notices.iter().any(aside));
}

#[test]
fn in_a_split_brain_each_side_says_what_to_do_and_it_works() {
    let mut duo = split();
    assert_eq!(duo.status(ALPHA).state, "suspended");
    assert_eq!(duo.status(BETA).state, "serving");
    for side in [ALPHA, BETA] {
        let said = why(&duo, side);
        assert!(
            said.contains("split brain") && said.contains("`understudy demote FILE --node alpha --force`"),
            "{said}"
        );
    }
    // To keep beta's, as both say.
    duo.order(ALPHA, Command::Demote { force: true }).unwrap();
    follow(&mut duo, BETA);
}

#[test]
fn a_salvage_that_exists_is_kept_and_the_next_number_is_taken() {
    const EXISTS: i32 = 17;
    let mut duo = split();
    duo.sides[ALPHA].disk.broken.extend([1, 2].map(|n| (Part::Salvage(n), EXISTS)));
    duo.order(ALPHA, Command::Demote { force: true }).unwrap();
    duo.run_ms(10_000);
    follow(&mut duo, BETA);
    assert!(duo.sides[ALPHA].notices.iter().any(|n| matches!(n, Notice::OrphansSetAside { salvage: 3, .. })));
}

#[test]
fn the_older_side_of_a_split_brain_is_kept_as_it_says() {
    let mut duo = split();
    for side in [ALPHA, BETA] {
        let said = why(&duo, side);
        let demoted = said.find("`understudy demote FILE --node beta --force`").expect("both are demoted");
        let promoted = said.find("`understudy promote FILE --node alpha --force`").expect("and then alpha is promoted");
        assert!(demoted < promoted, "{said}");
    }
    duo.order(ALPHA, Command::Demote { force: true }).unwrap();
    duo.order(BETA, Command::Demote { force: true }).unwrap();
    duo.run_ms(2000);
    duo.order(ALPHA, force()).unwrap();
    follow(&mut duo, ALPHA);
}

#[test]
fn where_both_were_forced_neither_has_precedence_and_either_can_be_kept() {
    for kept in [ALPHA, BETA] {
        let mut duo = Duo::in_sync();
        duo.write(ALPHA, 0, true);
        duo.run_ms(500);
        duo.part();
        duo.order(ALPHA, Command::Demote { force: true }).unwrap();
        duo.order(ALPHA, Command::Promote { force: true, off: vec!["beta".into()] }).unwrap();
        duo.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] }).unwrap();
        duo.write(ALPHA, 1, false);
        duo.write(BETA, 2, false);
        duo.parted = false;
        duo.run_ms(3000);
        for (side, name) in [(ALPHA, "alpha"), (BETA, "beta")] {
            let said = why(&duo, side);
            assert!(said.contains("neither has precedence"), "{said}");
            for node in ["alpha", "beta"] {
                assert!(said.contains(&format!("`understudy demote FILE --node {node} --force`")), "{name}: {said}");
                assert!(said.contains(&format!("`understudy promote FILE --node {node} --force`")), "{name}: {said}");
            }
        }
        duo.order(ALPHA, Command::Demote { force: true }).unwrap();
        duo.order(BETA, Command::Demote { force: true }).unwrap();
        duo.run_ms(2000);
        duo.order(kept, force()).unwrap();
        follow(&mut duo, kept);
    }
}

#[test]
fn a_restarted_active_says_for_whom_it_waits_since_when_and_what_to_do() {
    let mut duo = Duo::in_sync();
    duo.write(ALPHA, 0, true);
    duo.run_ms(500);
    assert!(duo.status(ALPHA).waiting.is_none() && duo.status(BETA).waiting.is_none());
    duo.stop(ALPHA);
    duo.stop(BETA);
    duo.start(ALPHA);
    duo.run_ms(12_000);
    let waiting = duo.status(ALPHA).waiting.expect("it waits");
    assert!(waiting.what.contains("once it has spoken to beta,"), "{waiting:?}");
    assert!(
        waiting.remedy.contains("start beta") && waiting.remedy.contains("--node alpha --force --off beta`"),
        "{waiting:?}"
    );
    assert_eq!(waiting.since_s, 12.0);
    duo.start(BETA);
    duo.run_ms(3000);
    assert_eq!((duo.status(ALPHA).state, duo.status(ALPHA).waiting.is_none()), ("serving", true));
}

/// It used to be behind by all that was ever written.
#[test]
fn a_node_that_is_gone_is_behind_by_what_was_written_since() {
    let mut duo = Duo::in_sync();
    for block in 0..20 {
        duo.write(ALPHA, block, true);
    }
    duo.run_ms(500);
    duo.stop(ALPHA);
    duo.run_ms(1500);
    duo.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] }).unwrap();
    duo.run_ms(100);
    assert_eq!(duo.status(BETA).peers[0].lag.writes, 0, "{:?}", duo.status(BETA).peers);
    for block in 0..3 {
        duo.write(BETA, block, true);
    }
    duo.run_ms(100);
    assert_eq!((duo.status(BETA).peers[0].lag.writes, duo.status(BETA).peers[0].lag.bytes), (3, 3 * 4096));
    duo.start(ALPHA);
    duo.run_ms(3000);
    assert_eq!((duo.status(BETA).peers[0].state, duo.status(BETA).peers[0].lag.writes), ("in_sync", 0));
}

#[test]
fn files_that_differ_are_said_and_the_smaller_window_holds() {
    let mut duo = Duo::tuned(|config| {
        if config.me.0 == 1 {
            config.stall_ms = 333;
            config.window = 512 << 10;
            config.nodes[1].mode = Mode::Async;
        }
    });
    duo.run_ms(200);
    duo.order(ALPHA, Command::Promote { force: false, off: vec![] }).unwrap();
    duo.run_ms(1000);
    let differs = duo.status(ALPHA).peers[0].differs.join("; ");
    for part in [
        "node.beta.mode is sync here, async on beta",
        "resource.stall_ms is 200 here, 333 on beta",
        "resource.window is 1048576 here, 524288 on beta",
    ] {
        assert!(differs.contains(part), "{differs}");
    }
    assert!(duo.status(BETA).peers[0].differs.iter().any(|d| d.contains("stall_ms is 333 here, 200 on alpha")));
    // Once, and not at each session.
    let said = |n: &&Notice| matches!(n, Notice::FilesDiffer { .. });
    assert_eq!(duo.sides[ALPHA].notices.iter().filter(said).count(), 1);
    assert_eq!(duo.node(ALPHA).window_of(NodeId(1)), 512 << 10);
    assert_eq!(duo.node(BETA).window_of(NodeId(0)), 512 << 10);
}

#[test]
fn a_node_is_not_promoted_past_itself_and_not_right_after_another() {
    let mut duo = Duo::new();
    duo.run_ms(100);
    let refused = duo.order(ALPHA, Command::Promote { force: true, off: vec!["alpha".into()] }).unwrap_err();
    assert!(refused.to_string().contains("--off alpha names the very node"), "{refused}");
    let at = duo.now;
    duo.order(ALPHA, Command::Promote { force: false, off: vec![] }).unwrap();
    assert!(duo.now.since_us(at) < 1_000_000);
    let refused = duo.order(BETA, Command::Promote { force: false, off: vec![] }).unwrap_err().to_string();
    assert!(refused.contains("alpha is being promoted") || refused.contains("alpha is active"), "{refused}");
}

#[test]
fn what_a_peer_says_at_the_end_is_shown_on_one_line_and_not_without_end() {
    let mut duo = Duo::in_sync();
    duo.lie(ALPHA, PeerMsg::Bye { why: format!("\u{1b}[2Jgone\n{}", "x".repeat(30_000)) });
    let said = why(&duo, ALPHA);
    assert!(said.contains("\\u{1b}[2Jgone\\nxxx") && said.ends_with("x...") && said.len() < 1100, "{said}");
}

#[test]
fn ranges_that_differ_are_told_one_by_one_only_so_far() {
    let mut duo = Duo::in_sync();
    for block in 0..1000 {
        duo.write(ALPHA, block, false);
    }
    duo.run_ms(2000);
    for block in (0..1000).step_by(2) {
        let garbage = crate::buf::Payload::copy_of(&[0; 4096]);
        duo.sides[BETA].disk.write(Part::Store(VolumeId(0)), block * 4096, &garbage).unwrap();
    }
    duo.order(ALPHA, Command::Verify { repair: false }).unwrap();
    let count = |of: fn(&Notice) -> bool| duo.sides[ALPHA].notices.iter().filter(|n| of(n)).count();
    assert_eq!(count(|n| matches!(n, Notice::VerifyDiffers { .. })), 100);
    assert_eq!(count(|n| matches!(n, Notice::VerifyMoreDiffer { ranges: 400, .. })), 1);
}
