//! The core's data structures and the core itself, at the loads that the data path puts on them. `cargo bench --bench core`

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;
use understudy::buf::{BufMut, Payload};
use understudy::core::config::TABLES;
use understudy::core::dirty::DirtySet;
use understudy::core::log::{Log, LogStart};
use understudy::core::log_index::LogIndex;
use understudy::core::overlay::Overlay;
use understudy::core::*;
use understudy::format::batch::{self, BatchFields, TermRef};
use understudy::format::ring::{Geometry, ScanStart};
use understudy::wire;

/// The same numbers in every run: a linear congruential generator, its better upper bits.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 24) % limit
    }
}

const VOLUME: VolumeId = VolumeId(0);

/// 4 KiB writes at random places of 1 GiB. They share one buffer: only ranges are measured.
fn random_writes(count: u64) -> Vec<Record> {
    let payload = BufMut::zeroed(4096).freeze();
    let mut numbers = Numbers(1);
    (1..=count)
        .map(|lsn| {
            let offset = numbers.below(1 << 18) * 4096;
            let payload = payload.clone();
            Record { lsn: Lsn(lsn), volume: VOLUME, kind: Kind::Write, offset, length: 4096, crc: 0, payload }
        })
        .collect()
}

/// Rounds of apply as in the steady state: half of what is queued is planned and retired, and as much comes in.
fn overlay(c: &mut Criterion) {
    const ROUND: usize = 8192;
    let records = random_writes(4 * ROUND as u64);
    let mut group = c.benchmark_group("overlay");
    group.throughput(Throughput::Elements(3 * ROUND as u64));
    group.bench_function("insert, plan, retire 4 KiB random", |b| {
        b.iter_batched(
            || {
                let mut overlay = Overlay::new(1);
                records[..ROUND].iter().for_each(|r| overlay.insert(r));
                overlay
            },
            |mut overlay| {
                for round in records[ROUND..].chunks(ROUND) {
                    let up_to = overlay.last().unwrap_or_default();
                    round.iter().for_each(|r| overlay.insert(r));
                    black_box(overlay.plan(up_to));
                    overlay.retire(up_to);
                }
                overlay
            },
            BatchSize::LargeInput,
        )
    });
    let mut full = Overlay::new(1);
    records.iter().for_each(|r| full.insert(r));
    let mut numbers = Numbers(2);
    group.throughput(Throughput::Elements(1));
    group.bench_function("read 4 KiB, 32768 records", |b| {
        b.iter(|| black_box(full.read(VOLUME, numbers.below(1 << 18) * 4096, 4096)))
    });
    group.finish();
}

fn dirty(c: &mut Criterion) {
    const SIZE: u64 = 1 << 40;
    let blocks = SIZE / 4096;
    let mut set = DirtySet::new(&[SIZE]);
    let mut numbers = Numbers(3);
    for _ in 0..blocks / 1000 {
        set.add(Extent { volume: VOLUME, offset: numbers.below(blocks) * 4096, length: 4096 });
    }
    let mut group = c.benchmark_group("dirty set of 1 TiB");
    group.bench_function("scan, 0.1 % dirty", |b| b.iter(|| set.extents().map(|e| e.length).sum::<u64>()));
    group.bench_function("scan, all dirty", |b| {
        let mut full = DirtySet::new(&[SIZE]);
        full.add(Extent { volume: VOLUME, offset: 0, length: SIZE });
        b.iter(|| full.extents().map(|e| e.length).sum::<u64>())
    });
    group.bench_function("add and remove a block", |b| {
        b.iter(|| {
            let e = Extent { volume: VOLUME, offset: numbers.below(blocks) * 4096, length: 4096 };
            set.add(e);
            set.remove(black_box(e));
        })
    });
    group.finish();
}

/// What a batch of the log holds at queue depth 32.
const BATCH: usize = 32;

const TERM: Term = Term { number: 1, id: TermId(1), first: Lsn(1) };

fn codec(c: &mut Criterion) {
    let records = random_writes(BATCH as u64);
    let fields = BatchFields {
        prev_crc: 0,
        stream: 1,
        address: 0,
        term: TermRef { number: TERM.number, id: TERM.id },
        first: Lsn(1),
        durable: Lsn(0),
    };
    let mut group = c.benchmark_group("32 records of 4 KiB");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("header of the log, encode", |b| b.iter(|| batch::encode(&fields, black_box(&records))));
    let (header, _) = batch::encode(&fields, &records);
    group.bench_function("header of the log, decode", |b| b.iter(|| batch::decode_header(black_box(&header))));
    let message = PeerMsg::Append { records, watermarks: Watermarks::default() };
    group.bench_function("frame to a peer, encode", |b| b.iter(|| wire::encode(black_box(&message), false)));
    group.finish();
}

/// Append, write, complete: what the log does beside the I/O.
fn log(c: &mut Criterion) {
    const SIZE: u64 = 1 << 30;
    let records = random_writes(1 << 15);
    let mut group = c.benchmark_group("log");
    group.throughput(Throughput::Elements(records.len() as u64));
    group.bench_function("append 4 KiB, 32 a batch", |b| {
        b.iter_batched(
            || {
                Log::new(
                    LogStart {
                        geometry: Geometry { start: 8192, size: SIZE },
                        stream: 1,
                        tail: ScanStart { address: 0, prev_crc: batch::seed(1), first: Lsn(1) },
                        next: 0,
                        prev_crc: batch::seed(1),
                        term_number: 0,
                        end: Lsn(0),
                        index: LogIndex::new(SIZE, 6 << 20),
                    },
                    true,
                    100,
                )
            },
            |mut log| {
                for batch in records.chunks(BATCH) {
                    batch.iter().for_each(|r| log.push(r.clone(), TERM));
                    log.want_durable(log.end());
                    let (io, ..) = black_box(log.poll(Time(1))).expect("a batch is due");
                    log.done(io, Ok(()));
                }
                log
            },
            BatchSize::LargeInput,
        )
    });
    group.finish();
}

/// What is written of each part, in memory.
#[derive(Default)]
struct Memory(BTreeMap<Part, Vec<u8>>);

impl BlockingDisk for Memory {
    fn read(&mut self, part: Part, offset: u64, length: u64) -> Result<Payload, IoError> {
        let mut buf = BufMut::zeroed(length as usize);
        let held = self.0.get(&part).map_or(&[][..], |b| b.get(offset as usize..).unwrap_or_default());
        let there = held.len().min(buf.len());
        buf[..there].copy_from_slice(&held[..there]);
        Ok(buf.freeze())
    }

    fn write(&mut self, part: Part, offset: u64, bytes: &Payload) -> Result<(), IoError> {
        let held = self.0.entry(part).or_default();
        held.resize(held.len().max(offset as usize + bytes.len()), 0);
        held[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&mut self, _: Part, _: u64, _: u64) -> Result<(), IoError> {
        Ok(())
    }

    fn flush(&mut self, _: Part) -> Result<(), IoError> {
        Ok(())
    }

    fn size(&mut self, _: Part) -> Result<u64, IoError> {
        Ok(0)
    }

    fn truncate(&mut self, _: Part, _: u64) -> Result<(), IoError> {
        Ok(())
    }
}

/// Lets a node go on until it waits for nothing but the time; every I/O is done at once. Returns what was answered to clients.
fn settle(node: &mut Node, now: Time) -> usize {
    let mut answered = 0;
    loop {
        node.poll(now);
        let mut done = Vec::new();
        while let Some(action) = node.next_action() {
            match action {
                Action::Io { id, .. } => done.push(Event::IoDone { id, result: Ok(IoData::Nothing) }),
                Action::Complete { result, .. } => answered += usize::from(result.is_ok()),
                _ => {}
            }
        }
        if done.is_empty() {
            return answered;
        }
        done.into_iter().for_each(|event| node.handle(now, event));
    }
}

fn active_alone() -> Node {
    let config = NodeConfig {
        resource: "bench".into(),
        nodes: vec![NodeSpec {
            name: "alpha".into(),
            mode: Mode::Sync,
            bandwidth: None,
            takeover: Takeover::Automatic,
        }],
        me: NodeId(0),
        volumes: vec![VolumeSpec { name: "disk0".into(), size: 1 << 30 }],
        block: 4096,
        log_size: 1 << 30,
        keeper: Keeper::Alone,
        stall_ms: 2000,
        on_stall: OnStall::Degrade,
        durable_write: true,
        heartbeat_ms: 200,
        memory: 64 << 20,
        window: 16 << 20,
        flush_ms: 100,
        apply_ms: 1000,
        tables: TABLES,
        history_size: u64::MAX,
        allow_invalid: false,
        incarnation: Incarnation(7),
        boot: 1,
    };
    let mut disk = Memory::default();
    recovery::format(&config, &mut disk, FormatIds { log_stream: 1, history_stream: 2 }, true).expect("formatted");
    let recovered = recovery::recover(&config, &mut disk).expect("recovered");
    let mut node = Node::new(config, recovered, Time(1));
    settle(&mut node, Time(1));
    let command = Command::Promote { force: false, off: Vec::new() };
    node.handle(Time(2), Event::Command { id: CommandId(1), command });
    settle(&mut node, Time(2));
    node
}

/// A write of a client through the whole core and back, durable, with rounds of applying as they fall due.
fn step(c: &mut Criterion) {
    let mut node = active_alone();
    let records = random_writes(1 << 12);
    let (mut now, mut req) = (1_000_000, 0);
    let mut group = c.benchmark_group("core");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("write 4 KiB durably on one node, 32 at a time", |b| {
        b.iter(|| {
            now += 200;
            for _ in 0..BATCH {
                req += 1;
                let record = &records[req as usize % records.len()];
                let (volume, offset, payload) = (record.volume, record.offset, record.payload.clone());
                let op = ClientOp::Write { volume, offset, payload, fua: false };
                node.handle(Time(now), Event::Client { req: ReqId(req), op });
            }
            assert_eq!(settle(&mut node, Time(now)), BATCH, "all are answered");
        })
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = overlay, dirty, codec, log, step
}
criterion_main!(benches);
