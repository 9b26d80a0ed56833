//! Two nodes: what was promised to a client is there after either of them was killed, at any moment.

use crate::common::*;
use std::time::Duration;
use understudy::core::Command;
use understudy::demo::oracle::Promise;
use understudy::demo::rng::Rng;

/// 48 MiB.
const BLOCKS: u64 = 12_288;

fn plan() -> Plan {
    pair("48MiB")
}

#[test]
fn what_is_written_is_read_back_and_reaches_the_passive() {
    let mut cluster = Cluster::serving(&plan(), &[0, 1]);
    let mut client = cluster.client(0);
    assert_eq!(client.export().size, 48 << 20);
    assert_eq!(client.export().block, 4096);
    assert!(client.export().can_multi_conn());
    client.write(8192, &[block_of(1), block_of(2)].concat(), false).unwrap();
    client.write(12288, &block_of(3), true).unwrap();
    client.flush().unwrap();
    let mut other = cluster.client(0);
    assert!(other.read(0, 16384).unwrap() == [block_of(0), block_of(0), block_of(1), block_of(3)].concat());
    other.write((48 << 20) - 4096, &block_of(4), false).unwrap();
    assert!(client.read((48 << 20) - 4096, 4096).unwrap() == block_of(4));
    cluster.assert_stores_equal(0, &[1], VOLUME);
    client.disconnect().unwrap();
}

/// The heart of the matter, ten times over: the roles alternate, so each node is killed, taken over from and brought back.
#[test]
fn a_killed_active_loses_nothing_that_was_promised() {
    let seed = seed("a_killed_active_loses_nothing_that_was_promised");
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::serving(&plan(), &[0, 1]);
    let mut writers = writers(BLOCKS, seed);
    let (mut active, mut given_up) = (0, 0);
    for round in 0..10 {
        let passive = 1 - active;
        let load = Load::start(&cluster, active, writers);
        load.await_writes(50);
        pause(&mut rng, 0..300);
        must(cluster.kill(active));
        writers = load.broken();
        cluster.await_peer_gone(passive, active);
        let refused = cluster.promote(passive).expect_err("a promotion without a word about the other node");
        assert!(refused.to_string().contains("--force --off"), "{refused}");
        must(cluster.promote_without(passive, &[active]));
        let lost = check(&cluster, passive, &mut writers, Promise::Completed);
        println!("round {round}: {lost} of the writes under way were given up");
        given_up += lost;
        must(cluster.start(active));
        cluster.await_in_sync(passive, &[active, passive]);
        active = passive;
    }
    println!("given up in all: {given_up}");
    let load = Load::start(&cluster, active, writers);
    load.await_writes(200);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, active, &mut writers, Promise::Completed), 0, "nothing was under way");
    cluster.assert_stores_equal(active, &[1 - active], VOLUME);
}

#[test]
fn a_killed_passive_does_not_stop_the_writers_and_catches_up() {
    let seed = seed("a_killed_passive_does_not_stop_the_writers_and_catches_up");
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::serving(&plan().resource("stall_ms = 300"), &[0, 1]);
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    for _ in 0..10 {
        load.await_writes(50);
        pause(&mut rng, 0..150);
        must(cluster.kill(1));
        cluster.await_in_sync(0, &[0]);
        load.await_writes(50);
        must(cluster.start(1));
        cluster.await_in_sync(0, &[0, 1]);
    }
    load.await_writes(50);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// A passive that is connected and hangs is as good as gone: nobody waits for it much longer than `stall_ms`.
#[test]
fn a_frozen_passive_is_dropped_and_comes_back() {
    let seed = seed("a_frozen_passive_is_dropped_and_comes_back");
    let mut cluster = Cluster::serving(&plan().resource("stall_ms = 500"), &[0, 1]);
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    for _ in 0..2 {
        load.await_writes(100);
        must(cluster.signal(1, Signal::SIGSTOP));
        cluster.await_in_sync(0, &[0]);
        load.await_writes(100);
        must(cluster.signal(1, Signal::SIGCONT));
        cluster.await_in_sync(0, &[0, 1]);
    }
    load.await_writes(100);
    let longest = Duration::from_micros(load.meter.longest_us());
    let mut writers = load.stop();
    assert!(longest < Duration::from_secs(5), "stall_ms is 500, and a request took {longest:?}");
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// With `on_stall = "suspend"` the writer waits for the passive, and nothing is said to be done that is not on both.
#[test]
fn a_writer_waits_where_the_file_says_suspend() {
    let mut cluster = Cluster::serving(&plan().resource("stall_ms = 300").resource("on_stall = \"suspend\""), &[0, 1]);
    let mut client = cluster.client(0);
    client.write(0, &block_of(1), true).unwrap();
    must(cluster.kill(1));
    cluster.await_status(0, "it is suspended", |s| s["state"] == "suspended");
    assert_eq!(in_sync(&must(cluster.status(0))), ["alpha", "beta"]);
    let (done, waiter) = {
        let (sender, receiver) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || sender.send(client.write(4096, &block_of(2), false)).unwrap());
        (receiver, waiter)
    };
    assert!(done.recv_timeout(Duration::from_millis(1500)).is_err(), "the write should wait");
    assert!(cluster.client(0).read(0, 4096).unwrap() == block_of(1), "reads go on");
    must(cluster.start(1));
    done.recv_timeout(PATIENCE).expect("the write goes on").unwrap();
    waiter.join().unwrap();
    cluster.await_status(0, "it serves again", |s| s["state"] == "serving");
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

#[test]
fn the_active_role_goes_back_and_forth_under_load() {
    let seed = seed("the_active_role_goes_back_and_forth_under_load");
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::serving(&plan(), &[0, 1]);
    let mut writers = writers(BLOCKS, seed);
    let mut active = 0;
    for _ in 0..6 {
        let to = 1 - active;
        let load = Load::start(&cluster, active, writers);
        load.await_writes(50);
        pause(&mut rng, 0..100);
        must(cluster.command(active, &Command::Switchover { to: cluster.name(to).to_string() }));
        writers = load.dismissed();
        // Whatever had been taken in is there, whatever had completed above all.
        check(&cluster, to, &mut writers, Promise::Completed);
        cluster.await_in_sync(to, &[0, 1]);
        active = to;
    }
    cluster.assert_stores_equal(active, &[1 - active], VOLUME);
}

/// The daemon of the active dies and is started again before anybody does anything: it goes on by itself (C9).
#[test]
fn a_restarted_active_resumes_by_itself() {
    let seed = seed("a_restarted_active_resumes_by_itself");
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::serving(&plan(), &[0, 1]);
    let mut writers = writers(BLOCKS, seed);
    for _ in 0..5 {
        let load = Load::start(&cluster, 0, writers);
        load.await_writes(50);
        pause(&mut rng, 0..200);
        must(cluster.kill(0));
        writers = load.broken();
        must(cluster.start(0));
        cluster.await_answer(0);
        cluster.await_status(0, "it serves", |s| s["role"] == "active" && s["state"] == "serving");
        // Its machine lives, so what had been written is in its log (C5).
        check(&cluster, 0, &mut writers, Promise::Completed);
        cluster.await_in_sync(0, &[0, 1]);
    }
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// It was alone in sync, so it needs to ask nobody.
#[test]
fn a_restarted_active_that_was_alone_resumes_without_its_peer() {
    let mut cluster = Cluster::serving(&plan().resource("stall_ms = 300"), &[0, 1]);
    must(cluster.kill(1));
    cluster.await_in_sync(0, &[0]);
    cluster.client(0).write(4096, &block_of(5), true).unwrap();
    must(cluster.kill(0));
    must(cluster.start(0));
    cluster.await_answer(0);
    cluster.await_status(0, "it serves", |s| s["role"] == "active" && s["state"] == "serving");
    assert!(cluster.client(0).read(4096, 4096).unwrap() == block_of(5));
    // The other one lacks a completed write and knows it.
    must(cluster.start(1));
    cluster.await_in_sync(0, &[0, 1]);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// Both were in sync when the active's daemon died and the passive with it: alone it cannot know whether the other went on.
#[test]
fn a_restarted_active_waits_for_a_member_that_may_have_gone_on() {
    let mut cluster = Cluster::serving(&plan(), &[0, 1]);
    cluster.client(0).write(4096, &block_of(6), true).unwrap();
    must(cluster.kill(0));
    must(cluster.kill(1));
    must(cluster.start(0));
    cluster.await_answer(0);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(must(cluster.status(0))["role"], "passive");
    must(cluster.start(1));
    cluster
        .await_status(0, "it serves once it has spoken to beta", |s| s["role"] == "active" && s["state"] == "serving");
    assert!(cluster.client(0).read(4096, 4096).unwrap() == block_of(6));
    cluster.await_in_sync(0, &[0, 1]);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}
