//! From the text of a file to a [`Config`].

use super::address::{NbdListen, check_socket_path, nbd_listen, peer_address, same_machine};
use super::error::{ConfigError, Problem};
use super::handoff::handoff;
use super::keeper::{self, asked, settle, takeover, witnesses};
use super::reader::{Place, Source, Table, Value};
use super::size::show_size;
use super::{Config, DeviceKind, Node, Resource, StoreIo, Volume, Witness};
use crate::core::{Mode, OnStall, Takeover};
use crate::device::{NAME_MAX, device_name};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// Most nodes in a resource.
pub const NODES_MAX: usize = 16;
/// Most volumes in a resource.
pub const VOLUMES_MAX: usize = 64;
/// Most NBD listeners of a node.
const LISTENERS_MAX: usize = 16;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const VOLUME_SIZE: RangeInclusive<u64> = 4 * KIB..=1024 * TIB;
const LOG_SIZE: RangeInclusive<u64> = 16 * MIB..=16 * TIB;
const LOG_SIZE_DEFAULT: u64 = 256 * MIB;
/// Less has no room for the notes of a gap.
const HISTORY_SIZE: RangeInclusive<u64> = MIB..=1024 * TIB;
/// As much as there is room for.
const HISTORY_SIZE_DEFAULT: u64 = 1024 * TIB;
/// A request of an NBD client can hold 32 MiB by itself, and there must be room for the next.
const MEMORY: RangeInclusive<u64> = 64 * MIB..=64 * GIB;
const MEMORY_DEFAULT: u64 = 128 * MIB;
const WINDOW: RangeInclusive<u64> = MIB..=16 * GIB;
/// Ten milliseconds of a 25 Gbit/s link, or a quarter of a second of a gigabit one.
const WINDOW_DEFAULT: u64 = 32 * MIB;

/// Below this a heartbeat behind one record would be late.
const BANDWIDTH: RangeInclusive<u64> = 128 * KIB..=TIB;

const STALL_MS: RangeInclusive<u64> = 10..=3_600_000;
const HEARTBEAT_MS: RangeInclusive<u64> = 10..=60_000;
const FLUSH_MS: RangeInclusive<u64> = 1..=60_000;
const APPLY_MS: RangeInclusive<u64> = 1..=600_000;
const DEVICE_WAIT_MS: RangeInclusive<u64> = 1000..=86_400_000;
const DEVICE_WAIT_MS_DEFAULT: u64 = 600_000;

const TOP_FIELDS: [&str; 5] = ["resource", "volume", "node", "witness", "handoff"];
const RESOURCE_FIELDS: [&str; 20] = [
    "name",
    "mode",
    "stall_ms",
    "on_stall",
    "durable",
    "block_size",
    "memory",
    "window",
    "heartbeat_ms",
    "flush_ms",
    "apply_ms",
    "allow_invalid",
    "insecure",
    "compress",
    "store_io",
    "bandwidth",
    "device_wait_ms",
    "keeper",
    "lease_ms",
    "round_ms",
];
const NODE_FIELDS: [&str; 15] = [
    "mode",
    "address",
    "dir",
    "log",
    "log_size",
    "history_size",
    "store",
    "nbd",
    "control",
    "insecure",
    "compress",
    "store_io",
    "bandwidth",
    "device",
    "takeover",
];

/// Validates the text of a file. `file` is only for messages; nothing is read.
pub fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
    let source = Source { file, text };
    let syntax = |e: toml::de::Error| {
        let line = source.line(e.span().map_or(0, |s| s.start));
        ConfigError::Syntax { file: file.to_owned(), line, detail: Box::new(e) }
    };
    let document = DeTable::parse(text).map_err(syntax)?;
    let root = source.root(document.get_ref());
    root.only(&TOP_FIELDS)?;
    let resource_table = root.need("resource", "[resource] with a name")?.table("[resource]")?;
    let asked = asked(&resource_table)?;
    let resource = resource(file, &resource_table, &asked)?;
    let volumes = volumes(file, &root)?;
    let defaults = NodeDefaults {
        mode: mode(&resource_table)?.unwrap_or(Mode::Sync),
        insecure: flag(&resource_table, "insecure")?,
        compress: compress(&resource_table)?.unwrap_or(false),
        bandwidth: bandwidth(&resource_table)?.unwrap_or(None),
        store_io: store_io(&resource_table)?.unwrap_or(StoreIo::Direct),
        volumes: &volumes,
        voters: asked.votes(&root),
    };
    let mut claims = Claims { file, made: Vec::new() };
    let nodes = nodes(file, &root, &defaults, &mut claims)?;
    check_device_names(file, &root, &resource.name, &nodes)?;
    let witnesses = witnesses(file, &root, defaults.insecure, &mut claims, &nodes)?;
    let keeper = settle(file, &root, &asked, &resource, &nodes, &witnesses)?;
    let handoff = handoff(file, &root, &volumes, &nodes)?;
    Ok(Config { file: file.to_owned(), resource, volumes, nodes, handoff, keeper, witnesses })
}

pub fn name_is_good(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

pub fn flag(table: &Table<'_>, key: &str) -> Result<bool, ConfigError> {
    table.get(key).map_or(Ok(false), |v| v.flag())
}

fn mode(table: &Table<'_>) -> Result<Option<Mode>, ConfigError> {
    table.get("mode").map(|v| v.choice(&["sync", "async"], &[Mode::Sync, Mode::Async])).transpose()
}

fn compress(table: &Table<'_>) -> Result<Option<bool>, ConfigError> {
    table.get("compress").map(|v| v.choice(&["lz4", "none"], &[true, false])).transpose()
}

fn store_io(table: &Table<'_>) -> Result<Option<StoreIo>, ConfigError> {
    let choices = [StoreIo::Direct, StoreIo::Buffered];
    table.get("store_io").map(|v| v.choice(&["direct", "buffered"], &choices)).transpose()
}

fn device(table: &Table<'_>) -> Result<Option<DeviceKind>, ConfigError> {
    use DeviceKind::*;
    let kind = |v: super::reader::Value<'_>| {
        v.choice(&["auto", "ublk", "nbd", "fuse", "none"], &[Auto, Ublk, Nbd, Fuse, None])
    };
    table.get("device").map(kind).transpose()
}

/// `"none"` lifts what the resource says.
fn bandwidth(table: &Table<'_>) -> Result<Option<Option<u64>>, ConfigError> {
    table.get("bandwidth").map(|v| v.rate(BANDWIDTH)).transpose()
}

pub fn milliseconds(
    table: &Table<'_>,
    key: &str,
    range: RangeInclusive<u64>,
    default: u64,
) -> Result<u64, ConfigError> {
    table.get(key).map_or(Ok(default), |v| v.milliseconds(range))
}

fn size(table: &Table<'_>, key: &str, range: RangeInclusive<u64>, default: u64) -> Result<u64, ConfigError> {
    table.get(key).map_or(Ok(default), |v| v.size(range))
}

fn resource(file: &Path, table: &Table<'_>, asked: &keeper::Asked) -> Result<Resource, ConfigError> {
    table.only(&RESOURCE_FIELDS)?;
    let name = table.need("name", "name = \"data\"")?;
    if !name_is_good(name.text("\"data\"")?) {
        return Err(name.problem(Problem::BadName));
    }
    let on_stall = table
        .get("on_stall")
        .map_or(Ok(OnStall::Degrade), |v| v.choice(&["degrade", "suspend"], &[OnStall::Degrade, OnStall::Suspend]))?;
    let durable_write = table.get("durable").map_or(Ok(false), |v| v.choice(&["flush", "write"], &[false, true]))?;
    let memory = size(table, "memory", MEMORY, MEMORY_DEFAULT)?;
    let window = size(table, "window", WINDOW, WINDOW_DEFAULT)?;
    if window > memory {
        let problem = Problem::WindowOverMemory { memory: show_size(memory) };
        return Err(table.place_of("window").problem(file, problem));
    }
    Ok(Resource {
        name: name.text("\"data\"")?.to_owned(),
        stall_ms: milliseconds(table, "stall_ms", STALL_MS, 2000)?,
        on_stall,
        durable_write,
        block_size: table.get("block_size").map_or(Ok(4096), |v| block_size(&v))?,
        memory,
        window,
        allow_invalid: flag(table, "allow_invalid")?,
        heartbeat_ms: milliseconds(table, "heartbeat_ms", HEARTBEAT_MS, 200)?,
        flush_ms: milliseconds(table, "flush_ms", FLUSH_MS, 100)?,
        apply_ms: milliseconds(table, "apply_ms", APPLY_MS, 1000)?,
        lease_ms: asked.lease_ms,
        round_ms: asked.round_ms,
        device_wait_ms: milliseconds(table, "device_wait_ms", DEVICE_WAIT_MS, DEVICE_WAIT_MS_DEFAULT)?,
    })
}

fn block_size(value: &Value<'_>) -> Result<u32, ConfigError> {
    match value.integer_in(&[512, 4096]) {
        Some(512) => Ok(512),
        Some(_) => Ok(4096),
        None => Err(value.problem(Problem::BadBlockSize)),
    }
}

fn volumes(file: &Path, root: &Table<'_>) -> Result<Vec<Volume>, ConfigError> {
    let example = "[volume.disk0]\nsize = \"1GiB\"";
    let table = root.need("volume", "[volume.disk0] with size = \"1GiB\"")?.table(example)?;
    let mut volumes = Vec::new();
    for (name, volume) in table.tables(example)? {
        if !name_is_good(&name) {
            return Err(volume.place().problem(file, Problem::BadName));
        }
        volume.only(&["size", "device"])?;
        let size = volume.need("size", "size = \"1GiB\"")?.size(VOLUME_SIZE)?;
        volumes.push(Volume { name, size, device: device(&volume)?.unwrap_or(DeviceKind::None) });
    }
    check_count(file, &table, volumes.len(), VOLUMES_MAX, "[volume.disk0] with size = \"1GiB\"")?;
    Ok(volumes)
}

/// A device has a socket that is called like it.
fn check_device_names(file: &Path, root: &Table<'_>, resource: &str, nodes: &[Node]) -> Result<(), ConfigError> {
    let Some(table) = root.get("volume") else { return Ok(()) };
    let tables = table.table("[volume.disk0]")?.tables("[volume.disk0]")?;
    let has_device = |index: usize| nodes.iter().any(|n| n.devices[index] != DeviceKind::None);
    for (_, (volume, table)) in tables.iter().enumerate().filter(|(index, _)| has_device(*index)) {
        let device = device_name(resource, volume);
        if device.len() > NAME_MAX {
            return Err(table.place().problem(file, Problem::DeviceNameTooLong { device, most: NAME_MAX }));
        }
    }
    Ok(())
}

fn check_count(file: &Path, table: &Table<'_>, found: usize, most: usize, example: &str) -> Result<(), ConfigError> {
    if found == 0 {
        return Err(table.place().problem(file, Problem::Missing { example: example.to_owned() }));
    }
    if found > most {
        return Err(table.place().problem(file, Problem::TooMany { most, found }));
    }
    Ok(())
}

/// What a node inherits.
struct NodeDefaults<'a> {
    mode: Mode,
    insecure: bool,
    compress: bool,
    bandwidth: Option<u64>,
    store_io: StoreIo,
    volumes: &'a [Volume],
    /// There are voters.
    voters: bool,
}

impl NodeDefaults<'_> {
    /// Without voters nobody takes over by itself.
    fn takeover(&self, mode: Mode) -> Takeover {
        if self.voters { Takeover::of(mode) } else { Takeover::Manual }
    }
}

fn nodes(
    file: &Path,
    root: &Table<'_>,
    defaults: &NodeDefaults<'_>,
    claims: &mut Claims<'_>,
) -> Result<Vec<Node>, ConfigError> {
    let example = "[node.alpha] with address and dir";
    let table = root.need("node", example)?.table("[node.alpha]")?;
    let tables = table.tables("[node.alpha]")?;
    check_count(file, &table, tables.len(), NODES_MAX, example)?;
    let mut nodes = Vec::new();
    for (name, table) in tables {
        if !name_is_good(&name) {
            return Err(table.place().problem(file, Problem::BadName));
        }
        let node = node(name, &table, defaults)?;
        claims.add_node(&node, &table, defaults.volumes)?;
        nodes.push(node);
    }
    claims.check_own_names()?;
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(nodes)
}

fn node(name: String, table: &Table<'_>, defaults: &NodeDefaults<'_>) -> Result<Node, ConfigError> {
    table.only(&NODE_FIELDS)?;
    let insecure = defaults.insecure || flag(table, "insecure")?;
    let address = table.need("address", "address = \"IP:PORT\", where its peers reach this node")?;
    let address = peer_address(address.text("\"10.0.0.1:7801\"")?, insecure).map_err(|p| address.problem(p))?;
    let dir = table.need("dir", "dir = \"/var/lib/understudy/NODE\", where this node keeps its files")?.path()?;
    let path = |key: &str, default: &str| table.get(key).map_or_else(|| Ok(dir.join(default)), |v| v.path());
    let log = path("log", "log")?;
    let control = path("control", "control.sock")?;
    check_socket_path(&control).map_err(|p| table.problem_at("control", &control, p))?;
    let mode = mode(table)?.unwrap_or(defaults.mode);
    Ok(Node {
        mode,
        log_size: size(table, "log_size", LOG_SIZE, LOG_SIZE_DEFAULT)?,
        history_size: size(table, "history_size", HISTORY_SIZE, HISTORY_SIZE_DEFAULT)?,
        stores: stores(table, &dir, defaults.volumes)?,
        nbd: listeners(table, &dir, insecure)?,
        compress: compress(table)?.unwrap_or(defaults.compress),
        bandwidth: bandwidth(table)?.unwrap_or(defaults.bandwidth),
        store_io: store_io(table)?.unwrap_or(defaults.store_io),
        devices: {
            let here = device(table)?;
            defaults.volumes.iter().map(|v| here.unwrap_or(v.device)).collect()
        },
        takeover: takeover(table)?.unwrap_or(defaults.takeover(mode)),
        name,
        address,
        log,
        control,
        dir,
    })
}

fn stores(table: &Table<'_>, dir: &Path, volumes: &[Volume]) -> Result<Vec<PathBuf>, ConfigError> {
    let given = table.get("store").map(|v| v.table("store.disk0 = \"/dev/vg0/data\"")).transpose()?;
    if let Some(given) = &given {
        given.only(&volumes.iter().map(|v| v.name.as_str()).collect::<Vec<_>>())?;
    }
    let path = |volume: &Volume| match given.as_ref().and_then(|g| g.get(&volume.name)) {
        Some(value) => value.path(),
        None => Ok(dir.join(format!("store-{}", volume.name))),
    };
    volumes.iter().map(path).collect()
}

fn listeners(table: &Table<'_>, dir: &Path, insecure: bool) -> Result<Vec<NbdListen>, ConfigError> {
    let Some(value) = table.get("nbd") else {
        let path = dir.join("nbd.sock");
        check_socket_path(&path).map_err(|p| table.problem_at("nbd", &path, p))?;
        return Ok(vec![NbdListen::Unix(path)]);
    };
    let example = "[\"unix:/run/understudy/data.sock\"]";
    let items = value.list(example)?;
    if items.len() > LISTENERS_MAX {
        return Err(value.problem(Problem::TooMany { most: LISTENERS_MAX, found: items.len() }));
    }
    let listener = |item: &Value<'_>| {
        let text = item.text("\"unix:/run/understudy/data.sock\"")?;
        nbd_listen(text, insecure).map_err(|p| item.problem(p))
    };
    items.iter().map(listener).collect()
}

/// Paths and addresses that are taken, to refuse what two would fight over.
pub struct Claims<'a> {
    file: &'a Path,
    made: Vec<Claim>,
}

/// A node's daemon keeps files of these names in its folder, and what begins with one of them and a dot.
const OWN_NAMES: [&str; 6] = ["bitmap", "handoff", "history", "salvage", "stores", "tenure"];

struct Claim {
    node: usize,
    machine: std::net::SocketAddr,
    /// A path, or `tcp:IP:PORT`; as components, so that `/a//b/` is `/a/b`.
    thing: PathBuf,
    is_dir: bool,
    place: Place,
}

impl Claims<'_> {
    fn add_node(&mut self, node: &Node, table: &Table<'_>, volumes: &[Volume]) -> Result<(), ConfigError> {
        let tcp = |address| PathBuf::from(format!("tcp:{address}"));
        let mut things = vec![
            ("address".to_owned(), tcp(node.address)),
            ("dir".to_owned(), node.dir.clone()),
            ("log".to_owned(), node.log.clone()),
            ("control".to_owned(), node.control.clone()),
        ];
        for (volume, path) in volumes.iter().zip(&node.stores) {
            things.push((format!("store.{}", volume.name), path.clone()));
        }
        for listen in &node.nbd {
            let thing = match listen {
                NbdListen::Unix(path) => path.clone(),
                NbdListen::Tcp(address) => tcp(*address),
            };
            things.push(("nbd".to_owned(), thing));
        }
        self.add_all(node.address, things, table)
    }

    pub fn add_witness(&mut self, witness: &Witness, table: &Table<'_>) -> Result<(), ConfigError> {
        let things = vec![
            ("address".to_owned(), PathBuf::from(format!("tcp:{}", witness.address))),
            ("dir".to_owned(), witness.dir.clone()),
            ("control".to_owned(), witness.control.clone()),
        ];
        self.add_all(witness.address, things, table)
    }

    fn add_all(
        &mut self,
        machine: std::net::SocketAddr,
        things: Vec<(String, PathBuf)>,
        table: &Table<'_>,
    ) -> Result<(), ConfigError> {
        let node = self.made.last().map_or(0, |c| c.node + 1);
        for (key, thing) in things {
            let place = table.place_at(&key, &thing);
            let thing = thing.components().collect();
            self.add(Claim { node, machine, thing, is_dir: key == "dir", place })?;
        }
        Ok(())
    }

    /// The folder belongs to one node wherever it runs, since the file could be read on one machine for both; other
    /// paths may well be the same on two machines.
    fn add(&mut self, claim: Claim) -> Result<(), ConfigError> {
        let clash = self.made.iter().find(|c| {
            let together = c.node == claim.node || same_machine(c.machine, claim.machine) || (c.is_dir && claim.is_dir);
            c.thing == claim.thing && together
        });
        if let Some(other) = clash {
            return Err(claim.place.problem(self.file, Problem::Duplicate { other: other.place.field.clone() }));
        }
        self.made.push(claim);
        Ok(())
    }

    /// What the daemon gives names to by itself is written over, or written over what it holds.
    fn check_own_names(&self) -> Result<(), ConfigError> {
        for claim in &self.made {
            let dir = self.made.iter().find(|c| {
                let near = c.node == claim.node || same_machine(c.machine, claim.machine);
                c.is_dir && near && claim.thing.parent() == Some(&c.thing)
            });
            let name = claim.thing.file_name().and_then(|n| n.to_str()).filter(|_| dir.is_some());
            if name.is_some_and(|n| OWN_NAMES.contains(&n.split('.').next().unwrap_or(n))) {
                let dir = dir.map(|d| d.place.field.clone()).unwrap_or_default();
                return Err(claim.place.problem(self.file, Problem::DaemonsOwn { dir }));
            }
        }
        Ok(())
    }
}
