//! Room in local sockets.

use nix::sys::socket::{setsockopt, sockopt};
use std::os::fd::AsFd;

/// Enough for eight of a device's longest requests. What the system gives (208 KiB, mostly) is less than one, and whoever sends it waits in the
/// middle until the other end has woken up and made room.
const BYTES: usize = 2 << 20;

/// Lets a local socket hold that much of what is sent on it and was not received. A matter of speed alone: where it is not allowed, it
/// stays with what is (`net.core.wmem_max`).
pub fn give(socket: &impl AsFd) {
    if setsockopt(socket, sockopt::SndBufForce, &BYTES).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Write};
    use std::os::unix::net::UnixStream;

    fn fits(stream: &UnixStream) -> usize {
        stream.set_nonblocking(true).unwrap();
        let mut sent = 0;
        loop {
            match (&mut &*stream).write(&[0; 64 << 10]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return sent,
                Err(e) => panic!("{e}"),
            }
        }
    }

    #[test]
    fn a_socket_holds_more_afterwards() {
        let most: usize = std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap().trim().parse().unwrap();
        let (plain, _other) = UnixStream::pair().unwrap();
        let (roomy, _another) = UnixStream::pair().unwrap();
        give(&roomy);
        if nix::unistd::geteuid().is_root() || most >= BYTES {
            assert!(fits(&roomy) >= BYTES, "as much as was asked for");
        } else {
            assert!(fits(&roomy) >= fits(&plain), "no less than before");
        }
    }
}
