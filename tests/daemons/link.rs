//! Settings of the link: what is sent is packed and limited, and nobody is dropped for a limit.

use crate::common::*;
use understudy::demo::oracle::{BLOCK, Promise};

/// What the first node has sent to its peer since its start: payload, and bytes on the wire.
fn traffic(cluster: &Cluster, peer: usize) -> (u64, u64) {
    let (status, name) = (must(cluster.status(0)), cluster.name(peer));
    let peers = status["peers"].as_array().expect("peers").clone();
    let found = peers.iter().find(|p| p["name"] == name).expect("it is listed");
    (found["sent_bytes"].as_u64().expect("sent_bytes"), found["wire_bytes"].as_u64().expect("wire_bytes"))
}

fn write_blocks(cluster: &Cluster, bytes: &[u8], count: u64) {
    let mut client = cluster.client(0);
    for i in 0..count {
        client.write(i * bytes.len() as u64, bytes, i + 1 == count).unwrap();
    }
}

#[test]
fn text_is_packed_and_noise_is_left_alone() {
    let plan = pair("16MiB").node("beta", "compress = \"lz4\"");
    let mut cluster = Cluster::serving(&plan, &[0, 1]);
    let line = b"Nov 21 14:03:11 db1 postgres[812]: LOG: checkpoint complete: wrote 81 buffers\n";
    let text: Vec<u8> = line.iter().copied().cycle().take(64 * BLOCK).collect();
    write_blocks(&cluster, &text, 16);
    let (sent, wire) = traffic(&cluster, 1);
    println!("text: {sent} bytes sent, {wire} on the wire");
    assert!(sent >= 16 * text.len() as u64);
    assert!(wire < sent / 4);
    let mut noise = vec![0; 64 * BLOCK];
    getrandom::fill(&mut noise).unwrap();
    write_blocks(&cluster, &noise, 16);
    let (more_sent, more_wire) = traffic(&cluster, 1);
    println!("noise: {} bytes sent, {} on the wire", more_sent - sent, more_wire - wire);
    assert!(more_wire - wire >= more_sent - sent);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// What is written at once takes eight times `stall_ms` under the limit: that is no stall.
#[test]
fn a_limited_sync_peer_slows_writes_and_is_not_dropped() {
    let plan = pair("16MiB").resource("stall_ms = 250").node("beta", "bandwidth = \"2MiB/s\"");
    let mut cluster = Cluster::serving(&plan, &[0, 1]);
    write_blocks(&cluster, &vec![7; 4 << 20], 2);
    let status = must(cluster.status(0));
    assert_eq!(in_sync(&status).len(), 2, "{status}");
    assert!(!cluster.said(0).contains("dropped peer=beta"), "{}", cluster.said(0));
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// The load runs for a while at the disk's speed; the far node gets its second's worth, falls behind, and comes after.
#[test]
fn a_limited_far_node_is_not_felt_and_comes_after() {
    let plan =
        Plan::of(&["alpha", "far"], "16MiB").node("far", "mode = \"async\"").node("far", "bandwidth = \"4MiB/s\"");
    let plan = plan.node("far", "compress = \"lz4\"");
    let mut cluster = Cluster::serving(&plan, &[0]);
    let load = Load::start(&cluster, 0, writers(4096, seed("a_limited_far_node")));
    load.await_writes(4000);
    let mut done = load.stop();
    check(&cluster, 0, &mut done, Promise::Completed);
    let said = cluster.said(0);
    assert!(!said.contains("no word for ten heartbeats"), "heartbeats were held up: {said}");
    cluster.assert_stores_equal(0, &[1], VOLUME);
}
