//! A voter over real files and sockets: what it must not forget, whom it answers, and that nobody who is slow, hangs or sends garbage is
//! felt by another.

use super::asking::{Asker, Asking, At};
use super::file::{Medium, Owner, VoteFile};
use super::frame::{Frame, Header, Hello, MAX_BODY, Seen};
use super::registry::{Refusal, Registry};
use super::server::Server;
use super::stream::{Stream, StreamError};
use super::*;
use crate::core::hello::Charter;
use crate::core::register::{Answer, Ballot, Entry, Question, Said, Vote, Voter, VoterId};
use crate::format::vote::{FILE_BYTES, VoteSlot, choose, encode};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

fn silent() -> Notes {
    Arc::new(|_| {})
}

/// Notes, and where they can be read.
fn noted() -> (Notes, Arc<Mutex<Vec<VoterNote>>>) {
    let list: Arc<Mutex<Vec<VoterNote>>> = Arc::default();
    let into = list.clone();
    (Arc::new(move |note| into.lock().unwrap().push(note)), list)
}

fn ballot(number: u64) -> Ballot {
    Ballot { number, by: 7 }
}

fn entry(version: u64, voters: &[VoterId]) -> Entry {
    let charter = Charter { generation: (1, 5), version, active: Some("alpha".into()), ..Charter::default() };
    let voters = voters.iter().map(|id| Voter { name: format!("v{}", id.0), id: *id }).collect();
    Entry { charter, voters, ..Entry::default() }
}

fn prepare(to: VoterId, number: u64) -> Question {
    Question { to, generation: 1, ballot: ballot(number), seen: Ballot::default(), accept: None }
}

fn accept(to: VoterId, number: u64, entry: Entry) -> Question {
    Question { accept: Some(entry), ..prepare(to, number) }
}

fn hello(voter: &str, resource: &str, own: VoterId) -> Hello {
    Hello { resource: resource.into(), voter: voter.into(), node: "alpha".into(), own }
}

/// A write and where it goes; none for a flush.
type Operation = Option<(u64, Vec<u8>)>;
type Answers = Receiver<(String, Answer)>;
type NotesSaid = Arc<Mutex<Vec<VoterNote>>>;

/// The operations on a file, from which any state of its disk after a power cut can be made.
#[derive(Clone, Default)]
struct Recorder {
    done: Arc<Mutex<Vec<Operation>>>,
    /// Operations that fail from here on.
    fail_after: Arc<Mutex<Option<usize>>>,
}

impl Recorder {
    fn step(&mut self, op: Operation) -> io::Result<()> {
        let mut done = self.done.lock().unwrap();
        if self.fail_after.lock().unwrap().is_some_and(|limit| done.len() >= limit) {
            return Err(io::Error::other("the disk is gone"));
        }
        done.push(op);
        Ok(())
    }
}

impl Medium for Recorder {
    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.step(Some((at, bytes.to_vec())))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.step(None)
    }
}

fn vote(number: u64) -> Vote {
    let entry = (ballot(number), entry(number, &[VoterId(1), VoterId(2)]));
    Vote { id: VoterId(1), generation: 1, promised: ballot(number), accepted: Some(entry) }
}

fn owner() -> Owner {
    Owner { resource: "data".into(), voter: "w1".into() }
}

fn slot(sequence: u64, number: u64) -> VoteSlot {
    let Owner { resource, voter } = owner();
    VoteSlot { sequence, resource, voter, vote: vote(number) }
}

/// What is left of a write at a power cut: any sectors of it.
fn torn(image: &mut [u8], at: u64, bytes: &[u8], draw: &mut u64) {
    for (i, sector) in bytes.chunks(512).enumerate() {
        *draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if *draw >> 33 & 1 == 1 {
            let at = at as usize + i * 512;
            image[at..at + sector.len()].copy_from_slice(sector);
        }
    }
}

/// C7: after a power cut at any moment the file holds the last vote that was stored in full, or the one that was being stored.
#[test]
fn a_power_cut_forgets_nothing_that_was_answered() {
    let formatted = encode(&slot(0, 0)).unwrap();
    let formatted = [formatted.clone(), formatted].concat();
    let recorder = Recorder::default();
    let mut file = VoteFile::new(recorder.clone(), owner(), &slot(0, 0), 1);
    let mut stored = Vec::new();
    for number in 1..=5 {
        file.store(&vote(number)).unwrap();
        stored.push(recorder.done.lock().unwrap().len());
    }
    let done = recorder.done.lock().unwrap().clone();
    let (mut draw, mut images) = (1, 0);
    for cut in 0..=done.len() {
        for _ in 0..50 {
            let mut image = formatted.clone();
            let flushed = done[..cut].iter().rposition(Option::is_none).map_or(0, |i| i + 1);
            for (i, op) in done[..cut].iter().enumerate() {
                match op {
                    Some((at, bytes)) if i < flushed => {
                        image[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
                    }
                    Some((at, bytes)) => torn(&mut image, *at, bytes, &mut draw),
                    None => {}
                }
            }
            let (found, _) = choose(&image).unwrap();
            let answered = stored.iter().filter(|end| **end <= cut).count() as u64;
            let number = found.vote.promised.number;
            assert!(number == answered || number == answered + 1, "cut at {cut}: {number} of {answered}");
            assert_eq!(found.vote, vote(number));
            images += 1;
        }
    }
    assert_eq!(images, 50 * (done.len() + 1));
}

/// A slot that rots after the answer was sent takes no promise with it.
#[test]
fn rot_in_either_slot_forgets_nothing() {
    let recorder = Recorder::default();
    let mut file = VoteFile::new(recorder.clone(), owner(), &slot(0, 0), 1);
    file.store(&vote(1)).unwrap();
    let mut image = vec![0; FILE_BYTES];
    for (at, bytes) in recorder.done.lock().unwrap().iter().flatten() {
        image[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
    }
    for at in [100, FILE_BYTES / 2 + 100] {
        let mut rotten = image.clone();
        rotten[at] ^= 1;
        assert_eq!(choose(&rotten).unwrap().0.vote, vote(1));
    }
}

#[test]
fn a_vote_whose_write_failed_is_written_whole_when_it_is_tried_again() {
    for limit in 0..4 {
        let recorder = Recorder::default();
        *recorder.fail_after.lock().unwrap() = Some(limit);
        let mut file = VoteFile::new(recorder.clone(), owner(), &slot(0, 0), 0);
        file.store(&vote(1)).unwrap_err();
        let before = recorder.done.lock().unwrap().len();
        *recorder.fail_after.lock().unwrap() = None;
        file.store(&vote(2)).unwrap();
        let done = recorder.done.lock().unwrap();
        assert!(matches!(done[before..], [Some(_), None, Some(_), None]), "{limit}");
    }
}

#[test]
fn a_vote_outlives_its_process_and_a_lost_one_is_another_voter() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Registry::of_node("alpha", "data", dir.path(), silent()).unwrap();
    let first = open();
    let id = first.id("data").unwrap();
    let ask =
        |registry: &Registry, question: &Question| registry.ask(&hello("alpha", "data", id), question).unwrap().said;
    assert_eq!(ask(&first, &prepare(id, 5)), Said::Promised(None));
    assert_eq!(ask(&first, &accept(id, 5, entry(1, &[id]))), Said::Accepted);
    let second = open();
    assert_eq!(second.id("data"), Some(id));
    assert_eq!(ask(&second, &prepare(id, 4)), Said::Outbid(ballot(5)));
    assert_eq!(ask(&second, &prepare(id, 6)), Said::Promised(Some((ballot(5), entry(1, &[id])))));
    std::fs::remove_file(dir.path().join("vote")).unwrap();
    let third = open();
    assert_ne!(third.id("data"), Some(id));
    assert_eq!(ask(&third, &prepare(id, 7)), Said::Stranger);
}

#[test]
fn a_damaged_vote_is_set_aside_and_is_another_voter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vote");
    let (notes, said) = noted();
    let id = Registry::of_node("alpha", "data", dir.path(), notes.clone()).unwrap().id("data");
    for damage in [b"garbage".to_vec(), Vec::new(), vec![0; FILE_BYTES], vec![7; 2 * FILE_BYTES]] {
        std::fs::write(&path, &damage).unwrap();
        said.lock().unwrap().clear();
        let registry = Registry::of_node("alpha", "data", dir.path(), notes.clone()).unwrap();
        assert_ne!(registry.id("data"), id);
        let notes = said.lock().unwrap().clone();
        assert!(matches!(notes[..], [VoterNote::VoteDamaged { .. }, VoterNote::VoterMade { .. }]), "{notes:?}");
        assert_eq!(std::fs::read(path.with_extension("damaged")).unwrap(), damage);
    }
}

/// C7: a restored backup gives its id up as soon as it is asked by somebody to whom it had once confirmed more.
#[test]
fn an_older_copy_of_a_vote_gives_its_id_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vote");
    let first = Registry::of_node("alpha", "data", dir.path(), silent()).unwrap();
    let id = first.id("data").unwrap();
    let me = hello("alpha", "data", id);
    first.ask(&me, &prepare(id, 3)).unwrap();
    let backup = std::fs::read(&path).unwrap();
    first.ask(&me, &prepare(id, 9)).unwrap();
    drop(first);
    std::fs::write(&path, backup).unwrap();
    let (notes, said) = noted();
    let restored = Registry::of_node("alpha", "data", dir.path(), notes).unwrap();
    let question = Question { seen: ballot(9), ..prepare(id, 10) };
    assert_eq!(restored.ask(&me, &question).unwrap().said, Said::Stranger);
    let now = restored.id("data").unwrap();
    assert_ne!(now, id);
    assert!(matches!(said.lock().unwrap()[..], [VoterNote::VoterStale { .. }]));
    drop(restored);
    assert_eq!(Registry::of_node("alpha", "data", dir.path(), silent()).unwrap().id("data"), Some(now), "durably");
}

#[test]
fn a_vote_of_somebody_else_is_refused_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    drop(Registry::of_node("alpha", "data", dir.path(), silent()).unwrap());
    let before = std::fs::read(dir.path().join("vote")).unwrap();
    for (node, resource) in [("beta", "data"), ("alpha", "other")] {
        let refused = Registry::of_node(node, resource, dir.path(), silent()).err().unwrap().to_string();
        assert!(refused.contains("vote of alpha for the resource data"), "{refused}");
    }
    assert_eq!(std::fs::read(dir.path().join("vote")).unwrap(), before);
}

#[test]
fn a_witness_keeps_each_resource_apart_and_makes_one_only_for_who_names_no_id() {
    let dir = tempfile::tempdir().unwrap();
    let witness = Registry::of_witness("w1", dir.path(), silent()).unwrap();
    let me = |resource: &str| hello("w1", resource, VoterId(1));
    let unknown = witness.ask(&me("data"), &prepare(VoterId(5), 1)).unwrap_err();
    assert!(matches!(unknown, Refusal::Unknown { .. }), "{unknown}");
    assert_eq!(witness.look(&me("data")).unwrap(), Seen { id: None, version: 0 });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is made for a stranger's question");
    for resource in ["data", "logs"] {
        assert_eq!(witness.ask(&me(resource), &prepare(VoterId::default(), 1)).unwrap().said, Said::Stranger);
    }
    let id = |registry: &Registry, resource| registry.id(resource).unwrap();
    let (data, logs) = (id(&witness, "data"), id(&witness, "logs"));
    assert_ne!(data, logs);
    witness.ask(&me("data"), &prepare(data, 8)).unwrap();
    assert_eq!(witness.ask(&me("logs"), &prepare(logs, 2)).unwrap().said, Said::Promised(None));
    let twice = Registry::of_witness("w1", dir.path(), silent()).err().unwrap();
    assert!(matches!(twice, VoterError::InUse { .. }), "{twice}");
    drop(witness);
    let again = Registry::of_witness("w1", dir.path(), silent()).unwrap();
    assert_eq!((id(&again, "data"), id(&again, "logs")), (data, logs));
    assert_eq!(again.ask(&me("data"), &prepare(data, 7)).unwrap().said, Said::Outbid(ballot(8)));
    let wrong = again.ask(&hello("w2", "data", VoterId(1)), &prepare(data, 9)).unwrap_err();
    assert!(matches!(wrong, Refusal::NotMe { .. }), "{wrong}");
}

/// Else the second resource of a name would take the first one's charter for its own.
#[test]
fn a_resource_of_the_same_name_learns_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let witness = Registry::of_witness("w1", dir.path(), silent()).unwrap();
    let (ours, theirs) = (VoterId(11), VoterId(22));
    let discover = prepare(VoterId::default(), 1);
    witness.ask(&hello("w1", "data", ours), &discover).unwrap();
    let id = witness.id("data").unwrap();
    witness.ask(&hello("w1", "data", ours), &accept(id, 1, entry(1, &[ours, id]))).unwrap();
    let refused = witness.ask(&hello("w1", "data", theirs), &discover).unwrap_err();
    assert!(matches!(&refused, Refusal::OtherVoters { voters, .. } if voters.len() == 2), "{refused}");
    assert!(witness.look(&hello("w1", "data", theirs)).is_err());
    assert!(witness.ask(&hello("w1", "data", theirs), &prepare(VoterId(3), 1)).is_err(), "an id that it guessed");
    // Whoever is listed, and whoever knows the id, is answered: that node's own file may have been lost.
    assert_eq!(witness.ask(&hello("w1", "data", ours), &discover).unwrap().said, Said::Stranger);
    let said = witness.ask(&hello("w1", "data", theirs), &prepare(id, 2)).unwrap().said;
    assert!(matches!(said, Said::Promised(Some(_))));
}

#[test]
fn an_asker_that_contradicts_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::of_node("alpha", "data", dir.path(), silent()).unwrap();
    let id = registry.id("data").unwrap();
    let me = hello("alpha", "data", id);
    registry.ask(&me, &accept(id, 1, entry(1, &[id]))).unwrap();
    assert_eq!(registry.ask(&me, &accept(id, 1, entry(1, &[id]))).unwrap().said, Said::Accepted, "twice the same");
    let refused = registry.ask(&me, &accept(id, 1, entry(2, &[id]))).unwrap_err();
    assert_eq!(refused, Refusal::Contradiction);
}

/// A voter behind a port of this machine.
struct Served {
    server: Server,
    address: SocketAddr,
    registry: Arc<Registry>,
    notes: Arc<Mutex<Vec<VoterNote>>>,
}

fn served(dir: &Path, name: &str, stranger_within: Duration) -> Served {
    let (notes, said) = noted();
    let registry = Arc::new(Registry::of_witness(name, dir, notes.clone()).unwrap());
    let server = Server::new(registry.clone(), notes).impatient(stranger_within);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = server.clone();
    // It ends with the test's process.
    std::thread::spawn(move || listener.incoming().for_each(|s| accepting.serve(s.unwrap(), Vec::new())));
    Served { server, address, registry, notes: said }
}

fn connect(address: SocketAddr) -> Stream {
    Stream::new(TcpStream::connect(address).unwrap(), Vec::new()).unwrap()
}

fn exchange(stream: &mut Stream, frame: &Frame) -> Frame {
    stream.send(frame, PATIENCE).unwrap();
    stream.next(PATIENCE, PATIENCE).unwrap()
}

#[test]
fn questions_are_answered_over_a_connection() {
    let dir = tempfile::tempdir().unwrap();
    let Served { address, registry, .. } = served(dir.path(), "w1", PATIENCE);
    let mut stream = connect(address);
    stream.send(&Frame::Hello(hello("w1", "data", VoterId(1))), PATIENCE).unwrap();
    let found = exchange(&mut stream, &Frame::Question(prepare(VoterId::default(), 1)));
    let id = registry.id("data").unwrap();
    let Frame::Answer(Answer { said: Said::Stranger, .. }) = found else { panic!("{found:?}") };
    let promised = exchange(&mut stream, &Frame::Question(prepare(id, 1)));
    assert_eq!(promised, Frame::Answer(Answer { from: id, ballot: ballot(1), said: Said::Promised(None) }));
    exchange(&mut stream, &Frame::Question(accept(id, 1, entry(4, &[VoterId(1)]))));
    assert_eq!(exchange(&mut stream, &Frame::Look), Frame::Seen(Seen { id: Some(id), version: 4 }));
}

/// What comes is refused in words where there is somebody to read them, and the next one is served as if nothing had been.
#[test]
fn garbage_is_refused_and_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let Served { address, notes, .. } = served(dir.path(), "w1", PATIENCE);
    let good = frame::encode(&Frame::Hello(hello("w1", "data", VoterId(1)))).unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let mut long = good[..8].to_vec();
    long.extend_from_slice(&(MAX_BODY as u32 + 1).to_le_bytes());
    long.extend_from_slice(&[0; 4]);
    let other_voter = frame::encode(&Frame::Hello(hello("w9", "data", VoterId(1)))).unwrap();
    let path = frame::encode(&Frame::Hello(hello("w1", "../data", VoterId(1)))).unwrap();
    let cases: [(Vec<u8>, &str); 8] = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "do not begin a voter's connection"),
        (with(4, 2), "speaks version 2"),
        (with(6, 9), "checksum"),
        (with(good.len() - 1, 1), "checksum"),
        (long, "at most"),
        (other_voter, "\"w9\" was asked"),
        (path, "a name that is none"),
        (frame::encode(&Frame::Look).unwrap(), "did not begin with whom it asks"),
    ];
    for (bytes, words) in cases {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(&bytes).unwrap();
        let mut stream = Stream::new(socket, Vec::new()).unwrap();
        match stream.next(PATIENCE, PATIENCE) {
            Ok(Frame::Refused(why)) => assert!(why.contains(words), "{why}"),
            // Unread bytes reset the connection, and the words can be lost with it; they stand in the events.
            Err(StreamError::Io(_) | StreamError::Closed) => {}
            other => panic!("{words}: {other:?}"),
        }
        let deadline = Instant::now() + PATIENCE;
        let said = |n: &VoterNote| matches!(n, VoterNote::AskerRefused { why, .. } if why.contains(words));
        while !notes.lock().unwrap().iter().any(said) {
            assert!(Instant::now() < deadline, "{words}: {:?}", notes.lock().unwrap());
            std::thread::sleep(Duration::from_millis(2));
        }
        notes.lock().unwrap().clear();
    }
    let mut stream = connect(address);
    stream.send(&Frame::Hello(hello("w1", "data", VoterId(1))), PATIENCE).unwrap();
    assert!(matches!(exchange(&mut stream, &Frame::Question(prepare(VoterId::default(), 1))), Frame::Answer(_)));
}

#[test]
fn who_says_nothing_is_sent_away_and_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let Served { address, .. } = served(dir.path(), "w1", Duration::from_millis(300));
    let mut silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
    // The last ones found no room; the first ones are given up, and then there is some.
    for socket in &mut silent {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut said = Vec::new();
        // A refusal may be followed by a reset.
        let _ = socket.read_to_end(&mut said);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut stream = connect(address);
        let answered = stream.send(&Frame::Hello(hello("w1", "data", VoterId(1))), PATIENCE).is_ok()
            && stream.send(&Frame::Look, PATIENCE).is_ok()
            && matches!(stream.next(PATIENCE, PATIENCE), Ok(Frame::Seen(_)));
        if answered {
            return;
        }
        assert!(Instant::now() < deadline, "nobody is let in any more");
    }
}

fn asker(dir: &Path) -> (Asker, Answers, NotesSaid) {
    let (notes, said) = noted();
    let own = Arc::new(Registry::of_node("alpha", "data", dir, silent()).unwrap());
    let (sender, answers) = channel();
    let sender = Mutex::new(sender);
    let deliver = Arc::new(move |voter: &str, answer: Answer| {
        // The test may be over.
        let _ = sender.lock().unwrap().send((voter.to_owned(), answer));
    });
    let (resource, node) = ("data".to_owned(), "alpha".to_owned());
    (Asker { resource, node, own, patience: Duration::from_millis(500), deliver, notes }, answers, said)
}

/// Asks until there is an answer, as the core does.
fn answer(asking: &Asking, answers: &Receiver<(String, Answer)>, voter: &str, question: &Question) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        asking.ask(voter, question.clone());
        while let Ok((from, answer)) = answers.recv_timeout(Duration::from_millis(200)) {
            if from == voter && answer.ballot == question.ballot {
                return answer;
            }
        }
    }
    panic!("{voter} gave no answer: {}", asking.view());
}

#[test]
fn a_voter_that_hangs_delays_no_other_and_one_that_comes_back_is_heard() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Served { address, server, registry, .. } = served(dir.path(), "w1", PATIENCE);
    // It accepts, by its backlog, and says nothing for ever.
    let hung = TcpListener::bind("127.0.0.1:0").unwrap();
    // Nobody listens there yet.
    let later = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (asker, answers, notes) = asker(home.path());
    let own = asker.own.id("data").unwrap();
    let voters = vec![
        ("alpha".into(), At::Here),
        ("hung".into(), At::There(hung.local_addr().unwrap())),
        ("later".into(), At::There(later)),
        ("w1".into(), At::There(address)),
    ];
    let asking = Asking::start(&asker, voters).unwrap();
    for number in 1..20 {
        asking.ask("hung", prepare(VoterId(1), number));
        asking.ask("later", prepare(VoterId(1), number));
    }
    answer(&asking, &answers, "w1", &prepare(VoterId::default(), 1));
    let id = registry.id("data").unwrap();
    assert_eq!(answer(&asking, &answers, "w1", &prepare(id, 2)).said, Said::Promised(None));
    assert_eq!(answer(&asking, &answers, "alpha", &prepare(own, 2)).said, Said::Promised(None));
    let view = |name: &str| asking.view().as_array().unwrap().iter().find(|v| v["name"] == name).unwrap().clone();
    assert_eq!(view("w1")["answers"], true);
    let deadline = Instant::now() + PATIENCE;
    let silent = |name: &str| {
        let of = |n: &VoterNote| matches!(n, VoterNote::VoterSilent { voter, .. } if voter == name);
        notes.lock().unwrap().iter().filter(|n| of(n)).count()
    };
    while silent("hung") == 0 || silent("later") == 0 {
        assert!(Instant::now() < deadline, "{}", asking.view());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(view("hung")["answers"], false);
    let listener = TcpListener::bind(later).unwrap();
    // The voter behind it is another one by name: it says so, which is no answer.
    let accepting = server.clone();
    std::thread::spawn(move || listener.incoming().for_each(|s| accepting.serve(s.unwrap(), Vec::new())));
    while !view("later")["why"].as_str().unwrap().contains("it refuses: this is the voter \"w1\"") {
        assert!(Instant::now() < deadline, "{}", asking.view());
        asking.ask("later", prepare(VoterId(1), 30));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(silent("later"), 1, "said once");
}

#[test]
fn a_voter_that_was_restarted_is_asked_over_a_new_connection() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Served { address, registry, .. } = served(dir.path(), "w1", PATIENCE);
    // A way that can be cut: it passes bytes on, one connection at a time.
    let way = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = way.local_addr().unwrap();
    let (cut, cuts) = channel::<()>();
    std::thread::spawn(move || {
        for from in way.incoming() {
            let (from, to) = (from.unwrap(), TcpStream::connect(address).unwrap());
            let (mut a, mut b) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let (mut c, mut d) = (to.try_clone().unwrap(), from.try_clone().unwrap());
            std::thread::spawn(move || io::copy(&mut a, &mut b));
            std::thread::spawn(move || io::copy(&mut c, &mut d));
            if cuts.recv().is_err() {
                return;
            }
            let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
        }
    });
    let (asker, answers, _) = asker(home.path());
    let asking = Asking::start(&asker, vec![("w1".into(), At::There(at))]).unwrap();
    answer(&asking, &answers, "w1", &prepare(VoterId::default(), 1));
    let id = registry.id("data").unwrap();
    for number in 2..6 {
        cut.send(()).unwrap();
        assert_eq!(answer(&asking, &answers, "w1", &prepare(id, number)).said, Said::Promised(None));
    }
}

#[test]
fn every_frame_comes_back_as_it_was() {
    let entry = entry(3, &[VoterId(1), VoterId(u128::MAX)]);
    let id = VoterId(3);
    let answer = |said| Frame::Answer(Answer { from: id, ballot: ballot(4), said });
    let frames = [
        Frame::Hello(hello("w1", "data", id)),
        Frame::Question(prepare(id, 5)),
        Frame::Question(accept(id, 5, entry.clone())),
        answer(Said::Promised(None)),
        answer(Said::Promised(Some((ballot(2), entry)))),
        answer(Said::Accepted),
        answer(Said::Outbid(ballot(9))),
        answer(Said::Left { generation: 4 }),
        answer(Said::Stranger),
        Frame::Look,
        Frame::Seen(Seen { id: Some(id), version: 7 }),
        Frame::Refused("ä".repeat(10)),
    ];
    for sent in frames {
        let bytes = frame::encode(&sent).unwrap();
        let header = Header::parse(bytes[..frame::HEADER].try_into().unwrap()).unwrap();
        assert_eq!(frame::decode(&header, &bytes[frame::HEADER..]), Ok(sent.clone()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let header = Header::parse(damaged[..frame::HEADER].try_into().unwrap());
            let decoded = header.and_then(|h| frame::decode(&h, &damaged[frame::HEADER..]));
            assert!(decoded.is_err(), "byte {at} of {sent:?}");
        }
    }
    // Words without end are cut, and stay text.
    let bytes = frame::encode(&Frame::Refused("ä".repeat(1000))).unwrap();
    let header = Header::parse(bytes[..frame::HEADER].try_into().unwrap()).unwrap();
    let Ok(Frame::Refused(why)) = frame::decode(&header, &bytes[frame::HEADER..]) else { panic!() };
    assert_eq!(why, "ä".repeat(512));
}
