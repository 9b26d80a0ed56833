//! Memory for the requests of all clients together.
//!
//! A write's payload is reserved before its first byte is received, so that clients that begin writes and do not end them cost no more
//! than an account. There are two: one for requests of all kinds until the core has answered them, and one for long writes while they come in,
//! so that those who are slow to send them hold up nobody but each other. Whoever finds no room waits in line: nothing is received from it,
//! and nobody who comes later is let past, be the request ever so small. Who holds room while others wait must bring something, see
//! [`Pace`].

use crate::core::Time;
use crate::daemon::hub::ConnId;
use crate::nbd::MAX_PAYLOAD;
use std::collections::VecDeque;

/// The share of `memory` that requests may hold until they are answered.
const REQUESTS: u64 = 2;
/// The share of `memory` for long writes that come in; there is always room for one of the longest.
const LONG: u64 = 8;
/// The share of `memory` that is taken in beside it, for payloads that are expected and not awaited.
const AHEAD: u64 = 8;
/// A longer write is long.
const SHORT_BYTES: u64 = 256 << 10;
/// Who holds room that others wait for brings [`STEADY_BYTES`], or the rest of its write, in this time.
pub const STEADY_MS: u64 = 10_000;
pub const STEADY_BYTES: usize = 1 << 20;

/// See the module's page.
pub struct Budget {
    requests: Account,
    long: Account,
    /// Memory of receives beyond what is awaited, and how much of that there may be.
    ahead: u64,
    ahead_most: u64,
}

struct Account {
    most: u64,
    used: u64,
    line: VecDeque<ConnId>,
    /// Since when somebody has been waiting.
    since: Time,
}

impl Account {
    fn new(most: u64) -> Account {
        Account { most, used: 0, line: VecDeque::new(), since: Time(0) }
    }

    /// Where nothing is held there is room for anything.
    fn take(&mut self, id: ConnId, bytes: u64, now: Time) -> bool {
        let first = self.line.front().is_none_or(|front| *front == id);
        if first && (self.used + bytes.max(1) <= self.most || self.used == 0) {
            self.line.pop_front();
            self.used += bytes;
            return true;
        }
        if self.line.is_empty() {
            self.since = now;
        }
        if !self.line.contains(&id) {
            self.line.push_back(id);
        }
        false
    }
}

impl Budget {
    /// What there is where so much memory is configured.
    pub fn of(memory: u64) -> Budget {
        Budget {
            requests: Account::new(memory / REQUESTS),
            long: Account::new((memory / LONG).max(u64::from(MAX_PAYLOAD))),
            ahead: 0,
            ahead_most: memory / AHEAD,
        }
    }

    /// Bytes of requests, and of long writes that are coming in.
    #[cfg(test)]
    pub fn used(&self) -> (u64, u64) {
        (self.requests.used, self.long.used)
    }

    fn receiving(&mut self, bytes: u64) -> &mut Account {
        if bytes > SHORT_BYTES { &mut self.long } else { &mut self.requests }
    }

    /// Whether `id` may bring another request; if not, it gets in line.
    pub fn admit(&mut self, id: ConnId, now: Time) -> bool {
        self.requests.take(id, 0, now)
    }

    /// Takes `bytes` for a write that is to be received; if there is no room, `id` gets in line.
    pub fn reserve(&mut self, id: ConnId, bytes: u64, now: Time) -> bool {
        self.receiving(bytes).take(id, bytes, now)
    }

    /// A write for which room was taken does not come.
    pub fn forsake(&mut self, bytes: u64) {
        self.receiving(bytes).used -= bytes;
    }

    /// It has come, and is a request now. By a long one, as by a long read, that account may be overdrawn.
    pub fn arrived(&mut self, bytes: u64) {
        self.forsake(bytes);
        self.asked(bytes);
    }

    /// The answer to a request takes so much.
    pub fn asked(&mut self, bytes: u64) {
        self.requests.used += bytes;
    }

    /// A request was answered.
    pub fn answered(&mut self, bytes: u64) {
        self.requests.used -= bytes;
    }

    /// Takes `bytes` for what a receive may bring beyond what is awaited.
    pub fn take_ahead(&mut self, bytes: u64) -> bool {
        let room = self.ahead + bytes <= self.ahead_most;
        self.ahead += if room { bytes } else { 0 };
        room
    }

    pub fn give_back_ahead(&mut self, bytes: u64) {
        self.ahead -= bytes;
    }

    /// Who is first in each line.
    pub fn first(&self) -> [Option<ConnId>; 2] {
        [&self.requests, &self.long].map(|a| a.line.front().copied())
    }

    /// Since when somebody has been waiting for what a write of so many bytes holds.
    pub fn awaited_since(&self, bytes: u64) -> Option<Time> {
        let account = if bytes > SHORT_BYTES { &self.long } else { &self.requests };
        (!account.line.is_empty()).then_some(account.since)
    }

    /// It waits no longer.
    pub fn leave(&mut self, id: ConnId) {
        self.requests.line.retain(|waiting| *waiting != id);
        self.long.line.retain(|waiting| *waiting != id);
    }
}

/// How steadily a client brings what room was taken for.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    since: Time,
    brought: usize,
}

impl Pace {
    pub fn from(now: Time) -> Pace {
        Pace { since: now, brought: 0 }
    }

    /// `bytes` more have come.
    pub fn brought(&mut self, bytes: usize, now: Time) {
        self.brought += bytes;
        if self.brought >= STEADY_BYTES {
            *self = Pace::from(now);
        }
    }

    /// When it is too slow, for somebody who has been waiting since `awaited`.
    pub fn late_at(&self, awaited: Time) -> Time {
        self.since.max(awaited).plus_ms(STEADY_MS)
    }
}
