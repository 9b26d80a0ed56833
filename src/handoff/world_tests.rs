//! A world for the machine's tests: what its tasks bring about, how they fail, and what must hold at every moment.

use super::*;
use crate::core::Time;
use std::collections::{BTreeMap, BTreeSet};

/// How one run of a task goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    Succeeds,
    Fails,
    /// It says that it failed, and has done it all the same.
    FailsDone,
    /// Until it is killed.
    Hangs,
    /// The same, and it has done it.
    HangsDone,
    /// It never ends.
    Stuck,
}

pub const FAULTS: [Course; 5] = [Course::Fails, Course::FailsDone, Course::Hangs, Course::HangsDone, Course::Stuck];

/// What happens to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    StepDown,
    /// The daemon is told to stop.
    Leave,
    ForcedStepDown,
    /// The term is lost.
    Lost,
    /// And opened anew.
    LostAndServes,
    /// The device's process dies.
    DeviceGone,
    /// The daemon dies, and is started again.
    Crash,
    /// The same, and it resumes.
    CrashAndServes,
}

pub const BLOWS: [Blow; 8] = [
    Blow::StepDown,
    Blow::Leave,
    Blow::ForcedStepDown,
    Blow::Lost,
    Blow::LostAndServes,
    Blow::DeviceGone,
    Blow::Crash,
    Blow::CrashAndServes,
];

pub struct World {
    pub machine: Machine,
    pub plan: Plan,
    pub now: Time,
    /// What really stands.
    pub stands: BTreeSet<Step>,
    /// As it is on the disk.
    pub record: Begun,
    pub serving: bool,
    running: BTreeMap<JobId, (Task, Course, bool)>,
    /// By the number of a task's run.
    pub faults: BTreeMap<usize, Course>,
    pub runs: Vec<Task>,
    pub peer: Option<String>,
    pub hand_over: Result<(), String>,
    pub asked: u32,
    pub answers: Vec<Result<(), String>>,
    pub notes: Vec<Note>,
    pub reports: Vec<Report>,
    pub resets: u32,
    /// A check may be killed: somebody took the role away.
    check_may_die: bool,
    /// The next thing to begin must be the failing of the devices.
    must_fail_devices: bool,
    inputs: usize,
    pub blow: Option<(usize, Blow)>,
}

pub fn plan() -> Plan {
    Plan {
        steps: Step::ALL.to_vec(),
        limits: Limits {
            device_ms: 30_000,
            hooks_ms: 10_000,
            mount_ms: 30_000,
            address_ms: 10_000,
            service_ms: 60_000,
            check_ms: 5000,
        },
        health: Some(Health { every_ms: 5000, fail: 3, on_fail: OnFail::Takeover }),
    }
}

impl World {
    pub fn new(plan: Plan) -> World {
        let now = Time(1_000_000);
        World {
            machine: Machine::new(plan.clone(), Begun::new(), now),
            plan,
            now,
            stands: BTreeSet::new(),
            record: Begun::new(),
            serving: false,
            running: BTreeMap::new(),
            faults: BTreeMap::new(),
            runs: Vec::new(),
            peer: None,
            hand_over: Ok(()),
            asked: 0,
            answers: Vec::new(),
            notes: Vec::new(),
            reports: Vec::new(),
            resets: 0,
            check_may_die: false,
            must_fail_devices: false,
            inputs: 0,
            blow: None,
        }
    }

    pub fn state(&self) -> &'static str {
        self.machine.view().state
    }

    pub fn tell(&mut self, event: Event) {
        match &event {
            Event::Serve => self.serving = true,
            Event::Lost => {
                self.serving = false;
                self.check_may_die = true;
                self.must_fail_devices =
                    matches!(self.state(), "going_up" | "up" | "unhealthy") && self.plan.has(Step::Device);
            }
            Event::StepDown { force } => {
                self.asked += 1;
                self.check_may_die |= force;
            }
            Event::Leave => self.asked += 1,
            _ => {}
        }
        self.machine.handle(self.now, event);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.machine.next_action() {
            match action {
                Action::Begin => assert!(self.stands.is_empty() && self.record.is_empty(), "it begins on nothing"),
                Action::Start { job, task, begun } => self.start(job, task, begun),
                Action::Kill { job } => {
                    let Some((task, _, killed)) = self.running.get_mut(&job) else { continue };
                    assert!(*task != Task::CheckFileSystem || self.check_may_die, "H5: a check is killed for its time");
                    *killed = true;
                }
                Action::Record { begun } => self.record = begun,
                Action::AskPeer => {
                    let peer = self.peer.clone();
                    self.machine.handle(self.now, Event::Peer(peer));
                }
                Action::HandOver { .. } => {
                    assert!(self.stands.is_empty(), "another node is let in while something stands: {:?}", self.stands);
                    let result = self.hand_over.clone();
                    if result.is_ok() {
                        self.serving = false;
                        self.machine.handle(self.now, Event::Lost);
                    }
                    self.machine.handle(self.now, Event::HandedOver(result));
                }
                Action::SteppedDown(result) => {
                    assert!(result.is_err() || self.stands.is_empty(), "it says that it is down: {:?}", self.stands);
                    self.answers.push(result);
                }
                Action::Note(note) => self.notes.push(note),
                Action::Remember(report) => self.reports.push(report),
                Action::Reset => self.resets += 1,
            }
            self.check();
        }
    }

    fn start(&mut self, job: JobId, task: Task, begun: Begun) {
        self.record = begun;
        let goes_up = matches!(
            task,
            Task::AwaitDevice
                | Task::HooksBefore(Direction::Up)
                | Task::HooksAfter(Direction::Up)
                | Task::CheckFileSystem
                | Task::Mount
                | Task::AddAddress
                | Task::StartService
                | Task::CheckHealth
        );
        assert!(!goes_up || self.serving, "H2: {task:?} on a node that does not serve");
        if std::mem::take(&mut self.must_fail_devices) {
            assert_eq!(task, Task::FailDevices, "H4");
        }
        let stands = |step| self.stands.contains(&step);
        match task {
            Task::StartService => {
                assert!(stands(Step::Mount) || !self.plan.has(Step::Mount), "H2: a service without its mount");
                assert!(self.record.contains(&Step::Service), "H1");
            }
            Task::Mount => assert!(self.record.contains(&Step::Mount), "H1"),
            Task::AddAddress => assert!(self.record.contains(&Step::Address), "H1"),
            Task::CheckFileSystem => assert!(!stands(Step::Mount), "a mounted file system is checked"),
            // H3, unless everything that ends a service has been tried.
            Task::Unmount => assert!(!stands(Step::Service) || self.has_run(Task::KillService), "H3"),
            _ => {}
        }
        let course = self.faults.get(&self.runs.len()).copied().unwrap_or(Course::Succeeds);
        self.runs.push(task);
        self.running.insert(job, (task, course, false));
    }

    pub fn has_run(&self, task: Task) -> bool {
        self.runs.contains(&task)
    }

    /// H1: whatever stands is in the record.
    fn check(&self) {
        assert!(self.stands.is_subset(&self.record), "H1: {:?} stand, and {:?} are recorded", self.stands, self.record);
    }

    fn take_effect(&mut self, task: Task) -> Result<(), String> {
        match task {
            Task::Mount => self.stands.insert(Step::Mount),
            Task::AddAddress => self.stands.insert(Step::Address),
            Task::StartService => self.stands.insert(Step::Service),
            Task::StopService | Task::KillService => self.stands.remove(&Step::Service),
            Task::RemoveAddress => self.stands.remove(&Step::Address),
            // The kernel refuses it while the service is on it.
            Task::Unmount if self.stands.contains(&Step::Service) => return Err("busy".into()),
            Task::Unmount | Task::UnmountLazily => self.stands.remove(&Step::Mount),
            _ => false,
        };
        Ok(())
    }

    /// Lets one thing happen; false if nothing is left to happen.
    pub fn step(&mut self) -> bool {
        self.inputs += 1;
        if let Some((at, blow)) = self.blow
            && at == self.inputs
        {
            self.strike(blow);
            return true;
        }
        let ends = |(task, course, killed): &(Task, Course, bool)| match course {
            Course::Stuck => *task == Task::CheckFileSystem && *killed,
            Course::Hangs | Course::HangsDone => *killed,
            _ => true,
        };
        if let Some(job) = self.running.iter().find(|(_, r)| ends(r)).map(|(j, _)| *j) {
            self.now = self.now.plus_ms(10);
            let (task, course, killed) = self.running.remove(&job).unwrap();
            let done = matches!(course, Course::FailsDone | Course::HangsDone);
            let result = match course {
                Course::Succeeds if !killed => self.take_effect(task),
                _ => Err("it failed".to_string()),
            };
            if done {
                let _ = self.take_effect(task);
            }
            self.check();
            self.tell(Event::Ended { job, result });
            return true;
        }
        let Some(deadline) = self.machine.deadline() else { return false };
        self.now = self.now.max(deadline);
        self.machine.poll(self.now);
        self.carry_out();
        true
    }

    pub fn strike(&mut self, blow: Blow) {
        match blow {
            Blow::StepDown => self.tell(Event::StepDown { force: false }),
            Blow::Leave => self.tell(Event::Leave),
            Blow::ForcedStepDown => self.tell(Event::StepDown { force: true }),
            Blow::Lost => self.tell(Event::Lost),
            Blow::LostAndServes => {
                self.tell(Event::Lost);
                self.tell(Event::Serve);
            }
            Blow::DeviceGone => self.tell(Event::DeviceGone { why: "its process died".into() }),
            Blow::Crash | Blow::CrashAndServes => {
                self.crash();
                if blow == Blow::CrashAndServes {
                    self.tell(Event::Serve);
                }
            }
        }
    }

    /// Jobs die with the daemon, having done their work or not; what waited for an answer gets none.
    fn crash(&mut self) {
        for (_, (task, course, _)) in std::mem::take(&mut self.running) {
            if matches!(course, Course::FailsDone | Course::HangsDone) {
                let _ = self.take_effect(task);
            }
        }
        self.check();
        (self.serving, self.must_fail_devices) = (false, false);
        self.asked = self.answers.len() as u32;
        self.machine = Machine::new(self.plan.clone(), self.record.clone(), self.now);
        self.carry_out();
    }

    /// Goes on until nothing happens, or it is up and has been looked after for a while.
    pub fn settle(&mut self) {
        let mut checks = 0;
        for _ in 0..10_000 {
            if self.blow.is_none_or(|(at, _)| at <= self.inputs) && self.state() == "up" {
                checks += 1;
                if checks > 20 {
                    return;
                }
            }
            if !self.step() {
                return;
            }
        }
        panic!("it does not settle: {:?}", self.machine);
    }
}
