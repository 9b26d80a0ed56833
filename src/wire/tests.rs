//! What goes in comes out; what is damaged is refused; nothing panics.

use super::*;
use crate::buf::Payload;
use crate::core::hello::{Charter, Gap, Hello, Member, Share};
use crate::core::register::{Entry, Voter, VoterId};
use crate::core::*;
use proptest::prelude::*;

fn record(lsn: u64, kind: Kind, offset: u64, bytes: &[u8]) -> Record {
    let write = kind == Kind::Write;
    Record {
        lsn: Lsn(lsn),
        volume: VolumeId(1),
        kind,
        offset,
        length: bytes.len() as u64,
        crc: if write { crc32fast::hash(bytes) } else { 0 },
        payload: if write { Payload::copy_of(bytes) } else { Payload::empty() },
    }
}

fn hello() -> Hello {
    Hello {
        protocol: hello::PROTOCOL,
        resource: "data".into(),
        node: "alpha".into(),
        incarnation: Incarnation(7 << 100),
        role: Role::Active,
        volumes: vec![("disk0".into(), 1 << 30), ("disk1".into(), 4096)],
        block: 4096,
        lineage: vec![Term { number: 3, id: TermId(u128::MAX), first: Lsn(77) }],
        zero: true,
        received: Lsn(100),
        durable: Lsn(99),
        committed: Lsn(98),
        applied: Lsn(97),
        log_from: Lsn(50),
        charter: Charter {
            version: 9,
            in_sync: vec![Member { node: "alpha".into(), incarnation: Incarnation(1) }],
            heir: Some("beta".into()),
            released: Some(Lsn(4)),
            ..Charter::default()
        },
        promoting: false,
        gap: Some(Gap {
            rollback: Some(Lsn(3)),
            since: Lsn(2),
            everything: true,
            grain: 4096,
            overwritten_in: Some(TermId(7)),
        }),
        features: vec!["lz4".into()],
        settings: vec![("resource.stall_ms".into(), "2000".into())],
        probe: false,
    }
}

fn one_of_each() -> Vec<PeerMsg> {
    let extent = Extent { volume: VolumeId(0), offset: 4096, length: 8192 };
    let watermarks = Watermarks { committed: Lsn(1), accepted: Lsn(3), flush_to: Lsn(2), clock_us: 123_456_789 };
    vec![
        PeerMsg::Hello(Box::new(hello())),
        PeerMsg::Ready { received: Lsn(5), durable: Lsn(4) },
        PeerMsg::Lacks { piece: vec![1, 2, 3] },
        PeerMsg::LacksTaken,
        PeerMsg::ReadyResync { since: Lsn(9), everything: true },
        PeerMsg::Append {
            records: vec![
                record(10, Kind::Write, 0, &[1; 4096]),
                record(11, Kind::Discard, 8192, &[0; 4096]),
                record(12, Kind::Write, 4096, &[2; 512]),
            ],
            watermarks,
        },
        PeerMsg::Append { records: vec![], watermarks },
        PeerMsg::Heartbeat { watermarks },
        PeerMsg::Ack(Ack {
            term: Some(TermId(5)),
            received: Lsn(3),
            durable: Lsn(2),
            applied: Lsn(1),
            streamed: Lsn(1 << 41),
            resync_bytes: 1 << 40,
            echo_us: 5,
            held_us: 6,
            disk_us: 7,
        }),
        PeerMsg::Charter(hello().charter),
        PeerMsg::CharterAck { version: 8 },
        PeerMsg::ResyncBegin { bytes: 1 << 40, runs: 3, whole: true },
        PeerMsg::ResyncData {
            records: vec![record(0, Kind::Write, 0, &[3; 8192]), record(0, Kind::Zeroes, 0, &[0; 512])],
            sent_bytes: 1 << 33,
        },
        PeerMsg::ResyncEnd { base: Lsn(1), until: Lsn(2) },
        PeerMsg::ResyncDone { position: Lsn(2) },
        PeerMsg::VerifyAsk { id: 1, extent, crcs: vec![1, 2, 3], chunk: 65536 },
        PeerMsg::VerifyAnswer { id: 1, differing: vec![extent], retry: true },
        PeerMsg::Claim(hello().charter),
        PeerMsg::ClaimAnswer { version: 3, granted: true },
        PeerMsg::TakeOver,
        PeerMsg::Fetch { after: Lsn(9), term: TermId(3) },
        PeerMsg::Bye { why: "over and out".into() },
        PeerMsg::Share(Share { records: 3, bytes: None, send: 1 << 40, at_most: true, again: 4096 }),
        PeerMsg::Entry(Box::new(Entry {
            charter: hello().charter,
            voters: vec![Voter { name: "w1".into(), id: VoterId(1 << 100) }],
            former: vec![Voter { name: "w0".into(), id: VoterId(7) }],
            maintenance: true,
        })),
    ]
}

/// Whatever an older or newer daemon says behind its version and its names, it is known who speaks, and what.
#[test]
fn a_hello_of_another_protocol_is_read_as_far_as_its_names() {
    let config = bincode::config::standard();
    for protocol in [1, hello::PROTOCOL - 1, hello::PROTOCOL + 1, u32::MAX] {
        for rest in [&b""[..], b"\xff", &[0; 100], &[0xfb; 1000]] {
            let mut head = bincode::encode_to_vec((0u32, protocol, "data", "beta"), config).unwrap();
            head.extend_from_slice(rest);
            let header = FrameHeader {
                head_len: head.len(),
                payload_len: 0,
                head_crc: crc32fast::hash(&head),
                compressed: false,
            };
            let decoded = decode(&header, &head, Payload::empty()).unwrap();
            let expected = Hello::unintelligible(protocol, "data".into(), "beta".into());
            assert_eq!(decoded, PeerMsg::Hello(Box::new(expected)), "protocol {protocol}");
        }
    }
    let same = round_trip(&PeerMsg::Hello(Box::new(hello())), false);
    assert_eq!(same, PeerMsg::Hello(Box::new(hello())));
}

/// Header, head and payload of a frame as a receiver has them.
fn split(encoded: &Encoded) -> ([u8; HEADER_LEN], Vec<u8>, Payload) {
    let mut header = [0; HEADER_LEN];
    header.copy_from_slice(&encoded.head[..HEADER_LEN]);
    let mut all = Vec::new();
    encoded.payloads.iter().for_each(|p| all.extend_from_slice(p));
    (header, encoded.head[HEADER_LEN..].to_vec(), Payload::copy_of(&all))
}

fn round_trip(message: &PeerMsg, compress: bool) -> PeerMsg {
    let (header, head, payload) = split(&encode(message, compress).unwrap());
    decode(&FrameHeader::parse(&header).unwrap(), &head, payload).unwrap()
}

#[test]
fn every_message_comes_out_as_it_went_in() {
    for message in one_of_each() {
        assert_eq!(round_trip(&message, false), message);
        assert_eq!(round_trip(&message, true), message);
    }
}

#[test]
fn records_share_the_received_buffer_and_stay_aligned() {
    let message = &one_of_each()[5];
    let (header, head, payload) = split(&encode(message, false).unwrap());
    let base = payload.as_ptr() as usize;
    let PeerMsg::Append { records, .. } = decode(&FrameHeader::parse(&header).unwrap(), &head, payload).unwrap() else {
        panic!("not an append");
    };
    assert_eq!(records[0].payload.as_ptr() as usize, base);
    assert_eq!(records[2].payload.as_ptr() as usize, base + 4096);
}

#[test]
fn compression_shrinks_what_repeats_and_leaves_what_does_not() {
    let same = PeerMsg::ResyncData { records: vec![record(0, Kind::Write, 0, &[9; 65536])], sent_bytes: 0 };
    assert!(encode(&same, true).unwrap().length() < 2048);
    let mut noise = vec![0; 4096];
    let mut x = 1u32;
    noise.iter_mut().for_each(|b| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *b = (x >> 24) as u8;
    });
    let random = PeerMsg::ResyncData { records: vec![record(0, Kind::Write, 0, &noise)], sent_bytes: 0 };
    assert_eq!(encode(&random, true).unwrap().length(), encode(&random, false).unwrap().length());
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    for message in one_of_each() {
        let (header, head, payload) = split(&encode(&message, false).unwrap());
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = header;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::parse(&bad).is_err(), "bit {bit} of the header");
        }
        let frame = FrameHeader::parse(&header).unwrap();
        for bit in 0..head.len() * 8 {
            let mut bad = head.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&frame, &bad, payload.clone()), Err(WireError::HeadChecksum));
        }
        for at in (0..payload.len()).step_by(61) {
            let mut bad = payload.to_vec();
            bad[at] ^= 4;
            let result = decode(&frame, &head, Payload::copy_of(&bad));
            assert!(matches!(result, Err(WireError::PayloadChecksum { .. })));
        }
    }
}

/// A frame around any head, its checksums right: what a hostile peer would send.
fn forge(head: &[u8], payload: &[u8], compressed: bool) -> Result<PeerMsg, WireError> {
    let frame =
        FrameHeader { head_len: head.len(), payload_len: payload.len(), head_crc: crc32fast::hash(head), compressed };
    decode(&FrameHeader::parse(&frame.to_bytes())?, head, Payload::copy_of(payload))
}

fn head_of(message: &PeerMsg) -> Vec<u8> {
    bincode::encode_to_vec(super::head::Head::of(message), bincode::config::standard()).unwrap()
}

#[test]
fn malformed_records_are_refused() {
    let with = |change: fn(&mut Record)| {
        let mut r = record(1, Kind::Write, 0, &[1; 512]);
        change(&mut r);
        forge(&head_of(&PeerMsg::ResyncData { records: vec![r], sent_bytes: 0 }), &[1; 512], false)
    };
    assert!(with(|_| ()).is_ok());
    for change in [
        (|r| r.length = 0) as fn(&mut Record),
        |r| r.length = 511,
        |r| r.offset = 1,
        |r| r.offset = u64::MAX - 511,
        |r| r.kind = Kind::Discard,
    ] {
        assert!(matches!(with(change), Err(WireError::Record(_))));
    }
    assert_eq!(with(|r| r.length = 1024), Err(WireError::PayloadMismatch { needed: 1024, found: 512 }));
    assert!(matches!(with(|r| r.length = 1 << 50), Err(WireError::PayloadLength(_))));
    assert_eq!(
        forge(&head_of(&PeerMsg::ResyncDone { position: Lsn(u64::MAX) }), &[], false),
        Err(WireError::Lsn(u64::MAX))
    );
    assert!(forge(&head_of(&PeerMsg::TakeOver), &[0; 512], false).is_err(), "payload that nobody asked for");
}

/// What a node keeps of a Hello or a charter goes into its superblock, and is counted on from.
#[test]
fn a_hello_without_sense_is_refused() {
    let refused = |change: fn(&mut Hello)| {
        let mut hello = hello();
        change(&mut hello);
        let found = forge(&head_of(&PeerMsg::Hello(Box::new(hello.clone()))), &[], false);
        assert!(matches!(found, Err(WireError::Sense(_) | WireError::Lsn(_))), "{found:?}");
    };
    refused(|h| h.node = "x".repeat(65));
    refused(|h| h.resource = "x".repeat(200_000));
    refused(|h| h.volumes = vec![("v".into(), 1); 65]);
    refused(|h| h.features = vec!["f".into(); 65]);
    refused(|h| h.settings = vec![("k".into(), "v".into()); 129]);
    refused(|h| h.settings[0].1 = "v".repeat(129));
    refused(|h| h.settings[0].0 = "k\n".into());
    refused(|h| h.lineage.clear());
    refused(|h| h.lineage = vec![h.lineage[0]; 257]);
    refused(|h| h.lineage.push(Term { first: Lsn(76), ..h.lineage[0] }));
    refused(|h| h.lineage[0].number = u64::MAX);
    refused(|h| h.lineage[0].first = Lsn(u64::MAX));
    refused(|h| h.charter.version = u64::MAX);
    refused(|h| h.charter.generation.0 = u64::MAX);
    refused(|h| h.charter.term = u64::MAX);
    refused(|h| h.charter.in_sync = vec![h.charter.in_sync[0].clone(); 17]);
    refused(|h| h.charter.in_sync[0].node = "x".repeat(65));
    refused(|h| h.charter.active = Some("x".repeat(65)));
    refused(|h| h.charter.heir = Some("x".repeat(65)));
    let huge = Charter { heir: Some("x".repeat(40_000)), ..Charter::default() };
    for message in [PeerMsg::Charter(huge.clone()), PeerMsg::Claim(huge), PeerMsg::Bye { why: "x".repeat(40_000) }] {
        assert!(matches!(forge(&head_of(&message), &[], false), Err(WireError::Sense(_))));
    }
    let Some(PeerMsg::Ack(ack)) = one_of_each().into_iter().find(|m| matches!(m, PeerMsg::Ack(_))) else {
        unreachable!()
    };
    let ack = Ack { streamed: Lsn(u64::MAX), ..ack };
    assert!(matches!(forge(&head_of(&PeerMsg::Ack(ack)), &[], false), Err(WireError::Lsn(_))));
}

#[test]
fn a_container_length_out_of_thin_air_allocates_nothing() {
    // Variant ReadyResync, lsn 0, then a vector of 2^60 extents.
    let mut head = vec![2, 0, 253];
    head.extend_from_slice(&(1u64 << 60).to_le_bytes());
    assert!(matches!(forge(&head, &[], false), Err(WireError::Head(_))));
}

#[test]
fn what_no_receiver_takes_is_not_sent() {
    let far = |lsn| record(lsn, Kind::Discard, 0, &[0; 512]);
    let gap = PeerMsg::Append { records: vec![far(1), far(3)], watermarks: Watermarks::default() };
    assert!(matches!(encode(&gap, false), Err(WireError::Record(_))));
    let big = PeerMsg::ResyncData { records: vec![record(0, Kind::Write, 0, &[0; 5 << 20]); 2], sent_bytes: 0 };
    assert!(matches!(encode(&big, false), Err(WireError::PayloadLength(_))));
    let extent = Extent { volume: VolumeId(0), offset: 1 << 40, length: 4096 };
    let long = PeerMsg::VerifyAnswer { id: 1, differing: vec![extent; 100_000], retry: false };
    assert!(matches!(encode(&long, false), Err(WireError::HeadLength(_))));
}

#[test]
fn the_largest_head_that_is_sent_is_also_taken() {
    let tiny = Extent { volume: VolumeId(0), offset: 0, length: 0 };
    let message = PeerMsg::VerifyAnswer { id: 1, differing: vec![tiny; (MAX_HEAD - 16) / 3], retry: false };
    assert_eq!(round_trip(&message, false), message);
}

proptest! {
    #[test]
    fn hostile_headers_never_panic(bytes in proptest::array::uniform32(any::<u8>())) {
        prop_assert!(FrameHeader::parse(&bytes).is_err());
    }

    #[test]
    fn hostile_heads_never_panic(head in proptest::collection::vec(any::<u8>(), 1..400),
                                 payload in proptest::collection::vec(any::<u8>(), 0..600), packed: bool) {
        let _ = forge(&head, &payload, packed);
    }

    /// Heads that decode far: a valid one with a few bytes changed.
    #[test]
    fn nearly_valid_heads_never_panic(which in 0usize..21, at: proptest::sample::Index, to: u8, payload_at: proptest::sample::Index, packed: bool) {
        let message = &one_of_each()[which];
        let mut head = head_of(message);
        let i = at.index(head.len());
        head[i] = to;
        let (_, _, payload) = split(&encode(message, false).unwrap());
        let mut payload = payload.to_vec();
        if !payload.is_empty() && packed {
            let i = payload_at.index(payload.len());
            payload.truncate(i);
        }
        let _ = forge(&head, &payload, packed);
    }

    #[test]
    fn records_round_trip(sizes in proptest::collection::vec((1u64..40, 0u64..1 << 30, 0u8..3), 0..20), first in 1u64..1 << 61, compress: bool) {
        let records: Vec<Record> = sizes
            .iter()
            .enumerate()
            .map(|(i, &(n, at, kind))| {
                let kind = Kind::from_u8(kind + 1).unwrap();
                record(first + i as u64, kind, at * 512, &vec![(n ^ at) as u8; n as usize * 512])
            })
            .collect();
        let message = PeerMsg::Append { records, watermarks: Watermarks::default() };
        prop_assert_eq!(round_trip(&message, compress), message);
    }
}
