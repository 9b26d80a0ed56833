//! The server and the client over a real socket, before a backend that only remembers what it was asked.

use super::*;
use crate::core::Command;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Clone, Default)]
struct Fake {
    commands: Arc<Mutex<Vec<Command>>>,
    subscribers: Arc<Mutex<Vec<mpsc::Sender<String>>>>,
    stops: Arc<Mutex<u32>>,
}

impl Fake {
    fn publish(&self, event: &str) {
        self.subscribers.lock().unwrap().retain(|s| s.send(event.to_owned()).is_ok());
    }

    fn subscribers(&self) -> usize {
        self.subscribers.lock().unwrap().len()
    }
}

impl Backend for Fake {
    fn command(&self, command: Command) -> Result<Value, String> {
        self.commands.lock().unwrap().push(command.clone());
        match command {
            Command::Connect { peer, .. } if peer == "nobody" => {
                Err("no node of this resource is called \"nobody\"".into())
            }
            _ => Ok("done".into()),
        }
    }

    fn status(&self) -> Value {
        json!({ "role": "active", "peers": [] })
    }

    fn subscribe(&self) -> mpsc::Receiver<String> {
        let (sender, receiver) = mpsc::channel();
        self.subscribers.lock().unwrap().push(sender);
        receiver
    }

    fn retry(&self) -> Result<Value, String> {
        Ok("tried again".into())
    }

    fn stop(&self) {
        *self.stops.lock().unwrap() += 1;
    }
}

struct Scene {
    _dir: tempfile::TempDir,
    path: PathBuf,
    backend: Fake,
    server: Server,
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let backend = Fake::default();
    let server = Server::start(&path, backend.clone()).unwrap();
    Scene { _dir: dir, path, backend, server }
}

/// Sends raw bytes, and returns the first line of what comes back.
fn raw(path: &PathBuf, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The server may close before it has read all.
    let _ = stream.write_all(bytes);
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_connection_carries_many_requests() {
    let scene = scene();
    let mut client = Client::connect(&scene.path).unwrap();
    assert_eq!(client.status().unwrap()["role"], "active");
    let promote = Command::Promote { force: true, off: vec!["beta".into()] };
    assert_eq!(client.command(&promote).unwrap(), "done");
    assert_eq!(client.command(&Command::Verify { repair: true }).unwrap(), "done");
    assert_eq!(*scene.backend.commands.lock().unwrap(), [promote, Command::Verify { repair: true }]);
    assert_eq!(client.stop().unwrap(), "stopping");
    wait_for("the backend was told to stop", || *scene.backend.stops.lock().unwrap() == 1);
}

#[test]
fn a_refusal_arrives_in_its_words() {
    let scene = scene();
    let mut client = Client::connect(&scene.path).unwrap();
    let refused = client.command(&Command::Connect { peer: "nobody".into(), dry_run: false }).unwrap_err();
    assert!(matches!(refused, ControlError::Refused { .. }));
    assert_eq!(refused.to_string(), "no node of this resource is called \"nobody\"");
    assert_eq!(client.status().unwrap()["role"], "active", "the connection goes on after a refusal");
}

#[test]
fn only_the_owner_may_connect() {
    let scene = scene();
    let mode = std::fs::metadata(&scene.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn garbage_is_answered_in_words_and_does_no_harm() {
    let scene = scene();
    for garbage in [&b"\n"[..], b"hello\n", b"\xff\xfe\x00\n", b"{}\n", b"[[[[[[\n", b"{\"command\":\"reboot\"}\n"] {
        let answer: Value = serde_json::from_str(&raw(&scene.path, garbage)).unwrap();
        assert_eq!(answer["ok"], false, "{garbage:?}");
        assert!(answer["error"].as_str().unwrap().contains("request"), "{answer}");
    }
    let nested = format!("{}\n", "[".repeat(60_000));
    assert!(raw(&scene.path, nested.as_bytes()).contains("recursion limit"));
    assert!(Client::connect(&scene.path).unwrap().status().is_ok());
    assert!(scene.backend.commands.lock().unwrap().is_empty());
}

#[test]
fn one_bad_line_does_not_spoil_the_next() {
    let scene = scene();
    let mut stream = UnixStream::connect(&scene.path).unwrap();
    stream.write_all(b"garbage\n{\"command\":\"sta").unwrap();
    stream.write_all(b"tus\"}\n").unwrap();
    let mut lines = BufReader::new(stream).lines();
    assert!(lines.next().unwrap().unwrap().contains("is not JSON"));
    assert_eq!(lines.next().unwrap().unwrap(), r#"{"ok":true,"result":{"peers":[],"role":"active"}}"#);
}

#[test]
fn an_endless_line_is_refused() {
    let scene = scene();
    assert!(raw(&scene.path, &vec![b' '; REQUEST_MAX * 2]).contains("the request is longer than 65536 bytes"));
    let mut just_fits = br#"{"command":"status"}"#.to_vec();
    just_fits.resize(REQUEST_MAX - 1, b' ');
    just_fits.push(b'\n');
    assert!(raw(&scene.path, &just_fits).contains("\"ok\":true"));
    just_fits.insert(0, b' ');
    assert!(raw(&scene.path, &just_fits).contains("longer than"));
}

#[test]
fn half_a_request_is_never_carried_out() {
    let scene = scene();
    let mut stream = UnixStream::connect(&scene.path).unwrap();
    stream.write_all(b"{\"command\":\"stop\"}").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    assert_eq!(*scene.backend.stops.lock().unwrap(), 0);
}

#[test]
fn events_reach_everyone_who_listens_and_nobody_else_is_kept() {
    let scene = scene();
    let mut first = Client::connect(&scene.path).unwrap().events().unwrap();
    let second = Client::connect(&scene.path).unwrap().events().unwrap();
    assert_eq!(scene.backend.subscribers(), 2, "subscribed before the answer");
    scene.backend.publish(r#"{"event":"resumed"}"#);
    assert_eq!(first.next().unwrap().unwrap(), r#"{"event":"resumed"}"#);
    drop(second);
    wait_for("the one that hung up is forgotten", || {
        scene.backend.publish("{}");
        scene.backend.subscribers() == 1
    });
}

#[test]
fn events_end_with_the_daemon() {
    let scene = scene();
    let mut events = Client::connect(&scene.path).unwrap().events().unwrap();
    drop(scene.server);
    scene.backend.subscribers.lock().unwrap().clear();
    assert!(events.next().is_none());
}

#[test]
fn too_many_connections_are_refused_in_words_and_places_come_back() {
    let scene = scene();
    let mut held: Vec<_> = (0..32).map(|_| Client::connect(&scene.path).unwrap()).collect();
    for client in &mut held {
        client.status().unwrap();
    }
    let refused = Client::connect(&scene.path).unwrap().status().unwrap_err().to_string();
    assert!(refused.contains("too many connections"), "{refused}");
    drop(held);
    wait_for("a place is free", || Client::connect(&scene.path).unwrap().status().is_ok());
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let scene = scene();
    let refused = Server::start(&scene.path, Fake::default()).err().unwrap();
    assert!(matches!(refused, ControlError::AlreadyRunning { .. }));
    assert!(refused.to_string().contains("already running"), "{refused}");
    assert!(Client::connect(&scene.path).unwrap().status().is_ok());
}

#[test]
fn the_socket_of_a_dead_daemon_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a socket without a listener stays behind");
    assert!(matches!(Client::connect(&path), Err(ControlError::NotRunning { .. })));
    let _server = Server::start(&path, Fake::default()).unwrap();
    assert!(Client::connect(&path).unwrap().status().is_ok());
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    std::fs::write(&path, "precious").unwrap();
    let refused = Server::start(&path, Fake::default()).err().unwrap().to_string();
    assert!(refused.contains("is not a socket: move it away"), "{refused}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let refused = Server::start(&dir.path().join("none/control.sock"), Fake::default()).err().unwrap().to_string();
    assert!(refused.contains("cannot make the control socket"), "{refused}");
}

#[test]
fn the_socket_goes_with_its_server_but_a_successors_stays() {
    let scene = scene();
    let path = scene.path.clone();
    drop(scene.server);
    assert!(!path.exists());
    let first = Server::start(&path, Fake::default()).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _second = Server::start(&path, Fake::default()).unwrap();
    drop(first);
    assert!(Client::connect(&path).unwrap().status().is_ok());
}

#[test]
fn a_client_says_when_nobody_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let message = Client::connect(&path).err().unwrap().to_string();
    assert!(message.contains("is not running on this host. Start it with `understudy run"), "{message}");
}

#[test]
fn a_client_says_when_what_answers_is_something_else() {
    let dir = tempfile::tempdir().unwrap();
    for (number, (answer, expected)) in [
        ("HTTP/1.1 400\r\n", "its answer is not JSON"),
        ("{\"yes\":1}\n", "neither yes nor no"),
        ("", "ended before it answered"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.path().join(format!("{number}.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        let other = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let message = Client::connect(&path).unwrap().status().unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        other.join().unwrap();
    }
}
