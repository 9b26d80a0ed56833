//! One task, in a process of its own: what may hang hangs there, and is killed with its process group.

use super::record::replace;
use super::spec::{AddressSpec, MountSpec, ServiceSpec, Spec, Work, claim_path};
use crate::child::{self, Fate};
use crate::device::{link, record};
use crate::handoff::Task;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use understudy_kernel::address::{self, Network};
use understudy_kernel::holders::{self, Holder};
use understudy_kernel::{announce, mounting};

/// How often something that is waited for is looked at.
pub(super) const LOOK: Duration = Duration::from_millis(10);

/// What hooks and commands say is kept up to this; then the log begins anew.
const LOG_MAX: u64 = 1 << 20;

/// What is claimed.
const MOUNT: &str = "mount";
const ADDRESS: &str = "address";

/// Does it, and says in one line on `out` what came of it.
pub fn run(work: &Work, out: &mut dyn Write) {
    let said = match work.perform() {
        Ok(remark) => json!({ "ok": true, "remark": remark }),
        Err(why) => json!({ "failed": why }),
    };
    let _ = writeln!(out, "{said}");
}

pub(super) fn words(what: impl std::fmt::Display) -> impl Fn(io::Error) -> String {
    move |e| format!("{what}: {e}")
}

impl Work {
    /// What becomes of it when the daemon ends (H5).
    pub fn fate(&self) -> Fate {
        if self.task == Task::CheckFileSystem { Fate::LivesOn } else { Fate::DiesWithUs }
    }

    /// Does it; what people should know of that.
    fn perform(&self) -> Result<Option<String>, String> {
        if self.task == Task::StartService {
            self.check_mount()?;
            return self.start_service();
        }
        self.perform_plainly().map(|()| None)
    }

    fn perform_plainly(&self) -> Result<(), String> {
        let spec = &self.spec;
        match self.task {
            Task::AwaitDevice => self.await_devices(),
            Task::HooksBefore(_) => spec.before.iter().try_for_each(|hook| self.shell(hook)),
            Task::HooksAfter(_) => spec.after.iter().try_for_each(|hook| self.shell(hook)),
            Task::CheckFileSystem => need(&spec.mount).and_then(|m| self.check_file_system(m)),
            Task::Mount => need(&spec.mount).and_then(|m| mount(spec, m)),
            Task::AddAddress => need(&spec.address).and_then(|a| add_address(spec, a)),
            Task::CheckHealth => self.check_health(),
            Task::StopService => self.stop_service(),
            Task::KillService => self.kill_service(),
            Task::RemoveAddress => spec.address.as_ref().map_or(Ok(()), |a| remove_address(spec, a)),
            Task::Unmount => unmount(spec, false),
            Task::UnmountLazily => unmount(spec, true),
            Task::TerminateHolders => end_holders(spec, Signal::SIGTERM),
            Task::KillHolders => end_holders(spec, Signal::SIGKILL),
            // Above; and the daemon's own threads fail devices.
            Task::StartService | Task::FailDevices => Ok(()),
        }
    }

    fn await_devices(&self) -> Result<(), String> {
        let spec = &self.spec;
        let is_ours = |f: &record::Found| {
            f.alive && f.record.is_of(&spec.resource, &spec.node) && Some(&f.record.tenure) == self.tenure.as_ref()
        };
        let is_there = |name: &String| {
            let Some(record) = record::look(name).filter(is_ours).map(|f| f.record) else { return false };
            let Some(device) = &record.device else { return false };
            fs::canonicalize(link(&record.resource, &record.volume)).is_ok_and(|d| d == Path::new("/dev").join(device))
        };
        while !spec.devices.iter().all(is_there) {
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// A shell's line, with what it says in the node's `handoff.log`.
    pub(super) fn command(&self, line: &str) -> io::Result<(Command, u64)> {
        let log = OpenOptions::new().create(true).append(true).open(self.spec.dir.join("handoff.log"))?;
        if log.metadata()?.len() > LOG_MAX {
            log.set_len(0)?;
        }
        let from = log.metadata()?.len();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]).current_dir("/").envs(self.environment());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok((command, from))
    }

    pub(super) fn shell(&self, line: &str) -> Result<(), String> {
        let (mut command, from) = self.command(line).map_err(words("handoff.log"))?;
        self.finish(line, child::spawn_beside(&mut command, Fate::DiesWithUs), from)
    }

    pub(super) fn finish(&self, line: &str, spawned: io::Result<std::process::Child>, from: u64) -> Result<(), String> {
        let status = spawned.and_then(|mut child| child.wait()).map_err(words(line))?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read(self.spec.dir.join("handoff.log")).unwrap_or_default();
        let said = String::from_utf8_lossy(said.get(from as usize..).unwrap_or_default()).into_owned();
        let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("and said nothing").trim();
        let last: String = last.chars().take(300).collect();
        Err(format!("`{line}` failed ({status}): {last}"))
    }

    /// Repairs what can be repaired without asking. It lives on when the daemon ends, and whoever comes next waits for it.
    fn check_file_system(&self, mount: &MountSpec) -> Result<(), String> {
        let under_way = await_check(&self.spec)?;
        let device = fs::canonicalize(&mount.device).map_err(words(mount.device.display()))?;
        let numbers = mounting::numbers(&device).map_err(words(device.display()))?;
        if let Some(there) = mounting::anywhere(&numbers).first() {
            return Err(format!("{} is mounted at {}: take it off first", device.display(), there.at.display()));
        }
        let line = format!("exec fsck.{} -p {}", mount.kind, device.display());
        let (mut command, from) = self.command(&line).map_err(words("handoff.log"))?;
        // Whoever has the descriptor has the lock.
        command.stdin(under_way.try_clone().map_err(words("handoff.check"))?);
        let status = child::spawn_beside(&mut command, Fate::LivesOn).and_then(|mut c| c.wait());
        match status.map_err(words(&line))?.code() {
            // Bits: 1 it was repaired; 2 it was, and the machine should be restarted if it was mounted, which it was not.
            Some(0..=3) => Ok(()),
            // There is no such program: some file systems check themselves when they are mounted.
            Some(127) => Ok(()),
            code => {
                let said = fs::read(self.spec.dir.join("handoff.log")).unwrap_or_default();
                let said = String::from_utf8_lossy(said.get(from as usize..).unwrap_or_default()).into_owned();
                let said: Vec<&str> = said.lines().map(str::trim).filter(|l| !l.is_empty()).take(3).collect();
                let code = code.map_or("it was killed".to_string(), |c| format!("exit code {c}"));
                let device = device.display();
                Err(format!(
                    "fsck.{} does not repair {device} by itself ({code}): {}. Check it by hand, with `fsck.{} {}`",
                    mount.kind,
                    said.join("; "),
                    mount.kind,
                    mount.device.display()
                ))
            }
        }
    }

    /// H2, once more where it counts.
    fn check_mount(&self) -> Result<(), String> {
        let Some(mount) = &self.spec.mount else { return Ok(()) };
        let ours = fs::canonicalize(&mount.device).and_then(|d| mounting::numbers(&d));
        let ours = ours.map_err(words(mount.device.display()))?;
        let at = fs::canonicalize(&mount.at).map_err(words(mount.at.display()))?;
        if mounting::at(&at).is_none_or(|m| m.device != ours) {
            return Err(format!("{} is not mounted", mount.at.display()));
        }
        Ok(())
    }

    fn check_health(&self) -> Result<(), String> {
        match (&self.spec.check, &self.spec.service) {
            (Some(line), _) => self.shell(line),
            (None, Some(ServiceSpec::Unit(unit))) => {
                self.shell(&format!("exec systemctl --no-ask-password is-active {unit}"))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn need<T>(part: &Option<T>) -> Result<&T, String> {
    part.as_ref().ok_or_else(|| "the file no longer asks for it".to_string())
}

// What this node itself has put somewhere is written down before, so that nothing of anybody else's is ever taken away.

pub(super) fn claim(spec: &Spec, what: &str, it: &str) -> Result<(), String> {
    let path = claim_path(&spec.dir, what);
    // The old one or the new, whatever happens meanwhile: without it nothing would be undone.
    replace(&path, it.as_bytes()).map_err(words(path.display()))
}

pub(super) fn claimed(spec: &Spec, what: &str) -> Option<String> {
    fs::read_to_string(claim_path(&spec.dir, what)).ok()
}

pub(super) fn disclaim(spec: &Spec, what: &str) {
    let _ = fs::remove_file(claim_path(&spec.dir, what));
}

/// Waits until no check of the file system is under way, of this daemon or of one before; none begins as long as the file is held.
fn await_check(spec: &Spec) -> Result<Flock<File>, String> {
    let path = claim_path(&spec.dir, "check");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(words(path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| format!("{}: {}", path.display(), errno.desc()))
}

/// A mount that this node itself has made.
struct Claimed {
    /// `7:3`
    numbers: String,
    /// Without symbolic links.
    at: PathBuf,
}

impl Claimed {
    fn of(spec: &Spec) -> Option<Claimed> {
        let text = claimed(spec, MOUNT)?;
        // Earlier daemons have not written where.
        let (numbers, at) = match text.split_once(' ') {
            Some((numbers, at)) => (numbers, PathBuf::from(at)),
            None => (text.as_str(), spec.mount.as_ref()?.at.clone()),
        };
        Some(Claimed { numbers: numbers.to_string(), at })
    }

    /// Whether it stands.
    ///
    /// # Errors
    /// Where somebody else's mount is on top of it.
    fn stands(&self) -> Result<bool, String> {
        let table = mounting::table("self");
        if !table.iter().any(|m| m.at == self.at && m.device == self.numbers) {
            return Ok(false);
        }
        match mounting::top(&table, &self.at).filter(|m| m.device != self.numbers) {
            Some(over) => {
                Err(format!("{} ({}) is mounted over {}: take it off first", over.source, over.kind, self.at.display()))
            }
            None => Ok(true),
        }
    }
}

fn mount(spec: &Spec, mount: &MountSpec) -> Result<(), String> {
    let _none_is_checked = await_check(spec)?;
    let device = fs::canonicalize(&mount.device).map_err(words(mount.device.display()))?;
    let ours = mounting::numbers(&device).map_err(words(device.display()))?;
    fs::create_dir_all(&mount.at).map_err(words(mount.at.display()))?;
    let at = fs::canonicalize(&mount.at).map_err(words(mount.at.display()))?;
    if let Some(other) = mounting::at(&at).filter(|m| m.device != ours) {
        return Err(mounting::MountError::Taken(other.source, at.display().to_string()).to_string());
    }
    // What is undone is what was done, wherever a link at this path leads by then.
    claim(spec, MOUNT, &format!("{ours} {}", at.display()))?;
    mounting::put_on(&device, &at, &mount.kind, &mount.options).map_err(|e| e.to_string())
}

/// Asks nothing of the file system, which may hang.
fn unmount(spec: &Spec, lazily: bool) -> Result<(), String> {
    let Some(ours) = Claimed::of(spec) else { return Ok(()) };
    while ours.stands()? {
        mounting::take_off(&ours.at, lazily).map_err(|errno| match errno {
            Errno::EBUSY => format!("{} is in use: {}", ours.at.display(), list(&holders_of(&ours.numbers))),
            other => format!("the kernel does not unmount {}: {}", ours.at.display(), other.desc()),
        })?;
    }
    disclaim(spec, MOUNT);
    Ok(())
}

fn list(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "by whom is not known".into();
    }
    holders.iter().take(5).map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Neither the daemon nor the first process.
fn holders_of(numbers: &str) -> Vec<Holder> {
    let daemon = nix::unistd::getppid().as_raw();
    holders::of_device(numbers).into_iter().filter(|h| h.pid != daemon && h.pid != 1).collect()
}

/// Until nobody holds the mount; the time limit is not this one's to keep.
fn end_holders(spec: &Spec, signal: Signal) -> Result<(), String> {
    let Some(ours) = Claimed::of(spec) else { return Ok(()) };
    let mut told: Vec<Holder> = Vec::new();
    // Only then is what has this number ours: the kernel gives it to others once the device is gone.
    while ours.stands()? {
        let left = holders_of(&ours.numbers);
        if left.is_empty() {
            break;
        }
        let fresh: Vec<&Holder> = left.iter().filter(|h| signal == Signal::SIGKILL || !told.contains(h)).collect();
        fresh.iter().for_each(|holder| holder.signal(signal));
        told = left;
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn network(address: &AddressSpec) -> Result<Network, String> {
    address.ip.parse().map_err(|()| format!("{} is no address", address.ip))
}

fn add_address(spec: &Spec, wanted: &AddressSpec) -> Result<(), String> {
    let network = network(wanted)?;
    let interface = address::interface(&wanted.interface).map_err(|e| e.to_string())?;
    if claimed(spec, ADDRESS).is_none()
        && let Some(holder) = address::holder(network.ip).map_err(words("cannot list the addresses"))?
    {
        return Err(format!(
            "{} is on {holder} of this machine already, and not by this daemon: take it out of the machine's own configuration",
            network.ip
        ));
    }
    if let Some(other) = announce::who_has(interface, network.ip).map_err(words("cannot ask who has the address"))? {
        return Err(format!("{} is taken: {other} answers for it on {}", network.ip, wanted.interface));
    }
    claim(spec, ADDRESS, &wanted.ip)?;
    match address::add(interface, network) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(format!("the kernel does not add {network} to {}: {e}", wanted.interface));
        }
        _ => {}
    }
    announce::announce(interface, network.ip).map_err(words("cannot announce the address"))
}

fn remove_address(spec: &Spec, wanted: &AddressSpec) -> Result<(), String> {
    if claimed(spec, ADDRESS).is_none() {
        return Ok(());
    }
    let network = network(wanted)?;
    match address::interface(&wanted.interface) {
        // With its interface the address has gone, too.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e.to_string()),
        Ok(interface) => {
            address::remove(interface, network)
                .map_err(|e| format!("the kernel does not remove {network} from {}: {e}", wanted.interface))?;
        }
    }
    disclaim(spec, ADDRESS);
    Ok(())
}
