//! One node's view of the file: what a daemon needs to start.

use super::address::NbdListen;
use super::error::ConfigError;
use super::suggest::nearest;
use super::{Config, DeviceKind, Handoff, Node, StoreIo};
use crate::core::config::TABLES;
use crate::core::{Incarnation, Keeper, NodeConfig, NodeId, NodeSpec, Takeover, VolumeSpec};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A peer, as this node reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    pub node: NodeId,
    pub address: SocketAddr,
    /// What is sent to it is packed.
    pub compress: bool,
}

/// Everything that the daemon of one node takes from the file and from the system.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the core is told.
    pub node: NodeConfig,
    /// The file, for messages.
    pub file: PathBuf,
    /// Holds what has no path of its own: bitmaps, history, salvage.
    pub dir: PathBuf,
    /// File or block device.
    pub log: PathBuf,
    /// File or block device of each volume; a [`crate::core::VolumeId`] is an index into this.
    pub stores: Vec<PathBuf>,
    pub store_io: StoreIo,
    /// Where this node's peers dial it.
    pub listen: SocketAddr,
    /// Everyone but this node.
    pub peers: Vec<PeerSettings>,
    pub nbd: Vec<NbdListen>,
    /// The control socket.
    pub control: PathBuf,
    /// One per volume.
    pub devices: Vec<DeviceKind>,
    /// How long a device waits for a daemon that is gone.
    pub device_wait_ms: u64,
    pub handoff: Option<Handoff>,
}

impl Settings {
    /// The settings of the node called `name`; without a name, of the node that is called like this host. The incarnation is
    /// drawn anew at each call.
    pub fn new(config: &Config, name: Option<&str>) -> Result<Settings, ConfigError> {
        let me = config.find_node(name)?;
        let node = &config.nodes[me];
        let id = |index: usize| NodeId(index as u8);
        let others = config.nodes.iter().enumerate().filter(|(i, _)| *i != me);
        Ok(Settings {
            node: core_config(config, id(me), node)?,
            file: config.file.clone(),
            dir: node.dir.clone(),
            log: node.log.clone(),
            stores: node.stores.clone(),
            store_io: node.store_io,
            listen: node.address,
            peers: others
                .map(|(i, n)| PeerSettings { node: id(i), address: n.address, compress: n.compress })
                .collect(),
            nbd: node.nbd.clone(),
            control: node.control.clone(),
            devices: node.devices.clone(),
            device_wait_ms: config.resource.device_wait_ms,
            handoff: config.handoff.clone(),
        })
    }
}

impl Config {
    /// Index of the node called `name`; without a name, of the node that is called like this host.
    pub fn find_node(&self, name: Option<&str>) -> Result<usize, ConfigError> {
        let known = || self.nodes.iter().map(|n| n.name.clone()).collect::<Vec<_>>();
        let position = |name: &str| self.nodes.iter().position(|n| n.name == name);
        if let Some(name) = name {
            let no_such = || ConfigError::NoSuchNode {
                file: self.file.clone(),
                name: name.to_owned(),
                known: known(),
                suggestion: nearest(name, self.nodes.iter().map(|n| n.name.as_str())),
            };
            return position(name).ok_or_else(no_such);
        }
        let host = host_name()?;
        let short = host.split('.').next().unwrap_or_default().to_lowercase();
        let no_node = || ConfigError::HostIsNoNode { file: self.file.clone(), host: host.clone(), known: known() };
        position(&short).ok_or_else(no_node)
    }
}

fn spec(node: &Node) -> NodeSpec {
    NodeSpec { name: node.name.clone(), mode: node.mode, bandwidth: node.bandwidth, takeover: Takeover::of(node.mode) }
}

fn core_config(config: &Config, me: NodeId, node: &Node) -> Result<NodeConfig, ConfigError> {
    let resource = &config.resource;
    Ok(NodeConfig {
        resource: resource.name.clone(),
        nodes: config.nodes.iter().map(spec).collect(),
        me,
        volumes: config.volumes.iter().map(|v| VolumeSpec { name: v.name.clone(), size: v.size }).collect(),
        block: resource.block_size,
        log_size: node.log_size,
        keeper: Keeper::Alone,
        stall_ms: resource.stall_ms,
        on_stall: resource.on_stall,
        durable_write: resource.durable_write,
        heartbeat_ms: resource.heartbeat_ms,
        memory: resource.memory,
        window: resource.window,
        tables: TABLES,
        history_size: node.history_size,
        allow_invalid: resource.allow_invalid,
        flush_ms: resource.flush_ms,
        apply_ms: resource.apply_ms,
        incarnation: Incarnation(random()?),
        boot: boot_id()?,
    })
}

/// This host's name, as the kernel has it.
pub fn host_name() -> Result<String, ConfigError> {
    let name = nix::unistd::gethostname()
        .map_err(|e| ConfigError::System { what: "read this host's name", source: e.into() })?;
    Ok(name.to_string_lossy().into_owned())
}

fn random() -> Result<u128, ConfigError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| ConfigError::System { what: "draw a random number", source: io::Error::other(e.to_string()) })?;
    Ok(u128::from_le_bytes(bytes))
}

/// The kernel's random id of this boot.
fn boot_id() -> Result<u128, ConfigError> {
    let what = "read /proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|source| ConfigError::System { what, source })?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map_err(|e| ConfigError::System { what, source: io::Error::new(io::ErrorKind::InvalidData, e) })
}
