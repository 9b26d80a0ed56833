//! Runs the simulator: one seed with its trace, or many on all cores.

use clap::Parser;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use understudy::buf::keep_at_most;
use understudy::core::Node;
use understudy::sim::invariants::Violation;
use understudy::sim::plan::{OF_WITNESSES, Scope, TROUBLES, Trouble};
use understudy::sim::report::Counts;
use understudy::sim::run::{Played, play, report_panics};
use understudy::sim::shrink::{Less, shrink};

/// Buffers that each thread keeps for its next world: a world takes less, and memory that is new to a process is slow.
const POOL_BYTES: usize = 256 << 20;

/// How long to look for less of a world that fails.
const SHRINK_FOR: Duration = Duration::from_secs(30);

/// Plays seeds of a simulated world against the replication core, and checks what must hold.
///
/// Each seed decides everything: nodes, sizes, load, faults, commands. A failure names the invariant that broke and the
/// command that plays the same seed again.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Play this one seed
    #[arg(long)]
    seed: Option<u64>,
    /// Print all that happens in it
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Play the seeds from A up to, not including, B: "A..B"
    #[arg(long, value_parser = parse_range, conflicts_with = "seed")]
    seeds: Option<Range<u64>>,
    /// Play fresh seeds for so many minutes
    #[arg(long, conflicts_with_all = ["seed", "seeds"])]
    minutes: Option<f64>,
    /// Go on after a failure
    #[arg(long)]
    keep_going: bool,
    /// Threads; as many as there are cores if not given
    #[arg(long)]
    threads: Option<usize>,
    /// Lines of the trace that a failure shows
    #[arg(long, default_value_t = 60)]
    lines: usize,
    /// Give the nodes logs so large that nobody falls out of them
    #[arg(long)]
    large_logs: bool,
    /// No failing disks
    #[arg(long)]
    sound_disks: bool,
    /// A store read beside a write of the same block may see a part of either
    #[arg(long)]
    torn_reads: bool,
    /// Say only what broke
    #[arg(long)]
    brief: bool,
    /// Troubles of these kinds do not strike: "Crash,Rot"
    #[arg(long, value_delimiter = ',', value_parser = parse_trouble, requires = "seed")]
    without: Vec<Trouble>,
    /// The troubles of these numbers do not strike: "3,17"
    #[arg(long, value_delimiter = ',', requires = "seed")]
    skip: Vec<u64>,
    /// The storm is over after so many ms
    #[arg(long, requires = "seed")]
    storm_ms: Option<u64>,
    /// A client keeps at most so many requests in flight
    #[arg(long, requires = "seed")]
    depth: Option<u64>,
    /// Do not look for less of a world that fails
    #[arg(long)]
    whole: bool,
}

fn parse_trouble(text: &str) -> Result<Trouble, String> {
    let all = || TROUBLES.iter().chain(&OF_WITNESSES).map(|(trouble, _)| format!("{trouble:?}"));
    let found = TROUBLES.iter().chain(&OF_WITNESSES).find(|(trouble, _)| format!("{trouble:?}") == text);
    found
        .map(|(trouble, _)| *trouble)
        .ok_or_else(|| format!("expected one of {}", all().collect::<Vec<_>>().join(", ")))
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("expected A..B, for example 0..1000")?;
    let number = |s: &str| s.trim().parse::<u64>().map_err(|e| format!("{s:?} is not a number: {e}"));
    let range = number(from)?..number(to)?;
    if range.is_empty() { Err(format!("{text:?} holds no seed")) } else { Ok(range) }
}

#[derive(Default)]
struct Tally {
    counts: Counts,
    passed: u64,
    failed: Vec<u64>,
    simulated_us: u64,
    /// Stands for the course of all seeds, in whichever order they were played.
    digest: u64,
}

impl Options {
    fn scope(&self) -> Scope {
        let less = Less {
            without: self.without.iter().copied().collect(),
            skip: self.skip.iter().copied().collect(),
            storm_ms: self.storm_ms,
            depth: self.depth,
        };
        Scope { large_logs: self.large_logs, sound_disks: self.sound_disks, torn_reads: self.torn_reads, less }
    }

    /// What plays a world again.
    fn command(&self, seed: u64, less: &Less) -> String {
        let large = if self.large_logs { " --large-logs" } else { "" };
        let sound = if self.sound_disks { " --sound-disks" } else { "" };
        let torn = if self.torn_reads { " --torn-reads" } else { "" };
        format!("cargo run --release --bin simulate -- --seed {seed}{large}{sound}{torn}{less} --trace")
    }

    fn range(&self) -> Range<u64> {
        let fresh =
            || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64 & 0xffff_ffff_ffff);
        match (self.seed, &self.seeds) {
            (Some(seed), _) => seed..seed + 1,
            (None, Some(range)) => range.clone(),
            (None, None) => fresh()..u64::MAX,
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    report_panics();
    let began = Instant::now();
    let minutes = options.minutes.unwrap_or(if options.seed.is_none() && options.seeds.is_none() { 1.0 } else { 1e6 });
    let until = began + Duration::from_secs_f64(minutes * 60.0);
    let range = options.range();
    let (next, stop) = (AtomicU64::new(range.start), AtomicBool::new(false));
    let tally = Mutex::new(Tally::default());
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    std::thread::scope(|scope| {
        for _ in 0..threads.min((range.end - range.start) as usize).max(1) {
            scope.spawn(|| {
                keep_at_most(POOL_BYTES);
                while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= range.end {
                        break;
                    }
                    let played = play::<Node>(seed, &options.scope(), 0, options.trace);
                    if note(&tally, &options, &played, began) && !options.keep_going {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    // Nobody panics while holding it: what is locked is only added to.
    let tally = tally.into_inner().expect("the tally");
    finish(&options, &tally, range.start, began)
}

/// Adds up a seed; true if it failed.
fn note(tally: &Mutex<Tally>, options: &Options, played: &Played, began: Instant) -> bool {
    let report = match &played.result {
        Err(violation) if options.brief => format!("seed {}: {violation}\n", played.seed),
        Err(violation) => told(options, played, violation),
        Ok(()) => String::new(),
    };
    let mut tally = tally.lock().expect("the tally");
    tally.counts.merge(&played.counts);
    tally.simulated_us += played.time_us;
    tally.digest ^= played.digest.wrapping_mul(2 * played.seed + 1);
    match played.result {
        Err(_) => tally.failed.push(played.seed),
        Ok(()) => tally.passed += 1,
    }
    print!("{report}");
    let done = tally.passed + tally.failed.len() as u64;
    if done.is_multiple_of(100) {
        let (hours, seconds) = (tally.simulated_us as f64 / 3.6e9, began.elapsed().as_secs_f64());
        println!("{done} seeds, {} failed, {hours:.2} simulated hours in {seconds:.0} s", tally.failed.len());
    }
    if options.seed.is_some() {
        println!("digest {:016x}", played.digest);
    }
    played.result.is_err()
}

/// A failure: the last events of the smallest world found in which the same breaks, and what plays it again.
fn told(options: &Options, played: &Played, violation: &Violation) -> String {
    let scope = options.scope();
    let again = play::<Node>(played.seed, &scope, if options.whole { options.lines } else { 1 }, false);
    let mut text = format!("\nseed {} FAILED\n", played.seed);
    let mut show = |story: &Played| {
        let lines = story.tail.iter().map(|line| line.chars().take(400).collect::<String>());
        lines.for_each(|line| text += &format!("  {line}\n"));
    };
    if options.whole {
        show(&again);
        text += &format!("seed {}: {violation}\n", played.seed);
    } else {
        let until = Instant::now() + SHRINK_FOR;
        let (before, steps) = (again.troubles.struck.len(), again.steps);
        let found = shrink::<Node>(&scope, again, violation, &mut || Instant::now() < until);
        let story = play::<Node>(played.seed, &found.scope, options.lines, false);
        show(&story);
        text += &format!("seed {}: {violation}\n", played.seed);
        text += &format!(
            "the same with less, of {} worlds played: {} troubles instead of {before}, {} steps instead of {steps}: {}\n",
            found.tries,
            found.played.troubles.struck.len(),
            found.played.steps,
            options.command(played.seed, &found.scope.less)
        );
    }
    let digest = play::<Node>(played.seed, &scope, 0, false).digest;
    if digest != played.digest {
        let first = played.digest;
        text += &format!("the same seed took another course the second time: digest {first:x}, then {digest:x}\n");
    }
    text + &format!("reproduce: {}\n", options.command(played.seed, &scope.less))
}

fn finish(options: &Options, tally: &Tally, first: u64, began: Instant) -> ExitCode {
    let seconds = began.elapsed().as_secs_f64();
    let simulated = tally.simulated_us as f64 / 1e6;
    print!("\n{}", tally.counts);
    println!(
        "{:.2} simulated hours in {seconds:.0} s: {:.0} times real time",
        simulated / 3600.0,
        simulated / seconds.max(1e-9)
    );
    if options.seed.is_none() && options.seeds.is_none() {
        let last = first + tally.passed + tally.failed.len() as u64;
        println!("fresh seeds; the same again: --seeds {first}..{last}");
    }
    println!("{} passed, {} failed; digest of all {:016x}", tally.passed, tally.failed.len(), tally.digest);
    // Two thousand seeds see everything; fewer prove nothing by what they lack.
    let unseen = if tally.passed >= 2000 { tally.counts.unseen() } else { Vec::new() };
    if !unseen.is_empty() {
        println!("the simulator never got there: {}", unseen.join(", "));
    }
    if tally.failed.is_empty() {
        return if unseen.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    tally.failed.iter().take(20).for_each(|seed| println!("  {}", options.command(*seed, &options.scope().less)));
    ExitCode::FAILURE
}
