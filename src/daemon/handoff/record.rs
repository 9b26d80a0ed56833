//! What is begun and not undone, on disk (H1), and the history of earlier ways.

use super::spec::{CLAIMS, Spec, claim_path};
use crate::handoff::Begun;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Ways that the history keeps.
const KEPT: usize = 200;

/// As it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Which boot of the kernel it is of: no mount and no address outlives that.
    boot: String,
    pub begun: Begun,
    pub spec: Spec,
}

/// The record of a node.
pub struct Record {
    path: PathBuf,
    boot: String,
    /// As it is on disk.
    written: Option<Left>,
}

impl Record {
    /// Reads what a daemon before has left.
    ///
    /// # Errors
    /// Where there is something that cannot be read: nobody knows then what stands.
    pub fn open(dir: &Path) -> io::Result<Record> {
        let path = dir.join("handoff");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string();
        let written = match fs::read(&path) {
            Ok(bytes) => Some(serde_json::from_slice::<Left>(&bytes)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let mut record = Record { path, boot, written };
        if record.written.as_ref().is_some_and(|l| l.boot != record.boot) {
            record.written = None;
            CLAIMS.iter().for_each(|what| drop(fs::remove_file(claim_path(dir, what))));
        }
        Ok(record)
    }

    /// What is left to undo.
    pub fn left(&self) -> Option<&Left> {
        self.written.as_ref().filter(|l| !l.begun.is_empty())
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&mut self, begun: &Begun, spec: &Spec) -> io::Result<()> {
        let left = Left { boot: self.boot.clone(), begun: begun.clone(), spec: spec.clone() };
        if self.written.as_ref() == Some(&left) || (self.written.is_none() && begun.is_empty()) {
            return Ok(());
        }
        replace(&self.path, &serde_json::to_vec(&left)?)?;
        self.written = Some(left);
        Ok(())
    }
}

/// Replaces a file by another, durably.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Where the history of a node is.
pub fn history_path(dir: &Path) -> PathBuf {
    dir.join("handoff.history")
}

/// Adds a line to the history, and drops the oldest where there are too many.
///
/// # Errors
/// Where it cannot be written.
pub fn remember(dir: &Path, entry: &Value) -> io::Result<()> {
    // A takeover and the handoff behind it are written by two threads.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    let path = history_path(dir);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let mut lines: Vec<&str> = text.lines().collect();
    let entry = entry.to_string();
    lines.push(&entry);
    let kept = &lines[lines.len().saturating_sub(KEPT)..];
    replace(&path, (kept.join("\n") + "\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::Step;

    fn spec(dir: &Path) -> Spec {
        Spec {
            resource: "data".into(),
            node: "alpha".into(),
            dir: dir.to_owned(),
            devices: Vec::new(),
            mount: None,
            address: None,
            service: None,
            check: None,
            before: Vec::new(),
            after: Vec::new(),
        }
    }

    #[test]
    fn what_is_begun_is_found_again_in_the_same_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec(dir.path());
        let mut record = Record::open(dir.path()).unwrap();
        assert!(record.left().is_none());
        record.write(&Begun::from([Step::Mount]), &spec).unwrap();
        fs::write(claim_path(dir.path(), "mount"), "7:0 /mnt").unwrap();
        let again = Record::open(dir.path()).unwrap();
        assert_eq!(
            again.left().map(|l| (l.begun.clone(), l.spec.clone())),
            Some((Begun::from([Step::Mount]), spec.clone()))
        );
        let text = fs::read_to_string(dir.path().join("handoff")).unwrap().replace(&again.boot, "another");
        fs::write(dir.path().join("handoff"), text).unwrap();
        assert!(Record::open(dir.path()).unwrap().left().is_none());
        assert!(!claim_path(dir.path(), "mount").exists());
        fs::write(dir.path().join("handoff"), "garbage").unwrap();
        assert!(Record::open(dir.path()).is_err());
    }

    #[test]
    fn the_history_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..KEPT + 3 {
            remember(dir.path(), &Value::from(n)).unwrap();
        }
        let text = fs::read_to_string(history_path(dir.path())).unwrap();
        assert_eq!((text.lines().count(), text.lines().next()), (KEPT, Some("3")));
    }
}
