//! Loop devices: a block device over a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4c04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const NAME: usize = 64;
/// Somebody else may take the free number first.
const ATTEMPTS: usize = 32;

/// `loop_info64` of `linux/loop.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; NAME],
    crypt_name: [u8; NAME],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A loop device that this module has made, or found by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    number: u32,
    name: String,
}

impl Loop {
    /// Makes a device over `file`, with direct I/O. The name, cut to 63 bytes, is how it is known again.
    ///
    /// # Errors
    /// What the kernel answers; where no loop device is free to be had, [`io::ErrorKind::WouldBlock`]. `prepared` is told the number
    /// before there is anything to be seen, and may refuse too.
    pub fn attach(
        file: BorrowedFd<'_>,
        block: u32,
        read_only: bool,
        name: &str,
        mut prepared: impl FnMut(&Loop) -> io::Result<()>,
    ) -> io::Result<Loop> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let name = cut(name);
        for _ in 0..ATTEMPTS {
            // SAFETY: the call takes no argument.
            let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })? as u32;
            let made = Loop { number, name: name.to_owned() };
            // A device that is configured through a read-only descriptor becomes read-only.
            let device = OpenOptions::new().read(true).write(!read_only).open(made.path())?;
            if made.info(&device)?.is_some() {
                continue;
            }
            prepared(&made)?;
            let flags = LO_FLAGS_DIRECT_IO | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
            let mut info = Info { flags, ..EMPTY };
            info.file_name[..name.len()].copy_from_slice(name.as_bytes());
            let fd = file.as_raw_fd() as u32;
            let config = Config { fd, block_size: block, info, reserved: [0; 8] };
            // SAFETY: the structure has the layout that the call reads, and lives until it returns.
            match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) }) {
                Ok(_) => return Ok(made),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// The device `/dev/NODE`, if it is a loop device that was made with this name.
    pub fn find(node: &str, name: &str) -> Option<Loop> {
        let number = node.strip_prefix("loop")?.parse().ok()?;
        let found = Loop { number, name: cut(name).to_owned() };
        found.is_attached().then_some(found)
    }

    /// As the kernel calls it, `loop3`.
    pub fn node(&self) -> String {
        format!("loop{}", self.number)
    }

    pub fn path(&self) -> PathBuf {
        format!("/dev/{}", self.node()).into()
    }

    /// Whether reads and writes go past the cache of the file below.
    pub fn is_direct(&self) -> bool {
        let path = format!("/sys/block/{}/loop/dio", self.node());
        std::fs::read_to_string(path).is_ok_and(|t| t.trim() == "1")
    }

    /// Whether it is still the one that was made.
    pub fn is_attached(&self) -> bool {
        let info = self.open().and_then(|device| self.info(&device));
        info.is_ok_and(|i| i.is_some_and(|i| i.file_name.iter().take(self.name.len()).eq(self.name.as_bytes())))
    }

    /// Has the kernel take it apart: at once if nobody has it open, else when the last one has closed it.
    ///
    /// # Errors
    /// What the kernel answers; a device that is not there any more is none.
    pub fn detach(&self) -> io::Result<()> {
        let device = self.open()?;
        if !self.is_attached() {
            return Ok(());
        }
        // SAFETY: the call takes no argument.
        match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) }) {
            Err(e) if e.raw_os_error() != Some(libc::ENXIO) => Err(e),
            _ => Ok(()),
        }
    }

    /// Takes [`Loop::detach`] back, as long as somebody has it open.
    ///
    /// # Errors
    /// What the kernel answers, such as that it is gone.
    pub fn keep(&self) -> io::Result<()> {
        let device = self.open()?;
        let mut info = self.info(&device)?.ok_or(io::ErrorKind::NotFound)?;
        info.flags &= !LO_FLAGS_AUTOCLEAR;
        // SAFETY: as above.
        check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64, &info) }).map(drop)
    }

    fn open(&self) -> io::Result<File> {
        // Read-only: the close of a writer makes udev look at the device.
        File::open(self.path())
    }

    fn info(&self, device: &File) -> io::Result<Option<Info>> {
        let mut info = EMPTY;
        // SAFETY: the structure has the layout that the call writes.
        match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &mut info) }) {
            Ok(_) => Ok(Some(info)),
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

const EMPTY: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; NAME],
    crypt_name: [0; NAME],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// Names that we give are ASCII.
fn cut(name: &str) -> &str {
    name.get(..NAME - 1).unwrap_or(name)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
