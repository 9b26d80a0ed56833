//! An active that was restarted: when it goes on by itself, and what it says while it does not.

use super::super::node::{Node, Stage};
use super::super::peer::Link;
use super::super::status::Waiting;
use super::super::types::*;

impl Node {
    /// A restarted active goes on by itself where its own charter says that it alone was in sync, or once every member listed
    /// has answered that it follows nobody newer and holds nothing more (C9, C5).
    pub(super) fn poll_resume(&mut self) {
        if !self.is_waiting_to_resume() {
            return;
        }
        let everyone_said_hello = self.cfg.peers().all(|n| self.peers[n.0 as usize].is_greeted());
        if self.now < self.resume_at && !everyone_said_hello {
            return;
        }
        let contradicted = self.peers.iter().filter(|p| p.is_greeted()).filter_map(|p| p.hello.as_ref()).any(|h| {
            h.charter.newer_than(&self.charter) || h.charter.conflicts_with(&self.charter) && h.charter.generation.0 > 0
        });
        if contradicted {
            self.may_resume = false;
            return;
        }
        if self.pledge.is_some() {
            return;
        }
        let agreed = self.other_members().iter().all(|name| self.cfg.find(name).is_none_or(|n| self.agrees(n)));
        if agreed {
            // Where it is refused, `waiting` says why, and it is tried again: what stood in the way may pass.
            let _ = self.begin_promote(None, false, &[]);
        }
    }

    fn is_waiting_to_resume(&self) -> bool {
        self.may_resume && self.operation.is_none() && self.fault.is_none() && self.stage == Stage::Passive
    }

    fn other_members(&self) -> Vec<&String> {
        self.charter.in_sync.iter().map(|m| &m.node).filter(|name| *name != self.cfg.my_name()).collect()
    }

    /// A member that has answered, follows nobody newer and holds nothing more that it would not give.
    fn agrees(&self, node: NodeId) -> bool {
        let peer = &self.peers[node.0 as usize];
        let hello = peer.hello.as_ref().filter(|_| matches!(peer.link, Link::Idle(_)));
        hello.is_some_and(|h| {
            h.role == Role::Passive
                && !h.charter.newer_than(&self.charter)
                && (self.ahead_of_me(node, h).is_none() || self.can_fetch_from(node, h))
        })
    }

    /// For whom this node waits before it resumes, since when, and what an operator can do.
    pub(in crate::core) fn waiting(&self, now: Time) -> Option<Waiting> {
        if !self.is_waiting_to_resume() {
            return None;
        }
        let me = self.cfg.my_name();
        let mut names = self.other_members();
        names.extend(self.pledge.iter().filter(|p| *p != me));
        names.sort();
        names.dedup();
        // For one that the file does not know it does not wait: it is refused for it.
        let held =
            |name: &String| self.cfg.find(name).is_none_or(|n| self.agrees(n)) && self.pledge.as_ref() != Some(name);
        names.retain(|name| !held(name));
        let since_s = now.since_us(self.began) as f64 / 1e6;
        let refused = self.guard_promotion(false, &[]).err().filter(|_| now >= self.resume_at);
        if let Some(why) = refused.filter(|_| names.is_empty()) {
            let what = format!("{me} was active when it ended, and does not resume by itself: {why}");
            let remedy = format!("what it says; `understudy promote FILE --node {me}` asks again");
            return Some(Waiting { what, remedy, since_s });
        }
        if names.is_empty() {
            let what = format!(
                "{me} was active when it ended, and listens for a moment whether another node has been promoted since"
            );
            return Some(Waiting { what, remedy: "nothing: it resumes by itself".into(), since_s });
        }
        let list = |of: &[&String], with: &str| of.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(with);
        let answers = |name: &&String| {
            self.cfg.find(name).is_some_and(|n| matches!(self.peers[n.0 as usize].link, Link::Idle(_)))
        };
        let what = format!(
            "{me} was active when it ended, and resumes by itself once it has spoken to {}, who may hold more or follow another active",
            list(&names, " and ")
        );
        let (there, gone): (Vec<&String>, Vec<&String>) = names.into_iter().partition(answers);
        let remedy = match there.first() {
            Some(ahead) => {
                format!("{ahead} answers and holds more than {me}: `understudy promote FILE --node {ahead}`")
            }
            None => format!(
                "start {} or mend the link; or, when you have made sure that it is off, `understudy promote FILE --node {me} --force --off {}`",
                list(&gone, " and "),
                list(&gone, ",")
            ),
        };
        Some(Waiting { what, remedy, since_s })
    }
}
