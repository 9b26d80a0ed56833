//! The pure core: replica and replication as one state machine. Events in, actions out; no clock, no randomness,
//! no I/O, no threads (`tests/purity.rs` holds it so). See `docs/architecture.md`.

pub mod api;
pub mod config;
pub mod disk;
pub mod hello;
pub mod notice;
pub mod types;

pub use api::*;
pub use config::*;
pub use disk::BlockingDisk;
pub use types::*;
