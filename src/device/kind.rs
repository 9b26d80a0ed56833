//! The kinds of devices: how each is made, found again, and taken apart.

use super::engine::{Engine, EngineHandle, Heard, Order};
use super::record::Record;
use crate::config::DeviceKind;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use understudy_kernel::front::{Front, Shape};
use understudy_kernel::fuse::Fuse;
use understudy_kernel::loopdev::Loop;
use understudy_kernel::nbd::Nbd;
use understudy_kernel::probe::{self, Offer};
use understudy_kernel::ublk::{Queue, Ublk};

/// Queues of a ublk device at most: each has a thread and a connection, and the daemon behind them all is one thread.
const QUEUES: u16 = 2;

/// A device that exists.
pub enum Device {
    Loop(Loop),
    Nbd(Nbd),
    Ublk(Ublk),
}

/// Who is told what the engines hear, with the number of the engine.
pub type Listener = Arc<dyn Fn(usize, Heard) + Send + Sync>;

/// What it takes to make one.
pub struct Plan<'a> {
    pub shape: Shape,
    /// What it is to be known by again.
    pub record: &'a Record,
    /// What a helper of the same tenure has left when it died.
    pub left: Option<Record>,
    /// Makes a connection to the daemon, as many as are needed.
    pub connect: &'a mut dyn FnMut() -> io::Result<UnixStream>,
    pub heard: Listener,
    /// Told the kernel's name of it before there is anything to be seen.
    pub prepared: &'a mut dyn FnMut(&str) -> io::Result<()>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("cannot {what}: {source}{}", remedy(source))]
    Io { what: &'static str, source: io::Error },
    #[error("this kernel offers no kind of device: see `understudy doctor`")]
    NoKind,
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => " (see `understudy doctor`)",
        _ => "",
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> DeviceError {
    move |source| DeviceError::Io { what, source }
}

/// What `auto` means on this kernel. ublk comes first, since it outlives the process that serves it; the kernel's NBD client needs one layer
/// less than FUSE and a loop device do.
///
/// # Errors
/// Where the kernel offers none.
pub fn choose(kind: DeviceKind) -> Result<DeviceKind, DeviceError> {
    // A process without the right to it says what one with it would get.
    let there = |offer: Offer| matches!(offer, Offer::Yes | Offer::Forbidden);
    let device = |path: &str, module: &str| there(probe::device(path, module));
    match kind {
        DeviceKind::Auto if there(Ublk::offer()) => Ok(DeviceKind::Ublk),
        DeviceKind::Auto if there(probe::module("nbd")) => Ok(DeviceKind::Nbd),
        DeviceKind::Auto if device("/dev/fuse", "fuse") && device("/dev/loop-control", "loop") => Ok(DeviceKind::Fuse),
        DeviceKind::Auto | DeviceKind::None => Err(DeviceError::NoKind),
        DeviceKind::Fuse | DeviceKind::Nbd | DeviceKind::Ublk => Ok(kind),
    }
}

impl Device {
    /// Makes a device of a kind that [`choose`] has chosen, and the threads that serve it.
    ///
    /// # Errors
    /// Whatever the kernel refuses.
    pub fn make(plan: Plan<'_>) -> Result<(Device, Vec<EngineHandle>), DeviceError> {
        match plan.record.kind {
            DeviceKind::Fuse => make_loop(plan),
            DeviceKind::Ublk => make_ublk(plan),
            DeviceKind::Nbd => make_nbd(plan),
            DeviceKind::Auto | DeviceKind::None => Err(DeviceError::NoKind),
        }
    }

    /// All that a dead helper has left.
    pub fn find(record: &Record) -> Vec<Device> {
        match record.kind {
            DeviceKind::Fuse => {
                let left = record.device.as_deref().and_then(|d| Loop::find(d, &record.mark()));
                left.map(Device::Loop).into_iter().collect()
            }
            DeviceKind::Ublk => Ublk::marked(record.number()).into_iter().map(Device::Ublk).collect(),
            DeviceKind::Nbd => Nbd::find(&record.mark()).map(Device::Nbd).into_iter().collect(),
            DeviceKind::Auto | DeviceKind::None => Vec::new(),
        }
    }

    /// As the kernel calls it.
    pub fn node(&self) -> String {
        match self {
            Device::Loop(device) => device.node(),
            Device::Nbd(device) => device.node(),
            Device::Ublk(device) => device.node(),
        }
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/dev").join(self.node())
    }

    /// Whether somebody has it for himself: a mount, swap, or a device on top of it.
    pub fn is_claimed(&self) -> bool {
        let open = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(self.path());
        open.is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY))
    }

    /// Has the kernel take it apart; [`Heard::Gone`] says when that is done: at once, or with the last user.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn detach(&self) -> io::Result<()> {
        match self {
            Device::Loop(device) => device.detach(),
            Device::Nbd(device) => device.disconnect(),
            Device::Ublk(device) => device.stop(),
        }
    }

    /// Takes that back, if it has not happened.
    ///
    /// # Errors
    /// What the kernel answers; where it cannot be taken back, [`io::ErrorKind::Unsupported`].
    pub fn keep(&self) -> io::Result<()> {
        match self {
            Device::Loop(device) => device.keep(),
            Device::Nbd(_) | Device::Ublk(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Takes apart what a dead helper has left.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn sweep(&self) -> io::Result<()> {
        self.detach()?;
        if let Device::Ublk(device) = self {
            // It waits for the last user, which may take for ever.
            let device = device.clone();
            let body = move || drop(device.delete());
            let deleting = std::thread::Builder::new().name("deleting".into()).spawn(body)?;
            for _ in 0..100 {
                if deleting.is_finished() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// What people should know about it.
    pub fn remark(&self) -> Option<&'static str> {
        match self {
            Device::Loop(device) if !device.is_direct() => {
                Some("this kernel gives the loop device no direct I/O: everything is cached twice")
            }
            Device::Ublk(device) if !device.outlives() => {
                Some("this kernel's ublk fails requests when the device's process dies (Linux 6.1 or newer does not)")
            }
            _ => None,
        }
    }
}

/// Starts the thread that serves a front, with its connection.
fn engine<F: Front + Send + 'static>(
    front: F,
    number: usize,
    heard: &Listener,
    connection: UnixStream,
) -> io::Result<EngineHandle> {
    let heard = heard.clone();
    let (engine, handle) = Engine::new(front, move |h| heard(number, h))?;
    handle.tell(Order::Connection(connection));
    std::thread::Builder::new().name(format!("device-{number}")).spawn(move || engine.run())?;
    Ok(handle)
}

fn make_loop(plan: Plan<'_>) -> Result<(Device, Vec<EngineHandle>), DeviceError> {
    let Plan { shape, record, connect, heard, prepared, .. } = plan;
    let front = Fuse::new(shape, &record.name()).map_err(failed("open /dev/fuse"))?;
    let mount = front.mount().map_err(failed("make a file system of FUSE"))?;
    let connection = connect().map_err(failed("connect to the daemon"))?;
    let handle = engine(front, 0, &heard, connection).map_err(failed("start a thread"))?;
    let file = mount.open(shape.read_only).map_err(failed("open the file that FUSE serves"))?;
    let device = Loop::attach(file.as_fd(), shape.block, shape.read_only, &record.mark(), |d| prepared(&d.node()))
        .map_err(failed("make a loop device"))?;
    Ok((Device::Loop(device), vec![handle]))
}

fn make_nbd(plan: Plan<'_>) -> Result<(Device, Vec<EngineHandle>), DeviceError> {
    let Plan { shape, record, connect, heard, prepared, .. } = plan;
    let (device, ends) = Nbd::connect(shape, QUEUES.into(), &record.mark())
        .map_err(failed("make a device of the kernel's NBD client"))?;
    let heard = after(ends.len(), heard, || {});
    let started = || -> io::Result<Vec<EngineHandle>> {
        prepared(&device.node())?;
        ends.into_iter().enumerate().map(|(number, end)| engine(end, number, &heard, connect()?)).collect()
    };
    match started() {
        Ok(handles) => Ok((Device::Nbd(device), handles)),
        Err(e) => {
            let _ = device.disconnect();
            Err(failed("serve a device of the kernel's NBD client")(e))
        }
    }
}

fn make_ublk(plan: Plan<'_>) -> Result<(Device, Vec<EngineHandle>), DeviceError> {
    let Plan { shape, record, left, connect, heard, prepared } = plan;
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u16);
    let mut going_on = None;
    for mut device in left.iter().flat_map(|l| Ublk::marked(l.number())) {
        if going_on.is_none() && device.recovers() {
            going_on = Some(device);
        } else {
            // It was being made, or taken down.
            Device::Ublk(device).sweep().map_err(failed("take apart what is left of a ublk device"))?;
        }
    }
    // Before anything is touched: a device that is in use stays as it is for the next attempt.
    let queues = going_on.as_ref().map_or(cpus.min(QUEUES), Ublk::queues);
    let connections = (0..queues).map(|_| connect()).collect::<io::Result<Vec<_>>>();
    let connections = connections.map_err(failed("connect to the daemon"))?;
    let goes_on = going_on.is_some();
    let device = match going_on {
        Some(device) => device,
        None => Ublk::add(shape, queues, record.number()).map_err(failed("make a ublk device"))?,
    };
    let noted = prepared(&device.node()).map_err(failed("note the device"));
    let opened = noted.and_then(|()| device.open(shape).map_err(failed("open the queues of a ublk device")));
    if opened.is_err() && goes_on {
        // The one that was left fails for ever, and there is a new one.
        let _ = Device::Ublk(device).sweep();
        return make_ublk(Plan { shape, record, left: None, connect, heard, prepared });
    }
    match opened.and_then(|queues| serve_ublk(&device, queues, connections, heard)) {
        Ok(handles) => Ok((Device::Ublk(device), handles)),
        Err(e) => {
            let _ = Device::Ublk(device).sweep();
            Err(e)
        }
    }
}

fn serve_ublk(
    device: &Ublk,
    queues: Vec<Queue>,
    connections: Vec<UnixStream>,
    heard: Listener,
) -> Result<Vec<EngineHandle>, DeviceError> {
    // Deleting waits for the last user. Where it fails nothing more can be done about it.
    let deleted = device.clone();
    let heard = after(queues.len(), heard, move || drop(deleted.delete()));
    let start = |(number, (queue, connection))| engine(queue, number, &heard, connection);
    let handles = queues.into_iter().zip(connections).enumerate().map(start).collect::<io::Result<_>>();
    let handles = handles.map_err(failed("start a thread"))?;
    device.start().map_err(failed("start a ublk device"))?;
    Ok(handles)
}

/// Passes on what is heard; that the device is gone only when all engines have said so, and what is to be done then is done.
fn after(engines: usize, heard: Listener, last: impl Fn() + Clone + Send + Sync + 'static) -> Listener {
    let left = AtomicUsize::new(engines);
    Arc::new(move |number, what| {
        if !matches!(what, Heard::Gone) {
            return heard(number, what);
        }
        if left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let (later, last) = (heard.clone(), last.clone());
        let body = move || {
            last();
            later(number, Heard::Gone);
        };
        // By another thread: this one has the last engine's end open.
        if std::thread::Builder::new().name("last".into()).spawn(body).is_err() {
            heard(number, Heard::Gone);
        }
    })
}
