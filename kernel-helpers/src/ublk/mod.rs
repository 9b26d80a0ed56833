//! ublk: block devices whose requests come over io_uring (Linux 6.0 and later).
//!
//! [`Ublk`] is the control side; a [`Queue`] is a [`Front`](crate::front::Front), one for each hardware queue, each served by a
//! thread of its own. With user recovery a device outlives the process that serves it: it keeps its requests until another process
//! takes it up ([`Ublk::marked`], [`Ublk::start`]), which then gets all that were not answered.

mod abi;
mod queue;

pub use queue::Queue;

use crate::front::Shape;
use crate::probe::{self, Offer};
use abi::{Command, ControlCommand, DeviceInfo, Parameters};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

const CONTROL: &str = "/dev/ublk-control";
/// Bytes of one request; the kernel splits longer ones.
pub const MAX_IO: usize = 256 << 10;
/// Requests of one queue at a time.
const DEPTH: u16 = 64;
/// The longest discard: as long as a request's 32 bits allow, in whole blocks.
const MAX_ZEROES: u32 = u32::MAX / 4096 * 4096;

type ControlRing = IoUring<squeue::Entry128, cqueue::Entry>;

/// A device of the driver.
#[derive(Clone)]
pub struct Ublk {
    number: u32,
    queues: u16,
    /// It is served, or the kernel has not noticed yet that it is no longer.
    lives: bool,
    /// It was found, and waits for somebody to serve it.
    recovers: bool,
    /// It waits for another process when the one that serves it dies.
    outlives: bool,
    /// Whether commands are encoded as ioctls are.
    encoded: bool,
    /// The driver's features, where it says them.
    known: Option<u64>,
    control: Arc<File>,
}

/// What a driver can do, of what differs between kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Devices wait for another process when the one that serves them dies.
    pub outlives: bool,
    /// A request's data can be read and written where it lies (Linux 6.15).
    pub zero_copy: bool,
}

impl Features {
    fn of(bits: u64) -> Features {
        let has = |flags: u64| bits & flags == flags;
        Features { outlives: has(OUTLIVES), zero_copy: has(abi::F_SUPPORT_ZERO_COPY) }
    }
}

/// Without the second flag requests that were under way when the process died would fail.
const OUTLIVES: u64 = abi::F_USER_RECOVERY | abi::F_USER_RECOVERY_REISSUE;

impl Ublk {
    /// Makes a device that nobody sees yet. `mark` is kept by the kernel, for [`Ublk::marked`].
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn add(shape: Shape, queues: u16, mark: u64) -> io::Result<Ublk> {
        let mut ublk = Ublk::control()?;
        let mut flags = OUTLIVES;
        flags |= if ublk.encoded { abi::F_CMD_IOCTL_ENCODE } else { 0 };
        let mut info = DeviceInfo {
            queues,
            depth: DEPTH,
            max_io_bytes: MAX_IO as u32,
            dev_id: u32::MAX,
            flags,
            own_flags: mark,
            ..DeviceInfo::default()
        };
        ublk.command(Command::ADD_DEV, &mut info, 0)?;
        ublk.number = info.dev_id;
        ublk.take(&info);
        if let Err(e) = ublk.command(Command::SET_PARAMS, &mut parameters(shape), 0) {
            let _ = ublk.delete();
            return Err(e);
        }
        Ok(ublk)
    }

    /// All devices that were made with this mark. A process that dies may not even have come to know the number of its device: so the
    /// kernel is asked of each.
    pub fn marked(mark: u64) -> Vec<Ublk> {
        let entries = std::fs::read_dir("/sys/class/ublk-char").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|e| e.file_name().to_str()?.strip_prefix("ublkc")?.parse().ok());
        let look = |number| {
            let mut ublk = Ublk { number, ..Ublk::control().ok()? };
            let info = ublk.info().ok().filter(|i| i.own_flags == mark)?;
            ublk.take(&info);
            Some(ublk)
        };
        numbers.filter_map(look).collect()
    }

    fn take(&mut self, info: &DeviceInfo) {
        self.queues = info.queues;
        (self.lives, self.recovers) = (info.state == abi::S_DEV_LIVE, info.state == abi::S_DEV_QUIESCED);
        self.outlives = Features::of(info.flags).outlives;
    }

    /// Whether its server, which is known to be dead, has left it to another. The kernel may take a moment to notice.
    pub fn recovers(&mut self) -> bool {
        patiently(|| {
            if let Ok(info) = self.info() {
                self.take(&info);
            }
            !(self.lives && self.outlives)
        });
        self.recovers
    }

    /// Whether it will wait for another server when this one dies: not before Linux 6.1.
    pub fn outlives(&self) -> bool {
        self.outlives
    }

    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Whether this kernel has all that it takes, for a process that may use it.
    pub fn offer() -> Offer {
        // The driver alone is not enough: its commands come over io_uring, and a kernel may have that forbidden.
        const URING_CMD: u8 = 46;
        match probe::device(CONTROL, "ublk_drv") {
            Offer::Yes | Offer::Forbidden if !probe::io_uring_has(URING_CMD) => Offer::No,
            offer => offer,
        }
    }

    /// What the driver says it can do; none where it cannot be asked, before Linux 6.5.
    pub fn features() -> Option<Features> {
        Ublk::control().ok()?.known.map(Features::of)
    }

    fn control() -> io::Result<Ublk> {
        let control = Arc::new(OpenOptions::new().read(true).write(true).open(CONTROL)?);
        let mut ublk = Ublk {
            number: u32::MAX,
            queues: 0,
            lives: false,
            recovers: false,
            outlives: false,
            encoded: true,
            known: None,
            control,
        };
        // Kernels that do not know this one know the plain numbers.
        let mut features = 0u64;
        ublk.encoded = ublk.command(Command::GET_FEATURES, &mut features, 0).is_ok();
        ublk.known = ublk.encoded.then_some(features);
        Ok(ublk)
    }

    /// As the kernel calls it, `ublkb0`.
    pub fn node(&self) -> String {
        format!("ublkb{}", self.number)
    }

    /// The ends at which requests come out. After them [`Ublk::start`], while each is served in a thread of its own.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn open(&self, shape: Shape) -> io::Result<Vec<Queue>> {
        // What takes long comes first: a device whose server dies between the first mapping and its first fetches cannot be taken up any
        // more, since the kernel then takes no other process for its server.
        let rooms = (0..self.queues).map(|_| queue::Room::new(DEPTH)).collect::<io::Result<Vec<_>>>()?;
        if self.recovers {
            // As long as anything of the dead process has it open, the kernel calls it busy.
            let mut begun = Ok(());
            patiently(|| {
                begun = self.bare(Command::START_USER_RECOVERY, 0);
                !matches!(&begun, Err(e) if e.raw_os_error() == Some(libc::EBUSY))
            });
            match begun {
                // Another has begun to take it up, and died: it is as it should be for this one.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                begun => begun?,
            }
        }
        let path = PathBuf::from(format!("/dev/ublkc{}", self.number));
        let mut file = Err(io::ErrorKind::NotFound.into());
        // The file is made by whoever looks after /dev: a moment later, where that is udev.
        patiently(|| {
            file = OpenOptions::new().read(true).write(true).open(&path);
            file.is_ok()
        });
        let file = Arc::new(OwnedFd::from(file?));
        let queue = |(number, room)| Queue::new(room, file.clone(), number, shape, self.encoded);
        (0..).zip(rooms).map(queue).collect()
    }

    /// Makes the device visible, or has it go on. Waits until every queue is served.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn start(&self) -> io::Result<()> {
        let command = if self.recovers { Command::END_USER_RECOVERY } else { Command::START_DEV };
        self.bare(command, u64::from(std::process::id()))
    }

    /// Takes the block device away, also from those who have it open; every queue ends.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn stop(&self) -> io::Result<()> {
        self.bare(Command::STOP_DEV, 0)
    }

    /// Deletes what is left, and waits for the last user, and for all queues to be closed.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn delete(&self) -> io::Result<()> {
        self.bare(Command::DEL_DEV, 0)
    }

    fn info(&self) -> io::Result<DeviceInfo> {
        let mut info = DeviceInfo::default();
        self.command(Command::GET_DEV_INFO, &mut info, 0)?;
        Ok(info)
    }

    fn bare(&self, command: Command, data: u64) -> io::Result<()> {
        self.issue(command, 0, 0, data)
    }

    fn command<T>(&self, command: Command, argument: &mut T, data: u64) -> io::Result<()> {
        self.issue(command, std::ptr::from_mut(argument) as u64, size_of::<T>() as u16, data)
    }

    /// One command, on a ring of its own: they are few, and some wait for long.
    fn issue(&self, command: Command, addr: u64, len: u16, data: u64) -> io::Result<()> {
        let mut ring: ControlRing = IoUring::builder().build(4)?;
        let mut bytes = [0; 80];
        let asked =
            ControlCommand { dev_id: self.number, queue_id: u16::MAX, len, addr, data, ..ControlCommand::default() };
        // SAFETY: the structure is plain numbers without padding (its size is asserted), and shorter than the 80 bytes.
        unsafe { bytes.as_mut_ptr().cast::<ControlCommand>().write_unaligned(asked) };
        let number = if self.encoded { command.encoded() } else { command.number };
        let entry = opcode::UringCmd80::new(types::Fd(self.control.as_raw_fd()), number).cmd(bytes).build();
        // SAFETY: what `addr` points to is the caller's, who waits in here until the command has completed.
        unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
        // A signal may come in between; the command must not be left while it uses the caller's memory.
        while ring.completion().is_empty() {
            match ring.submit_and_wait(1) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
        }
        let result = ring.completion().next().map_or(-libc::EIO, |c| c.result());
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }
}

/// Tries until it is done, for some seconds.
fn patiently(mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn parameters(shape: Shape) -> Parameters {
    let shift = shape.block.trailing_zeros() as u8;
    let read_only = if shape.read_only { abi::ATTR_READ_ONLY } else { 0 };
    Parameters {
        len: size_of::<Parameters>() as u32,
        types: abi::PARAM_TYPE_BASIC | abi::PARAM_TYPE_DISCARD,
        attributes: abi::ATTR_VOLATILE_CACHE | abi::ATTR_FUA | read_only,
        logical_shift: shift,
        physical_shift: 12,
        optimal_shift: 12,
        minimal_shift: 12,
        max_sectors: (MAX_IO / 512) as u32,
        dev_sectors: shape.size / 512,
        discard_granularity: shape.block.max(4096),
        max_discard_sectors: MAX_ZEROES / 512,
        max_write_zeroes_sectors: MAX_ZEROES / 512,
        max_discard_segments: 1,
        ..Parameters::default()
    }
}

/// Keeps a descriptor as long as memory is mapped through it.
type Shared = Arc<OwnedFd>;
