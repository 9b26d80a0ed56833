//! The file: what is accepted, and that every refusal says where, what and what to do.

use super::*;
use proptest::prelude::*;

/// The example that users are shown.
const SAMPLE: &str = r#"
[resource]
name = "data"
mode = "sync"
stall_ms = 2000
on_stall = "degrade"

[volume.disk0]
size = "1GiB"

[node.alpha]
address = "127.0.0.1:7801"
dir = "/var/lib/understudy/alpha"
log = "/dev/vg0/data-log"
log_size = "256MiB"
store.disk0 = "/dev/vg0/data"
nbd = ["unix:/run/understudy/data.sock", "tcp:127.0.0.1:10809"]
control = "/run/understudy/data.ctl"

[node.beta]
address = "127.0.0.1:7802"
dir = "/var/lib/understudy/beta"

[node.offsite]
mode = "async"
address = "127.0.0.1:7803"
dir = "/var/lib/understudy/offsite"
"#;

fn read(text: &str) -> Result<Config, ConfigError> {
    parse(Path::new("data.toml"), text)
}

/// The message with which the sample is refused once `from` is replaced by `to`.
fn refused(from: &str, to: &str) -> String {
    assert!(SAMPLE.contains(from), "the sample has no {from:?}");
    read(&SAMPLE.replacen(from, to, 1)).unwrap_err().to_string()
}

#[test]
fn the_sample_means_what_it_says() {
    let config = read(SAMPLE).unwrap();
    assert_eq!(config.resource.name, "data");
    assert_eq!((config.resource.stall_ms, config.resource.on_stall), (2000, OnStall::Degrade));
    assert_eq!((config.resource.block_size, config.resource.durable_write), (4096, false));
    assert_eq!((config.resource.memory, config.resource.heartbeat_ms), (128 << 20, 200));
    assert_eq!(config.volumes, [Volume { name: "disk0".into(), size: 1 << 30, device: DeviceKind::None }]);
    let alpha = &config.nodes[0];
    assert_eq!(alpha.log, Path::new("/dev/vg0/data-log"));
    assert_eq!(alpha.log_size, 256 << 20);
    assert_eq!(alpha.stores, [Path::new("/dev/vg0/data")]);
    assert_eq!(alpha.nbd[0], NbdListen::Unix("/run/understudy/data.sock".into()));
    assert_eq!(alpha.nbd[1], NbdListen::Tcp("127.0.0.1:10809".parse().unwrap()));
    assert_eq!(alpha.control, Path::new("/run/understudy/data.ctl"));
    assert_eq!(config.nodes.iter().map(|n| n.mode).collect::<Vec<_>>(), [Mode::Sync, Mode::Sync, Mode::Async]);
}

#[test]
fn what_is_left_out_has_its_default_in_the_folder_of_the_node() {
    let config = read(SAMPLE).unwrap();
    let beta = &config.nodes[1];
    let dir = Path::new("/var/lib/understudy/beta");
    assert_eq!(beta.log, dir.join("log"));
    assert_eq!(beta.log_size, 256 << 20);
    assert_eq!(beta.stores, [dir.join("store-disk0")]);
    assert_eq!(beta.nbd, [NbdListen::Unix(dir.join("nbd.sock"))]);
    assert_eq!(beta.control, dir.join("control.sock"));
}

#[test]
fn volumes_keep_the_order_of_the_file_and_nodes_are_sorted() {
    let text = "[volume.zulu]\nsize = 8192\n[volume.alpha]\nsize = '4096'\n[node.yoke]\naddress = '127.0.0.1:2'\ndir = '/y'\n\
                [node.bob]\naddress = '127.0.0.1:1'\ndir = '/b'\n[resource]\nname = 'r'\nblock_size = 512\ndurable = 'write'\n\
                on_stall = 'suspend'\nmode = 'async'\n";
    let config = read(text).unwrap();
    assert_eq!(config.volumes.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["zulu", "alpha"]);
    assert_eq!(config.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["bob", "yoke"]);
    assert_eq!(config.nodes[1].stores, [Path::new("/y/store-zulu"), Path::new("/y/store-alpha")]);
    assert_eq!((config.resource.block_size, config.resource.durable_write), (512, true));
    assert_eq!(config.resource.on_stall, OnStall::Suspend);
    assert_eq!(config.nodes[0].mode, Mode::Async);
}

#[test]
fn settings_are_one_nodes_view() {
    let config = read(SAMPLE).unwrap();
    let settings = Settings::new(&config, Some("beta")).unwrap();
    assert_eq!((settings.node.me.0, settings.node.my_name()), (1, "beta"));
    assert_eq!(settings.listen, "127.0.0.1:7802".parse().unwrap());
    let peers: Vec<_> = settings.peers.iter().map(|p| (p.node.0, p.address.port())).collect();
    assert_eq!(peers, [(0, 7801), (2, 7803)]);
    assert_eq!(settings.node.volumes[0].size, 1 << 30);
    assert_eq!(settings.node.nodes[2].mode, Mode::Async);
    assert_ne!(settings.node.boot, 0);
    let again = Settings::new(&config, Some("beta")).unwrap();
    assert_ne!(settings.node.incarnation, again.node.incarnation, "each start is a new incarnation");
    assert_eq!(settings.node.boot, again.node.boot, "the same boot");
}

#[test]
fn a_node_is_found_by_the_hosts_name() {
    let host = host_name().unwrap();
    let short = host.split('.').next().unwrap().to_lowercase();
    let renamed = read(&SAMPLE.replace("[node.beta]", &format!("[node.{short}]"))).unwrap();
    assert_eq!(Settings::new(&renamed, None).unwrap().node.my_name(), short);
    let message = Settings::new(&read(SAMPLE).unwrap(), None).unwrap_err().to_string();
    assert!(message.contains(&format!("this host is called {host:?}")), "{message}");
    assert!(message.contains("--node (alpha, beta, offsite)"), "{message}");
}

#[test]
fn an_unknown_node_is_refused_with_the_known_ones() {
    let config = read(SAMPLE).unwrap();
    let message = Settings::new(&config, Some("aplha")).unwrap_err().to_string();
    assert_eq!(
        message,
        "data.toml has no node called \"aplha\"; its nodes are alpha, beta, offsite; did you mean \"alpha\"?"
    );
}

#[test]
fn unknown_fields_are_refused_with_what_was_meant() {
    let message = refused("stall_ms", "stal_ms");
    assert!(
        message.starts_with("data.toml:5: resource.stal_ms: there is no such field; did you mean \"stall_ms\"?"),
        "{message}"
    );
    assert!(refused("[volume.disk0]", "[volumes.disk0]").contains("did you mean \"volume\"?"));
    assert!(
        refused("log_size", "logsize")
            .contains("node.alpha.logsize: there is no such field; did you mean \"log_size\"?")
    );
    assert!(
        refused("store.disk0", "store.disk1")
            .contains("node.alpha.store.disk1: there is no such field; did you mean \"disk0\"?")
    );
    assert!(
        refused("size = \"1GiB\"", "size = \"1GiB\"\nfoo = 1")
            .contains("volume.disk0.foo: there is no such field; known here are size")
    );
}

#[test]
fn missing_fields_are_refused_with_what_to_add() {
    assert_eq!(refused("name = \"data\"", ""), "data.toml:2: resource.name: is missing: add name = \"data\"");
    assert!(refused("size = \"1GiB\"", "").contains(":8: volume.disk0.size: is missing: add size = \"1GiB\""));
    assert!(refused("address = \"127.0.0.1:7802\"", "").contains(":20: node.beta.address: is missing: add address ="));
    assert!(refused("dir = \"/var/lib/understudy/beta\"", "").contains("node.beta.dir: is missing: add dir ="));
    let text = |s: &str| read(s).unwrap_err().to_string();
    assert!(text("").contains("resource: is missing: add [resource] with a name"));
    assert!(text("[resource]\nname='r'").contains("volume: is missing: add [volume.disk0] with size"));
    assert!(text("[resource]\nname='r'\n[volume]").contains("volume: is missing: add [volume.disk0]"));
    assert!(text("[resource]\nname='r'\n[volume.d]\nsize=4096").contains("node: is missing: add [node.alpha]"));
    assert!(text("[resource]\nname='r'\n[volume.d]\nsize=4096\n[node]").contains("node: is missing: add [node.alpha]"));
}

#[test]
fn sizes_out_of_reason_are_refused() {
    let size = |s: &str| refused("size = \"1GiB\"", &format!("size = {s}"));
    assert_eq!(
        size("\"1G\""),
        "data.toml:9: volume.disk0.size = \"1G\": has the ambiguous unit \"G\": write GiB (1024) or GB (1000)"
    );
    assert!(size("1.5").contains("is a number with a point, but must be a size, such as \"1GiB\""));
    assert!(size("\"many\"").contains("is not a size"));
    assert!(
        size("5000").contains("is not a multiple of 4096 bytes; the nearest below is 4096, the nearest above 8192")
    );
    assert!(size("\"1GB\"").contains("= \"1GB\": is not a multiple of 4096 bytes"));
    assert!(size("0").contains("is out of range: it must be from 4 KiB to 1024 TiB"));
    assert!(size("-4096").contains("out of range"));
    assert!(size("\"2000TiB\"").contains("out of range"));
    assert!(refused("log_size = \"256MiB\"", "log_size = \"1MiB\"").contains("it must be from 16 MiB to 16 TiB"));
    assert!(refused("stall_ms = 2000", "memory = \"1MiB\"").contains("resource.memory = \"1MiB\": is out of range"));
    assert!(refused("stall_ms = 2000", "window = 4096").contains("resource.window = 4096: is out of range"));
    let over = refused("stall_ms = 2000", "window = \"256MiB\"");
    assert!(over.contains("resource.window = \"256MiB\": is larger than resource.memory (128 MiB)"), "{over}");
}

#[test]
fn times_out_of_reason_are_refused() {
    assert!(refused("stall_ms = 2000", "stall_ms = 0").contains("it must be from 10 ms to 3600000 ms"));
    assert!(
        refused("stall_ms = 2000", "stall_ms = \"2s\"")
            .contains("is text, but must be a whole number of milliseconds, such as 2000")
    );
    for field in ["heartbeat_ms", "flush_ms", "apply_ms"] {
        let message = refused("stall_ms = 2000", &format!("{field} = 999999999"));
        assert!(message.contains(&format!(":5: resource.{field} = 999999999: is out of range")), "{message}");
    }
}

#[test]
fn words_and_types_are_checked() {
    assert!(
        refused("mode = \"sync\"", "mode = \"fast\"")
            .contains("resource.mode = \"fast\": must be \"sync\" or \"async\"")
    );
    assert!(refused("mode = \"async\"", "mode = \"\"").contains("node.offsite.mode = \"\": must be"));
    assert!(
        refused("\"degrade\"", "\"wait\"").contains("resource.on_stall = \"wait\": must be \"degrade\" or \"suspend\"")
    );
    assert!(refused("stall_ms = 2000", "durable = true").contains("is true or false, but must be text in quotes"));
    assert!(refused("stall_ms = 2000", "durable = \"never\"").contains("must be \"flush\" or \"write\""));
    assert!(
        refused("stall_ms = 2000", "block_size = 1024")
            .contains("resource.block_size = 1024: must be the number 4096 or 512")
    );
    assert!(refused("stall_ms = 2000", "insecure = \"yes\"").contains("must be true or false"));
    assert!(
        refused("[volume.disk0]\nsize", "[volume]\ndisk0")
            .contains("volume.disk0 = \"1GiB\": is text, but must be a table")
    );
    assert!(refused("nbd = [", "nbd = [2020-01-01, ").contains("node.alpha.nbd[0] = 2020-01-01: is a date"));
    assert!(refused("control = \"/run/understudy/data.ctl\"", "control = []").contains("is a list, but must be text"));
}

#[test]
fn what_is_sent_to_a_node_can_be_packed_and_limited() {
    let config = read(SAMPLE).unwrap();
    assert!(config.nodes.iter().all(|n| !n.compress && n.bandwidth.is_none()), "neither unless it is said");
    let text = SAMPLE
        .replace("stall_ms = 2000", "compress = \"lz4\"\nbandwidth = \"10MiB/s\"")
        .replace("[node.beta]", "[node.beta]\ncompress = \"none\"\nbandwidth = \"none\"")
        .replace("[node.offsite]", "[node.offsite]\nbandwidth = \"12 MB/s\"");
    let config = read(&text).unwrap();
    let of = |i: usize| (config.nodes[i].compress, config.nodes[i].bandwidth);
    assert_eq!([of(0), of(1), of(2)], [(true, Some(10 << 20)), (false, None), (true, Some(12_000_000))]);
    let settings = Settings::new(&config, Some("beta")).unwrap();
    assert_eq!(settings.peers.iter().map(|p| p.compress).collect::<Vec<_>>(), [true, true]);
    assert_eq!(settings.node.nodes[2].bandwidth, Some(12_000_000));
    let rate = |s: &str| refused("stall_ms = 2000", &format!("bandwidth = {s}"));
    assert!(rate("\"10MiB\"").contains("resource.bandwidth = \"10MiB\": is not a rate: write a size a second"));
    assert!(rate("\"10M/s\"").contains("has the ambiguous unit \"M\""));
    assert!(rate("\"1KiB/s\"").contains("is out of range: it must be from 128 KiB/s to 1 TiB/s"));
    assert!(rate("10485760").contains("must be text in quotes, such as \"10MiB/s\""));
    assert!(refused("stall_ms = 2000", "compress = \"zstd\"").contains("must be \"lz4\" or \"none\""));
}

#[test]
fn stores_are_read_past_the_page_cache_unless_the_file_says_otherwise() {
    let of = |text: &str| read(text).unwrap().nodes.iter().map(|n| n.store_io).collect::<Vec<_>>();
    assert_eq!(of(SAMPLE), [StoreIo::Direct; 3]);
    let text = SAMPLE
        .replace("stall_ms = 2000", "store_io = \"buffered\"")
        .replace("[node.beta]", "[node.beta]\nstore_io = \"direct\"");
    assert_eq!(of(&text), [StoreIo::Buffered, StoreIo::Direct, StoreIo::Buffered]);
    assert_eq!(Settings::new(&read(&text).unwrap(), Some("alpha")).unwrap().store_io, StoreIo::Buffered);
    assert!(refused("stall_ms = 2000", "store_io = \"cached\"").contains("must be \"direct\" or \"buffered\""));
}

#[test]
fn names_are_checked() {
    assert!(
        refused("\"data\"", "\"My Data\"")
            .contains(":3: resource.name = \"My Data\": is not a valid name: use 1 to 64")
    );
    assert!(refused("[node.beta]", "[node.Beta]").contains(":20: node.Beta: is not a valid name"));
    assert!(refused("[node.beta]", "[node.\"a,b\"]").contains("node.a,b: is not a valid name"));
    assert!(refused("[node.beta]", "[node.\"\"]").contains("is not a valid name"));
    let long = "x".repeat(65);
    assert!(refused("\"data\"", &format!("{long:?}")).contains("is not a valid name"));
}

/// The process of a device has a socket that is called like it.
#[test]
fn a_device_whose_name_is_too_long_is_refused() {
    let long = "x".repeat(64);
    let text = |device: &str| {
        let volume = format!("[volume.{}]\nsize = \"1GiB\"\ndevice = \"{device}\"\n", "y".repeat(40));
        let node = "[node.alpha]\naddress = \"127.0.0.1:1\"\ndir = \"/a\"\n";
        format!("[resource]\nname = \"{long}\"\n{volume}{node}")
    };
    assert!(read(&text("none")).is_ok(), "no device, and no such socket");
    let said = read(&text("auto")).unwrap_err().to_string();
    let device = format!("{long}-{}", "y".repeat(40));
    assert!(said.contains(":3: volume.") && said.contains(&device) && said.contains("room for 86 bytes"), "{said}");
    assert!(read(&text("auto").replace(&"y".repeat(40), &"y".repeat(21))).is_ok());
}

#[test]
fn addresses_are_checked() {
    let address = |s: &str| refused("\"127.0.0.1:7801\"", s);
    assert!(
        address("\"localhost:7801\"")
            .contains("node.alpha.address = \"localhost:7801\": is not an address: write IP:PORT")
    );
    assert!(address("\"127.0.0.1\"").contains("is not an address"));
    assert!(address("\"127.0.0.1:0\"").contains("has port 0"));
    assert!(address("\"0.0.0.0:7801\"").contains("is not an address that peers can reach"));
    let open = address("\"10.0.0.1:7801\"");
    assert!(open.contains(":12: node.alpha.address = \"10.0.0.1:7801\": is not a loopback address"), "{open}");
    assert!(open.contains("add insecure = true to [resource] or to this node"), "{open}");
}

#[test]
fn insecure_lets_an_address_through_where_it_stands() {
    let far = SAMPLE.replace("127.0.0.1:7803", "10.0.0.3:7803");
    assert!(read(&far).is_err());
    assert!(read(&far.replace("[resource]", "[resource]\ninsecure = true")).is_ok());
    assert!(read(&far.replace("[node.offsite]", "[node.offsite]\ninsecure = true")).is_ok());
    assert!(read(&far.replace("[node.beta]", "[node.beta]\ninsecure = true")).is_err());
    let nbd = SAMPLE.replace("tcp:127.0.0.1:10809", "tcp:0.0.0.0:10809");
    assert!(
        read(&nbd).unwrap_err().to_string().contains("node.alpha.nbd[1] = \"tcp:0.0.0.0:10809\": is not a loopback")
    );
    assert!(read(&nbd.replace("[node.alpha]", "[node.alpha]\ninsecure = true")).is_ok());
}

#[test]
fn listeners_and_paths_are_checked() {
    let listen = |s: &str| refused("tcp:127.0.0.1:10809", s);
    assert!(listen("10809").contains("node.alpha.nbd[1] = \"10809\": is neither \"unix:/PATH\" nor \"tcp:IP:PORT\""));
    assert!(listen("unix:run/x").contains("must be an absolute path"));
    assert!(listen("tcp:127.0.0.1:0").contains("has port 0"));
    assert!(
        listen(&format!("unix:/{}", "x".repeat(107)))
            .contains("is 108 bytes long, but the path of a unix socket has at most 107")
    );
    assert!(
        refused("\"/var/lib/understudy/beta\"", "\"beta\"")
            .contains("node.beta.dir = \"beta\": must be an absolute path")
    );
    assert!(
        refused("\"/dev/vg0/data\"", "\"data\"")
            .contains("node.alpha.store.disk0 = \"data\": must be an absolute path")
    );
    let deep = refused("\"/var/lib/understudy/beta\"", &format!("\"/{}\"", "x".repeat(100)));
    assert!(deep.contains("node.beta.control = \"/xxx") && deep.contains("(by default): is 114 bytes long"), "{deep}");
    let listeners = format!("nbd = [{}", "\"unix:/x\",".repeat(20));
    assert!(refused("nbd = [", &listeners).contains("at most 16 of these, and the file has 22"));
}

#[test]
fn nothing_is_given_to_two() {
    assert!(refused("127.0.0.1:7802", "127.0.0.1:7801").contains(
        "data.toml:21: node.beta.address = \"127.0.0.1:7801\": is also used by node.alpha.address: each needs its own"
    ));
    assert!(refused("127.0.0.1:10809", "127.0.0.1:7801").contains("node.alpha.nbd = "));
    let dir = refused("dir = \"/var/lib/understudy/beta\"", "dir = \"/var//lib/understudy/alpha/\"");
    assert!(dir.contains("node.beta.dir = \"/var//lib/understudy/alpha/\": is also used by node.alpha.dir"), "{dir}");
    assert!(
        refused("\"/dev/vg0/data-log\"", "\"/dev/vg0/data\"")
            .contains("node.alpha.store.disk0 = \"/dev/vg0/data\": is also used by node.alpha.log")
    );
    let default = refused("log = \"/dev/vg0/data-log\"", "log = \"/var/lib/understudy/beta/log\"");
    assert!(
        default
            .contains("node.beta.log = \"/var/lib/understudy/beta/log\" (by default): is also used by node.alpha.log"),
        "{default}"
    );
}

#[test]
fn no_path_is_one_that_the_daemon_uses_itself() {
    for name in
        ["tenure", "tenure.new", "history", "bitmap.alpha.0", "salvage.1", "handoff", "handoff.history", "stores"]
    {
        let refused = refused("log = \"/dev/vg0/data-log\"", &format!("log = \"/var/lib/understudy//alpha/{name}\""));
        assert!(refused.contains("node.alpha.log = ") && refused.contains("uses in node.alpha.dir"), "{refused}");
    }
    let text = |name: &str| {
        format!(
            "[resource]\nname='r'\n[volume.d]\nsize=4096\n[node.a]\naddress='127.0.0.1:7801'\ndir='/a'\nlog='/a/{name}'\n"
        )
    };
    assert!(read(&text("history-log")).is_ok() && read(&text("history")).is_err());
    let other = text("log") + "[node.b]\naddress='127.0.0.1:7802'\ndir='/b'\nlog='/a/history'\n";
    assert!(read(&other).unwrap_err().to_string().contains("node.b.log"), "another node's folder");
}

#[test]
fn two_machines_may_use_equal_paths_but_not_one_folder() {
    let text = "[resource]\nname='r'\ninsecure=true\n[volume.d]\nsize=4096\n[node.a]\naddress='10.0.0.1:7801'\ndir='/a'\nlog='/dev/vg/log'\n\
                nbd=['tcp:127.0.0.1:10809']\n[node.b]\naddress='10.0.0.2:7801'\ndir='/b'\nlog='/dev/vg/log'\nnbd=['tcp:127.0.0.1:10809']\n";
    assert!(read(text).is_ok(), "{:?}", read(text));
    let one_machine = text.replace("10.0.0.2:7801", "10.0.0.1:7802");
    assert!(
        read(&one_machine).unwrap_err().to_string().contains("node.b.log = '/dev/vg/log': is also used by node.a.log")
    );
    let one_folder = text.replace("dir='/b'", "dir='/a'");
    assert!(read(&one_folder).unwrap_err().to_string().contains("node.b.dir = '/a': is also used by node.a.dir"));
}

#[test]
fn there_are_limits_to_how_many() {
    let many = |n: usize| {
        (0..n).map(|i| format!("[node.n{i}]\naddress='127.0.0.1:{}'\ndir='/n{i}'\n", 7000 + i)).collect::<String>()
    };
    let text = |n| format!("[resource]\nname='r'\n[volume.d]\nsize=4096\n{}", many(n));
    assert_eq!(read(&text(16)).unwrap().nodes.len(), 16);
    assert!(
        read(&text(17))
            .unwrap_err()
            .to_string()
            .contains("node: a resource has at most 16 of these, and the file has 17")
    );
    let volumes: String = (0..65).map(|i| format!("[volume.v{i}]\nsize=4096\n")).collect();
    let text = format!("[resource]\nname='r'\n{volumes}{}", many(1));
    assert!(read(&text).unwrap_err().to_string().contains("at most 64 of these, and the file has 65"));
}

#[test]
fn what_is_not_toml_is_refused_by_line() {
    let message = refused("mode = \"sync\"", "mode = ");
    assert!(message.starts_with("data.toml:4: this is not valid TOML: "), "{message}");
    let twice = refused("[node.beta]", "[node.alpha]");
    assert!(twice.starts_with("data.toml:20: this is not valid TOML: duplicate key"), "{twice}");
}

#[test]
fn long_values_are_shown_in_part() {
    let message = refused("\"data\"", &format!("\"{}\"", "y".repeat(5000)));
    assert!(message.len() < 300 && message.contains("yyy…"), "{message}");
    let message = refused("\"data\"", "'''one\ntwo'''");
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn a_bare_name_means_a_file_in_the_systems_folder() {
    assert_eq!(locate(Path::new("data")), Path::new("/etc/understudy/data.toml"));
    assert_eq!(locate(Path::new("data.toml")), Path::new("data.toml"));
    assert_eq!(locate(Path::new("./data")), Path::new("./data"));
    assert_eq!(locate(Path::new("/srv/data")), Path::new("/srv/data"));
    assert_eq!(locate(Path::new("data/")), Path::new("data/"));
    let message = load(Path::new("no-such-resource")).unwrap_err().to_string();
    assert!(message.starts_with("cannot read /etc/understudy/no-such-resource.toml: "), "{message}");
    assert!(message.ends_with("for one in this folder write ./no-such-resource)"), "{message}");
    let message = load(Path::new("/no/such/file.toml")).unwrap_err().to_string();
    assert!(message.ends_with("(os error 2)"), "{message}");
}

#[test]
fn a_file_is_read_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.toml");
    std::fs::write(&path, SAMPLE).unwrap();
    assert_eq!(load(&path).unwrap().file, path);
    std::fs::write(&path, b"[resource]\nname = \"\xff\"").unwrap();
    assert!(load(&path).unwrap_err().to_string().contains("cannot read"));
}

/// A value of any kind, some of them the right kind somewhere.
fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("\"127.0.0.1:7801\"".to_owned()),
        Just("\"/a\"".to_owned()),
        Just("[\"unix:/a/b\", 3]".to_owned()),
        Just("{ a = 1, disk0 = \"/x\" }".to_owned()),
        Just("0xffff_ffff_ffff_ffff_ffff".to_owned()),
        "\"[0-9]{1,22} ?[KMGT]?i?B?\"",
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:?}")),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<String>().prop_map(|s| format!("{s:?}")),
    ]
}

/// Files that are TOML, or nearly, with tables and fields that occur in good ones.
fn any_file() -> impl Strategy<Value = String> {
    let table = prop_oneof![
        Just("[resource]".to_owned()),
        Just("[volume.disk0]".to_owned()),
        Just("[[node]]".to_owned()),
        "\\[(node|volume)\\.[a-c]\\]",
    ];
    let field = prop_oneof![
        "(name|mode|stall_ms|on_stall|durable|block_size|memory|window|heartbeat_ms|insecure|compress|bandwidth|store_io)",
        "(size|address|dir|log|log_size|store|store\\.disk0|nbd|control)",
        "[a-z\"é.]{0,6}",
    ];
    let line = prop_oneof![1 => table, 4 => (field, any_value()).prop_map(|(f, v)| format!("{f} = {v}"))];
    prop::collection::vec(line, 0..20).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        if let Err(e) = read(&text) { prop_assert!(!e.to_string().is_empty()) }
    }

    #[test]
    fn no_toml_makes_it_panic(text in any_file()) {
        if let Err(e) = read(&text) { prop_assert!(e.to_string().starts_with("data.toml:")) }
    }

    #[test]
    fn no_wrong_value_makes_it_panic(line in 2usize..30, value in any_value()) {
        let changed = |(i, text): (usize, &str)| match text.split_once(" = ") {
            Some((key, _)) if i == line => format!("{key} = {value}"),
            _ => text.to_owned(),
        };
        let text = SAMPLE.lines().enumerate().map(changed).collect::<Vec<_>>().join("\n");
        if let Err(e) = read(&text) { prop_assert!(e.to_string().starts_with("data.toml:")) }
    }

    #[test]
    fn no_size_makes_it_panic(text in any::<String>()) {
        let _ = parse_size(&text);
    }
}

/// The sample with a witness, and three voters.
fn with_witness() -> String {
    SAMPLE.replace("[node.alpha]", "[witness.w1]\naddress = \"127.0.0.1:7800\"\n\n[node.alpha]")
}

fn refused_of(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the file has no {from:?}");
    read(&text.replacen(from, to, 1)).unwrap_err().to_string()
}

#[test]
fn a_file_with_a_witness_has_voters() {
    let config = read(SAMPLE).unwrap();
    assert_eq!((config.keeper, config.voters().len()), (Keeper::Alone, 0));
    assert!(config.nodes.iter().all(|n| n.takeover == Takeover::Manual), "nobody by itself");
    assert!(Settings::new(&config, Some("alpha")).unwrap().voters.is_empty());
    let config = read(&with_witness()).unwrap();
    assert_eq!(config.keeper, Keeper::Voters);
    assert_eq!(config.voters(), ["alpha", "beta", "w1"], "the async node has no vote");
    let takeover: Vec<_> = config.nodes.iter().map(|n| n.takeover).collect();
    assert_eq!(takeover, [Takeover::Automatic, Takeover::Automatic, Takeover::Manual]);
    let witness = config.find_witness("w1").unwrap();
    assert_eq!(witness.dir, Path::new("/var/lib/understudy/w1"));
    assert_eq!(witness.control, Path::new("/var/lib/understudy/w1/control.sock"));
    let settings = Settings::new(&config, Some("beta")).unwrap();
    let at = |address: &str| Some(address.parse().unwrap());
    let all: Vec<_> = settings.voters.iter().map(|v| (v.name.as_str(), v.address)).collect();
    let offsite = ("offsite", at("127.0.0.1:7803"));
    assert_eq!(all, [("alpha", at("127.0.0.1:7801")), ("beta", None), offsite, ("w1", at("127.0.0.1:7800"))]);
    let crate::core::Keeper::Voters(voting) = settings.node.keeper else { panic!("voters") };
    assert_eq!((voting.voters.join(" "), voting.lease_ms, voting.round_ms), ("alpha beta w1".into(), 1000, 500));
    let manual = with_witness().replace("[node.beta]", "[node.beta]\ntakeover = \"manual\"");
    assert_eq!(read(&manual).unwrap().nodes[1].takeover, Takeover::Manual);
}

#[test]
fn voters_are_an_odd_number() {
    let two = "[witness.w2]\naddress = \"127.0.0.1:7810\"\n[witness.w1]";
    let even = refused_of(&with_witness(), "[witness.w1]", two);
    assert!(even.contains(":11: witness: the voters would be alpha, beta, w1, w2, which makes 4"), "{even}");
    let pair = refused("stall_ms = 2000", "keeper = \"voters\"");
    assert!(
        pair.contains(":5: resource.keeper = \"voters\": the voters would be alpha, beta, which makes 2"),
        "{pair}"
    );
    let three = SAMPLE.replace("mode = \"async\"\n", "").replace("stall_ms = 2000", "keeper = \"voters\"");
    assert_eq!(read(&three).unwrap().voters(), ["alpha", "beta", "offsite"]);
    let none = refused_of(&with_witness(), "mode = \"sync\"", "mode = \"async\"");
    assert!(none.contains("the voters would be w1, which makes 1"), "{none}");
}

#[test]
fn what_voters_are_needed_for_is_refused_without_them() {
    for (field, value) in [("lease_ms", "1000"), ("round_ms", "500")] {
        let message = refused("stall_ms = 2000", &format!("{field} = {value}"));
        assert!(message.contains(&format!("resource.{field} = {value}: means nothing without voters")), "{message}");
    }
    let message = refused("[node.beta]", "[node.beta]\ntakeover = \"automatic\"");
    assert!(message.contains(":21: node.beta.takeover = \"automatic\": means nothing without voters"), "{message}");
    let message = refused_of(&with_witness(), "stall_ms = 2000", "keeper = \"alone\"");
    assert!(message.contains("resource.keeper = \"alone\": contradicts witness.w1"), "{message}");
    let message = refused_of(&with_witness(), "[node.offsite]", "[node.offsite]\ntakeover = \"automatic\"");
    assert!(message.contains("node.offsite.takeover = \"automatic\": is not possible for an async node"), "{message}");
    assert!(refused("stall_ms = 2000", "keeper = \"etcd\"").contains("must be \"alone\" or \"voters\""));
}

#[test]
fn times_that_cannot_work_together_are_refused() {
    let with = |line: &str| refused_of(&with_witness(), "stall_ms = 2000", line);
    let short = with("lease_ms = 500");
    assert!(
        short.contains("resource.lease_ms = 500: is 500 ms") && short.contains("at least 600 ms, three times"),
        "{short}"
    );
    let slow = with("heartbeat_ms = 400");
    assert!(slow.contains("resource.lease_ms: is 1000 ms") && slow.contains("at least 1200 ms"), "{slow}");
    assert!(with("lease_ms = 50").contains("it must be from 100 ms to 600000 ms"));
    assert!(with("round_ms = 5").contains("it must be from 20 ms to 60000 ms"));
    let fast = with_witness().replace("stall_ms = 2000", "heartbeat_ms = 50\nlease_ms = 150\nround_ms = 50");
    assert!(read(&fast).is_ok());
}

#[test]
fn a_witness_is_checked_as_a_node_is() {
    let with = |from: &str, to: &str| refused_of(&with_witness(), from, to);
    assert!(with("[witness.w1]", "[witness.W1]").contains("witness.W1: is not a valid name"));
    assert!(with("[witness.w1]", "[witness.beta]").contains("witness.beta: is also used by node.beta"));
    assert!(with("7800\"", "7801\"").contains("is also used by"), "one port, two");
    assert!(with("127.0.0.1:7800", "10.0.0.3:7800").contains("is not a loopback address"));
    assert!(with("[witness.w1]", "[witness.w1]\ndri = \"/x\"").contains("did you mean \"dir\"?"));
    assert!(with("[witness.w1]", "[witness.w1]\ndir = \"x\"").contains("must be an absolute path"));
    let same = with("[witness.w1]", "[witness.w1]\ndir = \"/var/lib/understudy/alpha\"");
    assert!(same.contains("is also used by"), "{same}");
    let insecure = with_witness()
        .replace("127.0.0.1:7800", "10.0.0.3:7800")
        .replace("[witness.w1]", "[witness.w1]\ninsecure = true");
    assert!(read(&insecure).is_ok());
}
