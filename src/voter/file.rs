//! A vote on disk: two slots that are written and flushed one after the other (`format::vote`).

use super::VoterError;
use crate::core::register::Vote;
use crate::format::vote::{FILE_BYTES, SLOT_OFFSETS, VoteError, VoteSlot, choose, encode};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What slots are written to. Tests record what happens to it, and cut the power.
pub trait Medium {
    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
    fn flush(&mut self) -> io::Result<()>;
}

impl Medium for File {
    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Whose vote it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub resource: String,
    pub voter: String,
}

/// See the module's page.
pub struct VoteFile<M> {
    medium: M,
    owner: Owner,
    sequence: u64,
    /// The slot that the next vote goes to first: never the only good one.
    next: usize,
}

impl<M: Medium> VoteFile<M> {
    /// Goes on with what [`choose`] found.
    pub fn new(medium: M, owner: Owner, found: &VoteSlot, slot: usize) -> VoteFile<M> {
        VoteFile { medium, owner, sequence: found.sequence, next: 1 - slot }
    }

    /// Makes a vote durable in both slots. Where that fails it may be tried again: all of it is written anew, so what an earlier flush
    /// has failed to write is written then, too.
    ///
    /// # Errors
    /// If it is not known to be durable.
    pub fn store(&mut self, vote: &Vote) -> io::Result<()> {
        let Owner { resource, voter } = self.owner.clone();
        let sequence = self.sequence + 1;
        let slot = VoteSlot { sequence, resource, voter, vote: vote.clone() };
        let bytes = encode(&slot).map_err(io::Error::other)?;
        self.medium.write(&bytes, SLOT_OFFSETS[self.next])?;
        self.medium.flush()?;
        self.sequence = sequence;
        self.next = 1 - self.next;
        self.medium.write(&bytes, SLOT_OFFSETS[self.next])?;
        self.medium.flush()
    }
}

/// What is at a path.
pub enum Found {
    Nothing,
    Vote(Box<(VoteFile<File>, Vote)>),
    /// A file that holds no vote, and why.
    Damaged(VoteError),
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> VoterError + 'a {
    move |source| VoterError::Io { what, path: path.to_owned(), source }
}

/// Opens the vote at `path`. It may come from the page cache: it counts as durable only once it was stored anew.
///
/// # Errors
/// If it cannot be read, is of a newer format, or of another voter.
pub fn open(path: &Path, owner: &Owner) -> Result<Found, VoterError> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(source) => return Err(failed("open", path)(source)),
    };
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(FILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    match choose(&bytes) {
        Ok((found, slot)) if found.resource == owner.resource && found.voter == owner.voter => {
            let vote = found.vote.clone();
            Ok(Found::Vote(Box::new((VoteFile::new(file, owner.clone(), &found, slot), vote))))
        }
        Ok((found, _)) => Err(VoterError::Foreign {
            path: path.to_owned(),
            found_voter: found.voter,
            found_resource: found.resource,
            voter: owner.voter.clone(),
            resource: owner.resource.clone(),
        }),
        Err(problem @ VoteError::Version { .. }) => Err(VoterError::Newer { path: path.to_owned(), problem }),
        Err(damage) => Ok(Found::Damaged(damage)),
    }
}

/// Makes the file of a new vote, durable with its name; it appears whole or not at all.
///
/// # Errors
/// If it cannot be made durable.
pub fn create(path: &Path, owner: &Owner, vote: &Vote) -> Result<VoteFile<File>, VoterError> {
    let new = path.with_extension("new");
    let make = || -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let Owner { resource, voter } = owner.clone();
        let slot = VoteSlot { sequence: 0, resource, voter, vote: vote.clone() };
        let bytes = encode(&slot).map_err(io::Error::other)?;
        SLOT_OFFSETS.iter().try_for_each(|at| file.write_all_at(&bytes, *at))?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        sync_folder(path)?;
        Ok(file)
    };
    let file = make().map_err(failed("make", path))?;
    Ok(VoteFile { medium: file, owner: owner.clone(), sequence: 0, next: 0 })
}

/// Sets a file aside that holds no vote, for whoever wants to look at it.
///
/// # Errors
/// If it stays where it is.
pub fn set_aside(path: &Path) -> Result<(), VoterError> {
    std::fs::rename(path, path.with_extension("damaged")).map_err(failed("set aside", path))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
