//! Blocking access to a node's parts, for the few moments when nothing else goes on: create, recovery, rollback.

use super::api::{IoError, Part};
use crate::buf::Payload;

/// What recovery reads and mends through. The daemon implements it with pread and pwrite, the simulator with its disk.
pub trait BlockingDisk {
    /// `length` bytes at `offset`; zeros past the end of a growing part.
    fn read(&mut self, part: Part, offset: u64, length: u64) -> Result<Payload, IoError>;
    fn write(&mut self, part: Part, offset: u64, bytes: &Payload) -> Result<(), IoError>;
    /// The range reads as zeros.
    fn zero(&mut self, part: Part, offset: u64, length: u64) -> Result<(), IoError>;
    fn flush(&mut self, part: Part) -> Result<(), IoError>;
    /// Bytes in the part; 0 for a growing part that does not exist.
    fn size(&mut self, part: Part) -> Result<u64, IoError>;
    /// Cuts a growing part to `length` bytes, durably; a part that does not exist stays so.
    fn truncate(&mut self, part: Part, length: u64) -> Result<(), IoError>;
}
