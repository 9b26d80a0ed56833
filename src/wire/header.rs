//! The fixed header of a frame.

use super::{MAX_HEAD, MAX_PAYLOAD, WireError};

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 32;

/// "USTW" as it stands on the wire.
const MAGIC: u32 = u32::from_le_bytes(*b"USTW");
const VERSION: u16 = 1;
const COMPRESSED: u16 = 1;

/// What the header of a frame says of the bytes that follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the head that follows: 1 to [`MAX_HEAD`].
    pub head_len: usize,
    /// Bytes of the payload section that follows the head: 0 to [`MAX_PAYLOAD`].
    pub payload_len: usize,
    /// CRC-32 of the head.
    pub head_crc: u32,
    /// The payload section is one lz4 block.
    pub compressed: bool,
}

impl FrameHeader {
    /// Reads a header, and refuses what is damaged, foreign or too large.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<FrameHeader, WireError> {
        let magic = u32::from_le_bytes(array(bytes, 0));
        if magic != MAGIC {
            return Err(WireError::Magic(magic.swap_bytes()));
        }
        if crc32fast::hash(&bytes[..28]) != u32::from_le_bytes(array(bytes, 28)) {
            return Err(WireError::HeaderChecksum);
        }
        let version = u16::from_le_bytes(array(bytes, 4));
        if version != VERSION {
            return Err(WireError::Version(version));
        }
        let flags = u16::from_le_bytes(array(bytes, 6));
        if flags & !COMPRESSED != 0 {
            return Err(WireError::Flags(flags));
        }
        let head_len = u32::from_le_bytes(array(bytes, 8)) as usize;
        if head_len == 0 || head_len > MAX_HEAD {
            return Err(WireError::HeadLength(head_len as u64));
        }
        let payload_len = u64::from_le_bytes(array(bytes, 16));
        if payload_len > MAX_PAYLOAD as u64 {
            return Err(WireError::PayloadLength(payload_len));
        }
        let head_crc = u32::from_le_bytes(array(bytes, 12));
        Ok(FrameHeader { head_len, payload_len: payload_len as usize, head_crc, compressed: flags & COMPRESSED != 0 })
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&(if self.compressed { COMPRESSED } else { 0 }).to_le_bytes());
        bytes[8..12].copy_from_slice(&(self.head_len as u32).to_le_bytes());
        bytes[12..16].copy_from_slice(&self.head_crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&(self.payload_len as u64).to_le_bytes());
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// `N` bytes at `at`, a constant position inside the header.
fn array<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
