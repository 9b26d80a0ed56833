//! What a ring can be asked to do. An operation owns everything that the kernel reads or writes for it.

use crate::buf::{BufMut, Payload};
use crate::nbd::ReplyBuf;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// A file or socket. It stays open at least as long as any operation on it is in flight.
pub type Fd = Rc<OwnedFd>;

/// Names an operation in flight, for [`Op::Cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub(super) u64);

/// Most pieces that one operation hands to the kernel (IOV_MAX); more make it complete short.
pub const MAX_PIECES: usize = 1024;

/// A part of what is sent.
#[derive(Clone, Debug)]
pub enum Piece {
    Bytes(Vec<u8>),
    Payload(Payload),
}

impl Piece {
    /// Bytes that it stands for.
    pub fn length(&self) -> u64 {
        self.bytes().len() as u64
    }

    /// Its bytes. Their memory stays where it is when the piece is moved.
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Bytes(bytes) => bytes,
            Piece::Payload(payload) => payload,
        }
    }
}

/// Everything that one send sends. All its bytes lie on the heap or are static: they stay where they are when it is moved.
#[derive(Debug)]
pub enum Gather {
    Pieces(Vec<Piece>),
    Replies(ReplyBuf),
}

impl Gather {
    /// Bytes in all.
    pub fn length(&self) -> u64 {
        match self {
            Gather::Pieces(pieces) => pieces.iter().map(Piece::length).sum(),
            Gather::Replies(replies) => replies.length(),
        }
    }
}

/// A socket address as the kernel reads it.
#[derive(Clone, Copy)]
pub enum Address {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        match address {
            SocketAddr::V4(v4) => Address::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Address::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }
}

impl Address {
    /// Where it lies, and its length in bytes.
    pub(super) fn raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match self {
            Address::V4(v4) => (std::ptr::from_ref(v4).cast(), size_of::<libc::sockaddr_in>() as libc::socklen_t),
            Address::V6(v6) => (std::ptr::from_ref(v6).cast(), size_of::<libc::sockaddr_in6>() as libc::socklen_t),
        }
    }
}

/// Where received bytes go: `length` bytes of buffer `buf` from `from` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    pub buf: usize,
    pub from: usize,
    pub length: usize,
}

/// An operation, and with its completion what became of it.
pub enum Op {
    /// Reads into `buf` from `from` on.
    Read {
        file: Fd,
        offset: u64,
        buf: BufMut,
        from: usize,
    },
    /// Writes the buffers one after the other, leaving out the first `skip` bytes; `offset` is where the first byte that is
    /// not left out goes. With `sync` it completes when the data is on stable storage.
    Write {
        file: Fd,
        offset: u64,
        bufs: Vec<Payload>,
        skip: u64,
        sync: bool,
    },
    /// Makes what was written stable.
    Fdatasync {
        file: Fd,
    },
    /// fallocate(2).
    Fallocate {
        file: Fd,
        mode: i32,
        offset: u64,
        length: u64,
    },
    /// Receives into the areas, one after the other. 0 bytes: the other side has closed.
    Recv {
        socket: Fd,
        bufs: Vec<BufMut>,
        areas: Vec<Area>,
    },
    /// Sends the data, leaving out the first `skip` bytes.
    Send {
        socket: Fd,
        data: Gather,
        skip: u64,
    },
    /// Accepts one connection, and leaves it in `accepted`.
    Accept {
        socket: Fd,
        accepted: Option<OwnedFd>,
    },
    Connect {
        socket: Fd,
        address: Box<Address>,
    },
    /// Completes when the file is readable.
    PollIn {
        file: Fd,
    },
    /// Ends another operation, which then completes with ECANCELED if it was still waiting.
    Cancel {
        target: Token,
    },
}

impl Op {
    /// Fills `iovecs` with the memory of this operation, for those that scatter or gather.
    ///
    /// # Panics
    /// If an area is not inside its buffer: a bug of whoever made it, and the kernel would write anywhere.
    pub(super) fn memory(&mut self, iovecs: &mut Vec<libc::iovec>) {
        iovecs.clear();
        let mut push = |base: *const u8, len: usize| {
            if len > 0 && iovecs.len() < MAX_PIECES {
                iovecs.push(libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len });
            }
        };
        match self {
            Op::Write { bufs, skip, .. } => {
                let mut skip = *skip;
                for buf in bufs.iter() {
                    let leave = skip.min(buf.len() as u64);
                    skip -= leave;
                    let slice = &buf[leave as usize..];
                    push(slice.as_ptr(), slice.len());
                }
            }
            Op::Send { data: Gather::Pieces(pieces), skip, .. } => {
                let mut skip = *skip;
                for piece in pieces.iter() {
                    let leave = skip.min(piece.length());
                    skip -= leave;
                    let slice = &piece.bytes()[leave as usize..];
                    push(slice.as_ptr(), slice.len());
                }
            }
            Op::Send { data: Gather::Replies(replies), skip, .. } => {
                replies.slices_from(*skip).take(MAX_PIECES).for_each(|slice| push(slice.as_ptr(), slice.len()));
            }
            Op::Recv { bufs, areas, .. } => {
                for area in areas.iter() {
                    let slice = &mut bufs[area.buf][area.from..area.from + area.length];
                    push(slice.as_mut_ptr(), slice.len());
                }
            }
            _ => {}
        }
    }
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Op::Read { .. } => "Read",
            Op::Write { .. } => "Write",
            Op::Fdatasync { .. } => "Fdatasync",
            Op::Fallocate { .. } => "Fallocate",
            Op::Recv { .. } => "Recv",
            Op::Send { .. } => "Send",
            Op::Accept { .. } => "Accept",
            Op::Connect { .. } => "Connect",
            Op::PollIn { .. } => "PollIn",
            Op::Cancel { .. } => "Cancel",
        };
        f.write_str(name)
    }
}
