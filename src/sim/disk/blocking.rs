//! The same disk as recovery sees it: one blocking call after the other.

use super::{EIO, PAGE, SECTOR, SimDisk, part::Version, versions};
use crate::buf::Payload;
use crate::core::{BlockingDisk, IoError, IoOp, Part};

/// Far more calls than any recovery makes.
const ENDLESS: u64 = 200_000;

/// Blocking access to a disk, which may end after some calls: the machine went down in mid-recovery.
pub struct Blocking<'a> {
    pub disk: &'a mut SimDisk,
    /// Calls that still succeed.
    pub calls: Option<u64>,
}

impl Blocking<'_> {
    fn call(&mut self, what: &str, part: Part, offset: u64, length: u64) -> Result<(), IoError> {
        let grain = if matches!(part, Part::Store(_)) { SECTOR } else { PAGE };
        assert!(
            offset.is_multiple_of(grain) && length.is_multiple_of(grain),
            "blocking {what} of {part:?} at {offset}+{length} is not aligned to {grain}"
        );
        let state = self.disk.part(part);
        assert!(
            state.grows || offset + length <= state.size,
            "blocking {what} of {part:?} at {offset}+{length} past its end"
        );
        self.disk.recovering += 1;
        assert!(self.disk.recovering < ENDLESS, "recovery runs in circles: it has read and written {ENDLESS} times");
        match &mut self.calls {
            Some(0) => Err(IoError { errno: EIO }),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn put(&mut self, part: Part, changed: Vec<(u64, Version)>) {
        self.disk.seq += 1;
        let state = self.disk.part(part);
        for (number, version) in changed {
            state.wrote(number, &version, 0xff, false);
        }
    }
}

impl BlockingDisk for Blocking<'_> {
    fn read(&mut self, part: Part, offset: u64, length: u64) -> Result<Payload, IoError> {
        self.call("read", part, offset, length)?;
        Ok(self.disk.peek(part, offset, length))
    }

    fn write(&mut self, part: Part, offset: u64, bytes: &Payload) -> Result<(), IoError> {
        self.call("write", part, offset, bytes.len() as u64)?;
        let op = IoOp::Write { offset, bufs: vec![bytes.clone()], sync: false };
        self.put(part, versions(&op, self.disk.seq));
        self.disk.part(part).grew(offset + bytes.len() as u64, false);
        Ok(())
    }

    fn zero(&mut self, part: Part, offset: u64, length: u64) -> Result<(), IoError> {
        self.call("zero", part, offset, length)?;
        self.put(part, versions(&IoOp::Zero { offset, length, discard: true }, self.disk.seq));
        Ok(())
    }

    fn flush(&mut self, part: Part) -> Result<(), IoError> {
        self.call("flush", part, 0, 0)?;
        let seq = self.disk.seq;
        let state = self.disk.part(part);
        state.flushed(seq, state.size, None);
        Ok(())
    }

    fn size(&mut self, part: Part) -> Result<u64, IoError> {
        self.call("size", part, 0, 0)?;
        Ok(self.disk.part(part).size)
    }

    fn truncate(&mut self, part: Part, length: u64) -> Result<(), IoError> {
        self.call("truncate", part, 0, length)?;
        self.disk.part(part).truncated(length);
        Ok(())
    }
}
