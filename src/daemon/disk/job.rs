//! An I/O of the core on its way: what goes on the ring next, until it is done.

use super::file::{ATTEMPTS, IoMode, PartFile, RESERVE, progress, zeros};
use crate::buf::BufMut;
use crate::core::{IoData, IoError, IoId, IoOp};
use crate::daemon::ring::Op;
use std::rc::Rc;

/// Zeros are written with at most this many buffers at a time (64 MiB).
const ZERO_BUFS: usize = 64;

/// An I/O that has not ended.
pub struct Job {
    id: IoId,
    file: Rc<PartFile>,
    work: Work,
    /// Attempts that were told to come again.
    attempts: u32,
}

enum Work {
    Read,
    Write,
    /// Also the end of a truncation.
    Flush,
    /// By fallocate.
    Zero {
        offset: u64,
        length: u64,
        discard: bool,
    },
    /// By fallocate.
    Reserve {
        length: u64,
    },
    /// By writing: what is left after the write in flight.
    WriteZeros {
        offset: u64,
        length: u64,
    },
}

/// What is to be done next.
pub enum Step {
    /// Put the operation on the ring, and hand its completion to [`Job::advance`].
    Submit(Job, Op),
    Done(IoId, Result<IoData, IoError>),
}

/// The result of an I/O on a growing part that does not exist.
pub(super) fn on_nothing(op: &IoOp) -> Result<IoData, IoError> {
    Ok(match op {
        IoOp::Read { length, .. } => IoData::Bytes(BufMut::zeroed(*length as usize).freeze()),
        IoOp::NextData { .. } => IoData::Extent(None),
        _ => IoData::Nothing,
    })
}

impl Job {
    pub(super) fn start(id: IoId, file: Rc<PartFile>, op: IoOp) -> Step {
        if file.mode() == IoMode::Memory {
            return Step::Done(id, at_once(&file, op));
        }
        if let IoOp::Read { offset, length } = op
            && let Some(bytes) = file.read_cached(offset, length)
        {
            return Step::Done(id, Ok(IoData::Bytes(bytes)));
        }
        let fd = file.fd().clone();
        let (work, op) = match op {
            IoOp::Read { offset, length } => {
                (Work::Read, Op::Read { file: fd, offset, buf: BufMut::uninit(length as usize), from: 0 })
            }
            IoOp::Write { offset, bufs, sync } => (Work::Write, Op::Write { file: fd, offset, bufs, skip: 0, sync }),
            IoOp::Flush => (Work::Flush, Op::Fdatasync { file: fd }),
            IoOp::Zero { offset, length, discard } => return Job::zero(id, file, offset, length, discard),
            IoOp::Reserve { length } => {
                // To find out by trying would take all the room there is, if only for a moment.
                match file.room(length) {
                    Ok(room) if room >= length => {}
                    other => return Step::Done(id, other.map(IoData::Room)),
                }
                let op = Op::Fallocate { file: fd, mode: RESERVE.bits(), offset: 0, length: length.max(1) };
                (Work::Reserve { length }, op)
            }
            IoOp::NextData { offset } => return Step::Done(id, file.next_data(offset).map(IoData::Extent)),
            IoOp::Truncate { length } => match file.cut(length) {
                Ok(()) => (Work::Flush, Op::Fdatasync { file: fd }),
                Err(e) => return Step::Done(id, Err(e)),
            },
        };
        Step::Submit(Job { id, file, work, attempts: 0 }, op)
    }

    fn zero(id: IoId, file: Rc<PartFile>, offset: u64, length: u64, discard: bool) -> Step {
        if length == 0 {
            return Step::Done(id, Ok(IoData::Nothing));
        }
        match file.zero_mode(discard) {
            Some(mode) => {
                let op = Op::Fallocate { file: file.fd().clone(), mode: mode.bits(), offset, length };
                let work = Work::Zero { offset, length, discard };
                Step::Submit(Job { id, file, work, attempts: 0 }, op)
            }
            None => Job { id, file, work: Work::WriteZeros { offset, length }, attempts: 0 }.write_zeros(),
        }
    }

    /// Writes the next zeros of [`Work::WriteZeros`], or ends.
    fn write_zeros(mut self) -> Step {
        let Work::WriteZeros { offset, length } = self.work else { unreachable!("called for this work alone") };
        if length == 0 {
            return Step::Done(self.id, Ok(IoData::Nothing));
        }
        let bufs = zeros(length, ZERO_BUFS);
        let now: u64 = bufs.iter().map(|b| b.len() as u64).sum();
        self.work = Work::WriteZeros { offset: offset + now, length: length - now };
        let op = Op::Write { file: self.file.fd().clone(), offset, bufs, skip: 0, sync: false };
        Step::Submit(self, op)
    }

    /// Takes the completion of the operation that it had put on the ring.
    pub fn advance(mut self, op: Op, result: Result<usize, i32>) -> Step {
        match result {
            Err(libc::EINTR | libc::EAGAIN) if self.attempts < ATTEMPTS => {
                self.attempts += 1;
                Step::Submit(self, op)
            }
            Err(libc::EOPNOTSUPP) if matches!(self.work, Work::Zero { .. }) => {
                let Work::Zero { offset, length, discard } = self.work else { unreachable!("just matched") };
                self.file.zero_refused(discard);
                Job::zero(self.id, self.file, offset, length, discard)
            }
            Err(errno) if matches!(self.work, Work::Reserve { .. }) => {
                let Work::Reserve { length } = self.work else { unreachable!("just matched") };
                Step::Done(self.id, self.file.room_instead(length, errno).map(IoData::Room))
            }
            Err(errno) => Step::Done(self.id, Err(IoError { errno })),
            Ok(n) => self.moved(op, n),
        }
    }

    /// The operation has moved `n` bytes.
    fn moved(self, op: Op, n: usize) -> Step {
        match op {
            Op::Read { file, offset, mut buf, from } => {
                let next = if n == buf.len() - from { buf.len() } else { progress(from, n) };
                if next == from {
                    let result = self.file.end_reached(&mut buf, from + n);
                    return Step::Done(self.id, result.map(|()| IoData::Bytes(buf.freeze())));
                }
                if next == buf.len() {
                    return Step::Done(self.id, Ok(IoData::Bytes(buf.freeze())));
                }
                let offset = offset + (next - from) as u64;
                Step::Submit(self, Op::Read { file, offset, buf, from: next })
            }
            Op::Write { file, offset, bufs, skip, sync } => {
                let total: u64 = bufs.iter().map(|b| b.len() as u64).sum();
                let moved = if skip + n as u64 == total { n } else { progress(0, n) } as u64;
                match (skip + moved == total, moved, &self.work) {
                    (true, _, Work::WriteZeros { .. }) => self.write_zeros(),
                    (true, _, _) => Step::Done(self.id, Ok(IoData::Nothing)),
                    (false, 0, _) => Step::Done(self.id, Err(IoError { errno: libc::EIO })),
                    (false, ..) => {
                        Step::Submit(self, Op::Write { file, offset: offset + moved, bufs, skip: skip + moved, sync })
                    }
                }
            }
            _ => {
                let data = match self.work {
                    Work::Reserve { length } => IoData::Room(length),
                    _ => IoData::Nothing,
                };
                Step::Done(self.id, Ok(data))
            }
        }
    }
}

/// An I/O on a file in memory, done with plain calls.
fn at_once(file: &PartFile, op: IoOp) -> Result<IoData, IoError> {
    match op {
        IoOp::Read { offset, length } => return file.read(offset, length).map(IoData::Bytes),
        IoOp::NextData { offset } => return file.next_data(offset).map(IoData::Extent),
        IoOp::Reserve { length } => return file.reserve(length).map(IoData::Room),
        IoOp::Write { offset, bufs, sync } => file.write(offset, &bufs, sync)?,
        IoOp::Flush => file.flush()?,
        IoOp::Zero { length: 0, .. } => {}
        IoOp::Zero { offset, length, discard } => file.zero(offset, length, discard)?,
        IoOp::Truncate { length } => file.cut(length).and_then(|()| file.flush())?,
    }
    Ok(IoData::Nothing)
}
