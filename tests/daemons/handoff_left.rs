//! What daemons that end, and other people, leave behind: all of this node's own is undone, and nothing of anybody else's is touched.

use crate::hosts::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

fn up(name: &str, more: &str) -> Hosts {
    let mut hosts = Hosts::new(name, true);
    hosts.with_handoff(more);
    hosts.await_handoff(0, "up");
    hosts.await_in_sync(0);
    hosts
}

fn mounted(hosts: &Hosts, at: &str) -> bool {
    hosts.inside(0, &format!("grep -q ' {} ' /proc/self/mountinfo", hosts.path(at).display())).is_ok()
}

#[test]
fn it_is_undone_although_the_file_asks_for_nothing_any_more() {
    if !is_possible() {
        return;
    }
    let mut hosts = up("ln", "");
    assert_eq!(hosts.standing(0), [true; 3]);
    hosts.kill_daemon(0);
    hosts.write_file("");
    hosts.start(0);
    eventually("all is undone", || hosts.standing(0) == [false; 3]);
    eventually("there is no handoff", || hosts.handoff(0) == "-");
    // And it is as any other node without one.
    eventually("it serves", || hosts.status(0)["state"] == "serving");
    hosts.await_in_sync(0);
    hosts.tool("demote", 0, &[]).unwrap();
    assert_eq!(hosts.handoff(0), "-");
}

/// The mount would stand on a dead device for ever.
#[test]
fn a_device_whose_process_dies_is_followed_by_another_under_the_service() {
    if !is_possible() {
        return;
    }
    let hosts = up("dd", "");
    let client = Client::start(&hosts);
    client.await_commits(10);
    let pid = "sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/' /run/understudy/*-disk0.json";
    hosts.inside(0, &format!("kill -9 $({pid})")).unwrap();
    client.await_commits(20);
    hosts.await_handoff(0, "up");
    hosts.assert_only(0);
    assert_kept(&hosts, 0, &client.end());
}

/// Somebody has mounted something over the service's folder.
#[test]
fn a_mount_of_somebody_else_is_not_taken_off() {
    if !is_possible() {
        return;
    }
    let hosts = up("mo", "timeout_s = { service = 2 }");
    let at = hosts.path("mnt").display().to_string();
    hosts.inside(0, &format!("mount -t tmpfs somebodys {at} && echo precious >{at}/file")).unwrap();
    let refused = hosts.tool("demote", 0, &[]).unwrap_err();
    assert!(refused.contains(&format!("somebodys (tmpfs) is mounted over {at}")), "{refused}");
    hosts.await_handoff(0, "unable");
    assert_eq!(hosts.inside(0, &format!("cat {at}/file")).unwrap(), "precious\n");
    hosts.inside(0, &format!("umount {at}")).unwrap();
    // It is tried again, and the other node's turn then.
    hosts.await_handoff(1, "up");
    hosts.assert_only(1);
}

/// The path in the file is a link: what is undone is what was done.
#[test]
fn a_mount_behind_a_link_is_undone() {
    if !is_possible() {
        return;
    }
    let mut hosts = Hosts::new("ml", true);
    fs::create_dir(hosts.path("real")).unwrap();
    symlink(hosts.path("real"), hosts.path("mnt")).unwrap();
    hosts.with_handoff("");
    hosts.await_handoff(0, "up");
    hosts.await_in_sync(0);
    assert!(mounted(&hosts, "real"));
    hosts.tool("switchover", 0, &["--to", "beta"]).unwrap();
    hosts.await_handoff(1, "up");
    assert!(!mounted(&hosts, "real"));
}

/// The number that the device had is somebody else's by now.
#[test]
fn whoever_has_the_number_of_a_device_that_is_gone_is_left_alone() {
    if !is_possible() {
        return;
    }
    let mut hosts = up("nr", "");
    let link = hosts.inside(0, "readlink /dev/understudy/*-disk0").unwrap();
    let device = format!("/dev/{}", link.trim().trim_start_matches("../"));
    let helper = hosts.inside(0, "sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/' /run/understudy/*-disk0.json").unwrap();
    let (at, other) = (hosts.path("mnt").display().to_string(), hosts.path("other").display().to_string());
    hosts.kill_daemon(0);
    hosts.inside(0, &format!("kill -9 $(cat {}/pid-alpha) {}", hosts.path("").display(), helper.trim())).unwrap();
    eventually("its mount is taken off", || {
        hosts.inside(0, &format!("umount {at}")).is_ok() || !mounted(&hosts, "mnt")
    });
    let _ = hosts.inside(0, &format!("losetup --detach {device}"));
    let line = format!(
        "truncate -s 32M {other}.img && mkfs.ext4 -q {other}.img && mkdir {other} && losetup {device} {other}.img"
    );
    if let Err(why) = hosts.inside(0, &line) {
        return println!("SKIPPED: {device} is not to be had again: {why}");
    }
    let line = format!("mount {device} {other} && cd {other} && (sleep 1000 </dev/null >/dev/null 2>&1 & echo $!)");
    let innocent = hosts.inside(0, &line).unwrap();
    hosts.start(0);
    hosts.await_handoff(0, "up");
    let alive = hosts.inside(0, &format!("kill -0 {}", innocent.trim()));
    let _ = hosts.inside(0, &format!("kill -9 {}; umount -l {other}; losetup --detach {device}", innocent.trim()));
    assert!(alive.is_ok(), "somebody else's process was killed");
}

/// Its processes clear their environment and leave their session.
#[test]
fn a_service_is_found_whatever_its_processes_do() {
    if !is_possible() {
        return;
    }
    let mut hosts = Hosts::new("sv", true);
    if hosts.inside(0, "test -w /sys/fs/cgroup/cgroup.procs && command -v pgrep").is_err() {
        return println!("SKIPPED: control groups of version 2 are not to be had here, or pgrep is not installed");
    }
    let sleep = format!("sleep 7{}", std::process::id());
    let count = |hosts: &Hosts, node: usize| {
        hosts
            .inside(node, &format!("pgrep --ns {} --nslist mnt -fxc '{sleep}'; true", hosts.holder(node)))
            .unwrap()
            .trim()
            .to_string()
    };
    hosts.write_file(&format!(
        "[handoff]\nservice = {{ start = \"setsid env -i {sleep} </dev/null >/dev/null 2>&1 & true\", stop = \"true\" }}\n\
         timeout_s = {{ service = 1 }}\n"
    ));
    hosts.start(0);
    hosts.start(1);
    hosts.await_handoff(0, "up");
    assert_eq!(count(&hosts, 0), "1");
    hosts.kill_daemon(0);
    hosts.start(0);
    hosts.await_handoff(0, "up");
    assert_eq!(count(&hosts, 0), "1", "the one before was ended first");
    hosts.await_in_sync(0);
    hosts.tool("switchover", 0, &["--to", "beta"]).unwrap();
    hosts.await_handoff(1, "up");
    assert_eq!((count(&hosts, 0), count(&hosts, 1)), ("0".into(), "1".into()));
    let left = hosts.inside(0, "ls /sys/fs/cgroup").unwrap();
    let group = |node: &str| format!("understudy.{}.{node}.", hosts.name());
    assert!(left.contains(&group("beta")) && !left.contains(&group("alpha")), "its control group is gone: {left}");
}

/// A check that goes on until it is let: what it says is in `fsck.log`.
fn slow_check(hosts: &Hosts) {
    let folder = hosts.path("").display().to_string();
    let script = format!(
        "#!/bin/sh\necho begun >>{folder}/fsck.log\nwhile [ ! -e {folder}/go ]; do sleep 0.05; done\necho ended >>{folder}/fsck.log\n"
    );
    fs::create_dir(hosts.path("bin")).unwrap();
    fs::write(hosts.path("bin/fsck.ext4"), script).unwrap();
    fs::set_permissions(hosts.path("bin/fsck.ext4"), fs::Permissions::from_mode(0o755)).unwrap();
}

fn checks(hosts: &Hosts) -> String {
    fs::read_to_string(hosts.path("fsck.log")).unwrap_or_default().replace('\n', " ")
}

/// H5: the check lives on, and the next daemon mounts nothing and checks nothing beside it.
#[test]
fn a_check_outlives_its_daemon_and_the_next_one_waits_for_it() {
    if !is_possible() {
        return;
    }
    let mut hosts = Hosts::new("ck", true);
    slow_check(&hosts);
    hosts.with_handoff("");
    eventually("it is checked", || checks(&hosts) == "begun ");
    hosts.kill_daemon(0);
    hosts.start(0);
    eventually("the next one is as far", || hosts.status(0)["handoff"]["step"] == "check");
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(checks(&hosts), "begun ");
    let refused = hosts.tool("demote", 0, &[]).unwrap_err();
    assert!(refused.contains("a check of the file system is under way"), "{refused}");
    fs::write(hosts.path("go"), "").unwrap();
    hosts.await_handoff(0, "up");
    assert_eq!(checks(&hosts), "begun ended begun ended ");
    hosts.assert_only(0);
}

#[test]
fn a_daemon_that_is_told_to_stop_lets_a_check_end() {
    if !is_possible() {
        return;
    }
    let mut hosts = Hosts::new("cs", true);
    slow_check(&hosts);
    hosts.with_handoff("");
    eventually("it is checked", || checks(&hosts) == "begun ");
    hosts.tool("stop", 0, &[]).unwrap();
    eventually("it says why it does not end", || hosts.said(0).contains("stop_awaits_check"));
    assert!(hosts.is_running(0) && checks(&hosts) == "begun ");
    fs::write(hosts.path("go"), "").unwrap();
    eventually("it ends", || !hosts.is_running(0));
    assert_eq!(checks(&hosts), "begun ended ");
    assert_eq!(hosts.standing(0), [false; 3]);
    assert!(!hosts.said(0).contains("left_standing"), "{}", hosts.said(0));
}
