//! `connect --dry-run`: what a link would do is known before it stands, on either side, and asking changes nothing.

use crate::common::*;
use understudy::core::Command;

#[track_caller]
fn dry_run(cluster: &Cluster, node: usize) -> Value {
    let (code, said) = output(cluster, "connect", node, &[cluster.name(1 - node), "--dry-run", "--json"]);
    let seen: Value = serde_json::from_str(&said).expect("one JSON object");
    let bad = matches!(seen["outcome"].as_str(), Some("refused" | "unknown"));
    assert_eq!(code, Some(i32::from(bad)), "{seen}");
    seen
}

#[test]
fn a_catch_up_is_foretold_by_both_and_comes_about_when_it_is_wanted() {
    let mut cluster = Cluster::serving(&pair("16MiB"), &[0, 1]);
    assert_eq!(dry_run(&cluster, 0)["outcome"], "connected");
    // On both sides nobody wants the link, so it comes about for the question alone.
    must(cluster.command(0, &Command::Disconnect { peer: "beta".into(), force: true }));
    cluster.await_in_sync(0, &[0]);
    for block in 0..3 {
        cluster.client(0).write(block * 4096, &block_of(1), true).unwrap();
    }
    let seen = dry_run(&cluster, 0);
    assert_eq!((&seen["outcome"], &seen["learnt"]), (&"catch_up".into(), &"asked".into()), "{seen}");
    assert_eq!((&seen["records"], &seen["bytes"]), (&3.into(), &12288.into()), "{seen}");
    assert_eq!((&seen["from"], &seen["to"]), (&"alpha".into(), &"beta".into()), "{seen}");
    let text = must(cluster.tool("connect", 0, &["beta", "--dry-run"]));
    assert!(text.contains("alpha to beta: 12 KiB in 3 record(s)") && text.contains("to set aside   nothing"), "{text}");
    assert_eq!(must(cluster.status(0))["peers"][0]["state"], "down", "asking links nobody");
    assert_eq!(in_sync(&must(cluster.status(0))), ["alpha"]);
    // alpha does not want beta, and says so when it is asked.
    let seen = dry_run(&cluster, 1);
    assert!(seen["verdict"].as_str().unwrap().contains("disconnected by the operator"), "{seen}");
    must(cluster.command(0, &Command::Connect { peer: "beta".into(), dry_run: false }));
    cluster.await_in_sync(0, &[0, 1]);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

#[test]
fn a_link_that_would_be_refused_is_said_to_be() {
    let mut cluster = Cluster::serving(&pair("16MiB").resource("stall_ms = 300"), &[0, 1]);
    cluster.client(0).write(0, &block_of(1), true).unwrap();
    must(cluster.kill(0));
    cluster.take_over(1, 0);
    cluster.client(1).write(4096, &block_of(2), true).unwrap();
    let seen = dry_run(&cluster, 1);
    assert_eq!(seen["learnt"], "earlier", "{seen}");
    assert!(seen["verdict"].as_str().unwrap().contains("alpha does not answer"), "{seen}");
    must(cluster.kill(1));
    must(cluster.start(0));
    cluster.await_answer(0);
    let refused = cluster.tool("connect", 0, &["beta", "--dry-run"]).unwrap_err().to_string();
    assert!(refused.contains("not known"), "{refused}");
}
