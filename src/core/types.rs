//! The words of the field as types: newtypes where two integers could be swapped.

use crate::buf::Payload;
use bincode::{Decode, Encode};
use serde::Serialize;

/// Microseconds on the driver's monotonic clock. The core never reads a clock; it is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    /// This time plus `ms` milliseconds.
    pub fn plus_ms(self, ms: u64) -> Time {
        Time(self.0.saturating_add(ms.saturating_mul(1000)))
    }

    /// Microseconds since `earlier`, 0 if it is later.
    pub fn since_us(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Log sequence number: the n-th record of a resource, from 1. 0 stands before the first record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The lsn that follows.
    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }

    /// The lsn before; 0 stays 0.
    pub fn prev(self) -> Lsn {
        Lsn(self.0.saturating_sub(1))
    }
}

/// Index of a volume in its resource, in the order of the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize)]
pub struct VolumeId(pub u16);

/// Index of a node in [`crate::core::NodeConfig::nodes`], the names in sorted order. Never stored and never sent: names are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u8);

/// A connection between two nodes, numbered by the driver; never reused while a process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Random identity of a term (L1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct TermId(pub u128);

impl std::fmt::Debug for TermId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", (self.0 >> 96) as u32)
    }
}

/// Random identity of one run of a daemon, for as long as it keeps its memory (C1).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Incarnation(pub u128);

impl std::fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", (self.0 >> 96) as u32)
    }
}

/// One entry of a lineage: a term and the lsn of its first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Term {
    pub number: u64,
    pub id: TermId,
    pub first: Lsn,
}

/// What a record does to its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize)]
#[repr(u8)]
pub enum Kind {
    /// The payload's bytes at `offset`.
    Write = 1,
    /// Zeros, which should stay allocated.
    Zeroes = 2,
    /// Zeros, whose space may be given back (S4).
    Discard = 3,
}

impl Kind {
    /// The kind with this number on disk.
    pub fn from_u8(n: u8) -> Option<Kind> {
        [Kind::Write, Kind::Zeroes, Kind::Discard].into_iter().find(|k| *k as u8 == n)
    }
}

/// One entry of the ordered log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub lsn: Lsn,
    pub volume: VolumeId,
    pub kind: Kind,
    /// Bytes from the start of the volume; a multiple of the block size.
    pub offset: u64,
    /// Bytes; a multiple of the block size, not 0.
    pub length: u64,
    /// CRC-32 (IEEE) of the payload; 0 where there is none.
    pub crc: u32,
    /// `length` bytes for a write, none otherwise.
    pub payload: Payload,
}

impl Record {
    /// First byte past the record's range.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// The range that it covers.
    pub fn extent(&self) -> Extent {
        Extent { volume: self.volume, offset: self.offset, length: self.length }
    }
}

/// A run of bytes on a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Extent {
    pub volume: VolumeId,
    pub offset: u64,
    pub length: u64,
}

/// What a node does for its resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Active,
    Passive,
}

/// How writes to one peer are shipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Sync,
    Async,
}

/// What happens to sync writes when no passive is left in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStall {
    Degrade,
    Suspend,
}
