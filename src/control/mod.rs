//! The control socket: how operators' commands reach a running daemon.
//!
//! A unix stream socket of mode 0600. Both sides speak JSON, one object a line; a connection may carry many requests, one
//! after the other.
//!
//! | request | answer |
//! |---|---|
//! | `{"command":"status"}` | `{"ok":true,"result":{…}}`, the object that `docs/status.md` describes |
//! | `{"command":"promote","force":false,"off":[]}` and the other forms of [`crate::core::Command`] | `{"ok":true,"result":"in words"}`; an object where [`crate::core::Answer`] is one |
//! | `{"command":"events"}` | `{"ok":true,"result":"events follow"}`, then one event a line until either side closes |
//! | `{"command":"retry"}` | `{"ok":true,"result":"in words"}`: the handoff is tried again |
//! | `{"command":"stop"}` | `{"ok":true,"result":"stopping"}`, then the daemon ends |
//!
//! What is refused is answered by `{"ok":false,"error":"in words"}`. `force`, `off`, `repair` and `dry_run` may be left out and then mean
//! "no"; a field that the command does not have is refused. A command goes on although its caller hangs up.

mod client;
mod error;
mod line;
mod request;
mod server;

#[cfg(test)]
mod tests;

pub use client::{Client, Events};
pub use error::ControlError;
pub use server::Server;

use std::sync::mpsc;

/// Longest request in bytes, its newline included.
pub const REQUEST_MAX: usize = 64 << 10;

/// What the server asks of the daemon. Called from the threads of its connections.
pub trait Backend: Send + Sync + Clone + 'static {
    /// Carries out a command and waits for its end: a sentence for the operator or an object, or the refusal in words.
    fn command(&self, command: crate::core::Command) -> Result<serde_json::Value, String>;
    /// The state of the node as the JSON object that `docs/status.md` describes.
    fn status(&self) -> serde_json::Value;
    /// Events from now on, each a JSON object in one line. Ends when the daemon does. The receiver is dropped when
    /// its client is gone.
    fn subscribe(&self) -> mpsc::Receiver<String>;
    /// Tries the handoff of an active node again.
    fn retry(&self) -> Result<serde_json::Value, String>;
    /// Asks the daemon to end; returns at once.
    fn stop(&self);
}
