//! How a helper comes to a connection with its daemon, and how it learns that its tenure is over.

use super::fenced_name;
use crate::config::{self, NbdListen, Settings};
use crate::control::{Client as Control, ControlError};
use crate::core::TermId;
use crate::nbd_client::NbdError;
use crate::nbd_client::negotiate::{self, Export};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// A daemon that accepts and does not answer is given up after this, and tried again.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// A volume in a tenure, and where its daemon is found.
#[derive(Clone, Debug)]
pub struct Target {
    file: PathBuf,
    resource: String,
    node: String,
    volume: String,
    tenure: TermId,
    places: Places,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Places {
    nbd: PathBuf,
    control: PathBuf,
}

/// The first unix socket on which a node serves NBD.
pub fn unix_socket(settings: &Settings) -> Option<PathBuf> {
    settings.nbd.iter().find_map(|listen| match listen {
        NbdListen::Unix(path) => Some(path.clone()),
        NbdListen::Tcp(_) => None,
    })
}

/// What came of an attempt.
pub enum Attempt {
    Connected(UnixStream, Export),
    /// Never again.
    Over(String),
    /// Perhaps later.
    Not(String),
}

impl Target {
    pub fn new(settings: &Settings, nbd: PathBuf, volume: &str, tenure: TermId) -> Target {
        Target {
            file: settings.file.clone(),
            resource: settings.node.resource.clone(),
            node: settings.node.my_name().to_string(),
            volume: volume.to_string(),
            tenure,
            places: Places { nbd, control: settings.control.clone() },
        }
    }

    /// The same where the node's file says by now that its daemon is found, if that is elsewhere.
    pub fn moved(&self) -> Option<Target> {
        let settings = Settings::new(&config::load(&self.file).ok()?, Some(&self.node)).ok()?;
        let places = Places { nbd: unix_socket(&settings)?, control: settings.control };
        let is_it = settings.node.resource == self.resource && places != self.places;
        is_it.then(|| Target { places, ..self.clone() })
    }

    pub fn attempt(&self) -> Attempt {
        match self.connect() {
            Ok((stream, export)) => Attempt::Connected(stream, export),
            // Only the daemon's own word ends a device; a refusal may also be of a daemon that is just stepping down.
            Err(error) => self.is_over().map_or_else(|| Attempt::Not(error.to_string()), Attempt::Over),
        }
    }

    fn connect(&self) -> Result<(UnixStream, Export), NbdError> {
        let failed =
            |source| NbdError::Connect { address: crate::nbd_client::Address::Unix(self.places.nbd.clone()), source };
        let stream = UnixStream::connect(&self.places.nbd).map_err(failed)?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN)).map_err(failed)?;
        stream.set_write_timeout(Some(ANSWERS_WITHIN)).map_err(failed)?;
        let name = fenced_name(&self.volume, self.tenure);
        let export = negotiate::go(&mut &stream, &stream, &name)?;
        Ok((stream, export))
    }

    /// Why the tenure is over, if the daemon says so.
    fn is_over(&self) -> Option<String> {
        let status = match Control::connect(&self.places.control).and_then(|mut c| c.status()) {
            Ok(status) => status,
            // Also while its daemon is starting.
            Err(ControlError::NotRunning { .. }) | Err(_) => return None,
        };
        // Only a whole answer counts: a daemon that is ending says little.
        let tenure = status.get("tenure")?;
        if tenure.as_str() == Some(&format!("{:032x}", self.tenure.0)) {
            return None;
        }
        Some(match status["active"].as_str() {
            Some(active) if Some(active) != status["node"].as_str() => format!("{active} is active now"),
            Some(_) => "this node was promoted anew, and another may have served in between".to_string(),
            None => "this node has stepped down".to_string(),
        })
    }
}

/// Waits until the daemon has closed its end of a connection that is given up, or has died.
pub fn await_end(stream: UnixStream) {
    // Both fail only where there is no connection any more.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(None);
    let mut rest = [0; 65536];
    while matches!((&stream).read(&mut rest), Ok(n) if n > 0) {}
}
