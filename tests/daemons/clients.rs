//! Clients that others wrote: libnbd, qemu, fio. Where one is not installed its test says so and passes; `tools/test` installs
//! them all.

use crate::common::*;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use understudy::demo::load::{Meter, Writer};
use understudy::demo::oracle::Promise;
use understudy::demo::rng::Rng;
use understudy::nbd_client::{Address, Client};

/// A pair in sync, the URI of its volume of 32 MiB, and a place for files.
fn serving() -> (Cluster, String, PathBuf) {
    let cluster = Cluster::serving(&pair("32MiB"), &[0, 1]);
    let (uri, folder) = (cluster.nbd_uri(0, VOLUME), cluster.folder().to_owned());
    (cluster, uri, folder)
}

/// Runs a program that must succeed: what it printed.
#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("an installed program");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {}: {out}\n{err}", arguments.join(" "));
    out.into_owned()
}

/// An image with data, zeros and data again.
fn image(folder: &std::path::Path, seed: u64) -> PathBuf {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0u8; 32 << 20];
    for range in [0..5 << 20, 20 << 20..21 << 20] {
        bytes[range].chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&rng.next_u64().to_le_bytes()));
    }
    let path = folder.join("image.raw");
    fs::write(&path, bytes).expect("room for an image");
    path
}

#[test]
fn nbdinfo_reads_the_export() {
    if !have("nbdinfo") {
        return;
    }
    let (_cluster, uri, _) = serving();
    let info: Value = serde_json::from_str(&run("nbdinfo", &["--json", &uri])).expect("JSON");
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 32 << 20);
    assert_eq!(export["is_read_only"], false);
    for can in ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[can], true, "{can}: {info}");
    }
    assert_eq!(export["block_size_minimum"], 4096);
    assert!(run("nbdinfo", &["--list", &uri]).contains("disk0"));
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), "33554432");
    run("nbdinfo", &["--map", &uri]);
}

#[test]
fn nbdcopy_goes_there_and_back() {
    if !have("nbdcopy") {
        return;
    }
    let (mut cluster, uri, folder) = serving();
    let (source, back) = (image(&folder, 1), folder.join("back.raw"));
    run("nbdcopy", &["--flush", &source.display().to_string(), &uri]);
    run("nbdcopy", &[&uri, &back.display().to_string()]);
    let source = fs::read(source).expect("an image");
    assert!(fs::read(back).expect("an image") == source, "what was read back differs");
    cluster.assert_stores_equal(0, &[1], VOLUME);
    assert!(fs::read(cluster.store(1, VOLUME)).expect("a store") == source, "the passive's store differs");
}

#[test]
fn qemu_img_converts_and_compares() {
    if !have("qemu-img") {
        return;
    }
    let (mut cluster, uri, folder) = serving();
    let info: Value = serde_json::from_str(&run("qemu-img", &["info", "--output=json", &uri])).expect("JSON");
    assert_eq!(info["virtual-size"], 32 << 20);
    let source = image(&folder, 2).display().to_string();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &uri]);
    let back = folder.join("back.qcow2").display().to_string();
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &back]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &source, &back]);
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    if !have("qemu-io") {
        return;
    }
    let (mut cluster, uri, _) = serving();
    let commands = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 512k 64k",
        "write -z 64k 64k",
        "write -z -u 128k 64k",
        "discard 192k 64k",
        "flush",
        "aio_write -P 0x33 2M 1M",
        "aio_write -P 0x44 4M 4k",
        "aio_flush",
        "read -P 0x11 0 64k",
        "read -P 0 64k 192k",
        "read -P 0x11 256k 256k",
        "read -P 0x22 512k 64k",
        "read -P 0x33 2M 1M",
        "read -P 0x44 4M 4k",
        "read -P 0 31M 1M",
    ];
    let mut arguments = vec!["-f", "raw", "-d", "unmap"];
    commands.iter().for_each(|c| arguments.extend(["-c", c]));
    arguments.push(&uri);
    let said = run("qemu-io", &arguments);
    assert!(!said.contains("verification failed"), "{said}");
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !have("fio") || !run("fio", &["--enghelp"]).contains("nbd") {
        println!("SKIPPED: no fio, or one without its nbd engine");
        return;
    }
    let (mut cluster, uri, folder) = serving();
    let state = format!("--aux-path={}", folder.display());
    let said = run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--rw=randwrite",
            "--bsrange=4k-64k",
            "--bs_unaligned=0",
            "--blockalign=4k",
            "--iodepth=16",
            "--size=32M",
            "--io_size=64M",
            "--fsync=64",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_backlog=512",
            "--randrepeat=0",
            &state,
        ],
    );
    assert!(said.contains("err= 0"), "{said}");
    cluster.assert_stores_equal(0, &[1], VOLUME);
}

/// Ends a server that a test has started.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The other way round: our client, the load and the oracle against a server that others wrote.
#[test]
fn our_client_and_the_load_work_with_qemu_nbd() {
    if !have("qemu-nbd") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (file, socket) = (folder.path().join("image.raw"), folder.path().join("nbd.sock"));
    fs::File::create(&file).and_then(|f| f.set_len(48 << 20)).expect("an image");
    let mut command = Command::new("qemu-nbd");
    command.args(["-t", "-e", "4", "-f", "raw", "-x", VOLUME, "--discard=unmap", "-k"]).arg(&socket).arg(&file);
    let _server = Server(command.spawn().expect("an installed program"));
    let address = Address::Unix(socket.clone());
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() {
        assert!(Instant::now() < deadline, "qemu-nbd does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    let refusal = Client::connect(&address, "foo", PATIENCE).err().expect("another export");
    assert!(refusal.to_string().contains("refuses the export \"foo\""), "{refusal}");
    let (stop, meter) = (AtomicBool::new(false), Meter::default());
    let all = writers(12_288, seed("our_client_and_the_load_work_with_qemu_nbd"));
    let mut all: Vec<Writer> = all.into_iter().map(Writer::apart).collect();
    let run = |writer: &mut Writer| {
        let mut client = Client::connect(&address, VOLUME, PATIENCE).expect("a connection");
        writer.run(&mut client, &stop, &meter).expect("a server that goes on");
        client.disconnect().expect("an end");
    };
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = all.iter_mut().map(|w| scope.spawn(move || run(w))).collect();
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
    });
    let sample = meter.take();
    assert!(sample.writes > 100 && sample.flushes > 10 && sample.p50_us <= sample.p99_us, "{sample:?}");
    let mut client = Client::connect(&address, VOLUME, PATIENCE).expect("a connection");
    for writer in &mut all {
        let issued = writer.oracle.issued();
        let image = writer.read_back(&mut client).expect("a readable volume");
        assert_eq!(writer.oracle.check(&image, Promise::Completed), Ok(issued));
    }
}
