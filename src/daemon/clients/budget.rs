//! Memory for the requests of all clients together.
//!
//! One account holds what is being received and what the core has not answered. A write's payload is reserved before its first byte
//! is received, so that clients that begin writes and do not end them cost no more than the account. Whoever finds no room
//! waits in line: nothing is received from it, and nobody who comes later is let past, be the request ever so small. Who holds room while others
//! wait must bring something, see [`Pace`].

use crate::core::Time;
use crate::daemon::hub::ConnId;
use std::collections::VecDeque;

/// The share of the account that is taken in beside it, for payloads that are expected and not awaited.
const AHEAD_SHARE: u64 = 4;
/// Who holds room that others wait for brings [`STEADY_BYTES`], or the rest of its write, in this time.
pub const STEADY_MS: u64 = 10_000;
pub const STEADY_BYTES: usize = 1 << 20;

/// See the module's page.
pub struct Budget {
    most: u64,
    /// Requests that the core has not answered, and payloads that are being received.
    used: u64,
    /// Memory of receives beyond what is awaited.
    ahead: u64,
    line: VecDeque<ConnId>,
    /// Since when somebody has been waiting.
    since: Time,
}

impl Budget {
    pub fn new(most: u64) -> Budget {
        Budget { most, used: 0, ahead: 0, line: VecDeque::new(), since: Time(0) }
    }

    /// Bytes that the account holds.
    #[cfg(test)]
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Takes `bytes` for `id`, which gets in line if there is no room or somebody is before it. Where nothing is held there is room for
    /// anything.
    pub fn take(&mut self, id: ConnId, bytes: u64, now: Time) -> bool {
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

    /// The answer to a read will take `bytes` more: by one read the account may be overdrawn.
    pub fn add(&mut self, bytes: u64) {
        self.used += bytes;
    }

    pub fn give_back(&mut self, bytes: u64) {
        self.used -= bytes;
    }

    /// Takes up to `bytes` for what a receive may bring beyond what is awaited.
    pub fn take_ahead(&mut self, bytes: u64) -> bool {
        let room = self.ahead + bytes <= self.most / AHEAD_SHARE;
        self.ahead += if room { bytes } else { 0 };
        room
    }

    pub fn give_back_ahead(&mut self, bytes: u64) {
        self.ahead -= bytes;
    }

    /// Who is next, if anybody waits.
    pub fn next(&self) -> Option<ConnId> {
        self.line.front().copied()
    }

    /// Since when somebody has been waiting, if anybody is.
    pub fn awaited_since(&self) -> Option<Time> {
        (!self.line.is_empty()).then_some(self.since)
    }

    /// It is gone, or was found to need no room.
    pub fn leave(&mut self, id: ConnId) {
        self.line.retain(|waiting| *waiting != id);
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
