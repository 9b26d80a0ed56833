//! The NBD server's side of the protocol, without sockets: bytes in, requests and reply bytes out.
//!
//! One [`Session`] serves one connection. It owns no buffers and does no I/O: it says with [`Session::want`] what is to be
//! received next, and takes it with [`Session::head`] or [`Session::payload`]. The payload of a write is wanted as one
//! piece of its own, so that it can be received straight into the aligned buffer from which it is logged, sent and
//! applied. Replies are lists of pieces ([`ReplyBuf`]) for a vectored send: payloads are referred to, not copied.
//!
//! # What is served
//!
//! Of the NBD project's `doc/proto.md`: fixed newstyle negotiation, structured replies, the metadata context
//! `base:allocation`, block size constraints. `docs/nbd.md` has the table. Not served: oldstyle negotiation, TLS,
//! extended headers, CACHE, RESIZE, FAST_ZERO. In words:
//!
//! - Sizes: an option's data is at most 64 KiB, a name 4096 bytes, the payload of a read or write 32 MiB.
//! - Block size constraints are announced in every answer to INFO and GO, asked for or not, and enforced: a misaligned
//!   request is answered with `EINVAL`.
//! - When structured replies were agreed on, every reply is structured, and errors carry a message.
//! - A breach of framing (a wrong magic number, unknown client flags) ends the connection; a bad request or option is
//!   answered with an error, and the connection goes on.
//!
//! # What a driver does
//!
//! ```text
//! session = Session::new(exports, &mut outputs)
//! loop:
//!     carry out outputs: send, hand requests to the core (keep each Ticket), close
//!     Want::Head(n)     receive n bytes                  -> session.head(bytes, &mut outputs)
//!     Want::Payload(n)  receive n bytes into a BufMut    -> session.payload(buf, &mut outputs)
//! when the core has answered: session.reply(ticket, result, &mut replies); send replies.slices()
//! ```
//!
//! How many requests may be outstanding, and how many reply bytes may wait to be sent, is the driver's to limit: it stops
//! receiving.

mod command;
mod options;
mod proto;
mod reply;
mod session;
#[cfg(test)]
mod tests;

pub use command::{Command, Request, RequestError, Ticket};
pub use proto::{MAX_HEAD, MAX_PAYLOAD};
pub use reply::{Piece, ReplyBuf, Slices};
pub use session::Session;

use crate::buf::BufMut;

/// A volume as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// What clients ask for: the volume's name, at most 4096 bytes.
    pub name: String,
    /// Another name by which it is found. It is not listed.
    pub second_name: Option<String>,
    /// Bytes; a multiple of `block`.
    pub size: u64,
    /// Logical block size in bytes, a power of two: what offsets and lengths of requests must be multiples of.
    pub block: u32,
    /// For people; may be empty. At most 4096 bytes.
    pub description: String,
    /// Writes are refused with `EPERM`.
    pub read_only: bool,
}

/// What a session is to be given next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Exactly so many bytes, 1 to [`MAX_HEAD`], for [`Session::head`].
    Head(usize),
    /// Exactly so many bytes, 1 to [`MAX_PAYLOAD`], in a fresh [`BufMut`], for [`Session::payload`].
    Payload(usize),
    /// Nothing more; see [`Output::Close`].
    Close,
}

/// What a driver is to do, in order.
#[derive(Debug)]
pub enum Output {
    /// Bytes for the client, in order with all replies.
    Send(Vec<u8>),
    /// A request for the core; to be answered with [`Session::reply`].
    Request(Request),
    /// Receive no more. When every outstanding request was replied to and everything was sent, close the connection.
    Close,
}
