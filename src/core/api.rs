//! The seam between the core and whatever drives it: events in, actions out.
//!
//! The daemon and the simulator implement this page, and nothing else of the core. All I/O is one primitive
//! on a [`Part`]; everything that decides order, durability or membership is inside the core.

use super::forecast::Forecast;
use super::hello::{Charter, Hello, Share};
use super::log_report::LogReport;
use super::register;
use super::types::*;
use super::verify::VerifyReport;
use crate::buf::Payload;
use bincode::{Decode, Encode};

/// A request of a client (an NBD request), numbered by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReqId(pub u64);

/// An I/O that the core asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// An operator's command, numbered by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// A file or block device of this node's replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Superblocks and the ring. Fixed size.
    Log,
    /// A volume's image. Fixed size, sparse where it is a file.
    Store(VolumeId),
    /// The list of what a peer lacks past the log's reach: two files written by turns (B1). Grows.
    Bitmap { peer: NodeId, half: u8 },
    /// Undo records (R1). Grows.
    History,
    /// Orphaned writes set aside, by number (R4). Grows.
    Salvage(u32),
}

/// One I/O. Offsets and lengths are multiples of 4096 on every part but a store, where they are multiples of the block size.
#[derive(Clone, Debug)]
pub enum IoOp {
    /// Answered by [`IoData::Bytes`]. Past the end of a growing part, zeros are read.
    Read { offset: u64, length: u64 },
    /// Writes the buffers one after the other. With `sync` the data (and what is needed to read it back) is on
    /// stable storage when this completes; earlier writes need not be.
    Write { offset: u64, bufs: Vec<Payload>, sync: bool },
    /// Everything that completed on this part before this was issued becomes stable.
    Flush,
    /// The range reads as zeros; with `discard` its space may be given back.
    Zero { offset: u64, length: u64, discard: bool },
    /// Answered by [`IoData::Extent`]: the first run of data (not a hole) at or after `offset`. What cannot tell answers
    /// with everything from `offset` to the end.
    NextData { offset: u64 },
    /// Cuts a growing part to `length` bytes, and makes that stable. Room reserved past it is given back.
    Truncate { length: u64 },
    /// Reserves room for a growing part to become `length` bytes long, without making it longer. Answered by [`IoData::Room`].
    Reserve { length: u64 },
}

/// What a completed I/O brought.
#[derive(Clone, Debug)]
pub enum IoData {
    Nothing,
    Bytes(Payload),
    /// Offset and length of a run of data, or none up to the end.
    Extent(Option<(u64, u64)>),
    /// Bytes that the part can have now: what was asked for, or less where there is no more.
    Room(u64),
}

/// A failed I/O: the part's errno, for people and for the event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("errno {errno}")]
pub struct IoError {
    pub errno: i32,
}

/// What a client asks of a volume. Offsets and lengths in bytes.
#[derive(Clone, Debug)]
pub enum ClientOp {
    Read {
        volume: VolumeId,
        offset: u64,
        length: u64,
    },
    Write {
        volume: VolumeId,
        offset: u64,
        payload: Payload,
        fua: bool,
    },
    Zeroes {
        volume: VolumeId,
        offset: u64,
        length: u64,
        fua: bool,
        may_discard: bool,
    },
    Discard {
        volume: VolumeId,
        offset: u64,
        length: u64,
        fua: bool,
    },
    Flush {
        volume: VolumeId,
    },
    /// Which parts of a range are known to be zero.
    Extents {
        volume: VolumeId,
        offset: u64,
        length: u64,
    },
}

/// A piece of a read, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    Data(Payload),
    Zero(u64),
}

impl Segment {
    /// Bytes that it stands for.
    pub fn length(&self) -> u64 {
        match self {
            Segment::Data(p) => p.len() as u64,
            Segment::Zero(n) => *n,
        }
    }
}

/// A client's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Done,
    Data(Vec<Segment>),
    /// Runs of (length, reads as zeros), in order, covering the range.
    Extents(Vec<(u64, bool)>),
}

/// Why a client's request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("this node is not active")]
    NotActive,
    #[error("the range is not inside the volume")]
    OutOfRange,
    #[error("offset or length is not a multiple of the block size")]
    Misaligned,
    #[error("the storage of this node failed (errno {0})")]
    Io(i32),
}

/// What an operator asks.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "command")]
pub enum Command {
    /// Become active. `off` names the unreachable nodes that the operator has confirmed to be off (C8).
    Promote {
        force: bool,
        off: Vec<String>,
    },
    /// Stop being active, once all is durable on the in-sync members.
    Demote {
        force: bool,
    },
    /// Demote here and promote there.
    Switchover {
        to: String,
    },
    /// Link with a peer again; with `dry_run` only say what that would do.
    Connect {
        peer: String,
        dry_run: bool,
    },
    Disconnect {
        peer: String,
        force: bool,
    },
    /// Compare with every connected passive, and with `repair` send what differs.
    Verify {
        repair: bool,
    },
    /// What the log holds.
    Log,
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// A sentence for the operator.
    Text(String),
    Forecast(Box<Forecast>),
    Verified(Box<VerifyReport>),
    Log(Box<LogReport>),
}

/// What a driver tells the core.
#[derive(Clone, Debug)]
pub enum Event {
    Client {
        req: ReqId,
        op: ClientOp,
    },
    IoDone {
        id: IoId,
        result: Result<IoData, IoError>,
    },
    /// A connection to `peer` stands; frames can be sent. An older session of this peer is over.
    PeerUp {
        peer: NodeId,
        session: SessionId,
    },
    /// The connection is gone, for whatever reason. Not sent for a session that the core closed.
    PeerDown {
        peer: NodeId,
        session: SessionId,
    },
    /// The attempt that `Action::Connect` asked for came to nothing.
    ConnectFailed {
        peer: NodeId,
    },
    PeerMessage {
        peer: NodeId,
        session: SessionId,
        message: PeerMsg,
    },
    /// A part of a message has come: on a slow link a large one takes longer than a silence may.
    PeerHeard {
        peer: NodeId,
        session: SessionId,
    },
    Command {
        id: CommandId,
        command: Command,
    },
    /// What a voter answered, however late and however often.
    VoterAnswered {
        voter: String,
        answer: register::Answer,
    },
}

/// What the core tells its driver to do.
#[derive(Clone, Debug)]
pub enum Action {
    Io {
        id: IoId,
        part: Part,
        op: IoOp,
    },
    Complete {
        req: ReqId,
        result: Result<Reply, ClientError>,
    },
    /// Dial the peer; answered by `PeerUp` or `ConnectFailed`.
    Connect {
        peer: NodeId,
    },
    Send {
        peer: NodeId,
        session: SessionId,
        message: PeerMsg,
    },
    Close {
        peer: NodeId,
        session: SessionId,
    },
    CommandDone {
        id: CommandId,
        result: Result<Answer, super::notice::Refusal>,
    },
    Notice(super::notice::Notice),
    /// This node became active: devices and exports may be offered from now on.
    Serve {
        term: TermId,
        /// This node's own term before, where nobody else can have opened one since: what belongs to that term goes on (C6).
        continues: Option<TermId>,
    },
    /// A question for a voter, by its name in the file; it may be this node's own. It may be lost, and its answer too: the core asks
    /// again.
    AskVoter {
        voter: String,
        question: register::Question,
    },
    /// It no longer is: sessions of clients belong to the old term and end (C6).
    StopServing,
}

/// What nodes say to each other. Payloads travel beside the encoded head (see `wire`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMsg {
    /// First message of either side in a session.
    Hello(Box<Hello>),
    /// The passive has ended older records and adopted the active's lineage: stream from the record after `received`.
    Ready {
        received: Lsn,
        durable: Lsn,
    },
    /// A piece (`core::runs`) of what the passive needs whatever the active changed: what changed on its own side since the
    /// fork (R4), and every block with undo (R3). The next one follows `LacksTaken`.
    Lacks {
        piece: Vec<u8>,
    },
    LacksTaken,
    /// The passive needs the contents of whatever changed after `since`, the last record that both lineages share, and
    /// of what it has listed; or of everything.
    ReadyResync {
        since: Lsn,
        everything: bool,
    },
    /// Records in order, and the watermarks of the active.
    Append {
        records: Vec<Record>,
        watermarks: Watermarks,
    },
    /// The same without records: outside the flow control of data (S1).
    Heartbeat {
        watermarks: Watermarks,
    },
    Ack(Ack),
    /// The active's charter: to be made durable and confirmed (C9).
    Charter(Charter),
    CharterAck {
        version: u64,
    },
    /// Contents follow: about so many bytes in so many runs (R1); with `whole` also zeros wherever there are none.
    ResyncBegin {
        bytes: u64,
        runs: u64,
        whole: bool,
    },
    /// Contents of blocks, as write and discard records whose lsn means nothing.
    ResyncData {
        records: Vec<Record>,
        sent_bytes: u64,
    },
    /// All contents sent: with the records after `base` up to `until` they make a valid image.
    ResyncEnd {
        base: Lsn,
        until: Lsn,
    },
    /// The passive's image is whole at this position, and durable (R3).
    ResyncDone {
        position: Lsn,
    },
    /// Checksums of chunks asked for at this point of the stream, and the answer.
    VerifyAsk {
        id: u64,
        extent: Extent,
        crcs: Vec<u32>,
        chunk: u32,
    },
    VerifyAnswer {
        id: u64,
        differing: Vec<Extent>,
        retry: bool,
    },
    /// The sender is about to be promoted, under this charter: may it? (C9)
    Claim(Charter),
    ClaimAnswer {
        version: u64,
        granted: bool,
    },
    /// The sender is being promoted and asks for the records of this term, its newest, after this one; answered by `Append` (L1).
    Fetch {
        after: Lsn,
        term: TermId,
    },
    /// The active has demoted itself for the receiver to promote itself.
    TakeOver,
    /// The session ends; the text says why, for the other side's operator.
    Bye {
        why: String,
    },
    /// The answer to a Hello that only asks.
    Share(Share),
    /// The newest charter that the sender knows the voters to have agreed to, and who they are.
    Entry(Box<register::Entry>),
}

impl PeerMsg {
    /// A driver that limits what it sends lets these go at once, ahead of what waits for its turn (S1: the committed position
    /// travels outside the flow control of data). They say how far things are, which is as true before the records as behind
    /// them; all else stays in order. The first message of a session waits for nothing either.
    pub fn overtakes(&self) -> bool {
        matches!(self, PeerMsg::Heartbeat { .. } | PeerMsg::Ack(_) | PeerMsg::Hello(_))
    }
}

/// Where a passive stands. Counts only where `term` is the receiver's own newest term (C1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ack {
    /// The newest term of the sender's lineage; none for a fresh replica.
    pub term: Option<TermId>,
    pub received: Lsn,
    pub durable: Lsn,
    pub applied: Lsn,
    /// The newest record taken from the stream, for flow control alone: beyond `received` while a gap is open (R3).
    pub streamed: Lsn,
    /// Bytes of resync contents taken in this session.
    pub resync_bytes: u64,
    /// `Watermarks::clock_us` of the newest frame that this answers.
    pub echo_us: u64,
    /// How long that frame has been here.
    pub held_us: u64,
    /// The longest write or flush of the sender's log since its last acknowledgement; 0 if there was none.
    pub disk_us: u64,
}

/// Where the active stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Watermarks {
    /// Durable on the active and every in-sync member (S1).
    pub committed: Lsn,
    /// The newest record the active has accepted.
    pub accepted: Lsn,
    /// A client waits until records up to here are durable.
    pub flush_to: Lsn,
    /// The active's clock, for the echo in acknowledgements.
    pub clock_us: u64,
}
