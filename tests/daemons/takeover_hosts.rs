//! The whole takeover on three machines, as root: two nodes and a witness, links that are cut in each way, ext4 on a device, an address that
//! moves, a service that writes, and a client that keeps its own list of what was committed. After each: nothing is lost, and nobody but
//! one serves.

use crate::hosts::*;
use std::time::{Duration, Instant};

const WITNESS: u8 = 8;
const SECOND: Duration = Duration::from_secs(1);

/// alpha is active with everything up, beta in sync, and a client writes.
fn up(name: &str) -> Option<(Hosts, Client)> {
    if !is_possible() {
        return None;
    }
    let mut hosts = Hosts::watched(name);
    hosts.with_handoff("timeout_s = { address = 5, service = 15 }");
    eventually("one of them serves", || (0..2).any(|n| hosts.handoff(n) == "up"));
    if hosts.handoff(1) == "up" {
        hosts.await_in_sync(1);
        hosts.tool("switchover", 1, &["--to", "alpha"]).unwrap();
    }
    hosts.await_handoff(0, "up");
    hosts.await_in_sync(0);
    hosts.assert_only(0);
    let client = Client::start(&hosts);
    client.await_commits(20);
    Some((hosts, client))
}

fn role(hosts: &Hosts, node: usize) -> String {
    hosts.status(node)["role"].as_str().unwrap_or("-").to_string()
}

/// Everything stands on that node and only there, the pair is whole again, and nothing that was committed is gone.
#[track_caller]
fn settled(hosts: &Hosts, client: Client, node: usize) {
    hosts.await_handoff(node, "up");
    client.await_commits(20);
    hosts.await_in_sync(node);
    eventually("nothing stands on the other", || hosts.standing(1 - node) == [false; 3]);
    hosts.assert_only(node);
    assert_eq!(role(hosts, 1 - node), "passive");
    let committed = client.end();
    assert_kept(hosts, node, &committed);
}

#[test]
fn a_dead_machine_is_taken_over_from_with_address_and_service() {
    let Some((mut hosts, client)) = up("td") else { return };
    let killed = Instant::now();
    hosts.kill_machine(0);
    hosts.await_handoff(1, "up");
    println!("everything is up {} ms after the machine died", killed.elapsed().as_millis());
    client.await_commits(20);
    println!("{}", hosts.tool("status", 1, &[]).unwrap());
    println!("{}", hosts.tool("history", 1, &[]).unwrap());
    hosts.link_up(0);
    hosts.start(0);
    settled(&hosts, client, 1);
}

/// The witness sees both: nothing happens to the service, the passive is dropped, and catches up afterwards.
#[test]
fn a_cut_link_between_the_nodes_harms_nothing() {
    let Some((hosts, client)) = up("tl") else { return };
    hosts.part(true);
    eventually("beta is dropped", || hosts.status(0)["in_sync"].as_array().is_some_and(|l| l.len() == 1));
    client.await_commits(20);
    std::thread::sleep(4 * SECOND);
    assert_eq!((role(&hosts, 0).as_str(), role(&hosts, 1).as_str()), ("active", "passive"));
    hosts.assert_only(0);
    hosts.part(false);
    settled(&hosts, client, 0);
}

/// The active is cut off from all: the other takes over; healed, it steps down and rejoins.
#[test]
fn an_active_that_is_cut_off_is_taken_over_from_and_rejoins() {
    let Some((hosts, client)) = up("tc") else { return };
    hosts.cable(0, false);
    hosts.await_handoff(1, "up");
    client.await_commits(20);
    hosts.cable(0, true);
    settled(&hosts, client, 1);
}

#[test]
fn a_passive_that_is_cut_off_is_dropped_and_rejoins() {
    let Some((hosts, client)) = up("tp") else { return };
    hosts.cable(1, false);
    eventually("beta is dropped", || hosts.status(0)["in_sync"].as_array().is_some_and(|l| l.len() == 1));
    client.await_commits(20);
    std::thread::sleep(3 * SECOND);
    assert_eq!(role(&hosts, 1), "passive", "it has no majority");
    hosts.cable(1, true);
    settled(&hosts, client, 0);
}

/// What alpha sends to beta is lost, and then what beta sends to alpha; each sees the witness.
#[test]
fn one_way_cuts_never_make_two() {
    let Some((hosts, client)) = up("to") else { return };
    for (from, to) in [(0, 2), (1, 1)] {
        hosts.mute(from, to, true);
        std::thread::sleep(5 * SECOND);
        let roles = [role(&hosts, 0), role(&hosts, 1)];
        assert_eq!(roles.iter().filter(|r| *r == "active").count(), 1, "{roles:?}");
        client.await_commits(10);
        hosts.mute(from, to, false);
        let active = usize::from(role(&hosts, 1) == "active");
        hosts.await_in_sync(active);
    }
    let active = usize::from(role(&hosts, 1) == "active");
    settled(&hosts, client, active);
}

/// The active's words to the witness are lost: it serves on with the passive.
#[test]
fn the_witness_cut_off_is_not_felt() {
    let Some((mut hosts, client)) = up("tw") else { return };
    hosts.mute(0, WITNESS, true);
    hosts.mute(1, WITNESS, true);
    client.await_commits(50);
    hosts.kill_witness();
    client.await_commits(50);
    hosts.mute(0, WITNESS, false);
    hosts.mute(1, WITNESS, false);
    hosts.start_witness();
    settled(&hosts, client, 0);
}

/// Everything on the active stops for longer than the lease, and thaws after the takeover.
#[test]
fn a_frozen_machine_thaws_as_a_passive() {
    let Some((hosts, client)) = up("tf") else { return };
    hosts.freeze(0, true);
    eventually("beta is active", || role(&hosts, 1) == "active");
    hosts.freeze(0, false);
    settled(&hosts, client, 1);
}
