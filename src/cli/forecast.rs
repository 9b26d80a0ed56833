//! The answer to `connect --dry-run`, for people.

use super::status::{duration, list, plain, size, with_file, word};
use serde_json::Value;
use std::io::Write;
use std::path::Path;

/// Shows what a session would do. An error where it would not come about, or nothing can be said.
pub fn show(forecast: &Value, file: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    if json {
        writeln!(out, "{forecast}")?;
    } else {
        write!(out, "{}", with_file(&render(forecast), file))?;
    }
    out.flush()?;
    match forecast["outcome"].as_str() {
        Some("refused") => anyhow::bail!("the link would be refused"),
        Some("unknown") => anyhow::bail!("what the link would do is not known"),
        _ => Ok(()),
    }
}

/// A few lines: the verdict, what would be sent, what would be set aside, and where that is from.
pub fn render(forecast: &Value) -> String {
    let prefix = if forecast["outcome"] == "refused" { "refused: " } else { "" };
    let mut text = format!("{prefix}{}\n", word(&forecast["verdict"]));
    if forecast["from"].is_string() {
        text.push_str(&format!("to send        {}\n", to_send(forecast)));
    }
    let orphans = list(&forecast["orphans"]);
    for orphan in orphans {
        text.push_str(&format!("{} {}\n", what_becomes(orphan), amount(orphan)));
    }
    let would_run = matches!(forecast["outcome"].as_str(), Some("catch_up" | "resync"));
    if would_run && orphans.is_empty() {
        text.push_str("to set aside   nothing\n");
    }
    match forecast["learnt"].as_str() {
        Some("asked") => {
            text.push_str(&format!("{} was asked just now; nothing was changed\n", word(&forecast["peer"])))
        }
        Some("earlier") => {
            let age = forecast["age_s"].as_f64().map_or("some time".to_owned(), duration);
            text.push_str(&format!("{} said this {age} ago\n", word(&forecast["peer"])));
        }
        _ => {}
    }
    text
}

fn to_send(forecast: &Value) -> String {
    let (from, to) = (word(&forecast["from"]), word(&forecast["to"]));
    let bytes = match forecast["bytes"].as_u64() {
        None => "an unknown amount".to_owned(),
        Some(_) if forecast["at_most"] == true => format!("at most {}", size(&forecast["bytes"])),
        Some(_) => size(&forecast["bytes"]),
    };
    let records = forecast["records"].as_u64().map_or(String::new(), |n| format!(" in {n} record(s)"));
    format!("{from} to {to}: {bytes}{records}")
}

fn what_becomes(orphan: &Value) -> &'static str {
    if orphan["set_aside"] == true { "to set aside  " } else { "not shared    " }
}

fn amount(orphan: &Value) -> String {
    let bytes = match orphan["bytes"].as_u64() {
        Some(_) => format!("{} of blocks", size(&orphan["bytes"])),
        None => "of an unknown size".to_owned(),
    };
    format!("on {}: {} record(s), {bytes}", plain(&word(&orphan["node"])), word(&orphan["records"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_forecast_reads_as_lines() {
        let forecast = json!({
            "peer": "beta", "outcome": "catch_up", "verdict": "2 record(s) after 1 are orphans: setting them aside", "from": "alpha",
            "to": "beta", "records": 3, "bytes": 12288, "at_most": false, "learnt": "asked", "age_s": null,
            "orphans": [{ "node": "beta", "records": 2, "bytes": 196_608, "set_aside": true }],
        });
        let expected = "\
2 record(s) after 1 are orphans: setting them aside
to send        alpha to beta: 12 KiB in 3 record(s)
to set aside   on beta: 2 record(s), 192 KiB of blocks
beta was asked just now; nothing was changed
";
        assert_eq!(render(&forecast), expected);
        let mut out = Vec::new();
        assert!(show(&forecast, Path::new("data.toml"), false, &mut out).is_ok());
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_link_that_would_be_refused_or_is_unknown_is_an_error() {
        let refused = json!({ "outcome": "refused", "verdict": "both are active",
            "orphans": [{ "node": "alpha", "records": 1, "bytes": null, "set_aside": false }] });
        assert_eq!(
            render(&refused),
            "refused: both are active\nnot shared     on alpha: 1 record(s), of an unknown size\n"
        );
        let mut out = Vec::new();
        assert!(
            show(&refused, Path::new("data.toml"), true, &mut out)
                .unwrap_err()
                .to_string()
                .contains("would be refused")
        );
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), refused);
        let unknown = json!({ "outcome": "unknown", "verdict": "\u{1b}[2J" });
        assert!(show(&unknown, Path::new("data.toml"), false, &mut out).unwrap_err().to_string().contains("not known"));
        assert!(!render(&unknown).contains('\u{1b}'));
    }
}
