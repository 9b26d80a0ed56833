//! Pieces waiting to be sent on one connection.

use super::Pace;
use crate::core::Time;
use crate::daemon::ring::{Fd, Gather, MAX_PIECES, Op, Piece};
use std::collections::VecDeque;

/// A queue whose pieces are sent in order, as many at once as the kernel takes.
#[derive(Default)]
pub struct Outbox {
    /// Whole frames, but that the first may have been sent in part.
    queue: VecDeque<Piece>,
    /// Frames that wait for their turn under a limit, with their lengths.
    held: VecDeque<(Vec<Piece>, u64)>,
    sending: bool,
}

impl Outbox {
    /// Appends a piece.
    pub fn push(&mut self, piece: Piece) {
        if piece.length() > 0 {
            self.queue.push_back(piece);
        }
    }

    /// Keeps a frame until its turn has come.
    pub fn hold(&mut self, frame: Vec<Piece>) {
        let bytes = frame.iter().map(Piece::length).sum();
        self.held.push_back((frame, bytes));
    }

    /// Whether frames wait for nothing but their turn.
    pub fn awaits_turn(&self) -> bool {
        !self.held.is_empty() && !self.is_stuck()
    }

    /// The kernel takes no more: what is held had better stay behind what overtakes it.
    fn is_stuck(&self) -> bool {
        self.sending && !self.queue.is_empty()
    }

    /// Lets go of the frames whose turn has come.
    pub fn release(&mut self, pace: &mut Pace, now: Time) {
        while self.awaits_turn() && pace.open(now) {
            if let Some((frame, bytes)) = self.held.pop_front() {
                pace.spend(bytes);
                frame.into_iter().for_each(|p| self.push(p));
            }
        }
    }

    /// Lets go of all frames, whatever the limit.
    pub fn release_all(&mut self) {
        for (frame, _) in std::mem::take(&mut self.held) {
            frame.into_iter().for_each(|p| self.push(p));
        }
    }

    /// Whether a send is under way.
    pub fn sending(&self) -> bool {
        self.sending
    }

    /// Whether everything was sent.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.held.is_empty() && !self.sending
    }

    /// Forgets what was not yet handed to the kernel.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.held.clear();
    }

    /// The next send, if there is something to send and none under way.
    pub fn next(&mut self, socket: &Fd) -> Option<Op> {
        if self.sending || self.queue.is_empty() {
            return None;
        }
        self.sending = true;
        let n = self.queue.len().min(MAX_PIECES);
        let pieces = self.queue.drain(..n).collect();
        Some(Op::Send { socket: socket.clone(), data: Gather::Pieces(pieces), skip: 0 })
    }

    /// Takes back a send that has moved `n` bytes; what it left over is to be sent next.
    pub fn sent(&mut self, op: Op, n: usize) -> Option<Op> {
        let Op::Send { socket, data, skip } = op else { unreachable!("only sends are sent") };
        let skip = skip + n as u64;
        if skip < data.length() {
            return Some(Op::Send { socket, data, skip });
        }
        self.sending = false;
        None
    }

    /// Takes note that the send under way has failed.
    pub fn failed(&mut self) {
        self.sending = false;
        self.clear();
    }
}
