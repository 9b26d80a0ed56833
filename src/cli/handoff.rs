//! What people see of the handoff: its part of the status page, and its history.

use super::args::Target;
use super::status::{duration_ms, list, plain, word};
use super::table::{Cell, Colour, layout, paint};
use crate::config;
use crate::daemon::handoff::{Work, history_path, task};
use serde_json::Value;
use std::io::Write;

/// The part of the status page; nothing where there is no handoff.
pub fn render(status: &Value, colours: bool) -> String {
    let handoff = &status["handoff"];
    let before = takeover(status, colours);
    let Some(state) = handoff["state"].as_str() else { return before };
    let colour = match state {
        "up" => Some(Colour::Good),
        "faulted" | "unable" | "unhealthy" => Some(Colour::Bad),
        "down" => None,
        _ => Some(Colour::Warn),
    };
    let mut text = before;
    text.push_str(&format!("handoff: {}", paint(&plain(&state.replace('_', " ")), colour, colours)));
    if let Some(step) = handoff["step"].as_str() {
        let since = handoff["since_ms"].as_u64().map_or(String::new(), |ms| format!(" for {}", duration_ms(ms)));
        text.push_str(&format!(", {}{since}", plain(step)));
    }
    if let Some(why) = handoff["why"].as_str() {
        text.push_str(&format!(": {}", plain(why)));
    }
    if state == "faulted" {
        let node = word(&status["node"]);
        text.push_str(&format!(". To do: mend it, then `understudy retry FILE --node {node}`, or switch over"));
    }
    text.push('\n');
    text.push_str(&phases(handoff, colours));
    text
}

/// The last takeover, of a node that is active by it.
fn takeover(status: &Value, colours: bool) -> String {
    let takeover = &status["takeover"];
    if !takeover.is_object() || status["role"] != "active" {
        return String::new();
    }
    format!("took over at {}: {}\n{}", word(&takeover["time"]), word(&takeover["why"]), phases(takeover, colours))
}

/// Of a way up or down: each phase, when it ended, and how long it took.
fn phases(way: &Value, colours: bool) -> String {
    let phases = list(&way["phases"]);
    if phases.is_empty() {
        return String::new();
    }
    let ms = |value: &Value| value.as_u64().map_or("-".to_owned(), duration_ms);
    let title = match way["direction"].as_str() {
        Some("up") => "UP",
        Some("down") => "DOWN",
        Some("lost") => "TERM LOST",
        Some("leftover") => "LEFTOVER",
        Some("takeover") => "TAKEOVER",
        _ => "PHASE",
    };
    let mut rows = vec![[title, "TOOK", "AT", ""].map(|t| Cell::from(t.to_owned())).to_vec()];
    for phase in phases {
        let failed = phase["failed"].as_str().map(plain);
        let result = Cell::coloured(failed.clone().unwrap_or_default(), failed.map(|_| Colour::Bad));
        let number = |value: &Value| Cell::number(ms(value));
        rows.push(vec![Cell::from(word(&phase["phase"])), number(&phase["took_ms"]), number(&phase["at_ms"]), result]);
    }
    layout(&rows, colours)
}

/// Earlier ways up and down, the newest last.
pub fn history(target: &Target, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let config = config::load(&target.file)?;
    let node = &config.nodes[config.find_node(target.node.as_deref())?];
    let path = history_path(&node.dir);
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other.map_err(|e| anyhow::anyhow!("cannot read {}: {e}", path.display()))?,
    };
    if json {
        return Ok(out.write_all(text.as_bytes())?);
    }
    if text.is_empty() {
        return Ok(writeln!(out, "{} has had no handoff and no takeover yet", node.name)?);
    }
    for entry in text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()) {
        let took = entry["took_ms"].as_u64().map_or(String::new(), |ms| format!(" in {}", duration_ms(ms)));
        let failed = entry["failed"].as_str().map_or(String::new(), |why| format!(", failed: {}", plain(why)));
        let (time, way, why) = (word(&entry["time"]), word(&entry["direction"]), word(&entry["why"]));
        writeln!(out, "{time} {way}{took} ({why}){failed}\n{}", phases(&entry, false))?;
    }
    Ok(())
}

/// One task, in this process.
pub fn perform(work: &str, out: &mut dyn Write) -> anyhow::Result<()> {
    let work: Work = serde_json::from_str(work)?;
    task::run(&work, out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_handoff_reads_phase_by_phase() {
        assert_eq!(render(&Value::Null, false), "");
        let handoff = json!({
            "state": "going_up", "step": "mount", "since_ms": 1500, "direction": "up",
            "phases": [{ "phase": "device", "took_ms": 120, "at_ms": 120, "failed": null },
                       { "phase": "check", "took_ms": 80, "at_ms": 200, "failed": "no" }],
        });
        assert_eq!(
            render(&json!({ "handoff": handoff }), false),
            "handoff: going up, mount for 1.5 s\nUP      TOOK    AT\ndevice  120 ms  120 ms\ncheck    80 ms  200 ms  no\n"
        );
        let faulted = json!({ "node": "alpha", "handoff": { "state": "faulted", "why": "mount: \u{1b}" } });
        let page = render(&faulted, false);
        assert!(page.starts_with("handoff: faulted: mount: \\u{1b}. To do: mend it"), "{page}");
        assert!(page.contains("`understudy retry FILE --node alpha`"), "{page}");
    }
}
