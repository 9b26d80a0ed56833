//! One event as a line for people.

use super::status::plain;
use serde_json::Value;

/// The time, the event's name, and then its fields as `name=value`. What is no JSON object is shown as it is, harmless to a terminal.
pub fn render(line: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str(line) else { return plain(line) };
    let mut words = Vec::new();
    for first in ["time", "event"] {
        if let Some(value) = fields.get(first) {
            words.push(shown(value));
        }
    }
    // Reasons are sentences: they read best at the end.
    let (sentences, others): (Vec<_>, Vec<_>) =
        fields.iter().filter(|(k, _)| *k != "time" && *k != "event").partition(|(k, _)| *k == "why" || *k == "verdict");
    words.extend(others.into_iter().filter(|(_, v)| *v != "").map(|(k, v)| format!("{}={}", plain(k), shown(v))));
    let mut text = words.join(" ");
    for (_, sentence) in sentences {
        text.push_str(": ");
        text.push_str(&shown(sentence));
    }
    text
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => plain(text),
        other => plain(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::notice::Notice;

    #[test]
    fn events_read_as_lines() {
        let lost = Notice::PeerLost { peer: "beta".into(), why: "no word for 2 s".into() };
        let mut value = serde_json::to_value(lost).unwrap();
        value["time"] = "12:00:01.250".into();
        assert_eq!(render(&value.to_string()), "12:00:01.250 peer_lost peer=beta: no word for 2 s");
        let opened = Notice::TermOpened { number: 3, id: "ab".into(), first: 17 };
        assert_eq!(render(&serde_json::to_string(&opened).unwrap()), "term_opened first=17 id=ab number=3");
        assert_eq!(render(&serde_json::to_string(&Notice::Resumed).unwrap()), "resumed");
    }

    #[test]
    fn nothing_in_an_event_reaches_the_terminal_as_a_command() {
        assert_eq!(render("\x1b[2J"), "\\u{1b}[2J");
        assert!(!render(r#"{"event":"peer_lost","why":"\u001b[2J\n"}"#).contains(['\x1b', '\n']));
        assert_eq!(render("[1]"), "[1]");
    }
}
