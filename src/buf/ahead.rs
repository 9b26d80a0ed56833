//! Huge pages made ready beforehand, by a thread of their own.
//!
//! The first use of one takes the kernel long, for it is cleared, and where a virtual machine's host has to find the memory for it, some
//! milliseconds. The thread that has everything else to do must not wait for that.

use super::arena::{HUGE_PAGE, Mapping};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};

/// Pages on their way.
pub struct Ahead {
    ready: Receiver<Mapping>,
    /// How many are still to be made.
    wanted: Arc<AtomicUsize>,
}

impl Ahead {
    /// So many of them. None where there is no thread to be had: then they are made when they are needed.
    pub fn start(count: usize) -> Option<Ahead> {
        let (give, ready) = channel();
        let wanted = Arc::new(AtomicUsize::new(count));
        let left = wanted.clone();
        // Whoever takes them may be gone.
        let make = move || while one_less(&left) && give.send(Mapping::touched(HUGE_PAGE)).is_ok() {};
        std::thread::Builder::new().name("memory".into()).spawn(make).ok()?;
        Some(Ahead { ready, wanted })
    }

    /// One that is ready. If none is, the taker will have to make one, and so it is not made here.
    pub fn take(&self) -> Option<Mapping> {
        let page = self.ready.try_recv().ok();
        if page.is_none() {
            one_less(&self.wanted);
        }
        page
    }

    /// The memory of so many of them went elsewhere.
    pub fn forgo(&self, count: usize) {
        for _ in 0..count {
            // Those that are made are given back only when no other is left to be made.
            if !one_less(&self.wanted) && self.ready.try_recv().is_err() {
                return;
            }
        }
    }
}

/// Whether there was one.
fn one_less(wanted: &AtomicUsize) -> bool {
    wanted.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_taker_had_to_make_itself_is_not_made_once_more() {
        let (give, ready) = channel();
        let ahead = Ahead { ready, wanted: Arc::new(AtomicUsize::new(3)) };
        assert!(ahead.take().is_none() && ahead.take().is_none());
        assert_eq!(ahead.wanted.load(Relaxed), 1);
        give.send(Mapping::new(HUGE_PAGE)).expect("the taker is there");
        assert!(ahead.take().is_some());
        assert_eq!(ahead.wanted.load(Relaxed), 1, "that one was made already");
        assert!(ahead.take().is_none() && ahead.take().is_none(), "and no more are wanted than there are");
        assert_eq!(ahead.wanted.load(Relaxed), 0);
    }

    #[test]
    fn what_went_elsewhere_is_not_made_and_else_given_back() {
        let (give, ready) = channel();
        let ahead = Ahead { ready, wanted: Arc::new(AtomicUsize::new(2)) };
        (0..2).for_each(|_| give.send(Mapping::new(HUGE_PAGE)).expect("the taker is there"));
        ahead.forgo(3);
        assert_eq!((ahead.wanted.load(Relaxed), ahead.ready.try_iter().count()), (0, 1));
        ahead.forgo(3);
    }

    #[test]
    fn as_many_are_made_as_were_wanted() {
        let ahead = Ahead::start(3).expect("a thread");
        let made = ahead.ready.iter().count();
        assert_eq!(made, 3);
    }
}
