//! A voter outside the core: the durable file of an [`crate::core::register::Acceptor`], the server that questions reach it by, and the
//! asking side. A data node's daemon has one voter, for its own resource; a witness's process has one for each resource that it was
//! asked for. See `docs/charter.md`.
//!
//! | module | what it is |
//! |---|---|
//! | [`frame`] | questions and answers as bytes; pure |
//! | `file` | a vote on disk |
//! | [`registry`] | the votes of a voter, by resource, and who is answered |
//! | [`server`] | connections of those who ask |
//! | [`asking`] | asks the other voters, in threads of its own |

pub mod asking;
mod file;
pub mod frame;
pub mod registry;
pub mod server;
mod stream;
#[cfg(test)]
mod tests;

use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;

/// Why a voter does not start.
#[derive(Debug, thiserror::Error)]
pub enum VoterError {
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{} is in use by another process: this voter is already running", path.display())]
    InUse { path: PathBuf },
    #[error("{}: {problem}", path.display())]
    Newer { path: PathBuf, problem: crate::format::vote::VoteError },
    #[error(
        "{} is the vote of {found_voter} for the resource {found_resource}, and {voter} of {resource} was to use it: give each voter a folder of its own",
        path.display()
    )]
    Foreign { path: PathBuf, found_voter: String, found_resource: String, voter: String, resource: String },
}

/// What a voter has to say to people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum VoterNote {
    /// A resource has a new voter here: it had none, or its file was lost. It votes from when the charter lists it.
    VoterMade { resource: String, id: String },
    /// A vote that cannot be read was set aside, and a new voter takes its place.
    VoteDamaged { resource: String, path: String, why: String },
    /// This voter has given its id up: its file was an older copy (C7). It votes again once the charter lists it.
    VoterStale { resource: String, id: String },
    /// A vote cannot be made durable, so nobody is answered.
    VoteNotWritten { resource: String, why: String },
    /// A vote can be made durable again.
    VoteWritten { resource: String },
    /// Whoever asked was refused, or sent what is no question.
    AskerRefused { from: String, why: String },
    /// Another voter does not answer this node.
    VoterSilent { voter: String, why: String },
    /// It answers again.
    VoterAnswers { voter: String },
}

/// Where notes go. Called from any thread.
pub type Notes = Arc<dyn Fn(VoterNote) + Send + Sync>;

/// An id as people see it.
pub fn shown_id(id: crate::core::register::VoterId) -> String {
    format!("{:08x}", (id.0 >> 96) as u32)
}
