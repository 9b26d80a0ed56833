//! Runs the simulator: one seed with its trace, or many on all cores.

use clap::Parser;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use understudy::core::Node;
use understudy::sim::plan::Scope;
use understudy::sim::report::Counts;
use understudy::sim::run::{Played, play, report_panics};

/// Memory for buffers that each thread keeps from seed to seed.
const KEEP_BYTES: usize = 512 << 20;

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
        Scope { large_logs: self.large_logs, sound_disks: self.sound_disks, torn_reads: self.torn_reads }
    }

    fn command(&self, seed: u64) -> String {
        let large = if self.large_logs { " --large-logs" } else { "" };
        let sound = if self.sound_disks { " --sound-disks" } else { "" };
        let torn = if self.torn_reads { " --torn-reads" } else { "" };
        format!("cargo run --release --bin simulate -- --seed {seed}{large}{sound}{torn} --trace")
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
                understudy::buf::keep_at_most(KEEP_BYTES);
                while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= range.end {
                        break;
                    }
                    let played = play::<Node>(seed, options.scope(), 0, options.trace);
                    if note(&tally, &options, &played, began) && !options.keep_going {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    // Nobody panics while holding it: what is locked is only added to.
    let tally = tally.into_inner().expect("the tally");
    finish(&options, &tally, began)
}

/// Adds up a seed; true if it failed.
fn note(tally: &Mutex<Tally>, options: &Options, played: &Played, began: Instant) -> bool {
    let failed = played.result.is_err();
    let story = (failed && !options.brief).then(|| play::<Node>(played.seed, options.scope(), options.lines, false));
    let mut tally = tally.lock().expect("the tally");
    tally.counts.merge(&played.counts);
    tally.simulated_us += played.time_us;
    tally.digest ^= played.digest.wrapping_mul(2 * played.seed + 1);
    match (&played.result, story) {
        (Err(violation), Some(story)) => {
            tally.failed.push(played.seed);
            println!("\nseed {} FAILED", played.seed);
            story.tail.iter().for_each(|line| println!("  {}", line.chars().take(400).collect::<String>()));
            println!("seed {}: {violation}", played.seed);
            if story.digest != played.digest {
                println!(
                    "the same seed took another course the second time: digest {:x}, then {:x}",
                    played.digest, story.digest
                );
            }
            println!("reproduce: {}", options.command(played.seed));
        }
        (Err(violation), None) => {
            tally.failed.push(played.seed);
            println!("seed {}: {violation}", played.seed);
        }
        (Ok(()), _) => tally.passed += 1,
    }
    let done = tally.passed + tally.failed.len() as u64;
    if done.is_multiple_of(100) {
        let (hours, seconds) = (tally.simulated_us as f64 / 3.6e9, began.elapsed().as_secs_f64());
        println!("{done} seeds, {} failed, {hours:.2} simulated hours in {seconds:.0} s", tally.failed.len());
    }
    if options.seed.is_some() {
        println!("digest {:016x}", played.digest);
    }
    failed
}

fn finish(options: &Options, tally: &Tally, began: Instant) -> ExitCode {
    let seconds = began.elapsed().as_secs_f64();
    let simulated = tally.simulated_us as f64 / 1e6;
    print!("\n{}", tally.counts);
    println!(
        "{:.2} simulated hours in {seconds:.0} s: {:.0} times real time",
        simulated / 3600.0,
        simulated / seconds.max(1e-9)
    );
    println!("{} passed, {} failed; digest of all {:016x}", tally.passed, tally.failed.len(), tally.digest);
    // A thousand seeds see everything; fewer prove nothing by what they lack.
    let unseen = if tally.passed >= 1000 { tally.counts.unseen() } else { Vec::new() };
    if !unseen.is_empty() {
        println!("the simulator never got there: {}", unseen.join(", "));
    }
    if tally.failed.is_empty() {
        return if unseen.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    tally.failed.iter().take(20).for_each(|seed| println!("  {}", options.command(*seed)));
    ExitCode::FAILURE
}
