//! Who keeps the charter: `keeper`, the witnesses, `takeover`, and the times that belong to it.

use super::address::{check_socket_path, peer_address};
use super::error::{ConfigError, Problem};
use super::parse::{Claims, flag, milliseconds, name_is_good};
use super::reader::Table;
use super::{Node, Resource};
use crate::core::{Mode, Takeover};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Most witnesses of a resource.
pub const WITNESSES_MAX: usize = 7;

const LEASE_MS: RangeInclusive<u64> = 100..=600_000;
const LEASE_MS_DEFAULT: u64 = 1000;
const ROUND_MS: RangeInclusive<u64> = 20..=60_000;
const ROUND_MS_DEFAULT: u64 = 500;

/// A lease must not run out because one heartbeat was late.
const HEARTBEATS_OF_A_LEASE: u64 = 3;

/// `keeper`: who holds the charter, and so who decides who is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Keeper {
    /// The active's own word: an operator promotes.
    Alone,
    /// A majority of the sync nodes and the witnesses.
    Voters,
}

/// `[witness.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    pub name: String,
    /// Where the nodes reach it.
    pub address: SocketAddr,
    /// Holds its votes.
    pub dir: PathBuf,
    /// Its control socket.
    pub control: PathBuf,
}

/// `keeper` and its times in `[resource]`, before it is known whether there are witnesses.
pub struct Asked {
    keeper: Option<Keeper>,
    pub lease_ms: u64,
    pub round_ms: u64,
}

impl Asked {
    /// Whether voters keep the charter, as far as can be told before the witnesses are read.
    pub fn votes(&self, root: &Table<'_>) -> bool {
        self.keeper(root.get("witness").is_some()) == Keeper::Voters
    }

    fn keeper(&self, witnesses: bool) -> Keeper {
        self.keeper.unwrap_or(if witnesses { Keeper::Voters } else { Keeper::Alone })
    }
}

/// Reads `keeper`, `lease_ms` and `round_ms`.
pub fn asked(table: &Table<'_>) -> Result<Asked, ConfigError> {
    let words = [Keeper::Alone, Keeper::Voters];
    Ok(Asked {
        keeper: table.get("keeper").map(|v| v.choice(&["alone", "voters"], &words)).transpose()?,
        lease_ms: milliseconds(table, "lease_ms", LEASE_MS, LEASE_MS_DEFAULT)?,
        round_ms: milliseconds(table, "round_ms", ROUND_MS, ROUND_MS_DEFAULT)?,
    })
}

/// Reads `takeover` of a node; none where it does not say.
pub fn takeover(table: &Table<'_>) -> Result<Option<Takeover>, ConfigError> {
    let words = [Takeover::Automatic, Takeover::Manual];
    table.get("takeover").map(|v| v.choice(&["automatic", "manual"], &words)).transpose()
}

/// Reads all `[witness.NAME]`, sorted by name.
pub fn witnesses(
    file: &Path,
    root: &Table<'_>,
    insecure: bool,
    claims: &mut Claims<'_>,
    nodes: &[Node],
) -> Result<Vec<Witness>, ConfigError> {
    let Some(value) = root.get("witness") else { return Ok(Vec::new()) };
    let table = value.table("[witness.w1]")?;
    let tables = table.tables("[witness.w1]")?;
    let found = tables.len();
    if found > WITNESSES_MAX {
        return Err(table.place().problem(file, Problem::TooMany { most: WITNESSES_MAX, found }));
    }
    let mut witnesses = Vec::new();
    for (name, table) in tables {
        if !name_is_good(&name) {
            return Err(table.place().problem(file, Problem::BadName));
        }
        if nodes.iter().any(|n| n.name == name) {
            return Err(table.place().problem(file, Problem::Duplicate { other: format!("node.{name}") }));
        }
        let witness = witness(name, &table, insecure)?;
        claims.add_witness(&witness, &table)?;
        witnesses.push(witness);
    }
    witnesses.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(witnesses)
}

fn witness(name: String, table: &Table<'_>, insecure: bool) -> Result<Witness, ConfigError> {
    table.only(&["address", "dir", "control", "insecure"])?;
    let insecure = insecure || flag(table, "insecure")?;
    let address = table.need("address", "address = \"IP:PORT\", where the nodes reach this witness")?;
    let address = peer_address(address.text("\"10.0.0.3:7800\"")?, insecure).map_err(|p| address.problem(p))?;
    let path = |key: &str, default: PathBuf| table.get(key).map_or(Ok(default), |v| v.path());
    let dir = path("dir", Path::new("/var/lib/understudy").join(&name))?;
    let control = path("control", dir.join("control.sock"))?;
    check_socket_path(&control).map_err(|p| table.problem_at("control", &control, p))?;
    Ok(Witness { name, address, dir, control })
}

/// What was asked for, checked against the nodes and witnesses that there are: the keeper. A node that does not say whether it takes over
/// by itself got its default before it was known whether there are voters.
pub fn settle(
    file: &Path,
    root: &Table<'_>,
    asked: &Asked,
    resource: &Resource,
    nodes: &[Node],
    witnesses: &[Witness],
) -> Result<Keeper, ConfigError> {
    let table = root.need("resource", "[resource]")?.table("[resource]")?;
    let keeper = asked.keeper(!witnesses.is_empty());
    let node_place = |name: &str| -> Result<super::reader::Place, ConfigError> {
        Ok(root.need("node", "")?.table("")?.need(name, "")?.table("")?.place_of("takeover"))
    };
    match keeper {
        Keeper::Alone => {
            if let (Some(first), Some(place)) = (witnesses.first(), table.get("keeper")) {
                return Err(place.problem(Problem::AloneWithWitness { witness: first.name.clone() }));
            }
            if let Some(value) = ["lease_ms", "round_ms"].iter().find_map(|f| table.get(f)) {
                return Err(value.problem(Problem::NeedsVoters));
            }
            if let Some(node) = nodes.iter().find(|n| n.takeover == Takeover::Automatic) {
                return Err(node_place(&node.name)?.problem(file, Problem::NeedsVoters));
            }
        }
        Keeper::Voters => {
            let voters: Vec<String> = voters(nodes, witnesses).map(str::to_owned).collect();
            if voters.len() < 3 || voters.len().is_multiple_of(2) {
                let place = if witnesses.is_empty() { table.place_of("keeper") } else { root.place_of("witness") };
                return Err(place.problem(file, Problem::VotersNotOdd { voters }));
            }
            if asked.lease_ms < resource.heartbeat_ms * HEARTBEATS_OF_A_LEASE {
                let problem = Problem::LeaseTooShort {
                    lease_ms: asked.lease_ms,
                    least: resource.heartbeat_ms * HEARTBEATS_OF_A_LEASE,
                    heartbeat_ms: resource.heartbeat_ms,
                };
                return Err(table.place_of("lease_ms").problem(file, problem));
            }
            let loses = |n: &&Node| n.mode == Mode::Async && n.takeover == Takeover::Automatic;
            if let Some(node) = nodes.iter().find(loses) {
                return Err(node_place(&node.name)?.problem(file, Problem::AsyncTakeover));
            }
        }
    }
    Ok(keeper)
}

/// Who votes: the sync nodes, and the witnesses.
pub fn voters<'a>(nodes: &'a [Node], witnesses: &'a [Witness]) -> impl Iterator<Item = &'a str> {
    let nodes = nodes.iter().filter(|n| n.mode == Mode::Sync).map(|n| n.name.as_str());
    nodes.chain(witnesses.iter().map(|w| w.name.as_str()))
}
