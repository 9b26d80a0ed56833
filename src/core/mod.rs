//! The pure core: replica and replication as one state machine. Events in, actions out; no clock, no randomness,
//! no I/O, no threads (`tests/purity.rs` holds it so). See `docs/architecture.md`.

pub mod api;
mod bitmap;
pub mod charter;
mod client;
mod command;
pub mod config;
pub mod dirty;
pub mod disk;
pub mod extents;
mod fetch;
mod gap;
pub mod hello;
pub mod lineage;
mod links;
pub mod log;
pub mod node;
pub mod notice;
pub mod overlay;
pub mod peer;
pub mod recovery;
mod resync_source;
mod resync_target;
mod salvage;
mod source;
pub mod status;
mod store;
pub mod superblock;
mod target;
mod times;
pub mod types;
mod verify;
mod view;

pub use api::*;
pub use config::*;
pub use disk::BlockingDisk;
pub use node::Node;
pub use recovery::{FormatIds, Recovered, RecoveryError};
#[cfg(test)]
pub use target::MESSAGE_EXTENTS;
pub use types::*;
