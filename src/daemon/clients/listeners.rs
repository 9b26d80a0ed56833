//! Where clients connect: open only while this node is active.

use crate::config::NbdListen;
use crate::core::Time;
use crate::daemon::hub::{ClientTag, Hub};
use crate::daemon::journal::Happening;
use crate::daemon::net::{ListenError, Listener};
use crate::daemon::ring::Op;

/// A listener that could not be opened, or an accept that failed, is tried again after this.
const RETRY_MS: u64 = 200;

/// One line `nbd = […]` of the file.
struct Door {
    spec: NbdListen,
    open: Option<(u64, Listener)>,
    /// When to try again to open it, or to accept.
    retry: Option<Time>,
    /// Why it cannot be opened: said once.
    why: Option<String>,
}

pub struct Listeners {
    doors: Vec<Door>,
    serving: bool,
    last: u64,
}

impl Listeners {
    /// Tries whether clients will be able to connect, without letting any in.
    ///
    /// # Errors
    /// Where that would fail now; an address that this host does not have may still come.
    pub fn new(specs: &[NbdListen]) -> Result<Listeners, ListenError> {
        for spec in specs {
            match Listener::nbd(spec) {
                Err(e) if !e.address_missing() => return Err(e),
                _ => {}
            }
        }
        let doors = specs.iter().map(|spec| Door { spec: spec.clone(), open: None, retry: None, why: None });
        Ok(Listeners { doors: doors.collect(), serving: false, last: 0 })
    }

    /// Opens everything.
    pub fn open(&mut self, hub: &mut Hub) {
        self.serving = true;
        for door in &mut self.doors {
            door.retry = None;
            door.why = None;
            Self::try_open(door, &mut self.last, hub);
        }
    }

    fn try_open(door: &mut Door, last: &mut u64, hub: &mut Hub) {
        match Listener::nbd(&door.spec) {
            Ok(listener) => {
                *last += 1;
                hub.journal.note(&Happening::Listening { address: door.spec.to_string() });
                hub.client(ClientTag::Accept(*last), accept(&listener));
                door.open = Some((*last, listener));
                door.why = None;
            }
            Err(e) => {
                door.retry = Some(hub.now.plus_ms(RETRY_MS));
                let why = e.to_string();
                if door.why.replace(why.clone()).is_none() {
                    hub.journal.note(&Happening::NotListening { address: door.spec.to_string(), why });
                }
            }
        }
    }

    /// Where clients should be able to connect and cannot, and why.
    pub fn shut(&self) -> impl Iterator<Item = (String, &str)> {
        let doors = self.doors.iter().filter(|_| self.serving);
        doors.filter_map(|door| Some((door.spec.to_string(), door.why.as_deref()?)))
    }

    /// Closes everything. Accepts that were waiting end.
    pub fn close(&mut self) {
        self.serving = false;
        for door in &mut self.doors {
            door.open = None;
            door.retry = None;
        }
    }

    /// An accept of listener `number` has completed: accepts the next. False if that listener is closed already.
    pub fn accepted(&mut self, number: u64, error: Option<i32>, hub: &mut Hub) -> bool {
        let is_it = |d: &&mut Door| d.open.as_ref().is_some_and(|(n, _)| *n == number);
        let Some(door) = self.doors.iter_mut().find(is_it) else { return false };
        let Some((_, listener)) = &door.open else { return false };
        match error {
            None | Some(libc::ECONNABORTED | libc::EINTR | libc::EAGAIN) => {
                hub.client(ClientTag::Accept(number), accept(listener));
            }
            Some(errno) => {
                let why = std::io::Error::from_raw_os_error(errno).to_string();
                hub.journal.complain(&Happening::NotListening { address: door.spec.to_string(), why });
                door.retry = Some(hub.now.plus_ms(RETRY_MS));
            }
        }
        true
    }

    pub fn deadline(&self) -> Option<Time> {
        self.doors.iter().filter_map(|d| d.retry).min()
    }

    /// Tries again what is due.
    pub fn tick(&mut self, hub: &mut Hub) {
        if !self.serving {
            return;
        }
        for door in &mut self.doors {
            if door.retry.is_none_or(|t| t > hub.now) {
                continue;
            }
            door.retry = None;
            match &door.open {
                Some((number, listener)) => {
                    hub.client(ClientTag::Accept(*number), accept(listener));
                }
                None => Self::try_open(door, &mut self.last, hub),
            }
        }
    }
}

fn accept(listener: &Listener) -> Op {
    Op::Accept { socket: listener.fd().clone(), accepted: None }
}
