//! The part of the demonstration that takes root: a file system on a real block device, whose daemon is killed under it.

use super::cluster::Cluster;
use super::script::DemoError;
use crate::device;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes that are written to a file, and how many of them before the daemon is killed.
const FILE: usize = 24 << 20;
const BEFORE: usize = 8 << 20;

/// A device with a file system that is mounted. Dropping it takes both away.
struct Mounted {
    /// Takes the device away.
    detach: Command,
    at: PathBuf,
    mounted: bool,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("--lazy").arg(&self.at).stderr(Stdio::null()).status();
        }
        // Nothing is left to be told where it fails.
        let _ = self.detach.status();
    }
}

/// Why there is no such part here.
pub fn impossible() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("as root this would also mount a file system on a real block device");
    }
    if device::doctor::examine(None).auto.is_none() {
        return Some("this kernel offers no kind of block device (understudy doctor): no file system is mounted");
    }
    let version = Command::new("mkfs.ext4").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_err().then_some("mkfs.ext4 is not installed: no file system is mounted")
}

fn run(program: &str, arguments: &[&dyn AsRef<Path>]) -> Result<(), DemoError> {
    let failed = |said: String| DemoError::Device { what: format!("{program}: {said}") };
    let output = Command::new(program)
        .args(arguments.iter().map(|a| a.as_ref().as_os_str()))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_string()))
}

fn contents(seed: u64) -> Vec<u8> {
    let mut word = seed | 1;
    let mut bytes = Vec::with_capacity(FILE);
    while bytes.len() < FILE {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(word ^ word >> 29).to_le_bytes());
    }
    bytes
}

/// Mounts, writes, kills the node's daemon in the middle, starts it again, and reads back: how long the longest write took.
pub fn file_system(
    cluster: &mut Cluster,
    node: usize,
    resource: &str,
    volume: &str,
    say: &mut dyn FnMut(&str) -> Result<(), DemoError>,
) -> Result<Duration, DemoError> {
    let name = cluster.name(node).to_string();
    say(&format!(
        "\nA file system on a real device:\n  # understudy attach demo.toml --node {name} --volume {volume}"
    ))?;
    let said = cluster.tool("attach", node, &["--volume", volume])?;
    say(&format!("  {}", said.trim()))?;
    let (path, at) = (device::link(resource, volume), cluster.folder().join("mnt"));
    let failed = |what: &str, e: io::Error| DemoError::Device { what: format!("{what}: {e}") };
    let mut detach = Command::new(std::env::current_exe().map_err(DemoError::NoExe)?);
    detach.arg("detach").arg(cluster.file()).args(["--node", &name, "--force"]);
    detach.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // From here on what is made is taken away, whatever happens.
    let mut mounted = Mounted { detach, at: at.clone(), mounted: false };
    let longest = {
        fs::create_dir_all(&at).map_err(|e| failed("the mount point", e))?;
        run("mkfs.ext4", &[&"-q", &"-F", &path])?;
        run("mount", &[&path, &at])?;
        mounted.mounted = true;
        let data = contents(u64::from(std::process::id()));
        let mut file = File::create(at.join("file")).map_err(|e| failed("a file", e))?;
        let mut longest = Duration::ZERO;
        let mut write = |file: &mut File, pieces: &[u8]| -> Result<(), DemoError> {
            for piece in pieces.chunks(256 << 10) {
                let began = Instant::now();
                file.write_all(piece).and_then(|()| file.sync_data()).map_err(|e| failed("a write to the file", e))?;
                longest = longest.max(began.elapsed());
            }
            Ok(())
        };
        write(&mut file, &data[..BEFORE])?;
        cluster.kill(node)?;
        say(&format!(
            "  mkfs.ext4, mount; the daemon of {name} was killed in mid-write (SIGKILL), and is started again:"
        ))?;
        cluster.start(node)?;
        write(&mut file, &data[BEFORE..])?;
        drop(file);
        run("umount", &[&at])?;
        mounted.mounted = false;
        run("mount", &[&path, &at])?;
        mounted.mounted = true;
        let read = fs::read(at.join("file")).map_err(|e| failed("the file", e))?;
        if read != data {
            return Err(DemoError::Device { what: "the file does not hold what was written".into() });
        }
        run("umount", &[&at])?;
        mounted.mounted = false;
        longest
    };
    cluster.tool("detach", node, &["--volume", volume])?;
    drop(mounted);
    let (mib, ms) = (FILE >> 20, longest.as_millis());
    say(&format!(
        "  {mib} MiB were written, flushed, and read back after a mount; no write failed, the longest took {ms} ms"
    ))?;
    Ok(longest)
}
