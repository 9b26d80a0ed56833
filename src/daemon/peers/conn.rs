//! One connection between nodes: frames out of received bytes, and what is to be sent.

use crate::buf::Payload;
use crate::core::{NodeId, PeerMsg, SessionId, Time};
use crate::daemon::net::{Ahead, Inbox, Outbox};
use crate::daemon::ring::{Fd, Op, Piece, Token};
use crate::wire::{self, FrameHeader, HEADER_LEN, WireError};

/// Bytes received behind an awaited payload: the next header and head, and of its payload what must be copied then.
const READ_AHEAD: usize = 4096;

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
    pub socket: Fd,
    pub state: State,
    pub outbox: Outbox,
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

    /// Queues a message.
    pub fn queue(&mut self, message: &PeerMsg, compress: bool) -> Result<(), WireError> {
        let frame = wire::encode(message, compress)?;
        self.outbox.push(Piece::Bytes(frame.head));
        frame.payloads.into_iter().for_each(|p| self.outbox.push(Piece::Payload(p)));
        Ok(())
    }
}
