//! Sockets: made, described, and brought to an end.

use crate::config::NbdListen;
use crate::daemon::ring::Fd;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, SockaddrLike, SockaddrStorage, getsockname, setsockopt, shutdown,
    socket, sockopt,
};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use understudy_kernel::room;

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "cannot listen on {address}: the port is in use by another process. Stop that, or choose another port in the file"
    )]
    PortInUse { address: SocketAddr },
    #[error("cannot listen on {address}: {source}")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("cannot listen on {}: another process listens there already", path.display())]
    SocketInUse { path: PathBuf },
    #[error("cannot listen on {}: something that is not a socket is in the way. Move it away, or choose another path", path.display())]
    NotASocket { path: PathBuf },
    #[error("cannot listen on {}: {source}", path.display())]
    Unix { path: PathBuf, source: io::Error },
}

impl ListenError {
    /// The address does not belong to this host at the moment; it may come, as a floating address does.
    pub fn address_missing(&self) -> bool {
        matches!(self, ListenError::Tcp { source, .. } if source.kind() == io::ErrorKind::AddrNotAvailable)
    }
}

/// A listening socket. A unix socket's file goes with it.
pub struct Listener {
    fd: Fd,
    /// Path, device and inode of a unix socket, so that a successor's is left alone.
    file: Option<(PathBuf, u64, u64)>,
}

impl Listener {
    /// Listens for TCP connections.
    pub fn tcp(address: SocketAddr) -> Result<Listener, ListenError> {
        let listener = TcpListener::bind(address).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::PortInUse { address },
            _ => ListenError::Tcp { address, source },
        })?;
        Ok(Listener { fd: Rc::new(listener.into()), file: None })
    }

    /// Listens on a unix socket. One that is left over from a process that is gone is replaced.
    pub fn unix(path: &Path) -> Result<Listener, ListenError> {
        remove_stale(path)?;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::SocketInUse { path: path.to_owned() },
            _ => ListenError::Unix { path: path.to_owned(), source },
        };
        let listener = UnixListener::bind(path).map_err(failed)?;
        let meta = std::fs::symlink_metadata(path).map_err(failed)?;
        Ok(Listener { fd: Rc::new(listener.into()), file: Some((path.to_owned(), meta.dev(), meta.ino())) })
    }

    /// Listens where the file says.
    pub fn nbd(spec: &NbdListen) -> Result<Listener, ListenError> {
        match spec {
            NbdListen::Unix(path) => Listener::unix(path),
            NbdListen::Tcp(address) => Listener::tcp(*address),
        }
    }

    pub fn fd(&self) -> &Fd {
        &self.fd
    }

    /// Where it listens, if that is TCP.
    pub fn address(&self) -> Option<SocketAddr> {
        let listener = TcpListener::from(self.fd.try_clone().ok()?);
        listener.local_addr().ok()
    }
}

impl Drop for Listener {
    /// Nobody can connect any more, even while an accept holds the descriptor open.
    fn drop(&mut self) {
        close_abruptly(&self.fd);
        if let Some((path, device, inode)) = &self.file
            && std::fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (*device, *inode))
        {
            // Only a courtesy: who comes next would find it stale.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Unix { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(ListenError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ListenError::SocketInUse { path: path.to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(failed),
        Err(e) => Err(failed(e)),
    }
}

/// A socket to dial `address` with.
pub fn tcp_socket(address: SocketAddr) -> io::Result<Fd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    Ok(Rc::new(nodelay(fd)))
}

/// Small messages leave at once. For a socket that is not TCP this does nothing.
pub fn nodelay(socket: OwnedFd) -> OwnedFd {
    let stream = TcpStream::from(socket);
    // A matter of speed alone.
    let _ = stream.set_nodelay(true);
    stream.into()
}

/// A local client's long reads fit in its socket. TCP finds out by itself what it needs, and is left alone.
pub fn give_room(socket: &OwnedFd) {
    let address = getsockname::<SockaddrStorage>(socket.as_raw_fd());
    if address.is_ok_and(|a| a.family() == Some(AddressFamily::Unix)) {
        room::give(socket);
    }
}

/// A client whose machine is gone without a word is found out within two minutes, where it would hold its place for ever. For a
/// socket that is not TCP this does nothing.
pub fn keepalive(socket: &OwnedFd) {
    // Where one cannot be set the system's own times hold.
    let _ = setsockopt(socket, sockopt::KeepAlive, &true);
    let _ = setsockopt(socket, sockopt::TcpKeepIdle, &60);
    let _ = setsockopt(socket, sockopt::TcpKeepInterval, &15);
    let _ = setsockopt(socket, sockopt::TcpKeepCount, &4);
}

/// Who is at the other end, for people.
pub fn origin(socket: &OwnedFd) -> String {
    let address = socket.try_clone().and_then(|fd| TcpStream::from(fd).peer_addr());
    address.map_or_else(|_| "a local client".into(), |a| a.to_string())
}

/// Ends whatever is waiting on the socket in either direction. The descriptor itself is closed when its last user is done.
pub fn close_abruptly(socket: &Fd) {
    // It may be closed already.
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
}

/// Ends a receive that is waiting; what is to be sent can still be sent.
pub fn end_receiving(socket: &Fd) {
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Read);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        // A descriptor that is closed without removing its file, as by SIGKILL.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::unix(&path).unwrap();
        assert!(matches!(Listener::unix(&path), Err(ListenError::SocketInUse { .. })));
        assert!(UnixStream::connect(&path).is_ok());
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, b"precious").unwrap();
        assert!(matches!(Listener::unix(&path), Err(ListenError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_successors_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let first = Listener::unix(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = Listener::unix(&path).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
    }

    #[test]
    fn a_port_in_use_is_said() {
        let held = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = held.address().unwrap();
        let text = Listener::tcp(address).err().unwrap().to_string();
        assert!(text.contains(&address.to_string()) && text.contains("in use"), "{text}");
        let missing = Listener::tcp("192.0.2.1:1".parse().unwrap()).err().unwrap();
        assert!(missing.address_missing(), "{missing}");
    }
}
