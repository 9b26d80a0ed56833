//! Who is dropped from the in-sync set, and for whose fault.

use super::duo_tests::*;
use super::hello::{Charter, Member};
use super::links::tests::{config, node_of};
use super::notice::Notice;
use super::*;

#[test]
fn c10_a_member_is_not_dropped_for_the_actives_own_slow_log() {
    let mut duo = Duo::in_sync();
    duo.sides[ALPHA].io_us = 2_000_000;
    duo.write(ALPHA, 1, false);
    duo.run_ms(10);
    // Waits for the log's I/O of the one before, ten times longer than a member is waited for.
    duo.write(ALPHA, 2, false);
    duo.run_ms(10_000);
    let dropped = duo.sides[ALPHA].notices.iter().filter(|n| matches!(n, Notice::Dropped { .. })).count();
    assert_eq!(dropped, 0, "beta has confirmed whatever was sent to it");
    assert!(duo.sides[ALPHA].replies.iter().filter(|(_, _, r)| r.is_ok()).count() >= 2, "both are answered in the end");
}

/// C4: a charter that was asked for may count already somewhere, also when another one is asked for before it is over.
#[test]
fn c4_whom_a_replaced_change_would_have_listed_is_waited_for() {
    let mut config = config(0);
    config.nodes.push(NodeSpec {
        name: "gamma".into(),
        mode: Mode::Sync,
        bandwidth: None,
        takeover: Takeover::Automatic,
    });
    let mut alpha = node_of(config);
    let member = |node: &str, incarnation| Member { node: node.into(), incarnation: Incarnation(incarnation) };
    let two = vec![member("alpha", 1), member("beta", 2)];
    alpha.charter.in_sync.clone_from(&two);
    let waited_for = |node: &Node| node.required_positions().len();
    assert_eq!(waited_for(&alpha), 1);
    let three = two.iter().cloned().chain([member("gamma", 3)]).collect();
    alpha.ask(Charter { in_sync: three, ..alpha.charter.clone() }, None);
    assert_eq!(waited_for(&alpha), 2);
    alpha.ask(Charter { in_sync: two, ..alpha.charter.clone() }, None);
    assert_eq!(waited_for(&alpha), 2, "gamma may have been listed for a moment");
}
