//! Reading a range as this node sees it: the overlay over the store. For resync, salvage and verify; clients' reads
//! have the same parts and other waiting.

use super::overlay::{Overlay, ReadPart};
use super::types::*;
use crate::buf::Payload;

/// A read under way.
#[derive(Debug)]
pub struct ViewRead {
    pub extent: Extent,
    parts: Vec<Option<Content>>,
    missing: usize,
}

#[derive(Debug)]
enum Content {
    Data(Payload),
    Zero(u64),
}

/// A part that only the store knows: its index, offset and length in bytes.
pub type StorePart = (usize, u64, u64);

impl ViewRead {
    /// The read of `extent`, and what must be read from the store for it.
    pub fn start(overlay: &Overlay, extent: Extent) -> (ViewRead, Vec<StorePart>) {
        let plan = overlay.read(extent.volume, extent.offset, extent.length);
        let mut reads = Vec::new();
        let part = |(index, part)| match part {
            ReadPart::Data(payload) => Some(Content::Data(payload)),
            ReadPart::Zero(length) => Some(Content::Zero(length)),
            ReadPart::Store { offset, length } => {
                reads.push((index, offset, length));
                None
            }
        };
        let parts = plan.parts.into_iter().enumerate().map(part).collect();
        let missing = reads.len();
        (ViewRead { extent, parts, missing }, reads)
    }

    /// A part came from the store.
    pub fn fill(&mut self, part: usize, payload: Payload) {
        if let Some(slot @ None) = self.parts.get_mut(part) {
            *slot = Some(Content::Data(payload));
            self.missing -= 1;
        }
    }

    pub fn is_done(&self) -> bool {
        self.missing == 0
    }

    /// The contents as records without lsn, in order, each at most as long as a record may be.
    pub fn into_records(self) -> Vec<Record> {
        let mut records = Vec::new();
        let mut offset = self.extent.offset;
        for content in self.parts.into_iter().flatten() {
            let record = content_record(self.extent.volume, offset, content);
            offset += record.length;
            records.push(record);
        }
        records
    }
}

/// A discard without lsn.
pub fn zero_record(extent: Extent) -> Record {
    content_record(extent.volume, extent.offset, Content::Zero(extent.length))
}

/// A write without lsn, or a discard where the data is all zeros, so that it stays sparse (S4).
pub fn data_record(volume: VolumeId, offset: u64, payload: Payload) -> Record {
    content_record(volume, offset, Content::Data(payload))
}

fn content_record(volume: VolumeId, offset: u64, content: Content) -> Record {
    let (kind, length, payload) = match content {
        Content::Data(payload) if payload.iter().all(|b| *b == 0) => {
            (Kind::Discard, payload.len() as u64, Payload::empty())
        }
        Content::Data(payload) => (Kind::Write, payload.len() as u64, payload),
        Content::Zero(length) => (Kind::Discard, length, Payload::empty()),
    };
    let crc = if payload.is_empty() { 0 } else { crc32fast::hash(&payload) };
    Record { lsn: Lsn(0), volume, kind, offset, length, crc, payload }
}
