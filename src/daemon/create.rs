//! `understudy create`: makes a node's parts, and writes the superblock of a fresh replica.

use super::DaemonError;
use super::disk::{Disk, DiskError, LOG_BLOCK, PartFile, identity, lock, lock_dir, sync_dir};
use crate::buf::BufMut;
use crate::config::Settings;
use crate::core::{FormatIds, recovery};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What of a device is looked at to tell whether it is blank: so many bytes at its beginning and at its end.
const LOOK: u64 = 1 << 20;

/// The log is written once in runs of this many bytes: merely allocated it would run at half the rate.
const RUN: u64 = 4 << 20;

/// A part that is to be made.
struct Plan<'a> {
    path: &'a Path,
    size: u64,
    block: u32,
    log: bool,
    device: bool,
    exists: bool,
}

/// Makes the log, the stores and the folder of a node, and formats them as a fresh replica.
///
/// # Errors
/// If anything is in the way, unless `force`; then nothing has changed. If making a part fails, files that were not there
/// before are removed again.
pub fn create(settings: &Settings, force: bool) -> Result<(), DaemonError> {
    let is_new = !settings.dir.exists();
    let folder = |source| DiskError::Io { what: "make the folder", path: settings.dir.clone(), source };
    std::fs::create_dir_all(&settings.dir).map_err(folder)?;
    // Held from the first look to the end: a daemon that is started meanwhile, or another `create`, stays away from what is being made.
    let _held = lock_dir(&settings.dir)?;
    let (plans, leftovers) = match look(settings, force) {
        Ok(found) => found,
        Err(e) => {
            if is_new {
                // It is empty, or somebody else's by now.
                let _ = std::fs::remove_dir(&settings.dir);
            }
            return Err(e.into());
        }
    };
    let made: Vec<&Path> = plans.iter().filter(|p| !p.exists).map(|p| p.path).collect();
    let result = make_all(settings, &plans, &leftovers);
    if result.is_err() {
        for path in made {
            // What was never made cannot be removed, and that is fine.
            let _ = std::fs::remove_file(path);
        }
    }
    result
}

/// What is to be made and what must go, if nothing is in the way.
fn look(settings: &Settings, force: bool) -> Result<(Vec<Plan<'_>>, Vec<PathBuf>), DiskError> {
    let plans = plans(settings)?;
    let leftovers = leftovers(&settings.dir, force)?;
    plans.iter().try_for_each(|plan| check(plan, force))?;
    Ok((plans, leftovers))
}

fn plans(settings: &Settings) -> Result<Vec<Plan<'_>>, DiskError> {
    let node = &settings.node;
    let log = (settings.log.as_path(), node.log_size, LOG_BLOCK, true);
    let stores = settings.stores.iter().zip(&node.volumes).map(|(path, v)| (path.as_path(), v.size, node.block, false));
    std::iter::once(log)
        .chain(stores)
        .map(|(path, size, block, log)| {
            let meta = match std::fs::metadata(path) {
                Ok(meta) => Some(meta),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(source) => return Err(DiskError::Io { what: "look at", path: path.to_owned(), source }),
            };
            let device = meta.as_ref().is_some_and(|m| m.file_type().is_block_device());
            if meta.as_ref().is_some_and(|m| !m.is_file()) && !device {
                return Err(DiskError::Kind { path: path.to_owned() });
            }
            Ok(Plan { path, size, block, log, device, exists: meta.is_some() })
        })
        .collect()
}

/// Files of an earlier life in the node's folder, which must go; orphaned writes that were set aside are never thrown away.
fn leftovers(dir: &Path, force: bool) -> Result<Vec<PathBuf>, DiskError> {
    let failed = |source| DiskError::Io { what: "look into", path: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.strip_prefix("salvage.").is_some_and(|n| n.parse::<u32>().is_ok()) {
            return Err(DiskError::Salvage { path });
        }
        if name == "history" || name.starts_with("bitmap.") {
            found.push(path);
        }
    }
    match found.first() {
        Some(path) if !force => Err(DiskError::NotBlank { path: path.clone(), what: "of an earlier replica".into() }),
        _ => Ok(found),
    }
}

/// Refuses what exists and is not blank, or cannot be used.
fn check(plan: &Plan, force: bool) -> Result<(), DiskError> {
    if !plan.exists {
        return Ok(());
    }
    let part = PartFile::open(plan.path, Some(plan.size))?;
    let _held = lock(plan.path, &part)?;
    if plan.device {
        part.check_size(plan.size)?;
        part.check_block(plan.block)?;
    }
    if force {
        return Ok(());
    }
    match content(plan, &part)? {
        Some(what) => Err(DiskError::NotBlank { path: plan.path.to_owned(), what }),
        None => Ok(()),
    }
}

/// What a part holds, if it holds something.
fn content(plan: &Plan, part: &PartFile) -> Result<Option<String>, DiskError> {
    let size = part.size().map_err(|e| part.error("find the size of", e))?;
    if !plan.device {
        return Ok((size > 0).then(|| format!("{size} bytes")));
    }
    let length = LOOK.min(size / u64::from(LOG_BLOCK) * u64::from(LOG_BLOCK));
    for (offset, place) in [(0, "beginning"), ((size - length) / u64::from(LOG_BLOCK) * u64::from(LOG_BLOCK), "end")] {
        let bytes = part.read(offset, length).map_err(|e| part.error("read", e))?;
        if bytes.iter().any(|b| *b != 0) {
            return Ok(Some(format!("its {place} is not blank")));
        }
    }
    Ok(None)
}

fn make_all(settings: &Settings, plans: &[Plan], leftovers: &[PathBuf]) -> Result<(), DaemonError> {
    let folder = |path: &Path, source| DiskError::Io { what: "make the folder", path: path.to_owned(), source };
    for plan in plans {
        if let Some(parent) = plan.path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(|e| folder(parent, e))?;
        }
        if !plan.device {
            make_file(plan)?;
        }
        if plan.log {
            prewrite(plan)?;
            // Only now: a log that is cut short of its history would lead back to no image, and not know it (R1).
            for path in leftovers {
                let failed = |source| DiskError::Io { what: "remove", path: path.clone(), source };
                std::fs::remove_file(path).map_err(failed)?;
            }
        }
        if let Some(parent) = plan.path.parent().filter(|p| !p.as_os_str().is_empty() && !plan.device) {
            sync_dir(parent)?;
        }
    }
    sync_dir(&settings.dir)?;
    // A new sparse file reads as zeros; what a device holds is unknown (B3).
    let zero = plans.iter().all(|p| p.log || !p.device);
    let mut disk = Disk::open_parts(settings)?;
    let ids = FormatIds { log_stream: super::random_u128()?, history_stream: super::random_u128()? };
    identity::note(settings)?;
    recovery::format(&settings.node, &mut disk, ids, zero)?;
    Ok(())
}

/// An empty file of the right size. The log's space is taken now, so that a full disk is found here.
fn make_file(plan: &Plan) -> Result<(), DiskError> {
    let failed = |what| move |source: io::Error| DiskError::Io { what, path: plan.path.to_owned(), source };
    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(plan.path);
    let file: File = open.map_err(failed("create"))?;
    if plan.log {
        match fallocate(&file, FallocateFlags::empty(), 0, plan.size as i64) {
            // Then the writing of the log will show it.
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(e) => return Err(failed("find room for")(e.into())),
        }
    }
    file.set_len(plan.size).map_err(failed("size"))?;
    file.sync_all().map_err(failed("sync"))
}

fn prewrite(plan: &Plan) -> Result<(), DiskError> {
    let part = PartFile::open(plan.path, Some(plan.size))?;
    let zeros = BufMut::zeroed(RUN.min(plan.size) as usize).freeze();
    let mut at = 0;
    while at < plan.size {
        let now = RUN.min(plan.size - at);
        part.write(at, &[zeros.slice(0, now as usize)], false).map_err(|e| part.error("write", e))?;
        at += now;
    }
    part.flush().map_err(|e| part.error("flush", e))
}
