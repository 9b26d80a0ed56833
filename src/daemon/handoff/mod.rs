//! Carries out what [`crate::handoff`] decides: a thread of the daemon, with a process for each task.

mod guard;
mod jobs;
mod record;
mod service;
mod spec;
pub mod task;

pub use record::{history_path, remember};
pub use spec::Work;

use super::devices::{DeviceOrder, Devices};
use super::handle::{LoopHandle, Request};
use super::journal::rfc3339;
use crate::config::Settings;
use crate::control::Backend;
use crate::core::{Command, TermId, Time};
use crate::handoff::{Action, Begun, Direction, Event, JobId, Machine, Plan, Report, Task};
use guard::Guard;
use jobs::Job;
use record::Record;
use serde_json::{Value, json};
use spec::Spec;
use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// A watchdog is fed so often at least.
const FEED: Duration = Duration::from_secs(1);

/// A defect: nobody knows what stands.
const DIED: &str =
    "the thread that looks after the handoff has died: end the daemon, whose successor undoes what stands";

/// What the thread is told.
enum Order {
    Serve { tenure: TermId },
    StopServing,
    StepDown { force: bool, reply: Sender<Result<(), String>> },
    Leave { reply: Sender<Result<(), String>> },
    Event(Event),
}

/// Tells the thread, from any other. Where the file has no `[handoff]`, and none has left anything, there is none, and nothing to do.
#[derive(Clone, Default)]
pub struct Handoffs(Option<Reach>);

#[derive(Clone)]
struct Reach {
    orders: Sender<Order>,
    view: Arc<Mutex<Value>>,
}

/// A thread that was not started.
pub struct Waiting(Option<Box<Prepared>>);

struct Prepared {
    orders: Receiver<Order>,
    reach: Reach,
    plan: Plan,
    spec: Spec,
    record: Record,
    guard: Guard,
}

impl Handoffs {
    /// The handoff of a node, and what its thread will need; [`Waiting::start`] starts it.
    ///
    /// # Errors
    /// In words, where it cannot be done here.
    pub fn new(settings: &Settings) -> Result<(Handoffs, Waiting), String> {
        let takes_root = |h: &crate::config::Handoff| h.mount.is_some() || h.address.is_some();
        if settings.handoff.as_ref().is_some_and(takes_root) && !nix::unistd::geteuid().is_root() {
            return Err(
                "the file's [handoff] mounts or moves an address, which takes root: run this daemon as root".into()
            );
        }
        let path = settings.dir.join("handoff");
        let record = Record::open(&settings.dir).map_err(|e| {
            format!(
                "{} says what a daemon before has mounted and started, and cannot be read ({e}): undo it by hand, then remove the file",
                path.display()
            )
        })?;
        let handoff = settings.handoff.as_ref();
        let guard = Guard::new(handoff.and_then(|h| h.watchdog.clone()), &settings.dir);
        // What a daemon before has left is undone whatever the file says now.
        if handoff.is_none() && record.left().is_none() && !guard.is_left() {
            return Ok((Handoffs(None), Waiting(None)));
        }
        let spec = handoff.map_or_else(|| Spec::nothing(settings), |h| Spec::new(settings, h));
        let plan = handoff.map_or(Plan::NOTHING, |h| h.plan.clone());
        let (sender, orders) = mpsc::channel();
        let reach = Reach { orders: sender, view: Arc::new(Mutex::new(Value::Null)) };
        let prepared = Prepared { orders, reach: reach.clone(), plan, spec, record, guard };
        Ok((Handoffs(Some(reach)), Waiting(Some(Box::new(prepared)))))
    }

    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    fn tell(&self, order: Order) {
        if let Some(reach) = &self.0 {
            // It ends with the process only.
            let _ = reach.orders.send(order);
        }
    }

    pub fn serve(&self, tenure: TermId) {
        self.tell(Order::Serve { tenure });
    }

    pub fn stop_serving(&self) {
        self.tell(Order::StopServing);
    }

    /// Before this node steps down: what stands is undone, or the reason why not.
    pub fn step_down(&self, force: bool) -> Result<(), String> {
        if !self.is_there() {
            return Ok(());
        }
        let (reply, answer) = mpsc::channel();
        self.tell(Order::StepDown { force, reply });
        answer.recv().unwrap_or_else(|_| Err(DIED.into()))
    }

    /// The same before the daemon ends, which waits for a check of the file system.
    pub fn leave(&self) -> Result<(), String> {
        if !self.is_there() {
            return Ok(());
        }
        let (reply, answer) = mpsc::channel();
        self.tell(Order::Leave { reply });
        answer.recv().unwrap_or_else(|_| Err(DIED.into()))
    }

    /// That came to nothing, or what failed has been mended: up again.
    pub fn put_up(&self) {
        self.tell(Order::Event(Event::PutUp));
    }

    /// A device that was there fails, and another is made.
    pub fn device_gone(&self, why: &str) {
        self.tell(Order::Event(Event::DeviceGone { why: why.to_string() }));
    }

    /// For the status; null where there is no handoff.
    pub fn view(&self) -> Value {
        let view = self.0.as_ref().and_then(|r| r.view.lock().ok().map(|v| v.clone()));
        view.unwrap_or_default()
    }
}

impl Waiting {
    /// # Errors
    /// Where the system has no thread to give.
    pub fn start(self, events: LoopHandle, devices: Devices) -> std::io::Result<()> {
        let Some(prepared) = self.0 else { return Ok(()) };
        let Prepared { orders, reach, plan, spec, record, guard } = *prepared;
        let asks_for_nothing = plan.steps.is_empty();
        let (left, begun) = match record.left() {
            Some(left) => (left.spec.clone(), left.begun.clone()),
            None => (spec.clone(), Begun::new()),
        };
        let machine = Machine::new(plan, begun, now());
        let body = move || {
            let mut runner = Runner {
                machine,
                spec,
                left,
                record,
                reach,
                events,
                devices,
                jobs: BTreeMap::new(),
                replies: Vec::new(),
                tenure: None,
                guard,
                asks_for_nothing,
            };
            runner.run(&orders);
        };
        std::thread::Builder::new().name("handoff".into()).stack_size(512 << 10).spawn(body).map(drop)
    }
}

fn now() -> Time {
    super::event_loop::now()
}

struct Runner {
    machine: Machine,
    /// What the file asks for now.
    spec: Spec,
    /// What stands is undone by this: what was asked for when it was begun.
    left: Spec,
    record: Record,
    reach: Reach,
    events: LoopHandle,
    devices: Devices,
    jobs: BTreeMap<JobId, Job>,
    replies: Vec<Sender<Result<(), String>>>,
    tenure: Option<TermId>,
    guard: Guard,
    /// The file has no `[handoff]`: what is left is undone.
    asks_for_nothing: bool,
}

impl Runner {
    fn run(&mut self, orders: &Receiver<Order>) {
        if let Err(e) = self.guard.take_up() {
            self.complain(&format!("the watchdog that a daemon before has armed cannot be opened: {e}"));
        }
        self.carry_out();
        self.feed();
        loop {
            let left = self.machine.deadline().map(|d| Duration::from_micros(d.since_us(now())));
            let fed = self.guard.is_armed().then_some(FEED);
            let order = match left.into_iter().chain(fed).min() {
                Some(timeout) => orders.recv_timeout(timeout),
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match order {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.machine.poll(now());
            self.carry_out();
            self.feed();
        }
    }

    fn obey(&mut self, order: Order) {
        let event = match order {
            Order::Serve { tenure } => {
                self.tenure = Some(tenure);
                Event::Serve
            }
            Order::StopServing => {
                self.tenure = None;
                Event::Lost
            }
            Order::StepDown { force, reply } => {
                self.replies.push(reply);
                Event::StepDown { force }
            }
            Order::Leave { reply } => {
                self.replies.push(reply);
                Event::Leave
            }
            Order::Event(event) => {
                if let Event::Ended { job, .. } = &event {
                    self.jobs.remove(job);
                }
                event
            }
        };
        self.machine.handle(now(), event);
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.machine.next_action() {
            match action {
                Action::Begin => self.begin(),
                Action::Start { job, task, begun } => self.start(job, task, &begun),
                Action::Kill { job } => {
                    if let Some(job) = self.jobs.get(&job) {
                        job.kill();
                    }
                }
                Action::Record { begun } => {
                    if let Err(e) = self.record.write(&begun, &self.left) {
                        // An older record names more than stands: all that is undone once more.
                        self.complain(&format!("the record of the handoff cannot be written: {e}"));
                    }
                }
                Action::AskPeer => self.ask_peer(),
                Action::HandOver { to } => self.hand_over(to),
                Action::SteppedDown(result) => {
                    // Whoever hears it may end this process.
                    self.feed();
                    // In the order in which they were asked; each hears how it stands now.
                    if !self.replies.is_empty() {
                        let _ = self.replies.remove(0).send(result);
                    }
                }
                Action::Note(note) => drop(self.events.send(Request::NoteHandoff { note })),
                Action::Remember(report) => self.remember(&report),
                Action::Reset => {
                    if self.guard.is_armed() {
                        self.complain("what is left of the service cannot be ended: the watchdog resets this machine");
                        self.guard.bite();
                    }
                }
            }
        }
        self.publish();
    }

    fn complain(&self, what: &str) {
        self.events.send(Request::Note { happening: super::Happening::Defect { what: what.to_string() } });
    }

    fn ended(&self, job: JobId) -> impl FnOnce(Result<(), String>) + Send + 'static {
        let orders = self.reach.orders.clone();
        move |result| drop(orders.send(Order::Event(Event::Ended { job, result })))
    }

    fn start(&mut self, job: JobId, task: Task, begun: &Begun) {
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
        let ended = self.ended(job);
        if let Err(e) = self.record.write(begun, &self.left) {
            if goes_up {
                return ended(Err(format!("the record of the handoff cannot be written: {e}")));
            }
            self.complain(&format!("the record of the handoff cannot be written: {e}"));
        }
        if task == Task::FailDevices {
            let devices = self.devices.clone();
            self.aside(move || ended(devices.take_down(true)));
            return;
        }
        let why = self.machine.view().way.map(|w| w.why).unwrap_or_default();
        let tenure = self.tenure.map(|t| format!("{:032x}", t.0));
        let work = Work { task, spec: self.left.clone(), tenure, why };
        let events = self.events.clone();
        let done = move |result, remark: Option<String>| {
            if let Some(what) = remark {
                events.send(Request::Note { happening: super::Happening::ServiceRemark { what } });
            }
            ended(result);
        };
        match Job::start(&work, done) {
            Ok(started) => drop(self.jobs.insert(job, started)),
            Err(e) => self.ended(job)(Err(format!("no process can be started for it: {e}"))),
        }
    }

    /// Something that waits for other threads.
    fn aside(&self, body: impl FnOnce() + Send + 'static) {
        let started = std::thread::Builder::new().name("handoff-aside".into()).stack_size(256 << 10).spawn(body);
        if let Err(e) = started {
            self.complain(&format!("no thread for the handoff: {e}"));
        }
    }

    /// From the beginning: what is done and undone from now on is what the file asks for now.
    fn begin(&mut self) {
        self.left = self.spec.clone();
        // What services and hooks say is kept from one way up to the next.
        let _ = std::fs::File::create(self.spec.dir.join("handoff.log"));
        if let Err(e) = self.guard.arm() {
            self.complain(&format!("the watchdog cannot be opened: {e}"));
        }
    }

    fn ask_peer(&self) {
        let (events, orders) = (self.events.clone(), self.reach.orders.clone());
        self.aside(move || {
            let status = events.status();
            let ready = |p: &&Value| p["state"] == "in_sync" && p["mode"] == "sync";
            let peer = status["peers"].as_array().and_then(|l| l.iter().find(ready));
            let name = peer.and_then(|p| p["name"].as_str()).map(str::to_string);
            let _ = orders.send(Order::Event(Event::Peer(name)));
        });
    }

    /// By the same way as an operator's switchover.
    fn hand_over(&self, to: String) {
        let (events, devices, orders) = (self.events.clone(), self.devices.clone(), self.reach.orders.clone());
        self.aside(move || {
            let down = devices.take_down(false);
            let result = down.and_then(|()| events.carry_out(Command::Switchover { to }).map(drop));
            if result.is_err() {
                devices.tell(DeviceOrder::PutUp);
            }
            let _ = orders.send(Order::Event(Event::HandedOver(result)));
        });
    }

    fn remember(&self, report: &Report) {
        let mut entry = serde_json::to_value(report).unwrap_or_default();
        entry["time"] = rfc3339(SystemTime::now()).into();
        entry["node"] = self.spec.node.clone().into();
        entry["tenure"] = self.tenure.map(|t| format!("{:032x}", t.0)).into();
        if let Err(e) = record::remember(&self.spec.dir, &entry) {
            self.complain(&format!("the history of handoffs cannot be written: {e}"));
        }
    }

    fn publish(&self) {
        let mut view = serde_json::to_value(self.machine.view()).unwrap_or_default();
        let part = |p: &str| view[p].clone();
        let way = part("way");
        view["phases"] = way["phases"].clone();
        view["direction"] = way["direction"].clone();
        view["took_ms"] = way["took_ms"].clone();
        if let Value::Object(fields) = &mut view {
            fields.remove("way");
        }
        view["mount"] = json!(self.left.mount.as_ref().map(|m| m.at.display().to_string()));
        view["address"] = json!(self.left.address.as_ref().map(|a| &a.ip));
        view["service"] = json!(self.left.service.as_ref().map(|s| match s {
            spec::ServiceSpec::Unit(unit) => unit,
            spec::ServiceSpec::Commands { start, .. } => start,
        }));
        if self.asks_for_nothing && self.machine.view().state == "down" {
            view = Value::Null;
        }
        if let Ok(mut held) = self.reach.view.lock() {
            *held = view;
        }
    }

    fn feed(&mut self) {
        let nothing_stands = self.machine.view().state == "down";
        if let Err(e) = self.guard.feed(nothing_stands) {
            self.complain(&format!("the watchdog does not answer: {e}"));
        }
    }
}
