//! Reads that do not wait, which no crate in use has a safe call for.

use std::os::fd::{AsRawFd, OwnedFd};

/// Reads what of the range is in the page cache, from its beginning on: so many bytes. None where nothing is, or the file system cannot tell.
pub(super) fn read(file: &OwnedFd, buf: &mut [u8], offset: u64) -> Option<usize> {
    let area = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let offset = libc::off_t::try_from(offset).ok()?;
    // SAFETY: `area` is `buf`, which is borrowed mutably for the length of the call, and the kernel writes nowhere else.
    let n = unsafe { libc::preadv2(file.as_raw_fd(), &area, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(n).ok()
}
