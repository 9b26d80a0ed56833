//! What a node is told about itself and its resource. Made by the driver out of the user's file.

use super::types::*;

/// A window smaller than this would make a limited peer wait for acknowledgements of every few records.
const LEAST_WINDOW: u64 = 256 << 10;

/// The setting whose smaller value holds where two files differ.
pub const WINDOW: &str = "resource.window";

/// A node of the resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    pub name: String,
    pub mode: Mode,
    /// Bytes a second that the driver sends to it at most.
    pub bandwidth: Option<u64>,
    pub takeover: Takeover,
}

/// Whether a node takes over by itself (C3), where there are voters to agree to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    Automatic,
    /// It takes an operator's `promote`.
    Manual,
}

impl Takeover {
    /// Where the file says nothing: an async node lacks a tail, so it waits for an operator.
    pub fn of(mode: Mode) -> Takeover {
        match mode {
            Mode::Sync => Takeover::Automatic,
            Mode::Async => Takeover::Manual,
        }
    }
}

/// Who keeps the charter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// The active and an operator (C9).
    Alone,
    /// A majority of voters.
    Voters(Voting),
}

/// How the voters' register is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voting {
    /// Names of the voters as in the file: witnesses, and data nodes with a voter of their own. What charters list counts; this is
    /// whom the first promotion founds the register with.
    pub voters: Vec<String>,
    /// A passive that has heard nothing of the active for this long, with the drift of clocks and a round, takes over (C3).
    pub lease_ms: u64,
    /// What a round with the voters takes at most where all is well; questions are repeated several times in it.
    pub round_ms: u64,
}

/// A volume of the resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    pub name: String,
    /// Bytes; a multiple of the block size.
    pub size: u64,
}

/// Everything the core needs to know beside what is on disk.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub resource: String,
    /// All nodes, sorted by name; a [`NodeId`] is an index into this.
    pub nodes: Vec<NodeSpec>,
    pub me: NodeId,
    /// In the order of the user's file; a [`VolumeId`] is an index into this.
    pub volumes: Vec<VolumeSpec>,
    /// Logical block size in bytes: 512 or 4096.
    pub block: u32,
    /// Bytes of [`super::Part::Log`] in all.
    pub log_size: u64,
    pub keeper: Keeper,
    /// A sync write waits no longer than this for a passive.
    pub stall_ms: u64,
    pub on_stall: OnStall,
    /// Every write is durable before it completes.
    pub durable_write: bool,
    /// A heartbeat each so often; a session is over after ten without a word.
    pub heartbeat_ms: u64,
    /// Payloads that are not yet applied: at most about this many bytes of memory.
    pub memory: u64,
    /// Data sent to one peer and not yet confirmed: at most about this many bytes. See [`NodeConfig::window_of`].
    pub window: u64,
    /// Memory for what tells which blocks changed, in bytes: the index of the log, the bits of all peers, the undo's.
    pub tables: u64,
    /// Bytes that the history may take, at most.
    pub history_size: u64,
    /// Without room for a history a resync may overwrite this replica in place (contract 3).
    pub allow_invalid: bool,
    /// The log flushes by itself after this long (L3).
    pub flush_ms: u64,
    /// Committed records are applied to the store at the latest after this long.
    pub apply_ms: u64,
    /// Random, drawn anew at each start of the process. Terms' ids are derived from it.
    pub incarnation: Incarnation,
    /// Random, the same for all processes of one kernel boot (C5).
    pub boot: u128,
}

/// What [`NodeConfig::tables`] is where nobody says otherwise.
pub const TABLES: u64 = 24 << 20;

impl NodeConfig {
    /// Memory for the index of the log.
    pub fn index_limit(&self) -> u64 {
        self.tables / 4
    }

    /// Memory for the bits of one peer, and for a pass over what it lacks.
    pub fn bits_limit(&self) -> u64 {
        self.tables / 4 / (self.nodes.len() as u64 - 1).max(1)
    }

    /// Memory for what changed on this side since a fork.
    pub fn changed_limit(&self) -> u64 {
        self.tables / 8
    }

    /// Bytes of a block of undo: as small as lets the bits of all of them fit, and no longer than a record.
    pub fn undo_grain(&self) -> u64 {
        let sizes: Vec<u64> = self.volumes.iter().map(|v| v.size).collect();
        super::dirty::DirtySet::grain_within(&sizes, self.tables / 2).min(crate::format::batch::MAX_RECORD_BYTES)
    }

    /// What the files of all nodes should say alike, beside what must be equal for a session to come about at all.
    pub fn shared_settings(&self) -> Vec<(String, String)> {
        let resource = [
            ("resource.stall_ms", self.stall_ms.to_string()),
            ("resource.on_stall", if self.on_stall == OnStall::Suspend { "suspend" } else { "degrade" }.into()),
            ("resource.durable", if self.durable_write { "write" } else { "flush" }.into()),
            ("resource.heartbeat_ms", self.heartbeat_ms.to_string()),
            (WINDOW, self.window.to_string()),
        ];
        let modes = self.nodes.iter().map(|n| {
            let mode = if n.mode == Mode::Sync { "sync" } else { "async" };
            (format!("node.{}.mode", n.name), mode.to_string())
        });
        resource.into_iter().map(|(key, value)| (key.to_string(), value)).chain(modes).collect()
    }

    /// The name of a node.
    pub fn name(&self, node: NodeId) -> &str {
        &self.nodes[node.0 as usize].name
    }

    /// This node's name.
    pub fn my_name(&self) -> &str {
        self.name(self.me)
    }

    /// Everyone but this node.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> + use<> {
        let me = self.me;
        (0..self.nodes.len() as u8).map(NodeId).filter(move |n| *n != me)
    }

    /// The window of a peer. To one whose bandwidth is limited no more is under way than the limit lets pass in a second: what is
    /// beyond would only wait in memory for its turn (F1).
    pub fn window_of(&self, node: NodeId) -> u64 {
        match self.nodes[node.0 as usize].bandwidth {
            Some(bandwidth) => bandwidth.max(LEAST_WINDOW).min(self.window),
            None => self.window,
        }
    }

    /// The node of this name.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().position(|n| n.name == name).map(|i| NodeId(i as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::super::links::tests::config;
    use super::*;

    /// F1: what waits for its turn under a limit is memory that is held for a peer that lags.
    #[test]
    fn the_window_of_a_limited_peer_is_a_second_of_its_limit() {
        let mut config = config(0);
        config.window = 16 << 20;
        let window = |config: &mut NodeConfig, bandwidth| {
            config.nodes[1].bandwidth = bandwidth;
            config.window_of(NodeId(1))
        };
        assert_eq!(window(&mut config, None), 16 << 20);
        assert_eq!(window(&mut config, Some(2 << 20)), 2 << 20);
        assert_eq!(window(&mut config, Some(1 << 40)), 16 << 20);
        assert_eq!(window(&mut config, Some(128 << 10)), LEAST_WINDOW);
    }
}
