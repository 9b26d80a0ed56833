//! Mounting and unmounting, by system calls.

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::collections::BTreeSet;
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
    /// What it is mounted on.
    parent: u64,
    /// `7:3`
    pub device: String,
    pub at: PathBuf,
    /// Of its file system.
    pub kind: String,
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
    let parent = fields.next()?.parse().ok()?;
    let device = fields.next()?.to_string();
    let at = PathBuf::from(unescape(fields.nth(1)?));
    let mut tail = tail.split(' ');
    let kind = unescape(tail.next()?);
    let source = unescape(tail.next()?);
    Some(Mounted { id, parent, device, at, kind, source })
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

/// What is on top of all that is mounted there.
pub fn at(path: &Path) -> Option<Mounted> {
    top(&table("self"), path).cloned()
}

/// The same, of a table.
pub fn top<'a>(table: &'a [Mounted], path: &Path) -> Option<&'a Mounted> {
    let mut there = table.iter().filter(|m| m.at == path);
    there.find(|m| !table.iter().any(|over| over.parent == m.id && over.at == path))
}

/// Where the device `numbers` (`7:3`) is mounted, in whatever mount namespace.
pub fn anywhere(numbers: &str) -> Vec<Mounted> {
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()) {
        let namespace = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        if namespace.is_some_and(|n| seen.insert(n)) {
            found.extend(table(&pid.to_string()).into_iter().filter(|m| m.device == numbers));
        }
    }
    found
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
        let (kind, source) = ("ext3".into(), "/dev/loop3".into());
        assert_eq!(parse(line), Some(Mounted { id: 36, parent: 35, device: "98:0".into(), at, kind, source }));
        assert_eq!(parse("garbage"), None);
        assert!(self::at(Path::new("/proc")).is_some());
    }

    /// The kernel lists them as it likes.
    #[test]
    fn the_top_of_what_is_mounted_is_found() {
        let mounted =
            |id: u64, parent: u64, at: &str| parse(&format!("{id} {parent} 0:{id} / {at} rw - tmpfs t rw")).unwrap();
        let table =
            [mounted(9, 8, "/m"), mounted(8, 7, "/m"), mounted(7, 1, "/m"), mounted(1, 0, "/"), mounted(5, 9, "/m/x")];
        let top = |path: &str| top(&table, Path::new(path)).map(|m| m.id);
        assert_eq!((top("/m"), top("/"), top("/m/x"), top("/n")), (Some(9), Some(1), Some(5), None));
    }

    #[test]
    fn options_are_flags_or_the_file_systems_own() {
        let (flags, rest) = options("defaults,noatime, nosuid,data=journal,commit=5");
        assert_eq!((flags, rest.as_str()), (MsFlags::MS_NOATIME | MsFlags::MS_NOSUID, "data=journal,commit=5"));
        assert_eq!(options(""), (MsFlags::empty(), String::new()));
    }
}
