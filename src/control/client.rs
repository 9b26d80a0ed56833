//! The operator's side.

use super::ControlError;
use super::line::{LineError, Lines};
use crate::core::Command;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest answer that is read, in bytes.
const ANSWER_MAX: usize = 16 << 20;
/// What a living daemon needs no time for is answered within this.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A connection to the daemon of a node.
pub struct Client {
    path: PathBuf,
    lines: Lines,
}

impl Client {
    /// Connects to the control socket at `path`.
    pub fn connect(path: &Path) -> Result<Client, ControlError> {
        let owned = || path.to_owned();
        let stream = UnixStream::connect(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NotRunning { path: owned() },
            io::ErrorKind::PermissionDenied => ControlError::Forbidden { path: owned() },
            _ => ControlError::Socket { what: "connect to", path: owned(), source },
        })?;
        Ok(Client { path: owned(), lines: Lines::new(stream, ANSWER_MAX) })
    }

    /// The state of the node (`docs/status.md`).
    pub fn status(&mut self) -> Result<Value, ControlError> {
        self.ask(&json!({ "command": "status" }), Some(AT_ONCE))
    }

    /// Carries out a command, and waits for its end however long it takes.
    pub fn command(&mut self, command: &Command) -> Result<Value, ControlError> {
        let request = serde_json::to_value(command).map_err(|e| ControlError::Broken { source: e.into() })?;
        self.ask(&request, None)
    }

    /// Tries the handoff again.
    pub fn retry(&mut self) -> Result<Value, ControlError> {
        self.ask(&json!({ "command": "retry" }), None)
    }

    /// Ends the daemon.
    pub fn stop(&mut self) -> Result<String, ControlError> {
        self.ask(&json!({ "command": "stop" }), Some(AT_ONCE)).map(in_words)
    }

    /// What happens from now on.
    pub fn events(mut self) -> Result<Events, ControlError> {
        self.ask(&json!({ "command": "events" }), Some(AT_ONCE))?;
        Ok(Events { client: self })
    }

    fn ask(&mut self, request: &Value, timeout: Option<Duration>) -> Result<Value, ControlError> {
        let line = format!("{request}\n");
        // A server that refuses the connection has written why before it closed: that is read although this write fails.
        let sent = self.lines.stream().write_all(line.as_bytes());
        let answer = match (self.next_line(timeout), sent) {
            (Ok(line), _) => line,
            (Err(_), Err(source)) => return Err(ControlError::Broken { source }),
            (Err(e), Ok(())) => return Err(e),
        };
        let not_ours = |why| ControlError::NotOurs { path: self.path.clone(), why };
        let mut answer: Value = serde_json::from_slice(&answer).map_err(|_| not_ours("its answer is not JSON"))?;
        match (answer["ok"].as_bool(), answer["error"].as_str()) {
            (Some(true), _) => Ok(answer["result"].take()),
            (Some(false), Some(reason)) => Err(ControlError::Refused { reason: reason.to_owned() }),
            _ => Err(not_ours("its answer says neither yes nor no")),
        }
    }

    fn next_line(&mut self, timeout: Option<Duration>) -> Result<Vec<u8>, ControlError> {
        self.lines.next(timeout).map_err(|e| match e {
            LineError::Closed => ControlError::Ended,
            LineError::TooLong => ControlError::NotOurs { path: self.path.clone(), why: "its answer has no end" },
            LineError::TimedOut => ControlError::Hung { path: self.path.clone() },
            LineError::Io(source) => ControlError::Broken { source },
        })
    }
}

fn in_words(result: Value) -> String {
    match result {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// The event stream, one JSON object a line; ends when the daemon does.
pub struct Events {
    client: Client,
}

impl Iterator for Events {
    type Item = Result<String, ControlError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.client.next_line(None) {
            Ok(line) => Some(Ok(String::from_utf8_lossy(&line).into_owned())),
            Err(ControlError::Ended) => None,
            Err(e) => Some(Err(e)),
        }
    }
}
