//! One file, served by this process over `/dev/fuse`: the raw protocol, without a library and without a mount point.
//!
//! The mount is never attached to a folder: it exists only as a descriptor ([`Fuse::mount`]). So it is in nobody's mount table, and
//! goes by itself with the last descriptor of it, or when this process ends, however it ends. The file has a name, since tools tell
//! loop devices apart by the names of the files below. Everything is direct I/O: what is read and written is cached by the device above it, not here too.

mod proto;

use crate::buffers::{self, Buffer};
use crate::front::{Front, Op, Request, Shape};
use proto::{Header, IN_HEADER, Out, WRITE_IN, init, opcode, open, out_header, u32_at, u64_at};
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of one read or write at most; the kernel splits longer ones.
pub const MAX_IO: usize = 256 << 10;
/// Requests at a time: what a loop device has in flight at most.
const DEPTH: u16 = 128;
/// Bytes before the data of a write.
const BEFORE_DATA: usize = IN_HEADER + WRITE_IN;
/// Pages of the largest request.
const MAX_PAGES: u16 = (MAX_IO / 4096) as u16;

/// The two nodes that there are, and how long what is said of them is good for.
const ROOT: u64 = 1;
const FILE: u64 = 2;
const VALID_S: u64 = 1 << 30;

/// A request that waits for its answer.
struct Slot {
    unique: u64,
    buffer: Buffer,
    op: Op,
}

/// The serving end.
pub struct Fuse {
    dev: File,
    shape: Shape,
    name: String,
    slots: Vec<Slot>,
    free: Vec<u16>,
}

/// What is not for the volume was answered; what is, comes out.
enum Taken {
    Answered,
    Request(Op),
}

impl Fuse {
    /// Opens `/dev/fuse`, and takes all the memory that serving will ever need.
    ///
    /// # Errors
    /// Where the kernel has no FUSE, or not for this user.
    pub fn new(shape: Shape, name: &str) -> io::Result<Fuse> {
        let dev = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/fuse")?;
        let buffers = buffers::take(usize::from(DEPTH), BEFORE_DATA + MAX_IO)?.into_iter();
        let slots = buffers.map(|buffer| Slot { unique: 0, buffer, op: Op::Flush }).collect();
        Ok(Fuse { dev, shape, name: name.to_string(), slots, free: (0..DEPTH).rev().collect() })
    }

    /// Makes the file system. It answers from when this process serves it.
    ///
    /// # Errors
    /// Where the kernel refuses it: it takes root.
    pub fn mount(&self) -> io::Result<Mount> {
        let context = syscall_fd(|| {
            // SAFETY: a constant string, and flags.
            unsafe { libc::syscall(libc::SYS_fsopen, c"fuse".as_ptr(), libc::FSOPEN_CLOEXEC) }
        })?;
        let fd = std::ffi::CString::new(self.dev.as_raw_fd().to_string())?;
        let settings: [(&CStr, &CStr); 5] = [
            (c"source", c"understudy"),
            (c"fd", &fd),
            (c"rootmode", c"40500"),
            (c"user_id", c"0"),
            (c"group_id", c"0"),
        ];
        for (key, value) in settings {
            configure(&context, libc::FSCONFIG_SET_STRING, Some((key, value)))?;
        }
        configure(&context, libc::FSCONFIG_CMD_CREATE, None)?;
        let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        let mount = syscall_fd(|| {
            // SAFETY: a descriptor that lives, and flags.
            unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attributes) }
        })?;
        Ok(Mount { root: mount, name: self.name.clone() })
    }

    fn take(&mut self, slot: u16, length: usize) -> io::Result<Taken> {
        let bytes = &self.slots[usize::from(slot)].buffer[..length];
        let Some(header) = Header::parse(bytes) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a request of FUSE that is not as long as it says"));
        };
        let (unique, body) = (header.unique, &bytes[IN_HEADER..]);
        let answer = match header.opcode {
            opcode::INIT => self.init(body),
            opcode::LOOKUP => self.look_up(header.node, body),
            opcode::GETATTR => Ok(self.attributes(header.node)),
            opcode::SETATTR if u32_at(body, 0) & proto::SETATTR_SIZE != 0 => Err(libc::EPERM),
            opcode::SETATTR => Ok(self.attributes(header.node)),
            opcode::OPEN => {
                let flags = open::DIRECT_IO | open::NOFLUSH | open::PARALLEL_DIRECT_WRITES;
                Ok(Out::default().u64(0).u32(flags).u32(0).done())
            }
            opcode::STATFS => Ok(self.statistics()),
            opcode::RELEASE | opcode::FLUSH | opcode::DESTROY => Ok(Vec::new()),
            opcode::FORGET | opcode::BATCH_FORGET => return Ok(Taken::Answered),
            opcode::READ | opcode::WRITE | opcode::FSYNC | opcode::FALLOCATE => {
                match check(&self.shape, header.opcode, body) {
                    Ok(op) => {
                        let slot = &mut self.slots[usize::from(slot)];
                        (slot.unique, slot.op) = (unique, op);
                        return Ok(Taken::Request(op));
                    }
                    Err(errno) => Err(errno),
                }
            }
            // The kernel remembers it, and does not ask again.
            _ => Err(libc::ENOSYS),
        };
        match answer {
            Ok(body) => self.answer(unique, 0, &body)?,
            Err(errno) => self.answer(unique, errno, &[])?,
        }
        Ok(Taken::Answered)
    }

    fn init(&self, body: &[u8]) -> Result<Vec<u8>, i32> {
        let (major, minor, readahead, flags) = (u32_at(body, 0), u32_at(body, 4), u32_at(body, 8), u32_at(body, 12));
        if major != proto::MAJOR || minor < proto::MINOR_LEAST {
            return Err(libc::EPROTO);
        }
        let wanted = init::ASYNC_READ | init::BIG_WRITES | init::ASYNC_DIO | init::MAX_PAGES;
        let out = Out::default().u32(proto::MAJOR).u32(minor.min(proto::MINOR)).u32(readahead).u32(flags & wanted);
        // Requests in the background, and from when on there are many; then the sizes of one.
        let out = out.u16(DEPTH).u16(DEPTH).u32(MAX_IO as u32).u32(1).u16(MAX_PAGES).u16(0);
        Ok(out.zeros(32).done())
    }

    /// `fuse_entry_out`.
    fn look_up(&self, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        if node != ROOT || body.strip_suffix(&[0]) != Some(self.name.as_bytes()) {
            return Err(libc::ENOENT);
        }
        let out = Out::default().u64(FILE).u64(0).u64(VALID_S).u64(VALID_S).u32(0).u32(0);
        Ok(self.attribute(FILE, out).done())
    }

    /// `fuse_attr_out`.
    fn attributes(&self, node: u64) -> Vec<u8> {
        self.attribute(node, Out::default().u64(VALID_S).u32(0).u32(0)).done()
    }

    /// `fuse_attr`.
    fn attribute(&self, node: u64, out: Out) -> Out {
        let (size, mode) = match node {
            FILE if self.shape.read_only => (self.shape.size, libc::S_IFREG | 0o400),
            FILE => (self.shape.size, libc::S_IFREG | 0o600),
            _ => (0, libc::S_IFDIR | 0o500),
        };
        let out = out.u64(node).u64(size).u64(size / 512).zeros(3 * 8 + 3 * 4);
        out.u32(mode).u32(1).zeros(3 * 4).u32(self.shape.block).u32(0)
    }

    /// `fuse_statfs_out`. A loop device takes the granularity of its discards from the block size.
    fn statistics(&self) -> Vec<u8> {
        let blocks = self.shape.size / u64::from(self.shape.block);
        let out = Out::default().u64(blocks).u64(0).u64(0).u64(1).u64(0);
        out.u32(self.shape.block).u32(255).u32(self.shape.block).zeros(7 * 4).done()
    }

    fn answer(&mut self, unique: u64, error: i32, body: &[u8]) -> io::Result<()> {
        send(&self.dev, unique, error, body)
    }
}

/// A reply is one write. Of a request that the kernel has given up it knows nothing any more.
fn send(mut dev: &File, unique: u64, error: i32, body: &[u8]) -> io::Result<()> {
    let header = out_header(body.len(), error, unique);
    match dev.write_vectored(&[IoSlice::new(&header), IoSlice::new(body)]) {
        Ok(_) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Err(io::ErrorKind::NotConnected.into()),
        Err(e) => Err(e),
    }
}

/// What a request asks of the volume, or the errno that it is refused with.
fn check(shape: &Shape, opcode: u32, body: &[u8]) -> Result<Op, i32> {
    if opcode == opcode::FSYNC {
        return Ok(Op::Flush);
    }
    let offset = u64_at(body, 8);
    let modifies = opcode != opcode::READ;
    if modifies && shape.read_only {
        return Err(libc::EROFS);
    }
    let length = match opcode {
        opcode::FALLOCATE => u64_at(body, 16),
        _ => u64::from(u32_at(body, 16)),
    };
    if opcode == opcode::WRITE && body.len() as u64 != WRITE_IN as u64 + length {
        return Err(libc::EIO);
    }
    if length == 0 || offset.checked_add(length).is_none_or(|end| end > shape.size) {
        return Err(if modifies { libc::ENOSPC } else { libc::EINVAL });
    }
    let block = u64::from(shape.block);
    if !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
        return Err(libc::EINVAL);
    }
    let length = u32::try_from(length).map_err(|_| libc::EINVAL)?;
    const PUNCH: u32 = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
    const ZERO: u32 = libc::FALLOC_FL_ZERO_RANGE as u32;
    const KEEP: u32 = libc::FALLOC_FL_KEEP_SIZE as u32;
    match (opcode, u32_at(body, 24)) {
        (opcode::READ, _) => Ok(Op::Read { offset, length }),
        (opcode::WRITE, _) => Ok(Op::Write { offset, length, fua: false }),
        (_, PUNCH) => Ok(Op::Discard { offset, length }),
        (_, mode) if mode & !KEEP == ZERO => Ok(Op::Zeroes { offset, length, may_discard: false }),
        _ => Err(libc::EOPNOTSUPP),
    }
}

impl Front for Fuse {
    fn fd(&self) -> BorrowedFd<'_> {
        self.dev.as_fd()
    }

    fn depth(&self) -> usize {
        usize::from(DEPTH)
    }

    fn next(&mut self) -> io::Result<Option<Request>> {
        while let Some(&slot) = self.free.last() {
            let buffer = &mut self.slots[usize::from(slot)].buffer;
            let length = match (&self.dev).read(buffer) {
                Ok(length) => length,
                Err(e) => match e.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(None),
                    // Its asker was interrupted, or we were.
                    Some(libc::ENOENT | libc::EINTR) => continue,
                    Some(libc::ENODEV) => return Err(io::ErrorKind::NotConnected.into()),
                    _ => return Err(e),
                },
            };
            if let Taken::Request(op) = self.take(slot, length)? {
                self.free.pop();
                return Ok(Some(Request { slot, op }));
            }
        }
        Ok(None)
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    fn data(&self, slot: u16) -> &[u8] {
        let slot = &self.slots[usize::from(slot)];
        &slot.buffer[BEFORE_DATA..][..slot.op.payload()]
    }

    fn buffer(&mut self, slot: u16) -> &mut [u8] {
        let slot = &mut self.slots[usize::from(slot)];
        &mut slot.buffer[BEFORE_DATA..][..slot.op.payload()]
    }

    fn complete(&mut self, slot: u16, result: Result<(), i32>) -> io::Result<()> {
        self.free.push(slot);
        let Slot { unique, buffer, op } = &self.slots[usize::from(slot)];
        let written;
        let body: &[u8] = match (result, *op) {
            (Ok(()), Op::Read { length, .. }) => &buffer[BEFORE_DATA..][..length as usize],
            (Ok(()), Op::Write { length, .. }) => {
                written = Out::default().u32(length).u32(0).done();
                &written
            }
            _ => &[],
        };
        send(&self.dev, *unique, result.err().unwrap_or(0), body)
    }
}

/// The file system, attached nowhere.
pub struct Mount {
    root: OwnedFd,
    name: String,
}

impl Mount {
    /// Opens its one file for direct I/O. Waits until the file system is served.
    ///
    /// # Errors
    /// What the serving end answers.
    pub fn open(&self, read_only: bool) -> io::Result<File> {
        let path = format!("/proc/self/fd/{}/{}", self.root.as_raw_fd(), self.name);
        OpenOptions::new().read(true).write(!read_only).custom_flags(libc::O_DIRECT).open(path)
    }
}

fn syscall_fd(call: impl FnOnce() -> libc::c_long) -> io::Result<OwnedFd> {
    let fd = call();
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else has it. It fits: descriptors are ints.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn configure(context: &OwnedFd, command: libc::c_uint, setting: Option<(&CStr, &CStr)>) -> io::Result<()> {
    let (key, value) = setting.map_or((std::ptr::null(), std::ptr::null()), |(k, v)| (k.as_ptr(), v.as_ptr()));
    // SAFETY: both strings end with a zero and live until the call returns; they may be null for a command.
    let result = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
