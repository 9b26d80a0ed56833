//! How other threads reach the loop's.

use super::devices::{DeviceOrder, Devices};
use super::handoff::Handoffs;
use super::journal::Happening;
use crate::control::Backend;
use crate::core::Command;
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde_json::{Value, json};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

/// What is asked of the loop.
pub enum Request {
    /// Carry out a command; the answer comes when it is done, in words.
    Command {
        command: Command,
        reply: Sender<Result<Value, String>>,
    },
    Status {
        reply: Sender<Value>,
    },
    /// Whether this node would begin to step down.
    MayStepDown {
        reply: Sender<Result<(), String>>,
    },
    /// Events from now on.
    Subscribe {
        reply: Sender<Receiver<String>>,
    },
    /// Write an event.
    Note {
        happening: Happening,
    },
    NoteHandoff {
        note: crate::handoff::Note,
    },
    Stop,
    /// What stood above the devices is undone, as far as that went: end.
    StopNow,
}

/// Asks the loop, from any thread.
#[derive(Clone)]
pub struct LoopHandle {
    requests: Sender<Request>,
    devices: Devices,
    handoffs: Handoffs,
    wake: Arc<EventFd>,
}

/// The loop's end of it.
pub struct Requests {
    queue: Receiver<Request>,
    /// For threads that the loop starts.
    handle: LoopHandle,
    wake: Arc<EventFd>,
    /// The same event, for the ring to wait on.
    pub fd: Rc<OwnedFd>,
}

/// The two ends of a new channel.
pub fn channel(devices: Devices, handoffs: Handoffs) -> io::Result<(LoopHandle, Requests)> {
    use std::os::fd::AsFd;
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let fd = Rc::new(wake.as_fd().try_clone_to_owned()?);
    let (requests, queue) = mpsc::channel();
    let handle = LoopHandle { requests, devices, handoffs, wake: wake.clone() };
    Ok((handle.clone(), Requests { queue, handle, wake, fd }))
}

impl LoopHandle {
    /// Hands a request to the loop; false if it has ended.
    pub fn send(&self, request: Request) -> bool {
        let sent = self.requests.send(request).is_ok();
        // It fails only when the counter is at its end, and then the loop has been woken often enough.
        let _ = self.wake.write(1);
        sent
    }

    pub fn carry_out(&self, command: Command) -> Result<Value, String> {
        let (reply, answer) = mpsc::channel();
        self.send(Request::Command { command, reply });
        answer.recv().unwrap_or_else(|_| Err(ENDING.into()))
    }
}

impl LoopHandle {
    /// A service is not stopped for a command that would be refused anyway, nor is a device failed for it.
    fn may_step_down(&self, command: &Command) -> Result<(), String> {
        let (reply, answer) = mpsc::channel();
        self.send(Request::MayStepDown { reply });
        answer.recv().unwrap_or_else(|_| Err(ENDING.into()))?;
        let Command::Switchover { to } = command else { return Ok(()) };
        if !self.handoffs.is_there() {
            return Ok(());
        }
        let status = self.status();
        let peers = status["peers"].as_array().into_iter().flatten();
        match peers.into_iter().find(|p| p["name"] == to.as_str()) {
            Some(peer) if peer["state"] == "in_sync" => Ok(()),
            Some(peer) => {
                let why = peer["why"].as_str().unwrap_or("it has not caught up");
                Err(format!(
                    "{to} is not in sync ({why}): nothing was stopped. Wait until `understudy status` lists it as in sync"
                ))
            }
            None => Err(format!("the file has no other node called {to:?}: nothing was stopped")),
        }
    }
}

impl Requests {
    pub fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }

    /// Everything that was asked since the last call.
    pub fn drain(&self) -> Vec<Request> {
        // Nothing to read is fine. The counter is cleared first: what is sent after that wakes again.
        let _ = self.wake.read();
        self.queue.try_iter().collect()
    }
}

const ENDING: &str = "the daemon is ending";

impl Backend for LoopHandle {
    fn command(&self, command: Command) -> Result<Value, String> {
        let steps_down = match &command {
            Command::Demote { force } => Some(*force),
            Command::Switchover { .. } => Some(false),
            _ => None,
        };
        let Some(force) = steps_down else { return self.carry_out(command) };
        self.may_step_down(&command)?;
        // What is above a device, or whoever else uses it, keeps this node active, unless it is forced.
        let down = self.handoffs.step_down(force).and_then(|()| self.devices.take_down(force));
        let result = down.and_then(|()| self.carry_out(command));
        if result.is_err() {
            self.devices.tell(DeviceOrder::PutUp);
            self.handoffs.put_up();
        }
        result
    }

    fn retry(&self) -> Result<Value, String> {
        if !self.handoffs.is_there() {
            return Err("this node has no handoff: its file has no [handoff]".into());
        }
        let status = self.status();
        if status["role"] != "active" {
            return Err(format!(
                "{} is not active: there is nothing to do above its device",
                status["node"].as_str().unwrap_or("-")
            ));
        }
        match status["handoff"]["state"].as_str() {
            Some("faulted" | "down") => {
                self.handoffs.put_up();
                Ok(json!("the handoff is tried again: see `understudy status`"))
            }
            Some(state) => Err(format!("the handoff is {state}: only one that is faulted or down is tried again")),
            None => Err(ENDING.into()),
        }
    }

    fn status(&self) -> Value {
        let (reply, answer) = mpsc::channel();
        self.send(Request::Status { reply });
        answer.recv().unwrap_or_else(|_| json!({ "state": "ending" }))
    }

    fn subscribe(&self) -> Receiver<String> {
        let (reply, answer) = mpsc::channel();
        self.send(Request::Subscribe { reply });
        // A loop that has ended has no more events: the receiver of a channel without a sender says just that.
        answer.recv().unwrap_or_else(|_| mpsc::channel().1)
    }

    fn stop(&self) {
        self.send(Request::Stop);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop that refuses, and says what else it was asked.
    fn refusing(requests: Requests) -> Vec<&'static str> {
        let mut asked = Vec::new();
        while let Ok(request) = requests.queue.recv() {
            match request {
                Request::MayStepDown { reply } => reply.send(Err("it is busy".into())).unwrap(),
                Request::Command { reply, .. } => {
                    asked.push("a command");
                    reply.send(Err("it is busy".into())).unwrap();
                }
                _ => return asked,
            }
        }
        asked
    }

    #[test]
    fn no_device_is_failed_for_a_demotion_that_is_refused() {
        let (devices, orders) = Devices::watched();
        let (handle, requests) = channel(devices, Handoffs::default()).unwrap();
        let keeper = std::thread::spawn(move || {
            let mut taken_down = 0;
            for order in orders {
                if let DeviceOrder::TakeDown { reply, .. } = order {
                    taken_down += 1;
                    reply.send(Ok(())).unwrap();
                }
            }
            taken_down
        });
        let operator = std::thread::spawn(move || {
            let refusals = [false, true].map(|force| handle.command(Command::Demote { force }).unwrap_err());
            handle.stop();
            refusals
        });
        assert!(refusing(requests).is_empty());
        assert_eq!(operator.join().unwrap(), ["it is busy", "it is busy"]);
        assert_eq!(keeper.join().unwrap(), 0);
    }
}
