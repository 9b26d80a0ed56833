//! What the daemon's tests share.

use crate::config::Settings;
use crate::core::*;
use std::path::Path;
use tempfile::TempDir;

/// A folder on a disk.
pub fn disk_dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A folder in memory, where the machine has one.
pub fn memory_dir() -> Option<TempDir> {
    tempfile::tempdir_in("/dev/shm").ok()
}

/// A pair of nodes with two small volumes; everything of `me` lies in `dir`.
pub fn settings(dir: &Path, me: &str) -> Settings {
    let nodes: Vec<NodeSpec> =
        ["alpha", "beta"].iter().map(|n| NodeSpec { name: n.to_string(), mode: Mode::Sync }).collect();
    let me_id = NodeId(nodes.iter().position(|n| n.name == me).unwrap() as u8);
    let other = NodeId(1 - me_id.0);
    let volume = |name: &str, size| VolumeSpec { name: name.into(), size };
    let loopback = "127.0.0.1:0".parse().unwrap();
    Settings {
        node: NodeConfig {
            resource: "data".into(),
            nodes,
            me: me_id,
            volumes: vec![volume("disk0", 3 << 20), volume("disk1", 1 << 20)],
            block: 4096,
            log_size: 4 << 20,
            stall_ms: 2000,
            on_stall: OnStall::Degrade,
            durable_write: false,
            heartbeat_ms: 100,
            memory: 64 << 20,
            window: 16 << 20,
            flush_ms: 20,
            apply_ms: 100,
            incarnation: Incarnation(u128::from(me_id.0) + 1),
            boot: 1,
        },
        file: dir.join("data.toml"),
        dir: dir.to_owned(),
        log: dir.join("log"),
        stores: vec![dir.join("disk0"), dir.join("disk1")],
        listen: loopback,
        peers: vec![(other, loopback)],
        nbd: vec![],
        control: dir.join("control"),
    }
}
