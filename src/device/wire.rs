//! NBD as a helper speaks it: requests out, simple replies in, on a socket that never blocks.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use understudy_kernel::front::{Front, Op};
use understudy_kernel::room;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const HEAD: usize = 28;
const REPLY_HEAD: usize = 16;
/// Bytes received at once; what is left of a longer read goes straight to its place.
const STAGING: usize = 64 << 10;
/// Pieces handed to one send.
const PIECES: usize = 128;
const ESHUTDOWN: u32 = 108;
const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 2;

/// A request that waits to be sent, or part of it.
struct Frame {
    slot: u16,
    head: [u8; HEAD],
    sent: usize,
}

/// What has been received of a reply.
enum Reading {
    Head,
    Data { slot: u16, filled: usize },
}

/// A connection in its transmission phase.
pub struct Wire {
    stream: UnixStream,
    queue: VecDeque<Frame>,
    staging: Box<[u8]>,
    /// What of `staging` was received and not looked at.
    begin: usize,
    end: usize,
    reading: Reading,
}

/// A request on its way; its number tells it from earlier ones in the same slot.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    pub number: u64,
    pub op: Op,
}

/// An answer: its slot, and nothing or an errno.
pub type Answer = (u16, Result<(), i32>);

fn cookie(slot: u16, number: u64) -> u64 {
    number << 16 | u64::from(slot)
}

fn head(slot: u16, flight: Flight) -> [u8; HEAD] {
    let fua = |set: bool| if set { FLAG_FUA } else { 0 };
    let (command, flags, offset, length): (u16, u16, u64, u32) = match flight.op {
        Op::Read { offset, length } => (0, 0, offset, length),
        Op::Write { offset, length, fua: f } => (1, fua(f), offset, length),
        Op::Flush => (3, 0, 0, 0),
        Op::Discard { offset, length } => (4, 0, offset, length),
        Op::Zeroes { offset, length, may_discard } => (6, if may_discard { 0 } else { FLAG_NO_HOLE }, offset, length),
    };
    let mut bytes = [0; HEAD];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie(slot, flight.number).to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// NBD has its own numbers; these few are not Linux's, or could be taken for something else.
fn errno(number: u32) -> i32 {
    match number {
        1 => libc::EPERM,
        12 => libc::ENOMEM,
        22 => libc::EINVAL,
        28 => libc::ENOSPC,
        95 => libc::EOPNOTSUPP,
        _ => libc::EIO,
    }
}

impl Wire {
    /// Takes a connection that has chosen its export.
    ///
    /// # Errors
    /// Where the system refuses to make it non-blocking.
    pub fn new(stream: UnixStream) -> io::Result<Wire> {
        stream.set_nonblocking(true)?;
        room::give(&stream);
        let staging = vec![0; STAGING].into_boxed_slice();
        Ok(Wire { stream, queue: VecDeque::new(), staging, begin: 0, end: 0, reading: Reading::Head })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Whether something waits to be sent.
    pub fn is_sending(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Queues a request.
    pub fn ask(&mut self, slot: u16, flight: Flight) {
        self.queue.push_back(Frame { slot, head: head(slot, flight), sent: 0 });
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// Where the connection is over.
    pub fn send(&mut self, front: &impl Front, flights: &[Option<Flight>]) -> io::Result<()> {
        while !self.queue.is_empty() {
            let mut pieces: Vec<IoSlice<'_>> = Vec::with_capacity(PIECES);
            for frame in self.queue.iter().take(PIECES / 2) {
                let writes = matches!(flights[usize::from(frame.slot)], Some(Flight { op: Op::Write { .. }, .. }));
                let data = if writes { front.data(frame.slot) } else { &[] };
                pieces.push(IoSlice::new(frame.head.get(frame.sent..).unwrap_or_default()));
                pieces.push(IoSlice::new(&data[frame.sent.saturating_sub(HEAD)..]));
            }
            let mut sent = match (&self.stream).write_vectored(&pieces) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => sent,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            };
            let lengths: Vec<usize> = pieces.chunks(2).map(|p| p[0].len() + p[1].len()).collect();
            for length in lengths {
                let now = sent.min(length);
                sent -= now;
                if now < length {
                    self.queue[0].sent += now;
                    break;
                }
                self.queue.pop_front();
            }
        }
        Ok(())
    }

    /// Receives what is there, and appends the answers that are whole.
    ///
    /// # Errors
    /// Where the connection is over, what came makes no sense, or the daemon says that it serves no longer: nothing that is still
    /// under way will be answered by it.
    pub fn receive(
        &mut self,
        front: &mut impl Front,
        flights: &[Option<Flight>],
        answers: &mut Vec<Answer>,
    ) -> io::Result<()> {
        loop {
            self.parse(front, flights, answers)?;
            let room = self.staging.len() - self.end;
            let direct = match self.reading {
                Reading::Data { slot, filled } => Some((slot, filled)).filter(|_| self.begin == self.end),
                Reading::Head => None,
            };
            let received = match direct {
                // Smaller ones are worth a copy, with whatever follows them.
                Some((slot, filled)) if front.data(slot).len() - filled >= STAGING / 4 => {
                    (&self.stream).read(&mut front.buffer(slot)[filled..]).inspect(|n| {
                        self.reading = Reading::Data { slot, filled: filled + n };
                    })
                }
                _ => (&self.stream).read(&mut self.staging[self.end..]).inspect(|n| self.end += n),
            };
            match received {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                // Less than there was room for: nothing more is there.
                Ok(n) if n < room && direct.is_none() => return self.parse(front, flights, answers),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    fn parse(
        &mut self,
        front: &mut impl Front,
        flights: &[Option<Flight>],
        answers: &mut Vec<Answer>,
    ) -> io::Result<()> {
        loop {
            let there = self.end - self.begin;
            match self.reading {
                Reading::Head if there < REPLY_HEAD => break,
                Reading::Head => {
                    let head = &self.staging[self.begin..self.begin + REPLY_HEAD];
                    let (slot, result) = parse_head(head, flights)?;
                    self.begin += REPLY_HEAD;
                    let reads = matches!(flights[usize::from(slot)], Some(Flight { op: Op::Read { .. }, .. }));
                    match result {
                        Ok(()) if reads => self.reading = Reading::Data { slot, filled: 0 },
                        _ => answers.push((slot, result)),
                    }
                }
                Reading::Data { slot, filled } => {
                    let into = &mut front.buffer(slot)[filled..];
                    let now = into.len().min(there);
                    into[..now].copy_from_slice(&self.staging[self.begin..self.begin + now]);
                    self.begin += now;
                    if now < into.len() {
                        self.reading = Reading::Data { slot, filled: filled + now };
                        break;
                    }
                    self.reading = Reading::Head;
                    answers.push((slot, Ok(())));
                }
            }
        }
        self.staging.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        Ok(())
    }
}

fn parse_head(head: &[u8], flights: &[Option<Flight>]) -> io::Result<Answer> {
    let word = |at: usize| head[at..at + 4].iter().fold(0u32, |n, b| n << 8 | u32::from(*b));
    if word(0) != SIMPLE_REPLY_MAGIC {
        return Err(broken("a reply does not begin with the magic number of one"));
    }
    let got = u64::from(word(8)) << 32 | u64::from(word(12));
    // The slot is what the cookie's last 16 bits say.
    let slot = got as u16;
    let flight = flights.get(usize::from(slot)).copied().flatten();
    if flight.is_none_or(|f| cookie(slot, f.number) != got) {
        return Err(broken("a reply to a request that is not outstanding"));
    }
    match word(4) {
        0 => Ok((slot, Ok(()))),
        ESHUTDOWN => Err(ErrorKind::ConnectionAborted.into()),
        number => Ok((slot, Err(errno(number)))),
    }
}
