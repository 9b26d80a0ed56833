//! The superblock: what a node knows beside its records. Two slots, written by turns, so that a torn write leaves
//! the one before it.

use super::ring::ScanStart;
use super::{BLOCK, crc_without, le, padded};
use crate::buf::{BufMut, Payload};
use crate::core::hello::{Charter, Gap};
use crate::core::{Incarnation, Lsn, Term, TermId};
use bincode::{Decode, Encode};

/// First bytes of a slot.
pub const MAGIC: [u8; 8] = *b"USTDYSUP";
/// The version written by this code; it reads version 1 too.
pub const VERSION: u16 = 2;
/// Where the slots are in the log, in bytes.
pub const SLOT_OFFSETS: [u64; 2] = [0, SLOT_BYTES as u64];
/// Room of a slot.
pub const SLOT_BYTES: usize = 32768;
/// Where the ring begins, right behind the slots.
pub const RING_START: u64 = 65536;
/// Terms of a lineage that are kept: the newest. A peer that forked before the oldest of them is no relative any more.
pub const MAX_LINEAGE: usize = crate::core::lineage::MAX_TERMS;

/// Offsets in a slot. They are the same in every version, so that any program can tell damage from a newer format.
mod at {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 8;
    pub const RESERVED: usize = 10;
    pub const CRC: usize = 12;
    pub const BODY_BYTES: usize = 16;
    pub const RESERVED_2: usize = 20;
    pub const BODY: usize = 64;
}

const _: () = assert!(at::VERSION == at::MAGIC + MAGIC.len() && at::RESERVED == at::VERSION + 2);
const _: () = assert!(at::CRC == at::RESERVED + 2 && at::BODY_BYTES == at::CRC + 4);
const _: () = assert!(at::RESERVED_2 == at::BODY_BYTES + 4 && at::BODY > at::RESERVED_2);
const _: () = assert!(SLOT_BYTES.is_multiple_of(BLOCK) && 2 * SLOT_BYTES as u64 == RING_START);
const _: () = assert!(MAX_LINEAGE * 32 < SLOT_BYTES / 2);

/// Bytes of a body that version 1 did not have: address, checksum and lsn of `behind`, and no `lost`.
const ADDED_IN_2: usize = 8 + 4 + 8 + 1;

fn bincode_config() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<SLOT_BYTES>()
}

/// What a node must know to start again.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Superblock {
    /// Counts the writes of superblocks: the newer slot has the larger one. Stays the body's first field in every version.
    pub sequence: u64,
    pub resource: String,
    pub node: String,
    /// Random id of the log: all batches of its ring carry it.
    pub stream: u128,
    /// Bytes of the log in all, as formatted.
    pub log_size: u64,
    /// Logical block size in bytes.
    pub block: u32,
    /// Name and size in bytes of each volume, in order.
    pub volumes: Vec<(String, u64)>,
    /// Terms, oldest first; [`encode`] keeps the newest [`MAX_LINEAGE`]. Empty for a fresh replica (B3).
    pub lineage: Vec<Term>,
    pub charter: Charter,
    /// Of the last process that ran on this replica.
    pub incarnation: Incarnation,
    /// The kernel boot that it ran under (C5).
    pub boot: u128,
    /// It stopped in order: the log was flushed and its end is the ring's.
    pub clean: bool,
    /// All records up to here are applied, and durable in the stores.
    pub checkpoint: Lsn,
    /// A round of applying up to here was begun: the stores may hold any part of it.
    pub applying: Lsn,
    /// The oldest batch that the ring still needs (L2, L5).
    pub tail: ScanStart,
    /// Fresh, and the stores are proven to be zero (B3).
    pub zero: bool,
    /// The node that this one let be promoted, while it does not know what came of it.
    pub pledge: Option<String>,
    /// The store is between two positions (R1).
    pub gap: Option<Gap>,
    /// Random id of the history's current contents.
    pub history_stream: u128,
    /// Bytes of the history that were durable when this was written: a shorter one has lost undo.
    pub history_bytes: u64,
    /// One for each peer that has been seen.
    pub bitmaps: Vec<BitmapState>,
    /// Number of the next salvage.
    pub next_salvage: u32,
    /// The log has failed since this boot (C5, L4).
    pub log_errors: bool,
    /// Room for additions that an older program may ignore; written back as read.
    pub extension: Vec<u8>,
    // Since version 2.
    /// The batch with the first record past the checkpoint, or one before it; the end of the chain where there is none. What is damaged
    /// before it costs reach and no more (L2).
    pub behind: ScanStart,
    /// Records from here on were durable in this log, and cannot be read any more; nobody has made up for them yet (L2).
    pub lost: Option<Lsn>,
}

/// Where the bits of a peer are, and since when they are complete (B2).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BitmapState {
    /// The peer's name.
    pub peer: String,
    /// Which of the two files is current: 0 or 1.
    pub half: u8,
    /// Random id of the list in it.
    pub stream: u128,
    /// A peer durable at or after this position is told all that it lacks by the bits and the ring.
    pub from: Lsn,
    /// Term of `from`; none for lsn 0.
    pub from_term: Option<TermId>,
    /// Bytes of the list that were durable when this was written: a shorter one is damaged.
    pub listed: u64,
    /// The newest record that went into the list.
    pub newest: Lsn,
}

/// Why there is no superblock.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperError {
    #[error("the log is blank: run `understudy create` first")]
    Blank,
    #[error(
        "the log is not one of understudy's: it looks like {looks_like}, and begins with {first_bytes}. Name another \
         file or device; or, if nothing there is needed, wipe it and run `understudy create`"
    )]
    Foreign { looks_like: &'static str, first_bytes: String },
    #[error("the superblock is damaged: {what}. Both slots are unusable: create the replica anew and let it resync")]
    Damaged { what: Damage },
    #[error("the log has format version {version}, and this program knows version {VERSION}: use a newer program")]
    Version { version: u16 },
    #[error(
        "the superblock would take {bytes} bytes and has room for {SLOT_BYTES}: shorten the names of resource, nodes and \
         volumes, or have fewer volumes"
    )]
    TooLarge { bytes: usize },
    #[error("the superblock cannot be encoded: {0}")]
    Encode(String),
}

/// What is wrong with a damaged slot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("it says that it is {bytes} bytes long, and {room} were read")]
    Length { bytes: u64, room: usize },
    #[error("its checksum is {stored:08x}, and its contents have {computed:08x}")]
    Checksum { stored: u32, computed: u32 },
    #[error("its contents make no sense ({0})")]
    Body(String),
}

impl SuperError {
    /// Which of two slots' errors tells the user more.
    fn weight(&self) -> u8 {
        match self {
            SuperError::Blank => 0,
            SuperError::Foreign { .. } => 1,
            _ => 2,
        }
    }
}

/// The bytes of a slot, a multiple of 4096 long.
///
/// # Errors
/// [`SuperError::TooLarge`] if a slot has no room for it.
pub fn encode(superblock: &Superblock) -> Result<Payload, SuperError> {
    let excess = superblock.lineage.len().saturating_sub(MAX_LINEAGE);
    let body = if excess == 0 {
        bincode::encode_to_vec(superblock, bincode_config())
    } else {
        let lineage = superblock.lineage[excess..].to_vec();
        bincode::encode_to_vec(Superblock { lineage, ..superblock.clone() }, bincode_config())
    };
    let body = body.map_err(|e| SuperError::Encode(e.to_string()))?;
    let bytes = at::BODY + body.len();
    if bytes > SLOT_BYTES {
        return Err(SuperError::TooLarge { bytes });
    }
    let mut slot = BufMut::zeroed(padded(bytes as u64) as usize);
    le::put(&mut slot, at::MAGIC, MAGIC);
    le::put(&mut slot, at::VERSION, VERSION.to_le_bytes());
    le::put(&mut slot, at::BODY_BYTES, (body.len() as u32).to_le_bytes());
    slot[at::BODY..bytes].copy_from_slice(&body);
    let crc = crc_without(&slot, at::CRC);
    le::put(&mut slot, at::CRC, crc.to_le_bytes());
    Ok(slot.freeze())
}

/// Reads a slot; `slot` may be longer than what was written. Nothing in the bytes is trusted.
///
/// # Errors
/// All but [`SuperError::TooLarge`] and [`SuperError::Encode`].
pub fn decode(slot: &[u8]) -> Result<Superblock, SuperError> {
    if slot.len() < BLOCK || slot[at::MAGIC..at::MAGIC + MAGIC.len()] != MAGIC {
        return Err(not_ours(slot));
    }
    let damaged = |what| SuperError::Damaged { what };
    let body_bytes = le::u32(slot, at::BODY_BYTES) as usize;
    let bytes = padded(at::BODY as u64 + body_bytes as u64);
    if bytes > slot.len().min(SLOT_BYTES) as u64 {
        return Err(damaged(Damage::Length { bytes, room: slot.len() }));
    }
    let (stored, computed) = (le::u32(slot, at::CRC), crc_without(&slot[..bytes as usize], at::CRC));
    if stored != computed {
        return Err(damaged(Damage::Checksum { stored, computed }));
    }
    let version = le::u16(slot, at::VERSION);
    if !(1..=VERSION).contains(&version) {
        return Err(SuperError::Version { version });
    }
    let mut body = slot[at::BODY..at::BODY + body_bytes].to_vec();
    if version == 1 {
        body.extend([0; ADDED_IN_2]);
    }
    let (mut superblock, used) = bincode::decode_from_slice::<Superblock, _>(&body, bincode_config())
        .map_err(|e| damaged(Damage::Body(e.to_string())))?;
    if used != body.len() {
        return Err(damaged(Damage::Body(format!("{} bytes are left over", body.len() - used))));
    }
    if version == 1 {
        superblock.behind = superblock.tail;
    }
    Ok(superblock)
}

/// The newest valid superblock of two slots, and which one it is in; the next write goes to the other.
///
/// # Errors
/// If neither is valid, what the log seems to hold. A slot of a newer format is an error even beside a valid one: an older
/// program must not go back behind it.
pub fn choose(slot0: &[u8], slot1: &[u8]) -> Result<(Superblock, usize), SuperError> {
    match (decode(slot0), decode(slot1)) {
        (Err(e @ SuperError::Version { .. }), _) | (_, Err(e @ SuperError::Version { .. })) => Err(e),
        (Ok(a), Ok(b)) if b.sequence > a.sequence => Ok((b, 1)),
        (Ok(a), _) => Ok((a, 0)),
        (_, Ok(b)) => Ok((b, 1)),
        (Err(a), Err(b)) if a.weight() == 2 || b.weight() == 2 => Err(if b.weight() > a.weight() { b } else { a }),
        // Some marks stand across the slots.
        _ => {
            let mut head = slot0.to_vec();
            head.resize(SLOT_BYTES, 0);
            head.extend_from_slice(slot1);
            Err(not_ours(&head))
        }
    }
}

fn not_ours(head: &[u8]) -> SuperError {
    if head.iter().all(|b| *b == 0) {
        return SuperError::Blank;
    }
    let shown = head.iter().position(|b| *b != 0).unwrap_or(0) / 16 * 16;
    let hex: Vec<String> = head[shown..].iter().take(16).map(|b| format!("{b:02x}")).collect();
    let place = if shown == 0 { String::new() } else { format!(" (at byte {shown})") };
    let looks_like = looks_like(head).unwrap_or("something unknown");
    SuperError::Foreign { looks_like, first_bytes: hex.join(" ") + &place }
}

/// What the first bytes of a file or device look like, if it is something known: for messages, and for `create` to refuse
/// what is in use. 128 KiB are enough for every mark in the table; what is not in it may be of worth too.
pub fn looks_like(head: &[u8]) -> Option<&'static str> {
    const MARKS: [(usize, &[u8], &str); 19] = [
        (0, &MAGIC, "an understudy log"),
        (0, &super::batch::MAGIC, "an understudy history, bitmap or salvage"),
        (1080, b"\x53\xef", "an ext2, ext3 or ext4 filesystem"),
        (0, b"XFSB", "an XFS filesystem"),
        (65600, b"_BHRfS_M", "a btrfs filesystem"),
        (0, b"LUKS\xba\xbe", "a LUKS encrypted device"),
        (0, b"LABELONE", "an LVM physical volume"),
        (512, b"LABELONE", "an LVM physical volume"),
        (1024, b"LABELONE", "an LVM physical volume"),
        (1536, b"LABELONE", "an LVM physical volume"),
        // Meta data of 8.0 to 9.x; the last byte is their version.
        (60, b"\x83\x74\x02\x6b", "DRBD meta data"),
        (60, b"\x83\x74\x02\x6c", "DRBD meta data"),
        (60, b"\x83\x74\x02\x6d", "DRBD meta data"),
        (4096, b"\xfc\x4e\x2b\xa9", "a member of a Linux software RAID"),
        (4086, b"SWAPSPACE2", "a swap area"),
        (32769, b"CD001", "an ISO 9660 image"),
        (512, b"EFI PART", "a GPT partition table"),
        (4096, b"EFI PART", "a GPT partition table"),
        // Last, because other things carry it too.
        (510, b"\x55\xaa", "an MBR partition table or a boot sector"),
    ];
    let found = |(at, mark, _): &&(usize, &[u8], &str)| head.get(*at..*at + mark.len()) == Some(*mark);
    MARKS.iter().find(found).map(|(_, _, name)| *name)
}

#[cfg(test)]
pub mod tests;
