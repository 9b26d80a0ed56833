//! The loop: waits on the ring, tells the core what happened, and does what it says.
//!
//! One round takes everything that has completed, lets the core decide once (group commit), and submits all that follows
//! with a single system call, which also waits for the next round.

use super::clients::Clients;
use super::course::Course;
use super::devices::{DeviceOrder, Devices};
use super::disk::{Disk, Job, Step};
use super::engine::Engine;
use super::handle::{Request, Requests};
use super::handoff::Handoffs;
use super::hub::{Hub, Tag};
use super::journal::Happening;
use super::peers::Peers;
use super::ring::{Completion, Fd, Op};
use super::tenure::Tenure;
use super::voters::Voters;
use crate::core::{Action, BlockingDisk, CommandId, Event, IoId, Mode, Part, Time};
use crate::voter::VoterNote;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// At the end, answers that are under way are waited for so long.
const STOPPING_MS: u64 = 3000;

/// What actions bring about at once (a read from the page cache) is answered in the same round; what follows from that waits for the next.
const PASSES: u32 = 2;

/// A deadline of the core that is always over already would make the loop spin: then it sleeps so long.
const BREATH: Duration = Duration::from_millis(1);

/// See the module's page.
pub struct Loop<E> {
    pub hub: Hub,
    pub engine: E,
    pub disk: Disk,
    pub peers: Peers,
    pub clients: Clients,
    tenure: Tenure,
    course: Course,
    voters: Voters,
    devices: Devices,
    handoffs: Handoffs,
    requests: Requests,
    /// Readable when the process is told to end.
    signal: Fd,
    commands: BTreeMap<CommandId, Sender<Result<Value, String>>>,
    last_command: u64,
    io_in_flight: usize,
    /// I/Os that go on the ring behind the round's sends to those whom writes wait for.
    queued: Vec<(Job, Op)>,
    /// Told to stop: what stands above the devices goes first.
    leaving: bool,
    /// When to end at the latest.
    stopping: Option<Time>,
    /// Rounds in a row in which nothing happened and nothing was waited for.
    empty_rounds: u32,
}

/// Everything that a loop is made of.
pub struct Pieces<E> {
    pub hub: Hub,
    pub engine: E,
    pub disk: Disk,
    pub peers: Peers,
    pub clients: Clients,
    pub tenure: Tenure,
    pub course: Course,
    pub voters: Voters,
    pub devices: Devices,
    pub handoffs: Handoffs,
    pub requests: Requests,
    pub signal: Fd,
}

/// Microseconds since boot. It goes on while the machine sleeps, as leases must (C2).
pub fn now() -> Time {
    // Cannot fail: every kernel with io_uring has this clock.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the kernel has CLOCK_BOOTTIME");
    Time(time.tv_sec() as u64 * 1_000_000 + time.tv_nsec() as u64 / 1000)
}

impl<E: Engine> Loop<E> {
    pub fn new(pieces: Pieces<E>) -> Loop<E> {
        let Pieces { hub, engine, disk, peers, clients, tenure, course, voters, devices, handoffs, requests, signal } =
            pieces;
        Loop {
            hub,
            engine,
            disk,
            peers,
            clients,
            tenure,
            course,
            voters,
            devices,
            handoffs,
            requests,
            signal,
            commands: BTreeMap::new(),
            last_command: 0,
            io_in_flight: 0,
            queued: Vec::new(),
            leaving: false,
            stopping: None,
            empty_rounds: 0,
        }
    }

    /// Runs until the daemon is told to stop.
    ///
    /// # Errors
    /// Where the kernel refuses the ring as such.
    pub fn run(&mut self) -> io::Result<()> {
        self.hub.now = now();
        self.peers.start(&mut self.hub);
        self.hub.ring.push(Tag::Wake, Op::PollIn { file: self.requests.fd.clone() });
        self.hub.ring.push(Tag::Signal, Op::PollIn { file: self.signal.clone() });
        let mut completions = Vec::new();
        self.decide();
        while !self.ended() {
            let timeout = self.timeout();
            self.hub.ring.wait(timeout)?;
            self.hub.now = now();
            self.hub.ring.completions(&mut completions);
            let quiet = completions.is_empty() && self.hub.events.is_empty();
            self.empty_rounds = if quiet && timeout == Some(Duration::ZERO) { self.empty_rounds + 1 } else { 0 };
            completions.drain(..).for_each(|done| self.dispatch(done));
            self.decide();
        }
        self.finish();
        Ok(())
    }

    /// How long nothing needs to be done by itself; none: for ever.
    fn timeout(&self) -> Option<Duration> {
        if !self.hub.events.is_empty() {
            return Some(Duration::ZERO);
        }
        let deadlines = [self.engine.deadline(), self.peers.deadline(), self.clients.deadline(), self.stopping];
        let next = deadlines.into_iter().flatten().min()?;
        let left = Duration::from_micros(next.since_us(self.hub.now));
        Some(if left.is_zero() && self.empty_rounds > 1 { BREATH } else { left })
    }

    fn dispatch(&mut self, done: Completion<Tag>) {
        let Completion { tag, op, result } = done;
        match tag {
            Tag::Disk(job) => {
                self.io_in_flight -= 1;
                let step = job.advance(op, result);
                self.step(step);
            }
            Tag::Peer(tag) => self.peers.completed(tag, op, result, &mut self.hub),
            Tag::Client(tag) => self.clients.completed(tag, op, result, &mut self.hub),
            Tag::Wake => {
                self.requests.drain().into_iter().for_each(|r| self.request(r));
                self.hub.ring.push(Tag::Wake, op);
            }
            Tag::Signal => self.leave(),
            Tag::Cancel => {}
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Submit(job, op) => {
                self.io_in_flight += 1;
                self.queued.push((job, op));
            }
            Step::Done(id, result) => {
                #[cfg(test)]
                self.disk.recorder.done(id);
                self.hub.events.push_back(Event::IoDone { id, result });
            }
        }
    }

    /// Tells the core what happened, lets it decide, and does what it says.
    fn decide(&mut self) {
        let now = self.hub.now;
        self.peers.tick(&mut self.hub);
        self.clients.tick(&mut self.hub);
        for pass in 0..PASSES {
            if pass > 0 && self.hub.events.is_empty() {
                break;
            }
            for event in std::mem::take(&mut self.hub.events) {
                self.engine.handle(now, event);
            }
            self.engine.poll(now);
            while let Some(action) = self.engine.next_action() {
                self.act(action);
            }
        }
        self.clients.set_open(self.engine.accepts_writes() && self.stopping.is_none());
        self.clients.resume(&mut self.hub);
        // The kernel carries it out in this order, and a disk I/O takes longest to hand over: replies and what goes to sync
        // peers do not wait for that; what async peers get does.
        self.clients.flush(&mut self.hub);
        self.peers.flush(Mode::Sync, &mut self.hub);
        for (job, op) in self.queued.drain(..) {
            self.hub.ring.push(Tag::Disk(job), op);
        }
        self.peers.flush(Mode::Async, &mut self.hub);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Io { id, part, op } => self.io(id, part, op),
            Action::Complete { req, result } => self.clients.complete(req, result),
            Action::Connect { peer } => self.peers.dial(peer, &mut self.hub),
            Action::Send { peer, session, message } => self.peers.send(peer, session, &message, &mut self.hub),
            Action::Close { peer, session } => self.peers.close(peer, session, &mut self.hub),
            Action::CommandDone { id, result } => {
                if let Some(reply) = self.commands.remove(&id) {
                    let in_json =
                        |answer| serde_json::to_value(answer).unwrap_or_else(|e| Value::String(e.to_string()));
                    // Whoever asked may have gone.
                    let _ = reply.send(result.map(in_json).map_err(|refusal| refusal.to_string()));
                }
            }
            Action::Notice(notice) => {
                self.hub.journal.note(&notice);
                self.course.note(&notice, || self.requests.handle());
            }
            Action::Serve { term, continues } => {
                let tenure = self.tenure.begin(term, continues);
                if self.stopping.is_none() {
                    self.clients.serve(tenure, &mut self.hub);
                    self.devices.tell(DeviceOrder::Serve { tenure });
                }
                if self.stopping.is_none() && !self.leaving {
                    self.handoffs.serve(tenure);
                }
            }
            Action::AskVoter { voter, question } => self.voters.ask(&voter, question),
            Action::StopServing => {
                self.devices.tell(DeviceOrder::StopServing);
                self.handoffs.stop_serving();
                self.clients.stop_serving(&mut self.hub);
            }
        }
    }

    fn io(&mut self, id: IoId, part: Part, op: crate::core::IoOp) {
        let step = self.disk.start(id, part, op);
        self.step(step);
    }

    fn request(&mut self, request: Request) {
        // An answer that nobody waits for any more is no error.
        match request {
            Request::Command { command, reply } if self.stopping.is_none() => {
                self.last_command += 1;
                let id = CommandId(self.last_command);
                self.commands.insert(id, reply);
                self.hub.events.push_back(Event::Command { id, command });
            }
            // Dropping the sender says that the daemon is ending.
            Request::Command { .. } => {}
            Request::Status { reply } => {
                let _ = reply.send(self.status());
            }
            Request::MayStepDown { reply } => {
                let _ = reply.send(self.engine.may_step_down());
            }
            Request::Subscribe { reply } => {
                let _ = reply.send(self.hub.journal.subscribe());
            }
            Request::Note { happening } => self.hub.journal.note(&happening),
            Request::NoteHandoff { note } => self.hub.journal.note(&note),
            // Strangers can cause these.
            Request::NoteVoter { note: note @ VoterNote::AskerRefused { .. } } => self.hub.journal.complain(&note),
            Request::NoteVoter { note } => self.hub.journal.note(&note),
            Request::VoterAnswered { voter, answer } => {
                self.hub.events.push_back(Event::VoterAnswered { voter, answer: *answer });
            }
            Request::Stop => self.leave(),
            Request::StopNow => self.stop(),
        }
    }

    /// The core's status, and what the daemon adds to it: connected clients, and how each part is read and written.
    fn status(&self) -> Value {
        let mut status = self.engine.status(self.hub.now);
        if let Value::Object(fields) = &mut status {
            let parts =
                self.disk.modes().map(|(path, mode)| json!({ "path": path.display().to_string(), "io": mode.name() }));
            for (name, sent, wire) in self.peers.traffic() {
                let named = |p: &&mut Value| p["name"] == name;
                let listed = fields.get_mut("peers").and_then(Value::as_array_mut);
                if let Some(Value::Object(peer)) = listed.and_then(|l| l.iter_mut().find(named)) {
                    peer.insert("sent_bytes".into(), sent.into());
                    peer.insert("wire_bytes".into(), wire.into());
                }
            }
            // What is not over: it serves, or may serve again once it has heard from the others.
            let outvoted = fields.get("outvoted").is_some_and(|o| *o == true);
            let active = !outvoted && fields.get("active").is_some_and(|a| Some(a) == fields.get("node"));
            let tenure = self.tenure.id().filter(|_| active).map(|t| format!("{:032x}", t.0));
            fields.insert("tenure".into(), tenure.into());
            for (name, why) in self.peers.failures() {
                let listed = fields.get_mut("peers").and_then(Value::as_array_mut);
                if let Some(Value::Object(peer)) = listed.and_then(|l| l.iter_mut().find(|p| p["name"] == name)) {
                    peer.insert("dial_error".into(), why.into());
                }
            }
            fields.insert("handoff".into(), self.handoffs.view());
            fields.insert("takeover".into(), self.course.view());
            self.voters.add_to(fields);
            fields.insert("clients".into(), self.clients.count().into());
            let shut = self.clients.shut_doors().map(|(address, why)| json!({ "address": address, "why": why }));
            fields.insert("not_listening".into(), shut.collect());
            fields.insert("parts".into(), parts.collect());
        }
        status
    }

    /// What stands above the devices is undone while they are still served, and then it ends.
    fn leave(&mut self) {
        if self.leaving || !self.handoffs.is_there() {
            return self.stop();
        }
        self.leaving = true;
        let (handoffs, handle) = (self.handoffs.clone(), self.requests.handle());
        let body = move || {
            if let Err(why) = handoffs.leave() {
                handle.send(Request::Note { happening: Happening::LeftStanding { why } });
            }
            handle.send(Request::StopNow);
        };
        if std::thread::Builder::new().name("leave".into()).stack_size(128 << 10).spawn(body).is_err() {
            self.stop();
        }
    }

    /// Lets nobody in, receives no more requests, and ends when those that it has are answered, or after a while.
    fn stop(&mut self) {
        if self.stopping.is_none() {
            self.stopping = Some(self.hub.now.plus_ms(STOPPING_MS));
            self.hub.journal.note(&Happening::Stopping);
            self.clients.close_doors();
        }
    }

    fn ended(&self) -> bool {
        let settled = self.clients.settled() && self.io_in_flight == 0 && self.hub.events.is_empty();
        self.stopping.is_some_and(|until| settled || until <= self.hub.now)
    }

    /// What was answered must not be lost with the machine either: a daemon that is stopped leaves a flushed log.
    fn finish(&mut self) {
        if let Err(e) = self.disk.flush(Part::Log) {
            let what = format!("the last flush of the log failed: errno {}", e.errno);
            self.hub.journal.note(&Happening::Defect { what });
        }
    }
}
