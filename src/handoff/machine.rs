//! The machine: its state, and going up. Looking after what is up stands in `watch`, going down in `descent`.

use super::descent::{Descent, Goal};
use super::report::{Direction, Note, Report, View};
use super::{Action, Begun, Event, JobId, Plan, Step, Task};
use crate::core::Time;
use std::collections::VecDeque;

/// A step that may succeed a moment later is tried again after this.
const RETRY_MS: u64 = 500;
/// What was killed is given up waiting for after this.
pub(super) const GRACE_MS: u64 = 5000;
/// What cannot be undone is tried again after this.
pub(super) const UNABLE_MS: u64 = 5000;

#[derive(Debug)]
pub(super) enum State {
    /// Nothing stands, nothing is under way.
    Down,
    Climbing(Climb),
    Up(Watch),
    Descending(Descent),
    /// It failed and is undone: can another node take over?
    Deciding,
    HandingOver,
    /// Active, with the device, and nothing above it.
    Faulted,
    Unable {
        retry_at: Time,
        direction: Direction,
        goal: Goal,
    },
}

#[derive(Debug)]
pub(super) struct Climb {
    /// Index into the plan.
    at: usize,
    since: Time,
    /// When the step as a whole is given up.
    until: Time,
    retry_at: Option<Time>,
}

#[derive(Debug, Default)]
pub(super) struct Watch {
    pub failed: u32,
    pub unhealthy: bool,
    pub next: Time,
    /// Whether a peer could take over was asked.
    pub asked: bool,
}

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Climb,
    Watch,
    Rung,
}

#[derive(Debug)]
pub(super) struct Running {
    id: JobId,
    pub task: Task,
    pub step: Step,
    role: Role,
    pub since: Time,
    until: Option<Time>,
    limit_ms: u64,
    killed: bool,
}

/// See the module's page.
#[derive(Debug)]
pub struct Machine {
    pub(super) plan: Plan,
    pub(super) state: State,
    /// As the record has it, or will before anything else begins.
    pub(super) begun: Begun,
    pub(super) serving: bool,
    /// It is to be up.
    pub(super) wanted: bool,
    pub(super) job: Option<Running>,
    /// Killed, and not ended: only the devices may be failed meanwhile.
    pub(super) orphans: Vec<Running>,
    /// Step-downs that wait for their answer.
    pub(super) owed: u32,
    /// It steps down when the check of the file system has ended.
    pub(super) leaving: bool,
    last_job: u64,
    pub(super) handed_over: Option<Time>,
    pub(super) restarts: Vec<Time>,
    pub(super) report: Option<Report>,
    pub(super) why: Option<String>,
    pub(super) now: Time,
    actions: VecDeque<Action>,
}

impl Machine {
    /// A machine that begins with what the record says is left of the daemon before.
    pub fn new(plan: Plan, left: Begun, now: Time) -> Machine {
        let mut machine = Machine {
            plan,
            state: State::Down,
            begun: left,
            serving: false,
            wanted: false,
            job: None,
            orphans: Vec::new(),
            owed: 0,
            leaving: false,
            last_job: 0,
            handed_over: None,
            restarts: Vec::new(),
            report: None,
            why: None,
            now,
            actions: VecDeque::new(),
        };
        if !machine.begun.is_empty() {
            machine.act(Action::Note(Note::HandoffLeftover { steps: machine.begun.iter().copied().collect() }));
            machine.descend(Direction::Leftover, Goal::Leftover, false);
        }
        machine
    }

    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(super) fn note(&mut self, note: Note) {
        self.act(Action::Note(note));
    }

    /// When [`Machine::poll`] wants to be called at the latest.
    pub fn deadline(&self) -> Option<Time> {
        let state = match &self.state {
            State::Climbing(climb) => climb.retry_at,
            State::Up(watch) if self.plan.health.is_some() && self.job.is_none() => Some(watch.next),
            State::Unable { retry_at, .. } => Some(*retry_at),
            _ => None,
        };
        let jobs = self.job.iter().chain(&self.orphans).filter_map(|j| j.until);
        jobs.chain(state).min()
    }

    pub fn handle(&mut self, now: Time, event: Event) {
        self.now = now;
        match event {
            Event::Serve => {
                (self.serving, self.wanted) = (true, true);
                if matches!(self.state, State::Down | State::Faulted) {
                    self.climb("this node is active");
                }
            }
            Event::Lost => self.lost(),
            Event::StepDown { force } => self.step_down(force),
            Event::Leave => self.leave(),
            Event::PutUp if self.serving => {
                self.wanted = true;
                if matches!(self.state, State::Down | State::Faulted) {
                    self.climb("asked for");
                }
            }
            Event::PutUp => {}
            Event::DeviceGone { why } => self.device_gone(why),
            Event::Ended { job, result } => self.ended(job, result),
            Event::Peer(peer) => self.peer(peer),
            Event::HandedOver(result) => self.handed_over(result),
        }
        self.validate();
    }

    /// Does what is due.
    pub fn poll(&mut self, now: Time) {
        self.now = now;
        let is_late = |job: &Running| job.until.is_some_and(|u| u <= now);
        if self.job.as_ref().is_some_and(is_late) {
            self.job_is_late();
        }
        let (given_up, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.orphans).into_iter().partition(is_late);
        self.orphans = kept;
        given_up.into_iter().for_each(|orphan| self.orphan_is_stuck(&orphan));
        match &mut self.state {
            State::Climbing(climb) if climb.retry_at.is_some_and(|at| at <= now) => {
                climb.retry_at = None;
                self.launch_step();
            }
            State::Up(watch) if self.job.is_none() && self.plan.health.is_some() && watch.next <= now => {
                self.launch(Task::CheckHealth, Step::Healthy, Role::Watch, Some(self.plan.limits.check_ms));
            }
            State::Unable { retry_at, direction, goal } if *retry_at <= now => {
                let (direction, goal) = (*direction, goal.clone());
                self.descend(direction, goal, false);
            }
            _ => {}
        }
        self.validate();
    }

    /// What must hold at any time.
    fn validate(&self) {
        assert!(self.begun.iter().all(|s| s.has_undo()), "only what has an undo is recorded");
        match &self.state {
            State::Down | State::Deciding | State::HandingOver | State::Faulted => {
                assert!(self.begun.is_empty() && self.job.is_none(), "nothing stands and nothing is under way");
            }
            State::Climbing(_) | State::Up(_) => assert!(self.serving && self.wanted, "up on a node that serves only"),
            State::Descending(_) | State::Unable { .. } => {}
        }
    }

    // Jobs.

    pub(super) fn launch(&mut self, task: Task, step: Step, role: Role, limit_ms: Option<u64>) {
        assert!(self.job.is_none(), "one job at a time");
        assert!(self.orphans.is_empty() || task == Task::FailDevices, "what was killed has ended");
        self.last_job += 1;
        let id = JobId(self.last_job);
        let until = limit_ms.map(|ms| self.now.plus_ms(ms));
        let limit_ms = limit_ms.unwrap_or(0);
        self.job = Some(Running { id, task, step, role, since: self.now, until, limit_ms, killed: false });
        self.act(Action::Start { job: id, task, begun: self.begun.clone() });
    }

    /// Kills what is under way; whatever comes of it is no longer looked at.
    pub(super) fn abandon_job(&mut self) {
        let Some(mut job) = self.job.take() else { return };
        if !job.killed {
            self.act(Action::Kill { job: job.id });
            job.until = Some(self.now.plus_ms(GRACE_MS));
        }
        self.orphans.push(job);
    }

    fn job_is_late(&mut self) {
        let Some(job) = &mut self.job else { return };
        if job.task == Task::CheckFileSystem && !job.killed {
            // H5: it may be in the middle of a repair.
            job.until = None;
            let ms = self.now.since_us(job.since) / 1000;
            return self.note(Note::FsckTakesLong { ms });
        }
        let id = job.id;
        if job.killed {
            return self.ended(id, Err("it does not end even when it is killed".into()));
        }
        job.killed = true;
        job.until = Some(self.now.plus_ms(GRACE_MS));
        self.act(Action::Kill { job: id });
    }

    fn ended(&mut self, id: JobId, result: Result<(), String>) {
        if let Some(index) = self.orphans.iter().position(|o| o.id == id) {
            self.orphans.remove(index);
            return self.next_rung();
        }
        if self.job.as_ref().is_none_or(|j| j.id != id) {
            return;
        }
        let Some(job) = self.job.take() else { return };
        let result = match result {
            Err(_) if job.killed => Err(format!("it took longer than {} s", job.limit_ms.div_ceil(1000))),
            other => other,
        };
        match job.role {
            Role::Climb => self.step_ended(&job, result),
            Role::Watch => self.checked(result),
            Role::Rung => self.rung_ended(&job, result),
        }
    }

    // Up.

    pub(super) fn climb(&mut self, why: &str) {
        assert!(self.begun.is_empty(), "from the beginning");
        if self.plan.steps.is_empty() {
            (self.state, self.wanted) = (State::Down, false);
            return;
        }
        self.act(Action::Begin);
        self.climb_from(Step::Device, why);
    }

    /// Goes up from this step; what comes before it stands.
    pub(super) fn climb_from(&mut self, step: Step, why: &str) {
        assert!(self.serving && self.wanted && self.orphans.is_empty(), "H2");
        self.why = None;
        self.report = Some(Report::new(Direction::Up, why, self.now));
        let from = self.plan.steps.iter().position(|s| *s >= step);
        self.step_from(from.unwrap_or(self.plan.steps.len()));
    }

    fn step_from(&mut self, at: usize) {
        if at >= self.plan.steps.len() {
            return self.reached();
        }
        let until = self.now.plus_ms(self.step_limit_ms(self.plan.steps[at]));
        self.state = State::Climbing(Climb { at, since: self.now, until, retry_at: None });
        self.launch_step();
    }

    fn step_limit_ms(&self, step: Step) -> u64 {
        let limits = &self.plan.limits;
        match step {
            Step::Device => limits.device_ms,
            Step::Before | Step::After => limits.hooks_ms,
            Step::Check | Step::Mount => limits.mount_ms,
            Step::Address => limits.address_ms,
            Step::Service | Step::Healthy => limits.service_ms,
        }
    }

    fn launch_step(&mut self) {
        let State::Climbing(climb) = &self.state else { return };
        let step = self.plan.steps[climb.at];
        let left_ms = climb.until.since_us(self.now).div_ceil(1000).max(1);
        let (task, limit_ms) = match step {
            Step::Device => (Task::AwaitDevice, left_ms),
            Step::Before => (Task::HooksBefore(Direction::Up), left_ms),
            Step::Check => (Task::CheckFileSystem, left_ms),
            Step::Mount => (Task::Mount, left_ms),
            Step::Address => (Task::AddAddress, left_ms),
            Step::Service => (Task::StartService, left_ms),
            Step::Healthy => (Task::CheckHealth, left_ms.min(self.plan.limits.check_ms)),
            Step::After => (Task::HooksAfter(Direction::Up), left_ms),
        };
        let mounted = self.begun.contains(&Step::Mount);
        assert!(step != Step::Check || !mounted, "a mounted file system is not checked");
        assert!(step != Step::Service || mounted || !self.plan.has(Step::Mount), "H2");
        if step.has_undo() {
            self.begun.insert(step);
        }
        self.launch(task, step, Role::Climb, Some(limit_ms));
    }

    fn step_ended(&mut self, job: &Running, result: Result<(), String>) {
        let State::Climbing(climb) = &mut self.state else { return };
        let (at, since, step) = (climb.at, climb.since, job.step);
        if result.is_err() && matches!(step, Step::Address | Step::Healthy) && self.now.plus_ms(RETRY_MS) < climb.until
        {
            climb.retry_at = Some(self.now.plus_ms(RETRY_MS));
            self.why = result.err();
            return;
        }
        self.why = None;
        let now = self.now;
        if let Some(report) = &mut self.report {
            report.phase(step.name(), since, now, result.clone().err());
        }
        if self.leaving {
            self.wanted = false;
            return self.descend(Direction::Down, Goal::StepDown, false);
        }
        match result {
            Err(why) if step != Step::After => self.step_failed(step, why),
            _ => {
                self.note(Note::HandoffStep { step, ms: now.since_us(since) / 1000 });
                self.step_from(at + 1);
            }
        }
    }

    fn step_failed(&mut self, step: Step, why: String) {
        self.note(Note::HandoffFailed { step, why: why.clone() });
        let why = format!("{}: {why}", step.name());
        self.why = Some(why.clone());
        self.finish_report(Some(why.clone()));
        self.descend(Direction::Down, Goal::Fault { why }, false);
    }

    fn reached(&mut self) {
        let every_ms = self.plan.health.map_or(0, |h| h.every_ms);
        self.state = State::Up(Watch { next: self.now.plus_ms(every_ms), ..Watch::default() });
        self.finish_report(None);
        let ms = self.report.as_ref().map_or(0, |r| r.took_ms);
        self.note(Note::HandoffUp { ms });
    }

    pub(super) fn finish_report(&mut self, failed: Option<String>) {
        let Some(report) = &mut self.report else { return };
        report.took_ms = self.now.since_us(report.began) / 1000;
        report.failed = failed;
        let report = report.clone();
        self.act(Action::Remember(report));
    }

    pub fn view(&self) -> View {
        let state = match &self.state {
            State::Down => "down",
            State::Climbing(_) => "going_up",
            State::Up(watch) if watch.unhealthy => "unhealthy",
            State::Up(_) => "up",
            State::Descending(_) => "going_down",
            State::Deciding | State::HandingOver => "handing_over",
            State::Faulted => "faulted",
            State::Unable { .. } => "unable",
        };
        let (step, since) = match &self.state {
            State::Climbing(climb) => (Some(self.plan.steps[climb.at]), Some(climb.since)),
            State::Descending(_) => (self.job.as_ref().map(|j| j.step), self.job.as_ref().map(|j| j.since)),
            _ => (None, None),
        };
        View {
            state,
            step,
            since_ms: since.map(|s| self.now.since_us(s) / 1000),
            why: self.why.clone(),
            begun: self.begun.iter().copied().collect(),
            way: self.report.clone(),
        }
    }
}
