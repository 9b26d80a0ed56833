//! What a volume may hold after a crash, known from what its client was told.
//!
//! An [`Oracle`] belongs to one connection, which alone writes to a range of blocks. Each write has a number, and each of its
//! blocks is filled with bytes that nobody else writes: so a block read back names its write, and a mix of two writes
//! names none. The requests of one connection are put in order as they come (S3), and whatever a replica holds is the state
//! after some *prefix* of that order (contract 3): [`Oracle::check`] looks for a prefix that explains every block at once, and
//! demands that it reaches as far as was promised. That is more than every block on its own being new enough.

use super::rng::mix;
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};

/// Bytes in a block; every write covers whole ones.
pub const BLOCK: usize = 4096;

/// How far a check demands the prefix to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// To the last write that had completed, flushed or not: a daemon died, its machine lives (sync).
    Completed,
    /// To the last write whose flush had completed.
    Flushed,
    /// Any prefix (async).
    AnyPrefix,
}

/// What is wrong with an image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("block {block} holds bytes that were never written there: {what}")]
    Unknown { block: u64, what: String },
    #[error(
        "block {block} holds write {found} although write {wanted}, which had been promised, came later (promised up to {floor})"
    )]
    Lost { block: u64, found: u64, wanted: u64, floor: u64 },
    #[error("block {block} holds write {found}, which was given up before")]
    Risen { block: u64, found: u64 },
    #[error(
        "no prefix of the writes explains the image: block {old_block} is as it was before write {old}, block {new_block} holds write {new}"
    )]
    NoPrefix { old_block: u64, old: u64, new_block: u64, new: u64 },
    #[error("the image has {found} bytes, the range {expected}")]
    Size { found: usize, expected: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    /// The write's number; 0 is what was there before all of them: zeros.
    seq: u64,
    zero: bool,
}

const BLANK: Version = Version { seq: 0, zero: true };

/// The memory of one writer.
#[derive(Clone, Debug)]
pub struct Oracle {
    lane: u32,
    blocks: Range<u64>,
    /// For each block written: its versions in order, from the one in force at the floor on.
    versions: BTreeMap<u64, Vec<Version>>,
    issued: u64,
    completed: u64,
    flushed: u64,
    /// What an image was seen to hold, and can never lose again.
    settled: u64,
}

impl Oracle {
    /// For the writer number `lane` of a volume, which owns `blocks`. They must read as zeros.
    pub fn new(lane: u32, blocks: Range<u64>) -> Oracle {
        Oracle { lane, blocks, versions: BTreeMap::new(), issued: 0, completed: 0, flushed: 0, settled: 0 }
    }

    /// The blocks that this writer owns.
    pub fn blocks(&self) -> Range<u64> {
        self.blocks.clone()
    }

    /// Number of the last write that was issued; how many there were.
    pub fn issued(&self) -> u64 {
        self.issued
    }

    /// Number of the last write that completed.
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// Number of the last write that is known to be flushed.
    pub fn flushed(&self) -> u64 {
        self.flushed
    }

    /// A write to `blocks` is about to be sent: its number, and its bytes.
    pub fn write(&mut self, blocks: Range<u64>) -> (u64, Vec<u8>) {
        let seq = self.issue(blocks.clone(), false);
        let data = blocks.flat_map(|block| self.content(seq, block)).collect();
        (seq, data)
    }

    /// A discard or write-zeroes is about to be sent: its number.
    pub fn zero(&mut self, blocks: Range<u64>) -> u64 {
        self.issue(blocks, true)
    }

    fn issue(&mut self, blocks: Range<u64>, zero: bool) -> u64 {
        assert!(
            blocks.start >= self.blocks.start && blocks.end <= self.blocks.end,
            "a write outside its writer's range"
        );
        self.issued += 1;
        let (seq, settled) = (self.issued, self.settled);
        for block in blocks {
            let versions = self.versions.entry(block).or_insert_with(|| vec![BLANK]);
            let old = versions.partition_point(|v| v.seq <= settled).saturating_sub(1);
            versions.drain(..old);
            versions.push(Version { seq, zero });
        }
        seq
    }

    /// The server has answered a write.
    pub fn write_done(&mut self, seq: u64, fua: bool) {
        self.completed = self.completed.max(seq);
        if fua {
            // Durable means: the whole order up to it is in the log.
            self.flushed = self.flushed.max(seq);
        }
    }

    /// The server has answered a flush; `covers` is what [`Oracle::completed`] said when the flush was sent.
    pub fn flush_done(&mut self, covers: u64) {
        self.flushed = self.flushed.max(covers);
    }

    /// What a block holds after a write.
    fn content(&self, seq: u64, block: u64) -> [u8; BLOCK] {
        let mut bytes = [0; BLOCK];
        let mut state = mix(mix(seq) ^ block.rotate_left(32) ^ u64::from(self.lane) << 56);
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&state.to_le_bytes());
            // A plain xorshift step: distinct, and fast enough for gigabytes.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        bytes[..8].copy_from_slice(&seq.to_le_bytes());
        bytes[8..16].copy_from_slice(&block.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.lane.to_le_bytes());
        bytes
    }

    /// The writes that a block's bytes may come from: indexes into its versions.
    fn recognise(&self, block: u64, bytes: &[u8], versions: &[Version]) -> Result<Vec<usize>, Violation> {
        let unknown = |what: String| Violation::Unknown { block, what };
        let matching = |wanted: &dyn Fn(&Version) -> bool| -> Vec<usize> {
            versions.iter().enumerate().filter(|(_, v)| wanted(v)).map(|(i, _)| i).collect()
        };
        if bytes.iter().all(|b| *b == 0) {
            let found = matching(&|v| v.zero);
            let wanted = versions.first().map_or(0, |v| v.seq);
            return if found.is_empty() { Err(self.lost(block, 0, wanted)) } else { Ok(found) };
        }
        // Eight bytes each, by the ranges.
        let number = |r: Range<usize>| bytes[r].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let (seq, of, lane) = (number(0..8), number(8..16), number(16..20));
        if seq == 0 || bytes != self.content(seq, of) || lane != u64::from(self.lane) {
            return Err(unknown(format!("no write has these bytes (first: {:02x?})", &bytes[..24])));
        }
        if of != block {
            return Err(unknown(format!("they are those of write {seq} to block {of}")));
        }
        let found = matching(&|v| v.seq == seq && !v.zero);
        match versions.first() {
            _ if !found.is_empty() => Ok(found),
            Some(first) if seq < first.seq => Err(self.lost(block, seq, first.seq)),
            _ => Err(Violation::Risen { block, found: seq }),
        }
    }

    fn lost(&self, block: u64, found: u64, wanted: u64) -> Violation {
        Violation::Lost { block, found, wanted, floor: self.settled }
    }

    /// Looks for the prefix that `image`, the bytes of this writer's blocks, is the state of: the longest one that fits.
    pub fn check(&self, image: &[u8], promise: Promise) -> Result<u64, Violation> {
        let expected = (self.blocks.end - self.blocks.start) as usize * BLOCK;
        if image.len() != expected {
            return Err(Violation::Size { found: image.len(), expected });
        }
        let floor = match promise {
            Promise::Completed => self.completed.max(self.flushed).max(self.settled),
            Promise::Flushed => self.flushed.max(self.settled),
            Promise::AnyPrefix => self.settled,
        };
        let mut tally = Tally::new(floor, self.issued);
        for (block, bytes) in self.blocks.clone().zip(image.chunks_exact(BLOCK)) {
            tally.add(block, &self.explanations(block, bytes, floor)?);
        }
        tally.longest()
    }

    /// The prefixes, not below `floor`, after which a block holds these bytes.
    fn explanations(&self, block: u64, bytes: &[u8], floor: u64) -> Result<Vec<RangeInclusive<u64>>, Violation> {
        let versions = self.versions.get(&block).map_or(&[BLANK][..], |v| v);
        let found = self.recognise(block, bytes, versions)?;
        let last = |at: usize| versions.get(at + 1).map_or(self.issued, |next| next.seq - 1);
        let ranges = found.iter().map(|&at| versions[at].seq.max(floor)..=last(at));
        let ranges: Vec<RangeInclusive<u64>> = ranges.filter(|r| !r.is_empty()).collect();
        if ranges.is_empty() {
            let found = found.last().map_or(0, |at| versions[*at].seq);
            let wanted = versions.iter().rev().find(|v| v.seq <= floor).map_or(0, |v| v.seq);
            return Err(Violation::Lost { block, found, wanted, floor });
        }
        Ok(ranges)
    }

    /// From now on the image is known to be the state after `prefix`: later writes were given up. The number of those that
    /// had been issued.
    pub fn settle(&mut self, prefix: u64) -> u64 {
        for versions in self.versions.values_mut() {
            versions.retain(|v| v.seq <= prefix);
            let old = versions.partition_point(|v| v.seq <= prefix).saturating_sub(1);
            versions.drain(..old);
        }
        self.completed = prefix;
        self.flushed = prefix;
        self.settled = prefix;
        self.issued - prefix
    }
}

/// Counts, for each prefix, the blocks that it explains.
struct Tally {
    floor: u64,
    /// At an index: how many more blocks than for the prefix before are explained by `floor` plus that index.
    changes: Vec<i64>,
    blocks: i64,
    /// The block that needs the longest prefix, and the one that allows only the shortest, for the message.
    newest: (u64, u64),
    oldest: (u64, u64),
}

impl Tally {
    fn new(floor: u64, issued: u64) -> Tally {
        let changes = vec![0; (issued - floor) as usize + 2];
        Tally { floor, changes, blocks: 0, newest: (0, 0), oldest: (u64::MAX, 0) }
    }

    fn add(&mut self, block: u64, ranges: &[RangeInclusive<u64>]) {
        self.blocks += 1;
        for range in ranges {
            self.changes[(range.start() - self.floor) as usize] += 1;
            self.changes[(range.end() - self.floor) as usize + 1] -= 1;
        }
        let low = ranges.iter().map(|r| *r.start()).min().unwrap_or(0);
        let high = ranges.iter().map(|r| *r.end()).max().unwrap_or(u64::MAX);
        self.newest = self.newest.max((low, block));
        self.oldest = self.oldest.min((high, block));
    }

    fn longest(&self) -> Result<u64, Violation> {
        let mut explained = 0;
        let mut longest = None;
        for (prefix, change) in (self.floor..).zip(&self.changes[..self.changes.len() - 1]) {
            explained += change;
            if explained == self.blocks {
                longest = Some(prefix);
            }
        }
        let ((new, new_block), (high, old_block)) = (self.newest, self.oldest);
        longest.ok_or(Violation::NoPrefix { old_block, old: high.saturating_add(1), new_block, new })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A range of four blocks that obeys: writes are applied to `now` at once, `at` has the states after each.
    struct Model {
        oracle: Oracle,
        states: Vec<Vec<u8>>,
    }

    impl Model {
        fn new() -> Model {
            Model { oracle: Oracle::new(3, 10..14), states: vec![vec![0; 4 * BLOCK]] }
        }

        fn write(&mut self, blocks: Range<u64>) -> u64 {
            let at = (blocks.start - 10) as usize * BLOCK;
            let (seq, data) = self.oracle.write(blocks);
            let mut state = self.states.last().unwrap().clone();
            state[at..at + data.len()].copy_from_slice(&data);
            self.states.push(state);
            seq
        }

        fn zero(&mut self, blocks: Range<u64>) -> u64 {
            let bytes = (blocks.start - 10) as usize * BLOCK..(blocks.end - 10) as usize * BLOCK;
            let seq = self.oracle.zero(blocks);
            let mut state = self.states.last().unwrap().clone();
            state[bytes].fill(0);
            self.states.push(state);
            seq
        }
    }

    #[test]
    fn what_was_promised_must_be_there() {
        let mut m = Model::new();
        let first = m.write(10..12);
        let second = m.write(11..13);
        let third = m.write(10..11);
        m.oracle.write_done(first, false);
        let covers = m.oracle.completed();
        m.oracle.write_done(second, false);
        m.oracle.flush_done(covers);
        assert_eq!((first, second, third), (1, 2, 3));
        for k in 1..=3 {
            assert_eq!(m.oracle.check(&m.states[k], Promise::Flushed), Ok(k as u64));
        }
        assert!(matches!(m.oracle.check(&m.states[0], Promise::Flushed), Err(Violation::Lost { block: 10, .. })));
        assert_eq!(
            m.oracle.check(&m.states[1], Promise::Completed),
            Err(Violation::Lost { block: 11, found: 1, wanted: 2, floor: 2 })
        );
    }

    #[test]
    fn a_hole_in_the_order_is_no_prefix() {
        let mut m = Model::new();
        m.write(10..11);
        m.write(11..12);
        let mut image = m.states[2].clone();
        image[..BLOCK].fill(0);
        let expected = Violation::NoPrefix { old_block: 10, old: 1, new_block: 11, new: 2 };
        assert_eq!(m.oracle.check(&image, Promise::AnyPrefix), Err(expected));
    }

    #[test]
    fn torn_misplaced_and_risen_blocks_are_seen() {
        let mut m = Model::new();
        m.write(10..12);
        m.write(10..12);
        let mut torn = m.states[1].clone();
        torn[BLOCK / 2..BLOCK].copy_from_slice(&m.states[2][BLOCK / 2..BLOCK]);
        assert!(matches!(m.oracle.check(&torn, Promise::AnyPrefix), Err(Violation::Unknown { block: 10, .. })));
        let mut moved = m.states[2].clone();
        moved.copy_within(0..BLOCK, BLOCK);
        assert!(matches!(m.oracle.check(&moved, Promise::AnyPrefix), Err(Violation::Unknown { block: 11, .. })));
        assert_eq!(m.oracle.settle(1), 1);
        assert_eq!(m.oracle.check(&m.states[2], Promise::AnyPrefix), Err(Violation::Risen { block: 10, found: 2 }));
        assert_eq!(m.oracle.check(&m.states[1], Promise::Completed), Ok(2), "the given-up write changes nothing");
    }

    proptest! {
        /// Every state that was passed through is recognised as one not before it that looks the same; what a flush covered
        /// is demanded.
        #[test]
        fn every_prefix_is_accepted_and_no_older_one_after_a_flush(
            ops in proptest::collection::vec((10u64..14, 1u64..4, any::<bool>(), any::<bool>()), 1..40),
            at in 0usize..40,
        ) {
            let mut m = Model::new();
            let mut flushed = 0;
            for (start, length, zero, flush) in ops {
                let blocks = start..(start + length).min(14);
                let seq = if zero { m.zero(blocks) } else { m.write(blocks) };
                m.oracle.write_done(seq, false);
                if flush && seq % 7 == 0 {
                    m.oracle.flush_done(seq);
                    flushed = seq as usize;
                }
            }
            let at = at % m.states.len();
            match m.oracle.check(&m.states[at], Promise::Flushed) {
                Ok(k) => prop_assert_eq!(&m.states[k as usize], &m.states[at]),
                Err(_) => prop_assert!(at < flushed),
            }
            if at >= flushed {
                prop_assert!(m.oracle.check(&m.states[at], Promise::Flushed).unwrap() as usize >= at);
            }
        }
    }
}
