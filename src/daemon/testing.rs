//! What the daemon's tests share.

use crate::config::{PeerSettings, Settings};
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
    let nodes: Vec<NodeSpec> = ["alpha", "beta"]
        .iter()
        .map(|n| NodeSpec { name: n.to_string(), mode: Mode::Sync, bandwidth: None, takeover: Takeover::Automatic })
        .collect();
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
            keeper: Keeper::Alone,
            stall_ms: 2000,
            on_stall: OnStall::Degrade,
            durable_write: false,
            heartbeat_ms: 100,
            memory: 64 << 20,
            window: 16 << 20,
            tables: crate::core::config::TABLES,
            history_size: u64::MAX,
            allow_invalid: false,
            flush_ms: 20,
            apply_ms: 100,
            incarnation: Incarnation(u128::from(me_id.0) + 1),
            boot: 1,
        },
        file: dir.join("data.toml"),
        dir: dir.to_owned(),
        log: dir.join("log"),
        stores: vec![dir.join("disk0"), dir.join("disk1")],
        store_io: crate::config::StoreIo::Direct,
        listen: loopback,
        peers: vec![PeerSettings { node: other, address: loopback, compress: false }],
        nbd: vec![],
        control: dir.join("control"),
        devices: vec![crate::config::DeviceKind::None; 2],
        device_wait_ms: 10_000,
        handoff: None,
    }
}

use super::hub::{Hub, Tag};
use super::journal::Journal;
use super::ring::{Completion, Ring};
use std::collections::VecDeque;
use std::io::{Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A hub whose clock stands still unless it is moved.
pub fn hub() -> Hub {
    let journal = Journal::to(std::io::sink());
    Hub { ring: Ring::new().unwrap(), events: VecDeque::new(), journal, now: Time(1_000_000) }
}

/// Waits a little for completions.
pub fn completions(hub: &mut Hub) -> Vec<Completion<Tag>> {
    let mut out = Vec::new();
    hub.ring.wait(Some(Duration::from_millis(5))).unwrap();
    hub.ring.completions(&mut out);
    out
}

/// Repeats `step` until `done` is true of what it works on.
pub fn until<T>(what: &str, on: &mut T, mut step: impl FnMut(&mut T), mut done: impl FnMut(&mut T) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done(on) {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        step(on);
    }
}

/// A plain NBD client: simple replies, one request after the other unless the pieces are used by themselves.
pub struct NbdClient {
    pub stream: UnixStream,
    cookie: u64,
}

impl NbdClient {
    /// Connects and chooses an export.
    pub fn connect(path: &Path, export: &str) -> Result<NbdClient> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut client = NbdClient { stream, cookie: 0 };
        let mut greeting = [0; 18];
        client.stream.read_exact(&mut greeting)?;
        client.stream.write_all(&3u32.to_be_bytes())?;
        client.stream.write_all(b"IHAVEOPT\0\0\0\x01")?;
        client.stream.write_all(&(export.len() as u32).to_be_bytes())?;
        client.stream.write_all(export.as_bytes())?;
        let mut answer = [0; 10];
        client.stream.read_exact(&mut answer)?;
        Ok(client)
    }

    /// The bytes of a request; a write's payload follows them.
    pub fn request(cookie: u64, command: u16, offset: u64, length: u32) -> Vec<u8> {
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&0u16.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes
    }

    /// The cookie and error of the next simple reply.
    pub fn reply(&mut self) -> Result<(u64, u32)> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        assert_eq!(head[..4], 0x6744_6698u32.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        Ok((u64::from_be_bytes(head[8..].try_into().unwrap()), error))
    }

    fn exchange(&mut self, command: u16, offset: u64, length: u32, payload: &[u8]) -> Result<()> {
        self.cookie += 1;
        self.stream.write_all(&NbdClient::request(self.cookie, command, offset, length))?;
        self.stream.write_all(payload)?;
        let (cookie, error) = self.reply()?;
        assert_eq!(cookie, self.cookie);
        if error == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(error as i32)) }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.exchange(1, offset, bytes.len() as u32, bytes)
    }

    pub fn flush(&mut self) -> Result<()> {
        self.exchange(3, 0, 0, &[])
    }

    pub fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.exchange(0, offset, length as u32, &[])?;
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
