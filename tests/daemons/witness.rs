//! A witness as a process, and the votes of nodes: who they answer, what they say, and what of them outlives what.

use crate::common::*;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const W1: usize = 2;

/// Two nodes and a witness.
pub fn watched(size: &str) -> Plan {
    pair(size).witness("w1")
}

fn voter<'a>(status: &'a Value, name: &str) -> &'a Value {
    let voters = status["keeper"]["voters"].as_array().map_or(&[][..], |v| v);
    voters.iter().find(|v| v["name"] == name).unwrap_or(&Value::Null)
}

/// Bytes of memory that a process holds.
fn resident(pid: nix::unistd::Pid) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_witness_says_what_it_is_and_is_small() {
    let mut cluster = Cluster::bare(&watched("16MiB"));
    must(cluster.start(W1));
    let status = cluster.await_status(W1, "it answers", |s| s["role"] == "witness");
    assert_eq!(status["resources"], Value::Array(Vec::new()), "{status}");
    let page = must(cluster.tool("status", W1, &[]));
    assert!(page.contains("w1: witness on 127.0.0.1:") && page.contains("no resource yet"), "{page}");
    for command in ["promote", "demote", "log", "retry"] {
        let refused = cluster.tool(command, W1, &[]).unwrap_err().to_string();
        assert!(refused.contains("w1 is a witness: it has no data and no role"), "{command}: {refused}");
    }
    let twice = must_fail(cluster.tool("witness", W1, &[]));
    assert!(twice.contains("already running"), "{twice}");
    assert!(resident(must(cluster.pid(W1))) < 16 << 20, "{}", resident(must(cluster.pid(W1))));
    must(cluster.tool("stop", W1, &[]));
    let ended = must(cluster.wait_for_end(W1, PATIENCE));
    assert!(ended.success(), "{ended}: {}", cluster.said(W1));
    assert!(cluster.said(W1).contains("stopping"), "{}", cluster.said(W1));
}

#[track_caller]
fn must_fail<T>(result: Result<T, understudy::demo::cluster::ClusterError>) -> String {
    match result {
        Ok(_) => panic!("it should have been refused"),
        Err(e) => e.to_string(),
    }
}

/// An operator hears of a lost witness before it is needed, and that it is back.
#[test]
fn nodes_see_which_voters_answer() {
    let mut cluster = Cluster::bare(&watched("16MiB")).run();
    for node in [0, 1] {
        for name in ["alpha", "beta", "w1"] {
            cluster.await_status(node, &format!("{name} answers"), |s| voter(s, name)["answers"] == true);
        }
        let said = cluster.said(node);
        assert!(said.contains("keeper=voters") && said.contains("2 of alpha, beta, w1 decide who is active"), "{said}");
    }
    must(cluster.kill(W1));
    cluster.await_status(0, "w1 is gone", |s| voter(s, "w1")["answers"] == false);
    let page = must(cluster.tool("status", 0, &[]));
    assert!(page.contains("keeper: voters, 2 of alpha, beta, w1 decide"), "{page}");
    assert!(page.contains("voter w1 does not answer"), "{page}");
    assert!(cluster.said(0).contains("voter_silent voter=w1"), "{}", cluster.said(0));
    must(cluster.start(W1));
    cluster.await_status(0, "w1 is back", |s| voter(s, "w1")["answers"] == true);
    assert!(cluster.said(0).contains("voter_answers voter=w1"), "{}", cluster.said(0));
}

/// The vote of a node is its own: it outlives the daemon, and is another one where its file was lost.
#[test]
fn a_node_keeps_its_vote_and_a_lost_one_is_another() {
    let mut cluster = Cluster::bare(&watched("16MiB")).run();
    let id = |c: &mut Cluster| {
        let status = c.await_status(1, "alpha answers", |s| voter(s, "alpha")["id"].is_string());
        voter(&status, "alpha")["id"].as_str().unwrap().to_owned()
    };
    let first = id(&mut cluster);
    must(cluster.kill(0));
    must(cluster.start_and_wait(0));
    cluster.await_status(1, "alpha is back", |s| voter(s, "alpha")["heard_s"].as_f64().is_some_and(|s| s < 1.0));
    assert_eq!(id(&mut cluster), first);
    must(cluster.kill(0));
    std::fs::write(cluster.dir(0).join("vote"), b"garbage").unwrap();
    must(cluster.start_and_wait(0));
    cluster
        .await_status(1, "alpha has another vote", |s| voter(s, "alpha")["id"].as_str().is_some_and(|id| id != first));
    assert!(cluster.said(0).contains("vote_damaged"), "{}", cluster.said(0));
    assert_eq!(std::fs::read(cluster.dir(0).join("vote.damaged")).unwrap(), b"garbage");
}

/// Whatever strangers send to a witness or to a node's port: both live on, and say who it was.
#[test]
fn strangers_are_refused_by_a_witness_and_by_a_nodes_vote() {
    let mut cluster = Cluster::bare(&watched("16MiB")).run();
    let other_version = [b"USTV", &9u16.to_le_bytes()[..], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    for node in [0, W1] {
        let mut sockets = Vec::new();
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &other_version, b"USTV", &[0; 64], b""] {
            let mut socket = TcpStream::connect(("127.0.0.1", cluster.port(node))).unwrap();
            socket.write_all(bytes).unwrap();
            sockets.push(socket);
        }
        let socket = &mut sockets[1];
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        // The words may be followed by a reset.
        let _ = socket.read_to_end(&mut answer);
        assert!(String::from_utf8_lossy(&answer).contains("speaks version 9"), "{node}: {answer:?}");
        let deadline = Instant::now() + PATIENCE;
        while !cluster.said(node).contains("speaks version 9") {
            assert!(Instant::now() < deadline, "{}", cluster.said(node));
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(sockets);
    }
    cluster.await_status(1, "all answer", |s| ["alpha", "w1"].iter().all(|n| voter(s, n)["answers"] == true));
    // A node whose file names no voters has no vote to ask for.
    let alone = Cluster::bare(&Plan::of(&["alpha"], "16MiB")).run();
    let mut socket = TcpStream::connect(("127.0.0.1", alone.port(0))).unwrap();
    socket.write_all(&[&b"USTV"[..], &[0; 60]].concat()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !alone.said(0).contains("this node has none: its file names no witness") {
        assert!(Instant::now() < deadline, "{}", alone.said(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(alone.said(0).contains("keeper=alone"), "{}", alone.said(0));
}

/// One process for any number of resources, and two witnesses of one file are two.
#[test]
fn a_witness_that_is_called_by_no_name_is_the_only_one() {
    let cluster = Cluster::bare(&watched("16MiB"));
    let run = |file: &std::path::Path, more: &[&str]| {
        let mut command = std::process::Command::new(exe());
        let output = command.arg("witness").arg(file).args(more).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(&cluster.file(), &["--node", "w2"]);
    assert!(code == Some(1) && said.contains("has no witness called \"w2\"; its witnesses are w1"), "{said}");
    let (code, said) = run(&cluster.file(), &["--node", "alpha"]);
    assert!(code == Some(1) && said.contains("has no witness called \"alpha\""), "{said}");
    let without = Cluster::bare(&pair("16MiB"));
    let (code, said) = run(&without.file(), &[]);
    assert!(code == Some(1) && said.contains("has no witness: add [witness.w1]"), "{said}");
    let three = Cluster::bare(&Plan::of(&["alpha", "beta"], "16MiB").witness("w1").witness("w2").witness("w3"));
    let (code, said) = run(&three.file(), &[]);
    assert!(code == Some(1) && said.contains("say which witness of"), "{said}");
}
