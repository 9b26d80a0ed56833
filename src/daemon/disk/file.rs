//! One file or block device: how it is opened, and blocking I/O on it.

use super::{DiskError, cached};
use crate::buf::{BufMut, Payload};
use crate::config::StoreIo;
use crate::core::IoError;
use crate::daemon::ring::Fd;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Whence, ftruncate, lseek};
use std::cell::Cell;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// I/O on the log is in multiples of this many bytes.
pub const LOG_BLOCK: u32 = 4096;

/// The smallest unit of direct I/O that is ever asked for: where an I/O went short, it goes on at a multiple of this.
pub(super) const SECTOR: u64 = 512;

/// Zeros are written in runs of this many bytes where they must be written.
const ZERO_RUN: usize = 1 << 20;

/// Longer reads go to the ring, cached or not: the loop has other things to do than to copy them.
const CACHED_READ: u64 = 1 << 20;

/// Attempts at an I/O that is interrupted or told to come again.
pub(super) const ATTEMPTS: u32 = 100;

/// How a part is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// O_DIRECT, through the ring.
    Direct,
    /// Through the page cache and the ring.
    Buffered,
    /// In memory (tmpfs): with plain calls, which do not block.
    Memory,
}

impl IoMode {
    /// For people and scripts.
    pub fn name(self) -> &'static str {
        match self {
            IoMode::Direct => "direct",
            IoMode::Buffered => "buffered",
            IoMode::Memory => "memory",
        }
    }
}

/// An open part.
pub struct PartFile {
    fd: Fd,
    path: PathBuf,
    mode: IoMode,
    /// The part's fixed size in bytes; none for one that grows.
    fixed: Option<u64>,
    device: bool,
    /// A way of making zeros that this file has refused is not tried again.
    no_punch: Cell<bool>,
    no_zero_range: Cell<bool>,
}

impl PartFile {
    /// Opens an existing file or block device, for direct I/O where that can be. `fixed` is its size, none for a part that grows.
    pub fn open(path: &Path, fixed: Option<u64>) -> Result<PartFile, DiskError> {
        PartFile::open_as(path, fixed, StoreIo::Direct)
    }

    /// Opens an existing file or block device.
    pub fn open_as(path: &Path, fixed: Option<u64>, io: StoreIo) -> Result<PartFile, DiskError> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENOENT) => DiskError::Missing { path: path.to_owned() },
            Some(libc::EBUSY) => DiskError::InUse { path: path.to_owned() },
            _ => DiskError::Io { what: "open", path: path.to_owned(), source },
        };
        let meta = std::fs::metadata(path).map_err(failed)?;
        let device = meta.file_type().is_block_device();
        if !device && !meta.is_file() {
            return Err(DiskError::Kind { path: path.to_owned() });
        }
        // O_EXCL on a device refuses what is mounted or otherwise claimed.
        let exclusive = if device { libc::O_EXCL } else { 0 };
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let plain = open(exclusive).map_err(failed)?;
        let in_memory = fstatfs(&plain).is_ok_and(|s| s.filesystem_type() == TMPFS_MAGIC) && !device;
        let (file, mode) = if in_memory {
            (plain, IoMode::Memory)
        } else if io == StoreIo::Buffered {
            (plain, IoMode::Buffered)
        } else {
            // The claim of O_EXCL belongs to the descriptor: it must be given up before the next.
            drop(plain);
            match open(exclusive | libc::O_DIRECT) {
                Ok(file) => (file, IoMode::Direct),
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                    (open(exclusive).map_err(failed)?, IoMode::Buffered)
                }
                Err(e) => return Err(failed(e)),
            }
        };
        Ok(PartFile {
            fd: Rc::new(OwnedFd::from(file)),
            path: path.to_owned(),
            mode,
            fixed,
            device,
            no_punch: Cell::new(false),
            no_zero_range: Cell::new(false),
        })
    }

    /// Makes an empty file, which must not exist.
    pub fn make(path: &Path) -> Result<(), DiskError> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        made.map(drop).map_err(|source| DiskError::Io { what: "create", path: path.to_owned(), source })
    }

    pub fn fd(&self) -> &Fd {
        &self.fd
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn mode(&self) -> IoMode {
        self.mode
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.device
    }

    pub(super) fn grows(&self) -> bool {
        self.fixed.is_none()
    }

    /// Refuses a file of another size, and a device that is too small.
    pub fn check_size(&self, expected: u64) -> Result<(), DiskError> {
        let found = self.size().map_err(|e| self.error("find the size of", e))?;
        let fits = if self.device { found >= expected } else { found == expected };
        if fits { Ok(()) } else { Err(DiskError::Size { path: self.path.clone(), found, expected }) }
    }

    /// Refuses a device whose blocks are larger than `block` bytes (S3). Where nothing is known of it, it is trusted.
    pub fn check_block(&self, block: u32) -> Result<(), DiskError> {
        match physical_block(&self.path) {
            Some(physical) if physical > block => Err(DiskError::Block { path: self.path.clone(), physical, block }),
            _ => Ok(()),
        }
    }

    pub fn error(&self, what: &'static str, e: IoError) -> DiskError {
        DiskError::Io { what, path: self.path.clone(), source: io::Error::from_raw_os_error(e.errno) }
    }

    /// Bytes in it.
    pub fn size(&self) -> Result<u64, IoError> {
        // Finds the size of devices too. Nothing uses the descriptor's own position.
        retry(|| lseek(&*self.fd, 0, Whence::SeekEnd)).map(|size| size as u64)
    }

    /// Bytes that the part has: its fixed size, or as far as it has grown.
    pub(super) fn extent(&self) -> Result<u64, IoError> {
        self.fixed.map_or_else(|| self.size(), Ok)
    }

    /// `length` bytes at `offset`; zeros past the end of a growing part.
    pub fn read(&self, offset: u64, length: u64) -> Result<Payload, IoError> {
        let mut buf = BufMut::uninit(length as usize);
        let mut done = 0;
        while done < buf.len() {
            let n = retry(|| pread(&*self.fd, &mut buf[done..], (offset + done as u64) as i64))?;
            let next = progress(done, n);
            if next == done {
                self.end_reached(&mut buf, done + n)?;
                break;
            }
            done = next;
        }
        Ok(buf.freeze())
    }

    /// The same, if all of it is in the page cache: then it costs a copy and no waiting. None where that is not known.
    pub(super) fn read_cached(&self, offset: u64, length: u64) -> Option<Payload> {
        if self.mode != IoMode::Buffered || length > CACHED_READ {
            return None;
        }
        let mut buf = BufMut::uninit(length as usize);
        let n = cached::read(&self.fd, &mut buf, offset)?;
        (n == buf.len()).then(|| buf.freeze())
    }

    /// The file ended at byte `from` of a read.
    pub(super) fn end_reached(&self, buf: &mut BufMut, from: usize) -> Result<(), IoError> {
        if !self.grows() && from < buf.len() {
            return Err(IoError { errno: libc::EIO });
        }
        buf[from..].fill(0);
        Ok(())
    }

    /// Writes the buffers one after the other, and with `sync` makes them stable.
    pub fn write(&self, mut offset: u64, bufs: &[Payload], sync: bool) -> Result<(), IoError> {
        for buf in bufs {
            let mut done = 0;
            while done < buf.len() {
                let n = retry(|| pwrite(&*self.fd, &buf[done..], (offset + done as u64) as i64))?;
                let next = if n == buf.len() - done { buf.len() } else { progress(done, n) };
                if next == done {
                    return Err(IoError { errno: libc::EIO });
                }
                done = next;
            }
            offset += buf.len() as u64;
        }
        if sync { self.flush() } else { Ok(()) }
    }

    /// Makes everything written stable.
    pub fn flush(&self) -> Result<(), IoError> {
        retry(|| nix::unistd::fdatasync(&*self.fd))
    }

    /// The range reads as zeros; with `discard` its space may be given back.
    pub fn zero(&self, offset: u64, length: u64, discard: bool) -> Result<(), IoError> {
        if let Some(flags) = self.zero_mode(discard) {
            match retry(|| fallocate(&*self.fd, flags, offset as i64, length as i64)) {
                Err(IoError { errno: libc::EOPNOTSUPP }) => self.zero_refused(discard),
                done => return done,
            }
        }
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let bufs = zeros(end - at, 64);
            self.write(at, &bufs, false)?;
            at += bufs.iter().map(|b| b.len() as u64).sum::<u64>();
        }
        Ok(())
    }

    /// How zeros are made here without writing them, as far as is known. On block devices the kernel promises zeros for
    /// both ways, which it does not for a plain discard.
    pub(super) fn zero_mode(&self, discard: bool) -> Option<FallocateFlags> {
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match discard {
            true if !self.no_punch.get() => Some(FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep),
            false if !self.no_zero_range.get() => Some(FallocateFlags::FALLOC_FL_ZERO_RANGE | keep),
            _ => None,
        }
    }

    pub(super) fn zero_refused(&self, discard: bool) {
        if discard { self.no_punch.set(true) } else { self.no_zero_range.set(true) }
    }

    /// The first run of data at or after `offset`: offset and length.
    pub fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, IoError> {
        let end = self.extent()?;
        if offset >= end {
            return Ok(None);
        }
        let start = match retry(|| lseek(&*self.fd, offset as i64, Whence::SeekData)) {
            Ok(start) => start as u64,
            Err(IoError { errno: libc::ENXIO }) => return Ok(None),
            // Devices, and file systems that cannot tell.
            Err(IoError { errno: libc::EINVAL | libc::EOPNOTSUPP }) => return Ok(Some((offset, end - offset))),
            Err(e) => return Err(e),
        };
        if start >= end {
            return Ok(None);
        }
        let hole = retry(|| lseek(&*self.fd, start as i64, Whence::SeekHole))? as u64;
        Ok(Some((start, hole.min(end) - start)))
    }

    /// Cuts it to `length` bytes. Stable after the next flush.
    pub(super) fn cut(&self, length: u64) -> Result<(), IoError> {
        if self.fixed.is_some() {
            return Err(IoError { errno: libc::EINVAL });
        }
        retry(|| ftruncate(&*self.fd, length as i64))
    }
}

/// Reserves room behind a file's end, without moving it.
pub(super) const RESERVE: FallocateFlags = FallocateFlags::FALLOC_FL_KEEP_SIZE;

impl PartFile {
    /// Reserves room for a growing part to become `length` bytes long. How long it can become: `length`, or less.
    pub(super) fn reserve(&self, length: u64) -> Result<u64, IoError> {
        let room = self.room(length)?;
        if room < length {
            return Ok(room);
        }
        match retry(|| fallocate(&*self.fd, RESERVE, 0, length.max(1) as i64)) {
            Ok(()) => Ok(length),
            Err(e) => self.room_instead(length, e.errno),
        }
    }

    /// How long it can become with what is free now, but no longer than `length`.
    pub(super) fn room(&self, length: u64) -> Result<u64, IoError> {
        let stat = retry(|| fstat(&*self.fd))?;
        let free = retry(|| fstatvfs(&*self.fd))?;
        Ok((stat.st_blocks as u64 * 512 + free.blocks_available() * free.fragment_size()).min(length))
    }

    /// How long it can become, where reserving `length` failed. What was reserved of it is given back.
    pub(super) fn room_instead(&self, length: u64, errno: i32) -> Result<u64, IoError> {
        match errno {
            // No file system that cannot reserve: what is free is as good as it gets.
            libc::EOPNOTSUPP => self.room(length),
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => {
                let size = self.size()?;
                retry(|| ftruncate(&*self.fd, size as i64))?;
                self.room(length.saturating_sub(1))
            }
            errno => Err(IoError { errno }),
        }
    }
}

/// Where an I/O goes on that had moved `done` bytes and then `n` more: direct I/O cannot begin within a sector.
pub(super) fn progress(done: usize, n: usize) -> usize {
    done + n / SECTOR as usize * SECTOR as usize
}

/// Up to `length` zero bytes in at most `most` buffers, which share one piece of memory.
pub(super) fn zeros(length: u64, most: usize) -> Vec<Payload> {
    let run = BufMut::zeroed(length.min(ZERO_RUN as u64) as usize).freeze();
    let mut left = length;
    let mut out = Vec::new();
    while left > 0 && out.len() < most {
        let now = left.min(run.len() as u64);
        out.push(run.slice(0, now as usize));
        left -= now;
    }
    out
}

/// Repeats what was interrupted.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> Result<T, IoError> {
    let mut attempts = 0;
    loop {
        match call() {
            Ok(value) => return Ok(value),
            Err(Errno::EINTR | Errno::EAGAIN) if attempts < ATTEMPTS => attempts += 1,
            Err(errno) => return Err(IoError { errno: errno as i32 }),
        }
    }
}

/// Physical block size in bytes of the device that `path` is or lies on, where the kernel tells.
pub(super) fn physical_block(path: &Path) -> Option<u32> {
    let meta = std::fs::metadata(path).ok()?;
    let number = if meta.file_type().is_block_device() { meta.rdev() } else { meta.dev() };
    let device = format!("/sys/dev/block/{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number));
    // A partition has its queue one level up, at the disk.
    ["queue", "../queue"]
        .iter()
        .find_map(|queue| std::fs::read_to_string(format!("{device}/{queue}/physical_block_size")).ok())
        .and_then(|text| text.trim().parse().ok())
}
