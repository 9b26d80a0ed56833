//! Files of orphaned writes, made by the code that writes the format, listed and exported by the commands.

use super::super::args::Cli;
use super::super::{Look, execute};
use super::read;
use crate::buf::Payload;
use crate::core::{Kind, Lsn, Record, TermId, VolumeId};
use crate::format::batch::{self, BatchFields, TermRef};
use clap::Parser;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

const SIZE: u64 = 8 << 20;
const TERM: TermRef = TermRef { number: 3, id: TermId(0x1a2b_3c4d << 96) };

/// A folder with a file for a node `alpha` of two volumes.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("alpha");
        fs::create_dir(&node).unwrap();
        let text = format!(
            "[resource]\nname = \"data\"\n[volume.disk0]\nsize = \"8MiB\"\n[volume.disk1]\nsize = \"8MiB\"\n\
             [node.alpha]\naddress = \"127.0.0.1:7801\"\ndir = {node:?}\n"
        );
        fs::write(dir.path().join("data.toml"), text).unwrap();
        Home { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A salvage of these records, one batch for each list; what it holds.
    fn salvage(&self, number: u32, batches: &[Vec<Record>]) -> Vec<u8> {
        let bytes = encoded(0x77, batches);
        fs::write(self.path(&format!("alpha/salvage.{number}")), &bytes).unwrap();
        bytes
    }

    fn run(&self, command: &str, after: &str) -> Result<String, String> {
        let file = self.path("data.toml");
        let mut words = vec!["understudy", "salvage", command, file.to_str().unwrap(), "--node", "alpha"];
        words.extend(after.split_whitespace());
        let mut out = Vec::new();
        let cli = Cli::try_parse_from(words).unwrap();
        execute(cli, &mut out, Look::default()).map_err(|e| e.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn json(&self, command: &str, after: &str) -> Value {
        serde_json::from_str(&self.run(command, &format!("{after} --json")).unwrap()).unwrap()
    }

    fn export(&self, name: &str, after: &str) -> Result<String, String> {
        self.run("export", &format!("1 --to {} {after}", self.path(name).display()))
    }
}

fn data(volume: u16, offset: u64, fill: u8, length: usize) -> Record {
    let payload = Payload::copy_of(&vec![fill; length]);
    let crc = crc32fast::hash(&payload);
    let (volume, length) = (VolumeId(volume), length as u64);
    Record { lsn: Lsn(0), volume, kind: Kind::Write, offset, length, crc, payload }
}

fn zeros(volume: u16, offset: u64, length: u64) -> Record {
    let volume = VolumeId(volume);
    Record { lsn: Lsn(0), volume, kind: Kind::Discard, offset, length, crc: 0, payload: Payload::empty() }
}

fn encoded(stream: u128, batches: &[Vec<Record>]) -> Vec<u8> {
    let (mut bytes, mut next, mut prev_crc) = (Vec::new(), 1, batch::seed(stream));
    for records in batches {
        let first = Lsn(next);
        let mut records = records.clone();
        for record in &mut records {
            record.lsn = Lsn(next);
            next += 1;
        }
        let address = bytes.len() as u64;
        let fields = BatchFields { stream, address, prev_crc, term: TERM, first, durable: first.prev() };
        let (header, crc) = batch::encode(&fields, &records);
        batch::buffers(header, &records).iter().for_each(|b| bytes.extend_from_slice(b));
        prev_crc = crc;
    }
    bytes
}

/// Two runs that touch, zeros, and a block of the other volume.
fn sample() -> Vec<Vec<Record>> {
    vec![
        vec![data(0, 8192, 1, 4096), data(0, 12288, 2, 8192)],
        vec![zeros(0, 65536, 8192), data(1, SIZE - 4096, 3, 4096)],
    ]
}

/// The first volume with the sample in it, where `base` is everywhere else.
fn expected(base: u8) -> Vec<u8> {
    let mut image = vec![base; SIZE as usize];
    image[8192..12288].fill(1);
    image[12288..20480].fill(2);
    image[65536..73728].fill(0);
    image
}

#[test]
fn what_was_set_aside_is_listed() {
    let home = Home::new();
    assert_eq!(home.run("list", "").unwrap(), "alpha has set no orphaned writes aside\n");
    assert_eq!(home.json("list", ""), json!([]));
    home.salvage(10, &sample());
    home.salvage(2, &[vec![data(0, 0, 9, 4096)]]);
    fs::write(home.path("alpha/salvage.x"), "").unwrap();
    fs::write(home.path("alpha/salvage.03"), "").unwrap();
    fs::write(home.path("alpha/salvage.11"), vec![0; 5000]).unwrap();
    let list = home.json("list", "");
    let numbers: Vec<_> = list.as_array().unwrap().iter().map(|s| s["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [2, 10, 11]);
    let ten = &list[1];
    assert_eq!((ten["blocks"].as_u64(), ten["bytes"].as_u64(), &ten["damaged"]), (Some(6), Some(24576), &json!(false)));
    assert_eq!(ten["term"], json!({ "number": 3, "id": "1a2b3c4d000000000000000000000000" }));
    assert!(list[2]["error"].as_str().unwrap().contains("holds no orphaned writes"), "{list}");
    let text = home.run("list", "").unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].starts_with("NUMBER  TERM"), "{text}");
    assert!(lines[2].contains("3 (1a2b3c4d)") && lines[2].contains("24 KiB"), "{text}");
    assert!(lines[3].contains("unreadable"), "{text}");
}

#[test]
fn ranges_are_shown_and_those_that_touch_are_one() {
    let home = Home::new();
    home.salvage(1, &sample());
    let shown = home.json("show", "1");
    let range = |v: &str, offset: u64, length: u64, zeros: bool| json!({ "volume": v, "offset": offset, "length": length, "zeros": zeros });
    let ranges = [
        range("disk0", 8192, 12288, false),
        range("disk0", 65536, 8192, true),
        range("disk1", SIZE - 4096, 4096, false),
    ];
    assert_eq!(shown["ranges"], json!(ranges));
    let text = home.run("show", "1").unwrap();
    assert!(text.starts_with("salvage 1: 6 blocks, 24 KiB, of term 3\nVOLUME"), "{text}");
    assert!(text.contains("disk0     65536    8192  zeros"), "{text}");
}

#[test]
fn a_delta_holds_the_blocks_and_nothing_else() {
    let home = Home::new();
    home.salvage(1, &sample());
    let said = home.export("delta.raw", "--volume disk0").unwrap();
    assert!(said.ends_with("delta.raw: 12 KiB of data and 8 KiB of zeros of disk0 from salvage 1\n"), "{said}");
    assert!(fs::read(home.path("delta.raw")).unwrap() == expected(0));
    assert!(fs::metadata(home.path("delta.raw")).unwrap().blocks() * 512 < SIZE / 4, "it is sparse");
    home.export("other.raw", "--volume disk1").unwrap();
    let other = fs::read(home.path("other.raw")).unwrap();
    assert!(
        other[..SIZE as usize - 4096].iter().all(|b| *b == 0) && other[SIZE as usize - 4096..].iter().all(|b| *b == 3)
    );
}

#[test]
fn over_a_base_it_is_a_whole_image_and_zeros_are_zeros() {
    let home = Home::new();
    home.salvage(1, &sample());
    fs::write(home.path("base.raw"), vec![0xee; SIZE as usize]).unwrap();
    let base = home.path("base.raw");
    home.export("whole.raw", &format!("--volume disk0 --base {}", base.display())).unwrap();
    assert!(fs::read(home.path("whole.raw")).unwrap() == expected(0xee));
    assert!(fs::read(&base).unwrap().iter().all(|b| *b == 0xee), "the base is only read");
    // A sparse base stays sparse.
    let sparse = fs::File::create(home.path("sparse.raw")).unwrap();
    sparse.set_len(SIZE).unwrap();
    sparse.write_all_at(&[5; 100], 5 << 20).unwrap();
    home.export("thin.raw", &format!("--volume disk0 --base {}", home.path("sparse.raw").display())).unwrap();
    let mut want = expected(0);
    want[5 << 20..(5 << 20) + 100].fill(5);
    assert!(fs::read(home.path("thin.raw")).unwrap() == want);
    assert!(fs::metadata(home.path("thin.raw")).unwrap().blocks() * 512 < SIZE / 4);
}

#[test]
fn what_cannot_be_exported_is_refused_and_nothing_is_left() {
    let home = Home::new();
    let refused = |name: &str, after: &str, words: &str| {
        let message = home.export(name, after).unwrap_err();
        assert!(message.contains(words), "{message}");
        assert!(!home.path("new.raw").exists());
    };
    refused("new.raw", "--volume disk0", "nothing aside under number 1; there is nothing");
    home.salvage(1, &sample());
    refused("new.raw", "", "say which with --volume, one of disk0, disk1");
    refused("new.raw", "--volume disk9", "no volume \"disk9\"; its volumes are disk0, disk1");
    refused("data.toml", "--volume disk0", "exists: name a file that does not");
    fs::write(home.path("short.raw"), "short").unwrap();
    let base = format!("--volume disk0 --base {}", home.path("short.raw").display());
    refused("new.raw", &base, "has 5 bytes and the volume 8388608: it is no image of it");
    refused("new.raw", "--volume disk0 --base /no/such", "cannot open /no/such");
    home.salvage(1, &[vec![data(7, 0, 1, 4096)]]);
    refused("new.raw", "--volume disk0", "names volume 7, and the file has 2");
    home.salvage(1, &[vec![data(0, SIZE, 1, 4096)]]);
    refused("new.raw", "--volume disk0", "ends past the 8388608 bytes");
    home.salvage(1, &[vec![zeros(0, u64::MAX - 4096, 4096)]]);
    refused("new.raw", "--volume disk0", "ends past the 8388608 bytes");
    fs::remove_dir_all(home.path("alpha")).unwrap();
    refused("new.raw", "--volume disk0", "is not on this host");
}

/// A salvage numbers its volumes, and the file of today may have others in between.
#[test]
fn a_file_with_other_volumes_than_the_log_was_made_for_is_refused() {
    let home = Home::new();
    home.salvage(1, &sample());
    let mut content = crate::format::superblock::tests::superblock(1);
    for (volumes, fits) in [(["disk0", "disk1"], true), (["disk1", "disk2"], false)] {
        content.volumes = volumes.map(|v| (v.to_string(), SIZE)).to_vec();
        fs::write(home.path("alpha/log"), &*crate::format::superblock::encode(&content).unwrap()).unwrap();
        for shown in [home.run("show", "1"), home.export(if fits { "fits" } else { "not" }, "--volume disk0")] {
            match fits {
                true => drop(shown.unwrap()),
                false => assert!(shown.unwrap_err().contains("log was made for are disk1 (8388608 bytes), disk2")),
            }
        }
    }
    assert!(!home.path("not").exists());
}

#[test]
fn damage_is_said_and_what_is_before_it_can_be_had() {
    let home = Home::new();
    let mut bytes = home.salvage(1, &sample());
    // The second record of the first batch: the batch after it proves that it was there.
    bytes[4096 + 4096 + 17] ^= 1;
    fs::write(home.path("alpha/salvage.1"), &bytes).unwrap();
    assert_eq!(home.json("list", "")[0]["damaged"], true);
    assert!(home.run("list", "").unwrap().contains("(damaged)"));
    let message = home.export("new.raw", "--volume disk0").unwrap_err();
    assert!(message.contains("only its first 4096 bytes of content can be read"), "{message}");
    home.export("new.raw", "--volume disk0 --partial").unwrap();
    let image = fs::read(home.path("new.raw")).unwrap();
    assert!(image[8192..12288].iter().all(|b| *b == 1) && image[12288..].iter().all(|b| *b == 0));
}

/// One that is being written, or was when the daemon died, ends anywhere; what an earlier attempt left lies behind it.
#[test]
fn a_file_cut_anywhere_is_read_as_far_as_it_goes() {
    let home = Home::new();
    let path = home.path("alpha/salvage.1");
    let bytes = encoded(0x77, &sample());
    for length in (4096..=bytes.len()).step_by(1000) {
        fs::write(&path, &bytes[..length]).unwrap();
        let salvage = read::open(&path).unwrap();
        assert!(!salvage.damaged, "{length}");
        assert!(salvage.runs.len() <= 4);
    }
    for length in [0, 1, 4095] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(matches!(read::open(&path), Err(super::SalvageError::NotSalvage { .. })), "{length}");
    }
    let mut again = encoded(0x78, &sample()[..1]);
    again.extend_from_slice(&bytes[again.len()..]);
    fs::write(&path, &again).unwrap();
    let salvage = read::open(&path).unwrap();
    assert_eq!((salvage.runs.len(), salvage.damaged), (2, false));
}
