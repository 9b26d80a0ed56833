//! Crashes of real daemons: everything that two of them do to their logs, stores, lists and histories is recorded while a client writes,
//! one falls behind and is resynced. The recording is cut at many points; of what was not flushed there any subset is kept, with
//! torn sectors, and what was in flight happened, did not, or did in part. The real recovery brings each image up, alone,
//! and it must be the device after a prefix of the client's writes that holds all that the client was promised (contracts 1 and 3).
//!
//! `UNDERSTUDY_CRASH_IMAGES=N` looks at so many images of each point (2 if not given); `UNDERSTUDY_SEED` draws others.

use super::disk::record::{Change, Entry, Tape, record};
use super::testing::{NbdClient, disk_dir};
use super::tests::{Daemon, eventually, in_sync, pair, promote};
use super::*;
use crate::buf::Payload;
use crate::core::{IoId, IoOp, Lsn, NodeConfig, Part, Term, VolumeId, VolumeSpec};
use crate::sim::disk::{DiskMood, SimDisk};
use crate::sim::invariants::alone::{Outcome, bring_up, check_image};
use crate::sim::rng::Rng;
use crate::sim::rot::rot_log;
use crate::sim::truth::{Geometry, Pos, Span, Truth, fill};
use std::collections::BTreeMap;
use std::io::Write;

const BLOCKS: u64 = 256;
const BLOCK: u64 = 4096;
const IN_FLIGHT: usize = 8;
/// Images of each point.
const IMAGES: u64 = 2;

enum Asked {
    Change(u64),
    Flush(u64),
}

/// A client that keeps several writes in flight, and writes down in every recording what it is told.
struct Load {
    client: NbdClient,
    rng: Rng,
    spans: Vec<Span>,
    asked: BTreeMap<u64, Asked>,
    cookie: u64,
    done: u64,
    durable: u64,
    /// Of the nodes that are in sync.
    tapes: Vec<Tape>,
}

impl Load {
    fn new(client: NbdClient) -> Load {
        let rng = Rng::new(7);
        Load {
            client,
            rng,
            spans: Vec::new(),
            asked: BTreeMap::new(),
            cookie: 0,
            done: 0,
            durable: 0,
            tapes: Vec::new(),
        }
    }

    fn send(&mut self, command: u16, offset: u64, length: u64, payload: &[u8], asked: Asked) {
        self.cookie += 1;
        self.asked.insert(self.cookie, asked);
        self.client.stream.write_all(&NbdClient::request(self.cookie, command, offset, length as u32)).unwrap();
        self.client.stream.write_all(payload).unwrap();
    }

    fn write(&mut self, block: u64, count: u64) {
        let stamp = 1 + self.spans.iter().map(|s| s.count).sum::<u64>();
        self.spans.push(Span { volume: VolumeId(0), block, count, stamp });
        let change = Asked::Change(self.spans.len() as u64);
        self.send(1, block * BLOCK, count * BLOCK, &fill(stamp, count, BLOCK), change);
    }

    fn trim(&mut self, block: u64, count: u64) {
        self.spans.push(Span { volume: VolumeId(0), block, count, stamp: 0 });
        let change = Asked::Change(self.spans.len() as u64);
        self.send(4, block * BLOCK, count * BLOCK, &[], change);
    }

    fn take_reply(&mut self) {
        let (cookie, error) = self.client.reply().unwrap();
        assert_eq!(error, 0);
        match self.asked.remove(&cookie).expect("an answer to what was asked") {
            Asked::Change(number) => self.done = self.done.max(number),
            Asked::Flush(covers) => self.durable = self.durable.max(covers),
        }
        for tape in &self.tapes {
            tape.lock().unwrap().push(Entry::Told { done: self.done, durable: self.durable });
        }
    }

    fn settle(&mut self) {
        while !self.asked.is_empty() {
            self.take_reply();
        }
    }

    /// So many requests; answers are taken as they come.
    fn run(&mut self, requests: u64) {
        for _ in 0..requests {
            let count = self.rng.pick(&[1, 1, 2, 8]);
            let reach = if self.rng.coin() { 16 } else { BLOCKS };
            let block = self.rng.below(reach - count + 1);
            match self.rng.below(12) {
                0 => self.send(3, 0, 0, &[], Asked::Flush(self.done)),
                1 => self.trim(block, count),
                _ => self.write(block, count),
            }
            while self.asked.len() >= IN_FLIGHT {
                self.take_reply();
            }
        }
    }
}

/// A node's disk as the recording makes it, entry by entry.
struct Replayed {
    disk: SimDisk,
    tokens: BTreeMap<IoId, u64>,
    rng: Rng,
    done: u64,
    durable: u64,
}

impl Replayed {
    /// As `create` left it: all of it durable.
    fn new(settings: &Settings) -> Replayed {
        let mood = DiskMood { atom: 512, slow: 1, ..DiskMood::default() };
        let node = &settings.node;
        let stores = node.volumes.iter().enumerate().map(|(i, v)| (Part::Store(VolumeId(i as u16)), v.size));
        let parts: Vec<(Part, u64)> = stores.chain([(Part::Log, node.log_size)]).collect();
        let mut disk = SimDisk::new(&parts, true, mood);
        let log = Payload::copy_of(&std::fs::read(&settings.log).unwrap());
        let mut rng = Rng::new(1);
        let whole = IoOp::Write { offset: 0, bufs: vec![log], sync: true };
        let (token, _) = disk.submit(IoId(0), Part::Log, whole, &mut rng).unwrap();
        disk.complete(token, &mut rng).unwrap().1.unwrap();
        Replayed { disk, tokens: BTreeMap::new(), rng, done: 0, durable: 0 }
    }

    fn submit(&mut self, id: IoId, part: Part, change: &Change) -> u64 {
        let op = match change.clone() {
            Change::Write { offset, bytes, sync } => IoOp::Write { offset, bufs: vec![Payload::copy_of(&bytes)], sync },
            Change::Zero { offset, length, discard } => IoOp::Zero { offset, length, discard },
            Change::Truncate { length } => IoOp::Truncate { length },
            Change::Flush => IoOp::Flush,
        };
        // Refused is also what a daemon must never do: overlapping writes in flight, misaligned ones.
        self.disk.submit(id, part, op, &mut self.rng).unwrap().0
    }

    fn complete(&mut self, token: u64) {
        self.disk.complete(token, &mut self.rng).expect("an I/O in flight").1.unwrap();
    }

    fn play(&mut self, entry: &Entry) {
        match entry {
            Entry::Opened => std::mem::take(&mut self.tokens).into_values().for_each(|token| self.complete(token)),
            Entry::Issued { id, part, change } => {
                let token = self.submit(*id, *part, change);
                self.tokens.insert(*id, token);
            }
            Entry::Done(id) => {
                if let Some(token) = self.tokens.remove(id) {
                    self.complete(token);
                }
            }
            Entry::Blocking { part, change } => {
                let token = self.submit(IoId(u64::MAX), *part, change);
                self.complete(token);
            }
            Entry::Told { done, durable } => (self.done, self.durable) = (*done, *durable),
        }
    }
}

/// What the client wrote, in the one term that there was.
fn truth(spans: &[Span], term: Term) -> Truth {
    let mut truth = Truth::new(Geometry { block: BLOCK, volumes: vec![BLOCKS] });
    truth.learn(&[term]).unwrap();
    spans.iter().for_each(|span| {
        truth.append(term.id, *span);
    });
    truth
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Cuts a recording at every point. How many images were looked at, and whether a resync was under way in any of them.
fn cut(
    settings: &Settings,
    mut replayed: Replayed,
    tape: &[Entry],
    truth: &Truth,
    term: Term,
    seed: u64,
) -> (u64, bool) {
    let images = number("UNDERSTUDY_CRASH_IMAGES", IMAGES);
    let mut rng = Rng::new(seed);
    let (mut looked, mut in_gap) = (0, false);
    for (index, entry) in tape.iter().enumerate() {
        replayed.play(entry);
        for _ in 0..images {
            let mut disk = replayed.disk.clone();
            let power = rng.per_mille(700);
            match power {
                true => disk.power_cut(&mut rng),
                false => disk.process_crash(&mut rng),
            }
            let rotten = rng.per_mille(200);
            if rotten {
                rot_log(&mut disk, &mut rng);
            }
            in_gap |= disk.size(Part::History) > 0;
            // What a passive has only received is gone with its process.
            let owed = if power || settings.node.me.0 != 0 { replayed.durable } else { replayed.done };
            let config = NodeConfig { incarnation: Incarnation(99), boot: 99, ..settings.node.clone() };
            let what =
                format!("cut {index} of {}, power {power}, seed {seed}, node {:?}", tape.len(), settings.node.me);
            match bring_up::<Node>(config, disk, rng.fork()).unwrap_or_else(|v| panic!("{what}: {v}")) {
                Outcome::Serves { lineage, at, blocks } => {
                    let least: Vec<Pos> =
                        (owed > 0 && !rotten).then_some(Pos { term: term.id, lsn: Lsn(owed) }).into_iter().collect();
                    check_image(&lineage, at, &blocks, &least, truth).unwrap_or_else(|v| panic!("{what}: {v}"));
                }
                Outcome::Refused(why) if rotten && why.contains("holds no valid image") => {}
                Outcome::Refused(why) => panic!("{what}: it refused to serve: {why}"),
            }
            looked += 1;
        }
    }
    (looked, in_gap)
}

#[test]
fn every_crash_of_a_daemon_leaves_a_prefix_with_all_that_was_promised() {
    let dir = disk_dir();
    let mut both = pair(dir.path());
    for settings in &mut both {
        settings.node.volumes = vec![VolumeSpec { name: "disk0".into(), size: BLOCKS * BLOCK }];
        settings.stores.truncate(1);
        // Whoever is dropped because the machine is busy owes nothing, and the recording does not tell.
        (settings.node.stall_ms, settings.node.heartbeat_ms) = (5000, 20);
        (settings.node.flush_ms, settings.node.apply_ms) = (5, 10);
    }
    both.iter().for_each(|s| create(s, false).unwrap());
    let blank = both.each_ref().map(Replayed::new);
    let tapes = both.each_ref().map(|s| record(&s.dir));
    let [alpha, beta] = both.each_ref().map(Daemon::start);
    promote(&alpha, false);
    eventually("both are in sync", || in_sync(&alpha) == 2);

    let mut load = Load::new(alpha.client("disk0"));
    load.tapes = tapes.to_vec();
    load.run(150);
    load.settle();
    // Beta falls behind, further than the log reaches.
    load.tapes.truncate(1);
    beta.stop().unwrap();
    eventually("alpha goes on alone", || in_sync(&alpha) == 1);
    load.run(500);
    let beta = Daemon::start(&both[1]);
    load.run(50);
    eventually("beta is in sync again", || in_sync(&alpha) == 2);
    load.settle();
    load.tapes = tapes.to_vec();
    load.run(100);
    load.settle();
    let spans = load.spans.clone();
    drop(load);
    alpha.stop().unwrap();
    beta.stop().unwrap();

    let seed = number("UNDERSTUDY_SEED", 1);
    let tapes = tapes.map(|tape| tape.lock().unwrap().clone());
    let [first, second] = blank;
    // The term is what the whole recording leads to.
    let mut end = Replayed { disk: first.disk.clone(), rng: Rng::new(2), tokens: BTreeMap::new(), ..first };
    tapes[0].iter().for_each(|entry| end.play(entry));
    let config = NodeConfig { incarnation: Incarnation(99), boot: 99, ..both[0].node.clone() };
    let term = match bring_up::<Node>(config, end.disk, Rng::new(3)).unwrap() {
        Outcome::Serves { lineage, .. } => lineage[0],
        Outcome::Refused(why) => panic!("{why}"),
    };
    let truth = truth(&spans, term);
    let (images, _) = cut(&both[0], first, &tapes[0], &truth, term, seed);
    let (others, in_gap) = cut(&both[1], second, &tapes[1], &truth, term, seed);
    assert!(in_gap, "the passive was resynced, and no image has a history");
    assert!(images >= 1000 && others >= 500, "{images} and {others} images");
    println!("{images} and {others} images of {} and {} entries", tapes[0].len(), tapes[1].len());
}
