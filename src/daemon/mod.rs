//! The daemon: one thread, one io_uring loop, the core in the middle.
//!
//! [`create`] makes a node's parts; [`run`] recovers them, builds the core ([`crate::core::Node`]) and drives it until it is
//! told to stop. What reaches in from other threads goes through [`LoopHandle`].
//!
//! | module | what it is |
//! |---|---|
//! | [`ring`] | io_uring made safe; all `unsafe` of the daemon |
//! | [`disk`] | parts as files and devices |
//! | `net` | received bytes, bytes to send, sockets |
//! | `peers`, `clients` | connections to nodes and NBD clients |
//! | `event_loop` | events to the core, actions from it |
//! | `devices`, [`handoff`] | threads for what is above the volumes |
//! | `journal`, `handle` | what is said to people, and asked by them |
//! | `process` | signals, limits, the service manager |

mod clients;
mod course;
#[cfg(test)]
mod crash_tests;
mod create;
mod devices;
pub mod disk;
mod engine;
mod event_loop;
mod handle;
pub mod handoff;
mod hub;
mod journal;
mod net;
mod peers;
mod process;
pub mod ring;
mod tenure;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod voters;
pub mod witness;

pub use create::create;
pub use handle::{LoopHandle, Request};
pub use journal::{Happening, rfc3339};

use crate::config::{Settings, StoreIo};
use crate::control::{ControlError, Server};
use crate::core::{Incarnation, Node, Part, RecoveryError, recovery};
use crate::voter::VoterError;
use course::Course;
use devices::Devices;
use disk::{Disk, DiskError, IoMode};
use event_loop::{Loop, Pieces};
use hub::Hub;
use journal::Journal;
use net::ListenError;
use peers::Peers;
use ring::{Ring, RingError};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use tenure::Tenure;
use voters::Voters;

/// Why a daemon does not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    #[error("the node's address: {0}")]
    Peers(ListenError),
    #[error("nbd: {0}")]
    Nbd(ListenError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("the kernel ended the I/O loop: {0}")]
    Loop(io::Error),
    #[error(transparent)]
    Voter(#[from] VoterError),
    #[error("{0}")]
    Handoff(String),
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: io::Error },
}

/// Buffers that are kept for reuse beside the memory that the file allows for writes: for requests, reads and frames.
const KEEP_BESIDE: usize = 32 << 20;

impl DaemonError {
    /// Another process has what this one needs.
    fn is_in_use(&self) -> bool {
        use ListenError::{PortInUse, SocketInUse};
        matches!(self, DaemonError::Disk(DiskError::InUse { .. }))
            || matches!(self, DaemonError::Peers(e) | DaemonError::Nbd(e) if matches!(e, PortInUse { .. } | SocketInUse { .. }))
    }
}

/// The longest that what a killed daemon held is waited for.
const FREED_WITHIN: Duration = Duration::from_secs(2);

/// Runs a node's daemon in this thread until it is told to stop, by its control socket, SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
/// Whatever keeps it from starting, in words; and where the kernel refuses to go on.
pub fn run(settings: Settings) -> Result<(), DaemonError> {
    process::serve_devices(&settings.devices);
    process::raise_open_files();
    let (mut event_loop, handle) = prepare(settings.clone())?;
    // Last, so that whoever finds the socket finds a daemon that can serve.
    let _control = Server::start(&settings.control, handle)?;
    process::notify("READY=1");
    let ended = event_loop.run().map_err(DaemonError::Loop);
    process::notify("STOPPING=1");
    ended
}

/// Everything up to the loop: recovery, the core, listeners, the ring.
fn prepare(mut settings: Settings) -> Result<(Loop<Node>, LoopHandle), DaemonError> {
    settings.node.incarnation = Incarnation(random_u128()?);
    settings.node.boot = boot_id()?;
    crate::buf::keep_at_most(usize::try_from(settings.node.memory).unwrap_or(usize::MAX).saturating_add(KEEP_BESIDE));
    let mut disk = once_free(|| Ok(Disk::open(&settings)?))?;
    let mut peers = once_free(|| Peers::new(&settings).map_err(DaemonError::Peers))?;
    let clients = once_free(|| clients::Clients::new(&settings).map_err(DaemonError::Nbd))?;
    let hub = Hub { ring: Ring::new()?, events: VecDeque::new(), journal: Journal::new(), now: event_loop::now() };
    let (devices, waiting) = Devices::new(&settings);
    let (handoffs, above) = handoff::Handoffs::new(&settings).map_err(DaemonError::Handoff)?;
    let (handle, requests) =
        handle::channel(devices.clone(), handoffs.clone()).map_err(system("make an event descriptor"))?;
    let signal = process::signals().map_err(system("handle signals"))?;
    let recovered = recovery::recover(&settings.node, &mut disk)?;
    let asked_for = |path: &Path| settings.store_io == StoreIo::Buffered && settings.stores.iter().any(|s| s == path);
    let unasked: Vec<String> = disk
        .modes()
        .filter(|(path, mode)| *mode == IoMode::Buffered && !asked_for(path))
        .map(|(path, _)| path.display().to_string())
        .collect();
    let voters = Voters::start(&settings, &handle)?;
    if let Some(server) = voters.server() {
        peers.set_voter(server);
    }
    let course = Course::new(&settings.dir, settings.node.my_name());
    let mut engine = Node::new(settings.node, recovered, hub.now);
    if disk.is_cached(Part::Log) {
        engine.log_is_cached();
    }
    let tenure = Tenure::open(&settings.dir);
    waiting.start(handle.clone(), handoffs.clone()).map_err(system("start a thread"))?;
    above.start(handle.clone(), devices.clone()).map_err(system("start a thread"))?;
    let mut pieces =
        Pieces { hub, engine, disk, peers, clients, tenure, course, voters, devices, handoffs, requests, signal };
    pieces.hub.journal.note(&pieces.voters.happening());
    unasked.into_iter().for_each(|path| pieces.hub.journal.note(&Happening::BufferedIo { path }));
    Ok((Loop::new(pieces), handle))
}

/// A killed daemon's files and ports become free a little later than its process ends: the kernel takes a ring apart in the
/// background. What is in use is therefore tried again, for a while.
fn once_free<T>(mut attempt: impl FnMut() -> Result<T, DaemonError>) -> Result<T, DaemonError> {
    let until = Instant::now() + FREED_WITHIN;
    loop {
        match attempt() {
            Err(e) if e.is_in_use() && Instant::now() < until => std::thread::sleep(FREED_WITHIN / 100),
            other => return other,
        }
    }
}

fn system(what: &'static str) -> impl Fn(io::Error) -> DaemonError {
    move |source| DaemonError::System { what, source }
}

fn random_u128() -> Result<u128, DaemonError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| DaemonError::System { what: "draw random numbers", source: io::Error::other(e.to_string()) })?;
    Ok(u128::from_le_bytes(bytes))
}

/// The random identity of this boot of the kernel (C5); where it does not tell, one that no other process has.
fn boot_id() -> Result<u128, DaemonError> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).or_else(|_| random_u128())
}
