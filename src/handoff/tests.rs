//! Each step in each course, a blow at each moment: all of them.

use super::world_tests::*;
use super::*;

fn up(plan: Plan) -> World {
    let mut world = World::new(plan);
    world.tell(Event::Serve);
    world.settle();
    assert_eq!(world.state(), "up");
    world
}

#[test]
fn it_goes_up_in_order_and_down_in_reverse() {
    let mut world = up(plan());
    let went_up = [
        Task::AwaitDevice,
        Task::HooksBefore(Direction::Up),
        Task::CheckFileSystem,
        Task::Mount,
        Task::AddAddress,
        Task::StartService,
        Task::CheckHealth,
        Task::HooksAfter(Direction::Up),
    ];
    assert_eq!(world.runs[..8], went_up);
    assert!(world.runs[8..].iter().all(|t| *t == Task::CheckHealth));
    assert_eq!(world.reports.len(), 1);
    let phases: Vec<&str> = world.reports[0].phases.iter().map(|p| p.phase).collect();
    assert_eq!(phases, ["device", "before", "check", "mount", "address", "service", "healthy", "after"]);
    let before = world.runs.len();
    world.tell(Event::StepDown { force: false });
    world.settle();
    let went_down = [
        Task::HooksBefore(Direction::Down),
        Task::StopService,
        Task::RemoveAddress,
        Task::Unmount,
        Task::HooksAfter(Direction::Down),
    ];
    assert_eq!(world.runs[before..], went_down);
    assert_eq!((world.answers.as_slice(), world.state()), ([Ok(())].as_slice(), "down"));
    assert!(world.stands.is_empty() && world.record.is_empty());
    world.tell(Event::Lost);
    assert_eq!(world.state(), "down", "and that was all");
    assert_eq!(world.runs.len(), before + 5);
}

/// H5: a stop waits for the check, whose end is not the way up any more; others who ask wait with it.
#[test]
fn a_daemon_that_is_told_to_stop_waits_for_a_check() {
    for course in [Course::Succeeds, Course::Fails] {
        let mut world = World::new(plan());
        world.faults.insert(2, course);
        world.tell(Event::Serve);
        while world.runs.last() != Some(&Task::CheckFileSystem) {
            assert!(world.step());
        }
        world.tell(Event::StepDown { force: false });
        assert!(
            world.answers[0].as_ref().is_err_and(|why| why.contains("check of the file system")),
            "{:?}",
            world.answers
        );
        world.tell(Event::Leave);
        world.tell(Event::StepDown { force: false });
        world.tell(Event::Leave);
        assert_eq!((world.answers.len(), world.state()), (1, "going_up"));
        assert_eq!(world.notes.iter().filter(|n| **n == Note::StopAwaitsCheck).count(), 1);
        world.settle();
        assert_eq!(world.runs[3..], [Task::HooksBefore(Direction::Down)], "nothing went up behind it");
        assert_eq!((&world.answers[1..], world.state()), ([Ok(()), Ok(()), Ok(())].as_slice(), "down"));
    }
}

#[test]
fn a_device_that_is_gone_is_left_and_all_is_put_up_anew() {
    let mut world = up(plan());
    let before = world.runs.len();
    world.strike(Blow::DeviceGone);
    world.settle();
    let first = [Task::RemoveAddress, Task::KillService, Task::KillHolders, Task::Unmount];
    assert_eq!(world.runs[before..before + 4], first);
    assert_eq!(world.runs[before + 5], Task::AwaitDevice);
    assert_eq!((world.state(), world.stands.len()), ("up", 3));
    assert_eq!(world.reports[1].why, "its process died");
}

/// What was left is undone, also where the file asks for nothing any more.
#[test]
fn without_a_handoff_what_is_left_is_undone_and_nothing_goes_up() {
    let mut world = up(plan());
    world.plan = Plan::NOTHING;
    let before = world.runs.len();
    world.strike(Blow::CrashAndServes);
    world.settle();
    assert_eq!(world.runs[before..], [Task::RemoveAddress, Task::KillService, Task::KillHolders, Task::Unmount]);
    assert!(world.stands.is_empty() && world.state() == "down");
    world.tell(Event::PutUp);
    world.tell(Event::StepDown { force: false });
    assert_eq!((world.state(), world.answers.as_slice()), ("down", [Ok(())].as_slice()));
}

#[test]
fn a_lost_term_fails_the_device_first() {
    let mut world = up(plan());
    let before = world.runs.len();
    world.tell(Event::Lost);
    world.settle();
    let tasks = [
        Task::FailDevices,
        Task::RemoveAddress,
        Task::KillService,
        Task::KillHolders,
        Task::UnmountLazily,
        Task::HooksAfter(Direction::Lost),
    ];
    assert_eq!(world.runs[before..], tasks);
    assert!(world.stands.is_empty() && world.record.is_empty() && world.state() == "down");
}

#[test]
fn what_a_dead_daemon_left_is_undone_before_anything_goes_up() {
    let mut world = up(plan());
    let before = world.runs.len();
    world.strike(Blow::CrashAndServes);
    world.settle();
    let first = [Task::RemoveAddress, Task::KillService, Task::KillHolders, Task::Unmount];
    assert_eq!(world.runs[before..before + 4], first);
    assert_eq!(world.runs[before + 5], Task::AwaitDevice);
    assert_eq!(world.state(), "up");
}

/// How many inputs an undisturbed course has, going up and down again.
const COURSE: usize = 40;

/// What must be in the end, whatever happened.
fn check_end(world: &World, context: &str) {
    // A stop waits for a check that does not end.
    let checks = world.state() == "going_up" && world.machine.view().step == Some(Step::Check);
    assert!(world.answers.len() as u32 == world.asked || checks, "{context}: each step-down is answered");
    match world.state() {
        "up" => assert!(world.stands.len() == 3 && world.serving, "{context}: {:?}", world.stands),
        "down" | "faulted" => {
            assert!(world.stands.is_empty() && world.record.is_empty(), "{context}: {:?} stand", world.stands);
        }
        // A check that does not end is waited for.
        "going_up" if checks => {}
        other => panic!("{context}: it rests as {other}: {:?}", world.machine),
    }
    if !world.serving {
        assert!(world.stands.is_empty(), "{context}: {:?} stand on a passive", world.stands);
    }
}

/// One fault anywhere, one blow anywhere: the rules are checked by the world at each moment.
#[test]
fn every_fault_at_every_run_and_every_blow_at_every_moment() {
    let mut courses = 0;
    for fault in std::iter::once(None).chain((0..14).flat_map(|run| FAULTS.map(|f| Some((run, f))))) {
        for blow in std::iter::once(None).chain((1..COURSE).flat_map(|at| BLOWS.map(|b| Some((at, b))))) {
            for (peer, hand_over) in [(None, Ok(())), (Some("beta"), Ok(())), (Some("beta"), Err("no".to_string()))] {
                let context = format!("{fault:?}, {blow:?}, {peer:?}");
                let mut world = World::new(plan());
                world.faults = fault.into_iter().collect();
                (world.blow, world.peer, world.hand_over) = (blow, peer.map(str::to_string), hand_over);
                world.tell(Event::Serve);
                world.settle();
                check_end(&world, &context);
                if world.serving && world.state() == "up" {
                    world.blow = None;
                    world.tell(Event::StepDown { force: false });
                    world.settle();
                    check_end(&world, &context);
                    assert!(world.state() == "down" || world.answers.last().is_some_and(Result::is_err), "{context}");
                }
                courses += 1;
            }
        }
    }
    println!("{courses} courses");
}

/// The same on the way down and after a lost term: faults by the number of the run in that way.
#[test]
fn every_fault_on_every_way_down() {
    for way in
        [Blow::StepDown, Blow::ForcedStepDown, Blow::Lost, Blow::LostAndServes, Blow::Crash, Blow::CrashAndServes]
    {
        for first in 0..10 {
            for second in first..10 {
                for (a, b) in FAULTS.iter().flat_map(|a| FAULTS.iter().map(move |b| (*a, *b))) {
                    let mut world = up(plan());
                    let runs = world.runs.len();
                    world.faults = [(runs + second, b), (runs + first, a)].into();
                    world.strike(way);
                    world.settle();
                    check_end(&world, &format!("{way:?}, {first} {a:?}, {second} {b:?}"));
                }
            }
        }
    }
}

#[test]
fn a_failed_step_is_another_nodes_turn() {
    for (task, run) in [(Task::AwaitDevice, 0), (Task::CheckFileSystem, 2), (Task::Mount, 3), (Task::StartService, 5)] {
        let mut world = World::new(plan());
        world.faults = [(run, Course::Fails)].into();
        world.peer = Some("beta".into());
        world.tell(Event::Serve);
        world.settle();
        assert_eq!(world.runs[run], task);
        assert_eq!((world.state(), world.serving), ("down", false), "{task:?}");
        assert!(world.notes.iter().any(|n| matches!(n, Note::HandingOver { to, .. } if to == "beta")));
        // It comes back soon, and fails again: then it stays, or two nodes that both fail would go on for ever.
        world.faults = [(world.runs.len() + run, Course::Fails)].into();
        world.tell(Event::Serve);
        world.settle();
        assert_eq!((world.state(), world.serving), ("faulted", true), "{task:?}");
        assert!(world.machine.view().why.is_some());
        world.tell(Event::PutUp);
        world.settle();
        assert_eq!(world.state(), "up", "mended, and asked to try again");
    }
}

#[test]
fn without_a_peer_it_stays_active_and_says_so() {
    let mut world = World::new(plan());
    world.faults = [(3, Course::Fails)].into();
    world.tell(Event::Serve);
    world.settle();
    assert_eq!((world.state(), world.serving), ("faulted", true));
    assert_eq!(world.machine.view().why.as_deref(), Some("mount: it failed"));
    assert!(world.notes.iter().any(|n| matches!(n, Note::NotHandedOver { .. })));
}

#[test]
fn a_long_check_is_left_to_its_end() {
    let mut world = World::new(plan());
    world.faults = [(2, Course::Hangs)].into();
    world.tell(Event::Serve);
    world.settle();
    assert_eq!(world.machine.view().step, Some(Step::Check));
    assert!(world.notes.iter().any(|n| matches!(n, Note::FsckTakesLong { .. })));
    world.tell(Event::StepDown { force: false });
    assert!(world.answers[0].as_ref().is_err_and(|why| why.contains("check of the file system")));
    world.tell(Event::StepDown { force: true });
    world.settle();
    assert_eq!((world.answers.len(), world.state()), (2, "down"));
    assert!(world.has_run(Task::FailDevices), "the device under it fails, and so does the check");
}

#[test]
fn a_busy_mount_and_a_hung_service_are_dealt_with_in_stages() {
    let mut world = up(plan());
    let runs = world.runs.len();
    // StopService hangs, the first two unmounts are refused.
    world.faults = [(runs + 1, Course::Hangs), (runs + 4, Course::Fails), (runs + 6, Course::Fails)].into();
    world.tell(Event::StepDown { force: false });
    world.settle();
    let tasks = [
        Task::HooksBefore(Direction::Down),
        Task::StopService,
        Task::KillService,
        Task::RemoveAddress,
        Task::Unmount,
        Task::TerminateHolders,
        Task::Unmount,
        Task::KillHolders,
        Task::Unmount,
        Task::HooksAfter(Direction::Down),
    ];
    assert_eq!(world.runs[runs..], tasks);
    assert_eq!(world.answers, [Ok(())]);
}

/// What cannot be unmounted is not given away: the service comes back, unless it is forced.
#[test]
fn a_mount_that_stays_busy_keeps_the_node_active() {
    let busy = |world: &mut World| {
        let runs = world.runs.len();
        world.faults = [3, 5, 7].map(|n| (runs + n, Course::Fails)).into();
    };
    let mut world = up(plan());
    busy(&mut world);
    world.tell(Event::StepDown { force: false });
    world.settle();
    assert!(world.answers[0].is_err());
    assert_eq!((world.state(), world.stands.len()), ("up", 3));
    let checks = world.runs.iter().filter(|t| **t == Task::CheckFileSystem).count();
    assert_eq!(checks, 1, "a mounted file system is not checked");
    busy(&mut world);
    world.tell(Event::StepDown { force: true });
    world.settle();
    assert_eq!((world.answers.last(), world.state()), (Some(&Ok(())), "down"));
    assert!(world.has_run(Task::FailDevices) && world.has_run(Task::UnmountLazily));
}

#[test]
fn what_cannot_be_undone_keeps_it_out_and_is_tried_again() {
    let mut world = up(plan());
    let runs = world.runs.len();
    // FailDevices, RemoveAddress, KillService: the last does not work.
    world.faults = [(runs + 2, Course::Fails)].into();
    world.tell(Event::Lost);
    while world.state() != "unable" {
        assert!(world.step());
    }
    assert_eq!((world.resets, world.record.iter().copied().collect::<Vec<_>>()), (1, vec![Step::Service]));
    world.tell(Event::Serve);
    assert_eq!(world.state(), "unable", "nothing goes up meanwhile");
    world.settle();
    assert_eq!((world.state(), world.stands.len()), ("up", 3));
}

fn failing_health(on_fail: OnFail, fails: usize) -> World {
    let mut world = up(Plan { health: Some(Health { every_ms: 5000, fail: 3, on_fail }), ..plan() });
    let runs = world.runs.len();
    world.faults = (0..fails).map(|n| (runs + n, Course::Fails)).collect();
    world
}

#[test]
fn failing_health_does_what_the_file_says() {
    let mut world = failing_health(OnFail::Takeover, 3);
    world.peer = Some("beta".into());
    world.settle();
    assert_eq!((world.state(), world.serving), ("down", false));
    assert!(world.has_run(Task::StopService));

    let mut world = failing_health(OnFail::Takeover, 3);
    world.settle();
    assert_eq!((world.state(), world.stands.len()), ("up", 3), "nobody could take over; it is left alone");
    assert!(world.notes.contains(&Note::HealthBack) && !world.has_run(Task::StopService));

    let mut world = failing_health(OnFail::Report, 3);
    world.peer = Some("beta".into());
    world.settle();
    assert!(world.serving && world.notes.contains(&Note::HealthBack) && !world.has_run(Task::StopService));

    let mut world = failing_health(OnFail::Restart, 3);
    world.settle();
    assert_eq!((world.state(), world.stands.len()), ("up", 3));
    let count = |task| world.runs.iter().filter(|t| **t == task).count();
    assert_eq!([count(Task::StartService), count(Task::Mount), count(Task::Unmount)], [2, 1, 0]);

    let mut world = failing_health(OnFail::Takeover, 2);
    world.peer = Some("beta".into());
    world.settle();
    assert!(world.serving && !world.has_run(Task::StopService), "two failures of three");
}

#[test]
fn restarts_of_the_service_are_limited() {
    let mut world = up(Plan { health: Some(Health { every_ms: 5000, fail: 1, on_fail: OnFail::Restart }), ..plan() });
    world.peer = Some("beta".into());
    for round in 0..4 {
        // Healthy when it is started, and soon no longer.
        world.settle();
        let now = world.runs.len();
        world.faults = [(now, Course::Fails)].into();
        while world.runs.len() == now {
            world.step();
        }
        world.faults.clear();
        world.settle();
        assert_eq!(world.serving, round < 3, "round {round}");
    }
}

#[test]
fn only_what_the_file_asks_for_is_done() {
    let mut world = up(Plan { steps: vec![Step::Address], health: None, ..plan() });
    assert_eq!(world.runs, [Task::AddAddress]);
    world.tell(Event::Lost);
    world.settle();
    assert_eq!(world.runs, [Task::AddAddress, Task::RemoveAddress]);
}
