//! The service: started, asked to stop, and killed.
//!
//! A unit is systemd's affair. What a shell's line starts is put into a control group of its own, which nothing leaves that its processes
//! do to their environment, session or parents. They are marked in their environment, too: that is all there is where this system gives
//! no control group.

use super::spec::{ServiceSpec, Spec, Work};
use super::task::{LOOK, claim, claimed, disclaim, need, words};
use crate::child::{self, Fate};
use nix::sys::signal::Signal;
use std::path::Path;
use understudy_kernel::cgroup::Group;
use understudy_kernel::holders::{self, Holder};

/// The claim of a control group: its path.
const CLAIM: &str = "service";

/// No other node's, and no other's of the same names with files elsewhere.
fn group_name(spec: &Spec) -> String {
    let dir = crc32fast::hash(spec.dir.as_os_str().as_encoded_bytes());
    format!("understudy.{}.{}.{dir:08x}", spec.resource, spec.node)
}

/// Makes the group, and goes into it.
fn enter(spec: &Spec) -> Result<Group, String> {
    let group = Group::make(&group_name(spec)).map_err(|e| e.to_string())?;
    claim(spec, CLAIM, &group.path().display().to_string())?;
    group.join().map_err(words(group.path().display()))?;
    Ok(group)
}

impl Work {
    /// What people should know of it, if there is something.
    pub(super) fn start_service(&self) -> Result<Option<String>, String> {
        match need(&self.spec.service)? {
            ServiceSpec::Unit(unit) => {
                self.shell(&format!("exec systemctl --no-ask-password start {unit}")).map(|()| None)
            }
            ServiceSpec::Commands { start, .. } => {
                let (mut command, from) = self.command(start).map_err(words("handoff.log"))?;
                let (name, value) = self.spec.mark();
                command.env(name, value);
                let group = enter(&self.spec);
                self.finish(start, child::spawn_beside(&mut command, Fate::LivesOn), from)?;
                Ok(self.remark(&group))
            }
        }
    }

    fn remark(&self, group: &Result<Group, String>) -> Option<String> {
        let own = std::process::id() as i32;
        match group {
            Err(why) => Some(format!(
                "there is no control group for what service.start begins ({why}): a process that clears or overwrites its environment is \
                 neither waited for nor killed. Use service.unit for such a service"
            )),
            Ok(group) if group.processes().iter().all(|p| p.pid == own) && self.marked().is_empty() => Some(
                "service.start has left no process behind that is known to be the service's: if it runs elsewhere (a container, a unit, a \
                 session of its own), only service.stop ends it"
                    .into(),
            ),
            Ok(_) => None,
        }
    }

    fn group(&self) -> Option<Group> {
        claimed(&self.spec, CLAIM).map(|path| Group::at(Path::new(&path)))
    }

    fn marked(&self) -> Vec<Holder> {
        let (name, value) = self.spec.mark();
        holders::of_mark(&format!("{name}={value}"))
    }

    /// Whether nothing of it is left; then its group is taken away.
    fn is_over(&self) -> bool {
        let group = self.group();
        if !self.marked().is_empty() || group.as_ref().is_some_and(|g| !g.is_empty()) {
            return false;
        }
        if let Some(group) = group {
            group.remove();
            disclaim(&self.spec, CLAIM);
        }
        true
    }

    pub(super) fn stop_service(&self) -> Result<(), String> {
        match &self.spec.service {
            None => Ok(()),
            Some(ServiceSpec::Unit(unit)) => self.shell(&format!("exec systemctl --no-ask-password stop {unit}")),
            Some(ServiceSpec::Commands { stop, .. }) => {
                let stopped = self.shell(stop);
                // It may only have been told to end; the time limit is not this one's to keep.
                while stopped.is_ok() && !self.is_over() {
                    std::thread::sleep(LOOK);
                }
                stopped
            }
        }
    }

    pub(super) fn kill_service(&self) -> Result<(), String> {
        if let Some(ServiceSpec::Unit(unit)) = &self.spec.service {
            // Fails where it has no process; stopped it must be, or systemd would start it again.
            let _ = self.shell(&format!("exec systemctl --no-ask-password kill --signal=SIGKILL {unit}"));
            return self.shell(&format!("exec systemctl --no-ask-password stop {unit}"));
        }
        while !self.is_over() {
            self.group().iter().for_each(Group::kill);
            self.marked().iter().for_each(|process| process.signal(Signal::SIGKILL));
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}
