//! `understudy demo`: a real pair on this machine, killed in mid-write and checked. The parts of it that tests need, too,
//! are public: a whole resource as child processes, a load, and the memory of what was promised to it.

pub mod cluster;
mod compare;
mod device;
pub mod load;
pub mod oracle;
pub mod rng;
mod script;

pub use compare::{Difference, compare};
pub use script::{DemoError, Options};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Runs the demonstration with the process's signals: SIGINT, SIGTERM and SIGHUP end it early, its daemons and its folder with
/// it. To be called once in a process.
pub fn run(options: Options, out: &mut dyn Write) -> Result<(), DemoError> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // Fails only for signals that may not be handled, which these are not; without it the demonstration works, too.
        let _ = signal_hook::flag::register(signal, flag.clone());
    }
    // The handlers stay for as long as the process.
    let flag: &'static Arc<AtomicBool> = Box::leak(Box::new(flag));
    script::run(options, flag, out)
}
