//! What a node says of itself first, and the charter.

use super::types::*;
use bincode::{Decode, Encode};

/// The version of the peer protocol.
pub const PROTOCOL: u32 = 3;

/// A frame's payload may be one lz4 block.
pub const LZ4: &str = "lz4";

/// What this node understands beyond the protocol's version. Whoever sends uses only what the receiver has named; names that it does
/// not know it passes over.
pub const FEATURES: [&str; 1] = [LZ4];

/// Who is active and who is in sync: the register of the keeper (C9 for `alone`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Charter {
    /// Founded anew by a forced promotion: (number, random id) (C8). (0, 0) is a charter that was never founded.
    pub generation: (u64, u128),
    /// Number of the term that its active opened with it: which promotion of this generation it is of.
    pub term: u64,
    pub version: u64,
    /// Name of the active node, none after a release.
    pub active: Option<String>,
    /// Members by name and incarnation, the active included.
    pub in_sync: Vec<Member>,
    /// The node that a switchover released the role to: it alone may be promoted without asking the others (C9).
    pub heir: Option<String>,
    /// Set by a node that stepped down with everything durable on every member: its end position (C9).
    pub released: Option<Lsn>,
}

/// A member of the in-sync set (C1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Member {
    pub node: String,
    pub incarnation: Incarnation,
}

impl Charter {
    /// Whether this charter replaces `other`: a later promotion's, or a later version of the same one's.
    pub fn newer_than(&self, other: &Charter) -> bool {
        let same = (self.generation, self.term) == (other.generation, other.term);
        self.overtakes(other) || (same && self.version > other.version)
    }

    /// Whether it is of a later promotion: of a higher generation, or a later one of the same (C7).
    pub fn overtakes(&self, other: &Charter) -> bool {
        self.generation.0 > other.generation.0 || (self.generation == other.generation && self.term > other.term)
    }

    /// Two generations of one number: both were founded by force, and an operator decides (C8).
    pub fn conflicts_with(&self, other: &Charter) -> bool {
        self.generation.0 == other.generation.0 && self.generation.1 != other.generation.1
    }

    /// The member entry of a node, if it is in sync.
    pub fn member(&self, node: &str) -> Option<&Member> {
        self.in_sync.iter().find(|m| m.node == node)
    }
}

/// A node's open gap: its store is between two positions (R1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Gap {
    /// Where the undo leads back to; none where there is no way back: a fresh replica, or one that is overwritten in place.
    pub rollback: Option<Lsn>,
    /// What this side changed after this record is in the history.
    pub since: Lsn,
    /// What it changed is not known any more: everything is to be compared.
    pub everything: bool,
    /// Bytes of a block of undo.
    pub grain: u64,
    /// Without a way back: the term whose contents were written over it. Another one compares everything.
    pub overwritten_in: Option<TermId>,
}

/// First message of both sides of a session. In every version of the protocol it begins with that version, the resource and the node: so
/// that whoever speaks another one can be told so by name.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    pub protocol: u32,
    pub resource: String,
    pub node: String,
    pub incarnation: Incarnation,
    pub role: Role,
    /// Name and size in bytes of each volume, in order.
    pub volumes: Vec<(String, u64)>,
    pub block: u32,
    /// Terms, oldest first. Empty for a fresh replica (B3).
    pub lineage: Vec<Term>,
    /// Fresh, and its stores are proven to be zero.
    pub zero: bool,
    /// Newest record held, in memory or on disk.
    pub received: Lsn,
    pub durable: Lsn,
    pub committed: Lsn,
    /// Newest record that the store may hold.
    pub applied: Lsn,
    /// Oldest record that the log still holds, `durable + 1` if it is empty.
    pub log_from: Lsn,
    pub charter: Charter,
    /// It is on its way to being active.
    pub promoting: bool,
    pub gap: Option<Gap>,
    /// What the sender understands, see [`FEATURES`].
    pub features: Vec<String>,
    /// What both files should say alike, see `NodeConfig::shared_settings`.
    pub settings: Vec<(String, String)>,
    /// It only asks what a session would do: it wants the answer, and no session.
    pub probe: bool,
}

impl Hello {
    /// What can be known of one that speaks another protocol: nothing else of what it says is understood.
    pub fn unintelligible(protocol: u32, resource: String, node: String) -> Hello {
        Hello {
            protocol,
            resource,
            node,
            incarnation: Incarnation(0),
            role: Role::Passive,
            volumes: Vec::new(),
            block: 0,
            lineage: Vec::new(),
            zero: false,
            received: Lsn(0),
            durable: Lsn(0),
            committed: Lsn(0),
            applied: Lsn(0),
            log_from: Lsn(0),
            charter: Charter::default(),
            promoting: false,
            gap: None,
            features: Vec::new(),
            settings: Vec::new(),
            probe: false,
        }
    }

    /// What its file says of a setting that all should have alike.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

/// What only the sender knows of a session with the node that asked for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Share {
    /// Its records past the last one that both have.
    pub records: u64,
    /// What the blocks that they touch hold; none where that is not known any more.
    pub bytes: Option<u64>,
    /// What it would send, were it the one that feeds the other.
    pub send: u64,
    /// `send` is the most that it can be.
    pub at_most: bool,
    /// What an open gap has it ask for once more (R3).
    pub again: u64,
}
