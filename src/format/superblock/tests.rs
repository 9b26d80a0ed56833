use super::*;
use crate::core::hello::Member;
use proptest::prelude::*;

pub fn superblock(sequence: u64) -> Superblock {
    Superblock {
        sequence,
        resource: "data".into(),
        node: "alpha".into(),
        stream: 1 << 127 | 5,
        log_size: 256 << 20,
        block: 4096,
        volumes: vec![("disk0".into(), 1 << 30), ("disk1".into(), 1 << 20)],
        lineage: vec![
            Term { number: 1, id: TermId(9), first: Lsn(1) },
            Term { number: 2, id: TermId(10), first: Lsn(77) },
        ],
        charter: Charter {
            generation: (1, 2),
            term: 2,
            version: 3,
            active: Some("alpha".into()),
            in_sync: vec![Member { node: "alpha".into(), incarnation: Incarnation(4) }],
            heir: None,
            released: Some(Lsn(70)),
        },
        incarnation: Incarnation(6),
        boot: 7,
        clean: true,
        checkpoint: Lsn(60),
        applying: Lsn(61),
        tail: ScanStart { address: 4096, prev_crc: 8, first: Lsn(50) },
        zero: false,
        pledge: None,
        gap: Some(Gap {
            rollback: Some(Lsn(55)),
            since: Lsn(54),
            everything: true,
            grain: 8192,
            overwritten_in: Some(TermId(17)),
        }),
        history_stream: 11,
        history_bytes: 12 << 20,
        bitmaps: vec![BitmapState {
            peer: "beta".into(),
            half: 1,
            stream: 13,
            from: Lsn(14),
            from_term: Some(TermId(9)),
            listed: 4096,
            newest: Lsn(16),
        }],
        next_salvage: 15,
        log_errors: false,
        extension: vec![1, 2, 3],
        behind: ScanStart { address: 8192, prev_crc: 18, first: Lsn(59) },
        lost: None,
    }
}

fn slot(sequence: u64) -> Vec<u8> {
    encode(&superblock(sequence)).unwrap().to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_encoded_is_decoded(
        sequence: u64, resource in ".{0,40}", volumes in prop::collection::vec((".{0,20}", any::<u64>()), 0..20),
        lineage in prop::collection::vec((any::<u64>(), any::<u128>(), any::<u64>()), 0..MAX_LINEAGE),
        flags: [bool; 4], rollback: Option<u64>, checkpoint: u64, address: u64, prev_crc: u32,
        extension in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let lineage = lineage.into_iter().map(|(number, id, first)| Term { number, id: TermId(id), first: Lsn(first) });
        let superblock = Superblock {
            resource, volumes, lineage: lineage.collect(), clean: flags[0], zero: flags[1], log_errors: flags[2],
            gap: flags[3].then_some(Gap {
                rollback: rollback.map(Lsn), since: Lsn(checkpoint), everything: flags[0], grain: address,
                overwritten_in: rollback.map(|r| TermId(r.into())),
            }), checkpoint: Lsn(checkpoint),
            tail: ScanStart { address, prev_crc, first: Lsn(checkpoint / 2) }, extension,
            behind: ScanStart { address: address / 2, prev_crc, first: Lsn(checkpoint) }, lost: rollback.map(Lsn),
            ..superblock(sequence)
        };
        let slot = encode(&superblock).unwrap();
        prop_assert!(slot.len().is_multiple_of(BLOCK) && slot.len() <= SLOT_BYTES);
        prop_assert_eq!(decode(&slot), Ok(superblock.clone()));
        // A slot is read whole, and an older, longer superblock may lie behind.
        let mut whole = slot.to_vec();
        whole.resize(SLOT_BYTES, 0xee);
        prop_assert_eq!(decode(&whole), Ok(superblock));
    }

    /// With a right checksum, so that what is behind it is reached.
    #[test]
    fn hostile_bodies_never_panic(
        edits in prop::collection::vec((at::BODY..600, prop_oneof![Just(0u8), Just(0xff), any::<u8>()]), 1..20),
        body_bytes in 0u32..40000,
    ) {
        let mut bytes = slot(1);
        le::put(&mut bytes, at::BODY_BYTES, body_bytes.to_le_bytes());
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        let crc = crc_without(&bytes, at::CRC);
        le::put(&mut bytes, at::CRC, crc.to_le_bytes());
        let _ = decode(&bytes);
    }

    #[test]
    fn random_slots_are_no_superblocks(
        a in prop::collection::vec(any::<u8>(), 0..9000), b in prop::collection::vec(any::<u8>(), 0..9000),
    ) {
        prop_assert!(choose(&a, &b).is_err());
    }
}

#[test]
fn every_flipped_byte_is_seen() {
    let mut bytes = slot(1);
    for at in 0..bytes.len() {
        bytes[at] ^= 0x40;
        assert!(decode(&bytes).is_err(), "byte {at}");
        bytes[at] ^= 0x40;
    }
    assert!(decode(&bytes).is_ok());
}

#[test]
fn the_newest_valid_slot_is_chosen() {
    let torn = |sequence| {
        let mut bytes = slot(sequence);
        bytes[100] ^= 1;
        bytes
    };
    let blank = vec![0; SLOT_BYTES];
    let chosen = |a: &[u8], b: &[u8]| choose(a, b).map(|(s, index)| (s.sequence, index)).unwrap();
    assert_eq!(chosen(&slot(4), &slot(5)), (5, 1));
    assert_eq!(chosen(&slot(6), &slot(5)), (6, 0));
    assert_eq!(chosen(&slot(4), &torn(5)), (4, 0));
    assert_eq!(chosen(&torn(6), &slot(5)), (5, 1));
    assert_eq!(chosen(&slot(1), &blank), (1, 0));
    assert_eq!(chosen(&blank, &slot(1)), (1, 1));
    assert!(matches!(choose(&torn(6), &torn(5)), Err(SuperError::Damaged { what: Damage::Checksum { .. } })));
    assert!(matches!(choose(&blank, &torn(5)), Err(SuperError::Damaged { .. })));
    assert!(matches!(choose(&blank, &slot(1)[..10]), Err(SuperError::Foreign { .. })));
    assert_eq!(choose(&blank, &blank), Err(SuperError::Blank));
}

#[test]
fn a_newer_format_is_refused_even_beside_a_valid_slot() {
    let mut newer = slot(5);
    le::put(&mut newer, at::VERSION, (VERSION + 1).to_le_bytes());
    assert!(matches!(decode(&newer), Err(SuperError::Damaged { .. })), "a flipped bit is not a newer format");
    let crc = crc_without(&newer, at::CRC);
    le::put(&mut newer, at::CRC, crc.to_le_bytes());
    assert_eq!(choose(&slot(4), &newer), Err(SuperError::Version { version: VERSION + 1 }));
    assert_eq!(choose(&newer, &slot(6)), Err(SuperError::Version { version: VERSION + 1 }));
}

#[test]
fn a_slot_is_whole_or_refused() {
    let mut long = slot(1);
    le::put(&mut long, at::BODY_BYTES, u32::MAX.to_le_bytes());
    assert!(matches!(decode(&long), Err(SuperError::Damaged { what: Damage::Length { .. } })));
    // More bytes than the body needs, all of them under a right checksum.
    let mut padded = slot(1);
    let body_bytes = le::u32(&padded, at::BODY_BYTES) + 1;
    le::put(&mut padded, at::BODY_BYTES, body_bytes.to_le_bytes());
    let crc = crc_without(&padded, at::CRC);
    le::put(&mut padded, at::CRC, crc.to_le_bytes());
    assert!(matches!(decode(&padded), Err(SuperError::Damaged { what: Damage::Body(_) })));
}

#[test]
fn what_something_else_wrote_is_named() {
    let marks: [(usize, &[u8], &str); 9] = [
        (1080, b"\x53\xef", "ext4"),
        (0, b"XFSB", "XFS"),
        (65600, b"_BHRfS_M", "btrfs"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (512, b"LABELONE", "LVM"),
        (60, b"\x83\x74\x02\x6d", "DRBD"),
        (512, b"EFI PART", "GPT"),
        (32769, b"CD001", "ISO 9660"),
        (7000, b"x", "unknown"),
    ];
    for (at, mark, name) in marks {
        let mut head = vec![0; 128 << 10];
        head[at..at + mark.len()].copy_from_slice(mark);
        assert!(looks_like(&head).unwrap_or("unknown").contains(name), "{name}");
        if at < RING_START as usize {
            let text = choose(&head[..SLOT_BYTES], &head[SLOT_BYTES..RING_START as usize]).unwrap_err().to_string();
            // A slot that was read short does not move the marks behind it.
            let short = choose(&head[..BLOCK], &head[SLOT_BYTES..RING_START as usize]).unwrap_err().to_string();
            assert!(at == 7000 || short.contains(name), "{short}");
            assert!(text.contains(name) && text.contains(&format!("{:02x}", mark[0])), "{text}");
        }
    }
}

#[test]
fn only_the_newest_terms_of_a_lineage_are_kept() {
    let term = |number| Term { number, id: TermId(u128::from(number)), first: Lsn(number) };
    let superblock = Superblock { lineage: (1..=300).map(term).collect(), ..superblock(1) };
    let kept = decode(&encode(&superblock).unwrap()).unwrap().lineage;
    assert_eq!(kept, superblock.lineage[300 - MAX_LINEAGE..]);
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let superblock = Superblock { volumes: vec![("v".repeat(200), 1); 200], ..superblock(1) };
    let error = encode(&superblock).unwrap_err();
    assert!(matches!(error, SuperError::TooLarge { bytes } if bytes > SLOT_BYTES));
    assert!(error.to_string().contains("volumes"), "{error}");
}

/// What version 1 did not know is as if nothing had ever been damaged.
#[test]
fn the_first_version_is_read() {
    let mut bytes = slot(9);
    let body_bytes = le::u32(&bytes, at::BODY_BYTES) - ADDED_IN_2 as u32;
    le::put(&mut bytes, at::VERSION, 1u16.to_le_bytes());
    le::put(&mut bytes, at::BODY_BYTES, body_bytes.to_le_bytes());
    bytes[at::BODY + body_bytes as usize..].fill(0);
    bytes.truncate(padded((at::BODY as u32 + body_bytes).into()) as usize);
    let crc = crc_without(&bytes, at::CRC);
    le::put(&mut bytes, at::CRC, crc.to_le_bytes());
    let expected = superblock(9);
    assert_eq!(decode(&bytes), Ok(Superblock { behind: expected.tail, ..expected }));
}

/// The format as it was first released. If this fails, logs in the field can no longer be read: raise the version.
#[test]
fn the_format_has_not_changed() {
    let bytes = slot(0x1122);
    assert_eq!(&bytes[..8], b"USTDYSUP");
    assert_eq!(le::u64(&bytes, at::BODY), 0x1122, "the sequence comes first");
    assert_eq!((le::u32(&bytes, at::CRC), le::u32(&bytes, at::BODY_BYTES)), FIXTURE);
}

/// Checksum and length of the body.
const FIXTURE: (u32, u32) = (2934412605, 538);
