//! What all kinds of devices have in common: the kernel's requests come out of a [`Front`], and answers go in.

use std::io;
use std::os::fd::BorrowedFd;

/// What is asked. Offsets and lengths in bytes, inside the device, multiples of its block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Read {
        offset: u64,
        length: u32,
    },
    Write {
        offset: u64,
        length: u32,
        fua: bool,
    },
    Flush,
    Discard {
        offset: u64,
        length: u32,
    },
    /// Zeros; unless it `may_discard`, the range stays allocated.
    Zeroes {
        offset: u64,
        length: u32,
        may_discard: bool,
    },
}

impl Op {
    /// Bytes that travel with it, to the volume or back.
    pub fn payload(&self) -> usize {
        match self {
            Op::Read { length, .. } | Op::Write { length, .. } => *length as usize,
            _ => 0,
        }
    }
}

/// One request of the kernel. Until it is answered it holds the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub slot: u16,
    pub op: Op,
}

/// What a device is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes; a multiple of `block`.
    pub size: u64,
    /// Logical block size in bytes: 512 or 4096.
    pub block: u32,
    pub read_only: bool,
}

/// Where a device's requests come from. All calls are of one thread, and none waits.
pub trait Front {
    /// Readable when there may be requests.
    fn fd(&self) -> BorrowedFd<'_>;

    /// How many requests there can be at a time; slots are numbered below it.
    fn depth(&self) -> usize;

    /// The next request, if there is one and a slot is free.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`] where the device is gone, and nothing will come any more.
    fn next(&mut self) -> io::Result<Option<Request>>;

    /// Whether a request more could be taken.
    fn has_room(&self) -> bool;

    /// Whether answers wait until [`Front::fd`] takes them.
    fn wants_to_send(&self) -> bool {
        false
    }

    /// The data of a write, as long as the request says.
    fn data(&self, slot: u16) -> &[u8];

    /// What a read is to be answered with, as long as the request says.
    fn buffer(&mut self, slot: u16) -> &mut [u8];

    /// Answers a request, or fails it with an errno. Its slot is free again.
    ///
    /// # Errors
    /// Where the kernel does not take the answer.
    fn complete(&mut self, slot: u16, result: Result<(), i32>) -> io::Result<()>;

    /// Hands on what [`Front::complete`] may have held back.
    ///
    /// # Errors
    /// Where the kernel does not take it.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
