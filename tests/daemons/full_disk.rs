//! Disks that are full: on the passive, on the active, and of the room that a resync needs. Nothing that had completed is
//! lost, the daemons live on and say what is wrong, and once there is room the pair finds together again.
//!
//! A small tmpfs in a mount namespace of its own serves as the disk. Where neither root's rights nor user namespaces are to
//! be had, these tests say that they are skipped.

use crate::common::*;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::symlink;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use understudy::demo::oracle::Promise;

/// 40 MiB.
const BLOCKS: u64 = 10_240;

fn plan() -> Plan {
    pair("40MiB").log_size("16MiB").resource("stall_ms = 500")
}

/// A file system of a limited size, held by a process that waits for its next size.
struct SmallDisk {
    holder: Child,
    sizes: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl SmallDisk {
    /// Puts the folder of a node on a file system of `size`, before the node is created. None where that is not allowed.
    fn under(cluster: &Cluster, node: usize, size: &str) -> Option<SmallDisk> {
        let place = cluster.folder().join(format!("disk-of-{}", cluster.name(node)));
        fs::create_dir(&place).unwrap();
        let script = r#"mount -t tmpfs -o size="$1" none "$0" && echo ready
            while read size; do mount -o remount,size="$size" "$0" && echo ready; done"#;
        // As root, or as root of a user namespace.
        for rights in [&["--mount"][..], &["--mount", "--map-root-user"]] {
            let mut unshare = Command::new("unshare");
            unshare.args(rights).args(["sh", "-c", script]).arg(&place).arg(size);
            unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let Ok(mut holder) = unshare.spawn() else { break };
            let (sizes, output) = (holder.stdin.take().unwrap(), holder.stdout.take().unwrap());
            let mut disk = SmallDisk { holder, sizes, answers: BufReader::new(output).lines() };
            if disk.is_ready() {
                let inside = format!("/proc/{}/root{}", disk.holder.id(), place.display());
                symlink(inside, cluster.dir(node)).unwrap();
                return Some(disk);
            }
        }
        println!("SKIPPED: no tmpfs can be mounted here");
        None
    }

    fn is_ready(&mut self) -> bool {
        // The process may have ended instead.
        self.answers.next().is_some_and(|line| line.is_ok_and(|l| l == "ready"))
    }

    fn resize(&mut self, size: &str) {
        writeln!(self.sizes, "{size}").unwrap();
        assert!(self.is_ready(), "a remount to {size} has failed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Waits until a node has said that its store cannot be written.
#[track_caller]
fn await_full_store(cluster: &mut Cluster, node: usize) {
    let deadline = Instant::now() + PATIENCE;
    while !cluster.said(node).lines().any(|l| l.contains("storage_failed errno=28 part=store")) {
        assert!(Instant::now() < deadline, "its disk never filled up");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// It keeps what it cannot apply yet; when it can take no more, the others go on without it.
#[test]
fn a_passive_whose_disk_is_full_is_dropped_and_comes_back_when_there_is_room() {
    let seed = seed("a_passive_whose_disk_is_full_is_dropped_and_comes_back_when_there_is_room");
    let cluster = Cluster::bare(&plan());
    let Some(mut disk) = SmallDisk::under(&cluster, 1, "28m") else { return };
    let mut cluster = cluster.serve(&[0, 1]);
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    await_full_store(&mut cluster, 1);
    cluster.await_in_sync(0, &[0]);
    load.await_writes(500);
    disk.resize("256m");
    cluster.await_in_sync(0, &[0, 1]);
    load.await_writes(50);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

#[test]
fn an_active_whose_disk_is_full_goes_on_when_there_is_room() {
    let seed = seed("an_active_whose_disk_is_full_goes_on_when_there_is_room");
    let cluster = Cluster::bare(&plan());
    let Some(mut disk) = SmallDisk::under(&cluster, 0, "28m") else { return };
    let mut cluster = cluster.serve(&[0, 1]);
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    await_full_store(&mut cluster, 0);
    disk.resize("256m");
    load.await_writes(500);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.await_in_sync(0, &[0, 1]);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

#[test]
fn an_active_whose_disk_is_full_has_lost_nothing() {
    let seed = seed("an_active_whose_disk_is_full_has_lost_nothing");
    let cluster = Cluster::bare(&plan());
    let Some(mut disk) = SmallDisk::under(&cluster, 0, "28m") else { return };
    let mut cluster = cluster.serve(&[0, 1]);
    let load = Load::start(&cluster, 0, writers(BLOCKS, seed));
    await_full_store(&mut cluster, 0);
    must(cluster.kill(0));
    let mut writers = load.broken();
    cluster.take_over(1, 0);
    check(&cluster, 1, &mut writers, Promise::Completed);
    let load = Load::start(&cluster, 1, writers);
    load.await_writes(50);
    disk.resize("256m");
    must(cluster.start(0));
    cluster.await_in_sync(1, &[0, 1]);
    load.await_writes(50);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 1, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(1, &[0], VOLUME);
}

/// A resync saves what it overwrites, and has no room for it: it waits, the passive stays what it was, and it goes on by
/// itself when there is room (R1).
#[test]
fn a_resync_without_room_for_its_history_waits_for_it() {
    let seed = seed("a_resync_without_room_for_its_history_waits_for_it");
    let cluster = Cluster::bare(&plan());
    let Some(mut disk) = SmallDisk::under(&cluster, 1, "62m") else { return };
    let mut cluster = cluster.serve(&[0, 1]);
    let mut writers = writers(BLOCKS, seed);
    writers = {
        let load = Load::start(&cluster, 0, writers);
        load.await_writes(8000);
        load.stop()
    };
    check(&cluster, 0, &mut writers, Promise::Completed);
    cluster.await_in_sync(0, &[0, 1]);
    must(cluster.kill(1));
    let load = Load::start(&cluster, 0, writers);
    load.await_writes(8000);
    must(cluster.start(1));
    let full = |s: &Value| {
        s["peers"][0]["why"].as_str().is_some_and(|w| w.contains("of history here") && w.contains("make room"))
    };
    cluster.await_status(1, "it says that there is no room", full);
    load.await_writes(50);
    disk.resize("256m");
    cluster.await_in_sync(0, &[0, 1]);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// Orphans are never thrown away: without room to set them aside the node stays out, says so, and comes back when there is room (R4).
#[test]
fn a_rejoin_without_room_for_the_salvage_is_refused_in_words() {
    let cluster = Cluster::bare(&pair("16MiB").log_size("16MiB").resource("stall_ms = 300"));
    // Log and a store that is not written yet; then nothing is left for a copy of what it wrote.
    let Some(mut disk) = SmallDisk::under(&cluster, 1, "28m") else { return };
    let mut cluster = cluster.serve(&[0, 1]);
    must(cluster.kill(0));
    cluster.take_over(1, 0);
    let mut client = cluster.client(1);
    client.write(0, &[0xbb; 8 << 20], true).unwrap();
    cluster
        .await_status(1, "it has applied what it wrote", |s| s["watermarks"]["applied"] == s["watermarks"]["accepted"]);
    must(cluster.kill(1));
    must(cluster.start(0));
    cluster.await_answer(0);
    must(cluster.promote_without(0, &[1]));
    cluster.client(0).write(0, &block_of(0xaa), true).unwrap();
    must(cluster.command(0, &understudy::core::Command::Demote { force: true }));
    must(cluster.promote_without(0, &[1]));
    must(cluster.start(1));
    cluster.await_answer(1);
    let refused = |s: &Value| {
        let why = s["peers"][0]["why"].as_str().unwrap_or_default();
        why.contains("orphaned writes could not be set aside") && why.contains("Make room")
    };
    cluster.await_status(1, "it says that there is no room", refused);
    disk.resize("256m");
    cluster.await_in_sync(0, &[0, 1]);
    cluster.assert_stores_equal(0, &[1], VOLUME);
    assert!(cluster.dir(1).join("salvage.1").exists());
}

/// What a dead peer lacks is listed before the log drops it, and there is no room for the list (B1): writes wait, the daemon lives on and
/// says why, and goes on when there is room.
#[test]
fn an_active_without_room_for_its_lists_goes_on_when_there_is_room() {
    let cluster = Cluster::bare(&pair("16MiB").log_size("16MiB").resource("stall_ms = 300"));
    let Some(mut disk) = SmallDisk::under(&cluster, 0, "64m") else { return };
    let mut cluster = cluster.serve(&[0, 1]);
    let mut client = cluster.client(0);
    let round = move |client: &mut understudy::nbd_client::Client, byte: u8| {
        (0..16).for_each(|n| client.write(n << 20, &[byte; 1 << 20], true).expect("a write that waits for room"));
    };
    round(&mut client, 1);
    cluster.await_status(0, "its store is allocated", |s| s["watermarks"]["applied"] == s["watermarks"]["accepted"]);
    must(cluster.kill(1));
    cluster.await_in_sync(0, &[0]);
    // Everything that is left of the disk.
    let mut filler = fs::File::create(cluster.dir(0).join("filler")).unwrap();
    while filler.write_all(&[7; 4096]).is_ok() {}
    let writer = std::thread::spawn(move || (2..6).for_each(|byte| round(&mut client, byte)));
    let full = |s: &Value| {
        let problems = s["problems"].as_array().cloned().unwrap_or_default();
        problems.iter().any(|p| p["part"] == "bitmap" && p["remedy"].as_str().is_some_and(|r| r.contains("make room")))
    };
    cluster.await_status(0, "it says that there is no room for its lists", full);
    assert!(!writer.is_finished(), "the log has dropped what no list has");
    disk.resize("256m");
    writer.join().expect("all was written");
    must(cluster.start(1));
    cluster.await_in_sync(0, &[0, 1]);
    cluster.assert_stores_equal(0, &[1], VOLUME);
    assert!(cluster.said(0).contains("storage_works part=bitmap"), "that it is over is not said");
}
