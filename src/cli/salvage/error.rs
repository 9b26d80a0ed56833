//! What can go wrong with orphaned writes that were set aside.

use crate::core::IoError;
use crate::format::batch::BatchError;
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The node's parts are on another host, or `--node` names the wrong one.
    #[error("{} is not on this host: run this where {node} runs, or name another node with --node", dir.display())]
    NoFolder { node: String, dir: PathBuf },
    #[error("{node} has set nothing aside under number {number}; there is {}", listed(known))]
    NoSuch { node: String, number: u32, known: Vec<u32> },
    #[error("{} holds no orphaned writes; one that is just being written shows some in a moment", path.display())]
    NotSalvage {
        path: PathBuf,
        #[source]
        source: BatchError,
    },
    #[error("cannot read {}: errno {}", path.display(), error.errno)]
    Read { path: PathBuf, error: IoError },
    /// A salvage numbers its volumes, in the order of the file that it was made under.
    #[error(
        "the volumes of the file are {}, and those that {node}'s log was made for are {}: a salvage of that node would be read as another volume's. \
         Give the file that belongs to the log",
        listed_volumes(expected),
        listed_volumes(found)
    )]
    OtherVolumes { node: String, expected: Vec<(String, u64)>, found: Vec<(String, u64)> },
    #[error("{} was made for another resource: it names volume {volume}, and the file has {volumes}", path.display())]
    ForeignVolume { path: PathBuf, volume: u16, volumes: usize },
    #[error("{} holds a block of {volume} at {offset}, which ends past the {size} bytes of that volume in the file", path.display())]
    OutOfVolume { path: PathBuf, volume: String, offset: u64, size: u64 },
    #[error("{} is damaged: only its first {bytes} bytes of content can be read. --partial exports those", path.display())]
    Damaged { path: PathBuf, bytes: u64 },
    #[error("{} has changed while it was read, or its disk fails: the content at {at} does not match its checksum", path.display())]
    Checksum { path: PathBuf, at: u64 },
    #[error("the resource has no volume {name:?}; its volumes are {}", known.join(", "))]
    NoSuchVolume { name: String, known: Vec<String> },
    #[error("the resource has several volumes: say which with --volume, one of {}", known.join(", "))]
    WhichVolume { known: Vec<String> },
    #[error("{} exists: name a file that does not, so that nothing is overwritten", path.display())]
    Exists { path: PathBuf },
    #[error("{} has {found} bytes and the volume {expected}: it is no image of it", path.display())]
    BaseSize { path: PathBuf, found: u64, expected: u64 },
}

fn listed_volumes(volumes: &[(String, u64)]) -> String {
    let one = |(name, size): &(String, u64)| format!("{name} ({size} bytes)");
    volumes.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn listed(known: &[u32]) -> String {
    match known {
        [] => "nothing".into(),
        _ => known.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
    }
}
