//! Block devices over the volumes of an active node: `/dev/understudy/RESOURCE-VOLUME`.
//!
//! A device belongs to a process of its own, the **device helper** ([`helper`]), which takes the kernel's requests and hands them to the
//! daemon over its NBD socket. So the daemon needs no root, and may die, be restarted or replaced while the device is in use: the
//! helper keeps what was not answered, connects again, and asks once more. `docs/devices.md` says who owns what.
//!
//! A device goes on only within its tenure (C6, `daemon::tenure`): the helper asks for the volume by [`fenced_name`], which no other
//! tenure serves, and fails the device for ever once the daemon says that the tenure is over.
//!
//! | module | what it is |
//! |---|---|
//! | [`engine`] | the thread that passes requests on, and the answers back |
//! | [`helper`] | the process: makes the device, looks after it, takes it down |
//! | `record` | what exists in the system for a device, and cleaning up behind a dead helper |
//! | [`asking`] | how others speak to a helper |
//! | [`launch`] | how one is started |

pub mod asking;
mod connect;
pub mod doctor;
mod engine;
pub mod helper;
mod kind;
pub mod launch;
pub mod record;
#[cfg(test)]
mod tests;
mod wire;

use crate::core::TermId;
use std::path::PathBuf;

/// What a volume's export is also called, in this tenure alone.
pub fn fenced_name(volume: &str, tenure: TermId) -> String {
    format!("{volume}@{:032x}", tenure.0)
}

/// The longest name of a device: its socket's path, of which a `sun_path` takes 107 bytes.
pub const NAME_MAX: usize = 107 - RUN.len() - "/.sock".len();

/// How a volume's device is called, in `/dev/understudy` and elsewhere. No two are called alike: where either name holds a hyphen, a
/// dot divides them, which no name holds.
pub fn device_name(resource: &str, volume: &str) -> String {
    let divider = if resource.contains('-') || volume.contains('-') { '.' } else { '-' };
    format!("{resource}{divider}{volume}")
}

/// Where a volume's device is found, whatever kind it is of.
pub fn link(resource: &str, volume: &str) -> PathBuf {
    PathBuf::from(LINKS).join(device_name(resource, volume))
}

/// The folder of the stable links.
pub const LINKS: &str = "/dev/understudy";

/// Where helpers keep their records and sockets: gone with the machine, as the devices are.
pub const RUN: &str = "/run/understudy";

#[cfg(test)]
mod name_tests {
    use super::*;

    #[test]
    fn no_two_devices_are_called_alike() {
        assert_eq!(device_name("data", "disk0"), "data-disk0");
        let names = ["a", "b", "a-b", "b-a", "-", "a-", "-a", "--", "a--b", "a_b"];
        let all: Vec<String> = names.iter().flat_map(|r| names.map(|v| device_name(r, v))).collect();
        let different: std::collections::BTreeSet<&String> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "{all:?}");
        let longest = record::socket(&"n".repeat(NAME_MAX));
        assert!(std::os::unix::net::SocketAddr::from_pathname(&longest).is_ok());
        assert!(std::os::unix::net::SocketAddr::from_pathname(longest.with_extension("socke")).is_err());
    }
}
