//! Looking after what is up: the service's health, the device below, and another node's turn.

use super::descent::Goal;
use super::machine::{Machine, State};
use super::report::{Direction, Note};
use super::{Action, OnFail, Step};

/// A node hands over once in this time because of a failure, so that nodes that all fail do not pass the role around for ever.
const LATELY_MS: u64 = 600_000;
/// Restarts of the service in that time.
const RESTARTS: usize = 3;
const HANDED_OVER_LATELY: &str = "this node has handed over because of a failure within the last ten minutes";
const NOBODY: &str = "no other node is in sync";

impl Machine {
    /// What is mounted stands on nothing any more, and another device is made: all of it is put up anew on that one.
    pub(super) fn device_gone(&mut self, why: String) {
        let stands = matches!(self.state, State::Climbing(_) | State::Up(_)) && self.begun.contains(&Step::Mount);
        if stands {
            self.note(Note::HandoffFailed { step: Step::Device, why: why.clone() });
            self.why = Some(why);
            self.descend(Direction::Leftover, Goal::Anew, false);
        }
    }

    pub(super) fn checked(&mut self, result: Result<(), String>) {
        let (State::Up(watch), Some(health)) = (&mut self.state, self.plan.health) else { return };
        watch.next = self.now.plus_ms(health.every_ms);
        let Err(why) = result else {
            let was_unhealthy = std::mem::take(&mut watch.unhealthy);
            watch.failed = 0;
            if was_unhealthy {
                self.why = None;
                self.note(Note::HealthBack);
            }
            return;
        };
        watch.failed = watch.failed.saturating_add(1);
        let (count, unhealthy) = (watch.failed, watch.failed % health.fail == 0);
        if count <= health.fail || unhealthy {
            self.note(Note::HealthFailed { count, why: why.clone() });
        }
        if unhealthy {
            self.unhealthy(health.on_fail, format!("health check: {why}"));
        }
    }

    pub(super) fn unhealthy(&mut self, on_fail: OnFail, why: String) {
        let State::Up(watch) = &mut self.state else { return };
        watch.unhealthy = true;
        self.why = Some(why.clone());
        let now = self.now;
        self.restarts.retain(|at| now.since_us(*at) < LATELY_MS * 1000);
        match on_fail {
            OnFail::Report => {}
            OnFail::Restart if self.restarts.len() < RESTARTS => {
                self.restarts.push(now);
                self.note(Note::ServiceRestarts { why });
                self.descend(Direction::Down, Goal::Restart, false);
            }
            OnFail::Restart | OnFail::Takeover if self.has_handed_over_lately() => self.stays(HANDED_OVER_LATELY),
            OnFail::Restart | OnFail::Takeover => {
                if let State::Up(watch) = &mut self.state {
                    watch.asked = true;
                }
                self.act(Action::AskPeer);
            }
        }
    }

    // Another node's turn.

    pub(super) fn has_handed_over_lately(&self) -> bool {
        self.handed_over.is_some_and(|at| self.now.since_us(at) < LATELY_MS * 1000)
    }

    pub(super) fn stays(&mut self, why: &str) {
        self.note(Note::NotHandedOver { why: why.into() });
    }

    /// It failed, and is undone.
    pub(super) fn decide(&mut self, why: String) {
        self.why = Some(why);
        if self.has_handed_over_lately() {
            self.stays(HANDED_OVER_LATELY);
            return self.faulted();
        }
        self.state = State::Deciding;
        self.act(Action::AskPeer);
    }

    pub(super) fn faulted(&mut self) {
        self.state = State::Faulted;
        let why = self.why.clone().unwrap_or_default();
        self.note(Note::HandoffFaulted { why });
    }

    pub(super) fn peer(&mut self, peer: Option<String>) {
        match (&mut self.state, peer) {
            (State::Deciding, Some(to)) => self.hand_over(to),
            (State::Deciding, None) => {
                self.stays(NOBODY);
                self.faulted();
            }
            (State::Up(watch), peer) if watch.asked => {
                watch.asked = false;
                let unhealthy = watch.unhealthy;
                match peer {
                    Some(to) if unhealthy => self.descend(Direction::Down, Goal::HandOver { to }, false),
                    Some(_) => {}
                    None => self.stays(NOBODY),
                }
            }
            _ => {}
        }
    }

    pub(super) fn hand_over(&mut self, to: String) {
        self.handed_over = Some(self.now);
        self.state = State::HandingOver;
        let why = self.why.clone().unwrap_or_default();
        self.note(Note::HandingOver { to: to.clone(), why });
        self.act(Action::HandOver { to });
    }

    pub(super) fn handed_over(&mut self, result: Result<(), String>) {
        if !matches!(self.state, State::HandingOver) {
            return;
        }
        match result {
            Ok(()) => {
                self.state = State::Down;
                self.wanted = false;
            }
            Err(why) => {
                self.stays(&why);
                self.faulted();
            }
        }
    }
}
