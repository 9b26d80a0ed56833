//! What the daemon asks of its process and of whoever started it.

use super::ring;
use crate::config::DeviceKind;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What a second signal makes the process end with.
const CUT_SHORT: i32 = 1;

/// Open files that are asked for, where the system allows that many: clients, peers and the control socket together stay far below.
const FILES: u64 = 8192;

/// A descriptor that becomes readable at SIGTERM, SIGINT or SIGHUP, each of which asks for an orderly end. A second one ends the
/// process at once, as SIGKILL would: what was promised survives that, but clients are not answered and the log is not flushed.
pub fn signals() -> io::Result<ring::Fd> {
    let (read, write) = UnixStream::pair()?;
    let asked = Arc::new(AtomicBool::new(false));
    // Under nohup the terminal's end is to mean nothing.
    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    for signal in [SIGTERM, SIGINT].into_iter().chain(hangup) {
        signal_hook::flag::register_conditional_shutdown(signal, CUT_SHORT, asked.clone())?;
        signal_hook::flag::register(signal, asked.clone())?;
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(Rc::new(read.into()))
}

/// Whether whoever started this process has it ignore a signal.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:")).map(str::trim);
    mask.and_then(|m| u64::from_str_radix(m, 16).ok()).is_some_and(|m| m >> (signal - 1) & 1 == 1)
}

/// Does not wait for devices that this process serves itself, where that is permitted; otherwise it must do without. Where there are to be
/// devices, what it uses of its memory stays in memory, too: it may be needed to write out what else there is. And others are killed first where there is none.
pub fn serve_devices(devices: &[DeviceKind]) {
    let _ = understudy_kernel::memory::flush_io();
    if devices.iter().any(|kind| *kind != DeviceKind::None) {
        let _ = understudy_kernel::memory::lock_what_is_used();
        let _ = understudy_kernel::memory::spare_us();
    }
}

/// Takes as many open files as are wanted and allowed: login shells often give 1024 and allow more.
pub fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < FILES
    {
        // Where that fails it stays as it was, and too many connections are refused earlier.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, FILES.min(hard), hard);
    }
}

/// Tells the service manager how far this daemon is, if there is one: sd_notify(3), which is one datagram.
pub fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&socket),
    };
    // A manager that does not listen is its own affair.
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        let _ = socket.send_to_addr(state.as_bytes(), &address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_ignored_is_seen() {
        // Rust's runtime ignores this one, and nobody ignores the other.
        assert!(is_ignored(libc::SIGPIPE) && !is_ignored(libc::SIGUSR2));
    }
}
