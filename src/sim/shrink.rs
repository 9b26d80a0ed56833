//! Less of a world that fails: fewer troubles, a shorter storm, fewer requests at once, as long as the same invariant breaks.
//!
//! What is left out is drawn all the same and does not strike, so the world takes the same course up to there. After that it takes another
//! one, which may fail or not: this is a search among neighbours of the failing world, each of which is as real as it.

use super::brain::Brain;
use super::invariants::Violation;
use super::plan::{Plan, Scope, Trouble};
use super::run::{Played, play};
use super::world::Troubles;
use std::collections::BTreeSet;
use std::fmt;

/// What is left out of the world that a seed draws.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Less {
    /// Kinds of trouble that never strike.
    pub without: BTreeSet<Trouble>,
    /// Troubles that do not strike, by their number in the world.
    pub skip: BTreeSet<u64>,
    /// The storm is over by then, in ms.
    pub storm_ms: Option<u64>,
    /// A client keeps at most so many requests in flight.
    pub depth: Option<u64>,
}

impl Less {
    /// Whether a trouble stays away.
    pub fn skips(&self, number: u64, trouble: Trouble) -> bool {
        self.without.contains(&trouble) || self.skip.contains(&number)
    }

    pub(super) fn leave_out(&self, plan: &mut Plan) {
        plan.storm_us = self.storm_ms.map_or(plan.storm_us, |ms| plan.storm_us.min(ms * 1000));
        plan.habits.depth = self.depth.map_or(plan.habits.depth, |depth| plan.habits.depth.min(depth));
    }

    /// The same, said as briefly as can be: kinds of which nothing struck instead of numbers.
    fn in_brief(&self, troubles: &Troubles) -> Less {
        let left: BTreeSet<Trouble> = troubles.struck.iter().map(|(_, trouble)| *trouble).collect();
        let gone: BTreeSet<Trouble> = troubles.drawn.iter().copied().filter(|t| !left.contains(t)).collect();
        let mut brief = Less { without: gone, ..self.clone() };
        brief.skip.retain(|number| troubles.drawn.get(*number as usize - 1).is_some_and(|t| left.contains(t)));
        brief
    }
}

/// As options of `simulate`.
impl fmt::Display for Less {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, option: &str, items: Vec<String>| match items.is_empty() {
            true => Ok(()),
            false => write!(f, " --{option} {}", items.join(",")),
        };
        list(f, "without", self.without.iter().map(|t| format!("{t:?}")).collect())?;
        list(f, "skip", self.skip.iter().map(u64::to_string).collect())?;
        list(f, "storm-ms", self.storm_ms.iter().map(u64::to_string).collect())?;
        list(f, "depth", self.depth.iter().map(u64::to_string).collect())
    }
}

/// What a search came to.
#[derive(Debug)]
pub struct Shrunk {
    pub scope: Scope,
    pub played: Played,
    /// Worlds that were played.
    pub tries: u64,
}

/// The failure as it is told from others: a panic by its place.
fn name_of(violation: &Violation) -> (&'static str, String) {
    let place = violation.detail.lines().next().unwrap_or_default();
    (violation.invariant, if violation.invariant == "0 panic" { place.to_string() } else { String::new() })
}

struct Search<'a, B> {
    best: Scope,
    played: Played,
    wanted: (&'static str, String),
    tries: u64,
    more: &'a mut dyn FnMut() -> bool,
    brain: std::marker::PhantomData<B>,
}

/// Looks for less of a world that fails; `more` says whether to go on looking. `played` is what came of it whole.
pub fn shrink<B: Brain>(
    scope: &Scope,
    played: Played,
    violation: &Violation,
    more: &mut dyn FnMut() -> bool,
) -> Shrunk {
    let wanted = name_of(violation);
    let mut search =
        Search::<B> { best: scope.clone(), played, wanted, tries: 0, more, brain: std::marker::PhantomData };
    while search.round() {}
    // Said in another way it is the same world: the last play shows that it is.
    let mut brief = search.best.clone();
    brief.less = brief.less.in_brief(&search.played.troubles);
    let again = play::<B>(search.played.seed, &brief, 0, false);
    if again.digest == search.played.digest {
        (search.best, search.played) = (brief, again);
    }
    Shrunk { scope: search.best, played: search.played, tries: search.tries + 1 }
}

impl<B: Brain> Search<'_, B> {
    /// Takes what `change` leaves of the world, if the same breaks in it.
    fn accept(&mut self, change: impl FnOnce(&mut Less)) -> bool {
        let mut scope = self.best.clone();
        change(&mut scope.less);
        if scope.less == self.best.less || !(self.more)() {
            return false;
        }
        self.tries += 1;
        let played = play::<B>(self.played.seed, &scope, 0, false);
        let same = played.result.as_ref().is_err_and(|violation| name_of(violation) == self.wanted);
        let less =
            (played.troubles.struck.len(), played.steps) < (self.played.troubles.struck.len(), self.played.steps);
        if same && less {
            (self.best, self.played) = (scope, played);
        }
        same && less
    }

    /// Each kind of reduction once; true if any of them was of use.
    fn round(&mut self) -> bool {
        let before = (self.played.troubles.struck.len(), self.played.steps);
        self.fewer_troubles();
        for eighths in [1, 2, 4, 6, 7] {
            let whole = self.played.time_us / 1000;
            if self.accept(|less| less.storm_ms = Some(less.storm_ms.unwrap_or(whole).min(whole) * eighths / 8)) {
                break;
            }
        }
        for depth in [1, 4] {
            if self.accept(|less| less.depth = Some(less.depth.unwrap_or(depth).min(depth))) {
                break;
            }
        }
        (self.played.troubles.struck.len(), self.played.steps) < before
    }

    /// Troubles are left out in ever smaller bunches, the latest first.
    fn fewer_troubles(&mut self) {
        let mut bunch = self.played.troubles.struck.len();
        while bunch > 0 {
            let mut end = self.played.troubles.struck.len();
            while end > 0 {
                let from = end.saturating_sub(bunch);
                let numbers: Vec<u64> =
                    self.played.troubles.struck[from..end].iter().map(|(number, _)| *number).collect();
                self.accept(|less| less.skip.extend(numbers));
                end = from.min(self.played.troubles.struck.len());
            }
            bunch /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::hello::Charter;
    use crate::core::{Action, BlockingDisk, Event, Lsn, Node, NodeConfig, Term, Time};
    use crate::sim::brain::Marks;

    /// A node that cannot start from a disk that holds anything.
    struct Forgetful(Node);

    impl Brain for Forgetful {
        fn format(config: &NodeConfig, disk: &mut dyn BlockingDisk, ids: [u128; 2]) -> Result<(), String> {
            <Node as Brain>::format(config, disk, ids)
        }

        fn start(config: NodeConfig, disk: &mut dyn BlockingDisk, now: Time) -> Result<Forgetful, String> {
            let node = <Node as Brain>::start(config, disk, now)?;
            // Copies that the invariants look at are started at this very time.
            match node.marks().accepted > Lsn(0) && now != Time(1_000_000) {
                true => Err("it has forgotten how".into()),
                false => Ok(Forgetful(node)),
            }
        }

        fn handle(&mut self, now: Time, event: Event) {
            self.0.handle(now, event);
        }

        fn poll(&mut self, now: Time) {
            self.0.poll(now);
        }

        fn next_action(&mut self) -> Option<Action> {
            self.0.next_action()
        }

        fn deadline(&self) -> Option<Time> {
            self.0.deadline()
        }

        fn marks(&self) -> Marks {
            Brain::marks(&self.0)
        }

        fn lineage(&self) -> &[Term] {
            self.0.lineage()
        }

        fn charter(&self) -> &Charter {
            self.0.charter()
        }

        fn has_image(&self) -> bool {
            self.0.has_image()
        }

        fn is_damaged(&self) -> bool {
            self.0.is_damaged()
        }

        fn is_faulted(&self) -> bool {
            Brain::is_faulted(&self.0)
        }

        fn is_outvoted(&self) -> bool {
            Brain::is_outvoted(&self.0)
        }
    }

    #[test]
    fn what_has_no_part_in_a_failure_is_left_out() {
        let whole = Scope::default();
        let played = (0..50).map(|seed| play::<Forgetful>(seed, &whole, 0, false));
        let failed = played.filter(|played| played.result.is_err() && played.troubles.struck.len() > 5).take(3);
        let (mut before, mut after) = (0, 0);
        for played in failed {
            let (violation, seed) = (played.result.clone().unwrap_err(), played.seed);
            before += played.troubles.struck.len();
            let found = shrink::<Forgetful>(&whole, played, &violation, &mut || true);
            after += found.played.troubles.struck.len();
            let again = play::<Forgetful>(seed, &found.scope, 0, false);
            assert_eq!(again.digest, found.played.digest, "what is printed plays the same world");
            assert_eq!(again.result.unwrap_err().invariant, violation.invariant);
        }
        // How few are left depends on the worlds: a search among neighbours may end beside the smallest.
        assert!(0 < after && after * 2 < before, "{before} troubles, then {after}");
    }

    #[test]
    fn what_is_left_out_is_said_as_options() {
        let less = Less {
            without: [Trouble::Crash, Trouble::Rot].into(),
            skip: [3, 17].into(),
            storm_ms: Some(1500),
            depth: None,
        };
        assert_eq!(less.to_string(), " --without Crash,Rot --skip 3,17 --storm-ms 1500");
        assert_eq!(Less::default().to_string(), "");
    }
}
