//! What can go wrong between a client and its server.

use super::Address;
use std::io::{self, ErrorKind};
use std::time::Duration;

/// Why a connection or a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// Nobody listens there, or not for us.
    #[error("cannot connect to the NBD server at {address}: {source}")]
    Connect { address: Address, source: io::Error },
    /// The connection failed.
    #[error("cannot {what}: {source}")]
    Io { what: &'static str, source: io::Error },
    /// The server ended the connection, or the client had given it up.
    #[error("the NBD server closed the connection")]
    Closed,
    /// Nothing came for as long as the caller is willing to wait.
    #[error("the NBD server did not answer in time")]
    TimedOut,
    /// The server does not serve this export, and says why.
    #[error("the NBD server refuses the export {export:?}: {reason}")]
    Refused { export: String, reason: String },
    /// What answers does not speak the protocol.
    #[error("what answers is no NBD server that this client understands: {what}")]
    Protocol { what: &'static str },
    /// The request was not carried out.
    #[error("the NBD server failed a {name} of {length} bytes at {offset}: {}", errno_name(*errno))]
    Failed { name: &'static str, offset: u64, length: u32, errno: u32 },
    /// One request cannot carry so much.
    #[error("{length} bytes are too many for one NBD request: split them into pieces of at most 32 MiB")]
    TooLong { length: usize },
    /// No time left before anything was tried.
    #[error("a client needs some time: its patience of {0:?} is none")]
    NoPatience(Duration),
}

impl NbdError {
    pub(super) fn from_io(what: &'static str, source: io::Error) -> NbdError {
        match source.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => NbdError::TimedOut,
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => NbdError::Closed,
            _ => NbdError::Io { what, source },
        }
    }
}

/// The protocol's error numbers, which it fixes whatever the system's are.
pub fn errno_name(errno: u32) -> String {
    let name = match errno {
        1 => "EPERM, not permitted",
        5 => "EIO, its storage failed",
        12 => "ENOMEM, out of memory",
        22 => "EINVAL, the request is invalid",
        28 => "ENOSPC, no space, or past the end",
        75 => "EOVERFLOW, too long",
        95 => "ENOTSUP, not supported",
        108 => "ESHUTDOWN, it serves no longer",
        other => return format!("error {other}"),
    };
    name.to_string()
}
