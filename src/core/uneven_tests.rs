//! Nodes that are not alike: a passive whose log is smaller than the active's.

use super::duo_tests::{ALPHA, BETA, Duo, MIB};
use super::notice::Notice;

/// It takes in what fits, and more once that is committed: it used to hear of that with the next heartbeat only (S1).
#[test]
fn a_passive_with_a_small_log_does_not_wait_for_heartbeats() {
    let mut duo = Duo::tuned(|config| {
        (config.heartbeat_ms, config.stall_ms) = (10_000, 2000);
        if config.me.0 == BETA as u8 {
            config.log_size = MIB;
        }
    });
    duo.promote();
    // Far more than beta has room for at once, no more than alpha has.
    for block in 0..200 {
        duo.write(ALPHA, block, false);
    }
    duo.run_ms(1500);
    let done = duo.sides[ALPHA].replies.iter().filter(|(.., result)| result.is_ok()).count();
    assert_eq!((done, duo.status(ALPHA).in_sync.len()), (200, 2), "{:?}", duo.status(ALPHA).watermarks);
    assert!(!duo.sides[ALPHA].notices.iter().any(|n| matches!(n, Notice::Dropped { .. })));
}
