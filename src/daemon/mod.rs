//! The daemon: one thread, one io_uring loop, the core in the middle.

pub mod ring;
