//! Starting a helper: a process of its own, which outlives whoever starts it.

use super::{RUN, device_name};
use crate::config::DeviceKind;
use crate::core::TermId;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Which device is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub file: PathBuf,
    pub resource: String,
    pub node: String,
    pub volume: String,
    pub kind: DeviceKind,
    pub tenure: TermId,
    pub read_only: bool,
}

/// Where a helper writes what it has to say.
fn log(name: &str) -> PathBuf {
    Path::new(RUN).join(format!("{name}.log"))
}

impl Wanted {
    pub fn name(&self) -> String {
        device_name(&self.resource, &self.volume)
    }

    /// Starts the helper, and waits until there is a device: what the helper says of it, and its process, whose end somebody should
    /// take note of.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub fn start(&self) -> Result<(Value, Child), String> {
        let mut child = self.command().spawn().map_err(|e| format!("cannot start the device's process: {e}"))?;
        let mut line = String::new();
        let read = child.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
        let mut said: Value = serde_json::from_str(&line).unwrap_or_default();
        if !said["ready"].is_null() {
            return Ok((said["ready"].take(), child));
        }
        let status = child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
        let unsaid = || {
            let log = fs::read_to_string(log(&self.name())).unwrap_or_default();
            let last = log.lines().last().unwrap_or_default();
            format!("the device's process ended ({status}) without a word ({read:?}); its log ends with: {last}")
        };
        Err(said["failed"].as_str().map_or_else(unsaid, str::to_owned))
    }

    fn command(&self) -> Command {
        // By its inode: the file may have been replaced by a newer program since this one was started.
        let mut command = Command::new("/proc/self/exe");
        let kind = serde_json::to_value(self.kind).unwrap_or_default();
        command.arg0("understudy").arg("device-helper").arg(&self.file);
        command.args(["--node", &self.node, "--volume", &self.volume]);
        command.args(["--kind", kind.as_str().unwrap_or("auto"), "--tenure", &format!("{:032x}", self.tenure.0)]);
        command.args(self.read_only.then_some("--read-only"));
        // Nothing of its starter is kept: no folder, no terminal, and no pipe that somebody waits on to end.
        // One that has failed may still write to the log before this one.
        let _ = fs::remove_file(log(&self.name()));
        let said = fs::create_dir_all(RUN).and_then(|()| File::create(log(&self.name())));
        command.current_dir("/").process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(said.map_or_else(|_| Stdio::null(), Stdio::from));
        command
    }
}

/// Forgets what a helper said that has ended in order.
pub fn forget_log(name: &str) {
    let _ = fs::remove_file(log(name));
}
