//! A loop device over a file that this test serves from its memory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};
use understudy_kernel::front::{Front, Op, Request, Shape};
use understudy_kernel::fuse::Fuse;
use understudy_kernel::loopdev::Loop;
use understudy_kernel::users;

const SIZE: u64 = 64 << 20;

/// What was asked of the volume.
#[derive(Default)]
struct Served {
    contents: Vec<u8>,
    flushes: usize,
    discarded: u64,
    zeroed: u64,
}

/// Serves until the device is gone.
fn serve(mut front: Fuse) -> Served {
    let mut served = Served { contents: vec![0xaa; SIZE as usize], ..Served::default() };
    loop {
        match front.next() {
            Ok(Some(Request { slot, op })) => {
                let result = answer(&mut served, op, front.buffer(slot));
                front.complete(slot, result).unwrap();
            }
            Ok(None) => {
                let mut fds = [nix::poll::PollFd::new(front.fd(), nix::poll::PollFlags::POLLIN)];
                let _ = nix::poll::poll(&mut fds, 1000u16);
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotConnected => return served,
            Err(e) => panic!("{e}"),
        }
    }
}

fn answer(served: &mut Served, op: Op, buffer: &mut [u8]) -> Result<(), i32> {
    let range = |offset: u64, length: u32| offset as usize..offset as usize + length as usize;
    match op {
        Op::Read { offset, length } => buffer.copy_from_slice(&served.contents[range(offset, length)]),
        Op::Write { offset, length, .. } => served.contents[range(offset, length)].copy_from_slice(buffer),
        Op::Flush => served.flushes += 1,
        Op::Discard { offset, length } => {
            served.discarded += u64::from(length);
            served.contents[range(offset, length)].fill(0);
        }
        Op::Zeroes { offset, length, .. } => {
            served.zeroed += u64::from(length);
            served.contents[range(offset, length)].fill(0);
        }
    }
    Ok(())
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root() && File::open("/dev/fuse").is_ok();
    if !root {
        println!("SKIPPED: it takes root, /dev/fuse and loop devices");
    }
    root
}

struct Device {
    server: std::thread::JoinHandle<Served>,
    device: Loop,
}

fn device(name: &str, read_only: bool) -> Device {
    let front = Fuse::new(Shape { size: SIZE, block: 4096, read_only }, name).unwrap();
    let mount = front.mount().unwrap();
    let server = std::thread::spawn(move || serve(front));
    let file = mount.open(read_only).unwrap();
    let device = Loop::attach(file.as_fd(), 4096, read_only, name, |_| Ok(())).unwrap();
    Device { server, device }
}

fn end(server: std::thread::JoinHandle<Served>) -> Served {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !server.is_finished() {
        assert!(Instant::now() < deadline, "the file is still open");
        std::thread::sleep(Duration::from_millis(5));
    }
    server.join().unwrap()
}

#[test]
fn what_is_written_read_discarded_and_flushed_reaches_the_server() {
    if !is_root() {
        return;
    }
    let Device { server, device } = device("understudy-test-rw", false);
    let path = device.path();
    assert!(device.is_attached() && device.is_direct(), "with direct I/O, or everything would be cached twice");
    let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), SIZE);
    let data: Vec<u8> = (0..3 << 20).map(|i: u32| (i >> 9) as u8).collect();
    file.write_all_at(&data, 8 << 20).unwrap();
    file.sync_all().unwrap();
    let mut read = vec![0; 4096];
    file.read_exact_at(&mut read, 0).unwrap();
    assert!(read.iter().all(|b| *b == 0xaa));
    let named = users::of(&path);
    assert!(named.is_empty(), "this process itself does not count: {named:?}");
    drop(file);
    for arguments in [&["-o", "0", "-l", "4194304"][..], &["-z", "-o", "33554432", "-l", "1048576"]] {
        assert!(Command::new("blkdiscard").args(arguments).arg(&path).status().unwrap().success());
    }
    device.detach().unwrap();
    let served = end(server);
    assert!(served.contents[8 << 20..11 << 20] == data);
    assert!(served.contents[..4 << 20].iter().all(|b| *b == 0), "discarded");
    assert!(served.contents[32 << 20..33 << 20].iter().all(|b| *b == 0), "zeroed");
    assert!(served.contents[4 << 20..8 << 20].iter().all(|b| *b == 0xaa), "and nothing else");
    assert!(served.flushes > 0 && served.discarded >= 4 << 20, "{} {}", served.flushes, served.discarded);
    assert!(!device.is_attached() && Loop::find(&device.node(), "understudy-test-rw").is_none());
}

#[test]
fn a_read_only_device_takes_no_writes() {
    if !is_root() {
        return;
    }
    let Device { server, device } = device("understudy-test-ro", true);
    let mut first = [0; 512];
    File::open(device.path()).unwrap().read_exact(&mut first).unwrap();
    assert_eq!(first, [0xaa; 512]);
    let refused = OpenOptions::new().write(true).open(device.path()).and_then(|f| f.write_at(&[0; 4096], 0));
    assert!(refused.is_err());
    device.detach().unwrap();
    end(server);
}

#[test]
fn a_device_in_use_goes_when_its_last_user_does_or_is_kept() {
    if !is_root() {
        return;
    }
    let Device { server, device } = device("understudy-test-used", false);
    let user = File::open(device.path()).unwrap();
    device.detach().unwrap();
    assert!(device.is_attached(), "somebody has it open");
    device.keep().unwrap();
    drop(user);
    std::thread::sleep(Duration::from_millis(50));
    assert!(device.is_attached() && !server.is_finished(), "it was kept");
    let mut user = File::open(device.path()).unwrap();
    device.detach().unwrap();
    user.read_exact(&mut [0; 4096]).unwrap();
    drop(user);
    end(server);
    assert!(!device.is_attached());
}
