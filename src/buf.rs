//! Aligned, reference-counted payload buffers: received into once, checksummed once, and from the same
//! memory logged, sent and applied.
//!
//! A [`BufMut`] is filled by its one owner, then frozen into a [`Payload`], which is cheap to clone and to
//! slice and can no longer be changed. Memory comes from a small per-thread pool. All `unsafe` of the
//! allocation stands in this module.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

/// Alignment of every buffer in bytes: what O_DIRECT needs on any device we accept.
pub const ALIGN: usize = 4096;

/// Freed buffers kept for reuse by each thread, in bytes.
const POOL_BYTES: usize = 8 << 20;

#[derive(Default)]
struct Pool {
    free: Vec<Raw>,
    bytes: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool::default());
}

struct Raw {
    ptr: NonNull<u8>,
    capacity: usize,
}

impl Raw {
    fn layout(capacity: usize) -> Layout {
        // Cannot fail: ALIGN is a power of two, and the capacities that callers ask for are far below isize::MAX.
        Layout::from_size_align(capacity, ALIGN).expect("buffer capacity fits the address space")
    }

    fn take(len: usize) -> Raw {
        let capacity = len.max(1).next_multiple_of(ALIGN);
        let pooled = POOL.with_borrow_mut(|pool| {
            // The newest first: it is the warmest. A scan of a few entries; most buffers have one size.
            let start = pool.free.len().saturating_sub(16);
            let at = (start..pool.free.len()).rev().find(|&i| pool.free[i].capacity == capacity)?;
            pool.bytes -= capacity;
            Some(pool.free.swap_remove(at))
        });
        pooled.unwrap_or_else(|| {
            let layout = Raw::layout(capacity);
            // SAFETY: the layout has a non-zero size (capacity is at least ALIGN).
            let ptr = unsafe { alloc_zeroed(layout) };
            Raw { ptr: NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout)), capacity }
        })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: `ptr` came from `alloc_zeroed` with this very layout, and is freed once: a pooled buffer is
        // moved into the pool as a new `Raw`, this one being forgotten in `recycle`.
        unsafe { dealloc(self.ptr.as_ptr(), Raw::layout(self.capacity)) }
    }
}

fn recycle(raw: Raw) {
    // At thread end the pool may be gone: then the buffer is simply freed.
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.bytes + raw.capacity <= POOL_BYTES {
            pool.bytes += raw.capacity;
            pool.free.push(raw);
        }
    });
}

struct Shared {
    raw: Option<Raw>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            recycle(raw);
        }
    }
}

impl Shared {
    fn raw(&self) -> &Raw {
        // Cannot fail: only `drop` empties it.
        self.raw.as_ref().expect("buffer is alive")
    }
}

/// A buffer with one owner, writable. Its contents are unspecified but initialised until written.
pub struct BufMut {
    shared: Shared,
    len: usize,
}

impl BufMut {
    /// A buffer of `len` bytes whose contents are whatever its last user left there.
    pub fn uninit(len: usize) -> BufMut {
        BufMut { shared: Shared { raw: Some(Raw::take(len)) }, len }
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> BufMut {
        let mut buf = BufMut::uninit(len);
        buf.fill(0);
        buf
    }

    /// Gives up the right to write. No copy.
    pub fn freeze(self) -> Payload {
        let len = self.len;
        Payload { shared: Rc::new(self.shared), start: 0, len }
    }
}

impl Deref for BufMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let raw = self.shared.raw();
        // SAFETY: `raw` owns `capacity >= len` bytes, initialised at allocation, and nobody else holds it.
        unsafe { std::slice::from_raw_parts(raw.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for BufMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        let raw = self.shared.raw();
        // SAFETY: as in `deref`, and `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(raw.ptr.as_ptr(), self.len) }
    }
}

/// An immutable view of a shared buffer. Cloning and slicing copy no bytes.
#[derive(Clone)]
pub struct Payload {
    shared: Rc<Shared>,
    start: usize,
    len: usize,
}

impl Payload {
    /// A payload of no bytes.
    pub fn empty() -> Payload {
        thread_local!(static EMPTY: Payload = BufMut::uninit(0).freeze());
        EMPTY.with(Payload::clone)
    }

    /// Copies `bytes` into a new buffer.
    pub fn copy_of(bytes: &[u8]) -> Payload {
        let mut buf = BufMut::uninit(bytes.len());
        buf.copy_from_slice(bytes);
        buf.freeze()
    }

    /// The bytes `at .. at + len` of this payload, sharing its memory.
    ///
    /// # Panics
    /// If the range is not inside the payload: the caller has computed it wrongly.
    pub fn slice(&self, at: usize, len: usize) -> Payload {
        assert!(at <= self.len && len <= self.len - at, "slice {at}+{len} of {}", self.len);
        Payload { shared: self.shared.clone(), start: self.start + at, len }
    }

    /// Bytes of memory that this view keeps alive.
    pub fn memory(&self) -> usize {
        self.shared.raw().capacity
    }
}

impl Deref for Payload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let raw = self.shared.raw();
        // SAFETY: start + len <= capacity by construction; frozen memory is never written again.
        unsafe { std::slice::from_raw_parts(raw.ptr.as_ptr().add(self.start), self.len) }
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes)", self.len)
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Payload) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Payload {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_memory_and_outlive_their_parent() {
        let mut buf = BufMut::zeroed(8192);
        buf[4096..].fill(7);
        let whole = buf.freeze();
        assert_eq!(whole.as_ptr() as usize % ALIGN, 0);
        let tail = whole.slice(4096, 4096);
        assert_eq!(tail.as_ptr(), whole[4096..].as_ptr());
        drop(whole);
        assert!(tail.iter().all(|&b| b == 7));
    }

    #[test]
    fn a_reused_buffer_is_zeroed_on_request() {
        let mut buf = BufMut::uninit(4096);
        buf.fill(0xff);
        drop(buf.freeze());
        assert!(BufMut::zeroed(4096).iter().all(|&b| b == 0));
    }
}
