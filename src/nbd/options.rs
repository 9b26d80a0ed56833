//! Option haggling: what a client may ask before it enters the transmission phase, and the answers.

use super::Export;
use super::proto::*;
use std::fmt::Display;

/// Options that a connection may send, besides eight for each export (clients ask for every export they were listed).
const MAX_OPTIONS: u32 = 128;

/// Characters of a client's string that an error message repeats.
const SHOWN_CHARS: usize = 64;

/// What becomes of the connection after an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Another option follows.
    Haggle,
    /// The transmission phase begins, on the export with this index.
    Transmit(usize),
    Close,
}

/// What a connection has negotiated.
#[derive(Debug)]
pub(super) struct Negotiation {
    /// The client understands replies to options.
    fixed: bool,
    no_zeroes: bool,
    /// The client takes structured replies.
    pub structured: bool,
    /// The export for which `base:allocation` was selected.
    pub allocation: Option<usize>,
    /// Options that may still come.
    left: u32,
}

/// The replies to one option.
struct Replies<'a> {
    option: u32,
    out: &'a mut Vec<u8>,
}

impl Replies<'_> {
    fn send(&mut self, kind: u32, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&self.option.to_be_bytes());
        self.out.extend_from_slice(&kind.to_be_bytes());
        // Lossless: names and descriptions come from a configuration file of far less than 4 GiB.
        self.out.extend_from_slice(&(length as u32).to_be_bytes());
        parts.iter().for_each(|part| self.out.extend_from_slice(part));
    }

    fn ack(&mut self) -> Outcome {
        self.send(rep::ACK, &[]);
        Outcome::Haggle
    }

    fn refuse(&mut self, kind: u32, text: impl Display) -> Outcome {
        self.send(kind, &[text.to_string().as_bytes()]);
        Outcome::Haggle
    }

    fn malformed(&mut self) -> Outcome {
        let option = self.option;
        self.refuse(rep::ERR_INVALID, format_args!("the data of option {option} does not have the form it should"))
    }
}

/// A client's string as a message shows it.
fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let cut: String = text.chars().take(SHOWN_CHARS).collect();
    let more = if cut.len() < text.len() { "..." } else { "" };
    format!("{cut:?}{more}")
}

impl Negotiation {
    /// From the client's flags; `None` if there are unknown ones, for which the protocol demands the connection's end.
    pub fn new(client_flags: u32, exports: usize) -> Option<Negotiation> {
        let (fixed, no_zeroes) = (u32::from(handshake::FIXED_NEWSTYLE), u32::from(handshake::NO_ZEROES));
        if client_flags & !(fixed | no_zeroes) != 0 {
            return None;
        }
        Some(Negotiation {
            fixed: client_flags & fixed != 0,
            no_zeroes: client_flags & no_zeroes != 0,
            structured: false,
            allocation: None,
            left: MAX_OPTIONS.saturating_add(u32::try_from(exports).unwrap_or(u32::MAX).saturating_mul(8)),
        })
    }

    /// Whether the data of an option is to be received at all. If not, it is skipped (or the connection ends), and `out`
    /// says why.
    pub fn announce(&mut self, option: u32, length: u32, out: &mut Vec<u8>) -> Result<(), Outcome> {
        if option != opt::EXPORT_NAME && !self.fixed {
            // It said that it understands no replies but EXPORT_NAME's.
            return Err(Outcome::Close);
        }
        let too_long = length as usize > MAX_HEAD;
        let mut replies = Replies { option, out };
        if self.left == 0 && option != opt::EXPORT_NAME {
            replies.refuse(rep::ERR_TOO_BIG, "too many options on one connection; connect anew");
            return Err(Outcome::Close);
        }
        self.left = self.left.saturating_sub(1);
        match option {
            opt::EXPORT_NAME if too_long => Err(Outcome::Close),
            _ if too_long => Err(replies.refuse(
                rep::ERR_TOO_BIG,
                format_args!("option {option} with {length} bytes of data; at most {MAX_HEAD} are taken"),
            )),
            _ => Ok(()),
        }
    }

    /// Answers an option.
    pub fn answer(&mut self, exports: &[Export], option: u32, data: &[u8], out: &mut Vec<u8>) -> Outcome {
        if option == opt::EXPORT_NAME {
            return self.export_name(exports, data, out);
        }
        let mut replies = Replies { option, out };
        match option {
            opt::ABORT => {
                replies.ack();
                Outcome::Close
            }
            opt::LIST | opt::STRUCTURED_REPLY if !data.is_empty() => replies.malformed(),
            opt::LIST => list(exports, &mut replies),
            opt::STRUCTURED_REPLY => {
                self.structured = true;
                replies.ack()
            }
            opt::INFO | opt::GO => self.info(exports, data, &mut replies),
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.meta_context(exports, data, &mut replies),
            opt::STARTTLS => replies.refuse(
                rep::ERR_UNSUP,
                "this server does not speak TLS: use a unix socket, or carry the connection in a tunnel",
            ),
            _ => replies.refuse(rep::ERR_UNSUP, format_args!("option {option} is not served here")),
        }
    }

    fn export_name(&self, exports: &[Export], name: &[u8], out: &mut Vec<u8>) -> Outcome {
        // This option has no error reply: the connection ends.
        let Some(index) = find(exports, name) else { return Outcome::Close };
        out.extend_from_slice(&exports[index].size.to_be_bytes());
        out.extend_from_slice(&self.flags(&exports[index]).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Outcome::Transmit(index)
    }

    /// The transmission flags.
    fn flags(&self, export: &Export) -> u16 {
        use transmission::*;
        let writing = if export.read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES };
        let df = if self.structured { SEND_DF } else { 0 };
        HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | writing | df
    }

    /// INFO and GO.
    fn info(&self, exports: &[Export], data: &[u8], replies: &mut Replies<'_>) -> Outcome {
        let Some((name, wanted)) = parse_info(data) else { return replies.malformed() };
        let index = match find_or_refuse(exports, name, replies) {
            Ok(index) => index,
            Err(refused) => return refused,
        };
        let export = &exports[index];
        let wants = |kind: u16| wanted.chunks_exact(2).any(|one| one == kind.to_be_bytes());
        let mut tell = |kind: u16, parts: [&[u8]; 3]| {
            replies.send(rep::INFO, &[&kind.to_be_bytes(), parts[0], parts[1], parts[2]]);
        };
        tell(info::EXPORT, [&export.size.to_be_bytes(), &self.flags(export).to_be_bytes(), &[]]);
        if wants(info::NAME) {
            tell(info::NAME, [export.name.as_bytes(), &[], &[]]);
        }
        if wants(info::DESCRIPTION) && !export.description.is_empty() {
            tell(info::DESCRIPTION, [export.description.as_bytes(), &[], &[]]);
        }
        // Asked for or not: it is enforced, and a client that did not ask may still heed it.
        let preferred = export.block.max(4096);
        tell(info::BLOCK_SIZE, [&export.block.to_be_bytes(), &preferred.to_be_bytes(), &MAX_PAYLOAD.to_be_bytes()]);
        replies.ack();
        if replies.option == opt::GO { Outcome::Transmit(index) } else { Outcome::Haggle }
    }

    /// LIST_META_CONTEXT and SET_META_CONTEXT.
    fn meta_context(&mut self, exports: &[Export], data: &[u8], replies: &mut Replies<'_>) -> Outcome {
        let set = replies.option == opt::SET_META_CONTEXT;
        if set {
            // It replaces what was selected before, also when it fails.
            self.allocation = None;
        }
        if !self.structured {
            return replies.refuse(rep::ERR_INVALID, "metadata contexts need structured replies: negotiate them first");
        }
        let Some((name, queried)) = parse_meta_context(data, set) else { return replies.malformed() };
        let index = match find_or_refuse(exports, name, replies) {
            Ok(index) => index,
            Err(refused) => return refused,
        };
        if queried {
            // In a list the id means nothing, and should be 0.
            let id = if set { ALLOCATION_ID } else { 0 };
            replies.send(rep::META_CONTEXT, &[&id.to_be_bytes(), ALLOCATION.as_bytes()]);
            if set {
                self.allocation = Some(index);
            }
        }
        replies.ack()
    }
}

fn list(exports: &[Export], replies: &mut Replies<'_>) -> Outcome {
    for export in exports {
        let length = export.name.len() as u32;
        replies.send(rep::SERVER, &[&length.to_be_bytes(), export.name.as_bytes(), export.description.as_bytes()]);
    }
    replies.ack()
}

/// The export of this name; the empty name is the first one.
fn find(exports: &[Export], name: &[u8]) -> Option<usize> {
    if name.is_empty() {
        return (!exports.is_empty()).then_some(0);
    }
    let is_it = |export: &Export| {
        [Some(&export.name), export.second_name.as_ref()].into_iter().flatten().any(|n| n.as_bytes() == name)
    };
    exports.iter().position(is_it)
}

fn find_or_refuse(exports: &[Export], name: &[u8], replies: &mut Replies<'_>) -> Result<usize, Outcome> {
    if name.len() > MAX_STRING {
        let length = name.len();
        return Err(replies.refuse(
            rep::ERR_TOO_BIG,
            format_args!("the export's name has {length} bytes; at most {MAX_STRING} are allowed"),
        ));
    }
    find(exports, name).ok_or_else(|| {
        replies.refuse(rep::ERR_UNKNOWN, format_args!("no export is called {}; ask for the list", shown(name)))
    })
}

/// The name, and the wanted kinds of information (16 bits each), of INFO and GO.
fn parse_info(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = usize::from(fields.u16()?);
    (fields.0.len() == 2 * count).then_some((name, fields.0))
}

/// The name, and whether `base:allocation` is among what is asked for. A list can ask for all contexts, or for all of a
/// namespace; a set names each.
fn parse_meta_context(data: &[u8], set: bool) -> Option<(&[u8], bool)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut queried = !set && count == 0;
    for _ in 0..count {
        // Ends early on a count that lies: each query takes at least four bytes.
        let query = fields.string()?;
        queried |= query == ALLOCATION.as_bytes() || (!set && query == b"base:");
    }
    fields.is_empty().then_some((name, queried))
}
