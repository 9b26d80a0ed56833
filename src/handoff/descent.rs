//! Going down: in order, because the term is lost, or behind a daemon that died.
//!
//! A descent is a ladder of tasks. Those of one step follow each other: where one does not do, the next, harsher one is taken; where one
//! does, the rest of that step's is left out.

use super::machine::{Machine, Role, Running, State, UNABLE_MS};
use super::report::{Direction, Note, Report};
use super::{Action, Begun, Plan, Step, Task};
use std::collections::VecDeque;

/// Killing takes no longer, or does not work.
const KILL_MS: u64 = 5000;
/// Holders of a mount that are asked to end get so long.
const TERMINATE_MS: u64 = 5000;
/// Failing devices: their processes are asked, and do not wait for anything.
const FAIL_MS: u64 = 20_000;

/// What follows when all is undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Somebody asked.
    StepDown,
    /// A step failed.
    Fault {
        why: String,
    },
    HandOver {
        to: String,
    },
    /// Only the service goes down, and up again.
    Restart,
    Lost,
    Leftover,
    /// The device has gone; it goes up again on another.
    Anew,
}

#[derive(Debug)]
pub(super) struct Descent {
    direction: Direction,
    goal: Goal,
    rungs: VecDeque<(Step, Task)>,
    /// What could not be undone, and why.
    left: Vec<(Step, String)>,
    /// Jobs that did not end even when they were killed.
    stuck: Vec<(Step, String)>,
}

/// The ladder.
fn rungs(plan: &Plan, begun: &Begun, direction: Direction, goal: &Goal, force: bool) -> VecDeque<(Step, Task)> {
    use Task::*;
    let in_order = direction == Direction::Down;
    let mut rungs = VecDeque::new();
    let mut of = |step: Step, tasks: &[Task]| {
        let there = begun.contains(&step) || (!step.has_undo() && plan.has(step));
        rungs.extend(tasks.iter().filter(|_| there).map(|task| (step, *task)));
    };
    if *goal == Goal::Restart {
        of(Step::Service, &[StopService, KillService]);
        return rungs;
    }
    match direction {
        Direction::Up => unreachable!("no way down"),
        Direction::Down => {
            of(Step::Before, &[HooksBefore(direction)]);
            of(Step::Service, &[StopService, KillService]);
            of(Step::Address, &[RemoveAddress]);
            of(Step::Mount, &[Unmount, TerminateHolders, Unmount, KillHolders, Unmount]);
            if force {
                of(Step::Mount, &[FailDevices, KillHolders, UnmountLazily]);
            }
        }
        // H4. Nothing that is asked politely here could still do any good: what it would write goes nowhere.
        Direction::Lost => {
            of(Step::Device, &[FailDevices]);
            of(Step::Address, &[RemoveAddress]);
            of(Step::Service, &[KillService]);
            of(Step::Mount, &[KillHolders, UnmountLazily]);
        }
        // The address first: another node may have it by now. The mount goes in order, since the device may go on in this tenure.
        Direction::Leftover => {
            of(Step::Address, &[RemoveAddress]);
            of(Step::Service, &[KillService]);
            of(Step::Mount, &[KillHolders, Unmount]);
        }
    }
    if !in_order || !begun.is_empty() {
        of(Step::After, &[HooksAfter(direction)]);
    }
    rungs
}

/// Whether its success means that the step is undone.
fn settles(task: Task) -> bool {
    matches!(task, Task::StopService | Task::KillService | Task::RemoveAddress | Task::Unmount | Task::UnmountLazily)
}

impl Machine {
    pub(super) fn descend(&mut self, direction: Direction, goal: Goal, force: bool) {
        self.abandon_job();
        self.leaving = false;
        let rungs = rungs(&self.plan, &self.begun, direction, &goal, force);
        let why = match &goal {
            Goal::StepDown => "asked for".to_string(),
            Goal::Fault { why } => why.clone(),
            Goal::HandOver { .. } | Goal::Restart | Goal::Anew => self.why.clone().unwrap_or_default(),
            Goal::Lost => "this node no longer serves".to_string(),
            Goal::Leftover => "a daemon before has left it".to_string(),
        };
        self.report = Some(Report::new(direction, &why, self.now));
        self.state = State::Descending(Descent { direction, goal, rungs, left: Vec::new(), stuck: Vec::new() });
        self.next_rung();
    }

    fn rung_limit_ms(&self, task: Task) -> u64 {
        let limits = &self.plan.limits;
        match task {
            Task::StopService => limits.service_ms,
            Task::RemoveAddress => limits.address_ms,
            Task::Unmount | Task::UnmountLazily => limits.mount_ms,
            Task::HooksBefore(_) | Task::HooksAfter(_) => limits.hooks_ms,
            Task::TerminateHolders => TERMINATE_MS,
            Task::FailDevices => FAIL_MS,
            _ => KILL_MS,
        }
    }

    /// Takes the next rung if it may be taken now.
    pub(super) fn next_rung(&mut self) {
        let State::Descending(descent) = &mut self.state else { return };
        if self.job.is_some() {
            return;
        }
        match descent.rungs.front() {
            Some((_, task)) if !self.orphans.is_empty() && *task != Task::FailDevices => {}
            None if !self.orphans.is_empty() => {}
            None => self.descended(),
            Some(_) => {
                let Some((step, task)) = descent.rungs.pop_front() else { return };
                let limit_ms = self.rung_limit_ms(task);
                self.launch(task, step, Role::Rung, Some(limit_ms));
            }
        }
    }

    pub(super) fn rung_ended(&mut self, job: &Running, result: Result<(), String>) {
        let State::Descending(descent) = &mut self.state else { return };
        let step = job.step;
        let now = self.now;
        if let Some(report) = &mut self.report {
            report.phase(step.name(), job.since, now, result.clone().err());
        }
        match result {
            Ok(()) if settles(job.task) => {
                self.begun.remove(&step);
                descent.rungs.retain(|(s, _)| *s != step);
            }
            Ok(()) => {}
            Err(why) if descent.rungs.iter().any(|(s, _)| *s == step) => {
                self.note(Note::HandoffEscalates { step, why });
            }
            Err(why) if step.has_undo() => descent.left.push((step, why)),
            // Of hooks and devices nothing is left to undo: the connections of a device are gone with the term.
            Err(why) => self.note(Note::HandoffFailed { step, why }),
        }
        self.next_rung();
    }

    pub(super) fn orphan_is_stuck(&mut self, orphan: &Running) {
        if let State::Descending(descent) = &mut self.state
            && orphan.step.has_undo()
        {
            descent.stuck.push((orphan.step, format!("{:?} does not end even when it is killed", orphan.task)));
        }
        self.next_rung();
    }

    fn descended(&mut self) {
        let State::Descending(Descent { direction, goal, left, stuck, .. }) =
            std::mem::replace(&mut self.state, State::Down)
        else {
            return;
        };
        let left: Vec<(Step, String)> = left.into_iter().chain(stuck).collect();
        self.act(Action::Record { begun: self.begun.clone() });
        if !left.is_empty() {
            return self.not_undone(direction, goal, &left);
        }
        self.finish_report(None);
        if goal == Goal::Restart {
            return if self.owed > 0 {
                self.descend(Direction::Down, Goal::StepDown, false)
            } else {
                self.climb_from(Step::Service, "the service is started again")
            };
        }
        assert!(self.begun.is_empty(), "what is not left is undone");
        let ms = self.report.as_ref().map_or(0, |r| r.took_ms);
        self.note(Note::HandoffDown { ms });
        let asked = self.owed > 0;
        self.answer(&Ok(()));
        match goal {
            _ if asked => {}
            Goal::Fault { why } => self.decide(why),
            Goal::HandOver { to } => self.hand_over(to),
            _ if self.wanted && self.serving => self.climb("this node is active"),
            _ => {}
        }
    }

    fn not_undone(&mut self, direction: Direction, goal: Goal, left: &[(Step, String)]) {
        let words: Vec<String> = left.iter().map(|(step, why)| format!("{}: {why}", step.name())).collect();
        let why = words.join("; ");
        self.finish_report(Some(why.clone()));
        self.why = Some(why.clone());
        self.answer(&Err(why.clone()));
        // A mount that somebody holds: the node goes on as it was.
        let only_the_mount = self.begun.iter().eq([&Step::Mount]);
        if goal == Goal::StepDown && direction == Direction::Down && only_the_mount && self.serving {
            self.wanted = true;
            // It is mounted anew where it is not: an unmount that has failed may have been done all the same.
            return self.climb_from(Step::Mount, "it could not be unmounted");
        }
        // One active service: whatever is left of it here, with the role gone, is a matter for the watchdog. What is left of a mount
        // can do no harm, its device has failed.
        if !self.serving && left.iter().any(|(step, _)| matches!(step, Step::Service | Step::Address)) {
            self.act(Action::Reset);
        }
        self.state = State::Unable { retry_at: self.now.plus_ms(UNABLE_MS), direction, goal };
        self.note(Note::HandoffUnable { why });
    }

    pub(super) fn answer(&mut self, result: &Result<(), String>) {
        for _ in 0..std::mem::take(&mut self.owed) {
            self.act(Action::SteppedDown(result.clone()));
        }
    }

    // What is asked of it.

    pub(super) fn lost(&mut self) {
        (self.serving, self.wanted) = (false, false);
        match &self.state {
            State::Down | State::Deciding | State::HandingOver | State::Faulted => self.state = State::Down,
            State::Descending(Descent { direction: Direction::Lost | Direction::Leftover, .. }) => {}
            State::Unable { direction: Direction::Lost | Direction::Leftover, .. } => {}
            _ => self.descend(Direction::Lost, Goal::Lost, false),
        }
    }

    fn checks(&self) -> bool {
        self.job.as_ref().is_some_and(|j| j.task == Task::CheckFileSystem)
    }

    pub(super) fn leave(&mut self) {
        if !self.checks() {
            return self.step_down(false);
        }
        // H5. Whoever cannot wait ends the daemon: the check lives on, and the next daemon waits for it.
        self.owed += 1;
        if !std::mem::replace(&mut self.leaving, true) {
            self.note(Note::StopAwaitsCheck);
        }
    }

    pub(super) fn step_down(&mut self, force: bool) {
        let checks = self.checks();
        if checks && !force && self.leaving {
            self.owed += 1;
            return;
        }
        if checks && !force {
            // H5.
            let why = "a check of the file system is under way: wait for its end, or use --force, which fails the device under it";
            return self.act(Action::SteppedDown(Err(why.into())));
        }
        self.owed += 1;
        match &self.state {
            State::Down | State::Deciding | State::HandingOver | State::Faulted => {
                (self.state, self.wanted) = (State::Down, false);
                self.answer(&Ok(()));
            }
            State::Climbing(_) | State::Up(_) => {
                self.wanted = false;
                let direction = if checks { Direction::Lost } else { Direction::Down };
                self.descend(direction, Goal::StepDown, force);
            }
            State::Descending(_) => self.wanted = false,
            State::Unable { .. } if force => {
                self.wanted = false;
                self.descend(Direction::Lost, Goal::StepDown, false);
            }
            State::Unable { .. } => {
                let why = self.why.clone().unwrap_or_default();
                self.answer(&Err(format!("what stands here cannot be undone: {why}")));
            }
        }
    }
}
