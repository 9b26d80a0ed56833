//! Replies of the transmission phase, as lists of pieces for a vectored send.

use super::command::{Command, Ticket};
use super::proto::{ALLOCATION_ID, MAX_STRING, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, cmd_flag, errno};
use crate::buf::Payload;
use crate::core::{ClientError, Reply, Segment};
use std::fmt::Display;
use std::io::Write;
use std::ops::Range;

/// What runs of zeros are sent from.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Most descriptors in one BLOCK_STATUS reply; a client asks again for what is missing. 512 KiB.
const MAX_DESCRIPTORS: usize = 64 << 10;

/// Header memory that a cleared [`ReplyBuf`] keeps, in bytes.
const KEEP_BYTES: usize = 64 << 10;

/// A part of the bytes to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A range of [`ReplyBuf::header_bytes`].
    Bytes(Range<usize>),
    /// A payload's bytes, from where they lie.
    Payload(Payload),
    /// So many zero bytes.
    Zeros(u64),
}

impl Piece {
    /// Bytes that it stands for.
    pub fn length(&self) -> u64 {
        match self {
            Piece::Bytes(range) => range.len() as u64,
            Piece::Payload(payload) => payload.len() as u64,
            Piece::Zeros(n) => *n,
        }
    }
}

/// Replies to be sent together, in order. Reused from send to send, it allocates nothing in the common case: headers
/// are appended to one vector, and those that follow each other are one piece.
///
/// Its memory moves when it is appended to: while a send is under way, replies belong into another `ReplyBuf`.
#[derive(Debug, Default)]
pub struct ReplyBuf {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    length: u64,
}

impl ReplyBuf {
    /// An empty one.
    pub fn new() -> ReplyBuf {
        ReplyBuf::default()
    }

    /// Bytes to be sent in all.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The pieces in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// What the ranges of [`Piece::Bytes`] refer to.
    pub fn header_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Everything as slices in order, leaving out the first `skip` bytes, which a short send has already taken. Runs of
    /// zeros come in slices of at most 64 KiB of one static page.
    pub fn slices_from(&self, skip: u64) -> Slices<'_> {
        let (mut pieces, mut within) = (&self.pieces[..], skip);
        while let Some((first, rest)) = pieces.split_first().filter(|(first, _)| first.length() <= within) {
            within -= first.length();
            pieces = rest;
        }
        Slices { buf: self, pieces, within }
    }

    /// Everything as slices in order.
    pub fn slices(&self) -> Slices<'_> {
        self.slices_from(0)
    }

    /// Appends the bytes of an [`super::Output::Send`], so that they keep their place among the replies.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.headers(|out| out.extend_from_slice(bytes));
    }

    /// Forgets everything, keeping some memory for the next use.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEEP_BYTES);
        self.pieces.clear();
        self.length = 0;
    }

    fn headers(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        write(&mut self.bytes);
        let end = self.bytes.len();
        self.length += (end - start) as u64;
        match self.pieces.last_mut() {
            Some(Piece::Bytes(range)) => range.end = end,
            _ if start == end => {}
            _ => self.pieces.push(Piece::Bytes(start..end)),
        }
    }

    fn segment(&mut self, segment: Segment) {
        self.length += segment.length();
        self.pieces.push(match segment {
            Segment::Data(payload) => Piece::Payload(payload),
            Segment::Zero(n) => Piece::Zeros(n),
        });
    }
}

/// The slices of a [`ReplyBuf`].
#[derive(Clone, Debug)]
pub struct Slices<'a> {
    buf: &'a ReplyBuf,
    pieces: &'a [Piece],
    /// Bytes of the first piece that are done.
    within: u64,
}

impl<'a> Iterator for Slices<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let first = self.pieces.first()?;
        let done = self.within as usize;
        let slice = match first {
            Piece::Bytes(range) => &self.buf.bytes[range.start + done..range.end],
            Piece::Payload(payload) => &payload[done..],
            Piece::Zeros(n) => &ZEROS[..(n - self.within).min(ZEROS.len() as u64) as usize],
        };
        self.within += slice.len() as u64;
        if self.within == first.length() {
            self.pieces = &self.pieces[1..];
            self.within = 0;
        }
        Some(slice)
    }
}

/// Appends the reply to a request.
///
/// # Panics
/// If the answer does not fit the request: a bug, and to send it would be silent corruption.
pub(super) fn encode(ticket: &Ticket, result: Result<Reply, ClientError>, out: &mut ReplyBuf) {
    let structured = ticket.structured;
    match (ticket.command, result) {
        (_, Err(error)) => {
            out.headers(|bytes| encode_error(bytes, structured, ticket.cookie, number_of(error, ticket), &error));
        }
        (Command::Read, Ok(Reply::Data(segments))) => read(ticket, segments, out),
        (Command::BlockStatus, Ok(Reply::Extents(runs))) => block_status(ticket, &runs, out),
        (Command::Read | Command::BlockStatus, Ok(_)) | (_, Ok(Reply::Data(_) | Reply::Extents(_))) => {
            panic!("the answer to {ticket:?} is of another kind")
        }
        (_, Ok(Reply::Done)) if structured => {
            out.headers(|bytes| chunk_head(bytes, chunk::DONE, chunk::NONE, ticket.cookie, 0));
        }
        (_, Ok(Reply::Done)) => out.headers(|bytes| simple_head(bytes, 0, ticket.cookie)),
    }
}

fn read(ticket: &Ticket, mut segments: Vec<Segment>, out: &mut ReplyBuf) {
    let total: u64 = segments.iter().map(Segment::length).sum();
    assert_eq!(total, u64::from(ticket.length), "the answer to {ticket:?} has another length");
    segments.retain(|segment| segment.length() > 0);
    if !ticket.structured {
        out.headers(|bytes| simple_head(bytes, 0, ticket.cookie));
        segments.into_iter().for_each(|segment| out.segment(segment));
        return;
    }
    let is_zero = |segment: &Segment| matches!(segment, Segment::Zero(_));
    let whole = ticket.has(cmd_flag::DF) && segments.iter().any(|segment| !is_zero(segment));
    let mut offset = ticket.offset;
    let mut rest = segments.into_iter();
    // One chunk for each run of data or of zeros; with DF one for all.
    while let Some(first) = rest.as_slice().first() {
        let hole = !whole && is_zero(first);
        let run = rest.as_slice().iter().take_while(|segment| whole || is_zero(segment) == hole);
        let (count, length) = run.fold((0, 0), |(count, length), segment| (count + 1, length + segment.length()));
        let flags = if count == rest.as_slice().len() { chunk::DONE } else { 0 };
        // Lossless: a run is not longer than the request, whose length has 32 bits and is at most MAX_PAYLOAD.
        let length32 = length as u32;
        out.headers(|bytes| {
            let (kind, size) = if hole { (chunk::OFFSET_HOLE, 8 + 4) } else { (chunk::OFFSET_DATA, 8 + length32) };
            chunk_head(bytes, flags, kind, ticket.cookie, size);
            bytes.extend_from_slice(&offset.to_be_bytes());
            if hole {
                bytes.extend_from_slice(&length32.to_be_bytes());
            }
        });
        for segment in rest.by_ref().take(count) {
            if !hole {
                out.segment(segment);
            }
        }
        offset += length;
    }
}

/// Answers with merged runs. Zeros are reported as holes too: nearly all of them are, and for a client the two differ
/// only in whether writing there may allocate.
fn block_status(ticket: &Ticket, runs: &[(u64, bool)], out: &mut ReplyBuf) {
    let total: u64 = runs.iter().map(|run| run.0).sum();
    assert_eq!(total, u64::from(ticket.length), "the answer to {ticket:?} covers another length");
    let most = if ticket.has(cmd_flag::REQ_ONE) { 1 } else { MAX_DESCRIPTORS };
    out.headers(|bytes| {
        chunk_head(bytes, chunk::DONE, chunk::BLOCK_STATUS, ticket.cookie, 0);
        let start = bytes.len();
        bytes.extend_from_slice(&ALLOCATION_ID.to_be_bytes());
        let merged =
            runs.chunk_by(|a, b| a.1 == b.1).map(|same| (same.iter().map(|run| run.0).sum::<u64>(), same[0].1));
        for (length, zero) in merged.filter(|run| run.0 > 0).take(most) {
            let status = if zero { chunk::STATE_HOLE | chunk::STATE_ZERO } else { 0 };
            // Lossless: not longer than the request, whose length has 32 bits.
            bytes.extend_from_slice(&(length as u32).to_be_bytes());
            bytes.extend_from_slice(&status.to_be_bytes());
        }
        set_chunk_length(bytes, start);
    });
}

/// The protocol's number for an error of the core.
fn number_of(error: ClientError, ticket: &Ticket) -> u32 {
    match error {
        ClientError::NotActive => errno::ESHUTDOWN,
        ClientError::OutOfRange if matches!(ticket.command, Command::Write | Command::WriteZeroes) => errno::ENOSPC,
        ClientError::OutOfRange | ClientError::Misaligned => errno::EINVAL,
        ClientError::Io(number) => match number {
            libc::EPERM | libc::EACCES | libc::EROFS => errno::EPERM,
            libc::ENOMEM => errno::ENOMEM,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => errno::ENOSPC,
            libc::EOVERFLOW => errno::EOVERFLOW,
            libc::EOPNOTSUPP => errno::ENOTSUP,
            libc::ESHUTDOWN => errno::ESHUTDOWN,
            // EINVAL too: it is our storage that found fault with us, not we with the client.
            _ => errno::EIO,
        },
    }
}

/// Appends the reply that reports an error; its text reaches only clients that take structured replies.
pub(super) fn encode_error(bytes: &mut Vec<u8>, structured: bool, cookie: u64, number: u32, text: &dyn Display) {
    if !structured {
        return simple_head(bytes, number, cookie);
    }
    chunk_head(bytes, chunk::DONE, chunk::ERROR, cookie, 0);
    let start = bytes.len();
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&[0; 2]);
    // Cannot fail: a vector takes all bytes.
    let _ = write!(bytes, "{text}");
    // All texts are short and ASCII; the limit keeps the length true to the protocol whatever becomes of them.
    bytes.truncate(start + 6 + MAX_STRING);
    let text_length = (bytes.len() - start - 6) as u16;
    bytes[start + 4..start + 6].copy_from_slice(&text_length.to_be_bytes());
    set_chunk_length(bytes, start);
}

fn simple_head(bytes: &mut Vec<u8>, error: u32, cookie: u64) {
    let mut head = [0; 16];
    head[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    head[4..8].copy_from_slice(&error.to_be_bytes());
    head[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&head);
}

fn chunk_head(bytes: &mut Vec<u8>, flags: u16, kind: u16, cookie: u64, length: u32) {
    let mut head = [0; 20];
    head[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    head[4..6].copy_from_slice(&flags.to_be_bytes());
    head[6..8].copy_from_slice(&kind.to_be_bytes());
    head[8..16].copy_from_slice(&cookie.to_be_bytes());
    head[16..].copy_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&head);
}

/// Sets the length of the chunk whose contents began at `start` to what was appended since.
fn set_chunk_length(bytes: &mut [u8], start: usize) {
    let length = (bytes.len() - start) as u32;
    bytes[start - 4..start].copy_from_slice(&length.to_be_bytes());
}
