//! Connections of those who ask a voter: each has a thread with little memory and a limit of time for everything it does, so that one who
//! is slow, hangs, or sends garbage is felt by nobody else.

use super::frame::Frame;
use super::registry::Registry;
use super::stream::{Stream, StreamError};
use super::{Notes, VoterNote};
use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 512;
/// Of those, about one resource: each of its nodes needs one.
const OF_A_RESOURCE_MAX: usize = 32;
/// Of those, who have not said whom they ask.
const STRANGERS_MAX: usize = 32;
/// A frame that has begun, and an answer, take no longer.
const WITHIN: Duration = Duration::from_secs(5);
/// Who asks nothing for so long is sent away; an asker looks more often by itself.
const IDLE: Duration = Duration::from_secs(60);
/// What a thread has: it decodes one short frame at a time.
const STACK: usize = 128 << 10;

/// See the module's page.
#[derive(Clone)]
pub struct Server {
    registry: Arc<Registry>,
    open: Arc<Mutex<Open>>,
    notes: Notes,
    stranger_within: Duration,
}

/// Who is connected: by resource, and strangers under the empty name.
#[derive(Default)]
struct Open(BTreeMap<String, usize>);

/// Counts a connection as long as it lives.
struct Slot {
    open: Arc<Mutex<Open>>,
    of: String,
}

impl Slot {
    fn take(open: &Arc<Mutex<Open>>, of: &str) -> Result<Slot, String> {
        let mut held = open.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = held.0.values().sum();
        let most = if of.is_empty() { STRANGERS_MAX } else { OF_A_RESOURCE_MAX };
        let count = held.0.entry(of.into()).or_default();
        // A stranger that says whom it asks was counted already.
        if *count >= most || (of.is_empty() && all >= CONNECTIONS_MAX) {
            return Err(format!("{all} connections are open, {count} of this kind: too many"));
        }
        *count += 1;
        Ok(Slot { open: open.clone(), of: of.into() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.0.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                open.0.remove(&self.of);
            }
        }
    }
}

impl Server {
    pub fn new(registry: Arc<Registry>, notes: Notes) -> Server {
        Server { registry, open: Arc::default(), notes, stranger_within: WITHIN }
    }

    /// For tests that wait for it.
    #[cfg(test)]
    pub fn impatient(mut self, within: Duration) -> Server {
        self.stranger_within = within;
        self
    }

    /// Answers whoever has connected, in a thread. `already` was received from it before.
    pub fn serve(&self, socket: TcpStream, already: Vec<u8>) {
        let Ok(mut stream) = Stream::new(socket, already) else { return };
        let from = stream.origin();
        let slot = match Slot::take(&self.open, "") {
            Ok(slot) => slot,
            Err(why) => {
                // It has buffers of its own, so this does not wait.
                let _ = stream.send(&Frame::Refused(why.clone()), Duration::from_millis(1));
                return (self.notes)(VoterNote::AskerRefused { from, why });
            }
        };
        let server = self.clone();
        let body = move || {
            if let Err(why) = server.converse(&mut stream, slot) {
                let _ = stream.send(&Frame::Refused(why.clone()), WITHIN);
                (server.notes)(VoterNote::AskerRefused { from, why });
            }
        };
        // Where no thread can be had the connection is dropped with the closure.
        let _ = std::thread::Builder::new().name("voter".into()).stack_size(STACK).spawn(body);
    }

    /// Until the asker goes, or why it is sent away.
    fn converse(&self, stream: &mut Stream, stranger: Slot) -> Result<(), String> {
        let hello = match stream.next(self.stranger_within, self.stranger_within) {
            Ok(Frame::Hello(hello)) => hello,
            Ok(_) => return Err("it did not begin with whom it asks".into()),
            Err(e) => return gone(e),
        };
        self.registry.greet(&hello).map_err(|e| e.to_string())?;
        let _slot = Slot::take(&self.open, &hello.resource)?;
        drop(stranger);
        loop {
            let answer = match stream.next(IDLE, WITHIN) {
                Ok(Frame::Question(question)) => {
                    Frame::Answer(self.registry.ask(&hello, &question).map_err(|e| e.to_string())?)
                }
                Ok(Frame::Look) => Frame::Seen(self.registry.look(&hello).map_err(|e| e.to_string())?),
                Ok(_) => return Err("only questions are answered here".into()),
                // Nothing was asked for a while.
                Err(StreamError::Late(limit)) if limit == IDLE => return Ok(()),
                Err(e) => return gone(e),
            };
            if stream.send(&answer, WITHIN).is_err() {
                return Ok(());
            }
        }
    }
}

/// Who has gone needs no words; what makes no sense does.
fn gone(error: StreamError) -> Result<(), String> {
    match error {
        StreamError::Closed | StreamError::Io(_) => Ok(()),
        StreamError::Late(_) | StreamError::Frame(_) => Err(error.to_string()),
    }
}
