//! One task, in a process of its own: what may hang hangs there, and is killed with its process group.

use super::spec::{AddressSpec, MountSpec, ServiceSpec, Spec, Work, claim_path};
use crate::child::{self, Fate};
use crate::device::{link, record};
use crate::handoff::{Step, Task};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use understudy_kernel::address::{self, Network};
use understudy_kernel::holders::{self, Holder};
use understudy_kernel::{announce, mounting};

/// How often something that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Does it, and says in one line on `out` what came of it.
pub fn run(work: &Work, out: &mut dyn Write) {
    let said = match work.perform() {
        Ok(()) => json!({ "ok": true }),
        Err(why) => json!({ "failed": why }),
    };
    let _ = writeln!(out, "{said}");
}

fn words(what: impl std::fmt::Display) -> impl Fn(io::Error) -> String {
    move |e| format!("{what}: {e}")
}

impl Work {
    fn perform(&self) -> Result<(), String> {
        let spec = &self.spec;
        match self.task {
            Task::AwaitDevice => self.await_devices(),
            Task::HooksBefore(_) => spec.before.iter().try_for_each(|hook| self.shell(hook)),
            Task::HooksAfter(_) => spec.after.iter().try_for_each(|hook| self.shell(hook)),
            Task::CheckFileSystem => need(&spec.mount).and_then(|m| self.check_file_system(m)),
            Task::Mount => need(&spec.mount).and_then(|m| mount(spec, m)),
            Task::AddAddress => need(&spec.address).and_then(|a| add_address(spec, a)),
            Task::StartService => self.start_service(),
            Task::CheckHealth => self.check_health(),
            Task::StopService => self.stop_service(),
            Task::KillService => self.kill_service(),
            Task::RemoveAddress => spec.address.as_ref().map_or(Ok(()), |a| remove_address(spec, a)),
            Task::Unmount => unmount(spec, false),
            Task::UnmountLazily => unmount(spec, true),
            Task::TerminateHolders => end_holders(spec, Signal::SIGTERM),
            Task::KillHolders => end_holders(spec, Signal::SIGKILL),
            // The daemon's own threads do this.
            Task::FailDevices => Ok(()),
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
    fn command(&self, line: &str) -> io::Result<(Command, u64)> {
        let log = OpenOptions::new().create(true).append(true).open(self.spec.dir.join("handoff.log"))?;
        let from = log.metadata()?.len();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]).current_dir("/").envs(self.environment());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok((command, from))
    }

    fn shell(&self, line: &str) -> Result<(), String> {
        let (mut command, from) = self.command(line).map_err(words("handoff.log"))?;
        self.finish(line, child::spawn_beside(&mut command, Fate::DiesWithUs), from)
    }

    fn finish(&self, line: &str, spawned: io::Result<std::process::Child>, from: u64) -> Result<(), String> {
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

    /// Repairs what can be repaired without asking.
    fn check_file_system(&self, mount: &MountSpec) -> Result<(), String> {
        let device = fs::canonicalize(&mount.device).map_err(words(mount.device.display()))?;
        let line = format!("exec fsck.{} -p {}", mount.kind, device.display());
        let (mut command, from) = self.command(&line).map_err(words("handoff.log"))?;
        let status = child::spawn_beside(&mut command, Fate::DiesWithUs).and_then(|mut c| c.wait());
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

    fn start_service(&self) -> Result<(), String> {
        // H2, once more where it counts.
        if let Some(mount) = &self.spec.mount {
            let ours = fs::canonicalize(&mount.device).and_then(|d| mounting::numbers(&d));
            let ours = ours.map_err(words(mount.device.display()))?;
            let at = fs::canonicalize(&mount.at).map_err(words(mount.at.display()))?;
            if mounting::at(&at).is_none_or(|m| m.device != ours) {
                return Err(format!("{} is not mounted", mount.at.display()));
            }
        }
        match need(&self.spec.service)? {
            ServiceSpec::Unit(unit) => self.shell(&format!("exec systemctl --no-ask-password start {unit}")),
            ServiceSpec::Commands { start, .. } => {
                let (mut command, from) = self.command(start).map_err(words("handoff.log"))?;
                let (name, value) = self.spec.mark();
                command.env(name, value);
                self.finish(start, child::spawn_beside(&mut command, Fate::LivesOn), from)
            }
        }
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

    fn marked(&self) -> Vec<Holder> {
        let (name, value) = self.spec.mark();
        holders::of_mark(&format!("{name}={value}"))
    }

    fn stop_service(&self) -> Result<(), String> {
        match &self.spec.service {
            None => Ok(()),
            Some(ServiceSpec::Unit(unit)) => self.shell(&format!("exec systemctl --no-ask-password stop {unit}")),
            Some(ServiceSpec::Commands { stop, .. }) => {
                let stopped = self.shell(stop);
                // It may only have been told to end; the time limit is not this one's to keep.
                while stopped.is_ok() && !self.marked().is_empty() {
                    std::thread::sleep(LOOK);
                }
                stopped
            }
        }
    }

    fn kill_service(&self) -> Result<(), String> {
        if let Some(ServiceSpec::Unit(unit)) = &self.spec.service {
            // Fails where it has no process; stopped it must be, or systemd would start it again.
            let _ = self.shell(&format!("exec systemctl --no-ask-password kill --signal=SIGKILL {unit}"));
            return self.shell(&format!("exec systemctl --no-ask-password stop {unit}"));
        }
        loop {
            let left = self.marked();
            if left.is_empty() {
                return Ok(());
            }
            left.iter().for_each(|process| process.signal(Signal::SIGKILL));
            std::thread::sleep(LOOK);
        }
    }
}

fn need<T>(part: &Option<T>) -> Result<&T, String> {
    part.as_ref().ok_or_else(|| "the file no longer asks for it".to_string())
}

// What this node itself has put somewhere is written down before, so that nothing of anybody else's is ever taken away.

fn claim(spec: &Spec, step: Step, what: &str) -> Result<(), String> {
    let path = claim_path(spec, step);
    fs::write(&path, what).map_err(words(path.display()))
}

fn claimed(spec: &Spec, step: Step) -> Option<String> {
    fs::read_to_string(claim_path(spec, step)).ok()
}

fn disclaim(spec: &Spec, step: Step) {
    let _ = fs::remove_file(claim_path(spec, step));
}

fn mount(spec: &Spec, mount: &MountSpec) -> Result<(), String> {
    let device = fs::canonicalize(&mount.device).map_err(words(mount.device.display()))?;
    let ours = mounting::numbers(&device).map_err(words(device.display()))?;
    fs::create_dir_all(&mount.at).map_err(words(mount.at.display()))?;
    let at = fs::canonicalize(&mount.at).map_err(words(mount.at.display()))?;
    if let Some(other) = mounting::at(&at).filter(|m| m.device != ours) {
        return Err(mounting::MountError::Taken(other.source, at.display().to_string()).to_string());
    }
    claim(spec, Step::Mount, &ours)?;
    mounting::put_on(&device, &at, &mount.kind, &mount.options).map_err(|e| e.to_string())
}

fn unmount(spec: &Spec, lazily: bool) -> Result<(), String> {
    let Some(mount) = &spec.mount else { return Ok(()) };
    let Some(ours) = claimed(spec, Step::Mount) else { return Ok(()) };
    // Not looked at, since a file system that hangs could hang whoever does; only its folder's parent is.
    let parent = mount.at.parent().and_then(|p| fs::canonicalize(p).ok());
    let at = parent.zip(mount.at.file_name()).map_or_else(|| mount.at.clone(), |(p, name)| p.join(name));
    let is_ours = |m: &mounting::Mounted| m.at == at && m.device == ours;
    while mounting::table("self").iter().any(is_ours) {
        mounting::take_off(&at, lazily).map_err(|errno| match errno {
            Errno::EBUSY => format!("{} is in use: {}", at.display(), list(&holders_of(&ours))),
            other => format!("the kernel does not unmount {}: {}", at.display(), other.desc()),
        })?;
    }
    disclaim(spec, Step::Mount);
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
    let Some(ours) = claimed(spec, Step::Mount) else { return Ok(()) };
    let mut told: Vec<Holder> = Vec::new();
    loop {
        let left = holders_of(&ours);
        if left.is_empty() {
            return Ok(());
        }
        let fresh: Vec<&Holder> = left.iter().filter(|h| signal == Signal::SIGKILL || !told.contains(h)).collect();
        fresh.iter().for_each(|holder| holder.signal(signal));
        told = left;
        std::thread::sleep(LOOK);
    }
}

fn network(address: &AddressSpec) -> Result<Network, String> {
    address.ip.parse().map_err(|()| format!("{} is no address", address.ip))
}

fn add_address(spec: &Spec, wanted: &AddressSpec) -> Result<(), String> {
    let network = network(wanted)?;
    let interface = address::interface(&wanted.interface).map_err(|e| e.to_string())?;
    if claimed(spec, Step::Address).is_none()
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
    claim(spec, Step::Address, &wanted.ip)?;
    match address::add(interface, network) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(format!("the kernel does not add {network} to {}: {e}", wanted.interface));
        }
        _ => {}
    }
    announce::announce(interface, network.ip).map_err(words("cannot announce the address"))
}

fn remove_address(spec: &Spec, wanted: &AddressSpec) -> Result<(), String> {
    if claimed(spec, Step::Address).is_none() {
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
    disclaim(spec, Step::Address);
    Ok(())
}
