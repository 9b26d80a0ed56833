//! The kernel's NBD client, with this process as its server: made by netlink, over a pair of sockets for each connection.
//!
//! The kernel does not speak to the daemon itself. Its own way to go on after a broken connection asks everything anew only after a
//! time-out, whoever may still be at work on the old copy; here no connection of the kernel ever breaks, and the process keeps, as for
//! the other kinds, what is to be asked again. When the process dies the kernel fails all requests, and the device is of no use to anybody.

mod netlink;

use crate::buffers::{self, Buffer};
use crate::front::{Front, Op, Request, Shape};
use crate::room;
use netlink::Family;
use std::collections::VecDeque;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Bytes of one request: what the kernel sends at most by default is more, so it is told.
pub const MAX_IO: usize = 256 << 10;
const DEPTH: u16 = 128;
const HEAD: usize = 28;
const REPLY: usize = 16;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// A request that the daemon holds for longer, since it waits for its peers say, is not given up by the kernel before.
const TIMEOUT_S: u64 = 1_000_000;

/// Transmission flags.
const HAS_FLAGS: u16 = 1 << 0;
const READ_ONLY: u16 = 1 << 1;
const SEND_FLUSH: u16 = 1 << 2;
const SEND_FUA: u16 = 1 << 3;
const SEND_TRIM: u16 = 1 << 5;
const SEND_WRITE_ZEROES: u16 = 1 << 6;
const CAN_MULTI_CONN: u16 = 1 << 8;

/// A device of the kernel's client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nbd {
    index: u32,
    mark: String,
}

impl Nbd {
    /// Makes a device with so many connections: it, and the ends at which its requests come out. It is visible at once, and answers
    /// from when each end is served.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn connect(shape: Shape, connections: usize, mark: &str) -> io::Result<(Nbd, Vec<Connection>)> {
        let pairs = (0..connections).map(|_| UnixStream::pair()).collect::<io::Result<Vec<_>>>()?;
        pairs.iter().for_each(|(kernel, ours)| [kernel, ours].into_iter().for_each(room::give));
        let sockets: Vec<BorrowedFd<'_>> = pairs.iter().map(|(kernel, _)| kernel.as_fd()).collect();
        let writing = if shape.read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES };
        let flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | writing;
        let family = Family::open()?;
        let request = netlink::Request {
            size: shape.size,
            block: shape.block,
            flags,
            timeout_s: TIMEOUT_S,
            sockets: &sockets,
            identifier: mark,
        };
        let index = family.connect(&request)?;
        let device = Nbd { index, mark: mark.to_owned() };
        device.limit();
        let ends = pairs.into_iter().map(|(_, ours)| Connection::new(ours, shape)).collect::<io::Result<_>>()?;
        Ok((device, ends))
    }

    /// The device that was made with this mark. Kernels before 5.14 keep none: there a dead helper's device stays until it is
    /// disconnected by hand.
    pub fn find(mark: &str) -> Option<Nbd> {
        let blocks = fs::read_dir("/sys/block").ok()?.flatten();
        let indices = blocks.filter_map(|b| b.file_name().to_str()?.strip_prefix("nbd")?.parse().ok());
        indices.map(|index| Nbd { index, mark: mark.to_owned() }).find(Nbd::is_connected)
    }

    fn is_connected(&self) -> bool {
        let read = |file: &str| fs::read_to_string(format!("/sys/block/{}/{file}", self.node()));
        read("pid").is_ok() && read("backend").is_ok_and(|b| b.trim() == self.mark)
    }

    /// As the kernel calls it, `nbd0`.
    pub fn node(&self) -> String {
        format!("nbd{}", self.index)
    }

    /// Longer requests are to be split.
    fn limit(&self) {
        let _ = fs::write(format!("/sys/block/{}/queue/max_sectors_kb", self.node()), (MAX_IO / 1024).to_string());
    }

    /// Disconnects it: from then on the kernel fails what is asked.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn disconnect(&self) -> io::Result<()> {
        if !self.is_connected() {
            return Ok(());
        }
        Family::open()?.disconnect(self.index)
    }
}

/// One connection of the kernel to this process.
pub struct Connection {
    stream: UnixStream,
    shape: Shape,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// What was received of the next head.
    head: [u8; HEAD],
    filled: usize,
    /// A write whose data is being received: its slot, and how much of it is there.
    receiving: Option<(u16, usize)>,
    /// Replies in order, and what was sent of the first.
    replies: VecDeque<([u8; REPLY], Option<u16>)>,
    sent: usize,
}

struct Slot {
    cookie: [u8; 8],
    op: Op,
    buffer: Buffer,
}

fn field<const N: usize>(head: &[u8; HEAD], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&head[at..at + N]);
    bytes
}

fn broken() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "a request of the kernel's NBD client that is none")
}

impl Connection {
    fn new(stream: UnixStream, shape: Shape) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        let buffers = buffers::take(usize::from(DEPTH), MAX_IO)?.into_iter();
        Ok(Connection {
            stream,
            shape,
            slots: buffers.map(|buffer| Slot { cookie: [0; 8], op: Op::Flush, buffer }).collect(),
            free: (0..DEPTH).rev().collect(),
            head: [0; HEAD],
            filled: 0,
            receiving: None,
            replies: VecDeque::new(),
            sent: 0,
        })
    }

    /// Receives some; false if nothing is there.
    fn fill(&mut self) -> io::Result<bool> {
        let into = match self.receiving {
            Some((slot, filled)) => {
                let slot = &mut self.slots[usize::from(slot)];
                &mut slot.buffer[filled..slot.op.payload()]
            }
            None => &mut self.head[self.filled..],
        };
        match (&self.stream).read(into) {
            Ok(0) => Err(ErrorKind::NotConnected.into()),
            Ok(n) => {
                match &mut self.receiving {
                    Some((_, filled)) => *filled += n,
                    None => self.filled += n,
                }
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(true),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => Err(ErrorKind::NotConnected.into()),
            Err(e) => Err(e),
        }
    }

    /// What the head that is whole asks, in a slot of its own.
    fn begin(&mut self) -> io::Result<Option<Request>> {
        self.filled = 0;
        if u32::from_be_bytes(field(&self.head, 0)) != REQUEST_MAGIC {
            return Err(broken());
        }
        let Some(slot) = self.free.pop() else { return Err(broken()) };
        let cookie = field(&self.head, 8);
        match parse(&self.shape, &self.head)? {
            None => Err(ErrorKind::NotConnected.into()),
            Some(Err(errno)) => {
                self.free.push(slot);
                self.replies.push_back((reply(cookie, errno), None));
                Ok(None)
            }
            Some(Ok(op)) => {
                (self.slots[usize::from(slot)].cookie, self.slots[usize::from(slot)].op) = (cookie, op);
                if matches!(op, Op::Write { .. }) {
                    self.receiving = Some((slot, 0));
                    return Ok(None);
                }
                Ok(Some(Request { slot, op }))
            }
        }
    }
}

/// What is asked: none for a good-bye; an errno for what cannot be.
fn parse(shape: &Shape, head: &[u8; HEAD]) -> io::Result<Option<Result<Op, i32>>> {
    const FUA: u16 = 1;
    const NO_HOLE: u16 = 2;
    let flags = u16::from_be_bytes(field(head, 4));
    let offset = u64::from_be_bytes(field(head, 16));
    let length = u32::from_be_bytes(field(head, 24));
    let fua = flags & FUA != 0;
    let op = match u16::from_be_bytes(field(head, 6)) {
        0 => Op::Read { offset, length },
        1 => Op::Write { offset, length, fua },
        2 => return Ok(None),
        3 => return Ok(Some(Ok(Op::Flush))),
        4 => Op::Discard { offset, length },
        6 => Op::Zeroes { offset, length, may_discard: flags & NO_HOLE == 0 },
        _ => return Ok(Some(Err(libc::EINVAL))),
    };
    let block = u64::from(shape.block);
    let good = length > 0
        && offset.checked_add(u64::from(length)).is_some_and(|end| end <= shape.size)
        && offset.is_multiple_of(block)
        && u64::from(length).is_multiple_of(block)
        && op.payload() <= MAX_IO;
    match op {
        // Its data would be taken for the next head.
        Op::Write { .. } if !good || shape.read_only => Err(broken()),
        Op::Discard { .. } | Op::Zeroes { .. } if shape.read_only => Ok(Some(Err(libc::EPERM))),
        _ => Ok(Some(if good { Ok(op) } else { Err(libc::EINVAL) })),
    }
}

fn reply(cookie: [u8; 8], errno: i32) -> [u8; REPLY] {
    let mut bytes = [0; REPLY];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&(errno as u32).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie);
    bytes
}

impl Front for Connection {
    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn depth(&self) -> usize {
        usize::from(DEPTH)
    }

    fn next(&mut self) -> io::Result<Option<Request>> {
        while self.has_room() {
            if let Some((slot, filled)) = self.receiving
                && filled == self.slots[usize::from(slot)].op.payload()
            {
                self.receiving = None;
                return Ok(Some(Request { slot, op: self.slots[usize::from(slot)].op }));
            }
            if self.receiving.is_none()
                && self.filled == HEAD
                && let Some(request) = self.begin()?
            {
                return Ok(Some(request));
            }
            let whole = self.receiving.is_none() && self.filled == HEAD;
            if !whole && !self.fill()? {
                break;
            }
        }
        Ok(None)
    }

    fn has_room(&self) -> bool {
        self.receiving.is_some() || !self.free.is_empty()
    }

    fn wants_to_send(&self) -> bool {
        !self.replies.is_empty()
    }

    fn data(&self, slot: u16) -> &[u8] {
        let slot = &self.slots[usize::from(slot)];
        &slot.buffer[..slot.op.payload()]
    }

    fn buffer(&mut self, slot: u16) -> &mut [u8] {
        let slot = &mut self.slots[usize::from(slot)];
        &mut slot.buffer[..slot.op.payload()]
    }

    fn complete(&mut self, slot: u16, result: Result<(), i32>) -> io::Result<()> {
        let Slot { cookie, op, .. } = &self.slots[usize::from(slot)];
        let head = reply(*cookie, result.err().unwrap_or(0));
        // A read's slot is free when its data was sent.
        let data = matches!((result, op), (Ok(()), Op::Read { .. })).then_some(slot);
        if data.is_none() {
            self.free.push(slot);
        }
        self.replies.push_back((head, data));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some((head, slot)) = self.replies.front() {
            let data = slot.map_or(&[][..], |s| self.data(s));
            let pieces = [
                io::IoSlice::new(head.get(self.sent..).unwrap_or_default()),
                io::IoSlice::new(&data[self.sent.saturating_sub(REPLY)..]),
            ];
            let (length, slot) = (REPLY + data.len(), *slot);
            match (&self.stream).write_vectored(&pieces) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    return Err(ErrorKind::NotConnected.into());
                }
                Err(e) => return Err(e),
            }
            if self.sent == length {
                self.sent = 0;
                self.replies.pop_front();
                self.free.extend(slot);
            }
        }
        Ok(())
    }
}
