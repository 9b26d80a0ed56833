//! One body for files on a disk, files in memory and the simulator's disk, each blocking and as the core asks: none can drift apart
//! from the others.

use super::*;
use crate::buf::Payload;
use crate::config::{Settings, StoreIo};
use crate::core::*;
use crate::daemon::ring::{Op, Ring};
use crate::daemon::testing::{disk_dir, memory_dir, settings};
use crate::sim::disk::{Blocking, DiskMood, SimDisk};
use crate::sim::rng::Rng;
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

/// Parts that carry out what the core asks.
trait Parts {
    /// One I/O of the core, to its end.
    fn io(&mut self, part: Part, op: IoOp) -> Result<IoData, IoError>;
    /// The same parts as recovery sees them.
    fn blocking<T>(&mut self, with: impl FnOnce(&mut dyn BlockingDisk) -> T) -> T;
    /// Whether a growing part has come into being, where that can be seen.
    fn exists(&self, name: &str) -> Option<bool>;
}

struct Real {
    disk: Disk,
    ring: Ring<Job>,
}

impl Real {
    fn of(settings: &Settings) -> Real {
        Real { disk: Disk::open(settings).unwrap(), ring: Ring::new().unwrap() }
    }
}

impl Parts for Real {
    fn io(&mut self, part: Part, op: IoOp) -> Result<IoData, IoError> {
        let mut step = self.disk.start(IoId(7), part, op);
        loop {
            match step {
                Step::Done(id, result) => {
                    assert_eq!(id, IoId(7));
                    return result;
                }
                Step::Submit(job, op) => {
                    self.ring.push(job, op);
                    let mut done = Vec::new();
                    while done.is_empty() {
                        self.ring.wait(Some(Duration::from_secs(5))).unwrap();
                        self.ring.completions(&mut done);
                    }
                    let done = done.remove(0);
                    step = done.tag.advance(done.op, done.result);
                }
            }
        }
    }

    fn blocking<T>(&mut self, with: impl FnOnce(&mut dyn BlockingDisk) -> T) -> T {
        with(&mut self.disk)
    }

    fn exists(&self, name: &str) -> Option<bool> {
        Some(self.disk.dir.join(name).exists())
    }
}

/// The simulator's disk, on which nothing goes wrong.
struct Simulated {
    disk: SimDisk,
    rng: Rng,
}

impl Simulated {
    fn of(settings: &Settings) -> Simulated {
        let stores = settings.node.volumes.iter().enumerate().map(|(i, v)| (Part::Store(VolumeId(i as u16)), v.size));
        let parts: Vec<(Part, u64)> = stores.chain([(Part::Log, settings.node.log_size)]).collect();
        let mood = DiskMood { atom: 512, slow: 1, ..DiskMood::default() };
        Simulated { disk: SimDisk::new(&parts, true, mood), rng: Rng::new(1) }
    }
}

impl Parts for Simulated {
    fn io(&mut self, part: Part, op: IoOp) -> Result<IoData, IoError> {
        let (token, _) = self.disk.submit(IoId(7), part, op, &mut self.rng).unwrap();
        let (id, result) = self.disk.complete(token, &mut self.rng).unwrap();
        assert_eq!(id, IoId(7));
        result
    }

    fn blocking<T>(&mut self, with: impl FnOnce(&mut dyn BlockingDisk) -> T) -> T {
        with(&mut Blocking { disk: &mut self.disk, calls: None })
    }

    fn exists(&self, _: &str) -> Option<bool> {
        None
    }
}

fn read(parts: &mut impl Parts, part: Part, offset: u64, length: u64) -> Payload {
    let asked = match parts.io(part, IoOp::Read { offset, length }) {
        Ok(IoData::Bytes(bytes)) => bytes,
        other => panic!("{other:?}"),
    };
    assert_eq!(parts.blocking(|disk| disk.read(part, offset, length)).unwrap(), asked);
    asked
}

fn write(parts: &mut impl Parts, part: Part, offset: u64, bufs: Vec<Payload>, sync: bool) {
    does(parts, part, IoOp::Write { offset, bufs, sync });
}

fn does(parts: &mut impl Parts, part: Part, op: IoOp) {
    assert!(matches!(parts.io(part, op), Ok(IoData::Nothing)));
}

/// What the core relies on, and what the simulator's disk must do as the real one does.
fn every_operation(settings: &Settings, parts: &mut impl Parts) {
    let store = Part::Store(VolumeId(1));
    let size = settings.node.volumes[1].size;
    for sync in [false, true] {
        write(parts, store, 8192, vec![bytes(4096, 1), bytes(8192, 2)], sync);
    }
    assert_eq!(
        read(parts, store, 4096, 20480)[..],
        [vec![0; 4096], vec![1; 4096], vec![2; 8192], vec![0; 4096]].concat()[..]
    );
    does(parts, store, IoOp::Flush);

    let extent = |parts: &mut dyn FnMut(IoOp) -> Result<IoData, IoError>, offset| match parts(IoOp::NextData { offset })
    {
        Ok(IoData::Extent(extent)) => extent,
        other => panic!("{other:?}"),
    };
    let mut ask = |op| parts.io(store, op);
    assert_eq!(extent(&mut ask, 0), Some((8192, 12288)));
    assert_eq!(extent(&mut ask, 12288), Some((12288, 8192)), "from the middle of a run");
    assert_eq!(extent(&mut ask, 20480), None);
    assert_eq!(extent(&mut ask, 1 << 40), None);

    for discard in [true, false] {
        write(parts, store, 8192, vec![bytes(12288, 9)], false);
        does(parts, store, IoOp::Zero { offset: 12288, length: 4096, discard });
        let expected = [vec![9; 4096], vec![0; 4096], vec![9; 4096]].concat();
        assert_eq!(read(parts, store, 8192, 12288)[..], expected[..]);
        assert_eq!(parts.blocking(|disk| disk.size(store)), Ok(size));
    }
    // Parts of a page, as blocks of 512 bytes come: buffers need not be as long as what the disk counts in.
    write(parts, store, 512, vec![bytes(512, 3), bytes(1024, 4)], false);
    assert_eq!(read(parts, store, 0, 2560)[..], [vec![0; 512], vec![3; 512], vec![4; 1024], vec![0; 512]].concat()[..]);
    does(parts, store, IoOp::Zero { offset: 1024, length: 512, discard: true });
    assert_eq!(read(parts, store, 512, 1536)[..], [vec![3; 512], vec![0; 512], vec![4; 512]].concat()[..]);
    // To the last byte of a part, and the whole of it at once.
    write(parts, store, size - 4096, vec![bytes(4096, 5)], true);
    assert_eq!(read(parts, store, 0, size)[size as usize - 4096..], bytes(4096, 5)[..]);
    does(parts, store, IoOp::Zero { offset: 0, length: size, discard: true });
    assert!(read(parts, store, 0, size).iter().all(|b| *b == 0));
    parts.blocking(|disk| disk.write(store, 4096, &bytes(4096, 6)).and_then(|()| disk.flush(store))).unwrap();
    assert_eq!(read(parts, store, 4096, 4096), bytes(4096, 6));
    parts.blocking(|disk| disk.zero(store, 4096, 4096)).unwrap();
    assert_eq!(read(parts, store, 4096, 4096), bytes(4096, 0));
    growing(parts);
}

fn growing(parts: &mut impl Parts) {
    for (part, name) in [
        (Part::History, "history"),
        (Part::Bitmap { peer: NodeId(1), half: 0 }, "bitmap.beta.0"),
        (Part::Salvage(3), "salvage.3"),
    ] {
        let size = |parts: &mut dyn FnMut() -> Result<u64, IoError>| parts().unwrap();
        assert_eq!(size(&mut || parts.blocking(|disk| disk.size(part))), 0);
        assert_eq!(read(parts, part, 4096, 4096), bytes(4096, 0));
        does(parts, part, IoOp::Truncate { length: 0 });
        does(parts, part, IoOp::Flush);
        assert_ne!(parts.exists(name), Some(true), "reading makes no file");

        write(parts, part, 4096, vec![bytes(8192, 4)], true);
        assert_ne!(parts.exists(name), Some(false));
        assert_eq!(size(&mut || parts.blocking(|disk| disk.size(part))), 12288);
        assert_eq!(read(parts, part, 8192, 16384)[..], [vec![4; 4096], vec![0; 12288]].concat()[..]);
        assert!(matches!(parts.io(part, IoOp::Reserve { length: 65536 }), Ok(IoData::Room(65536))));
        assert_eq!(size(&mut || parts.blocking(|disk| disk.size(part))), 12288, "room is no length");
        does(parts, part, IoOp::Truncate { length: 8192 });
        assert_eq!(size(&mut || parts.blocking(|disk| disk.size(part))), 8192);
        assert_eq!(read(parts, part, 4096, 8192)[..], [vec![4; 4096], vec![0; 4096]].concat()[..]);
        parts.blocking(|disk| disk.truncate(part, 0)).unwrap();
        assert_eq!(size(&mut || parts.blocking(|disk| disk.size(part))), 0);
    }
}

/// The same on real files, and what only they refuse: the simulator takes it for a mistake of the core.
fn on_files(dir: &Path, expected: IoMode, store_io: StoreIo) {
    let settings = Settings { store_io, ..settings(dir, "alpha") };
    files(&settings);
    let mut real = Real::of(&settings);
    assert!(real.disk.modes().all(|(_, mode)| mode == expected || mode == IoMode::Buffered), "{dir:?}");
    if store_io == StoreIo::Buffered && expected != IoMode::Memory {
        assert!(real.disk.modes().all(|(path, mode)| mode == IoMode::Buffered || *path == settings.log), "{dir:?}");
    }
    every_operation(&settings, &mut real);
    let past_end = IoOp::Read { offset: settings.node.log_size - 4096, length: 8192 };
    assert!(matches!(real.io(Part::Log, past_end), Err(IoError { errno: libc::EIO })));
    assert!(matches!(real.io(Part::Log, IoOp::Truncate { length: 0 }), Err(IoError { errno: libc::EINVAL })));
    assert!(matches!(real.io(Part::Store(VolumeId(9)), IoOp::Flush), Err(IoError { errno: libc::ENXIO })));
}

#[test]
fn every_operation_in_the_simulator() {
    let settings = settings(Path::new("/nowhere"), "alpha");
    every_operation(&settings, &mut Simulated::of(&settings));
}

#[test]
fn every_operation_on_a_disk() {
    let dir = disk_dir();
    on_files(dir.path(), IoMode::Direct, StoreIo::Direct);
}

#[test]
fn every_operation_through_the_page_cache() {
    let dir = disk_dir();
    on_files(dir.path(), IoMode::Direct, StoreIo::Buffered);
}

/// Through the page cache what is there is read at once, and the rest by the ring; both are the same bytes.
#[test]
fn cached_blocks_are_read_at_once() {
    let dir = disk_dir();
    let settings = Settings { store_io: StoreIo::Buffered, ..settings(dir.path(), "alpha") };
    files(&settings);
    let real = &mut Real::of(&settings);
    let store = Part::Store(VolumeId(0));
    write(real, store, 4096, vec![bytes(4096, 1), bytes(4096, 2)], false);
    let expected = [vec![1; 4096], vec![2; 4096]].concat();
    let at_once = |real: &mut Real| match real.disk.start(IoId(7), store, IoOp::Read { offset: 4096, length: 8192 }) {
        Step::Done(_, Ok(IoData::Bytes(bytes))) => Some(bytes),
        Step::Done(_, other) => panic!("{other:?}"),
        Step::Submit(..) => None,
    };
    assert_eq!(at_once(real).expect("it was just written")[..], expected[..]);
    does(real, store, IoOp::Flush);
    let file = File::open(&settings.stores[0]).unwrap();
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    assert!(at_once(real).is_none(), "nothing of it is in the page cache");
    assert_eq!(read(real, store, 4096, 8192)[..], expected[..]);
}

#[test]
fn every_operation_in_memory() {
    let Some(dir) = memory_dir() else { return eprintln!("no tmpfs at /dev/shm: not tested") };
    on_files(dir.path(), IoMode::Memory, StoreIo::Direct);
    let Some(dir) = memory_dir() else { return };
    on_files(dir.path(), IoMode::Memory, StoreIo::Buffered);
}

#[test]
fn zeros_are_written_where_they_cannot_be_made() {
    for dir in [Some(disk_dir()), memory_dir()].into_iter().flatten() {
        let settings = settings(dir.path(), "alpha");
        files(&settings);
        let real = &mut Real::of(&settings);
        let store = Part::Store(VolumeId(0));
        let size = settings.node.volumes[0].size;
        write(real, store, 0, vec![bytes(size as usize, 7)], false);
        real.disk.parts[&store].zero_refused(true);
        does(real, store, IoOp::Zero { offset: 4096, length: size - 8192, discard: true });
        let all = read(real, store, 0, size);
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
    let mut real = Real::of(&settings);
    std::fs::remove_dir_all(dir.path()).unwrap();
    let op = IoOp::Write { offset: 0, bufs: vec![bytes(4096, 1)], sync: false };
    assert!(matches!(real.io(Part::History, op), Err(IoError { errno: libc::ENOENT })));
}

#[test]
fn a_salvage_of_an_earlier_process_is_never_written_to() {
    let dir = disk_dir();
    let settings = settings(dir.path(), "alpha");
    files(&settings);
    let part = Part::Salvage(1);
    let mut earlier = Real::of(&settings);
    // In several writes, as it grows.
    write(&mut earlier, part, 0, vec![bytes(4096, 1)], true);
    write(&mut earlier, part, 4096, vec![bytes(4096, 2)], true);
    drop(earlier);
    let mut later = Real::of(&settings);
    let op = IoOp::Write { offset: 0, bufs: vec![bytes(4096, 9)], sync: true };
    assert!(matches!(later.io(part, op), Err(IoError { errno: libc::EEXIST })));
    assert_eq!(std::fs::read(dir.path().join("salvage.1")).unwrap(), [[1; 4096], [2; 4096]].concat());
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
