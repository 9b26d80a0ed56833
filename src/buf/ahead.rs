//! Huge pages made ready beforehand, by a thread of their own.
//!
//! The first use of one takes the kernel long, for it is cleared, and where a virtual machine's host has to find the memory for it, some
//! milliseconds. The thread that has everything else to do must not wait for that.

use super::arena::{HUGE_PAGE, Mapping};
use std::sync::mpsc::{Receiver, channel};

/// Pages on their way.
pub struct Ahead(Receiver<Mapping>);

impl Ahead {
    /// So many of them. None where there is no thread to be had: then they are made when they are needed.
    pub fn start(count: usize) -> Option<Ahead> {
        let (ready, coming) = channel();
        let make = move || {
            // Whoever takes them may be gone.
            (0..count).map_while(|_| ready.send(Mapping::touched(HUGE_PAGE)).ok()).for_each(drop);
        };
        std::thread::Builder::new().name("memory".into()).spawn(make).ok()?;
        Some(Ahead(coming))
    }

    /// One that is ready.
    pub fn take(&self) -> Option<Mapping> {
        self.0.try_recv().ok()
    }
}
