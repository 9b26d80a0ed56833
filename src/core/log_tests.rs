//! Batches, flushes and watermarks of the log, with I/Os that end in any order.

use super::*;

const TERM: Term = Term { number: 1, id: TermId(1), first: Lsn(1) };

fn log(ring_blocks: u64) -> Log {
    let tail = ScanStart { address: 0, prev_crc: batch::seed(7), first: Lsn(1) };
    let geometry = Geometry { start: 0, size: ring_blocks * BLOCK as u64 };
    let (end, index) = (Lsn(0), LogIndex::new(geometry.size, 1 << 20));
    let start = LogStart { geometry, stream: 7, tail, next: 0, prev_crc: tail.prev_crc, term_number: 0, end, index };
    Log::new(start, false, 1000)
}

fn discard(lsn: u64) -> Record {
    let (volume, kind, payload) = (VolumeId(0), Kind::Discard, Payload::empty());
    Record { lsn: Lsn(lsn), volume, kind, offset: 0, length: 4096, crc: 0, payload }
}

/// The next I/O, done at once.
fn step(log: &mut Log) -> Option<IoOp> {
    let (io, _, op) = log.poll(Time(0))?;
    log.done(io, Ok(()));
    Some(op)
}

#[test]
fn a_full_ring_flushes_what_is_waited_for() {
    // Room for eight batches of one record; nobody asks for durability while they are written.
    let mut log = log(8);
    for lsn in 1..=8 {
        log.push(discard(lsn), TERM);
        assert!(matches!(step(&mut log), Some(IoOp::Write { sync: false, .. })));
    }
    log.push(discard(9), TERM);
    assert!(log.poll(Time(0)).is_none(), "full, and nobody waits");
    log.want_durable(Lsn(9));
    assert!(matches!(step(&mut log), Some(IoOp::Flush)), "only what is durable can leave the ring");
    assert_eq!(log.durable(), Lsn(8));
    assert!(log.poll(Time(0)).is_none());
}

/// Two blocks are long in a ring of 128.
fn push_long(log: &mut Log, first: u64) {
    for lsn in [first, first + 1] {
        let payload = Payload::copy_of(&[1; BLOCK]);
        let (volume, kind, offset) = (VolumeId(0), Kind::Write, lsn * 4096);
        log.push(Record { lsn: Lsn(lsn), volume, kind, offset, length: 4096, crc: 0, payload }, TERM);
    }
}

/// The same, on its way to the disk: its name, and whether it is written stable.
fn long(log: &mut Log, first: u64) -> (LogIo, bool) {
    push_long(log, first);
    match log.poll(Time(0)) {
        Some((io, _, IoOp::Write { sync, .. })) => (io, sync),
        other => panic!("{other:?}"),
    }
}

#[test]
fn behind_the_page_cache_nothing_begins_before_the_last_is_over() {
    let mut log = log(128);
    log.go_one_by_one();
    let (first, _) = long(&mut log, 1);
    push_long(&mut log, 3);
    assert!(log.poll(Time(0)).is_none(), "a write is under way");
    log.done(first, Ok(()));
    log.want_durable(Lsn(2));
    let (flush, _, op) = log.poll(Time(0)).expect("a flush of what is written");
    assert!(matches!(op, IoOp::Flush) && log.poll(Time(0)).is_none());
    log.done(flush, Ok(()));
    log.want_durable(Lsn(4));
    while let Some((io, ..)) = log.poll(Time(0)) {
        assert!(log.poll(Time(0)).is_none());
        log.done(io, Ok(()));
    }
    assert_eq!(log.durable(), Lsn(4));
}

#[test]
fn long_batches_do_not_wait_and_count_in_order() {
    let mut log = log(128);
    let ios = [1, 3, 5, 7].map(|first| long(&mut log, first).0);
    log.push(discard(9), TERM);
    assert!(log.poll(Time(0)).is_none(), "a short one waits");
    log.done(ios[2], Ok(()));
    log.done(ios[1], Ok(()));
    assert_eq!(log.written(), Lsn(0), "the first is not written");
    log.done(ios[0], Ok(()));
    assert_eq!((log.written(), log.durable()), (Lsn(6), Lsn(0)));
    log.done(ios[3], Err(5));
    assert_eq!((log.written(), log.failed()), (Lsn(6), Some(5)));
    assert!(log.poll(Time(0)).is_none(), "a failure is final");
}

#[test]
fn a_flush_covers_what_was_written_when_it_began() {
    let mut log = log(128);
    let (first, sync) = long(&mut log, 1);
    assert!(!sync);
    let second = long(&mut log, 3).0;
    log.want_durable(Lsn(2));
    assert!(log.poll(Time(0)).is_none(), "not yet written");
    log.done(first, Ok(()));
    let Some((flush, _, IoOp::Flush)) = log.poll(Time(0)) else { panic!("a flush") };
    log.done(second, Ok(()));
    // What comes now is durable by itself once the flush has covered what lies before the second; the second is not.
    log.want_durable(Lsn(4));
    let (third, sync) = long(&mut log, 5);
    assert!(!sync, "something unstable that no flush covers lies before it");
    log.done(third, Ok(()));
    log.done(flush, Ok(()));
    assert_eq!((log.durable(), log.written()), (Lsn(2), Lsn(6)));
    let Some((flush, _, IoOp::Flush)) = log.poll(Time(0)) else { panic!("a flush for the others") };
    log.done(flush, Ok(()));
    assert_eq!(log.durable(), Lsn(6));
}

#[test]
fn a_stable_batch_is_durable_when_all_before_it_is() {
    let mut log = log(128);
    let first = long(&mut log, 1).0;
    log.done(first, Ok(()));
    log.want_durable(Lsn(2));
    let Some((flush, _, IoOp::Flush)) = log.poll(Time(0)) else { panic!("a flush") };
    log.always_stable = true;
    let ios = [3, 5].map(|first| long(&mut log, first));
    assert!(ios.iter().all(|(_, sync)| *sync), "the flush under way covers what is before them");
    log.done(ios[1].0, Ok(()));
    log.done(ios[0].0, Ok(()));
    assert_eq!((log.durable(), log.written()), (Lsn(0), Lsn(6)));
    log.done(flush, Ok(()));
    assert_eq!(log.durable(), Lsn(6));
}

#[test]
fn orphans_do_not_keep_the_ring_full() {
    let mut log = log(8);
    for lsn in 1..=8 {
        log.push(discard(lsn), TERM);
        log.want_durable(Lsn(lsn));
        assert!(step(&mut log).is_some());
    }
    log.truncate(Lsn(0));
    assert_eq!(log.held(), 0, "none of it counts");
    let tail = log.tail();
    log.tail_is_durable(tail.address);
    log.push(discard(1), Term { number: 2, id: TermId(2), first: Lsn(1) });
    assert!(matches!(log.poll(Time(0)), Some((_, _, IoOp::Write { .. }))));
}
