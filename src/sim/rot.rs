//! Media that rot: a node's log and lists, its newest superblock, and the ring of an active that goes on running.

use super::brain::Brain;
use super::disk::SimDisk;
use super::rng::Rng;
use super::world::World;
use crate::buf::Payload;
use crate::core::{NodeId, Part};
use crate::format::batch;
use crate::format::superblock::{RING_START, SLOT_BYTES, SLOT_OFFSETS, decode};

const PAGE: u64 = 4096;
/// Of the pages of a ring, one in so many goes bad.
const SPARED: u64 = 4;
/// Batches at the end of a log that rot finds most often: what is older is applied, and missed by few.
const NEWEST: usize = 6;
/// The bit that is turned over in each.
const BIT: u8 = 1;

impl<B: Brain> World<B> {
    /// A sector of a node's log or lists goes bad, to be found at its next start: where another node has all that was promised, and is well.
    pub(super) fn rot(&mut self, node: NodeId) {
        let slot = &self.slots[node.0 as usize];
        let (serves, not_alone) = (slot.serves(), slot.members.len() > 1);
        if serves && !(not_alone && self.rng.coin()) {
            return self.rot_ring(node);
        }
        let another_has_it = serves || self.active().is_some_and(|active| active != node);
        if !another_has_it || self.slots.iter().any(|s| s.rotten) {
            return;
        }
        let all: Vec<NodeId> = self.nodes().collect();
        let (peer, half) = (self.rng.pick(&all), self.rng.below(2) as u8);
        let (part, from) = self.rng.pick(&[(Part::Log, RING_START), (Part::Bitmap { peer, half }, 0)]);
        let size = self.slots[node.0 as usize].disk.size(part);
        if size > from {
            let (offset, bits) = (from + self.rng.below(size - from), 1 << self.rng.below(8));
            let slot = &mut self.slots[node.0 as usize];
            match part {
                Part::Log => rot_log(&mut slot.disk, &mut self.rng),
                _ => slot.disk.turn_over(part, offset, bits),
            }
            slot.rotten = true;
            self.counts.one("sectors gone bad");
            if self.rng.coin() {
                self.crash(node, false); // Before the log has gone on, and nobody needs what was there.
            }
        }
    }

    /// Pages here and there in the ring of an active go bad under it. It needs them only for peers that lag. Whether a restart could do
    /// without them is another question (L2): by then they are well again.
    pub(super) fn rot_ring(&mut self, node: NodeId) {
        let at = self.rng.below(SPARED);
        let slot = self.slot(node);
        if !slot.bad_pages.is_empty() {
            return;
        }
        let pages = RING_START / PAGE..slot.disk.size(Part::Log) / PAGE;
        for number in pages.filter(|n| n % SPARED == at) {
            if slot.disk.page(Part::Log, number).is_some() {
                slot.disk.turn_over(Part::Log, number * PAGE + PAGE / 8, BIT);
                slot.bad_pages.extend(slot.disk.page(Part::Log, number).map(|page| (number, page)));
            }
        }
        self.counts.one("rings gone bad under an active");
    }
}

/// A bit of a log goes bad: most often in one of the newest batches.
pub fn rot_log(disk: &mut SimDisk, rng: &mut Rng) {
    let size = disk.size(Part::Log);
    let mut batches = Vec::new();
    for number in RING_START / PAGE..size / PAGE {
        let header = disk.page(Part::Log, number).and_then(|page| batch::decode_header(&page).ok());
        batches.extend(header.map(|(h, _)| (h.fields.address, number * PAGE, h.bytes())));
    }
    batches.sort_unstable();
    batches.drain(..batches.len().saturating_sub(NEWEST));
    let offset = match batches.is_empty() || rng.per_mille(300) {
        true => RING_START + rng.below(size - RING_START),
        false => {
            let (_, start, bytes) = rng.pick(&batches);
            // Its header as often as its records.
            let within = if rng.coin() { PAGE } else { bytes };
            start + rng.below(within)
        }
    };
    disk.turn_over(Part::Log, offset, 1 << rng.below(8));
}

/// A bit of the newest superblock goes bad, where the other slot is whole: with neither no node starts. Whether it was done.
pub fn rot_newest_slot(disk: &mut SimDisk, rng: &mut Rng) -> bool {
    let slots = SLOT_OFFSETS.map(|at| decode(&disk.peek(Part::Log, at, SLOT_BYTES as u64)));
    let [Ok(first), Ok(second)] = slots else { return false };
    let newest = SLOT_OFFSETS[usize::from(second.sequence > first.sequence)];
    disk.turn_over(Part::Log, newest + rng.below(PAGE), 1 << rng.below(8));
    true
}

/// Makes pages well that were not written since they went bad.
pub fn cure(disk: &mut SimDisk, bad: &[(u64, Payload)]) {
    for (number, page) in bad {
        if disk.page(Part::Log, *number).as_ref() == Some(page) {
            disk.turn_over(Part::Log, number * PAGE + PAGE / 8, BIT);
        }
    }
}
