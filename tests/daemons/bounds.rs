//! What a resync may need of the history is known before it begins (R1), and what happens without it (contract 3).

use crate::common::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use understudy::core::Command;

const MIB: u64 = 1 << 20;

fn plan() -> Plan {
    overflowing("128MiB").node("beta", "history_size = \"1MiB\"")
}

/// Both hold ones; then alpha alone wrote twos all over the volume, more than its log holds.
#[track_caller]
fn far_behind(plan: &Plan) -> Cluster {
    let mut cluster = Cluster::serving(plan, &[0, 1]);
    let mut client = cluster.client(0);
    for at in (0..128 * MIB).step_by(4 << 20) {
        client.write(at, &[1; 4 << 20], true).unwrap();
    }
    cluster.await_in_sync(0, &[0, 1]);
    must(cluster.kill(1));
    let mut client = cluster.client(0);
    for at in (0..128 * MIB).step_by(4 << 20) {
        client.write(at, &[2; 4 << 20], true).unwrap();
    }
    cluster
}

#[test]
fn a_resync_that_needs_more_history_than_it_may_take_is_refused() {
    let mut cluster = far_behind(&plan());
    must(cluster.start(1));
    let refused = |s: &Value| {
        let why = s["peers"][0]["why"].as_str().unwrap_or_default();
        why.contains("bytes of history here") && why.contains("room for 1048576") && why.contains("raise history_size")
    };
    let status = cluster.await_status(1, "it says what it needs", refused);
    println!("beta says: {}", status["peers"][0]["why"]);
    assert_eq!(status["image"]["valid"], true);
    // It is what it was, and can be promoted.
    must(cluster.kill(0));
    cluster.await_peer_gone(1, 0);
    // What was last heard of alpha, which had no session with beta, counts for three seconds (C8).
    let deadline = Instant::now() + PATIENCE;
    while let Err(refusal) = cluster.promote_without(1, &[0]) {
        assert!(refusal.to_string().contains("was heard within") && Instant::now() < deadline, "{refusal}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut client = cluster.client(1);
    for at in (0..128 * MIB).step_by(4 << 20) {
        assert!(client.read(at, 4 << 20).unwrap().iter().all(|b| *b == 1), "at {at}");
    }
}

/// Kills the active while beta is being overwritten; false if that was over before.
#[track_caller]
fn caught_in_place(cluster: &mut Cluster) -> bool {
    must(cluster.start(1));
    let deadline = Instant::now() + PATIENCE;
    while !cluster.said(1).contains("image_given_up") {
        assert!(Instant::now() < deadline, "beta never gave its image up");
    }
    must(cluster.kill(0));
    cluster.await_peer_gone(1, 0);
    must(cluster.status(1))["image"]["valid"] == false
}

#[test]
fn what_is_overwritten_in_place_cannot_be_promoted() {
    let plan = plan().resource("allow_invalid = true").resource("window = \"1MiB\"");
    let mut caught = None;
    for _ in 0..5 {
        let mut cluster = far_behind(&plan);
        if caught_in_place(&mut cluster) {
            caught = Some(cluster);
            break;
        }
    }
    let mut cluster = caught.expect("a resync of 128 MiB that is under way");
    for _ in 0..2 {
        let force = Command::Promote { force: true, off: vec!["alpha".into()] };
        let refused = cluster.command(1, &force).expect_err("a promotion of what is no image").to_string();
        assert!(refused.contains("overwritten in place") && refused.contains("allow_invalid"), "{refused}");
        // After a restart it knows it still.
        must(cluster.kill(1));
        must(cluster.start(1));
        cluster.await_status(1, "it holds no image", |s| s["image"]["valid"] == false && s["image"]["why"].is_string());
    }
    must(cluster.start(0));
    cluster.await_in_sync(0, &[0, 1]);
    cluster.assert_stores_equal(0, &[1], VOLUME);
    cluster.await_status(1, "it is whole", |s| s["image"]["valid"] == true);
}

/// An NBD connection in its transmission phase, as bytes.
#[track_caller]
fn raw_client(cluster: &Cluster) -> UnixStream {
    let mut stream = UnixStream::connect(cluster.dir(0).join("nbd.sock")).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&[&3u32.to_be_bytes()[..], b"IHAVEOPT\0\0\0\x01\0\0\0\x05disk0"].concat()).unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

/// The head of a write of 32 MiB.
fn head_of_a_long_write() -> Vec<u8> {
    [&0x2560_9513u32.to_be_bytes()[..], &[0, 0, 0, 1], &[0; 8], &[0; 8], &(32u32 << 20).to_be_bytes()].concat()
}

/// Resident memory of a node's daemon, in bytes.
#[track_caller]
fn resident(cluster: &Cluster, node: usize) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", must(cluster.pid(node)))).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a line VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Sends what the other side takes of `bytes`, up to `most`, until it takes nothing for a while. How much that was.
fn push(streams: &mut [UnixStream], most: usize) -> u64 {
    let (zeros, mut sent) = (vec![7; 256 << 10], vec![0; streams.len()]);
    let mut quiet = 0;
    while quiet < 30 {
        let before: usize = sent.iter().sum();
        for (stream, sent) in streams.iter_mut().zip(&mut sent) {
            let now = zeros.len().min(most - *sent);
            *sent += stream.write(&zeros[..now]).unwrap_or(0);
        }
        if sent.iter().sum::<usize>() == before {
            quiet += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    sent.iter().sum::<usize>() as u64
}

/// Memory is bounded by what is configured, whatever the size of the device and whatever clients begin: most of them never end the
/// write that they have begun.
#[test]
fn half_received_writes_and_a_large_device_take_no_more_than_is_configured() {
    let plan = pair("4TiB").log_size("64MiB").resource("memory = \"64MiB\"").resource("window = \"1MiB\"");
    let mut cluster = Cluster::serving(&plan, &[0, 1]);
    let mut half: Vec<UnixStream> = (0..60).map(|_| raw_client(&cluster)).collect();
    for stream in &mut half {
        stream.write_all(&head_of_a_long_write()).unwrap();
        stream.set_nonblocking(true).unwrap();
    }
    let mut honest = cluster.client(0);
    let mut fill = vec![0; 256 << 10];
    for round in 0..512u64 {
        fill.fill(round as u8);
        honest.write(round * (7 << 30), &fill, false).unwrap();
    }
    let taken = push(&mut half, 16 << 20);
    // Half of memory and an eighth for requests, and one of the longest writes; one window for the one peer.
    let (memory, window) = (64 * MIB, MIB);
    let bound = 64 * MIB + memory + memory / 2 + memory / 8 + 32 * MIB + window;
    for node in 0..2 {
        let resident = resident(&cluster, node);
        println!(
            "{}: {} MiB resident of {}, {} MiB taken",
            cluster.name(node),
            resident / MIB,
            bound / MIB,
            taken / MIB
        );
        assert!(resident <= bound, "{}: {resident} bytes resident, {bound} are allowed", cluster.name(node));
    }
    assert_eq!(honest.read(9 * (7 << 30), 4096).unwrap(), vec![9; 4096]);
    cluster.await_in_sync(0, &[0, 1]);
}
