//! Who is dropped from the in-sync set, and for whose fault.

use super::duo_tests::*;
use super::notice::Notice;

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
