use super::*;
use crate::core::{BlockingDisk, VolumeId};

const STORE: Part = Part::Store(VolumeId(0));

fn mood() -> DiskMood {
    DiskMood { access_us: 10, flush_us: 50, atom: 512, slow: 1, ..DiskMood::default() }
}

fn disk() -> (SimDisk, Rng) {
    (SimDisk::new(&[(Part::Log, 16 * PAGE), (STORE, 16 * PAGE)], true, mood()), Rng::new(1))
}

fn write(page: u64, byte: u8, sync: bool) -> IoOp {
    IoOp::Write { offset: page * PAGE, bufs: vec![Payload::copy_of(&[byte; PAGE as usize])], sync }
}

fn done(disk: &mut SimDisk, rng: &mut Rng, part: Part, op: IoOp) -> Result<IoData, IoError> {
    let (token, _) = disk.submit(IoId(1), part, op, rng).unwrap();
    disk.complete(token, rng).unwrap().1
}

fn byte(disk: &SimDisk, part: Part, page: u64) -> u8 {
    let page = disk.peek(part, page * PAGE, PAGE);
    assert!(page.iter().all(|&b| b == page[0]), "the page is torn");
    page[0]
}

/// Many power cuts of clones of this disk: how often the page held the new byte, of 200.
fn survivals(disk: &SimDisk, rng: &mut Rng, part: Part, page: u64, new: u8) -> usize {
    let survived = |_: &usize| {
        let mut cut = disk.clone();
        cut.power_cut(rng);
        cut.peek(part, page * PAGE, PAGE).iter().all(|&b| b == new)
    };
    (0..200).filter(survived).count()
}

#[test]
fn a_power_cut_may_take_what_was_not_flushed_and_nothing_else() {
    let (mut disk, mut rng) = disk();
    done(&mut disk, &mut rng, Part::Log, write(0, 1, true)).unwrap();
    done(&mut disk, &mut rng, Part::Log, write(1, 2, false)).unwrap();
    assert_eq!(survivals(&disk, &mut rng, Part::Log, 0, 1), 200);
    let kept = survivals(&disk, &mut rng, Part::Log, 1, 2);
    assert!((1..200).contains(&kept), "{kept}");
    done(&mut disk, &mut rng, Part::Log, IoOp::Flush).unwrap();
    assert_eq!(survivals(&disk, &mut rng, Part::Log, 1, 2), 200);
}

#[test]
fn a_flush_covers_what_had_completed_when_it_was_issued() {
    let (mut disk, mut rng) = disk();
    let (late, _) = disk.submit(IoId(1), STORE, write(0, 7, false), &mut rng).unwrap();
    let (flush, _) = disk.submit(IoId(2), STORE, IoOp::Flush, &mut rng).unwrap();
    disk.complete(late, &mut rng).unwrap().1.unwrap();
    disk.complete(flush, &mut rng).unwrap().1.unwrap();
    assert!(survivals(&disk, &mut rng, STORE, 0, 7) < 200);
}

#[test]
fn a_flush_of_another_part_says_nothing() {
    let (mut disk, mut rng) = disk();
    done(&mut disk, &mut rng, STORE, write(0, 7, false)).unwrap();
    done(&mut disk, &mut rng, Part::Log, IoOp::Flush).unwrap();
    assert!(survivals(&disk, &mut rng, STORE, 0, 7) < 200);
}

#[test]
fn a_failed_flush_cannot_be_retried() {
    let (mut disk, mut rng) = disk();
    done(&mut disk, &mut rng, STORE, write(0, 7, false)).unwrap();
    disk.mood.flush_error_ppm = 1_000_000;
    // Of several failed flushes some forget the page; which do, is drawn.
    let forgot = (0..50).any(|_| {
        let mut disk = disk.clone();
        assert!(done(&mut disk, &mut rng, STORE, IoOp::Flush).is_err());
        disk.mood.flush_error_ppm = 0;
        done(&mut disk, &mut rng, STORE, IoOp::Flush).unwrap();
        assert_eq!(byte(&disk, STORE, 0), 7);
        survivals(&disk, &mut rng, STORE, 0, 7) == 0
    });
    assert!(forgot);
}

#[test]
fn a_sync_write_is_not_undone_by_an_older_one_that_was_pending() {
    let (mut disk, mut rng) = disk();
    done(&mut disk, &mut rng, Part::Log, write(0, 1, false)).unwrap();
    done(&mut disk, &mut rng, Part::Log, write(0, 2, true)).unwrap();
    assert_eq!(survivals(&disk, &mut rng, Part::Log, 0, 2), 200);
}

#[test]
fn a_dead_process_leaves_what_had_completed() {
    let (mut disk, mut rng) = disk();
    done(&mut disk, &mut rng, STORE, write(0, 7, false)).unwrap();
    disk.submit(IoId(9), STORE, write(1, 8, false), &mut rng).unwrap();
    disk.process_crash(&mut rng);
    assert_eq!(byte(&disk, STORE, 0), 7);
    assert_eq!(disk.busy(), 0);
}

#[test]
fn overlapping_writes_in_flight_and_crooked_ones_are_told() {
    let (mut disk, mut rng) = disk();
    disk.submit(IoId(1), STORE, write(3, 1, false), &mut rng).unwrap();
    let zero = IoOp::Zero { offset: 2 * PAGE, length: 2 * PAGE, discard: true };
    assert!(disk.submit(IoId(2), STORE, zero.clone(), &mut rng).unwrap_err().contains("overlaps"));
    disk.submit(IoId(3), Part::Log, zero, &mut rng).unwrap();
    let crooked = IoOp::Read { offset: 512, length: 512 };
    disk.submit(IoId(4), STORE, crooked.clone(), &mut rng).unwrap();
    assert!(disk.submit(IoId(5), Part::Log, crooked, &mut rng).unwrap_err().contains("aligned"));
    let outside = IoOp::Read { offset: 15 * PAGE, length: 2 * PAGE };
    assert!(disk.submit(IoId(6), Part::Log, outside, &mut rng).unwrap_err().contains("past the end"));
}

#[test]
fn parts_of_pages_keep_their_neighbours() {
    let (mut disk, mut rng) = disk();
    done(&mut disk, &mut rng, STORE, write(0, 1, true)).unwrap();
    let sector = IoOp::Write { offset: 512, bufs: vec![Payload::copy_of(&[9; 512])], sync: true };
    done(&mut disk, &mut rng, STORE, sector).unwrap();
    let page = disk.peek(STORE, 0, PAGE);
    assert!(page[..512].iter().all(|&b| b == 1) && page[1024..].iter().all(|&b| b == 1));
    assert!(page[512..1024].iter().all(|&b| b == 9));
}

#[test]
fn growing_parts_grow_fill_up_and_are_cut() {
    let (mut disk, mut rng) = disk();
    done(&mut disk, &mut rng, Part::History, write(0, 5, true)).unwrap();
    done(&mut disk, &mut rng, Part::History, write(1, 6, false)).unwrap();
    assert_eq!(Blocking { disk: &mut disk, calls: None }.size(Part::History), Ok(2 * PAGE));
    disk.mood.full = true;
    assert_eq!(done(&mut disk, &mut rng, Part::History, write(2, 6, false)).unwrap_err().errno, ENOSPC);
    assert!(done(&mut disk, &mut rng, Part::History, write(1, 8, false)).is_ok());
    done(&mut disk, &mut rng, Part::History, IoOp::Truncate { length: PAGE }).unwrap();
    disk.power_cut(&mut rng);
    assert_eq!(Blocking { disk: &mut disk, calls: None }.size(Part::History), Ok(PAGE));
    assert_eq!(byte(&disk, Part::History, 0), 5);
    assert_eq!(byte(&disk, Part::History, 1), 0);
}

#[test]
fn holes_are_found() {
    let (mut disk, mut rng) = disk();
    done(&mut disk, &mut rng, STORE, write(3, 1, false)).unwrap();
    done(&mut disk, &mut rng, STORE, write(4, 1, false)).unwrap();
    done(&mut disk, &mut rng, STORE, write(9, 1, false)).unwrap();
    done(&mut disk, &mut rng, STORE, IoOp::Zero { offset: 4 * PAGE, length: PAGE, discard: true }).unwrap();
    let mut next = |offset| match done(&mut disk, &mut rng, STORE, IoOp::NextData { offset }) {
        Ok(IoData::Extent(run)) => run,
        other => panic!("{other:?}"),
    };
    assert_eq!(next(0), Some((3 * PAGE, PAGE)));
    assert_eq!(next(4 * PAGE), Some((9 * PAGE, PAGE)));
    assert_eq!(next(10 * PAGE), None);
}

#[test]
fn recovery_can_be_cut_short() {
    let (mut disk, _) = disk();
    let mut blocking = Blocking { disk: &mut disk, calls: Some(1) };
    assert!(blocking.read(Part::Log, 0, PAGE).is_ok());
    assert_eq!(blocking.flush(Part::Log), Err(IoError { errno: EIO }));
}

#[test]
fn a_read_beside_a_write_sees_whole_atoms() {
    let (mut disk, mut rng) = disk();
    let mixed = |disk: &SimDisk, rng: &mut Rng| {
        (0..50).any(|_| {
            let mut disk = disk.clone();
            let Ok(IoData::Bytes(b)) = done(&mut disk, rng, STORE, IoOp::Read { offset: 0, length: PAGE }) else {
                panic!("a read without bytes")
            };
            b.contains(&0) && b.contains(&7)
        })
    };
    disk.submit(IoId(1), STORE, write(0, 7, false), &mut rng).unwrap();
    assert!(mixed(&disk, &mut rng));
    disk.mood.atom = 4096;
    assert!(!mixed(&disk, &mut rng));
}
