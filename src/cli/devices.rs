//! `attach`, `detach`, and the process that both are about.

use super::args::Target;
use super::commands::settings;
use crate::config::{DeviceKind, Settings};
use crate::control::{Client, ControlError};
use crate::core::TermId;
use crate::device::asking::{Ask, AskError, ask};
use crate::device::helper::{self, Job};
use crate::device::launch::Wanted;
use crate::device::record::Record;
use crate::device::{device_name, doctor, link, record};
use anyhow::{anyhow, bail};
use serde_json::Value;
use std::io::Write;
use std::time::Duration;

/// How often `attach --follow` looks.
const LOOK: Duration = Duration::from_millis(200);

/// The volumes that are meant, and the kind of each one's device.
fn chosen(settings: &Settings, volumes: &[String]) -> anyhow::Result<Vec<(String, DeviceKind)>> {
    let known: Vec<&str> = settings.node.volumes.iter().map(|v| v.name.as_str()).collect();
    if let Some(unknown) = volumes.iter().find(|v| !known.contains(&v.as_str())) {
        bail!("{} has no volume {unknown:?}; its volumes are {}", settings.file.display(), known.join(", "));
    }
    let all = known.iter().zip(&settings.devices);
    let meant = |name: &&str| volumes.is_empty() || volumes.iter().any(|v| v == name);
    Ok(all.filter(|(n, _)| meant(n)).map(|(n, k)| (n.to_string(), *k)).collect())
}

/// The tenure of a node that is active; none if it is not, or its daemon does not run.
fn tenure(settings: &Settings) -> anyhow::Result<Option<TermId>> {
    let status = match Client::connect(&settings.control).and_then(|mut c| c.status()) {
        Ok(status) => status,
        Err(ControlError::NotRunning { .. } | ControlError::Ended | ControlError::Broken { .. }) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    // The tenure of a node that waits to serve again is of no use to a device that is to be made.
    let serves = status["role"] == "active";
    let id = status["tenure"].as_str().filter(|_| serves).and_then(|t| u128::from_str_radix(t, 16).ok());
    Ok(id.map(TermId))
}

pub fn attach(
    target: &Target,
    volumes: &[String],
    follow: bool,
    read_only: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let settings = settings(target)?;
    let chosen = chosen(&settings, volumes)?;
    let node = settings.node.my_name();
    if !nix::unistd::geteuid().is_root() {
        bail!("making a block device takes root: run this with sudo");
    }
    if follow {
        return follow_node(&settings, &chosen, read_only, out);
    }
    let tenure = tenure(&settings)?.ok_or_else(|| {
        anyhow!("{node} is not active, and only an active node has devices: promote it first, or use --follow")
    })?;
    for (volume, kind) in &chosen {
        let status = attach_one(&settings, volume, *kind, tenure, read_only).map_err(|e| anyhow!("{volume}: {e}"))?;
        show(&settings, volume, &status, out)?;
    }
    Ok(())
}

fn attach_one(
    settings: &Settings,
    volume: &str,
    kind: DeviceKind,
    tenure: TermId,
    read_only: bool,
) -> Result<Value, String> {
    let wanted = Wanted {
        file: std::path::absolute(&settings.file).map_err(|e| e.to_string())?,
        resource: settings.node.resource.clone(),
        node: settings.node.my_name().to_string(),
        volume: volume.to_string(),
        kind: if kind == DeviceKind::None { DeviceKind::Auto } else { kind },
        tenure,
        read_only,
    };
    wanted.start().map(|(status, _)| status)
}

fn show(settings: &Settings, volume: &str, status: &Value, out: &mut dyn Write) -> anyhow::Result<()> {
    let path = link(&settings.node.resource, volume);
    let text = |field: &str| status[field].as_str().unwrap_or("?").to_string();
    writeln!(out, "{} ({}, {})", path.display(), text("device"), text("kind"))?;
    if let Some(remark) = status["remark"].as_str() {
        writeln!(out, "  {remark}")?;
    }
    Ok(out.flush()?)
}

/// Makes the devices whenever the node becomes active, until interrupted. One that was taken down by hand stays down for that
/// tenure.
fn follow_node(
    settings: &Settings,
    chosen: &[(String, DeviceKind)],
    read_only: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut done: Vec<(String, TermId)> = Vec::new();
    let mut said = String::new();
    loop {
        if let Some(tenure) = tenure(settings)? {
            for (volume, kind) in chosen {
                let name = device_name(&settings.node.resource, volume);
                // A record without a living helper is what a dead one has left.
                let died = record::look(&name).is_some_and(|f| !f.alive);
                if done.contains(&(volume.clone(), tenure)) && !died {
                    continue;
                }
                match attach_one(settings, volume, *kind, tenure, read_only) {
                    Ok(status) => {
                        done.retain(|(v, _)| v != volume);
                        done.push((volume.clone(), tenure));
                        show(settings, volume, &status, out)?;
                        said.clear();
                    }
                    Err(why) if why != said => {
                        writeln!(out, "{volume}: {why}")?;
                        out.flush()?;
                        said = why;
                    }
                    Err(_) => {}
                }
            }
        }
        std::thread::sleep(LOOK);
    }
}

pub fn detach(target: &Target, volumes: &[String], force: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let settings = settings(target)?;
    for (volume, _) in chosen(&settings, volumes)? {
        let name = device_name(&settings.node.resource, &volume);
        let text = detach_one(&settings, &name, force)?;
        writeln!(out, "{name}: {text}")?;
    }
    Ok(())
}

fn detach_one(settings: &Settings, name: &str, force: bool) -> anyhow::Result<String> {
    let Some(found) = record::look(name) else {
        // There may be one of a process that died before it had written anything into it.
        record::sweep(name)?;
        return Ok(match record::failed(name).first() {
            Some(failed) => format!(
                "has no device; process {} waits until one that has failed is no longer in use",
                failed.record.pid
            ),
            None => "has no device".to_string(),
        });
    };
    let (resource, node) = (&settings.node.resource, settings.node.my_name());
    if !found.record.is_of(resource, node) {
        let Record { resource: its, node: other, .. } = &found.record;
        bail!("the device {name} belongs to the node {other} of the resource {its}, not to {node} of {resource}");
    }
    if !found.alive {
        record::sweep(name)?;
        return Ok("its process was dead; what it left was taken apart".to_string());
    }
    match ask(name, Ask::Detach { force }, None) {
        Ok(answer) if answer["gone"] == true => Ok("detached".to_string()),
        Ok(answer) => {
            let users: Vec<&str> = answer["users"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let users = if users.is_empty() { "somebody has it open".to_string() } else { users.join("; ") };
            Ok(format!("fails every request from now on, and goes with its last user: {users}"))
        }
        Err(AskError::Refused(why)) => bail!("{why}"),
        // It ended in between, or was just being made.
        Err(AskError::Unreachable(_)) if record::look(name).is_none() => Ok("detached".to_string()),
        Err(e) => Err(e.into()),
    }
}

/// What this machine offers.
pub fn doctor(target: Option<Target>, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let settings = target.as_ref().map(settings).transpose()?;
    let report = doctor::examine(settings.as_ref());
    let text = if json { format!("{}\n", serde_json::to_string(&report)?) } else { doctor::render(&report) };
    out.write_all(text.as_bytes())?;
    if report.is_fit() { Ok(()) } else { bail!("the daemon cannot run here: see what is bad above") }
}

/// The helper itself.
pub fn help(
    target: &Target,
    volume: &str,
    kind: &str,
    tenure: &str,
    read_only: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let settings = settings(target)?;
    let kind: DeviceKind = serde_json::from_value(Value::String(kind.to_string()))?;
    let tenure = TermId(u128::from_str_radix(tenure, 16)?);
    let job = Job::new(&settings, volume, kind, tenure, read_only);
    match job {
        Ok(job) => Ok(helper::run(job, out)?),
        Err(e) => {
            writeln!(out, "{}", serde_json::json!({ "failed": e.to_string() }))?;
            Err(e.into())
        }
    }
}
