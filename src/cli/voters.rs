//! The status page of a witness, and what a node's says of the voters.

use super::status::{duration, head, list, word};
use super::table::{Cell, Colour, layout, paint};
use serde_json::Value;

/// Who keeps the charter, in two lines or so; nothing from a daemon that does not say.
pub fn render(status: &Value, colours: bool) -> String {
    let keeper = &status["keeper"];
    if !keeper.is_object() {
        return String::new();
    }
    let mut text = format!("keeper: {}, {}\n", word(&keeper["kind"]), word(&keeper["what"]));
    for voter in list(&keeper["voters"]).iter().filter(|v| v["answers"] != true) {
        let name = word(&voter["name"]);
        let since = voter["heard_s"].as_f64().map_or(String::new(), |s| format!(" for {}", duration(s)));
        let why = voter["why"].as_str().map_or("it was not asked yet".into(), super::status::plain);
        let what = paint(&format!("voter {name} does not answer{since}"), Some(Colour::Warn), colours);
        text.push_str(&format!("{what}: {why}\n"));
    }
    text
}

/// The page of a witness.
pub fn witness(status: &Value, colours: bool) -> String {
    let title = paint(&word(&status["node"]), Some(Colour::Head), colours);
    let resources = list(&status["resources"]);
    let mut text = format!("{title}: witness on {}, {}\n", word(&status["address"]), counted(resources.len()));
    let mut rows = vec![head(&["RESOURCE", "ACTIVE", "IN SYNC", "VERSION", "VOTERS", "THIS VOTE"])];
    for resource in resources {
        let names = |field: &str| {
            let names: Vec<String> = list(&resource[field]).iter().map(word).collect();
            if names.is_empty() { "-".to_owned() } else { names.join(", ") }
        };
        let listed = resource["listed"] == true;
        let state = if listed {
            format!("{} counts", word(&resource["id"]))
        } else {
            format!("{} is not listed", word(&resource["id"]))
        };
        rows.push(vec![
            Cell::from(word(&resource["resource"])),
            Cell::from(word(&resource["active"])),
            Cell::from(names("in_sync")),
            Cell::number(word(&resource["version"])),
            Cell::from(names("voters")),
            Cell::coloured(state, Some(if listed { Colour::Good } else { Colour::Warn })),
        ]);
    }
    if rows.len() > 1 {
        text.push('\n');
        text.push_str(&layout(&rows, colours));
    }
    for resource in resources.iter().filter(|r| r["problem"].is_string()) {
        text.push_str(&format!("{}: {}\n", word(&resource["resource"]), word(&resource["problem"])));
    }
    text
}

fn counted(resources: usize) -> String {
    match resources {
        0 => "no resource yet: it keeps the first vote when a node is promoted".into(),
        1 => "1 resource".into(),
        n => format!("{n} resources"),
    }
}
