//! The parts of a replica as files and block devices.
//!
//! [`Disk`] knows where each [`Part`] lies. While a node starts it is used with blocking calls
//! ([`crate::core::BlockingDisk`]); afterwards the event loop starts an I/O with [`Disk::start`], puts what comes out of it on
//! the ring, and hands each completion to [`Job::advance`] until the I/O is done.
//!
//! Parts are opened for direct I/O. Where a file system has none, and for stores where the file says so, they are buffered: a sync is an
//! fdatasync, and what the page cache holds is read at once.
//! Files in memory (tmpfs) are read and written at once, since a ring would hand each call to a thread.

mod blocking;
mod cached;
mod error;
mod file;
pub(super) mod identity;
mod job;
#[cfg(test)]
pub mod record;
#[cfg(test)]
mod tests;

pub use error::DiskError;
pub use file::{IoMode, LOG_BLOCK, PartFile};
pub use job::{Job, Step};

use crate::config::{Settings, StoreIo};
use crate::core::{IoError, IoId, IoOp, Part};
use nix::fcntl::{Flock, FlockArg};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Where salvage number `number` of a node lies whose folder is `dir`.
pub fn salvage_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("salvage.{number}"))
}

/// A node's parts. They are locked for as long as this lives.
pub struct Disk {
    dir: PathBuf,
    /// Names of all nodes: a bitmap's file is named after its peer.
    names: Vec<String>,
    parts: BTreeMap<Part, Rc<PartFile>>,
    _locks: Vec<Flock<File>>,
    #[cfg(test)]
    pub recorder: record::Recorder,
}

impl Disk {
    /// Opens the log and the stores, and locks them against other daemons. Growing parts are opened or made when they
    /// are used first.
    ///
    /// # Errors
    /// In words: what is missing, in use, of another size, or of too large a block.
    pub fn open(settings: &Settings) -> Result<Disk, DiskError> {
        let mut disk = Disk::open_parts(settings)?;
        disk._locks.push(lock_dir(&settings.dir)?);
        identity::check(settings)?;
        Ok(disk)
    }

    /// The same for one that holds the lock of the folder already.
    pub fn open_parts(settings: &Settings) -> Result<Disk, DiskError> {
        let node = &settings.node;
        let mut disk = Disk {
            dir: settings.dir.clone(),
            names: node.nodes.iter().map(|n| n.name.clone()).collect(),
            parts: BTreeMap::new(),
            _locks: Vec::new(),
            #[cfg(test)]
            recorder: record::Recorder::of(&settings.dir),
        };
        disk.open_fixed(Part::Log, &settings.log, node.log_size, file::LOG_BLOCK, StoreIo::Direct)?;
        for (i, (path, volume)) in settings.stores.iter().zip(&node.volumes).enumerate() {
            // Lossless: the configuration allows far fewer volumes.
            let part = Part::Store(crate::core::VolumeId(i as u16));
            disk.open_fixed(part, path, volume.size, node.block, settings.store_io)?;
        }
        Ok(disk)
    }

    fn open_fixed(&mut self, part: Part, path: &Path, size: u64, block: u32, io: StoreIo) -> Result<(), DiskError> {
        let part_file = PartFile::open_as(path, Some(size), io)?;
        part_file.check_size(size)?;
        part_file.check_block(block)?;
        self._locks.push(lock(path, &part_file)?);
        self.parts.insert(part, Rc::new(part_file));
        Ok(())
    }

    /// How each part that is open is read and written, for status: (path, mode).
    pub fn modes(&self) -> impl Iterator<Item = (&Path, IoMode)> {
        self.parts.values().map(|f| (f.path(), f.mode()))
    }

    /// Whether an open part is read and written through the page cache.
    pub fn is_cached(&self, part: Part) -> bool {
        self.parts.get(&part).is_some_and(|file| file.mode() == IoMode::Buffered)
    }

    /// Starts an I/O.
    pub fn start(&mut self, id: IoId, part: Part, op: IoOp) -> Step {
        #[cfg(test)]
        self.recorder.issued(id, part, &op);
        let file = match &op {
            IoOp::Write { .. } | IoOp::Reserve { .. } => self.for_writing(part).map(Some),
            _ => self.existing(part),
        };
        match file {
            Ok(Some(file)) => Job::start(id, file, op),
            Ok(None) => Step::Done(id, job::on_nothing(&op)),
            Err(e) => Step::Done(id, Err(e)),
        }
    }

    /// The file of a part, none for a growing part that does not exist.
    fn existing(&mut self, part: Part) -> Result<Option<Rc<PartFile>>, IoError> {
        if let Some(file) = self.parts.get(&part) {
            return Ok(Some(file.clone()));
        }
        let path = self.growing_path(part)?;
        match PartFile::open(&path, None) {
            Ok(file) => Ok(Some(self.parts.entry(part).or_insert(Rc::new(file)).clone())),
            Err(e) if e.kind() == Some(io::ErrorKind::NotFound) => Ok(None),
            Err(e) => Err(e.io_error()),
        }
    }

    /// The file of a part; a growing part is made, durably, if it does not exist.
    fn for_writing(&mut self, part: Part) -> Result<Rc<PartFile>, IoError> {
        // A salvage that this process has not made is another one's: it is never written to.
        let may_exist = !matches!(part, Part::Salvage(_)) || self.parts.contains_key(&part);
        if may_exist && let Some(file) = self.existing(part)? {
            return Ok(file);
        }
        let path = self.growing_path(part)?;
        let made = PartFile::make(&path).and_then(|()| sync_dir(&self.dir)).and_then(|()| PartFile::open(&path, None));
        let file = Rc::new(made.map_err(|e| e.io_error())?);
        self.parts.insert(part, file.clone());
        Ok(file)
    }

    fn growing_path(&self, part: Part) -> Result<PathBuf, IoError> {
        let name = match part {
            Part::History => "history".to_string(),
            Part::Bitmap { peer, half } => match self.names.get(usize::from(peer.0)) {
                Some(name) => format!("bitmap.{name}.{half}"),
                None => return Err(IoError { errno: libc::ENXIO }),
            },
            Part::Salvage(number) => return Ok(salvage_path(&self.dir, number)),
            // Fixed parts are opened at the start: whoever names one that is not there has miscounted the volumes.
            Part::Log | Part::Store(_) => return Err(IoError { errno: libc::ENXIO }),
        };
        Ok(self.dir.join(name))
    }
}

/// Takes the lock that tells other daemons to stay away.
pub(super) fn lock(path: &Path, part: &PartFile) -> Result<Flock<File>, DiskError> {
    let failed = |source| DiskError::Io { what: "lock", path: path.to_owned(), source };
    let file = File::from(part.fd().try_clone().map_err(failed)?);
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => DiskError::InUse { path: path.to_owned() },
        other => failed(other.into()),
    })
}

/// The same for a node's folder, where its history, bitmaps and salvage are: those of two replicas would overwrite each other.
pub(super) fn lock_dir(dir: &Path) -> Result<Flock<File>, DiskError> {
    let failed = |source| DiskError::Io { what: "lock", path: dir.to_owned(), source };
    let folder = File::open(dir).map_err(failed)?;
    Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => DiskError::InUse { path: dir.to_owned() },
        other => failed(other.into()),
    })
}

/// Makes the names in a folder durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), DiskError> {
    let synced = File::open(dir).and_then(|d| d.sync_all());
    synced.map_err(|source| DiskError::Io { what: "sync the folder", path: dir.to_owned(), source })
}
