//! Invariant 6: no orphaned write vanishes without being in a salvage. When a node takes over another lineage, what it held and
//! that lineage lacks must be found in a salvage on its disk: the newest content of each block that those records touched.

use super::super::disk::SimDisk;
use super::super::truth::{Pos, Truth, stamp_of};
use super::{Violation, broken};
use crate::core::{Lsn, NodeId, Part, TermId};
use std::collections::BTreeSet;

/// Salvages looked through: a node makes far fewer.
const SALVAGES: u32 = 64;

/// Blocks whose content would be lost when a replica at `held` takes over the lineage that ends in `adopted`, as stamps.
/// What reads as zeros leaves nothing to look for.
fn orphans(held: Pos, adopted: TermId, truth: &Truth) -> BTreeSet<u64> {
    let all = Pos { term: adopted, lsn: Lsn(u64::MAX) };
    let mut stamps = BTreeSet::new();
    for lsn in (1..=held.lsn.0).rev().map(Lsn) {
        let pos = Pos { lsn, ..held };
        if truth.contains(all, pos) {
            break;
        }
        let Some(span) = truth.record(pos) else { continue };
        let first = truth.geometry.index(span.volume, span.block);
        stamps.extend((first..first + span.count as usize).map(|block| truth.value(held, block)));
    }
    stamps.remove(&0);
    stamps
}

/// Checks a node that held `held` and now follows the lineage that ends in `adopted`. Says how many blocks were orphans.
///
/// # Errors
/// If one of them is in no salvage.
pub fn check(node: NodeId, held: Pos, adopted: TermId, disk: &SimDisk, truth: &Truth) -> Result<u64, Violation> {
    let mut missing = orphans(held, adopted, truth);
    let count = missing.len() as u64;
    for number in if missing.is_empty() { 0..0 } else { 0..SALVAGES } {
        let part = Part::Salvage(number);
        let bytes = disk.peek(part, 0, disk.size(part));
        for stamp in bytes.chunks_exact(truth.geometry.block as usize).filter_map(stamp_of) {
            missing.remove(&stamp);
        }
    }
    match missing.first() {
        None => Ok(count),
        Some(stamp) => Err(broken(
            "6 salvage",
            format!(
                "{node:?} was at {held:?} and follows {adopted:?} now; stamp {stamp} and {} more of its orphans are in no salvage",
                missing.len() - 1
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{IoId, IoOp, Term, VolumeId};
    use crate::sim::disk::DiskMood;
    use crate::sim::rng::Rng;
    use crate::sim::truth::{Geometry, Span, fill};

    #[test]
    fn orphans_must_be_in_a_salvage() {
        let term = |id, first| Term { number: id as u64, id: TermId(id), first: Lsn(first) };
        let mut truth = Truth::new(Geometry { block: 512, volumes: vec![8] });
        truth.learn(&[term(1, 1)]).unwrap();
        for (block, stamp) in [(0, 10), (1, 20), (1, 30), (2, 0)] {
            truth.append(TermId(1), Span { volume: VolumeId(0), block, count: 1, stamp });
        }
        truth.learn(&[term(1, 1), term(2, 2)]).unwrap();
        let mood = DiskMood { atom: 512, slow: 1, ..DiskMood::default() };
        let (mut disk, mut rng) = (SimDisk::new(&[], true, mood), Rng::new(1));
        let held = |lsn| Pos { term: TermId(1), lsn: Lsn(lsn) };
        let check = |disk: &SimDisk, lsn| check(NodeId(0), held(lsn), TermId(2), disk, &truth);
        assert_eq!(check(&disk, 1), Ok(0), "nothing of it is an orphan");
        assert!(check(&disk, 4).is_err());
        let payload = fill(30, 8, 512);
        let op = IoOp::Write { offset: 4096, bufs: vec![payload], sync: true };
        let (token, _) = disk.submit(IoId(1), Part::Salvage(1), op, &mut rng).unwrap();
        disk.complete(token, &mut rng).unwrap().1.unwrap();
        assert_eq!(check(&disk, 4), Ok(1), "only the newest content counts");
        assert!(check(&disk, 2).is_err(), "another content");
    }
}
