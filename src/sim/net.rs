//! The network: sessions that deliver in order, late, in part, or not at all. What travels is the bytes of real frames.

use super::rng::Rng;
use crate::buf::{BufMut, Payload};
use crate::core::{Event, NodeId, PeerMsg, SessionId};
use crate::wire::{FrameHeader, HEADER_LEN, WireError, decode, encode};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Names one direction of one connection: what is delivered to this end of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lane {
    pub connection: u64,
    pub end: usize,
}

/// Something to happen on a lane after so many µs.
pub type Due = (u64, Lane);

#[derive(Debug)]
enum Item {
    Up,
    Frame(Frame),
    Down,
}

impl Item {
    /// Bytes on the wire.
    fn bytes(&self) -> u64 {
        match self {
            Item::Frame(frame) => (frame.head.len() + frame.payload.len()) as u64,
            Item::Up | Item::Down => 0,
        }
    }
}

/// A frame under way: header and head, and the payloads as they are received, one after the other in one buffer.
#[derive(Clone, Debug)]
struct Frame {
    head: Vec<u8>,
    payload: Payload,
    /// Bytes of records in it.
    records: u64,
    /// What it said before a bit of it was turned over.
    before: Option<Box<PeerMsg>>,
    /// It may pass by frames that wait for their turn.
    overtakes: bool,
}

impl Frame {
    fn of(message: &PeerMsg, compress: bool) -> Result<Frame, WireError> {
        let encoded = encode(message, compress)?;
        let payload = match &encoded.payloads[..] {
            [] => Payload::empty(),
            // A receiver has the bytes in a buffer of its own; as nobody can change them, one payload is simply shared.
            [one] => one.clone(),
            many => {
                let mut joined = BufMut::uninit(many.iter().map(|p| p.len()).sum());
                let mut at = 0;
                for p in many {
                    joined[at..at + p.len()].copy_from_slice(p);
                    at += p.len();
                }
                joined.freeze()
            }
        };
        let records = match message {
            PeerMsg::Append { records, .. } => records.iter().map(|r| r.payload.len() as u64).sum(),
            _ => 0,
        };
        Ok(Frame { head: encoded.head, payload, records, before: None, overtakes: message.overtakes() })
    }

    fn message(self) -> Result<PeerMsg, WireError> {
        // Cannot fail: what `encode` made begins with a whole header, and garbling changes no length.
        let header: &[u8; HEADER_LEN] = self.head[..HEADER_LEN].try_into().expect("a whole header");
        decode(&FrameHeader::parse(header)?, &self.head[HEADER_LEN..], self.payload)
    }

    fn garble(&mut self, rng: &mut Rng) {
        self.before = self.clone().message().ok().map(Box::new);
        let at = rng.below((self.head.len() + self.payload.len()) as u64) as usize;
        let bit = 1 << rng.below(8);
        match at.checked_sub(self.head.len()) {
            None => self.head[at] ^= bit,
            Some(at) => {
                let mut changed = BufMut::uninit(self.payload.len());
                changed.copy_from_slice(&self.payload);
                changed[at] ^= bit;
                self.payload = changed.freeze();
            }
        }
    }
}

#[derive(Debug)]
struct End {
    node: NodeId,
    session: SessionId,
    /// The node knows the session and has not closed it.
    open: bool,
    over: bool,
    queue: VecDeque<Item>,
    /// When the newest item becomes deliverable.
    last_at: u64,
    /// Deliveries that came due while the way was blocked.
    held: u64,
}

/// All connections between the nodes, and the state of the ways.
#[derive(Debug, Default)]
pub struct Net {
    connections: BTreeMap<u64, [End; 2]>,
    next: u64,
    /// One-way breaks, (from, to): nothing passes, and nobody can dial.
    blocked: BTreeSet<(NodeId, NodeId)>,
    /// Ways on which connections are accepted and nothing is ever delivered.
    hung: BTreeSet<(NodeId, NodeId)>,
    /// Typical µs from one node to another.
    delay_us: u64,
    /// Ways that are so many times slower.
    slow: BTreeMap<(NodeId, NodeId), u64>,
    /// Payloads are packed where that makes them smaller.
    pub compress: bool,
    /// Everyone limits what they send: reports of positions pass by the rest.
    pub overtaking: bool,
    /// Frames that were damaged under way and refused.
    pub refused: u64,
}

impl Net {
    /// A whole network, µs from one node to another.
    pub fn new(delay_us: u64) -> Net {
        Net { delay_us, ..Net::default() }
    }

    pub fn block(&mut self, from: NodeId, to: NodeId) {
        self.blocked.insert((from, to));
    }

    pub fn hang(&mut self, from: NodeId, to: NodeId) {
        self.hung.insert((from, to));
    }

    pub fn slow_down(&mut self, from: NodeId, to: NodeId, times: u64) {
        self.slow.insert((from, to), times);
    }

    /// Whether a new connection could be made.
    pub fn reachable(&self, a: NodeId, b: NodeId) -> bool {
        !self.blocked.contains(&(a, b)) && !self.blocked.contains(&(b, a))
    }

    /// Whether all is well between the two.
    pub fn clear(&self, a: NodeId, b: NodeId) -> bool {
        self.reachable(a, b) && !self.hung.contains(&(a, b)) && !self.hung.contains(&(b, a))
    }

    /// Whether what is sent in this direction arrives.
    pub fn clear_way(&self, from: NodeId, to: NodeId) -> bool {
        !self.stopped(from, to)
    }

    fn stopped(&self, from: NodeId, to: NodeId) -> bool {
        self.blocked.contains(&(from, to)) || self.hung.contains(&(from, to))
    }

    /// Mends the ways between two nodes; what was held arrives now.
    pub fn mend(&mut self, a: NodeId, b: NodeId, rng: &mut Rng) -> Vec<Due> {
        for way in [(a, b), (b, a)] {
            self.blocked.remove(&way);
            self.hung.remove(&way);
            self.slow.remove(&way);
        }
        let delay_us = self.delay_us;
        let mut due = Vec::new();
        for (&connection, ends) in &mut self.connections {
            let nodes = [ends[0].node, ends[1].node];
            if nodes == [a, b] || nodes == [b, a] {
                for (end, state) in ends.iter_mut().enumerate() {
                    let held = std::mem::take(&mut state.held);
                    due.extend((0..held).map(|_| (1 + rng.around(delay_us), Lane { connection, end })));
                }
            }
        }
        due
    }

    /// A connection stands from now on.
    pub fn connect(&mut self, now: u64, from: NodeId, to: NodeId, rng: &mut Rng) -> Vec<Due> {
        let connection = self.next;
        self.next += 1;
        let end = |node, n| End {
            node,
            session: SessionId(connection * 2 + n),
            open: false,
            over: false,
            queue: VecDeque::new(),
            last_at: 0,
            held: 0,
        };
        self.connections.insert(connection, [end(from, 0), end(to, 1)]);
        (0..2).filter_map(|end| self.push(now, Lane { connection, end }, Item::Up, rng)).collect()
    }

    fn push(&mut self, now: u64, lane: Lane, item: Item, rng: &mut Rng) -> Option<Due> {
        let bytes = item.bytes();
        let ends = self.connections.get_mut(&lane.connection)?;
        let way = (ends[1 - lane.end].node, ends[lane.end].node);
        let end = &mut ends[lane.end];
        if end.over {
            return None;
        }
        let slow = self.slow.get(&way).copied().unwrap_or(1);
        // A microsecond for each KiB: about a gigabyte a second.
        let at = end.last_at.max(now + 1 + (rng.around(self.delay_us) + bytes / 1024) * slow);
        end.last_at = at;
        let waits = |item: &Item| matches!(item, Item::Frame(f) if !f.overtakes);
        let place = match &item {
            Item::Frame(frame) if frame.overtakes && self.overtaking => {
                end.queue.iter().rposition(|i| !waits(i)).map_or(0, |i| i + 1)
            }
            _ => end.queue.len(),
        };
        end.queue.insert(place, item);
        Some((at - now, lane))
    }

    /// A node sends on a session; nothing happens if it is over.
    ///
    /// # Errors
    /// If the message cannot travel: a mistake of the node.
    pub fn send(
        &mut self,
        now: u64,
        node: NodeId,
        session: SessionId,
        message: &PeerMsg,
        rng: &mut Rng,
    ) -> Result<Option<Due>, WireError> {
        let frame = Frame::of(message, self.compress)?;
        let Some(mine) = self.lane(node, session) else { return Ok(None) };
        let theirs = Lane { end: 1 - mine.end, ..mine };
        Ok(self.push(now, theirs, Item::Frame(frame), rng))
    }

    /// Bytes of records that a node has sent on a session and that have not arrived.
    pub fn unheard(&self, node: NodeId, session: SessionId) -> u64 {
        let Some(mine) = self.lane(node, session) else { return 0 };
        let Some(ends) = self.connections.get(&mine.connection) else { return 0 };
        let records = |item: &Item| if let Item::Frame(frame) = item { frame.records } else { 0 };
        ends[1 - mine.end].queue.iter().map(records).sum()
    }

    /// Turns over a bit in a frame that is under way between two nodes, if there is one.
    pub fn garble(&mut self, from: NodeId, to: NodeId, rng: &mut Rng) {
        let toward = |ends: &mut [End; 2]| (0..2).find(|e| ends[*e].node == to && ends[1 - *e].node == from);
        for ends in self.connections.values_mut() {
            let Some(end) = toward(ends) else { continue };
            let frames = ends[end].queue.iter_mut().filter_map(|item| match item {
                // Turned over twice a bit would be well again.
                Item::Frame(frame) => frame.before.is_none().then_some(frame),
                Item::Up | Item::Down => None,
            });
            if let Some(frame) = frames.last() {
                return frame.garble(rng);
            }
        }
    }

    fn lane(&self, node: NodeId, session: SessionId) -> Option<Lane> {
        let lane = Lane { connection: session.0 / 2, end: (session.0 % 2) as usize };
        let end = &self.connections.get(&lane.connection)?[lane.end];
        (end.node == node && end.open).then_some(lane)
    }

    /// What arrives on a lane whose time has come, and what follows from it elsewhere.
    ///
    /// # Panics
    /// If an undamaged frame cannot be decoded, or a damaged one can.
    pub fn deliver(&mut self, now: u64, lane: Lane, rng: &mut Rng) -> Option<(NodeId, Event, Vec<Due>)> {
        let ends = self.connections.get(&lane.connection)?;
        let (peer, node) = (ends[1 - lane.end].node, ends[lane.end].node);
        let stopped = self.stopped(peer, node);
        let ends = self.connections.get_mut(&lane.connection)?;
        let end = &mut ends[lane.end];
        if end.over {
            return None;
        }
        // That a connection was accepted is known even where nothing is delivered ever after.
        if stopped && !matches!(end.queue.front(), Some(Item::Up)) {
            end.held += 1;
            return None;
        }
        let session = end.session;
        match end.queue.pop_front()? {
            Item::Up => {
                end.open = true;
                let due = self.close_older(now, node, peer, lane, rng);
                Some((node, Event::PeerUp { peer, session }, due))
            }
            Item::Frame(mut frame) => {
                let before = frame.before.take();
                let decoded = frame.message();
                // What is packed may unpack to the same bytes in spite of it.
                let same = before.as_deref().is_none_or(|b| decoded.as_ref().is_ok_and(|d| d == b));
                let refused = decoded.is_err() && before.is_some();
                assert!(
                    same || refused,
                    "it was {before:?} before a bit was turned over, and is taken for {decoded:?}"
                );
                match decoded {
                    Ok(message) => Some((node, Event::PeerMessage { peer, session, message }, Vec::new())),
                    Err(_) => {
                        self.refused += 1;
                        let due = self.close_lane(now, lane, rng);
                        Some((node, Event::PeerDown { peer, session }, due.into_iter().collect()))
                    }
                }
            }
            Item::Down => {
                end.over = true;
                end.open = false;
                self.forget(lane.connection);
                Some((node, Event::PeerDown { peer, session }, Vec::new()))
            }
        }
    }

    fn forget(&mut self, connection: u64) {
        if self.connections.get(&connection).is_some_and(|ends| ends.iter().all(|e| e.over)) {
            self.connections.remove(&connection);
        }
    }

    /// A new session of a peer replaces the one before it.
    fn close_older(&mut self, now: u64, node: NodeId, peer: NodeId, new: Lane, rng: &mut Rng) -> Vec<Due> {
        let older = |(&connection, ends): (&u64, &[End; 2])| {
            let end = ends.iter().position(|e| e.node == node && e.open)?;
            (connection != new.connection && ends[1 - end].node == peer).then_some(Lane { connection, end })
        };
        let older: Vec<Lane> = self.connections.iter().filter_map(older).collect();
        older.into_iter().filter_map(|lane| self.close_lane(now, lane, rng)).collect()
    }

    /// The node closes a session by itself.
    pub fn close(&mut self, now: u64, node: NodeId, session: SessionId, rng: &mut Rng) -> Option<Due> {
        let lane = self.lane(node, session)?;
        self.close_lane(now, lane, rng)
    }

    fn close_lane(&mut self, now: u64, lane: Lane, rng: &mut Rng) -> Option<Due> {
        let end = &mut self.connections.get_mut(&lane.connection)?[lane.end];
        end.over = true;
        end.open = false;
        end.queue.clear();
        let due = self.end_lane(now, Lane { end: 1 - lane.end, ..lane }, rng);
        self.forget(lane.connection);
        due
    }

    /// The other side of this lane is gone: some of what was under way still arrives.
    fn end_lane(&mut self, now: u64, lane: Lane, rng: &mut Rng) -> Option<Due> {
        let end = &mut self.connections.get_mut(&lane.connection)?[lane.end];
        if end.over {
            return None;
        }
        if !end.open && matches!(end.queue.front(), Some(Item::Up)) && rng.coin() {
            // It never stood on this side. Whoever dialed hears of it as an end right after the beginning.
            end.queue.truncate(1);
        } else {
            // The stream ends at any byte; a frame that has come in part is lost.
            let whole: u64 = end.queue.iter().map(Item::bytes).sum();
            let (cut, mut passed) = (rng.below(whole + 1), 0);
            let arrives = end.queue.iter().take_while(|item| {
                passed += item.bytes();
                passed <= cut
            });
            let arrives = arrives.count().max(usize::from(!end.open));
            end.queue.truncate(arrives);
        }
        self.push(now, lane, Item::Down, rng)
    }

    /// Cuts every connection between two nodes, at any byte.
    pub fn cut(&mut self, now: u64, a: NodeId, b: NodeId, rng: &mut Rng) -> Vec<Due> {
        let between =
            |ends: &[End; 2]| [ends[0].node, ends[1].node] == [a, b] || [ends[0].node, ends[1].node] == [b, a];
        let found: Vec<u64> = self.connections.iter().filter(|(_, ends)| between(ends)).map(|(&c, _)| c).collect();
        let lanes = found.into_iter().flat_map(|connection| (0..2).map(move |end| Lane { connection, end }));
        lanes.filter_map(|lane| self.end_lane(now, lane, rng)).collect()
    }

    /// A process is gone with all its sessions. After a power cut nobody is told: the others find out by the silence.
    pub fn gone(&mut self, now: u64, node: NodeId, silently: bool, rng: &mut Rng) -> Vec<Due> {
        let mine = |(&connection, ends): (&u64, &[End; 2])| {
            ends.iter().position(|e| e.node == node).map(|end| Lane { connection, end })
        };
        let lanes: Vec<Lane> = self.connections.iter().filter_map(mine).collect();
        let mut due = Vec::new();
        for lane in lanes {
            if let Some((delay, lane)) = self.close_lane(now, lane, rng) {
                due.push((if silently { delay + 20_000_000 } else { delay }, lane));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(0);
    const B: NodeId = NodeId(1);

    struct Line {
        net: Net,
        rng: Rng,
        now: u64,
        due: BTreeMap<(u64, u64), Lane>,
        order: u64,
    }

    impl Line {
        fn new() -> Line {
            let net = Net::new(100);
            Line { net, rng: Rng::new(3), now: 0, due: BTreeMap::new(), order: 0 }
        }

        fn add(&mut self, due: impl IntoIterator<Item = Due>) {
            for (delay, lane) in due {
                self.order += 1;
                self.due.insert((self.now + delay, self.order), lane);
            }
        }

        fn run(&mut self) -> Vec<(NodeId, Event)> {
            let mut events = Vec::new();
            while let Some(((at, _), lane)) = self.due.pop_first() {
                self.now = at;
                if let Some((node, event, due)) = self.net.deliver(at, lane, &mut self.rng) {
                    events.push((node, event));
                    self.add(due);
                }
            }
            events
        }

        fn connect(&mut self) -> (SessionId, SessionId) {
            let due = self.net.connect(self.now, A, B, &mut self.rng);
            self.add(due);
            let mut up = self.run();
            up.sort_by_key(|(node, _)| *node);
            match &up[..] {
                [(A, Event::PeerUp { peer: B, session: a }), (B, Event::PeerUp { peer: A, session: b })] => (*a, *b),
                other => panic!("{other:?}"),
            }
        }

        fn say(&mut self, from: NodeId, session: SessionId, why: &str) {
            let bye = PeerMsg::Bye { why: why.into() };
            let due = self.net.send(self.now, from, session, &bye, &mut self.rng).unwrap();
            self.add(due);
        }
    }

    fn words(events: &[(NodeId, Event)]) -> Vec<String> {
        let word = |(_, event): &(NodeId, Event)| match event {
            Event::PeerMessage { message: PeerMsg::Bye { why }, .. } => why.clone(),
            Event::PeerDown { .. } => "down".into(),
            other => format!("{other:?}"),
        };
        events.iter().map(word).collect()
    }

    #[test]
    fn messages_arrive_in_order_and_an_end_comes_last() {
        let mut line = Line::new();
        let (a, _) = line.connect();
        ["1", "2", "3"].into_iter().for_each(|w| line.say(A, a, w));
        assert_eq!(words(&line.run()), ["1", "2", "3"]);
        line.say(A, a, "4");
        let due = line.net.cut(line.now, A, B, &mut line.rng);
        line.add(due);
        let said = words(&line.run());
        assert!(said == ["4", "down", "down"] || said == ["down", "4", "down"] || said == ["down", "down"], "{said:?}");
        line.say(A, a, "5");
        assert!(line.run().is_empty());
        assert!(line.net.connections.is_empty());
    }

    #[test]
    fn a_break_holds_messages_until_it_is_mended() {
        let mut line = Line::new();
        let (a, b) = line.connect();
        line.net.block(A, B);
        line.say(A, a, "held");
        line.say(B, b, "passes");
        assert_eq!(words(&line.run()), ["passes"]);
        assert!(!line.net.reachable(B, A));
        let due = line.net.mend(A, B, &mut line.rng);
        line.add(due);
        assert_eq!(words(&line.run()), ["held"]);
    }

    #[test]
    fn closing_tells_the_other_side_only() {
        let mut line = Line::new();
        let (a, _) = line.connect();
        let due = line.net.close(line.now, A, a, &mut line.rng);
        line.add(due);
        let events = line.run();
        assert!(matches!(events[..], [(B, Event::PeerDown { peer: A, .. })]), "{events:?}");
    }

    #[test]
    fn a_damaged_frame_ends_its_session() {
        let mut line = Line::new();
        let (a, _) = line.connect();
        line.say(A, a, "1");
        line.say(A, a, "2");
        line.net.garble(A, B, &mut line.rng);
        let said = words(&line.run());
        assert!(said == ["1", "down", "down"], "{said:?}");
        assert_eq!(line.net.refused, 1);
    }

    #[test]
    fn a_new_session_replaces_the_old_one() {
        let mut line = Line::new();
        let (old, _) = line.connect();
        let (new, _) = line.connect();
        line.say(A, old, "lost");
        line.say(A, new, "heard");
        assert_eq!(words(&line.run()), ["heard"]);
    }
}
