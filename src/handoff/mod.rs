//! The handoff: what an active node does above its device, in order, and undoes in reverse when it steps down.
//!
//! device → check of the file system → mount → address → service → healthy. [`Machine`] decides; it is pure like the core: events in,
//! actions out, the time an argument, no I/O. `daemon/handoff` carries its actions out and keeps the record on disk.
//! `docs/handoff.md` has the table of what happens at each failure.
//!
//! | rule | |
//! |---|---|
//! | H1 | what is begun is durable in the record before it begins, and stays there until its undo has ended well |
//! | H2 | steps go up one after the other; the service never starts without its mount, nor on a node that does not serve |
//! | H3 | steps go down in reverse; a file system is unmounted in order only when the service is down |
//! | H4 | when the term is lost the device fails first, before anything else is undone |
//! | H5 | a check of a file system is never killed because it takes long, nor because the daemon ends |
//! | H6 | what a daemon that died has left is undone before anything goes up |
//! | H7 | what cannot be undone keeps the node out (`unable`), and is tried again |

mod descent;
mod machine;
#[cfg(test)]
mod random_tests;
mod report;
#[cfg(test)]
mod tests;
mod watch;
#[cfg(test)]
mod world_tests;

pub use machine::Machine;
pub use report::{Direction, Note, Phase, Report, View};

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The steps, in the order in which they go up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Each device that the file asks for is there.
    Device,
    /// The user's hooks, before anything is done in either direction.
    Before,
    /// The file system is checked.
    Check,
    Mount,
    Address,
    Service,
    /// The health check passes.
    Healthy,
    /// The user's hooks, after everything is done in either direction.
    After,
}

impl Step {
    pub const ALL: [Step; 8] = [
        Step::Device,
        Step::Before,
        Step::Check,
        Step::Mount,
        Step::Address,
        Step::Service,
        Step::Healthy,
        Step::After,
    ];

    /// Whether it leaves something that has to be undone.
    pub fn has_undo(self) -> bool {
        matches!(self, Step::Mount | Step::Address | Step::Service)
    }

    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Step::Device => "device",
            Step::Before => "before",
            Step::Check => "check",
            Step::Mount => "mount",
            Step::Address => "address",
            Step::Service => "service",
            Step::Healthy => "healthy",
            Step::After => "after",
        }
    }
}

/// What is begun and not undone: what the record on disk says. Only steps with an undo.
pub type Begun = BTreeSet<Step>;

/// One thing to do, with an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Ends when the devices are there.
    AwaitDevice,
    HooksBefore(Direction),
    HooksAfter(Direction),
    CheckFileSystem,
    Mount,
    /// Asks whether somebody has the address, adds it, and announces it.
    AddAddress,
    StartService,
    CheckHealth,
    /// Asks the service to stop, and waits until it has.
    StopService,
    /// Kills every process of the service.
    KillService,
    RemoveAddress,
    /// In order: what is dirty is written.
    Unmount,
    /// Asks whoever holds the mount to end.
    TerminateHolders,
    KillHolders,
    /// The devices fail for ever, whoever uses them.
    FailDevices,
    /// Takes the mount out of sight; what is left goes with its last user.
    UnmountLazily,
}

/// One run of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// What a failing health check leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFail {
    /// Another node takes over, where one is in sync.
    Takeover,
    /// The service is stopped and started, three times in ten minutes; then as `Takeover`.
    Restart,
    /// It is only said.
    Report,
}

/// How the service's health is looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    pub every_ms: u64,
    /// So many failures one after the other count.
    pub fail: u32,
    pub on_fail: OnFail,
}

/// Time limits in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub device_ms: u64,
    pub hooks_ms: u64,
    pub mount_ms: u64,
    pub address_ms: u64,
    /// To start until healthy, and to stop.
    pub service_ms: u64,
    /// One health check.
    pub check_ms: u64,
}

impl Limits {
    pub const DEFAULT: Limits = Limits {
        device_ms: 30_000,
        hooks_ms: 30_000,
        mount_ms: 30_000,
        address_ms: 10_000,
        service_ms: 60_000,
        check_ms: 10_000,
    };
}

/// What the user's file asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    pub limits: Limits,
    pub health: Option<Health>,
}

impl Plan {
    /// Nothing goes up; what is left is undone.
    pub const NOTHING: Plan = Plan { steps: Vec::new(), limits: Limits::DEFAULT, health: None };

    pub fn has(&self, step: Step) -> bool {
        self.steps.contains(&step)
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This node serves.
    Serve,
    /// It no longer does, asked or not.
    Lost,
    /// It is about to step down; answered by [`Action::SteppedDown`].
    StepDown {
        force: bool,
    },
    /// The daemon is about to end: as [`Event::StepDown`], but a check of the file system is waited for.
    Leave,
    /// That came to nothing, or what failed has been mended: up again.
    PutUp,
    /// A device that is gone, with whatever stands on it; another is made.
    DeviceGone {
        why: String,
    },
    Ended {
        job: JobId,
        result: Result<(), String>,
    },
    /// The answer to [`Action::AskPeer`].
    Peer(Option<String>),
    /// The answer to [`Action::HandOver`].
    HandedOver(Result<(), String>),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes up from the beginning, nothing stands: what is done and undone from now on is what the file asks for now.
    Begin,
    /// Make `begun` durable as the record, then do the task, and say how it ended. Where the record cannot be written the task is not
    /// done, and has failed.
    Start {
        job: JobId,
        task: Task,
        begun: Begun,
    },
    /// Kill it; it still ends.
    Kill {
        job: JobId,
    },
    /// This is what is left to undo.
    Record {
        begun: Begun,
    },
    /// Which node is in sync and could take over?
    AskPeer,
    /// Let that node be active. What stood here is undone but for the device.
    HandOver {
        to: String,
    },
    /// The answer to a step-down; one for each.
    SteppedDown(Result<(), String>),
    Note(Note),
    /// One way up or down is over: for the history.
    Remember(Report),
    /// It is `unable` after the term was lost: reset the machine, where there is a watchdog.
    Reset,
}
