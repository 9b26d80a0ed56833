//! What a kernel offers: each question is asked of the kernel itself, by trying, not of its version.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What came of asking the kernel for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It is there, for this process.
    Yes,
    /// It is there, and this process may not use it.
    Forbidden,
    /// A module has it that is not loaded.
    Module,
    No,
}

/// Whether io_uring knows an operation, by its number.
pub fn io_uring_has(opcode: u8) -> bool {
    let Ok(ring) = io_uring::IoUring::new(2) else { return false };
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe).is_ok() && probe.is_supported(opcode)
}

/// A device file that can be opened where its driver is there.
pub fn device(path: &str, module: &str) -> Offer {
    match OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(_) => Offer::Yes,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Offer::Forbidden,
        Err(_) => self::module(module),
    }
}

/// Whether a driver is in the kernel, or could be loaded.
pub fn module(name: &str) -> Offer {
    if Path::new("/sys/module").join(name).exists() {
        return Offer::Yes;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let listed = |list: &str, extension: &str| {
        let path = Path::new("/lib/modules").join(release.trim()).join(list);
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| {
            let file = line.split(':').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
            let stem = file.split(extension).next().unwrap_or_default();
            file.contains(extension) && stem.replace('-', "_") == name
        })
    };
    // What is built in may have no folder of its own where it has no parameters.
    if listed("modules.builtin", ".ko") {
        Offer::Yes
    } else if listed("modules.dep", ".ko") {
        Offer::Module
    } else {
        Offer::No
    }
}

/// Whether the kernel calls something by this name in a table of its own, such as `/proc/filesystems`.
pub fn listed(table: &str, name: &str) -> bool {
    fs::read_to_string(table).is_ok_and(|t| t.split_whitespace().any(|word| word == name))
}

/// Bytes that this process may lock in memory; none: without limit.
pub fn memlock() -> Option<u64> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    const CAP_IPC_LOCK: u32 = 14;
    (soft != RLIM_INFINITY && !has_capability(CAP_IPC_LOCK)).then_some(soft)
}

/// Whether this process has a capability, which root in a container may not.
fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("CapEff:")).map(str::trim);
    mask.and_then(|m| u64::from_str_radix(m, 16).ok()).is_some_and(|m| m >> number & 1 == 1)
}

/// What a file system does with files in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// As the kernel numbers them, or by name where it is known.
    pub file_system: String,
    pub direct_io: bool,
    pub punch_hole: bool,
    pub zero_range: bool,
}

/// Tries it with a file that is gone afterwards.
///
/// # Errors
/// Where no file can be made there.
pub fn folder(path: &Path) -> io::Result<Folder> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(path)?;
    file.write_all_at(&[1; 8192], 0)?;
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(again);
    Ok(Folder {
        file_system: file_system(path)?,
        direct_io: direct.is_ok_and(|f| writes_directly(&f)),
        punch_hole: allocate(&file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
        zero_range: allocate(&file, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
    })
}

fn writes_directly(file: &File) -> bool {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    file.write_all_at(&Page([2; 4096]).0, 0).is_ok()
}

fn allocate(file: &File, mode: libc::c_int) -> bool {
    // SAFETY: a descriptor that lives, and numbers.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, 4096) == 0 }
}

fn file_system(path: &Path) -> io::Result<String> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all zeros is a value of this plain structure.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero, and the structure is there to be written.
    if unsafe { libc::statfs(path.as_ptr(), &mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let known = [
        (0xef53, "ext4"),
        (0x5846_5342, "xfs"),
        (0x9123_683e, "btrfs"),
        (0x0102_1994, "tmpfs"),
        (0x794c_7630, "overlay"),
        (0x6969, "nfs"),
        (0x2fc1_2fc1, "zfs"),
        (0x6573_5546, "fuse"),
        (0xf2f5_2010, "f2fs"),
    ];
    // Its type differs between libraries; the numbers have 32 bits.
    let number = stat.f_type as u32;
    let name = known.iter().find(|(n, _)| *n == number).map(|(_, name)| (*name).to_string());
    Ok(name.unwrap_or_else(|| format!("number {number:#x}")))
}
