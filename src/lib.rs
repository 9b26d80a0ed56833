//! Understudy: a replicated block device for Linux, wholly in userspace.
//!
//! Start with `docs/architecture.md`. The pure core is [`core`]; the daemon and the simulator drive it.

pub mod buf;
mod child;
pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod daemon;
pub mod demo;
pub mod device;
pub mod format;
pub mod handoff;
pub mod nbd;
pub mod nbd_client;
pub mod sim;
pub mod voter;
pub mod wire;
