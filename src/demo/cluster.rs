//! A whole resource on this machine: a temporary folder with the file and the nodes' parts, and a daemon for each node, as
//! child processes. The demonstration runs on one, and so do the tests.

use crate::child::{self, Fate};
use crate::control::{Client as Control, ControlError};
use crate::core::Command as CoreCommand;
use crate::nbd_client::{Address, Client, NbdError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// What can go wrong around the daemons.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("cannot {what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot start {}: {source}", exe.display())]
    Spawn { exe: PathBuf, source: io::Error },
    #[error("`understudy {command}` failed: {said}")]
    Tool { command: String, said: String },
    #[error("{node} is not running")]
    NotRunning { node: String },
    #[error("the daemon of {node} ended by itself ({status}): {said}")]
    Died { node: String, status: ExitStatus, said: String },
    #[error("{node}: {source}")]
    Control { node: String, source: ControlError },
    #[error("{node}: {source}")]
    Nbd { node: String, source: NbdError },
    #[error("not within {} s: {what}; last seen: {seen}", after.as_secs_f32())]
    TimedOut { what: String, after: Duration, seen: String },
    #[error("no TCP port is free between {} and {}", PORTS.start, PORTS.end)]
    NoPort,
    #[error("interrupted")]
    Interrupted,
}

/// Below the range from which systems usually draw ports for outgoing connections, so that nobody takes one in between.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// The longest that an NBD client of a cluster waits for anything.
const NBD_PATIENCE: Duration = Duration::from_secs(30);

/// What the resource is to be like. Everything is text of the file, as a user would write it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The resource's name.
    pub name: String,
    /// Lines of `[resource]`, without the name.
    pub resource: Vec<String>,
    /// Names and sizes.
    pub volumes: Vec<(String, String)>,
    /// Names, and lines of `[node.NAME]` beside `address` and `dir`.
    pub nodes: Vec<(String, Vec<String>)>,
    /// Names. They are numbered behind the nodes.
    pub witnesses: Vec<String>,
}

impl Plan {
    /// Nodes of these names, one volume `disk0` of `size`, and small logs.
    pub fn of(nodes: &[&str], size: &str) -> Plan {
        let node = |name: &&str| (name.to_string(), vec!["log_size = \"64MiB\"".to_string()]);
        Plan {
            name: "demo".to_string(),
            resource: Vec::new(),
            volumes: vec![("disk0".to_string(), size.to_string())],
            nodes: nodes.iter().map(node).collect(),
            witnesses: Vec::new(),
        }
    }

    /// Under another name: devices are called after it.
    pub fn named(mut self, name: &str) -> Plan {
        self.name = name.to_string();
        self
    }

    /// With one more line in `[resource]`.
    pub fn resource(mut self, line: impl Into<String>) -> Plan {
        self.resource.push(line.into());
        self
    }

    /// With logs of this size on all nodes.
    pub fn log_size(mut self, size: &str) -> Plan {
        for (_, lines) in &mut self.nodes {
            lines.retain(|l| !l.starts_with("log_size"));
            lines.push(format!("log_size = \"{size}\""));
        }
        self
    }

    /// With one more witness.
    pub fn witness(mut self, name: &str) -> Plan {
        self.witnesses.push(name.to_string());
        self
    }

    /// With one more line in `[node.NAME]`, for a node of the plan.
    pub fn node(mut self, name: &str, line: impl Into<String>) -> Plan {
        let line = line.into();
        self.nodes.iter_mut().filter(|(n, _)| n == name).for_each(|(_, lines)| lines.push(line.clone()));
        self
    }
}

/// One node, or one witness.
#[derive(Debug)]
struct Node {
    name: String,
    /// The command that runs it.
    run: &'static str,
    port: u16,
    dir: PathBuf,
    child: Option<Child>,
    starts: u32,
}

/// The folder and the processes. Dropping it ends the daemons and removes the folder, unless [`Cluster::keep`] was called.
#[derive(Debug)]
pub struct Cluster {
    exe: PathBuf,
    folder: PathBuf,
    nodes: Vec<Node>,
    fate: Fate,
    keep: bool,
    interrupted: &'static AtomicBool,
}

static NEVER: AtomicBool = AtomicBool::new(false);

impl Cluster {
    /// Makes the folder and the file; nothing is formatted or started yet. `exe` is the understudy program.
    pub fn new(exe: &Path, plan: &Plan) -> Result<Cluster, ClusterError> {
        Cluster::new_in(&std::env::temp_dir(), exe, plan)
    }

    /// The same with its folder below `base`.
    pub fn new_in(base: &Path, exe: &Path, plan: &Plan) -> Result<Cluster, ClusterError> {
        let template = base.join("understudy-XXXXXX");
        let folder = nix::unistd::mkdtemp(&template).map_err(|e| ClusterError::File {
            what: "make the temporary folder",
            path: template,
            source: e.into(),
        })?;
        let mut cluster = Cluster {
            exe: exe.to_owned(),
            folder,
            nodes: Vec::new(),
            fate: Fate::DiesWithUs,
            keep: false,
            interrupted: &NEVER,
        };
        let nodes = plan.nodes.iter().map(|(name, _)| (name, "run"));
        for (name, run) in nodes.chain(plan.witnesses.iter().map(|name| (name, "witness"))) {
            let dir = cluster.folder.join(name);
            cluster.nodes.push(Node { name: name.clone(), run, port: free_port()?, dir, child: None, starts: 0 });
        }
        cluster.write_file(plan)?;
        Ok(cluster)
    }

    /// Waiting ends with [`ClusterError::Interrupted`] when `flag` is set.
    pub fn interrupted_by(&mut self, flag: &'static AtomicBool) {
        self.interrupted = flag;
    }

    /// Whatever is started from now on outlives this process.
    pub fn detach(&mut self) {
        self.fate = Fate::LivesOn;
    }

    /// Leaves the daemons and the folder when this is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Writes the file anew, with the same addresses: for tests that change it.
    pub fn write_file(&self, plan: &Plan) -> Result<(), ClusterError> {
        let mut text = format!("[resource]\nname = \"{}\"\n{}\n\n", plan.name, plan.resource.join("\n"));
        for (name, size) in &plan.volumes {
            text.push_str(&format!("[volume.{name}]\nsize = \"{size}\"\n\n"));
        }
        let nodes = plan.nodes.iter().map(|(_, lines)| ("node", lines.as_slice()));
        let sections = nodes.chain(plan.witnesses.iter().map(|_| ("witness", &[][..])));
        for (node, (section, lines)) in self.nodes.iter().zip(sections) {
            let (name, port, dir) = (&node.name, node.port, node.dir.display());
            text.push_str(&format!(
                "[{section}.{name}]\naddress = \"127.0.0.1:{port}\"\ndir = \"{dir}\"\n{}\n\n",
                lines.join("\n")
            ));
        }
        let path = self.file();
        fs::write(&path, text).map_err(|source| ClusterError::File { what: "write", path, source })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The resource's file.
    pub fn file(&self) -> PathBuf {
        self.folder.join("demo.toml")
    }

    /// Where a node keeps its parts.
    pub fn dir(&self, node: usize) -> &Path {
        &self.nodes[node].dir
    }

    /// The port on which peers reach a node.
    pub fn port(&self, node: usize) -> u16 {
        self.nodes[node].port
    }

    pub fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// Whether it is a witness.
    pub fn is_witness(&self, node: usize) -> bool {
        self.nodes[node].run == "witness"
    }

    /// How many nodes and witnesses there are; they are numbered from 0 in the order of the plan.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The store of a node's volume.
    pub fn store(&self, node: usize, volume: &str) -> PathBuf {
        self.dir(node).join(format!("store-{volume}"))
    }

    pub fn control_socket(&self, node: usize) -> PathBuf {
        self.dir(node).join("control.sock")
    }

    pub fn nbd_address(&self, node: usize) -> Address {
        Address::Unix(self.dir(node).join("nbd.sock"))
    }

    /// A URI for NBD clients.
    pub fn nbd_uri(&self, node: usize, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.dir(node).join("nbd.sock").display())
    }

    /// Runs the program to its end with a command, this cluster's file and a node; what it printed.
    pub fn tool(&self, command: &str, node: usize, more: &[&str]) -> Result<String, ClusterError> {
        let mut run = Command::new(&self.exe);
        run.arg(command).arg(self.file()).args(["--node", self.name(node)]).args(more).stdin(Stdio::null());
        let output = run.output().map_err(|source| ClusterError::Spawn { exe: self.exe.clone(), source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let said = text.trim().trim_start_matches("understudy: ").to_string();
        let words: Vec<&str> = [command, "--node", self.name(node)].into_iter().chain(more.iter().copied()).collect();
        Err(ClusterError::Tool { command: words.join(" "), said })
    }

    /// Formats a node's parts. A witness has none.
    pub fn create(&self, node: usize) -> Result<String, ClusterError> {
        if self.is_witness(node) {
            return Ok(String::new());
        }
        self.tool("create", node, &[])
    }

    /// Starts a node's daemon. Its standard error goes to a file, see [`Cluster::said`].
    pub fn start(&mut self, node: usize) -> Result<(), ClusterError> {
        let this = &mut self.nodes[node];
        this.starts += 1;
        let path = self.folder.join(format!("{}.{}.err", this.name, this.starts));
        let errors = fs::File::create(&path).map_err(|source| ClusterError::File { what: "make", path, source })?;
        let mut run = Command::new(&self.exe);
        run.arg(this.run).arg(self.folder.join("demo.toml")).args(["--node", &this.name]);
        run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let spawned = child::spawn(&mut run, self.fate);
        this.child = Some(spawned.map_err(|source| ClusterError::Spawn { exe: self.exe.clone(), source })?);
        Ok(())
    }

    /// Starts a node's daemon and waits until it answers.
    pub fn start_and_wait(&mut self, node: usize) -> Result<(), ClusterError> {
        self.start(node)?;
        self.wait_status(node, "its daemon answers", Duration::from_secs(20), |_| true).map(drop)
    }

    /// What the newest daemon of a node has written to its standard error.
    pub fn said(&self, node: usize) -> String {
        let this = &self.nodes[node];
        fs::read_to_string(self.folder.join(format!("{}.{}.err", this.name, this.starts))).unwrap_or_default()
    }

    /// What all daemons of a node have written to their standard errors, one after the other.
    pub fn said_ever(&self, node: usize) -> Vec<String> {
        let this = &self.nodes[node];
        let path = |start| self.folder.join(format!("{}.{start}.err", this.name));
        (1..=this.starts).map(|s| fs::read_to_string(path(s)).unwrap_or_default()).collect()
    }

    /// A node's daemon as a process.
    pub fn pid(&self, node: usize) -> Result<Pid, ClusterError> {
        let this = &self.nodes[node];
        let child = this.child.as_ref().ok_or_else(|| ClusterError::NotRunning { node: this.name.clone() })?;
        // Linux's process ids fit an i32.
        Ok(Pid::from_raw(child.id() as i32))
    }

    /// Sends a signal to a node's daemon.
    pub fn signal(&self, node: usize, signal: Signal) -> Result<(), ClusterError> {
        // It is our child and was not waited for: the id is still its own.
        let sent = kill(self.pid(node)?, signal);
        sent.map_err(|_| ClusterError::NotRunning { node: self.name(node).to_string() })
    }

    /// Kills a node's daemon, as a crash would, and waits until it is gone.
    pub fn kill(&mut self, node: usize) -> Result<(), ClusterError> {
        let this = &mut self.nodes[node];
        let Some(mut child) = this.child.take() else {
            return Err(ClusterError::NotRunning { node: this.name.clone() });
        };
        end(&mut child);
        Ok(())
    }

    /// Waits until a node's daemon has ended by itself.
    pub fn wait_for_end(&mut self, node: usize, patience: Duration) -> Result<ExitStatus, ClusterError> {
        let what = format!("the daemon of {} ends", self.name(node));
        let deadline = Instant::now() + patience;
        loop {
            let this = &mut self.nodes[node];
            let Some(child) = &mut this.child else { return Err(ClusterError::NotRunning { node: this.name.clone() }) };
            if let Ok(Some(status)) = child.try_wait() {
                this.child = None;
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(ClusterError::TimedOut { what, after: patience, seen: "it runs".into() });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn control(&self, node: usize) -> Result<Control, ClusterError> {
        let failed = |source| ClusterError::Control { node: self.name(node).to_string(), source };
        Control::connect(&self.control_socket(node)).map_err(failed)
    }

    /// The state of a node (`docs/status.md`).
    pub fn status(&self, node: usize) -> Result<Value, ClusterError> {
        self.pid(node)?;
        let failed = |source| ClusterError::Control { node: self.name(node).to_string(), source };
        self.control(node)?.status().map_err(failed)
    }

    /// Has a node carry out a command whose answer is an object.
    pub fn ask(&self, node: usize, command: &CoreCommand) -> Result<Value, ClusterError> {
        let failed = |source| ClusterError::Control { node: self.name(node).to_string(), source };
        self.control(node)?.command(command).map_err(failed)
    }

    /// Has a node carry out a command: what it answered.
    pub fn command(&self, node: usize, command: &CoreCommand) -> Result<String, ClusterError> {
        let answer = self.ask(node, command)?;
        Ok(answer.as_str().map_or_else(|| answer.to_string(), str::to_owned))
    }

    /// Makes a node active.
    pub fn promote(&self, node: usize) -> Result<String, ClusterError> {
        self.command(node, &CoreCommand::Promote { force: false, off: Vec::new() })
    }

    /// Makes a node active although others cannot be asked.
    pub fn promote_without(&self, node: usize, off: &[usize]) -> Result<String, ClusterError> {
        let off = off.iter().map(|n| self.name(*n).to_string()).collect();
        self.command(node, &CoreCommand::Promote { force: true, off })
    }

    /// A client of a node's volume.
    pub fn nbd(&self, node: usize, volume: &str) -> Result<Client, ClusterError> {
        let failed = |source| ClusterError::Nbd { node: self.name(node).to_string(), source };
        Client::connect(&self.nbd_address(node), volume, NBD_PATIENCE).map_err(failed)
    }

    /// Asks `look` again and again until it has found what it looks for.
    pub fn wait<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut(&mut Cluster) -> Result<Found<T>, ClusterError>,
    ) -> Result<T, ClusterError> {
        let started = Instant::now();
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(ClusterError::Interrupted);
            }
            self.check_alive()?;
            let seen = match look(self)? {
                Found::Yes(found) => return Ok(found),
                Found::NotYet(seen) => seen,
            };
            if started.elapsed() > patience {
                return Err(ClusterError::TimedOut { what: what.to_string(), after: patience, seen });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until `condition` holds for the status of a node. A daemon that has been started and does not answer yet is waited
    /// for, too; one that has died is an error at once.
    pub fn wait_status(
        &mut self,
        node: usize,
        what: &str,
        patience: Duration,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value, ClusterError> {
        let what = format!("{}: {what}", self.name(node));
        self.wait(&what, patience, |c| {
            Ok(match c.status(node) {
                Ok(status) if condition(&status) => Found::Yes(status),
                Ok(status) => Found::NotYet(brief(&status)),
                Err(ClusterError::Control { source, .. }) if is_starting(&source) => Found::NotYet(source.to_string()),
                Err(other) => return Err(other),
            })
        })
    }

    /// Waits until a node lists exactly these as in sync.
    pub fn wait_in_sync(&mut self, node: usize, members: &[usize], patience: Duration) -> Result<Value, ClusterError> {
        let mut wanted: Vec<String> = members.iter().map(|m| self.name(*m).to_string()).collect();
        wanted.sort();
        let what = format!("in sync are {}", wanted.join(" and "));
        self.wait_status(node, &what, patience, |status| in_sync(status) == wanted)
    }

    /// Waits until all of these have applied everything that `active` has accepted: then their stores are to be equal.
    pub fn wait_applied(&mut self, active: usize, nodes: &[usize], patience: Duration) -> Result<u64, ClusterError> {
        self.wait("everything is applied", patience, |c| {
            let end = c.status(active)?["watermarks"]["accepted"].as_u64();
            for node in nodes {
                let status = match c.status(*node) {
                    Err(ClusterError::Control { source, .. }) if is_starting(&source) => {
                        return Ok(Found::NotYet(source.to_string()));
                    }
                    other => other?,
                };
                if status["watermarks"]["applied"].as_u64() != end {
                    return Ok(Found::NotYet(format!("the end is {end:?}; {}", brief(&status))));
                }
            }
            Ok(end.map_or(Found::NotYet("no watermarks".into()), Found::Yes))
        })
    }

    /// A daemon that ended without being told to is an error, whatever one waits for.
    fn check_alive(&mut self) -> Result<(), ClusterError> {
        for node in 0..self.nodes.len() {
            let this = &mut self.nodes[node];
            let Some(child) = &mut this.child else { continue };
            if let Ok(Some(status)) = child.try_wait() {
                let name = this.name.clone();
                this.child = None;
                return Err(ClusterError::Died { node: name, status, said: self.said(node) });
            }
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                end(&mut child);
            }
        }
        // What cannot be removed is in the folder for temporary files, where it belongs.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// What one look has shown.
pub enum Found<T> {
    Yes(T),
    /// Not there; what is there instead, for the message when time is up.
    NotYet(String),
}

/// A daemon that is there and has not opened its control socket.
fn is_starting(error: &ControlError) -> bool {
    matches!(error, ControlError::NotRunning { .. })
}

fn end(child: &mut Child) {
    // Neither fails for a child that was not waited for, stopped ones included.
    let _ = child.kill();
    let _ = child.wait();
}

/// The members' names in a status, sorted.
pub fn in_sync(status: &Value) -> Vec<String> {
    let members = status["in_sync"].as_array().map_or(&[][..], |m| m);
    let mut names: Vec<String> = members.iter().filter_map(|m| m.as_str().map(str::to_string)).collect();
    names.sort();
    names
}

/// What matters of a status, in one line.
pub fn brief(status: &Value) -> String {
    let peers = status["peers"].as_array().map_or(&[][..], |p| p);
    let peer = |p: &Value| {
        format!("{} {} {} lag {} why {}", p["name"], p["state"], p["received"], p["lag"]["writes"], p["why"])
    };
    let peers: Vec<String> = peers.iter().map(peer).collect();
    format!(
        "{} {} {} in_sync {} fault {} {}; peers: {}",
        status["node"],
        status["role"],
        status["state"],
        status["in_sync"],
        status["fault"],
        status["watermarks"],
        peers.join(", ")
    )
}

fn free_port() -> Result<u16, ClusterError> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    // Processes begin at different places, threads go on from one another.
    let begin = (std::process::id().wrapping_mul(97) % u32::from(span)) as u16;
    for _ in 0..span {
        let at = (u32::from(begin) + u32::from(NEXT.fetch_add(1, Ordering::Relaxed))) % u32::from(span);
        // Both are below 32000.
        let port = PORTS.start + at as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(ClusterError::NoPort)
}
