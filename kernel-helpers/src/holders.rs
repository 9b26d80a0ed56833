//! Which processes hold a mount, or belong to a service, and ending them.
//!
//! Nothing here touches the file system in question, which may hang: descriptors tell the number of their mount, mappings that of their
//! device, and folders are compared by name.

use super::mounting;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A process, told apart from a later one of the same number by when it was started.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub pid: i32,
    started: u64,
    pub name: String,
}

impl Holder {
    fn new(pid: i32) -> Option<Holder> {
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
    let mut seen = BTreeSet::new();
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    let pids = pids();
    for pid in &pids {
        let namespace = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        if namespace.is_none_or(|n| !seen.insert(n)) {
            continue;
        }
        for mounted in mounting::table(&pid.to_string()).into_iter().filter(|m| m.device == numbers) {
            ids.insert(mounted.id);
            places.insert(mounted.at);
        }
    }
    let mapped = mapped_as(numbers);
    let holds = |pid: &i32| {
        has_open(*pid, &ids)
            || is_in(*pid, places.iter().map(AsRef::as_ref))
            || mapped.as_ref().is_some_and(|m| has_mapped(*pid, m))
    };
    pids.iter().filter(|p| holds(p)).filter_map(|p| Holder::new(*p)).collect()
}

fn has_open(pid: i32, mounts: &BTreeSet<u64>) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let mount_of = |text: String| text.lines().find_map(|l| l.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
    entries.filter_map(|e| mount_of(fs::read_to_string(e.path()).ok()?)).any(|id| mounts.contains(&id))
}

fn is_in<'a>(pid: i32, mut places: impl Iterator<Item = &'a Path>) -> bool {
    let folders: Vec<_> =
        ["cwd", "root"].iter().filter_map(|f| fs::read_link(format!("/proc/{pid}/{f}")).ok()).collect();
    places.any(|place| folders.iter().any(|f| f.starts_with(place)))
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
    use std::process::Command;

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
