//! Which blocks of which volume changed, for one peer (B1, B2): a bitmap that costs memory only where it is mixed, and
//! never more than it may.
//!
//! A volume is divided into chunks of 32768 blocks. A chunk without a dirty block is not stored, one that is dirty all
//! over is a mere mark, one with few is a list of them, and any other is 4 KiB of bits. A set with a limit makes its blocks twice
//! as large where it does not do otherwise: then more counts as dirty than is, and never less.

use super::types::*;
use std::collections::BTreeMap;

/// Bytes of a block where no limit has made it larger, also where the volume's blocks are smaller.
pub const DIRTY_BLOCK: u64 = 4096;

const WORDS: usize = 512;
/// Blocks in a chunk.
const CHUNK: u64 = WORDS as u64 * 64;
/// Most blocks of a chunk that are kept as a list.
const FEW: usize = 512;
/// What a chunk costs beside its bits or list, about: its place in the tree.
const CHUNK_COST: u64 = 80;
/// Largest block: no volume is larger.
const MAX_GRAIN: u64 = 1 << 60;

#[derive(Clone, PartialEq, Eq)]
enum Chunk {
    /// Every block that the volume has in it is dirty.
    Full,
    /// The dirty blocks, in order: at least one, and not all.
    Few(Vec<u16>),
    /// `count` bits are set: more than a few, and not all. None past the end of the volume is.
    Mixed { bits: Box<[u64; WORDS]>, count: u64 },
}

impl Chunk {
    /// The first dirty block at or after `from` of a chunk that has `blocks` of them.
    fn next_dirty(&self, from: u64, blocks: u64) -> Option<u64> {
        let found = match self {
            Chunk::Full => from,
            Chunk::Few(list) => u64::from(*list.get(list.partition_point(|b| u64::from(*b) < from))?),
            Chunk::Mixed { bits, .. } => find(from, |i| bits[i]),
        };
        (found < blocks).then_some(found)
    }

    /// The first clean block at or after `from`, or `blocks`.
    fn next_clean(&self, from: u64, blocks: u64) -> u64 {
        match self {
            Chunk::Full => blocks,
            Chunk::Few(list) => {
                let at = list.partition_point(|b| u64::from(*b) < from);
                let run = list[at..].iter().zip(from..).take_while(|(b, wanted)| u64::from(**b) == *wanted).count();
                from + run as u64
            }
            Chunk::Mixed { bits, .. } => find(from, |i| !bits[i]).min(blocks),
        }
    }

    /// Dirty blocks of a chunk that has `blocks`.
    fn count(&self, blocks: u64) -> u64 {
        match self {
            Chunk::Full => blocks,
            Chunk::Few(list) => list.len() as u64,
            Chunk::Mixed { count, .. } => *count,
        }
    }

    /// Runs of dirty blocks; one that goes on from the chunk before counts too.
    fn runs(&self) -> u64 {
        match self {
            Chunk::Full => 1,
            Chunk::Few(list) => 1 + list.windows(2).filter(|w| w[0] + 1 != w[1]).count() as u64,
            Chunk::Mixed { bits, .. } => {
                let mut before = 0;
                let starts = |word: &u64| {
                    let found = (word & !(word << 1 | before)).count_ones();
                    before = word >> 63;
                    u64::from(found)
                };
                bits.iter().map(starts).sum()
            }
        }
    }

    /// Bytes of memory.
    fn cost(&self) -> u64 {
        CHUNK_COST
            + match self {
                Chunk::Full => 0,
                Chunk::Few(list) => list.len() as u64 * 2,
                Chunk::Mixed { .. } => WORDS as u64 * 8,
            }
    }

    /// Its bits, and how many are set.
    fn into_bits(self, blocks: u64) -> (Box<[u64; WORDS]>, u64) {
        let count = self.count(blocks);
        let mut bits = match self {
            Chunk::Mixed { bits, .. } => return (bits, count),
            _ => Box::new([0; WORDS]),
        };
        match self {
            Chunk::Few(list) => list.iter().for_each(|b| bits[usize::from(*b) / 64] |= 1 << (b % 64)),
            _ => masks(0, blocks).for_each(|(word, mask)| bits[word] = mask),
        }
        (bits, count)
    }

    /// The form for `count` of `blocks` bits; none for no bit.
    fn of_bits(bits: Box<[u64; WORDS]>, count: u64, blocks: u64) -> Option<Chunk> {
        match count {
            0 => None,
            _ if count == blocks => Some(Chunk::Full),
            _ if count <= FEW as u64 => {
                let mut list = Vec::with_capacity(count as usize);
                for (index, word) in bits.iter().enumerate() {
                    let mut rest = *word;
                    while rest != 0 {
                        // A chunk has fewer than 65536 blocks.
                        list.push((index * 64) as u16 + rest.trailing_zeros() as u16);
                        rest &= rest - 1;
                    }
                }
                Some(Chunk::Few(list))
            }
            _ => Some(Chunk::Mixed { bits, count }),
        }
    }
}

/// The first bit at or after `from` that is set in `word`, a function of the word's index; [`CHUNK`] if none is.
fn find(from: u64, word: impl Fn(usize) -> u64) -> u64 {
    let mut mask = u64::MAX << (from % 64);
    for index in (from / 64) as usize..WORDS {
        let hits = word(index) & mask;
        if hits != 0 {
            return index as u64 * 64 + hits.trailing_zeros() as u64;
        }
        mask = u64::MAX;
    }
    CHUNK
}

/// The words that the bits `from..to` touch, each with the mask of those bits.
fn masks(from: u64, to: u64) -> impl Iterator<Item = (usize, u64)> {
    (from / 64..to.div_ceil(64)).map(move |word| {
        let low = from.saturating_sub(word * 64);
        let high = (to - word * 64).min(64);
        (word as usize, (u64::MAX << low) & (u64::MAX >> (64 - high)))
    })
}

/// The even bits of a word, each joined with the one above it, side by side.
fn halve(word: u64) -> u64 {
    let mut x = (word | word >> 1) & 0x5555_5555_5555_5555;
    for (shift, mask) in [
        (1, 0x3333_3333_3333_3333),
        (2, 0x0f0f_0f0f_0f0f_0f0f),
        (4, 0x00ff_00ff_00ff_00ff),
        (8, 0x0000_ffff_0000_ffff),
        (16, 0x0000_0000_ffff_ffff),
    ] {
        x = (x | x >> shift) & mask;
    }
    x
}

/// A set of blocks of the volumes of a resource.
#[derive(Clone, PartialEq, Eq)]
pub struct DirtySet {
    /// Bytes of each volume.
    sizes: Vec<u64>,
    /// Bytes of a block: a power of two, at least [`DIRTY_BLOCK`].
    grain: u64,
    /// Bytes of memory that it may cost.
    limit: u64,
    chunks: BTreeMap<(VolumeId, u64), Chunk>,
    /// Maintained for [`DirtySet::bytes`] and [`DirtySet::memory`].
    bytes: u64,
    memory: u64,
}

impl std::fmt::Debug for DirtySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DirtySet({} bytes in {} chunks of {} byte blocks)", self.bytes, self.chunks.len(), self.grain)
    }
}

impl DirtySet {
    /// An empty set for volumes of these sizes in bytes, each below 2^60. It is exact, and costs what it costs.
    pub fn new(sizes: &[u64]) -> DirtySet {
        DirtySet::bounded(sizes, u64::MAX)
    }

    /// An empty set that costs no more than `limit` bytes of memory (and a little for each volume): where that does not do,
    /// it errs to dirty.
    pub fn bounded(sizes: &[u64], limit: u64) -> DirtySet {
        DirtySet { sizes: sizes.to_vec(), grain: DIRTY_BLOCK, limit, chunks: BTreeMap::new(), bytes: 0, memory: 0 }
    }

    /// An empty set of larger blocks, exact for what consists of them.
    pub fn of_grain(sizes: &[u64], grain: u64) -> DirtySet {
        assert!(grain.is_power_of_two() && grain >= DIRTY_BLOCK);
        DirtySet { grain, ..DirtySet::new(sizes) }
    }

    /// The smallest grain at which any set of blocks of these volumes costs no more than `limit`.
    pub fn grain_within(sizes: &[u64], limit: u64) -> u64 {
        let chunk = |blocks: u64| CHUNK_COST + if blocks <= FEW as u64 { 2 * blocks } else { WORDS as u64 * 8 };
        let volume = |blocks: u64| (blocks / CHUNK).saturating_mul(chunk(CHUNK)) + chunk(blocks % CHUNK);
        let cost = |grain: u64| sizes.iter().map(|size| volume(size.div_ceil(grain))).fold(0, u64::saturating_add);
        let mut grain = DIRTY_BLOCK;
        while cost(grain) > limit && grain < MAX_GRAIN {
            grain *= 2;
        }
        grain
    }

    /// Bytes that one bit stands for.
    pub fn grain(&self) -> u64 {
        self.grain
    }

    /// Bytes of memory that it costs, about.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Adds every block that the extent touches. What is outside of the volumes is ignored.
    pub fn add(&mut self, extent: Extent) {
        let size = self.size(extent.volume);
        let end = extent.offset.saturating_add(extent.length).min(size);
        if extent.offset >= end {
            return;
        }
        while !self.change(extent.volume, extent.offset / self.grain, end.div_ceil(self.grain), true) {
            self.coarsen();
        }
    }

    /// Takes out every block that the extent covers wholly: one that it only touches stays dirty.
    pub fn remove(&mut self, extent: Extent) {
        let size = self.size(extent.volume);
        let end = extent.offset.saturating_add(extent.length).min(size);
        // The volume's last block may be short: then it is covered when its bytes are.
        let last = if end == size { end.div_ceil(self.grain) } else { end / self.grain };
        let first = extent.offset.div_ceil(self.grain);
        if first < last && extent.offset < end {
            self.change(extent.volume, first, last, false);
        }
    }

    /// Adds all of `other`.
    ///
    /// # Panics
    /// If `other` was made for volumes of other sizes.
    pub fn add_all(&mut self, other: &DirtySet) {
        assert_eq!(self.sizes, other.sizes, "dirty sets of different resources");
        other.extents().for_each(|e| self.add(e));
    }

    /// Makes every block twice as large.
    fn coarsen(&mut self) {
        let chunks = std::mem::take(&mut self.chunks);
        let limit = std::mem::replace(&mut self.limit, u64::MAX);
        let blocks_of: Vec<u64> = chunks.keys().map(|&(volume, index)| self.blocks_in(volume, index)).collect();
        self.grain *= 2;
        (self.bytes, self.memory) = (0, 0);
        for (((volume, index), chunk), blocks) in chunks.into_iter().zip(blocks_of) {
            let base = index * CHUNK;
            match chunk {
                Chunk::Full => {
                    self.change(volume, base / 2, (base + blocks).div_ceil(2), true);
                }
                Chunk::Few(list) => {
                    for at in list.into_iter().map(|block| (base + u64::from(block)) / 2) {
                        self.change(volume, at, at + 1, true);
                    }
                }
                Chunk::Mixed { bits, .. } => {
                    let half = (index % 2) as usize * WORDS / 2;
                    self.edit(volume, index / 2, true, |into| {
                        let mut added = 0;
                        for (word, pair) in into[half..half + WORDS / 2].iter_mut().zip(bits.chunks_exact(2)) {
                            let more = halve(pair[0]) | halve(pair[1]) << 32;
                            added += u64::from((more & !*word).count_ones());
                            *word |= more;
                        }
                        added
                    });
                }
            }
        }
        self.limit = limit;
    }

    /// Runs of dirty blocks, about: one that goes on from a chunk to the next counts twice.
    pub fn runs(&self) -> u64 {
        self.chunks.values().map(Chunk::runs).sum()
    }

    /// Whether the block that this byte is in is dirty.
    pub fn contains(&self, volume: VolumeId, offset: u64) -> bool {
        let block = offset / self.grain;
        let inside = block % CHUNK;
        offset < self.size(volume)
            && match self.chunks.get(&(volume, block / CHUNK)) {
                None => false,
                Some(Chunk::Full) => true,
                Some(Chunk::Few(list)) => list.binary_search(&(inside as u16)).is_ok(),
                Some(Chunk::Mixed { bits, .. }) => bits[(inside / 64) as usize] >> (inside % 64) & 1 == 1,
            }
    }

    /// Whether no block is dirty.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes in dirty blocks; a short last block of a volume counts as what it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes every block out.
    pub fn clear(&mut self) {
        *self = DirtySet::bounded(&self.sizes, self.limit);
    }

    /// The first dirty run at or after a place, in order of volumes and offsets: from the place itself where that is dirty,
    /// and no longer than `max_bytes`, rounded down to whole blocks, but at least to the end of its first block.
    pub fn next(&self, from: (VolumeId, u64), max_bytes: u64) -> Option<Extent> {
        let (mut volume, mut offset) = from;
        if offset >= self.size(volume) {
            (volume, offset) = (VolumeId(volume.0.checked_add(1)?), 0);
        }
        let place = (volume, offset / self.grain / CHUNK);
        let mut run: Option<(VolumeId, u64, u64)> = None;
        for (&key, chunk) in self.chunks.range(place..) {
            let (base, blocks) = (key.1 * CHUNK, self.blocks_in(key.0, key.1));
            let (start, end) = match run {
                None => {
                    let skip = if key == place { offset / self.grain % CHUNK } else { 0 };
                    let Some(first) = chunk.next_dirty(skip, blocks) else { continue };
                    (base + first, base + chunk.next_clean(first, blocks))
                }
                Some((volume, start, end)) if (volume, end) == (key.0, base) => {
                    (start, base + chunk.next_clean(0, blocks))
                }
                Some(_) => break,
            };
            run = Some((key.0, start, end));
            if (end - start) * self.grain >= max_bytes {
                break;
            }
        }
        let (dirty, start, end) = run?;
        let begin = if dirty == volume { offset.max(start * self.grain) } else { start * self.grain };
        let limit = (begin.saturating_add(max_bytes) / self.grain).max(start + 1);
        // The last block may be short. Saturating, for a volume that ends in the last block there can be.
        let stop = end.min(limit).saturating_mul(self.grain).min(self.size(dirty));
        Some(Extent { volume: dirty, offset: begin, length: stop - begin })
    }

    /// Takes out what is dirty, piece by piece, round and round from `cursor` on; `run` is what was taken out and not given yet, since
    /// blocks may be larger than a piece.
    pub fn take(&mut self, cursor: &mut (VolumeId, u64), run: &mut Option<Extent>, max_bytes: u64) -> Option<Extent> {
        if run.is_none() {
            let found = self.next(*cursor, max_bytes).or_else(|| self.next((VolumeId(0), 0), max_bytes))?;
            self.remove(found);
            *cursor = (found.volume, found.offset + found.length);
            *run = Some(found);
        }
        let rest = run.as_mut()?;
        let now = Extent { length: rest.length.min(max_bytes), ..*rest };
        (rest.offset, rest.length) = (rest.offset + now.length, rest.length - now.length);
        *run = run.filter(|r| r.length > 0);
        Some(now)
    }

    /// All maximal dirty runs, in order.
    pub fn extents(&self) -> impl Iterator<Item = Extent> {
        let mut place = Some((VolumeId(0), 0));
        std::iter::from_fn(move || {
            let run = self.next(place?, u64::MAX);
            place = run.map(|run| (run.volume, run.offset + run.length));
            run
        })
    }

    /// Bytes of a volume; 0 for one that does not exist.
    fn size(&self, volume: VolumeId) -> u64 {
        self.sizes.get(volume.0 as usize).copied().unwrap_or(0)
    }

    /// Blocks that a chunk has: [`CHUNK`], but for a volume's last one.
    fn blocks_in(&self, volume: VolumeId, index: u64) -> u64 {
        self.size(volume).div_ceil(self.grain).saturating_sub(index * CHUNK).min(CHUNK)
    }

    /// Makes the blocks `first..end` of a volume dirty, or clean; false if it does not do within the limit.
    fn change(&mut self, volume: VolumeId, first: u64, end: u64, dirty: bool) -> bool {
        for index in first / CHUNK..end.div_ceil(CHUNK) {
            let base = index * CHUNK;
            self.change_chunk(volume, index, first.saturating_sub(base), (end - base).min(CHUNK), dirty);
            if dirty && self.memory > self.limit && self.can_coarsen() {
                return false;
            }
        }
        true
    }

    /// Whether larger blocks would make a difference.
    fn can_coarsen(&self) -> bool {
        self.grain < MAX_GRAIN && self.sizes.iter().any(|size| *size > self.grain)
    }

    /// The same for the blocks `from..to` of one chunk.
    fn change_chunk(&mut self, volume: VolumeId, index: u64, from: u64, to: u64, dirty: bool) {
        let key = (volume, index);
        let blocks = self.blocks_in(volume, index);
        if to - from == blocks {
            return match dirty {
                true => self.put(key, Some(Chunk::Full)),
                false => self.put(key, None),
            };
        }
        if dirty && to - from == 1 && self.add_to_few(key, from, blocks) {
            return;
        }
        self.edit(volume, index, dirty, |bits| {
            let mut changed = 0;
            for (word, mask) in masks(from, to) {
                let hits = if dirty { !bits[word] & mask } else { bits[word] & mask };
                bits[word] ^= hits;
                changed += u64::from(hits.count_ones());
            }
            changed
        });
    }

    /// Adds one block to a chunk that has few and stays so: the case of scattered writes.
    fn add_to_few(&mut self, key: (VolumeId, u64), block: u64, blocks: u64) -> bool {
        let before = self.bytes_in(key.0, key.1);
        let list = match self.chunks.get_mut(&key) {
            Some(Chunk::Few(list)) if list.len() < FEW && (list.len() as u64) + 1 < blocks => list,
            _ => return false,
        };
        if let Err(at) = list.binary_search(&(block as u16)) {
            list.insert(at, block as u16);
            self.memory += 2;
            self.bytes = self.bytes - before + self.bytes_in(key.0, key.1);
        }
        true
    }

    /// Puts a chunk in place of what stood there.
    fn put(&mut self, key: (VolumeId, u64), chunk: Option<Chunk>) {
        self.bytes -= self.bytes_in(key.0, key.1);
        self.memory += chunk.as_ref().map_or(0, Chunk::cost);
        let old = match chunk {
            Some(chunk) => self.chunks.insert(key, chunk),
            None => self.chunks.remove(&key),
        };
        self.memory -= old.as_ref().map_or(0, Chunk::cost);
        self.bytes += self.bytes_in(key.0, key.1);
    }

    /// Lets `change` work on the bits of a chunk, whichever form it has, and puts it into the form that it then needs.
    /// `change` only makes blocks dirty, or only clean, and says how many.
    fn edit(&mut self, volume: VolumeId, index: u64, dirty: bool, change: impl FnOnce(&mut [u64; WORDS]) -> u64) {
        let key = (volume, index);
        let blocks = self.blocks_in(volume, index);
        let bytes = self.bytes_in(volume, index);
        let old = match self.chunks.get_mut(&key) {
            Some(Chunk::Full) if dirty => return,
            Some(chunk) => std::mem::replace(chunk, Chunk::Full),
            None if dirty => Chunk::Few(Vec::new()),
            None => return,
        };
        self.memory -= if old == Chunk::Few(Vec::new()) { 0 } else { old.cost() };
        let (mut bits, before) = old.into_bits(blocks);
        let changed = change(&mut bits);
        let count = if dirty { before + changed } else { before - changed };
        match Chunk::of_bits(bits, count, blocks) {
            Some(chunk) => {
                self.memory += chunk.cost();
                self.chunks.insert(key, chunk);
            }
            None => {
                self.chunks.remove(&key);
            }
        }
        self.bytes = self.bytes - bytes + self.bytes_in(volume, index);
    }

    /// Bytes in the dirty blocks of a chunk.
    fn bytes_in(&self, volume: VolumeId, index: u64) -> u64 {
        let Some(chunk) = self.chunks.get(&(volume, index)) else { return 0 };
        let blocks = self.blocks_in(volume, index);
        let dirty = chunk.count(blocks);
        // What the volume's last block lacks to a whole one, if it is in this chunk and dirty.
        let end = (index * CHUNK + blocks) * self.grain;
        let lacks = end.saturating_sub(self.size(volume));
        let short = lacks > 0 && self.contains(volume, end - self.grain);
        dirty * self.grain - if short { lacks } else { 0 }
    }
}

#[cfg(test)]
#[path = "dirty_tests.rs"]
mod tests;
