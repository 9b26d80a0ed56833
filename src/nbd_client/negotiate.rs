//! From a fresh connection to the transmission phase: fixed newstyle, GO.

use super::NbdError;
use std::io::{Read, Write};

const INIT_MAGIC: [u8; 8] = *b"NBDMAGIC";
const OPTION_MAGIC: [u8; 8] = *b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
/// Longest answer to an option that is taken, in bytes.
const ANSWER_MAX: u32 = 64 << 10;
/// Most answers to the one option.
const ANSWERS_MAX: usize = 64;

/// What a server says about an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Bytes.
    pub size: u64,
    /// Smallest block in bytes: offsets and lengths must be multiples of it.
    pub block: u32,
    /// Transmission flags as the protocol numbers them.
    pub flags: u16,
}

impl Export {
    /// Writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.flags & 1 << 1 != 0
    }

    /// A flush on one connection covers writes that completed on another.
    pub fn can_multi_conn(&self) -> bool {
        self.flags & 1 << 8 != 0
    }
}

fn receive<const N: usize>(from: &mut impl Read) -> Result<[u8; N], NbdError> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes).map_err(|e| NbdError::from_io("negotiate with the NBD server", e))?;
    Ok(bytes)
}

fn receive_u32(from: &mut impl Read) -> Result<u32, NbdError> {
    receive(from).map(u32::from_be_bytes)
}

/// Enters the transmission phase on `name`.
pub(crate) fn go(from: &mut impl Read, mut to: impl Write, name: &str) -> Result<Export, NbdError> {
    if receive(from)? != INIT_MAGIC || receive(from)? != OPTION_MAGIC {
        return Err(NbdError::Protocol { what: "its greeting is not that of a newstyle NBD server" });
    }
    let handshake = u16::from_be_bytes(receive(from)?);
    if handshake & 1 == 0 {
        return Err(NbdError::Protocol { what: "it does not offer fixed newstyle" });
    }
    let mut ask = Vec::new();
    // Our flags: fixed newstyle, and no zeroes where the server can do without.
    ask.extend_from_slice(&u32::from(handshake & 3).to_be_bytes());
    ask.extend_from_slice(&OPTION_MAGIC);
    ask.extend_from_slice(&OPT_GO.to_be_bytes());
    // Names are short, or the server refuses them: its own limit is 4096.
    let length = name.len() as u32;
    ask.extend_from_slice(&(length + 8).to_be_bytes());
    ask.extend_from_slice(&length.to_be_bytes());
    ask.extend_from_slice(name.as_bytes());
    ask.extend_from_slice(&1u16.to_be_bytes());
    ask.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    to.write_all(&ask).map_err(|e| NbdError::from_io("negotiate with the NBD server", e))?;
    answers(from, name)
}

fn answers(from: &mut impl Read, name: &str) -> Result<Export, NbdError> {
    let mut export = Export { size: 0, block: 1, flags: 0 };
    let mut described = false;
    for _ in 0..ANSWERS_MAX {
        let magic = u64::from_be_bytes(receive(from)?);
        let (option, kind, length) = (receive_u32(from)?, receive_u32(from)?, receive_u32(from)?);
        if magic != OPTION_REPLY_MAGIC || option != OPT_GO || length > ANSWER_MAX {
            return Err(NbdError::Protocol { what: "its answer to GO is none" });
        }
        let mut data = vec![0; length as usize];
        from.read_exact(&mut data).map_err(|e| NbdError::from_io("negotiate with the NBD server", e))?;
        match kind {
            REP_ACK if described => return Ok(export),
            REP_ACK => return Err(NbdError::Protocol { what: "it accepted GO without describing the export" }),
            REP_INFO => described |= describe(&mut export, &data),
            kind if kind & REP_ERROR != 0 => {
                let said = String::from_utf8_lossy(&data).into_owned();
                let reason = if said.is_empty() { format!("error {}", kind & !REP_ERROR) } else { said };
                return Err(NbdError::Refused { export: name.to_string(), reason });
            }
            _ => {}
        }
    }
    Err(NbdError::Protocol { what: "its answers to GO have no end" })
}

/// Takes in one piece of information; whether it was the one that describes the export.
fn describe(export: &mut Export, data: &[u8]) -> bool {
    let Some((kind, rest)) = data.split_first_chunk().map(|(k, rest)| (u16::from_be_bytes(*k), rest)) else {
        return false;
    };
    match (kind, rest.split_first_chunk::<8>(), rest.split_first_chunk::<4>()) {
        (INFO_EXPORT, Some((size, flags)), _) if flags.len() == 2 => {
            export.size = u64::from_be_bytes(*size);
            export.flags = u16::from_be_bytes([flags[0], flags[1]]);
            true
        }
        (INFO_BLOCK_SIZE, _, Some((block, _))) => {
            export.block = u32::from_be_bytes(*block).max(1);
            false
        }
        _ => false,
    }
}
