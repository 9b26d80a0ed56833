//! The engine between a front that the test plays, and a daemon that it plays, too.

use super::engine::{Engine, Heard, Order};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use understudy_kernel::front::{Front, Op, Request};

const DEPTH: usize = 8;
const LENGTH: usize = 200_000;

/// What the kernel's side asks and was told.
#[derive(Default)]
struct Kernel {
    asks: VecDeque<Request>,
    answers: Vec<(u16, Result<(), i32>, u8)>,
    gone: bool,
}

struct Fake {
    kernel: Arc<Mutex<Kernel>>,
    wake: Arc<EventFd>,
    ops: Vec<Op>,
    buffers: Vec<Vec<u8>>,
}

impl Front for Fake {
    fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn depth(&self) -> usize {
        DEPTH
    }

    fn next(&mut self) -> io::Result<Option<Request>> {
        let _ = self.wake.read();
        let mut kernel = self.kernel.lock().unwrap();
        if kernel.gone {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let request = kernel.asks.pop_front();
        if let Some(Request { slot, op }) = request {
            self.ops[usize::from(slot)] = op;
            self.buffers[usize::from(slot)] = vec![slot as u8 + 1; op.payload()];
        }
        Ok(request)
    }

    fn has_room(&self) -> bool {
        true
    }

    fn data(&self, slot: u16) -> &[u8] {
        &self.buffers[usize::from(slot)]
    }

    fn buffer(&mut self, slot: u16) -> &mut [u8] {
        &mut self.buffers[usize::from(slot)]
    }

    fn complete(&mut self, slot: u16, result: Result<(), i32>) -> io::Result<()> {
        let first = self.buffers[usize::from(slot)].first().copied().unwrap_or(0);
        self.kernel.lock().unwrap().answers.push((slot, result, first));
        Ok(())
    }
}

struct Scene {
    kernel: Arc<Mutex<Kernel>>,
    wake: Arc<EventFd>,
    engine: super::engine::EngineHandle,
    heard: Receiver<Heard>,
}

impl Scene {
    fn new() -> Scene {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        let kernel = Arc::new(Mutex::new(Kernel::default()));
        let (ops, buffers) = (vec![Op::Flush; DEPTH], vec![Vec::new(); DEPTH]);
        let front = Fake { kernel: kernel.clone(), wake: wake.clone(), ops, buffers };
        let (sender, heard) = channel();
        let (engine, handle) = Engine::new(front, move |h| drop(sender.send(h))).unwrap();
        std::thread::spawn(move || engine.run());
        Scene { kernel, wake, engine: handle, heard }
    }

    fn ask(&self, slot: u16, op: Op) {
        self.kernel.lock().unwrap().asks.push_back(Request { slot, op });
        self.wake.write(1).unwrap();
    }

    fn connect(&self) -> UnixStream {
        let (ours, daemons) = UnixStream::pair().unwrap();
        daemons.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        self.engine.tell(Order::Connection(ours));
        daemons
    }

    fn hear(&self) -> Heard {
        self.heard.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    /// Waits for so many answers, and takes them.
    fn answers(&self, count: usize) -> Vec<(u16, Result<(), i32>, u8)> {
        for _ in 0..2000 {
            if self.kernel.lock().unwrap().answers.len() >= count {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        std::mem::take(&mut self.kernel.lock().unwrap().answers)
    }
}

/// One request as the daemon sees it: command, cookie, offset and data.
fn request(daemon: &mut UnixStream) -> (u16, [u8; 8], u64, Vec<u8>) {
    let mut head = [0; 28];
    daemon.read_exact(&mut head).unwrap();
    let command = u16::from_be_bytes([head[6], head[7]]);
    let length = u32::from_be_bytes(head[24..].try_into().unwrap()) as usize;
    let mut data = vec![0; if command == 1 { length } else { 0 }];
    daemon.read_exact(&mut data).unwrap();
    (command, head[8..16].try_into().unwrap(), u64::from_be_bytes(head[16..24].try_into().unwrap()), data)
}

fn reply(daemon: &mut UnixStream, error: u32, cookie: [u8; 8], data: &[u8]) {
    let bytes = [&0x6744_6698u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie, data].concat();
    daemon.write_all(&bytes).unwrap();
}

fn write(offset: u64) -> Op {
    Op::Write { offset, length: LENGTH as u32, fua: false }
}

/// The daemon dies with half of it unanswered, and in the middle of an answer.
#[test]
fn what_was_not_answered_is_asked_again_in_its_order() {
    let scene = Scene::new();
    let mut daemon = scene.connect();
    scene.ask(0, write(0));
    scene.ask(1, write(4096));
    scene.ask(2, Op::Read { offset: 8192, length: LENGTH as u32 });
    let asked: Vec<_> = (0..3).map(|_| request(&mut daemon)).collect();
    assert!(asked[0].3 == vec![1; LENGTH] && asked[1].3 == vec![2; LENGTH]);
    reply(&mut daemon, 0, asked[1].1, &[]);
    assert_eq!(scene.answers(1), [(1, Ok(()), 2)]);
    // The slot is used anew, for a request that comes after all that wait.
    scene.ask(1, Op::Flush);
    assert_eq!(request(&mut daemon).0, 3);
    reply(&mut daemon, 0, asked[2].1, &[9; 1000]);
    drop(daemon);
    assert!(matches!(scene.hear(), Heard::Lost { .. }));
    // While there is no connection, more is asked.
    scene.ask(3, Op::Discard { offset: 0, length: 4096 });
    let mut daemon = scene.connect();
    let again: Vec<_> = (0..4).map(|_| request(&mut daemon)).collect();
    assert_eq!(again.iter().map(|r| (r.0, r.2)).collect::<Vec<_>>(), [(1, 0), (0, 8192), (3, 0), (4, 0)]);
    assert!(again[0].3 == vec![1; LENGTH]);
    reply(&mut daemon, 0, again[1].1, &vec![7; LENGTH]);
    for n in [0, 2, 3] {
        reply(&mut daemon, 0, again[n].1, &[]);
    }
    assert_eq!(scene.answers(4), [(2, Ok(()), 7), (0, Ok(()), 1), (1, Ok(()), 0), (3, Ok(()), 0)]);
    assert_eq!(scene.engine.under_way(), 0);
}

/// A daemon that steps down answers so: that is no answer, but the end of the connection.
#[test]
fn a_daemon_that_serves_no_longer_has_not_answered() {
    let scene = Scene::new();
    let mut daemon = scene.connect();
    scene.ask(0, Op::Flush);
    let (_, cookie, ..) = request(&mut daemon);
    reply(&mut daemon, 108, cookie, &[]);
    assert!(matches!(scene.hear(), Heard::Lost { .. }));
    let mut daemon = scene.connect();
    let (_, cookie, ..) = request(&mut daemon);
    reply(&mut daemon, 5, cookie, &[]);
    assert_eq!(scene.answers(1), [(0, Err(libc::EIO), 0)], "its storage failed: that is one");
}

#[test]
fn garbage_from_the_daemon_ends_the_connection() {
    let scene = Scene::new();
    for garbage in [b"HTTP/1.1 400 Bad Request".to_vec(), {
        // A reply to a request of another connection.
        [&0x6744_6698u32.to_be_bytes()[..], &[0; 4], &77u64.to_be_bytes()].concat()
    }] {
        let mut daemon = scene.connect();
        daemon.write_all(&garbage).unwrap();
        let Heard::Lost { why, .. } = scene.hear() else { panic!("it goes on") };
        assert_eq!(why.kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
fn after_the_end_of_its_tenure_everything_fails() {
    let scene = Scene::new();
    scene.ask(0, write(0));
    let mut daemon = scene.connect();
    request(&mut daemon);
    scene.engine.tell(Order::Fail);
    assert_eq!(scene.answers(1), [(0, Err(libc::EIO), 1)]);
    scene.ask(1, Op::Flush);
    assert_eq!(scene.answers(1), [(1, Err(libc::EIO), 0)]);
    assert_eq!(daemon.read(&mut [0]).unwrap(), 0, "and the daemon is not asked");
    let mut daemon = scene.connect();
    assert_eq!(daemon.read(&mut [0]).unwrap(), 0, "a connection that comes too late is closed");
    scene.kernel.lock().unwrap().gone = true;
    scene.wake.write(1).unwrap();
    assert!(matches!(scene.hear(), Heard::Gone));
}
