//! Plays one seed from its beginning to its end.

use super::brain::Brain;
use super::invariants::{Violation, broken};
use super::plan::{Plan, Scope};
use super::report::{Counts, Trace};
use super::rng::Rng;
use super::world::{Troubles, World};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What came of a seed.
#[derive(Debug)]
pub struct Played {
    pub seed: u64,
    pub result: Result<(), Violation>,
    pub digest: u64,
    pub counts: Counts,
    /// Simulated µs.
    pub time_us: u64,
    /// Things that happened.
    pub steps: u64,
    pub troubles: Troubles,
    /// The newest lines of the trace, where one was asked for.
    pub tail: Vec<String>,
}

/// Lets panics be reported with their place, as violations; call it once.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|info| {
        PANIC.with_borrow_mut(|text| *text = info.to_string());
    }));
}

/// Plays a seed. With `keep` the newest lines of its trace are kept; with `print` all are printed.
pub fn play<B: Brain>(seed: u64, scope: &Scope, keep: usize, print: bool) -> Played {
    let plan = Plan::draw(&mut Rng::new(seed), scope);
    let mut trace = (keep > 0 || print).then(|| Trace::new(print, keep.max(1)));
    if let Some(trace) = &mut trace {
        trace.line(format!("{plan:?}"));
    }
    let mut world = match World::<B>::new(seed, plan, trace) {
        Ok(world) => world,
        Err(violation) => {
            return Played {
                seed,
                result: Err(violation),
                digest: 0,
                counts: Counts::default(),
                time_us: 0,
                steps: 0,
                troubles: Troubles::default(),
                tail: Vec::new(),
            };
        }
    };
    world.plan.kinds().for_each(|kind| world.counts.one(kind));
    let storm = world.plan.storm_us;
    // Nothing of the world is used after a panic but its counts and its trace.
    let played = catch_unwind(AssertUnwindSafe(|| {
        world.run_until(storm)?;
        world.heal()
    }));
    let result = played.unwrap_or_else(|_| Err(broken("0 panic", PANIC.with_borrow(Clone::clone))));
    world.counts.add("damaged frames refused", world.net.refused);
    let tail = world.trace.iter().flat_map(|t| t.lines().map(String::from)).collect();
    Played {
        seed,
        result,
        digest: world.digest(),
        counts: world.counts.clone(),
        time_us: world.now,
        steps: world.steps,
        troubles: world.troubles.clone(),
        tail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Node;

    const DIGESTS: [&str; 4] = ["c4b102674771aec8", "3294daf7d6b5e1ef", "39127b030e642a66", "36530527ce72d7d0"];

    /// On this machine and any other one, in this build and any other one. Whoever changes the core or the simulator changes these
    /// numbers, and writes down the new ones; whoever only moves code must not.
    #[test]
    fn a_seed_takes_the_same_course_everywhere() {
        let digests =
            [1, 12, 123, 1234].map(|seed| format!("{:016x}", play::<Node>(seed, &Scope::default(), 0, false).digest));
        assert_eq!(digests, DIGESTS, "the courses of seeds 1, 12, 123 and 1234 are not those that were written down");
    }

    #[test]
    fn a_seed_always_takes_the_same_course() {
        let play = |seed| {
            let played = play::<Node>(seed, &Scope::default(), 0, false);
            (played.digest, played.counts, played.time_us)
        };
        let once: Vec<_> = (1..5).map(play).collect();
        let again: Vec<_> = (1..5).map(play).collect();
        assert_eq!(once, again);
        assert!(once.windows(2).all(|w| w[0].0 != w[1].0), "different seeds, the same course");
        assert!(once.iter().map(|(_, counts, _)| counts.answered).sum::<u64>() > 1000);
    }
}
