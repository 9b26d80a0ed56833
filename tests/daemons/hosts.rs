//! Two machines on one: a network namespace and a mount namespace each, on a bridge with a third, where the clients are. Whatever the
//! test made is gone when this is dropped.

use crate::common::{PATIENCE, exe};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The address that moves, and the service's port.
pub const ADDRESS: &str = "10.77.0.10";
const PORT: u16 = 7900;
pub const NAMES: [&str; 2] = ["alpha", "beta"];

/// Appends what it is sent to a file, flushes it, and says so; with the name of its node.
const SERVICE: &str = r#"
import os, socket, sys, threading
mount, address, port, node, pidfile = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
log = os.open(mount + "/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((address, port))
server.listen(64)
if os.fork():
    os._exit(0)
os.setsid()
with open(pidfile, "w") as f:
    f.write(str(os.getpid()))
def serve(client):
    try:
        for line in client.makefile():
            os.write(log, (line.strip() + " " + node + "\n").encode())
            os.fsync(log)
            client.sendall(b"ok " + line.encode())
    except OSError:
        os._exit(3)
while True:
    client, _ = server.accept()
    threading.Thread(target=serve, args=(client,), daemon=True).start()
"#;

/// One machine.
struct Host {
    namespace: String,
    /// Holds the namespaces while nothing else runs in them.
    holder: Child,
    daemon: Option<Child>,
    starts: u32,
}

pub struct Hosts {
    folder: tempfile::TempDir,
    prefix: String,
    hosts: Vec<Host>,
    /// On the machine of the clients, if there is one.
    witness: Option<Child>,
    watched: bool,
}

pub fn is_possible() -> bool {
    let there = |path: &str| Path::new(path).exists();
    let root = nix::unistd::geteuid().is_root() && there("/dev/fuse") && there("/dev/loop-control");
    let programs = ["ip", "nsenter", "unshare", "mkfs.ext4", "fsck.ext4", "python3"];
    let missing = programs.into_iter().find(|p| !run("sh", &["-c", &format!("command -v {p}")]).status.success());
    if !root {
        println!("SKIPPED: it takes root, FUSE and loop devices");
    } else if let Some(program) = missing {
        println!("SKIPPED: {program} is not installed");
    } else if !run("ip", &["netns", "list"]).status.success() {
        println!("SKIPPED: this machine lets nobody make network namespaces");
    } else {
        return true;
    }
    false
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

#[track_caller]
fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out.into_owned()
}

fn ip(words: &str) {
    succeed("ip", &words.split(' ').collect::<Vec<_>>());
}

#[track_caller]
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + 2 * PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Hosts {
    /// Both nodes run, the first is active and both are in sync; its volume has a file system, if `formatted`. Then the
    /// file gets its `[handoff]`, and the daemons are started anew.
    pub fn new(name: &str, formatted: bool) -> Hosts {
        Hosts::make(name, formatted, false)
    }

    /// The same with a witness, on the machine of the clients, at an address of its own.
    pub fn watched(name: &str) -> Hosts {
        Hosts::make(name, true, true)
    }

    fn make(name: &str, formatted: bool, watched: bool) -> Hosts {
        let prefix = format!("us{}{name}", std::process::id() % 100_000);
        let folder = tempfile::tempdir().unwrap();
        let mut hosts = Hosts { folder, prefix, hosts: Vec::new(), witness: None, watched };
        hosts.make_network();
        fs::write(hosts.path("service.py"), SERVICE).unwrap();
        hosts.write_file("");
        if watched {
            hosts.start_witness();
        }
        for node in 0..2 {
            hosts.tool("create", node, &[]).unwrap();
            hosts.start(node);
        }
        // Refused until they have met.
        eventually("alpha is promoted", || hosts.tool("promote", 0, &[]).is_ok());
        hosts.await_in_sync(0);
        let device = format!("/dev/understudy/{}-disk0", hosts.prefix);
        let make = if formatted { "mkfs.ext4 -q -F" } else { "dd if=/dev/urandom bs=64k count=4 status=none of=" };
        let line = if formatted { format!("{make} {device}") } else { format!("{make}{device}") };
        eventually("the device is there", || hosts.inside(0, &format!("test -b {device}")).is_ok());
        hosts.inside(0, &line).unwrap();
        hosts.inside(0, &format!("sync {device}")).unwrap();
        hosts.stop(1);
        hosts.stop(0);
        hosts
    }

    /// Of the resource.
    pub fn name(&self) -> &str {
        &self.prefix
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn make_network(&mut self) {
        for folder in ["/run/understudy", "/dev/understudy"] {
            fs::create_dir_all(folder).unwrap();
        }
        let hub = format!("{}-c", self.prefix);
        ip(&format!("netns add {hub}"));
        let in_hub = |words: &str| ip(&format!("-n {hub} {words}"));
        in_hub("link set lo up");
        in_hub("link add br0 type bridge");
        in_hub("addr add 10.77.0.9/24 dev br0");
        in_hub("addr add 10.77.0.8/24 dev br0");
        in_hub("link set br0 up");
        for (index, letter) in ["a", "b"].iter().enumerate() {
            let namespace = format!("{}-{letter}", self.prefix);
            ip(&format!("netns add {namespace}"));
            in_hub(&format!("link add v{letter} type veth peer name eth0 netns {namespace}"));
            in_hub(&format!("link set v{letter} master br0 up"));
            ip(&format!("-n {namespace} link set lo up"));
            ip(&format!("-n {namespace} addr add 10.77.0.{}/24 dev eth0", index + 1));
            ip(&format!("-n {namespace} link set eth0 up"));
            // A machine has its own control groups; where it has none, the test that needs them says so.
            let line = "mount -t cgroup2 cgroup2 /sys/fs/cgroup; mount -t tmpfs tmpfs /run/understudy && mount -t tmpfs tmpfs /dev/understudy && echo && exec sleep infinity";
            let mut holder = Command::new("ip")
                .args(["netns", "exec", &namespace, "unshare", "--mount", "--propagation", "private", "sh", "-c", line])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut ready = String::new();
            BufReader::new(holder.stdout.take().unwrap()).read_line(&mut ready).unwrap();
            assert_eq!(ready, "\n", "its namespaces are there");
            self.hosts.push(Host { namespace, holder, daemon: None, starts: 0 });
        }
    }

    /// The whole file, with this at its end.
    pub fn write_file(&self, handoff: &str) {
        let mut text = format!("[resource]\nname = \"{}\"\ninsecure = true\nstall_ms = 1000\n", self.prefix);
        text.push_str("[volume.disk0]\nsize = \"64MiB\"\ndevice = \"fuse\"\n");
        for (index, name) in NAMES.iter().enumerate() {
            let dir = self.path(name).display().to_string();
            text.push_str(&format!(
                "[node.{name}]\naddress = \"10.77.0.{}:7801\"\ndir = \"{dir}\"\nlog_size = \"16MiB\"\n",
                index + 1
            ));
        }
        if self.watched {
            let dir = self.path("w1").display().to_string();
            text.push_str(&format!("[witness.w1]\naddress = \"10.77.0.8:7800\"\ndir = \"{dir}\"\n"));
        }
        text.push_str(handoff);
        fs::write(self.path("r.toml"), text).unwrap();
    }

    pub fn start_witness(&mut self) {
        let errors = fs::File::create(self.path("w1.err")).unwrap();
        let hub = format!("{}-c", self.prefix);
        let mut witness = Command::new("ip");
        witness.args(["netns", "exec", &hub]).arg(exe()).arg("witness").arg(self.path("r.toml"));
        witness.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        self.witness = Some(witness.spawn().unwrap());
        let status = || {
            run(&exe().display().to_string(), &["status", &self.path("r.toml").display().to_string(), "--node", "w1"])
        };
        eventually("the witness answers", || status().status.success());
    }

    pub fn kill_witness(&mut self) {
        if let Some(mut witness) = self.witness.take() {
            // `ip netns exec` becomes the program.
            witness.kill().unwrap();
            witness.wait().unwrap();
        }
    }

    /// The two no longer reach each other; both reach the witness and the clients.
    pub fn part(&self, parted: bool) {
        let word = if parted { "on" } else { "off" };
        for letter in ["a", "b"] {
            succeed(
                "bridge",
                &["-n", &format!("{}-c", self.prefix), "link", "set", "dev", &format!("v{letter}"), "isolated", word],
            );
        }
    }

    /// Nothing that a machine sends to this address of the network arrives; what comes from there does.
    pub fn mute(&self, node: usize, towards: u8, muted: bool) {
        let namespace = &self.hosts[node].namespace;
        let way = format!("10.77.0.{towards} dev eth0");
        match muted {
            true => ip(&format!("-n {namespace} neigh replace {way} lladdr 02:00:00:00:00:99 nud permanent")),
            false => ip(&format!("-n {namespace} neigh del {way}")),
        }
    }

    /// Its cable, at the other end.
    pub fn cable(&self, node: usize, plugged: bool) {
        let letter = ["a", "b"][node];
        self.on_the_link(&format!("link set v{letter} {}", if plugged { "up" } else { "down" }));
    }

    /// Stops or continues every process of that machine.
    pub fn freeze(&self, node: usize, frozen: bool) {
        let signal = if frozen { nix::sys::signal::Signal::SIGSTOP } else { nix::sys::signal::Signal::SIGCONT };
        for pid in self.processes(node) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal);
        }
    }

    /// A mount, an address and the service, and further lines.
    pub fn with_handoff(&mut self, more: &str) {
        let at = self.path("mnt").display().to_string();
        let script = self.path("service.py").display().to_string();
        let pidfile = format!("{}/pid-$UNDERSTUDY_NODE", self.folder.path().display());
        let start = format!("exec python3 {script} $UNDERSTUDY_MOUNT {ADDRESS} {PORT} $UNDERSTUDY_NODE {pidfile}");
        let stop = format!("kill $(cat {pidfile}); true");
        self.write_file(&format!(
            "[handoff]\nmount = {{ volume = \"disk0\", at = \"{at}\", type = \"ext4\", options = \"noatime\" }}\n\
             address = {{ ip = \"{ADDRESS}/24\", interface = \"eth0\" }}\nservice = {{ start = \"{start}\", stop = \"{stop}\" }}\n{more}\n"
        ));
        for node in 0..2 {
            self.start(node);
        }
    }

    pub fn start(&mut self, node: usize) {
        let file = self.path("r.toml");
        let host = &mut self.hosts[node];
        host.starts += 1;
        let errors = fs::File::create(self.folder.path().join(format!("{}.{}.err", NAMES[node], host.starts))).unwrap();
        let pid = host.holder.id().to_string();
        let mut daemon = Command::new("nsenter");
        daemon.args(["--target", &pid, "--mount", "--net"]).arg(exe()).arg("run").arg(file);
        // Stand-ins of a test for programs of the machine.
        let path =
            format!("{}:{}", self.folder.path().join("bin").display(), std::env::var("PATH").unwrap_or_default());
        daemon.env("PATH", path);
        daemon.args(["--node", NAMES[node]]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        host.daemon = Some(daemon.spawn().unwrap());
        eventually("the daemon answers", || self.tool("status", node, &[]).is_ok());
    }

    pub fn is_running(&mut self, node: usize) -> bool {
        self.hosts[node].daemon.as_mut().is_some_and(|d| matches!(d.try_wait(), Ok(None)))
    }

    /// What the daemon has said since it was started.
    pub fn said(&self, node: usize) -> String {
        let name = format!("{}.{}.err", NAMES[node], self.hosts[node].starts);
        fs::read_to_string(self.path(&name)).unwrap_or_default()
    }

    /// A process in the machine's namespaces.
    pub fn holder(&self, node: usize) -> u32 {
        self.hosts[node].holder.id()
    }

    pub fn stop(&mut self, node: usize) {
        self.tool("stop", node, &[]).unwrap();
        if let Some(mut daemon) = self.hosts[node].daemon.take() {
            daemon.wait().unwrap();
        }
    }

    /// The daemon alone.
    pub fn kill_daemon(&mut self, node: usize) {
        if let Some(mut daemon) = self.hosts[node].daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    /// Everything on that machine, and its link.
    pub fn kill_machine(&mut self, node: usize) {
        ip(&format!("-n {} link set eth0 down", self.hosts[node].namespace));
        self.kill_all(node);
        self.kill_daemon(node);
    }

    pub fn link_up(&self, node: usize) {
        ip(&format!("-n {} link set eth0 up", self.hosts[node].namespace));
    }

    /// All living processes in the machine's network namespace, but the one that holds it.
    fn processes(&self, node: usize) -> Vec<u32> {
        let holder = self.hosts[node].holder.id();
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let ours = of(holder);
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let is_dead = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let dead = stat.rsplit_once(") ").is_none_or(|(_, tail)| tail.starts_with(['Z', 'X']));
            // A thread of it may still be at work: were it a device's, and the last one of the namespace, its own file system would
            // be unmounted in its end, and wait for it.
            dead && fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) <= 1
        };
        pids.filter(|p| *p != holder && ours.is_some() && of(*p) == ours && !is_dead(*p)).collect()
    }

    /// All of them.
    fn kill_all(&self, node: usize) {
        // Until none is found: one that was just being started is missed by the first look.
        loop {
            let left = self.processes(node);
            if left.is_empty() {
                return;
            }
            for pid in left {
                let _ =
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs a shell's line on that machine.
    pub fn inside(&self, node: usize, line: &str) -> Result<String, String> {
        let pid = self.hosts[node].holder.id().to_string();
        let output = run("nsenter", &["--target", &pid, "--mount", "--net", "sh", "-c", line]);
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
    }

    /// On the machine of the clients.
    pub fn on_the_link(&self, words: &str) {
        ip(&format!("-n {}-c {words}", self.prefix));
    }

    pub fn ask_the_link(&self, words: &str) -> String {
        let words = format!("-n {}-c {words}", self.prefix);
        succeed("ip", &words.split(' ').collect::<Vec<_>>())
    }

    pub fn tool(&self, command: &str, node: usize, more: &[&str]) -> Result<String, String> {
        let mut run = Command::new(exe());
        run.arg(command).arg(self.path("r.toml")).args(["--node", NAMES[node]]).args(more).stdin(Stdio::null());
        let output = run.output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
    }

    pub fn status(&self, node: usize) -> Value {
        let text = self.tool("status", node, &["--json"]).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    pub fn handoff(&self, node: usize) -> String {
        self.status(node)["handoff"]["state"].as_str().unwrap_or("-").to_string()
    }

    #[track_caller]
    pub fn await_handoff(&self, node: usize, state: &str) {
        let mut last = String::new();
        let deadline = Instant::now() + 2 * PATIENCE;
        while self.handoff(node) != state {
            last = self.status(node)["handoff"].to_string();
            assert!(Instant::now() < deadline, "{} is not {state}: {last}", NAMES[node]);
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(last);
    }

    #[track_caller]
    pub fn await_in_sync(&self, node: usize) {
        eventually("both are in sync", || self.status(node)["in_sync"].as_array().is_some_and(|l| l.len() == 2));
    }

    /// Which machines have the address, the mount and a process of the service.
    pub fn standing(&self, node: usize) -> [bool; 3] {
        let address = self.inside(node, &format!("ip addr show dev eth0 | grep -q {ADDRESS}/")).is_ok();
        let mount =
            self.inside(node, &format!("grep -q ' {} ' /proc/self/mountinfo", self.path("mnt").display())).is_ok();
        let mark = format!("UNDERSTUDY_SERVICE={}/{}", self.prefix, NAMES[node]);
        [address, mount, !understudy_kernel::holders::of_mark(&mark).is_empty()]
    }

    /// Everything stands there, and nothing on the other.
    #[track_caller]
    pub fn assert_only(&self, node: usize) {
        assert_eq!(self.standing(node), [true; 3], "address, mount, service of {}", NAMES[node]);
        assert_eq!(self.standing(1 - node), [false; 3], "address, mount, service of {}", NAMES[1 - node]);
    }

    /// What is in the service's file on that machine: each line's number, and who wrote it.
    pub fn log(&self, node: usize) -> BTreeMap<u64, String> {
        let text = self.inside(node, &format!("cat {}/log", self.path("mnt").display())).unwrap_or_default();
        let line = |l: &str| l.split_once(' ').and_then(|(n, who)| Some((n.parse().ok()?, who.to_string())));
        text.lines().filter_map(line).collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.kill_witness();
        if std::thread::panicking() {
            println!("--- w1:\n{}", fs::read_to_string(self.path("w1.err")).unwrap_or_default());
            for (node, name) in NAMES.iter().enumerate() {
                println!("--- status of {name}: {}", self.status(node)["handoff"]);
                let starts = self.hosts.get(node).map_or(0, |h| h.starts);
                for start in 1..=starts {
                    let said = fs::read_to_string(self.path(&format!("{name}.{start}.err"))).unwrap_or_default();
                    println!("--- {name}, start {start}:\n{said}");
                }
                println!(
                    "--- {name}, handoff.log:\n{}",
                    fs::read_to_string(self.path(name).join("handoff.log")).unwrap_or_default()
                );
            }
        }
        for node in 0..self.hosts.len() {
            self.kill_all(node);
            if let Some(mut daemon) = self.hosts[node].daemon.take() {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
            // Its mounts go with the last process of the namespace.
            let _ = self.hosts[node].holder.kill();
            let _ = self.hosts[node].holder.wait();
        }
        // Whoever served a device was killed: what is left of it fails, and is taken apart here.
        let left = run("losetup", &["--list", "--noheadings", "--output", "NAME,BACK-FILE"]);
        let ours = format!("/{}-disk0", self.prefix);
        for line in String::from_utf8_lossy(&left.stdout).lines().filter(|l| l.contains(&ours)) {
            run("losetup", &["--detach", line.split_whitespace().next().unwrap_or_default()]);
        }
        for letter in ["a", "b", "c"] {
            run("ip", &["netns", "del", &format!("{}-{letter}", self.prefix)]);
        }
        self.remove_groups();
    }
}

impl Hosts {
    /// The services' control groups, which outlive a daemon that was killed.
    fn remove_groups(&self) {
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let hierarchy = mounts.lines().filter(|l| l.contains(" cgroup2 ")).find_map(|l| l.split(' ').nth(1));
        let groups = hierarchy.and_then(|at| fs::read_dir(at).ok()).into_iter().flatten().flatten();
        let ours = format!("understudy.{}.", self.prefix);
        for group in groups.filter(|g| g.file_name().to_string_lossy().starts_with(&ours)) {
            let _ = fs::remove_dir(group.path());
        }
    }
}

/// A client that writes all the time, and keeps its own list of what was committed.
pub struct Client {
    stop: Arc<AtomicBool>,
    committed: Arc<Mutex<Vec<u64>>>,
    count: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    pub fn start(hosts: &Hosts) -> Client {
        let (stop, committed, count) = (Arc::default(), Arc::default(), Arc::default());
        let mut client = Client { stop, committed, count, thread: None };
        let namespace = fs::File::open(format!("/run/netns/{}-c", hosts.prefix)).unwrap();
        let (stop, committed, count) = (client.stop.clone(), client.committed.clone(), client.count.clone());
        client.thread = Some(std::thread::spawn(move || {
            // SAFETY: a descriptor that lives; only this thread changes its namespace.
            assert_eq!(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            let address: SocketAddr = format!("{ADDRESS}:{PORT}").parse().unwrap();
            let mut next = 0;
            while !stop.load(Ordering::Relaxed) {
                let _ = write_on(address, &mut next, &stop, |number| {
                    committed.lock().unwrap().push(number);
                    count.fetch_add(1, Ordering::Relaxed);
                });
                std::thread::sleep(Duration::from_millis(10));
            }
        }));
        client
    }

    /// Waits until so many more are committed.
    #[track_caller]
    pub fn await_commits(&self, more: usize) {
        let goal = self.count.load(Ordering::Relaxed) + more;
        eventually("the client's writes are committed", || self.count.load(Ordering::Relaxed) >= goal);
    }

    pub fn end(mut self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let committed = self.committed.lock().unwrap();
        committed.clone()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Each number is sent once: what came of one whose answer is missing is not known.
fn write_on(address: SocketAddr, next: &mut u64, stop: &AtomicBool, mut done: impl FnMut(u64)) -> std::io::Result<()> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_millis(300))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while !stop.load(Ordering::Relaxed) {
        *next += 1;
        (&stream).write_all(format!("{next}\n").as_bytes())?;
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line != format!("ok {next}\n") {
            return Ok(());
        }
        done(*next);
    }
    Ok(())
}

/// Nothing that was committed is lost.
#[track_caller]
pub fn assert_kept(hosts: &Hosts, node: usize, committed: &[u64]) {
    let log = hosts.log(node);
    let lost: Vec<u64> = committed.iter().filter(|n| !log.contains_key(n)).copied().collect();
    assert!(lost.is_empty(), "{} of {} committed lines are lost: {lost:?}", lost.len(), committed.len());
    println!("{} committed lines, all kept", committed.len());
}
