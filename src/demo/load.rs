//! A client that writes as a database does, and remembers what it was promised.

use super::oracle::{BLOCK, Oracle};
use super::rng::Rng;
use crate::nbd_client::{Client, Cookie, NbdError, Request};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// How a writer goes about it.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Random writes of 1 to 4 blocks, so many outstanding, with a flush after every so many; one in sixteen of them with FUA.
    Pages { depth: usize, flush_every: u64 },
    /// The same, with a discard or write-zeroes now and then.
    PagesAndHoles { depth: usize, flush_every: u64 },
    /// Appends of 1 or 2 blocks, round and round, each followed by a flush that is waited for.
    Journal,
}

/// What several writers measure together.
#[derive(Debug, Default)]
pub struct Meter {
    writes: AtomicU64,
    bytes: AtomicU64,
    flushes: AtomicU64,
    /// Microseconds from sending to answer of each write since `take` was called last.
    latencies: Mutex<Vec<u32>>,
    longest_us: AtomicU64,
}

/// What happened since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    pub writes: u64,
    pub bytes: u64,
    pub flushes: u64,
    pub p50_us: u32,
    pub p99_us: u32,
}

impl Meter {
    /// What has been measured since this was called last.
    pub fn take(&self) -> Sample {
        // A writer that panicked while it held the lock has left a list of numbers, which is all it ever is.
        let mut latencies = std::mem::take(&mut *self.latencies.lock().unwrap_or_else(|e| e.into_inner()));
        latencies.sort_unstable();
        let percentile = |p: usize| latencies.get(latencies.len() * p / 100).copied().unwrap_or(0);
        Sample {
            writes: self.writes.swap(0, Ordering::Relaxed),
            bytes: self.bytes.swap(0, Ordering::Relaxed),
            flushes: self.flushes.swap(0, Ordering::Relaxed),
            p50_us: percentile(50),
            p99_us: percentile(99),
        }
    }

    /// The longest that any request took, in microseconds.
    pub fn longest_us(&self) -> u64 {
        self.longest_us.load(Ordering::Relaxed)
    }

    fn write_done(&self, bytes: u64, took_us: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let took = u32::try_from(took_us).unwrap_or(u32::MAX);
        self.latencies.lock().unwrap_or_else(|e| e.into_inner()).push(took);
    }
}

#[derive(Clone, Debug)]
enum Asked {
    Write { seq: u64, blocks: Range<u64>, fua: bool },
    Flush { covers: u64 },
}

/// Requests that were sent and not answered, and when they were sent.
type Outstanding = BTreeMap<Cookie, (Asked, Instant)>;

/// One writer with its own connection and its own blocks.
#[derive(Debug)]
pub struct Writer {
    pub oracle: Oracle,
    shape: Shape,
    rng: Rng,
    /// Where a journal goes on.
    next_block: u64,
    since_flush: u64,
    apart: bool,
}

impl Writer {
    /// Writes to the blocks of `oracle`, as `seed` has it.
    pub fn new(oracle: Oracle, shape: Shape, seed: u64) -> Writer {
        let next_block = oracle.blocks().start;
        Writer { oracle, shape, rng: Rng::new(seed), next_block, since_flush: 0, apart: false }
    }

    /// Never has two writes to one block outstanding: NBD leaves their order open. Understudy carries them out as they came (S3),
    /// other servers need not.
    pub fn apart(mut self) -> Writer {
        self.apart = true;
        self
    }

    /// Writes until `stop`, then takes in the outstanding answers. An error is what ended the connection, or what the server
    /// said instead of carrying out a request; the oracle then knows what may be there.
    pub fn run(&mut self, client: &mut Client, stop: &AtomicBool, meter: &Meter) -> Result<(), NbdError> {
        let depth = match self.shape {
            Shape::Pages { depth, .. } | Shape::PagesAndHoles { depth, .. } => depth,
            Shape::Journal => 1,
        };
        let mut outstanding = Outstanding::new();
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            while !stopping && outstanding.len() < depth {
                let (cookie, asked) = self.ask(client, &outstanding)?;
                outstanding.insert(cookie, (asked, Instant::now()));
            }
            if outstanding.is_empty() {
                return Ok(());
            }
            let reply = client.next_reply()?;
            reply.result?;
            let Some((asked, since)) = outstanding.remove(&reply.cookie) else { continue };
            let took_us = since.elapsed().as_micros() as u64;
            meter.longest_us.fetch_max(took_us, Ordering::Relaxed);
            match asked {
                Asked::Write { seq, blocks, fua } => {
                    self.oracle.write_done(seq, fua);
                    meter.write_done((blocks.end - blocks.start) * BLOCK as u64, took_us);
                }
                Asked::Flush { covers } => {
                    self.oracle.flush_done(covers);
                    meter.flushes.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn ask(&mut self, client: &mut Client, outstanding: &Outstanding) -> Result<(Cookie, Asked), NbdError> {
        let flush_every = match self.shape {
            Shape::Pages { flush_every, .. } | Shape::PagesAndHoles { flush_every, .. } => flush_every,
            Shape::Journal => 1,
        };
        if self.since_flush >= flush_every {
            self.since_flush = 0;
            let covers = self.oracle.completed();
            return Ok((client.submit(Request::Flush)?, Asked::Flush { covers }));
        }
        self.since_flush += 1;
        let blocks = self.choose(outstanding);
        let (offset, length) = (blocks.start * BLOCK as u64, (blocks.end - blocks.start) as u32 * BLOCK as u32);
        let fua = !matches!(self.shape, Shape::Journal) && self.rng.below(16) == 0;
        let holes = matches!(self.shape, Shape::PagesAndHoles { .. }) && self.rng.below(8) == 0;
        if holes {
            let seq = self.oracle.zero(blocks.clone());
            let request = match self.rng.below(3) {
                0 => Request::Trim { offset, length, fua },
                n => Request::WriteZeroes { offset, length, fua, no_hole: n == 1 },
            };
            return Ok((client.submit(request)?, Asked::Write { seq, blocks, fua }));
        }
        let (seq, data) = self.oracle.write(blocks.clone());
        let cookie = client.submit(Request::Write { offset, data: &data, fua })?;
        Ok((cookie, Asked::Write { seq, blocks, fua }))
    }

    /// The blocks to write next, at most four.
    fn choose(&mut self, outstanding: &Outstanding) -> Range<u64> {
        let range = self.oracle.blocks();
        loop {
            let length = match self.shape {
                Shape::Journal => 1 + self.rng.below(2),
                _ => 1 + self.rng.below(4),
            };
            let first = match self.shape {
                Shape::Journal if self.next_block + length > range.end => range.start,
                Shape::Journal => self.next_block,
                _ => range.start + self.rng.below(range.end - range.start - length + 1),
            };
            let blocks = first..first + length;
            let meets = |(asked, _): &(Asked, Instant)| matches!(asked, Asked::Write { blocks: b, .. } if b.start < blocks.end && blocks.start < b.end);
            // What is outstanding is a small part of the range.
            if self.apart && outstanding.values().any(meets) {
                continue;
            }
            self.next_block = blocks.end;
            return blocks;
        }
    }

    /// The bytes of this writer's blocks, as the server has them.
    pub fn read_back(&self, client: &mut Client) -> Result<Vec<u8>, NbdError> {
        const PIECE: u64 = 1 << 20;
        let range = self.oracle.blocks();
        let (mut at, end) = (range.start * BLOCK as u64, range.end * BLOCK as u64);
        let mut image = Vec::with_capacity((end - at) as usize);
        while at < end {
            let piece = PIECE.min(end - at);
            image.extend(client.read(at, piece)?);
            at += piece;
        }
        Ok(image)
    }
}
