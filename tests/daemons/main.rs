//! Tests with real daemons, real sockets and real clients. One program, so that all of them run beside one another; each has
//! its own folder, ports and processes. `docs/testing.md` says how to run one, and how to try a failure again.

mod block_devices;
mod bounds;
mod clients;
mod common;
mod demo;
mod devices;
mod divergence;
mod dry_run;
mod full_disk;
mod garbage;
mod handoff;
mod handoff_left;
mod handoff_steps;
mod holes;
mod hosts;
mod link;
mod overflow;
mod pair;
mod process;
mod progress;
mod refusals;
mod resync_kills;
mod takeover;
mod takeover_hosts;
mod three;
mod verify;
mod witness;
