//! Two histories of one device: seen when the nodes meet, decided by an operator, and the loser's writes are kept.

use crate::common::*;
use understudy::core::Command;

const MIB: u64 = 1 << 20;

/// Both are promoted by force while the other is taken for dead, and each takes writes that the other lacks.
#[track_caller]
fn diverged() -> Cluster {
    let plan = pair("16MiB").resource("stall_ms = 300");
    let mut cluster = Cluster::serving(&plan, &[0, 1]);
    cluster.client(0).write(0, &[1; MIB as usize], true).unwrap();
    must(cluster.kill(0));
    cluster.take_over(1, 0);
    let mut client = cluster.client(1);
    client.write(2 * MIB, &[0xbb; MIB as usize], true).unwrap();
    client.write(8 * MIB, &block_of(0xbb), true).unwrap();
    client.trim(MIB / 2, 65536).unwrap();
    client.flush().unwrap();
    must(cluster.kill(1));
    must(cluster.start(0));
    cluster.await_answer(0);
    must(cluster.promote_without(0, &[1]));
    let mut client = cluster.client(0);
    client.write(2 * MIB + 4096, &block_of(0xaa), true).unwrap();
    client.write(12 * MIB, &block_of(0xaa), true).unwrap();
    cluster
}

/// What the device holds if alpha's writes stay.
fn alphas_image() -> Vec<u8> {
    let mut image = vec![0; 16 << 20];
    image[..MIB as usize].fill(1);
    for at in [2 * MIB + 4096, 12 * MIB] {
        image[at as usize..at as usize + 4096].fill(0xaa);
    }
    image
}

#[test]
fn the_losers_writes_are_set_aside_and_can_be_exported() {
    let mut cluster = diverged();
    must(cluster.start(1));
    cluster.await_answer(1);
    // Nobody wins by itself, and nothing changes until an operator has decided.
    let why = cluster.await_status(0, "it says that they part", |s| s["peers"][0]["why"].is_string());
    println!("alpha says: {}", why["peers"][0]["why"]);
    assert!(cluster.client(0).read(2 * MIB + 4096, 4096).unwrap() == block_of(0xaa));
    assert!(!cluster.dir(1).join("salvage.1").exists());
    if must(cluster.status(1))["role"] == "active" {
        must(cluster.command(1, &Command::Demote { force: true }));
    }
    must(cluster.command(0, &Command::Demote { force: true }));
    cluster.await_status(0, "it has met beta", |s| s["peers"][0]["state"] == "idle");
    let refused = cluster.promote(0).expect_err("a plain promotion over somebody else's history").to_string();
    assert!(refused.contains("--force"), "{refused}");
    must(cluster.command(0, &Command::Promote { force: true, off: Vec::new() }));
    cluster.await_in_sync(0, &[0, 1]);
    cluster.assert_stores_equal(0, &[1], VOLUME);
    assert!(cluster.client(0).read(0, 16 * MIB).unwrap() == alphas_image());
    assert!(cluster.said(1).contains("orphans_set_aside"), "{}", cluster.said(1));
    exported(&cluster);
}

/// The salvage holds just what beta alone had, where beta had it.
#[track_caller]
fn exported(cluster: &Cluster) {
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(exe()).arg("salvage").args(arguments).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {out}{err}");
        out.into_owned()
    };
    let file = cluster.file().display().to_string();
    let list: Value = serde_json::from_str(&run(&["list", &file, "--node", "beta", "--json"])).unwrap();
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list[0]["number"], 1, "{list}");
    let (to, base) = (cluster.folder().join("delta.raw"), cluster.store(0, VOLUME));
    let (to, base) = (to.display().to_string(), base.display().to_string());
    run(&["export", &file, "1", "--node", "beta", "--to", &to, "--base", &base]);
    let image = std::fs::read(&to).unwrap();
    let mut wanted = alphas_image();
    wanted[2 * MIB as usize..3 * MIB as usize].fill(0xbb);
    wanted[8 * MIB as usize..8 * MIB as usize + 4096].fill(0xbb);
    wanted[MIB as usize / 2..MIB as usize / 2 + 65536].fill(0);
    let first = image.iter().zip(&wanted).position(|(a, b)| a != b);
    assert_eq!((image.len(), first), (wanted.len(), None), "the export and what beta held");
}
