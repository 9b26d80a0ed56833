//! Which blocks of which volume changed, for one peer (B1, B2): a bitmap that costs memory only where it is mixed.
//!
//! A volume is divided into chunks of 128 MiB. A chunk without a dirty block is not stored, one that is dirty all
//! over is a mere mark, and any other is 4 KiB of bits: so a clean or a fully dirty volume costs next to nothing, and
//! changes scattered all over 1 TiB cost 32 MiB.

use super::types::*;
use std::collections::BTreeMap;

/// Bytes that one bit stands for, also where the volume's blocks are smaller.
pub const DIRTY_BLOCK: u64 = 4096;

const WORDS: usize = 512;
/// Blocks in a chunk.
const CHUNK: u64 = WORDS as u64 * 64;

#[derive(Clone, PartialEq, Eq)]
enum Chunk {
    /// Every block that the volume has in it is dirty.
    Full,
    /// `count` bits are set: neither none nor all. None past the end of the volume is.
    Mixed { bits: Box<[u64; WORDS]>, count: u64 },
}

impl Chunk {
    /// The first dirty block at or after `from` of a chunk that has `blocks` of them.
    fn next_dirty(&self, from: u64, blocks: u64) -> Option<u64> {
        let found = match self {
            Chunk::Full => from,
            Chunk::Mixed { bits, .. } => find(from, |i| bits[i]),
        };
        (found < blocks).then_some(found)
    }

    /// The first clean block at or after `from`, or `blocks`.
    fn next_clean(&self, from: u64, blocks: u64) -> u64 {
        match self {
            Chunk::Full => blocks,
            Chunk::Mixed { bits, .. } => find(from, |i| !bits[i]).min(blocks),
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

/// A set of blocks of the volumes of a resource.
#[derive(Clone, PartialEq, Eq)]
pub struct DirtySet {
    /// Bytes of each volume.
    sizes: Vec<u64>,
    chunks: BTreeMap<(VolumeId, u64), Chunk>,
    /// Maintained for [`DirtySet::bytes`].
    bytes: u64,
}

impl std::fmt::Debug for DirtySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DirtySet({} bytes in {} chunks)", self.bytes, self.chunks.len())
    }
}

impl DirtySet {
    /// An empty set for volumes of these sizes in bytes, each below 2^63 as on any file.
    pub fn new(sizes: &[u64]) -> DirtySet {
        DirtySet { sizes: sizes.to_vec(), chunks: BTreeMap::new(), bytes: 0 }
    }

    /// Adds every block that the extent touches. What is outside of the volumes is ignored.
    pub fn add(&mut self, extent: Extent) {
        let size = self.size(extent.volume);
        let end = extent.offset.saturating_add(extent.length).min(size);
        if extent.offset < end {
            self.change(extent.volume, extent.offset / DIRTY_BLOCK, end.div_ceil(DIRTY_BLOCK), true);
        }
    }

    /// Takes out every block that the extent covers wholly: one that it only touches stays dirty.
    pub fn remove(&mut self, extent: Extent) {
        let size = self.size(extent.volume);
        let end = extent.offset.saturating_add(extent.length).min(size);
        // The volume's last block may be short: then it is covered when its bytes are.
        let last = if end == size { end.div_ceil(DIRTY_BLOCK) } else { end / DIRTY_BLOCK };
        let first = extent.offset.div_ceil(DIRTY_BLOCK);
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
        for (&(volume, index), chunk) in &other.chunks {
            let Chunk::Mixed { bits: theirs, .. } = chunk else {
                self.change_chunk(volume, index, 0, self.blocks_in(volume, index), true);
                continue;
            };
            self.edit(volume, index, true, |bits| {
                let mut added = 0;
                for (word, more) in bits.iter_mut().zip(theirs.iter()) {
                    added += (more & !*word).count_ones() as u64;
                    *word |= more;
                }
                added
            });
        }
    }

    /// Whether the block that this byte is in is dirty.
    pub fn contains(&self, volume: VolumeId, offset: u64) -> bool {
        let block = offset / DIRTY_BLOCK;
        offset < self.size(volume)
            && match self.chunks.get(&(volume, block / CHUNK)) {
                None => false,
                Some(Chunk::Full) => true,
                Some(Chunk::Mixed { bits, .. }) => bits[(block % CHUNK / 64) as usize] >> (block % 64) & 1 == 1,
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
        self.chunks.clear();
        self.bytes = 0;
    }

    /// The first dirty run at or after a place, in order of volumes and offsets: from the place itself where that is dirty,
    /// and no longer than `max_bytes`, rounded down to whole blocks, but at least to the end of its first block.
    pub fn next(&self, from: (VolumeId, u64), max_bytes: u64) -> Option<Extent> {
        let (mut volume, mut offset) = from;
        if offset >= self.size(volume) {
            (volume, offset) = (VolumeId(volume.0.checked_add(1)?), 0);
        }
        let place = (volume, offset / DIRTY_BLOCK / CHUNK);
        let mut run: Option<(VolumeId, u64, u64)> = None;
        for (&key, chunk) in self.chunks.range(place..) {
            let (base, blocks) = (key.1 * CHUNK, self.blocks_in(key.0, key.1));
            let (start, end) = match run {
                None => {
                    let skip = if key == place { offset / DIRTY_BLOCK % CHUNK } else { 0 };
                    let Some(first) = chunk.next_dirty(skip, blocks) else { continue };
                    (base + first, base + chunk.next_clean(first, blocks))
                }
                Some((volume, start, end)) if (volume, end) == (key.0, base) => {
                    (start, base + chunk.next_clean(0, blocks))
                }
                Some(_) => break,
            };
            run = Some((key.0, start, end));
            if (end - start) * DIRTY_BLOCK >= max_bytes {
                break;
            }
        }
        let (dirty, start, end) = run?;
        let begin = if dirty == volume { offset.max(start * DIRTY_BLOCK) } else { start * DIRTY_BLOCK };
        let limit = (begin.saturating_add(max_bytes) / DIRTY_BLOCK).max(start + 1);
        // The last block may be short. Saturating, for a volume that ends in the last block there can be.
        let stop = end.min(limit).saturating_mul(DIRTY_BLOCK).min(self.size(dirty));
        Some(Extent { volume: dirty, offset: begin, length: stop - begin })
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
        self.size(volume).div_ceil(DIRTY_BLOCK).saturating_sub(index * CHUNK).min(CHUNK)
    }

    /// Makes the blocks `first..end` of a volume dirty, or clean.
    fn change(&mut self, volume: VolumeId, first: u64, end: u64, dirty: bool) {
        for index in first / CHUNK..end.div_ceil(CHUNK) {
            let base = index * CHUNK;
            self.change_chunk(volume, index, first.saturating_sub(base), (end - base).min(CHUNK), dirty);
        }
    }

    /// The same for the blocks `from..to` of one chunk.
    fn change_chunk(&mut self, volume: VolumeId, index: u64, from: u64, to: u64, dirty: bool) {
        if to - from == self.blocks_in(volume, index) {
            self.bytes -= self.bytes_in(volume, index);
            match dirty {
                true => self.chunks.insert((volume, index), Chunk::Full),
                false => self.chunks.remove(&(volume, index)),
            };
            self.bytes += self.bytes_in(volume, index);
            return;
        }
        self.edit(volume, index, dirty, |bits| {
            let mut changed = 0;
            for (word, mask) in masks(from, to) {
                let hits = if dirty { !bits[word] & mask } else { bits[word] & mask };
                bits[word] ^= hits;
                changed += hits.count_ones() as u64;
            }
            changed
        });
    }

    /// Lets `change` work on the bits of a chunk, whichever form it has, and puts it into the form that it then needs.
    /// `change` only makes blocks dirty, or only clean, and says how many.
    fn edit(&mut self, volume: VolumeId, index: u64, dirty: bool, change: impl FnOnce(&mut [u64; WORDS]) -> u64) {
        let key = (volume, index);
        let blocks = self.blocks_in(volume, index);
        let bytes_before = self.bytes_in(volume, index);
        let chunk = match self.chunks.get_mut(&key) {
            Some(chunk) => chunk,
            None if dirty => self.chunks.entry(key).or_insert(Chunk::Mixed { bits: Box::new([0; WORDS]), count: 0 }),
            None => return,
        };
        let (mut bits, before) = match std::mem::replace(chunk, Chunk::Full) {
            Chunk::Mixed { bits, count } => (bits, count),
            Chunk::Full if dirty => return,
            Chunk::Full => {
                let mut bits = Box::new([0; WORDS]);
                masks(0, blocks).for_each(|(word, mask)| bits[word] = mask);
                (bits, blocks)
            }
        };
        let changed = change(&mut bits);
        let count = if dirty { before + changed } else { before - changed };
        if count == 0 {
            self.chunks.remove(&key);
        } else if count < blocks {
            *chunk = Chunk::Mixed { bits, count };
        }
        self.bytes = self.bytes - bytes_before + self.bytes_in(volume, index);
    }

    /// Bytes in the dirty blocks of a chunk.
    fn bytes_in(&self, volume: VolumeId, index: u64) -> u64 {
        let blocks = self.blocks_in(volume, index);
        let dirty = match self.chunks.get(&(volume, index)) {
            None => return 0,
            Some(Chunk::Full) => blocks,
            Some(Chunk::Mixed { count, .. }) => *count,
        };
        // What the volume's last block lacks to a whole one, if it is in this chunk and dirty.
        let end = (index * CHUNK + blocks) * DIRTY_BLOCK;
        let lacks = end.saturating_sub(self.size(volume));
        let short = lacks > 0 && self.contains(volume, end - DIRTY_BLOCK);
        dirty * DIRTY_BLOCK - if short { lacks } else { 0 }
    }
}

#[cfg(test)]
#[path = "dirty_tests.rs"]
mod tests;
