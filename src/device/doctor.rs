//! `understudy doctor`: what this machine offers, what is missing, and how to get it.

use super::kind;
use crate::config::{DeviceKind, Settings};
use crate::daemon::ring::{Ring, RingError};
use serde::Serialize;
use std::path::Path;
use understudy_kernel::probe::{self, Offer};
use understudy_kernel::ublk::Ublk;

/// How a finding is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// There.
    Good,
    /// Not there, and something else does instead, or less is possible.
    Lacking,
    /// Not there, and needed.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// A word for scripts: `io_uring`, `ublk`, …
    pub what: &'static str,
    pub verdict: Verdict,
    /// What was found, in words.
    pub found: String,
    /// What it is good for, where it is not there.
    pub matters: Option<&'static str>,
    /// How to get it.
    pub remedy: Option<String>,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub kernel: String,
    pub root: bool,
    /// What `device = "auto"` means here; none if there is no device to be had.
    pub auto: Option<DeviceKind>,
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether a daemon can run here.
    pub fn is_fit(&self) -> bool {
        self.findings.iter().all(|f| f.verdict != Verdict::Bad)
    }
}

fn good(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what, verdict: Verdict::Good, found: found.into(), matters: None, remedy: None }
}

fn not(
    verdict: Verdict,
    what: &'static str,
    found: impl Into<String>,
    matters: &'static str,
    remedy: impl Into<String>,
) -> Finding {
    Finding { what, verdict, found: found.into(), matters: Some(matters), remedy: Some(remedy.into()) }
}

/// Looks at this machine; with a node's settings also at where its parts lie.
pub fn examine(settings: Option<&Settings>) -> Report {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_string();
    let mut findings = vec![io_uring(), memlock(), io_flusher(), ublk(), nbd(), fuse(), loops(), netem(), watchdog()];
    for path in settings.into_iter().flat_map(places) {
        findings.push(folder(&path));
    }
    let auto = kind::choose(DeviceKind::Auto).ok();
    Report { kernel, root: nix::unistd::geteuid().is_root(), auto, findings }
}

fn io_uring() -> Finding {
    const NEEDED: &str = "the daemon does all its I/O with it, and does not run without";
    // Just as the daemon does it: with fewer entries it might be allowed where the daemon's is not.
    let e = match Ring::<()>::new() {
        Ok(_) => return good("io_uring", "usable"),
        Err(RingError::Lacks(what)) => {
            let found = format!("this kernel's lacks {what}");
            return not(Verdict::Bad, "io_uring", found, NEEDED, "use Linux 5.11 or newer");
        }
        Err(RingError::Unavailable(e) | RingError::Setup(e)) => e,
    };
    match e.raw_os_error() {
        Some(libc::ENOSYS) => {
            let remedy = "use Linux 5.11 or newer, built with CONFIG_IO_URING";
            not(Verdict::Bad, "io_uring", "this kernel has none", NEEDED, remedy)
        }
        Some(libc::ENOMEM) => {
            let found = format!("refused ({e}): the limit of locked memory is used up");
            not(Verdict::Bad, "io_uring", found, NEEDED, "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited")
        }
        _ => {
            let remedy = "sysctl -w kernel.io_uring_disabled=0; in a container allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile";
            not(Verdict::Bad, "io_uring", format!("refused ({e})"), NEEDED, remedy)
        }
    }
}

fn memlock() -> Finding {
    match probe::memlock() {
        None => good("memlock", "no limit"),
        Some(bytes) => not(
            Verdict::Lacking,
            "memlock",
            format!("{} KiB", bytes >> 10),
            "a device's process keeps its memory from being swapped; kernels before 5.12 count io_uring here, too",
            "LimitMEMLOCK=infinity in the unit, or CAP_IPC_LOCK, which root has, but in many containers",
        ),
    }
}

fn io_flusher() -> Finding {
    // In a thread of its own: it is an attribute of threads, and this one is not to have it.
    match std::thread::spawn(understudy_kernel::memory::flush_io).join() {
        Ok(Ok(())) => good("io_flusher", "may be set"),
        _ => not(
            Verdict::Lacking,
            "io_flusher",
            "may not be set",
            "without PR_SET_IO_FLUSHER a daemon that is short of memory may wait for its own device: do not mount one on the same machine",
            "CAP_SYS_RESOURCE, which root has, but in many containers",
        ),
    }
}

fn driver(what: &'static str, offer: Offer, there: &str, matters: &'static str, module: &str, option: &str) -> Finding {
    let lacking = |found: &str, remedy: String| not(Verdict::Lacking, what, found, matters, remedy);
    match offer {
        Offer::Yes => good(what, there),
        Offer::Forbidden => lacking("there, but not for this user", "run as root".to_string()),
        Offer::Module => lacking("there as a module that is not loaded", format!("modprobe {module}")),
        Offer::No => lacking("not in this kernel", format!("a kernel with {option}")),
    }
}

fn ublk() -> Finding {
    const MATTERS: &str = "the best kind of device: it outlives even the process that serves it";
    if probe::device("/dev/ublk-control", "ublk_drv") == Offer::Yes && Ublk::offer() == Offer::No {
        let found = "the driver is there, io_uring's commands are not";
        return not(Verdict::Lacking, "ublk", found, MATTERS, "Linux 6.1 or newer");
    }
    let there = match Ublk::features() {
        Some(f) if !f.outlives => "there, but its devices fail when the process dies that serves them",
        Some(f) if f.zero_copy => "there; its zero copy is not used, since a write outlives its request",
        Some(_) | None => "there",
    };
    driver("ublk", Ublk::offer(), there, MATTERS, "ublk_drv", "CONFIG_BLK_DEV_UBLK (Linux 6.1 or newer)")
}

fn nbd() -> Finding {
    let offer = probe::module("nbd");
    driver("nbd", offer, "there", "a kind of device: the kernel as a client of the daemon", "nbd", "CONFIG_BLK_DEV_NBD")
}

fn fuse() -> Finding {
    let offer = probe::device("/dev/fuse", "fuse");
    driver("fuse", offer, "there", "a kind of device, together with a loop device", "fuse", "CONFIG_FUSE_FS")
}

fn loops() -> Finding {
    let offer = probe::device("/dev/loop-control", "loop");
    driver("loop", offer, "there", "a kind of device, together with FUSE", "loop", "CONFIG_BLK_DEV_LOOP")
}

fn netem() -> Finding {
    let offer = probe::module("sch_netem");
    driver("netem", offer, "there", "only for tests with a slow link", "sch_netem", "CONFIG_NET_SCH_NETEM")
}

fn watchdog() -> Finding {
    const MATTERS: &str = "a node that cannot let go of its service could be reset by it";
    if Path::new("/dev/watchdog").exists() {
        // Not opened: that would start it.
        return good("watchdog", "there");
    }
    not(
        Verdict::Lacking,
        "watchdog",
        "no /dev/watchdog",
        MATTERS,
        "load the driver of the machine's watchdog, or softdog",
    )
}

/// The folders in which a node's parts are, or are to be.
fn places(settings: &Settings) -> Vec<std::path::PathBuf> {
    let files = [&settings.log].into_iter().chain(&settings.stores);
    let is_device = |p: &Path| p.starts_with("/dev");
    let mut places: Vec<_> = files.filter(|p| !is_device(p)).filter_map(|p| p.parent().map(Path::to_owned)).collect();
    places.push(settings.dir.clone());
    places.sort();
    places.dedup();
    places
}

fn folder(path: &Path) -> Finding {
    // One that is not made yet will be in the nearest that is.
    let there = path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/"));
    let shown = path.display();
    let found = match probe::folder(there) {
        Ok(found) => found,
        Err(e) => {
            let matters = "the node's parts are to be made there";
            return not(
                Verdict::Bad,
                "folder",
                format!("{shown}: {e}"),
                matters,
                "choose another folder, or another user",
            );
        }
    };
    let lacks: Vec<&str> = [
        (found.direct_io, "direct I/O"),
        (found.punch_hole, "holes (punch)"),
        (found.zero_range || found.punch_hole, "zeroing"),
    ]
    .into_iter()
    .filter_map(|(there, what)| (!there).then_some(what))
    .collect();
    let system = &found.file_system;
    if found.file_system == "tmpfs" {
        let matters = "files in memory survive no restart of the machine: a flush promises nothing";
        return not(
            Verdict::Lacking,
            "folder",
            format!("{shown}: tmpfs"),
            matters,
            "a file system on a disk, or a block device",
        );
    }
    if lacks.is_empty() {
        return good("folder", format!("{shown}: {system}, with direct I/O and holes"));
    }
    let matters =
        "without direct I/O everything is cached twice; without holes a discard writes zeros, and stores do not shrink";
    let found = format!("{shown}: {system}, without {}", lacks.join(" and "));
    not(Verdict::Lacking, "folder", found, matters, "ext4, xfs or btrfs, or a block device")
}

/// For people.
pub fn render(report: &Report) -> String {
    let mut text = format!("Linux {}, {}\n\n", report.kernel, if report.root { "as root" } else { "not as root" });
    for finding in &report.findings {
        let mark = match finding.verdict {
            Verdict::Good => "good",
            Verdict::Lacking => "-",
            Verdict::Bad => "BAD",
        };
        text.push_str(&format!("{mark:<5} {:<11} {}\n", finding.what, finding.found));
        if let (Some(matters), Some(remedy)) = (finding.matters, &finding.remedy) {
            text.push_str(&format!("{:17} {matters}\n{:17} to get it: {remedy}\n", "", ""));
        }
    }
    let auto = match report.auto {
        Some(DeviceKind::Ublk) => "ublk",
        Some(DeviceKind::Nbd) => "the kernel's NBD client",
        Some(_) => "FUSE and a loop device",
        None => "nothing: clients can use NBD",
    };
    text.push_str(&format!("\ndevice = \"auto\" means {auto}"));
    if report.auto.is_some() && !report.root {
        text.push_str(" (making one takes root)");
    }
    text.push('\n');
    if !report.is_fit() {
        text.push_str("The daemon does not run here as it is.\n");
    }
    text
}
