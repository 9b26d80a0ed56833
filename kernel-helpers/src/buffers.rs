//! The memory for a device's requests: all of it is there before the first one comes, since memory may be short by then.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

const PAGE: usize = 4096;

/// Memory for one request.
pub struct Buffer {
    start: NonNull<u8>,
    length: usize,
    /// Kept for as long as one of its buffers is.
    _mapping: Arc<Mapping>,
}

struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: nobody reads or writes through the mapping itself, and it may be unmapped by whatever thread has it last.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}
// SAFETY: a buffer's bytes are its own: no two buffers of a mapping overlap.
unsafe impl Send for Buffer {}

/// So many buffers of that length each, each at a page of its own. They are taken from the system at once: to touch page after page takes
/// several times as long, and an application waits for its device meanwhile.
///
/// # Errors
/// Where there is not that much memory.
pub fn take(count: usize, length: usize) -> io::Result<Vec<Buffer>> {
    let stride = length.next_multiple_of(PAGE);
    let mapping = Arc::new(Mapping::new((count * stride).max(PAGE))?);
    let buffer = |i: usize| Buffer {
        // SAFETY: inside the mapping, which has `count` strides.
        start: unsafe { mapping.start.add(i * stride) },
        length,
        _mapping: mapping.clone(),
    };
    Ok((0..count).map(buffer).collect())
}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Mapping> {
        let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, at a place of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, rights, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Mapping { start, bytes };
        // SAFETY: the whole of this very mapping.
        if unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE) } != 0 {
            let error = io::Error::last_os_error();
            // Kernels before 5.14 do not know it.
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(error);
            }
            for at in (0..bytes).step_by(PAGE) {
                // SAFETY: inside the mapping, which nobody else knows yet.
                unsafe { start.as_ptr().add(at).write_volatile(0) };
            }
        }
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping, of which no buffer is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: this buffer's own part of a mapping that lives, zeros from the beginning, borrowed as this buffer is.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident(buffer: &Buffer) -> bool {
        let mut pages = vec![0u8; buffer.length.div_ceil(PAGE)];
        let start = buffer.start.as_ptr().cast();
        // SAFETY: a mapping that lives, and room for a byte of each of its pages.
        assert_eq!(unsafe { libc::mincore(start, buffer.length, pages.as_mut_ptr()) }, 0);
        pages.iter().all(|p| p & 1 == 1)
    }

    #[test]
    fn buffers_are_there_and_apart() {
        let mut buffers = take(5, 10_000).unwrap();
        assert!(buffers.iter().all(|b| b.len() == 10_000 && resident(b) && b.iter().all(|x| *x == 0)));
        for (i, buffer) in buffers.iter_mut().enumerate() {
            buffer.fill(i as u8 + 1);
        }
        // What is left of one lives on without the others.
        buffers.truncate(3);
        let thread =
            std::thread::spawn(move || buffers.iter().enumerate().all(|(i, b)| b.iter().all(|x| *x == i as u8 + 1)));
        assert!(thread.join().unwrap());
    }
}
