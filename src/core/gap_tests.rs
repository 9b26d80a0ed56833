//! A history that is gone, cut off, or was never there: an open gap has no way back then.

use super::duo_tests::{ALPHA, BETA, Duo, MIB};
use super::notice::Refusal;
use super::*;

const NO_ROOM: i32 = 28;

fn write(duo: &mut Duo, blocks: std::ops::Range<u64>) {
    for block in blocks {
        duo.write(ALPHA, block, false);
    }
}

/// alpha has gone on alone until its ring had dropped what beta lacks.
fn far_apart(tune: fn(&mut NodeConfig)) -> Duo {
    let mut duo = Duo::tuned(tune);
    duo.promote();
    write(&mut duo, 0..40);
    duo.run_ms(500);
    duo.part();
    for round in 0..12 {
        write(&mut duo, round * 75..round * 75 + 100);
        duo.run_ms(500);
    }
    duo
}

/// A resync of beta is under way, some of its undo is saved; then beta is stopped.
fn stopped_in_mid_resync() -> Duo {
    let mut duo = far_apart(|_| ());
    duo.sides[BETA].io_us = 20_000;
    duo.parted = false;
    for _ in 0..3000 {
        duo.run_ms(1);
        if duo.sides[BETA].disk.size(Part::History).unwrap() > 64 << 10 {
            duo.run_ms(100);
            break;
        }
    }
    assert!(duo.status(BETA).image.rollback.is_some(), "a gap with a way back: {:?}", duo.status(BETA).image);
    duo.stop(BETA);
    duo
}

fn promoted_alone(duo: &mut Duo) -> Result<Answer, Refusal> {
    duo.stop(ALPHA);
    duo.start(BETA);
    duo.run_ms(100);
    duo.order(BETA, Command::Promote { force: true, off: vec!["alpha".into()] })
}

#[test]
fn an_open_gap_leads_back_while_its_history_is_there() {
    let mut duo = stopped_in_mid_resync();
    assert!(promoted_alone(&mut duo).is_ok());
}

#[test]
fn an_open_gap_without_its_history_is_not_promoted_and_is_resynced() {
    let mut duo = stopped_in_mid_resync();
    duo.sides[BETA].disk.truncate(Part::History, 0).unwrap();
    assert!(matches!(promoted_alone(&mut duo), Err(Refusal::NoImage)));
    let image = duo.status(BETA).image;
    assert!(!image.valid && image.why.is_some_and(|why| why.contains("damaged or lost")));
    duo.sides[BETA].io_us = 50;
    duo.start(ALPHA);
    duo.run_ms(5000);
    duo.order(ALPHA, Command::Promote { force: true, off: vec![] }).ok();
    duo.run_ms(20_000);
    assert!(duo.status(BETA).image.valid, "{:?}", duo.status(BETA).peers);
    let stores = [ALPHA, BETA].map(|s| duo.sides[s].disk.read(Part::Store(VolumeId(0)), 0, 8 * MIB).unwrap());
    assert!(stores[0] == stores[1], "what alpha holds was not all sent");
}

#[test]
fn a_history_that_is_cut_off_is_no_way_back() {
    let mut duo = stopped_in_mid_resync();
    // The notes are there, and the first batch of undo is not whole.
    duo.sides[BETA].disk.truncate(Part::History, 3 * 4096).unwrap();
    assert!(matches!(promoted_alone(&mut duo), Err(Refusal::NoImage)));
}

#[test]
fn without_room_for_its_notes_a_gap_is_opened_only_where_the_file_allows_it() {
    let mut duo = far_apart(|_| ());
    duo.sides[BETA].disk.broken.insert(Part::History, NO_ROOM);
    duo.parted = false;
    duo.run_ms(3000);
    assert!(duo.status(BETA).image.valid, "it has overwritten nothing");
    assert_eq!(duo.status(ALPHA).in_sync.len(), 1);

    let mut duo = far_apart(|config| config.allow_invalid = true);
    duo.sides[BETA].disk.broken.insert(Part::History, NO_ROOM);
    duo.sides[BETA].io_us = 20_000;
    duo.parted = false;
    for _ in 0..5000 {
        duo.run_ms(1);
        if !duo.status(BETA).image.valid {
            break;
        }
    }
    assert!(!duo.status(BETA).image.valid, "{:?} {:?}", duo.status(BETA).peers, duo.sides[BETA].notices);
    duo.stop(BETA);
    assert!(matches!(promoted_alone(&mut duo), Err(Refusal::NoImage | Refusal::Overwritten)));
}
