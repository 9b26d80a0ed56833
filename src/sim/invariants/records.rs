//! Invariant 4, as early as it can be seen: a record on its way to a peer is the record that the client wrote there.

use super::super::truth::{Pos, Span, Truth, stamp_of};
use super::{Violation, broken};
use crate::core::{Kind, Lsn, Record, Term};

const NAME: &str = "4 records";

/// Records that a node with this lineage sends.
pub fn check(lineage: &[Term], records: &[Record], truth: &Truth) -> Result<(), Violation> {
    for record in records {
        let Some(term) = lineage.iter().rev().find(|t| t.first <= record.lsn) else {
            return Err(broken(NAME, format!("{:?} was sent, which is in no term of the sender", record.lsn)));
        };
        let pos = Pos { term: term.id, lsn: record.lsn };
        let known = truth.record(pos);
        let sent = span(record, truth);
        if known.is_none() || known != sent {
            return Err(broken(NAME, format!("{pos:?} was sent as {sent:?} ({record:?}), and is {known:?}")));
        }
    }
    Ok(())
}

/// Records that follow each other in one message must be consecutive.
pub fn check_order(records: &[Record]) -> Result<(), Violation> {
    match records.windows(2).find(|w| w[1].lsn != w[0].lsn.next()) {
        Some(w) => Err(broken(NAME, format!("{:?} follows {:?} in one message", w[1].lsn, w[0].lsn))),
        None => Ok(()),
    }
}

fn span(record: &Record, truth: &Truth) -> Option<Span> {
    let size = truth.geometry.block;
    let (block, count) = (record.offset / size, record.length / size);
    let of = |stamp| Span { volume: record.volume, block, count, stamp };
    if record.kind != Kind::Write {
        return (record.lsn > Lsn(0)).then(|| of(0));
    }
    // Its checksum is compared with its bytes where the frame arrives.
    if record.payload.len() as u64 != record.length {
        return None;
    }
    let mut stamps = record.payload.chunks_exact(size as usize).map(stamp_of);
    let first = stamps.next()??;
    let whole = stamps.zip(first + 1..).all(|(stamp, want)| stamp == Some(want));
    whole.then(|| of(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{TermId, VolumeId};
    use crate::sim::truth::{Geometry, fill};

    #[test]
    fn another_record_than_was_written_is_told() {
        let term = Term { number: 1, id: TermId(1), first: Lsn(1) };
        let mut truth = Truth::new(Geometry { block: 512, volumes: vec![4] });
        truth.learn(&[term]).unwrap();
        truth.append(TermId(1), Span { volume: VolumeId(0), block: 1, count: 2, stamp: 7 });
        let payload = fill(7, 2, 512);
        let crc = crc32fast::hash(&payload);
        let record =
            Record { lsn: Lsn(1), volume: VolumeId(0), kind: Kind::Write, offset: 512, length: 1024, crc, payload };
        assert_eq!(check(&[term], std::slice::from_ref(&record), &truth), Ok(()));
        let wrong = [
            Record { lsn: Lsn(2), ..record.clone() },
            Record { offset: 0, ..record.clone() },
            Record { kind: Kind::Discard, ..record.clone() },
            Record { payload: fill(8, 2, 512), ..record.clone() },
        ];
        assert!(wrong.iter().all(|r| check(&[term], std::slice::from_ref(r), &truth).is_err()));
        assert!(check_order(&[record.clone(), record]).is_err());
    }
}
