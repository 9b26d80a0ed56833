//! A peer that speaks the protocol and lies: whatever it says, in whatever order, the other node does not panic, reaches for nothing
//! outside of its volumes, and an active goes on serving.

use super::duo_tests::{ALPHA, BETA, Duo, MIB};
use super::hello::{Charter, Gap, Hello, Member, Share};
use super::*;
use crate::buf::Payload;
use crate::wire;
use proptest::prelude::*;

fn lsn() -> impl Strategy<Value = Lsn> {
    prop_oneof![4 => 0u64..12, 1 => Just(1 << 40), 1 => Just(1 << 62)].prop_map(Lsn)
}

fn extent() -> impl Strategy<Value = Extent> {
    let volume = prop_oneof![5 => Just(0), 1 => Just(1u16), 1 => Just(u16::MAX)];
    let offset =
        prop_oneof![4 => (0u64..40).prop_map(|n| n * 4096), 1 => Just(8 * MIB), 1 => Just(513), 1 => Just(1 << 62)];
    let length =
        prop_oneof![4 => (0u64..9).prop_map(|n| n * 4096), 1 => Just(8 * MIB), 1 => Just(4 << 30), 1 => Just(1 << 62)];
    (volume, offset, length).prop_map(|(v, offset, length)| Extent { volume: VolumeId(v), offset, length })
}

fn record() -> impl Strategy<Value = (Extent, u8)> {
    (extent(), 0u8..3)
}

fn records(first: Lsn, of: Vec<(Extent, u8)>) -> Vec<Record> {
    let made = of.into_iter().enumerate().map(|(i, (e, kind))| {
        let write = kind == 0 && e.length <= 64 << 10;
        let payload = if write { Payload::copy_of(&vec![7; e.length as usize]) } else { Payload::empty() };
        let kind = if write { Kind::Write } else { Kind::Discard };
        let crc = if write { crc32fast::hash(&payload) } else { 0 };
        Record {
            lsn: Lsn(first.0 + i as u64),
            volume: e.volume,
            kind,
            offset: e.offset,
            length: e.length,
            crc,
            payload,
        }
    });
    made.collect()
}

fn watermarks() -> impl Strategy<Value = Watermarks> {
    (lsn(), lsn(), lsn(), prop_oneof![0u64..99, Just(u64::MAX)])
        .prop_map(|(committed, accepted, flush_to, clock_us)| Watermarks { committed, accepted, flush_to, clock_us })
}

fn charter() -> impl Strategy<Value = Charter> {
    let name = || prop_oneof![Just("alpha"), Just("beta"), Just("nobody")].prop_map(String::from);
    let member = (name(), any::<u128>()).prop_map(|(node, i)| Member { node, incarnation: Incarnation(i) });
    let version = prop_oneof![4 => 0u64..9, 1 => Just(1 << 62)];
    let in_sync = prop::collection::vec(member, 0..4);
    let names = (prop::option::of(name()), prop::option::of(name()));
    (version.clone(), version, in_sync, names, prop::option::of(lsn())).prop_map(
        |(g, version, in_sync, (active, heir), released)| Charter {
            generation: (g, 1),
            version,
            active,
            in_sync,
            heir,
            released,
        },
    )
}

/// What a Hello says beside what the node really is.
fn hello() -> impl Strategy<Value = PeerMsg> {
    let terms = prop::collection::vec((0u64..5, 0u128..4, lsn()), 0..4);
    let grain = prop_oneof![4 => Just(4096), 1 => Just(0), 1 => Just(u64::MAX)];
    let gap = (prop::option::of(lsn()), lsn(), any::<bool>(), grain, prop::option::of(0u128..4));
    let gap = prop::option::of(gap.prop_map(|(rollback, since, everything, grain, of)| {
        let overwritten_in = of.map(TermId);
        Gap { rollback, since, everything, grain, overwritten_in }
    }));
    let numbers = (lsn(), lsn(), lsn(), lsn(), lsn());
    (terms, gap, numbers, charter(), any::<[bool; 5]>()).prop_map(
        |(terms, gap, n, charter, [active, zero, promoting, probe, same])| {
            let mut lineage: Vec<Term> =
                terms.into_iter().map(|(number, id, first)| Term { number, id: TermId(id), first }).collect();
            lineage.sort_by_key(|t| t.first);
            PeerMsg::Hello(Box::new(Hello {
                protocol: hello::PROTOCOL,
                resource: "data".into(),
                node: if same { "alpha" } else { "beta" }.into(),
                incarnation: Incarnation(77),
                role: if active { Role::Active } else { Role::Passive },
                volumes: vec![("disk0".into(), 8 * MIB)],
                block: 4096,
                lineage,
                zero,
                received: n.0,
                durable: n.1,
                committed: n.2,
                applied: n.3,
                log_from: n.4,
                charter,
                promoting,
                gap,
                features: vec![],
                settings: vec![],
                probe,
            }))
        },
    )
}

fn ack() -> impl Strategy<Value = PeerMsg> {
    let us = || prop_oneof![0u64..99, Just(u64::MAX)];
    (lsn(), lsn(), lsn(), lsn(), us(), us(), us()).prop_map(|(received, durable, applied, streamed, a, b, c)| {
        // The term is put in by the test: one that is not the active's own is passed over at once.
        PeerMsg::Ack(Ack {
            term: None,
            received,
            durable,
            applied,
            streamed,
            resync_bytes: a,
            echo_us: b,
            held_us: c,
            disk_us: a,
        })
    })
}

/// Packed runs, or what only looks like them.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let runs = prop::collection::vec((0u64..40, 1u64..9), 0..5).prop_map(|runs| {
        let mut set = dirty::DirtySet::new(&[8 * MIB]);
        runs.into_iter().for_each(|(at, n)| {
            set.add(Extent { volume: VolumeId(0), offset: at * 4096, length: n * 4096 });
        });
        set.pieces().next().unwrap_or_default()
    });
    prop_oneof![3 => runs, 1 => prop::collection::vec(any::<u8>(), 0..40)]
}

fn lie() -> impl Strategy<Value = PeerMsg> {
    let extents = || prop::collection::vec(extent(), 0..5);
    let some = || prop::collection::vec(record(), 0..4);
    let count = || prop_oneof![0u64..99_999, Just(u64::MAX)];
    let small = prop_oneof![
        (lsn(), lsn()).prop_map(|(received, durable)| PeerMsg::Ready { received, durable }),
        piece().prop_map(|piece| PeerMsg::Lacks { piece }),
        Just(PeerMsg::LacksTaken),
        watermarks().prop_map(|watermarks| PeerMsg::Heartbeat { watermarks }),
        count().prop_map(|version| PeerMsg::CharterAck { version }),
        (count(), count(), any::<bool>()).prop_map(|(bytes, runs, whole)| PeerMsg::ResyncBegin { bytes, runs, whole }),
        lsn().prop_map(|position| PeerMsg::ResyncDone { position }),
        (count(), extents(), any::<bool>()).prop_map(|(id, differing, retry)| PeerMsg::VerifyAnswer {
            id: id % 4,
            differing,
            retry
        }),
        (count(), any::<bool>()).prop_map(|(version, granted)| PeerMsg::ClaimAnswer { version, granted }),
        Just(PeerMsg::TakeOver),
        (lsn(), any::<u128>()).prop_map(|(after, id)| PeerMsg::Fetch { after, term: TermId(id) }),
        (count(), prop::option::of(count()), count(), count()).prop_map(
            |(records, bytes, send, again)| PeerMsg::Share(Share { records, bytes, send, at_most: false, again })
        ),
    ];
    let large = prop_oneof![
        (lsn(), any::<bool>()).prop_map(|(since, everything)| PeerMsg::ReadyResync { since, everything }),
        (lsn(), some(), watermarks())
            .prop_map(|(first, of, watermarks)| PeerMsg::Append { records: records(first, of), watermarks }),
        (some(), count()).prop_map(|(of, sent_bytes)| PeerMsg::ResyncData { records: records(Lsn(0), of), sent_bytes }),
        (lsn(), lsn()).prop_map(|(base, until)| PeerMsg::ResyncEnd { base, until }),
        (extent(), 0usize..4).prop_map(|(extent, n)| PeerMsg::VerifyAsk {
            id: 1,
            extent,
            crcs: vec![0; n],
            chunk: 4096
        }),
        charter().prop_map(PeerMsg::Charter),
        charter().prop_map(PeerMsg::Claim),
    ];
    prop_oneof![4 => small, 4 => large, 1 => hello(), 3 => ack()]
}

/// The message as it arrives, if a frame may hold it.
fn over_the_wire(message: &PeerMsg) -> Option<PeerMsg> {
    let encoded = wire::encode(message, false).ok()?;
    let (header, head) = encoded.head.split_first_chunk::<{ wire::HEADER_LEN }>()?;
    let payload: Vec<u8> = encoded.payloads.iter().flat_map(|p| p.to_vec()).collect();
    let payload = Payload::copy_of(&payload);
    wire::decode(&wire::FrameHeader::parse(header).ok()?, head, payload).ok()
}

fn tell_lies(duo: &mut Duo, side: usize, lies: Vec<(PeerMsg, u64)>) {
    for (message, pause) in lies {
        let Some(mut message) = over_the_wire(&message) else { continue };
        if let PeerMsg::Ack(ack) = &mut message {
            ack.term = duo.node(side).lineage().last().map(|t| t.id);
        }
        duo.lie(side, message);
        duo.run_ms(pause);
        let _ = duo.status(side);
    }
    duo.run_ms(3000);
}

/// A frame of 1 MiB.
fn megabyte(first: u64) -> Vec<Record> {
    let extent = Extent { volume: VolumeId(0), offset: 0, length: 64 << 10 };
    records(Lsn(first), vec![(extent, 0); 16])
}

fn gives_beta_up(duo: &Duo) -> bool {
    let flooded = |n: &notice::Notice| format!("{n:?}").contains("more than a window (1048576 bytes)");
    duo.sides[BETA].notices.iter().any(flooded)
}

/// A passive whose disk hangs holds what an honest active can have under way, and no more.
#[test]
fn an_active_that_exceeds_its_window_loses_its_session() {
    let mut duo = Duo::in_sync();
    let first = duo.status(BETA).watermarks.accepted.0 + 1;
    duo.sides[BETA].io_us = 3_600_000_000;
    // The true alpha does not hear in time that what it never sent is acknowledged.
    duo.wire_us = 1_000_000;
    let watermarks = Watermarks { committed: Lsn(0), accepted: Lsn(first), flush_to: Lsn(0), clock_us: 0 };
    for frame in 0..10 {
        duo.lie(BETA, PeerMsg::Append { records: megabyte(first + 16 * frame), watermarks });
        duo.run_ms(1);
        assert!(!gives_beta_up(&duo), "after {frame} MiB");
    }
    for frame in 10..13 {
        duo.lie(BETA, PeerMsg::Append { records: megabyte(first + 16 * frame), watermarks });
        duo.run_ms(1);
    }
    assert!(gives_beta_up(&duo), "{:?} {:?}", duo.sides[BETA].notices, duo.status(BETA));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn an_active_survives_a_lying_passive(lies in prop::collection::vec((lie(), 0u64..40), 1..30)) {
        let mut duo = Duo::in_sync();
        for block in 0..3 {
            duo.write(ALPHA, block, false);
        }
        tell_lies(&mut duo, ALPHA, lies);
    }

    #[test]
    fn a_passive_survives_a_lying_active(lies in prop::collection::vec((lie(), 0u64..40), 1..30)) {
        let mut duo = Duo::in_sync();
        for block in 0..3 {
            duo.write(ALPHA, block, false);
        }
        tell_lies(&mut duo, BETA, lies);
    }

    #[test]
    fn a_fresh_node_survives_a_lying_one(lies in prop::collection::vec((lie(), 0u64..40), 1..30), first in hello()) {
        let mut duo = Duo::new();
        duo.stop(ALPHA);
        let lies = std::iter::once((first, 1)).chain(lies).collect();
        tell_lies(&mut duo, BETA, lies);
    }
}
