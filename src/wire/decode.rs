//! A frame to a message. What comes in is not trusted: nothing here panics, and no length is believed before it is checked.

use super::head::{Head, Meta};
use super::header::FrameHeader;
use super::{MAX_PAYLOAD, WireError};
use crate::buf::{BufMut, Payload};
use crate::core::hello::{Charter, Hello, PROTOCOL};
use crate::core::lineage::MAX_TERMS;
use crate::core::{Extent, Kind, Lsn, PeerMsg, Record, Role};

/// What decoding a head may allocate, in bytes: an element takes up to eight times its encoded size.
const DECODE_LIMIT: usize = 4 << 20;

/// The number of a Hello among the heads, as it is encoded.
const HELLO: u8 = 0;

/// Lsns above this would overflow in arithmetic that is fine for any log that can be written.
const MAX_LSN: u64 = 1 << 62;

/// Bytes of a name, and nodes, volumes and features: what a configuration file may have at most. A superblock has room for them.
const MAX_NAME: usize = 64;
const MAX_NODES: usize = 16;
const MAX_VOLUMES: usize = 64;
const MAX_FEATURES: usize = 64;
const MAX_SETTINGS: usize = 128;
const MAX_SETTING: usize = 128;

/// Bytes of a good-bye, which goes into events and `status` as it is.
const MAX_WORDS: usize = 32 << 10;

/// Offsets and lengths are multiples of this, so that slices of an aligned buffer stay aligned for direct I/O.
const SECTOR: u64 = 512;

/// The message in a frame, whose `head` and `payload` bytes have been received in full. Records share the memory of `payload`.
///
/// # Errors
/// Whatever is wrong with the bytes; the connection that they came from cannot be trusted any more.
pub fn decode(frame: &FrameHeader, head: &[u8], payload: Payload) -> Result<PeerMsg, WireError> {
    if head.len() != frame.head_len {
        return Err(WireError::HeadLength(head.len() as u64));
    }
    if payload.len() != frame.payload_len {
        return Err(WireError::PayloadMismatch { needed: frame.payload_len as u64, found: payload.len() as u64 });
    }
    if crc32fast::hash(head) != frame.head_crc {
        return Err(WireError::HeadChecksum);
    }
    let config = bincode::config::standard().with_limit::<DECODE_LIMIT>();
    if let Some(hello) = of_another_protocol(head, config) {
        check_hello(&hello).map_err(WireError::Sense)?;
        return Ok(PeerMsg::Hello(Box::new(hello)));
    }
    let (head, used): (Head, usize) =
        bincode::decode_from_slice(head, config).map_err(|e| WireError::Head(e.to_string()))?;
    if used != frame.head_len {
        return Err(WireError::Head(format!("{} bytes too many", frame.head_len - used)));
    }
    check_positions(&head)?;
    check_words(&head).map_err(WireError::Sense)?;
    let needed = check_records(&head)?;
    let payload = if frame.compressed { unpack(&payload, needed)? } else { payload };
    if payload.len() as u64 != needed {
        return Err(WireError::PayloadMismatch { needed, found: payload.len() as u64 });
    }
    let records = records(&head, &payload)?;
    Ok(head.with_records(records))
}

/// A Hello of another version of the protocol, whose other fields may be any. The version and the names after it stay where they are.
fn of_another_protocol(head: &[u8], config: impl bincode::config::Config) -> Option<Hello> {
    let behind = head.strip_prefix(&[HELLO])?;
    let (names, _) = bincode::decode_from_slice::<(u32, String, String), _>(behind, config).ok()?;
    let (protocol, resource, node) = names;
    (protocol != PROTOCOL).then(|| Hello::unintelligible(protocol, resource, node))
}

fn check_positions(head: &Head) -> Result<(), WireError> {
    if let Some(lsn) = head.positions().into_iter().find(|l| l.0 > MAX_LSN) {
        return Err(WireError::Lsn(lsn.0));
    }
    let overflows = |e: &Extent| e.offset.checked_add(e.length).is_none();
    if head.extents().iter().any(overflows) {
        return Err(WireError::Record("its range ends beyond all volumes"));
    }
    Ok(())
}

/// What the receiver keeps, writes to its superblock, or counts on from.
fn check_words(head: &Head) -> Result<(), &'static str> {
    match head {
        Head::Hello(hello) => check_hello(hello),
        Head::Charter(charter) | Head::Claim(charter) => check_charter(charter),
        Head::Bye { why } if why.len() > MAX_WORDS => Err("its good-bye has no end"),
        _ => Ok(()),
    }
}

fn check_hello(hello: &Hello) -> Result<(), &'static str> {
    let named = [&hello.node, &hello.resource].into_iter().chain(&hello.features);
    if !named.chain(hello.volumes.iter().map(|(name, _)| name)).all(|n| n.len() <= MAX_NAME) {
        return Err("a name is too long");
    }
    if hello.volumes.len() > MAX_VOLUMES || hello.features.len() > MAX_FEATURES {
        return Err("it has too many volumes or features");
    }
    let fits = |text: &String| text.len() <= MAX_SETTING && text.chars().all(|c| c.is_ascii_graphic());
    if hello.settings.len() > MAX_SETTINGS || !hello.settings.iter().all(|(k, v)| fits(k) && fits(v)) {
        return Err("its settings are too many, too long or not in plain letters");
    }
    let terms = &hello.lineage;
    if terms.len() > MAX_TERMS || terms.windows(2).any(|w| w[0].first > w[1].first) {
        return Err("its lineage has too many terms, or is not in order");
    }
    if hello.role == Role::Active && terms.is_empty() {
        return Err("it is active without a term");
    }
    if terms.iter().any(|t| t.number > MAX_LSN) {
        return Err("a term has a number beyond all use");
    }
    check_charter(&hello.charter)
}

fn check_charter(charter: &Charter) -> Result<(), &'static str> {
    if [charter.version, charter.term, charter.generation.0].iter().any(|n| *n > MAX_LSN) {
        return Err("its charter has a version beyond all use");
    }
    let members = charter.in_sync.iter().map(|m| &m.node);
    if charter.in_sync.len() > MAX_NODES
        || !members.chain(&charter.active).chain(&charter.heir).all(|n| n.len() <= MAX_NAME)
    {
        return Err("its charter names too many nodes, or one whose name is too long");
    }
    Ok(())
}

/// Checks the metas by themselves, and sums up their payload bytes (at most [`MAX_PAYLOAD`]).
fn check_records(head: &Head) -> Result<u64, WireError> {
    let mut needed = 0u64;
    for meta in head.metas().1 {
        check_meta(meta)?;
        needed = needed.saturating_add(meta.payload_len());
    }
    if needed > MAX_PAYLOAD as u64 {
        return Err(WireError::PayloadLength(needed));
    }
    Ok(needed)
}

fn check_meta(meta: &Meta) -> Result<(), WireError> {
    if meta.length == 0 {
        return Err(WireError::Record("its length is 0"));
    }
    if !meta.offset.is_multiple_of(SECTOR) || !meta.length.is_multiple_of(SECTOR) {
        return Err(WireError::Record("its offset or length is not a multiple of 512"));
    }
    if meta.offset.checked_add(meta.length).is_none() {
        return Err(WireError::Record("its range ends beyond all volumes"));
    }
    if meta.kind != Kind::Write && meta.crc != 0 {
        return Err(WireError::Record("it has a checksum, but no payload"));
    }
    Ok(())
}

/// Unpacks a compressed payload section to exactly `needed` bytes, a number that has been checked.
fn unpack(packed: &Payload, needed: u64) -> Result<Payload, WireError> {
    let mut raw = BufMut::uninit(needed as usize);
    let found =
        lz4_flex::block::decompress_into(packed, &mut raw).map_err(|e| WireError::Compression(e.to_string()))?;
    if found as u64 != needed {
        return Err(WireError::PayloadMismatch { needed, found: found as u64 });
    }
    Ok(raw.freeze())
}

fn records(head: &Head, payload: &Payload) -> Result<Vec<Record>, WireError> {
    let (first, metas) = head.metas();
    let mut records = Vec::with_capacity(metas.len());
    let mut at = 0;
    for (index, meta) in metas.iter().enumerate() {
        let length = meta.payload_len() as usize;
        let bytes = if length == 0 { Payload::empty() } else { payload.slice(at, length) };
        at += length;
        let found = if length == 0 { 0 } else { crc32fast::hash(&bytes) };
        if found != meta.crc {
            return Err(WireError::PayloadChecksum { index, expected: meta.crc, found });
        }
        records.push(Record {
            // No overflow: `first` is at most 2^62, and a head holds far fewer than 2^62 records.
            lsn: first.map_or(Lsn(0), |f| Lsn(f.0 + index as u64)),
            volume: meta.volume,
            kind: meta.kind,
            offset: meta.offset,
            length: meta.length,
            crc: meta.crc,
            payload: bytes,
        });
    }
    Ok(records)
}
