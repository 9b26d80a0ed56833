//! Child processes that do not outlive this one.

use nix::sys::prctl;
use nix::sys::signal::Signal;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

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

/// Starts a child in the process group of this process.
pub fn spawn_beside(command: &mut Command, fate: Fate) -> io::Result<Child> {
    if fate == Fate::DiesWithUs {
        let before_exec = || prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed. This is one system call and a conversion of
        // its error number, neither of which allocates or locks.
        unsafe { command.pre_exec(before_exec) };
    }
    command.spawn()
}
