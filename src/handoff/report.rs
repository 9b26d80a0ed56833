//! What people see of a handoff: phases with their times, and events.

use super::Step;
use crate::core::Time;
use serde::{Deserialize, Serialize};

/// Where a handoff goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Up,
    /// In order.
    Down,
    /// The term was lost.
    Lost,
    /// What a daemon that died has left is undone.
    Leftover,
}

/// One step on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Phase {
    pub phase: &'static str,
    /// When it ended, since the way began.
    pub at_ms: u64,
    pub took_ms: u64,
    /// Why it failed; none where it did not.
    pub failed: Option<String>,
}

/// One way up or down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub direction: Direction,
    pub why: String,
    pub phases: Vec<Phase>,
    pub took_ms: u64,
    /// Why it did not come to its end; none where it did.
    pub failed: Option<String>,
    #[serde(skip)]
    pub(super) began: Time,
}

impl Report {
    pub(super) fn new(direction: Direction, why: &str, now: Time) -> Report {
        Report { direction, why: why.into(), phases: Vec::new(), took_ms: 0, failed: None, began: now }
    }

    pub(super) fn phase(&mut self, phase: &'static str, since: Time, now: Time, failed: Option<String>) {
        let ms = |from: Time| now.since_us(from) / 1000;
        self.phases.push(Phase { phase, at_ms: ms(self.began), took_ms: ms(since), failed });
        self.took_ms = ms(self.began);
    }
}

/// What happened, for people and monitoring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Note {
    /// A step is done.
    HandoffStep {
        step: Step,
        ms: u64,
    },
    /// One failed; what was done is undone.
    HandoffFailed {
        step: Step,
        why: String,
    },
    /// Everything is up.
    HandoffUp {
        ms: u64,
    },
    /// Everything is undone.
    HandoffDown {
        ms: u64,
    },
    /// What a daemon that died has left is undone first.
    HandoffLeftover {
        steps: Vec<Step>,
    },
    /// The node stays active without what the handoff is to give.
    HandoffFaulted {
        why: String,
    },
    /// Something cannot be undone; it is tried again.
    HandoffUnable {
        why: String,
    },
    /// A check of the file system takes longer than a mount may; it is left to its end.
    FsckTakesLong {
        ms: u64,
    },
    /// The daemon is told to stop, and does when a check of the file system has ended.
    StopAwaitsCheck,
    /// What does not stop by itself is dealt with in the next stage.
    HandoffEscalates {
        step: Step,
        why: String,
    },
    HealthFailed {
        count: u32,
        why: String,
    },
    HealthBack,
    ServiceRestarts {
        why: String,
    },
    /// Another node is asked to be active.
    HandingOver {
        to: String,
        why: String,
    },
    /// There is none, or it did not work.
    NotHandedOver {
        why: String,
    },
}

/// How a handoff stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct View {
    /// `down`, `going_up`, `up`, `unhealthy`, `going_down`, `handing_over`, `faulted` or `unable`.
    pub state: &'static str,
    /// The step that is under way.
    pub step: Option<Step>,
    /// How long, in ms.
    pub since_ms: Option<u64>,
    /// What is wrong.
    pub why: Option<String>,
    /// What stands: what the record on disk has.
    pub begun: Vec<Step>,
    /// The way that is under way, or the last one.
    pub way: Option<Report>,
}
