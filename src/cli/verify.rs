//! What `verify` found, for people.

use super::status::{list, size, word};
use serde_json::Value;
use std::io::Write;

/// Ranges shown for one peer; `--json` has more.
const SHOWN: usize = 20;

/// Shows what was found. An error where something differs and was not mended, or was not compared to the end.
pub fn show(report: &Value, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    if json {
        writeln!(out, "{report}")?;
    } else {
        write!(out, "{}", render(report))?;
    }
    out.flush()?;
    if report["equal"] == true {
        return Ok(());
    }
    let peers = list(&report["peers"]);
    if peers.iter().any(|p| p["unfinished"].is_string()) {
        anyhow::bail!("the comparison did not come to its end");
    }
    if peers.iter().any(|p| p["differing_bytes"] != 0 && p["repaired"] != true) {
        anyhow::bail!("the replicas differ");
    }
    anyhow::bail!(
        "some of it was written to all the time and could not be compared: verify again when there is less to do"
    )
}

/// A line for each peer, and one for each range that differs.
pub fn render(report: &Value) -> String {
    let mut text = String::new();
    for peer in list(&report["peers"]) {
        text.push_str(&format!("{}: {}\n", word(&peer["peer"]), verdict(peer)));
        let ranges = list(&peer["ranges"]);
        for range in ranges.iter().take(SHOWN) {
            let (volume, offset, length) = (word(&range["volume"]), word(&range["offset"]), word(&range["length"]));
            text.push_str(&format!("  {volume}: {length} bytes at {offset}\n"));
        }
        let more =
            (ranges.len().saturating_sub(SHOWN) as u64).saturating_add(peer["more_ranges"].as_u64().unwrap_or(0));
        if more > 0 {
            text.push_str(&format!("  and {more} more ranges\n"));
        }
    }
    for other in list(&report["not_compared"]) {
        text.push_str(&format!("{}: not compared: {}\n", word(&other["peer"]), word(&other["why"])));
    }
    text
}

fn verdict(peer: &Value) -> String {
    let differing = peer["differing_bytes"].as_u64().unwrap_or(0);
    let mut text = match differing {
        0 if is_busy(peer) => "no difference in what was compared".to_owned(),
        0 => "equal".to_owned(),
        n if peer["repaired"] == true => format!("{n} bytes differed and were written anew"),
        n => format!("{n} bytes differ (--repair mends them)"),
    };
    if let Value::String(_) = &peer["unfinished"] {
        let so_far = if differing == 0 { "no difference so far".to_owned() } else { text };
        text = format!("not finished: {}; {so_far}", word(&peer["unfinished"]));
    }
    if is_busy(peer) {
        text.push_str(&format!(", {} were written to all the time and left out", size(&peer["busy_bytes"])));
    }
    text
}

fn is_busy(peer: &Value) -> bool {
    peer["busy_bytes"].as_u64().is_some_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(equal: bool, beta: Value) -> Value {
        json!({ "equal": equal, "peers": [beta], "not_compared": [{ "peer": "gamma", "why": "it is down: no word\u{7}" }] })
    }

    fn shown(report: &Value) -> (Option<String>, String) {
        let mut out = Vec::new();
        let result = show(report, false, &mut out);
        (result.err().map(|e| e.to_string()), String::from_utf8(out).unwrap())
    }

    #[test]
    fn what_was_found_reads_as_lines_and_what_differs_is_an_error() {
        let equal = report(
            true,
            json!({ "peer": "beta", "differing_bytes": 0, "repaired": false, "ranges": [], "busy_bytes": 0 }),
        );
        assert_eq!(shown(&equal), (None, "beta: equal\ngamma: not compared: it is down: no word\\u{7}\n".into()));
        let range = json!({ "volume": "disk0", "offset": 8192, "length": 4096 });
        let mut differs = report(
            false,
            json!({ "peer": "beta", "differing_bytes": 90_112, "ranges": vec![range; 22], "more_ranges": 3 }),
        );
        let (error, text) = shown(&differs);
        assert_eq!(error.unwrap(), "the replicas differ");
        assert!(
            text.starts_with("beta: 90112 bytes differ (--repair mends them)\n  disk0: 4096 bytes at 8192\n"),
            "{text}"
        );
        assert!(text.contains("  and 5 more ranges\n"), "{text}");
        differs["peers"][0]["repaired"] = true.into();
        differs["equal"] = true.into();
        let (error, text) = shown(&differs);
        assert!(error.is_none() && text.starts_with("beta: 90112 bytes differed and were written anew\n"), "{text}");
    }

    #[test]
    fn a_comparison_that_was_cut_short_is_an_error() {
        let cut = report(
            false,
            json!({ "peer": "beta", "differing_bytes": 0, "unfinished": "the connection was lost", "busy_bytes": 4096 }),
        );
        let (error, text) = shown(&cut);
        assert_eq!(error.unwrap(), "the comparison did not come to its end");
        let line = "beta: not finished: the connection was lost; no difference so far, 4 KiB were written to all the time and left out\n";
        assert!(text.starts_with(line), "{text}");
        let mut out = Vec::new();
        assert!(show(&cut, true, &mut out).is_err());
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), cut);
    }

    #[test]
    fn what_was_left_out_is_an_error() {
        let busy =
            report(false, json!({ "peer": "beta", "differing_bytes": 0, "repaired": false, "busy_bytes": 8192 }));
        let (error, text) = shown(&busy);
        assert!(error.unwrap().contains("verify again"));
        let line = "beta: no difference in what was compared, 8 KiB were written to all the time and left out\n";
        assert!(text.starts_with(line), "{text}");
    }
}
