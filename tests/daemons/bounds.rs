//! What a resync may need of the history is known before it begins (R1), and what happens without it (contract 3).

use crate::common::*;
use std::time::Instant;
use understudy::core::Command;

const MIB: u64 = 1 << 20;

fn pair() -> Plan {
    Plan::of(&["alpha", "beta"], "128MiB")
        .log_size("16MiB")
        .resource("stall_ms = 300")
        .node("beta", "history_size = \"1MiB\"")
}

/// Both hold ones; then alpha alone wrote twos all over the volume, more than its log holds.
#[track_caller]
fn far_behind(plan: &Plan) -> Cluster {
    let mut cluster = Cluster::serving(plan, &[0, 1]);
    let mut client = cluster.client(0);
    for at in (0..128 * MIB).step_by(4 << 20) {
        client.write(at, &[1; 4 << 20], true).unwrap();
    }
    cluster.await_in_sync(0, &[0, 1]);
    must(cluster.kill(1));
    let mut client = cluster.client(0);
    for at in (0..128 * MIB).step_by(4 << 20) {
        client.write(at, &[2; 4 << 20], true).unwrap();
    }
    cluster
}

#[test]
fn a_resync_that_needs_more_history_than_it_may_take_is_refused() {
    let mut cluster = far_behind(&pair());
    must(cluster.start(1));
    let refused = |s: &Value| {
        let why = s["peers"][0]["why"].as_str().unwrap_or_default();
        why.contains("bytes of history here") && why.contains("room for 1048576") && why.contains("raise history_size")
    };
    let status = cluster.await_status(1, "it says what it needs", refused);
    println!("beta says: {}", status["peers"][0]["why"]);
    assert_eq!(status["image"]["valid"], true);
    // It is what it was, and can be promoted.
    must(cluster.kill(0));
    cluster.await_peer_gone(1, 0);
    must(cluster.command(1, &Command::Promote { force: true, off: vec!["alpha".into()] }));
    let mut client = cluster.client(1);
    for at in (0..128 * MIB).step_by(4 << 20) {
        assert!(client.read(at, 4 << 20).unwrap().iter().all(|b| *b == 1), "at {at}");
    }
}

/// Kills the active while beta is being overwritten; false if that was over before.
#[track_caller]
fn caught_in_place(cluster: &mut Cluster) -> bool {
    must(cluster.start(1));
    let deadline = Instant::now() + PATIENCE;
    while !cluster.said(1).contains("image_given_up") {
        assert!(Instant::now() < deadline, "beta never gave its image up");
    }
    must(cluster.kill(0));
    cluster.await_peer_gone(1, 0);
    must(cluster.status(1))["image"]["valid"] == false
}

#[test]
fn what_is_overwritten_in_place_cannot_be_promoted() {
    let plan = pair().resource("allow_invalid = true").resource("window = \"1MiB\"");
    let mut caught = None;
    for _ in 0..5 {
        let mut cluster = far_behind(&plan);
        if caught_in_place(&mut cluster) {
            caught = Some(cluster);
            break;
        }
    }
    let mut cluster = caught.expect("a resync of 128 MiB that is under way");
    for _ in 0..2 {
        let force = Command::Promote { force: true, off: vec!["alpha".into()] };
        let refused = cluster.command(1, &force).expect_err("a promotion of what is no image").to_string();
        assert!(refused.contains("overwritten in place") && refused.contains("allow_invalid"), "{refused}");
        // After a restart it knows it still.
        must(cluster.kill(1));
        must(cluster.start(1));
        cluster.await_status(1, "it holds no image", |s| s["image"]["valid"] == false && s["image"]["why"].is_string());
    }
    must(cluster.start(0));
    cluster.await_in_sync(0, &[0, 1]);
    cluster.assert_stores_equal(0, &[1], VOLUME);
    cluster.await_status(1, "it is whole", |s| s["image"]["valid"] == true);
}
