//! Aligned, reference-counted payload buffers: received into once, checksummed once, and from the same
//! memory logged, sent and applied.
//!
//! A [`BufMut`] is filled by its one owner, then frozen into a [`Payload`], which is cheap to clone and to
//! slice and can no longer be changed. Memory comes from a small per-thread pool. All `unsafe` of the
//! allocation stands in this module and in `arena`.

mod ahead;
mod arena;

use ahead::Ahead;
use arena::{HUGE_PAGE, Mapping};
use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

/// Alignment of every buffer in bytes: what O_DIRECT needs on any device we accept.
pub const ALIGN: usize = 4096;

/// Sizes of pooled buffers in units of [`ALIGN`]; what is longer comes from the system and goes back to it at once.
const CLASSES: [usize; 20] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024];

/// Small buffers are cut out of arenas of about this many bytes.
const ARENA_BYTES: usize = 512 << 10;

/// Memory that a thread keeps for reuse once it was used, unless [`keep_at_most`] says otherwise.
const KEEP_BYTES: usize = 32 << 20;

/// Who keeps so much cuts its buffers out of huge pages.
const HUGE_FROM: usize = 64 << 20;

/// Who uses so much of it will use the rest.
const AHEAD_FROM: usize = 16 << 20;
/// Whoever may keep less takes it when it is needed: there is little to be had.
const AHEAD_FOR: usize = 128 << 20;

/// Memory from the system. Freed with the last buffer that was cut out of it.
struct Arena {
    ptr: NonNull<u8>,
    /// None once it is being dropped.
    mapping: Option<Mapping>,
}

impl Arena {
    fn new(mapping: Mapping) -> Rc<Arena> {
        Rc::new(Arena { ptr: mapping.ptr(), mapping: Some(mapping) })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // At thread end the pool may be gone, and with it its account.
        if let Some(mapping) = self.mapping.take() {
            let _ = POOL.try_with(|pool| pool.take_back(mapping));
        }
    }
}

/// Free buffers of a thread. Asking the system for each costs more than everything else that is done with a small write:
/// page faults, clearing, and for long ones a mapping made and removed.
struct Pool {
    free: RefCell<[Vec<Raw>; CLASSES.len()]>,
    /// Huge pages of which nothing is in use. The system would clear each before it gave it out again.
    spare: RefCell<Vec<Mapping>>,
    /// Huge pages on their way, once they are worth it.
    ahead: RefCell<Option<Ahead>>,
    /// Bytes in arenas and spare ones.
    taken: Cell<usize>,
    keep: Cell<usize>,
}

thread_local! {
    static POOL: Pool = Pool {
        free: RefCell::default(),
        spare: RefCell::default(),
        ahead: RefCell::default(),
        taken: Cell::new(0),
        keep: Cell::new(KEEP_BYTES),
    };
}

/// This thread gives freed buffers back to the system where it would otherwise hold more than `bytes` in buffers.
pub fn keep_at_most(bytes: usize) {
    POOL.with(|pool| pool.keep.set(bytes));
}

/// The smallest class that has room for so many units.
fn class_of(units: usize) -> Option<usize> {
    match units {
        // Nearly all buffers.
        1 => Some(0),
        _ => Some(CLASSES.partition_point(|c| *c < units)).filter(|class| *class < CLASSES.len()),
    }
}

/// A piece of an arena that nobody else holds.
struct Raw {
    ptr: NonNull<u8>,
    capacity: usize,
    /// Keeps the memory alive.
    _arena: Rc<Arena>,
}

impl Raw {
    fn take(len: usize) -> Raw {
        let units = len.div_ceil(ALIGN).max(1);
        POOL.with(|pool| match class_of(units) {
            Some(class) => {
                let pooled = pool.free.borrow_mut()[class].pop();
                pooled.unwrap_or_else(|| pool.refill(class))
            }
            None => pool.cut_arena(units * ALIGN, 1).0,
        })
    }
}

impl Pool {
    fn refill(&self, class: usize) -> Raw {
        let capacity = CLASSES[class] * ALIGN;
        let bytes = if self.keep.get() >= HUGE_FROM { HUGE_PAGE } else { ARENA_BYTES };
        let (one, mut others) = self.cut_arena(capacity, (bytes / capacity).max(1));
        self.free.borrow_mut()[class].append(&mut others);
        one
    }

    /// `count` buffers out of a new arena, at least one.
    fn cut_arena(&self, capacity: usize, count: usize) -> (Raw, Vec<Raw>) {
        // Twelve of 160 KiB do not fill a huge page; it is one all the same.
        let bytes = match capacity * count {
            n if count > 1 && self.keep.get() >= HUGE_FROM => n.next_multiple_of(HUGE_PAGE),
            n => n,
        };
        let arena = Arena::new(self.mapping(bytes));
        let cut = |i: usize| {
            // SAFETY: `i` is 0 or below `count`, which is at least 1, so that the piece lies inside the arena's `capacity * count` bytes.
            let ptr = unsafe { arena.ptr.add(i * capacity) };
            Raw { ptr, capacity, _arena: arena.clone() }
        };
        (cut(0), (1..count).map(cut).collect())
    }

    fn mapping(&self, bytes: usize) -> Mapping {
        let full = self.taken.get() + bytes > self.keep.get();
        if full && self.spare.borrow().is_empty() {
            // Lengths have changed: what is kept for others makes room. Taken out first, as arenas look at the pool when they go.
            let unused = std::mem::take(&mut *self.free.borrow_mut());
            drop(unused);
        }
        if bytes == HUGE_PAGE
            && let Some(spare) = self.spare.borrow_mut().pop()
        {
            return spare;
        }
        if full {
            let spare = std::mem::take(&mut *self.spare.borrow_mut());
            self.taken.set(self.taken.get() - spare.len() * HUGE_PAGE);
            *self.ahead.borrow_mut() = None;
        }
        let new = self.made_ahead(bytes).unwrap_or_else(|| Mapping::new(bytes));
        if bytes > HUGE_PAGE
            && let Some(ahead) = &*self.ahead.borrow()
        {
            ahead.forgo(bytes.div_ceil(HUGE_PAGE));
        }
        let before = self.taken.replace(self.taken.get() + new.bytes());
        if bytes == HUGE_PAGE && self.keep.get() >= AHEAD_FOR && (before..self.taken.get()).contains(&AHEAD_FROM) {
            *self.ahead.borrow_mut() = Ahead::start((self.keep.get() - AHEAD_FROM) / HUGE_PAGE);
        }
        new
    }

    fn made_ahead(&self, bytes: usize) -> Option<Mapping> {
        self.ahead.borrow().as_ref().filter(|_| bytes == HUGE_PAGE)?.take()
    }

    /// Nothing of it is in use any more.
    fn take_back(&self, mapping: Mapping) {
        if mapping.bytes() == HUGE_PAGE && self.taken.get() <= self.keep.get() {
            self.spare.borrow_mut().push(mapping);
        } else {
            self.taken.set(self.taken.get() - mapping.bytes());
        }
    }

    fn give_back(&self, raw: Raw) {
        let class = class_of(raw.capacity / ALIGN);
        if let Some(class) = class
            && self.taken.get() <= self.keep.get()
        {
            self.free.borrow_mut()[class].push(raw);
        }
    }
}

fn recycle(raw: Raw) {
    // At thread end the pool may be gone: then the buffer is simply freed.
    let _ = POOL.try_with(|pool| pool.give_back(raw));
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

    /// Bytes in arenas of this thread.
    fn taken() -> usize {
        POOL.with(|pool| pool.taken.get())
    }

    #[test]
    fn buffers_of_a_class_do_not_overlap_and_are_used_again() {
        keep_at_most(256 << 20);
        let lengths = [1, 4096, 4097, 20_000, 1 << 20, (4 << 20) + 1];
        let mut places: Vec<(usize, usize)> = Vec::new();
        let mut held = Vec::new();
        for round in 0..40u8 {
            for len in lengths {
                let mut buf = BufMut::uninit(len);
                buf.fill(round);
                places.push((buf.as_ptr() as usize, buf.len()));
                held.push((round, buf.freeze()));
            }
        }
        assert!(held.iter().all(|(round, payload)| payload.iter().all(|b| b == round)));
        places.sort_unstable();
        assert!(places.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0 && w[1].0 % ALIGN == 0));
        let small = |p: &&(usize, usize)| p.1 <= 4 << 20;
        drop(held);
        let before = taken();
        let again: Vec<BufMut> = places.iter().filter(small).map(|p| BufMut::uninit(p.1)).collect();
        assert_eq!(taken(), before, "nothing new was asked for");
        drop(again);
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        keep_at_most(4 << 20);
        let held: Vec<BufMut> = (0..64).map(|_| BufMut::uninit(256 << 10)).collect();
        assert!(taken() >= 16 << 20);
        drop(held);
        assert!(taken() <= (4 << 20) + ARENA_BYTES, "{} bytes are kept", taken());
        // Another length takes the place of what is kept.
        let held: Vec<BufMut> = (0..1024).map(|_| BufMut::uninit(4096)).collect();
        assert!(taken() <= (4 << 20) + ARENA_BYTES, "{} bytes for 4 MiB", taken());
        drop(held);
    }

    #[test]
    fn a_huge_page_serves_another_length_once_nothing_of_it_is_in_use() {
        keep_at_most(HUGE_FROM);
        let of_length = |bytes: usize| (0..HUGE_FROM / bytes).map(|_| BufMut::uninit(bytes)).collect::<Vec<_>>();
        let inside =
            |places: &[usize], buf: &BufMut| places.iter().any(|p| (buf.as_ptr() as usize) & !(HUGE_PAGE - 1) == *p);
        let held = of_length(256 << 10);
        let places: Vec<usize> = held.iter().map(|b| (b.as_ptr() as usize) & !(HUGE_PAGE - 1)).collect();
        drop(held);
        let held = of_length(4096);
        assert!(held.iter().all(|b| inside(&places, b)), "memory that is there already");
        assert_eq!(taken(), HUGE_FROM);
        drop(held);
    }

    #[test]
    fn a_reused_buffer_is_zeroed_on_request() {
        let mut buf = BufMut::uninit(4096);
        buf.fill(0xff);
        drop(buf.freeze());
        assert!(BufMut::zeroed(4096).iter().all(|&b| b == 0));
    }
}
