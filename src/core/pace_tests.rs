//! What is done at once, and what waits a little because that is cheaper.

use super::duo_tests::{ALPHA, BETA, Duo};
use super::*;

/// accepted, durable, applied.
fn marks(duo: &mut Duo, side: usize) -> [Lsn; 3] {
    let [accepted, _, durable, _, applied, _] = duo.node(side).watermarks();
    [accepted, durable, applied]
}

fn write_and_flush(duo: &mut Duo, block: u64) {
    duo.write(ALPHA, block, false);
    duo.run_ms(1);
    duo.tell(ALPHA, Event::Client { req: ReqId(1 << 40 | block), op: ClientOp::Flush { volume: VolumeId(0) } });
    duo.run_ms(2);
}

#[test]
fn where_flushes_follow_writes_the_next_write_is_durable_at_once() {
    let mut duo = Duo::in_sync();
    duo.write(ALPHA, 1, false);
    duo.run_ms(3);
    let [accepted, durable, _] = marks(&mut duo, ALPHA);
    assert!(durable < accepted, "nobody has asked for it");
    (2..5).for_each(|block| write_and_flush(&mut duo, block));
    duo.write(ALPHA, 5, false);
    duo.run_ms(3);
    for side in [ALPHA, BETA] {
        let [received, durable, _] = marks(&mut duo, side);
        assert_eq!((received, durable), (Lsn(accepted.0 + 4), received));
    }
    // The habit is forgotten.
    for block in 6..14 {
        duo.write(ALPHA, block, false);
        duo.run_ms(1);
    }
    let [accepted, durable, _] = marks(&mut duo, ALPHA);
    assert!(durable < accepted);
}

#[test]
fn an_async_peer_gets_a_frame_of_many_or_after_a_millisecond() {
    let mut duo = Duo::tuned(|config| config.nodes[1].mode = Mode::Async);
    duo.run_ms(100);
    duo.order(ALPHA, Command::Promote { force: false, off: vec![] }).unwrap();
    duo.run_ms(500);
    let [before, ..] = marks(&mut duo, BETA);
    duo.write(ALPHA, 1, false);
    duo.run_ms(1);
    assert_eq!(marks(&mut duo, BETA)[0], before, "it waits for more");
    duo.run_ms(1);
    assert_eq!(marks(&mut duo, BETA)[0].0, before.0 + 1);
    duo.run_ms(100);
    for block in 0..40 {
        duo.write(ALPHA, block, false);
    }
    duo.run_ms(1);
    assert!(marks(&mut duo, BETA)[0].0 > before.0 + 1, "so many do not wait");
}

#[test]
fn applying_begins_a_while_after_what_it_is_for() {
    let mut duo = Duo::in_sync();
    duo.run_ms(1000);
    duo.write(ALPHA, 1, true);
    duo.run_ms(50);
    let [accepted, durable, applied] = marks(&mut duo, ALPHA);
    assert!(durable == accepted && applied < accepted, "however long nothing was applied before");
    duo.run_ms(100);
    assert_eq!(marks(&mut duo, ALPHA)[2], accepted);
}
