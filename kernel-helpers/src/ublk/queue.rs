//! One queue of a ublk device: requests are fetched over a ring, and their answers are the next fetches.
//!
//! All commands of a queue must come from one thread, the one that serves it: so nothing is sent before its first call.

use super::abi::{self, IoCommand, IoDescription};
use super::{MAX_IO, Shared};
use crate::buffers::{self, Buffer};
use crate::front::{Front, Op, Request, Shape};
use io_uring::{IoUring, opcode, types};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// Descriptions of requests, shared with the kernel, which writes them.
struct Descriptions {
    start: NonNull<IoDescription>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone, and may be used and unmapped by whatever thread has it.
unsafe impl Send for Descriptions {}

impl Descriptions {
    fn map(file: &Shared, queue: u16, depth: u16) -> io::Result<Descriptions> {
        let bytes = (usize::from(depth) * size_of::<IoDescription>()).next_multiple_of(4096);
        let offset = usize::from(queue) * abi::QUEUE_STRIDE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping, at a place of the kernel's choice, of a descriptor that lives.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, flags, file.as_raw_fd(), offset as libc::off_t)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(ErrorKind::InvalidData)?;
        Ok(Descriptions { start, bytes })
    }

    fn get(&self, tag: u16) -> IoDescription {
        assert!((usize::from(tag) + 1) * size_of::<IoDescription>() <= self.bytes);
        // SAFETY: inside the mapping. The kernel wrote it before it completed the fetch, and writes it again only after the answer.
        unsafe { self.start.as_ptr().add(usize::from(tag)).read_volatile() }
    }
}

impl Drop for Descriptions {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping, of which nothing is borrowed.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// What a queue needs of its process.
pub(super) struct Room {
    ring: IoUring,
    buffers: Vec<Buffer>,
}

impl Room {
    pub(super) fn new(depth: u16) -> io::Result<Room> {
        Ok(Room { ring: IoUring::new(u32::from(depth) * 2)?, buffers: buffers::take(usize::from(depth), MAX_IO)? })
    }
}

/// See the module's page.
pub struct Queue {
    // Dropped in this order: the ring ends the commands that use all the rest.
    ring: IoUring,
    buffers: Vec<Buffer>,
    descriptions: Descriptions,
    file: Shared,
    number: u16,
    shape: Shape,
    encoded: bool,
    /// What is asked, by tag.
    ops: Vec<Op>,
    /// Fetched, and not yet taken.
    ready: VecDeque<Request>,
    begun: bool,
    /// Tags that will bring nothing any more.
    ended: usize,
}

impl Queue {
    pub(super) fn new(room: Room, file: Shared, number: u16, shape: Shape, encoded: bool) -> io::Result<Queue> {
        let Room { ring, buffers } = room;
        let depth = buffers.len() as u16;
        Ok(Queue {
            ring,
            buffers,
            descriptions: Descriptions::map(&file, number, depth)?,
            file,
            number,
            shape,
            encoded,
            ops: vec![Op::Flush; usize::from(depth)],
            ready: VecDeque::with_capacity(usize::from(depth)),
            begun: false,
            ended: 0,
        })
    }

    fn push(&mut self, command: u32, tag: u16, result: i32) -> io::Result<()> {
        // The memory stays where it is for as long as the ring lives.
        let addr = self.buffers[usize::from(tag)].as_ptr() as u64;
        let asked = IoCommand { queue: self.number, tag, result, addr };
        // SAFETY: plain numbers without padding, of exactly this size.
        let bytes: [u8; 16] = unsafe { std::mem::transmute(asked) };
        let number = if self.encoded { abi::encode_io(command) } else { command };
        let entry = opcode::UringCmd16::new(types::Fd(self.file.as_raw_fd()), number).cmd(bytes).build();
        let entry = entry.user_data(u64::from(tag));
        // SAFETY: the descriptor and the buffer live as long as the ring, which is dropped before them; the kernel writes to the
        // buffer only while a fetch is out or a read is being answered, when nobody else uses it.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::other("the ring of a ublk queue is full"))
    }

    fn collect(&mut self) -> io::Result<()> {
        let completed: Vec<(u16, i32)> = self.ring.completion().map(|c| (c.user_data() as u16, c.result())).collect();
        for (tag, result) in completed {
            match result {
                0 => self.fetched(tag)?,
                abi::IO_RES_ABORT => self.ended += 1,
                error => return Err(io::Error::from_raw_os_error(-error)),
            }
        }
        Ok(())
    }

    fn fetched(&mut self, tag: u16) -> io::Result<()> {
        match parse(&self.shape, self.descriptions.get(tag)) {
            Ok(op) => {
                self.ops[usize::from(tag)] = op;
                self.ready.push_back(Request { slot: tag, op });
                Ok(())
            }
            Err(errno) => self.push(abi::IO_COMMIT_AND_FETCH, tag, -errno),
        }
    }
}

/// What is asked, or the errno that it is refused with.
fn parse(shape: &Shape, asked: IoDescription) -> Result<Op, i32> {
    let op = asked.op_flags & 0xff;
    // A flush is nowhere: its sector is -1.
    if op == abi::OP_FLUSH {
        return Ok(Op::Flush);
    }
    let offset = asked.start_sector.checked_mul(512).ok_or(libc::EINVAL)?;
    let length = u64::from(asked.sectors) * 512;
    let block = u64::from(shape.block);
    let inside = offset.checked_add(length).is_some_and(|end| end <= shape.size);
    if !inside || length == 0 || !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
        return Err(libc::EINVAL);
    }
    let length = u32::try_from(length).map_err(|_| libc::EINVAL)?;
    if shape.read_only && op != abi::OP_READ {
        return Err(libc::EROFS);
    }
    if matches!(op, abi::OP_READ | abi::OP_WRITE) && length as usize > MAX_IO {
        return Err(libc::EINVAL);
    }
    let has = |flag: u32| asked.op_flags & flag != 0;
    match op {
        abi::OP_READ => Ok(Op::Read { offset, length }),
        abi::OP_WRITE => Ok(Op::Write { offset, length, fua: has(abi::IO_F_FUA) }),
        abi::OP_DISCARD => Ok(Op::Discard { offset, length }),
        abi::OP_WRITE_ZEROES => Ok(Op::Zeroes { offset, length, may_discard: !has(abi::IO_F_NOUNMAP) }),
        _ => Err(libc::EOPNOTSUPP),
    }
}

impl Front for Queue {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor lives as long as the ring, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    fn depth(&self) -> usize {
        self.ops.len()
    }

    fn next(&mut self) -> io::Result<Option<Request>> {
        if !std::mem::replace(&mut self.begun, true) {
            for tag in 0..self.ops.len() as u16 {
                self.push(abi::IO_FETCH, tag, 0)?;
            }
            self.flush()?;
        }
        if self.ready.is_empty() {
            self.collect()?;
        }
        match self.ready.pop_front() {
            None if self.ended >= self.ops.len() => Err(ErrorKind::NotConnected.into()),
            request => Ok(request),
        }
    }

    fn has_room(&self) -> bool {
        true
    }

    fn data(&self, slot: u16) -> &[u8] {
        &self.buffers[usize::from(slot)][..self.ops[usize::from(slot)].payload()]
    }

    fn buffer(&mut self, slot: u16) -> &mut [u8] {
        let length = self.ops[usize::from(slot)].payload();
        &mut self.buffers[usize::from(slot)][..length]
    }

    fn complete(&mut self, slot: u16, result: Result<(), i32>) -> io::Result<()> {
        let done = self.ops[usize::from(slot)].payload() as i32;
        self.push(abi::IO_COMMIT_AND_FETCH, slot, result.map_or_else(|errno| -errno, |()| done))
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}
