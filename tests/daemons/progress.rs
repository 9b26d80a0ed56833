//! What `status` says while a peer that was away comes back: how far it is, how fast, and what the parts of a write take.

use crate::common::*;
use std::time::{Duration, Instant};
use understudy::core::Command;

/// The log goes round while beta is away; what it then lacks is counted to its end.
#[test]
fn a_resync_is_shown_until_it_is_over() {
    let plan = pair("128MiB").log_size("16MiB").resource("stall_ms = 500");
    let mut cluster = Cluster::serving(&plan, &[0, 1]);
    must(cluster.command(0, &Command::Disconnect { peer: "beta".into(), force: true }));
    cluster.await_in_sync(0, &[0]);
    let mut client = cluster.client(0);
    for at in 0..96 {
        client.write(at << 20, &vec![at as u8 + 1; 1 << 20], false).unwrap();
    }
    client.flush().unwrap();
    assert!(must(cluster.status(0))["peers"][0]["progress"].is_null());
    let foreseen: Value =
        serde_json::from_str(&must(cluster.tool("connect", 0, &["beta", "--dry-run", "--json"]))).unwrap();
    assert_eq!(foreseen["outcome"], "resync", "{foreseen}");
    assert_eq!(foreseen["bytes"], 96 << 20, "{foreseen}");
    // Stopped every now and then, so that it can be seen on the way.
    must(cluster.command(0, &Command::Connect { peer: "beta".into(), dry_run: false }));
    let (mut seen, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while in_sync(&must(cluster.status(0))).len() < 2 {
        assert!(Instant::now() < deadline, "it never came back");
        let status = must(cluster.status(0));
        let progress = &status["peers"][0]["progress"];
        if progress["what"] == "resync" {
            seen.push((progress["done_bytes"].as_u64().unwrap(), progress["total_bytes"].as_u64().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(!seen.is_empty(), "nothing was shown of it");
    assert!(seen.windows(2).all(|w| w[0].0 <= w[1].0) && seen.iter().all(|(done, all)| done <= all), "{seen:?}");
    assert!(seen.iter().any(|(_, total)| *total >= 96 << 20), "{seen:?}");
    assert!(must(cluster.status(0))["peers"][0]["progress"].is_null());
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// One durable write at a time: each part was measured as often as there were writes, and none is longer than the whole.
#[test]
fn the_parts_of_a_write_are_measured() {
    let cluster = Cluster::serving(&pair("16MiB"), &[0, 1]);
    let mut client = cluster.client(0);
    for at in 0..200 {
        client.write(at * 4096, &block_of(1), true).unwrap();
    }
    let status = must(cluster.status(0));
    let of =
        |value: &Value, name: &str| value[name].as_u64().unwrap_or_else(|| panic!("{name} of {value} in {status}"));
    let (write, disk) = (&status["latency_us"]["write"], &status["latency_us"]["local_disk"]);
    let (wire, far) = (&status["peers"][0]["latency_us"]["wire"], &status["peers"][0]["latency_us"]["disk"]);
    assert!(
        of(write, "count") >= 200 && of(disk, "count") >= 200 && of(wire, "count") >= 200 && of(far, "count") >= 200
    );
    for part in [write, disk, wire, far] {
        assert!(of(part, "p50") <= of(part, "p95") && of(part, "p99") <= of(part, "max"), "{part}");
    }
    // A percentile is overstated by an eighth at most.
    assert!(of(disk, "p50") * 8 <= of(write, "p50") * 9, "{status}");
    let page = must(cluster.tool("status", 0, &[]));
    assert!(page.contains("LATENCY (us)") && page.contains("wire to beta") && page.contains("disk of beta"), "{page}");
    let log = must(cluster.tool("log", 0, &[]));
    assert!(log.contains("records  1 to 200, durable to 200"), "{log}");
}
