//! Discards and zeroes: they read as zeros on every node, and give space back where they may.

use crate::common::*;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// Bytes that a node's store occupies.
fn occupied(cluster: &Cluster, node: usize) -> u64 {
    std::fs::metadata(cluster.store(node, VOLUME)).expect("a store").blocks() * 512
}

#[test]
fn discards_reach_both_stores_and_stay_sparse() {
    let mut cluster = Cluster::serving(&pair("64MiB"), &[0, 1]);
    let mut client = cluster.client(0);
    for at in 0..16 {
        client.write(at * MIB, &vec![at as u8 + 1; MIB as usize], false).unwrap();
    }
    client.flush().unwrap();
    cluster.assert_stores_equal(0, &[1], VOLUME);
    for node in [0, 1] {
        let bytes = occupied(&cluster, node);
        assert!((16 * MIB..20 * MIB).contains(&bytes), "{} occupies {bytes}", cluster.name(node));
    }
    client.trim(0, 8 << 20).unwrap();
    // Not allocated zeros: a hole where the server may choose.
    client.write_zeroes(8 * MIB, 4 << 20, false).unwrap();
    // An area that was never written: nothing is to be allocated for it.
    client.trim(32 * MIB, 16 << 20).unwrap();
    client.flush().unwrap();
    assert!(client.read(0, 12 * MIB).unwrap().iter().all(|b| *b == 0));
    assert!(client.read(12 * MIB, MIB).unwrap().iter().all(|b| *b == 13));
    cluster.assert_stores_equal(0, &[1], VOLUME);
    for node in [0, 1] {
        let bytes = occupied(&cluster, node);
        assert!((4 * MIB..6 * MIB).contains(&bytes), "{} occupies {bytes}", cluster.name(node));
    }
    assert!(client.read(0, 12 * MIB).unwrap().iter().all(|b| *b == 0), "from the store, too");
}

#[test]
fn zeroes_without_holes_are_zeros_on_both() {
    let mut cluster = Cluster::serving(&pair("16MiB"), &[0, 1]);
    let mut client = cluster.client(0);
    client.write(0, &vec![7; 4 << 20], false).unwrap();
    client.write_zeroes(MIB, 2 << 20, true).unwrap();
    client.flush().unwrap();
    cluster.assert_stores_equal(0, &[1], VOLUME);
    for node in [0, 1] {
        let bytes = occupied(&cluster, node);
        assert!(bytes >= 4 * MIB, "{} occupies {bytes}: the zeros were to stay allocated", cluster.name(node));
    }
    let image = client.read(0, 4 * MIB).unwrap();
    let (data, zeros) = ((MIB) as usize, (3 * MIB) as usize);
    assert!(image[..data].iter().chain(&image[zeros..]).all(|b| *b == 7));
    assert!(image[data..zeros].iter().all(|b| *b == 0));
}

/// Edges that are not those of a 4 KiB block, where the volume has blocks of 512 bytes. In memory, since the disk of the
/// machine that this runs on may have larger ones, and then they are refused.
#[test]
fn small_blocks_keep_their_neighbours() {
    let plan = pair("4MiB").resource("block_size = 512");
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        return println!("SKIPPED: this machine has no /dev/shm");
    }
    let mut cluster = Cluster::in_folder(memory, &plan).serve(&[0, 1]);
    let mut client = cluster.client(0);
    assert_eq!(client.export().block, 512);
    client.write(0, &[9; 16384], false).unwrap();
    client.trim(512, 9216).unwrap();
    client.write(1024, &[8; 512], true).unwrap();
    let mut expected = vec![9; 16384];
    expected[512..9728].fill(0);
    expected[1024..1536].fill(8);
    assert!(client.read(0, 16384).unwrap() == expected);
    cluster.assert_stores_equal(0, &[1], VOLUME);
    assert!(client.read(0, 16384).unwrap() == expected, "from the store, too");
    assert!(std::fs::read(cluster.store(1, VOLUME)).unwrap()[..16384] == expected, "in the passive's store");
}
