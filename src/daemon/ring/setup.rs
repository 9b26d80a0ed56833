//! Making a ring: the flags that suit one thread where the kernel has them, and an early, clear refusal where it cannot work.

use io_uring::{IoUring, Probe, opcode};
use std::io;

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error(
        "io_uring cannot be used here ({0}). In a container its seccomp profile forbids it, as Docker's does by default: allow \
         io_uring_setup, io_uring_enter and io_uring_register there (or, to try it, docker run --security-opt seccomp=unconfined). Where \
         the system forbids it: sysctl -w kernel.io_uring_disabled=0. A kernel that does not have it is too old: 5.11 or newer is needed"
    )]
    Unavailable(io::Error),
    #[error("io_uring of this kernel lacks {0}: a kernel of 5.11 or newer is needed")]
    Lacks(&'static str),
    #[error(
        "cannot set up io_uring: {0} (is the limit of locked memory, `ulimit -l`, or of open files, `ulimit -n`, too low?)"
    )]
    Setup(io::Error),
}

/// Room for entries that were not yet submitted. More are kept back and follow with the next round.
const ENTRIES: u32 = 1024;

/// The operations that we use, by name for the message.
const NEEDED: [(u8, &str); 10] = [
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::Writev::CODE, "WRITEV"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
    (opcode::RecvMsg::CODE, "RECVMSG"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
];

pub(super) fn make() -> Result<IoUring, RingError> {
    let uring = build().map_err(|e| match e.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => RingError::Unavailable(e),
        _ => RingError::Setup(e),
    })?;
    if !uring.params().is_feature_ext_arg() {
        return Err(RingError::Lacks("time limits on waiting"));
    }
    if !uring.params().is_feature_nodrop() {
        return Err(RingError::Lacks("the promise to drop no completion"));
    }
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe).map_err(RingError::Setup)?;
    match NEEDED.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, name)) => Err(RingError::Lacks(name)),
        None => Ok(uring),
    }
}

/// Completions are wanted when we wait for them and not before: that saves interrupting the thread. Needs kernel 6.1.
fn build() -> io::Result<IoUring> {
    let mut quick = IoUring::builder();
    quick.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun().setup_cqsize(4 * ENTRIES);
    match quick.build(ENTRIES) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => IoUring::builder().setup_cqsize(4 * ENTRIES).build(ENTRIES),
        result => result,
    }
}
