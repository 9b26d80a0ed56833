//! The daemon's side: a thread that accepts, and one for each connection.

use super::line::{LineError, Lines};
use super::request::{self, Request};
use super::{Backend, ControlError, REQUEST_MAX};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, bind, listen, recv, shutdown, socket,
};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::Duration;

/// Connections at a time: each holds a thread.
const CONNECTIONS_MAX: usize = 32;
/// A connection that says nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// A client that does not read for so long is given up.
const WRITE: Duration = Duration::from_secs(10);
/// How soon the thread of an event stream sees that its client is gone.
const EVENT_POLL: Duration = Duration::from_millis(500);

/// The running control socket. Dropping it ends the accepting and removes the socket; connections that are waiting for a
/// command end with it.
pub struct Server {
    path: PathBuf,
    /// Device and inode of our socket, so that a successor's is left alone.
    identity: (u64, u64),
    listener: Arc<UnixListener>,
    stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Offers the socket at `path`, mode 0600. The socket of a daemon that is gone is replaced; one that a daemon answers on
    /// is refused as [`ControlError::AlreadyRunning`].
    pub fn start<B: Backend>(path: &Path, backend: B) -> Result<Server, ControlError> {
        remove_stale(path)?;
        let failed = |what| move |source: io::Error| ControlError::Socket { what, path: path.to_owned(), source };
        let listener = Arc::new(bind_private(path).map_err(failed("make"))?);
        let meta = fs::symlink_metadata(path).map_err(failed("look at"))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let acceptor = {
            let (listener, stopping) = (listener.clone(), stopping.clone());
            let body = move || accept_loop(&listener, &stopping, &backend);
            std::thread::Builder::new().name("control".into()).spawn(body).map_err(failed("start a thread for"))?
        };
        let identity = (meta.dev(), meta.ino());
        Ok(Server { path: path.to_owned(), identity, listener, stopping, acceptor: Some(acceptor) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity) {
            // Only a convenience for the next start, which would find a stale socket and replace it.
            let _ = fs::remove_file(&self.path);
        }
        // Wakes accept, which then sees `stopping`.
        let woken = shutdown(self.listener.as_raw_fd(), Shutdown::Both).is_ok();
        if let Some(acceptor) = self.acceptor.take().filter(|_| woken) {
            let _ = acceptor.join();
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), ControlError> {
    let owned = || path.to_owned();
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ControlError::Socket { what: "look at", path: owned(), source }),
        Ok(meta) if !meta.file_type().is_socket() => return Err(ControlError::NotASocket { path: owned() }),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ControlError::AlreadyRunning { path: owned() }),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|source| ControlError::Socket { what: "remove the stale", path: owned(), source }),
        Err(source) => Err(ControlError::Socket { what: "tell whether a daemon answers on", path: owned(), source }),
    }
}

/// A listening socket that nobody else could connect to at any moment: its mode is set before it listens.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listen(&fd, Backlog::new(64)?)?;
    Ok(UnixListener::from(fd))
}

fn accept_loop<B: Backend>(listener: &UnixListener, stopping: &Arc<AtomicBool>, backend: &B) {
    let open = Arc::new(AtomicUsize::new(0));
    while !stopping.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, _)) => serve(stream, &open, stopping, backend),
            // Such as too many open files: not for ever, and no reason to spin.
            Err(_) if !stopping.load(Ordering::Acquire) => std::thread::sleep(Duration::from_millis(50)),
            Err(_) => break,
        }
    }
}

/// Counts a connection as long as it lives.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve<B: Backend>(stream: UnixStream, open: &Arc<AtomicUsize>, stopping: &Arc<AtomicBool>, backend: &B) {
    let taken = open.fetch_add(1, Ordering::AcqRel);
    let slot = Slot(open.clone());
    if stream.set_write_timeout(Some(WRITE)).is_err() {
        return;
    }
    if taken >= CONNECTIONS_MAX {
        let _ = write_line(&stream, &request::refused("too many connections to the control socket: close some"));
        return;
    }
    let (backend, stopping) = (backend.clone(), stopping.clone());
    let body = move || {
        let _slot = slot;
        converse(stream, &stopping, &backend);
    };
    // Where no thread can be had, the closure and with it the connection is dropped: the client sees it close.
    let _ = std::thread::Builder::new().name("control-conn".into()).stack_size(256 << 10).spawn(body);
}

fn converse<B: Backend>(stream: UnixStream, stopping: &AtomicBool, backend: &B) {
    let mut lines = Lines::new(stream, REQUEST_MAX);
    while !stopping.load(Ordering::Acquire) {
        let line = match lines.next(Some(IDLE)) {
            Ok(line) => line,
            Err(LineError::TooLong) => {
                let _ = write_line(
                    lines.stream(),
                    &request::refused(format!("the request is longer than {REQUEST_MAX} bytes")),
                );
                return;
            }
            Err(LineError::Closed | LineError::TimedOut | LineError::Io(_)) => return,
        };
        let answer = match request::parse(&line) {
            Err(e) => request::refused(e),
            Ok(Request::Status) => request::ok(backend.status()),
            Ok(Request::Core(command)) => match backend.command(command) {
                Ok(result) => request::ok(result),
                Err(reason) => request::refused(reason),
            },
            Ok(Request::Retry) => match backend.retry() {
                Ok(result) => request::ok(result),
                Err(reason) => request::refused(reason),
            },
            Ok(Request::Stop) => {
                // Answered first: afterwards the process may be gone at any moment.
                let _ = write_line(lines.stream(), &request::ok(json!("stopping")));
                backend.stop();
                return;
            }
            Ok(Request::Events) => return stream_events(lines.stream(), stopping, backend),
        };
        if write_line(lines.stream(), &answer).is_err() {
            return;
        }
    }
}

fn stream_events<B: Backend>(stream: &UnixStream, stopping: &AtomicBool, backend: &B) {
    // Subscribed before the answer: whoever has read the answer misses nothing that happens after.
    let events = backend.subscribe();
    if write_line(stream, &request::ok(json!("events follow"))).is_err() {
        return;
    }
    while !stopping.load(Ordering::Acquire) && !hung_up(stream) {
        match events.recv_timeout(EVENT_POLL) {
            Ok(event) => {
                if write_raw(stream, event).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn hung_up(stream: &UnixStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(stream.as_raw_fd(), &mut [0], flags) {
        Ok(0) => true,
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => false,
        Err(_) => true,
    }
}

fn write_line(stream: &UnixStream, value: &Value) -> io::Result<()> {
    write_raw(stream, value.to_string())
}

fn write_raw(mut stream: &UnixStream, mut line: String) -> io::Result<()> {
    line.push('\n');
    stream.write_all(line.as_bytes())
}
