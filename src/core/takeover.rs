//! Taking over by itself, and being taken over (C3, C5): under the keeper `voters`.

use super::hello::Charter;
use super::node::{Node, Stage};
use super::notice::{Notice, Refusal};
use super::peer::Link;
use super::superblock::Then;
use super::types::*;
use crate::core::config::Takeover;

/// Clocks run apart by less than one in this many.
const DRIFT: u64 = 100;

/// How a takeover went, for people: when each of its phases was over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// The last word of the active, or the start of this process.
    pub heard: Time,
    pub began: Time,
    pub asked: Option<Time>,
    pub agreed: Option<Time>,
    pub opened: Option<Time>,
}

/// What a node remembers to take over by.
#[derive(Clone, Debug)]
pub struct Watch {
    /// When the active was last heard, at the earliest when this process began or went on after it had been stopped.
    pub heard: Time,
    /// The latest poll: a long pause between two is this process's own.
    polled: Time,
    /// All incarnations of this process: whatever was acknowledged as one of them is in its memory (C1).
    mine: Vec<Incarnation>,
    /// The term of the charter that this process began with, and whether all that was completed under it is still here: it was active in
    /// it, and neither the machine nor the log have failed since (C5).
    began_in: u64,
    unrestarted: bool,
    /// No attempt before that.
    not_before: Time,
    pub course: Option<Course>,
}

impl Watch {
    pub fn new(now: Time, incarnation: Incarnation, charter: &Charter, unrestarted: bool) -> Watch {
        Watch {
            heard: now,
            polled: now,
            mine: vec![incarnation],
            began_in: charter.term,
            unrestarted,
            not_before: now,
            course: None,
        }
    }
}

impl Node {
    /// How long the active is silent before it is taken over: a lease by the slower clock, and a round (C3).
    fn patience_ms(&self) -> u64 {
        self.voting().map_or(u64::MAX / 2000, |v| v.lease_ms + v.lease_ms / DRIFT + 1 + v.round_ms)
    }

    /// The active may think until then that it has a lease. One that has released its role has none.
    pub(super) fn silent_until(&self) -> Time {
        let me = self.cfg.my_name();
        let nobody = self.charter.active.as_deref().is_none_or(|active| active == me);
        if nobody { self.now } else { self.watch.heard.plus_ms(self.patience_ms()) }
    }

    /// A word of the active.
    pub(super) fn heard_active(&mut self) {
        self.watch.heard = self.watch.heard.max(self.now);
    }

    /// C5: whether everything that was completed on this node's account is here. Its process is the one that is listed; or it is the
    /// active that is named, whose completed writes were written.
    pub(super) fn is_whole(&self) -> bool {
        let Some(listed) = self.my_member() else { return false };
        let named = self.charter.active.as_deref() == Some(self.cfg.my_name());
        // Who asked to be active had made durable before what it held, and has served only if its own disk says so.
        let never_served = self.charter.term > self.watch.began_in;
        self.watch.mine.contains(&listed.incarnation) || named && (never_served || self.watch.unrestarted)
    }

    /// When this node takes over if it hears nothing; none where it does not.
    fn takeover_due(&self) -> Option<Time> {
        let me = self.cfg.my_name();
        let charter = &self.charter;
        let free = self.stage == Stage::Passive && self.operation.is_none() && self.fault.is_none();
        let sound = self.gap.is_none() && self.lost.is_none() && self.rollback.is_none();
        let automatic = self.cfg.nodes[self.cfg.me.0 as usize].takeover == Takeover::Automatic;
        let rests = self.voters.as_ref()?.known().maintenance;
        if !free || !sound || !automatic || rests || self.my_member().is_none() {
            return None;
        }
        let active = charter.active.as_deref().and_then(|name| self.cfg.find(name));
        if active.is_some_and(|n| !self.peers[n.0 as usize].wanted && n != self.cfg.me) {
            return None; // It is silent because an operator wants it so.
        }
        let patience = self.patience_ms();
        let whole = self.is_whole();
        let due = match (charter.active.as_deref(), charter.heir.as_deref()) {
            // An operator wants nobody to be active.
            (None, None) => return None,
            (None, Some(heir)) if heir == me && whole => self.watch.heard,
            (Some(active), _) if active == me && whole => self.began,
            (None, Some(_)) => self.watch.heard.plus_ms(2 * patience),
            _ if whole => self.watch.heard.plus_ms(patience + self.turn_ms()),
            // Whoever has lost its memory gives those who have not the time to take over, and the active that to drop it (C5).
            _ => self.watch.heard.plus_ms(2 * patience + self.cfg.stall_ms),
        };
        Some(due.max(self.watch.not_before))
    }

    /// Of several that are listed each begins a round after the one before.
    fn turn_ms(&self) -> u64 {
        let active = self.charter.active.as_deref();
        let others = self.charter.in_sync.iter().filter(|m| Some(m.node.as_str()) != active);
        let before = others.take_while(|m| m.node != self.cfg.my_name()).count() as u64;
        before * self.voting().map_or(0, |v| v.round_ms)
    }

    pub(super) fn takeover_deadline(&self) -> Option<Time> {
        let phase = self.vote_deadline();
        let due = self.takeover_due();
        // Until then it looks often enough to know its own pauses from the silence of the active.
        let look = self.voting().filter(|_| due.is_some()).map(|v| self.now.plus_ms((v.lease_ms / 4).max(1)));
        [phase, due.filter(|t| *t > self.now), look].into_iter().flatten().min()
    }

    pub(super) fn poll_takeover(&mut self) {
        let (now, before) = (self.now, std::mem::replace(&mut self.watch.polled, self.now));
        let Some(lease) = self.voting().map(|v| v.lease_ms) else { return };
        if now.since_us(before) > lease * 1000 / 2 && self.stage == Stage::Passive {
            // It was this process that did not run: what came meanwhile may not have been read yet.
            self.heard_active();
        }
        if self.takeover_due().is_none_or(|due| due > now) || self.waits_for_the_whole() {
            return;
        }
        let heard = self.watch.heard;
        let from = self.charter.active.clone().unwrap_or_default();
        self.watch.course = Some(Course { heard, began: now, ..Course::default() });
        match self.promote_by_vote(None) {
            Ok(()) => self.notice(Notice::TakeoverBegan { from, silent_ms: now.since_us(heard) / 1000 }),
            Err(_) => self.watch.course = None,
        }
    }

    /// C5: a member whose process was started since it was listed lacks what it had acknowledged from memory. Members that have lost
    /// nothing go first; where all have lost their memory, the one that holds most.
    fn waits_for_the_whole(&self) -> bool {
        if self.is_whole() {
            return false;
        }
        let mine = (self.lineage.last().map_or(0, |t| t.number), self.log.end(), std::cmp::Reverse(self.cfg.me));
        let goes_first = |node: NodeId| {
            let peer = &self.peers[node.0 as usize];
            let listed = self.charter.member(self.cfg.name(node)).map(|m| m.incarnation);
            let hello = peer.hello.as_ref().filter(|_| matches!(peer.link, Link::Idle(_)));
            hello.is_some_and(|h| {
                let theirs = (h.lineage.last().map_or(0, |t| t.number), h.received, std::cmp::Reverse(node));
                let can = h.gap.is_none() && self.cfg.nodes[node.0 as usize].takeover == Takeover::Automatic;
                can && listed.is_some() && (listed == Some(h.incarnation) || theirs > mine)
            })
        };
        self.cfg.peers().any(goes_first)
    }

    /// C3: from here on this process acknowledges nothing as the one that is listed, so no write of the old active completes any more
    /// unless this node is dropped first, which replaces the version that it asks to replace.
    pub(super) fn end_incarnation(&mut self) {
        self.cfg.incarnation = Incarnation(self.draw_id());
        self.watch.mine.push(self.cfg.incarnation);
        for node in self.cfg.peers() {
            if !matches!(self.peers[node.0 as usize].link, Link::Idle(_)) {
                self.close_link(node, "it is being promoted", true);
            }
        }
        self.persist(Then::Nothing);
    }

    /// The term is open.
    pub(super) fn took_over(&mut self) {
        self.note_course(|course, now| course.opened = Some(now));
        if let Some(course) = self.watch.course.clone() {
            let ms = |at: Option<Time>| at.map_or(0, |t| t.since_us(course.heard) / 1000);
            self.notice(Notice::TookOver {
                silent_ms: ms(Some(course.began)),
                asked_ms: ms(course.asked),
                agreed_ms: ms(course.agreed),
                opened_ms: ms(course.opened),
            });
        }
    }

    /// A promotion did not come about: not again at once.
    pub(super) fn rest_before_the_next(&mut self) {
        let Some(ms) = self.voting().map(|v| v.round_ms) else { return };
        let pause = ms + self.draw_id() as u64 % ms.max(1);
        self.watch.not_before = self.now.plus_ms(pause);
        self.watch.course = None;
    }

    /// The voters have agreed to another active: its clients here are failed, and this node follows (C3, C6).
    pub(super) fn deposed(&mut self, by: &Charter) {
        if by.generation != self.charter.generation {
            return; // Founded by force: an operator decides (C8).
        }
        self.leave_round();
        self.change = None;
        self.suspended = false;
        self.charter = by.clone();
        self.notice(Notice::Deposed { by: by.active.clone().unwrap_or_default() });
        self.stop_serving();
        self.set_stage(Stage::Passive);
        self.abandon_by(Refusal::Claimed { peer: by.active.clone().unwrap_or_default() });
        for peer in &mut self.peers {
            peer.joining = None;
        }
        self.heard_active();
        self.persist(Then::Nothing);
        self.renegotiate("another node has taken over");
    }
}
