//! The watchdog: it runs while something may stand, whichever daemon has armed it.

use super::spec::claim_path;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use understudy_kernel::watchdog::Watchdog;

/// See the module's page.
pub struct Guard {
    /// As the file has it now.
    path: Option<PathBuf>,
    /// The file that names the one that runs: a daemon that dies leaves it running, and the next one feeds it.
    claim: PathBuf,
    held: Option<Watchdog>,
}

impl Guard {
    pub fn new(path: Option<PathBuf>, dir: &Path) -> Guard {
        Guard { path, claim: claim_path(dir, "watchdog"), held: None }
    }

    /// Whether a daemon before has left one running.
    pub fn is_left(&self) -> bool {
        self.claim.exists()
    }

    /// Goes on with one that a daemon before has left running.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn take_up(&mut self) -> io::Result<()> {
        let Ok(path) = fs::read_to_string(&self.claim) else { return Ok(()) };
        self.held = Some(Watchdog::arm(Path::new(&path))?);
        Ok(())
    }

    /// Something is about to go up.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn arm(&mut self) -> io::Result<()> {
        let (Some(path), None) = (&self.path, &self.held) else { return Ok(()) };
        fs::write(&self.claim, path.as_os_str().as_encoded_bytes())?;
        self.held = Some(Watchdog::arm(path)?);
        Ok(())
    }

    pub fn is_armed(&self) -> bool {
        self.held.is_some()
    }

    /// Feeds it; where nothing stands any more, it is stopped.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn feed(&mut self, nothing_stands: bool) -> io::Result<()> {
        let Some(held) = &mut self.held else { return Ok(()) };
        held.feed()?;
        if let Some(watchdog) = self.held.take_if(|_| nothing_stands) {
            watchdog.disarm()?;
            let _ = fs::remove_file(&self.claim);
        }
        Ok(())
    }

    /// The machine is to be reset; false where there is no watchdog.
    pub fn bite(&mut self) -> bool {
        self.held.take().map(Watchdog::bite).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon that dies leaves it running; the next one, whatever its file says, feeds it until nothing stands.
    #[test]
    fn one_that_was_left_running_is_fed_and_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog0");
        fs::write(&device, "").unwrap();
        let mut guard = Guard::new(Some(device.clone()), dir.path());
        assert!(!guard.is_left() && !guard.is_armed());
        guard.arm().unwrap();
        guard.feed(false).unwrap();
        assert_eq!(fs::read(&device).unwrap(), b"\0\0");
        drop(guard);
        let mut next = Guard::new(None, dir.path());
        assert!(next.is_left());
        next.take_up().unwrap();
        assert!(next.is_armed());
        next.feed(true).unwrap();
        assert!(!next.is_armed() && !next.is_left());
        assert_eq!(fs::read(&device).unwrap(), b"\0\0V", "written from its beginning");
        next.arm().unwrap();
        assert!(!next.is_armed(), "the file asks for none");
    }
}
