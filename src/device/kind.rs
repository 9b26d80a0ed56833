//! The kinds of devices: how each is made, and taken apart.

use super::engine::{Engine, EngineHandle, Heard, Order};
use crate::config::DeviceKind;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use understudy_kernel::front::Shape;
use understudy_kernel::fuse::Fuse;
use understudy_kernel::loopdev::Loop;

/// A device that exists.
pub enum Device {
    Loop(Loop),
}

/// What it takes to make one.
pub struct Plan<'a> {
    pub shape: Shape,
    /// What it is known by again.
    pub mark: &'a str,
    pub connection: UnixStream,
    pub heard: Box<dyn Fn(Heard) + Send>,
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
    #[error("devices of the kind {0:?} are not built yet")]
    NotYet(DeviceKind),
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

/// What `auto` means on this kernel.
pub fn choose(kind: DeviceKind) -> Result<DeviceKind, DeviceError> {
    let there = |path: &str| std::path::Path::new(path).exists();
    match kind {
        DeviceKind::Auto if there("/dev/fuse") && there("/dev/loop-control") => Ok(DeviceKind::Fuse),
        DeviceKind::Auto | DeviceKind::None => Err(DeviceError::NoKind),
        DeviceKind::Fuse => Ok(kind),
        other => Err(DeviceError::NotYet(other)),
    }
}

impl Device {
    /// Makes a device of a kind that [`choose`] has chosen, and the thread that serves it.
    ///
    /// # Errors
    /// Whatever the kernel refuses.
    pub fn make(kind: DeviceKind, plan: Plan<'_>) -> Result<(Device, EngineHandle), DeviceError> {
        match kind {
            DeviceKind::Fuse => make_loop(plan),
            other => Err(DeviceError::NotYet(other)),
        }
    }

    /// As the kernel calls it.
    pub fn node(&self) -> String {
        match self {
            Device::Loop(device) => device.node(),
        }
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/dev").join(self.node())
    }

    /// Has the kernel take it apart, at once or with its last user; [`Heard::Gone`] says when.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn detach(&self) -> io::Result<()> {
        match self {
            Device::Loop(device) => device.detach(),
        }
    }

    /// Takes that back, if it has not happened.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn keep(&self) -> io::Result<()> {
        match self {
            Device::Loop(device) => device.keep(),
        }
    }

    /// What people should know about it.
    pub fn remark(&self) -> Option<&'static str> {
        match self {
            Device::Loop(device) if !device.is_direct() => {
                Some("this kernel gives the loop device no direct I/O: everything is cached twice")
            }
            Device::Loop(_) => None,
        }
    }
}

fn make_loop(plan: Plan<'_>) -> Result<(Device, EngineHandle), DeviceError> {
    let Plan { shape, mark, connection, heard, prepared } = plan;
    let front = Fuse::new(shape).map_err(failed("open /dev/fuse"))?;
    let mount = front.mount().map_err(failed("make a file system of FUSE"))?;
    let (engine, handle) = Engine::new(front, heard).map_err(failed("make an event descriptor"))?;
    handle.tell(Order::Connection(connection));
    let body = move || engine.run();
    std::thread::Builder::new().name("device".into()).spawn(body).map_err(failed("start a thread"))?;
    let file = mount.open(shape.read_only).map_err(failed("open the file that FUSE serves"))?;
    let device = Loop::attach(file.as_fd(), shape.block, shape.read_only, mark, |d| prepared(&d.node()))
        .map_err(failed("make a loop device"))?;
    Ok((Device::Loop(device), handle))
}
