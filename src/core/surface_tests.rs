//! What the operator sees: latencies, progress, troubles, refusals.

use super::duo_tests::{ALPHA, BETA, Duo};
use super::notice::{Notice, Refusal};
use super::progress::What;
use super::*;

const STORE: Part = Part::Store(VolumeId(0));

fn count(duo: &Duo, side: usize, wanted: impl Fn(&Notice) -> bool) -> usize {
    duo.sides[side].notices.iter().filter(|n| wanted(n)).count()
}

#[test]
fn the_parts_of_a_durable_write_add_up() {
    let mut duo = Duo::in_sync();
    (duo.wire_us, duo.sides[ALPHA].io_us, duo.sides[BETA].io_us) = (400, 100, 700);
    duo.run_ms(30_000);
    for block in 0..100 {
        duo.write(ALPHA, block, true);
        duo.run_ms(5);
    }
    let status = duo.status(ALPHA);
    let (write, disk) = (status.latency_us.write.unwrap(), status.latency_us.local_disk.unwrap());
    let peer = status.peers[0].latency_us;
    let (wire, far) = (peer.wire.unwrap(), peer.disk.unwrap());
    assert!(write.count >= 100 && (1500..=1700).contains(&write.p50), "{write:?}");
    assert!((100..=112).contains(&disk.p50), "{disk:?}");
    // Not a heartbeat's alone: those of the writes lay 700 µs at the peer before they were acknowledged.
    assert!((800..=900).contains(&wire.p50) && wire.max <= 900, "{wire:?}");
    assert!((700..=787).contains(&far.p50), "{far:?}");
    assert_eq!(status.latency_us.flush, None);
    assert!(duo.status(BETA).latency_us.local_disk.is_some());
}

/// A heartbeat that is answered with the next one says nothing of the way.
#[test]
fn an_idle_link_has_the_round_trip_of_the_link() {
    // beta has a shorter heartbeat, so it says again what it has said before alpha has sent anything new.
    let mut duo = Duo::tuned(|config| config.heartbeat_ms = if config.me == NodeId(0) { 100 } else { 60 });
    duo.promote();
    duo.run_ms(20_000);
    let status = duo.status(ALPHA);
    assert!((200..400).contains(&status.peers[0].round_trip_us), "{}", status.peers[0].round_trip_us);
    assert!(status.peers[0].latency_us.wire.unwrap().max < 400);
}

#[test]
fn a_resync_shows_how_far_it_is_on_both_sides_and_then_no_more() {
    let mut duo = Duo::in_sync();
    duo.order(ALPHA, Command::Disconnect { peer: "beta".into(), force: true }).unwrap();
    for _ in 0..8 {
        for block in 0..512 {
            duo.write(ALPHA, block, false);
        }
        duo.run_ms(300);
    }
    assert_eq!(duo.status(ALPHA).peers[0].progress, None);
    duo.sides[BETA].io_us = 200_000;
    duo.order(ALPHA, Command::Connect { peer: "beta".into(), dry_run: false }).unwrap();
    let (mut seen, mut last, mut timed) = (0, 0, 0);
    for _ in 0..600 {
        duo.run_ms(100);
        let Some(progress) = duo.status(ALPHA).peers[0].progress else { continue };
        if progress.what == What::Resync {
            seen += 1;
            assert!(progress.done_bytes >= last, "it goes on");
            last = progress.done_bytes;
            assert!(progress.total_bytes.is_some_and(|t| t >= 512 * 4096 && t >= last), "{progress:?}");
            timed += usize::from(progress.left_s.is_some_and(|s| s > 0.0));
            let other = duo.status(BETA).peers[0].progress;
            assert!(
                other.is_none_or(|p| p.what == What::Resync && p.total_bytes.is_none_or(|t| t == 512 * 4096)),
                "{other:?}"
            );
        }
    }
    assert!(seen > 3 && timed > 0 && last > 0, "{seen} looks, {timed} with a time, {last} bytes");
    duo.sides[BETA].io_us = 50;
    duo.run_ms(3000);
    assert_eq!((duo.status(ALPHA).peers[0].state, duo.status(ALPHA).peers[0].progress), ("in_sync", None));
}

#[test]
fn a_catch_up_shows_how_far_it_is() {
    let mut duo = Duo::tuned(|config| config.window = 64 << 10);
    duo.promote();
    duo.order(ALPHA, Command::Disconnect { peer: "beta".into(), force: true }).unwrap();
    for block in 0..300 {
        duo.write(ALPHA, block, false);
    }
    duo.run_ms(300);
    duo.wire_us = 400_000;
    duo.order(ALPHA, Command::Connect { peer: "beta".into(), dry_run: false }).unwrap();
    let mut seen = Vec::new();
    for _ in 0..200 {
        duo.run_ms(50);
        seen.extend(duo.status(ALPHA).peers[0].progress);
    }
    assert!(seen.iter().all(|p| p.what == What::CatchUp && p.total_bytes >= Some(300 * 4096)), "{seen:?}");
    assert!(seen.iter().any(|p| p.left_s.is_some_and(|s| s > 0.1 && s < 10.0)), "{seen:?}");
    duo.wire_us = 100;
    duo.run_ms(3000);
    assert_eq!((duo.status(ALPHA).peers[0].state, duo.status(ALPHA).peers[0].progress), ("in_sync", None));
}

#[test]
fn a_store_that_cannot_be_written_is_a_problem_with_a_remedy_and_said_seldom() {
    let mut duo = Duo::in_sync();
    duo.sides[ALPHA].disk.broken.insert(STORE, 28);
    duo.write(ALPHA, 1, true);
    duo.run_ms(120_000);
    let status = duo.status(ALPHA);
    assert_eq!((status.state, status.problems.len()), ("serving", 1), "{:?}", status.problems);
    let problem = &status.problems[0];
    assert!(problem.part == "store" && problem.what.contains("no space left") && problem.remedy.contains("make room"));
    assert!(problem.since_s.is_some_and(|s| s > 100.0));
    // At 0, 10, 30 and 70 s.
    assert_eq!(count(&duo, ALPHA, |n| matches!(n, Notice::StorageFailed { .. })), 4);
    // Writes go on until the log is full, and then that is said too.
    for block in 0..1200 {
        duo.write(ALPHA, block % 512, false);
        duo.run_ms(2);
    }
    let full = duo.status(ALPHA).problems;
    assert!(full.iter().any(|p| p.part == "memory" && p.remedy.contains("see the store")), "{full:?}");
    duo.sides[ALPHA].disk.broken.clear();
    duo.run_ms(20_000);
    assert_eq!(duo.status(ALPHA).problems, []);
    assert_eq!(count(&duo, ALPHA, |n| matches!(n, Notice::StorageWorks { part } if part == "store")), 1);
}

#[test]
fn a_failed_log_is_a_problem_with_a_remedy() {
    let mut duo = Duo::in_sync();
    duo.sides[ALPHA].disk.broken.insert(Part::Log, 5);
    duo.write(ALPHA, 1, true);
    duo.run_ms(1000);
    let status = duo.status(ALPHA);
    assert_eq!(status.state, "faulted");
    assert!(status.fault.is_some_and(|f| f == "log: input/output error (errno 5)"));
    assert!(status.problems[0].part == "log" && status.problems[0].remedy.contains("promote another node"));
}

#[test]
fn what_differs_is_named_and_mended() {
    let mut duo = Duo::in_sync();
    for block in 0..8 {
        duo.write(ALPHA, block, true);
    }
    duo.run_ms(1000);
    let verify = |duo: &mut Duo, repair| match duo.order(ALPHA, Command::Verify { repair }) {
        Ok(Answer::Verified(report)) => *report,
        other => panic!("{other:?}"),
    };
    assert!(verify(&mut duo, false).equal);
    duo.sides[BETA].disk.write(STORE, 8192, &crate::buf::Payload::copy_of(&[7; 4096])).unwrap();
    let found = verify(&mut duo, false);
    assert!(!found.equal && !found.peers[0].repaired);
    let range = verify::Range { volume: "disk0".into(), offset: 8192, length: 4096 };
    assert_eq!((found.peers[0].differing_bytes, &found.peers[0].ranges[..]), (4096, &[range][..]));
    assert_eq!(found.peers[0].compared_bytes, 8 << 20);
    let mended = verify(&mut duo, true);
    assert!(mended.equal && mended.peers[0].repaired);
    duo.run_ms(1000);
    assert_eq!(verify(&mut duo, false).peers[0].differing_bytes, 0);
    duo.order(ALPHA, Command::Disconnect { peer: "beta".into(), force: true }).unwrap();
    let refused = duo.order(ALPHA, Command::Verify { repair: false }).unwrap_err().to_string();
    assert!(refused.contains("beta: it is down: disconnected by the operator"), "{refused}");
}

#[test]
fn the_log_tells_what_it_holds_and_for_whom() {
    let mut duo = Duo::in_sync();
    let report = |duo: &mut Duo| match duo.order(ALPHA, Command::Log) {
        Ok(Answer::Log(report)) => *report,
        other => panic!("{other:?}"),
    };
    for block in 0..5 {
        duo.write(ALPHA, block, true);
    }
    let seen = report(&mut duo);
    assert_eq!((seen.from, seen.to, seen.held_by), (Lsn(1), Lsn(5), log_report::HeldBy::Store));
    duo.run_ms(1000);
    let seen = report(&mut duo);
    assert_eq!((seen.durable, seen.droppable_to, seen.covers_bytes), (Lsn(5), Lsn(5), 5 * 4096));
    assert_eq!((seen.held_by, seen.used + seen.free), (log_report::HeldBy::Nobody, seen.size));
    assert_eq!(seen.terms.iter().map(|t| (t.number, t.from, t.to)).collect::<Vec<_>>(), [(1, Lsn(1), Lsn(5))]);
    assert!(seen.peers[0].reached && seen.peers[0].durable == Lsn(5));
}

/// alpha and beta were both promoted by force while they were parted.
fn both_forced() -> Duo {
    let mut duo = Duo::in_sync();
    duo.part();
    duo.run_ms(1500);
    let refused = duo.order(BETA, Command::Promote { force: false, off: vec![] }).unwrap_err().to_string();
    assert!(refused.contains("alpha was active, and may have gone on alone"), "{refused}");
    match duo.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] }) {
        Ok(Answer::Text(text)) => assert!(text.contains("whatever alpha completed alone"), "{text}"),
        other => panic!("{other:?}"),
    }
    duo.order(ALPHA, Command::Demote { force: true }).unwrap();
    duo.order(ALPHA, Command::Promote { force: true, off: vec!["beta".into()] }).unwrap();
    duo
}

#[test]
fn a_conflict_has_one_answer_at_every_moment() {
    let mut duo = both_forced();
    duo.parted = false;
    duo.run_ms(3000);
    duo.order(BETA, Command::Demote { force: true }).unwrap();
    duo.run_ms(3000);
    for _ in 0..60 {
        duo.run_ms(97);
        let refused = duo.order(BETA, Command::Promote { force: false, off: vec![] }).unwrap_err();
        assert!(matches!(refused, Refusal::Conflict { .. }), "{refused:?}");
    }
}

#[test]
fn a_split_brain_is_said_once() {
    let mut duo = both_forced();
    duo.parted = false;
    duo.run_ms(20_000);
    assert_eq!(count(&duo, BETA, |n| matches!(n, Notice::SplitBrain { .. })), 1);
    assert_eq!(count(&duo, ALPHA, |n| matches!(n, Notice::SplitBrain { .. })), 1);
}

/// A disk that is filled by attempts to rejoin would never have room for one.
#[test]
fn a_rejoin_that_fails_after_it_set_orphans_aside_does_not_do_so_again() {
    let mut duo = Duo::in_sync();
    duo.part();
    duo.run_ms(1500);
    duo.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] }).unwrap();
    duo.write(ALPHA, 1, true);
    duo.run_ms(500);
    duo.order(ALPHA, Command::Demote { force: true }).unwrap();
    duo.sides[ALPHA].disk.broken.insert(Part::History, 28);
    duo.parted = false;
    duo.run_ms(10_000);
    let refused = count(&duo, ALPHA, |n| matches!(n, Notice::Handshake { .. }));
    assert!(refused > 3, "it is tried again and again: {refused}");
    assert_eq!(count(&duo, ALPHA, |n| matches!(n, Notice::OrphansSetAside { .. })), 1);
    duo.sides[ALPHA].disk.broken.clear();
    duo.run_ms(5000);
    assert_eq!(duo.status(BETA).in_sync.len(), 2, "what was set aside counts when there is room");
    assert_eq!(count(&duo, ALPHA, |n| matches!(n, Notice::OrphansSetAside { .. })), 1);
}

#[test]
fn an_active_that_waits_for_its_members_after_a_restart_sleeps() {
    let mut duo = Duo::in_sync();
    duo.stop(ALPHA);
    duo.stop(BETA);
    duo.start(ALPHA);
    duo.run_ms(20_000);
    assert_eq!(duo.status(ALPHA).role, Role::Passive);
    let mut wakings = 0;
    let end = duo.now.plus_ms(5000);
    while duo.now < end {
        let next = duo.node(ALPHA).deadline().map_or(end, |t| t.min(end));
        duo.run_ms(next.since_us(duo.now) / 1000 + 1);
        wakings += 1;
    }
    assert!(wakings < 50, "{wakings} in 5 s");
}
