//! The devices that the file asks for: made when this node becomes active, and asked to go before it steps down.
//!
//! What takes time, and root, is done by a thread of its own; a device itself is served by its helper ([`crate::device`]), which
//! notices by itself when its tenure is over.

use super::handle::{LoopHandle, Request};
use super::handoff::Handoffs;
use super::journal::Happening;
use crate::config::{DeviceKind, Settings};
use crate::core::TermId;
use crate::device::asking::{Ask, AskError, ask};
use crate::device::launch::Wanted;
use crate::device::{RUN, device_name, link, record};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Child;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

/// How often a device that should be there is looked after.
const LOOK: Duration = Duration::from_millis(500);
/// How soon a device that could not be made is tried again, at first and at most, in looks.
const RETRY: [u32; 2] = [1, 60];
/// The devices of a node are gone within this, or one of them hangs.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// A helper that lives answers within this.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// What the thread is told.
pub enum DeviceOrder {
    /// This node is active, in this tenure.
    Serve {
        tenure: TermId,
    },
    StopServing,
    /// Take the devices down for good, if nobody uses them, or with force; what came of it.
    TakeDown {
        force: bool,
        reply: Sender<Result<(), String>>,
    },
    /// That came to nothing: make them again.
    PutUp,
}

/// Tells the thread, from any other.
#[derive(Clone)]
pub struct Devices(Sender<DeviceOrder>);

impl Devices {
    pub fn tell(&self, order: DeviceOrder) {
        // It ends with the process only.
        let _ = self.0.send(order);
    }

    /// Before this node steps down: its devices go, or the reason why not.
    pub fn take_down(&self, force: bool) -> Result<(), String> {
        self.take_down_within(force, GONE_WITHIN)
    }

    fn take_down_within(&self, force: bool, patience: Duration) -> Result<(), String> {
        let (reply, answer) = mpsc::channel();
        if self.0.send(DeviceOrder::TakeDown { force, reply }).is_err() {
            return Ok(());
        }
        match answer.recv_timeout(patience) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Ok(()),
            // Forced, nobody waits for a process that hangs: the device fails by itself once the tenure is over (C6).
            Err(RecvTimeoutError::Timeout) if force => Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                // The order is obeyed when it is read, and this node stays active.
                self.tell(DeviceOrder::PutUp);
                let s = patience.as_secs();
                Err(format!(
                    "the process of a device has hung for {s} s. See the logs in {RUN}; `understudy demote --force` does not wait for it"
                ))
            }
        }
    }

    /// What is told stays where a test finds it.
    #[cfg(test)]
    pub fn watched() -> (Devices, Receiver<DeviceOrder>) {
        let (sender, orders) = mpsc::channel();
        (Devices(sender), orders)
    }

    /// The devices of a node, and what its thread will need; [`Waiting::start`] starts it.
    pub fn new(settings: &Settings) -> (Devices, Waiting) {
        let wanted = |(volume, kind): (&crate::core::VolumeSpec, &DeviceKind)| Wanted {
            file: std::path::absolute(&settings.file).unwrap_or_else(|_| settings.file.clone()),
            resource: settings.node.resource.clone(),
            node: settings.node.my_name().to_string(),
            volume: volume.name.clone(),
            kind: *kind,
            tenure: TermId(0),
            read_only: false,
        };
        let pairs = settings.node.volumes.iter().zip(&settings.devices);
        let wanted: Vec<Wanted> = pairs.filter(|(_, k)| **k != DeviceKind::None).map(wanted).collect();
        // A device that was attached by hand is asked to go, too: then there is nothing to make, but something to ask.
        let (sender, orders) = mpsc::channel();
        let names = settings.node.volumes.iter().map(|v| device_name(&settings.node.resource, &v.name)).collect();
        let (resource, node) = (settings.node.resource.clone(), settings.node.my_name().to_string());
        (Devices(sender), Waiting { orders, wanted, names, resource, node })
    }
}

/// A thread that was not started.
pub struct Waiting {
    orders: Receiver<DeviceOrder>,
    wanted: Vec<Wanted>,
    /// Of all volumes.
    names: Vec<String>,
    resource: String,
    node: String,
}

impl Waiting {
    /// # Errors
    /// Where the system has no thread to give.
    pub fn start(self, events: LoopHandle, handoffs: Handoffs) -> std::io::Result<()> {
        let Waiting { orders, wanted, names, resource, node } = self;
        let (states, children) = (BTreeMap::new(), Vec::new());
        let mut keeper = Keeper { wanted, names, resource, node, events, handoffs, tenure: None, states, children };
        let body = move || keeper.run(&orders);
        std::thread::Builder::new().name("devices".into()).stack_size(256 << 10).spawn(body).map(drop)
    }
}

/// How far a wanted device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be made, after so many looks; the pause after the next failure.
    Wanted {
        in_looks: u32,
        pause: u32,
    },
    Up,
    /// Taken down by the operator: left alone.
    Left,
}

struct Keeper {
    wanted: Vec<Wanted>,
    names: Vec<String>,
    resource: String,
    node: String,
    events: LoopHandle,
    handoffs: Handoffs,
    tenure: Option<TermId>,
    /// By the device's name.
    states: BTreeMap<String, State>,
    /// Helpers that this process has started, to take note of their ends.
    children: Vec<Child>,
}

impl Keeper {
    fn run(&mut self, orders: &Receiver<DeviceOrder>) {
        loop {
            let busy = self.tenure.is_some() && !self.wanted.is_empty();
            let order = if busy {
                orders.recv_timeout(LOOK)
            } else {
                orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match order {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.children.retain_mut(|c| matches!(c.try_wait(), Ok(None)));
            self.look();
        }
    }

    fn obey(&mut self, order: DeviceOrder) {
        match order {
            DeviceOrder::Serve { tenure } => {
                self.tenure = Some(tenure);
                self.want_all();
            }
            DeviceOrder::StopServing => {
                self.tenure = None;
                self.states.clear();
            }
            DeviceOrder::TakeDown { force, reply } => {
                let result = self.take_down(force);
                if result.is_err() && self.tenure.is_some() {
                    self.want_lost();
                }
                let _ = reply.send(result);
            }
            DeviceOrder::PutUp if self.tenure.is_some() => self.want_lost(),
            DeviceOrder::PutUp => {}
        }
    }

    fn want_all(&mut self) {
        let fresh = State::Wanted { in_looks: 0, pause: RETRY[0] };
        self.states = self.wanted.iter().map(|w| (w.name(), fresh)).collect();
    }

    /// What there is of a device, if it is this node's.
    fn ours(&self, name: &str) -> Option<record::Found> {
        record::look(name).filter(|f| f.record.is_of(&self.resource, &self.node))
    }

    fn lives(&self, name: &str) -> bool {
        self.ours(name).is_some_and(|f| f.alive)
    }

    /// All that are not there are to be made again.
    fn want_lost(&mut self) {
        self.want_all();
        let mut states = std::mem::take(&mut self.states);
        states.iter_mut().filter(|(name, _)| self.lives(name)).for_each(|(_, state)| *state = State::Up);
        self.states = states;
    }

    fn look(&mut self) {
        let Some(tenure) = self.tenure else { return };
        for wanted in self.wanted.clone() {
            let name = wanted.name();
            let state = match self.states.get(&name) {
                Some(State::Up) => self.look_after(&name),
                Some(State::Wanted { in_looks: 0, pause }) => self.make(&Wanted { tenure, ..wanted }, *pause),
                Some(State::Wanted { in_looks, pause }) => State::Wanted { in_looks: in_looks - 1, pause: *pause },
                _ => continue,
            };
            self.states.insert(name, state);
        }
    }

    /// A device whose helper has ended in order was taken down by the operator; one whose helper has died is made again.
    fn look_after(&self, name: &str) -> State {
        match self.ours(name) {
            Some(found) if found.alive => State::Up,
            Some(found) => {
                let why = "its process died".to_string();
                // Another process takes it up, and what is mounted stands.
                if found.record.kind != DeviceKind::Ublk {
                    self.handoffs.device_gone(&format!("the process of the device {name} died"));
                }
                self.note(Happening::DeviceLost { device: name.to_string(), why });
                State::Wanted { in_looks: 0, pause: RETRY[0] }
            }
            None => State::Left,
        }
    }

    fn make(&mut self, wanted: &Wanted, pause: u32) -> State {
        let name = wanted.name();
        let path = link(&wanted.resource, &wanted.volume).display().to_string();
        if let Some(found) = self.ours(&name).filter(|f| f.alive)
            && found.record.tenure == format!("{:032x}", wanted.tenure.0)
        {
            self.note(Happening::DeviceGoesOn { device: path, kernel: found.record.device.unwrap_or_default() });
            return State::Up;
        }
        match wanted.start() {
            Ok((status, child)) => {
                self.children.push(child);
                let text = |field: &str| status[field].as_str().unwrap_or_default().to_string();
                self.note(Happening::DeviceUp { device: path, kernel: text("device"), kind: text("kind") });
                if let Some(remark) = status["remark"].as_str() {
                    self.note(Happening::DeviceRemark { device: name, what: remark.to_string() });
                }
                State::Up
            }
            Err(why) => {
                // Said again when the pause has grown, so that it is not forgotten and does not fill the log.
                if pause == RETRY[0] || pause == RETRY[1] {
                    self.note(Happening::DeviceFailed { device: path, why: with_remedy(why) });
                }
                State::Wanted { in_looks: pause, pause: (pause * 2).min(RETRY[1]) }
            }
        }
    }

    /// Asks all helpers of this node to take their devices down, one after the other, up to the first that refuses.
    fn take_down(&mut self, force: bool) -> Result<(), String> {
        self.states.values_mut().for_each(|s| *s = State::Left);
        for name in self.names.clone() {
            if !self.lives(&name) {
                continue;
            }
            // A forced detach does not wait for users, and otherwise a helper takes a few seconds at most.
            match ask(&name, Ask::Detach { force }, Some(ANSWERS_WITHIN * 3)) {
                Ok(answer) if answer["gone"] == true => self.note(Happening::DeviceDown { device: name }),
                Ok(answer) => {
                    let users: Vec<&str> =
                        answer["users"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                    let users = if users.is_empty() { "somebody has it open".to_string() } else { users.join("; ") };
                    let what = format!("it fails every request from now on, and goes with its last user: {users}");
                    self.note(Happening::DeviceRemark { device: name, what });
                }
                Err(AskError::Refused(why)) => return Err(why),
                // It may have ended meanwhile.
                Err(AskError::Unreachable(e)) if self.lives(&name) && !force => {
                    return Err(format!("the process of the device {name} does not answer ({e})"));
                }
                Err(AskError::Unreachable(_)) => {}
            }
        }
        Ok(())
    }

    fn note(&self, happening: Happening) {
        self.events.send(Request::Note { happening });
    }
}

fn with_remedy(why: String) -> String {
    if nix::unistd::geteuid().is_root() {
        return why;
    }
    format!("{why}. It takes root: run `understudy attach FILE --node NODE --follow` as root beside this daemon")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The thread waits for a helper that neither makes its device nor ends; demotions came to no end behind it.
    #[test]
    fn a_device_that_hangs_does_not_hold_up_an_operator_for_ever() {
        let (sender, _never_read) = mpsc::channel();
        let devices = Devices(sender);
        let refused = devices.take_down_within(false, Duration::from_millis(10)).unwrap_err();
        assert!(refused.contains("has hung") && refused.contains("--force"), "{refused}");
        assert_eq!(devices.take_down_within(true, Duration::from_millis(10)), Ok(()));
    }
}
