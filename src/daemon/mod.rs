//! The daemon: one thread, one io_uring loop, the core in the middle.

pub mod disk;
pub mod ring;
#[cfg(test)]
mod testing;
