//! The core is pure: no I/O, no clock, no threads, no randomness, nothing whose order differs from run to run. Its sources are
//! read, comments and strings left out, and everything that they name outside of themselves must be on a list.

use std::fs;
use std::path::{Path, PathBuf};

/// Crates that the core may use: computation and data, no system.
const CRATES: [&str; 5] = ["bincode", "crc32fast", "serde", "thiserror", "std"];
/// Modules of the standard library that are computation and data.
const STD: [&str; 13] = [
    "cmp",
    "collections",
    "convert",
    "fmt",
    "iter",
    "marker",
    "mem",
    "num",
    "ops",
    "option",
    "rc",
    "slice",
    "sync::Arc",
];
/// Modules of this crate beside the core itself.
const OURS: [&str; 3] = ["buf", "core", "format"];
/// Words with no place in the core, wherever they stand.
const WORDS: [&str; 17] = [
    "HashMap",
    "HashSet",
    "RandomState",
    "DefaultHasher",
    "async",
    "await",
    "unsafe",
    "getrandom",
    "libc",
    "nix",
    "tokio",
    "println",
    "eprintln",
    "Instant",
    "SystemTime",
    "Mutex",
    "thread_local",
];

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.to_string_lossy().ends_with("tests.rs") {
            into.push(path);
        }
    }
}

/// The code without comments, strings, character literals, and what only tests see.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let (mut out, mut rest) = (String::new(), text);
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            string_length(rest)
        } else if rest.starts_with("'\"'") {
            3
        } else {
            out.push(c);
            c.len_utf8()
        };
        rest = &rest[skip..];
    }
    out
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Every path of the code that begins with `root::`, as what follows it: `use std::{a, b::c};` gives `a` and `b::c`.
fn paths(code: &str, root: &str) -> Vec<String> {
    let prefix = format!("{root}::");
    let mut found = Vec::new();
    for (at, _) in code.match_indices(&prefix) {
        if code[..at].ends_with(|c: char| is_word(c) || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(branches(list)),
            None => found.push(rest.chars().take_while(|c| is_word(*c) || *c == ':').collect()),
        }
    }
    found
}

/// The branches of a use list, up to its closing brace; of nested lists only what stands before them.
fn branches(list: &str) -> Vec<String> {
    let (mut depth, mut branch, mut found) = (0, String::new(), Vec::new());
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => found.push(std::mem::take(&mut branch)),
            c if depth == 0 && !c.is_whitespace() => branch.push(c),
            _ => {}
        }
    }
    found.push(branch);
    found.retain(|b| !b.is_empty());
    found
}

/// Whether a path is one of `allowed`, or inside of one.
fn is_allowed(path: &str, allowed: &[&str]) -> bool {
    let path = path.trim_end_matches(':');
    allowed.iter().any(|a| path == *a || path.strip_prefix(a).is_some_and(|rest| rest.starts_with("::")))
}

/// What is wrong with a source file of the core.
fn offences(text: &str) -> Vec<String> {
    let code = code(text);
    let mut offences = Vec::new();
    for path in paths(&code, "std") {
        if !is_allowed(&path, &STD) && !is_primitive(&path) {
            offences.push(format!("std::{path}"));
        }
    }
    for path in paths(&code, "core").into_iter().chain(paths(&code, "alloc")) {
        offences.push(format!("core or alloc::{path}, whose allowed part is not listed here: use std"));
    }
    for path in paths(&code, "crate") {
        if !is_allowed(&path, &OURS) {
            offences.push(format!("crate::{path}"));
        }
    }
    for word in WORDS {
        let places = code.match_indices(word);
        let alone = places.filter(|(at, w)| {
            !code[..*at].ends_with(|c: char| is_word(c) || c == '\'') && !code[at + w.len()..].starts_with(is_word)
        });
        if alone.count() > 0 {
            offences.push(word.to_string());
        }
    }
    let uses = code.lines().map(str::trim).filter_map(|l| {
        let l = l.strip_prefix("pub ").or(l.strip_prefix("pub(super) ")).or(l.strip_prefix("pub(crate) ")).unwrap_or(l);
        l.strip_prefix("use ")
    });
    for used in uses {
        let root: String = used.chars().take_while(|c| is_word(*c)).collect();
        let own = ["crate", "super", "self"].contains(&root.as_str());
        // A path that begins with a module of the same file is the core's own as well.
        let module = code.contains(&format!("mod {root};")) || root.chars().next().is_some_and(char::is_uppercase);
        if !own && !module && !CRATES.contains(&root.as_str()) {
            offences.push(format!("use {used}"));
        }
    }
    offences
}

/// Paths such as `std::u64::MAX`.
fn is_primitive(path: &str) -> bool {
    ["u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128", "isize", "char", "str"]
        .iter()
        .any(|p| is_allowed(path, &[p]))
}

#[test]
fn the_core_is_pure() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root.join("core"), &mut files);
    sources(&root.join("format"), &mut files);
    sources(&root.join("handoff"), &mut files);
    assert!(files.len() > 20, "the core's sources were not found: {files:?}");
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for offence in offences(&text) {
            wrong.push(format!("{}: {offence}", file.strip_prefix(&root).unwrap().display()));
        }
    }
    assert!(wrong.is_empty(), "the core names what is not pure:\n{}", wrong.join("\n"));
}

/// The check sees what it is there for.
#[test]
fn impurities_are_seen() {
    for (text, offence) in [
        ("use std::fs;", "std::fs"),
        ("use std::{fmt, net::TcpStream};", "std::net::TcpStream"),
        ("use std::{\n    collections::BTreeMap,\n    time::Instant,\n};", "std::time::Instant"),
        ("fn f() { std::thread::sleep(d) }", "std::thread::sleep"),
        ("fn f() { std::process::id() }", "std::process::id"),
        ("use std::sync::Mutex;", "std::sync::Mutex"),
        ("use std::collections::HashMap;", "HashMap"),
        ("use std::collections::HashSet as Set;", "HashSet"),
        ("async fn f() {}", "async"),
        ("thread_local!(static N: Cell<u8> = const { Cell::new(0) });", "thread_local"),
        ("use libc::getpid;", "use libc::getpid;"),
        ("pub use rand::random;", "use rand::random;"),
        ("use crate::daemon::Ring;", "crate::daemon::Ring"),
        ("use crate::{core::Lsn, control::Client};", "crate::control::Client"),
        ("use core::time::Duration;", "core or alloc::time::Duration, whose allowed part is not listed here: use std"),
    ] {
        assert!(
            offences(text).iter().any(|o| o.trim_start_matches("use ").trim_end_matches(';')
                == offence.trim_start_matches("use ").trim_end_matches(';')),
            "{text}: {:?}",
            offences(text)
        );
    }
    for text in [
        "use std::collections::{BTreeMap, VecDeque};\nuse std::sync::Arc;",
        "// std::fs, HashMap\nlet text = \"std::net \\\" async\"; // unsafe",
        "fn name(&self) -> &'static str { std::mem::take(&mut x) }",
        "use crate::buf::Payload;\nuse super::types::*;\nlet n = std::u64::MAX;",
        "fn asynchronous_thread() {}\n#[cfg(test)]\nmod tests {\nuse std::fs;\n}",
    ] {
        assert_eq!(offences(text), [""; 0], "{text}");
    }
}
