//! One part of a simulated disk: what reads return, what is stable, and every version of a page in between.

use super::super::rng::Rng;
use crate::buf::{BufMut, Payload};
use std::collections::BTreeMap;

/// Bytes of a page, the unit of bookkeeping.
pub const PAGE: u64 = 4096;
/// Bytes of a sector, the unit that a power cut keeps or loses.
pub const SECTOR: u64 = 512;

/// The bytes of a page, shared with whoever wrote them: payloads do not change, and a disk is cloned often.
pub type Page = Payload;

/// What was written to a page and is not known to be stable.
#[derive(Clone, Debug)]
pub struct Version {
    /// Counts completions on this disk; a flush covers what is below its own.
    pub seq: u64,
    /// One bit for each sector that was written.
    pub mask: u8,
    pub data: Page,
    /// The page was given back to the file system and reads as zeros.
    pub hole: bool,
}

#[derive(Clone, Debug, Default)]
struct Pages(BTreeMap<u64, Page>);

impl Pages {
    fn apply(&mut self, number: u64, version: &Version, mask: u8) {
        let mask = mask & version.mask;
        match mask {
            0 => (),
            0xff if version.hole => {
                self.0.remove(&number);
            }
            0xff => {
                self.0.insert(number, version.data.clone());
            }
            _ => {
                let mut page = changed(self.0.get(&number));
                for_sectors(mask, |r| page[r.clone()].copy_from_slice(&version.data[r]));
                self.0.insert(number, page.freeze());
            }
        }
    }

    fn cut(&mut self, length: u64) {
        self.0.split_off(&length.div_ceil(PAGE));
        if !length.is_multiple_of(PAGE)
            && let Some(page) = self.0.get_mut(&(length / PAGE))
        {
            let mut cut = changed(Some(page));
            cut[(length % PAGE) as usize..].fill(0);
            *page = cut.freeze();
        }
    }
}

/// A copy of a page, zeros where there is none.
fn changed(page: Option<&Page>) -> BufMut {
    let mut copy = BufMut::uninit(PAGE as usize);
    match page {
        Some(page) => copy.copy_from_slice(page),
        None => copy.fill(0),
    }
    copy
}

fn for_sectors(mask: u8, mut f: impl FnMut(std::ops::Range<usize>)) {
    for sector in (0..8).filter(|s| mask & (1 << s) != 0) {
        f(sector * SECTOR as usize..(sector + 1) * SECTOR as usize);
    }
}

/// How a power cut treats what was not flushed: it is kept this many times in a thousand, sector by sector.
#[derive(Clone, Copy, Debug)]
pub struct Keep(pub u64);

impl Keep {
    fn mask(self, rng: &mut Rng) -> u8 {
        match self.0 {
            0 => 0,
            1000.. => 0xff,
            n => (0..8).fold(0, |mask, bit| mask | (u8::from(rng.per_mille(n)) << bit)),
        }
    }
}

/// A part's contents.
#[derive(Clone, Debug, Default)]
pub struct PartState {
    /// Grows when written past its end; the others have a fixed size.
    pub grows: bool,
    pub size: u64,
    stable_size: u64,
    current: Pages,
    stable: Pages,
    unstable: BTreeMap<u64, Vec<Version>>,
}

impl PartState {
    /// A part of `size` zero bytes that never changes its size.
    pub fn fixed(size: u64) -> PartState {
        PartState { size, stable_size: size, ..PartState::default() }
    }

    /// A part that does not exist yet.
    pub fn growing() -> PartState {
        PartState { grows: true, ..PartState::default() }
    }

    /// A page that reads return, none for zeros.
    pub fn page(&self, number: u64) -> Option<Page> {
        self.current.0.get(&number).cloned()
    }

    /// Copies what reads return into `out`.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        let mut at = 0;
        while at < out.len() {
            let (number, within) = ((offset + at as u64) / PAGE, ((offset + at as u64) % PAGE) as usize);
            let n = (PAGE as usize - within).min(out.len() - at);
            match self.current.0.get(&number) {
                Some(page) => out[at..at + n].copy_from_slice(&page[within..within + n]),
                None => out[at..at + n].fill(0),
            }
            at += n;
        }
    }

    /// A completed write of the sectors in `mask`: visible from now on; stable at once with `sync`.
    pub fn wrote(&mut self, number: u64, version: &Version, mask: u8, sync: bool) {
        self.current.apply(number, version, mask);
        if !sync {
            let version = Version { mask: version.mask & mask, ..version.clone() };
            self.unstable.entry(number).or_default().push(version);
            return;
        }
        self.stable.apply(number, version, mask);
        if let Some(older) = self.unstable.get_mut(&number) {
            older.iter_mut().for_each(|v| v.mask &= !(mask & version.mask));
            older.retain(|v| v.mask != 0);
            if older.is_empty() {
                self.unstable.remove(&number);
            }
        }
    }

    /// The part reaches up to `end` now.
    pub fn grew(&mut self, end: u64, sync: bool) {
        if self.grows {
            self.size = self.size.max(end);
            if sync {
                self.stable_size = self.stable_size.max(end);
            }
        }
    }

    /// What completed before `seq` becomes stable. After a failed flush each page of it is stable or forgotten by the cache,
    /// which goes on showing it: a later flush then says nothing about it.
    pub fn flushed(&mut self, seq: u64, size: u64, failed: Option<&mut Rng>) {
        let mut failed = failed;
        let stable = &mut self.stable;
        self.unstable.retain(|number, versions| {
            versions.retain(|v| {
                let covered = v.seq < seq;
                if covered && failed.as_deref_mut().is_none_or(Rng::coin) {
                    stable.apply(*number, v, 0xff);
                }
                !covered
            });
            !versions.is_empty()
        });
        if failed.is_none() {
            self.stable_size = self.stable_size.max(size.min(self.size));
        }
    }

    /// Cuts the part, durably.
    pub fn truncated(&mut self, length: u64) {
        if !self.grows {
            return;
        }
        self.size = self.size.min(length);
        self.stable_size = self.stable_size.min(length);
        self.current.cut(length);
        self.stable.cut(length);
        self.unstable.split_off(&length.div_ceil(PAGE));
        // The page at the cut keeps its head; making that stable is a liberty that a disk may take.
        let last = length / PAGE;
        if self.unstable.remove(&last).is_some()
            && let Some(page) = self.current.0.get(&last)
        {
            self.stable.0.insert(last, page.clone());
        }
    }

    /// The first run of data at or after `offset`: (offset, length).
    pub fn next_data(&self, offset: u64) -> Option<(u64, u64)> {
        let (&first, _) = self.current.0.range(offset / PAGE..).next()?;
        let run = self.current.0.range(first..).zip(first..).take_while(|((n, _), at)| *n == at).count() as u64;
        let start = (first * PAGE).max(offset);
        let end = ((first + run) * PAGE).min(self.size);
        (start < end).then_some((start, end - start))
    }

    /// The power goes: of each sector that is not stable any version may have reached the medium.
    pub fn power_cut(&mut self, keep: Keep, rng: &mut Rng) {
        let mut reached = self.stable_size;
        for (number, versions) in std::mem::take(&mut self.unstable) {
            for version in versions {
                let mask = keep.mask(rng) & version.mask;
                self.stable.apply(number, &version, mask);
                if mask != 0 {
                    reached = reached.max(((number + 1) * PAGE).min(self.size));
                }
            }
        }
        if self.grows {
            self.size = if rng.coin() { reached } else { self.size };
            self.stable_size = self.size;
            self.stable.cut(self.size);
        }
        self.current = self.stable.clone();
    }

    /// Turns bits of a byte over, in what is read and on the medium.
    pub fn turn_over(&mut self, offset: u64, bits: u8) {
        let number = offset / PAGE;
        let mut page = changed(self.current.0.get(&number));
        page[(offset % PAGE) as usize] ^= bits;
        let page = page.freeze();
        self.unstable.remove(&number);
        self.current.0.insert(number, page.clone());
        self.stable.0.insert(number, page);
    }

    /// Tears one in-flight write's page in the middle of a sector: the medium holds a part of the new bytes.
    pub fn tear(&mut self, number: u64, version: &Version, bytes: usize) {
        let mut torn = changed(self.current.0.get(&number));
        torn[..bytes].copy_from_slice(&version.data[..bytes]);
        let torn = Version { mask: 0xff, data: torn.freeze(), hole: false, seq: version.seq };
        self.wrote(number, &torn, version.mask, false);
    }
}
