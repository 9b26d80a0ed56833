//! Questions and answers as bytes, on connections of their own: a node's sessions end whenever its role changes, and these must not.
//! Pure, no I/O; nothing that comes in is trusted.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `USTV` |
//! | 4 | 2 | version, 1 |
//! | 6 | 2 | kind of message: its place in [`Frame`], from 1 |
//! | 8 | 4 | bytes of the body that follows, up to [`MAX_BODY`] |
//! | 12 | 4 | CRC-32 of the 12 bytes before it and of the body |

use crate::core::hello::Charter;
use crate::core::register::{Answer, Entry, Question, Said, Voter, VoterId};
use bincode::{Decode, Encode};

/// The first bytes of a voter's connection, which tell it from a session of nodes.
pub const MAGIC: [u8; 4] = *b"USTV";
/// The version of this protocol.
pub const VERSION: u16 = 1;
/// Bytes of a frame's header.
pub const HEADER: usize = 16;
/// Bytes of a body, at most: an answer with an entry of 16 members and 31 voters of the longest names has about 8 KiB.
pub const MAX_BODY: usize = 16 << 10;

const MAX_NAME: usize = 64;
const MAX_MEMBERS: usize = 16;
const MAX_VOTERS: usize = 32;
/// Bytes of a refusal.
const MAX_WORDS: usize = 1 << 10;

/// Who asks, and whom: the first frame of whoever connects.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    pub resource: String,
    /// The name of the voter that is meant.
    pub voter: String,
    /// The node that asks.
    pub node: String,
    /// The id of the asking node's own voter.
    pub own: VoterId,
}

/// A voter as it is, without a question.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Seen {
    /// None where it has no vote of this resource.
    pub id: Option<VoterId>,
    /// Version of the charter that it accepted last, 0 for none.
    pub version: u64,
}

/// Everything that is said on a connection. The asker begins with `Hello`; each `Question` is answered by an `Answer`, each `Look` by `Seen`,
/// in their order; a `Refused` is the last that a voter says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Hello(Hello),
    Question(Question),
    Answer(Answer),
    Look,
    Seen(Seen),
    Refused(String),
}

/// Why bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error(
        "these bytes do not begin a voter's connection (first four: {0:08x}): is something else connecting to this port?"
    )]
    Magic(u32),
    #[error(
        "the other side speaks version {0} of the voters' protocol, and this program version {VERSION}: run the same release everywhere"
    )]
    Version(u16),
    #[error("the frame is of kind {0}, which is unknown")]
    Kind(u16),
    #[error("the frame has {0} bytes; at most {MAX_BODY} are allowed")]
    Length(usize),
    #[error("the frame is damaged (its checksum does not match)")]
    Checksum,
    #[error("the frame cannot be decoded: {0}")]
    Body(String),
    #[error("the frame makes no sense: {0}")]
    Sense(&'static str),
}

/// What a header says of the body behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    kind: u16,
    pub body: usize,
    crc: u32,
    /// Checksum of the header's own part.
    begun: u32,
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MAX_BODY>()
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// If it is foreign, of another version, or announces too much.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Header, FrameError> {
        let [m0, m1, m2, m3, v0, v1, k0, k1, b0, b1, b2, b3, c0, c1, c2, c3] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(FrameError::Magic(u32::from_be_bytes([m0, m1, m2, m3])));
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let body = u32::from_le_bytes([b0, b1, b2, b3]) as usize;
        if body > MAX_BODY {
            return Err(FrameError::Length(body));
        }
        let kind = u16::from_le_bytes([k0, k1]);
        Ok(Header { kind, body, crc: u32::from_le_bytes([c0, c1, c2, c3]), begun: crc32fast::hash(&bytes[..12]) })
    }
}

fn crc(begun: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(begun);
    hasher.update(body);
    hasher.finalize()
}

/// The bytes of a frame.
///
/// # Errors
/// If it is too long.
pub fn encode(frame: &Frame) -> Result<Vec<u8>, FrameError> {
    let (kind, body) = match frame {
        Frame::Hello(hello) => (1, bincode::encode_to_vec(hello, config())),
        Frame::Question(question) => (2, bincode::encode_to_vec(question, config())),
        Frame::Answer(answer) => (3, bincode::encode_to_vec(answer, config())),
        Frame::Look => (4, Ok(Vec::new())),
        Frame::Seen(seen) => (5, bincode::encode_to_vec(seen, config())),
        Frame::Refused(why) => {
            let end = (0..=why.len().min(MAX_WORDS)).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0);
            (6, bincode::encode_to_vec(&why[..end], config()))
        }
    };
    let body = body.map_err(|e| FrameError::Body(e.to_string()))?;
    if body.len() > MAX_BODY {
        return Err(FrameError::Length(body.len()));
    }
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&u16::to_le_bytes(kind));
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let checksum = crc(crc32fast::hash(&bytes), &body);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// The frame that `header` announces, with its body received in full.
///
/// # Errors
/// Whatever is wrong with it; the connection cannot be trusted any more.
pub fn decode(header: &Header, body: &[u8]) -> Result<Frame, FrameError> {
    if body.len() != header.body {
        return Err(FrameError::Length(body.len()));
    }
    if crc(header.begun, body) != header.crc {
        return Err(FrameError::Checksum);
    }
    let frame = match header.kind {
        1 => Frame::Hello(whole(body)?),
        2 => Frame::Question(whole(body)?),
        3 => Frame::Answer(whole(body)?),
        4 if body.is_empty() => Frame::Look,
        4 => return Err(FrameError::Length(body.len())),
        5 => Frame::Seen(whole(body)?),
        6 => Frame::Refused(whole(body)?),
        kind => return Err(FrameError::Kind(kind)),
    };
    check(&frame).map_err(FrameError::Sense)?;
    Ok(frame)
}

fn whole<T: Decode<()>>(body: &[u8]) -> Result<T, FrameError> {
    let (value, used) = bincode::decode_from_slice(body, config()).map_err(|e| FrameError::Body(e.to_string()))?;
    if used == body.len() { Ok(value) } else { Err(FrameError::Body(format!("{} bytes too many", body.len() - used))) }
}

fn check(frame: &Frame) -> Result<(), &'static str> {
    match frame {
        Frame::Hello(hello) => {
            let named = [&hello.resource, &hello.voter, &hello.node];
            // They name files, too.
            if named.into_iter().all(|name| crate::config::name_is_good(name)) {
                Ok(())
            } else {
                Err("a name that is none")
            }
        }
        Frame::Question(question) => match &question.accept {
            Some(entry) if entry.charter.generation.0 != question.generation => Err("an entry of another generation"),
            Some(entry) => check_entry(entry),
            None => Ok(()),
        },
        Frame::Answer(Answer { said: Said::Promised(Some((_, entry))), .. }) => check_entry(entry),
        Frame::Refused(why) if why.len() > MAX_WORDS => Err("too many words"),
        _ => Ok(()),
    }
}

fn check_entry(entry: &Entry) -> Result<(), &'static str> {
    let Charter { active, in_sync, heir, .. } = &entry.charter;
    let names = |voters: &[Voter]| voters.len() <= MAX_VOTERS && voters.iter().all(|v| v.name.len() <= MAX_NAME);
    let short = |name: &Option<String>| name.as_ref().is_none_or(|n| n.len() <= MAX_NAME);
    let members = in_sync.len() <= MAX_MEMBERS && in_sync.iter().all(|m| m.node.len() <= MAX_NAME);
    if members && short(active) && short(heir) && names(&entry.voters) && names(&entry.former) {
        Ok(())
    } else {
        Err("an entry with too many members or voters, or too long a name")
    }
}
