//! Two nodes on loopback, and strangers.

use super::*;
use crate::buf::Payload;
use crate::core::hello::Charter;
use crate::core::*;
use crate::daemon::hub::Tag;
use crate::daemon::testing::{completions, disk_dir, hub, settings, until};
use crate::wire;
use std::io::{Read, Write};
use std::net::TcpStream;

struct Side {
    hub: Hub,
    peers: Peers,
    /// Everything that the core would have been told.
    events: Vec<Event>,
}

impl Side {
    fn new(name: &str) -> Side {
        Side::with(name, |_| ())
    }

    fn with(name: &str, change: impl FnOnce(&mut Settings)) -> Side {
        let dir = disk_dir();
        let mut settings = settings(dir.path(), name);
        change(&mut settings);
        let mut side = Side { hub: hub(), peers: Peers::new(&settings).unwrap(), events: Vec::new() };
        side.peers.start(&mut side.hub);
        side
    }

    fn step(&mut self) {
        self.peers.flush(Mode::Sync, &mut self.hub);
        self.peers.flush(Mode::Async, &mut self.hub);
        for done in completions(&mut self.hub) {
            match done.tag {
                Tag::Peer(tag) => self.peers.completed(tag, done.op, done.result, &mut self.hub),
                Tag::Cancel => {}
                _ => panic!("nobody else is here"),
            }
        }
        self.peers.tick(&mut self.hub);
        self.peers.flush(Mode::Sync, &mut self.hub);
        self.peers.flush(Mode::Async, &mut self.hub);
        self.events.extend(self.hub.events.drain(..));
    }

    fn address(&self) -> SocketAddr {
        self.peers.address().unwrap()
    }

    /// The newest session that came up.
    fn session(&self) -> Option<SessionId> {
        self.events.iter().rev().find_map(|e| match e {
            Event::PeerUp { session, .. } => Some(*session),
            _ => None,
        })
    }

    fn messages(&self) -> Vec<&PeerMsg> {
        fn message(event: &Event) -> Option<&PeerMsg> {
            match event {
                Event::PeerMessage { message, .. } => Some(message),
                _ => None,
            }
        }
        self.events.iter().filter_map(message).collect()
    }

    /// Only the accept is in flight, and no connection is remembered.
    fn at_rest(&self) -> bool {
        self.peers.conns.is_empty() && self.hub.ring.in_flight() == 1
    }
}

const ALPHA: NodeId = NodeId(0);
const BETA: NodeId = NodeId(1);

fn hello(node: &str) -> Box<Hello> {
    Box::new(Hello {
        protocol: crate::core::hello::PROTOCOL,
        resource: "data".into(),
        node: node.into(),
        incarnation: Incarnation(1),
        role: Role::Passive,
        volumes: vec![],
        block: 4096,
        lineage: vec![],
        zero: true,
        received: Lsn(0),
        durable: Lsn(0),
        committed: Lsn(0),
        applied: Lsn(0),
        log_from: Lsn(1),
        charter: Charter::default(),
        promoting: false,
        gap: None,
        features: vec!["lz4".into()],
        settings: vec![],
        probe: false,
    })
}

fn step_both((a, b): &mut (Side, Side)) {
    a.step();
    b.step();
}

/// Alpha has dialed beta, and both have said hello.
fn pair() -> (Side, Side) {
    meet(Side::new("alpha"), Side::new("beta"), hello("beta"))
}

/// The same, with what beta says of itself.
fn meet(alpha: Side, beta: Side, greeting: Box<Hello>) -> (Side, Side) {
    let mut both = (alpha, beta);
    let address = both.1.address();
    both.0.peers.set_address(BETA, address);
    both.0.peers.dial(BETA, &mut both.0.hub);
    both.0.peers.dial(BETA, &mut both.0.hub);
    until("the dialer is up", &mut both, step_both, |(a, _)| a.session().is_some());
    assert_eq!(both.1.session(), None, "nobody's before it has said its name");
    let session = both.0.session().unwrap();
    both.0.peers.send(BETA, session, &PeerMsg::Hello(hello("alpha")), &mut both.0.hub);
    until("the other is up", &mut both, step_both, |(_, b)| !b.messages().is_empty());
    assert!(matches!(both.1.events[..], [Event::PeerUp { peer: ALPHA, .. }, Event::PeerMessage { peer: ALPHA, .. }]));
    let session = both.1.session().unwrap();
    both.1.peers.send(ALPHA, session, &PeerMsg::Hello(greeting), &mut both.1.hub);
    until("alpha knows beta", &mut both, step_both, |(a, _)| !a.messages().is_empty());
    both.0.events.retain(|e| matches!(e, Event::PeerUp { .. }));
    both
}

fn records(n: usize, size: usize) -> Vec<Record> {
    let record = |i: usize| {
        let bytes: Vec<u8> = (0..size).map(|b| (b * 7 + i) as u8).collect();
        let (offset, length, crc) = ((i * size) as u64, size as u64, crc32fast::hash(&bytes));
        let payload = Payload::copy_of(&bytes);
        Record { lsn: Lsn(i as u64 + 1), volume: VolumeId(0), kind: Kind::Write, offset, length, crc, payload }
    };
    (0..n).map(record).collect()
}

#[test]
fn messages_of_all_sizes_arrive_in_order_both_ways() {
    let mut both = pair();
    let watermarks = Watermarks::default();
    let mut sent = vec![PeerMsg::Hello(hello("alpha"))];
    for (n, size) in [(1, 512), (0, 512), (300, 4096), (7, 1 << 20), (33, 4096)] {
        sent.push(PeerMsg::Append { records: records(n, size), watermarks });
        sent.push(PeerMsg::Heartbeat { watermarks });
    }
    for message in &sent[1..] {
        let session = both.0.session().unwrap();
        both.0.peers.send(BETA, session, message, &mut both.0.hub);
        let session = both.1.session().unwrap();
        both.1.peers.send(ALPHA, session, message, &mut both.1.hub);
    }
    let n = sent.len();
    until("all arrive", &mut both, step_both, |(a, b)| a.messages().len() == n - 1 && b.messages().len() == n);
    assert!(both.1.messages().into_iter().eq(sent.iter()));
    assert!(both.0.messages().into_iter().eq(sent[1..].iter()));
    let payloads = both.1.messages().into_iter().filter_map(|m| match m {
        PeerMsg::Append { records, .. } => Some(records.clone()),
        _ => None,
    });
    assert!(payloads.flatten().all(|r| (r.payload.as_ptr() as usize).is_multiple_of(512)), "aligned for direct I/O");
}

#[test]
fn a_closed_session_sends_its_last_words_and_leaves_nothing_behind() {
    let mut both = pair();
    let session = both.0.session().unwrap();
    let bye = PeerMsg::Bye { why: "enough".into() };
    both.0.peers.send(BETA, session, &bye, &mut both.0.hub);
    both.0.peers.close(BETA, session, &mut both.0.hub);
    let down = |e: &Event| matches!(e, Event::PeerDown { peer: ALPHA, .. });
    until("beta sees the end", &mut both, step_both, |(_, b)| b.events.iter().any(down));
    assert_eq!(both.1.messages().last(), Some(&&bye));
    until("all is quiet", &mut both, step_both, |(a, b)| a.at_rest() && b.at_rest());
    assert!(!both.0.events.iter().any(|e| matches!(e, Event::PeerDown { .. })), "the core closed it itself");
    // What still comes for the old session goes nowhere.
    both.0.peers.send(BETA, session, &bye, &mut both.0.hub);
    step_both(&mut both);
    assert!(both.0.at_rest());
}

#[test]
fn a_new_session_ends_the_old_one_first() {
    let mut both = pair();
    let (first_a, first_b) = (both.0.session().unwrap(), both.1.session().unwrap());
    both.0.peers.dial(BETA, &mut both.0.hub);
    until("alpha's second", &mut both, step_both, |(a, _)| a.session() != Some(first_a));
    let second = both.0.session().unwrap();
    both.0.peers.send(BETA, second, &PeerMsg::Hello(hello("alpha")), &mut both.0.hub);
    until("beta's second", &mut both, step_both, |(_, b)| b.session() != Some(first_b));
    for (side, peer, first) in [(&both.0, BETA, first_a), (&both.1, ALPHA, first_b)] {
        let at = |wanted: &dyn Fn(&Event) -> bool| side.events.iter().rposition(wanted).unwrap();
        let down = at(&|e| matches!(e, Event::PeerDown { peer: p, session } if (*p, *session) == (peer, first)));
        let up = at(&|e| matches!(e, Event::PeerUp { .. }));
        assert!(down < up);
    }
    assert_eq!((both.0.peers.conns.len(), both.1.peers.conns.len()), (1, 1));
}

/// It used to replace the session of the node that it is a copy of, and an active lost its role to it.
#[test]
fn a_copy_of_a_node_that_lives_is_sent_away() {
    let mut both = pair();
    let first = both.1.session();
    let mut copy = hello("alpha");
    copy.incarnation = Incarnation(2);
    let copy = frame(&PeerMsg::Hello(copy));
    let mut stream = TcpStream::connect(both.1.address()).unwrap();
    stream.write_all(&copy).unwrap();
    until("it is sent away", &mut both, step_both, |(_, b)| b.peers.last_conn > 1 && b.peers.conns.len() == 1);
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    assert!(String::from_utf8_lossy(&said).contains("another daemon of"), "{said:?}");
    assert_eq!(both.1.session(), first);
    // The first one has been silent for a while: it may be gone without a word.
    both.1.hub.now = both.1.hub.now.plus_ms(301);
    let mut stream = TcpStream::connect(both.1.address()).unwrap();
    stream.write_all(&copy).unwrap();
    until("it is let in", &mut both, step_both, |(_, b)| b.session() != first);
}

fn frame(message: &PeerMsg) -> Vec<u8> {
    let encoded = wire::encode(message, false).unwrap();
    encoded.payloads.iter().fold(encoded.head, |mut all, p| {
        all.extend_from_slice(p);
        all
    })
}

#[test]
fn strangers_that_talk_garbage_reach_nothing() {
    let mut beta = Side::new("beta");
    let mut other = hello("alpha");
    other.resource = "mail".into();
    let append = PeerMsg::Append { records: records(1, 4096), watermarks: Watermarks::default() };
    let mut damaged = frame(&PeerMsg::Hello(hello("alpha")));
    damaged[40] ^= 1;
    for (bytes, answer) in [
        (b"GET / HTTP/1.1\r\nHost: understudy\r\n\r\n".to_vec(), ""),
        (vec![0xff; 100_000], ""),
        (frame(&PeerMsg::TakeOver), ""),
        (frame(&append), ""),
        (damaged, ""),
        (frame(&PeerMsg::Hello(other)), "belongs to the resource \"mail\""),
        (frame(&PeerMsg::Hello(hello("gamma"))), "no node of this resource is called \"gamma\""),
        (frame(&PeerMsg::Hello(hello("beta"))), "this node itself"),
    ] {
        let mut stream = TcpStream::connect(beta.address()).unwrap();
        // It may be cut off in the middle of it.
        let _ = stream.write_all(&bytes);
        let peers = |b: &mut Side| b.peers.last_conn > 0 && b.at_rest();
        until("it is sent away", &mut beta, Side::step, peers);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(String::from_utf8_lossy(&said).contains(answer), "{said:?}");
        assert!(beta.events.is_empty());
        beta.peers.last_conn = 0;
    }
}

#[test]
fn strangers_are_few_and_short_lived() {
    let mut beta = Side::new("beta");
    let address = beta.address();
    let strangers: Vec<TcpStream> = (0..STRANGERS + 3).map(|_| TcpStream::connect(address).unwrap()).collect();
    let last = STRANGERS as u64;
    until("all were accepted", &mut beta, Side::step, |b| b.peers.last_conn == last);
    for _ in 0..5 {
        beta.step();
    }
    assert_eq!(beta.peers.conns.len(), STRANGERS);
    assert_eq!(beta.peers.deadline(), Some(beta.hub.now.plus_ms(STRANGER_MS)));
    beta.hub.now = beta.hub.now.plus_ms(STRANGER_MS);
    until("all were sent away", &mut beta, Side::step, Side::at_rest_mut);
    assert_eq!(beta.peers.deadline(), None);
    drop(strangers);
    assert!(beta.events.is_empty());
}

impl Side {
    fn at_rest_mut(&mut self) -> bool {
        self.at_rest()
    }
}

#[test]
fn garbage_in_a_session_ends_it() {
    let mut beta = Side::new("beta");
    let mut stream = TcpStream::connect(beta.address()).unwrap();
    stream.write_all(&frame(&PeerMsg::Hello(hello("alpha")))).unwrap();
    until("it is up", &mut beta, Side::step, |b| b.session().is_some());
    stream.write_all(&[1; 64]).unwrap();
    until("it is over", &mut beta, Side::step, Side::at_rest_mut);
    assert!(matches!(beta.events.last(), Some(Event::PeerDown { peer: ALPHA, .. })));
}

#[test]
fn a_dial_that_fails_is_reported_once_for_each_attempt() {
    let mut alpha = Side::new("alpha");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    alpha.peers.set_address(BETA, nobody);
    for n in 1..3 {
        alpha.peers.dial(BETA, &mut alpha.hub);
        until("refused", &mut alpha, Side::step, Side::at_rest_mut);
        assert_eq!(alpha.events.len(), n);
        assert!(matches!(alpha.events[n - 1], Event::ConnectFailed { peer: BETA }));
    }
}

#[test]
fn a_dial_that_nobody_answers_ends_in_time() {
    // A listener whose queue is full drops what comes.
    let full = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    nix::sys::socket::listen(&full, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let address = full.local_addr().unwrap();
    let _queued = TcpStream::connect(address).unwrap();
    let mut alpha = Side::new("alpha");
    alpha.peers.set_address(BETA, address);
    alpha.peers.dial(BETA, &mut alpha.hub);
    for _ in 0..10 {
        alpha.step();
    }
    assert!(alpha.events.is_empty(), "it hangs");
    alpha.hub.now = alpha.hub.now.plus_ms(DIAL_MS);
    until("given up", &mut alpha, Side::step, Side::at_rest_mut);
    assert!(matches!(alpha.events[..], [Event::ConnectFailed { peer: BETA }]));
}

#[test]
fn a_message_that_cannot_be_sent_ends_the_session_and_not_the_daemon() {
    let mut both = pair();
    let session = both.0.session().unwrap();
    let too_long = PeerMsg::VerifyAnswer {
        id: 1,
        retry: false,
        differing: vec![Extent { volume: VolumeId(0), offset: 1 << 40, length: 4096 }; 100_000],
    };
    both.0.peers.send(BETA, session, &too_long, &mut both.0.hub);
    until("over", &mut both, step_both, |(a, b)| a.at_rest() && b.at_rest());
    assert!(matches!(both.0.events.last(), Some(Event::PeerDown { peer: BETA, .. })));
}

/// Alpha may send a mebibyte a second to beta. Clocks stand still until they are moved.
fn limited() -> (Side, Side) {
    let limit = |s: &mut Settings| s.node.nodes[1].bandwidth = Some(1 << 20);
    meet(Side::with("alpha", limit), Side::new("beta"), hello("beta"))
}

fn append(n: usize, size: usize) -> PeerMsg {
    PeerMsg::Append { records: records(n, size), watermarks: Watermarks::default() }
}

/// How many frames with records have come.
fn appends(side: &Side) -> usize {
    side.messages().into_iter().filter(|m| matches!(m, PeerMsg::Append { .. })).count()
}

#[test]
fn a_limit_holds_data_back_and_heartbeats_overtake_it() {
    let mut both = limited();
    both.0.hub.now = both.0.hub.now.plus_ms(1000);
    let session = both.0.session().unwrap();
    let data = append(64, 4096);
    let beat = PeerMsg::Heartbeat { watermarks: Watermarks { committed: Lsn(9), ..Watermarks::default() } };
    for _ in 0..8 {
        both.0.peers.send(BETA, session, &data, &mut both.0.hub);
    }
    let charter = PeerMsg::Charter(Charter::default());
    both.0.peers.send(BETA, session, &charter, &mut both.0.hub);
    both.0.peers.send(BETA, session, &beat, &mut both.0.hub);
    until("the heartbeat comes", &mut both, step_both, |(_, b)| b.messages().contains(&&beat));
    for _ in 0..5 {
        step_both(&mut both);
    }
    assert_eq!(appends(&both.1), 1, "the others wait for their turn");
    for n in 2..=8 {
        let next = both.0.peers.deadline().expect("it will be time for the next");
        let pause_us = next.since_us(both.0.hub.now);
        assert!((150_000..270_000).contains(&pause_us), "{pause_us} us for a quarter of a mebibyte");
        both.0.hub.now = next;
        until("the next one", &mut both, step_both, |(_, b)| appends(b) == n);
    }
    assert!(!both.1.messages().contains(&&charter), "what is not only a report of positions stays in order");
    both.0.hub.now = both.0.peers.deadline().unwrap();
    until("the charter", &mut both, step_both, |(_, b)| b.messages().last() == Some(&&charter));
    assert_eq!(both.0.peers.deadline(), None);
}

#[test]
fn a_limited_session_that_ends_still_says_why() {
    let mut both = limited();
    let session = both.0.session().unwrap();
    let bye = PeerMsg::Bye { why: "enough".into() };
    for message in [&append(64, 4096), &append(64, 4096), &bye] {
        both.0.peers.send(BETA, session, message, &mut both.0.hub);
    }
    both.0.peers.close(BETA, session, &mut both.0.hub);
    until("the good-bye", &mut both, step_both, |(_, b)| b.messages().last() == Some(&&bye));
    until("all is quiet", &mut both, step_both, |(a, b)| a.at_rest() && b.at_rest());
}

#[test]
fn a_new_session_does_not_begin_with_a_new_allowance() {
    let mut both = limited();
    let session = both.0.session().unwrap();
    both.0.peers.send(BETA, session, &append(256, 4096), &mut both.0.hub);
    until("it comes", &mut both, step_both, |(_, b)| appends(b) == 1);
    both.0.peers.dial(BETA, &mut both.0.hub);
    until("the second session", &mut both, step_both, |(a, _)| a.session() != Some(session));
    let session = both.0.session().unwrap();
    both.0.peers.send(BETA, session, &PeerMsg::Hello(hello("alpha")), &mut both.0.hub);
    both.0.peers.send(BETA, session, &append(1, 4096), &mut both.0.hub);
    for _ in 0..5 {
        step_both(&mut both);
    }
    assert_eq!(appends(&both.1), 1);
    assert!(
        both.0.peers.deadline().is_some_and(|t| t.since_us(both.0.hub.now) > 900_000),
        "the debt is still to be paid"
    );
}

fn packing(settings: &mut Settings) {
    settings.peers[0].compress = true;
}

/// Bytes of payload, and bytes on the wire, that alpha has sent to beta.
fn traffic(alpha: &Side) -> (u64, u64) {
    alpha.peers.traffic().find(|(name, ..)| *name == "beta").map(|(_, sent, wire)| (sent, wire)).unwrap()
}

#[test]
fn payloads_are_packed_for_who_understands_it_and_counted() {
    let mut old = hello("beta");
    old.features = vec!["something-newer".into()];
    for (greeting, packs) in [(hello("beta"), true), (old, false)] {
        let mut both = meet(Side::with("alpha", packing), Side::new("beta"), greeting);
        let session = both.0.session().unwrap();
        let data = append(64, 4096);
        let before = traffic(&both.0).1;
        both.0.peers.send(BETA, session, &data, &mut both.0.hub);
        until("it comes", &mut both, step_both, |(a, b)| appends(b) == 1 && traffic(a).1 > before);
        assert_eq!(both.1.messages().last(), Some(&&data), "as it was sent");
        let (sent, wire) = traffic(&both.0);
        assert_eq!(sent, 64 * 4096);
        assert_eq!(wire < sent / 2, packs, "{wire} bytes on the wire");
    }
}

#[test]
fn a_part_of_a_message_is_a_sign_of_life() {
    let mut beta = Side::new("beta");
    let mut stream = TcpStream::connect(beta.address()).unwrap();
    stream.write_all(&frame(&PeerMsg::Hello(hello("alpha")))).unwrap();
    until("it is up", &mut beta, Side::step, |b| b.session().is_some());
    let bytes = frame(&append(16, 4096));
    for part in bytes[..60_000].chunks(20_000) {
        let before = beta.events.len();
        stream.write_all(part).unwrap();
        until("it is heard", &mut beta, Side::step, |b| b.events.len() > before);
        assert!(matches!(beta.events.last(), Some(Event::PeerHeard { peer: ALPHA, .. })));
    }
    assert_eq!(appends(&beta), 0);
}
