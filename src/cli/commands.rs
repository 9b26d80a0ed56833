//! What each command does.

use super::args::{Cli, Command, Target, VotersCommand};
use super::{
    Look, completions, daemon_calls, devices, events, forecast, handoff, in_words, log, salvage, status, verify,
};
use crate::config::{self, Settings};
use crate::control::{Client, ControlError};
use crate::core::{Command as CoreCommand, Mode};
use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// How often `status --watch` asks.
const WATCH: Duration = Duration::from_secs(1);

/// Carries out one command line. Returns what went wrong in words; usage errors never come this far.
pub fn execute(cli: Cli, out: &mut dyn Write, look: Look) -> anyhow::Result<()> {
    match cli.command {
        Command::Create { target, force } => daemon_calls::create(&settings(&target)?, force, out),
        Command::Run { target } => daemon_calls::run(settings(&target)?),
        Command::Witness { target } => daemon_calls::witness(&config::load(&target.file)?, target.node.as_deref()),
        Command::Promote { target, force, off } => tell(&target, CoreCommand::Promote { force, off }, out),
        Command::Demote { target, force } => tell(&target, CoreCommand::Demote { force }, out),
        Command::Switchover { target, to } => tell(&target, CoreCommand::Switchover { to }, out),
        Command::Connect { target, peer, dry_run: false, .. } => {
            tell(&target, CoreCommand::Connect { peer, dry_run: false }, out)
        }
        Command::Connect { target, peer, dry_run: true, json } => {
            let forecast = ask(&target, CoreCommand::Connect { peer, dry_run: true })?;
            forecast::show(&forecast, &target.file, json, out)
        }
        Command::Disconnect { target, peer, force } => tell(&target, CoreCommand::Disconnect { peer, force }, out),
        Command::Verify { target, repair, json } => {
            verify::show(&ask(&target, CoreCommand::Verify { repair })?, json, out)
        }
        Command::Status { target, json, watch: true } => watch(&target, json, out, look),
        Command::Status { target, json, watch: false } => {
            let status = Node::find_any(&target)?.connect()?.status()?;
            show_status(&status, &target, json, out, look)
        }
        Command::Events { target, json } => follow(&target, json, out),
        Command::Log { target, json } => {
            let report = ask(&target, CoreCommand::Log)?;
            let text = if json { format!("{report}\n") } else { log::render(&report) };
            Ok(out.write_all(text.as_bytes())?)
        }
        Command::Maintenance { target, state } => tell(&target, CoreCommand::Maintenance { on: state == "on" }, out),
        Command::Voters { what: VotersCommand::Replace { target, voter, with } } => {
            tell(&target, CoreCommand::ReplaceVoter { voter, with }, out)
        }
        Command::Salvage { what } => salvage::execute(what, out),
        Command::Stop { target } => {
            let text = Node::find_any(&target)?.connect()?.stop()?;
            Ok(writeln!(out, "{text}")?)
        }
        Command::Retry { target } => {
            let text = in_words_of(Node::find(&target)?.connect()?.retry()?);
            Ok(writeln!(out, "{text}")?)
        }
        Command::History { target, json } => handoff::history(&target, json, out),
        Command::HandoffTask { work } => handoff::perform(&work, out),
        Command::Attach { target, volume, follow, read_only } => {
            devices::attach(&target, &volume, follow, read_only, out)
        }
        Command::Detach { target, volume, force } => devices::detach(&target, &volume, force, out),
        Command::Doctor { file, node, json } => devices::doctor(file.map(|file| Target { file, node }), json, out),
        Command::DeviceHelper { target, volume, kind, tenure, read_only } => {
            devices::help(&target, &volume, &kind, &tenure, read_only, out)
        }
        Command::Demo { keep, seconds, mode, alone } => {
            let mode = if mode == "async" { Mode::Async } else { Mode::Sync };
            Ok(crate::demo::run(crate::demo::Options { keep, seconds, mode, alone }, out)?)
        }
        Command::Completions { shell } => completions::print(shell, out),
        Command::Nodes { file } => completions::nodes(&file, out),
    }
}

pub(super) fn settings(target: &Target) -> anyhow::Result<Settings> {
    let config = config::load(&target.file)?;
    Ok(Settings::new(&config, target.node.as_deref())?)
}

/// Whom a command is for.
struct Node<'a> {
    target: &'a Target,
    name: String,
    control: PathBuf,
    /// How its process is started.
    run: &'static str,
}

impl<'a> Node<'a> {
    fn find(target: &'a Target) -> anyhow::Result<Node<'a>> {
        let config = config::load(&target.file)?;
        if let Some(witness) = target.node.as_deref().and_then(|name| config.find_witness(name)) {
            anyhow::bail!(
                "{} is a witness: it has no data and no role. Name one of the nodes with --node",
                witness.name
            );
        }
        let node = &config.nodes[config.find_node(target.node.as_deref())?];
        Ok(Node { target, name: node.name.clone(), control: node.control.clone(), run: "run" })
    }

    /// A node or a witness.
    fn find_any(target: &'a Target) -> anyhow::Result<Node<'a>> {
        let config = config::load(&target.file)?;
        match target.node.as_deref().and_then(|name| config.find_witness(name)) {
            Some(w) => Ok(Node { target, name: w.name.clone(), control: w.control.clone(), run: "witness" }),
            None => Node::find(target),
        }
    }

    fn connect(&self) -> anyhow::Result<Client> {
        let Node { target, name, control, run } = self;
        let file = target.file.display();
        Client::connect(control).map_err(|e| match e {
            ControlError::NotRunning { path } => anyhow::anyhow!(
                "no daemon answers on {}: {name} is not running on this host. Start it with `understudy {run} {file} --node {name}`",
                path.display()
            ),
            other => other.into(),
        })
    }
}

fn ask(target: &Target, command: CoreCommand) -> anyhow::Result<Value> {
    Ok(Node::find(target)?.connect()?.command(&command)?)
}

fn tell(target: &Target, command: CoreCommand, out: &mut dyn Write) -> anyhow::Result<()> {
    let text = in_words_of(ask(target, command)?);
    Ok(writeln!(out, "{text}")?)
}

/// A sentence as it is; whatever else a daemon of another version may answer, as JSON.
fn in_words_of(answer: Value) -> String {
    match answer {
        Value::String(text) => status::plain(&text),
        other => other.to_string(),
    }
}

fn show_status(status: &Value, target: &Target, json: bool, out: &mut dyn Write, look: Look) -> anyhow::Result<()> {
    if json {
        writeln!(out, "{status}")?;
    } else {
        write!(out, "{}", status::with_file(&status::render(status, look.colour), &target.file))?;
    }
    Ok(out.flush()?)
}

/// Shows the status each second. A daemon that is gone is said and waited for, so that the screen can stay open over a
/// restart; with `--json` it ends the command, as a script would want.
fn watch(target: &Target, json: bool, out: &mut dyn Write, look: Look) -> anyhow::Result<()> {
    let node = Node::find_any(target)?;
    let redraw = look.terminal && !json;
    if redraw {
        write!(out, "\x1b[2J")?;
    }
    loop {
        let status = node.connect().and_then(|mut client| Ok(client.status()?));
        let text = match status {
            Ok(status) if json => format!("{status}\n"),
            Ok(status) => status::with_file(&status::render(&status, look.colour), &target.file),
            Err(e) if json => return Err(e),
            Err(e) => format!("{}\n", in_words(&e)),
        };
        if redraw {
            // Each line is cleared after its end and the screen below the last one: no flicker, as a cleared screen would.
            write!(out, "\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))?;
        } else {
            write!(out, "{text}")?;
        }
        out.flush()?;
        std::thread::sleep(WATCH);
    }
}

fn follow(target: &Target, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    for event in Node::find_any(target)?.connect()?.events()? {
        let event = event?;
        let line = if json { event } else { events::render(&event) };
        writeln!(out, "{line}")?;
        out.flush()?;
    }
    anyhow::bail!("the daemon has ended, and its events with it")
}
