//! A log of which something that was durable cannot be read back (L2): what recovery found, until it is made up for.

use super::node::Node;
use super::notice::{Notice, Refusal};
use super::types::*;

impl Node {
    pub(super) fn say_what_is_damaged(&mut self, lists_lost: &[(NodeId, String)]) {
        for (node, why) in lists_lost {
            let peer = self.cfg.name(*node).to_string();
            self.notice(Notice::ListLost { peer, why: why.clone() });
        }
        if let Some((lsn, _)) = self.lost_record() {
            self.notice(Notice::LogUnreadable { lsn: lsn.0 });
        }
        if let Some(lost) = self.lost {
            self.notice(Notice::LogDamaged { lsn: lost.0 });
        }
    }

    /// Whether what it had made durable is lost, from some record on.
    pub fn is_damaged(&self) -> bool {
        self.lost.is_some()
    }

    /// Whoever lacks what it had made durable is promoted only by somebody who knows it. What that gives up, in words.
    pub(super) fn guard_damage(&self, forced: bool) -> Result<Option<String>, Refusal> {
        match self.lost {
            None => Ok(None),
            Some(lost) if forced => {
                Ok(Some(format!("record {} and what came after it, which its log has lost", lost.0)))
            }
            Some(lost) => Err(Refusal::Damaged { node: self.cfg.my_name().to_string(), lsn: lost.0 }),
        }
    }

    /// It holds all that the active it follows held when it came.
    pub(super) fn damage_is_mended(&mut self, node: NodeId) {
        let until = self.peers[node.0 as usize].hello.as_ref().map_or(Lsn(u64::MAX), |h| h.received);
        if self.lost.is_some() && self.log.durable() >= until {
            self.lost = None;
            self.notice(Notice::LogMended { lsn: self.log.durable().0 });
            self.persist(super::superblock::Then::Nothing);
        }
    }
}
