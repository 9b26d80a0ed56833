//! Which processes hold a mount, or belong to a service, and ending them.
//!
//! Nothing here touches the file system in question, which may hang: descriptors tell the number of their mount, mappings that of their
//! device, and of a folder only a path is opened (`O_PATH`), which asks its file system nothing. Names of folders tell nothing: each mount
//! namespace has its own.

use super::mounting;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A process, told apart from a later one of the same number by when it was started.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub pid: i32,
    started: u64,
    pub name: String,
}

impl Holder {
    pub(crate) fn new(pid: i32) -> Option<Holder> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in brackets, and may have blanks and brackets itself.
        let (head, tail) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_string();
        let mut fields = tail.split_whitespace();
        // What is dead holds nothing, and cannot be killed.
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        Some(Holder { pid, started: fields.nth(18)?.parse().ok()?, name })
    }

    fn is_there(&self) -> bool {
        Holder::new(self.pid).is_some_and(|h| h.started == self.started)
    }

    /// Signals it, if it is still the same process.
    pub fn signal(&self, signal: Signal) {
        if self.is_there() {
            // It may end in this very moment.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

fn pids() -> Vec<i32> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(|pid| *pid as u32 != own).collect()
}

/// Whoever has something open, mapped, or as its folder in what is mounted from the device `numbers` (`7:3`), in whatever mount
/// namespace.
pub fn of_device(numbers: &str) -> Vec<Holder> {
    let ids: BTreeSet<u64> = mounting::anywhere(numbers).into_iter().map(|m| m.id).collect();
    let mapped = mapped_as(numbers);
    let holds =
        |pid: &i32| has_open(*pid, &ids) || is_in(*pid, &ids) || mapped.as_ref().is_some_and(|m| has_mapped(*pid, m));
    pids().iter().filter(|p| holds(p)).filter_map(|p| Holder::new(*p)).collect()
}

fn has_open(pid: i32, mounts: &BTreeSet<u64>) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    entries.filter_map(|e| mount_of(&e.path())).any(|id| mounts.contains(&id))
}

/// As `/proc/PID/fdinfo/NUMBER` tells it.
fn mount_of(info: &Path) -> Option<u64> {
    let text = fs::read_to_string(info).ok()?;
    text.lines().find_map(|l| l.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// Whether its folder, or what is the root for it, is in one of these mounts.
fn is_in(pid: i32, mounts: &BTreeSet<u64>) -> bool {
    let mount = |folder: &str| {
        let mut open = OpenOptions::new();
        let opened = open.read(true).custom_flags(libc::O_PATH).open(format!("/proc/{pid}/{folder}")).ok()?;
        mount_of(Path::new(&format!("/proc/self/fdinfo/{}", opened.as_raw_fd())))
    };
    ["cwd", "root"].into_iter().filter_map(mount).any(|id| mounts.contains(&id))
}

/// As `/proc/PID/maps` writes a device's numbers.
fn mapped_as(numbers: &str) -> Option<String> {
    let (major, minor) = numbers.split_once(':')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    Some(format!("{major:02x}:{minor:02x}"))
}

fn has_mapped(pid: i32, device: &str) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().any(|line| line.split_whitespace().nth(3) == Some(device))
}

/// Whoever was started with this in its environment (`NAME=VALUE`), and all that came of it unless it cleared its environment.
pub fn of_mark(mark: &str) -> Vec<Holder> {
    let marked = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|entry| entry == mark.as_bytes())
    };
    pids().iter().filter(|p| marked(p)).filter_map(|p| Holder::new(*p)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn a_marked_process_is_found_and_ended() {
        let mark = format!("UNDERSTUDY_TEST_MARK={}", std::process::id());
        let (name, value) = mark.split_once('=').unwrap();
        let mut shell = Command::new("sh").args(["-c", "sleep 1000 & wait"]).env(name, value).spawn().unwrap();
        let found = loop {
            let found = of_mark(&mark);
            if found.iter().any(|h| h.name == "sleep") {
                break found;
            }
        };
        assert!(found.iter().any(|h| h.pid == shell.id() as i32));
        found.iter().for_each(|h| h.signal(Signal::SIGKILL));
        shell.wait().unwrap();
        while !of_mark(&mark).is_empty() {
            std::thread::yield_now();
        }
    }

    /// A container's root: all other processes have a `/`, too.
    #[test]
    fn a_mount_that_is_the_root_of_another_namespace_is_held_by_whoever_lives_there() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let line = format!(
            "mount --make-rprivate / && mount -t tmpfs tmpfs {at} && mkdir {at}/old && cd {at} && pivot_root . old && cd / && \
             while read line; do echo /proc/[0-9]* $line; done"
        );
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "sh", "-c", &line]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = shell.spawn().unwrap();
        let mut said = String::new();
        let asked = shell.stdin.as_mut().unwrap().write_all(b"there\n");
        BufReader::new(shell.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        if asked.is_err() || said.is_empty() {
            let _ = shell.wait();
            return println!("SKIPPED: it takes root");
        }
        let root = mounting::table(&shell.id().to_string()).into_iter().find(|m| m.at == Path::new("/")).unwrap();
        let found = of_device(&root.device);
        assert_eq!(found.iter().map(|h| h.pid).collect::<Vec<_>>(), [shell.id() as i32], "{found:?}");
        drop(shell.stdin.take());
        shell.wait().unwrap();
    }

    #[test]
    fn another_process_of_the_same_number_is_left_alone() {
        let mut sleep = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut holder = Holder::new(sleep.id() as i32).unwrap();
        holder.started += 1;
        holder.signal(Signal::SIGKILL);
        assert!(sleep.try_wait().unwrap().is_none());
        sleep.kill().unwrap();
        sleep.wait().unwrap();
    }
}
