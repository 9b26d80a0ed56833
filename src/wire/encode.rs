//! A message to a frame.

use super::head::Head;
use super::header::{FrameHeader, HEADER_LEN};
use super::{MAX_HEAD, MAX_PAYLOAD, WireError};
use crate::buf::Payload;
use crate::core::{Kind, Lsn, PeerMsg, Record};

/// A frame ready to be sent: `head`, then `payloads` one after the other.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Header and head.
    pub head: Vec<u8>,
    /// The payload section in pieces that share their records' memory.
    pub payloads: Vec<Payload>,
}

impl Encoded {
    /// Bytes on the wire.
    pub fn length(&self) -> usize {
        self.head.len() + self.payloads.iter().map(|p| p.len()).sum::<usize>()
    }
}

/// The frame of a message. With `compress` the payload section is packed where that makes it smaller.
///
/// # Errors
/// If the message is larger than a receiver takes, or its records do not follow each other: a mistake of whoever made it.
pub fn encode(message: &PeerMsg, compress: bool) -> Result<Encoded, WireError> {
    let records: &[Record] = match message {
        PeerMsg::Append { records, .. } => {
            check_order(records)?;
            records
        }
        PeerMsg::ResyncData { records, .. } => records,
        _ => &[],
    };
    let mut payloads = payloads(records)?;
    let length: usize = payloads.iter().map(|p| p.len()).sum();
    if length > MAX_PAYLOAD {
        return Err(WireError::PayloadLength(length as u64));
    }
    let packed = if compress && length > 0 { pack(&payloads, length) } else { None };
    let compressed = packed.is_some();
    if let Some(packed) = packed {
        payloads = vec![packed];
    }

    let mut head = vec![0; HEADER_LEN];
    bincode::encode_into_std_write(Head::of(message), &mut head, bincode::config::standard())
        .map_err(|e| WireError::Head(e.to_string()))?;
    let head_len = head.len() - HEADER_LEN;
    if head_len > MAX_HEAD {
        return Err(WireError::HeadLength(head_len as u64));
    }
    let header = FrameHeader {
        head_len,
        payload_len: payloads.iter().map(|p| p.len()).sum(),
        head_crc: crc32fast::hash(&head[HEADER_LEN..]),
        compressed,
    };
    head[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    Ok(Encoded { head, payloads })
}

/// Bytes of payload that a message carries, before packing.
pub fn payload_bytes(message: &PeerMsg) -> usize {
    match message {
        PeerMsg::Append { records, .. } | PeerMsg::ResyncData { records, .. } => {
            records.iter().map(|r| r.payload.len()).sum()
        }
        _ => 0,
    }
}

/// Only the first lsn travels, so the others must follow from it.
fn check_order(records: &[Record]) -> Result<(), WireError> {
    let Some(first) = records.first() else { return Ok(()) };
    let follows = |(i, r): (usize, &Record)| first.lsn.0.checked_add(i as u64).map(Lsn) == Some(r.lsn);
    if records.iter().enumerate().all(follows) {
        Ok(())
    } else {
        Err(WireError::Record("lsns do not follow each other"))
    }
}

fn payloads(records: &[Record]) -> Result<Vec<Payload>, WireError> {
    let mut out = Vec::with_capacity(records.len());
    for record in records {
        let expected = if record.kind == Kind::Write { record.length } else { 0 };
        if record.payload.len() as u64 != expected {
            return Err(WireError::Record("its payload is not as long as the record says"));
        }
        if expected > 0 {
            out.push(record.payload.clone());
        }
    }
    Ok(out)
}

/// The payloads as one lz4 block, if that is smaller by enough to be worth unpacking.
fn pack(payloads: &[Payload], length: usize) -> Option<Payload> {
    let joined;
    let raw: &[u8] = match payloads {
        [one] => one,
        many => {
            let mut all = Vec::with_capacity(length);
            many.iter().for_each(|p| all.extend_from_slice(p));
            joined = all;
            &joined
        }
    };
    let packed = lz4_flex::block::compress(raw);
    (packed.len() < length - length / 16).then(|| Payload::copy_of(&packed))
}
