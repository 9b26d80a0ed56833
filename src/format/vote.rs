//! A voter's file: what it must not forget (C7). Two slots that hold the same. Both are written and flushed, one after the other, before an
//! answer is sent: so a torn write leaves the other slot as it was, and rot in one slot forgets nothing.

use super::{BLOCK, crc_without, le};
use crate::core::register::Vote;
use bincode::{Decode, Encode};

/// First bytes of a slot.
pub const MAGIC: [u8; 8] = *b"USTDYVOT";
/// The version of the format.
pub const VERSION: u16 = 1;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 16 << 10;
/// Where the slots are in the file, in bytes.
pub const SLOT_OFFSETS: [u64; 2] = [0, SLOT_BYTES as u64];
/// Bytes of the file.
pub const FILE_BYTES: usize = 2 * SLOT_BYTES;

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
const _: () = assert!(SLOT_BYTES.is_multiple_of(BLOCK));

fn bincode_config() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<SLOT_BYTES>()
}

/// A slot's contents.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VoteSlot {
    /// Counts what was written: the newer slot has the larger one. Stays the first field in every version.
    pub sequence: u64,
    /// The resource's name.
    pub resource: String,
    /// The voter's name, as the configuration has it.
    pub voter: String,
    pub vote: Vote,
}

/// Why a file holds no vote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VoteError {
    #[error("it has format version {version}, and this program knows version {VERSION}: use a newer program")]
    Version { version: u16 },
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    #[error("what it is to hold would take {bytes} bytes, and a slot has {SLOT_BYTES}")]
    TooLarge { bytes: usize },
    #[error("what it is to hold cannot be encoded: {0}")]
    Encode(String),
}

/// The bytes of a slot, all of them.
///
/// # Errors
/// If a slot has no room for it.
pub fn encode(slot: &VoteSlot) -> Result<Vec<u8>, VoteError> {
    let body = bincode::encode_to_vec(slot, bincode_config()).map_err(|e| VoteError::Encode(e.to_string()))?;
    let end = at::BODY + body.len();
    if end > SLOT_BYTES {
        return Err(VoteError::TooLarge { bytes: end });
    }
    let mut bytes = vec![0; SLOT_BYTES];
    le::put(&mut bytes, at::MAGIC, MAGIC);
    le::put(&mut bytes, at::VERSION, VERSION.to_le_bytes());
    le::put(&mut bytes, at::BODY_BYTES, (body.len() as u32).to_le_bytes());
    bytes[at::BODY..end].copy_from_slice(&body);
    let crc = crc_without(&bytes, at::CRC);
    le::put(&mut bytes, at::CRC, crc.to_le_bytes());
    Ok(bytes)
}

/// Reads a slot. Nothing in the bytes is trusted.
///
/// # Errors
/// All but those of [`encode`].
pub fn decode(slot: &[u8]) -> Result<VoteSlot, VoteError> {
    if slot.len() != SLOT_BYTES || slot[at::MAGIC..at::MAGIC + MAGIC.len()] != MAGIC {
        return Err(VoteError::Damaged("a slot does not begin as it must"));
    }
    if le::u32(slot, at::CRC) != crc_without(slot, at::CRC) {
        return Err(VoteError::Damaged("the checksum of a slot is wrong"));
    }
    let version = le::u16(slot, at::VERSION);
    if version != VERSION {
        return Err(VoteError::Version { version });
    }
    let end = (at::BODY).saturating_add(le::u32(slot, at::BODY_BYTES) as usize);
    let body = slot.get(at::BODY..end).ok_or(VoteError::Damaged("a slot is longer than it can be"))?;
    let senseless = VoteError::Damaged("the contents of a slot make no sense");
    match bincode::decode_from_slice::<VoteSlot, _>(body, bincode_config()) {
        Ok((slot, used)) if used == body.len() => Ok(slot),
        _ => Err(senseless),
    }
}

/// The newest slot of a file, and which one it is.
///
/// # Errors
/// If neither is valid. A slot of a newer format is an error even beside a valid one: an older program must not go back behind it.
pub fn choose(file: &[u8]) -> Result<(VoteSlot, usize), VoteError> {
    if file.len() != FILE_BYTES {
        return Err(VoteError::Damaged("it has not the length of a vote"));
    }
    let (first, second) = file.split_at(SLOT_BYTES);
    match (decode(first), decode(second)) {
        (Err(e @ VoteError::Version { .. }), _) | (_, Err(e @ VoteError::Version { .. })) => Err(e),
        (Ok(a), Ok(b)) if a.sequence == b.sequence && a != b => {
            Err(VoteError::Damaged("its two slots contradict each other"))
        }
        (Ok(a), Ok(b)) if b.sequence > a.sequence => Ok((b, 1)),
        (Ok(a), _) => Ok((a, 0)),
        (_, Ok(b)) => Ok((b, 1)),
        (Err(e), Err(_)) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::hello::{Charter, Member};
    use crate::core::register::{Ballot, Entry, Voter, VoterId};
    use crate::core::{Incarnation, Lsn};

    fn longest() -> VoteSlot {
        let name = |i: usize| format!("{i:064}");
        let voters: Vec<Voter> = (0..31).map(|i| Voter { name: name(i), id: VoterId(u128::MAX) }).collect();
        let in_sync = (0..16).map(|i| Member { node: name(i), incarnation: Incarnation(u128::MAX) }).collect();
        let charter = Charter {
            generation: (u64::MAX, u128::MAX),
            term: u64::MAX,
            version: u64::MAX,
            active: Some(name(1)),
            in_sync,
            heir: Some(name(2)),
            released: Some(Lsn(u64::MAX)),
        };
        let entry = Entry { charter, voters: voters.clone(), former: voters, maintenance: true };
        let ballot = Ballot { number: u64::MAX, by: u128::MAX };
        let vote = Vote { id: VoterId(7), generation: 3, promised: ballot, accepted: Some((ballot, entry)) };
        VoteSlot { sequence: 9, resource: name(3), voter: name(4), vote }
    }

    fn file(a: &VoteSlot, b: &VoteSlot) -> Vec<u8> {
        [encode(a).unwrap(), encode(b).unwrap()].concat()
    }

    #[test]
    fn the_longest_names_that_there_can_be_have_room() {
        let slot = longest();
        assert_eq!(decode(&encode(&slot).unwrap()), Ok(slot));
    }

    #[test]
    fn each_flipped_bit_is_seen() {
        let bytes = encode(&longest()).unwrap();
        for at in (0..SLOT_BYTES).step_by(7).chain(0..80) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(decode(&damaged).is_err(), "byte {at}");
        }
        assert!(decode(&bytes[..SLOT_BYTES - 1]).is_err());
        assert!(decode(&[]).is_err());
    }

    #[test]
    fn the_newer_slot_counts_and_a_damaged_one_does_not() {
        let (old, new) = (longest(), VoteSlot { sequence: 10, ..longest() });
        assert_eq!(choose(&file(&old, &new)).unwrap(), (new.clone(), 1));
        assert_eq!(choose(&file(&new, &old)).unwrap(), (new.clone(), 0));
        let mut torn = file(&new, &old);
        torn[5000] ^= 1;
        assert_eq!(choose(&torn).unwrap(), (old.clone(), 1));
        torn[SLOT_BYTES + 5] ^= 1;
        assert!(matches!(choose(&torn), Err(VoteError::Damaged(_))));
        let other = VoteSlot { vote: Vote::default(), ..longest() };
        assert!(matches!(choose(&file(&old, &other)), Err(VoteError::Damaged(_))), "one sequence, two contents");
        assert!(matches!(choose(&[]), Err(VoteError::Damaged(_))));
    }

    #[test]
    fn a_newer_format_is_refused_even_beside_a_valid_slot() {
        let mut newer = file(&longest(), &longest());
        newer[at::VERSION] = 2;
        let crc = crc_without(&newer[..SLOT_BYTES], at::CRC);
        le::put(&mut newer, at::CRC, crc.to_le_bytes());
        assert_eq!(choose(&newer), Err(VoteError::Version { version: 2 }));
    }
}
