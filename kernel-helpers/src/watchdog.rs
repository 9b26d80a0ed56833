//! A watchdog: a device that resets the machine unless it is written to in time.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

/// An open one: it runs. Dropped without [`Watchdog::disarm`] it goes on running, and resets the machine.
pub struct Watchdog(File);

impl Watchdog {
    /// # Errors
    /// Where there is none, or another process has it.
    pub fn arm(path: &Path) -> io::Result<Watchdog> {
        let mut watchdog = Watchdog(OpenOptions::new().write(true).open(path)?);
        watchdog.feed()?;
        Ok(watchdog)
    }

    /// The machine may run on for another while.
    ///
    /// # Errors
    /// Where the device does not take it.
    pub fn feed(&mut self) -> io::Result<()> {
        self.0.write_all(b"\0")
    }

    /// Stops it; a driver that was built never to stop goes on all the same.
    ///
    /// # Errors
    /// Where the device does not take it.
    pub fn disarm(mut self) -> io::Result<()> {
        self.0.write_all(b"V")
    }

    /// The machine is to be reset as soon as the device can.
    pub fn bite(self) {
        const WDIOC_SETTIMEOUT: libc::c_ulong = 0xc004_5706;
        let mut seconds: libc::c_int = 1;
        // SAFETY: a descriptor that lives, and an integer that the driver reads and writes.
        unsafe { libc::ioctl(self.0.as_raw_fd(), WDIOC_SETTIMEOUT as _, &mut seconds) };
        // Closed without a word: it goes on running, and nobody feeds it.
    }
}
