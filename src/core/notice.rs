//! Everything the core says to people: events of the stream, and refusals with names.

use serde::Serialize;

/// Why a command was not carried out. Nothing has changed when one is returned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{node} is already active")]
    AlreadyActive { node: String },
    #[error("{node} is not active, so there is nothing to do here; the active node is {active}")]
    NotActive { node: String, active: String },
    #[error("{peer} is active: use `understudy switchover --to {me}` on it, or demote it first")]
    PeerIsActive { peer: String, me: String },
    #[error(
        "{} cannot be reached, and may hold newer data or still be serving.{} Start it or mend the link; or, when you have made sure \
         that it is off, promote with --force --off {}", peers.join(", "), alone_words(alone), peers.join(","))]
    Unreachable { peers: Vec<String>, alone: Vec<String> },
    #[error(
        "--off {node} names the very node that is to be promoted; it is for nodes that were made sure to be off: leave it out"
    )]
    OffItself { node: String },
    #[error("{peer} answers, so it is not off; leave it out of --off")]
    NotOff { peer: String },
    #[error(
        "{peer} is not off: it was heard within the last 3 s, though there is no session with it ({why}). Connect them, or stop the daemon of \
         {peer}, then wait 3 s"
    )]
    Answers { peer: String, why: String },
    #[error(
        "this node and {peer} were each promoted by force while the other was taken for dead: decide whose data is to be kept, and \
             promote that node with --force"
    )]
    Conflict { peer: String },
    #[error("{peer} is being promoted, or knows of a newer promotion: see `understudy status` there")]
    Claimed { peer: String },
    #[error(
        "{} is in sync or active as far as this node knows, and not in this node's file: it may hold newer data or still be serving. \
             Put it back into the file; or, when you have made sure that it is off for good, promote with --force", peers.join(", "))]
    NotInFile { peers: Vec<String> },
    #[error("no node of this resource is called {name:?}; its nodes are {}", known.join(", "))]
    UnknownNode { name: String, known: Vec<String> },
    #[error("{node} is the node that was asked: name another one")]
    Itself { node: String },
    #[error(
        "{peer} holds {records} record(s) past the end of this node (up to lsn {end}): promote {peer} instead, or use --force to give them up"
    )]
    Behind { peer: String, records: u64, end: u64 },
    #[error(
        "the log of this node has no room for {records} record(s) after lsn {last} that are not committed: promote {} instead, or give this \
         node a larger log", peers.join(" or "))]
    NoRoom { records: u64, last: u64, peers: Vec<String> },
    #[error(
        "this node was dropped from the in-sync set by {active}: it may lack completed writes. Promote {active}, or use --force"
    )]
    Dropped { active: String },
    #[error(
        "this replica holds no valid image: it is in the middle of its first full resync, or its log was damaged while it was being applied. \
         Wait for a resync to end, or promote another node; --force does not help"
    )]
    NoImage,
    #[error(
        "the log of {node} is damaged: record {lsn} and what came after it were durable and cannot be read. Promote another node, which {node} then \
         follows. If there is none, --force gives them up"
    )]
    Damaged { node: String, lsn: u64 },
    #[error(
        "{node} was being promoted by force when it ended, and is not known to have served since: whoever it gave up may have gone on. See \
         `understudy status` on the others, and promote with --force the node whose data is to be kept"
    )]
    Unserved { node: String },
    #[error(
        "this replica is being overwritten in place by a resync (allow_invalid = true, and there was no room for its history): it holds no valid \
         image. Wait for the resync to end, or promote another node; --force does not help"
    )]
    Overwritten,
    #[error(
        "there is nobody to compare with: {}",
        peers.iter().map(|(peer, why)| format!("{peer}: {why}")).collect::<Vec<_>>().join("; ")
    )]
    NobodyToCompare { peers: Vec<(String, String)> },
    #[error("{peer} is not in sync: {why}. Wait for it, or see `understudy status`")]
    NotInSync { peer: String, why: String },
    #[error(
        "{peer} is the only other in-sync member: without it one failure loses data. Use --force to do it all the same"
    )]
    LastMember { peer: String },
    #[error("another command is under way: {what}")]
    Busy { what: &'static str },
    #[error("the storage of this node failed: {what}; it does not serve until that is mended and the daemon restarted")]
    Faulted { what: String },
    #[error("not done in time: {what}")]
    TimedOut { what: String },
}

/// Those of the unreachable who may hold completed writes that the asked node has never seen.
fn alone_words(alone: &[String]) -> String {
    match alone {
        [] => String::new(),
        names => format!(
            " {} was active, and may have gone on alone: what it completed since would be given up here, and set aside when it returns.",
            names.join(", ")
        ),
    }
}

/// One line of the event stream. The name of the variant is the name of the event, in snake_case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Notice {
    Started {
        role: String,
        received: u64,
        durable: u64,
        applied: u64,
    },
    PeerConnected {
        peer: String,
    },
    PeerLost {
        peer: String,
        why: String,
    },
    /// What the file of a peer says otherwise; nothing is refused for it.
    FilesDiffer {
        peer: String,
        what: String,
    },
    /// The verdict of the handshake, in words.
    Handshake {
        peer: String,
        verdict: String,
    },
    HandshakeRefused {
        peer: String,
        why: String,
    },
    TermOpened {
        number: u64,
        id: String,
        first: u64,
    },
    Promoted {
        forced: bool,
        gave_up: String,
    },
    Demoted {
        end: u64,
    },
    InSync {
        peer: String,
    },
    Dropped {
        peer: String,
        why: String,
    },
    Suspended {
        why: String,
    },
    Resumed,
    OrphansSetAside {
        records: u64,
        bytes: u64,
        salvage: u32,
    },
    LogOverflow {
        peer: String,
    },
    /// The medium has lost a record that the log held: the log reaches no further back than behind it (L2).
    LogUnreadable {
        lsn: u64,
    },
    /// What a peer lacks is not known any more: it is compared in full where the log does not reach back to it (B2).
    ListLost {
        peer: String,
        why: String,
    },
    /// Records that were durable here cannot be read from the log any more (L2).
    LogDamaged {
        lsn: u64,
    },
    /// It has got from the active what its log had lost.
    LogMended {
        lsn: u64,
    },
    ResyncStarted {
        peer: String,
        bytes: u64,
    },
    ResyncFinished {
        peer: String,
        position: u64,
    },
    RolledBack {
        to: u64,
    },
    /// No room for what a resync overwrites (R1).
    HistoryTooSmall {
        peer: String,
        needed: u64,
        room: u64,
    },
    /// The resync overwrites this replica in place: it holds no valid image until it is whole (contract 3).
    ImageGivenUp {
        peer: String,
    },
    VerifyStarted {
        peer: String,
    },
    VerifyDiffers {
        peer: String,
        volume: u16,
        offset: u64,
        length: u64,
    },
    /// More ranges differ than are told one by one.
    VerifyMoreDiffer {
        peer: String,
        ranges: u64,
    },
    VerifyFinished {
        peer: String,
        differing_bytes: u64,
        repaired: bool,
    },
    SplitBrain {
        peer: String,
    },
    StorageFailed {
        part: String,
        errno: i32,
    },
    StorageWorks {
        part: String,
    },
}
