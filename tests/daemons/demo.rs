//! The demonstration as a stranger runs it.

use crate::common::*;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn demo(arguments: &[&str]) -> Output {
    Command::new(exe()).arg("demo").args(arguments).output().expect("a program that can be started")
}

/// What it printed, once it has succeeded.
#[track_caller]
fn printed(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    out.into_owned()
}

/// The folder that it says it used.
fn folder(text: &str) -> &str {
    let after = text.split("on this machine, in ").nth(1).expect("the folder's name");
    after.split(":\n").next().expect("the line's end")
}

/// What stands behind `row` in the table at the end.
fn in_table<'a>(text: &'a str, row: &str) -> &'a str {
    let line = text.lines().find_map(|l| l.trim_start().strip_prefix(row)).expect("a row of the table");
    line.trim()
}

#[test]
fn the_demonstration_loses_nothing_and_leaves_nothing() {
    let text = printed(&demo(&["--seconds", "2"]));
    for (row, value) in [
        ("completed writes lost", "0"),
        ("flushed writes lost", "0"),
        ("verify, online", "alpha: equal"),
        ("the two stores, as files", "equal, 64 MiB compared"),
    ] {
        assert_eq!(in_table(&text, row), value, "{text}");
    }
    assert!(text.contains("took_over") && text.contains("beta is in sync"), "{text}");
    assert!(!std::path::Path::new(folder(&text)).exists(), "the folder is still there");
}

#[test]
fn without_a_witness_an_operator_promotes() {
    let text = printed(&demo(&["--seconds", "1", "--alone"]));
    assert_eq!(in_table(&text, "completed writes lost"), "0", "{text}");
    assert!(text.contains("refused: alpha cannot be reached") && text.contains("beta is in sync"), "{text}");
}

#[test]
fn the_demonstration_runs_async() {
    let text = printed(&demo(&["--seconds", "1", "--mode", "async"]));
    assert_eq!(in_table(&text, "the two stores, as files"), "equal, 64 MiB compared", "{text}");
}

/// Interrupted at any time it takes its daemons and its folder with it.
#[test]
fn an_interrupted_demonstration_cleans_up() {
    use std::io::{BufRead, BufReader};
    let mut child =
        Command::new(exe()).args(["demo", "--seconds", "60"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.as_mut().expect("a program that can be started");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let first = lines.next().expect("a first line").expect("text") + "\n";
    let folder = folder(&first).to_string();
    lines.find(|l| l.as_ref().is_ok_and(|l| l.contains("writes/s"))).expect("the head of the table").expect("text");
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, Signal::SIGINT).expect("a signal");
    let deadline = Instant::now() + Duration::from_secs(10);
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        assert!(Instant::now() < deadline, "it goes on after SIGINT");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(!status.success());
    assert!(!std::path::Path::new(&folder).exists(), "the folder is still there");
}
