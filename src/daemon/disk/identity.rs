//! Which file or device each store is: it holds nothing that would say whose it is. What it was when the replica was made stands in the
//! node's folder, so that two paths that were exchanged, or a device that has another's name since the last boot, are not served.

use super::{DiskError, sync_dir};
use crate::config::Settings;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where a disk says which it is, below its folder in /sys: of device mapper, NVMe, SCSI, virtio, and loop devices.
const MARKS: [&str; 5] = ["dm/uuid", "wwid", "device/wwid", "serial", "loop/backing_file"];

fn record(dir: &Path) -> PathBuf {
    dir.join("stores")
}

/// What tells a file or device from others, wherever it is found; none where nothing does.
fn identity(path: &Path) -> io::Result<Option<String>> {
    let meta = fs::metadata(path)?;
    if !meta.file_type().is_block_device() {
        return Ok(Some(format!("inode {}", meta.ino())));
    }
    let number = meta.rdev();
    let device = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
    Ok(fs::canonicalize(device).ok().and_then(|found| of_device(&found)))
}

fn of_device(sys: &Path) -> Option<String> {
    if let Some(partition) = said(&sys.join("partition")) {
        return Some(format!("partition {partition} of {}", of_device(sys.parent()?)?));
    }
    MARKS.iter().find_map(|mark| said(&sys.join(mark)))
}

/// One line, without what would not fit there.
fn said(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// Each volume's store as it is now, where that can be told.
fn present(settings: &Settings) -> Result<BTreeMap<String, String>, DiskError> {
    let mut present = BTreeMap::new();
    for (volume, path) in settings.node.volumes.iter().zip(&settings.stores) {
        let failed = |source| DiskError::Io { what: "look at", path: path.clone(), source };
        if let Some(identity) = identity(path).map_err(failed)? {
            present.insert(volume.name.clone(), identity);
        }
    }
    Ok(present)
}

fn write(dir: &Path, stores: &BTreeMap<String, String>) -> Result<(), DiskError> {
    let path = record(dir);
    let failed = |source| DiskError::Io { what: "write", path: path.clone(), source };
    let new = path.with_extension("new");
    let lines: String = stores.iter().map(|(volume, identity)| format!("{volume} {identity}\n")).collect();
    fs::write(&new, lines).and_then(|()| fs::File::open(&new)?.sync_all()).map_err(failed)?;
    fs::rename(&new, &path).map_err(failed)?;
    sync_dir(dir)
}

/// Notes which stores were made.
pub fn note(settings: &Settings) -> Result<(), DiskError> {
    write(&settings.dir, &present(settings)?)
}

/// Refuses a store that is another than it was. What was not noted yet is noted.
pub fn check(settings: &Settings) -> Result<(), DiskError> {
    let path = record(&settings.dir);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(DiskError::Io { what: "read", path, source }),
    };
    let noted: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let present = present(settings)?;
    for (volume, store) in settings.node.volumes.iter().zip(&settings.stores) {
        let (was, is) = (noted.get(volume.name.as_str()), present.get(&volume.name));
        if let (Some(was), Some(is)) = (was, is)
            && was != is
        {
            let (store, volume) = (store.clone(), volume.name.clone());
            return Err(DiskError::OtherStore { store, volume, was: (*was).into(), is: is.clone(), record: path });
        }
    }
    if present.keys().all(|volume| noted.contains_key(volume.as_str())) {
        return Ok(());
    }
    let kept = noted.into_iter().map(|(volume, was)| (volume.to_string(), was.to_string()));
    write(&settings.dir, &present.into_iter().chain(kept).collect())
}
