//! The core's data structures, at the loads that the data path puts on them. `cargo bench --bench core`

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;
use understudy::buf::BufMut;
use understudy::core::dirty::DirtySet;
use understudy::core::overlay::Overlay;
use understudy::core::{Extent, Kind, Lsn, Record, VolumeId};

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

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = overlay, dirty
}
criterion_main!(benches);
