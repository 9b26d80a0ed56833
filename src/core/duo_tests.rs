//! Two nodes in memory, for tests of what one says about the other: disks, links and clocks that do what they should, in
//! the time that they are told to take. Whatever goes wrong is the simulator's.

use super::notice::{Notice, Refusal};
use super::*;
use crate::buf::{BufMut, Payload};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const MIB: u64 = 1 << 20;
const LOG: u64 = 4 * MIB;

/// A disk in memory.
#[derive(Default)]
pub struct MemDisk {
    pub parts: BTreeMap<Part, Vec<u8>>,
    /// Parts of which every write fails, and with which errno.
    pub broken: BTreeMap<Part, i32>,
    /// Offsets of blocks in the log that cannot be read until they are written again, and parts of which nothing can.
    pub unreadable: BTreeSet<u64>,
    pub broken_reads: BTreeSet<Part>,
}

impl MemDisk {
    fn put(&mut self, part: Part, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        if let Some(errno) = self.broken.get(&part) {
            return Err(IoError { errno: *errno });
        }
        if part == Part::Log {
            self.unreadable.retain(|at| !(offset..offset + bytes.len() as u64).contains(at));
        }
        let held = self.parts.entry(part).or_default();
        let end = offset as usize + bytes.len();
        if held.len() < end {
            held.resize(end, 0);
        }
        held[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn perform(&mut self, part: Part, op: IoOp) -> Result<IoData, IoError> {
        if let (Part::Store(_), IoOp::Read { offset, length } | IoOp::Zero { offset, length, .. }) = (part, &op) {
            assert!(offset + length <= 8 * MIB, "outside of the volume");
        }
        match op {
            IoOp::Read { offset, length } => self.read(part, offset, length).map(IoData::Bytes),
            IoOp::Write { mut offset, bufs, .. } => {
                for buf in bufs {
                    self.put(part, offset, &buf)?;
                    offset += buf.len() as u64;
                }
                Ok(IoData::Nothing)
            }
            IoOp::Flush => Ok(IoData::Nothing),
            IoOp::Zero { offset, length, .. } => {
                self.put(part, offset, &vec![0; length as usize]).map(|()| IoData::Nothing)
            }
            IoOp::NextData { offset } => {
                let held = self.parts.get(&part).map_or(&[][..], |b| b);
                let blocks = held.chunks(4096).enumerate().skip(offset as usize / 4096);
                let first = blocks.into_iter().find(|(_, b)| b.iter().any(|x| *x != 0));
                Ok(IoData::Extent(first.map(|(i, b)| (i as u64 * 4096, b.len() as u64))))
            }
            IoOp::Reserve { length } => Ok(IoData::Room(length)),
            IoOp::Truncate { length } => {
                self.parts.entry(part).or_default().resize(length as usize, 0);
                Ok(IoData::Nothing)
            }
        }
    }
}

impl BlockingDisk for MemDisk {
    fn read(&mut self, part: Part, offset: u64, length: u64) -> Result<Payload, IoError> {
        let bad = self.unreadable.iter().any(|at| part == Part::Log && (offset..offset + length).contains(at));
        if bad || self.broken_reads.contains(&part) {
            return Err(IoError { errno: 5 });
        }
        let mut bytes = BufMut::zeroed(length as usize);
        let held = self.parts.get(&part).map_or(&[][..], |b| b);
        let from = (offset as usize).min(held.len());
        let there = &held[from..(from + length as usize).min(held.len())];
        bytes[..there.len()].copy_from_slice(there);
        Ok(bytes.freeze())
    }

    fn write(&mut self, part: Part, offset: u64, bytes: &Payload) -> Result<(), IoError> {
        self.put(part, offset, bytes)
    }

    fn zero(&mut self, part: Part, offset: u64, length: u64) -> Result<(), IoError> {
        self.put(part, offset, &vec![0; length as usize])
    }

    fn flush(&mut self, _: Part) -> Result<(), IoError> {
        Ok(())
    }

    fn size(&mut self, part: Part) -> Result<u64, IoError> {
        Ok(self.parts.get(&part).map_or(0, |b| b.len() as u64))
    }

    fn truncate(&mut self, part: Part, length: u64) -> Result<(), IoError> {
        self.parts.entry(part).or_default().resize(length as usize, 0);
        Ok(())
    }
}

/// A node, its disk, and what it has said.
pub struct Side {
    pub node: Option<Node>,
    pub disk: MemDisk,
    /// How long one I/O takes.
    pub io_us: u64,
    pub notices: Vec<Notice>,
    /// Clients may come.
    pub serves: bool,
    pub replies: VecDeque<(Time, ReqId, Result<Reply, ClientError>)>,
    sessions: BTreeMap<NodeId, SessionId>,
    life: u128,
}

enum What {
    Tell(Box<Event>),
    Dial(NodeId),
}

/// alpha and beta.
pub struct Duo {
    pub sides: Vec<Side>,
    pub now: Time,
    /// How long a message travels.
    pub wire_us: u64,
    /// Nothing gets through, and no connection stands.
    pub parted: bool,
    queue: BTreeMap<(Time, u64), (usize, u128, What)>,
    next: u64,
    done: BTreeMap<CommandId, Result<Answer, Refusal>>,
    /// How the files are from the next start on.
    pub tune: fn(&mut NodeConfig),
}

pub const ALPHA: usize = 0;
pub const BETA: usize = 1;

impl Duo {
    /// Both fresh and running.
    pub fn new() -> Duo {
        Duo::tuned(|_| ())
    }

    /// The same with other settings.
    pub fn tuned(tune: fn(&mut NodeConfig)) -> Duo {
        let side = |_| Side {
            node: None,
            disk: MemDisk::default(),
            io_us: 50,
            notices: Vec::new(),
            serves: false,
            replies: VecDeque::new(),
            sessions: BTreeMap::new(),
            life: 0,
        };
        let mut duo = Duo {
            sides: (0..2).map(side).collect(),
            now: Time(1_000_000),
            wire_us: 100,
            parted: false,
            queue: BTreeMap::new(),
            next: 0,
            done: BTreeMap::new(),
            tune,
        };
        for side in [ALPHA, BETA] {
            let config = duo.config(side);
            let disk = &mut duo.sides[side].disk;
            disk.zero(Part::Log, 0, LOG).unwrap();
            disk.zero(Part::Store(VolumeId(0)), 0, MIB * 8).unwrap();
            recovery::format(&config, disk, FormatIds { log_stream: 10 + side as u128, history_stream: 7 }, true)
                .unwrap();
            duo.start(side);
        }
        duo
    }

    /// Both running, alpha active, both in sync.
    pub fn in_sync() -> Duo {
        let mut duo = Duo::new();
        duo.promote();
        duo
    }

    pub fn promote(&mut self) {
        self.run_ms(100);
        self.order(ALPHA, Command::Promote { force: false, off: vec![] }).unwrap();
        self.run_ms(500);
        assert_eq!(self.status(ALPHA).in_sync.len(), 2);
    }

    pub fn config(&self, side: usize) -> NodeConfig {
        let spec =
            |n: &str| NodeSpec { name: n.into(), mode: Mode::Sync, bandwidth: None, takeover: Takeover::Automatic };
        let mut config = NodeConfig {
            resource: "data".into(),
            nodes: ["alpha", "beta"].map(spec).to_vec(),
            me: NodeId(side as u8),
            volumes: vec![VolumeSpec { name: "disk0".into(), size: 8 * MIB }],
            block: 4096,
            log_size: LOG,
            keeper: Keeper::Alone,
            stall_ms: 200,
            on_stall: OnStall::Degrade,
            durable_write: false,
            heartbeat_ms: 100,
            memory: 64 * MIB,
            window: MIB,
            flush_ms: 20,
            tables: TABLES,
            history_size: u64::MAX,
            allow_invalid: false,
            apply_ms: 100,
            incarnation: Incarnation(self.sides[side].life * 2 + side as u128),
            boot: 1,
        };
        (self.tune)(&mut config);
        config
    }

    pub fn start(&mut self, side: usize) {
        self.sides[side].life += 1;
        let config = self.config(side);
        let recovered = recovery::recover(&config, &mut self.sides[side].disk).unwrap();
        self.sides[side].node = Some(Node::new(config, recovered, self.now));
        self.poll(side);
    }

    /// Its process is gone; everything that it wrote is there.
    pub fn stop(&mut self, side: usize) {
        (self.sides[side].node, self.sides[side].serves) = (None, false);
        self.hang_up(side);
    }

    /// Connections end, and none comes about until `parted` is taken back.
    pub fn part(&mut self) {
        self.parted = true;
        self.hang_up(ALPHA);
    }

    fn hang_up(&mut self, side: usize) {
        for at in [side, 1 - side] {
            for (peer, session) in std::mem::take(&mut self.sides[at].sessions) {
                self.later(0, at, What::Tell(Box::new(Event::PeerDown { peer, session })));
            }
        }
    }

    /// A message from the other side that it never sent; if that side does not run, on a connection of its own.
    pub fn lie(&mut self, side: usize, message: PeerMsg) {
        let peer = NodeId(1 - side as u8);
        if self.sides[1 - side].node.is_none() && !self.sides[side].sessions.contains_key(&peer) {
            self.next += 1;
            let session = SessionId(self.next);
            self.sides[side].sessions.insert(peer, session);
            self.tell(side, Event::PeerUp { peer, session });
        }
        if let Some(session) = self.sides[side].sessions.get(&peer).copied() {
            self.tell(side, Event::PeerMessage { peer, session, message });
        }
    }

    pub fn node(&mut self, side: usize) -> &mut Node {
        self.sides[side].node.as_mut().expect("a running node")
    }

    pub fn status(&self, side: usize) -> status::Status {
        self.sides[side].node.as_ref().expect("a running node").status(self.now)
    }

    fn later(&mut self, us: u64, side: usize, what: What) {
        self.next += 1;
        let life = self.sides[side].life;
        self.queue.insert((Time(self.now.0 + us), self.next), (side, life, what));
    }

    /// Gives an event to a node now.
    pub fn tell(&mut self, side: usize, event: Event) {
        let now = self.now;
        self.node(side).handle(now, event);
        self.poll(side);
    }

    /// Gives a command and waits for its end.
    pub fn order(&mut self, side: usize, command: Command) -> Result<Answer, Refusal> {
        self.next += 1;
        let id = CommandId(self.next);
        self.tell(side, Event::Command { id, command });
        for _ in 0..30_000 {
            if let Some(result) = self.done.remove(&id) {
                return result;
            }
            self.run_ms(1);
        }
        panic!("a command has not ended in 30 s");
    }

    /// Writes a block without waiting for it.
    pub fn write(&mut self, side: usize, block: u64, fua: bool) -> ReqId {
        self.next += 1;
        let req = ReqId(self.next);
        let payload = Payload::copy_of(&[(block % 255) as u8 + 1; 4096]);
        let op = ClientOp::Write { volume: VolumeId(0), offset: block * 4096, payload, fua };
        self.tell(side, Event::Client { req, op });
        req
    }

    pub fn run_ms(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        // A deadline that is over already waits a little, as it does in the daemon.
        let mut polled = self.now;
        loop {
            let deadline = |s: &Side| Some(s.node.as_ref()?.deadline()?.max(Time(polled.0 + 100)));
            let due: Vec<Option<Time>> = self.sides.iter().map(deadline).collect();
            let event = self.queue.first_key_value().map(|((t, _), _)| *t);
            let Some(at) = due.iter().copied().chain([event]).flatten().min().filter(|t| *t <= end) else { break };
            self.now = self.now.max(at);
            if event.is_some_and(|t| t <= self.now) {
                let (_, (side, life, what)) = self.queue.pop_first().expect("an event");
                self.happen(side, life, what);
            } else {
                polled = self.now;
                for side in [ALPHA, BETA] {
                    if due[side].is_some_and(|t| t <= self.now) {
                        self.poll(side);
                    }
                }
            }
        }
        self.now = end;
        (0..2).for_each(|s| self.poll(s));
    }

    fn happen(&mut self, side: usize, life: u128, what: What) {
        if self.sides[side].life != life || self.sides[side].node.is_none() {
            return;
        }
        match what {
            What::Tell(event) => self.tell(side, *event),
            What::Dial(peer) => self.dialed(side, peer),
        }
    }

    fn dialed(&mut self, side: usize, peer: NodeId) {
        if self.parted || self.sides[1 - side].node.is_none() {
            return self.tell(side, Event::ConnectFailed { peer });
        }
        self.hang_up(side);
        self.next += 1;
        let session = SessionId(self.next);
        for at in [side, 1 - side] {
            let peer = NodeId(1 - at as u8);
            self.sides[at].sessions.insert(peer, session);
            self.later(0, at, What::Tell(Box::new(Event::PeerUp { peer, session })));
        }
    }

    fn poll(&mut self, side: usize) {
        let now = self.now;
        let Some(node) = &mut self.sides[side].node else { return };
        node.poll(now);
        while let Some(action) = self.sides[side].node.as_mut().and_then(Node::next_action) {
            self.act(side, action);
        }
    }

    fn act(&mut self, side: usize, action: Action) {
        let (wire_us, now) = (self.wire_us, self.now);
        let this = &mut self.sides[side];
        match action {
            Action::Io { id, part, op } => {
                let result = this.disk.perform(part, op);
                let io_us = this.io_us;
                self.later(io_us, side, What::Tell(Box::new(Event::IoDone { id, result })));
            }
            Action::Complete { req, result } => this.replies.push_back((now, req, result)),
            Action::Connect { peer } => self.later(wire_us, side, What::Dial(peer)),
            Action::Send { peer, session, message } => {
                if this.sessions.get(&peer) == Some(&session) {
                    let event = Event::PeerMessage { peer: NodeId(side as u8), session, message };
                    self.later(wire_us, usize::from(peer.0), What::Tell(Box::new(event)));
                }
            }
            Action::Close { peer, session } => {
                if this.sessions.get(&peer) == Some(&session) {
                    this.sessions.remove(&peer);
                    let other = usize::from(peer.0);
                    let event = Event::PeerDown { peer: NodeId(side as u8), session };
                    self.later(wire_us, other, What::Tell(Box::new(event)));
                }
            }
            Action::CommandDone { id, result } => {
                self.done.insert(id, result);
            }
            Action::Notice(notice) => this.notices.push(notice),
            Action::Serve { .. } => this.serves = true,
            Action::StopServing => this.serves = false,
            Action::AskVoter { .. } => {}
        }
    }
}
