//! The numbers and structures of `linux/fuse.h` that one file needs, by their names there (without `FUSE_`).
//!
//! All are in the byte order of the machine. Fields are taken out of and put into bytes one by one, so that nothing depends on
//! alignment.

/// Version 7; the newest minor version whose structures are known here.
pub const MAJOR: u32 = 7;
pub const MINOR: u32 = 38;
/// Of Linux 5.11, before which there is no `ZERO_RANGE`; the structures are as in all later ones.
pub const MINOR_LEAST: u32 = 32;

/// Bytes before every request, and before every reply.
pub const IN_HEADER: usize = 40;
pub const OUT_HEADER: usize = 16;
/// Bytes of `fuse_write_in`, which stand between the header and the data.
pub const WRITE_IN: usize = 40;

pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
}

/// What INIT agrees on.
pub mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const MAX_PAGES: u32 = 1 << 22;
}

/// What OPEN answers.
pub mod open {
    pub const DIRECT_IO: u32 = 1 << 0;
    pub const NOFLUSH: u32 = 1 << 5;
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// Of `fuse_setattr_in.valid`: the size is to change.
pub const SETATTR_SIZE: u32 = 1 << 3;

/// The header of a request.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub length: u32,
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
}

/// The 32 bits at `at`; 0 past the end.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// The 64 bits at `at`; 0 past the end.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

impl Header {
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        let header = Header {
            length: u32_at(bytes, 0),
            opcode: u32_at(bytes, 4),
            unique: u64_at(bytes, 8),
            node: u64_at(bytes, 16),
        };
        (bytes.len() >= IN_HEADER && header.length as usize == bytes.len()).then_some(header)
    }
}

/// `fuse_out_header`.
pub fn out_header(payload: usize, error: i32, unique: u64) -> [u8; OUT_HEADER] {
    let mut bytes = [0; OUT_HEADER];
    // Replies are far below 4 GiB.
    bytes[..4].copy_from_slice(&((OUT_HEADER + payload) as u32).to_ne_bytes());
    bytes[4..8].copy_from_slice(&(-error).to_ne_bytes());
    bytes[8..].copy_from_slice(&unique.to_ne_bytes());
    bytes
}

/// Structures of replies, field by field.
#[derive(Default)]
pub struct Out(Vec<u8>);

impl Out {
    pub fn u16(mut self, value: u16) -> Out {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Out {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Out {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub fn zeros(mut self, count: usize) -> Out {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    pub fn done(self) -> Vec<u8> {
        self.0
    }
}
