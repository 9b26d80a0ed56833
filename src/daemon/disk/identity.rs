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
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::create;
    use crate::daemon::disk::Disk;
    use crate::daemon::testing::{disk_dir, settings};

    fn refused(settings: &Settings) -> String {
        Disk::open(settings).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn a_store_that_is_another_is_refused() {
        let dir = disk_dir();
        let mut settings = settings(dir.path(), "alpha");
        // Of one size, so that nothing else tells them apart.
        settings.node.volumes[1].size = settings.node.volumes[0].size;
        create(&settings, false).unwrap();
        drop(Disk::open(&settings).unwrap());
        settings.stores.swap(0, 1);
        let why = refused(&settings);
        assert!(why.contains("disk1 is not the store that volume disk0 was made with"), "{why}");
        settings.stores.swap(0, 1);
        drop(Disk::open(&settings).unwrap());
        // Restored from a backup: the operator says that it is the one.
        let copy = dir.path().join("copy");
        fs::copy(&settings.stores[0], &copy).unwrap();
        fs::rename(&copy, &settings.stores[0]).unwrap();
        let why = refused(&settings);
        let record = record(&settings.dir);
        assert!(why.contains(&format!("remove {} and start again", record.display())), "{why}");
        fs::remove_file(&record).unwrap();
        drop(Disk::open(&settings).unwrap());
        drop(Disk::open(&settings).unwrap());
        assert!(record.exists(), "noted again");
    }

    #[test]
    fn a_partition_is_told_by_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let partition = dir.path().join("nvme0n1").join("nvme0n1p2");
        fs::create_dir_all(&partition).unwrap();
        fs::write(partition.join("partition"), "2\n").unwrap();
        assert_eq!(of_device(&partition), None);
        fs::write(dir.path().join("nvme0n1/wwid"), "eui.0025  38b1\n").unwrap();
        assert_eq!(of_device(&partition).as_deref(), Some("partition 2 of eui.0025 38b1"));
    }
}
