//! Frames between nodes: a pure codec, no I/O.
//!
//! A frame is a fixed [`HEADER_LEN`] byte header, a head (bincode), and the payloads of its write records one after the other.
//! Payloads are never copied: encoding hands out references to them, decoding slices the one buffer that they were
//! received into (only a compressed frame is unpacked into a buffer of its own). All integers are little-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `USTW` |
//! | 4 | 2 | version, 1 |
//! | 6 | 2 | flags: bit 0 = payload section is one lz4 block |
//! | 8 | 4 | bytes of the head, 1 to [`MAX_HEAD`] |
//! | 12 | 4 | CRC-32 of the head |
//! | 16 | 8 | bytes of the payload section as sent, up to [`MAX_PAYLOAD`] |
//! | 24 | 4 | zero |
//! | 28 | 4 | CRC-32 of the 28 bytes before it |

mod decode;
mod encode;
mod head;
mod header;
#[cfg(test)]
mod tests;

pub use decode::decode;
pub use encode::{Encoded, encode, payload_bytes};
pub use header::{FrameHeader, HEADER_LEN};

/// Bytes of an encoded head, at most.
pub const MAX_HEAD: usize = 256 << 10;

/// Bytes of a frame's payload section, at most; also what it may unpack to.
pub const MAX_PAYLOAD: usize = 8 << 20;

/// Why bytes are not a frame, or a message cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error(
        "these bytes do not begin a frame of understudy (first four: {0:08x}): is something else connecting to this port?"
    )]
    Magic(u32),
    #[error("the frame's header is damaged (its checksum does not match)")]
    HeaderChecksum,
    #[error("the peer speaks frame version {0}, this node version 1: run the same release on all nodes")]
    Version(u16),
    #[error("the frame has unknown flags {0:#06x}: run the same release on all nodes")]
    Flags(u16),
    #[error("the frame's head has {0} bytes; 1 to {MAX_HEAD} are allowed")]
    HeadLength(u64),
    #[error("the frame's payload has {0} bytes; at most {MAX_PAYLOAD} are allowed")]
    PayloadLength(u64),
    #[error("the frame's head is damaged (its checksum does not match)")]
    HeadChecksum,
    #[error("the frame's head cannot be decoded: {0}")]
    Head(String),
    #[error("a record of the frame is malformed: {0}")]
    Record(&'static str),
    #[error("the payload of record {index} is damaged: its checksum is {found:08x}, and should be {expected:08x}")]
    PayloadChecksum { index: usize, expected: u32, found: u32 },
    #[error("the records of the frame need {needed} payload bytes, and {found} came with it")]
    PayloadMismatch { needed: u64, found: u64 },
    #[error("the compressed payload cannot be unpacked: {0}")]
    Compression(String),
    #[error("a log sequence number of {0} is beyond all use")]
    Lsn(u64),
    #[error("the frame makes no sense: {0}")]
    Sense(&'static str),
}
