//! A log of which some sectors cannot be read at all (L2). To recovery they are zeros, which nothing takes for records, and it knows where
//! they are.

use super::api::{IoError, Part};
use super::disk::BlockingDisk;
use crate::buf::{BufMut, Payload};
use crate::format::BLOCK;

/// What a medium says of a sector that it has lost: EIO, ENODATA, EILSEQ, EREMOTEIO.
const LOST: [i32; 4] = [5, 61, 84, 121];
/// With more of them it is the disk that has failed.
const MOST: usize = 64;

/// Whether an error is the medium's, and not a matter of rights or of memory.
pub(super) fn is_lost(error: IoError) -> bool {
    LOST.contains(&error.errno)
}

pub(super) struct Sectors<'a> {
    disk: &'a mut dyn BlockingDisk,
    /// Offsets in the log of the blocks that cannot be read, and why.
    pub bad: Vec<(u64, IoError)>,
}

impl Sectors<'_> {
    pub fn of(disk: &mut dyn BlockingDisk) -> Sectors<'_> {
        Sectors { disk, bad: Vec::new() }
    }

    /// The first of them from one offset to another.
    pub fn bad_within(&self, range: std::ops::Range<u64>) -> Option<(u64, IoError)> {
        self.bad.iter().copied().filter(|(at, _)| range.contains(at)).min_by_key(|(at, _)| *at)
    }

    fn block_by_block(&mut self, offset: u64, length: u64) -> Result<Payload, IoError> {
        let mut bytes = BufMut::zeroed(length as usize);
        for at in (0..length).step_by(BLOCK) {
            match self.disk.read(Part::Log, offset + at, BLOCK as u64) {
                Ok(block) => bytes[at as usize..at as usize + BLOCK].copy_from_slice(&block),
                Err(error) if is_lost(error) && self.bad.len() < MOST => {
                    if !self.bad.iter().any(|(known, _)| *known == offset + at) {
                        self.bad.push((offset + at, error));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(bytes.freeze())
    }
}

impl BlockingDisk for Sectors<'_> {
    fn read(&mut self, part: Part, offset: u64, length: u64) -> Result<Payload, IoError> {
        match self.disk.read(part, offset, length) {
            Err(error) if part == Part::Log && is_lost(error) => self.block_by_block(offset, length),
            other => other,
        }
    }

    fn write(&mut self, part: Part, offset: u64, bytes: &Payload) -> Result<(), IoError> {
        self.disk.write(part, offset, bytes)
    }

    fn zero(&mut self, part: Part, offset: u64, length: u64) -> Result<(), IoError> {
        self.disk.zero(part, offset, length)
    }

    fn flush(&mut self, part: Part) -> Result<(), IoError> {
        self.disk.flush(part)
    }

    fn size(&mut self, part: Part) -> Result<u64, IoError> {
        self.disk.size(part)
    }

    fn truncate(&mut self, part: Part, length: u64) -> Result<(), IoError> {
        self.disk.truncate(part, length)
    }
}

#[cfg(test)]
mod tests {
    use super::super::duo_tests::{ALPHA, BETA, Duo, MemDisk};
    use super::super::*;
    use super::*;
    use crate::format::superblock::{RING_START, SLOT_OFFSETS};

    fn recover(duo: &mut Duo, side: usize) -> Result<Recovered, RecoveryError> {
        let config = duo.config(side);
        recovery::recover(&config, &mut duo.sides[side].disk)
    }

    /// beta has stopped, all that it holds applied but the last record.
    fn stopped() -> Duo {
        let mut duo = Duo::in_sync();
        for block in 0..4 {
            duo.write(ALPHA, block, true);
            duo.run_ms(500);
        }
        duo.write(ALPHA, 9, true);
        duo.run_ms(20);
        duo.stop(BETA);
        duo
    }

    /// Offsets of the headers in the ring.
    fn headers(disk: &mut MemDisk) -> Vec<u64> {
        let blocks = (RING_START..RING_START + 40 * BLOCK as u64).step_by(BLOCK);
        let is_header =
            |at: &u64| disk.read(Part::Log, *at, BLOCK as u64).unwrap().starts_with(&crate::format::batch::MAGIC);
        blocks.filter(is_header).collect()
    }

    #[test]
    fn a_sector_of_what_is_applied_costs_reach() {
        let mut duo = stopped();
        let headers = headers(&mut duo.sides[BETA].disk);
        // A header, a record, and what was never written.
        for at in [headers[0], headers[1] + BLOCK as u64, RING_START + 100 * BLOCK as u64] {
            duo.sides[BETA].disk.unreadable.insert(at);
        }
        let end = recover(&mut duo, BETA).unwrap().log.end;
        assert_eq!(end, Lsn(5));
        duo.start(BETA);
        duo.run_ms(2000);
        assert_eq!(duo.status(ALPHA).in_sync.len(), 2);
    }

    #[test]
    fn a_sector_of_what_is_in_no_store_is_waited_for() {
        let mut duo = stopped();
        let last = *headers(&mut duo.sides[BETA].disk).last().unwrap();
        for at in [last, last + BLOCK as u64] {
            duo.sides[BETA].disk.unreadable = [at].into();
            let refused = recover(&mut duo, BETA).unwrap_err();
            assert!(matches!(refused, RecoveryError::Unreadable { offset, .. } if offset == at), "{refused}");
            assert!(refused.to_string().contains(&format!("seek={} ", at / 4096)), "{refused}");
        }
        duo.sides[BETA].disk.unreadable.clear();
        assert_eq!(recover(&mut duo, BETA).unwrap().log.end, Lsn(5));
    }

    #[test]
    fn of_two_superblocks_one_may_be_unreadable() {
        for slot in SLOT_OFFSETS {
            let mut duo = stopped();
            duo.sides[BETA].disk.unreadable.insert(slot);
            assert_eq!(recover(&mut duo, BETA).unwrap().superblock.lineage.len(), 1);
        }
        let mut duo = stopped();
        duo.sides[BETA].disk.unreadable.extend(SLOT_OFFSETS);
        let refused = recover(&mut duo, BETA).unwrap_err();
        assert!(matches!(refused, RecoveryError::Io { .. }), "it is not blank: {refused}");
    }

    /// It is not known what alpha lacks: it is compared in full where the log does not reach (B2).
    #[test]
    fn a_list_that_cannot_be_read_keeps_nobody_from_starting() {
        let mut duo = Duo::tuned(|c| c.memory = 1 << 20);
        duo.promote();
        duo.part();
        duo.run_ms(1000);
        for block in 0..1500 {
            duo.write(ALPHA, block, true);
            duo.run_ms(2);
        }
        duo.run_ms(1000);
        let lists: Vec<Part> =
            duo.sides[ALPHA].disk.parts.keys().copied().filter(|p| matches!(p, Part::Bitmap { .. })).collect();
        assert!(!lists.is_empty());
        duo.stop(ALPHA);
        duo.sides[ALPHA].disk.broken_reads = lists.into_iter().collect();
        assert_eq!(recover(&mut duo, ALPHA).unwrap().lists_lost.len(), 1);
        duo.start(ALPHA);
        duo.parted = false;
        duo.run_ms(10_000);
        assert_eq!(duo.status(ALPHA).in_sync.len(), 2);
        let said = |n: &notice::Notice| matches!(n, notice::Notice::ListLost { peer, .. } if peer == "beta");
        assert!(duo.sides[ALPHA].notices.iter().any(said));
    }
}
