//! A resync that is cut short: whatever dies in the middle of it, the passive can be promoted, and is then the exact state
//! of the device after some prefix of its writes, not older than what it had reported (contract 3, R1, R3).

use crate::common::*;
use understudy::demo::load::Writer;
use understudy::demo::oracle::Promise;
use understudy::demo::rng::Rng;

/// 96 MiB.
const BLOCKS: u64 = 24_576;

/// A small window makes many small steps of a resync.
fn plan() -> Plan {
    overflowing("96MiB").resource("window = \"1MiB\"")
}

/// Has `passive` report everything that was written so far, then parts it from `active` until the log has overflowed, and
/// brings it back. What it had reported is settled for the oracles; the load that goes on is returned in mid-resync.
#[track_caller]
fn in_mid_resync(cluster: &mut Cluster, active: usize, passive: usize, writers: Vec<Writer>) -> Load {
    let load = Load::start(cluster, active, writers);
    load.await_writes(500);
    let mut writers = load.stop();
    assert_eq!(check(cluster, active, &mut writers, Promise::Completed), 0);
    cluster.await_in_sync(active, &[active, passive]);
    must(cluster.kill(passive));
    let load = Load::start(cluster, active, writers);
    cluster.await_status(active, "its log overflows, twice over", |s| is_past_the_log(s, 4000));
    must(cluster.start(passive));
    cluster.await_status(active, "the resync has begun", |s| s["peers"][0]["state"] == "resyncing");
    load
}

#[test]
fn a_killed_source_leaves_a_passive_that_can_be_promoted() {
    let seed = seed("a_killed_source_leaves_a_passive_that_can_be_promoted");
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::serving(&plan(), &[0, 1]);
    let mut writers = writers(BLOCKS, seed);
    let (mut active, mut rolled_back) = (0, 0);
    for round in 0..3 {
        let passive = 1 - active;
        let load = in_mid_resync(&mut cluster, active, passive, writers);
        pause(&mut rng, 0..100);
        must(cluster.kill(active));
        writers = load.broken();
        cluster.take_over(passive, active);
        let given_up = check(&cluster, passive, &mut writers, Promise::AnyPrefix);
        let back = cluster.said(passive).contains("rolled_back");
        rolled_back += u32::from(back);
        println!("round {round}: rolled back: {back}; {given_up} writes were given up");
        must(cluster.start(active));
        cluster.await_in_sync(passive, &[active, passive]);
        active = passive;
    }
    assert!(rolled_back > 0, "no resync was caught in the middle");
    cluster.assert_stores_equal(active, &[1 - active], VOLUME);
}

#[test]
fn a_passive_killed_in_mid_resync_goes_on_where_it_was() {
    let seed = seed("a_passive_killed_in_mid_resync_goes_on_where_it_was");
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::serving(&plan(), &[0, 1]);
    let load = in_mid_resync(&mut cluster, 0, 1, writers(BLOCKS, seed));
    for _ in 0..4 {
        pause(&mut rng, 0..120);
        must(cluster.kill(1));
        load.await_writes(50);
        must(cluster.start(1));
        cluster.await_status(0, "beta is back", |s| {
            matches!(s["peers"][0]["state"].as_str(), Some("resyncing" | "catching_up" | "joining" | "in_sync"))
        });
    }
    cluster.await_in_sync(0, &[0, 1]);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// Both are gone, and only the passive comes back, with a store that is between two positions.
#[test]
fn a_passive_killed_in_mid_resync_can_be_promoted_from_its_disk() {
    let seed = seed("a_passive_killed_in_mid_resync_can_be_promoted_from_its_disk");
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::serving(&plan(), &[0, 1]);
    let mut writers = writers(BLOCKS, seed);
    let mut active = 0;
    for round in 0..3 {
        let passive = 1 - active;
        let load = in_mid_resync(&mut cluster, active, passive, writers);
        pause(&mut rng, 0..100);
        must(cluster.kill(passive));
        must(cluster.kill(active));
        writers = load.broken();
        must(cluster.start(passive));
        cluster.await_answer(passive);
        must(cluster.promote_without(passive, &[active]));
        let given_up = check(&cluster, passive, &mut writers, Promise::AnyPrefix);
        println!("round {round}: {given_up} writes were given up");
        must(cluster.start(active));
        cluster.await_in_sync(passive, &[active, passive]);
        active = passive;
    }
    cluster.assert_stores_equal(active, &[1 - active], VOLUME);
}
