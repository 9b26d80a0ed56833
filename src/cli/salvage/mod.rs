//! `understudy salvage`: what a node wrote that its resource went on without, kept in its folder until somebody decides.

mod error;
mod export;
mod read;
#[cfg(test)]
mod tests;

pub use error::SalvageError;

use super::args::SalvageCommand;
use super::status::plain;
use super::table::{Cell, Colour, layout};
use crate::config::{self, Config, Node, Volume, show_size};
use crate::control::Client;
use crate::core::VolumeId;
use crate::daemon::disk::salvage_path;
use crate::daemon::rfc3339;
use crate::format::superblock::{self, SLOT_BYTES, SLOT_OFFSETS};
use export::Export;
use read::{Run, Salvage};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Carries out `understudy salvage ...`.
pub fn execute(command: SalvageCommand, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        SalvageCommand::List { target, json } => {
            let config = config::load(&target.file)?;
            list(&config, config.find_node(target.node.as_deref())?, json, out)
        }
        SalvageCommand::Show { target, number, json } => {
            let config = config::load(&target.file)?;
            let salvage = find(&config, config.find_node(target.node.as_deref())?, number)?;
            show(&config, number, &salvage, json, out)
        }
        SalvageCommand::Export { target, number, volume, to, base, partial, json } => {
            let config = config::load(&target.file)?;
            let salvage = find(&config, config.find_node(target.node.as_deref())?, number)?;
            let volume = choose(&config.volumes, volume.as_deref())?;
            let (to, base) = (to.as_path(), base.as_deref());
            let export = Export { salvage: &salvage, volumes: &config.volumes, volume, to, base, partial };
            if let Some(user) = base.and_then(|base| store_in_use(&config, base)) {
                eprintln!(
                    "warning: the base is a store of {user}, whose daemon is running: the copy mixes what it held at different moments"
                );
            }
            said(&export, number, json, out)
        }
    }
}

/// The node of this file whose store that is, if its daemon runs here.
fn store_in_use<'a>(config: &'a Config, base: &Path) -> Option<&'a str> {
    let same = |store: &PathBuf| matches!((store.canonicalize(), base.canonicalize()), (Ok(a), Ok(b)) if a == b);
    let node = config.nodes.iter().find(|n| n.stores.iter().any(same))?;
    Client::connect(&node.control).is_ok().then_some(node.name.as_str())
}

fn find(config: &Config, node: usize, number: u32) -> Result<Salvage, SalvageError> {
    let node = &config.nodes[node];
    check_volumes(config, node)?;
    let known = read::numbers(&node.name, &node.dir)?;
    if !known.contains(&number) {
        return Err(SalvageError::NoSuch { node: node.name.clone(), number, known });
    }
    read::open(&salvage_path(&node.dir, number))
}

/// The file of today names the volumes; the log says which ones there were. One that cannot be read says nothing.
fn check_volumes(config: &Config, node: &Node) -> Result<(), SalvageError> {
    let mut slots = [vec![0; SLOT_BYTES], vec![0; SLOT_BYTES]];
    let Ok(log) = File::open(&node.log) else { return Ok(()) };
    for (slot, at) in slots.iter_mut().zip(SLOT_OFFSETS) {
        let _ = log.read_exact_at(slot, at); // Then it is blank, and the other one counts.
    }
    let Ok((superblock, _)) = superblock::choose(&slots[0], &slots[1]) else { return Ok(()) };
    let expected: Vec<(String, u64)> = config.volumes.iter().map(|v| (v.name.clone(), v.size)).collect();
    let found = superblock.volumes;
    match superblock.node == node.name && found != expected {
        true => Err(SalvageError::OtherVolumes { node: node.name.clone(), expected, found }),
        false => Ok(()),
    }
}

fn choose(volumes: &[Volume], name: Option<&str>) -> Result<VolumeId, SalvageError> {
    let known = || volumes.iter().map(|v| v.name.clone()).collect::<Vec<_>>();
    let position = match name {
        Some(name) => volumes.iter().position(|v| v.name == name),
        None if volumes.len() == 1 => Some(0),
        None => return Err(SalvageError::WhichVolume { known: known() }),
    };
    // At most 64 volumes in a file.
    let no_such = || SalvageError::NoSuchVolume { name: name.unwrap_or_default().to_owned(), known: known() };
    position.map(|p| VolumeId(p as u16)).ok_or_else(no_such)
}

/// The name of a volume, or its number where the file has no such volume.
fn volume_name(config: &Config, volume: VolumeId) -> String {
    config.volumes.get(usize::from(volume.0)).map_or_else(|| format!("#{}", volume.0), |v| v.name.clone())
}

fn list(config: &Config, node: usize, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let node = &config.nodes[node];
    let mut rows = Vec::new();
    let mut objects = Vec::new();
    // One that cannot be read does not hide the others.
    for number in read::numbers(&node.name, &node.dir)? {
        let path = salvage_path(&node.dir, number);
        match read::open(&path) {
            Ok(salvage) => {
                rows.push(row(number, &salvage));
                objects.push(summary(number, &salvage));
            }
            Err(e) => {
                let (blank, file) = (|| Cell::number("-"), plain(&path.to_string_lossy()));
                let what = Cell::coloured("unreadable", Some(Colour::Bad));
                rows.push(vec![
                    Cell::number(number.to_string()),
                    what,
                    blank(),
                    blank(),
                    "-".to_owned().into(),
                    file.into(),
                ]);
                objects.push(json!({ "number": number, "file": path, "error": e.to_string() }));
            }
        }
    }
    if json {
        writeln!(out, "{}", Value::Array(objects))?;
    } else if rows.is_empty() {
        writeln!(out, "{} has set no orphaned writes aside", node.name)?;
    } else {
        let names = ["NUMBER", "TERM", "BLOCKS", "BYTES", "SET ASIDE", "FILE"];
        rows.insert(0, names.iter().map(|n| Cell::coloured(*n, Some(Colour::Head))).collect());
        write!(out, "{}", layout(&rows, false))?;
    }
    Ok(())
}

fn row(number: u32, salvage: &Salvage) -> Vec<Cell> {
    let damaged = if salvage.damaged { " (damaged)" } else { "" };
    vec![
        Cell::number(number.to_string()),
        Cell::from(format!("{} ({:?})", salvage.term.number, salvage.term.id)),
        Cell::number(salvage.blocks().to_string()),
        Cell::number(show_size(salvage.bytes())),
        Cell::from(rfc3339(salvage.when)),
        Cell::from(format!("{}{damaged}", plain(&salvage.path.to_string_lossy()))),
    ]
}

fn summary(number: u32, salvage: &Salvage) -> Value {
    json!({
        "number": number,
        "file": salvage.path,
        "term": { "number": salvage.term.number, "id": format!("{:032x}", salvage.term.id.0) },
        "blocks": salvage.blocks(),
        "bytes": salvage.bytes(),
        "when": rfc3339(salvage.when),
        "damaged": salvage.damaged,
    })
}

fn show(config: &Config, number: u32, salvage: &Salvage, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let merged = merged(&salvage.runs);
    if json {
        let range = |r: &Run| {
            let volume = volume_name(config, r.volume);
            json!({ "volume": volume, "offset": r.offset, "length": r.length, "zeros": r.content.is_none() })
        };
        let mut object = summary(number, salvage);
        object["ranges"] = merged.iter().map(range).collect();
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let (blocks, bytes) = (salvage.blocks(), show_size(salvage.bytes()));
    writeln!(out, "salvage {number}: {blocks} blocks, {bytes}, of term {}", salvage.term.number)?;
    if salvage.damaged {
        writeln!(out, "it is damaged: what follows is what can be read")?;
    }
    let mut rows =
        vec![["VOLUME", "OFFSET", "LENGTH", "CONTENT"].map(|n| Cell::coloured(n, Some(Colour::Head))).to_vec()];
    rows.extend(merged.iter().map(|r| {
        vec![
            Cell::from(volume_name(config, r.volume)),
            Cell::number(r.offset.to_string()),
            Cell::number(r.length.to_string()),
            Cell::from(if r.content.is_some() { "data" } else { "zeros" }.to_owned()),
        ]
    }));
    Ok(write!(out, "{}", layout(&rows, false))?)
}

/// Runs in order; those that follow each other and are of one kind as one.
fn merged(runs: &[Run]) -> Vec<Run> {
    let mut sorted = runs.to_vec();
    sorted.sort_by_key(|r| (r.volume, r.offset));
    let mut merged: Vec<Run> = Vec::new();
    for run in sorted {
        match merged.last_mut() {
            Some(last)
                if last.volume == run.volume
                    && last.offset.checked_add(last.length) == Some(run.offset)
                    && last.content.is_some() == run.content.is_some() =>
            {
                last.length += run.length;
            }
            _ => merged.push(run),
        }
    }
    merged
}

fn said(export: &Export, number: u32, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let done = export.run()?;
    let volume = &export.volumes[usize::from(export.volume.0)];
    if json {
        let object = json!({
            "number": number, "volume": volume.name, "file": export.to, "size": volume.size, "base": export.base,
            "data_bytes": done.data_bytes, "zero_bytes": done.zero_bytes,
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let over = export.base.map_or(String::new(), |b| format!(", over {}", b.display()));
    let (data, zeros) = (show_size(done.data_bytes), show_size(done.zero_bytes));
    writeln!(
        out,
        "{}: {data} of data and {zeros} of zeros of {} from salvage {number}{over}",
        export.to.display(),
        volume.name
    )?;
    Ok(())
}
