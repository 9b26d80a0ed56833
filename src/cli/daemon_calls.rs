//! The one place where the command line calls the daemon and the demonstration.

use crate::config::{Config, Settings, host_name};
use crate::daemon;
use std::io::Write;

/// Formats a node's parts.
pub fn create(settings: &Settings, force: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    daemon::create(settings, force)?;
    writeln!(out, "{} of {} is created", settings.node.my_name(), settings.node.resource)?;
    Ok(())
}

/// Runs a node's daemon until it ends.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    Ok(daemon::run(settings)?)
}

/// Runs a witness until it ends: the one that is named, or called like this host, or the only one of the file.
pub fn witness(config: &Config, name: Option<&str>) -> anyhow::Result<()> {
    let names = || config.witnesses.iter().map(|w| w.name.as_str()).collect::<Vec<_>>().join(", ");
    let file = config.file.display();
    if config.witnesses.is_empty() {
        anyhow::bail!("{file} has no witness: add [witness.w1] with address = \"IP:PORT\"");
    }
    let found = match name {
        Some(name) => config.find_witness(name),
        None => {
            let host = host_name()?.split('.').next().unwrap_or_default().to_lowercase();
            config.find_witness(&host).or_else(|| config.witnesses.first().filter(|_| config.witnesses.len() == 1))
        }
    };
    match (found, name) {
        (Some(witness), _) => Ok(daemon::witness::run(witness)?),
        (None, Some(name)) => anyhow::bail!("{file} has no witness called {name:?}; its witnesses are {}", names()),
        (None, None) => anyhow::bail!("say which witness of {file} this is with --node ({})", names()),
    }
}
