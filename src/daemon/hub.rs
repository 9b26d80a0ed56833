//! What every piece of the loop works with: the ring, the events for the core, the journal and the time.

use super::disk::Job;
use super::journal::Journal;
use super::ring::{Op, Ring, Token};
use crate::core::{Event, Time};
use std::collections::VecDeque;

/// Whose operation on the ring has completed.
pub enum Tag {
    Disk(Job),
    /// Another thread asks something.
    Wake,
    /// The process was told to end.
    Signal,
    Peer(PeerTag),
    Client(ClientTag),
    /// A cancellation; its own result does not matter.
    Cancel,
}

/// An operation of a peer's connection, or of the listener for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerTag {
    Accept,
    Connect(ConnId),
    Recv(ConnId),
    Send(ConnId),
}

/// An operation of a client's connection, or of a listener for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientTag {
    /// By the listener with this number, of all that there ever were.
    Accept(u64),
    Recv(ConnId),
    Send(ConnId),
}

/// A connection, numbered from the start of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// See the module's page.
pub struct Hub {
    pub ring: Ring<Tag>,
    /// For the core, in order.
    pub events: VecDeque<Event>,
    pub journal: Journal,
    pub now: Time,
}

impl Hub {
    /// Puts a peer's operation on the ring.
    pub fn peer(&mut self, tag: PeerTag, op: Op) -> Token {
        self.ring.push(Tag::Peer(tag), op)
    }

    /// Puts a client's operation on the ring.
    pub fn client(&mut self, tag: ClientTag, op: Op) -> Token {
        self.ring.push(Tag::Client(tag), op)
    }

    /// Ends an operation that may be waiting.
    pub fn cancel(&mut self, target: Token) {
        self.ring.push(Tag::Cancel, Op::Cancel { target });
    }
}
