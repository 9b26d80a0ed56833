//! A safe io_uring for one thread. All `unsafe` of the daemon's I/O stands here.
//!
//! An operation ([`Op`]) is moved into the ring together with all memory that it needs, and comes back with its
//! [`Completion`]. So nothing that a caller does can free or touch memory that the kernel still uses: not dropping a
//! connection, not closing a file, not dropping the ring.

mod op;
mod setup;
#[cfg(test)]
mod tests;

pub use op::{Address, Area, Fd, Gather, MAX_PIECES, Op, Piece, Token};
pub use setup::RingError;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A finished operation. `tag` is what the caller gave with it.
#[derive(Debug)]
pub struct Completion<T> {
    pub tag: T,
    pub op: Op,
    /// Bytes moved, or whatever the operation counts; or the errno.
    pub result: Result<usize, i32>,
}

/// An operation in flight. The memory of `iovecs` and `message` is used again by the slot's next operation.
struct Slot<T> {
    busy: Option<(T, Op)>,
    /// Counts the slot's uses, so that a late [`Token`] names nothing.
    uses: u32,
    iovecs: Vec<libc::iovec>,
    message: Box<libc::msghdr>,
}

/// A ring of one thread, whose operations carry tags of type `T`.
pub struct Ring<T> {
    uring: IoUring,
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
    /// Entries that found no room in the submission queue.
    waiting: VecDeque<squeue::Entry>,
}

/// The user data of the cancellation with which a ring ends: no slot's, as there are fewer than 2^32 - 1 slots.
const CANCEL_ALL: u64 = u64::MAX;

/// How long dropping a ring waits for its operations to end.
const DROP_WAIT: Duration = Duration::from_secs(10);

impl<T> Ring<T> {
    /// A new ring.
    ///
    /// # Errors
    /// Where the kernel has no io_uring or lacks something of it.
    pub fn new() -> Result<Ring<T>, RingError> {
        Ok(Ring { uring: setup::make()?, slots: Vec::new(), free: Vec::new(), waiting: VecDeque::new() })
    }

    /// Operations that have not completed.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Starts an operation. It reaches the kernel with the next [`Ring::wait`], together with all others since the last.
    pub fn push(&mut self, tag: T, op: Op) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { busy: None, uses: 0, iovecs: Vec::new(), message: Box::new(empty_message()) });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.uses = slot.uses.wrapping_add(1);
        let token = Token(u64::from(slot.uses) << 32 | index as u64);
        let (_, op) = slot.busy.insert((tag, op));
        let entry = entry(op, &mut slot.iovecs, &mut slot.message).user_data(token.0);
        self.waiting.push_back(entry);
        self.fill();
        token
    }

    /// Moves what waits into the submission queue, as far as it has room.
    fn fill(&mut self) {
        let mut queue = self.uring.submission();
        while let Some(entry) = self.waiting.front() {
            // SAFETY: all memory that the entry points to belongs to its slot, which keeps it unmoved and untouched until
            // the completion is taken (`take`), or leaks it (`drop`): vectors and boxes own their memory on the heap,
            // buffers and payloads likewise, and files are held open by their `Rc`.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.waiting.pop_front();
        }
    }

    /// Submits everything, and waits until an operation has completed, `timeout` is over (none: no limit), or a signal came.
    ///
    /// # Errors
    /// Only where the kernel refuses the ring as such.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let mut timeout = timeout;
        loop {
            self.fill();
            if !self.waiting.is_empty() {
                // There is more to submit: nothing may be waited for before that.
                timeout = Some(Duration::ZERO);
            }
            self.enter(timeout)?;
            if self.waiting.is_empty() || !self.uring.completion().is_empty() {
                return Ok(());
            }
        }
    }

    fn enter(&self, timeout: Option<Duration>) -> io::Result<()> {
        let submitter = self.uring.submitter();
        let entered = match timeout {
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
            None => submitter.submit_and_wait(1),
        };
        match entered {
            Ok(_) => Ok(()),
            // Time is over; a signal; the completion queue is full and must be emptied first; memory is short for the moment.
            Err(e) => match e.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(e),
            },
        }
    }

    /// Takes what has completed so far, in order.
    pub fn completions(&mut self, out: &mut Vec<Completion<T>>) {
        let Ring { uring, slots, free, .. } = self;
        out.extend(uring.completion().filter_map(|cqe| take(slots, free, &cqe)));
    }

    /// Submits everything that was pushed, then asks the kernel to end it.
    fn cancel_all(&mut self, deadline: Instant) -> io::Result<()> {
        while !self.waiting.is_empty() && Instant::now() < deadline {
            self.fill();
            self.enter(Some(Duration::ZERO))?;
        }
        let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build().user_data(CANCEL_ALL);
        self.waiting.push_back(cancel);
        self.fill();
        Ok(())
    }
}

impl<T> Drop for Ring<T> {
    /// Ends all operations, and frees their memory only when the kernel has let go of it.
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_WAIT;
        let mut done = Vec::new();
        let mut fine = self.in_flight() == 0 || self.cancel_all(deadline).is_ok();
        while fine && self.in_flight() > 0 && Instant::now() < deadline {
            fine = self.enter(Some(Duration::from_millis(100))).is_ok();
            self.completions(&mut done);
            done.clear();
        }
        if self.in_flight() > 0 {
            // The kernel may still write into this memory: it is lost rather than reused.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

/// The operation that has completed; none for [`CANCEL_ALL`], which has no slot.
fn take<T>(slots: &mut [Slot<T>], free: &mut Vec<usize>, cqe: &cqueue::Entry) -> Option<Completion<T>> {
    if cqe.user_data() == CANCEL_ALL {
        return None;
    }
    let index = (cqe.user_data() & u64::from(u32::MAX)) as usize;
    let slot = &mut slots[index];
    assert_eq!(u64::from(slot.uses), cqe.user_data() >> 32, "one completion for each operation");
    // Cannot fail: every entry has one completion, and the assertion has told it from those of earlier uses.
    let (tag, mut op) = slot.busy.take().expect("the slot of a completion is busy");
    free.push(index);
    let code = cqe.result();
    if let Op::Accept { accepted, .. } = &mut op
        && code >= 0
    {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        *accepted = Some(unsafe { OwnedFd::from_raw_fd(code) });
    }
    let result = if code < 0 { Err(-code) } else { Ok(code as usize) };
    Some(Completion { tag, op, result })
}

fn empty_message() -> libc::msghdr {
    // SAFETY: a msghdr of zeros is a valid value: null pointers with zero lengths.
    unsafe { std::mem::zeroed() }
}

/// The entry of an operation. Its pointers lead into `op`'s heap memory, `iovecs` and `message`.
fn entry(op: &mut Op, iovecs: &mut Vec<libc::iovec>, message: &mut libc::msghdr) -> squeue::Entry {
    op.memory(iovecs);
    *message = libc::msghdr { msg_iov: iovecs.as_mut_ptr(), msg_iovlen: iovecs.len(), ..empty_message() };
    let fd = |file: &Fd| types::Fd(file.as_raw_fd());
    match op {
        Op::Read { file, offset, buf, from } => {
            let to = &mut buf[*from..];
            opcode::Read::new(fd(file), to.as_mut_ptr(), to.len() as u32).offset(*offset).build()
        }
        Op::Write { file, offset, sync, .. } => {
            let flags = if *sync { libc::RWF_DSYNC } else { 0 };
            match iovecs.as_slice() {
                [one] => opcode::Write::new(fd(file), one.iov_base.cast(), one.iov_len as u32)
                    .offset(*offset)
                    .rw_flags(flags)
                    .build(),
                many => opcode::Writev::new(fd(file), many.as_ptr(), many.len() as u32)
                    .offset(*offset)
                    .rw_flags(flags)
                    .build(),
            }
        }
        Op::Fdatasync { file } => opcode::Fsync::new(fd(file)).flags(types::FsyncFlags::DATASYNC).build(),
        Op::Fallocate { file, mode, offset, length } => {
            opcode::Fallocate::new(fd(file), *length).offset(*offset).mode(*mode).build()
        }
        Op::Recv { socket, .. } => opcode::RecvMsg::new(fd(socket), message).build(),
        Op::Send { socket, .. } => {
            opcode::SendMsg::new(fd(socket), message).flags((libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32).build()
        }
        Op::Accept { socket, .. } => opcode::Accept::new(fd(socket), std::ptr::null_mut(), std::ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC)
            .build(),
        Op::Connect { socket, address } => {
            let (at, length) = address.raw();
            opcode::Connect::new(fd(socket), at, length).build()
        }
        Op::PollIn { file } => opcode::PollAdd::new(fd(file), libc::POLLIN as u32).build(),
        Op::Cancel { target } => opcode::AsyncCancel::new(target.0).build(),
    }
}
