//! Whole daemons, in threads of this process: created, run, commanded through their control sockets, and used by a client.

use super::testing::{NbdClient, disk_dir, settings};
use super::*;
use crate::config::NbdListen;
use crate::control::Client;
use crate::core::Command;
use serde_json::Value;
use std::net::TcpListener;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A port that was free a moment ago.
fn free_address() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The settings of both nodes, each with a folder of its own.
pub(super) fn pair(dir: &Path) -> [Settings; 2] {
    let mut both = ["alpha", "beta"].map(|name| {
        let mut settings = settings(&dir.join(name), name);
        settings.nbd = vec![NbdListen::Unix(dir.join(name).join("nbd.sock"))];
        settings.listen = free_address();
        settings
    });
    let addresses = both.each_ref().map(|s| s.listen);
    for (settings, other) in both.iter_mut().zip(addresses.iter().rev()) {
        settings.peers[0].address = *other;
    }
    both
}

pub(super) struct Daemon {
    settings: Settings,
    thread: Option<JoinHandle<Result<(), DaemonError>>>,
}

impl Daemon {
    pub(super) fn start(settings: &Settings) -> Daemon {
        let own = settings.clone();
        let thread = std::thread::spawn(move || run(own));
        let daemon = Daemon { settings: settings.clone(), thread: Some(thread) };
        eventually("the control socket answers", || Client::connect(&settings.control).is_ok());
        daemon
    }

    fn control(&self) -> Client {
        Client::connect(&self.settings.control).unwrap()
    }

    pub(super) fn status(&self) -> Value {
        self.control().status().unwrap()
    }

    pub(super) fn client(&self, export: &str) -> NbdClient {
        let NbdListen::Unix(path) = &self.settings.nbd[0] else { panic!("a unix socket") };
        NbdClient::connect(path, export).unwrap()
    }

    pub(super) fn stop(mut self) -> Result<(), DaemonError> {
        self.control().stop().unwrap();
        self.thread.take().unwrap().join().unwrap()
    }
}

pub(super) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(super) fn in_sync(daemon: &Daemon) -> usize {
    daemon.status()["in_sync"].as_array().map_or(0, Vec::len)
}

pub(super) fn promote(daemon: &Daemon, force: bool) {
    let off = vec![];
    let mut last = String::new();
    eventually("it is promoted", || {
        let result = daemon.control().command(&Command::Promote { force, off: off.clone() });
        if let Err(e) = &result {
            last = e.to_string();
            eprintln!("{last}");
        }
        result.is_ok()
    });
}

#[test]
fn a_pair_replicates_switches_over_and_remembers() {
    let dir = disk_dir();
    let both = pair(dir.path());
    both.iter().for_each(|s| create(s, false).unwrap());
    let [alpha, beta] = both.each_ref().map(Daemon::start);
    promote(&alpha, false);
    eventually("both are in sync", || in_sync(&alpha) == 2);

    let mut client = alpha.client("disk1");
    let block = |i: u64| -> Vec<u8> { (0..4096u64).map(|b| (b * 3 + i) as u8).collect() };
    for i in 0..64 {
        client.write(i * 4096, &block(i)).unwrap();
    }
    client.flush().unwrap();
    assert_eq!(client.read(17 * 4096, 4096).unwrap(), block(17));
    assert_eq!(alpha.status()["clients"], 1);

    alpha.control().command(&Command::Switchover { to: "beta".into() }).unwrap();
    eventually("alpha has let its clients go", || client.write(0, &block(0)).is_err());
    eventually("beta serves", || beta.status()["state"] == "serving");
    let mut client = beta.client("disk1");
    for i in 0..64 {
        assert_eq!(client.read(i * 4096, 4096).unwrap(), block(i));
    }
    client.write(0, &block(99)).unwrap();
    client.flush().unwrap();
    drop(client);
    alpha.stop().unwrap();
    beta.stop().unwrap();

    let beta = Daemon::start(&both[1]);
    let alpha = Daemon::start(&both[0]);
    eventually("beta serves again, or can be told to", || {
        beta.status()["state"] == "serving"
            || beta.control().command(&Command::Promote { force: false, off: vec![] }).is_ok()
    });
    let mut client = beta.client("disk1");
    assert_eq!(client.read(0, 4096).unwrap(), block(99));
    alpha.stop().unwrap();
    beta.stop().unwrap();
}

#[test]
fn a_second_daemon_on_a_replica_is_refused_and_the_first_goes_on() {
    let dir = disk_dir();
    let [alpha, _] = pair(dir.path());
    create(&alpha, false).unwrap();
    let first = Daemon::start(&alpha);
    let second = run(alpha.clone()).unwrap_err().to_string();
    assert!(second.contains("another daemon is running on this replica"), "{second}");
    let again = create(&alpha, true).unwrap_err().to_string();
    assert!(again.contains("another daemon is running on this replica"), "{again}");
    assert_eq!(first.status()["role"], "passive");
    first.stop().unwrap();
}

#[test]
fn what_cannot_start_says_why() {
    let dir = disk_dir();
    let [mut alpha, _] = pair(dir.path());
    let text = |s: &Settings| run(s.clone()).unwrap_err().to_string();
    assert!(text(&alpha).contains("run `understudy create`"));
    create(&alpha, false).unwrap();
    let held = TcpListener::bind(alpha.listen).unwrap();
    assert!(text(&alpha).contains("in use by another process"));
    drop(held);
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    alpha.nbd = vec![NbdListen::Tcp(held.local_addr().unwrap())];
    assert!(text(&alpha).contains("nbd: cannot listen on"));
    alpha.nbd = vec![];
    alpha.node.resource = "mail".into();
    let foreign = text(&alpha);
    assert!(foreign.contains("\"data\"") && foreign.contains("\"mail\""), "{foreign}");
}

#[test]
fn create_refuses_what_is_not_blank_and_changes_nothing() {
    let dir = disk_dir();
    let [alpha, _] = pair(dir.path());
    let text = |force| create(&alpha, force).unwrap_err().to_string();
    std::fs::create_dir_all(&alpha.dir).unwrap();
    std::fs::write(&alpha.stores[1], b"precious").unwrap();
    assert!(text(false).contains("already holds something (8 bytes)"));
    assert_eq!(std::fs::read(&alpha.stores[1]).unwrap(), b"precious");
    assert!(!alpha.log.exists() && !alpha.stores[0].exists());

    std::fs::remove_file(&alpha.stores[1]).unwrap();
    create(&alpha, false).unwrap();
    assert!(text(false).contains("--force"));
    std::fs::write(alpha.dir.join("bitmap.beta.0"), b"old").unwrap();
    create(&alpha, true).unwrap();
    assert!(!alpha.dir.join("bitmap.beta.0").exists());
    use std::os::unix::fs::MetadataExt;
    let log = std::fs::metadata(&alpha.log).unwrap();
    assert!(log.len() == alpha.node.log_size && log.blocks() * 512 >= log.len(), "written in full");
    let store = std::fs::metadata(&alpha.stores[0]).unwrap();
    assert!(store.len() == alpha.node.volumes[0].size && store.blocks() == 0, "sparse");

    std::fs::write(alpha.dir.join("salvage.1"), b"orphans").unwrap();
    assert!(text(true).contains("set aside"));
}

#[test]
fn create_that_fails_removes_what_it_made() {
    let dir = disk_dir();
    let [mut alpha, _] = pair(dir.path());
    alpha.node.log_size = 1 << 60;
    let text = create(&alpha, false).unwrap_err().to_string();
    assert!(text.contains("find room for") || text.contains("size"), "{text}");
    assert!(!alpha.log.exists() && alpha.stores.iter().all(|s| !s.exists()));
}

/// A log that is left without its history would lead back to no image, and not know it (R1).
#[test]
fn create_by_force_empties_the_log_before_anything_goes_that_it_needs() {
    let dir = disk_dir();
    let [alpha, _] = pair(dir.path());
    create(&alpha, false).unwrap();
    // It cannot be removed, and so `create` ends there.
    std::fs::create_dir(alpha.dir.join("history")).unwrap();
    let text = create(&alpha, true).unwrap_err().to_string();
    assert!(text.contains("cannot remove") && text.contains("history"), "{text}");
    let found = recovery::recover(&alpha.node, &mut Disk::open(&alpha).unwrap());
    assert!(found.is_err_and(|e| e.to_string().contains("the log is blank")));
}

#[test]
fn of_two_that_create_at_once_one_makes_the_replica_and_the_other_touches_nothing() {
    for _ in 0..10 {
        let dir = disk_dir();
        let [alpha, _] = pair(dir.path());
        let results = std::thread::scope(|scope| {
            [0, 1].map(|_| scope.spawn(|| create(&alpha, false))).map(|thread| thread.join().unwrap())
        });
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1, "{results:?}");
        recovery::recover(&alpha.node, &mut Disk::open(&alpha).unwrap()).unwrap();
    }
}
