//! The harness of the tests with real daemons: a cluster whose failures are test failures, with everything that the daemons
//! said; writers in threads; and the check of what they were promised.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use understudy::demo::cluster::{self, ClusterError};
use understudy::demo::compare;
use understudy::demo::load::{Meter, Shape, Writer};
use understudy::demo::oracle::{BLOCK, Oracle, Promise};
use understudy::demo::rng::Rng;
use understudy::nbd_client::{Client, NbdError};

pub use nix::sys::signal::Signal;
pub use serde_json::Value;
pub use understudy::demo::cluster::{Plan, in_sync};

/// Long enough for whatever is to happen on a machine that does much else; nothing is expected to need it.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const VOLUME: &str = "disk0";

/// alpha and beta, with one volume of `size` and small logs.
pub fn pair(size: &str) -> Plan {
    Plan::of(&["alpha", "beta"], size)
}

/// The same, with logs so small that they overflow soon, and a passive that is given up soon.
pub fn overflowing(size: &str) -> Plan {
    pair(size).log_size("16MiB").resource("stall_ms = 300")
}

/// Whether the log of a node no longer reaches what its first peer has, by at least so many records.
pub fn is_past_the_log(status: &Value, records: u64) -> bool {
    let received = status["peers"][0]["received"].as_u64();
    received.is_some() && status["log"]["from"].as_u64() > received.map(|r| r + records)
}

/// The program under test.
pub fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_understudy"))
}

/// The seed of this run: `UNDERSTUDY_SEED`, or a new one; printed, so that a failure can be tried again.
pub fn seed(test: &str) -> u64 {
    let drawn = || {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("random numbers");
        u64::from_le_bytes(bytes)
    };
    let given = std::env::var("UNDERSTUDY_SEED").ok().map(|s| s.parse().expect("UNDERSTUDY_SEED is a number"));
    let seed = given.unwrap_or_else(drawn);
    println!("{test}: UNDERSTUDY_SEED={seed}");
    seed
}

/// Milliseconds, drawn.
pub fn pause(rng: &mut Rng, ms: std::ops::Range<u64>) {
    std::thread::sleep(Duration::from_millis(ms.start + rng.below(ms.end - ms.start)));
}

/// A [`cluster::Cluster`] that panics instead of returning errors, and shows what the daemons said when its test fails.
pub struct Cluster(cluster::Cluster);

impl Deref for Cluster {
    type Target = cluster::Cluster;

    fn deref(&self) -> &cluster::Cluster {
        &self.0
    }
}

impl DerefMut for Cluster {
    fn deref_mut(&mut self) -> &mut cluster::Cluster {
        &mut self.0
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for node in 0..self.0.len() {
            for (start, said) in self.0.said_ever(node).iter().enumerate() {
                let tail: Vec<&str> = said.lines().rev().take(60).collect();
                println!("--- {}, start {}:", self.0.name(node), start + 1);
                tail.iter().rev().for_each(|line| println!("{line}"));
            }
            if let Ok(status) = self.0.status(node) {
                println!("--- status of {}: {}", self.0.name(node), cluster::brief(&status));
            }
        }
    }
}

/// The value, or a panic with the error's words.
#[track_caller]
pub fn must<T>(result: Result<T, ClusterError>) -> T {
    match result {
        Ok(value) => value,
        Err(e) => panic!("{e}"),
    }
}

impl Cluster {
    /// Folder and file only.
    #[track_caller]
    pub fn bare(plan: &Plan) -> Cluster {
        Cluster(must(cluster::Cluster::new(exe(), plan)))
    }

    /// Folder and file only, below `base`.
    #[track_caller]
    pub fn in_folder(base: &Path, plan: &Plan) -> Cluster {
        Cluster(must(cluster::Cluster::new_in(base, exe(), plan)))
    }

    /// All nodes running, the first active, and `members` in sync.
    #[track_caller]
    pub fn serving(plan: &Plan, members: &[usize]) -> Cluster {
        Cluster::bare(plan).serve(members)
    }

    /// Formats and starts all nodes.
    #[track_caller]
    pub fn run(mut self) -> Cluster {
        for node in 0..self.len() {
            must(self.create(node));
            must(self.start(node));
        }
        for node in 0..self.len() {
            self.await_answer(node);
        }
        self
    }

    /// The same, then promotes the first node, and waits until `members` are in sync.
    #[track_caller]
    pub fn serve(self, members: &[usize]) -> Cluster {
        let mut cluster = self.run();
        let all_greeted = |s: &Value| s["peers"].as_array().is_some_and(|p| p.iter().all(|p| p["state"] == "idle"));
        must(cluster.0.wait_status(0, "it meets its peers", PATIENCE, all_greeted));
        must(cluster.promote(0));
        cluster.await_in_sync(0, members);
        cluster
    }

    #[track_caller]
    pub fn await_answer(&mut self, node: usize) {
        must(self.0.wait_status(node, "its daemon answers", PATIENCE, |_| true));
    }

    /// Waits until `node` lists exactly `members` as in sync.
    #[track_caller]
    pub fn await_in_sync(&mut self, node: usize, members: &[usize]) {
        must(self.0.wait_in_sync(node, members, PATIENCE));
    }

    #[track_caller]
    pub fn await_status(&mut self, node: usize, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        must(self.0.wait_status(node, what, PATIENCE, condition))
    }

    /// Waits until `node` sees that `peer` is gone.
    #[track_caller]
    pub fn await_peer_gone(&mut self, node: usize, peer: usize) {
        let name = self.name(peer).to_string();
        let gone = |s: &Value| {
            let peers = s["peers"].as_array().map_or(&[][..], |p| p);
            peers.iter().any(|p| p["name"] == *name && matches!(p["state"].as_str(), Some("down" | "connecting")))
        };
        self.await_status(node, &format!("it sees that {name} is gone"), gone);
    }

    /// Makes `heir` active once it has seen that `dead` is gone.
    #[track_caller]
    pub fn take_over(&mut self, heir: usize, dead: usize) {
        self.await_peer_gone(heir, dead);
        must(self.0.promote_without(heir, &[dead]));
    }

    #[track_caller]
    pub fn client(&self, node: usize) -> Client {
        must(self.0.nbd(node, VOLUME))
    }

    /// Waits until everything is applied everywhere, then compares the stores of a volume with the active's.
    #[track_caller]
    pub fn assert_stores_equal(&mut self, active: usize, nodes: &[usize], volume: &str) {
        let all: Vec<usize> = nodes.iter().copied().chain([active]).collect();
        must(self.0.wait_applied(active, &all, PATIENCE));
        for node in nodes {
            let (bytes, difference) = compare(&self.store(active, volume), &self.store(*node, volume)).expect("stores");
            assert!(bytes > 0);
            assert_eq!(difference, None, "the stores of {} and {}", self.name(active), self.name(*node));
        }
    }
}

/// Writers in threads, each with its own connection and blocks.
pub struct Load {
    stop: Arc<AtomicBool>,
    pub meter: Arc<Meter>,
    threads: Vec<JoinHandle<(Writer, Result<(), NbdError>)>>,
}

/// Three writers for a volume of so many blocks: pages, pages with holes, a journal.
pub fn writers(blocks: u64, seed: u64) -> Vec<Writer> {
    let third = blocks / 3;
    let pages = Shape::Pages { depth: 16, flush_every: 64 };
    let holes = Shape::PagesAndHoles { depth: 4, flush_every: 16 };
    vec![
        Writer::new(Oracle::new(1, 0..third), pages, seed),
        Writer::new(Oracle::new(2, third..2 * third), holes, seed ^ 1),
        Writer::new(Oracle::new(3, 2 * third..blocks), Shape::Journal, seed ^ 2),
    ]
}

impl Load {
    /// Starts all of `writers` on a node.
    #[track_caller]
    pub fn start(cluster: &Cluster, node: usize, writers: Vec<Writer>) -> Load {
        let (stop, meter) = (Arc::new(AtomicBool::new(false)), Arc::new(Meter::default()));
        let start = |mut writer: Writer| {
            let (stop, meter, mut client) = (stop.clone(), meter.clone(), cluster.client(node));
            std::thread::spawn(move || {
                let result = writer.run(&mut client, &stop, &meter);
                (writer, result)
            })
        };
        let threads = writers.into_iter().map(start).collect();
        Load { stop, meter, threads }
    }

    /// Waits until so many more writes are done: a load that has got going.
    #[track_caller]
    pub fn await_writes(&self, count: u64) {
        let deadline = Instant::now() + PATIENCE;
        let mut done = 0;
        while done < count {
            assert!(Instant::now() < deadline, "only {done} writes of {count} were done in time");
            assert!(!self.threads.iter().any(JoinHandle::is_finished), "a writer ended by itself");
            std::thread::sleep(Duration::from_millis(2));
            done += self.meter.take().writes;
        }
    }

    fn join(self) -> Vec<(Writer, Result<(), NbdError>)> {
        self.threads.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    }

    /// Ends the writers. None may have been failed.
    #[track_caller]
    pub fn stop(self) -> Vec<Writer> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.join();
        ended.into_iter().map(|(w, r)| r.map(|()| w).unwrap_or_else(|e| panic!("a writer was failed: {e}"))).collect()
    }

    /// Takes in writers whose server has gone: each must have lost its connection, none may have been told that a request failed.
    #[track_caller]
    pub fn broken(self) -> Vec<Writer> {
        let ended = self.join();
        ended
            .into_iter()
            .map(|(writer, result)| match result {
                Err(NbdError::Closed | NbdError::Io { .. }) => writer,
                other => panic!("a writer should have lost its connection, but: {other:?}"),
            })
            .collect()
    }

    /// Takes in writers whose server stopped serving: they lost the connection, or were told that it serves no longer.
    #[track_caller]
    pub fn dismissed(self) -> Vec<Writer> {
        let ended = self.join();
        ended
            .into_iter()
            .map(|(writer, result)| match result {
                Err(NbdError::Closed | NbdError::Io { .. } | NbdError::Failed { errno: 108, .. }) => writer,
                other => panic!("a writer should have been dismissed, but: {other:?}"),
            })
            .collect()
    }
}

/// Reads back what each writer owns, checks it against what was promised, and takes it as given from then on. How many
/// writes that had been issued were given up.
#[track_caller]
pub fn check(cluster: &Cluster, node: usize, writers: &mut [Writer], promise: Promise) -> u64 {
    let mut given_up = 0;
    for (number, writer) in writers.iter_mut().enumerate() {
        let image = writer.read_back(&mut cluster.client(node)).expect("a readable volume");
        let oracle = &mut writer.oracle;
        match oracle.check(&image, promise) {
            Ok(prefix) => given_up += oracle.settle(prefix),
            Err(violation) => panic!(
                "writer {}: {violation} (issued {}, completed {}, flushed {})",
                number + 1,
                oracle.issued(),
                oracle.completed(),
                oracle.flushed()
            ),
        }
    }
    given_up
}

/// Runs the program as `cluster.tool` does, whatever comes of it: the exit code, and what it printed.
pub fn output(cluster: &Cluster, command: &str, node: usize, more: &[&str]) -> (Option<i32>, String) {
    let mut run = Command::new(exe());
    run.arg(command).arg(cluster.file()).args(["--node", cluster.name(node)]).args(more);
    let output = run.output().expect("a program that can be run");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A block whose every byte is `byte`.
pub fn block_of(byte: u8) -> Vec<u8> {
    vec![byte; BLOCK]
}

/// Whether a program can be run; says so if not.
pub fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("SKIPPED: {program} is not installed");
    }
    found
}
