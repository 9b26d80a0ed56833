//! Completion scripts for shells: what clap makes of the arguments, and the names of nodes, which only the resource's file tells.

use super::args::Cli;
use crate::config;
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::Write;
use std::path::Path;

/// Prints the nodes of the first argument that is a resource's file; `words` are those of the command line being completed.
const BASH: &str = r#"
_understudy_nodes() {
    local word
    for word in "${COMP_WORDS[@]:2}"; do
        if [[ -f "$word" || -f "/etc/understudy/$word.toml" ]]; then
            understudy nodes "$word" 2>/dev/null
            return
        fi
    done
}
"#;

const ZSH: &str = r#"
_understudy_nodes() {
    local word
    for word in "${words[@]}"; do
        if [[ -f "$word" || -f "/etc/understudy/$word.toml" ]]; then
            compadd -- ${(f)"$(understudy nodes "$word" 2>/dev/null)"}
            return
        fi
    done
}
"#;

const FISH: &str = r#"
function __understudy_nodes
    for word in (commandline -opc)[2..]
        if test -f "$word"; or test -f "/etc/understudy/$word.toml"
            understudy nodes "$word" 2>/dev/null
            return
        end
    end
end
complete -c understudy -n "__fish_understudy_using_subcommand connect; and count (__understudy_nodes) >/dev/null" -f -a "(__understudy_nodes)"
complete -c understudy -n "__fish_understudy_using_subcommand disconnect; and count (__understudy_nodes) >/dev/null" -f -a "(__understudy_nodes)"
"#;

/// Prints the script for a shell.
pub fn print(shell: Shell, out: &mut dyn Write) -> anyhow::Result<()> {
    // Into memory first: the generator panics where its output is closed.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "understudy", &mut script);
    let script = String::from_utf8(script)?;
    let script = match shell {
        Shell::Bash => with_nodes_in_bash(&script),
        Shell::Zsh => with_nodes_in_zsh(&script),
        Shell::Fish => with_nodes_in_fish(&script),
        _ => script,
    };
    Ok(out.write_all(script.as_bytes())?)
}

/// The names of a file's nodes and witnesses, one a line: what the scripts ask for.
pub fn nodes(file: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let config = config::load(file)?;
    let witnesses = config.witnesses.iter().map(|w| &w.name);
    for name in config.nodes.iter().map(|n| &n.name).chain(witnesses) {
        writeln!(out, "{name}")?;
    }
    Ok(())
}

/// The value of `--node`, `--off` and switchover's `--to`, and what stands where a peer does.
fn with_nodes_in_bash(script: &str) -> String {
    const NAMES: &str = "COMPREPLY=($(compgen -W \"$(_understudy_nodes)\" -- \"${cur}\"))";
    let mut lines: Vec<String> = Vec::new();
    for line in script.lines() {
        let after = lines.last().map_or("", |l| l.trim());
        let names =
            matches!(after, "--node)" | "--off)" | "--to)") && line.trim() == "COMPREPLY=($(compgen -f \"${cur}\"))";
        lines.push(if names { line.replace(line.trim(), NAMES) } else { line.to_owned() });
    }
    format!("{}\n{BASH}", lines.join("\n"))
}

fn with_nodes_in_zsh(script: &str) -> String {
    let mut script = script.to_owned();
    for value in [":NODE", ":NODES", ":peer -- The node to link with", ":peer -- The node to part from"] {
        script = script.replace(&format!("{value}:_default'"), &format!("{value}:_understudy_nodes'"));
    }
    // Before it is run for the first time, which is the script's last statement.
    match script.rfind("\nif [ \"$funcstack[1]\"") {
        Some(at) => script.insert_str(at, ZSH),
        None => script.push_str(ZSH),
    }
    script
}

fn with_nodes_in_fish(script: &str) -> String {
    let names = |line: &str| {
        let of_switchover = line.contains("using_subcommand switchover") && line.contains(" -l to ");
        (line.contains(" -l node ") || line.contains(" -l off ") || of_switchover) && line.ends_with(" -r")
    };
    let with = |line: &str| match names(line) {
        true => format!("{line} -f -a \"(__understudy_nodes)\"\n"),
        false => format!("{line}\n"),
    };
    let script: String = script.lines().map(with).collect();
    script + FISH
}
