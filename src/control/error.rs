//! What can go wrong on the control socket.

use std::io;
use std::path::PathBuf;

/// Why the socket cannot be offered, or a daemon not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A daemon answers on the socket.
    #[error("a daemon already answers on {}: this node is already running", path.display())]
    AlreadyRunning { path: PathBuf },
    /// Something else than a socket is in the way.
    #[error("{} is there but is not a socket: move it away, or choose another path with control = \"…\"", path.display())]
    NotASocket { path: PathBuf },
    /// The socket cannot be made.
    #[error("cannot {what} the control socket {}: {source}", path.display())]
    Socket { what: &'static str, path: PathBuf, source: io::Error },
    /// Nobody answers.
    #[error(
        "no daemon answers on {}: it is not running on this host. Start it with `understudy run FILE --node NODE`",
        path.display())]
    NotRunning { path: PathBuf },
    /// The socket is there and belongs to somebody else.
    #[error("you may not use the control socket {}: run this as the user that runs the daemon, or as root", path.display())]
    Forbidden { path: PathBuf },
    /// The connection broke.
    #[error("the connection to the daemon broke: {source}")]
    Broken { source: io::Error },
    /// The daemon accepts, and does not answer.
    #[error("the daemon on {} accepted the connection and did not answer in time: it hangs, or is stopped", path.display())]
    Hung { path: PathBuf },
    /// The daemon closed without an answer.
    #[error("the daemon ended before it answered: see its own output for the reason")]
    Ended,
    /// The answer is not of this protocol.
    #[error("what answers on {} is no daemon of this version: {why}", path.display())]
    NotOurs { path: PathBuf, why: &'static str },
    /// The daemon says no.
    #[error("{reason}")]
    Refused { reason: String },
}
