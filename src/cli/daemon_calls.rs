//! The one place where the command line calls the daemon and the demonstration.

use crate::config::Settings;
use std::io::Write;

/// Formats a node's parts.
pub fn create(_settings: &Settings, _force: bool, _out: &mut dyn Write) -> anyhow::Result<()> {
    anyhow::bail!("this build has no daemon: nothing was created")
}

/// Runs a node's daemon until it ends.
pub fn run(_settings: Settings) -> anyhow::Result<()> {
    anyhow::bail!("this build has no daemon: nothing was started")
}
