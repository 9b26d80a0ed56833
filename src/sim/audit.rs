//! Verification as users have it: on replicas that nothing has damaged it reports no difference, at any load; and a byte
//! that has turned over in a store it finds.

use super::brain::Brain;
use super::invariants::{Violation, broken};
use super::plan::name;
use super::world::World;
use crate::core::notice::Notice;
use crate::core::{Command, NodeId, Part, VolumeId};

const NAME: &str = "4 verify";
const TICK_US: u64 = 250_000;
/// Simulated time that the verification of a resource at rest may take.
const LIMIT_US: u64 = 20_000_000;

/// A byte of a store that is not what it was.
#[derive(Clone, Copy, Debug)]
pub struct Flip {
    node: NodeId,
    volume: VolumeId,
    offset: u64,
    found: bool,
}

impl<B: Brain> World<B> {
    /// Turns a byte of a passive's store over, demands that verification finds it and nothing else, and puts it back.
    pub(super) fn audit(&mut self) -> Result<(), Violation> {
        let Some(active) = self.active() else { return Ok(()) };
        let passives: Vec<NodeId> = self.nodes().filter(|n| *n != active).collect();
        let node = self.rng.pick(&passives);
        let geometry = &self.plan.geometry;
        let volume = VolumeId(self.rng.below(geometry.volumes.len() as u64) as u16);
        let offset = self.rng.below(geometry.volumes[volume.0 as usize] * geometry.block);
        let bits = 1 << self.rng.below(8);
        self.slot(node).disk.turn_over(Part::Store(volume), offset, bits);
        self.flip = Some(Flip { node, volume, offset, found: false });
        self.say(|| format!("!! a bit of {volume:?} at {offset} is turned over on {}", name(node.0 as usize)));
        self.order(active, Command::Verify { repair: false })?;
        let until = self.now + LIMIT_US;
        while self.orders.is_busy(active) && self.now < until {
            self.run_until(self.now + TICK_US)?;
        }
        self.slot(node).disk.turn_over(Part::Store(volume), offset, bits);
        match self.flip.take() {
            Some(Flip { found: true, .. }) => {
                self.counts.one("flips found by verify");
                Ok(())
            }
            flip => Err(broken(NAME, format!("verification did not find {flip:?}"))),
        }
    }

    /// A difference that verification reports must be there.
    pub(super) fn check_difference(&mut self, notice: &Notice) -> Result<(), Violation> {
        let Notice::VerifyDiffers { peer, volume, offset, length } = notice else { return Ok(()) };
        let is_it = |f: &&mut Flip| {
            name(f.node.0 as usize) == *peer && f.volume.0 == *volume && (*offset..offset + length).contains(&f.offset)
        };
        match self.flip.as_mut().filter(is_it) {
            Some(flip) => {
                flip.found = true;
                Ok(())
            }
            None => Err(broken(NAME, format!("{notice:?}, and nothing had damaged it"))),
        }
    }
}
