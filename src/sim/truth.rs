//! What really happened: every term that was opened, and every record in it, so that the device can be said for any
//! position. A block's content is one number, its *stamp*; see [`fill`].

use crate::buf::{BufMut, Payload};
use crate::core::{Lsn, Segment, Term, TermId, VolumeId};
use std::collections::BTreeMap;

/// Sizes of the volumes in blocks.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// Bytes of a block.
    pub block: u64,
    /// Blocks of each volume.
    pub volumes: Vec<u64>,
}

impl Geometry {
    /// Blocks of all volumes.
    pub fn blocks(&self) -> usize {
        self.volumes.iter().sum::<u64>() as usize
    }

    /// Number of a volume's block among all blocks.
    pub fn index(&self, volume: VolumeId, block: u64) -> usize {
        self.volumes[..volume.0 as usize].iter().sum::<u64>() as usize + block as usize
    }
}

/// The bytes of `count` blocks stamped from `stamp` on: every 8-byte word differs from every other ever written, so a
/// misplaced or torn block is told from a whole one.
pub fn fill(stamp: u64, count: u64, block: u64) -> Payload {
    let mut buf = BufMut::uninit((count * block) as usize);
    for (n, words) in buf.chunks_exact_mut(block as usize).enumerate() {
        for (i, word) in words.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(((stamp + n as u64) << 10) | i as u64).to_le_bytes());
        }
    }
    buf.freeze()
}

/// The stamp of a block's bytes: 0 for zeros, none for what was never written so.
pub fn stamp_of(block: &[u8]) -> Option<u64> {
    // Cannot fail: the chunks have eight bytes.
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let first = word(&block[..8]);
    // All bits that differ from what is wanted, gathered without a branch: this looks at every byte that is read anywhere.
    let counts = u64::from(first != 0);
    let differing = block
        .chunks_exact(8)
        .zip(0u64..)
        .fold(0, |differing, (bytes, i)| differing | (word(bytes) ^ (first | (i * counts))));
    (first & 1023 == 0 && differing == 0).then_some(first >> 10)
}

/// The stamps of the blocks that an answer brings, and how many bytes it has; a block in two segments is looked at whole.
pub fn stamps(segments: &[Segment], block: u64) -> (Vec<Option<u64>>, u64) {
    let (mut found, mut length, mut part) = (Vec::new(), 0, Vec::new());
    for segment in segments {
        let bytes = match segment {
            Segment::Data(payload) => payload.len() as u64,
            Segment::Zero(n) => *n,
        };
        length += bytes;
        match segment {
            Segment::Data(payload) if part.is_empty() && bytes.is_multiple_of(block) => {
                found.extend(payload.chunks_exact(block as usize).map(stamp_of));
            }
            Segment::Zero(_) if part.is_empty() && bytes.is_multiple_of(block) => {
                found.extend((0..bytes / block).map(|_| Some(0)));
            }
            Segment::Data(payload) => part.extend_from_slice(payload),
            Segment::Zero(n) => part.resize(part.len() + *n as usize, 0),
        }
        if !part.is_empty() && (part.len() as u64).is_multiple_of(block) {
            found.extend(part.chunks_exact(block as usize).map(stamp_of));
            part.clear();
        }
    }
    (found, length)
}

/// A place in a history: the record `lsn`, in a replica whose newest term was `term`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pos {
    pub term: TermId,
    pub lsn: Lsn,
}

/// What a record did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub volume: VolumeId,
    pub block: u64,
    pub count: u64,
    /// Stamp of the first block, the others count on; 0 for zeros.
    pub stamp: u64,
}

#[derive(Debug)]
struct TermTruth {
    first: Lsn,
    parent: Option<TermId>,
    records: Vec<Span>,
    /// Of each block what this term wrote to it; as long as the highest block that it wrote.
    versions: Vec<Vec<(Lsn, u64)>>,
}

/// Every term and record.
#[derive(Debug)]
pub struct Truth {
    pub geometry: Geometry,
    terms: BTreeMap<TermId, TermTruth>,
}

impl Truth {
    pub fn new(geometry: Geometry) -> Truth {
        Truth { geometry, terms: BTreeMap::new() }
    }

    /// Somebody has opened a term.
    pub fn is_begun(&self) -> bool {
        !self.terms.is_empty()
    }

    /// Takes in a lineage that some node has: its terms must be where they were before.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn learn(&mut self, lineage: &[Term]) -> Result<(), String> {
        for (i, term) in lineage.iter().enumerate() {
            let parent = i.checked_sub(1).map(|p| lineage[p].id);
            let known = self.terms.entry(term.id).or_insert_with(|| TermTruth {
                first: term.first,
                parent,
                records: Vec::new(),
                versions: Vec::new(),
            });
            if known.first != term.first {
                return Err(format!(
                    "term {:?} began at {:?}, now it is said to begin at {:?}",
                    term.id, known.first, term.first
                ));
            }
            // A lineage may have lost its oldest terms, never one in the middle.
            if i > 0 && known.parent != parent {
                return Err(format!(
                    "term {:?} came after {:?}, now it is said to come after {parent:?}",
                    term.id, known.parent
                ));
            }
        }
        Ok(())
    }

    /// The newest record of a term.
    pub fn end(&self, term: TermId) -> Lsn {
        self.terms.get(&term).map_or(Lsn(0), |t| Lsn(t.first.0 - 1 + t.records.len() as u64))
    }

    /// The next record of a term.
    pub fn append(&mut self, term: TermId, span: Span) -> Lsn {
        let lsn = self.end(term).next();
        let base = self.geometry.index(span.volume, span.block);
        // The world learns a term's lineage before anything is written in it.
        let truth = self.terms.get_mut(&term).expect("a known term");
        truth.records.push(span);
        let blocks = truth.versions.len().max(base + span.count as usize);
        truth.versions.resize_with(blocks, Vec::new);
        for n in 0..span.count {
            let stamp = if span.stamp == 0 { 0 } else { span.stamp + n };
            truth.versions[base + n as usize].push((lsn, stamp));
        }
        lsn
    }

    /// The same place, named by the term that wrote the record. None is the beginning of everything.
    pub fn settle(&self, pos: Pos) -> Option<Pos> {
        let mut term = pos.term;
        loop {
            let truth = self.terms.get(&term)?;
            if pos.lsn >= truth.first {
                return Some(Pos { term, lsn: pos.lsn });
            }
            term = truth.parent?;
        }
    }

    /// The place before the first record of a settled place's term.
    fn before(&self, pos: Pos) -> Option<Pos> {
        let truth = self.terms.get(&pos.term)?;
        self.settle(Pos { term: truth.parent?, lsn: truth.first.prev() })
    }

    fn chain(&self, pos: Pos) -> impl Iterator<Item = Pos> + '_ {
        std::iter::successors(self.settle(pos), |p| self.before(*p))
    }

    /// Whether a replica at `whole` holds the record `part`, and with it all before it.
    pub fn contains(&self, whole: Pos, part: Pos) -> bool {
        let Some(part) = self.settle(part) else { return true };
        self.chain(whole).any(|p| p.term == part.term && part.lsn <= p.lsn)
    }

    /// The record at a settled place.
    pub fn record(&self, pos: Pos) -> Option<Span> {
        let pos = self.settle(pos)?;
        let truth = self.terms.get(&pos.term)?;
        truth.records.get((pos.lsn.0 - truth.first.0) as usize).copied()
    }

    /// What a block holds in a replica at this place.
    pub fn value(&self, pos: Pos, block: usize) -> u64 {
        self.version(pos, block).map_or(0, |(_, stamp)| stamp)
    }

    fn version(&self, pos: Pos, block: usize) -> Option<(Pos, u64)> {
        self.chain(pos).find_map(|p| {
            let versions = self.terms.get(&p.term)?.versions.get(block)?;
            let newer = versions.partition_point(|(lsn, _)| *lsn <= p.lsn);
            let (lsn, stamp) = versions[..newer].last()?;
            Some((Pos { term: p.term, lsn: *lsn }, *stamp))
        })
    }

    /// The place of the write that a read shows, if the block had this stamp at `from` or at any time up to `to`, both
    /// of one term. The inner option is none for what was never written.
    pub fn shown(&self, term: TermId, block: usize, from: Lsn, to: Lsn, stamp: u64) -> Option<Option<Pos>> {
        let oldest = self.version(Pos { term, lsn: from }, block);
        if oldest.map_or(0, |(_, s)| s) == stamp {
            return Some(oldest.map(|(pos, _)| pos));
        }
        let versions = self.terms.get(&term)?.versions.get(block)?;
        let at = versions.iter().find(|(lsn, s)| *lsn > from && *lsn <= to && *s == stamp)?;
        Some(Some(Pos { term, lsn: at.0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VolumeId = VolumeId(0);

    fn term(number: u64, first: u64) -> Term {
        Term { number, id: TermId(u128::from(number)), first: Lsn(first) }
    }

    fn pos(term: u128, lsn: u64) -> Pos {
        Pos { term: TermId(term), lsn: Lsn(lsn) }
    }

    fn span(block: u64, count: u64, stamp: u64) -> Span {
        Span { volume: V, block, count, stamp }
    }

    /// Term 1 with three records; term 2 from record 3 on (record 3 of term 1 is an orphan); term 3 after it, empty.
    fn forked() -> Truth {
        let mut truth = Truth::new(Geometry { block: 512, volumes: vec![8] });
        truth.learn(&[term(1, 1)]).unwrap();
        [span(0, 2, 10), span(1, 1, 20), span(0, 1, 30)].into_iter().for_each(|s| {
            truth.append(TermId(1), s);
        });
        truth.learn(&[term(1, 1), term(2, 3)]).unwrap();
        truth.append(TermId(2), span(1, 1, 0));
        truth.learn(&[term(1, 1), term(2, 3), term(3, 4)]).unwrap();
        truth
    }

    #[test]
    fn a_place_knows_what_it_holds() {
        let truth = forked();
        assert!(truth.contains(pos(2, 3), pos(1, 2)));
        assert!(!truth.contains(pos(2, 3), pos(1, 3)));
        assert!(!truth.contains(pos(1, 3), pos(2, 3)));
        assert!(truth.contains(pos(3, 3), pos(2, 3)));
        assert!(truth.contains(pos(2, 2), pos(1, 2)) && truth.contains(pos(1, 2), pos(3, 2)));
        assert_eq!(truth.record(pos(3, 3)), Some(span(1, 1, 0)));
    }

    #[test]
    fn images_follow_their_lineage() {
        let truth = forked();
        let image = |p| (0..3).map(|b| truth.value(p, b)).collect::<Vec<u64>>();
        assert_eq!(image(pos(1, 1)), [10, 11, 0]);
        assert_eq!(image(pos(1, 3)), [30, 20, 0]);
        assert_eq!(image(pos(3, 3)), [10, 0, 0]);
        assert_eq!(image(pos(2, 2)), [10, 20, 0]);
    }

    #[test]
    fn a_read_shows_the_newest_or_a_later_one() {
        let truth = forked();
        let shown = |stamp| truth.shown(TermId(1), 1, Lsn(1), Lsn(3), stamp);
        assert_eq!(shown(11), Some(Some(pos(1, 1))));
        assert_eq!(shown(20), Some(Some(pos(1, 2))));
        assert_eq!(shown(0), None);
        assert_eq!(truth.shown(TermId(1), 1, Lsn(2), Lsn(3), 11), None);
        assert_eq!(truth.shown(TermId(1), 5, Lsn(2), Lsn(3), 0), Some(None));
    }

    #[test]
    fn lineages_that_contradict_each_other_are_told() {
        let mut truth = forked();
        assert!(truth.learn(&[term(2, 4)]).is_err());
        assert!(truth.learn(&[term(1, 1), term(3, 4)]).is_err());
        assert!(truth.learn(&[term(2, 3), term(3, 4)]).is_ok());
    }

    #[test]
    fn stamps_survive_and_damage_does_not() {
        let payload = fill(77, 2, 512);
        assert_eq!(stamp_of(&payload[..512]), Some(77));
        assert_eq!(stamp_of(&payload[512..]), Some(78));
        let mut torn = payload[..512].to_vec();
        torn[256..].copy_from_slice(&payload[768..]);
        assert_eq!(stamp_of(&torn), None);
        assert_eq!(stamp_of(&[0; 512]), Some(0));
        torn.fill(0);
        torn[511] = 1;
        assert_eq!(stamp_of(&torn), None);
    }
}
