//! What is refused, is refused in words, and nothing changes.

use crate::common::*;
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use understudy::core::Command;
use understudy::nbd_client::{Address, Client};

fn plan() -> Plan {
    pair("16MiB")
}

/// Runs a command that must be refused: what it says.
#[track_caller]
fn refused(cluster: &Cluster, command: &str, node: usize, more: &[&str]) -> String {
    match cluster.tool(command, node, more) {
        Err(e) => {
            let text = e.to_string();
            assert!(!text.contains("panicked"), "{text}");
            text
        }
        Ok(said) => panic!("`understudy {command}` was to be refused, and said: {said}"),
    }
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn a_second_daemon_on_one_replica() {
    let mut cluster = Cluster::serving(&plan(), &[0, 1]);
    let text = refused(&cluster, "run", 0, &[]);
    has(&text, &["alpha/log is in use", "another daemon"]);
    cluster.client(0).write(0, &block_of(1), true).unwrap();
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// The same parts by another file with other sockets: the sockets do not clash, the replica does.
#[test]
fn a_second_daemon_by_another_file() {
    let cluster = Cluster::serving(&plan(), &[0, 1]);
    let text = fs::read_to_string(cluster.file()).unwrap();
    let (dir, other) = (cluster.dir(0).display().to_string(), cluster.folder().join("other"));
    fs::create_dir(&other).unwrap();
    let line = format!("dir = \"{dir}\"");
    let moved = format!("{line}\nnbd = [\"unix:{0}/n\"]\ncontrol = \"{0}/c\"", other.display());
    assert!(text.contains(&line));
    let text = text.replace(&line, &moved).replace(&cluster.port(0).to_string(), "19999");
    let file = other.join("other.toml");
    fs::write(&file, text).unwrap();
    let run = std::process::Command::new(exe()).arg("run").arg(&file).args(["--node", "alpha"]).output().unwrap();
    assert!(!run.status.success());
    has(&String::from_utf8_lossy(&run.stderr), &["alpha"]);
    cluster.client(0).write(0, &block_of(1), true).unwrap();
}

#[test]
fn a_port_in_use() {
    let cluster = Cluster::bare(&plan());
    must(cluster.create(0));
    let _taken = TcpListener::bind(("127.0.0.1", cluster.port(0))).unwrap();
    let text = refused(&cluster, "run", 0, &[]);
    has(&text, &[&cluster.port(0).to_string()]);
    assert!(text.to_lowercase().contains("in use"), "{text}");
}

#[test]
fn status_says_that_nobody_can_connect() {
    let mut cluster = Cluster::bare(&plan()).run();
    let met = |s: &Value| s["peers"][0]["state"] == "idle";
    cluster.await_status(0, "it meets its peer", met);
    let Address::Unix(socket) = cluster.nbd_address(0) else { panic!("a unix socket") };
    let taken = UnixListener::bind(&socket).unwrap();
    must(cluster.promote(0));
    let told =
        |s: &Value| s["not_listening"][0]["why"].as_str().is_some_and(|why| why.contains("listens there already"));
    cluster.await_status(0, "it says that nobody can connect", told);
    let page = must(cluster.tool("status", 0, &[]));
    has(&page, &["nobody can connect to", "nbd.sock", "listens there already"]);
    drop(taken);
    cluster.await_status(0, "it listens", |s| s["not_listening"].as_array().is_some_and(Vec::is_empty));
    cluster.client(0);
}

#[test]
fn peers_whose_volumes_differ_in_size() {
    let mut cluster = Cluster::bare(&plan());
    must(cluster.create(0));
    must(cluster.start(0));
    cluster.await_answer(0);
    let mut other = plan();
    other.volumes[0].1 = "32MiB".into();
    must(cluster.write_file(&other));
    must(cluster.create(1));
    must(cluster.start(1));
    cluster.await_answer(1);
    // Until the other was started it could not be reached, which is a reason too.
    let why = |s: &Value| s["peers"][0]["why"].as_str().unwrap_or_default().to_string();
    let status = cluster.await_status(0, "it says why", |s| why(s).contains("volumes differ"));
    has(&why(&status), &["16777216", "33554432"]);
}

#[test]
fn a_passive_that_is_asked_to_serve() {
    let cluster = Cluster::serving(&plan(), &[0, 1]);
    let refusal = Client::connect(&cluster.nbd_address(1), VOLUME, PATIENCE).err().expect("a passive does not serve");
    println!("the passive says: {refusal}");
    let text = refused(&cluster, "promote", 1, &[]);
    has(&text, &["alpha", "active", "switchover"]);
    let text = refused(&cluster, "demote", 1, &[]);
    has(&text, &["beta is not active", "alpha"]);
    let text = refused(&cluster, "promote", 0, &[]);
    has(&text, &["already active"]);
    assert_eq!(must(cluster.status(0))["role"], "active");
}

#[test]
fn commands_that_name_nobody() {
    let cluster = Cluster::serving(&plan(), &[0, 1]);
    has(&refused(&cluster, "switchover", 0, &["--to", "gamma"]), &["gamma", "alpha, beta"]);
    has(&refused(&cluster, "switchover", 0, &["--to", "alpha"]), &["alpha is already active"]);
    has(&refused(&cluster, "disconnect", 0, &["gamma"]), &["gamma"]);
    has(&refused(&cluster, "promote", 1, &["--force", "--off", "alpha"]), &["alpha answers"]);
    has(&refused(&cluster, "status", 0, &["--node", "gamma"]), &["gamma"]);
}

/// The only other in-sync node cannot be lost by accident.
#[test]
fn parting_from_the_last_member() {
    let mut cluster = Cluster::serving(&plan(), &[0, 1]);
    has(&refused(&cluster, "disconnect", 0, &["beta"]), &["only other in-sync", "--force"]);
    must(cluster.command(0, &Command::Disconnect { peer: "beta".into(), force: true }));
    cluster.await_in_sync(0, &[0]);
    cluster.client(0).write(0, &block_of(1), true).unwrap();
    must(cluster.command(0, &Command::Connect { peer: "beta".into(), dry_run: false }));
    cluster.await_in_sync(0, &[0, 1]);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// It lacks writes that completed without it: plainly promoted it would lose them.
#[test]
fn promoting_a_node_that_was_dropped() {
    let mut cluster = Cluster::serving(&plan().resource("stall_ms = 300"), &[0, 1]);
    must(cluster.kill(1));
    cluster.await_in_sync(0, &[0]);
    cluster.client(0).write(0, &block_of(1), true).unwrap();
    must(cluster.kill(0));
    must(cluster.start(1));
    cluster.await_answer(1);
    has(&refused(&cluster, "promote", 1, &[]), &["alpha"]);
    assert_eq!(must(cluster.status(1))["role"], "passive");
}

#[test]
fn creating_over_what_is_there() {
    let mut cluster = Cluster::bare(&plan());
    must(cluster.create(0));
    let log = cluster.dir(0).join("log");
    let before = fs::read(&log).unwrap();
    let text = refused(&cluster, "create", 0, &[]);
    has(&text, &["--force"]);
    assert!(fs::read(&log).unwrap() == before, "a refused create has changed the log");
    must(cluster.tool("create", 0, &["--force"]));
    // A store that somebody else's data is in.
    fs::create_dir_all(cluster.dir(1)).unwrap();
    fs::write(cluster.store(1, VOLUME), vec![0x42; 16 << 20]).unwrap();
    let text = refused(&cluster, "create", 1, &[]);
    has(&text, &["store-disk0"]);
    assert!(fs::read(cluster.store(1, VOLUME)).unwrap().iter().all(|b| *b == 0x42));
    // And not while it runs.
    must(cluster.start(0));
    cluster.await_answer(0);
    refused(&cluster, "create", 0, &["--force"]);
    assert!(cluster.status(0).is_ok());
}

#[test]
fn running_what_was_never_created_or_is_another_nodes() {
    let cluster = Cluster::bare(&plan());
    has(&refused(&cluster, "run", 0, &[]), &["create"]);
    must(cluster.create(0));
    fs::rename(cluster.dir(0), cluster.dir(1)).unwrap();
    has(&refused(&cluster, "run", 1, &[]), &["alpha", "beta"]);
    fs::rename(cluster.dir(1), cluster.dir(0)).unwrap();
    let log = cluster.dir(0).join("log");
    let mut bytes = fs::read(&log).unwrap();
    bytes[..16384].fill(0x5a);
    fs::write(&log, bytes).unwrap();
    has(&refused(&cluster, "run", 0, &[]), &["log"]);
}

#[test]
fn a_malformed_file() {
    let cluster = Cluster::bare(&plan());
    let good = fs::read_to_string(cluster.file()).unwrap();
    for (from, to, parts) in [
        ("size = \"16MiB\"", "size = \"lots\"", &["volume.disk0.size", "lots"][..]),
        ("[resource]", "[resource]\nstal_ms = 3", &["stal_ms", "stall_ms"]),
        ("address = \"127.0.0.1:", "address = \"10.1.2.3:", &["10.1.2.3", "insecure"]),
        ("[resource]", "[resource", &["demo.toml:1"]),
    ] {
        assert!(good.contains(from));
        fs::write(cluster.file(), good.replacen(from, to, 1)).unwrap();
        has(&refused(&cluster, "create", 0, &[]), parts);
        has(&refused(&cluster, "run", 0, &[]), parts);
        assert!(!cluster.dir(0).exists(), "something was made for a malformed file");
    }
}

#[test]
fn nobody_is_running() {
    let cluster = Cluster::bare(&plan());
    has(&refused(&cluster, "status", 0, &[]), &["alpha is not running", "understudy run"]);
    has(&refused(&cluster, "promote", 0, &[]), &["alpha is not running"]);
}
