//! What exists in the system for a device: its record, its links and its socket, and cleaning up behind a helper that died.
//!
//! The record is a file of JSON in [`RUN`], locked by the helper for as long as it lives. It is written before anything is made, so that
//! whatever a dead helper has left is named in it; whoever finds a record that nobody has locked cleans up.

use super::kind::Device;
use super::{LINKS, RUN, device_name};
use crate::config::DeviceKind;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a helper has made, or is about to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub resource: String,
    pub volume: String,
    pub node: String,
    /// 32 hex digits.
    pub tenure: String,
    pub kind: DeviceKind,
    #[serde(default)]
    pub read_only: bool,
    /// As the kernel calls it, `loop3`; none before it was made.
    pub device: Option<String>,
    /// The helper.
    pub pid: u32,
}

impl Record {
    pub fn name(&self) -> String {
        device_name(&self.resource, &self.volume)
    }

    /// What a loop device is marked with; the kernel keeps 63 bytes.
    pub fn mark(&self) -> String {
        format!("understudy {} {}", self.tenure, self.name())
    }

    /// The same as a number, which is all that some kinds of devices keep.
    pub fn number(&self) -> u64 {
        let bytes = self.mark();
        u64::from(crc32fast::hash(bytes.as_bytes())) << 32 | u64::from(crc32fast::hash(self.tenure.as_bytes()))
    }

    /// Whether it is a device of this node.
    pub fn is_of(&self, resource: &str, node: &str) -> bool {
        self.resource == resource && self.node == node
    }

    fn link(&self) -> PathBuf {
        Path::new(LINKS).join(self.name())
    }

    /// What becomes the link when it is whole; no device is called so.
    fn new_link(&self) -> PathBuf {
        Path::new(LINKS).join(format!(".{}.new", self.name()))
    }

    /// Removes all of a device but itself. Nothing of it may be missing, or all.
    fn remove_names(&self) {
        let points_here = |target: PathBuf| Some(target) == self.device.as_ref().map(|d| Path::new("../").join(d));
        if fs::read_link(self.link()).is_ok_and(points_here) {
            let _ = fs::remove_file(self.link());
        }
        let _ = fs::remove_file(self.new_link());
        if let Some(device) = &self.device {
            let _ = fs::remove_file(udev_file(device));
        }
    }

    /// Takes apart what a dead helper has left. What is in use goes with its last user.
    fn sweep(&self) -> io::Result<()> {
        self.remove_names();
        let _ = fs::remove_file(socket(&self.name()));
        Device::find(self).into_iter().try_for_each(|left| left.sweep())
    }
}

/// How long somebody may look at a record.
const LOOKED_AT: Duration = Duration::from_millis(5);

/// Where the helper of a device is asked.
pub fn socket(name: &str) -> PathBuf {
    Path::new(RUN).join(format!("{name}.sock"))
}

fn path(name: &str) -> PathBuf {
    Path::new(RUN).join(format!("{name}.json"))
}

/// Records of devices that have failed for ever and are still in use.
fn given_up() -> PathBuf {
    Path::new(RUN).join("failed")
}

/// What the udev rule reads of a device.
fn udev_file(device: &str) -> PathBuf {
    Path::new(RUN).join("udev").join(device)
}

/// Why there is no record to be had.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{name} has a device already, which process {pid} looks after")]
    Busy { name: String, pid: u32 },
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> RecordError + 'a {
    move |source| RecordError::Io { what, path: path.to_owned(), source }
}

/// The record of a device, locked.
pub struct Held {
    file: Flock<File>,
    path: PathBuf,
    record: Option<Record>,
}

impl Held {
    /// Takes the record of a device. Of what a dead helper has left `keep` decides: it stays, and is given back, or it is taken apart.
    ///
    /// # Errors
    /// [`RecordError::Busy`] where a helper lives.
    pub fn take(name: &str, keep: impl Fn(&Record) -> bool) -> Result<(Held, Option<Record>), RecordError> {
        let make = |folder: &Path| fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
        for folder in [Path::new(RUN), &Path::new(RUN).join("udev"), &given_up(), Path::new(LINKS)] {
            make(folder).map_err(io_error("make", folder))?;
        }
        let path = path(name);
        let mut tries = 20;
        loop {
            let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let file = open.map_err(io_error("open", &path))?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                // Whoever looks at it has it for a moment, too.
                Err(_) if tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(LOOKED_AT);
                    continue;
                }
                Err((mut file, _)) => {
                    let pid = read(&mut file).map_or(0, |r| r.pid);
                    return Err(RecordError::Busy { name: name.to_string(), pid });
                }
            };
            // Its holder may have removed it in between.
            let id = |m: fs::Metadata| (m.dev(), m.ino());
            let ours = file.metadata().map(id).map_err(io_error("look at", &path))?;
            if fs::metadata(&path).map(id).is_ok_and(|there| there == ours) {
                let mut held = Held { file, path, record: None };
                let left = read(&mut held.file);
                let kept = left.as_ref().filter(|l| keep(l)).and_then(|l| l.device.clone());
                sweep_given_up(name, kept.as_deref());
                return match left {
                    Some(left) if keep(&left) => Ok((held, Some(left))),
                    Some(left) => {
                        left.sweep().map_err(io_error("take apart what is left of", Path::new(name)))?;
                        Ok((held, None))
                    }
                    None => Ok((held, None)),
                };
            }
        }
    }

    /// Writes what exists, or is about to.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&mut self, record: Record) -> Result<(), RecordError> {
        let text = serde_json::to_vec(&record).map_err(|e| io_error("write", &self.path)(e.into()))?;
        // At every moment it is whole, the old one or the new: what follows behind is not read.
        let write = |mut file: &File| {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&text)?;
            file.set_len(text.len() as u64)
        };
        write(&self.file).map_err(io_error("write", &self.path))?;
        if let Some(device) = &record.device {
            // One that was named before came to nothing.
            if let Some(other) = self.record.as_ref().and_then(|r| r.device.as_ref()).filter(|d| *d != device) {
                let _ = fs::remove_file(udev_file(other));
            }
            let path = udev_file(device);
            fs::write(&path, format!("UNDERSTUDY_NAME={}\n", record.name())).map_err(io_error("write", &path))?;
        }
        self.record = Some(record);
        Ok(())
    }

    /// Makes the stable link, in the place of one that leads elsewhere.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn make_link(&self) -> Result<(), RecordError> {
        let Some(record) = &self.record else { return Ok(()) };
        let Some(device) = &record.device else { return Ok(()) };
        let (link, new) = (record.link(), record.new_link());
        let _ = fs::remove_file(&new);
        symlink(Path::new("../").join(device), &new).map_err(io_error("make", &new))?;
        fs::rename(&new, &link).map_err(io_error("make", &link))
    }

    /// Takes the names of the device away; the device may still be there.
    pub fn remove_names(&self) {
        self.record.iter().for_each(Record::remove_names);
    }

    /// The device has failed for ever: its names are free for another, the record of which this is no longer.
    ///
    /// # Errors
    /// Where the record stays in the way of another.
    pub fn give_up(&mut self) -> io::Result<()> {
        self.remove_names();
        let Some(record) = &self.record else { return Ok(()) };
        let name = record.name();
        // Whoever has the record may make a socket of this name: the record goes last.
        let _ = fs::remove_file(socket(&name));
        let to = given_up().join(format!("{name}.{}.json", record.pid));
        fs::rename(&self.path, &to)?;
        self.path = to;
        self.record = None;
        Ok(())
    }

    /// What was begun came to nothing: all of it is taken apart.
    pub fn discard(self) {
        if let Some(record) = &self.record {
            let _ = record.sweep();
        }
        self.remove();
    }

    /// Ends the record: nothing is left of the device.
    pub fn remove(self) {
        self.remove_names();
        // Still locked: nobody else can have it.
        let _ = fs::remove_file(&self.path);
    }
}

fn read(file: &mut File) -> Option<Record> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.read_to_end(&mut text).ok()?;
    serde_json::Deserializer::from_slice(&text).into_iter().next()?.ok()
}

/// A device that exists, or that is left of a dead helper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub record: Record,
    /// Whether its helper lives.
    pub alive: bool,
}

/// What there is of the device of this name.
pub fn look(name: &str) -> Option<Found> {
    look_at(&path(name))
}

fn look_at(path: &Path) -> Option<Found> {
    let mut file = File::open(path).ok()?;
    let record = read(&mut file)?;
    let alive = match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => false,
        Err((_, errno)) => errno == nix::errno::Errno::EWOULDBLOCK,
    };
    Some(Found { record, alive })
}

/// Devices of this name that have failed for ever, and are there until their last users go.
pub fn failed(name: &str) -> Vec<Found> {
    failed_of(name).into_iter().map(|(_, found)| found).collect()
}

fn failed_of(name: &str) -> Vec<(PathBuf, Found)> {
    let files = fs::read_dir(given_up()).into_iter().flatten().flatten().map(|e| e.path());
    let found = files.filter_map(|path| look_at(&path).map(|found| (path, found)));
    found.filter(|(_, found)| found.record.name() == name).collect()
}

/// Takes apart what helpers have left that died after their devices had failed; only while no other device of that name can be made,
/// since its mark may be the same.
fn sweep_given_up(name: &str, kept: Option<&str>) {
    for (path, Found { record, .. }) in failed_of(name).into_iter().filter(|(_, f)| !f.alive) {
        let of_it = |d: &Device| Some(d.node()) == record.device && Some(d.node().as_str()) != kept;
        // What does not go now goes with its last user: it fails, and serves nobody.
        Device::find(&record).into_iter().filter(of_it).for_each(|device| drop(device.sweep()));
        let _ = fs::remove_file(path);
    }
}

/// Cleans up behind a helper that is dead. What is in use goes with its last user.
///
/// # Errors
/// [`RecordError::Busy`] where it lives; otherwise where the system refuses.
pub fn sweep(name: &str) -> Result<(), RecordError> {
    let nothing = failed(name).iter().all(|f| f.alive);
    if nothing && fs::metadata(path(name)).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
        return Ok(());
    }
    Held::take(name, |_| false)?.0.remove();
    Ok(())
}
