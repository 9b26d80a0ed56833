//! Real files and sockets through the ring.

use super::*;
use crate::buf::{BufMut, Payload};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;

fn fd(file: impl Into<OwnedFd>) -> Fd {
    Rc::new(file.into())
}

/// Waits for `n` completions.
fn collect(ring: &mut Ring<u32>, n: usize) -> Vec<Completion<u32>> {
    let mut out = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while out.len() < n {
        assert!(Instant::now() < deadline, "{} of {n} completions", out.len());
        ring.wait(Some(Duration::from_secs(1))).unwrap();
        ring.completions(&mut out);
    }
    out
}

fn one(ring: &mut Ring<u32>, op: Op) -> Completion<u32> {
    ring.push(0, op);
    collect(ring, 1).remove(0)
}

fn pair() -> (Fd, Fd) {
    let (a, b) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
    (Rc::new(a), Rc::new(b))
}

#[test]
fn a_file_is_written_synced_zeroed_and_read() {
    let mut ring = Ring::new().unwrap();
    let file = fd(tempfile::tempfile().unwrap());
    let bufs = vec![Payload::copy_of(&[1; 4096]), Payload::copy_of(&[2; 4096]), Payload::copy_of(&[3; 4096])];
    for sync in [false, true] {
        let write = Op::Write { file: file.clone(), offset: 4096, bufs: bufs.clone(), skip: 4096, sync };
        assert_eq!(one(&mut ring, write).result, Ok(8192));
    }
    assert_eq!(one(&mut ring, Op::Fdatasync { file: file.clone() }).result, Ok(0));
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let zero = Op::Fallocate { file: file.clone(), mode, offset: 4096, length: 4096 };
    assert_eq!(one(&mut ring, zero).result, Ok(0));
    let done = one(&mut ring, Op::Read { file, offset: 0, buf: BufMut::zeroed(20000), from: 100 });
    assert_eq!(done.result, Ok(12288));
    let Op::Read { buf, .. } = done.op else { panic!("{done:?}") };
    assert!(buf[100..8292].iter().all(|&b| b == 0), "the hole");
    assert!(buf[8292..12388].iter().all(|&b| b == 3));
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn what_is_sent_in_pieces_is_received_in_areas() {
    let mut ring = Ring::new().unwrap();
    let (a, b) = pair();
    let pieces = vec![
        Piece::Bytes(b"xxhead".to_vec()),
        Piece::Payload(Payload::copy_of(&[7; 4096])),
        Piece::Payload(BufMut::zeroed(70_000).freeze()),
        Piece::Bytes(b"tail".to_vec()),
    ];
    ring.push(1, Op::Send { socket: a, data: Gather::Pieces(pieces), skip: 2 });
    let bufs = vec![BufMut::zeroed(4096), BufMut::zeroed(8)];
    let areas = vec![Area { buf: 1, from: 4, length: 4 }, Area { buf: 0, from: 0, length: 4096 }];
    ring.push(2, Op::Recv { socket: b.clone(), bufs, areas });
    let mut received = Vec::new();
    let mut sent = None;
    while received.len() < 4 + 4096 + 70_000 + 4 || sent.is_none() {
        for done in collect(&mut ring, 1) {
            let Op::Recv { bufs, mut areas, .. } = done.op else {
                sent = Some(done.result.unwrap());
                continue;
            };
            let mut left = done.result.unwrap();
            assert!(left > 0, "closed early");
            for area in &areas {
                let n = left.min(area.length);
                received.extend_from_slice(&bufs[area.buf][area.from..area.from + n]);
                left -= n;
            }
            areas.truncate(2);
            if received.len() < 4 + 4096 + 70_000 + 4 {
                ring.push(2, Op::Recv { socket: b.clone(), bufs, areas });
            }
        }
    }
    assert_eq!(sent, Some(4 + 4096 + 70_000 + 4));
    assert_eq!(&received[..4], b"head");
    assert!(received[4..4100].iter().all(|&b| b == 7));
    assert!(received[4100..74_100].iter().all(|&b| b == 0));
    assert_eq!(&received[74_100..], b"tail");
}

#[test]
fn a_connection_is_dialed_accepted_and_closed() {
    let mut ring = Ring::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let dialer = Rc::new(socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap());
    ring.push(1, Op::Accept { socket: fd(listener), accepted: None });
    ring.push(2, Op::Connect { socket: dialer.clone(), address: Box::new(Address::from(address)) });
    let mut accepted = None;
    for done in collect(&mut ring, 2) {
        assert!(done.result.is_ok());
        if let Op::Accept { accepted: Some(fd), .. } = done.op {
            accepted = Some(fd);
        }
    }
    let mut stream = std::net::TcpStream::from(accepted.unwrap());
    stream.write_all(b"hi").unwrap();
    let areas = vec![Area { buf: 0, from: 0, length: 8 }];
    let done = one(&mut ring, Op::Recv { socket: dialer.clone(), bufs: vec![BufMut::zeroed(8)], areas: areas.clone() });
    assert_eq!(done.result, Ok(2));
    drop(stream);
    let done = one(&mut ring, Op::Recv { socket: dialer, bufs: vec![BufMut::zeroed(8)], areas });
    assert_eq!(done.result, Ok(0));
}

#[test]
fn a_refused_dial_is_an_error_and_not_a_panic() {
    let mut ring = Ring::new().unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dialer = Rc::new(socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap());
    let done = one(&mut ring, Op::Connect { socket: dialer, address: Box::new(Address::from(address)) });
    assert_eq!(done.result, Err(libc::ECONNREFUSED));
}

#[test]
fn waiting_ends_with_its_time_and_with_a_wake() {
    let mut ring = Ring::new().unwrap();
    let event = Rc::new(nix::sys::eventfd::EventFd::from_value(0).unwrap());
    let file = Rc::new(OwnedFd::from(File::from(std::os::fd::AsFd::as_fd(&*event).try_clone_to_owned().unwrap())));
    ring.push(1, Op::PollIn { file });
    let started = Instant::now();
    ring.wait(Some(Duration::from_millis(30))).unwrap();
    assert!(started.elapsed() >= Duration::from_millis(25));
    let mut out = Vec::new();
    ring.completions(&mut out);
    assert!(out.is_empty());
    event.write(1).unwrap();
    let started = Instant::now();
    assert_eq!(collect(&mut ring, 1)[0].tag, 1);
    assert!(started.elapsed() < Duration::from_millis(900));
}

#[test]
fn an_operation_can_be_cancelled_once() {
    let mut ring = Ring::new().unwrap();
    let (a, _b) = pair();
    let areas = vec![Area { buf: 0, from: 0, length: 8 }];
    let token = ring.push(1, Op::Recv { socket: a, bufs: vec![BufMut::zeroed(8)], areas });
    ring.wait(Some(Duration::ZERO)).unwrap();
    ring.push(2, Op::Cancel { target: token });
    let mut results: Vec<_> = collect(&mut ring, 2).into_iter().map(|d| (d.tag, d.result)).collect();
    results.sort();
    assert_eq!(results, [(1, Err(libc::ECANCELED)), (2, Ok(0))]);
    // The slot has been used again meanwhile or not: the token names nothing any more.
    assert_eq!(one(&mut ring, Op::Cancel { target: token }).result, Err(libc::ENOENT));
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn more_than_the_queue_holds_is_done_all_the_same() {
    let mut ring = Ring::new().unwrap();
    let file = fd(tempfile::tempfile().unwrap());
    let block = Payload::copy_of(&[5; 512]);
    for i in 0..5000u32 {
        let offset = u64::from(i) * 512;
        ring.push(i, Op::Write { file: file.clone(), offset, bufs: vec![block.clone()], skip: 0, sync: false });
    }
    let mut tags: Vec<u32> = collect(&mut ring, 5000).into_iter().map(|d| d.tag).collect();
    tags.sort();
    assert!(tags.into_iter().eq(0..5000));
    assert_eq!(ring.in_flight(), 0);
    assert!(ring.slots.iter().all(|s| s.busy.is_none()));
}

#[test]
fn a_dropped_ring_leaves_no_operation_behind() {
    let (a, b) = pair();
    let mut ring = Ring::new().unwrap();
    let areas = vec![Area { buf: 0, from: 0, length: 8 }];
    let tag = Rc::new(());
    ring.push(tag.clone(), Op::Recv { socket: a.clone(), bufs: vec![BufMut::zeroed(8)], areas });
    ring.wait(Some(Duration::ZERO)).unwrap();
    // One that was pushed and never submitted.
    let block = Payload::copy_of(&[5; 512]);
    let file = fd(tempfile::tempfile().unwrap());
    for _ in 0..3000 {
        let bufs = vec![block.clone()];
        ring.push(tag.clone(), Op::Write { file: file.clone(), offset: 0, bufs, skip: 0, sync: false });
    }
    let started = Instant::now();
    drop(ring);
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(Rc::strong_count(&tag), 1, "the operation was given back, not leaked");
    // Bytes sent now must be there for somebody else.
    File::from(b.try_clone().unwrap()).write_all(b"late").unwrap();
    let mut buf = [0; 4];
    File::from(a.try_clone().unwrap()).read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"late");
}
