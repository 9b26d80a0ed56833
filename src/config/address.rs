//! Addresses of peers and of NBD listeners.

use super::error::Problem;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The longest path of a unix socket: `sun_path` without its closing zero.
const SOCKET_PATH_MAX: usize = 107;

/// Where the NBD server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdListen {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl NbdListen {
    /// The URI by which an NBD client on this host finds a volume.
    pub fn uri(&self, volume: &str) -> String {
        match self {
            NbdListen::Unix(path) => format!("nbd+unix:///{volume}?socket={}", escape(path)),
            NbdListen::Tcp(address) => format!("nbd://{address}/{volume}"),
        }
    }
}

impl fmt::Display for NbdListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NbdListen::Unix(path) => write!(f, "unix:{}", path.display()),
            NbdListen::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// A path as part of a URI's query.
fn escape(path: &Path) -> String {
    let mut escaped = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => escaped.push(*byte as char),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

/// An address that peers dial: an IP and a port, loopback unless `insecure`.
pub fn peer_address(text: &str, insecure: bool) -> Result<SocketAddr, Problem> {
    let address: SocketAddr = text.parse().map_err(|_| Problem::BadAddress)?;
    if address.port() == 0 {
        return Err(Problem::NoPort);
    }
    if address.ip().is_unspecified() {
        return Err(Problem::Unspecified);
    }
    if !address.ip().is_loopback() && !insecure {
        return Err(Problem::NotLoopback);
    }
    Ok(address)
}

/// `unix:/PATH` or `tcp:IP:PORT`; like a peer's address, TCP is loopback unless `insecure`.
pub fn nbd_listen(text: &str, insecure: bool) -> Result<NbdListen, Problem> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        check_socket_path(&path)?;
        return Ok(NbdListen::Unix(path));
    }
    let address: SocketAddr = text.strip_prefix("tcp:").and_then(|a| a.parse().ok()).ok_or(Problem::BadListen)?;
    if address.port() == 0 {
        return Err(Problem::NoPort);
    }
    if !address.ip().is_loopback() && !insecure {
        return Err(Problem::NotLoopback);
    }
    Ok(NbdListen::Tcp(address))
}

/// Refuses what cannot be the path of a unix socket.
pub fn check_socket_path(path: &Path) -> Result<(), Problem> {
    let length = path.as_os_str().len();
    if !path.is_absolute() {
        Err(Problem::RelativePath)
    } else if length > SOCKET_PATH_MAX {
        Err(Problem::SocketPathTooLong { length })
    } else {
        Ok(())
    }
}

/// Whether two addresses are certainly of one machine.
pub fn same_machine(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip() == b.ip() || (a.ip().is_loopback() && b.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_what_nbd_clients_read() {
        let unix = NbdListen::Unix("/run/my disk/a.sock".into());
        assert_eq!(unix.uri("disk0"), "nbd+unix:///disk0?socket=/run/my%20disk/a.sock");
        let tcp = NbdListen::Tcp("[::1]:10809".parse().unwrap());
        assert_eq!(tcp.uri("disk0"), "nbd://[::1]:10809/disk0");
    }

    #[test]
    fn loopback_is_one_machine_and_other_addresses_only_if_equal() {
        let a = |s: &str| s.parse().unwrap();
        assert!(same_machine(a("127.0.0.1:1"), a("[::1]:1")));
        assert!(same_machine(a("10.0.0.1:1"), a("10.0.0.1:2")));
        assert!(!same_machine(a("10.0.0.1:1"), a("10.0.0.2:1")));
    }
}
