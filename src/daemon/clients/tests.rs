//! Real sockets, and a core that is played by the test.

use super::*;
use crate::buf::Payload;
use crate::config::NbdListen;
use crate::core::{Segment, TermId, VolumeId};
use crate::daemon::hub::Tag;
use crate::daemon::testing::{NbdClient, completions, disk_dir, hub, settings, until};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use tempfile::TempDir;

const TENURE: TermId = TermId(7);

struct Stage {
    hub: Hub,
    clients: Clients,
    /// What the core was asked and has not answered.
    asked: Vec<(ReqId, ClientOp)>,
    path: PathBuf,
    _dir: TempDir,
}

impl Stage {
    fn new() -> Stage {
        let dir = disk_dir();
        let path = dir.path().join("nbd.sock");
        let mut settings = settings(dir.path(), "alpha");
        settings.nbd = vec![NbdListen::Unix(path.clone()), NbdListen::Tcp("127.0.0.1:0".parse().unwrap())];
        let clients = Clients::new(&settings).unwrap();
        Stage { hub: hub(), clients, asked: Vec::new(), path, _dir: dir }
    }

    fn serving() -> Stage {
        let mut stage = Stage::new();
        stage.clients.serve(TENURE, &mut stage.hub);
        stage
    }

    fn step(&mut self) {
        self.clients.resume(&mut self.hub);
        self.clients.flush(&mut self.hub);
        for done in completions(&mut self.hub) {
            match done.tag {
                Tag::Client(tag) => self.clients.completed(tag, done.op, done.result, &mut self.hub),
                _ => panic!("nobody else is here"),
            }
        }
        self.clients.tick(&mut self.hub);
        for event in self.hub.events.drain(..) {
            match event {
                Event::Client { req, op } => self.asked.push((req, op)),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A client in the transmission phase. It talks from a thread, as the stage must move meanwhile.
    fn client(&mut self) -> NbdClient {
        let path = self.path.clone();
        let thread = std::thread::spawn(move || NbdClient::connect(&path, "disk1").unwrap());
        until("a client is connected", self, Stage::step, |_| thread.is_finished());
        thread.join().unwrap()
    }

    fn answer(&mut self, n: usize, result: Result<Reply, ClientError>) {
        for (req, _) in self.asked.drain(..n) {
            self.clients.complete(req, result.clone());
        }
    }

    fn wait_for(&mut self, n: usize) {
        until(&format!("{n} requests"), self, Stage::step, |s| s.asked.len() >= n);
    }
}

/// So many bytes may be in flight without anybody reading.
fn send(client: &NbdClient, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
    let mut stream = client.stream.try_clone().unwrap();
    std::thread::spawn(move || {
        // The stage may close the connection in the middle of it.
        let _ = stream.write_all(&bytes);
    })
}

fn writes(n: u64, size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for i in 0..n {
        let places = ((1 << 20) - size as u64) / 4096 + 1;
        bytes.extend_from_slice(&NbdClient::request(i, 1, i % places * 4096, size as u32));
        bytes.resize(bytes.len() + size, (i as u8).wrapping_add(1));
    }
    bytes
}

#[test]
fn nobody_is_let_in_while_this_node_is_passive() {
    let mut stage = Stage::new();
    assert!(UnixStream::connect(&stage.path).is_err());
    stage.clients.serve(TENURE, &mut stage.hub);
    let _client = stage.client();
    assert_eq!(stage.clients.count(), 1);
    stage.clients.stop_serving(&mut stage.hub);
    assert!(UnixStream::connect(&stage.path).is_err());
    assert!(!stage.path.exists());
    until("nothing is left", &mut stage, Stage::step, |s| s.clients.count() == 0 && s.hub.ring.in_flight() == 0);
    stage.clients.serve(TENURE, &mut stage.hub);
    let _client = stage.client();
}

/// A device that comes back asks for the tenure that it belongs to.
#[test]
fn a_volume_can_be_asked_for_in_one_tenure_only() {
    let mut stage = Stage::serving();
    let mut ask = |name: String| {
        let path = stage.path.clone();
        let thread = std::thread::spawn(move || NbdClient::connect(&path, &name).is_ok());
        until("it is answered", &mut stage, Stage::step, |_| thread.is_finished());
        thread.join().unwrap()
    };
    assert!(ask(fenced_name("disk1", TENURE)));
    assert!(!ask(fenced_name("disk1", TermId(8))));
    assert!(ask("disk1".into()));
}

#[test]
fn writes_arrive_whole_aligned_and_in_order_whatever_their_sizes() {
    let mut stage = Stage::serving();
    let mut client = stage.client();
    let mut bytes = writes(100, 4096);
    bytes.extend(writes(3, 512 << 10));
    bytes.extend(NbdClient::request(7, 3, 0, 0));
    bytes.extend(writes(20, 8192));
    let sender = send(&client, bytes);
    stage.wait_for(124);
    sender.join().unwrap();
    let sizes = [vec![4096; 100], vec![512 << 10; 3], vec![0], vec![8192; 20]].concat();
    for (i, ((_, op), size)) in stage.asked.iter().zip(sizes).enumerate() {
        match op {
            ClientOp::Write { payload, volume: VolumeId(1), fua: false, .. } => {
                let value = payload[0];
                assert_eq!(payload.as_ptr() as usize % 4096, 0);
                assert!(payload.len() == size && payload.iter().all(|b| *b == value), "write {i}");
            }
            other => assert!(size == 0 && matches!(other, ClientOp::Flush { .. })),
        }
    }
    stage.answer(124, Ok(Reply::Done));
    until("all is sent", &mut stage, Stage::step, |s| s.clients.settled());
    let cookies: Vec<u64> = (0..124).map(|_| client.reply().unwrap().0).collect();
    assert!(cookies.into_iter().eq((0..100).chain(0..3).chain([7]).chain(0..20)));
}

#[test]
fn a_read_is_answered_from_payloads_and_zeros() {
    let mut stage = Stage::serving();
    let mut client = stage.client();
    client.stream.write_all(&NbdClient::request(9, 0, 4096, 12288)).unwrap();
    stage.wait_for(1);
    assert!(matches!(stage.asked[0].1, ClientOp::Read { volume: VolumeId(1), offset: 4096, length: 12288 }));
    let data = Payload::copy_of(&[5; 4096]);
    stage.answer(1, Ok(Reply::Data(vec![Segment::Zero(4096), Segment::Data(data), Segment::Zero(4096)])));
    until("it is sent", &mut stage, Stage::step, |s| s.clients.settled());
    assert_eq!(client.reply().unwrap(), (9, 0));
    let mut bytes = vec![1; 12288];
    client.stream.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [vec![0; 4096], vec![5; 4096], vec![0; 4096]].concat());
}

#[test]
fn nothing_is_received_while_the_core_has_no_room() {
    let mut stage = Stage::serving();
    let client = stage.client();
    stage.clients.set_open(false);
    let sender = send(&client, writes(1000, 4096));
    for _ in 0..20 {
        stage.step();
    }
    assert!(stage.asked.is_empty());
    assert!(!sender.is_finished(), "the client feels it");
    stage.clients.set_open(true);
    for _ in 0..4 {
        stage.wait_for(250);
        stage.answer(250, Ok(Reply::Done));
    }
    sender.join().unwrap();
}

#[test]
fn one_connection_has_a_limited_number_of_requests() {
    let mut stage = Stage::serving();
    let client = stage.client();
    let sender = send(&client, writes(300, 4096));
    stage.wait_for(256);
    for _ in 0..10 {
        stage.step();
    }
    assert_eq!(stage.asked.len(), 256);
    stage.answer(1, Ok(Reply::Done));
    stage.wait_for(256);
    stage.step();
    assert_eq!(stage.asked.len(), 256);
    stage.answer(256, Ok(Reply::Done));
    stage.wait_for(43);
    sender.join().unwrap();
}

#[test]
fn all_connections_together_hold_a_limited_number_of_bytes() {
    let mut stage = Stage::serving();
    let clients = [stage.client(), stage.client()];
    let senders = clients.each_ref().map(|c| send(c, writes(64, 1 << 20)));
    // Half of the memory that the settings of the tests allow.
    let most = 32u64 << 20;
    stage.wait_for((most >> 20) as usize);
    for _ in 0..20 {
        stage.step();
    }
    // Both may have begun a write when there was room for one more.
    let (requests, long) = stage.clients.budget.used();
    assert!((most..=most + (1 << 20)).contains(&requests) && long <= 1 << 20, "{requests} {long}");
    assert_eq!(stage.asked.len() as u64, requests >> 20);
    while stage.clients.last_request < 128 {
        let n = stage.asked.len();
        stage.answer(n, Ok(Reply::Done));
        stage.step();
    }
    senders.into_iter().for_each(|s| s.join().unwrap());
}

/// The head of a write of 1 MiB, and half of its payload.
fn half_a_write(cookie: u64) -> Vec<u8> {
    writes(1, 1 << 20)
        .into_iter()
        .take(28 + (512 << 10))
        .enumerate()
        .map(|(i, b)| if i == 15 { cookie as u8 } else { b })
        .collect()
}

#[test]
fn writes_that_are_begun_and_not_ended_hold_a_limited_number_of_bytes_for_a_limited_time() {
    let mut stage = Stage::serving();
    let events = stage.hub.journal.subscribe();
    let clients: Vec<NbdClient> = (0..40).map(|_| stage.client()).collect();
    let senders: Vec<_> = clients.iter().enumerate().map(|(i, c)| send(c, half_a_write(i as u64))).collect();
    let waiting = |s: &mut Stage| s.clients.conns.values().filter(|c| !c.has_reserved() && !c.receiving).count();
    until("all have begun", &mut stage, Stage::step, |s| waiting(s) == 8);
    assert_eq!(stage.clients.budget.used(), (0, 32 << 20));
    // Small ones are held up by none of it.
    let mut small = stage.client();
    small.stream.write_all(&writes(1, 4096)).unwrap();
    stage.wait_for(1);
    assert_eq!(stage.clients.count(), 41);
    stage.hub.now = stage.clients.deadline().unwrap();
    until("who sends nothing is ended", &mut stage, Stage::step, |s| s.clients.count() == 9);
    assert!(
        events
            .try_iter()
            .any(|e| e.contains("of a write of 1048576 bytes that it began it sent less than 1 MiB in 10 s"))
    );
    until("the others have room", &mut stage, Stage::step, |s| s.clients.budget.used() == (4096, 8 << 20));
    assert_eq!(stage.clients.budget.first(), [None, None]);
    // Now nobody waits, and nobody is hurried.
    assert_eq!(stage.clients.deadline(), None);
    until("all is sent", &mut stage, Stage::step, |_| senders.iter().all(|s| s.is_finished()));
    drop(clients);
    until("they are gone", &mut stage, Stage::step, |s| s.clients.count() == 1);
    assert_eq!(stage.clients.budget.used(), (4096, 0));
}

#[test]
fn who_comes_first_gets_room_first_and_all_get_it() {
    let mut stage = Stage::serving();
    let clients: Vec<NbdClient> = (0..6).map(|_| stage.client()).collect();
    let senders: Vec<_> = clients.iter().map(|c| send(c, writes(20, 1 << 20))).collect();
    let mut least = 0;
    while stage.clients.last_request < 120 {
        stage.wait_for(1);
        stage.answer(1, Ok(Reply::Done));
        let (requests, long) = stage.clients.budget.used();
        assert!(requests < 64 << 20 && long <= 32 << 20, "{requests} {long}");
        least += 1;
        assert!(least < 10_000);
    }
    senders.into_iter().for_each(|s| s.join().unwrap());
}

#[test]
fn receives_beyond_what_is_awaited_share_a_limited_number_of_bytes() {
    let mut stage = Stage::serving();
    let mut clients: Vec<NbdClient> = (0..100).map(|_| stage.client()).collect();
    for client in &mut clients {
        // The next one is expected to be as long.
        client.stream.write_all(&writes(1, 128 << 10)).unwrap();
    }
    stage.wait_for(100);
    let ahead: u64 = stage.clients.conns.values().map(Client::ahead).sum();
    assert!((6 << 20..=8 << 20).contains(&ahead), "{ahead}");
    for client in &mut clients {
        client.stream.write_all(&writes(1, 128 << 10)).unwrap();
    }
    stage.wait_for(200);
}

#[test]
fn a_write_is_expected_behind_a_flush_and_not_behind_many_reads() {
    const FLUSH: u16 = 3;
    let mut stage = Stage::serving();
    let mut client = stage.client();
    let ahead = |stage: &Stage| stage.clients.conns.values().map(Client::ahead).sum::<u64>();
    client.stream.write_all(&writes(1, 64 << 10)).unwrap();
    client.stream.write_all(&NbdClient::request(1, FLUSH, 0, 0)).unwrap();
    stage.wait_for(2);
    assert!(ahead(&stage) > 64 << 10, "the next write would come with two receives");
    for i in 0..4 {
        client.stream.write_all(&NbdClient::request(i + 2, 0, 0, 4096)).unwrap();
    }
    stage.wait_for(6);
    assert_eq!(ahead(&stage), 0, "who reads needs no room for writes");
}

#[test]
fn a_client_that_takes_no_replies_gets_no_more_of_them() {
    let mut stage = Stage::serving();
    let client = stage.client();
    let reads: Vec<u8> = (0..200).flat_map(|i| NbdClient::request(i, 0, 0, 1 << 20)).collect();
    let sender = send(&client, reads);
    let mut answered = 0;
    for _ in 0..100 {
        stage.step();
        let n = stage.asked.len();
        stage.answer(n, Ok(Reply::Data(vec![Segment::Zero(1 << 20)])));
        answered += n as u64;
    }
    assert!((OWED_MIB..OWED_MIB + 4).contains(&answered), "{answered} MiB");
    drop(client);
    sender.join().unwrap();
    until("it is gone", &mut stage, Stage::step, |s| s.clients.count() == 0);
}

const OWED_MIB: u64 = 16;

#[test]
fn a_client_that_vanishes_leaves_nothing_behind() {
    let mut stage = Stage::serving();
    let client = stage.client();
    let sender = send(&client, writes(10, 65536)[..600_000].to_vec());
    stage.wait_for(9);
    sender.join().unwrap();
    drop(client);
    // The two accepts remain.
    until("it is gone", &mut stage, Stage::step, |s| s.clients.count() == 0 && s.hub.ring.in_flight() == 2);
    assert_eq!(stage.clients.budget.used(), (9 * 65536, 0), "the core still holds them");
    stage.answer(9, Ok(Reply::Done));
    assert_eq!(stage.clients.budget.used(), (0, 0));
    assert!(stage.clients.settled() && stage.clients.stalled.is_empty());
}

#[test]
fn a_client_that_says_goodbye_gets_its_last_replies() {
    let mut stage = Stage::serving();
    let mut client = stage.client();
    client.stream.write_all(&[writes(2, 4096), NbdClient::request(0, 2, 0, 0)].concat()).unwrap();
    stage.wait_for(2);
    stage.step();
    assert_eq!(stage.clients.count(), 1);
    stage.answer(2, Ok(Reply::Done));
    until("it is gone", &mut stage, Stage::step, |s| s.clients.count() == 0);
    assert_eq!([client.reply().unwrap(), client.reply().unwrap()], [(0, 0), (1, 0)]);
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn replies_are_sent_before_a_node_that_stops_serving_hangs_up() {
    let mut stage = Stage::serving();
    let mut client = stage.client();
    client.stream.write_all(&writes(3, 4096)).unwrap();
    stage.wait_for(3);
    stage.answer(1, Ok(Reply::Done));
    stage.clients.stop_serving(&mut stage.hub);
    stage.answer(1, Err(ClientError::NotActive));
    until("all have gone", &mut stage, Stage::step, |s| s.clients.count() == 0 && s.hub.ring.in_flight() == 0);
    assert_eq!(client.reply().unwrap(), (0, 0));
    assert_eq!(client.reply().unwrap(), (1, 108), "ESHUTDOWN");
    assert!(client.reply().is_err());
    stage.answer(1, Err(ClientError::NotActive));
}

#[test]
fn garbage_is_answered_by_hanging_up() {
    let mut stage = Stage::serving();
    let mut stream = UnixStream::connect(&stage.path).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    until("it is gone", &mut stage, Stage::step, |s| s.clients.last_conn == 1 && s.clients.count() == 0);
    let mut client = stage.client();
    client.stream.write_all(&[0xee; 100]).unwrap();
    until("it is gone", &mut stage, Stage::step, |s| s.clients.last_conn == 2 && s.clients.count() == 0);
    assert!(stage.asked.is_empty());
}

#[test]
fn clients_are_limited_in_number_and_in_time_to_choose() {
    let mut stage = Stage::serving();
    let _idle: Vec<UnixStream> = (0..CLIENTS + 2).map(|_| UnixStream::connect(&stage.path).unwrap()).collect();
    until("all were accepted", &mut stage, Stage::step, |s| s.clients.count() == CLIENTS);
    for _ in 0..5 {
        stage.step();
    }
    assert_eq!(stage.clients.count(), CLIENTS);
    stage.hub.now = stage.clients.deadline().unwrap();
    until("all were sent away", &mut stage, Stage::step, |s| s.clients.count() == 0);
    assert_eq!(stage.clients.deadline(), None);
}

#[test]
fn a_door_that_is_blocked_is_tried_again() {
    let mut stage = Stage::new();
    std::fs::write(&stage.path, b"in the way").unwrap();
    stage.clients.serve(TENURE, &mut stage.hub);
    assert!(stage.clients.deadline().is_some());
    std::fs::remove_file(&stage.path).unwrap();
    stage.hub.now = stage.clients.deadline().unwrap();
    until("it is open", &mut stage, Stage::step, |s| s.path.exists());
    let _client = stage.client();
}
