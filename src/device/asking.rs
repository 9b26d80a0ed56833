//! How a helper is asked: one JSON object a line, over a socket of mode 0600 in [`RUN`](super::RUN).
//!
//! It belongs to whoever owns the node's folder, so that a daemon without root can have its devices taken down.

use super::record::socket;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Longest question and answer in bytes.
const LINE: u64 = 64 << 10;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum Ask {
    Status,
    /// Take the device down; with `force` although it is in use, or its daemon gone: then it fails for ever, and goes with its last user.
    Detach {
        force: bool,
    },
}

/// Why there is no answer, or a no.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No helper lives, or it is another user's.
    #[error("cannot speak to the device's process: {0}")]
    Unreachable(io::Error),
    #[error("{0}")]
    Refused(String),
}

/// Asks the helper of a device, and waits for the answer. A `patience` of none waits for as long as it takes.
///
/// # Errors
/// See [`AskError`].
pub fn ask(name: &str, question: Ask, patience: Option<Duration>) -> Result<Value, AskError> {
    let exchange = || -> io::Result<Value> {
        let mut stream = UnixStream::connect(socket(name))?;
        stream.set_read_timeout(patience)?;
        let question = serde_json::to_string(&question)?;
        stream.write_all(format!("{question}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream.take(LINE)).read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    };
    let mut answer = exchange().map_err(AskError::Unreachable)?;
    match answer["error"].as_str() {
        Some(reason) => Err(AskError::Refused(reason.to_string())),
        None => Ok(answer["result"].take()),
    }
}

/// Reads one question.
pub fn read_question(stream: &UnixStream) -> io::Result<Ask> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// Writes the answer. Whoever asked may have gone.
pub fn answer(mut stream: &UnixStream, answer: &Result<Value, String>) {
    let value = match answer {
        Ok(result) => json!({ "result": result }),
        Err(reason) => json!({ "error": reason }),
    };
    let _ = stream.write_all(format!("{value}\n").as_bytes());
}
