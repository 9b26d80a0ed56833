//! What can be wrong with a node's files and devices, in words.

use crate::core::IoError;
use std::io;
use std::path::PathBuf;

/// Why a part cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// `create` has not been run, or a path is wrong.
    #[error("{} does not exist: run `understudy create` for this node first, or correct the path in the file", path.display())]
    Missing { path: PathBuf },
    /// Another process holds the lock, or the device.
    #[error("{} is in use: another daemon is running on this replica, or the device is mounted or opened by someone else", path.display())]
    InUse { path: PathBuf },
    /// Created with another size than the file says now.
    #[error("{} has {found} bytes, and should have {expected}: the size in the file must be the one that it was created with", path.display())]
    Size { path: PathBuf, found: u64, expected: u64 },
    /// S3: a write of one logical block would not be atomic.
    #[error(
        "{} lies on a device with physical blocks of {physical} bytes, more than the {block} of a write: set `block_size = 4096` in [resource], \
         or use another device", path.display())]
    Block { path: PathBuf, physical: u32, block: u32 },
    /// It would be served as what it is not, and overwritten.
    #[error(
        "{} is not the store that volume {volume} was made with (it was {was}, and this is {is}): correct the path in the file. If it is the same          one all the same, moved, copied or restored from a backup, remove {} and start again", store.display(), record.display())]
    OtherStore { store: PathBuf, volume: String, was: String, is: String, record: PathBuf },
    /// Neither a file nor a block device.
    #[error("{} is neither a regular file nor a block device", path.display())]
    Kind { path: PathBuf },
    /// `create` found something.
    #[error("{} already holds something ({what}): move it away, or use --force to overwrite it", path.display())]
    NotBlank { path: PathBuf, what: String },
    /// `create --force` does not throw orphaned writes away.
    #[error(
        "{} holds writes that were set aside: export or remove it first (--force does not discard it)", path.display())]
    Salvage { path: PathBuf },
    /// Any other failure.
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

impl DiskError {
    /// The kind of the I/O error that it came from.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            DiskError::Missing { .. } => Some(io::ErrorKind::NotFound),
            DiskError::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }

    /// As the core is told.
    pub fn io_error(&self) -> IoError {
        let errno = match self {
            DiskError::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            DiskError::Missing { .. } => libc::ENOENT,
            DiskError::InUse { .. } => libc::EBUSY,
            _ => libc::EIO,
        };
        IoError { errno }
    }
}
