//! Media that rot: a passive's log and lists, and the ring of an active that goes on running.

use super::brain::Brain;
use super::disk::SimDisk;
use super::world::World;
use crate::buf::Payload;
use crate::core::{NodeId, Part};
use crate::format::superblock::RING_START;

const PAGE: u64 = 4096;
/// Of the pages of a ring, one in so many goes bad.
const SPARED: u64 = 4;
/// The bit that is turned over in each.
const BIT: u8 = 1;

impl<B: Brain> World<B> {
    /// A sector of a passive's log or lists goes bad, where another node serves: of two that rot nothing might be left.
    pub(super) fn rot(&mut self, node: NodeId) {
        if self.slots[node.0 as usize].serves() {
            return self.rot_ring(node);
        }
        let another_serves = self.active().is_some_and(|active| active != node);
        if !another_serves || self.slots.iter().any(|s| s.rotten) {
            return;
        }
        let all: Vec<NodeId> = self.nodes().collect();
        let (peer, half) = (self.rng.pick(&all), self.rng.below(2) as u8);
        let (part, from) = self.rng.pick(&[(Part::Log, RING_START), (Part::Bitmap { peer, half }, 0)]);
        let size = self.slots[node.0 as usize].disk.size(part);
        if size > from {
            let (offset, bits) = (from + self.rng.below(size - from), 1 << self.rng.below(8));
            let slot = self.slot(node);
            slot.disk.turn_over(part, offset, bits);
            slot.rotten = true;
            self.counts.one("sectors gone bad");
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

/// Makes pages well that were not written since they went bad.
pub fn cure(disk: &mut SimDisk, bad: &[(u64, Payload)]) {
    for (number, page) in bad {
        if disk.page(Part::Log, *number).as_ref() == Some(page) {
            disk.turn_over(Part::Log, number * PAGE + PAGE / 8, BIT);
        }
    }
}
