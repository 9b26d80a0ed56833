//! Every decoder of what comes from a disk, a socket or a person, fed with damaged and forged input.
//!
//! Each target has whole inputs made by our own encoders, and a corpus in `tests/corpus`, which is kept. They are changed at random, and
//! checksums are then made right again in most of them, so that what lies behind a checksum is reached too. An input that has a new
//! kind of outcome joins those that are changed further.
//!
//! `cargo test --test fuzz` plays the same inputs each time, in some seconds. `tools/fuzz` plays fresh ones for as long as it is told to, and
//! keeps what was new. Why it is no libFuzzer: `docs/decisions.md`.

mod mutate;
mod targets;

use mutate::Mutator;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use targets::Target;

/// Inputs that `cargo test` plays for each target, beside the corpus.
const INPUTS: u64 = 200_000;
/// Longer inputs are not kept.
const MAX_KEPT: usize = 12 << 10;

fn corpus_dir(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target.name)
}

/// The corpus in the order of its names.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let Ok(files) = std::fs::read_dir(corpus_dir(target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = files.map(|f| f.expect("a readable folder").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a readable file")).collect()
}

fn name_of(input: &[u8]) -> String {
    format!("{:08x}", crc32fast::hash(input))
}

/// Decodes an input. What comes of it in a word or two; a panic leaves the input in a file that the message names.
fn played(target: &Target, input: &[u8]) -> String {
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.decode)(input)));
    outcome.unwrap_or_else(|_| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz");
        std::fs::create_dir_all(&dir).expect("a folder for what fails");
        let path = dir.join(format!("{}-{}", target.name, name_of(input)));
        std::fs::write(&path, input).expect("what fails is kept");
        panic!(
            "{} is in {}; when it is mended, move it to {}",
            target.name,
            path.display(),
            corpus_dir(target).display()
        )
    })
}

/// The words of an outcome: numbers, checksums and what is quoted tell nothing of which way was taken.
fn kind(outcome: &str) -> String {
    let hex = |word: &&str| word.chars().all(|c| c.is_ascii_hexdigit());
    let words = outcome.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| w.len() > 2 && !hex(w));
    words.filter(|w| w.chars().all(|c| c.is_ascii_alphabetic())).take(12).collect::<Vec<_>>().join(" ")
}

fn fuzz(target: &Target, seed: u64, more: &mut dyn FnMut(u64) -> bool, keep: bool) {
    let mut pool: Vec<Vec<u8>> = (target.whole)().into_iter().chain(corpus(target)).collect();
    let mut seen: BTreeSet<String> = pool.iter().map(|input| kind(&played(target, input))).collect();
    let mut mutator = Mutator::new(seed, target.words);
    let (mut inputs, mut fresh) = (0, 0);
    while more(inputs) {
        inputs += 1;
        let mut input = mutator.change(&pool);
        if mutator.repairs() {
            (target.repair)(&mut input);
        }
        if !seen.insert(kind(&played(target, &input))) {
            continue;
        }
        fresh += 1;
        if keep && input.len() <= MAX_KEPT {
            let dir = corpus_dir(target);
            std::fs::create_dir_all(&dir).expect("a folder for the corpus");
            std::fs::write(dir.join(name_of(&input)), &input).expect("a new input is kept");
        }
        pool.push(input);
    }
    println!("{}: {inputs} inputs, {} kinds of outcome, {fresh} of them new", target.name, seen.len());
    assert!(seen.len() >= target.kinds, "only {} kinds of outcome: {seen:?}", seen.len());
}

fn fixed(target: &Target) {
    fuzz(target, 1, &mut |inputs| inputs < INPUTS, false);
}

#[test]
fn batches_of_a_log() {
    fixed(&targets::BATCH);
}

#[test]
fn a_ring() {
    fixed(&targets::RING);
}

#[test]
fn superblocks() {
    fixed(&targets::SUPERBLOCK);
}

#[test]
fn frames_of_a_peer() {
    fixed(&targets::FRAME);
}

#[test]
fn nbd_clients() {
    fixed(&targets::NBD);
}

#[test]
fn configurations() {
    fixed(&targets::CONFIG);
}

/// What `tools/fuzz` runs.
#[test]
#[ignore = "as long as UNDERSTUDY_FUZZ_SECONDS says, for each target"]
fn fresh() {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    let seconds = Duration::from_secs(number("UNDERSTUDY_FUZZ_SECONDS").unwrap_or(10));
    let seed = number("UNDERSTUDY_SEED").unwrap_or_else(|| getrandom::u64().expect("a random seed"));
    println!("UNDERSTUDY_SEED={seed} UNDERSTUDY_FUZZ_SECONDS={}", seconds.as_secs());
    for target in targets::ALL {
        let until = Instant::now() + seconds;
        fuzz(target, seed, &mut |_| Instant::now() < until, true);
    }
}
