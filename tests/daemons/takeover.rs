//! Takeovers with a witness and real processes: nobody promotes anybody, nothing that was completed is lost, and nobody but one ever serves.

use crate::common::*;
use crate::witness::watched;
use serde_json::Value;
use std::time::{Duration, Instant};
use understudy::demo::oracle::{BLOCK, Promise};
use understudy::demo::rng::Rng;
use understudy::nbd_client::NbdError;

/// 24 MiB.
const BLOCKS: u64 = 6144;
const W1: usize = 2;

fn plan() -> Plan {
    watched("24MiB").resource("stall_ms = 1000")
}

fn serving() -> Cluster {
    Cluster::serving(&plan(), &[0, 1])
}

fn serves(status: &Value) -> bool {
    status["role"] == "active" && status["state"] == "serving"
}

#[track_caller]
fn await_serving(cluster: &mut Cluster, node: usize) {
    cluster.await_status(node, "it serves, by itself", serves);
}

/// The active dies in mid-write: the passive takes over, and the dead one comes back as a passive. The roles alternate.
#[test]
fn a_killed_active_is_taken_over_from_and_nothing_is_lost() {
    let seed = seed("a_killed_active_is_taken_over_from_and_nothing_is_lost");
    let mut rng = Rng::new(seed);
    let mut cluster = serving();
    let mut writers = writers(BLOCKS, seed);
    let mut active = 0;
    for round in 0..6 {
        let passive = 1 - active;
        let load = Load::start(&cluster, active, writers);
        load.await_writes(50);
        pause(&mut rng, 0..300);
        let killed = Instant::now();
        must(cluster.kill(active));
        writers = load.broken();
        await_serving(&mut cluster, passive);
        println!("round {round}: it served after {} ms", killed.elapsed().as_millis());
        let said = cluster.said(passive);
        assert!(said.contains("takeover_began") && said.contains("took_over"), "{said}");
        check(&cluster, passive, &mut writers, Promise::Completed);
        must(cluster.start(active));
        cluster.await_in_sync(passive, &[active, passive]);
        active = passive;
    }
    let load = Load::start(&cluster, active, writers);
    load.await_writes(100);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, active, &mut writers, Promise::Completed), 0, "nothing was under way");
    cluster.assert_stores_equal(active, &[1 - active], VOLUME);
}

/// Frozen for longer than the lease, it is another's turn; thawed, none of its writes completes, and it comes back as a passive.
#[test]
fn a_frozen_active_is_taken_over_from_and_none_of_its_writes_completes() {
    let seed = seed("a_frozen_active_is_taken_over_from_and_none_of_its_writes_completes");
    let mut cluster = serving();
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    load.await_writes(100);
    must(cluster.signal(0, Signal::SIGSTOP));
    // Its client writes on meanwhile: into the socket of a process that does not run.
    let mut late = None;
    await_serving(&mut cluster, 1);
    let mut client = cluster.client(1);
    let block = (BLOCKS - 1) * BLOCK as u64;
    client.write(block, &block_of(77), true).unwrap();
    let address = cluster.nbd_address(0);
    let writer = std::thread::spawn(move || {
        let mut client = understudy::nbd_client::Client::connect(&address, VOLUME, Duration::from_secs(20))?;
        client.write(block, &block_of(99), true)
    });
    must(cluster.signal(0, Signal::SIGCONT));
    let mut writers = load.dismissed();
    cluster.await_in_sync(1, &[0, 1]);
    let written: Result<(), NbdError> = writer.join().unwrap();
    late.get_or_insert(written).as_ref().expect_err("a write of the term that is over was completed");
    let status = must(cluster.status(0));
    assert_eq!(status["role"], "passive", "{status}");
    assert_eq!(client.read(block, BLOCK as u64).unwrap(), block_of(77));
    // The last block belongs to a writer: only what it has not written is lost to it.
    writers.truncate(2);
    check(&cluster, 1, &mut writers, Promise::Completed);
    cluster.assert_stores_equal(1, &[0], VOLUME);
}

/// The witness is killed, comes back without its file, is gone again: the two are a majority, and I/O goes on all the time.
#[test]
fn without_its_witness_the_pair_goes_on() {
    let seed = seed("without_its_witness_the_pair_goes_on");
    let mut cluster = serving();
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    load.await_writes(50);
    must(cluster.kill(W1));
    load.await_writes(100);
    let vote = cluster.dir(W1).join("demo.vote");
    std::fs::remove_file(&vote).unwrap();
    must(cluster.start_and_wait(W1));
    load.await_writes(100);
    // The charter can still be changed: by the two, without the witness.
    must(cluster.kill(W1));
    must(cluster.kill(1));
    // Now there is none to change it with: writes wait until the passive is back.
    must(cluster.start(1));
    cluster.await_in_sync(0, &[0, 1]);
    load.await_writes(100);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// The passive goes: the active drops it with the witness, and goes on alone; it comes back.
#[test]
fn a_killed_passive_is_dropped_with_the_witness() {
    let seed = seed("a_killed_passive_is_dropped_with_the_witness");
    let mut cluster = serving();
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    for _ in 0..3 {
        load.await_writes(50);
        must(cluster.kill(1));
        cluster.await_in_sync(0, &[0]);
        load.await_writes(50);
        must(cluster.start(1));
        cluster.await_in_sync(0, &[0, 1]);
    }
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// C10: without the witness and the passive the active waits. With either it goes on.
#[test]
fn without_witness_and_passive_writes_wait() {
    for back in [W1, 1] {
        let mut cluster = serving();
        must(cluster.kill(W1));
        must(cluster.kill(1));
        let mut client = cluster.client(0);
        let writer = std::thread::spawn(move || client.write(0, &block_of(5), false));
        // It is past `stall_ms`, and no majority lets the passive be dropped.
        let waits = |s: &Value| s["watermarks"]["accepted"].as_u64() > s["watermarks"]["committed"].as_u64();
        cluster.await_status(0, "the write is there", waits);
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!writer.is_finished(), "a write completed that the passive lacks, without a majority");
        must(cluster.start(back));
        writer.join().unwrap().unwrap();
        let mut client = cluster.client(0);
        assert_eq!(client.read(0, BLOCK as u64).unwrap(), block_of(5));
    }
}

/// Both data nodes die at once, and come back in either order: one of them serves by itself, and holds everything that was flushed.
#[test]
fn after_both_have_died_one_serves_by_itself() {
    let seed = seed("after_both_have_died_one_serves_by_itself");
    let mut cluster = serving();
    let mut writers = writers(BLOCKS, seed);
    let mut active = 0;
    for order in [[0, 1], [1, 0], [0, 1]] {
        let load = Load::start(&cluster, active, writers);
        load.await_writes(100);
        must(cluster.kill(active));
        must(cluster.kill(1 - active));
        writers = load.broken();
        for node in order {
            must(cluster.start(node));
            std::thread::sleep(Duration::from_millis(300));
        }
        let deadline = Instant::now() + PATIENCE;
        active = loop {
            assert!(Instant::now() < deadline, "nobody serves");
            let found = (0..2).find(|n| cluster.status(*n).is_ok_and(|s| serves(&s)));
            match found {
                Some(node) => break node,
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        cluster.await_in_sync(active, &[0, 1]);
        check(&cluster, active, &mut writers, Promise::Flushed);
    }
    cluster.assert_stores_equal(active, &[1 - active], VOLUME);
}

/// Only one comes back: the one with all the data serves; the other, which was dropped before, never does by itself.
#[test]
fn a_node_that_was_dropped_never_serves_by_itself() {
    let mut cluster = serving();
    must(cluster.kill(1));
    cluster.await_in_sync(0, &[0]);
    let mut client = cluster.client(0);
    client.write(0, &block_of(9), true).unwrap();
    must(cluster.kill(0));
    must(cluster.start_and_wait(1));
    // Twice as long as any takeover takes.
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let status = must(cluster.status(1));
        assert_eq!(status["role"], "passive", "it lacks a flushed write: {status}");
        std::thread::sleep(Duration::from_millis(50));
    }
    must(cluster.start(0));
    await_serving(&mut cluster, 0);
    let mut client = cluster.client(0);
    assert_eq!(client.read(0, BLOCK as u64).unwrap(), block_of(9));
    cluster.await_in_sync(0, &[0, 1]);
}

/// `takeover = "manual"`: the operator's one command, which needs no force, since the voters agree.
#[test]
fn a_node_that_is_to_wait_for_its_operator_does() {
    let mut cluster = Cluster::serving(&plan().node("beta", "takeover = \"manual\""), &[0, 1]);
    let mut client = cluster.client(0);
    client.write(0, &block_of(9), true).unwrap();
    must(cluster.kill(0));
    cluster.await_peer_gone(1, 0);
    // That something does not come is seen by waiting only: twice the patience of one that would. On a slow machine this proves less, and
    // is not red.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(must(cluster.status(1))["role"], "passive");
    must(cluster.promote(1));
    let mut client = cluster.client(1);
    assert_eq!(client.read(0, BLOCK as u64).unwrap(), block_of(9));
    must(cluster.start(0));
    cluster.await_in_sync(1, &[0, 1]);
}

/// Nobody asks it anything meanwhile: a daemon that is left in peace watches its active all the same.
#[test]
fn an_idle_passive_takes_over_without_being_asked_for_its_status() {
    let mut cluster = serving();
    must(cluster.kill(0));
    let deadline = Instant::now() + PATIENCE;
    while !cluster.said(1).contains("took_over") {
        assert!(Instant::now() < deadline, "{}", cluster.said(1));
        std::thread::sleep(Duration::from_millis(20));
    }
    let page = must(cluster.tool("status", 1, &[]));
    for words in ["took over at ", "nothing was heard of alpha", "lease over", "charter", "log recovered"] {
        assert!(page.contains(words), "{words:?} is not in: {page}");
    }
    let history = must(cluster.tool("history", 1, &[]));
    assert!(history.contains("takeover in ") && history.contains("log recovered"), "{history}");
}

/// While an operator works, whatever is killed and started in any order: nobody takes over by itself.
#[test]
fn in_maintenance_nobody_takes_over() {
    let mut cluster = serving();
    let said = must(cluster.tool("maintenance", 0, &["on"]));
    println!("{said}");
    cluster.await_status(1, "it knows", |s| s["keeper"]["maintenance"] == true);
    let page = must(cluster.tool("status", 1, &[]));
    assert!(page.contains("maintenance: nobody takes over by itself"), "{page}");
    must(cluster.kill(0));
    cluster.await_peer_gone(1, 0);
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        let status = must(cluster.status(1));
        assert_eq!(status["role"], "passive", "in maintenance: {status}");
        std::thread::sleep(Duration::from_millis(50));
    }
    must(cluster.promote(1));
    must(cluster.start(0));
    cluster.await_in_sync(1, &[0, 1]);
    must(cluster.tool("maintenance", 1, &["off"]));
    cluster.await_status(0, "it knows", |s| s["keeper"]["maintenance"] == false);
    must(cluster.kill(1));
    await_serving(&mut cluster, 0);
}

/// A witness that lost its folder is another voter, which counts again once an operator has it listed.
#[test]
fn a_witness_that_lost_its_folder_is_replaced_by_itself() {
    let mut cluster = serving();
    must(cluster.kill(W1));
    std::fs::remove_dir_all(cluster.dir(W1)).unwrap();
    must(cluster.start_and_wait(W1));
    let mut command = std::process::Command::new(exe());
    command.args(["voters", "replace"]).arg(cluster.file()).args(["w1", "--node", "alpha"]);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    println!("{said}");
    let page = must(cluster.tool("status", W1, &[]));
    assert!(page.contains(" counts"), "{page}");
    // Its vote decides: without the passive the two are the majority, and then without the active.
    must(cluster.kill(1));
    cluster.await_in_sync(0, &[0]);
    must(cluster.start(1));
    cluster.await_in_sync(0, &[0, 1]);
    must(cluster.kill(0));
    await_serving(&mut cluster, 1);
}
