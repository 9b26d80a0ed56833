//! What the log holds, for people.

use super::status::{list, size, word};
use super::table::{Cell, layout};
use serde_json::Value;

/// A few lines and, for each peer, one more.
pub fn render(log: &Value) -> String {
    let row = |name: &str, text: String| vec![Cell::from(name.to_owned()), Cell::from(text)];
    let (from, to) = (log["from"].as_u64().unwrap_or(0), log["to"].as_u64().unwrap_or(0));
    let held = match from > to {
        true => "no records".to_owned(),
        false => format!(
            "{from} to {to}, durable to {}, in {} batches; they cover {}",
            word(&log["durable"]),
            word(&log["batches"]),
            size(&log["covers_bytes"])
        ),
    };
    let mut rows = vec![
        row("room", format!("{} of {} used, {} free", size(&log["used"]), size(&log["size"]), size(&log["free"]))),
        row("records", held),
    ];
    for term in list(&log["terms"]) {
        let id: String = word(&term["id"]).chars().take(8).collect();
        let span = format!("{} to {}", word(&term["from"]), word(&term["to"]));
        rows.push(row("term", format!("{} ({id}): {span}", word(&term["number"]))));
    }
    let kept = match log["held_by"].as_str() {
        Some("store") => format!("for the store, which has records up to {}", word(&log["droppable_to"])),
        _ => format!("for peers; up to {} they go when room is wanted", word(&log["droppable_to"])),
    };
    rows.push(row("kept", kept));
    for peer in list(&log["peers"]) {
        let fed = if peer["reached"] == true {
            "the log reaches back to it"
        } else {
            "further back than the log: needs a resync"
        };
        let listed = match peer["listed_bytes"].as_u64() {
            None | Some(0) => String::new(),
            Some(_) => format!(", {} of changed blocks listed", size(&peer["listed_bytes"])),
        };
        rows.push(row(&word(&peer["name"]), format!("holds up to {}: {fed}{listed}", word(&peer["durable"]))));
    }
    format!("log of {}\n{}", word(&log["node"]), layout(&rows, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_log_reads_as_lines() {
        let log = json!({
            "node": "alpha", "size": 1 << 20, "used": 4096, "free": (1 << 20) - 4096, "from": 7, "to": 9, "durable": 8, "batches": 2,
            "covers_bytes": 12288, "terms": [{ "number": 2, "id": "1a2b3c4d5e6f", "from": 7, "to": 9 }], "droppable_to": 6, "held_by": "store",
            "peers": [{ "name": "beta", "durable": 3, "reached": false, "listed_bytes": 8192 }],
        });
        let expected = "\
log of alpha
room     4 KiB of 1 MiB used, 1020 KiB free
records  7 to 9, durable to 8, in 2 batches; they cover 12 KiB
term     2 (1a2b3c4d): 7 to 9
kept     for the store, which has records up to 6
beta     holds up to 3: further back than the log: needs a resync, 8 KiB of changed blocks listed
";
        assert_eq!(render(&log), expected);
        assert!(render(&json!({ "from": 1, "to": 0, "node": "\u{7}" })).contains("no records"));
        assert!(!render(&json!({ "node": "\u{7}" })).contains('\u{7}'));
    }
}
