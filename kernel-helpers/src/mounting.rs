//! Mounting and unmounting, by system calls.

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Why a file system is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("cannot make the folder {}: {source}", at.display())]
    Folder { at: PathBuf, source: io::Error },
    #[error("{0} is mounted at {1} already: unmount it")]
    Taken(String, String),
    #[error("the kernel does not mount {} as {kind} at {}: {}", device.display(), at.display(), in_words(errno))]
    Refused { device: PathBuf, kind: String, at: PathBuf, errno: Errno },
    #[error("cannot look at {}: {source}", path.display())]
    Look { path: PathBuf, source: io::Error },
}

/// What the kernel's answer most likely means.
fn in_words(errno: &Errno) -> String {
    let hint = match errno {
        Errno::EINVAL => " (the device holds no such file system, it is damaged, or an option is not known to it)",
        Errno::ENODEV => " (this kernel has no such file system)",
        Errno::EBUSY => " (the device or the folder is in use)",
        Errno::EIO | Errno::EUCLEAN => " (it cannot be read, or is damaged)",
        _ => "",
    };
    format!("{}{hint}", errno.desc())
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Unique in the kernel.
    pub id: u64,
    /// `7:3`
    pub device: String,
    pub at: PathBuf,
    pub source: String,
}

/// The mounts of a process's namespace (`self`, or its id).
pub fn table(process: &str) -> Vec<Mounted> {
    let text = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<Mounted> {
    let (fields, tail) = line.split_once(" - ")?;
    let mut fields = fields.split(' ');
    let id = fields.next()?.parse().ok()?;
    let device = fields.nth(1)?.to_string();
    let at = PathBuf::from(unescape(fields.nth(1)?));
    let source = unescape(tail.split(' ').nth(1)?);
    Some(Mounted { id, device, at, source })
}

/// The kernel writes blanks and the like as `\040`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let digits = more.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[3..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What is mounted there last.
pub fn at(path: &Path) -> Option<Mounted> {
    table("self").into_iter().rev().find(|m| m.at == path)
}

/// `7:3` of a block device.
///
/// # Errors
/// Where it is not there.
pub fn numbers(device: &Path) -> io::Result<String> {
    let rdev = fs::metadata(device)?.rdev();
    Ok(format!("{}:{}", libc::major(rdev), libc::minor(rdev)))
}

/// Flags, and what is left for the file system itself.
fn options(text: &str) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut rest = Vec::new();
    for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        match word {
            "defaults" | "rw" | "auto" | "noauto" | "nofail" | "_netdev" => {}
            "ro" => flags |= MsFlags::MS_RDONLY,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            "lazytime" => flags |= MsFlags::MS_LAZYTIME,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            other => rest.push(other),
        }
    }
    (flags, rest.join(","))
}

/// Mounts a device; makes the folder where there is none. What is mounted there already from this very device stays.
///
/// # Errors
/// See [`MountError`].
pub fn put_on(device: &Path, at: &Path, kind: &str, text: &str) -> Result<(), MountError> {
    let look = |source| MountError::Look { path: device.to_owned(), source };
    let device = fs::canonicalize(device).map_err(look)?;
    fs::create_dir_all(at).map_err(|source| MountError::Folder { at: at.to_owned(), source })?;
    let at = fs::canonicalize(at).map_err(|source| MountError::Look { path: at.to_owned(), source })?;
    if let Some(there) = self::at(&at) {
        let ours = numbers(&device).map_err(look)?;
        return if there.device == ours {
            Ok(())
        } else {
            Err(MountError::Taken(there.source, at.display().to_string()))
        };
    }
    let (flags, data) = options(text);
    let data = Some(data.as_str()).filter(|d| !d.is_empty());
    mount(Some(&device), &at, Some(kind), flags, data).map_err(|errno| MountError::Refused {
        device,
        kind: kind.to_string(),
        at,
        errno,
    })
}

/// Takes down what is mounted at `at`; nothing there is fine.
///
/// # Errors
/// [`Errno::EBUSY`] where somebody holds it.
pub fn take_off(at: &Path, lazily: bool) -> Result<(), Errno> {
    let flags = if lazily { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(at, flags | MntFlags::UMOUNT_NOFOLLOW) {
        // Nothing is mounted there, or there is no such folder.
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let line = r"36 35 98:0 /mnt1 /srv/my\040data rw,noatime master:1 - ext3 /dev/loop3 rw,errors=continue";
        let at = PathBuf::from("/srv/my data");
        assert_eq!(parse(line), Some(Mounted { id: 36, device: "98:0".into(), at, source: "/dev/loop3".into() }));
        assert_eq!(parse("garbage"), None);
        assert!(self::at(Path::new("/proc")).is_some());
    }

    #[test]
    fn options_are_flags_or_the_file_systems_own() {
        let (flags, rest) = options("defaults,noatime, nosuid,data=journal,commit=5");
        assert_eq!((flags, rest.as_str()), (MsFlags::MS_NOATIME | MsFlags::MS_NOSUID, "data=journal,commit=5"));
        assert_eq!(options(""), (MsFlags::empty(), String::new()));
    }
}
