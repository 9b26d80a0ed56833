//! Reading the files in which a node has set orphaned writes aside (R4): `DIR/salvage.N`, batches whose records are the
//! contents of the blocks as that node had them. The daemon may run meanwhile: nothing here is locked or changed.

use super::error::SalvageError;
use crate::buf::BufMut;
use crate::core::{IoError, Kind, Lsn, VolumeId};
use crate::daemon::disk::salvage_path;
use crate::format::batch::{self, TermRef};
use crate::format::ring::{Geometry, ScanStart, Verdict, scan};
use crate::format::{BLOCK, ring};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A run of bytes that was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub volume: VolumeId,
    /// Bytes from the start of the volume.
    pub offset: u64,
    pub length: u64,
    /// None where it holds zeros only.
    pub content: Option<Content>,
}

/// Where the content of a run lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Bytes from the start of the file.
    pub at: u64,
    pub crc: u32,
}

/// One file of orphaned writes, its contents still in it.
#[derive(Debug)]
pub struct Salvage {
    pub path: PathBuf,
    /// When the last of it was written.
    pub when: SystemTime,
    /// The term in which the node stood when it set them aside.
    pub term: TermRef,
    pub runs: Vec<Run>,
    /// Something that was there once cannot be read any more.
    pub damaged: bool,
}

impl Salvage {
    /// Bytes set aside.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|r| r.length).sum()
    }

    /// Blocks of 4096 bytes set aside.
    pub fn blocks(&self) -> u64 {
        self.runs.iter().map(|r| r.length.div_ceil(BLOCK as u64)).sum()
    }
}

/// The numbers in use in a node's folder, smallest first.
///
/// # Errors
/// If the folder is not there or cannot be read.
pub fn numbers(node: &str, dir: &Path) -> Result<Vec<u32>, SalvageError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => SalvageError::NoFolder { node: node.to_owned(), dir: dir.to_owned() },
        _ => SalvageError::Io { what: "look into", path: dir.to_owned(), source },
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("salvage.")?.parse::<u32>().ok());
        // "salvage.01" is no name that a daemon gives.
        found.extend(number.filter(|n| salvage_path(dir, *n).file_name() == Some(&name)));
    }
    found.sort_unstable();
    Ok(found)
}

/// Reads one file and checks every byte of it.
///
/// # Errors
/// If it cannot be read or does not begin with a batch. Damage further on is no error, see [`Salvage::damaged`].
pub fn open(path: &Path) -> Result<Salvage, SalvageError> {
    let failed = |what| move |source| SalvageError::Io { what, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed("open"))?;
    let meta = file.metadata().map_err(failed("look at"))?;
    let when = meta.modified().map_err(failed("find the time of"))?;
    let geometry = Geometry { start: 0, size: meta.len() / BLOCK as u64 * BLOCK as u64 };
    let mut first = [0; BLOCK];
    let length = BLOCK.min(geometry.size as usize);
    file.read_exact_at(&mut first[..length], 0).map_err(failed("read"))?;
    let (header, _) = batch::decode_header(&first[..length])
        .map_err(|source| SalvageError::NotSalvage { path: path.to_owned(), source })?;
    let stream = header.fields.stream;
    let from = ScanStart { address: 0, prev_crc: batch::seed(stream), first: Lsn(1) };
    let read = |at, length: u64| {
        let mut bytes = BufMut::uninit(length as usize);
        let io_error = |e: io::Error| IoError { errno: e.raw_os_error().unwrap_or(libc::EIO) };
        file.read_exact_at(&mut bytes, at).map_err(io_error)?;
        Ok(bytes.freeze())
    };
    let scan =
        scan(&geometry, stream, from, read).map_err(|error| SalvageError::Read { path: path.to_owned(), error })?;
    let damaged = scan.verdict != Verdict::End;
    Ok(Salvage { path: path.to_owned(), when, term: header.fields.term, runs: runs(&scan), damaged })
}

fn runs(scan: &ring::Scan) -> Vec<Run> {
    let of_entry = |entry: &ring::BatchEntry| {
        let address = entry.start.address;
        let run = |meta: &batch::RecordMeta| Run {
            volume: meta.volume,
            offset: meta.offset,
            length: meta.length,
            // The walk has found that the whole batch lies in the file: no overflow.
            content: (meta.kind == Kind::Write).then(|| Content { at: address + meta.payload_at, crc: meta.crc }),
        };
        entry.metas.iter().map(run).collect::<Vec<_>>()
    };
    scan.entries.iter().flat_map(of_entry).collect()
}
