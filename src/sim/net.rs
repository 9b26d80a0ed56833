//! The network: sessions that deliver in order, late, in part, or not at all.

use super::rng::Rng;
use crate::core::{Event, NodeId, PeerMsg, SessionId};
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
    Message(Box<PeerMsg>),
    Down,
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
        (0..2).filter_map(|end| self.push(now, Lane { connection, end }, Item::Up, 0, rng)).collect()
    }

    fn push(&mut self, now: u64, lane: Lane, item: Item, bytes: u64, rng: &mut Rng) -> Option<Due> {
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
        end.queue.push_back(item);
        Some((at - now, lane))
    }

    /// A node sends on a session; nothing happens if it is over.
    pub fn send(&mut self, now: u64, node: NodeId, session: SessionId, message: PeerMsg, rng: &mut Rng) -> Option<Due> {
        let bytes = payload_bytes(&message);
        let mine = self.lane(node, session)?;
        let theirs = Lane { end: 1 - mine.end, ..mine };
        self.push(now, theirs, Item::Message(Box::new(message)), bytes, rng)
    }

    fn lane(&self, node: NodeId, session: SessionId) -> Option<Lane> {
        let lane = Lane { connection: session.0 / 2, end: (session.0 % 2) as usize };
        let end = &self.connections.get(&lane.connection)?[lane.end];
        (end.node == node && end.open).then_some(lane)
    }

    /// What arrives on a lane whose time has come, and what follows from it elsewhere.
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
            Item::Message(message) => Some((node, Event::PeerMessage { peer, session, message: *message }, Vec::new())),
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
            let arrives = rng.below(end.queue.len() as u64 + 1).max(u64::from(!end.open));
            end.queue.truncate(arrives as usize);
        }
        self.push(now, lane, Item::Down, 0, rng)
    }

    /// Cuts every connection between two nodes, at any message.
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

/// Bytes of data in a message, for the time it takes.
pub fn payload_bytes(message: &PeerMsg) -> u64 {
    match message {
        PeerMsg::Append { records, .. } | PeerMsg::ResyncData { records, .. } => {
            records.iter().map(|r| r.payload.len() as u64).sum()
        }
        _ => 0,
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
            let due = self.net.send(self.now, from, session, bye, &mut self.rng);
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
    fn a_new_session_replaces_the_old_one() {
        let mut line = Line::new();
        let (old, _) = line.connect();
        let (new, _) = line.connect();
        line.say(A, old, "lost");
        line.say(A, new, "heard");
        assert_eq!(words(&line.run()), ["heard"]);
    }
}
