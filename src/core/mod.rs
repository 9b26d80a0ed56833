//! The pure core: replica and replication as one state machine. Events in, actions out; no clock, no randomness,
//! no I/O, no threads (`tests/purity.rs` holds it so). See `docs/architecture.md`.

pub mod api;
mod backlog;
mod bitmap;
pub mod charter;
#[cfg(test)]
mod charter_tests;
mod client;
mod command;
pub mod config;
mod damage;
pub mod dirty;
pub mod disk;
#[cfg(test)]
mod duo_tests;
pub mod extents;
mod fetch;
mod flights;
pub mod follow;
#[cfg(test)]
mod force_tests;
mod forecast;
#[cfg(test)]
mod forecast_tests;
mod gap;
#[cfg(test)]
mod gap_tests;
pub mod hello;
pub mod latency;
#[cfg(test)]
mod liar_tests;
pub mod lineage;
mod links;
pub mod log;
pub mod log_index;
pub mod log_report;
pub mod node;
pub mod notice;
#[cfg(test)]
mod opening_tests;
#[cfg(test)]
mod operator_tests;
pub mod overlay;
#[cfg(test)]
mod pace_tests;
pub mod peer;
pub mod progress;
pub mod recovery;
pub mod register;
mod resync_source;
mod resync_target;
mod room;
pub mod runs;
mod salvage;
mod sectors;
mod source;
mod split_brain;
pub mod status;
mod store;
pub mod superblock;
#[cfg(test)]
mod superblock_tests;
#[cfg(test)]
mod surface_tests;
mod target;
mod times;
pub mod trouble;
pub mod types;
#[cfg(test)]
mod uneven_tests;
pub mod verify;
mod view;

pub use api::*;
pub use config::*;
pub use disk::BlockingDisk;
pub use node::Node;
pub use recovery::{FormatIds, Recovered, RecoveryError};
pub use types::*;
