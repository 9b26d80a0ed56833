//! Child processes that do not outlive this one.

use nix::sys::prctl;
use nix::sys::signal::Signal;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use understudy_kernel::memory;

/// What becomes of a child when this process ends, however that comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The kernel kills it, when the *thread* that started it ends.
    DiesWithUs,
    LivesOn,
}

/// Starts a child in a process group of its own: what is typed at the terminal reaches this process alone.
pub fn spawn(command: &mut Command, fate: Fate) -> io::Result<Child> {
    spawn_beside(command.process_group(0), fate)
}

/// Starts a child in the process group of this process. It is not spared where memory is all used up, as this process may be.
pub fn spawn_beside(command: &mut Command, fate: Fate) -> io::Result<Child> {
    if memory::is_spared() {
        // SAFETY: two system calls without anything that allocates or locks, between fork and exec.
        unsafe { command.pre_exec(memory::spare_us_no_more) };
    }
    if fate == Fate::DiesWithUs {
        let before_exec = || prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed. This is one system call and a conversion of
        // its error number, neither of which allocates or locks.
        unsafe { command.pre_exec(before_exec) };
    }
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Stdio;

    #[test]
    fn only_this_process_is_spared() {
        const SCORE: &str = "/proc/self/oom_score_adj";
        let was = fs::read_to_string(SCORE).unwrap();
        if fs::write(SCORE, "-900").is_err() {
            return println!("SKIPPED: no CAP_SYS_RESOURCE");
        }
        let child = spawn(Command::new("cat").arg(SCORE).stdout(Stdio::piped()), Fate::DiesWithUs);
        let said = child.and_then(Child::wait_with_output).map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        fs::write(SCORE, was.trim()).unwrap();
        assert_eq!(said.unwrap(), "0\n");
    }
}
