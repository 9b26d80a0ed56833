//! What stands on disk, byte by byte; no I/O. The tables for people are in `docs/format.md`.
//!
//! [`batch`] is the unit of the log, the history, the bitmap lists and the salvage; [`ring`] is the order of batches
//! in the log and the walk along it; [`superblock`] is the log's first 64 KiB; [`vote`] is a voter's file.

pub mod batch;
pub mod ring;
pub mod superblock;
pub mod vote;

/// Every header, and every payload after its padding, is a multiple of this many bytes.
pub const BLOCK: usize = 4096;

/// `bytes` rounded up to a multiple of [`BLOCK`], or `u64::MAX` where that does not fit.
pub(crate) fn padded(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX)
}

/// Little-endian integers at fixed offsets. The offsets are constants checked against the buffers' fixed sizes, so
/// that an index out of range is a bug of this module and not bad input.
pub(crate) mod le {
    fn bytes<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&b[at..at + N]);
        out
    }

    pub fn u16(b: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(bytes(b, at))
    }

    pub fn u32(b: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes(b, at))
    }

    pub fn u64(b: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes(b, at))
    }

    pub fn u128(b: &[u8], at: usize) -> u128 {
        u128::from_le_bytes(bytes(b, at))
    }

    pub fn put<const N: usize>(b: &mut [u8], at: usize, bytes: [u8; N]) {
        b[at..at + N].copy_from_slice(&bytes);
    }
}

/// CRC-32 of `bytes`, the four bytes at `at` taken as zero: a block that holds its own checksum.
pub(crate) fn crc_without(bytes: &[u8], at: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..at]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[at + 4..]);
    hasher.finalize()
}
