//! Round trips, and bytes that somebody else wrote.

use super::*;
use proptest::prelude::*;

fn write(lsn: u64, offset: u64, bytes: &[u8]) -> Record {
    Record {
        lsn: Lsn(lsn),
        volume: VolumeId(1),
        kind: Kind::Write,
        offset,
        length: bytes.len() as u64,
        crc: crc32fast::hash(bytes),
        payload: Payload::copy_of(bytes),
    }
}

fn fields(first: u64) -> BatchFields {
    BatchFields {
        stream: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
        address: 8192,
        prev_crc: 0xdead_beef,
        term: TermRef { number: 3, id: TermId(7 << 100) },
        first: Lsn(first),
        durable: Lsn(first - 1),
    }
}

fn body_of(header_block: Payload, records: &[Record]) -> Payload {
    let bytes: Vec<u8> = buffers(header_block, records).iter().flat_map(|b| b.to_vec()).collect();
    Payload::copy_of(&bytes)
}

/// A header block changed by `edit`, with a checksum that says it is whole.
fn forged(edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let (block, _) = encode(&fields(5), &[write(5, 0, &[1; 4096]), write(6, 4096, &[2; 512])]);
    let mut block = block.to_vec();
    edit(&mut block);
    let crc = crc_without(&block, at::CRC);
    le::put(&mut block, at::CRC, crc.to_le_bytes());
    block
}

fn any_record() -> impl Strategy<Value = Record> {
    let kind = prop_oneof![3 => Just(Kind::Write), 1 => Just(Kind::Zeroes), 1 => Just(Kind::Discard)];
    (kind, any::<u16>(), 1u64..40, any::<u32>(), any::<u8>()).prop_map(|(kind, volume, blocks, at, fill)| {
        let length = blocks * 512;
        let payload = if kind == Kind::Write { vec![fill; length as usize] } else { Vec::new() };
        let crc = if kind == Kind::Write { crc32fast::hash(&payload) } else { 0 };
        let payload = Payload::copy_of(&payload);
        Record { lsn: Lsn(0), volume: VolumeId(volume), kind, offset: u64::from(at) * 512, length, crc, payload }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_encoded_is_decoded(
        mut list in prop::collection::vec(any_record(), 1..=MAX_RECORDS),
        first in 1u64..1 << 60, block in 0u64..1 << 40, stream: u128, prev_crc: u32, number: u64, id: u128,
    ) {
        for (lsn, record) in (first..).zip(&mut list) {
            record.lsn = Lsn(lsn);
        }
        let term = TermRef { number, id: TermId(id) };
        let fields = BatchFields { stream, address: block * 4096, prev_crc, term, first: Lsn(first), durable: Lsn(first / 2) };
        let (head, crc) = encode(&fields, &list);
        let body = body_of(head.clone(), &list);
        prop_assert_eq!(body.len() as u64, batch_bytes(&list));
        let (header, metas) = decode_header(&head).unwrap();
        prop_assert_eq!(header.fields, fields);
        prop_assert_eq!(header.crc, crc);
        prop_assert_eq!(header.bytes(), batch_bytes(&list));
        prop_assert!(metas.iter().all(|m| payload_ok(m, &body)));
        prop_assert_eq!(records(&header, &metas, &body), list);
    }

    /// With a right checksum, so that what is behind it is reached.
    #[test]
    fn hostile_headers_never_panic(
        edits in prop::collection::vec((8usize..4096, prop_oneof![Just(0u8), Just(0xff), any::<u8>()]), 0..40),
        count in 0u16..130, body in prop::collection::vec(any::<u8>(), 0..9000),
    ) {
        let block = forged(|b| {
            for (at, byte) in edits {
                b[at] = byte;
            }
            le::put(b, at::VERSION, VERSION.to_le_bytes());
            le::put(b, at::COUNT, count.to_le_bytes());
        });
        if let Ok((header, metas)) = decode_header(&block) {
            prop_assert!(header.bytes() <= MAX_BATCH_BYTES && header.count as usize == metas.len());
            for meta in metas {
                let _ = payload_ok(&meta, &body);
            }
        }
    }

    #[test]
    fn random_blocks_are_no_batches(block in prop::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(decode_header(&block).is_err());
    }
}

#[test]
fn every_flipped_bit_of_a_header_is_seen() {
    let list: Vec<Record> = (5..5 + MAX_RECORDS as u64).map(|lsn| write(lsn, lsn * 512, &[lsn as u8; 512])).collect();
    let (head, _) = encode(&fields(5), &list);
    let mut block = head.to_vec();
    assert!(decode_header(&block).is_ok());
    for at in 0..block.len() {
        for bit in 0..8 {
            block[at] ^= 1 << bit;
            assert!(decode_header(&block).is_err(), "bit {bit} of byte {at}");
            block[at] ^= 1 << bit;
        }
    }
}

#[test]
fn every_flipped_byte_of_a_payload_is_seen() {
    let list = [write(5, 0, &[7; 512]), write(6, 512, &[8; 1024])];
    let (head, _) = encode(&fields(5), &list);
    let (_, metas) = decode_header(&head).unwrap();
    let mut body = body_of(head, &list).to_vec();
    for meta in &metas {
        for at in meta.payload_at..meta.payload_at + meta.length {
            body[at as usize] ^= 0x10;
            assert!(!payload_ok(meta, &body));
            body[at as usize] ^= 0x10;
        }
    }
    assert!(!payload_ok(&metas[1], &body[..body.len() - 4096]), "a body that is too short");
}

#[test]
fn payloads_are_written_from_where_they_are_and_start_at_whole_blocks() {
    let list = [write(5, 0, &[7; 512]), write(6, 512, &[8; 4096])];
    let (head, _) = encode(&fields(5), &list);
    let bufs = buffers(head.clone(), &list);
    assert_eq!(bufs.iter().map(|b| b.len()).collect::<Vec<_>>(), [4096, 512, 3584, 4096]);
    assert_eq!(bufs[1].as_ptr(), list[0].payload.as_ptr());
    assert!(bufs[2].iter().all(|b| *b == 0));
    let (_, metas) = decode_header(&head).unwrap();
    assert_eq!(metas.iter().map(|m| m.payload_at).collect::<Vec<_>>(), [4096, 8192]);
}

#[test]
fn impossible_headers_are_refused_by_name() {
    let second = at::RECORDS + rec::BYTES;
    let put64 = |at: usize, value: u64| forged(|b| le::put(b, at, value.to_le_bytes()));
    let put16 = |at: usize, value: u16| forged(|b| le::put(b, at, value.to_le_bytes()));
    let cases = [
        (vec![0; 100], BatchError::Short { bytes: 100 }),
        (put64(at::MAGIC, 5), BatchError::NoMagic),
        (put16(at::VERSION, 2), BatchError::Version { version: 2 }),
        (put16(at::COUNT, 0), BatchError::Count { count: 0 }),
        (put16(at::COUNT, 125), BatchError::Count { count: 125 }),
        (put64(at::ADDRESS, 512), BatchError::Address { address: 512 }),
        (put64(at::ADDRESS, u64::MAX - 4095), BatchError::Address { address: u64::MAX - 4095 }),
        (put64(at::FIRST, u64::MAX - 1), BatchError::Lsn { first: u64::MAX - 1, count: 2 }),
        (forged(|b| b[second] = 9), BatchError::Kind { index: 1, kind: 9 }),
        (forged(|b| b[second + rec::FLAGS] = 1), BatchError::Flags { index: 1, flags: 1 }),
        (put64(second + rec::LENGTH, 0), BatchError::Range { index: 1, offset: 4096, length: 0 }),
        (
            put64(second + rec::OFFSET, u64::MAX - 511),
            BatchError::Range { index: 1, offset: u64::MAX - 511, length: 512 },
        ),
        (
            put64(second + rec::LENGTH, MAX_RECORD_BYTES + 1),
            BatchError::TooLong { index: 1, length: MAX_RECORD_BYTES + 1 },
        ),
        (forged(|b| b[second] = Kind::Discard as u8), BatchError::StrayChecksum { index: 1 }),
        (put64(second + rec::LENGTH, 4097), BatchError::PayloadBytes { stated: 8192, summed: 12288 }),
        (put64(at::PAYLOAD_BYTES, 4096), BatchError::PayloadBytes { stated: 4096, summed: 8192 }),
    ];
    for (block, error) in cases {
        assert_eq!(decode_header(&block), Err(error));
    }
}

#[test]
fn more_payload_than_a_batch_may_have_is_refused() {
    let block = forged(|b| {
        le::put(b, at::COUNT, 5u16.to_le_bytes());
        le::put(b, at::PAYLOAD_BYTES, (5 * MAX_RECORD_BYTES).to_le_bytes());
        for index in 0..5 {
            let entry = at::RECORDS + index * rec::BYTES;
            b[entry] = Kind::Write as u8;
            le::put(b, entry + rec::LENGTH, MAX_RECORD_BYTES.to_le_bytes());
        }
    });
    let (stated, summed) = (5 << 20, 5 << 20);
    assert_eq!(decode_header(&block), Err(BatchError::PayloadBytes { stated, summed }));
}

/// The format as it was first released. If this fails, logs in the field can no longer be read: raise the version.
#[test]
fn the_format_has_not_changed() {
    let discard =
        Record { kind: Kind::Discard, crc: 0, payload: Payload::empty(), length: 1 << 40, ..write(43, 8192, &[0]) };
    let (head, crc) = encode(&fields(42), &[write(42, 4096, &[0xab; 4096]), discard]);
    let hex: String = head[..at::RECORDS + 3 * rec::BYTES].iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, include_str!("fixture.hex").split_whitespace().collect::<String>());
    assert_eq!(crc, FIXTURE_CRC);
    assert_eq!(seed(fields(1).stream), FIXTURE_SEED);
}

const FIXTURE_CRC: u32 = 0x2986260b;
const FIXTURE_SEED: u32 = 0x8fe75db3;
