//! `understudy demo`: a real pair on this machine, killed in mid-write and checked. The parts of it that a test needs, too,
//! are public: a whole resource as child processes, a load, and the memory of what was promised to it.

mod child;
pub mod cluster;
pub mod load;
pub mod oracle;
pub mod rng;
