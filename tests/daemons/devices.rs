//! Block devices, as root on this machine's own kernel: FUSE and a loop device. What is needed and not there is said, and skipped.
//!
//! Names of devices are the machine's, so each test has a resource of its own name.

use crate::common::*;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output, Stdio};
use std::time::{Duration, Instant};
use understudy::core::Command;
use understudy::device::{device_name, link, record};

/// A cluster with devices, and mounts; both are gone when it is dropped, whatever happened.
struct Stage {
    cluster: Cluster,
    name: String,
    mounts: Vec<PathBuf>,
}

fn is_possible() -> bool {
    let there = |path: &str| Path::new(path).exists();
    let possible = nix::unistd::geteuid().is_root() && there("/dev/fuse") && there("/dev/loop-control");
    if !possible {
        println!("SKIPPED: it takes root, FUSE and loop devices");
    }
    possible
}

/// The program is there; or it is said that it is not.
fn is_installed(program: &str) -> bool {
    let there = Process::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    let there = there.is_ok_and(|s| s.success());
    if !there {
        println!("SKIPPED: {program} is not installed");
    }
    there
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Process::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

#[track_caller]
fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out.into_owned()
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Stage {
    /// The first node is active, all are in sync.
    fn new(name: &str, nodes: &[&str], size: &str, kind: &str) -> Stage {
        let name = format!("{name}-{}", std::process::id());
        let mut plan = Plan::of(nodes, size).named(&name).resource("stall_ms = 300");
        for node in nodes {
            plan = plan.node(node, format!("device = \"{kind}\""));
        }
        let members: Vec<usize> = (0..nodes.len()).collect();
        let stage = Stage { cluster: Cluster::serving(&plan, &members), name, mounts: Vec::new() };
        if kind != "none" {
            stage.await_device();
        }
        stage
    }

    fn device(&self) -> PathBuf {
        link(&self.name, VOLUME)
    }

    fn path(&self) -> String {
        self.device().display().to_string()
    }

    fn await_device(&self) {
        eventually("the device is there", || self.device().exists());
    }

    /// The name in `/run/understudy`.
    fn record(&self) -> Option<record::Found> {
        record::look(&self.device_name())
    }

    fn device_name(&self) -> String {
        device_name(&self.name, VOLUME)
    }

    /// Where its process says what it has to say.
    fn log(&self) -> PathBuf {
        Path::new("/run/understudy").join(format!("{}.log", self.device_name()))
    }

    /// The process of a device that has failed has ended.
    #[track_caller]
    fn await_failed_gone(&self) {
        eventually("its process has ended", || record::failed(&self.device_name()).is_empty());
    }

    fn kernel_name(&self) -> String {
        self.record().and_then(|f| f.record.device).expect("a device")
    }

    fn helper(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.record().expect("a record").record.pid as i32)
    }

    fn mount(&mut self, options: &str) -> PathBuf {
        let at = self.cluster.folder().join("mnt");
        fs::create_dir_all(&at).unwrap();
        succeed("mount", &["-o", options, &self.path(), &at.display().to_string()]);
        self.mounts.push(at.clone());
        at
    }

    fn unmount(&mut self) {
        let at = self.mounts.pop().expect("a mount");
        succeed("umount", &[&at.display().to_string()]);
    }

    /// Nothing of the device is left in the system.
    #[track_caller]
    fn assert_nothing_left(&self, kernel_name: &str) {
        assert!(!self.device().exists() && fs::symlink_metadata(self.device()).is_err(), "the link");
        assert!(self.record().is_none(), "the record");
        let run = fs::read_dir("/run/understudy").unwrap().flatten().map(|e| e.file_name());
        let left: Vec<_> = run.filter(|n| n.to_string_lossy().starts_with(&self.name)).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!Path::new("/run/understudy/udev").join(kernel_name).exists() || self.is_anothers(kernel_name));
        let loops = succeed("losetup", &["--list", "--output", "NAME,BACK-FILE", "--noheadings"]);
        assert!(self.is_anothers(kernel_name) || !loops.contains(&format!("/dev/{kernel_name} ")), "{loops}");
    }

    /// A test beside this one may have got the number by now.
    fn is_anothers(&self, kernel_name: &str) -> bool {
        let records = fs::read_dir("/run/understudy").unwrap().flatten().map(|e| e.path());
        let texts =
            records.filter(|p| p.extension().is_some_and(|e| e == "json")).filter_map(|p| fs::read_to_string(p).ok());
        let quoted = format!("\"device\":\"{kernel_name}\"");
        texts.into_iter().any(|t| t.contains(&quoted))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for at in self.mounts.drain(..).rev() {
            let _ = Process::new("umount").arg("--lazy").arg(at).status();
        }
        for node in 0..self.cluster.len() {
            let _ = self.cluster.tool("detach", node, &["--force"]);
        }
        if std::thread::panicking() {
            println!("--- the device's process: {}", fs::read_to_string(self.log()).unwrap_or_default());
            let _ = fs::remove_file(self.log());
        }
    }
}

/// Random writes whose contents are checked, in files of `at`.
fn fio(at: &Path, name: &str, loops: u32) -> Process {
    let mut fio = Process::new("fio");
    fio.arg(format!("--name={name}")).arg(format!("--directory={}", at.display()));
    fio.args(["--rw=randwrite", "--bs=4k", "--size=24m", "--iodepth=16", "--ioengine=libaio", "--direct=1"]);
    fio.args(["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--fsync=64", "--minimal"]);
    fio.arg(format!("--loops={loops}")).stdout(Stdio::null()).stderr(Stdio::piped());
    fio
}

fn file_system(make: &[&str], options: &str) {
    if !is_possible() || !is_installed(make[0]) || !is_installed("fio") {
        return;
    }
    let mut stage = Stage::new(&make[0].replace('.', "-"), &["alpha", "beta"], "400MiB", "auto");
    succeed(make[0], &[&make[1..], &[&stage.path()]].concat());
    let at = stage.mount(options);
    let output = fio(&at, "verified", 1).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mark: Vec<u8> = (0..3_000_000u32).map(|i| ((i * 7) >> 5) as u8).collect();
    fs::write(at.join("mark"), &mark).unwrap();
    fs::remove_file(at.join("verified.0.0")).unwrap();
    succeed("sync", &["-f", &at.display().to_string()]);
    let trimmed = succeed("fstrim", &["-v", &at.display().to_string()]);
    assert!(!trimmed.contains(" 0 B"), "{trimmed}");
    stage.unmount();
    stage.mount(options);
    assert!(fs::read(at.join("mark")).unwrap() == mark);
    stage.unmount();
    // The other node takes over, and its device holds the same.
    must(stage.cluster.command(0, &Command::Switchover { to: "beta".into() }));
    stage.await_device();
    stage.mount(options);
    assert!(fs::read(at.join("mark")).unwrap() == mark);
    stage.unmount();
    stage.cluster.await_in_sync(1, &[0, 1]);
    let kernel_name = stage.kernel_name();
    must(stage.cluster.tool("detach", 1, &[]));
    stage.assert_nothing_left(&kernel_name);
    stage.cluster.assert_stores_equal(1, &[0], VOLUME);
}

#[test]
fn ext4_lives_on_a_device_and_moves_with_it() {
    file_system(&["mkfs.ext4", "-q", "-F"], "defaults");
}

#[test]
fn xfs_lives_on_a_device_and_moves_with_it() {
    file_system(&["mkfs.xfs", "-q", "-f"], "defaults");
}

#[test]
fn btrfs_lives_on_a_device_and_moves_with_it() {
    file_system(&["mkfs.btrfs", "-q", "-f"], "defaults");
}

/// The heart of it: the daemon dies again and again under I/O, and the application sees pauses.
#[test]
fn a_killed_daemon_is_a_pause_for_the_file_system() {
    if !is_possible() || !is_installed("mkfs.ext4") || !is_installed("fio") {
        return;
    }
    let seed = seed("a_killed_daemon_is_a_pause_for_the_file_system");
    let mut rng = understudy::demo::rng::Rng::new(seed);
    let mut stage = Stage::new("kills", &["alpha", "beta"], "200MiB", "fuse");
    succeed("mkfs.ext4", &["-q", "-F", &stage.path()]);
    let at = stage.mount("defaults");
    let (helper, kernel_name) = (stage.helper(), stage.kernel_name());
    let mut load = fio(&at, "load", 3).spawn().unwrap();
    for _ in 0..4 {
        pause(&mut rng, 100..500);
        must(stage.cluster.kill(0));
        pause(&mut rng, 0..300);
        must(stage.cluster.start(0));
        stage.cluster.await_status(0, "it serves", |s| s["state"] == "serving");
    }
    let status = load.wait().unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut load.stderr.take().unwrap(), &mut said).unwrap();
    assert!(status.success(), "{said}");
    assert_eq!((stage.helper(), stage.kernel_name()), (helper, kernel_name), "the device is the same one");
    stage.unmount();
    let checked = succeed("e2fsck", &["-f", "-n", &stage.path()]);
    assert!(!checked.contains("WARNING"), "{checked}");
    stage.cluster.await_in_sync(0, &[0, 1]);
    must(stage.cluster.tool("detach", 0, &[]));
    stage.cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// C6: while this node's daemon was dead, another node served. What is asked of the old device fails for ever.
#[test]
fn a_device_fails_for_ever_once_another_node_has_served() {
    if !is_possible() {
        return;
    }
    let mut stage = Stage::new("fails", &["alpha", "beta"], "32MiB", "none");
    must(stage.cluster.tool("attach", 0, &[]));
    let kernel_name = stage.kernel_name();
    let user = OpenOptions::new().read(true).write(true).open(stage.device()).unwrap();
    user.write_all_at(&block_of(1), 0).unwrap();
    user.sync_all().unwrap();
    must(stage.cluster.kill(0));
    stage.cluster.await_peer_gone(1, 0);
    must(stage.cluster.promote_without(1, &[0]));
    stage.cluster.client(1).write(4096, &block_of(2), true).unwrap();
    // It waits as long as nobody tells it that it is over.
    assert!(stage.record().is_some_and(|f| f.alive));
    must(stage.cluster.start(0));
    eventually("its name is free", || !stage.device().exists());
    user.write_all_at(&block_of(3), 8192).unwrap();
    assert!(user.sync_all().is_err(), "what is written can go nowhere");
    let fresh = File::open(format!("/dev/{kernel_name}")).unwrap();
    assert!(fresh.read_exact_at(&mut [0; 4096], 1 << 20).is_err());
    drop((user, fresh));
    stage.await_failed_gone();
    let said = fs::read_to_string(stage.log()).unwrap();
    assert!(said.contains("it fails from now on"), "{said}");
    fs::remove_file(stage.log()).unwrap();
    stage.assert_nothing_left(&kernel_name);
    assert!(stage.cluster.client(1).read(0, 4096).unwrap() == block_of(1));
}

#[test]
fn a_device_in_use_is_not_taken_down_but_by_force() {
    if !is_possible() {
        return;
    }
    let stage = Stage::new("in-use", &["alpha", "beta"], "32MiB", "fuse");
    let kernel_name = stage.kernel_name();
    let mut user = Process::new("sleep").arg("1000").stdin(File::open(stage.device()).unwrap()).spawn().unwrap();
    let pid = user.id();
    for refused in [
        stage.cluster.tool("detach", 0, &[]).unwrap_err().to_string(),
        stage.cluster.command(0, &Command::Demote { force: false }).unwrap_err().to_string(),
        stage.cluster.command(0, &Command::Switchover { to: "beta".into() }).unwrap_err().to_string(),
    ] {
        assert!(
            refused.contains("is in use") && refused.contains(&format!("process {pid} (sleep) has it open")),
            "{refused}"
        );
    }
    assert!(stage.device().exists(), "and it is as it was");
    File::open(stage.device()).unwrap().read_exact_at(&mut [0; 4096], 0).unwrap();
    let said = must(stage.cluster.tool("detach", 0, &["--force"]));
    assert!(said.contains("fails every request") && said.contains(&pid.to_string()), "{said}");
    assert!(!stage.device().exists());
    user.kill().unwrap();
    user.wait().unwrap();
    stage.await_failed_gone();
    let _ = fs::remove_file(stage.log());
    stage.assert_nothing_left(&kernel_name);
    // Nobody makes it again behind the operator's back; by hand it can be made.
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!stage.device().exists());
    must(stage.cluster.tool("attach", 0, &[]));
    must(stage.cluster.command(0, &Command::Demote { force: false }));
    assert!(!stage.device().exists());
}

/// Its last user may take for ever to go, and the node serves again meanwhile.
#[test]
fn a_device_that_has_failed_is_in_nobodys_way() {
    if !is_possible() {
        return;
    }
    let mut stage = Stage::new("in-the-way", &["alpha", "beta"], "32MiB", "fuse");
    let failed = stage.kernel_name();
    let user = File::open(stage.device()).unwrap();
    let said = must(stage.cluster.tool("demote", 0, &["--force"]));
    println!("{said}");
    assert!(stage.record().is_none() && !stage.device().exists());
    assert_eq!(record::failed(&stage.device_name()).len(), 1);
    stage.cluster.await_status(0, "it can be promoted", |s| s["peers"][0]["state"] != "down");
    eventually("it is promoted", || stage.cluster.promote(0).is_ok());
    stage.await_device();
    assert_ne!(stage.kernel_name(), failed);
    File::open(stage.device()).unwrap().read_exact_at(&mut [0; 4096], 0).unwrap();
    assert!(user.read_exact_at(&mut [0; 4096], 1 << 20).is_err(), "the old one fails");
    // The process of the one that has failed is killed: what it has left goes before the next device is made.
    let dead = record::failed(&stage.device_name()).remove(0).record.pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(dead as i32), Signal::SIGKILL).unwrap();
    drop(user);
    stage.await_device();
    File::open(stage.device()).unwrap().read_exact_at(&mut [0; 4096], 1 << 20).unwrap();
    let kernel_name = stage.kernel_name();
    must(stage.cluster.tool("detach", 0, &[]));
    assert!(must(stage.cluster.tool("detach", 0, &[])).contains("has no device"));
    stage.await_failed_gone();
    stage.assert_nothing_left(&kernel_name);
}

/// The daemon is restarted with another socket in its file, while a device of it is in use.
#[test]
fn a_device_finds_its_daemon_where_it_has_moved_to() {
    if !is_possible() {
        return;
    }
    let mut stage = Stage::new("moves", &["alpha"], "32MiB", "fuse");
    let (helper, user) = (stage.helper(), File::open(stage.device()).unwrap());
    must(stage.cluster.kill(0));
    let moved = stage.cluster.dir(0).join("elsewhere.sock");
    let text = fs::read_to_string(stage.cluster.file()).unwrap();
    let line = format!("[node.alpha]\nnbd = [\"unix:{}\"]", moved.display());
    fs::write(stage.cluster.file(), text.replace("[node.alpha]", &line)).unwrap();
    must(stage.cluster.start(0));
    user.read_exact_at(&mut [0; 4096], 1 << 20).unwrap();
    assert!(moved.exists() && stage.helper() == helper);
}

#[test]
fn twenty_rounds_leave_nothing() {
    if !is_possible() {
        return;
    }
    let stage = Stage::new("rounds", &["alpha"], "32MiB", "none");
    let refused = |r: Result<String, understudy::demo::cluster::ClusterError>| r.unwrap_err().to_string();
    for round in 0..20u8 {
        let said = must(stage.cluster.tool("attach", 0, &[]));
        assert!(said.starts_with(&stage.path()), "{said}");
        let kernel_name = stage.kernel_name();
        let device = OpenOptions::new().read(true).write(true).open(stage.device()).unwrap();
        device.write_all_at(&[round; 4096], u64::from(round) * 4096).unwrap();
        device.sync_all().unwrap();
        let mut before = [0; 4096];
        device.read_exact_at(&mut before, u64::from(round.saturating_sub(1)) * 4096).unwrap();
        assert_eq!(before, [round.saturating_sub(1); 4096]);
        drop(device);
        if round == 0 {
            let said = refused(stage.cluster.tool("attach", 0, &[]));
            assert!(said.contains("has a device already"), "{said}");
        }
        must(stage.cluster.tool("detach", 0, &[]));
        stage.assert_nothing_left(&kernel_name);
    }
    assert!(must(stage.cluster.tool("detach", 0, &[])).contains("has no device"));
}

/// What a killed process of a device leaves behind is taken apart, and the daemon makes the device anew.
#[test]
fn a_killed_device_process_is_cleaned_up_behind() {
    if !is_possible() {
        return;
    }
    let stage = Stage::new("orphan", &["alpha"], "32MiB", "fuse");
    let (helper, first) = (stage.helper(), stage.kernel_name());
    nix::sys::signal::kill(helper, Signal::SIGKILL).unwrap();
    eventually("it is there anew", || {
        stage.record().is_some_and(|f| f.alive && f.record.pid != helper.as_raw() as u32)
    });
    stage.await_device();
    eventually("it works", || File::open(stage.device()).is_ok_and(|f| f.read_exact_at(&mut [0; 4096], 0).is_ok()));
    println!("{first}, then {}", stage.kernel_name());
    let kernel_name = stage.kernel_name();
    must(stage.cluster.tool("detach", 0, &[]));
    stage.assert_nothing_left(&kernel_name);
    stage.assert_nothing_left(&first);
}

/// A node that is not active has no device, and is told so.
#[test]
fn only_an_active_node_has_a_device() {
    if !is_possible() {
        return;
    }
    let stage = Stage::new("passive", &["alpha", "beta"], "32MiB", "none");
    let refused = stage.cluster.tool("attach", 1, &[]).unwrap_err().to_string();
    assert!(refused.contains("beta is not active"), "{refused}");
    let refused = stage.cluster.tool("attach", 0, &["--volume", "disk7"]).unwrap_err().to_string();
    assert!(refused.contains("its volumes are disk0"), "{refused}");
}

#[test]
fn nothing_is_written_through_a_read_only_device() {
    if !is_possible() {
        return;
    }
    let stage = Stage::new("read-only", &["alpha"], "32MiB", "none");
    stage.cluster.client(0).write(4096, &block_of(7), true).unwrap();
    must(stage.cluster.tool("attach", 0, &["--read-only"]));
    let kernel_name = stage.kernel_name();
    let mut found = [0; 4096];
    File::open(stage.device()).unwrap().read_exact_at(&mut found, 4096).unwrap();
    assert!(found[..] == block_of(7)[..]);
    let refused = OpenOptions::new().write(true).open(stage.device()).and_then(|f| f.write_at(&[0; 4096], 0));
    assert!(refused.is_err(), "it can be written to");
    must(stage.cluster.tool("detach", 0, &[]));
    stage.assert_nothing_left(&kernel_name);
    // By its client the volume can be written to as before.
    stage.cluster.client(0).write(4096, &block_of(8), true).unwrap();
}

#[test]
fn the_doctor_says_what_is_so() {
    let output = run(exe().to_str().unwrap(), &["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdict = |what: &str| {
        let all = report["findings"].as_array().unwrap();
        all.iter().find(|f| f["what"] == what).map(|f| f["verdict"].as_str().unwrap().to_string()).unwrap()
    };
    assert_eq!(report["root"], nix::unistd::geteuid().is_root());
    assert_eq!(verdict("io_uring"), "good", "or no other test could run");
    let opens = |path: &str| OpenOptions::new().read(true).write(true).open(path).is_ok();
    for (what, path) in [("fuse", "/dev/fuse"), ("loop", "/dev/loop-control"), ("ublk", "/dev/ublk-control")] {
        assert_eq!(verdict(what) == "good", opens(path), "{what}: {report}");
    }
    assert_eq!(verdict("nbd") == "good", Path::new("/sys/module/nbd").exists());
    let best = ["ublk", "nbd", "fuse"].into_iter().find(|kind| verdict(kind) == "good");
    if best != Some("fuse") || verdict("loop") == "good" {
        assert_eq!(report["auto"].as_str(), best, "{report}");
    }
    let folder = Cluster::bare(&Plan::of(&["alpha"], "16MiB"));
    let text = must(folder.tool("doctor", 0, &[]));
    assert!(text.contains("io_uring") && text.contains(&folder.dir(0).display().to_string()), "{text}");
}
