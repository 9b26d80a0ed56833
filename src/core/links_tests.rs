//! When a session is over, and how long a node waits before it dials again.

use crate::buf::{BufMut, Payload};
use crate::core::hello::{Hello, PROTOCOL};
use crate::core::recovery::{self, FormatIds};
use crate::core::*;
use std::collections::HashMap;

const BETA: NodeId = NodeId(1);

/// Parts in memory; enough for `format` and `recover`.
#[derive(Default)]
struct Memory(HashMap<Part, Vec<u8>>);

impl Memory {
    fn part(&mut self, part: Part, length: u64) -> &mut Vec<u8> {
        let bytes = self.0.entry(part).or_default();
        bytes.resize(bytes.len().max(length as usize), 0);
        bytes
    }
}

impl BlockingDisk for Memory {
    fn read(&mut self, part: Part, offset: u64, length: u64) -> Result<Payload, IoError> {
        let mut out = BufMut::zeroed(length as usize);
        out.copy_from_slice(&self.part(part, offset + length)[offset as usize..][..length as usize]);
        Ok(out.freeze())
    }

    fn write(&mut self, part: Part, offset: u64, bytes: &Payload) -> Result<(), IoError> {
        self.part(part, offset + bytes.len() as u64)[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&mut self, part: Part, offset: u64, length: u64) -> Result<(), IoError> {
        self.part(part, offset + length)[offset as usize..][..length as usize].fill(0);
        Ok(())
    }

    fn flush(&mut self, _: Part) -> Result<(), IoError> {
        Ok(())
    }

    fn size(&mut self, part: Part) -> Result<u64, IoError> {
        Ok(self.0.get(&part).map_or(0, |b| b.len() as u64))
    }

    fn truncate(&mut self, part: Part, length: u64) -> Result<(), IoError> {
        self.part(part, 0).truncate(length as usize);
        Ok(())
    }
}

pub fn config(me: u8) -> NodeConfig {
    let node =
        |name: &str| NodeSpec { name: name.into(), mode: Mode::Sync, bandwidth: None, takeover: Takeover::Automatic };
    NodeConfig {
        resource: "data".into(),
        nodes: vec![node("alpha"), node("beta")],
        me: NodeId(me),
        volumes: vec![VolumeSpec { name: "disk0".into(), size: 1 << 20 }],
        block: 4096,
        log_size: 1 << 20,
        keeper: Keeper::Alone,
        stall_ms: 2000,
        on_stall: OnStall::Degrade,
        durable_write: false,
        heartbeat_ms: 200,
        memory: 64 << 20,
        window: 16 << 20,
        flush_ms: 100,
        tables: TABLES,
        history_size: u64::MAX,
        allow_invalid: false,
        apply_ms: 1000,
        incarnation: Incarnation(u128::from(me) + 1),
        boot: 1,
    }
}

pub fn fresh(me: u8) -> Node {
    node_of(config(me))
}

pub fn node_of(config: NodeConfig) -> Node {
    let (me, mut disk) = (config.me.0, Memory::default());
    disk.part(Part::Log, config.log_size);
    disk.part(Part::Store(VolumeId(0)), 1 << 20);
    let ids = FormatIds { log_stream: u128::from(me) + 10, history_stream: u128::from(me) + 20 };
    recovery::format(&config, &mut disk, ids, true).unwrap();
    let recovered = recovery::recover(&config, &mut disk).unwrap();
    Node::new(config, recovered, Time(0))
}

/// Alpha, which dials, and what the network and beta do to it.
struct Dialer {
    alpha: Node,
    now: Time,
    sessions: u64,
}

impl Dialer {
    fn new() -> Dialer {
        Dialer { alpha: fresh(0), now: Time(0), sessions: 0 }
    }

    /// Lets alpha go on by itself until it dials: after so many ms.
    fn until_it_dials(&mut self) -> u64 {
        let from = self.now;
        loop {
            self.alpha.poll(self.now);
            while let Some(action) = self.alpha.next_action() {
                if matches!(action, Action::Connect { peer: BETA }) {
                    return self.now.since_us(from) / 1000;
                }
            }
            self.now = self.alpha.deadline().expect("it means to dial").max(self.now.plus_ms(1));
        }
    }

    fn tell(&mut self, message: PeerMsg) {
        let session = SessionId(self.sessions);
        self.alpha.handle(self.now, Event::PeerMessage { peer: BETA, session, message });
    }

    /// Both say hello, the session stands for `ms`, then beta says good-bye.
    fn session(&mut self, ms: u64) {
        self.sessions += 1;
        self.alpha.handle(self.now, Event::PeerUp { peer: BETA, session: SessionId(self.sessions) });
        self.tell(PeerMsg::Hello(Box::new(fresh(1).my_hello())));
        let status = self.alpha.status(self.now);
        assert_eq!(status.peers[0].state, "idle");
        for _ in 0..ms / 100 {
            self.now = self.now.plus_ms(100);
            self.tell(PeerMsg::CharterAck { version: 0 });
            self.alpha.poll(self.now);
        }
        self.tell(PeerMsg::Bye { why: "no more of this".into() });
        assert_eq!(self.alpha.status(self.now).peers[0].state, "down");
    }
}

/// Seen with a passive that could not go on: it was dialed, greeted, and said good-bye, a hundred times a second for ever.
#[test]
fn a_peer_that_greets_and_parts_is_dialed_with_growing_pauses() {
    let mut dialer = Dialer::new();
    assert_eq!(dialer.until_it_dials(), 0);
    let mut pauses = Vec::new();
    for _ in 0..9 {
        dialer.session(0);
        pauses.push(dialer.until_it_dials());
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
}

#[test]
fn after_a_session_of_use_the_pauses_begin_anew() {
    let mut dialer = Dialer::new();
    dialer.until_it_dials();
    for _ in 0..5 {
        dialer.session(900);
        dialer.until_it_dials();
    }
    dialer.session(1000);
    assert_eq!(dialer.until_it_dials(), 10);
    dialer.session(0);
    assert_eq!(dialer.until_it_dials(), 20);
}

/// On a slow link a large message takes longer than ten heartbeats, and nothing overtakes it there.
#[test]
fn a_message_that_is_still_coming_is_no_silence() {
    for heard in [true, false] {
        let mut dialer = Dialer::new();
        dialer.until_it_dials();
        dialer.session(0);
        dialer.until_it_dials();
        dialer.sessions += 1;
        let session = SessionId(dialer.sessions);
        dialer.alpha.handle(dialer.now, Event::PeerUp { peer: BETA, session });
        dialer.tell(PeerMsg::Hello(Box::new(fresh(1).my_hello())));
        for _ in 0..30 {
            dialer.now = dialer.now.plus_ms(100);
            if heard {
                dialer.alpha.handle(dialer.now, Event::PeerHeard { peer: BETA, session });
            }
            dialer.alpha.poll(dialer.now);
        }
        assert_eq!(dialer.alpha.status(dialer.now).peers[0].state == "idle", heard);
    }
}

/// Both are told which of them is to be upgraded.
#[test]
fn a_daemon_of_another_protocol_is_told_who_is_to_be_upgraded() {
    for (protocol, older) in [(PROTOCOL - 1, "beta"), (PROTOCOL + 1, "alpha")] {
        let mut dialer = Dialer::new();
        dialer.until_it_dials();
        dialer.sessions += 1;
        let session = SessionId(dialer.sessions);
        dialer.alpha.handle(dialer.now, Event::PeerUp { peer: BETA, session });
        dialer.tell(PeerMsg::Hello(Box::new(Hello::unintelligible(protocol, "data".into(), "beta".into()))));
        let words = format!("beta speaks peer protocol {protocol}, and alpha speaks {PROTOCOL}: upgrade {older}");
        assert_eq!(dialer.alpha.status(dialer.now).peers[0].why.as_ref(), Some(&words));
        let said = std::iter::from_fn(|| dialer.alpha.next_action())
            .any(|a| matches!(a, Action::Send { message: PeerMsg::Bye { why }, .. } if why == words));
        assert!(said, "the other side is told");
    }
}
