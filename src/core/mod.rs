//! The pure core: replica and replication as one state machine. Events in, actions out; no clock, no randomness,
//! no I/O, no threads (`tests/purity.rs` holds it so). See `docs/architecture.md`.

pub mod api;
pub mod config;
pub mod dirty;
pub mod disk;
pub mod extents;
pub mod hello;
pub mod notice;
pub mod overlay;
pub mod types;

pub use api::*;
pub use config::*;
pub use disk::BlockingDisk;
pub use types::*;
