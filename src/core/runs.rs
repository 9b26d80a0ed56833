//! Runs of bytes on the volumes of a resource, packed: how sets of blocks are kept, written and sent where they are only read
//! from beginning to end.
//!
//! A run is two or three varints (LEB128): the gap since the run before it in 4 KiB blocks, doubled, plus 1 where another volume
//! begins; then that volume's number; then the run's length in blocks. So a record of a scattered load takes 4 or 5 bytes, one that goes on from
//! the last takes none.

use super::dirty::{DIRTY_BLOCK, DirtySet};
use super::types::*;
use crate::buf::BufMut;
use crate::format::BLOCK;

/// Bytes of a piece, about: runs of a set on their way.
pub const PIECE_BYTES: usize = 64 << 10;
/// The volume of a record whose payload is a piece, in lists and histories: no resource has so many.
pub const PIECE_VOLUME: VolumeId = VolumeId(u16::MAX);

/// Bytes that are no packed runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packed runs end in the middle of one, or beyond all volumes")]
pub struct BadRuns;

/// Packs runs that come in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packer {
    bytes: Vec<u8>,
    volume: u16,
    /// Where the last run ends, in blocks.
    at: u64,
    runs: usize,
}

impl Packer {
    /// Adds a run of whole blocks (the last one of a volume may be short) that begins at or after the end of the one before.
    pub fn push(&mut self, run: Extent) {
        let (first, end) = (run.offset / DIRTY_BLOCK, (run.offset + run.length).div_ceil(DIRTY_BLOCK));
        let other = run.volume.0 != self.volume;
        let from = if other { 0 } else { self.at };
        assert!(end > first && first >= from && run.volume.0 >= self.volume, "{run:?} after {self:?}");
        self.varint((first - from) << 1 | u64::from(other));
        if other {
            self.varint(u64::from(run.volume.0));
        }
        self.varint(end - first);
        (self.volume, self.at) = (run.volume.0, end);
        self.runs += 1;
    }

    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.bytes.push(n as u8);
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// The runs in `bytes`, in order; ends after the first error, or where zeros pad them.
pub fn unpack(bytes: &[u8]) -> impl Iterator<Item = Result<Extent, BadRuns>> + '_ {
    let (mut rest, mut volume, mut at) = (bytes, 0u16, 0u64);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match unpack_one(&mut rest, &mut volume, &mut at) {
            Some(run) if run.length > 0 => Some(Ok(run)),
            Some(_) => {
                rest = &[];
                None
            }
            None => {
                rest = &[];
                Some(Err(BadRuns))
            }
        }
    })
}

fn unpack_one(rest: &mut &[u8], volume: &mut u16, at: &mut u64) -> Option<Extent> {
    let gap = take(rest)?;
    if gap & 1 == 1 {
        *volume = u16::try_from(take(rest)?).ok()?;
        *at = 0;
    }
    let first = at.checked_add(gap >> 1)?;
    let blocks = take(rest)?;
    *at = first.checked_add(blocks)?;
    let (offset, end) = (first.checked_mul(DIRTY_BLOCK)?, at.checked_mul(DIRTY_BLOCK)?);
    Some(Extent { volume: VolumeId(*volume), offset, length: end - offset })
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (byte, more) = rest.split_first()?;
        *rest = more;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return (shift < 63 || *byte <= 1).then_some(n);
        }
    }
    None
}

/// A set of runs that is only read and added to as a whole; past a limit it errs to more (see [`Runs::within`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs {
    packed: Packer,
    /// Runs begin and end at multiples of this.
    grain: u64,
}

impl Default for Runs {
    fn default() -> Runs {
        Runs { packed: Packer::default(), grain: DIRTY_BLOCK }
    }
}

impl Runs {
    /// In order; volumes and their ends are not known here, so the last may reach past a volume.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        // It was packed by this code and never left memory.
        unpack(&self.packed.bytes).map(|run| run.expect("runs that were packed here"))
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.packed.len()
    }

    /// With these ranges too, which come in any order.
    pub fn with(&self, mut more: Vec<Extent>) -> Runs {
        more.sort_unstable();
        let mut more = more.into_iter().map(|e| round(e, self.grain)).peekable();
        let mut mine = self.iter().peekable();
        let sorted = std::iter::from_fn(|| match (mine.peek(), more.peek()) {
            (Some(a), Some(b)) if a <= b => mine.next(),
            (_, Some(_)) => more.next(),
            (_, None) => mine.next(),
        });
        Runs { packed: join(sorted), grain: self.grain }
    }

    /// In no more than `limit` bytes: runs are rounded to larger and larger blocks until they do.
    pub fn within(mut self, limit: usize) -> Runs {
        while self.bytes() > limit && self.grain < 1 << 60 {
            let grain = self.grain * 2;
            self = Runs { packed: join(self.iter().map(|e| round(e, grain))), grain };
        }
        self
    }
}

fn round(e: Extent, grain: u64) -> Extent {
    let offset = e.offset / grain * grain;
    Extent { offset, length: (e.offset + e.length).div_ceil(grain) * grain - offset, ..e }
}

/// Packs runs that come sorted by their beginnings, and may touch or overlap.
fn join(sorted: impl Iterator<Item = Extent>) -> Packer {
    let mut packed = Packer::default();
    let mut last: Option<Extent> = None;
    for run in sorted {
        match &mut last {
            Some(l) if l.volume == run.volume && run.offset <= l.offset + l.length => {
                l.length = l.length.max(run.offset + run.length - l.offset);
            }
            _ => last.replace(run).into_iter().for_each(|l| packed.push(l)),
        }
    }
    last.into_iter().for_each(|l| packed.push(l));
    packed
}

impl DirtySet {
    /// The set as pieces, one at a time: whatever walks them holds one.
    pub fn piece(&self, from: &mut Option<(VolumeId, u64)>) -> Option<Vec<u8>> {
        let mut packed = Packer::default();
        while packed.len() < PIECE_BYTES
            && let Some(place) = *from
        {
            let run = self.next(place, u64::MAX);
            *from = run.map(|run| (run.volume, run.offset + run.length));
            run.into_iter().for_each(|run| packed.push(run));
        }
        (!packed.is_empty()).then(|| packed.into_bytes())
    }

    /// All pieces.
    pub fn pieces(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let mut from = Some((VolumeId(0), 0));
        std::iter::from_fn(move || self.piece(&mut from))
    }

    /// Adds the runs of a piece.
    pub fn add_piece(&mut self, piece: &[u8]) -> Result<(), BadRuns> {
        unpack(piece).try_for_each(|run| run.map(|run| self.add(run)))
    }
}

/// A piece as a record of a list or a history, padded as direct I/O wants it.
pub fn piece_record(piece: &[u8]) -> Record {
    let mut padded = BufMut::zeroed(piece.len().next_multiple_of(BLOCK));
    padded[..piece.len()].copy_from_slice(piece);
    let payload = padded.freeze();
    let (length, crc) = (payload.len() as u64, crc32fast::hash(&payload));
    Record { lsn: Lsn(0), volume: PIECE_VOLUME, kind: Kind::Write, offset: 0, length, crc, payload }
}

#[cfg(test)]
#[path = "runs_tests.rs"]
mod tests;
