//! The decoders, whole inputs for each, and what must hold of whatever they accept.

use std::path::Path;
use std::rc::Rc;
use understudy::buf::{BufMut, Payload};
use understudy::config::ConfigError;
use understudy::core::hello::{Charter, Gap, Member};
use understudy::core::*;
use understudy::format::batch::{self, BatchFields, TermRef};
use understudy::format::ring::{Geometry, ScanStart, scan};
use understudy::format::superblock::{self, BitmapState, Superblock};
use understudy::format::{BLOCK, batch::MAGIC as BATCH_MAGIC};
use understudy::nbd::{Export, MAX_HEAD, MAX_PAYLOAD, Output, ReplyBuf, Session, Want};
use understudy::wire::{self, FrameHeader, HEADER_LEN};

pub struct Target {
    pub name: &'static str,
    /// Inputs that are in order.
    pub whole: fn() -> Vec<Vec<u8>>,
    /// Words that mean something to the decoder.
    pub words: &'static [&'static [u8]],
    /// Makes checksums right.
    pub repair: fn(&mut [u8]),
    /// Decodes, checks what was accepted, and says what came of it.
    pub decode: fn(&[u8]) -> String,
    /// So many kinds of outcome are seen, or the changes do not reach what they should.
    pub kinds: usize,
}

pub const ALL: [&Target; 6] = [&BATCH, &RING, &SUPERBLOCK, &FRAME, &NBD, &CONFIG];

fn record(lsn: u64, kind: Kind, offset: u64, length: u64) -> Record {
    let payload = match kind {
        Kind::Write => Payload::copy_of(&vec![lsn as u8; length as usize]),
        _ => Payload::empty(),
    };
    let crc = if payload.is_empty() { 0 } else { crc32fast::hash(&payload) };
    Record { lsn: Lsn(lsn), volume: VolumeId(1), kind, offset, length, crc, payload }
}

fn records(first: u64) -> Vec<Record> {
    vec![
        record(first, Kind::Write, 0, 4096),
        record(first + 1, Kind::Discard, 8192, 1 << 20),
        record(first + 2, Kind::Zeroes, 4096, 512),
        record(first + 3, Kind::Write, 12288, 512),
    ]
}

// Batches, and rings of them.

const STREAM: u128 = 7;
const RING_BYTES: u64 = 16 * BLOCK as u64;

/// Batches one after the other, from this address on.
fn chain(mut address: u64, firsts: &[u64]) -> Vec<u8> {
    let (mut bytes, mut prev_crc) = (Vec::new(), batch::seed(STREAM));
    for (number, first) in firsts.iter().enumerate() {
        let term = TermRef { number: 1 + number as u64 / 2, id: TermId(9) };
        let (first, durable) = (Lsn(*first), Lsn(first - 1));
        let records = records(first.0);
        let fields = BatchFields { prev_crc, stream: STREAM, address, term, first, durable };
        let (header, crc) = batch::encode(&fields, &records);
        batch::buffers(header, &records).iter().for_each(|b| bytes.extend_from_slice(b));
        (address, prev_crc) = (address + batch::batch_bytes(&records), crc);
    }
    bytes
}

/// Checksum of a block of which four bytes at `at` count as zero.
fn crc_without(bytes: &[u8], at: usize) -> u32 {
    let mut zeroed = bytes.to_vec();
    zeroed[at..at + 4].fill(0);
    crc32fast::hash(&zeroed)
}

/// The offset of the checksum in headers of batches and in superblocks, by `docs/format.md`.
const CRC_AT: usize = 12;

fn repair_batches(input: &mut [u8]) {
    let mut prev = None;
    for block in input.chunks_exact_mut(BLOCK).filter(|b| b.starts_with(&BATCH_MAGIC)) {
        // Chained too, or nothing behind the first would be looked at.
        if let Some(prev) = prev {
            block[16..20].copy_from_slice(&u32::to_le_bytes(prev));
        }
        let crc = crc_without(block, CRC_AT);
        block[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        prev = Some(crc);
    }
}

pub const BATCH: Target = Target {
    name: "batch",
    whole: || vec![chain(0, &[1]), chain(8192, &[100])],
    words: &[&BATCH_MAGIC],
    repair: repair_batches,
    decode: |input| match batch::decode_header(input) {
        Err(error) => error.to_string(),
        Ok((header, metas)) => {
            assert_eq!(metas.len(), usize::from(header.count));
            let body = Payload::copy_of(input);
            let good = metas.iter().take_while(|meta| batch::payload_ok(meta, &body)).count();
            if header.bytes() <= input.len() as u64 {
                let records = batch::records(&header, &metas[..good], &body);
                for (record, meta) in records.iter().zip(&metas) {
                    assert!(record.payload.is_empty() || crc32fast::hash(&record.payload) == meta.crc);
                    assert!(record.offset.checked_add(record.length).is_some() && record.length > 0);
                }
            }
            format!(
                "{} of {} whole",
                ["none", "some", "all"][usize::from(good > 0) + usize::from(good == metas.len())],
                "them"
            )
        }
    },
    kinds: 14,
};

pub const RING: Target = Target {
    name: "ring",
    whole: || vec![chain(0, &[1, 5, 9]), chain(0, &[1, 5, 3]), chain(0, &[1])],
    words: &[&BATCH_MAGIC],
    repair: repair_batches,
    decode: |input| {
        let mut ring = input.to_vec();
        ring.resize(RING_BYTES as usize, 0);
        let from = ScanStart { address: 0, prev_crc: batch::seed(STREAM), first: Lsn(1) };
        let read = |offset: u64, length: u64| Ok(Payload::copy_of(&ring[offset as usize..(offset + length) as usize]));
        let found = scan(&Geometry { start: 0, size: RING_BYTES }, STREAM, from, read).expect("reads that work");
        let mut expected = 1;
        for entry in &found.entries {
            assert_eq!(entry.start.first.0, expected, "records follow each other");
            assert!(entry.bytes <= RING_BYTES && !entry.metas.is_empty());
            expected = entry.last().0 + 1;
            let at = (entry.start.address % RING_BYTES) as usize;
            let body = Payload::copy_of(&ring[at..at + entry.bytes as usize]);
            assert!(entry.metas.iter().all(|meta| batch::payload_ok(meta, &body)), "a record that is not whole counts");
        }
        assert_eq!(found.end.0, expected - 1);
        let (voids, torn) = (found.voids.len().min(2), found.torn.is_some());
        let verdict = format!("{:?}", found.verdict);
        let words = ["no", "one", "two", "more"];
        format!("{} batches, {} voids, torn {torn}, {verdict}", words[found.entries.len().min(3)], words[voids])
    },
    kinds: 15,
};

// Superblocks.

fn a_superblock() -> Superblock {
    Superblock {
        sequence: 5,
        resource: "data".into(),
        node: "alpha".into(),
        stream: STREAM,
        log_size: 256 << 20,
        block: 4096,
        volumes: vec![("disk0".into(), 1 << 30)],
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
        pledge: Some("beta".into()),
        gap: Some(Gap { rollback: Some(Lsn(55)), since: Lsn(54), everything: true, grain: 8192, overwritten_in: None }),
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
        behind: ScanStart { address: 8192, prev_crc: 19, first: Lsn(59) },
        lost: Some(Lsn(61)),
    }
}

pub const SUPERBLOCK: Target = Target {
    name: "superblock",
    whole: || {
        let fresh = Superblock { lineage: Vec::new(), gap: None, bitmaps: Vec::new(), pledge: None, ..a_superblock() };
        [a_superblock(), fresh].iter().map(|s| superblock::encode(s).expect("it fits").to_vec()).collect()
    },
    words: &[],
    repair: |input| {
        if input.len() >= BLOCK {
            let crc = crc_without(input, CRC_AT);
            input[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        }
    },
    decode: |input| match superblock::decode(input) {
        Err(error) => error.to_string(),
        Ok(found) => {
            let again = superblock::encode(&found).map(|bytes| superblock::decode(&bytes));
            assert_eq!(again.expect("what was read can be written"), Ok(found));
            "read".into()
        }
    },
    kinds: 12,
};

// Frames.

/// Header, head and payload, as far as the input goes.
fn split(input: &[u8]) -> Option<([u8; HEADER_LEN], &[u8], &[u8])> {
    let (header, rest) = input.split_first_chunk::<HEADER_LEN>()?;
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    let (head, payload) = rest.split_at(length.min(rest.len()));
    Some((*header, head, payload))
}

pub const FRAME: Target = Target {
    name: "frame",
    whole: || {
        let extent = Extent { volume: VolumeId(0), offset: 4096, length: 8192 };
        let watermarks = Watermarks { committed: Lsn(1), accepted: Lsn(3), flush_to: Lsn(2), clock_us: 123 };
        let messages = [
            PeerMsg::Ready { received: Lsn(5), durable: Lsn(4) },
            PeerMsg::Lacks { piece: vec![1, 2, 3] },
            PeerMsg::Append { records: records(10), watermarks },
            PeerMsg::Heartbeat { watermarks },
            PeerMsg::Charter(a_superblock().charter),
            PeerMsg::ResyncData { records: vec![record(0, Kind::Write, 0, 8192)], sent_bytes: 1 << 33 },
            PeerMsg::VerifyAsk { id: 1, extent, crcs: vec![1, 2, 3], chunk: 65536 },
            PeerMsg::VerifyAnswer { id: 1, differing: vec![extent], retry: true },
            PeerMsg::Bye { why: "over and out".into() },
        ];
        let frames = messages.iter().flat_map(|m| [false, true].map(|compress| wire::encode(m, compress)));
        let bytes = |frame: wire::Encoded| {
            frame.payloads.iter().fold(frame.head.clone(), |all, payload| [&all[..], payload].concat())
        };
        frames.map(|frame| bytes(frame.expect("a good message"))).collect()
    },
    words: &[],
    repair: |input| {
        let Some((header, head, payload)) = split(input) else { return };
        let (head_len, payload_len) = (head.len(), payload.len());
        let header =
            FrameHeader { head_len, payload_len, head_crc: crc32fast::hash(head), compressed: header[6] & 1 == 1 };
        input[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    },
    decode: |input| {
        let Some((header, head, payload)) = split(input) else { return "short".into() };
        let decoded = FrameHeader::parse(&header).and_then(|h| wire::decode(&h, head, Payload::copy_of(payload)));
        let message = match decoded {
            Ok(message) => message,
            Err(error) => return error.to_string(),
        };
        let frame = wire::encode(&message, false).expect("what was read can be sent");
        let all = frame.payloads.iter().fold(frame.head.clone(), |all, payload| [&all[..], payload].concat());
        let (header, head, payload) = split(&all).expect("a whole frame");
        let again = wire::decode(&FrameHeader::parse(&header).expect("a good header"), head, Payload::copy_of(payload));
        let (before, after) = (format!("{message:?}"), format!("{:?}", again.expect("what was sent can be read")));
        assert_eq!(before, after);
        before.split(['(', '{', ' ']).next().unwrap_or_default().to_string()
    },
    kinds: 40,
};

// NBD.

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

fn request(command: u16, flags: u16, offset: u64, length: u32, payload: &[u8]) -> Vec<u8> {
    let magic = 0x2560_9513_u32.to_be_bytes();
    let numbers =
        [&flags.to_be_bytes()[..], &command.to_be_bytes(), &7u64.to_be_bytes(), &offset.to_be_bytes()].concat();
    [&magic[..], &numbers, &length.to_be_bytes(), payload].concat()
}

fn nbd_client(structured: bool, haggling: &[Vec<u8>]) -> Vec<u8> {
    let name = [&5u32.to_be_bytes()[..], b"disk0", &[0, 0]].concat();
    let context =
        [&5u32.to_be_bytes()[..], b"disk0", &1u32.to_be_bytes(), &15u32.to_be_bytes(), b"base:allocation"].concat();
    let mut bytes = vec![0, 0, 0, 3];
    if structured {
        bytes.extend(option(8, &[]).into_iter().chain(option(10, &context)));
    }
    bytes.extend(haggling.concat());
    bytes.extend(option(7, &name));
    for (command, flags, length) in [(0, 0, 4096), (1, 1, 512), (3, 0, 0), (4, 0, 8192), (6, 2, 4096), (7, 8, 4096)] {
        let payload = vec![5; if command == 1 { length as usize } else { 0 }];
        bytes.extend(request(command, flags, 4096, length, &payload));
    }
    bytes.extend(request(2, 0, 0, 0, &[]));
    bytes
}

/// Answers as the core would.
fn answer(op: &ClientOp) -> Reply {
    match op {
        ClientOp::Read { length, .. } => {
            Reply::Data(vec![Segment::Zero(length / 2), Segment::Zero(length - length / 2)])
        }
        ClientOp::Extents { length, .. } => Reply::Extents(vec![(*length, true)]),
        _ => Reply::Done,
    }
}

pub const NBD: Target = Target {
    name: "nbd",
    whole: || {
        let list = [option(3, &[]), option(6, &[0, 0, 0, 0, 0, 0]), option(99, b"what")];
        vec![
            nbd_client(false, &[]),
            nbd_client(true, &[]),
            nbd_client(true, &list),
            [0, 0, 0, 1].into_iter().chain(option(1, b"disk0")).collect(),
        ]
    },
    words: &[b"IHAVEOPT", &[0x25, 0x60, 0x95, 0x13], b"base:allocation", b"disk0", &[0, 0, 0, 10], &[0xff; 8]],
    repair: |_| (),
    decode: |input| {
        const SIZE: u64 = 64 << 20;
        let export = |name: &str| Export {
            name: name.into(),
            size: SIZE,
            block: 512,
            description: String::new(),
            read_only: name == "disk1",
            second_name: None,
        };
        let mut out = Vec::new();
        let mut session = Session::new(Rc::from([export("disk0"), export("disk1")]), &mut out);
        let (mut rest, mut requests, mut sent) = (input, 0, 0);
        let end = loop {
            for output in out.drain(..) {
                match output {
                    Output::Send(bytes) => sent += bytes.len(),
                    Output::Close => (),
                    Output::Request(request) => {
                        requests += 1;
                        let range = match &request.op {
                            ClientOp::Write { offset, payload, .. } => (*offset, payload.len() as u64),
                            ClientOp::Read { offset, length, .. }
                            | ClientOp::Zeroes { offset, length, .. }
                            | ClientOp::Discard { offset, length, .. }
                            | ClientOp::Extents { offset, length, .. } => (*offset, *length),
                            ClientOp::Flush { .. } => (0, 512),
                        };
                        assert!(range.1 > 0 && range.0 + range.1 <= SIZE, "{:?} is outside", request.op);
                        assert!(range.0 % 512 == 0 && range.1 % 512 == 0, "{:?} is misaligned", request.op);
                        let mut reply = ReplyBuf::new();
                        session.reply(&request.ticket, Ok(answer(&request.op)), &mut reply);
                        assert!(!reply.is_empty());
                    }
                }
            }
            let wanted = match session.want() {
                Want::Close => break "closed",
                Want::Head(n) => {
                    assert!((1..=MAX_HEAD).contains(&n), "{n} bytes of a head");
                    n
                }
                Want::Payload(n) => {
                    assert!((1..=MAX_PAYLOAD as usize).contains(&n), "{n} bytes of a payload");
                    n
                }
            };
            let Some((now, later)) = rest.split_at_checked(wanted) else { break "ends" };
            rest = later;
            match session.want() {
                Want::Payload(n) => {
                    let mut buf = BufMut::zeroed(n);
                    buf.copy_from_slice(now);
                    session.payload(buf, &mut out);
                }
                _ => session.head(now, &mut out),
            }
        };
        let bound = session.export().map_or("haggling", |_| "bound");
        let words = ["none", "one", "two", "three", "four", "five", "six", "more"];
        format!("{end} {bound} {} requests, {} sent", words[requests.min(7)], words[(sent / 64).min(7)])
    },
    kinds: 90,
};

// Configurations.

const FILE: &str = r#"
[resource]
name = "data"
mode = "sync"
stall_ms = 2000
on_stall = "degrade"

[volume.disk0]
size = "1GiB"

[node.alpha]
address = "127.0.0.1:7801"
dir = "/var/lib/understudy/alpha"
log = "/dev/vg0/data-log"
log_size = "256MiB"
store.disk0 = "/dev/vg0/data"
nbd = ["unix:/run/understudy/data.sock", "tcp:127.0.0.1:10809"]
control = "/run/understudy/data.ctl"

[node.beta]
address = "127.0.0.1:7802"
dir = "/var/lib/understudy/beta"
"#;

pub const CONFIG: Target = Target {
    name: "config",
    whole: || vec![FILE.into()],
    words: &[
        b"[node.",
        b"[volume.",
        b"]\n",
        b" = ",
        b"\"",
        b"\n",
        b"true",
        b"-1",
        b"1e400",
        b"\"16EiB\"",
        b"mode = \"async\"\n",
        b"[[node]]\n",
        b"bandwidth = \"1Gbit/s\"\n",
        b"compress = \"lz4\"\n",
        b"insecure = true\n",
        b"history_size = \"1GiB\"\n",
        b"memory = \"64KiB\"\n",
        b"block_size = 512\n",
        b"durable = \"write\"\n",
        b"heartbeat_ms = 0\n",
        b"\xc3\xa9",
        b"[::1]:1",
        b"unix:",
        b"tcp:",
    ],
    repair: |_| (),
    decode: |input| {
        let text = String::from_utf8_lossy(input);
        match understudy::config::parse(Path::new("data.toml"), &text) {
            Ok(config) => {
                assert!(!config.nodes.is_empty() && !config.volumes.is_empty() && !config.resource.name.is_empty());
                assert!(config.nodes.iter().all(|n| n.stores.len() == config.volumes.len()));
                "accepted".into()
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.starts_with("data.toml"), "a message that does not name the file: {text}");
                match error {
                    ConfigError::Field { problem, .. } => {
                        let debug = format!("{problem:?}");
                        debug.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default().to_string()
                    }
                    ConfigError::Syntax { detail, .. } => {
                        detail.message().split(' ').take(3).collect::<Vec<_>>().join(" ")
                    }
                    _ => "something else".into(),
                }
            }
        }
    },
    kinds: 12,
};
