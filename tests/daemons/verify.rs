//! What no replica does by itself: a passive's store changes behind its back. `verify` finds it, under writes, and mends it.

use crate::common::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use understudy::demo::oracle::Promise;

/// 40 of the 48 MiB; nobody writes to the rest while the stores are compared.
const BLOCKS: u64 = 10_240;
const QUIET: u64 = 40 << 20;

/// Changes bytes of a node's store while its daemon is stopped: three places, the last one in a hole. What differs, as
/// (offset, length).
fn spoil(cluster: &Cluster, node: usize) -> [(u64, u64); 3] {
    let store = OpenOptions::new().read(true).write(true).open(cluster.store(node, VOLUME)).unwrap();
    store.write_all_at(&[0x5a], QUIET + 5).unwrap();
    store.write_all_at(&[0x5a; 8192], QUIET + (1 << 20) + 4096).unwrap();
    store.write_all_at(&[0x5a], (48 << 20) - 1).unwrap();
    store.sync_all().unwrap();
    [(QUIET, 4096), (QUIET + (1 << 20) + 4096, 8192), ((48 << 20) - 4096, 4096)]
}

/// The exit code and the answer.
fn verify(cluster: &Cluster, more: &[&str]) -> (Option<i32>, String) {
    output(cluster, "verify", 0, more)
}

/// Who was not compared is named, and nobody at all is a refusal.
#[test]
fn a_peer_that_is_not_there_is_named() {
    let mut cluster =
        Cluster::serving(&Plan::of(&["alpha", "beta", "gamma"], "16MiB").resource("stall_ms = 300"), &[0, 1, 2]);
    must(cluster.kill(2));
    cluster.await_in_sync(0, &[0, 1]);
    let (code, answer) = verify(&cluster, &[]);
    assert!(code == Some(0) && answer.starts_with("beta: equal\ngamma: not compared: it is "), "{answer}");
    must(cluster.kill(1));
    cluster.await_in_sync(0, &[0]);
    let refused = cluster.tool("verify", 0, &[]).unwrap_err().to_string();
    assert!(refused.contains("beta: it is ") && refused.contains("gamma: it is "), "{refused}");
}

#[test]
fn an_injected_difference_is_found_under_load_and_mended() {
    let seed = seed("an_injected_difference_is_found_under_load_and_mended");
    let mut cluster = Cluster::serving(&pair("48MiB"), &[0, 1]);
    cluster.client(0).write(QUIET, &[7; 4 << 20], true).unwrap();
    assert_eq!(must(cluster.tool("verify", 0, &[])).trim(), "beta: equal");
    // Once it is checkpointed nothing is applied again at the next start.
    cluster.await_status(1, "it has checkpointed", |s| s["watermarks"]["checkpointed"] == s["watermarks"]["accepted"]);
    must(cluster.kill(1));
    let spoiled = spoil(&cluster, 1);
    must(cluster.start(1));
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    load.await_writes(50);
    cluster.await_in_sync(0, &[0, 1]);
    let (code, answer) = verify(&cluster, &["--json"]);
    assert_eq!(code, Some(1), "{answer}");
    let report: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((&report["equal"], &report["not_compared"]), (&false.into(), &Value::Array(vec![])), "{report}");
    let found = &report["peers"][0];
    assert_eq!(
        (&found["peer"], &found["differing_bytes"], &found["repaired"]),
        (&"beta".into(), &16384.into(), &false.into())
    );
    let ranges = found["ranges"].as_array().unwrap();
    let named = |r: &Value| (r["offset"].as_u64().unwrap(), r["length"].as_u64().unwrap());
    let mut ranges: Vec<(u64, u64)> = ranges.iter().map(named).collect();
    ranges.sort();
    assert_eq!(ranges, spoiled, "{report}");
    let (code, answer) = verify(&cluster, &[]);
    assert!(code == Some(1) && answer.starts_with("beta: 16384 bytes differ"), "{answer}");
    let said = cluster.said(0);
    for (offset, length) in spoiled {
        let (offset, length) = (format!("offset={offset}"), format!("length={length}"));
        let names = |l: &str| l.contains("verify_differs") && l.contains(&offset) && l.contains(&length);
        assert!(said.lines().any(names), "{offset} {length} is not in: {said}");
    }
    // Looking has mended nothing.
    let answer = must(cluster.tool("verify", 0, &["--repair"]));
    assert!(answer.starts_with("beta: 16384 bytes differed and were written anew"), "{answer}");
    assert_eq!(must(cluster.tool("verify", 0, &[])).trim(), "beta: equal");
    load.await_writes(50);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    assert!(cluster.client(0).read(QUIET, 4 << 20).unwrap().iter().all(|b| *b == 7), "the active's content counts");
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// Ten times over while everything is being written to: whatever is reported would be a false alarm.
#[test]
fn nothing_is_reported_where_nothing_differs() {
    let seed = seed("nothing_is_reported_where_nothing_differs");
    let mut cluster = Cluster::serving(&pair("40MiB"), &[0, 1]);
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    for _ in 0..10 {
        load.await_writes(20);
        let answer = must(cluster.tool("verify", 0, &[]));
        assert!(answer.starts_with("beta: equal"), "{answer}");
    }
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}
