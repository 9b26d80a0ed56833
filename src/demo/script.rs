//! The demonstration, step by step. Each step says what it does, then what came of it.

use super::cluster::{Cluster, ClusterError, Found, Plan, in_sync};
use super::compare::{Difference, compare};
use super::device;
use super::load::{Meter, Shape, Writer};
use super::oracle::{Oracle, Promise, Violation};
use crate::core::{Command, Mode};
use crate::nbd_client::NbdError;
use serde_json::Value;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ALPHA: usize = 0;
const BETA: usize = 1;
const W1: usize = 2;
const VOLUME: &str = "disk0";
/// For the file system.
const FILES: &str = "disk1";
/// Of the 64 MiB, in blocks: what the pages are in, and the journal behind it.
const PAGES: std::ops::Range<u64> = 0..12_288;
const JOURNAL: std::ops::Range<u64> = 12_288..16_384;
/// The longest that any single step may take.
const PATIENCE: Duration = Duration::from_secs(20);
const LINE_EVERY: Duration = Duration::from_millis(500);

/// What a user may choose.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Leave the pair running at the end.
    pub keep: bool,
    /// How long to write before the active is killed.
    pub seconds: u32,
    pub mode: Mode,
    /// Without a witness: an operator promotes.
    pub alone: bool,
}

impl Options {
    /// An async node does not take over by itself.
    fn watched(&self) -> bool {
        !self.alone && self.mode == Mode::Sync
    }
}

/// Why the demonstration failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("a writer was failed before anything had been killed: {0}")]
    Writer(NbdError),
    #[error("{node} could not be read back: {source}")]
    ReadBack { node: String, source: NbdError },
    #[error("DATA LOST: {who}: {violation}")]
    Violation { who: &'static str, violation: Violation },
    #[error("beta was to be promoted without a word about alpha, and was not refused: {answer}")]
    NotRefused { answer: String },
    #[error("the stores cannot be compared: {0}")]
    Compare(io::Error),
    #[error("the stores of alpha and beta differ: {0}")]
    Differ(Difference),
    #[error("`understudy verify` did not find the stores equal: {answer}")]
    NotVerified { answer: String },
    #[error("the file system on the device: {what}")]
    Device { what: String },
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
    #[error("cannot find out which program this is: {0}")]
    NoExe(io::Error),
}

/// What the table shows.
#[derive(Debug, Default)]
struct Report {
    writes: u64,
    flushed: u64,
    lost: u64,
    lost_flushed: u64,
    orphans: Option<u64>,
    to_answer: Duration,
    to_promote: Duration,
    /// From the start of alpha's daemon until it had all that it had missed.
    to_catch_up: Option<Duration>,
    verified: String,
    stores: u64,
    /// The longest write to a file while the daemon was killed and started again.
    pause: Option<Duration>,
}

struct Demo<'a> {
    options: Options,
    resource: String,
    cluster: Cluster,
    writers: [Writer; 2],
    names: [&'static str; 2],
    report: Report,
    out: &'a mut dyn Write,
}

/// Runs it all, printing to `out`. The daemons and their folder are gone when it returns, unless they were to be kept.
/// Setting `interrupted` ends it early.
pub fn run(options: Options, interrupted: &'static AtomicBool, out: &mut dyn Write) -> Result<(), DemoError> {
    let exe = std::env::current_exe().map_err(DemoError::NoExe)?;
    let mode = if options.mode == Mode::Sync { "sync" } else { "async" };
    let resource = format!("demo-{}", std::process::id());
    let mut plan = Plan::of(&["alpha", "beta"], "64MiB").resource(format!("mode = \"{mode}\"")).named(&resource);
    if options.watched() {
        plan = plan.witness("w1");
    }
    plan.volumes.push((FILES.to_string(), "64MiB".to_string()));
    let mut cluster = Cluster::new(&exe, &plan)?;
    cluster.interrupted_by(interrupted);
    if options.keep {
        cluster.detach();
    }
    let seed = u64::from(std::process::id());
    let pages = Writer::new(Oracle::new(1, PAGES), Shape::Pages { depth: 16, flush_every: 64 }, seed);
    let journal = Writer::new(Oracle::new(2, JOURNAL), Shape::Journal, seed + 1);
    let (writers, names) = ([pages, journal], ["the pages", "the journal"]);
    let mut demo = Demo { options, resource, cluster, writers, names, report: Report::default(), out };
    demo.set_up()?;
    demo.write_and_kill()?;
    demo.take_over()?;
    demo.check_survivor()?;
    demo.bring_back()?;
    demo.compare_stores()?;
    demo.file_system()?;
    demo.table()?;
    demo.finish()
}

impl Demo<'_> {
    fn say(&mut self, line: impl AsRef<str>) -> Result<(), DemoError> {
        writeln!(self.out, "{}", line.as_ref())?;
        Ok(self.out.flush()?)
    }

    fn set_up(&mut self) -> Result<(), DemoError> {
        let folder = self.cluster.folder().display().to_string();
        let witness = if self.options.watched() { " and a witness" } else { "" };
        self.say(format!("A pair of nodes{witness} on this machine, in {folder}:"))?;
        if self.options.watched() {
            self.cluster.start(W1)?;
            self.cluster.wait_status(W1, "the witness answers", PATIENCE, |_| true)?;
        }
        for node in [ALPHA, BETA] {
            self.cluster.create(node)?;
            self.cluster.start(node)?;
        }
        for node in [ALPHA, BETA] {
            self.cluster.wait_status(node, "it meets its peer", PATIENCE, |s| s["peers"][0]["state"] == "idle")?;
        }
        self.say("  $ understudy promote demo.toml --node alpha")?;
        let answer = self.cluster.promote(ALPHA)?;
        self.say(format!("  {answer}"))?;
        let sync = self.options.mode == Mode::Sync;
        if sync {
            self.cluster.wait_in_sync(ALPHA, &[ALPHA, BETA], PATIENCE)?;
        } else {
            self.cluster.wait_status(ALPHA, "beta follows", PATIENCE, |s| s["peers"][0]["state"] == "async")?;
        }
        let state = if sync { "in sync" } else { "following (async)" };
        self.say(format!("  beta is {state}; alpha serves {}", self.cluster.nbd_uri(ALPHA, VOLUME)))
    }

    fn write_and_kill(&mut self) -> Result<(), DemoError> {
        self.say("\nWriting as a database does: pages of 4 to 16 KiB at random, flushed now and then, and a journal, each entry flushed.\n")?;
        self.say("    time   writes/s   MiB/s   p50 us   p99 us   flushes/s   beta is behind by")?;
        let seconds = Duration::from_secs(self.options.seconds.into());
        self.load(ALPHA, seconds, true, None)?;
        self.say("\nalpha was killed in mid-write (SIGKILL).\n")
    }

    /// Has both writers write to a node for some time, one line each half second; then `kill`s the node, or stops. Meanwhile
    /// it is noted when the peer has `missed` nothing any more.
    fn load(&mut self, node: usize, time: Duration, kill: bool, missed: Option<&Missed>) -> Result<(), DemoError> {
        let (stop, killed, meter) = (AtomicBool::new(false), AtomicBool::new(false), Meter::default());
        let mut clients = [self.cluster.nbd(node, VOLUME)?, self.cluster.nbd(node, VOLUME)?];
        let before: u64 = self.writers.iter().map(|w| w.oracle.issued()).sum();
        let (cluster, out, writers) = (&mut self.cluster, &mut *self.out, &mut self.writers);
        let to_catch_up = &mut self.report.to_catch_up;
        let watched = std::thread::scope(|scope| {
            let threads: Vec<_> = writers
                .iter_mut()
                .zip(&mut clients)
                .map(|(writer, client)| {
                    let (stop, meter, killed) = (&stop, &meter, &killed);
                    scope.spawn(move || match writer.run(client, stop, meter) {
                        // The server is gone, and was to go.
                        Err(NbdError::Closed | NbdError::Io { .. }) if killed.load(Ordering::SeqCst) => Ok(()),
                        other => other,
                    })
                })
                .collect();
            let mut look = |cluster: &Cluster| {
                if let (Some(missed), None) = (missed, &to_catch_up) {
                    *to_catch_up = missed.caught_up(&cluster.status(node)?);
                }
                Ok(threads.iter().any(|t| t.is_finished()))
            };
            let shown = watch(cluster, node, time, &meter, out, &mut look);
            let ended = match &shown {
                Ok(()) if kill => {
                    killed.store(true, Ordering::SeqCst);
                    cluster.kill(node).map_err(DemoError::from)
                }
                _ => Ok(()),
            };
            stop.store(true, Ordering::Relaxed);
            for thread in threads {
                match thread.join() {
                    Ok(result) => result.map_err(DemoError::Writer)?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            shown.and(ended)
        });
        watched?;
        let after: u64 = self.writers.iter().map(|w| w.oracle.issued()).sum();
        self.report.writes += after - before;
        self.report.flushed = self.writers.iter().map(|w| w.oracle.flushed()).sum();
        Ok(())
    }

    fn take_over(&mut self) -> Result<(), DemoError> {
        let since = Instant::now();
        if self.options.watched() {
            return self.take_over_by_itself(since);
        }
        self.cluster
            .wait_status(BETA, "it sees that alpha is gone", PATIENCE, |s| s["peers"][0]["state"] != "following")?;
        self.say("  $ understudy promote demo.toml --node beta")?;
        let plain = self.cluster.promote(BETA);
        let Err(ClusterError::Control { source, .. }) = plain else {
            return Err(plain.map_or_else(DemoError::from, |answer| DemoError::NotRefused { answer }));
        };
        let words = source.to_string();
        self.say(format!("  refused: {}", words.lines().next().unwrap_or_default()))?;
        self.say("  Two nodes alone cannot tell a dead peer from a cut cable. The operator can:")?;
        self.say("  $ understudy promote demo.toml --node beta --force --off alpha")?;
        let asked = Instant::now();
        let answer = self.cluster.promote_without(BETA, &[ALPHA])?;
        self.report.to_promote = asked.elapsed();
        let mut client = self.cluster.nbd(BETA, VOLUME)?;
        client.read(0, 4096).map_err(|source| DemoError::ReadBack { node: "beta".into(), source })?;
        self.report.to_answer = since.elapsed();
        let (promote, all) = (millis(self.report.to_promote), millis(self.report.to_answer));
        self.say(format!("  {answer} ({promote} ms; first read answered {all} ms after the kill)"))
    }

    /// With a witness nobody has to promote anybody.
    fn take_over_by_itself(&mut self, since: Instant) -> Result<(), DemoError> {
        self.say("  Nobody promotes anybody: beta hears nothing of alpha, and asks the witness.")?;
        let serves = |s: &Value| s["role"] == "active" && s["state"] == "serving";
        self.cluster.wait_status(BETA, "it takes over by itself", PATIENCE, serves)?;
        self.report.to_promote = since.elapsed();
        let mut client = self.cluster.nbd(BETA, VOLUME)?;
        let failed = |source| DemoError::ReadBack { node: "beta".into(), source };
        client.read(0, 4096).map_err(failed)?;
        client.flush().map_err(failed)?;
        self.report.to_answer = since.elapsed();
        let said = self.cluster.said(BETA);
        let lines = said.lines().filter(|l| l.contains(" takeover_began ") || l.contains(" took_over "));
        let lines: Vec<String> = lines.map(|l| format!("  {l}")).collect();
        self.say(lines.join("\n"))?;
        self.say(format!(
            "  beta is active: first read and flush answered {} ms after the kill",
            millis(self.report.to_answer)
        ))
    }

    /// Reads back every byte and asks the oracle of each writer.
    fn check_survivor(&mut self) -> Result<(), DemoError> {
        let promise = match self.options.mode {
            Mode::Sync => Promise::Completed,
            Mode::Async => Promise::AnyPrefix,
        };
        let promised: u64 = self.writers.iter().map(|w| w.oracle.completed()).sum();
        let flushed: u64 = self.writers.iter().map(|w| w.oracle.flushed()).sum();
        let mut held = 0;
        for (writer, who) in self.writers.iter_mut().zip(self.names) {
            let mut client = self.cluster.nbd(BETA, VOLUME)?;
            let image = writer.read_back(&mut client);
            let image = image.map_err(|source| DemoError::ReadBack { node: "beta".into(), source })?;
            let (completed, flushed) = (writer.oracle.completed(), writer.oracle.flushed());
            let violation = |violation| DemoError::Violation { who, violation };
            let prefix = writer.oracle.check(&image, promise).map_err(violation)?;
            held += prefix;
            self.report.lost += completed.saturating_sub(prefix);
            self.report.lost_flushed += flushed.saturating_sub(prefix);
            writer.oracle.settle(prefix);
        }
        let report = &self.report;
        let text = format!(
            "\nbeta was read back and checked byte by byte: it holds the state after {held} writes.\n  \
             {promised} writes had completed, {flushed} of them flushed: {} are missing, {} of them flushed.",
            report.lost, report.lost_flushed
        );
        self.say(text)?;
        if self.options.mode == Mode::Async && self.report.lost > 0 {
            self.say("  That is the price of async: the writes that were on their way when alpha died.")?;
        }
        Ok(())
    }

    fn bring_back(&mut self) -> Result<(), DemoError> {
        self.say("\nWriting goes on at beta, and alpha comes back:\n\n  $ understudy run demo.toml --node alpha")?;
        let accepted = self.cluster.status(BETA)?["watermarks"]["accepted"].as_u64().unwrap_or(0);
        let missed = Missed { since: Instant::now(), sync: self.options.mode == Mode::Sync, accepted };
        self.cluster.start(ALPHA)?;
        self.load(BETA, Duration::from_millis(1500), false, Some(&missed))?;
        let caught_up = |s: &Value| missed.caught_up(s).is_some();
        self.cluster.wait_status(BETA, "alpha has caught up", PATIENCE, caught_up)?;
        self.report.to_catch_up.get_or_insert(missed.since.elapsed());
        self.cluster.wait_applied(BETA, &[ALPHA, BETA], PATIENCE)?;
        self.report.orphans = orphans(&self.cluster.said(ALPHA));
        Ok(())
    }

    fn compare_stores(&mut self) -> Result<(), DemoError> {
        for (writer, who) in self.writers.iter_mut().zip(self.names) {
            let mut client = self.cluster.nbd(BETA, VOLUME)?;
            let image = writer.read_back(&mut client);
            let image = image.map_err(|source| DemoError::ReadBack { node: "beta".into(), source })?;
            let violation = |violation| DemoError::Violation { who, violation };
            writer.oracle.check(&image, Promise::Completed).map_err(violation)?;
        }
        self.say("\n  $ understudy verify demo.toml --node beta")?;
        let report = self.cluster.ask(BETA, &Command::Verify { repair: false })?;
        let answer = crate::cli::render_verify(&report).trim().to_string();
        self.say(format!("  {answer}"))?;
        if report["equal"] != true {
            return Err(DemoError::NotVerified { answer });
        }
        self.report.verified = answer;
        let (alpha, beta) = (self.cluster.store(ALPHA, VOLUME), self.cluster.store(BETA, VOLUME));
        let (bytes, difference) = compare(&alpha, &beta).map_err(DemoError::Compare)?;
        match difference {
            Some(difference) => Err(DemoError::Differ(difference)),
            None => {
                self.report.stores = bytes;
                Ok(())
            }
        }
    }

    fn file_system(&mut self) -> Result<(), DemoError> {
        if let Some(why) = device::impossible() {
            return self.say(format!("\n({why}.)"));
        }
        let out = &mut *self.out;
        let mut say = |line: &str| Ok(writeln!(out, "{line}").and_then(|()| out.flush())?);
        let pause = device::file_system(&mut self.cluster, BETA, &self.resource, FILES, &mut say)?;
        self.report.pause = Some(pause);
        Ok(())
    }

    fn table(&mut self) -> Result<(), DemoError> {
        let r = &self.report;
        let orphans = match r.orphans {
            Some(n) => format!("{n} (kept in alpha's folder)"),
            None => "0 (beta had received all that alpha had written)".to_string(),
        };
        let catch_up = r.to_catch_up.map_or("?".to_string(), |t| millis(t).to_string());
        let rows = [
            ("writes", r.writes.to_string()),
            ("flushed writes", r.flushed.to_string()),
            ("completed writes lost", r.lost.to_string()),
            ("flushed writes lost", r.lost_flushed.to_string()),
            ("orphaned writes set aside", orphans),
            (
                if self.options.watched() { "time to take over" } else { "time to promote" },
                format!("{} ms", millis(r.to_promote)),
            ),
            ("from the kill to the first answer", format!("{} ms", millis(r.to_answer))),
            ("time to catch up", format!("{catch_up} ms from alpha's start, while writing went on")),
            ("verify, online", r.verified.clone()),
            ("the two stores, as files", format!("equal, {} MiB compared", r.stores >> 20)),
        ];
        let pause = r
            .pause
            .map(|t| ("longest pause of the file system", format!("{} ms, its daemon killed and started", millis(t))));
        let lines: Vec<String> =
            rows.into_iter().chain(pause).map(|(what, value)| format!("  {what:<36}{value}")).collect();
        self.say(format!("\n{}", lines.join("\n")))
    }

    fn finish(&mut self) -> Result<(), DemoError> {
        if !self.options.keep {
            return Ok(());
        }
        self.cluster.keep();
        let (uri, file) = (self.cluster.nbd_uri(BETA, VOLUME), self.cluster.file().display().to_string());
        let folder = self.cluster.folder().display().to_string();
        let witness =
            if self.options.watched() { format!("understudy stop {file} --node w1; ") } else { String::new() };
        self.say(format!(
            "\nThe pair goes on; beta is active and serves\n  {uri}\nTry:\n  \
             nbdinfo '{uri}'\n  \
             understudy status {file} --node beta --watch\n  \
             understudy switchover {file} --node beta --to alpha\n  \
             understudy events {file} --node alpha\n\
             And to end it:\n  \
             understudy stop {file} --node alpha; understudy stop {file} --node beta; {witness}rm -r {folder}"
        ))
    }
}

/// What alpha has to catch up with.
struct Missed {
    since: Instant,
    sync: bool,
    /// What beta had accepted when alpha came back.
    accepted: u64,
}

impl Missed {
    /// How long it took, if beta says that it is over: in sync mode alpha is a member again, in async mode it has received
    /// what it had missed.
    fn caught_up(&self, beta: &Value) -> Option<Duration> {
        let peer = &beta["peers"][0];
        let over = match self.sync {
            true => in_sync(beta).len() == 2 && peer["state"] == "in_sync",
            false => peer["state"] == "async" && peer["received"].as_u64() >= Some(self.accepted),
        };
        over.then(|| self.since.elapsed())
    }
}

/// Prints a line each half second until the time is over, or `look` says that there is nothing left to watch.
fn watch(
    cluster: &mut Cluster,
    node: usize,
    time: Duration,
    meter: &Meter,
    out: &mut dyn Write,
    look: &mut dyn FnMut(&Cluster) -> Result<bool, ClusterError>,
) -> Result<(), DemoError> {
    let started = Instant::now();
    let mut last = started;
    loop {
        let next = (last + LINE_EVERY).min(started + time);
        let over = cluster.wait("the next line is due", PATIENCE, |c| {
            let over = look(c)?;
            Ok(if over || Instant::now() >= next { Found::Yes(over) } else { Found::NotYet(String::new()) })
        })?;
        if over {
            // A writer has ended, although nobody told it to: its error says why.
            return Ok(());
        }
        let (now, sample) = (Instant::now(), meter.take());
        let seconds = (now - last).as_secs_f64().max(0.001);
        last = now;
        if seconds > 0.25 {
            let (writes, mib) = (sample.writes as f64 / seconds, sample.bytes as f64 / seconds / f64::from(1 << 20));
            let (flushes, elapsed) = (sample.flushes as f64 / seconds, (now - started).as_secs_f64());
            let (p50, p99) = (sample.p50_us, sample.p99_us);
            let behind = behind(&cluster.status(node)?);
            writeln!(
                out,
                "  {elapsed:>4.1} s   {writes:>8.0}   {mib:>5.0}   {p50:>6}   {p99:>6}   {flushes:>9.0}   {behind}"
            )?;
            out.flush()?;
        }
        if now >= started + time {
            return Ok(());
        }
    }
}

fn behind(status: &Value) -> String {
    let peer = &status["peers"][0];
    let lag = &peer["lag"];
    match (peer["state"].as_str(), lag["writes"].as_u64()) {
        (Some("in_sync" | "async" | "catching_up" | "joining"), Some(0)) => "nothing".to_string(),
        (Some("in_sync" | "async" | "catching_up" | "joining"), Some(writes)) => {
            let kib = lag["bytes"].as_u64().unwrap_or(0) >> 10;
            let noun = if writes == 1 { "write" } else { "writes" };
            format!("{writes} {noun}, {kib} KiB, {:.3} s", lag["seconds"].as_f64().unwrap_or(0.0))
        }
        (state, _) => state.unwrap_or("?").to_string(),
    }
}

/// How many records a daemon has set aside, by what it said.
fn orphans(said: &str) -> Option<u64> {
    let line = said.lines().find(|l| l.contains("orphans_set_aside"))?;
    let number = line.split("records").nth(1)?;
    let digits = number.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn millis(time: Duration) -> u128 {
    time.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_are_found_in_what_a_daemon_says() {
        let text = "12:00:01 started\n12:00:02 orphans_set_aside bytes=40960 records=7 salvage=1\n";
        assert_eq!(orphans(text), Some(7));
        assert_eq!(orphans(r#"{"event":"orphans_set_aside","records":12,"bytes":4096}"#), Some(12));
        assert_eq!(orphans("started\n"), None);
    }

    #[test]
    fn a_node_has_caught_up_when_it_has_what_it_missed() {
        let beta = |state: &str, members: &[&str], received: u64| serde_json::json!({"in_sync": members, "peers": [{"state": state, "received": received}]});
        let missed = |sync| Missed { since: Instant::now(), sync, accepted: 7 };
        assert!(missed(true).caught_up(&beta("in_sync", &["alpha", "beta"], 9)).is_some());
        assert!(missed(true).caught_up(&beta("catching_up", &["beta"], 9)).is_none());
        assert!(missed(true).caught_up(&beta("down", &["alpha", "beta"], 9)).is_none());
        assert!(missed(false).caught_up(&beta("async", &["beta"], 7)).is_some());
        assert!(missed(false).caught_up(&beta("async", &["beta"], 6)).is_none());
        assert!(missed(false).caught_up(&Value::Null).is_none());
    }

    #[test]
    fn a_lag_reads_as_words() {
        let status = |state: &str, writes: u64| serde_json::json!({"peers": [{"state": state, "lag": {"writes": writes, "bytes": 8192, "seconds": 0.25}}]});
        assert_eq!(behind(&status("in_sync", 0)), "nothing");
        assert_eq!(behind(&status("async", 2)), "2 writes, 8 KiB, 0.250 s");
        assert_eq!(behind(&status("down", 2)), "down");
        assert_eq!(behind(&Value::Null), "?");
    }
}
