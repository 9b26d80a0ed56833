//! The one place where the command line calls the daemon and the demonstration.

use crate::config::Settings;
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
