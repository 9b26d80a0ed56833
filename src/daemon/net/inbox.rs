//! Received bytes of one connection, cut into heads and payloads.
//!
//! A payload should arrive in a buffer of its own, aligned, so that it can be logged from where it lies. But to ask for
//! each head and each payload by themselves costs a receive each. So a receive is planned ahead: the rest of the payload that is
//! awaited, and behind it either a few bytes (heads of small requests), or, after a write, pairs of a head and a buffer
//! as long as the write before. Where the guess is right nothing is copied, and one receive brings many writes; where it is
//! wrong, the bytes are copied to where they belong.

use crate::buf::{ALIGN, BufMut};
use crate::daemon::ring::{Area, Op};
use std::collections::VecDeque;

/// What is expected to follow what is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// At most so many bytes of anything.
    Bytes(usize),
    /// `count` times a head of `head` bytes and a payload of `slot` bytes.
    Slots { head: usize, slot: usize, count: usize },
}

impl Ahead {
    /// Memory that it takes, where that is worth counting.
    pub fn memory(&self) -> u64 {
        let pages = |n: usize| n.next_multiple_of(ALIGN) as u64;
        match self {
            Ahead::Bytes(n) if *n <= ALIGN => 0,
            Ahead::Bytes(n) => pages(*n),
            Ahead::Slots { head, slot, count } => (pages(*head) + pages(*slot)) * *count as u64,
        }
    }
}

/// Memory for one receive: each buffer is filled from `from[i]` on, one after the other.
pub struct Plan {
    bufs: Vec<BufMut>,
    areas: Vec<Area>,
}

impl Plan {
    fn add(&mut self, buf: BufMut, from: usize) {
        self.areas.push(Area { buf: self.bufs.len(), from, length: buf.len() - from });
        self.bufs.push(buf);
    }

    /// The operation that receives it.
    pub fn into_op(self, socket: crate::daemon::ring::Fd) -> Op {
        Op::Recv { socket, bufs: self.bufs, areas: self.areas }
    }
}

/// Received bytes that were not taken yet: `buf[from..to]`.
struct Chunk {
    buf: BufMut,
    from: usize,
    to: usize,
}

/// See the module's page.
#[derive(Default)]
pub struct Inbox {
    chunks: VecDeque<Chunk>,
    /// Bytes in `chunks`.
    available: usize,
    /// The payload that is awaited, and how many bytes of it have come.
    awaited: Option<(BufMut, usize)>,
    /// The first buffer of the receive that is under way is the awaited payload.
    awaited_lent: bool,
}

impl Inbox {
    /// Whether the next `n` bytes have come.
    pub fn has(&self, n: usize) -> bool {
        self.available >= n
    }

    /// Whether what has come begins with these bytes.
    pub fn begins_with(&self, bytes: &[u8]) -> bool {
        let come = self.chunks.iter().flat_map(|c| &c.buf[c.from..c.to]);
        self.has(bytes.len()) && come.zip(bytes).all(|(a, b)| a == b)
    }

    /// Everything that has come.
    pub fn take_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        self.take(self.available, &mut all);
        all
    }

    /// Moves the next `n` bytes to the end of `out`, if that many have come.
    pub fn take(&mut self, n: usize, out: &mut Vec<u8>) -> bool {
        assert!(self.awaited.is_none() && !self.awaited_lent, "a payload was asked for and must be fetched first");
        if self.available < n {
            return false;
        }
        self.consume(n, |bytes| out.extend_from_slice(bytes));
        true
    }

    /// The next `n` bytes as a buffer of their own, if they have come. If not, they will be received straight into it; ask
    /// again with the same `n` then.
    pub fn payload(&mut self, n: usize) -> Option<BufMut> {
        if self.awaited_lent {
            return None;
        }
        let (mut buf, mut filled) = match self.awaited.take() {
            Some(awaited) => awaited,
            None => self.adopt(n).unwrap_or_else(|| (BufMut::uninit(n), 0)),
        };
        assert_eq!(buf.len(), n, "the payload that was asked for before");
        let now = self.available.min(n - filled);
        self.consume(now, |bytes| {
            buf[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
        });
        if filled == n {
            return Some(buf);
        }
        self.awaited = Some((buf, filled));
        None
    }

    /// The next buffer as it is, where it was guessed to hold this very payload.
    fn adopt(&mut self, n: usize) -> Option<(BufMut, usize)> {
        self.chunks.front().filter(|c| c.from == 0 && c.buf.len() == n)?;
        let chunk = self.chunks.pop_front()?;
        self.available -= chunk.to;
        Some((chunk.buf, chunk.to))
    }

    fn consume(&mut self, n: usize, mut each: impl FnMut(&[u8])) {
        let mut left = n;
        while left > 0 {
            // Cannot fail: callers ask for no more than is available.
            let chunk = self.chunks.front_mut().expect("available bytes are in chunks");
            let now = left.min(chunk.to - chunk.from);
            each(&chunk.buf[chunk.from..chunk.from + now]);
            chunk.from += now;
            left -= now;
            if chunk.from == chunk.to {
                self.chunks.pop_front();
            }
        }
        self.available -= n;
    }

    /// Memory for the next receive. It must come back by [`Inbox::received`] before the next is planned.
    pub fn plan(&mut self, ahead: Ahead) -> Plan {
        let mut plan = Plan { bufs: Vec::new(), areas: Vec::new() };
        self.awaited_lent = self.awaited.is_some();
        if let Some((buf, filled)) = self.awaited.take() {
            plan.add(buf, filled);
        }
        match ahead {
            Ahead::Bytes(n) => plan.add(BufMut::uninit(n), 0),
            Ahead::Slots { head, slot, count } => {
                for _ in 0..count {
                    plan.add(BufMut::uninit(head), 0);
                    plan.add(BufMut::uninit(slot), 0);
                }
            }
        }
        plan
    }

    /// Takes back the memory of a receive that brought `n` bytes.
    pub fn received(&mut self, bufs: Vec<BufMut>, areas: &[Area], n: usize) {
        let mut left = n;
        for (buf, area) in bufs.into_iter().zip(areas) {
            let share = left.min(area.length);
            left -= share;
            if std::mem::take(&mut self.awaited_lent) {
                self.awaited = Some((buf, area.from + share));
            } else if share > 0 {
                self.available += share;
                self.chunks.push_back(Chunk { buf, from: 0, to: share });
            }
        }
        assert_eq!(left, 0, "no more bytes than there was room for");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Delivers up to `n` bytes of `stream` as a receive would, and says how many there was room for.
    fn deliver(inbox: &mut Inbox, ahead: Ahead, stream: &[u8], n: usize) -> usize {
        let Plan { mut bufs, areas } = inbox.plan(ahead);
        let mut done = 0;
        for area in &areas {
            let now = area.length.min(n - done).min(stream.len() - done);
            bufs[area.buf][area.from..area.from + now].copy_from_slice(&stream[done..done + now]);
            done += now;
        }
        inbox.received(bufs, &areas, done);
        done
    }

    #[test]
    fn a_right_guess_copies_nothing() {
        let mut inbox = Inbox::default();
        let stream: Vec<u8> = (0..3 * (28 + 4096)).map(|i| (i / 7) as u8).collect();
        let Plan { mut bufs, areas } = inbox.plan(Ahead::Slots { head: 28, slot: 4096, count: 3 });
        let mut at = 0;
        for (buf, area) in bufs.iter_mut().zip(&areas) {
            buf.copy_from_slice(&stream[at..at + area.length]);
            at += area.length;
        }
        let slots: Vec<*const u8> = bufs.iter().skip(1).step_by(2).map(|b| b.as_ptr()).collect();
        // The last payload lacks its last byte.
        inbox.received(bufs, &areas, stream.len() - 1);
        for (i, slot) in slots.into_iter().enumerate() {
            let mut head = Vec::new();
            assert!(inbox.take(28, &mut head));
            assert_eq!(head, stream[i * 4124..i * 4124 + 28]);
            let payload = inbox.payload(4096);
            if i < 2 {
                let payload = payload.expect("complete");
                assert_eq!((payload.as_ptr(), &payload[..]), (slot, &stream[i * 4124 + 28..(i + 1) * 4124]));
            } else {
                assert!(payload.is_none());
                assert_eq!(deliver(&mut inbox, Ahead::Bytes(28), &stream[stream.len() - 1..], 1), 1);
                let payload = inbox.payload(4096).expect("complete");
                assert_eq!((payload.as_ptr(), &payload[..]), (slot, &stream[2 * 4124 + 28..]));
            }
        }
        assert_eq!(inbox.available, 0);
    }

    #[derive(Clone, Debug)]
    enum Piece {
        Head(usize),
        Payload(usize),
    }

    fn piece() -> impl Strategy<Value = Piece> {
        prop_oneof![
            (1usize..60).prop_map(Piece::Head),
            (1usize..9000).prop_map(Piece::Payload),
            Just(Piece::Payload(4096))
        ]
    }

    fn ahead() -> impl Strategy<Value = Ahead> {
        prop_oneof![
            (1usize..5000).prop_map(Ahead::Bytes),
            (1usize..40, prop_oneof![Just(4096usize), 1usize..5000], 1usize..5)
                .prop_map(|(head, slot, count)| Ahead::Slots { head, slot, count }),
        ]
    }

    proptest! {
        /// Whatever is guessed and however the bytes arrive, they come out in order and complete.
        #[test]
        fn bytes_come_out_as_they_came_in(
            pieces in prop::collection::vec(piece(), 1..20),
            arrivals in prop::collection::vec((ahead(), 1usize..20_000), 1..50),
        ) {
            let length = |p: &Piece| match p { Piece::Head(n) | Piece::Payload(n) => *n };
            let total: usize = pieces.iter().map(length).sum();
            let stream: Vec<u8> = (0..total).map(|i| (i * 31 % 251) as u8).collect();
            let (mut inbox, mut sent, mut taken) = (Inbox::default(), 0, 0);
            let mut arrivals = arrivals.iter().cycle();
            for piece in &pieces {
                loop {
                    let mut out = Vec::new();
                    let got = match piece {
                        Piece::Head(n) => inbox.take(*n, &mut out),
                        Piece::Payload(n) => inbox.payload(*n).map(|b| out.extend_from_slice(&b)).is_some(),
                    };
                    if got {
                        prop_assert_eq!(&out[..], &stream[taken..taken + out.len()]);
                        taken += out.len();
                        break;
                    }
                    prop_assert!(sent < total, "all was sent, and something is missing");
                    let (ahead, n) = arrivals.next().expect("cycles for ever");
                    sent += deliver(&mut inbox, *ahead, &stream[sent..], *n);
                }
            }
            prop_assert_eq!(taken, total);
        }
    }
}
