//! The state of one connection: what is awaited, and what it leads to.

use super::command::{Bound, Head, Request, Step, Ticket};
use super::options::{Negotiation, Outcome};
use super::proto::*;
use super::reply::{self, ReplyBuf};
use super::{BufMut, Export, Output, Want};
use crate::core::{ClientError, Reply, VolumeId};
use std::rc::Rc;

/// One connection's side of the protocol. See the module's page for how it is driven.
#[derive(Debug)]
pub struct Session {
    exports: Rc<[Export]>,
    phase: Phase,
}

/// What is awaited.
#[derive(Debug)]
enum Phase {
    ClientFlags,
    Haggling(Negotiation, Await),
    Transmission(Bound, Transmission),
    Closed,
}

#[derive(Clone, Copy, Debug)]
enum Await {
    Head,
    Data {
        option: u32,
        length: u32,
    },
    /// Data that is thrown away; its option has been answered.
    Skip(u32),
}

#[derive(Clone, Copy, Debug)]
enum Transmission {
    Head,
    Payload(Ticket),
    /// A payload that is thrown away; its request has been answered.
    Skip(u32),
}

/// How much of `left` bytes to throw away is received at once.
fn skip_now(left: u32) -> usize {
    (left as usize).min(MAX_HEAD)
}

impl Session {
    /// A session on a connection just accepted. Clients see these exports for as long as the connection lasts; an export's
    /// index becomes the volume's id. `out` gets the greeting.
    ///
    /// # Panics
    /// If there are more exports than there can be volumes (65536).
    pub fn new(exports: Rc<[Export]>, out: &mut Vec<Output>) -> Session {
        assert!(exports.len() <= usize::from(u16::MAX) + 1, "{} exports do not fit a volume's id", exports.len());
        let mut greeting = Vec::with_capacity(18);
        greeting.extend_from_slice(&INIT_MAGIC.to_be_bytes());
        greeting.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        greeting.extend_from_slice(&(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes());
        out.push(Output::Send(greeting));
        Session { exports, phase: Phase::ClientFlags }
    }

    /// What to receive next. It changes only by [`Session::head`] and [`Session::payload`].
    pub fn want(&self) -> Want {
        match &self.phase {
            Phase::ClientFlags => Want::Head(CLIENT_FLAGS_LEN),
            Phase::Haggling(_, Await::Head) => Want::Head(OPTION_HEAD_LEN),
            Phase::Haggling(_, Await::Data { length, .. }) => Want::Head(*length as usize),
            Phase::Transmission(_, Transmission::Head) => Want::Head(REQUEST_HEAD_LEN),
            Phase::Transmission(_, Transmission::Payload(ticket)) => Want::Payload(ticket.length as usize),
            Phase::Haggling(_, Await::Skip(left)) | Phase::Transmission(_, Transmission::Skip(left)) => {
                Want::Head(skip_now(*left))
            }
            Phase::Closed => Want::Close,
        }
    }

    /// The export that the client has chosen, once the transmission phase has begun.
    pub fn export(&self) -> Option<&Export> {
        match &self.phase {
            Phase::Transmission(bound, _) => self.exports.get(usize::from(bound.volume.0)),
            _ => None,
        }
    }

    /// Takes the bytes that [`Want::Head`] asked for, and appends to `out` what follows from them.
    ///
    /// # Panics
    /// If they are not exactly what was asked for: a bug of the driver.
    pub fn head(&mut self, bytes: &[u8], out: &mut Vec<Output>) {
        assert_eq!(self.want(), Want::Head(bytes.len()), "the driver must deliver what the session wants");
        match &mut self.phase {
            Phase::Transmission(bound, state) => match state {
                Transmission::Head => {
                    let bound = *bound;
                    self.request_head(&bound, bytes, out);
                }
                Transmission::Skip(left) => {
                    *left -= bytes.len() as u32;
                    if *left == 0 {
                        *state = Transmission::Head;
                    }
                }
                Transmission::Payload(_) => unreachable!("a payload is awaited, and `want` was checked"),
            },
            Phase::Haggling(_, Await::Head) => self.option_head(bytes, out),
            Phase::Haggling(_, Await::Data { option, .. }) => {
                let option = *option;
                self.option(option, bytes, out);
            }
            Phase::Haggling(_, state @ Await::Skip(_)) => {
                if let Await::Skip(left) = *state {
                    let left = left - bytes.len() as u32;
                    *state = if left == 0 { Await::Head } else { Await::Skip(left) };
                }
            }
            Phase::ClientFlags => self.client_flags(bytes, out),
            Phase::Closed => unreachable!("nothing is awaited, and `want` was checked"),
        }
    }

    /// Takes the payload that [`Want::Payload`] asked for, and appends the write to `out`.
    ///
    /// # Panics
    /// If it is not what was asked for: a bug of the driver.
    pub fn payload(&mut self, buf: BufMut, out: &mut Vec<Output>) {
        assert_eq!(self.want(), Want::Payload(buf.len()), "the driver must deliver what the session wants");
        let Phase::Transmission(bound, state) = &mut self.phase else { unreachable!("`want` was checked") };
        let Transmission::Payload(ticket) = *state else { unreachable!("`want` was checked") };
        *state = Transmission::Head;
        let op = ticket.op(bound.volume, || buf.freeze());
        out.push(Output::Request(Request { ticket, op }));
    }

    /// Appends the reply to a request of this session. Payloads are moved into `out`, not copied. May be called after
    /// [`Output::Close`], for what is still outstanding.
    ///
    /// # Panics
    /// If the answer is not of the kind or length that the request asked for: a bug, which would corrupt the stream.
    pub fn reply(&self, ticket: &Ticket, result: Result<Reply, ClientError>, out: &mut ReplyBuf) {
        reply::encode(ticket, result, out);
    }

    fn close(&mut self, out: &mut Vec<Output>) {
        self.phase = Phase::Closed;
        out.push(Output::Close);
    }

    fn client_flags(&mut self, bytes: &[u8], out: &mut Vec<Output>) {
        let negotiation = Fields(bytes).u32().and_then(|flags| Negotiation::new(flags, self.exports.len()));
        match negotiation {
            Some(negotiation) => self.phase = Phase::Haggling(negotiation, Await::Head),
            None => self.close(out),
        }
    }

    fn option_head(&mut self, bytes: &[u8], out: &mut Vec<Output>) {
        let Phase::Haggling(negotiation, state) = &mut self.phase else { return };
        let mut fields = Fields(bytes);
        let (magic, option, length) = (fields.u64(), fields.u32(), fields.u32());
        let (Some(OPTION_MAGIC), Some(option), Some(length)) = (magic, option, length) else {
            return self.close(out);
        };
        let mut refusal = Vec::new();
        match negotiation.announce(option, length, &mut refusal) {
            Ok(()) if length == 0 => self.option(option, &[], out),
            Ok(()) => *state = Await::Data { option, length },
            Err(outcome) => {
                *state = Await::Skip(length);
                self.conclude(outcome, refusal, out);
            }
        }
    }

    fn option(&mut self, option: u32, data: &[u8], out: &mut Vec<Output>) {
        let Phase::Haggling(negotiation, state) = &mut self.phase else { return };
        *state = Await::Head;
        let mut replies = Vec::new();
        let outcome = negotiation.answer(&self.exports, option, data, &mut replies);
        self.conclude(outcome, replies, out);
    }

    fn conclude(&mut self, outcome: Outcome, replies: Vec<u8>, out: &mut Vec<Output>) {
        if !replies.is_empty() {
            out.push(Output::Send(replies));
        }
        match outcome {
            Outcome::Haggle => {}
            Outcome::Close => self.close(out),
            Outcome::Transmit(index) => self.transmit(index),
        }
    }

    fn transmit(&mut self, index: usize) {
        let Phase::Haggling(negotiation, _) = &self.phase else { return };
        let export = &self.exports[index];
        let bound = Bound {
            // Lossless: `new` has checked the number of exports.
            volume: VolumeId(index as u16),
            size: export.size,
            block: u64::from(export.block),
            read_only: export.read_only,
            structured: negotiation.structured,
            allocation: negotiation.allocation == Some(index),
        };
        self.phase = Phase::Transmission(bound, Transmission::Head);
    }

    fn request_head(&mut self, bound: &Bound, bytes: &[u8], out: &mut Vec<Output>) {
        let Some(head) = Head::parse(bytes) else { return self.close(out) };
        match head.admit(bound) {
            Step::Request(request) => out.push(Output::Request(request)),
            Step::Payload(ticket) => self.phase = Phase::Transmission(*bound, Transmission::Payload(ticket)),
            Step::Disconnect => self.close(out),
            Step::Refused { error, skip, close } => {
                let mut bytes = Vec::new();
                reply::encode_error(&mut bytes, bound.structured, head.cookie, error.errno(), &error);
                out.push(Output::Send(bytes));
                if close {
                    self.close(out);
                } else if skip > 0 {
                    self.phase = Phase::Transmission(*bound, Transmission::Skip(skip));
                }
            }
        }
    }
}
