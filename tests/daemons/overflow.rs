//! Past the log: a passive that lacks more than the log holds is brought back by a resync, while the writers go on.

use crate::common::*;
use understudy::core::Command;
use understudy::demo::oracle::Promise;
use understudy::demo::rng::Rng;

/// 40 MiB, more than the log of 16.
const BLOCKS: u64 = 10_240;

fn small_log() -> Plan {
    overflowing("40MiB")
}

#[test]
fn a_killed_passive_past_the_log_is_resynced_under_load() {
    let seed = seed("a_killed_passive_past_the_log_is_resynced_under_load");
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::serving(&small_log(), &[0, 1]);
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    for _ in 0..2 {
        load.await_writes(50);
        must(cluster.kill(1));
        cluster.await_status(0, "its log overflows", |s| is_past_the_log(s, 1));
        pause(&mut rng, 0..200);
        must(cluster.start(1));
        cluster.await_in_sync(0, &[0, 1]);
    }
    load.await_writes(50);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(0, &[1], VOLUME);
    let said = cluster.said(0);
    assert!(said.matches("resync_finished").count() >= 2, "caught up without a resync: {said}");
}

/// Parted by the operator, whose daemon kept running; it comes back when it is told to.
#[test]
fn a_disconnected_passive_past_the_log_is_resynced_under_load() {
    let seed = seed("a_disconnected_passive_past_the_log_is_resynced_under_load");
    let mut cluster = Cluster::serving(&small_log(), &[0, 1]);
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    load.await_writes(50);
    must(cluster.command(0, &Command::Disconnect { peer: "beta".into(), force: true }));
    cluster.await_status(0, "its log overflows", |s| is_past_the_log(s, 1));
    must(cluster.command(0, &Command::Connect { peer: "beta".into(), dry_run: false }));
    cluster.await_in_sync(0, &[0, 1]);
    load.await_writes(50);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(0, &[1], VOLUME);
    assert!(cluster.said(1).contains("resync_finished"), "caught up without a resync");
}

/// Async never blocks the writer (contract 2): from the log to the bitmap by itself, and back to the log.
#[test]
fn a_frozen_async_passive_is_left_behind_and_returns_to_the_log() {
    let seed = seed("a_frozen_async_passive_is_left_behind_and_returns_to_the_log");
    let plan = small_log().resource("mode = \"async\"").resource("window = \"1MiB\"");
    let mut cluster = Cluster::serving(&plan, &[0]);
    let follows = |s: &Value| s["peers"][0]["state"] == "async";
    cluster.await_status(0, "beta follows", follows);
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    load.await_writes(50);
    must(cluster.signal(1, Signal::SIGSTOP));
    // Even what was on its way when it froze does not reach to the log any more.
    let window = (1 << 20) / 4096;
    cluster.await_status(0, "its log overflows", |s| is_past_the_log(s, 2 * window));
    load.await_writes(50);
    must(cluster.signal(1, Signal::SIGCONT));
    cluster.await_status(0, "beta follows again, from the log", |s| follows(s) && !is_past_the_log(s, 1));
    load.await_writes(50);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(0, &[1], VOLUME);
    assert!(cluster.said(1).contains("resync_finished"), "caught up without a resync");
}

/// The active is killed with a bitmap that only its disk still knows.
#[test]
fn the_bitmap_survives_the_active() {
    let seed = seed("the_bitmap_survives_the_active");
    let mut cluster = Cluster::serving(&small_log(), &[0, 1]);
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    load.await_writes(50);
    must(cluster.kill(1));
    cluster.await_status(0, "its log overflows", |s| is_past_the_log(s, 1));
    must(cluster.kill(0));
    let mut writers = load.broken();
    must(cluster.start(0));
    cluster.await_status(0, "it serves: it was alone in sync", |s| s["role"] == "active" && s["state"] == "serving");
    check(&cluster, 0, &mut writers, Promise::Completed);
    must(cluster.start(1));
    cluster.await_in_sync(0, &[0, 1]);
    cluster.assert_stores_equal(0, &[1], VOLUME);
    assert!(cluster.said(1).contains("resync_finished"), "caught up without a resync");
}
