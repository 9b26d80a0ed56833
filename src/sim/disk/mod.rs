//! A node's disk: all its parts, the I/Os in flight, and what goes wrong with them.
//!
//! A write is visible when it completes and stable when it was `sync`, or when a flush that was issued after its
//! completion has completed. A power cut keeps any subset of the 512-byte sectors that are not stable; a process that dies
//! leaves what had completed, and its I/Os in flight happen, do not, or happen in part.

mod blocking;
mod part;

pub use blocking::Blocking;
pub use part::{Keep, PAGE, SECTOR};

use super::rng::Rng;
use crate::buf::{BufMut, Payload};
use crate::core::{IoData, IoError, IoId, IoOp, Part};
use part::{PartState, Version};
use std::collections::BTreeMap;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// How fast a disk is, in µs, and how often it fails, in failures per million I/Os.
#[derive(Clone, Debug, Default)]
pub struct DiskMood {
    pub access_us: u64,
    pub flush_us: u64,
    /// What a read beside a write of the same place sees whole, in bytes: 512 or 4096.
    pub atom: u64,
    /// Everything takes so many times longer; 1 is normal.
    pub slow: u64,
    pub read_error_ppm: u64,
    pub write_error_ppm: u64,
    pub flush_error_ppm: u64,
    /// Only this part fails; none for all of them.
    pub only: Option<Class>,
    /// Parts that grow cannot.
    pub full: bool,
    /// Bytes for history and salvage, together.
    pub room: Option<u64>,
}

/// Parts as faults tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Log,
    Store,
    Growing,
}

impl Class {
    fn of(part: Part) -> Class {
        match part {
            Part::Log => Class::Log,
            Part::Store(_) => Class::Store,
            Part::Bitmap { .. } | Part::History | Part::Salvage(_) => Class::Growing,
        }
    }
}

/// An I/O that was issued and has not completed.
#[derive(Clone, Debug)]
struct Flight {
    id: IoId,
    part: Part,
    op: IoOp,
    fails: Option<i32>,
    /// Completions so far when it was issued, and the part's size.
    seq: u64,
    size: u64,
}

/// A node's disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    parts: BTreeMap<Part, PartState>,
    flights: BTreeMap<u64, Flight>,
    next_token: u64,
    seq: u64,
    /// Whether holes can be told from zeros.
    tells_holes: bool,
    pub mood: DiskMood,
    /// Faults that struck so far.
    pub faults: u64,
    /// Blocking calls since the last I/O of a running process.
    recovering: u64,
}

impl SimDisk {
    /// A blank disk. `fixed` are the parts whose size is given; the others come into being when written.
    pub fn new(fixed: &[(Part, u64)], tells_holes: bool, mood: DiskMood) -> SimDisk {
        let parts = fixed.iter().map(|&(part, size)| (part, PartState::fixed(size))).collect();
        SimDisk { parts, flights: BTreeMap::new(), next_token: 0, seq: 0, tells_holes, mood, faults: 0, recovering: 0 }
    }

    fn part(&mut self, part: Part) -> &mut PartState {
        self.parts.entry(part).or_insert_with(PartState::growing)
    }

    /// I/Os in flight.
    pub fn busy(&self) -> usize {
        self.flights.len()
    }

    /// What reads return now.
    pub fn peek(&self, part: Part, offset: u64, length: u64) -> Payload {
        if length == PAGE && offset.is_multiple_of(PAGE) {
            return self.parts.get(&part).and_then(|state| state.page(offset / PAGE)).unwrap_or_else(zero_page);
        }
        let mut out = BufMut::uninit(length as usize);
        match self.parts.get(&part) {
            Some(state) => state.read(offset, &mut out),
            None => out.fill(0),
        }
        out.freeze()
    }

    /// Bytes of a part, 0 if it does not exist.
    pub fn size(&self, part: Part) -> u64 {
        self.parts.get(&part).map_or(0, |state| state.size)
    }

    /// Turns bits of a byte over, for good: the medium has rotted.
    pub fn turn_over(&mut self, part: Part, offset: u64, bits: u8) {
        self.part(part).turn_over(offset, bits);
    }

    /// A growing part is there no more, for good.
    pub fn lose(&mut self, part: Part) {
        *self.part(part) = PartState::growing();
    }

    /// What a page of a part reads as.
    pub fn page(&mut self, part: Part, number: u64) -> Option<Payload> {
        self.part(part).page(number)
    }

    /// Takes an I/O: its token, and after how many µs it completes.
    ///
    /// # Errors
    /// What the core did wrong, in words: it must align its I/O, stay inside fixed parts, and never have two overlapping
    /// writes in flight.
    pub fn submit(&mut self, id: IoId, part: Part, op: IoOp, rng: &mut Rng) -> Result<(u64, u64), String> {
        self.recovering = 0;
        self.check(part, &op)?;
        let fails = self.draw_fault(part, &op, rng);
        let delay = self.delay(&op, rng);
        let size = self.part(part).size;
        let token = self.next_token;
        self.next_token += 1;
        self.flights.insert(token, Flight { id, part, op, fails, seq: self.seq, size });
        Ok((token, delay))
    }

    fn check(&mut self, part: Part, op: &IoOp) -> Result<(), String> {
        let grain = if Class::of(part) == Class::Store { SECTOR } else { PAGE };
        let (from, to) = range(op);
        if from % grain != 0 || (to % grain != 0 && to != u64::MAX) {
            return Err(format!("{part:?}: {op:?} is not aligned to {grain}"));
        }
        let state = self.part(part);
        if !state.grows && to > state.size && to != u64::MAX {
            return Err(format!("{part:?}: {op:?} reaches past the end at {}", state.size));
        }
        if !changes(op) {
            return Ok(());
        }
        let clash = self.flights.values().find(|f| {
            let (a, b) = range(&f.op);
            f.part == part && changes(&f.op) && from < b && a < to
        });
        match clash {
            Some(f) => Err(format!("{part:?}: {op:?} overlaps {:?} in flight", f.op)),
            None => Ok(()),
        }
    }

    fn draw_fault(&mut self, part: Part, op: &IoOp, rng: &mut Rng) -> Option<i32> {
        let class = Class::of(part);
        let grows = class == Class::Growing && changes(op) && range(op).1 > self.part(part).size;
        if grows && range(op).1 > self.room_for(part) {
            self.faults += u64::from(!matches!(op, IoOp::Truncate { .. }));
            return (!matches!(op, IoOp::Truncate { .. })).then_some(ENOSPC);
        }
        if self.mood.only.is_some_and(|only| only != class) {
            return None;
        }
        let ppm = match op {
            IoOp::Read { .. } => self.mood.read_error_ppm,
            IoOp::Flush => self.mood.flush_error_ppm,
            IoOp::NextData { .. } | IoOp::Reserve { .. } => 0,
            IoOp::Write { .. } | IoOp::Zero { .. } | IoOp::Truncate { .. } => self.mood.write_error_ppm,
        };
        let fails = rng.ppm(ppm);
        self.faults += u64::from(fails);
        fails.then_some(EIO)
    }

    /// How long a growing part can become.
    fn room_for(&mut self, part: Part) -> u64 {
        let size = self.part(part).size;
        match self.mood.room {
            _ if self.mood.full => size,
            Some(room) if matches!(part, Part::History | Part::Salvage(_)) => {
                let told = |p: &&Part| matches!(p, Part::History | Part::Salvage(_));
                let used: u64 = self.parts.iter().filter(|(p, _)| told(p)).map(|(_, s)| s.size).sum();
                size + room.saturating_sub(used)
            }
            _ => u64::MAX,
        }
    }

    fn delay(&self, op: &IoOp, rng: &mut Rng) -> u64 {
        let mean = match op {
            IoOp::Flush | IoOp::Truncate { .. } => self.mood.flush_us,
            IoOp::Write { sync: true, .. } => self.mood.access_us + self.mood.flush_us,
            _ => self.mood.access_us,
        };
        1 + rng.around(mean) * self.mood.slow
    }

    /// The I/O of this token is over; none if a crash took it.
    pub fn complete(&mut self, token: u64, rng: &mut Rng) -> Option<(IoId, Result<IoData, IoError>)> {
        let flight = self.flights.remove(&token)?;
        Some((flight.id, self.perform(&flight, rng)))
    }

    fn perform(&mut self, flight: &Flight, rng: &mut Rng) -> Result<IoData, IoError> {
        let failure = flight.fails.map(|errno| IoError { errno });
        match &flight.op {
            IoOp::Read { offset, length } if failure.is_none() => {
                return Ok(IoData::Bytes(self.read_racing(flight.part, *offset, *length, rng)));
            }
            IoOp::NextData { offset } if failure.is_none() => {
                let tells_holes = self.tells_holes;
                let state = self.part(flight.part);
                let run = match tells_holes {
                    true => state.next_data(*offset),
                    false => (*offset < state.size).then(|| (*offset, state.size - offset)),
                };
                return Ok(IoData::Extent(run));
            }
            IoOp::Reserve { length } if failure.is_none() => {
                let room = self.room_for(flight.part).min(*length);
                return Ok(IoData::Room(room));
            }
            IoOp::Read { .. } | IoOp::NextData { .. } | IoOp::Reserve { .. } => (),
            IoOp::Write { .. } | IoOp::Zero { .. } => match failure {
                // No room: nothing happened. Anything else: any part of it may have.
                Some(IoError { errno: ENOSPC }) => (),
                Some(_) => self.happens_in_part(flight, rng),
                None => self.happens(flight),
            },
            IoOp::Flush => {
                let failed = failure.is_some();
                self.part(flight.part).flushed(flight.seq, flight.size, failed.then_some(rng));
            }
            IoOp::Truncate { length } if failure.is_none() => self.part(flight.part).truncated(*length),
            IoOp::Truncate { .. } => (),
        }
        failure.map_or(Ok(IoData::Nothing), Err)
    }

    /// A read beside a write in flight of the same range may see either, atom by atom.
    fn read_racing(&mut self, part: Part, offset: u64, length: u64, rng: &mut Rng) -> Payload {
        let races = |f: &Flight| f.part == part && f.fails.is_none() && changes(&f.op) && meets(&f.op, offset, length);
        if !self.flights.values().any(races) {
            return self.peek(part, offset, length);
        }
        let mut out = BufMut::uninit(length as usize);
        let atom = self.mood.atom as usize;
        self.part(part).read(offset, &mut out);
        for flight in self.flights.values().filter(|f| races(f)) {
            for (number, version) in versions(&flight.op, 0) {
                for at in (number * PAGE..(number + 1) * PAGE).step_by(atom) {
                    let first_sector = (at - number * PAGE) / SECTOR;
                    let inside = at >= offset && at + atom as u64 <= offset + length;
                    if inside && version.mask & (1 << first_sector) != 0 && rng.coin() {
                        let (from, to) = ((at - offset) as usize, (first_sector * SECTOR) as usize);
                        out[from..from + atom].copy_from_slice(&version.data[to..to + atom]);
                    }
                }
            }
        }
        out.freeze()
    }

    fn happens(&mut self, flight: &Flight) {
        let sync = matches!(flight.op, IoOp::Write { sync: true, .. });
        self.seq += 1;
        let seq = self.seq - 1;
        let state = self.part(flight.part);
        for (number, version) in versions(&flight.op, seq) {
            state.wrote(number, &version, 0xff, sync);
        }
        if matches!(flight.op, IoOp::Write { .. }) {
            state.grew(range(&flight.op).1, sync);
        }
    }

    /// Any subset of the sectors, possibly with one torn in the middle; nothing of it is stable.
    fn happens_in_part(&mut self, flight: &Flight, rng: &mut Rng) {
        self.seq += 1;
        let seq = self.seq - 1;
        let share = rng.pick(&[0, 100, 500, 900, 1000]);
        let state = self.part(flight.part);
        let mut reached = 0;
        for (number, version) in versions(&flight.op, seq) {
            let mask = (0..8).fold(0u8, |m, bit| m | (u8::from(rng.per_mille(share)) << bit)) & version.mask;
            if mask != 0 {
                reached = (number + 1) * PAGE;
            }
            if version.mask == 0xff && rng.per_mille(30) {
                reached = (number + 1) * PAGE;
                state.tear(number, &version, rng.below(PAGE) as usize);
            } else {
                state.wrote(number, &version, mask, false);
            }
        }
        if matches!(flight.op, IoOp::Write { .. }) {
            state.grew(reached, false);
        }
    }

    /// The process dies: the kernel keeps what had completed; what was in flight happens or not.
    pub fn process_crash(&mut self, rng: &mut Rng) {
        for flight in std::mem::take(&mut self.flights).into_values() {
            match rng.below(4) {
                0 => (),
                1 if matches!(flight.op, IoOp::Write { .. } | IoOp::Zero { .. }) => self.happens_in_part(&flight, rng),
                _ => {
                    let _ = self.perform(&flight, rng);
                }
            }
        }
    }

    /// The power goes.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        for flight in std::mem::take(&mut self.flights).into_values() {
            match &flight.op {
                IoOp::Write { .. } | IoOp::Zero { .. } if rng.per_mille(700) => self.happens_in_part(&flight, rng),
                IoOp::Truncate { length } if rng.coin() => self.part(flight.part).truncated(*length),
                _ => (),
            }
        }
        let share = rng.below(1000);
        let keep = Keep(rng.pick(&[0, 1000, 500, share]));
        self.parts.values_mut().for_each(|p| p.power_cut(keep, rng));
    }
}

/// The bytes that an I/O touches; a flush touches none.
fn range(op: &IoOp) -> (u64, u64) {
    match op {
        IoOp::Read { offset, length } | IoOp::Zero { offset, length, .. } => (*offset, offset + length),
        IoOp::Write { offset, bufs, .. } => (*offset, offset + bufs.iter().map(|b| b.len() as u64).sum::<u64>()),
        IoOp::Truncate { length } => (*length, u64::MAX),
        IoOp::Flush | IoOp::NextData { .. } | IoOp::Reserve { .. } => (0, 0),
    }
}

fn meets(op: &IoOp, offset: u64, length: u64) -> bool {
    let (from, to) = range(op);
    from < offset + length && offset < to
}

fn changes(op: &IoOp) -> bool {
    matches!(op, IoOp::Write { .. } | IoOp::Zero { .. } | IoOp::Truncate { .. })
}

/// An I/O's new bytes, page by page. A page that one buffer holds whole is shared with it.
fn versions(op: &IoOp, seq: u64) -> Vec<(u64, Version)> {
    let (from, to) = range(op);
    let hole = matches!(op, IoOp::Zero { discard: true, .. });
    let none = [];
    let bufs: &[Payload] = match op {
        IoOp::Write { bufs, .. } => bufs,
        IoOp::Zero { .. } => &none,
        _ => return Vec::new(),
    };
    let mut pages = Vec::with_capacity((to.div_ceil(PAGE) - from / PAGE) as usize);
    // The buffer that holds the next byte, and where in it that byte is.
    let (mut buf, mut within) = (0, 0);
    for number in from / PAGE..to.div_ceil(PAGE) {
        let (start, end) = (from.max(number * PAGE), to.min((number + 1) * PAGE));
        let data = match bufs.get(buf) {
            None => zero_page(),
            Some(b) if end - start == PAGE && b.len() - within >= PAGE as usize => {
                let page = b.slice(within, PAGE as usize);
                within += PAGE as usize;
                page
            }
            Some(_) => gather(bufs, (&mut buf, &mut within), (start % PAGE) as usize, (end - start) as usize),
        };
        while bufs.get(buf).is_some_and(|b| within == b.len()) {
            (buf, within) = (buf + 1, 0);
        }
        let sector = |at: u64| (at - number * PAGE) / SECTOR;
        let mask = ((0xff_u32 << sector(start)) & ((1_u32 << sector(end)) - 1)) as u8;
        pages.push((number, Version { seq, mask, data, hole }));
    }
    pages
}

/// A page of the next `length` bytes of some buffers, `skip` bytes into it.
fn gather(bufs: &[Payload], (buf, within): (&mut usize, &mut usize), skip: usize, length: usize) -> Payload {
    let mut page = BufMut::zeroed(PAGE as usize);
    let (mut at, end) = (skip, skip + length);
    while at < end && *buf < bufs.len() {
        let n = (bufs[*buf].len() - *within).min(end - at);
        page[at..at + n].copy_from_slice(&bufs[*buf][*within..*within + n]);
        (at, *within) = (at + n, *within + n);
        if *within == bufs[*buf].len() {
            (*buf, *within) = (*buf + 1, 0);
        }
    }
    page.freeze()
}

fn zero_page() -> Payload {
    thread_local!(static ZEROS: Payload = BufMut::zeroed(PAGE as usize).freeze());
    ZEROS.with(Payload::clone)
}

#[cfg(test)]
mod tests;
