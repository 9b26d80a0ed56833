//! What a handoff does on this node, in full: kept in the record, so that what one file has begun is undone although the file
//! was changed since.

use crate::config::{Handoff, Service, Settings};
use crate::device::{device_name, link};
use crate::handoff::{Direction, Task};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// See the module's page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub resource: String,
    pub node: String,
    /// Where the node keeps its files.
    pub dir: PathBuf,
    /// Names of the devices that the file asks for.
    pub devices: Vec<String>,
    pub mount: Option<MountSpec>,
    pub address: Option<AddressSpec>,
    pub service: Option<ServiceSpec>,
    pub check: Option<String>,
    pub before: Vec<String>,
    pub after: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// The stable link.
    pub device: PathBuf,
    pub at: PathBuf,
    pub kind: String,
    pub options: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressSpec {
    /// With the prefix.
    pub ip: String,
    pub interface: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceSpec {
    Unit(String),
    Commands { start: String, stop: String },
}

impl Spec {
    pub fn new(settings: &Settings, handoff: &Handoff) -> Spec {
        let resource = settings.node.resource.clone();
        let asked = settings.node.volumes.iter().zip(&settings.devices);
        let devices = asked.filter(|(_, kind)| **kind != crate::config::DeviceKind::None);
        Spec {
            devices: devices.map(|(v, _)| device_name(&resource, &v.name)).collect(),
            mount: handoff.mount.as_ref().map(|m| MountSpec {
                device: link(&resource, &m.volume),
                at: m.at.clone(),
                kind: m.kind.clone(),
                options: m.options.clone(),
            }),
            address: handoff
                .address
                .as_ref()
                .map(|a| AddressSpec { ip: a.network.to_string(), interface: a.interface.clone() }),
            service: handoff.service.as_ref().map(|s| match s {
                Service::Unit(unit) => ServiceSpec::Unit(unit.clone()),
                Service::Commands { start, stop } => ServiceSpec::Commands { start: start.clone(), stop: stop.clone() },
            }),
            check: handoff.check.clone(),
            before: handoff.before.clone(),
            after: handoff.after.clone(),
            node: settings.node.my_name().to_string(),
            dir: settings.dir.clone(),
            resource,
        }
    }

    /// Of a node whose file asks for no handoff.
    pub fn nothing(settings: &Settings) -> Spec {
        Spec {
            resource: settings.node.resource.clone(),
            node: settings.node.my_name().to_string(),
            dir: settings.dir.clone(),
            devices: Vec::new(),
            mount: None,
            address: None,
            service: None,
            check: None,
            before: Vec::new(),
            after: Vec::new(),
        }
    }

    /// What every process of the service has in its environment.
    pub fn mark(&self) -> (String, String) {
        ("UNDERSTUDY_SERVICE".into(), format!("{}/{}", self.resource, self.node))
    }
}

/// One run of a task, as its process gets it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Work {
    pub task: Task,
    pub spec: Spec,
    /// 32 hex digits; none where this node does not serve.
    pub tenure: Option<String>,
    /// Why it goes this way, in words.
    pub why: String,
}

impl Work {
    /// What hooks and commands find in their environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        let spec = &self.spec;
        let text = |path: Option<&PathBuf>| path.map(|p| p.display().to_string()).unwrap_or_default();
        let event = match self.task {
            Task::HooksBefore(Direction::Up) | Task::HooksAfter(Direction::Up) => "up",
            Task::StartService | Task::CheckHealth => "up",
            Task::HooksAfter(Direction::Lost) => "lost",
            Task::HooksAfter(Direction::Leftover) => "leftover",
            _ => "down",
        };
        let address = spec.address.as_ref();
        [
            ("UNDERSTUDY_RESOURCE", spec.resource.clone()),
            ("UNDERSTUDY_NODE", spec.node.clone()),
            ("UNDERSTUDY_EVENT", event.to_string()),
            ("UNDERSTUDY_WHY", self.why.clone()),
            ("UNDERSTUDY_TENURE", self.tenure.clone().unwrap_or_default()),
            ("UNDERSTUDY_DEVICE", text(spec.mount.as_ref().map(|m| &m.device))),
            ("UNDERSTUDY_MOUNT", text(spec.mount.as_ref().map(|m| &m.at))),
            ("UNDERSTUDY_ADDRESS", address.map(|a| a.ip.clone()).unwrap_or_default()),
            ("UNDERSTUDY_INTERFACE", address.map(|a| a.interface.clone()).unwrap_or_default()),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into()
    }
}

/// A claim: a file that says what this node itself has put somewhere.
pub fn claim_path(dir: &Path, what: &str) -> PathBuf {
    dir.join(format!("handoff.{what}"))
}

/// All of them that do not outlive the machine.
pub const CLAIMS: [&str; 4] = ["mount", "address", "service", "watchdog"];
