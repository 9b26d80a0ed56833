//! Orphaned writes as a raw image: sparse, with nothing but the blocks that were set aside, or laid over a base.

use super::error::SalvageError;
use super::read::{Content, Run, Salvage};
use crate::config::Volume;
use crate::core::VolumeId;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes copied at once.
const CHUNK: u64 = 1 << 20;

/// Runs of zeros of this many bytes in a base stay holes.
const GRAIN: usize = 64 << 10;

/// What is to be exported.
#[derive(Debug)]
pub struct Export<'a> {
    pub salvage: &'a Salvage,
    pub volumes: &'a [Volume],
    pub volume: VolumeId,
    /// A file that does not exist yet.
    pub to: &'a Path,
    /// Copied first.
    pub base: Option<&'a Path>,
    /// Take what can be read of a damaged one.
    pub partial: bool,
}

/// What was exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of content written.
    pub data_bytes: u64,
    /// Bytes that were set aside as zeros: holes in the image.
    pub zero_bytes: u64,
}

impl Export<'_> {
    /// Writes the image, durably. What was begun is removed if it fails.
    ///
    /// # Errors
    /// If the salvage does not fit the volumes, is damaged (unless `partial`), the target exists, or I/O fails.
    pub fn run(&self) -> Result<Exported, SalvageError> {
        self.check()?;
        let base = self.base.map(|path| self.open_base(path)).transpose()?;
        let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.to);
        let out = open.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => SalvageError::Exists { path: self.to.to_owned() },
            _ => failed("create", self.to)(e),
        })?;
        let result = self.fill(&out, base.as_ref());
        if result.is_err() {
            // It did not exist before; what cannot be removed is left, and the error says why it is not whole.
            let _ = std::fs::remove_file(self.to);
        }
        result
    }

    fn size(&self) -> u64 {
        self.volumes[usize::from(self.volume.0)].size
    }

    fn check(&self) -> Result<(), SalvageError> {
        let path = || self.salvage.path.clone();
        if self.salvage.damaged && !self.partial {
            return Err(SalvageError::Damaged { path: path(), bytes: self.salvage.bytes() });
        }
        for run in &self.salvage.runs {
            let Some(volume) = self.volumes.get(usize::from(run.volume.0)) else {
                let (volume, volumes) = (run.volume.0, self.volumes.len());
                return Err(SalvageError::ForeignVolume { path: path(), volume, volumes });
            };
            if run.offset.checked_add(run.length).is_none_or(|end| end > volume.size) {
                let (offset, size, volume) = (run.offset, volume.size, volume.name.clone());
                return Err(SalvageError::OutOfVolume { path: path(), volume, offset, size });
            }
        }
        Ok(())
    }

    fn open_base(&self, path: &Path) -> Result<(File, PathBuf), SalvageError> {
        let file = File::open(path).map_err(failed("open", path))?;
        let device = file.metadata().map_err(failed("look at", path))?.file_type().is_block_device();
        let found = lseek(&file, 0, Whence::SeekEnd).map_err(|e| failed("find the size of", path)(e.into()))? as u64;
        let expected = self.size();
        if found < expected || (!device && found != expected) {
            return Err(SalvageError::BaseSize { path: path.to_owned(), found, expected });
        }
        Ok((file, path.to_owned()))
    }

    fn fill(&self, out: &File, base: Option<&(File, PathBuf)>) -> Result<Exported, SalvageError> {
        let out_failed = |e| failed("write", self.to)(e);
        out.set_len(self.size()).map_err(out_failed)?;
        if let Some((base, path)) = base {
            copy(base, path, out, self.to, self.size())?;
        }
        let source = File::open(&self.salvage.path).map_err(failed("open", &self.salvage.path))?;
        let mut done = Exported::default();
        for run in self.salvage.runs.iter().filter(|r| r.volume == self.volume) {
            match run.content {
                Some(content) => {
                    let bytes = self.content(&source, run, content)?;
                    out.write_all_at(&bytes, run.offset).map_err(out_failed)?;
                    done.data_bytes += run.length;
                }
                None => {
                    if base.is_some() {
                        zero(out, run.offset, run.length).map_err(out_failed)?;
                    }
                    done.zero_bytes += run.length;
                }
            }
        }
        out.sync_all().map_err(failed("sync", self.to))?;
        Ok(done)
    }

    fn content(&self, source: &File, run: &Run, content: Content) -> Result<Vec<u8>, SalvageError> {
        // At most 1 MiB: the format allows no longer payload.
        let mut bytes = vec![0; run.length as usize];
        source.read_exact_at(&mut bytes, content.at).map_err(failed("read", &self.salvage.path))?;
        if crc32fast::hash(&bytes) != content.crc {
            return Err(SalvageError::Checksum { path: self.salvage.path.clone(), at: content.at });
        }
        Ok(bytes)
    }
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> SalvageError {
    move |source| SalvageError::Io { what, path: path.to_owned(), source }
}

/// Copies the first `size` bytes, holes as holes.
fn copy(base: &File, base_path: &Path, out: &File, out_path: &Path, size: u64) -> Result<(), SalvageError> {
    let mut chunk = vec![0; CHUNK as usize];
    let mut at = 0;
    while let Some((start, end)) = next_data(base, at, size).map_err(failed("read", base_path))? {
        at = start;
        while at < end {
            let bytes = &mut chunk[..CHUNK.min(end - at) as usize];
            base.read_exact_at(bytes, at).map_err(failed("read", base_path))?;
            for (index, grain) in bytes.chunks(GRAIN).enumerate() {
                if grain.iter().any(|b| *b != 0) {
                    let place = at + (index * GRAIN) as u64;
                    out.write_all_at(grain, place).map_err(failed("write", out_path))?;
                }
            }
            at += bytes.len() as u64;
        }
    }
    Ok(())
}

/// The next run of data from `at` on, up to `size`. Where holes cannot be asked for, all is data.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match lseek(file, at as i64, Whence::SeekData) {
        Ok(start) => start as u64,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Some((at, size))),
        Err(e) => return Err(e.into()),
    };
    let end = lseek(file, start as i64, Whence::SeekHole)? as u64;
    Ok((start < size).then(|| (start, end.min(size))))
}

fn zero(out: &File, offset: u64, length: u64) -> io::Result<()> {
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(out, punch, offset as i64, length as i64) {
        Err(Errno::EOPNOTSUPP) => {}
        other => return Ok(other?),
    }
    let zeros = vec![0; CHUNK.min(length) as usize];
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let bytes = &zeros[..(zeros.len() as u64).min(end - at) as usize];
        out.write_all_at(bytes, at)?;
        at += bytes.len() as u64;
    }
    Ok(())
}
