//! The status page of a witness, and what a node's says of the voters.

use super::status::{duration, head, list, plain, word};
use super::table::{Cell, Colour, layout, paint};
use serde_json::Value;

/// Who keeps the charter, in two lines or so; nothing from a daemon that does not say.
pub fn render(status: &Value, colours: bool) -> String {
    let keeper = &status["keeper"];
    if !keeper.is_object() {
        return String::new();
    }
    let mut text = format!("keeper: {}, {}\n", word(&keeper["kind"]), word(&keeper["what"]));
    if keeper["maintenance"] == true {
        let what = paint("maintenance", Some(Colour::Warn), colours);
        text.push_str(&format!("{what}: nobody takes over by itself until it is over\n"));
    }
    if let Some(stuck) = keeper["stuck"].as_str() {
        text.push_str(&format!("{}: {}\n", paint("voters", Some(Colour::Bad), colours), plain(stuck)));
    }
    if let Some(asking) = keeper["asking"].as_str() {
        let silent: Vec<String> = list(&keeper["silent"]).iter().map(word).collect();
        let silent =
            if silent.is_empty() { String::new() } else { format!("; no answer yet from {}", silent.join(", ")) };
        text.push_str(&format!("asking the voters: {}{silent}\n", plain(asking)));
    }
    for voter in list(&keeper["voters"]).iter().filter(|v| v["answers"] == false) {
        let name = word(&voter["name"]);
        let since = voter["heard_s"].as_f64().map_or(String::new(), |s| format!(" for {}", duration(s)));
        let why = voter["why"].as_str().map_or("it was not asked yet".into(), plain);
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_wrong_with_voters_is_said() {
        assert_eq!(render(&Value::Null, false), "");
        let voters = json!([
            { "name": "alpha", "answers": true, "heard_s": 1.0 },
            { "name": "w1", "answers": false, "heard_s": 61.0, "why": "Connection refused \u{1b}" },
        ]);
        let keeper = json!({
            "kind": "voters", "what": "2 of alpha, beta, w1 decide", "maintenance": true, "asking": "to be active",
            "silent": ["w1"], "stuck": "files were lost", "voters": voters,
        });
        let page = render(&json!({ "keeper": keeper }), false);
        let expected = "keeper: voters, 2 of alpha, beta, w1 decide\n\
                        maintenance: nobody takes over by itself until it is over\n\
                        voters: files were lost\n\
                        asking the voters: to be active; no answer yet from w1\n\
                        voter w1 does not answer for 1 min 1 s: Connection refused \\u{1b}\n";
        assert_eq!(page, expected);
    }

    #[test]
    fn a_witness_shows_what_it_keeps() {
        let page = witness(&json!({ "node": "w1", "address": "127.0.0.1:7800", "resources": [] }), false);
        assert!(page.starts_with("w1: witness on 127.0.0.1:7800, no resource yet"), "{page}");
        let data = json!({ "resource": "data", "id": "ab", "listed": true, "active": "alpha", "in_sync": ["alpha", "beta"],
            "version": 7, "voters": ["alpha", "beta", "w1"], "problem": null });
        let logs = json!({ "resource": "logs", "id": "cd", "listed": false, "problem": "it cannot be made durable" });
        let page = witness(&json!({ "node": "w1", "address": "-", "resources": [data, logs] }), false);
        assert!(
            page.contains("2 resources") && page.contains("ab counts") && page.contains("cd is not listed"),
            "{page}"
        );
        assert!(page.ends_with("logs: it cannot be made durable\n"), "{page}");
    }
}
