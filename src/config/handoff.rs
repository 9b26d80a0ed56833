//! `[handoff]`: what an active node does above its device.

use super::error::{ConfigError, Problem};
use super::reader::{Table, Value};
use super::{DeviceKind, Node, Volume};
use crate::handoff::{Health, Limits, OnFail, Plan, Step};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use understudy_kernel::address::Network;

/// `[handoff]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handoff {
    pub mount: Option<Mount>,
    pub address: Option<Address>,
    pub service: Option<Service>,
    /// A shell's line that succeeds where the service is well; none where the service manager is asked.
    pub check: Option<String>,
    /// Shell's lines.
    pub before: Vec<String>,
    pub after: Vec<String>,
    pub watchdog: Option<PathBuf>,
    pub plan: Plan,
}

/// `mount`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub volume: String,
    pub at: PathBuf,
    /// `type`
    pub kind: String,
    pub options: String,
}

/// `address`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub network: Network,
    pub interface: String,
}

/// `service`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// Of systemd.
    Unit(String),
    /// Shell's lines.
    Commands { start: String, stop: String },
}

const FIELDS: [&str; 8] = ["mount", "address", "service", "check", "before", "after", "timeout_s", "watchdog"];
const MOUNT: &str = "{ volume = \"disk0\", at = \"/srv/data\", type = \"ext4\" }";
const ADDRESS: &str = "{ ip = \"10.0.0.10/24\", interface = \"eth0\" }";
const SERVICE: &str = "{ unit = \"postgresql@15-main.service\" }";
const CHECK: &str = "{ command = \"pg_isready\", every_s = 5 }";
const HOOKS: &str = "[\"/etc/understudy/hooks/before\"]";

const TIMEOUT_S: RangeInclusive<u64> = 1..=86_400;
const EVERY_S: RangeInclusive<u64> = 1..=3600;
const FAIL: RangeInclusive<u64> = 1..=100;
const HOOKS_MAX: usize = 16;
/// `IFNAMSIZ` without the closing zero.
const INTERFACE_MAX: usize = 15;

/// Reads `[handoff]`; none where the file has none.
pub fn handoff(
    file: &Path,
    root: &Table<'_>,
    volumes: &[Volume],
    nodes: &[Node],
) -> Result<Option<Handoff>, ConfigError> {
    let Some(value) = root.get("handoff") else { return Ok(None) };
    let table = value.table("[handoff]")?;
    table.only(&FIELDS)?;
    let within = |key: &str, example: &'static str| table.get(key).map(|v| v.table(example)).transpose();
    let mount_table = within("mount", MOUNT)?;
    let mount = mount_table.as_ref().map(|t| mount(t, volumes, nodes)).transpose()?;
    let address = within("address", ADDRESS)?.map(|t| address(&t, nodes)).transpose()?;
    let service = within("service", SERVICE)?.map(|t| service(file, &t)).transpose()?;
    let before = hooks(&table, "before")?;
    let after = hooks(&table, "after")?;
    if mount.is_none() && address.is_none() && service.is_none() {
        return Err(table.place().problem(file, Problem::EmptyHandoff));
    }
    let is_unit = matches!(service, Some(Service::Unit(_)));
    let (check, health) = match within("check", CHECK)? {
        Some(t) => {
            if service.is_none() {
                return Err(t.place().problem(file, Problem::CheckOfNothing));
            }
            let command = t.get("command").map(|v| command(&v)).transpose()?;
            if command.is_none() && !is_unit {
                let example = "command = \"pg_isready\"".to_owned();
                return Err(t.place_of("command").problem(file, Problem::Missing { example }));
            }
            (command, Some(health(&t)?))
        }
        None => (None, is_unit.then_some(HEALTH)),
    };
    let fsck = mount_table.as_ref().map_or(Ok(false), |t| t.get("check").map_or(Ok(true), |v| v.flag()))?;
    let has_device = nodes.iter().flat_map(|n| &n.devices).any(|d| *d != DeviceKind::None);
    let wanted = |step: &Step| match step {
        Step::Device => has_device,
        Step::Before => !before.is_empty(),
        Step::Check => fsck,
        Step::Mount => mount.is_some(),
        Step::Address => address.is_some(),
        Step::Service => service.is_some(),
        Step::Healthy => health.is_some(),
        Step::After => !after.is_empty(),
    };
    let steps = Step::ALL.into_iter().filter(wanted).collect();
    let plan = Plan { steps, limits: limits(&table)?, health };
    let watchdog = table.get("watchdog").map(|v| v.path()).transpose()?;
    Ok(Some(Handoff { mount, address, service, check, before, after, watchdog, plan }))
}

/// What a unit is looked after with where the file says nothing else.
const HEALTH: Health = Health { every_ms: 5000, fail: 3, on_fail: OnFail::Takeover };

fn need<'a>(table: &Table<'a>, key: &str, example: &str) -> Result<Value<'a>, ConfigError> {
    table.need(key, example)
}

fn mount(table: &Table<'_>, volumes: &[Volume], nodes: &[Node]) -> Result<Mount, ConfigError> {
    table.only(&["volume", "at", "type", "options", "check"])?;
    let volume = need(table, "volume", "volume = \"disk0\"")?;
    let name = volume.text("\"disk0\"")?;
    let Some(index) = volumes.iter().position(|v| v.name == name) else {
        let known = volumes.iter().map(|v| v.name.clone()).collect();
        return Err(volume.problem(Problem::NoSuchVolume { known }));
    };
    if let Some(node) = nodes.iter().find(|n| n.devices.get(index) == Some(&DeviceKind::None)) {
        return Err(volume.problem(Problem::NoDevice { node: node.name.clone() }));
    }
    let at = need(table, "at", "at = \"/srv/data\"")?;
    let path = at.path()?;
    if path.parent().is_none() || path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(at.problem(Problem::BadMountPoint));
    }
    let kind = need(table, "type", "type = \"ext4\"")?;
    let kind_text = kind.text("\"ext4\"")?;
    if kind_text.is_empty() || !kind_text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
        return Err(kind.problem(Problem::BadFileSystem));
    }
    let options = table.get("options").map_or(Ok(""), |v| v.text("\"noatime\""))?;
    Ok(Mount { volume: name.to_owned(), at: path, kind: kind_text.to_owned(), options: options.to_owned() })
}

fn address(table: &Table<'_>, nodes: &[Node]) -> Result<Address, ConfigError> {
    table.only(&["ip", "interface"])?;
    let ip = need(table, "ip", "ip = \"10.0.0.10/24\"")?;
    let network: Network = ip.text("\"10.0.0.10/24\"")?.parse().map_err(|()| ip.problem(Problem::BadNetwork))?;
    if network.ip.is_loopback() || network.ip.is_unspecified() || network.ip.is_multicast() {
        return Err(ip.problem(Problem::NotToMove));
    }
    if let Some(node) = nodes.iter().find(|n| n.address.ip() == network.ip) {
        return Err(ip.problem(Problem::NodesOwn { node: node.name.clone() }));
    }
    let interface = need(table, "interface", "interface = \"eth0\"")?;
    let name = interface.text("\"eth0\"")?;
    let good = (1..=INTERFACE_MAX).contains(&name.len()) && !name.contains(|c: char| c.is_whitespace() || c == '/');
    if !good {
        return Err(interface.problem(Problem::BadInterface));
    }
    Ok(Address { network, interface: name.to_owned() })
}

fn service(file: &Path, table: &Table<'_>) -> Result<Service, ConfigError> {
    table.only(&["unit", "start", "stop"])?;
    let Some(unit) = table.get("unit") else {
        let start = command(&need(table, "start", "start = \"…\" and stop = \"…\", or unit = \"NAME.service\"")?)?;
        let stop = command(&need(table, "stop", "stop = \"…\", the command that ends what start began")?)?;
        return Ok(Service::Commands { start, stop });
    };
    if table.get("start").is_some() || table.get("stop").is_some() {
        return Err(table.place().problem(file, Problem::UnitAndCommands));
    }
    let name = unit.text("\"postgresql@15-main.service\"")?;
    let good = |b: u8| b.is_ascii_alphanumeric() || b"@._-:\\".contains(&b);
    let is_unit = [".service", ".target"].iter().any(|end| name.len() > end.len() && name.ends_with(end));
    if !is_unit || name.starts_with('-') || !name.bytes().all(good) {
        return Err(unit.problem(Problem::BadUnit));
    }
    Ok(Service::Unit(name.to_owned()))
}

fn command(value: &Value<'_>) -> Result<String, ConfigError> {
    let text = value.text("\"/usr/local/bin/start\"")?;
    if text.trim().is_empty() || text.contains('\0') {
        return Err(value.problem(Problem::NoCommand));
    }
    Ok(text.to_owned())
}

fn hooks(table: &Table<'_>, key: &str) -> Result<Vec<String>, ConfigError> {
    let Some(value) = table.get(key) else { return Ok(Vec::new()) };
    let items = value.list(HOOKS)?;
    if items.len() > HOOKS_MAX {
        return Err(value.problem(Problem::TooMany { most: HOOKS_MAX, found: items.len() }));
    }
    items.iter().map(command).collect()
}

fn health(table: &Table<'_>) -> Result<Health, ConfigError> {
    table.only(&["command", "every_s", "fail", "on_fail"])?;
    let choices = [OnFail::Takeover, OnFail::Restart, OnFail::Report];
    let on_fail = table.get("on_fail").map(|v| v.choice(&["takeover", "restart", "report"], &choices)).transpose()?;
    let every_s = table.get("every_s").map(|v| v.number(EVERY_S, "5")).transpose()?;
    let fail = table.get("fail").map(|v| v.number(FAIL, "3")).transpose()?;
    Ok(Health {
        every_ms: every_s.map_or(HEALTH.every_ms, |s| s * 1000),
        fail: fail.map_or(HEALTH.fail, |n| n as u32),
        on_fail: on_fail.unwrap_or(HEALTH.on_fail),
    })
}

fn limits(table: &Table<'_>) -> Result<Limits, ConfigError> {
    let given = table.get("timeout_s").map(|v| v.table("{ mount = 30, service = 60 }")).transpose()?;
    if let Some(given) = &given {
        given.only(&["device", "hooks", "mount", "address", "service", "check"])?;
    }
    let limit = |key: &str, default_ms: u64| {
        let value = given.as_ref().and_then(|g| g.get(key));
        value.map_or(Ok(default_ms), |v| Ok(v.number(TIMEOUT_S, "30")? * 1000))
    };
    let default = Limits::DEFAULT;
    Ok(Limits {
        device_ms: limit("device", default.device_ms)?,
        hooks_ms: limit("hooks", default.hooks_ms)?,
        mount_ms: limit("mount", default.mount_ms)?,
        address_ms: limit("address", default.address_ms)?,
        service_ms: limit("service", default.service_ms)?,
        check_ms: limit("check", default.check_ms)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    const HEAD: &str = "[resource]\nname = \"data\"\n[volume.disk0]\nsize = \"1GiB\"\ndevice = \"auto\"\n\
        [node.alpha]\naddress = \"127.0.0.1:1\"\ndir = \"/a\"\n[node.beta]\naddress = \"127.0.0.1:2\"\ndir = \"/b\"\n";

    fn read(handoff: &str) -> Result<Handoff, String> {
        let text = format!("{HEAD}[handoff]\n{handoff}\n");
        parse(Path::new("f"), &text).map(|c| c.handoff.expect("a handoff")).map_err(|e| e.to_string())
    }

    const WHOLE: &str = r#"
mount   = { volume = "disk0", at = "/srv/data", type = "ext4", options = "noatime", check = true }
address = { ip = "10.0.0.10/24", interface = "eth0" }
service = { unit = "postgresql@15-main.service" }
check   = { command = "pg_isready", every_s = 5, fail = 3, on_fail = "takeover" }
before  = ["/etc/understudy/hooks/before"]
timeout_s = { mount = 40, service = 70 }
"#;

    #[test]
    fn a_whole_handoff_is_read() {
        let handoff = read(WHOLE).unwrap();
        assert_eq!(handoff.plan.steps, Step::ALL[..7]);
        assert_eq!((handoff.plan.limits.mount_ms, handoff.plan.limits.service_ms), (40_000, 70_000));
        assert_eq!(handoff.plan.health, Some(HEALTH));
        assert_eq!(handoff.service, Some(Service::Unit("postgresql@15-main.service".into())));
        assert_eq!(handoff.address.unwrap().network.to_string(), "10.0.0.10/24");
        let address = read(r#"address = { ip = "fd00::1/64", interface = "eth0" }"#).unwrap();
        assert_eq!(address.plan.steps, [Step::Device, Step::Address]);
    }

    #[test]
    fn what_is_wrong_is_refused_with_field_value_and_remedy() {
        let mount = |rest: &str| format!("mount = {{ volume = \"disk0\", {rest} }}");
        for (text, words) in [
            (String::new(), "asks for nothing"),
            ("before = [\"x\"]".into(), "asks for nothing"),
            ("mounts = 1".into(), "did you mean \"mount\""),
            ("mount = 1".into(), "must be a table"),
            ("mount = { volume = \"disk9\", at = \"/m\", type = \"ext4\" }".into(), "volumes are disk0"),
            (mount("type = \"ext4\""), "handoff.mount.at: is missing"),
            (mount("at = \"/\", type = \"ext4\""), "not a folder that can be mounted on"),
            (mount("at = \"/m/../x\", type = \"ext4\""), "not a folder that can be mounted on"),
            (mount("at = \"m\", type = \"ext4\""), "must be an absolute path"),
            (mount("at = \"/m\""), "handoff.mount.type: is missing"),
            (mount("at = \"/m\", type = \"ext4 \""), "as the kernel calls it"),
            ("address = { ip = \"10.0.0.10\", interface = \"eth0\" }".into(), "length of its network's prefix"),
            ("address = { ip = \"127.0.0.9/8\", interface = \"lo\" }".into(), "cannot move between nodes"),
            ("address = { ip = \"10.0.0.10/24\", interface = \"eth0 1\" }".into(), "not the name of an interface"),
            ("service = { unit = \"x\" }".into(), "name of a unit"),
            ("service = { unit = \"--x.service\" }".into(), "name of a unit"),
            ("service = { start = \"x\" }".into(), "handoff.service.stop: is missing"),
            ("service = { start = \" \", stop = \"x\" }".into(), "no command"),
            ("service = { unit = \"x.service\", stop = \"x\" }".into(), "either unit, or start and stop"),
            ("check = { command = \"x\" }\naddress = { ip = \"10.0.0.1/8\", interface = \"e\" }".into(), "no service"),
            ("service = { start = \"x\", stop = \"y\" }\ncheck = { every_s = 5 }".into(), "check.command: is missing"),
            (format!("{WHOLE}\nwatchdog = \"watchdog\""), "must be an absolute path"),
            (WHOLE.replace("mount = 40", "mount = 0"), "handoff.timeout_s.mount = 0: is out of range"),
            (WHOLE.replace("mount = 40", "mount = \"1\""), "whole number"),
            (WHOLE.replace("mount = 40", "fsck = 5"), "there is no such field"),
            (WHOLE.replace("\"takeover\"", "\"panic\""), "\"takeover\" or \"restart\" or \"report\""),
            (WHOLE.replace("fail = 3", "fail = 0"), "out of range"),
        ] {
            let said = read(&text).unwrap_err();
            assert!(said.contains(words) && said.contains("handoff"), "{text}: {said}");
        }
        let device = format!("{HEAD}[handoff]\n{WHOLE}").replace("device = \"auto\"\n", "");
        let said = parse(Path::new("f"), &device).unwrap_err().to_string();
        assert!(said.contains("has no device on alpha"), "{said}");
        let own = format!("{HEAD}[handoff]\n{WHOLE}").replace("127.0.0.1:1", "10.0.0.10:1");
        let own = own.replace("name = \"data\"", "name = \"data\"\ninsecure = true");
        let said = parse(Path::new("f"), &own).unwrap_err().to_string();
        assert!(said.contains("is alpha's own"), "{said}");
    }
}
