//! What is sent to one peer, whichever connection carries it: packed or not, how fast, and how much it was.

use crate::core::hello::{Hello, LZ4};
use crate::core::{NodeSpec, PeerMsg};
use crate::daemon::net::Pace;
use crate::wire::{self, Encoded, WireError};

/// Packing must save a share of this many bytes of payload, or it is not tried for a while.
const WORTH: usize = 8;
/// Payload bytes that are then sent as they are before it is tried again: twice as many after each attempt in vain, between these.
const LEAST_SKIP: usize = 1 << 20;
const MOST_SKIP: usize = 64 << 20;

/// See the module's page.
pub struct Way {
    /// The file wants payloads packed, and the peer has said that it understands that.
    wants_packing: bool,
    peer_unpacks: bool,
    packer: Packer,
    /// The limit of the file, if there is one.
    pub pace: Option<Pace>,
    /// Payload bytes of records and contents sent since the start of the process, before packing.
    pub sent_bytes: u64,
    /// Bytes that the kernel has taken for this peer, everything counted.
    pub wire_bytes: u64,
}

/// Tries to pack while that is worth it, and leaves alone for a while what does not become smaller.
#[derive(Default)]
struct Packer {
    /// Payload bytes that are still to be sent as they are.
    skip: usize,
    /// How many it will be after the next attempt in vain.
    next_skip: usize,
}

impl Packer {
    /// Whether to try with so many payload bytes.
    fn tries(&mut self, bytes: usize) -> bool {
        let now = self.skip == 0;
        self.skip = self.skip.saturating_sub(bytes);
        now
    }

    fn learn(&mut self, bytes: usize, packed: usize) {
        if packed <= bytes - bytes / WORTH {
            self.next_skip = 0;
        } else {
            self.next_skip = (self.next_skip * 2).clamp(LEAST_SKIP, MOST_SKIP);
            self.skip = self.next_skip;
        }
    }
}

impl Way {
    /// The way to a node of the file.
    pub fn new(spec: &NodeSpec, compress: bool) -> Way {
        Way {
            wants_packing: compress,
            peer_unpacks: false,
            packer: Packer::default(),
            pace: spec.bandwidth.map(Pace::new),
            sent_bytes: 0,
            wire_bytes: 0,
        }
    }

    /// The peer has said who it is, and what it understands.
    pub fn greeted(&mut self, hello: &Hello) {
        self.peer_unpacks = hello.features.iter().any(|f| f == LZ4);
    }

    /// The frame of a message to this peer.
    pub fn encode(&mut self, message: &PeerMsg) -> Result<Encoded, WireError> {
        let bytes = wire::payload_bytes(message);
        self.sent_bytes += bytes as u64;
        let pack = bytes > 0 && self.wants_packing && self.peer_unpacks && self.packer.tries(bytes);
        let frame = wire::encode(message, pack)?;
        if pack {
            self.packer.learn(bytes, frame.payloads.iter().map(|p| p.len()).sum());
        }
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_become_smaller_is_left_alone_for_longer_and_longer() {
        let mut packer = Packer::default();
        let mut tried = 0;
        for _ in 0..1 << 10 {
            if packer.tries(1 << 20) {
                packer.learn(1 << 20, 1 << 20);
                tried += 1;
            }
        }
        assert!((10..=25).contains(&tried), "{tried} attempts in 1 GiB");
        while !packer.tries(1 << 20) {}
        packer.learn(1 << 20, 1 << 18);
        assert!((0..100).all(|_| packer.tries(1 << 20)), "what packs well is packed");
    }
}
