//! One connection between nodes: frames out of received bytes, and what is to be sent.
//!
//! This is where a transport other than plain TCP goes. Received bytes pass through [`Conn::received`] on their way to the inbox and
//! bytes to be sent through [`Conn::next_send`]; nothing outside of this file sees either, and nothing in it knows what a
//! message means. See "The transport" in `docs/architecture.md`.

use crate::buf::Payload;
use crate::core::{NodeId, PeerMsg, SessionId, Time};
use crate::daemon::net::{Ahead, Inbox, Outbox, Pace, close_abruptly, end_receiving};
use crate::daemon::ring::{Fd, Op, Piece, Token};
use crate::wire::{self, Encoded, FrameHeader, HEADER_LEN, WireError};
use std::io;
use std::os::fd::OwnedFd;

/// Bytes received behind an awaited payload: the next header and head, and of its payload what must be copied then. A frame of a few small
/// records comes with one receive; to copy them is cheaper than to be woken once more.
const READ_AHEAD: usize = 16 << 10;

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Being dialed; the token ends the attempt.
    Dialing {
        peer: NodeId,
        dial: Token,
        until: Time,
    },
    /// Accepted, and has not said who it is.
    Stranger {
        from: String,
        until: Time,
    },
    Session {
        peer: NodeId,
        session: SessionId,
    },
    /// Sends what is queued, and then ends.
    Leaving {
        until: Time,
    },
    /// Waits for its operations to end.
    Dead,
}

/// Where in a frame the received bytes stand.
enum Frame {
    Header,
    Head(FrameHeader),
    Payload(FrameHeader, Vec<u8>),
}

pub struct Conn {
    socket: Fd,
    pub state: State,
    outbox: Outbox,
    pub receiving: bool,
    pub dialing: bool,
    inbox: Inbox,
    frame: Frame,
}

impl Conn {
    pub fn new(socket: Fd, state: State) -> Conn {
        let dialing = matches!(state, State::Dialing { .. });
        let (outbox, inbox) = (Outbox::default(), Inbox::default());
        Conn { socket, state, outbox, receiving: false, dialing, inbox, frame: Frame::Header }
    }

    /// When something is to be done about it although nothing happens.
    pub fn until(&self) -> Option<Time> {
        match &self.state {
            State::Dialing { until, .. } | State::Stranger { until, .. } | State::Leaving { until } => Some(*until),
            State::Session { .. } | State::Dead => None,
        }
    }

    /// Nothing is in flight any more.
    pub fn idle(&self) -> bool {
        !self.receiving && !self.dialing && !self.outbox.sending()
    }

    /// The next receive.
    pub fn receive(&mut self) -> Op {
        self.receiving = true;
        let ahead = match &self.frame {
            Frame::Head(header) => header.head_len.max(READ_AHEAD),
            _ => READ_AHEAD,
        };
        self.inbox.plan(Ahead::Bytes(ahead)).into_op(self.socket.clone())
    }

    /// Takes back a receive that brought `n` bytes.
    pub fn received(&mut self, op: Op, n: usize) {
        let Op::Recv { bufs, areas, .. } = op else { unreachable!("only receives are received") };
        self.inbox.received(bufs, &areas, n);
    }

    /// Whether a stranger asks for this node's voter, and for no session.
    pub fn is_askers(&self) -> bool {
        matches!((&self.state, &self.frame), (State::Stranger { .. }, Frame::Header))
            && self.inbox.begins_with(&crate::voter::frame::MAGIC)
    }

    /// Gives the connection away, with what has come over it. Nothing of it may be in flight.
    pub fn give_away(mut self) -> io::Result<(OwnedFd, Vec<u8>)> {
        assert!(self.idle(), "the ring has no more to do with it");
        Ok((self.socket.try_clone()?, self.inbox.take_all()))
    }

    /// The next message, if it has come in full.
    pub fn next_message(&mut self) -> Result<Option<PeerMsg>, WireError> {
        loop {
            let mut bytes = Vec::new();
            match std::mem::replace(&mut self.frame, Frame::Header) {
                Frame::Header => {
                    if !self.inbox.take(HEADER_LEN, &mut bytes) {
                        return Ok(None);
                    }
                    let mut header = [0; HEADER_LEN];
                    header.copy_from_slice(&bytes);
                    let header = FrameHeader::parse(&header)?;
                    if header.payload_len > 0 && matches!(self.state, State::Stranger { .. }) {
                        // Whoever has not said its name gets no memory.
                        return Err(WireError::PayloadLength(header.payload_len as u64));
                    }
                    self.frame = Frame::Head(header);
                }
                Frame::Head(header) => {
                    if !self.inbox.take(header.head_len, &mut bytes) {
                        self.frame = Frame::Head(header);
                        return Ok(None);
                    }
                    if header.payload_len == 0 {
                        return wire::decode(&header, &bytes, Payload::empty()).map(Some);
                    }
                    self.frame = Frame::Payload(header, bytes);
                }
                Frame::Payload(header, head) => {
                    let Some(payload) = self.inbox.payload(header.payload_len) else {
                        self.frame = Frame::Payload(header, head);
                        return Ok(None);
                    };
                    return wire::decode(&header, &head, payload.freeze()).map(Some);
                }
            }
        }
    }

    /// The next send, if there is something to send and none under way.
    pub fn next_send(&mut self) -> Option<Op> {
        self.outbox.next(&self.socket)
    }

    /// Takes back a send that has moved `n` bytes; what it left over is to be sent next.
    pub fn sent(&mut self, op: Op, n: usize) -> Option<Op> {
        self.outbox.sent(op, n)
    }

    /// Takes note that the send under way has failed.
    pub fn send_failed(&mut self) {
        self.outbox.failed();
    }

    /// Whether everything was sent.
    pub fn all_sent(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Whether frames wait for nothing but their turn under a limit.
    pub fn awaits_turn(&self) -> bool {
        self.outbox.awaits_turn()
    }

    /// Lets go of the frames whose turn has come.
    pub fn release(&mut self, pace: &mut Pace, now: Time) {
        self.outbox.release(pace, now);
    }

    /// What is queued is sent, whatever the limit, and nothing more is received.
    pub fn say_last_words(&mut self) {
        self.outbox.release_all();
        end_receiving(&self.socket);
    }

    /// Ends the connection; what is queued is forgotten.
    pub fn cut(&mut self) {
        self.outbox.clear();
        close_abruptly(&self.socket);
    }

    /// Queues a frame, or keeps it until its turn has come.
    pub fn queue(&mut self, frame: Encoded, hold: bool) {
        let pieces = std::iter::once(Piece::Bytes(frame.head)).chain(frame.payloads.into_iter().map(Piece::Payload));
        if hold {
            self.outbox.hold(pieces.collect());
        } else {
            pieces.for_each(|p| self.outbox.push(p));
        }
    }
}
