//! The daemon as a process: signals, its service manager, too many connections, and a system that forbids io_uring.

use crate::common::*;
use std::io::Read;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use understudy::demo::oracle::BLOCK;

fn alone() -> Plan {
    Plan::of(&["alpha"], "16MiB")
}

fn run(cluster: &Cluster) -> Command {
    let mut command = Command::new(exe());
    command.arg("run").arg(cluster.file()).args(["--node", cluster.name(0)]).stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// A daemon that the cluster did not start; ended with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the daemon of the node answers, whoever has started it.
fn answers(cluster: &Cluster) -> bool {
    cluster.tool("status", 0, &[]).is_ok()
}

#[track_caller]
fn await_end(daemon: &mut Daemon) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = daemon.0.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "the daemon does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What each signal asks for is an orderly end, without giving the role away: nothing that was answered is lost, flushed or not.
#[test]
fn signals_end_it_in_order_and_it_resumes() {
    let mut cluster = Cluster::serving(&alone(), &[0]);
    for (round, signal) in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT].into_iter().enumerate() {
        let mut client = cluster.client(0);
        for i in 0..64 {
            client.write(i * BLOCK as u64, &block_of(round as u8 + i as u8), false).unwrap();
        }
        must(cluster.signal(0, signal));
        let status = must(cluster.wait_for_end(0, PATIENCE));
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
        let said = cluster.said(0);
        assert!(said.contains("stopping") && !said.contains("demoted"), "{said}");
        must(cluster.start_and_wait(0));
        cluster.await_status(0, "it resumes", |s| s["state"] == "serving");
        let mut client = cluster.client(0);
        for i in 0..64 {
            assert_eq!(client.read(i * BLOCK as u64, BLOCK as u64).unwrap(), block_of(round as u8 + i as u8));
        }
    }
}

/// A write waits for a passive that is frozen, so the first signal does not end it yet.
#[test]
fn a_second_signal_ends_it_at_once() {
    let mut cluster = Cluster::serving(&pair("16MiB").resource("stall_ms = 3600000"), &[0, 1]);
    must(cluster.signal(1, Signal::SIGSTOP));
    let mut client = cluster.client(0);
    let writer = std::thread::spawn(move || client.write(0, &block_of(1), false).is_err());
    cluster.await_status(0, "the write is there", |s| s["watermarks"]["accepted"] == 1);
    must(cluster.signal(0, Signal::SIGTERM));
    let deadline = Instant::now() + PATIENCE;
    while !cluster.said(0).contains("stopping") {
        assert!(Instant::now() < deadline, "it has not noticed the first one: {}", cluster.said(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    must(cluster.signal(0, Signal::SIGTERM));
    let status = must(cluster.wait_for_end(0, PATIENCE));
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(writer.join().unwrap(), "it was never told that its write is done");
    must(cluster.signal(1, Signal::SIGCONT));
}

#[test]
fn under_nohup_a_hangup_means_nothing() {
    let cluster = Cluster::bare(&alone());
    must(cluster.create(0));
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" run \"$1\" --node alpha"]).arg(exe()).arg(cluster.file());
    let daemon = Daemon(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while !answers(&cluster) {
        assert!(Instant::now() < deadline, "it does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = nix::unistd::Pid::from_raw(daemon.0.id() as i32);
    nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
    for _ in 0..5 {
        assert!(answers(&cluster));
    }
}

#[test]
fn the_service_manager_is_told() {
    let cluster = Cluster::bare(&alone());
    must(cluster.create(0));
    let path = cluster.folder().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut daemon = Daemon(run(&cluster).env("NOTIFY_SOCKET", &path).spawn().unwrap());
    let mut told = [0; 64];
    let n = socket.recv(&mut told).unwrap();
    assert_eq!(&told[..n], b"READY=1");
    assert!(answers(&cluster), "whoever is told that it is ready can ask it");
    must(cluster.tool("stop", 0, &[]));
    let n = socket.recv(&mut told).unwrap();
    assert_eq!(&told[..n], b"STOPPING=1");
    assert!(await_end(&mut daemon).success());
}

/// Whoever takes all descriptors keeps others out as long as that lasts, and no longer.
#[test]
fn too_many_connections_for_its_open_files() {
    let cluster = Cluster::bare(&alone());
    must(cluster.create(0));
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 40; exec \"$0\" run \"$1\" --node alpha 2>\"$2\""]).arg(exe()).arg(cluster.file());
    let said = cluster.folder().join("said");
    let _daemon = Daemon(command.arg(&said).stdin(Stdio::null()).spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while !answers(&cluster) {
        assert!(Instant::now() < deadline, "it does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }
    must(cluster.promote(0));
    let mut client = cluster.client(0);
    client.write(0, &block_of(1), true).unwrap();
    let socket = cluster.dir(0).join("nbd.sock");
    let crowd: Vec<UnixStream> = (0..100).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
    assert!(crowd.len() > 40);
    let deadline = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(&said).unwrap().contains("Too many open files") {
        assert!(Instant::now() < deadline, "it has not run out of them");
        client.write(0, &block_of(2), true).unwrap();
    }
    client.write(4096, &block_of(3), true).unwrap();
    drop(crowd);
    let mut later = cluster.client(0);
    assert_eq!(later.read(4096, BLOCK as u64).unwrap(), block_of(3));
}

/// What Docker's default profile does: io_uring_setup fails with EPERM. The number is the same on all architectures.
fn forbid_io_uring(command: &mut Command) {
    const IO_URING_SETUP: u32 = 425;
    let forbid = || {
        let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
        let filter = [
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
            libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, IO_URING_SETUP) },
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        nix::sys::prctl::set_no_new_privs()?;
        // SAFETY: the program and its filter live until the call returns, which copies them.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed: these are two system calls on memory of the stack.
    unsafe { command.pre_exec(forbid) };
}

#[test]
fn where_io_uring_is_forbidden_the_remedy_is_said() {
    let cluster = Cluster::bare(&alone());
    must(cluster.create(0));
    let mut command = run(&cluster);
    forbid_io_uring(&mut command);
    let mut daemon = Daemon(command.stderr(Stdio::piped()).spawn().unwrap());
    assert!(!await_end(&mut daemon).success());
    let mut said = String::new();
    daemon.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    for part in ["io_uring cannot be used here", "Operation not permitted", "seccomp", "kernel.io_uring_disabled"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    // Nothing was changed by it: the same replica runs where io_uring is allowed.
    let mut daemon = Daemon(run(&cluster).spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while !answers(&cluster) {
        assert!(Instant::now() < deadline && daemon.0.try_wait().unwrap().is_none(), "it does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }
}
