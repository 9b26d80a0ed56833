//! How other threads reach the loop's.

use super::devices::{DeviceOrder, Devices};
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
    /// Events from now on.
    Subscribe {
        reply: Sender<Receiver<String>>,
    },
    /// Write an event.
    Note {
        happening: Happening,
    },
    Stop,
}

/// Asks the loop, from any thread.
#[derive(Clone)]
pub struct LoopHandle {
    requests: Sender<Request>,
    devices: Devices,
    wake: Arc<EventFd>,
}

/// The loop's end of it.
pub struct Requests {
    queue: Receiver<Request>,
    wake: Arc<EventFd>,
    /// The same event, for the ring to wait on.
    pub fd: Rc<OwnedFd>,
}

/// The two ends of a new channel.
pub fn channel(devices: Devices) -> io::Result<(LoopHandle, Requests)> {
    use std::os::fd::AsFd;
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let fd = Rc::new(wake.as_fd().try_clone_to_owned()?);
    let (requests, queue) = mpsc::channel();
    Ok((LoopHandle { requests, devices, wake: wake.clone() }, Requests { queue, wake, fd }))
}

impl LoopHandle {
    /// Hands a request to the loop; false if it has ended.
    pub fn send(&self, request: Request) -> bool {
        let sent = self.requests.send(request).is_ok();
        // It fails only when the counter is at its end, and then the loop has been woken often enough.
        let _ = self.wake.write(1);
        sent
    }

    fn carry_out(&self, command: Command) -> Result<Value, String> {
        let (reply, answer) = mpsc::channel();
        self.send(Request::Command { command, reply });
        answer.recv().unwrap_or_else(|_| Err(ENDING.into()))
    }
}

impl Requests {
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
        // A device that somebody uses keeps this node active, unless it is forced.
        self.devices.take_down(force)?;
        let result = self.carry_out(command);
        if result.is_err() {
            self.devices.tell(DeviceOrder::PutUp);
        }
        result
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
