//! What the loop drives: the core, or in tests a scripted stand-in for it.

use crate::core::{Action, Event, Node, Time};
use serde_json::Value;

/// The methods of [`Node`] that the loop uses. See there.
pub trait Engine {
    fn handle(&mut self, now: Time, event: Event);
    fn poll(&mut self, now: Time);
    fn next_action(&mut self) -> Option<Action>;
    fn deadline(&self) -> Option<Time>;
    fn status(&self, now: Time) -> Value;
    fn accepts_writes(&self) -> bool;
    /// Why this node would not step down, in words.
    fn may_step_down(&self) -> Result<(), String>;
}

impl Engine for Node {
    fn handle(&mut self, now: Time, event: Event) {
        Node::handle(self, now, event);
    }

    fn poll(&mut self, now: Time) {
        Node::poll(self, now);
    }

    fn next_action(&mut self) -> Option<Action> {
        Node::next_action(self)
    }

    fn deadline(&self) -> Option<Time> {
        Node::deadline(self)
    }

    fn status(&self, now: Time) -> Value {
        serde_json::to_value(Node::status(self, now)).unwrap_or_else(|e| Value::String(e.to_string()))
    }

    fn accepts_writes(&self) -> bool {
        Node::accepts_writes(self)
    }

    fn may_step_down(&self) -> Result<(), String> {
        Node::may_step_down(self).map_err(|refusal| refusal.to_string())
    }
}
