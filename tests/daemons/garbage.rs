//! Whatever strangers send to a daemon's sockets: it lives on, and does not bother its other clients with it.

use crate::common::*;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use understudy::demo::oracle::Promise;
use understudy::demo::rng::Rng;
use understudy::nbd_client::Address;

const BLOCKS: u64 = 6144;

/// Something that may come over a socket: noise, or the beginning of something sensible and then noise, or silence.
fn message(rng: &mut Rng, beginnings: &[Vec<u8>]) -> Vec<u8> {
    let beginning = &beginnings[rng.below(beginnings.len() as u64) as usize];
    let cut = if rng.below(3) == 0 { rng.below(beginning.len() as u64 + 1) as usize } else { beginning.len() };
    let mut bytes = beginning[..cut].to_vec();
    let noise = [0, 1, 27, 300, 5000, 100_000][rng.below(6) as usize];
    bytes.extend((0..noise).map(|_| if rng.below(4) == 0 { 0 } else { rng.next_u64() as u8 }));
    bytes
}

/// Sends it, perhaps waits for what comes back, and closes one way or the other.
fn assault(mut stream: impl Read + Write, bytes: &[u8], linger: bool, close: impl FnOnce()) {
    // The other side may well have closed in the middle: that is its good right.
    let _ = stream.write_all(bytes);
    if linger {
        let mut answer = [0; 4096];
        let _ = stream.read(&mut answer);
    }
    close();
}

fn nbd_beginnings() -> Vec<Vec<u8>> {
    let flags = [0, 0, 0, 3];
    let option =
        |number: u32, length: u32| [&flags[..], b"IHAVEOPT", &number.to_be_bytes(), &length.to_be_bytes()].concat();
    let name = [&5u32.to_be_bytes()[..], b"disk0", &[0, 0]].concat();
    let go = [&option(7, name.len() as u32)[..], &name].concat();
    let request = |command: u16, flags: u16, offset: u64, length: u32| {
        let head = [
            &go[..],
            &0x2560_9513_u32.to_be_bytes(),
            &flags.to_be_bytes(),
            &command.to_be_bytes(),
            &7u64.to_be_bytes(),
        ]
        .concat();
        [head, offset.to_be_bytes().to_vec(), length.to_be_bytes().to_vec()].concat()
    };
    vec![
        vec![],
        vec![0xff; 4],
        option(7, 0xffff_ffff),
        option(1, 5),
        option(3, 7),
        option(10, 30),
        go.clone(),
        // Out of range, absurd, misaligned, unknown: none of them may change the volume. A write's payload is the noise.
        request(0, 0, u64::MAX, 4096),
        request(1, 0, 1 << 40, 4096),
        request(1, 0, 0, u32::MAX),
        request(4, 0xffff, 0, 4096),
        request(6, 0, u64::MAX - 4095, 4096),
        request(99, 0, 0, 0),
        request(3, 0, 5, 5),
        request(0, 0, 0, 4096),
    ]
}

fn control_beginnings() -> Vec<Vec<u8>> {
    let lines = [
        "",
        "{",
        "{}\n",
        "[]\n",
        "\n\n\n",
        "{\"command\":\"status\"}",
        "{\"command\":\"status\"}\n",
        "{\"command\":\"events\"}\n",
        "{\"command\":\"promote\",\"off\":7}\n",
        "{\"command\":\"switchover\",\"to\":\"\\u0000\"}\n",
        "\u{feff}{\"command\":1e999}\n",
    ];
    let mut all: Vec<Vec<u8>> = lines.iter().map(|l| l.as_bytes().to_vec()).collect();
    all.push(vec![b'['; 60_000]);
    all
}

#[test]
fn garbage_on_every_socket_disturbs_nobody() {
    let seed = seed("garbage_on_every_socket_disturbs_nobody");
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::serving(&pair("24MiB"), &[0, 1]);
    let (pids, load) = ([must(cluster.pid(0)), must(cluster.pid(1))], Load::start(&cluster, 0, writers(BLOCKS, seed)));
    let (nbd, control) = (nbd_beginnings(), control_beginnings());
    // As a peer's frames begin is the daemon's own affair: what a listener sends first is a fair beginning.
    let peer: Vec<Vec<u8>> =
        vec![vec![], vec![0; 64], vec![0xff; 64], b"GET / HTTP/1.1\r\n\r\n".to_vec(), heard(cluster.port(1))];
    for _ in 0..60 {
        for node in [0, 1] {
            let linger = rng.below(4) == 0;
            let Address::Unix(path) = cluster.nbd_address(node) else { panic!("a unix socket") };
            // A passive may not even listen.
            if let Ok(stream) = UnixStream::connect(path) {
                stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
                assault(&stream, &message(&mut rng, &nbd), linger, || stream.shutdown(Shutdown::Both).unwrap_or(()));
            }
            let stream = TcpStream::connect(("127.0.0.1", cluster.port(node))).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            assault(&stream, &message(&mut rng, &peer), linger, || stream.shutdown(Shutdown::Write).unwrap_or(()));
            let stream = UnixStream::connect(cluster.control_socket(node)).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            assault(&stream, &message(&mut rng, &control), linger, || stream.shutdown(Shutdown::Both).unwrap_or(()));
        }
    }
    load.await_writes(100);
    let mut writers = load.stop();
    assert_eq!(check(&cluster, 0, &mut writers, Promise::Completed), 0);
    cluster.await_in_sync(0, &[0, 1]);
    assert_eq!([must(cluster.pid(0)), must(cluster.pid(1))], pids);
    let said = [cluster.said(0), cluster.said(1)].concat();
    assert!(!said.contains("panicked"), "a daemon has panicked: {said}");
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// What a daemon says to whoever connects to its peer port.
fn heard(port: u16) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut bytes = vec![0; 8192];
    let length = stream.read(&mut bytes).unwrap_or(0);
    bytes.truncate(length);
    bytes
}

/// Connections that say nothing and stay must not use up what others need.
#[test]
fn silent_connections_do_not_keep_others_out() {
    let mut cluster = Cluster::serving(&pair("16MiB"), &[0, 1]);
    let Address::Unix(path) = cluster.nbd_address(0) else { panic!("a unix socket") };
    let silent: Vec<_> = (0..50).map_while(|_| UnixStream::connect(&path).ok()).collect();
    let silent_peers: Vec<_> = (0..50).map_while(|_| TcpStream::connect(("127.0.0.1", cluster.port(1))).ok()).collect();
    assert!(silent.len() == 50 && silent_peers.len() == 50);
    cluster.client(0).write(0, &block_of(1), true).unwrap();
    // The pair parts and must find together again, through the crowd.
    must(cluster.kill(0));
    must(cluster.start(0));
    cluster.await_answer(0);
    cluster.await_in_sync(0, &[0, 1]);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}
