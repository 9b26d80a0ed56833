//! Log and stores on block devices: loop devices that the test makes and takes away. Where it may not, it says so.

use crate::common::*;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use understudy::core::Command;
use understudy::demo::oracle::Promise;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
const BLOCKS: u64 = SIZE / 4096;

/// A loop device over a file of its own.
struct Loop {
    device: PathBuf,
    file: PathBuf,
}

impl Loop {
    /// None where loop devices cannot be made here.
    fn make(folder: &Path, name: &str, size: u64, sector: u32) -> Option<Loop> {
        let file = folder.join(format!("{name}.img"));
        File::create(&file).unwrap().set_len(size).unwrap();
        let mut losetup = std::process::Command::new("losetup");
        losetup.args(["--find", "--show", "--sector-size", &sector.to_string()]).arg(&file);
        let made = losetup.output().ok().filter(|o| o.status.success());
        let device = made.map(|o| PathBuf::from(String::from_utf8_lossy(&o.stdout).trim()));
        // One that cannot be opened is of no use, whatever losetup says.
        let found = device.map(|device| Loop { device, file }).filter(|l| File::open(&l.device).is_ok());
        if found.is_none() {
            println!("SKIPPED: no loop devices can be made here");
        }
        found
    }

    fn show(&self) -> String {
        self.device.display().to_string()
    }

    /// Bytes that its file takes.
    fn taken(&self) -> u64 {
        let file = File::open(&self.file).unwrap();
        file.sync_all().unwrap();
        file.metadata().unwrap().blocks() * 512
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

/// The cluster goes first: a device that is still in use would be taken away later.
struct Stage {
    cluster: Cluster,
    logs: Vec<Loop>,
    stores: Vec<Loop>,
    _folder: tempfile::TempDir,
}

/// Two nodes whose logs and stores are loop devices.
fn stage(block: u32, sector: u32) -> Option<Stage> {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, size| Loop::make(folder.path(), name, size, sector);
    let names = ["alpha", "beta"];
    let logs = names.map(|n| make(&format!("log-{n}"), 24 * MIB)).into_iter().collect::<Option<Vec<Loop>>>()?;
    // Larger than the volume, as a logical volume is that was rounded up.
    let stores =
        names.map(|n| make(&format!("store-{n}"), SIZE + 4 * MIB)).into_iter().collect::<Option<Vec<Loop>>>()?;
    let mut plan = Plan::of(&names, "32MiB").log_size("24MiB").resource(format!("block_size = {block}"));
    for (i, name) in names.iter().enumerate() {
        plan = plan
            .node(name, format!("log = \"{}\"", logs[i].show()))
            .node(name, format!("store.disk0 = \"{}\"", stores[i].show()));
    }
    Some(Stage { cluster: Cluster::bare(&plan), logs, stores, _folder: folder })
}

#[track_caller]
fn verified(cluster: &Cluster, node: usize) {
    let report = must(cluster.ask(node, &Command::Verify { repair: false }));
    assert!(report["equal"] == true && report["peers"][0]["compared_bytes"] == SIZE, "{report}");
}

#[test]
fn a_pair_on_devices_outlives_the_active() {
    let seed = seed("a_pair_on_devices_outlives_the_active");
    let Some(mut stage) = stage(4096, 512) else { return };
    // What lay there before is no part of the image.
    let lay = OpenOptions::new().write(true).open(&stage.stores[1].device).unwrap();
    lay.write_all_at(&[0x55; 1 << 20], 8 * MIB).unwrap();
    lay.sync_all().unwrap();
    drop(lay);
    let cluster = &mut stage.cluster;
    for node in 0..2 {
        must(cluster.create(node));
        must(cluster.start(node));
    }
    (0..2).for_each(|node| cluster.await_answer(node));
    cluster.await_status(0, "it meets beta", |s| s["peers"][0]["state"] == "idle");
    must(cluster.promote(0));
    cluster.await_in_sync(0, &[0, 1]);
    let direct =
        |s: &Value| s["parts"].as_array().is_some_and(|p| p.iter().filter(|p| p["io"] == "direct").count() >= 2);
    cluster.await_status(0, "the devices are used directly", direct);
    let load = Load::start(cluster, 0, writers(BLOCKS, seed));
    load.await_writes(300);
    must(cluster.kill(0));
    let mut writers = load.broken();
    cluster.take_over(1, 0);
    check(cluster, 1, &mut writers, Promise::Completed);
    let load = Load::start(cluster, 1, writers);
    load.await_writes(100);
    must(cluster.start(0));
    cluster.await_in_sync(1, &[0, 1]);
    load.await_writes(100);
    let mut writers = load.stop();
    assert_eq!(check(cluster, 1, &mut writers, Promise::Completed), 0);
    verified(cluster, 1);
    gives_space_back(&mut stage);
}

/// A discard reaches the devices below both stores, and reads as zeros.
#[track_caller]
fn gives_space_back(stage: &mut Stage) {
    let cluster = &mut stage.cluster;
    let mut client = cluster.client(1);
    for at in (0..SIZE).step_by(4 << 20) {
        client.write(at, &[9; 4 << 20], true).unwrap();
    }
    must(cluster.wait_applied(1, &[0, 1], PATIENCE));
    let before = [stage.stores[0].taken(), stage.stores[1].taken()];
    assert!(before.iter().all(|taken| *taken >= SIZE), "{before:?}");
    client.trim(0, (16 * MIB) as u32).unwrap();
    client.flush().unwrap();
    must(cluster.wait_applied(1, &[0, 1], PATIENCE));
    for (store, before) in stage.stores.iter().zip(before) {
        assert!(store.taken() + 15 * MIB < before, "{} of {before} bytes are still taken", store.taken());
    }
    assert!(client.read(0, 16 * MIB).unwrap().iter().all(|b| *b == 0));
    verified(cluster, 1);
}

#[test]
fn blocks_of_512_bytes_where_the_device_has_them() {
    let Some(mut stage) = stage(512, 512) else { return };
    for node in 0..2 {
        must(stage.cluster.create(node));
    }
    let cluster = &mut stage.cluster;
    (0..2).for_each(|node| must(cluster.start(node)));
    (0..2).for_each(|node| cluster.await_answer(node));
    cluster.await_status(0, "it meets beta", |s| s["peers"][0]["state"] == "idle");
    must(cluster.promote(0));
    cluster.await_in_sync(0, &[0, 1]);
    let mut client = cluster.client(0);
    for sector in 0..64u64 {
        client.write(MIB + sector * 1536, &[sector as u8 + 1; 512], false).unwrap();
    }
    client.flush().unwrap();
    must(cluster.wait_applied(0, &[0, 1], PATIENCE));
    verified(cluster, 0);
    let store = File::open(&stage.stores[1].device).unwrap();
    let mut bytes = vec![0; 1536];
    for sector in 0..64u64 {
        store.read_exact_at(&mut bytes, MIB + sector * 1536).unwrap();
        assert!(
            bytes[..512].iter().all(|b| *b == sector as u8 + 1) && bytes[512..].iter().all(|b| *b == 0),
            "{sector}"
        );
    }
}

#[test]
fn devices_that_cannot_be_used_are_refused() {
    let Some(coarse) = stage(512, 4096) else { return };
    let refused = |cluster: &Cluster| cluster.create(0).expect_err("a device that cannot be used").to_string();
    let text = refused(&coarse.cluster);
    assert!(text.contains("4096") && text.contains("512"), "{text}");
    let Some(mut stage) = stage(4096, 512) else { return };
    // One that holds something, at either end.
    let device = OpenOptions::new().write(true).open(&stage.logs[0].device).unwrap();
    device.write_all_at(b"a file system", 24 * MIB - 4096).unwrap();
    device.sync_all().unwrap();
    drop(device);
    let text = refused(&stage.cluster);
    assert!(text.contains("its end is not blank") && text.contains("--force"), "{text}");
    // One that somebody has claimed, as a mount does.
    let claim = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&stage.stores[0].device).unwrap();
    let text = must_fail(stage.cluster.tool("create", 0, &["--force"]));
    assert!(text.contains(&stage.stores[0].show()) && text.contains("in use"), "{text}");
    drop(claim);
    must(stage.cluster.tool("create", 0, &["--force"]));
    // The daemon claims what it uses.
    must(stage.cluster.start(0));
    stage.cluster.await_answer(0);
    for part in [&stage.logs[0], &stage.stores[0]] {
        let open = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&part.device);
        assert_eq!(open.expect_err("it is claimed").raw_os_error(), Some(libc::EBUSY));
    }
    must(stage.cluster.kill(0));
    // One that has become too small.
    let file = OpenOptions::new().write(true).open(&stage.stores[0].file).unwrap();
    file.set_len(SIZE - 4096).unwrap();
    let resized = std::process::Command::new("losetup").arg("-c").arg(&stage.stores[0].device).status().unwrap();
    assert!(resized.success());
    let text = must_fail(stage.cluster.tool("run", 0, &[]));
    assert!(text.contains(&stage.stores[0].show()) && text.contains(&SIZE.to_string()), "{text}");
}

#[track_caller]
fn must_fail(result: Result<String, understudy::demo::cluster::ClusterError>) -> String {
    result.expect_err("it was to be refused").to_string()
}
