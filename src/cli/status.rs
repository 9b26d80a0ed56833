//! The status object as text for people.
//!
//! The object comes from a daemon that may be older or newer: whatever is missing or of another type is shown as `-`, and whatever is
//! unknown is passed over.

use super::table::{Cell, Colour, layout, paint};
use crate::config::show_size;
use serde_json::{Map, Value};
use std::path::Path;

/// What stands for a value that is not there.
const NONE: &str = "-";

/// The status of a node, several lines; with ANSI colours if `colours`.
pub fn render(status: &Value, colours: bool) -> String {
    if status["role"] == "witness" {
        return super::voters::witness(status, colours);
    }
    let mut text = heading(status, colours);
    text.push_str(&layout(&facts(status), false));
    let peers = peers(status);
    if peers.len() > 1 {
        text.push('\n');
        text.push_str(&layout(&peers, colours));
    }
    for problem in list(&status["problems"]).iter().filter(|p| p.is_object()) {
        let part = paint(&word(&problem["part"]), Some(Colour::Bad), colours);
        let since = problem["since_s"].as_f64().map_or(String::new(), |s| format!(" (for {})", duration(s)));
        text.push_str(&format!("{part}: {}{since}. To do: {}\n", word(&problem["what"]), word(&problem["remedy"])));
    }
    let waiting = &status["waiting"];
    if waiting.is_object() {
        let since = waiting["since_s"].as_f64().map_or(String::new(), |s| format!(" (for {})", duration(s)));
        let title = paint("waiting", Some(Colour::Warn), colours);
        text.push_str(&format!("{title}: {}{since}. To do: {}\n", word(&waiting["what"]), word(&waiting["remedy"])));
    }
    for (peer, why) in reasons(status) {
        text.push_str(&format!("{peer}: {why}\n"));
    }
    text.push_str(&super::voters::render(status, colours));
    text.push_str(&super::handoff::render(status, colours));
    let latency = latency(status);
    if latency.len() > 1 {
        text.push('\n');
        text.push_str(&layout(&latency, colours));
    }
    text
}

/// The words of a daemon, which does not know how the command was given its file.
pub fn with_file(text: &str, file: &Path) -> String {
    text.replace(" FILE ", &format!(" {} ", file.display()))
}

/// Text that is harmless to a terminal: control characters are escaped.
pub fn plain(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            harmless.extend(c.escape_default());
        } else {
            harmless.push(c);
        }
    }
    harmless
}

/// Milliseconds as people read them.
pub(super) fn duration_ms(ms: u64) -> String {
    if ms < 1000 { format!("{ms} ms") } else { format!("{}.{} s", ms / 1000, ms % 1000 / 100) }
}

pub(super) fn word(value: &Value) -> String {
    match value {
        Value::String(text) => plain(text),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        _ => NONE.to_owned(),
    }
}

pub(super) fn size(value: &Value) -> String {
    value.as_u64().map_or(NONE.to_owned(), show_size)
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn colour_of(state: &str) -> Option<Colour> {
    match state {
        "serving" | "in_sync" => Some(Colour::Good),
        "faulted" | "suspended" | "refused" | "down" => Some(Colour::Bad),
        "resyncing" | "catching_up" | "joining" | "connecting" | "handshake" => Some(Colour::Warn),
        _ => None,
    }
}

fn heading(status: &Value, colours: bool) -> String {
    let state = word(&status["state"]);
    let role = word(&status["role"]);
    let painted = paint(&state, colour_of(&state), colours);
    let doing = if state == role { role } else { format!("{role}, {painted}") };
    let title = format!("{} on {}", word(&status["resource"]), word(&status["node"]));
    let mut text = format!("{}: {doing}", paint(&title, Some(Colour::Head), colours));
    let term = &status["term"];
    if term.is_object() {
        // As long as in the events.
        let id: String = word(&term["id"]).chars().take(8).collect();
        text.push_str(&format!(", term {} ({id})", word(&term["number"])));
    }
    text.push('\n');
    // The problems tell of it, with the remedy; an older daemon has none.
    if let (Value::String(fault), true) = (&status["fault"], list(&status["problems"]).is_empty()) {
        text.push_str(&format!("{}\n", paint(&plain(fault), Some(Colour::Bad), colours)));
    }
    for shut in list(&status["not_listening"]) {
        let said = format!("nobody can connect to {}: {}", word(&shut["address"]), word(&shut["why"]));
        text.push_str(&format!("{}\n", paint(&said, Some(Colour::Bad), colours)));
    }
    if let Value::String(why) = &status["image"]["why"] {
        text.push_str(&format!("no valid image: {}\n", paint(&plain(why), Some(Colour::Bad), colours)));
    }
    text
}

fn facts(status: &Value) -> Vec<Vec<Cell>> {
    let row = |name: &str, text: String| vec![Cell::from(name.to_owned()), Cell::from(text)];
    let mut rows = Vec::new();
    // An active node has said so in the heading.
    if let (Value::String(active), false) = (&status["active"], status["role"] == "active") {
        rows.push(row("active", plain(active)));
    }
    let members: Vec<_> = list(&status["in_sync"]).iter().map(word).collect();
    rows.push(row("in sync", if members.is_empty() { NONE.to_owned() } else { members.join(", ") }));
    let volume = |v: &Value| format!("{} {}", word(&v["name"]), size(&v["size"]));
    let volumes: Vec<_> = list(&status["volumes"]).iter().map(volume).collect();
    if !volumes.is_empty() {
        rows.push(row("volumes", volumes.join(", ")));
    }
    if let Value::Object(marks) = &status["watermarks"] {
        rows.push(row("positions", watermarks(marks)));
    }
    let log = &status["log"];
    if log.is_object() {
        let text = format!("{} of {} used, from {}", size(&log["used"]), size(&log["size"]), word(&log["from"]));
        rows.push(row("log", text));
    }
    let memory = &status["memory"];
    if memory.is_object() {
        rows.push(row("memory", format!("{} of {} used", size(&memory["used"]), size(&memory["limit"]))));
    }
    if let Some(clients) = status["clients"].as_u64() {
        rows.push(row("clients", clients.to_string()));
    }
    let buffered: Vec<_> =
        list(&status["parts"]).iter().filter(|p| p["io"] == "buffered").map(|p| word(&p["path"])).collect();
    if !buffered.is_empty() {
        rows.push(row("buffered", buffered.join(", ")));
    }
    rows
}

/// In the order in which they follow each other, then whatever else there is.
fn watermarks(marks: &Map<String, Value>) -> String {
    let order = ["accepted", "written", "durable", "committed", "applied", "checkpointed"];
    let known = order.iter().filter_map(|name| marks.get(*name).map(|v| (*name, v)));
    let others = marks.iter().map(|(k, v)| (k.as_str(), v)).filter(|(k, _)| !order.contains(k));
    let shown = known.chain(others).map(|(name, value)| format!("{} {}", plain(name), word(value)));
    shown.collect::<Vec<_>>().join(", ")
}

pub(super) fn head(names: &[&str]) -> Vec<Cell> {
    names.iter().map(|n| Cell::coloured(*n, Some(Colour::Head))).collect()
}

fn peers(status: &Value) -> Vec<Vec<Cell>> {
    let mut rows = vec![head(&["PEER", "STATE", "MODE", "RECEIVED", "DURABLE", "APPLIED", "ROUND TRIP", "BEHIND BY"])];
    // Only an active node knows how far others are behind.
    let passive = status["role"] == "passive";
    for peer in list(&status["peers"]) {
        let state = word(&peer["state"]);
        let colour = colour_of(&state);
        rows.push(vec![
            Cell::from(word(&peer["name"])),
            Cell::coloured(state, colour),
            Cell::from(word(&peer["mode"])),
            Cell::number(word(&peer["received"])),
            Cell::number(word(&peer["durable"])),
            Cell::number(word(&peer["applied"])),
            Cell::number(round_trip(peer)),
            Cell::from(if passive && !peer["progress"].is_object() { NONE.to_owned() } else { behind(peer) }),
        ]);
    }
    rows
}

/// To the peer's acknowledgement and back.
fn round_trip(peer: &Value) -> String {
    match peer["round_trip_us"].as_u64() {
        None | Some(0) => NONE.to_owned(),
        Some(us @ ..10_000) => format!("{us} us"),
        Some(us) => format!("{} ms", us / 1000),
    }
}

fn behind(peer: &Value) -> String {
    if peer["progress"].is_object() {
        return progress(&peer["progress"]);
    }
    let lag = &peer["lag"];
    let (Some(writes), bytes) = (lag["writes"].as_u64(), lag["bytes"].as_u64()) else { return NONE.to_owned() };
    if writes == 0 && bytes.unwrap_or(0) == 0 {
        return "nothing".to_owned();
    }
    let seconds = lag["seconds"].as_f64().map_or(NONE.to_owned(), |s| format!("{s:.1} s"));
    let noun = if writes == 1 { "write" } else { "writes" };
    format!("{writes} {noun}, {}, {seconds}", size(&lag["bytes"]))
}

/// A bar with a truthful end: full only when all is done. Where the total is not known yet there is none.
fn progress(progress: &Value) -> String {
    const WIDTH: u64 = 20;
    let done = progress["done_bytes"].as_u64().unwrap_or(0);
    let rate = progress["bytes_per_s"].as_u64().map_or(String::new(), |r| format!(", {}/s", show_size(r)));
    let left = progress["left_s"].as_f64().map_or(String::new(), |s| format!(", {} left", duration(s)));
    let Some(total) = progress["total_bytes"].as_u64() else { return format!("{} done{rate}", show_size(done)) };
    let done = done.min(total);
    let parts = |of: u64| if total == 0 { 0 } else { (u128::from(done) * u128::from(of) / u128::from(total)) as usize };
    let bar = format!("{:-<width$}", "#".repeat(parts(WIDTH)), width = WIDTH as usize);
    format!("[{bar}] {} % of {}{rate}{left}", parts(100), show_size(total))
}

/// Seconds for people.
pub(super) fn duration(seconds: f64) -> String {
    // Saturates, also for what is no number; a time left that long means "not in sight" anyway.
    let s = seconds.ceil().max(0.0) as u64;
    match s {
        0..=59 => format!("{s} s"),
        60..=3599 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

fn reasons(status: &Value) -> Vec<(String, String)> {
    let mut reasons = Vec::new();
    for peer in list(&status["peers"]) {
        let mut said = |why: String| reasons.push((word(&peer["name"]), why));
        let why = peer["why"].as_str().filter(|w| !w.is_empty()).map(plain);
        // A connection is there, or is no more wanted: how the last attempt ended is of no interest.
        let dial =
            peer["dial_error"].as_str().filter(|_| matches!(peer["state"].as_str(), Some("down" | "connecting")));
        match (why, dial.map(plain)) {
            (Some(why), Some(dial)) => said(format!("{why} (dialing it: {dial})")),
            (Some(why), None) => said(why),
            (None, Some(dial)) => said(format!("it cannot be reached (dialing it: {dial})")),
            (None, None) => {}
        }
        for field in list(&peer["differs"]) {
            said(format!(
                "the files differ: {}; make them the same, and restart the daemon whose file was changed",
                word(field)
            ));
        }
    }
    reasons
}

/// One row for each thing measured, one column for each percentile.
fn latency(status: &Value) -> Vec<Vec<Cell>> {
    let names = [("write", "write"), ("flush", "flush"), ("local_disk", "local disk")];
    let mut measured: Vec<(String, &Value)> = Vec::new();
    if let Value::Object(own) = &status["latency_us"] {
        let shown = |key: &str| names.iter().find(|(k, _)| *k == key).map_or(plain(key), |(_, name)| name.to_string());
        let rank = |key: &str| names.iter().position(|(k, _)| *k == key).unwrap_or(names.len());
        let mut own: Vec<_> = own.iter().collect();
        own.sort_by_key(|(key, _)| rank(key));
        measured.extend(own.into_iter().map(|(key, value)| (shown(key), value)));
    }
    for peer in list(&status["peers"]) {
        let name = word(&peer["name"]);
        measured.push((format!("wire to {name}"), &peer["latency_us"]["wire"]));
        measured.push((format!("disk of {name}"), &peer["latency_us"]["disk"]));
    }
    let columns = ["p50", "p95", "p99", "max", "count"];
    let title = |c: &&str| Cell { right: true, ..Cell::coloured(c.to_uppercase(), Some(Colour::Head)) };
    let mut rows = vec![head(&["LATENCY (us)"])];
    rows[0].extend(columns.iter().map(title));
    for (name, value) in measured.into_iter().filter(|(_, value)| value.is_object()) {
        let mut row = vec![Cell::from(name)];
        row.extend(columns.iter().map(|c| Cell::number(word(&value[*c]))));
        rows.push(row);
    }
    rows
}
