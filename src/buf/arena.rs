//! Memory from the system, out of which buffers are cut.
//!
//! Long ones are huge pages where the system has them: the kernel pins and maps a page for each piece of direct I/O, and a virtual disk has
//! room for a few hundred pieces at a time. Of 4 KiB pages that is 1 MiB in flight in all, and the pinning was a fifth of a long write's CPU.

use super::ALIGN;
use std::alloc::{Layout, handle_alloc_error};
use std::ptr::NonNull;

/// Size and alignment of the usual huge page. Where it is another one, nothing is lost but the gain.
pub const HUGE_PAGE: usize = 2 << 20;

/// A mapping of zeros, given back when this is dropped.
pub struct Mapping {
    ptr: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    /// At least `bytes` bytes, which must not be 0, at a multiple of [`ALIGN`].
    pub fn new(bytes: usize) -> Mapping {
        // Cannot fail: ALIGN is a power of two, and the lengths that callers ask for are far below isize::MAX.
        let layout = Layout::from_size_align(bytes, ALIGN).expect("buffer length fits the address space");
        let whole = bytes.next_multiple_of(ALIGN);
        let mapping = if whole < HUGE_PAGE { map(whole) } else { map_huge(whole) };
        mapping.unwrap_or_else(|| handle_alloc_error(layout))
    }

    /// The same, and the system has found the memory for it already.
    pub fn touched(bytes: usize) -> Mapping {
        let mapping = Mapping::new(bytes);
        for at in (0..mapping.bytes).step_by(ALIGN) {
            // SAFETY: `at` lies inside the mapping, which nobody else knows yet. It holds zeros before and after.
            unsafe { mapping.ptr.as_ptr().add(at).write_volatile(0) };
        }
        mapping
    }

    pub fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back all but `length` bytes from `from` on. All three are multiples of the page size.
    fn trim(self, from: usize, length: usize) -> Mapping {
        let (start, end) = (self.ptr.as_ptr(), self.bytes);
        std::mem::forget(self);
        assert!(length > 0 && from + length <= end);
        // SAFETY: both parts lie inside the mapping, which nobody has used yet and this function owns. What is kept is not empty.
        unsafe {
            unmap(start, from);
            unmap(start.add(from + length), end - from - length);
            Mapping { ptr: NonNull::new_unchecked(start.add(from)), bytes: length }
        }
    }
}

// SAFETY: it is memory that belongs to this value alone, wherever it is.
unsafe impl Send for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's alone, and whoever was lent its memory held the value.
        unsafe { unmap(self.ptr.as_ptr(), self.bytes) }
    }
}

fn map(bytes: usize) -> Option<Mapping> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at a place of the kernel's choosing touches no memory that exists.
    let ptr = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
    if ptr == libc::MAP_FAILED {
        return None;
    }
    NonNull::new(ptr.cast()).map(|ptr| Mapping { ptr, bytes })
}

/// Where a huge page may begin. Most kernels place it so by themselves, and then neighbours are one mapping to them.
fn map_huge(bytes: usize) -> Option<Mapping> {
    let first = map(bytes)?;
    let mapping = if (first.ptr.as_ptr() as usize).is_multiple_of(HUGE_PAGE) {
        first
    } else {
        drop(first);
        let wide = map(bytes + HUGE_PAGE)?;
        let from = (wide.ptr.as_ptr() as usize).next_multiple_of(HUGE_PAGE) - wide.ptr.as_ptr() as usize;
        wide.trim(from, bytes)
    };
    // SAFETY: it is about this mapping alone, and changes nothing of what it holds. A system that has no huge pages refuses, and that is all.
    unsafe { libc::madvise(mapping.ptr.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
    Some(mapping)
}

/// # Safety
/// The range is mapped, page-aligned, and nobody uses it any more.
unsafe fn unmap(start: *mut u8, bytes: usize) {
    if bytes > 0 {
        // SAFETY: see above. It cannot fail for such a range; if it did, memory would be lost and nothing worse.
        unsafe { libc::munmap(start.cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_mappings_begin_as_huge_pages_do_and_all_are_zeros() {
        // Held together, so that some are not aligned by chance.
        let held: Vec<(usize, Mapping)> =
            [ALIGN, 3 * ALIGN, HUGE_PAGE, 5 * ALIGN, 2 * HUGE_PAGE + ALIGN].map(|n| (n, Mapping::new(n))).into();
        for (asked, mapping) in &held {
            let unit = if *asked < HUGE_PAGE { ALIGN } else { HUGE_PAGE };
            assert_eq!((mapping.ptr().as_ptr() as usize % unit, mapping.bytes()), (0, *asked), "{asked} bytes");
            // SAFETY: all of it is mapped, initialised by the kernel, and lives as long as `held`.
            let bytes = unsafe { std::slice::from_raw_parts(mapping.ptr().as_ptr(), mapping.bytes()) };
            assert!(bytes.iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn what_is_trimmed_is_the_middle() {
        let wide = map(5 * ALIGN).unwrap();
        let start = wide.ptr().as_ptr() as usize;
        let middle = wide.trim(ALIGN, 2 * ALIGN);
        assert_eq!((middle.ptr().as_ptr() as usize, middle.bytes()), (start + ALIGN, 2 * ALIGN));
        // SAFETY: both pages are mapped and this test's alone.
        unsafe { middle.ptr().as_ptr().write_bytes(7, 2 * ALIGN) };
    }
}
