//! The command line: arguments in, text and an exit code out.
//!
//! 0 is success, 1 a refusal or failure (in words on standard error), 2 a usage error. What stands on standard output is
//! for people unless `--json` was given.

mod args;
mod commands;
mod completions;
mod daemon_calls;
mod devices;
pub(crate) mod events;
mod forecast;
mod handoff;
mod log;
mod salvage;
mod status;
mod table;
mod verify;
mod voters;

#[cfg(test)]
mod tests;

use clap::Parser;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

pub use args::Cli;
pub use commands::execute;
pub use status::render as render_status;
pub use verify::render as render_verify;

/// What the output may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Standard output is a terminal, whose screen may be redrawn.
    pub terminal: bool,
    /// Colours are welcome.
    pub colour: bool,
}

impl Look {
    /// As standard output and the `NO_COLOR` convention allow.
    pub fn of_stdout() -> Look {
        let terminal = io::stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Look { terminal, colour: terminal && !no_colour }
    }
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = execute(cli, &mut io::stdout(), Look::of_stdout());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if reader_is_gone(&e) => ExitCode::SUCCESS,
        Err(e) => {
            // Nobody is left to tell where standard error is closed, too.
            let _ = writeln!(io::stderr(), "understudy: {}", in_words(&e));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes in one line; causes that an error's own words already hold are not said twice.
fn in_words(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Whoever read our output has seen enough, as in `understudy events data | head`.
fn reader_is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
