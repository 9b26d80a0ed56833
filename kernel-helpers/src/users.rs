//! Who uses a block device, in words.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Most users that are named.
const NAMED: usize = 8;

/// Mounts, swap, devices on top of it, and processes that have it open, as far as this process may see them; this process
/// itself does not count.
pub fn of(device: &Path) -> Vec<String> {
    let Ok(meta) = fs::metadata(device) else { return Vec::new() };
    let rdev = meta.rdev();
    let mut users = mounts(rdev);
    users.extend(swaps(rdev));
    users.extend(holders(rdev));
    users.extend(processes(rdev));
    users.truncate(NAMED);
    users
}

fn numbers(rdev: u64) -> String {
    format!("{}:{}", libc::major(rdev), libc::minor(rdev))
}

/// Mounts in any mount namespace: each process tells its own.
fn mounts(rdev: u64) -> Vec<String> {
    let device = numbers(rdev);
    let mut found = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for pid in pids() {
        let namespace = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        if namespace.is_none_or(|n| !seen.insert(n)) {
            continue;
        }
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        for line in table.lines() {
            let mut fields = line.split(' ');
            if fields.nth(2) == Some(&device)
                && let Some(at) = fields.nth(1)
            {
                found.push(format!("it is mounted at {at}"));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

fn swaps(rdev: u64) -> Option<String> {
    let table = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut paths = table.lines().skip(1).filter_map(|l| l.split_whitespace().next());
    paths.any(|p| fs::metadata(p).is_ok_and(|m| m.rdev() == rdev)).then(|| "it is swap space".to_string())
}

fn holders(rdev: u64) -> Vec<String> {
    let folder = fs::read_dir(format!("/sys/dev/block/{}/holders", numbers(rdev)));
    let entries = folder.into_iter().flatten().flatten();
    entries.map(|e| format!("the device {} is on it", e.file_name().to_string_lossy())).collect()
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

fn processes(rdev: u64) -> Vec<String> {
    let mut found = Vec::new();
    for pid in pids().into_iter().filter(|p| *p != std::process::id()) {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        // Only what is called like a device is looked at: to ask another file could wait for a file system that does not answer.
        let is_device = |path: &Path| fs::read_link(path).is_ok_and(|target| target.starts_with("/dev"));
        let is_it = |path: &Path| fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device() && m.rdev() == rdev);
        if entries.map(|e| e.path()).any(|p| is_device(&p) && is_it(&p)) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            found.push(format!("process {pid} ({}) has it open", name.trim()));
        }
    }
    found
}
