//! What must hold, one module each; the numbers are those of the list in `docs/testing.md`.
//!
//! Reads (3) are judged where they are answered, in [`super::client`]; progress (7) where it is demanded, in
//! [`super::healing`].

pub mod alone;
pub mod durability;
pub mod isolation;
pub mod order;
pub mod records;
pub mod salvage;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {detail}")]
pub struct Violation {
    pub invariant: &'static str,
    pub detail: String,
}

/// Shorthand for a violation of this name.
pub fn broken(invariant: &'static str, detail: impl Into<String>) -> Violation {
    Violation { invariant, detail: detail.into() }
}
