//! The user's file: one per resource, the same on every node.
//!
//! [`load`] reads and validates it into a [`Config`]; [`Settings::new`] takes one node's view of that, which is all the
//! daemon needs to start. Whatever is wrong is refused with the line, the field, the value and the remedy, and
//! nothing is ever guessed: an unknown field is an error.

mod address;
mod error;
mod handoff;
mod keeper;
mod parse;
mod reader;
mod settings;
mod size;
mod suggest;

#[cfg(test)]
mod tests;

use crate::core::{Mode, OnStall, Takeover};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use address::NbdListen;
pub use error::{ConfigError, Problem};
pub use handoff::{Address, Handoff, Mount, Service};
pub use keeper::{Keeper, Witness};
pub use parse::{name_is_good, parse};
pub use settings::{PeerSettings, Settings, VoterSettings, host_name};
pub use size::{SizeError, parse_size, show_size};

/// Where a bare name is looked for, as `NAME.toml`.
pub const DEFAULT_FOLDER: &str = "/etc/understudy";

/// A validated file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it was read from, for messages.
    pub file: PathBuf,
    pub resource: Resource,
    /// In the order of the file; at least one.
    pub volumes: Vec<Volume>,
    /// Sorted by name; 1 to 16.
    pub nodes: Vec<Node>,
    /// What an active node does above its device.
    pub handoff: Option<Handoff>,
    /// Who keeps the charter.
    pub keeper: Keeper,
    /// Sorted by name.
    pub witnesses: Vec<Witness>,
}

impl Config {
    /// Who votes, where the voters keep the charter: the sync nodes, and the witnesses.
    pub fn voters(&self) -> Vec<&str> {
        match self.keeper {
            Keeper::Alone => Vec::new(),
            Keeper::Voters => keeper::voters(&self.nodes, &self.witnesses).collect(),
        }
    }
}

/// `[resource]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub name: String,
    pub stall_ms: u64,
    pub on_stall: OnStall,
    /// `durable = "write"`: every write is durable before it completes.
    pub durable_write: bool,
    /// Logical block size in bytes: 512 or 4096.
    pub block_size: u32,
    /// Bytes of payloads that are not yet applied.
    pub memory: u64,
    /// Bytes sent to one peer and not yet confirmed.
    pub window: u64,
    /// Without room for a history a resync may overwrite a replica in place.
    pub allow_invalid: bool,
    pub heartbeat_ms: u64,
    pub flush_ms: u64,
    pub apply_ms: u64,
    /// With voters: a passive that has heard nothing for so long takes over.
    pub lease_ms: u64,
    /// With voters: a replacement of the charter is given so long.
    pub round_ms: u64,
    /// How long a device waits for a daemon that is gone, in milliseconds.
    pub device_wait_ms: u64,
}

/// What kind of block device a volume has on the active node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// None: clients use NBD.
    None,
    /// The best that the kernel offers.
    Auto,
    Ublk,
    Nbd,
    /// FUSE and a loop device.
    Fuse,
}

/// `store_io`: how the stores are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreIo {
    /// Past the page cache, where the file system can.
    Direct,
    /// Through the page cache.
    Buffered,
}

/// `[volume.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    /// Bytes; a multiple of 4096.
    pub size: u64,
    pub device: DeviceKind,
}

/// `[node.NAME]`, with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub mode: Mode,
    /// Where peers reach it.
    pub address: SocketAddr,
    pub dir: PathBuf,
    pub log: PathBuf,
    /// Bytes; a multiple of 4096.
    pub log_size: u64,
    /// Bytes that the history of a resync may take.
    pub history_size: u64,
    /// One per volume, in the order of [`Config::volumes`].
    pub stores: Vec<PathBuf>,
    pub nbd: Vec<NbdListen>,
    /// The control socket.
    pub control: PathBuf,
    /// What is sent to it is packed.
    pub compress: bool,
    /// Bytes a second that are sent to it at most.
    pub bandwidth: Option<u64>,
    pub store_io: StoreIo,
    /// One per volume, in the order of [`Config::volumes`].
    pub devices: Vec<DeviceKind>,
    /// Whether it becomes active by itself.
    pub takeover: Takeover,
}

/// The file that an argument of the command line means: itself, or for a bare name (no slash, no `.toml`)
/// `/etc/understudy/NAME.toml`.
pub fn locate(argument: &Path) -> PathBuf {
    let bare = argument.components().count() == 1
        && argument.extension().is_none_or(|e| e != "toml")
        && !argument.as_os_str().as_encoded_bytes().contains(&b'/');
    if !bare {
        return argument.to_owned();
    }
    let mut name = argument.as_os_str().to_owned();
    name.push(".toml");
    Path::new(DEFAULT_FOLDER).join(name)
}

/// Reads and validates the file that `argument` means (see [`locate`]).
pub fn load(argument: &Path) -> Result<Config, ConfigError> {
    let file = locate(argument);
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(source) => return Err(ConfigError::Unreadable { argument: argument.to_owned(), file, source }),
    };
    parse(&file, &text)
}
