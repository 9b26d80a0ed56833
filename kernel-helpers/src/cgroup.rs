//! A control group (version 2) for the processes of a service: whatever they do to their environment, their session and their parents,
//! they stay in it, and all that is in it is killed at once.

use super::holders::Holder;
use super::mounting;
use nix::sys::signal::Signal;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A group, which may be gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group(PathBuf);

impl Group {
    /// Makes the group `name`: in the root of the hierarchy, so that no limit of this process's own group is the service's, or below that
    /// group where nothing else is permitted. One that is there is taken.
    ///
    /// # Errors
    /// Where this system has no such hierarchy, or this process may not.
    pub fn make(name: &str) -> io::Result<Group> {
        let table = mounting::table("self");
        let hierarchy = table.iter().rev().find(|m| m.kind == "cgroup2");
        let root = &hierarchy.ok_or_else(|| io::Error::other("no hierarchy of version 2 is mounted"))?.at;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own.lines().find_map(|l| l.strip_prefix("0::/")).map(|path| root.join(path));
        let mut refused = None;
        for place in [Some(root.clone()), own].into_iter().flatten() {
            match Group(place.join(name)).begin() {
                Ok(group) => return Ok(group),
                Err(e) => drop(refused.get_or_insert(e)),
            }
        }
        Err(refused.unwrap_or_else(|| ErrorKind::Unsupported.into()))
    }

    fn begin(self) -> io::Result<Group> {
        fs::create_dir_all(&self.0)?;
        let usable = OpenOptions::new().write(true).open(self.0.join("cgroup.procs"));
        match usable {
            Ok(_) => Ok(self),
            Err(e) => {
                self.remove();
                Err(e)
            }
        }
    }

    /// One that was made before.
    pub fn at(path: &Path) -> Group {
        Group(path.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// This process is of it from now on, and all that it starts.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn join(&self) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), "0")
    }

    /// Whether no process is left in it, or in a group within it.
    pub fn is_empty(&self) -> bool {
        let events = fs::read_to_string(self.0.join("cgroup.events")).unwrap_or_default();
        !events.lines().any(|l| l == "populated 1")
    }

    /// Its processes, as far as they can be seen from here.
    pub fn processes(&self) -> Vec<Holder> {
        let lists = self.folders().into_iter().filter_map(|f| fs::read_to_string(f.join("cgroup.procs")).ok());
        let pids: Vec<i32> = lists.flat_map(|l| l.lines().filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect();
        pids.into_iter().filter_map(Holder::new).collect()
    }

    /// Kills all that is in it. They may take a while to end.
    pub fn kill(&self) {
        // At once, and whatever is being started, from Linux 5.14 on.
        if fs::write(self.0.join("cgroup.kill"), "1").is_err() {
            self.processes().iter().for_each(|process| process.signal(Signal::SIGKILL));
        }
    }

    /// Removes it, if nothing is in it.
    pub fn remove(&self) {
        // The innermost first. The kernel keeps what is in use.
        self.folders().iter().rev().for_each(|folder| drop(fs::remove_dir(folder)));
    }

    /// It and all groups within it, the outer ones first.
    fn folders(&self) -> Vec<PathBuf> {
        let mut all = vec![self.0.clone()];
        let mut looked = 0;
        while let Some(folder) = all.get(looked) {
            let inner = fs::read_dir(folder).into_iter().flatten().flatten();
            let inner: Vec<PathBuf> =
                inner.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect();
            all.extend(inner);
            looked += 1;
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What clears its environment and its session, and what makes groups of its own, is killed with the rest.
    #[test]
    fn what_is_in_a_group_stays_in_it_and_is_killed() {
        let group = match Group::make(&format!("understudy-test-{}", std::process::id())) {
            Ok(group) => group,
            Err(e) => return println!("SKIPPED: {e}"),
        };
        assert!(group.is_empty());
        let line = "echo 0 > cgroup.procs && mkdir inner || exit 1; \
            (echo 0 > inner/cgroup.procs; exec setsid env -i sleep 1000) & exec setsid env -i sleep 1000";
        let mut shell = Command::new("sh").args(["-c", line]).current_dir(group.path()).spawn().unwrap();
        while group.processes().iter().filter(|p| p.name == "sleep").count() < 2 {
            assert_eq!(shell.try_wait().unwrap(), None, "the shell is a sleep by now");
            std::thread::yield_now();
        }
        assert!(!group.is_empty());
        group.remove();
        assert!(group.path().exists(), "it is in use");
        group.kill();
        shell.wait().unwrap();
        while !group.is_empty() {
            std::thread::yield_now();
        }
        assert!(group.processes().is_empty());
        group.remove();
        assert!(!group.path().exists());
    }
}
