//! Blocking access, for create and recovery.

use super::Disk;
use crate::buf::Payload;
use crate::core::{BlockingDisk, IoError, Part};

#[cfg(test)]
use super::record::Change;

impl BlockingDisk for Disk {
    fn read(&mut self, part: Part, offset: u64, length: u64) -> Result<Payload, IoError> {
        match self.existing(part)? {
            Some(file) => file.read(offset, length),
            None => Ok(crate::buf::BufMut::zeroed(length as usize).freeze()),
        }
    }

    fn write(&mut self, part: Part, offset: u64, bytes: &Payload) -> Result<(), IoError> {
        #[cfg(test)]
        self.recorder.blocking(part, Change::Write { offset, bytes: bytes.to_vec(), sync: false });
        self.for_writing(part)?.write(offset, std::slice::from_ref(bytes), false)
    }

    fn zero(&mut self, part: Part, offset: u64, length: u64) -> Result<(), IoError> {
        #[cfg(test)]
        self.recorder.blocking(part, Change::Zero { offset, length, discard: true });
        match self.existing(part)? {
            Some(file) => file.zero(offset, length, true),
            None => Ok(()),
        }
    }

    fn flush(&mut self, part: Part) -> Result<(), IoError> {
        #[cfg(test)]
        self.recorder.blocking(part, Change::Flush);
        self.existing(part)?.map_or(Ok(()), |file| file.flush())
    }

    fn size(&mut self, part: Part) -> Result<u64, IoError> {
        self.existing(part)?.map_or(Ok(0), |file| file.extent())
    }

    fn truncate(&mut self, part: Part, length: u64) -> Result<(), IoError> {
        #[cfg(test)]
        self.recorder.blocking(part, Change::Truncate { length });
        match self.existing(part)? {
            Some(file) => file.cut(length).and_then(|()| file.flush()),
            None => Ok(()),
        }
    }
}
