//! A sync pair with a third, asynchronous node elsewhere.

use crate::common::*;
use std::time::Duration;
use understudy::demo::oracle::Promise;

const BLOCKS: u64 = 6144;

fn three() -> Plan {
    Plan::of(&["alpha", "beta", "offsite"], "24MiB").node("offsite", "mode = \"async\"")
}

fn peer_state(status: &Value, name: &str) -> String {
    let peers = status["peers"].as_array().map_or(&[][..], |p| p);
    let peer = peers.iter().find(|p| p["name"] == name);
    peer.and_then(|p| p["state"].as_str()).unwrap_or("no such peer").to_string()
}

#[test]
fn the_far_node_follows_whoever_is_active() {
    let seed = seed("the_far_node_follows_whoever_is_active");
    let mut cluster = Cluster::serving(&three(), &[0, 1]);
    cluster.await_status(0, "offsite follows", |s| peer_state(s, "offsite") == "async");
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    load.await_writes(300);
    must(cluster.kill(0));
    let mut writers = load.broken();
    cluster.take_over(1, 0);
    check(&cluster, 1, &mut writers, Promise::Completed);
    cluster.await_status(1, "offsite follows", |s| peer_state(s, "offsite") == "async");
    let load = Load::start(&cluster, 1, writers);
    load.await_writes(100);
    must(cluster.start(0));
    cluster.await_in_sync(1, &[0, 1]);
    load.await_writes(100);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 1, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(1, &[0, 2], VOLUME);
}

/// Nobody waits for an async node, and it is never in sync.
#[test]
fn a_frozen_far_node_is_not_felt() {
    let seed = seed("a_frozen_far_node_is_not_felt");
    let mut cluster = Cluster::serving(&three(), &[0, 1]);
    cluster.await_status(0, "offsite follows", |s| peer_state(s, "offsite") == "async");
    must(cluster.signal(2, Signal::SIGSTOP));
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    load.await_writes(300);
    let status = must(cluster.status(0));
    assert_eq!(in_sync(&status), ["alpha", "beta"]);
    let longest = Duration::from_micros(load.meter.longest_us());
    let mut writers = load.stop();
    assert!(longest < Duration::from_secs(2), "stall_ms is 2000, and a request took {longest:?}");
    must(cluster.signal(2, Signal::SIGCONT));
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(0, &[1, 2], VOLUME);
}

/// An async pair: what the passive has is the state after some prefix of the writes, whatever had been promised.
#[test]
fn an_async_passive_is_a_valid_image() {
    let seed = seed("an_async_passive_is_a_valid_image");
    let plan = pair("24MiB").resource("mode = \"async\"");
    let mut cluster = Cluster::serving(&plan, &[0]);
    let mut writers = writers(BLOCKS, seed);
    let mut active = 0;
    for _ in 0..4 {
        let passive = 1 - active;
        cluster.await_status(active, "the other follows", |s| s["peers"][0]["state"] == "async");
        let load = Load::start(&cluster, active, writers);
        load.await_writes(200);
        must(cluster.kill(active));
        writers = load.broken();
        cluster.take_over(passive, active);
        let lost = check(&cluster, passive, &mut writers, Promise::AnyPrefix);
        println!("{lost} writes were given up");
        must(cluster.start(active));
        active = passive;
    }
    cluster.await_status(active, "the other follows", |s| s["peers"][0]["state"] == "async");
    cluster.assert_stores_equal(active, &[1 - active], VOLUME);
}
