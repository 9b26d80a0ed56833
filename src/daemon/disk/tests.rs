//! The same body on a disk and in memory, blocking and through the ring: the four cannot drift apart.

use super::*;
use crate::buf::Payload;
use crate::config::{Settings, StoreIo};
use crate::core::*;
use crate::daemon::ring::{Op, Ring};
use crate::daemon::testing::{disk_dir, memory_dir, settings};
use std::time::Duration;

fn bytes(n: usize, value: u8) -> Payload {
    Payload::copy_of(&vec![value; n])
}

/// Files of the right sizes, as `create` leaves them.
fn files(settings: &Settings) {
    let make = |path: &Path, size| File::create(path).unwrap().set_len(size).unwrap();
    make(&settings.log, settings.node.log_size);
    for (path, volume) in settings.stores.iter().zip(&settings.node.volumes) {
        make(path, volume.size);
    }
}

/// Runs one I/O of the core to its end.
fn run(disk: &mut Disk, ring: &mut Ring<Job>, part: Part, op: IoOp) -> Result<IoData, IoError> {
    let mut step = disk.start(IoId(7), part, op);
    loop {
        match step {
            Step::Done(id, result) => {
                assert_eq!(id, IoId(7));
                return result;
            }
            Step::Submit(job, op) => {
                ring.push(job, op);
                let mut done = Vec::new();
                while done.is_empty() {
                    ring.wait(Some(Duration::from_secs(5))).unwrap();
                    ring.completions(&mut done);
                }
                let done = done.remove(0);
                step = done.tag.advance(done.op, done.result);
            }
        }
    }
}

fn read(disk: &mut Disk, ring: &mut Ring<Job>, part: Part, offset: u64, length: u64) -> Payload {
    let through_ring = match run(disk, ring, part, IoOp::Read { offset, length }) {
        Ok(IoData::Bytes(bytes)) => bytes,
        other => panic!("{other:?}"),
    };
    assert_eq!(BlockingDisk::read(disk, part, offset, length).unwrap(), through_ring);
    through_ring
}

fn write(disk: &mut Disk, ring: &mut Ring<Job>, part: Part, offset: u64, bufs: Vec<Payload>, sync: bool) {
    assert!(matches!(run(disk, ring, part, IoOp::Write { offset, bufs, sync }), Ok(IoData::Nothing)));
}

fn every_operation(dir: &Path, expected: IoMode, store_io: StoreIo) {
    let settings = Settings { store_io, ..settings(dir, "alpha") };
    files(&settings);
    let disk = &mut Disk::open(&settings).unwrap();
    assert!(disk.modes().all(|(_, mode)| mode == expected || mode == IoMode::Buffered), "{dir:?}");
    if store_io == StoreIo::Buffered && expected != IoMode::Memory {
        assert!(disk.modes().all(|(path, mode)| mode == IoMode::Buffered || *path == settings.log), "{dir:?}");
    }
    let ring = &mut Ring::new().unwrap();
    let store = Part::Store(VolumeId(1));

    for sync in [false, true] {
        write(disk, ring, store, 8192, vec![bytes(4096, 1), bytes(8192, 2)], sync);
    }
    assert_eq!(
        read(disk, ring, store, 4096, 20480)[..],
        [vec![0; 4096], vec![1; 4096], vec![2; 8192], vec![0; 4096]].concat()[..]
    );
    assert!(matches!(run(disk, ring, store, IoOp::Flush), Ok(IoData::Nothing)));

    let extent = |disk: &mut Disk, ring: &mut Ring<Job>, offset| match run(disk, ring, store, IoOp::NextData { offset })
    {
        Ok(IoData::Extent(extent)) => extent,
        other => panic!("{other:?}"),
    };
    assert_eq!(extent(disk, ring, 0), Some((8192, 12288)));
    assert_eq!(extent(disk, ring, 20480), None);
    assert_eq!(extent(disk, ring, 1 << 40), None);

    for discard in [true, false] {
        write(disk, ring, store, 8192, vec![bytes(12288, 9)], false);
        let zero = IoOp::Zero { offset: 12288, length: 4096, discard };
        assert!(matches!(run(disk, ring, store, zero), Ok(IoData::Nothing)));
        let expected = [vec![9; 4096], vec![0; 4096], vec![9; 4096]].concat();
        assert_eq!(read(disk, ring, store, 8192, 12288)[..], expected[..]);
        assert_eq!(disk.size(store), Ok(settings.node.volumes[1].size));
    }
    growing(disk, ring);
    let past_end = IoOp::Read { offset: settings.node.log_size - 4096, length: 8192 };
    assert!(matches!(run(disk, ring, Part::Log, past_end), Err(IoError { errno: libc::EIO })));
    assert!(matches!(run(disk, ring, Part::Log, IoOp::Truncate { length: 0 }), Err(IoError { errno: libc::EINVAL })));
    assert!(matches!(run(disk, ring, Part::Store(VolumeId(9)), IoOp::Flush), Err(IoError { errno: libc::ENXIO })));
}

fn growing(disk: &mut Disk, ring: &mut Ring<Job>) {
    for (part, name) in [
        (Part::History, "history"),
        (Part::Bitmap { peer: NodeId(1), half: 0 }, "bitmap.beta.0"),
        (Part::Salvage(3), "salvage.3"),
    ] {
        assert_eq!(disk.size(part), Ok(0));
        assert_eq!(read(disk, ring, part, 4096, 4096), bytes(4096, 0));
        assert!(matches!(run(disk, ring, part, IoOp::Truncate { length: 0 }), Ok(IoData::Nothing)));
        assert!(matches!(run(disk, ring, part, IoOp::Flush), Ok(IoData::Nothing)));
        assert!(!disk.dir.join(name).exists(), "reading makes no file");

        write(disk, ring, part, 4096, vec![bytes(8192, 4)], true);
        assert!(disk.dir.join(name).exists());
        assert_eq!(disk.size(part), Ok(12288));
        assert_eq!(read(disk, ring, part, 8192, 16384)[..], [vec![4; 4096], vec![0; 12288]].concat()[..]);
        assert!(matches!(run(disk, ring, part, IoOp::Truncate { length: 8192 }), Ok(IoData::Nothing)));
        assert_eq!(disk.size(part), Ok(8192));
        assert_eq!(read(disk, ring, part, 4096, 8192)[..], [vec![4; 4096], vec![0; 4096]].concat()[..]);
    }
}

#[test]
fn every_operation_on_a_disk() {
    let dir = disk_dir();
    every_operation(dir.path(), IoMode::Direct, StoreIo::Direct);
}

#[test]
fn every_operation_through_the_page_cache() {
    let dir = disk_dir();
    every_operation(dir.path(), IoMode::Direct, StoreIo::Buffered);
}

/// Through the page cache what is there is read at once, and the rest by the ring; both are the same bytes.
#[test]
fn cached_blocks_are_read_at_once() {
    let dir = disk_dir();
    let settings = Settings { store_io: StoreIo::Buffered, ..settings(dir.path(), "alpha") };
    files(&settings);
    let disk = &mut Disk::open(&settings).unwrap();
    let ring = &mut Ring::new().unwrap();
    let store = Part::Store(VolumeId(0));
    write(disk, ring, store, 4096, vec![bytes(4096, 1), bytes(4096, 2)], false);
    let expected = [vec![1; 4096], vec![2; 4096]].concat();
    let at_once = |disk: &mut Disk| match disk.start(IoId(7), store, IoOp::Read { offset: 4096, length: 8192 }) {
        Step::Done(_, Ok(IoData::Bytes(bytes))) => Some(bytes),
        Step::Done(_, other) => panic!("{other:?}"),
        Step::Submit(..) => None,
    };
    assert_eq!(at_once(disk).expect("it was just written")[..], expected[..]);
    assert!(matches!(run(disk, ring, store, IoOp::Flush), Ok(IoData::Nothing)));
    let file = File::open(&settings.stores[0]).unwrap();
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    assert!(at_once(disk).is_none(), "nothing of it is in the page cache");
    assert_eq!(read(disk, ring, store, 4096, 8192)[..], expected[..]);
}

#[test]
fn every_operation_in_memory() {
    let Some(dir) = memory_dir() else { return eprintln!("no tmpfs at /dev/shm: not tested") };
    every_operation(dir.path(), IoMode::Memory, StoreIo::Direct);
    let Some(dir) = memory_dir() else { return };
    every_operation(dir.path(), IoMode::Memory, StoreIo::Buffered);
}

#[test]
fn zeros_are_written_where_they_cannot_be_made() {
    for dir in [Some(disk_dir()), memory_dir()].into_iter().flatten() {
        let settings = settings(dir.path(), "alpha");
        files(&settings);
        let disk = &mut Disk::open(&settings).unwrap();
        let ring = &mut Ring::new().unwrap();
        let store = Part::Store(VolumeId(0));
        let size = settings.node.volumes[0].size;
        write(disk, ring, store, 0, vec![bytes(size as usize, 7)], false);
        disk.parts[&store].zero_refused(true);
        let length = size - 8192;
        assert!(matches!(
            run(disk, ring, store, IoOp::Zero { offset: 4096, length, discard: true }),
            Ok(IoData::Nothing)
        ));
        let all = read(disk, ring, store, 0, size);
        let zeros = |range: std::ops::Range<usize>| all[range].iter().all(|&b| b == 0);
        assert!(zeros(4096..size as usize - 4096));
        assert!(all[..4096].iter().chain(&all[size as usize - 4096..]).all(|&b| b == 7));
    }
}

/// The kernel may move less than asked for: the rest follows, from a sector's beginning.
#[test]
fn short_transfers_go_on_where_they_ended() {
    let dir = disk_dir();
    let settings = settings(dir.path(), "alpha");
    files(&settings);
    let mut disk = Disk::open(&settings).unwrap();
    let store = Part::Store(VolumeId(0));
    let Step::Submit(job, op) =
        disk.start(IoId(1), store, IoOp::Write { offset: 0, bufs: vec![bytes(4096, 1), bytes(4096, 2)], sync: true })
    else {
        panic!("done at once")
    };
    let Step::Submit(job, Op::Write { offset, skip, sync, .. }) = job.advance(op, Ok(4096 + 700)) else {
        panic!("ended")
    };
    assert_eq!((offset, skip, sync), (4608, 4608, true));
    let again =
        Op::Write { file: job_file(&disk, store), offset, bufs: vec![bytes(4096, 1), bytes(4096, 2)], skip, sync };
    let Step::Submit(job, op) = job.advance(again, Err(libc::EINTR)) else { panic!("ended") };
    let Step::Done(_, result) = job.advance(op, Ok(3584)) else { panic!("not ended") };
    assert!(result.is_ok());

    let Step::Submit(job, op) = disk.start(IoId(1), store, IoOp::Read { offset: 512, length: 4096 }) else { panic!() };
    let Step::Submit(job, op) = job.advance(op, Ok(1030)) else { panic!("ended") };
    assert!(matches!(&op, Op::Read { offset: 1536, from: 1024, .. }));
    let Step::Done(_, result) = job.advance(op, Ok(0)) else { panic!("not ended") };
    assert!(matches!(result, Err(IoError { errno: libc::EIO })), "a store does not end early");
}

fn job_file(disk: &Disk, part: Part) -> crate::daemon::ring::Fd {
    disk.parts[&part].fd().clone()
}

#[test]
fn a_failed_io_is_an_error_with_its_errno() {
    let dir = disk_dir();
    let settings = settings(dir.path(), "alpha");
    files(&settings);
    let mut disk = Disk::open(&settings).unwrap();
    let ring = &mut Ring::new().unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap();
    let op = IoOp::Write { offset: 0, bufs: vec![bytes(4096, 1)], sync: false };
    assert!(matches!(run(&mut disk, ring, Part::History, op), Err(IoError { errno: libc::ENOENT })));
}

#[test]
fn opening_refuses_in_words() {
    let dir = disk_dir();
    let settings = settings(dir.path(), "alpha");
    let text = |r: Result<Disk, DiskError>| r.err().expect("refused").to_string();
    assert!(text(Disk::open(&settings)).contains("does not exist: run `understudy create`"));
    files(&settings);
    let held = Disk::open(&settings).unwrap();
    assert!(text(Disk::open(&settings)).contains("another daemon is running on this replica"));
    drop(held);
    File::options().write(true).open(&settings.stores[0]).unwrap().set_len(4096).unwrap();
    assert!(text(Disk::open(&settings)).contains("has 4096 bytes, and should have"));
    std::fs::remove_file(&settings.log).unwrap();
    std::fs::create_dir(&settings.log).unwrap();
    assert!(text(Disk::open(&settings)).contains("neither a regular file nor a block device"));
}

/// S3.
#[test]
fn a_block_smaller_than_the_devices_is_refused() {
    let dir = disk_dir();
    let mut settings = settings(dir.path(), "alpha");
    files(&settings);
    settings.node.block = 512;
    match (super::file::physical_block(&settings.stores[0]), Disk::open(&settings).map(|_| ())) {
        (Some(physical), Err(DiskError::Block { physical: named, block: 512, .. })) => {
            assert!(physical > 512 && named == physical);
        }
        (physical, Ok(())) => assert!(physical.is_none_or(|p| p <= 512)),
        other => panic!("{other:?}"),
    }
}

/// Two resources with logs and stores of their own, and one folder: their histories would be one file.
#[test]
fn a_folder_belongs_to_one_replica() {
    let dir = disk_dir();
    let first = settings(dir.path(), "alpha");
    files(&first);
    let _held = Disk::open(&first).unwrap();
    let mut second = first.clone();
    second.log = dir.path().join("log-2");
    second.stores = second.stores.iter().map(|s| s.with_extension("2")).collect();
    files(&second);
    match Disk::open(&second).map(|_| ()) {
        Err(DiskError::InUse { path }) => assert_eq!(path, first.dir),
        other => panic!("{other:?}"),
    }
}
