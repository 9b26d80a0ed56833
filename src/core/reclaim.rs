//! Giving ring space back (L5): only what is checkpointed, and only once every peer that lacks it has it in a bitmap (B1).

use super::node::Node;

impl Node {
    /// Begins well before the ring is full, and frees enough for a while.
    pub(super) fn poll_reclaim(&mut self) {
        let size = self.log.size();
        if self.log.held() <= size / 2 {
            return;
        }
        let checkpointed = self.superblock.checkpoint();
        let mut dropped = false;
        while self.log.held() > size / 3 {
            let Some(oldest) = self.log.oldest() else { break };
            if oldest.last() > checkpointed {
                break;
            }
            self.log.drop_oldest();
            dropped = true;
        }
        if dropped {
            self.persist(super::superblock::Then::Nothing);
        }
    }
}
