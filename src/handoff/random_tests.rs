//! Faults and blows in any number and order, from seeds.

use super::world_tests::*;
use super::*;
use crate::demo::rng::Rng;

fn play(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut world = World::new(plan());
    if rng.below(3) == 0 {
        world.plan.steps.retain(|s| *s == Step::Service || rng.below(4) > 0);
        world.plan.health = world.plan.health.filter(|_| world.plan.has(Step::Healthy));
        world.machine = Machine::new(world.plan.clone(), Begun::new(), world.now);
    }
    for _ in 0..40 {
        world.peer = (rng.below(2) == 0).then(|| "beta".to_string());
        world.hand_over = if rng.below(2) == 0 { Ok(()) } else { Err("no".into()) };
        for _ in 0..rng.below(4) {
            let at = world.runs.len() + rng.below(12) as usize;
            world.faults.insert(at, FAULTS[rng.below(FAULTS.len() as u64) as usize]);
        }
        for _ in 0..rng.below(30) {
            world.step();
        }
        // The core tells of a term that is lost before it tells of the next.
        match rng.below(8) {
            0 | 1 if !world.serving => world.tell(Event::Serve),
            2 if world.serving => world.tell(Event::Lost),
            3 => world.tell(Event::PutUp),
            _ if world.serving => {
                let blow = BLOWS[rng.below(BLOWS.len() as u64) as usize];
                world.strike(blow);
            }
            _ => world.tell(Event::Serve),
        }
    }
    world.faults.clear();
    if world.serving {
        world.tell(Event::Lost);
    }
    world.settle();
    assert_eq!(world.state(), "down");
    assert!(world.stands.is_empty() && world.record.is_empty());
    assert_eq!(world.answers.len() as u32, world.asked);
}

#[test]
fn whatever_happens_all_is_undone_in_the_end() {
    for seed in 0..10_000 {
        let played = std::panic::catch_unwind(|| play(seed));
        assert!(played.is_ok(), "seed {seed}");
    }
}
