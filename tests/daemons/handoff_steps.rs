//! Steps of the handoff that other tests leave out: hooks, a unit of systemd (a stand-in for `systemctl`), a watchdog (a file in its
//! place), addresses of IPv6, and addresses beside others.

use crate::hosts::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Keeps one unit, as far as the handoff asks for it, and notes what it was asked.
const SYSTEMCTL: &str = r#"#!/bin/sh
[ "$1" = --no-ask-password ] && shift
echo "$UNDERSTUDY_NODE $*" >>FOLDER/systemctl.log
pid=FOLDER/unit-$UNDERSTUDY_NODE
case $1 in
    start) setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >$pid ;;
    stop) [ ! -e $pid ] || kill $(cat $pid); rm -f $pid ;;
    kill) [ ! -e $pid ] || kill -9 $(cat $pid) ;;
    is-active) [ -e $pid ] && kill -0 $(cat $pid) ;;
esac
"#;

#[test]
fn hooks_a_unit_and_a_watchdog_follow_the_role() {
    if !is_possible() {
        return;
    }
    let mut hosts = Hosts::new("hk", true);
    let folder = hosts.path("").display().to_string();
    let folder = folder.trim_end_matches('/');
    fs::create_dir(hosts.path("bin")).unwrap();
    fs::write(hosts.path("bin/systemctl"), SYSTEMCTL.replace("FOLDER", folder)).unwrap();
    fs::set_permissions(hosts.path("bin/systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    for name in NAMES {
        fs::write(hosts.path(&format!("watchdog-{name}")), "").unwrap();
    }
    // One path in the file, and each machine has its own.
    let bind =
        |name: &str| format!("touch {folder}/watchdog && mount --bind {folder}/watchdog-{name} {folder}/watchdog");
    for (node, name) in NAMES.iter().enumerate() {
        hosts.inside(node, &bind(name)).unwrap();
    }
    let hook =
        |when: &str| format!("[\"echo $UNDERSTUDY_NODE {when} $UNDERSTUDY_EVENT $UNDERSTUDY_MOUNT >>{folder}/hooks\"]");
    hosts.write_file(&format!(
        "[handoff]\nmount = {{ volume = \"disk0\", at = \"{folder}/mnt\", type = \"ext4\" }}\nservice = {{ unit = \"some@1.service\" }}\n\
         check = {{ every_s = 1 }}\nbefore = {}\nafter = {}\nwatchdog = \"{folder}/watchdog\"\n",
        hook("before"),
        hook("after")
    ));
    hosts.start(0);
    hosts.start(1);
    hosts.await_handoff(0, "up");
    hosts.await_in_sync(0);
    let root = hosts.path("");
    let fed = |name: &str| fs::read(root.join(format!("watchdog-{name}"))).unwrap();
    let first = fed("alpha").len();
    eventually("the watchdog is fed", || fed("alpha").len() > first);
    assert!(hosts.path("alpha/handoff.watchdog").exists() && fed("beta").is_empty());
    hosts.tool("switchover", 0, &["--to", "beta"]).unwrap();
    hosts.await_handoff(1, "up");
    assert!(fed("alpha").ends_with(b"V") && !fed("beta").is_empty());
    assert!(!hosts.path("alpha/handoff.watchdog").exists());
    let asked = fs::read_to_string(hosts.path("systemctl.log")).unwrap();
    let of = |name: &str| {
        let lines = asked.lines().filter_map(|l| l.strip_prefix(name)).filter(|l| !l.contains("is-active"));
        lines.map(|l| l.trim().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        (of("alpha"), of("beta")),
        (vec!["start some@1.service".into(), "stop some@1.service".into()], vec!["start some@1.service".into()])
    );
    assert!(asked.contains("alpha is-active some@1.service"), "{asked}");
    let at = format!("{folder}/mnt");
    let line = |name: &str, when: &str, event: &str| format!("{name} {when} {event} {at}\n");
    let expected: String = [
        line("alpha", "before", "up"),
        line("alpha", "after", "up"),
        line("alpha", "before", "down"),
        line("alpha", "after", "down"),
        line("beta", "before", "up"),
        line("beta", "after", "up"),
    ]
    .concat();
    assert_eq!(fs::read_to_string(hosts.path("hooks")).unwrap(), expected);
    // The next daemon of a node that no longer serves goes on feeding what the one before has armed, until all is undone.
    hosts.kill_daemon(1);
    assert!(hosts.path("beta/handoff.watchdog").exists() && !fed("beta").contains(&b'V'));
    eventually("alpha hears nothing of beta", || hosts.status(0)["peers"][0]["state"] == "down");
    hosts.tool("promote", 0, &["--force", "--off", "beta"]).unwrap();
    hosts.start(1);
    // A file is written from its beginning by each who opens it.
    eventually("it is undone, and disarmed", || fed("beta").contains(&b'V'));
    assert!(!hosts.path("beta/handoff.watchdog").exists());
}

/// The link hears of the move by an unsolicited neighbour advertisement.
#[test]
fn an_address_of_ipv6_moves_and_its_neighbours_know() {
    if !is_possible() {
        return;
    }
    let mut hosts = Hosts::new("v6", true);
    hosts.on_the_link("addr add fd00:77::9/64 dev br0 nodad");
    hosts.write_file("[handoff]\naddress = { ip = \"fd00:77::10/64\", interface = \"eth0\" }\n");
    hosts.start(0);
    hosts.start(1);
    hosts.await_handoff(0, "up");
    hosts.await_in_sync(0);
    let mac = |node: usize| hosts.inside(node, "cat /sys/class/net/eth0/address").unwrap().trim().to_string();
    let neighbour = || hosts.ask_the_link("-6 neigh show fd00:77::10");
    // A neighbour that has asked once has an entry, and only that is renewed by what nobody asked for.
    hosts.on_the_link(&format!("-6 neigh replace fd00:77::10 lladdr {} dev br0 nud stale", mac(0)));
    assert!(neighbour().contains(&mac(0)), "{}", neighbour());
    hosts.tool("switchover", 0, &["--to", "beta"]).unwrap();
    hosts.await_handoff(1, "up");
    eventually("the neighbour knows", || neighbour().contains(&mac(1)));
    assert!(hosts.inside(0, "ip addr show dev eth0").is_ok_and(|t| !t.contains("fd00:77::10/")));
    assert!(hosts.inside(1, "ip addr show dev eth0").is_ok_and(|t| t.contains("fd00:77::10/64")));
}

/// Of addresses of one network in an interface the first is the kernel's primary, with which the others go.
#[test]
fn an_address_that_goes_takes_nobody_elses_with_it() {
    if !is_possible() {
        return;
    }
    let mut hosts = Hosts::new("ps", true);
    hosts.inside(0, "for f in all eth0; do echo 0 >/proc/sys/net/ipv4/conf/$f/promote_secondaries; done").unwrap();
    hosts.write_file("[handoff]\naddress = { ip = \"10.78.0.10/24\", interface = \"eth0\" }\n");
    hosts.start(0);
    hosts.start(1);
    hosts.await_handoff(0, "up");
    hosts.inside(0, "ip addr add 10.78.0.20/24 dev eth0 && ip addr add 10.78.0.21/24 dev eth0").unwrap();
    hosts.tool("demote", 0, &[]).unwrap();
    let left = hosts.inside(0, "ip -4 addr show dev eth0").unwrap();
    assert!(!left.contains("10.78.0.10/"), "{left}");
    assert!(
        left.contains("10.78.0.20/24") && left.contains("10.78.0.21/24") && left.contains("10.77.0.1/24"),
        "{left}"
    );
}
