//! The command line as users meet it: arguments, the status page, and whole commands against a control socket.

use super::args::Command;
use super::*;
use crate::control::{Backend, Server};
use crate::core::Command as CoreCommand;
use clap::CommandFactory;
use clap::error::ErrorKind;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};

fn parsed(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(line.split_whitespace()).map(|c| c.command)
}

#[test]
fn the_definition_of_the_arguments_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_a_help_with_an_example() {
    let mut cli = Cli::command();
    cli.build();
    let commands: Vec<_> =
        cli.get_subcommands().filter(|c| c.get_name() != "help" && !c.is_hide_set()).cloned().collect();
    assert!(commands.len() > 10);
    for mut command in commands {
        let help = command.render_long_help().to_string();
        assert!(help.contains("Example"), "{help}");
        assert!(help.contains(&format!("understudy {}", command.get_name())), "{help}");
        assert!(command.get_about().is_some(), "{help}");
    }
}

#[test]
fn commands_are_read_as_the_documentation_writes_them() {
    match parsed("understudy promote data.toml --node beta --force --off alpha,gamma").unwrap() {
        Command::Promote { target, force: true, off } => {
            assert_eq!((target.file.as_path(), target.node.as_deref()), (Path::new("data.toml"), Some("beta")));
            assert_eq!(off, ["alpha", "gamma"]);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(parsed("understudy run data").unwrap(), Command::Run { target } if target.node.is_none()));
    assert!(matches!(
        parsed("understudy create d.toml --node a --force").unwrap(),
        Command::Create { force: true, .. }
    ));
    assert!(matches!(parsed("understudy demote d").unwrap(), Command::Demote { force: false, .. }));
    assert!(
        matches!(parsed("understudy switchover d --to beta").unwrap(), Command::Switchover { to, .. } if to == "beta")
    );
    assert!(matches!(parsed("understudy connect d beta").unwrap(), Command::Connect { peer, .. } if peer == "beta"));
    assert!(matches!(parsed("understudy disconnect d beta --force").unwrap(), Command::Disconnect { force: true, .. }));
    assert!(matches!(parsed("understudy verify d --repair").unwrap(), Command::Verify { repair: true, .. }));
    assert!(matches!(
        parsed("understudy status d --json --watch").unwrap(),
        Command::Status { json: true, watch: true, .. }
    ));
    assert!(matches!(parsed("understudy events d").unwrap(), Command::Events { json: false, .. }));
    assert!(
        matches!(parsed("understudy demo --keep").unwrap(), Command::Demo { keep: true, seconds: 5, mode } if mode == "sync")
    );
}

#[test]
fn usage_errors_exit_with_2() {
    for (line, kind) in [
        ("understudy promote", ErrorKind::MissingRequiredArgument),
        ("understudy promote d --off beta", ErrorKind::MissingRequiredArgument),
        ("understudy switchover d", ErrorKind::MissingRequiredArgument),
        ("understudy promte d", ErrorKind::InvalidSubcommand),
        ("understudy status d --jsn", ErrorKind::UnknownArgument),
    ] {
        let error = parsed(line).unwrap_err();
        assert_eq!((error.kind(), error.exit_code()), (kind, 2), "{line}");
    }
    assert_eq!(parsed("understudy --help").unwrap_err().exit_code(), 0);
}

fn sample_status() -> Value {
    json!({
        "resource": "data", "node": "alpha", "role": "active", "state": "serving",
        "term": { "number": 3, "id": "1a2b3c4d5e6f" }, "in_sync": ["alpha", "beta"],
        "watermarks": { "accepted": 900, "written": 890, "durable": 880, "committed": 870, "applied": 500 },
        "volumes": [{ "name": "disk0", "size": 1u64 << 30 }],
        "log": { "size": 256 << 20, "used": 12 << 20, "from": 501 }, "memory": { "used": 4096, "limit": 128 << 20 },
        "peers": [
            { "name": "beta", "state": "in_sync", "mode": "sync", "received": 900, "durable": 880, "applied": 500, "round_trip_us": 182,
              "lag": { "writes": 0, "bytes": 0, "seconds": 0.0 }, "progress": null, "why": null,
              "latency_us": { "wire": { "p50": 30, "p95": 60, "p99": 90, "max": 95, "count": 7 }, "disk": null } },
            { "name": "offsite", "state": "async", "mode": "async", "received": 700, "durable": 700, "applied": 700, "round_trip_us": 31_400,
              "lag": { "writes": 200, "bytes": 819200, "seconds": 1.25 }, "progress": null, "why": null },
            { "name": "gamma", "state": "resyncing", "mode": "sync", "received": 0, "durable": 0, "applied": 0, "lag": null,
              "progress": { "what": "resync", "total_bytes": 1u64 << 30, "done_bytes": (1u64 << 30) - 1, "bytes_per_s": 12 << 20, "left_s": 61.2 }, "why": null },
            { "name": "delta", "state": "refused", "mode": "sync", "why": "its volume disk0 has 2 GiB, ours 1 GiB" }
        ],
        "problems": [{ "part": "store", "what": "cannot be written: no space left on device (errno 28)", "remedy": "make room", "since_s": 61.0 }],
        "latency_us": { "flush": null, "local_disk": { "p50": 60, "p95": 200, "p99": 400, "max": 900, "count": 12 } }
    })
}

#[test]
fn the_status_page_shows_what_matters() {
    let expected = "\
data on alpha: active, serving, term 3 (1a2b3c4d)
in sync    alpha, beta
volumes    disk0 1 GiB
positions  accepted 900, written 890, durable 880, committed 870, applied 500
log        12 MiB of 256 MiB used, from 501
memory     4 KiB of 128 MiB used

PEER     STATE      MODE   RECEIVED  DURABLE  APPLIED  ROUND TRIP  BEHIND BY
beta     in_sync    sync        900      880      500      182 us  nothing
offsite  async      async       700      700      700       31 ms  200 writes, 800 KiB, 1.2 s
gamma    resyncing  sync          0        0        0           -  [###################-] 99 % of 1 GiB, 12 MiB/s, 1 min 2 s left
delta    refused    sync          -        -        -           -  -
store: cannot be written: no space left on device (errno 28) (for 1 min 1 s). To do: make room
delta: its volume disk0 has 2 GiB, ours 1 GiB

LATENCY (us)  P50  P95  P99  MAX  COUNT
local disk     60  200  400  900     12
wire to beta   30   60   90   95      7
";
    assert_eq!(render_status(&sample_status(), false), expected);
    let coloured = render_status(&sample_status(), true);
    assert!(coloured.contains("\x1b[32mserving\x1b[0m") && coloured.contains("\x1b[31mrefused\x1b[0m"));
    assert!(!expected.contains('\x1b'));
}

/// What the core gives, field by field, as the page shows it; `docs/status.md` documents each.
#[test]
fn the_page_and_the_documentation_know_every_field_of_the_status() {
    use crate::core::latency::Latency;
    use crate::core::progress::{Progress, What};
    use crate::core::status::*;
    use crate::core::trouble::Problem;
    use crate::core::{Lsn, Mode, Role};
    let lsn = Lsn;
    let latency = Latency { p50: 1, p95: 2, p99: 3, max: 4, count: 5 };
    let status = Status {
        waiting: None,
        resource: "data".into(),
        node: "beta".into(),
        role: Role::Passive,
        state: "faulted",
        term: Some(TermStatus { number: 3, id: "1a2b3c4d00000000".into(), first: lsn(17) }),
        in_sync: vec!["alpha".into()],
        active: Some("alpha".into()),
        outvoted: false,
        watermarks: WatermarkStatus {
            accepted: lsn(9),
            written: lsn(8),
            durable: lsn(7),
            committed: lsn(6),
            applied: lsn(5),
            checkpointed: lsn(4),
        },
        volumes: vec![VolumeStatus { name: "disk0".into(), size: 4096 }],
        log: LogStatus { size: 1 << 20, used: 4096, from: lsn(2) },
        memory: MemoryStatus { used: 0, limit: 1 << 20 },
        peers: vec![PeerStatus {
            name: "alpha".into(),
            state: "down",
            mode: Mode::Sync,
            received: lsn(3),
            durable: lsn(2),
            applied: lsn(1),
            lag: Lag::default(),
            round_trip_us: 0,
            latency_us: PeerLatencyStatus { wire: Some(latency), disk: Some(latency) },
            progress: Some(Progress {
                what: What::Resync,
                done_bytes: 1 << 20,
                total_bytes: Some(4 << 20),
                bytes_per_s: Some(1 << 20),
                left_s: Some(3.0),
            }),
            why: Some("no word for 2 s".into()),
            differs: vec![],
        }],
        fault: Some("log: input/output error (errno 5)".into()),
        image: ImageStatus { valid: false, rollback: None, why: Some("it is overwritten in place") },
        problems: vec![Problem {
            part: "log".into(),
            what: "failed for good".into(),
            remedy: "replace it".into(),
            since_s: Some(2.0),
        }],
        latency_us: LatencyStatus { write: Some(latency), flush: Some(latency), local_disk: Some(latency) },
    };
    let mut value = serde_json::to_value(status).unwrap();
    value["clients"] = 2.into();
    value["parts"] = json!([{ "path": "/a/log", "io": "buffered" }, { "path": "/a/store", "io": "direct" }]);
    value["not_listening"] = json!([{ "address": "tcp:127.0.0.1:10809", "why": "in use" }]);
    let page = render_status(&value, false);
    let expected = "\
data on beta: passive, faulted, term 3 (1a2b3c4d)
nobody can connect to tcp:127.0.0.1:10809: in use
no valid image: it is overwritten in place
active     alpha
in sync    alpha
volumes    disk0 4 KiB
positions  accepted 9, written 8, durable 7, committed 6, applied 5, checkpointed 4
log        4 KiB of 1 MiB used, from 2
memory     0 B of 1 MiB used
clients    2
buffered   /a/log

PEER   STATE  MODE  RECEIVED  DURABLE  APPLIED  ROUND TRIP  BEHIND BY
alpha  down   sync         3        2        1           -  [#####---------------] 25 % of 4 MiB, 1 MiB/s, 3 s left
log: failed for good (for 2 s). To do: replace it
alpha: no word for 2 s

LATENCY (us)   P50  P95  P99  MAX  COUNT
write            1    2    3    4      5
flush            1    2    3    4      5
local disk       1    2    3    4      5
wire to alpha    1    2    3    4      5
disk of alpha    1    2    3    4      5
";
    assert_eq!(page, expected);
    let mut fields = Vec::new();
    field_names(&value, "", &mut fields);
    assert!(fields.len() > 30, "{fields:?}");
    // Of a latency the whole is documented, not each percentile of each.
    let whole = |f: &String| match f.rsplit_once('.') {
        Some((of, "p50" | "p95" | "p99" | "max" | "count")) => of.to_owned(),
        _ => f.clone(),
    };
    let missing: Vec<_> = fields.iter().map(whole).filter(|f| !DOCS_STATUS.contains(&format!("| `{f}` |"))).collect();
    assert!(missing.is_empty(), "docs/status.md does not tell of {missing:?}");
}

const DOCS_STATUS: &str = include_str!("../../docs/status.md");

/// Paths of all fields, as in `peers[].lag.bytes`.
fn field_names(value: &Value, path: &str, names: &mut Vec<String>) {
    let dot = if path.is_empty() { "" } else { "." };
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, v)| field_names(v, &format!("{path}{dot}{name}"), names))
        }
        Value::Array(items) => {
            let inner = format!("{path}[]");
            items.iter().take(1).for_each(|v| field_names(v, &inner, names));
        }
        _ => names.push(path.to_owned()),
    }
}

/// The variants of an enum of events, as they are named in the stream, from the source that defines them.
fn event_names(source: &str, name: &str) -> Vec<String> {
    let body = source.split_once(&format!("pub enum {name} {{\n")).unwrap().1.split_once("\n}\n").unwrap().0;
    let variant = |line: &str| {
        let rest = line.strip_prefix("    ").filter(|r| r.starts_with(|c: char| c.is_ascii_uppercase()))?;
        let word: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
        let snake = |(i, c): (usize, char)| match c.is_ascii_uppercase() {
            true if i > 0 => vec!['_', c.to_ascii_lowercase()],
            _ => vec![c.to_ascii_lowercase()],
        };
        Some(word.chars().enumerate().flat_map(snake).collect())
    };
    body.lines().filter_map(variant).collect()
}

#[test]
fn the_documentation_tells_of_every_event() {
    let docs = include_str!("../../docs/events.md");
    let core = event_names(include_str!("../core/notice.rs"), "Notice");
    let daemon = event_names(include_str!("../daemon/journal.rs"), "Happening");
    assert!(core.contains(&"orphans_set_aside".to_owned()) && daemon.contains(&"stopping".to_owned()));
    let missing: Vec<_> = core.iter().chain(&daemon).filter(|e| !docs.contains(&format!("| `{e}` |"))).collect();
    assert!(missing.is_empty(), "docs/events.md does not tell of {missing:?}");
}

#[test]
fn a_status_page_survives_whatever_it_is_given() {
    assert_eq!(render_status(&json!({}), false), "- on -: -\nin sync  -\n");
    assert_eq!(render_status(&Value::Null, false), "- on -: -\nin sync  -\n");
    let hostile = json!({ "resource": "\u{1b}[2J", "peers": [{ "name": "b\n", "why": "\u{7}" }, 3, null], "in_sync": "alpha",
        "latency_us": { "x": 3, "y": { "p50": "\u{1b}" } } });
    let text = render_status(&hostile, false);
    assert!(!text.contains(['\x1b', '\x07']), "{text}");
    let huge = json!({ "peers": [{ "progress": { "total_bytes": u64::MAX, "done_bytes": u64::MAX, "left_s": 1e300 } }, { "progress": {} }] });
    assert!(render_status(&huge, false).contains("[####################] 100 %"));
}

/// Any JSON, with keys that the page looks for.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let key = "(peers|lag|progress|problems|log|memory|term|watermarks|volumes|latency_us|in_sync|name|size|used|bytes|writes|seconds|left_s|since_s|bytes_per_s|wire|disk|write|total_bytes|done_bytes|why|p50)";
    leaf.prop_recursive(5, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..8).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_json_makes_the_status_page_panic(status in any_json()) {
        prop_assert!(render_status(&status, true).ends_with('\n'));
    }
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Vec<CoreCommand>>>);

impl Backend for Fake {
    fn command(&self, command: CoreCommand) -> Result<Value, String> {
        self.0.lock().unwrap().push(command.clone());
        match command {
            CoreCommand::Demote { .. } => Err("beta is not in sync".into()),
            CoreCommand::Verify { .. } => {
                Ok(json!({ "equal": true, "peers": [{ "peer": "beta", "differing_bytes": 0 }], "not_compared": [] }))
            }
            CoreCommand::Log => Ok(json!({ "node": "alpha", "from": 1, "to": 0 })),
            _ => Ok("alpha is active in term 4".into()),
        }
    }

    fn status(&self) -> Value {
        sample_status()
    }

    fn subscribe(&self) -> mpsc::Receiver<String> {
        let (sender, receiver) = mpsc::channel();
        sender.send(r#"{"event":"in_sync","peer":"beta"}"#.to_owned()).unwrap();
        receiver
    }

    fn retry(&self) -> Result<Value, String> {
        Ok("tried again".into())
    }

    fn stop(&self) {}
}

/// A folder with a file for a node `alpha`.
fn resource() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data.toml");
    let text = format!(
        "[resource]\nname = \"data\"\n[volume.disk0]\nsize = \"1GiB\"\n[node.alpha]\naddress = \"127.0.0.1:7801\"\ndir = {:?}\n",
        dir.path().join("alpha")
    );
    std::fs::create_dir(dir.path().join("alpha")).unwrap();
    std::fs::write(&file, text).unwrap();
    (dir, file)
}

fn run(file: &Path, before: &str, after: &str) -> (anyhow::Result<()>, String) {
    let mut words: Vec<&str> = vec!["understudy", before, file.to_str().unwrap()];
    words.extend(after.split_whitespace());
    let mut out = Vec::new();
    let result = execute(Cli::try_parse_from(words).unwrap(), &mut out, Look::default());
    (result, String::from_utf8(out).unwrap())
}

#[test]
fn commands_reach_the_daemon_through_the_file() {
    let (dir, file) = resource();
    let backend = Fake::default();
    let _server = Server::start(&dir.path().join("alpha/control.sock"), backend.clone()).unwrap();
    let (result, out) = run(&file, "promote", "--node alpha --force --off beta");
    assert!(result.is_ok());
    assert_eq!(out, "alpha is active in term 4\n");
    assert_eq!(*backend.0.lock().unwrap(), [CoreCommand::Promote { force: true, off: vec!["beta".into()] }]);
    let (result, out) = run(&file, "demote", "--node alpha");
    assert_eq!((result.unwrap_err().to_string().as_str(), out.as_str()), ("beta is not in sync", ""));
    let (_, out) = run(&file, "status", "--node alpha");
    assert_eq!(out, render_status(&sample_status(), false));
    let (result, out) = run(&file, "verify", "--node alpha");
    assert!(result.is_ok());
    assert_eq!(out, "beta: equal\n");
    assert!(run(&file, "log", "--node alpha").1.starts_with("log of alpha\n"));
    let (_, out) = run(&file, "status", "--node alpha --json");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), sample_status());
    let (result, out) = run(&file, "events", "--node alpha");
    assert_eq!(out, "in_sync peer=beta\n");
    assert!(result.unwrap_err().to_string().contains("the daemon has ended"));
    assert_eq!(run(&file, "stop", "--node alpha").1, "stopping\n");
}

#[test]
fn a_daemon_that_is_not_there_is_said_with_the_command_that_starts_it() {
    let (_dir, file) = resource();
    for command in ["status", "promote", "demote", "events", "verify", "log", "stop"] {
        let message = run(&file, command, "--node alpha").0.unwrap_err().to_string();
        assert!(message.contains("alpha is not running on this host"), "{message}");
        assert!(message.ends_with(&format!("`understudy run {} --node alpha`", file.display())), "{message}");
    }
}

#[test]
fn a_wrong_file_or_node_is_said_before_anything_is_done() {
    let (_dir, file) = resource();
    let message = run(&file, "status", "--node alhpa").0.unwrap_err().to_string();
    assert!(message.contains("did you mean \"alpha\"?"), "{message}");
    let message = run(Path::new("/no/such.toml"), "run", "").0.unwrap_err().to_string();
    assert!(message.starts_with("cannot read /no/such.toml"), "{message}");
}

#[test]
fn a_cause_is_said_once() {
    let missing = config_error("/no/such.toml");
    assert_eq!(missing, "cannot read /no/such.toml: No such file or directory (os error 2)");
    let plain = anyhow::anyhow!("the disk is full").context("cannot write the log");
    assert_eq!(in_words(&plain), "cannot write the log: the disk is full");
}

fn config_error(file: &str) -> String {
    in_words(&run(Path::new(file), "status", "").0.unwrap_err())
}

#[test]
fn watching_ends_quietly_when_its_reader_is_gone() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (dir, file) = resource();
    let _server = Server::start(&dir.path().join("alpha/control.sock"), Fake::default()).unwrap();
    let cli = |c: &str| Cli::try_parse_from(["understudy", c, file.to_str().unwrap(), "--node", "alpha"]).unwrap();
    for command in ["status", "events", "verify", "log"] {
        assert!(reader_is_gone(&execute(cli(command), &mut Closed, Look::default()).unwrap_err()), "{command}");
    }
    let watch =
        Cli::try_parse_from(["understudy", "status", file.to_str().unwrap(), "--node", "alpha", "--watch"]).unwrap();
    assert!(reader_is_gone(&execute(watch, &mut Closed, Look::default()).unwrap_err()));
    let other = anyhow::anyhow!("something else");
    assert!(!reader_is_gone(&other));
}

#[test]
fn what_is_waited_for_and_what_differs_is_shown_with_the_file_that_was_given() {
    let status = json!({
        "resource": "data", "node": "alpha", "role": "passive", "state": "passive",
        "waiting": { "what": "alpha waits for beta", "remedy": "start beta, or `understudy promote FILE --node alpha`", "since_s": 71.0 },
        "peers": [{ "name": "beta", "state": "down", "why": "no word", "dial_error": "Connection refused (os error 111)",
            "differs": ["node.beta.mode is sync here, async on beta"] },
            { "name": "gamma", "state": "connecting", "dial_error": "No route to host" },
            { "name": "delta", "state": "idle", "dial_error": "as it was once" }],
    });
    let text = status::with_file(&status::render(&status, false), Path::new("/etc/understudy/data.toml"));
    for line in [
        "waiting: alpha waits for beta (for 1 min 11 s). To do: start beta, or `understudy promote /etc/understudy/data.toml --node alpha`",
        "beta: no word (dialing it: Connection refused (os error 111))",
        "beta: the files differ: node.beta.mode is sync here, async on beta; make them the same, and restart the daemon whose file was changed",
        "gamma: it cannot be reached (dialing it: No route to host)",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
    }
    assert!(!text.contains("as it was once"), "{text}");
}

#[test]
fn completions_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let mut out = Vec::new();
        let cli = Cli::try_parse_from(["understudy", "completions", shell]).unwrap();
        execute(cli, &mut out, Look::default()).unwrap();
        let script = String::from_utf8(out).unwrap();
        assert!(script.contains("switchover") && script.contains("completions"), "{shell}");
        assert!(script.matches("_understudy_nodes").count() > 15, "{shell}");
    }
}

/// What bash offers for the last of these words.
fn bash_offers(script: &Path, words: &[&str]) -> Vec<String> {
    let quoted: Vec<String> = words.iter().map(|w| format!("'{w}'")).collect();
    let run = format!(
        "understudy() {{ echo \"asked: $*\" | tr ' ' '_'; }}; source {}; COMP_WORDS=({}); COMP_CWORD={}; \
         _understudy understudy '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        quoted.join(" "),
        words.len() - 1,
        words[words.len() - 1],
        words[words.len() - 2]
    );
    let output = std::process::Command::new("bash").args(["--norc", "-c", &run]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_asks_for_the_nodes_of_the_file() {
    let (dir, file) = resource();
    let script = dir.path().join("completions");
    let mut out = Vec::new();
    execute(Cli::try_parse_from(["understudy", "completions", "bash"]).unwrap(), &mut out, Look::default()).unwrap();
    std::fs::write(&script, out).unwrap();
    assert_eq!(bash_offers(&script, &["understudy", "switch"]), ["switchover"]);
    let file = file.to_str().unwrap();
    for option in ["--node", "--to"] {
        let offered = bash_offers(&script, &["understudy", "switchover", file, option, ""]);
        assert_eq!(offered, [format!("asked:_nodes_{file}")]);
    }
    let mut out = Vec::new();
    execute(Cli::try_parse_from(["understudy", "nodes", file]).unwrap(), &mut out, Look::default()).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "alpha\n");
}
