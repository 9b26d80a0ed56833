//! One NBD connection: its session, received bytes, and replies on their way.

use super::budget::{Budget, Pace};
use crate::core::Time;
use crate::daemon::net::{Ahead, Inbox};
use crate::daemon::ring::{Fd, Gather, Op};
use crate::nbd::{Export, Output, ReplyBuf, Session, Want};
use std::rc::Rc;

/// Requests of one connection that are not answered.
const OUTSTANDING: usize = 256;

/// Bytes that one connection may have asked to read, or not taken yet.
const OWED: u64 = 16 << 20;

/// Length of the head of a request.
const REQUEST_HEAD: usize = 28;

/// Heads received at once from a client that reads.
const HEADS: usize = 32;

/// Most writes received at once.
const WRITES: usize = 32;

/// Bytes of writes received at once beside the one that is awaited.
const GUESS_BYTES: usize = 256 << 10;

/// Requests in a row without a payload, after which no write is expected next. A few come between writes, as flushes do.
const DRY: u32 = 4;

/// How far a connection has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Open,
    /// The client has said good-bye: what is outstanding is answered, then it ends; it is given up at that time if it
    /// takes no replies.
    Draining {
        until: Option<Time>,
    },
    /// This node serves no more: what is queued is sent, until then.
    Leaving {
        until: Time,
    },
    Dead,
}

pub struct Client {
    pub socket: Fd,
    pub session: Session,
    pub life: Life,
    pub from: String,
    /// When it must have chosen its export.
    pub haggle_until: Time,
    pub receiving: bool,
    /// Requests that the core has not answered.
    pub outstanding: usize,
    /// Bytes of reads among them.
    pub reading: u64,
    inbox: Inbox,
    /// The head that is being looked at; kept for its memory.
    head: Vec<u8>,
    /// Replies that wait for the send under way.
    filling: ReplyBuf,
    /// What the next ones are collected in.
    spare: ReplyBuf,
    sending: Option<u64>,
    /// Memory taken for the payload that is awaited, and how it comes; 0 and none without one.
    reserved: u64,
    pace: Option<Pace>,
    /// Memory taken for what the last receive could bring beside it.
    ahead: u64,
    /// Writes that the last receive had room for and brought, about: the next one is planned for a few more.
    brought: usize,
    /// Length of the last write: the next one will most likely be as long. 0 where none is expected.
    last_write: usize,
    /// Requests without a payload since then.
    dry: u32,
}

impl Client {
    pub fn new(socket: Fd, exports: Rc<[Export]>, from: String, haggle_until: Time) -> Client {
        let mut outputs = Vec::new();
        let session = Session::new(exports, &mut outputs);
        let mut client = Client {
            socket,
            session,
            life: Life::Open,
            from,
            haggle_until,
            receiving: false,
            outstanding: 0,
            reading: 0,
            inbox: Inbox::default(),
            head: Vec::new(),
            filling: ReplyBuf::new(),
            spare: ReplyBuf::new(),
            sending: None,
            reserved: 0,
            pace: None,
            ahead: 0,
            last_write: 0,
            dry: 0,
            brought: 0,
        };
        for output in outputs {
            if let Output::Send(bytes) = output {
                client.filling.push_bytes(&bytes);
            }
        }
        client
    }

    /// Whether it may bring more requests as far as it itself is concerned.
    pub fn has_room(&self) -> bool {
        let unsent = self.filling.length() + self.sending.unwrap_or(0);
        self.outstanding < OUTSTANDING && self.reading + unsent < OWED
    }

    /// Whether the next `n` bytes have come.
    pub fn has_come(&self, n: usize) -> bool {
        self.inbox.has(n)
    }

    /// Whether memory was taken for the payload that is awaited.
    pub fn has_reserved(&self) -> bool {
        self.pace.is_some()
    }

    /// Bytes of the write that is being received.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Memory that its receive takes beside that.
    #[cfg(test)]
    pub fn ahead(&self) -> u64 {
        self.ahead
    }

    /// Memory was taken for the payload that is awaited.
    pub fn reserve(&mut self, bytes: u64, now: Time) {
        self.reserved = bytes;
        self.pace = Some(Pace::from(now));
    }

    /// A request has come whose payload has so many bytes; what was reserved for it is its own from now on.
    pub fn hand_over(&mut self, bytes: u64) -> u64 {
        assert_eq!(bytes, self.reserved, "what was reserved for the payload that has come");
        self.pace = None;
        std::mem::take(&mut self.reserved)
    }

    /// When it has been too slow for those who wait for the memory that it holds, if somebody does.
    pub fn late_at(&self, budget: &Budget) -> Option<Time> {
        let pace = self.pace.filter(|_| self.life == Life::Open)?;
        Some(pace.late_at(budget.awaited_since(self.reserved)?))
    }

    /// It is gone with all that it received.
    pub fn give_back(self, budget: &mut Budget) {
        budget.forsake(self.reserved);
        budget.give_back_ahead(self.ahead);
    }

    /// Feeds the session the next piece that has come in full; false if there is none.
    pub fn step(&mut self, outputs: &mut Vec<Output>) -> bool {
        match self.session.want() {
            Want::Head(n) => {
                self.head.clear();
                if !self.inbox.take(n, &mut self.head) {
                    return false;
                }
                self.session.head(&self.head, outputs);
                if matches!(self.session.want(), Want::Head(_)) {
                    self.dry = self.dry.saturating_add(1);
                    if self.dry >= DRY {
                        self.last_write = 0;
                    }
                }
            }
            Want::Payload(n) => match self.inbox.payload(n) {
                Some(payload) => {
                    (self.last_write, self.dry) = (n, 0);
                    self.session.payload(payload, outputs);
                }
                None => return false,
            },
            Want::Close => return false,
        }
        true
    }

    /// The next receive.
    pub fn receive(&mut self, budget: &mut Budget) -> Op {
        self.receiving = true;
        budget.give_back_ahead(std::mem::take(&mut self.ahead));
        let ahead = self.guess();
        let ahead = match budget.take_ahead(ahead.memory()) {
            true => {
                self.ahead = ahead.memory();
                ahead
            }
            false => Ahead::Bytes(REQUEST_HEAD),
        };
        self.inbox.plan(ahead).into_op(self.socket.clone())
    }

    /// What the next receive will bring, most likely, beside what is awaited.
    fn guess(&self) -> Ahead {
        let slot = match self.session.want() {
            Want::Payload(n) => n,
            _ => self.last_write,
        };
        if self.session.export().is_none() || slot == 0 {
            Ahead::Bytes(REQUEST_HEAD * HEADS)
        } else if slot > GUESS_BYTES {
            Ahead::Bytes(REQUEST_HEAD)
        } else {
            Ahead::Slots {
                head: REQUEST_HEAD,
                slot,
                count: (GUESS_BYTES / slot).min(self.brought + 2).clamp(1, WRITES),
            }
        }
    }

    /// Takes back a receive that brought `n` bytes.
    pub fn received(&mut self, op: Op, n: usize, now: Time) {
        let Op::Recv { bufs, areas, .. } = op else { unreachable!("only receives are received") };
        if let Some(pace) = &mut self.pace {
            pace.brought(n, now);
        }
        self.brought = n / (REQUEST_HEAD + self.last_write.max(1));
        self.inbox.received(bufs, &areas, n);
    }

    /// What replies are appended to.
    pub fn replies(&mut self) -> (&Session, &mut ReplyBuf) {
        (&self.session, &mut self.filling)
    }

    /// The next send, if there is something to send and none under way.
    pub fn send(&mut self) -> Option<Op> {
        if self.sending.is_some() || self.filling.is_empty() || self.life == Life::Dead {
            return None;
        }
        let replies = std::mem::replace(&mut self.filling, std::mem::take(&mut self.spare));
        self.sending = Some(replies.length());
        Some(Op::Send { socket: self.socket.clone(), data: Gather::Replies(replies), skip: 0 })
    }

    /// Takes back a send that has moved `n` bytes; what it left over is to be sent next.
    pub fn sent(&mut self, op: Op, n: usize) -> Option<Op> {
        let Op::Send { socket, data, skip } = op else { unreachable!("only sends are sent") };
        let skip = skip + n as u64;
        if skip < data.length() {
            self.sending = Some(data.length() - skip);
            return Some(Op::Send { socket, data, skip });
        }
        self.sending = None;
        if let Gather::Replies(mut replies) = data {
            replies.clear();
            self.spare = replies;
        }
        None
    }

    /// Takes note that the send under way has failed.
    pub fn send_failed(&mut self) {
        self.sending = None;
    }

    /// Everything was sent.
    pub fn all_sent(&self) -> bool {
        self.sending.is_none() && self.filling.is_empty()
    }

    /// Nothing is in flight any more.
    pub fn idle(&self) -> bool {
        !self.receiving && self.sending.is_none()
    }

    /// When something is to be done about it although nothing happens.
    pub fn until(&self) -> Option<Time> {
        match self.life {
            Life::Open if self.session.export().is_none() => Some(self.haggle_until),
            Life::Draining { until } => until,
            Life::Leaving { until } => Some(until),
            Life::Open | Life::Dead => None,
        }
    }
}
