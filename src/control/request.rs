//! From a line to a request, and back to a line.

use crate::core::Command;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Status,
    Events,
    Stop,
    Retry,
    Core(Command),
}

/// Why a line is no request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the request is not JSON: {0}")]
    NotJson(serde_json::Error),
    #[error("the request must be an object with a \"command\", such as {{\"command\":\"status\"}}")]
    NoCommand,
    #[error("the request is not understood: {0}")]
    BadCommand(serde_json::Error),
    #[error("the command {command:?} has no field {field:?}")]
    UnknownField { command: String, field: String },
}

/// Reads one line.
pub fn parse(line: &[u8]) -> Result<Request, RequestError> {
    let value: Value = serde_json::from_slice(line).map_err(RequestError::NotJson)?;
    let Value::Object(fields) = value else { return Err(RequestError::NoCommand) };
    let Some(Value::String(command)) = fields.get("command").cloned() else { return Err(RequestError::NoCommand) };
    let request = match command.as_str() {
        "status" => Request::Status,
        "events" => Request::Events,
        "stop" => Request::Stop,
        "retry" => Request::Retry,
        _ => Request::Core(core_command(fields.clone())?),
    };
    let known = match &request {
        Request::Core(command) => serde_json::to_value(command).map_err(RequestError::BadCommand)?,
        _ => json!({ "command": command }),
    };
    match fields.keys().find(|field| known.get(field.as_str()).is_none()) {
        Some(field) => Err(RequestError::UnknownField { command, field: field.clone() }),
        None => Ok(request),
    }
}

fn core_command(mut fields: Map<String, Value>) -> Result<Command, RequestError> {
    for flag in ["force", "repair", "dry_run"] {
        fields.entry(flag).or_insert(Value::Bool(false));
    }
    fields.entry("off").or_insert_with(|| json!([]));
    Command::deserialize(Value::Object(fields)).map_err(RequestError::BadCommand)
}

/// The line that says yes.
pub fn ok(result: Value) -> Value {
    json!({ "ok": true, "result": result })
}

/// The line that says no.
pub fn refused(reason: impl std::fmt::Display) -> Value {
    json!({ "ok": false, "error": reason.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_request_is_read() {
        let read = |s: &str| parse(s.as_bytes()).unwrap();
        assert_eq!(read(r#"{"command":"status"}"#), Request::Status);
        assert_eq!(read(r#" {"command":"events"} "#), Request::Events);
        assert_eq!(read(r#"{"command":"stop"}"#), Request::Stop);
        let promote = Command::Promote { force: true, off: vec!["beta".into()] };
        assert_eq!(read(r#"{"command":"promote","force":true,"off":["beta"]}"#), Request::Core(promote));
        assert_eq!(read(r#"{"command":"promote"}"#), Request::Core(Command::Promote { force: false, off: vec![] }));
        assert_eq!(read(r#"{"command":"demote"}"#), Request::Core(Command::Demote { force: false }));
        assert_eq!(read(r#"{"command":"verify","repair":true}"#), Request::Core(Command::Verify { repair: true }));
        assert_eq!(read(r#"{"command":"switchover","to":"b"}"#), Request::Core(Command::Switchover { to: "b".into() }));
        assert_eq!(
            read(r#"{"command":"connect","peer":"b"}"#),
            Request::Core(Command::Connect { peer: "b".into(), dry_run: false })
        );
        let disconnect = Command::Disconnect { peer: "b".into(), force: false };
        assert_eq!(read(r#"{"command":"disconnect","peer":"b"}"#), Request::Core(disconnect));
    }

    #[test]
    fn what_is_no_request_is_refused_in_words() {
        let text = |s: &str| parse(s.as_bytes()).unwrap_err().to_string();
        assert!(text("").contains("is not JSON"));
        assert!(text("\u{0}\u{1}").contains("is not JSON"));
        assert!(text("[]").contains("must be an object with a \"command\""));
        assert!(text(r#"{"command":7}"#).contains("must be an object with a \"command\""));
        assert!(text(r#"{"command":"reboot"}"#).contains("unknown variant `reboot`"));
        assert!(text(r#"{"command":"switchover"}"#).contains("missing field `to`"));
        assert!(text(r#"{"command":"promote","force":"yes"}"#).contains("expected a boolean"));
        assert_eq!(text(r#"{"command":"demote","forse":true}"#), "the command \"demote\" has no field \"forse\"");
        assert_eq!(
            text(r#"{"command":"connect","peer":"b","force":true}"#),
            "the command \"connect\" has no field \"force\""
        );
        assert_eq!(text(r#"{"command":"status","x":1}"#), "the command \"status\" has no field \"x\"");
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }
    }
}
