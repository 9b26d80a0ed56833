//! Requests of the transmission phase: parsed, checked against the export, and turned into what the core is asked.

use super::proto::{Fields, MAX_PAYLOAD, REQUEST_MAGIC, cmd, cmd_flag, errno};
use crate::buf::Payload;
use crate::core::{ClientOp, VolumeId};

/// A command that is answered. DISC is not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
    Flush,
    Trim,
    WriteZeroes,
    BlockStatus,
}

impl Command {
    fn from_number(number: u16) -> Option<Command> {
        Some(match number {
            cmd::READ => Command::Read,
            cmd::WRITE => Command::Write,
            cmd::FLUSH => Command::Flush,
            cmd::TRIM => Command::Trim,
            cmd::WRITE_ZEROES => Command::WriteZeroes,
            cmd::BLOCK_STATUS => Command::BlockStatus,
            _ => return None,
        })
    }

    /// Whether it changes the volume.
    pub fn modifies(self) -> bool {
        matches!(self, Command::Write | Command::Trim | Command::WriteZeroes)
    }

    /// FUA is valid on every command, by the protocol, and means nothing on those that do not write.
    fn valid_flags(self, structured: bool) -> u16 {
        cmd_flag::FUA
            | match self {
                Command::Read if structured => cmd_flag::DF,
                Command::WriteZeroes => cmd_flag::NO_HOLE,
                Command::BlockStatus => cmd_flag::REQ_ONE,
                _ => 0,
            }
    }
}

/// What a reply needs to know of its request. The driver keeps it until the core has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) flags: u16,
    pub(super) command: Command,
    /// Whether the client takes structured replies.
    pub(super) structured: bool,
}

impl Ticket {
    /// The client's number for the request. Nothing makes a client choose distinct ones: not a key for the driver.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// What was asked.
    pub fn command(&self) -> Command {
        self.command
    }

    /// Bytes that the request is about; for a flush whatever the client sent.
    pub fn length(&self) -> u32 {
        self.length
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A request that passed all checks.
#[derive(Clone, Debug)]
pub struct Request {
    /// To be handed back with the answer.
    pub ticket: Ticket,
    /// What the core is asked. Its `VolumeId` is the index of the export.
    pub op: ClientOp,
}

/// The export that a session has chosen, and what the negotiation allows on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub volume: VolumeId,
    pub size: u64,
    pub block: u64,
    pub read_only: bool,
    pub structured: bool,
    /// `base:allocation` was selected for this export.
    pub allocation: bool,
}

/// Why a request was refused before the core saw it. The text is sent to clients that take structured replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not a command of the protocol, or one that was not advertised.
    #[error("command {0} is not served here")]
    UnknownCommand(u16),
    /// A flag that the command does not have, or that was not advertised.
    #[error("flags {flags:#x} are not valid for {command:?} here; valid are {valid:#x}")]
    Flags { command: Command, flags: u16, valid: u16 },
    /// The export is read-only.
    #[error("this export is read-only")]
    ReadOnly,
    /// BLOCK_STATUS without SET_META_CONTEXT for this export.
    #[error("no metadata context was selected for this export: select base:allocation before the transmission phase")]
    NoContext,
    /// Its effect is unspecified by the protocol.
    #[error("the length is 0")]
    Empty,
    /// More than one read or write may carry.
    #[error("{length} bytes are more than the {MAX_PAYLOAD} that a request may carry")]
    TooLong { length: u32 },
    /// Offset or length breaks the announced block size.
    #[error("offset {offset} and length {length} must be multiples of the block size, {block} bytes")]
    Misaligned { offset: u64, length: u32, block: u64 },
    /// A write past the end.
    #[error("{length} bytes at {offset} reach past the end of the export, {size} bytes: no space to write them")]
    NoSpace { offset: u64, length: u32, size: u64 },
    /// Anything else past the end.
    #[error("{length} bytes at {offset} reach past the end of the export, {size} bytes")]
    OutOfRange { offset: u64, length: u32, size: u64 },
}

impl RequestError {
    /// The protocol's error number.
    pub(super) fn errno(&self) -> u32 {
        match self {
            RequestError::ReadOnly => errno::EPERM,
            RequestError::NoSpace { .. } => errno::ENOSPC,
            _ => errno::EINVAL,
        }
    }
}

/// The 28 bytes before every request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    flags: u16,
    number: u16,
    pub cookie: u64,
    offset: u64,
    length: u32,
}

/// What a request's head leads to.
pub(super) enum Step {
    /// Complete: for the core.
    Request(Request),
    /// A good write; its payload follows.
    Payload(Ticket),
    /// To be answered with the error. `skip` bytes of payload follow that nobody wants; with `close` they are not awaited.
    Refused { error: RequestError, skip: u32, close: bool },
    /// DISC: the client is done.
    Disconnect,
}

impl Head {
    /// `None` if it does not begin with a request's magic number (or is short): the stream makes no sense any more.
    pub fn parse(bytes: &[u8]) -> Option<Head> {
        let mut fields = Fields(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Head {
            flags: fields.u16()?,
            number: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        })
    }

    /// Decides what becomes of the request.
    pub fn admit(&self, to: &Bound) -> Step {
        if self.number == cmd::DISC {
            return Step::Disconnect;
        }
        match self.check(to) {
            Ok(ticket) if ticket.command == Command::Write => Step::Payload(ticket),
            Ok(ticket) => Step::Request(Request { ticket, op: ticket.op(to.volume, Payload::empty) }),
            Err(error) => {
                // Only WRITE has a payload; of an unknown command none is known, and the next head's magic will tell.
                let skip = if self.number == cmd::WRITE { self.length } else { 0 };
                Step::Refused { error, skip, close: skip > MAX_PAYLOAD }
            }
        }
    }

    fn check(&self, to: &Bound) -> Result<Ticket, RequestError> {
        let &Head { flags, number, cookie, offset, length } = self;
        let command = Command::from_number(number).ok_or(RequestError::UnknownCommand(number))?;
        let valid = command.valid_flags(to.structured);
        if flags & !valid != 0 {
            return Err(RequestError::Flags { command, flags, valid });
        }
        if command.modifies() && to.read_only {
            return Err(RequestError::ReadOnly);
        }
        if command == Command::BlockStatus && !to.allocation {
            return Err(RequestError::NoContext);
        }
        if command != Command::Flush {
            self.check_range(command, to)?;
        }
        Ok(Ticket { cookie, offset, length, flags, command, structured: to.structured })
    }

    fn check_range(&self, command: Command, to: &Bound) -> Result<(), RequestError> {
        let &Head { offset, length, .. } = self;
        if length == 0 {
            return Err(RequestError::Empty);
        }
        if matches!(command, Command::Read | Command::Write) && length > MAX_PAYLOAD {
            return Err(RequestError::TooLong { length });
        }
        if offset.checked_add(u64::from(length)).is_none_or(|end| end > to.size) {
            let size = to.size;
            return Err(match command {
                Command::Write | Command::WriteZeroes => RequestError::NoSpace { offset, length, size },
                _ => RequestError::OutOfRange { offset, length, size },
            });
        }
        if !offset.is_multiple_of(to.block) || !u64::from(length).is_multiple_of(to.block) {
            return Err(RequestError::Misaligned { offset, length, block: to.block });
        }
        Ok(())
    }
}

impl Ticket {
    /// What the core is asked; `payload` is called for a write only.
    pub(super) fn op(&self, volume: VolumeId, payload: impl FnOnce() -> Payload) -> ClientOp {
        let (offset, length) = (self.offset, u64::from(self.length));
        let fua = self.has(cmd_flag::FUA);
        match self.command {
            Command::Read => ClientOp::Read { volume, offset, length },
            Command::Write => ClientOp::Write { volume, offset, payload: payload(), fua },
            Command::Flush => ClientOp::Flush { volume },
            Command::Trim => ClientOp::Discard { volume, offset, length, fua },
            Command::WriteZeroes => {
                ClientOp::Zeroes { volume, offset, length, fua, may_discard: !self.has(cmd_flag::NO_HOLE) }
            }
            Command::BlockStatus => ClientOp::Extents { volume, offset, length },
        }
    }
}
