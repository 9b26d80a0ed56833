//! The handoff with real processes, as root: two machines in namespaces, ext4 on a device, an address that moves, a service that writes,
//! and a client that keeps its own list of what was committed.

use crate::hosts::*;
use std::time::Duration;

const CHECK: &str = "check = { command = \"kill -0 $(cat FOLDER/pid-$UNDERSTUDY_NODE)\", every_s = 1, fail = 2 }\n\
    timeout_s = { address = 2, service = 15 }";

fn up(name: &str) -> Hosts {
    let mut hosts = Hosts::new(name, true);
    let check = CHECK.replace("FOLDER", &hosts.path("").display().to_string());
    hosts.with_handoff(&check);
    hosts.await_handoff(0, "up");
    hosts.await_in_sync(0);
    hosts.assert_only(0);
    hosts
}

#[test]
fn the_service_moves_under_load_and_loses_nothing() {
    if !is_possible() {
        return;
    }
    let hosts = up("sw");
    let client = Client::start(&hosts);
    client.await_commits(20);
    for round in 0..4 {
        let (from, to) = (round % 2, 1 - round % 2);
        hosts.tool("switchover", from, &["--to", NAMES[to]]).unwrap();
        hosts.await_handoff(to, "up");
        hosts.assert_only(to);
        client.await_commits(20);
        hosts.await_in_sync(to);
    }
    let refused = hosts.tool("switchover", 0, &["--to", "gamma"]).unwrap_err();
    assert!(refused.contains("nothing was stopped"), "{refused}");
    client.await_commits(5);
    let committed = client.end();
    assert_kept(&hosts, 0, &committed);
    let history = hosts.tool("history", 0, &[]).unwrap();
    assert!(history.contains(" up in ") && history.contains(" down in ") && history.contains("mount"), "{history}");
    println!("{history}");
}

/// The machine is gone, and the operator says so; it comes back with what was left on it.
#[test]
fn a_dead_machine_is_relieved_and_comes_back_clean() {
    if !is_possible() {
        return;
    }
    let mut hosts = up("dm");
    let client = Client::start(&hosts);
    client.await_commits(20);
    hosts.kill_machine(0);
    eventually("beta hears nothing of alpha", || hosts.status(1)["peers"][0]["state"] == "down");
    hosts.tool("promote", 1, &["--force", "--off", "alpha"]).unwrap();
    hosts.await_handoff(1, "up");
    client.await_commits(20);
    assert!(hosts.standing(0)[0], "its address is still there, on a machine that is cut off");
    hosts.start(0);
    eventually("what was left is undone", || hosts.standing(0) == [false; 3]);
    hosts.link_up(0);
    hosts.await_in_sync(1);
    client.await_commits(20);
    hosts.assert_only(1);
    let committed = client.end();
    assert_kept(&hosts, 1, &committed);
    hosts.tool("switchover", 1, &["--to", "alpha"]).unwrap();
    hosts.await_handoff(0, "up");
    assert_kept(&hosts, 0, &committed);
}

/// What a killed daemon has left is undone by the next one, and put up again.
#[test]
fn a_killed_daemon_is_followed_by_one_that_begins_anew() {
    if !is_possible() {
        return;
    }
    let mut hosts = up("kd");
    let client = Client::start(&hosts);
    for _ in 0..2 {
        client.await_commits(20);
        hosts.kill_daemon(0);
        hosts.start(0);
        client.await_commits(20);
        hosts.await_handoff(0, "up");
        hosts.await_in_sync(0);
    }
    hosts.assert_only(0);
    let committed = client.end();
    assert_kept(&hosts, 0, &committed);
    // In order: nothing is left behind.
    hosts.stop(0);
    assert_eq!(hosts.standing(0), [false; 3]);
}

#[test]
fn a_service_that_fails_its_check_moves() {
    if !is_possible() {
        return;
    }
    let hosts = up("ck");
    let client = Client::start(&hosts);
    client.await_commits(20);
    let pidfile = hosts.path("pid-alpha");
    hosts.inside(0, &format!("kill -9 $(cat {})", pidfile.display())).unwrap();
    hosts.await_handoff(1, "up");
    client.await_commits(20);
    hosts.assert_only(1);
    let committed = client.end();
    assert_kept(&hosts, 1, &committed);
}

/// Both nodes try, and fail alike: one of them stays active, says why, and goes on when it is mended.
#[test]
fn a_mount_that_fails_everywhere_leaves_one_active_that_says_so() {
    if !is_possible() {
        return;
    }
    let mut hosts = Hosts::new("mf", false);
    hosts.with_handoff("timeout_s = { address = 2 }");
    let faulted = |hosts: &Hosts| (0..2).find(|n| hosts.handoff(*n) == "faulted");
    eventually("one gives up", || faulted(&hosts).is_some());
    let node = faulted(&hosts).unwrap();
    let status = hosts.status(node);
    assert_eq!((&status["role"], &status["state"]), (&"active".into(), &"serving".into()));
    let why = status["handoff"]["why"].as_str().unwrap_or_default();
    assert!(why.starts_with("check: fsck.ext4"), "{why}");
    assert_eq!((hosts.standing(0), hosts.standing(1)), ([false; 3], [false; 3]));
    let page = hosts.tool("status", node, &[]).unwrap();
    assert!(page.contains("handoff: faulted") && page.contains("understudy retry"), "{page}");
    hosts.inside(node, "mkfs.ext4 -q -F /dev/understudy/*-disk0").unwrap();
    hosts.tool("retry", node, &[]).unwrap();
    hosts.await_handoff(node, "up");
    hosts.assert_only(node);
}

#[test]
fn an_address_that_is_taken_is_not_taken_twice() {
    if !is_possible() {
        return;
    }
    let mut hosts = Hosts::new("at", true);
    hosts.on_the_link(&format!("addr add {ADDRESS}/24 dev br0"));
    hosts.with_handoff("timeout_s = { address = 1 }");
    let faulted = |hosts: &Hosts| (0..2).find(|n| hosts.handoff(*n) == "faulted");
    eventually("one gives up", || faulted(&hosts).is_some());
    let node = faulted(&hosts).unwrap();
    let why = hosts.status(node)["handoff"]["why"].to_string();
    assert!(why.contains("is taken: ") && why.contains("answers for it on eth0"), "{why}");
    assert_eq!((hosts.standing(0), hosts.standing(1)), ([false; 3], [false; 3]));
    hosts.on_the_link(&format!("addr del {ADDRESS}/24 dev br0"));
    hosts.tool("retry", node, &[]).unwrap();
    hosts.await_handoff(node, "up");
    hosts.assert_only(node);
}

/// Somebody sits in the mount, and does not go when he is asked.
#[test]
fn a_busy_mount_is_freed_in_stages() {
    if !is_possible() {
        return;
    }
    let hosts = up("bm");
    let line = format!(
        "cd {} && trap '' TERM && (while :; do sleep 1; done) </dev/null >/dev/null 2>&1 &",
        hosts.path("mnt").display()
    );
    hosts.inside(0, &line).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    hosts.tool("switchover", 0, &["--to", "beta"]).unwrap();
    hosts.await_handoff(1, "up");
    hosts.assert_only(1);
    let history = hosts.tool("history", 0, &["--json"]).unwrap();
    assert!(history.contains("is in use: process"), "{history}");
}
