//! What can be wrong with a file, in words for the one who wrote it.

use super::size::SizeError;
use std::path::{Path, PathBuf};

/// Why a file, or a node of it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}: {source}{}", file.display(), looked(argument, file))]
    Unreadable { argument: PathBuf, file: PathBuf, source: std::io::Error },
    /// It is not TOML.
    #[error("{}:{line}: this is not valid TOML: {}", file.display(), detail.message().replace('\n', " "))]
    Syntax { file: PathBuf, line: usize, detail: Box<toml::de::Error> },
    /// A field is wrong.
    #[error("{}:{line}: {field}{}: {problem}", file.display(), shown(value))]
    Field {
        file: PathBuf,
        line: usize,
        /// Dotted, as `node.alpha.address`.
        field: String,
        /// As the file has it; none where a field is missing, or is a table.
        value: Option<String>,
        problem: Box<Problem>,
    },
    /// `--node` names none of the file's nodes.
    #[error("{} has no node called {name:?}; its nodes are {}{}", file.display(), known.join(", "), mean(suggestion))]
    NoSuchNode { file: PathBuf, name: String, known: Vec<String>, suggestion: Option<String> },
    /// No `--node`, and the host is none of the file's nodes.
    #[error(
        "this host is called {host:?}, and {} has no node of that name: say which node this is with --node ({})",
        file.display(), known.join(", "))]
    HostIsNoNode { file: PathBuf, host: String, known: Vec<String> },
    /// The system did not say what a daemon needs from it.
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: std::io::Error },
}

fn looked(argument: &Path, file: &Path) -> String {
    if argument == file {
        return String::new();
    }
    format!(
        " (a bare name means a file in {}; for one in this folder write ./{})",
        super::DEFAULT_FOLDER,
        argument.display()
    )
}

fn shown(value: &Option<String>) -> String {
    value.as_ref().map(|v| format!(" = {v}")).unwrap_or_default()
}

fn mean(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map(|s| format!("; did you mean {s:?}?")).unwrap_or_default()
}

/// What is wrong with one field, and what to do about it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A field or table that this version does not know.
    #[error("there is no such field{}; known here are {}", mean(suggestion), known.join(", "))]
    Unknown { suggestion: Option<String>, known: Vec<String> },
    #[error("is missing: add {example}")]
    Missing { example: String },
    #[error("is {found}, but must be {expected}, such as {example}")]
    WrongType { found: &'static str, expected: &'static str, example: &'static str },
    #[error("is not a valid name: use 1 to 64 of a-z, 0-9, - and _")]
    BadName,
    #[error("must be {}", any_of(allowed))]
    NotOneOf { allowed: &'static [&'static str] },
    #[error("must be the number 4096 or 512")]
    BadBlockSize,
    #[error("{0}")]
    BadSize(SizeError),
    #[error(
        "is not a rate: write a size a second, such as \"10MiB/s\" (bits are not counted: 100 Mbit/s are \"12MB/s\"), or \"none\""
    )]
    BadRate,
    #[error("is not a multiple of 4096 bytes; the nearest below is {below}, the nearest above {above}")]
    NotAligned { below: u64, above: u64 },
    #[error("is out of range: it must be from {least} to {most}")]
    OutOfRange { least: String, most: String },
    #[error(
        "is larger than resource.memory ({memory}), which holds what is under way to the peers: raise memory or lower window"
    )]
    WindowOverMemory { memory: String },
    #[error(
        "is not an address: write IP:PORT, such as \"10.0.0.1:7801\" or \"[fd00::1]:7801\" (names are not looked up)"
    )]
    BadAddress,
    #[error("has port 0: give the port on which peers find this node, such as 7801")]
    NoPort,
    #[error("is not an address that peers can reach: write the one of this node's interface")]
    Unspecified,
    #[error(
        "is not a loopback address, and the link is neither encrypted nor authenticated: anyone who reaches it could read and \
         change the data. On a network that you trust, add insecure = true to [resource] or to this node"
    )]
    NotLoopback,
    #[error("is neither \"unix:/PATH\" nor \"tcp:IP:PORT\"")]
    BadListen,
    #[error("must be an absolute path, since the daemon and the commands may run in different folders")]
    RelativePath,
    #[error(
        "is {length} bytes long, but the path of a unix socket has at most 107: choose a shorter one, or a shorter dir"
    )]
    SocketPathTooLong { length: usize },
    #[error(
        "makes {device} the name of a device, and the path of its process' socket has room for {most} bytes of it: choose a shorter name for the resource or the volume"
    )]
    DeviceNameTooLong { device: String, most: usize },
    #[error("is also used by {other}: each needs its own")]
    Duplicate { other: String },
    #[error(
        "is a name that the daemon itself uses in {dir} (bitmap, handoff, history, salvage, stores, tenure, and these with an ending): choose another"
    )]
    DaemonsOwn { dir: String },
    #[error("asks for nothing: give it a mount, an address or a service, or leave it out")]
    EmptyHandoff,
    #[error("names no volume of this file; its volumes are {}", known.join(", "))]
    NoSuchVolume { known: Vec<String> },
    #[error(
        "has no device on {node}, and only a device can be mounted: add device = \"auto\" to the volume or the node"
    )]
    NoDevice { node: String },
    #[error("is not a folder that can be mounted on: write an absolute path without .., such as \"/srv/data\"")]
    BadMountPoint,
    #[error("is not a file system: write its type as the kernel calls it, such as \"ext4\" or \"xfs\"")]
    BadFileSystem,
    #[error("is not an address with the length of its network's prefix, such as \"10.0.0.10/24\" or \"fd00::10/64\"")]
    BadNetwork,
    #[error("cannot move between nodes: write an address of their network that no machine has by itself")]
    NotToMove,
    #[error("is {node}'s own: the service needs an address that no machine has by itself")]
    NodesOwn { node: String },
    #[error("is not the name of an interface: 1 to 15 characters without blanks, such as \"eth0\"")]
    BadInterface,
    #[error("is not the name of a unit, such as \"postgresql@15-main.service\"")]
    BadUnit,
    #[error("must have either unit, or start and stop")]
    UnitAndCommands,
    #[error("is no command: write what a shell is to run, such as \"pg_isready\"")]
    NoCommand,
    #[error("checks nothing, since there is no service: add one, or leave the check out")]
    CheckOfNothing,
    #[error(
        "means nothing without voters, who alone can let a node take over by itself: add a witness, as in [witness.w1], or leave it out"
    )]
    NeedsVoters,
    #[error("contradicts witness.{witness}: leave the keeper out, or remove the witness")]
    AloneWithWitness { witness: String },
    #[error(
        "the voters would be {}, which makes {}: they must be an odd number, at least 3, since a majority of them decides. The sync nodes and the \
         witnesses vote: add or remove a witness", if voters.is_empty() { "nobody".into() } else { voters.join(", ") }, voters.len())]
    VotersNotOdd { voters: Vec<String> },
    #[error(
        "is {lease_ms} ms, and one late heartbeat must not end a lease: at least {least} ms, three times resource.heartbeat_ms ({heartbeat_ms} ms). Raise it, or \
         lower heartbeat_ms"
    )]
    LeaseTooShort { lease_ms: u64, least: u64, heartbeat_ms: u64 },
    #[error(
        "is not possible for an async node in this version: it lacks writes, so an operator promotes it. Leave it out, or write \"manual\""
    )]
    AsyncTakeover,
    #[error("a resource has at most {most} of these, and the file has {found}")]
    TooMany { most: usize, found: usize },
}

fn any_of(allowed: &[&str]) -> String {
    allowed.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(" or ")
}
