//! What a node finds on its disks when it starts, and what `create` writes there (L2).

use super::api::{IoError, Part};
use super::bitmap::{Bitmap, Chain};
use super::config::NodeConfig;
use super::dirty::DirtySet;
use super::disk::BlockingDisk;
use super::gap::GapState;
use super::hello::{Charter, Gap};
use super::lineage::Lineage;
use super::log::LogStart;
use super::log_index::{LogIndex, Look, look};
use super::overlay::Overlay;
use super::runs::PIECE_VOLUME;
use super::sectors::{Sectors, is_lost};
use super::types::*;
use crate::buf::Payload;
use crate::format::ring::{BatchEntry, Geometry, ScanStart, Sink, Verdict, Walked, headers_ahead, scan_into};
use crate::format::superblock::{self, RING_START, SLOT_BYTES, SuperError, Superblock};
use crate::format::{BLOCK, batch};
use std::ops::Range;

/// Random identities that `format` needs; drawn by the driver.
#[derive(Clone, Copy, Debug)]
pub struct FormatIds {
    pub log_stream: u128,
    pub history_stream: u128,
}

/// Why a node cannot start from what is on its disks. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error("reading or writing the {what} failed: errno {}", source.errno)]
    Io { what: &'static str, source: IoError },
    #[error(
        "the log cannot be read at byte {offset} (errno {}), where records may stand that are in no store yet. If the disk may come back, start \
         again then. If it does not, write zeros over these 4096 bytes of the log (dd with bs=4096 seek={} count=1 conv=notrunc): the node starts \
         then, without what stood there, and gets it from its active", source.errno, offset / 4096)]
    Unreadable { offset: u64, source: IoError },
    #[error("the log: {0}")]
    Super(#[from] SuperError),
    #[error(
        "the log belongs to {what} {found:?}, the file says {expected:?}: is this the right log, and the right file?"
    )]
    Foreign { what: &'static str, found: String, expected: String },
}

/// What a node starts from.
#[derive(Clone, Debug)]
pub struct Recovered {
    pub superblock: Superblock,
    /// The slot to write next.
    pub slot: u8,
    pub log: LogStart,
    /// Records past the checkpoint, to be applied again once committed.
    pub records: Vec<Record>,
    /// What each node of the resource lacks past the ring's reach.
    pub bitmaps: Vec<Bitmap>,
    /// The store is between two positions.
    pub gap: Option<GapState>,
    /// The newest record at or below the checkpoint that is in the log no more.
    pub unreadable: Option<Lsn>,
    /// Peers whose list of what they lack is of no use any more, and why.
    pub lists_lost: ListsLost,
}

impl Recovered {
    /// What reads see past the checkpoint.
    pub fn overlay(&self, volumes: usize) -> Overlay {
        let mut overlay = Overlay::new(volumes);
        for record in &self.records {
            overlay.insert(record);
        }
        overlay
    }
}

fn geometry(config: &NodeConfig) -> Geometry {
    let size = (config.log_size - RING_START) / 4096 * 4096;
    Geometry { start: RING_START, size }
}

/// Writes the superblock of a fresh replica (B3). The caller has prewritten the log and made the stores; `zero` says that
/// the stores are proven to read as zeros.
pub fn format(
    config: &NodeConfig,
    disk: &mut dyn BlockingDisk,
    ids: FormatIds,
    zero: bool,
) -> Result<(), RecoveryError> {
    let tail = ScanStart { address: 0, prev_crc: batch::seed(ids.log_stream), first: Lsn(1) };
    let content = Superblock {
        sequence: 1,
        resource: config.resource.clone(),
        node: config.my_name().to_string(),
        stream: ids.log_stream,
        log_size: config.log_size,
        block: config.block,
        volumes: config.volumes.iter().map(|v| (v.name.clone(), v.size)).collect(),
        lineage: Vec::new(),
        charter: Charter::default(),
        incarnation: config.incarnation,
        boot: config.boot,
        clean: true,
        checkpoint: Lsn(0),
        applying: Lsn(0),
        tail,
        zero,
        pledge: None,
        gap: None,
        history_stream: ids.history_stream,
        history_bytes: 0,
        bitmaps: Vec::new(),
        next_salvage: 1,
        log_errors: false,
        extension: Vec::new(),
        behind: tail,
        lost: None,
    };
    let bytes = superblock::encode(&content)?;
    let io = |source| RecoveryError::Io { what: "log", source };
    disk.write(Part::Log, 0, &bytes).map_err(io)?;
    let blank = crate::buf::BufMut::zeroed(SLOT_BYTES).freeze();
    disk.write(Part::Log, SLOT_BYTES as u64, &blank).map_err(io)?;
    disk.flush(Part::Log).map_err(io)
}

/// Reads what is on the disks. The whole log is validated before anything is used of it.
pub fn recover(config: &NodeConfig, disk: &mut dyn BlockingDisk) -> Result<Recovered, RecoveryError> {
    let io = |source| RecoveryError::Io { what: "log", source };
    let mut sectors = Sectors::of(disk);
    let (mut superblock, mut newest, passed_over) = read_superblock(config, &mut sectors)?;
    check_identity(config, &superblock)?;
    let mut found = read_log(config, &superblock, &mut sectors).map_err(io)?;
    if let Some(served_in) =
        passed_over.filter(|s| found.alien.is_some() && s.lineage.last().map(|t| t.id) == found.alien)
    {
        // Records were written in that term after all: by a program for which one slot was enough.
        (superblock, newest) = (served_in, newest ^ 1);
        found = read_log(config, &superblock, &mut sectors).map_err(io)?;
    }
    for stop in &found.stops {
        if let Some((offset, source)) = sectors.bad_within(stop.clone()) {
            return Err(RecoveryError::Unreadable { offset, source });
        }
    }
    let disk = &mut sectors;
    let unreadable = (found.log.tail != superblock.tail).then(|| found.log.tail.first.prev());
    let mut log = found.log;
    let is_no_image = log.end < superblock.applying;
    if is_no_image {
        give_up_image(config, &mut superblock, &mut log);
    } else if found.lost.is_some() {
        superblock.lost = found.lost;
    }
    let records = reload(&log, superblock.checkpoint, disk).map_err(io)?;
    stabilise(&log, superblock.checkpoint, disk).map_err(io)?;
    let (mut bitmaps, lists_lost) = read_bitmaps(config, &superblock, &log, disk)?;
    for bitmap in bitmaps.iter_mut().filter(|_| unreadable.is_some()) {
        // No list says what the missing records changed: whoever is older is compared in full (B2).
        bitmap.from = bitmap.from.max(log.tail.first.prev());
    }
    let gap = read_gap(config, &superblock, disk)?;
    // Both slots say all of it, the newest one last or not at all: a torn write leaves it as it is.
    let writes = if is_no_image || found.lost.is_some() { 2 } else { 1 };
    let mut slot = newest ^ 1;
    for _ in 0..writes {
        superblock.sequence += 1;
        let bytes = superblock::encode(&superblock)?;
        disk.write(Part::Log, superblock::SLOT_OFFSETS[slot], &bytes).map_err(io)?;
        disk.flush(Part::Log).map_err(io)?;
        slot ^= 1;
    }
    if found.lost.is_some() && !is_no_image {
        wipe_ahead(&log, disk).map_err(io)?;
    }
    Ok(Recovered { superblock, slot: slot as u8, log, records, bitmaps, gap, unreadable, lists_lost })
}

/// The superblock to start from, its slot, and the newest where that is another. A term that this node opened and that only the newest says was
/// never served in: nothing followed from it, and a promotion that came to nothing leaves no trace (C7).
fn read_superblock(
    config: &NodeConfig,
    disk: &mut Sectors,
) -> Result<(Superblock, usize, Option<Superblock>), RecoveryError> {
    let io = |source| RecoveryError::Io { what: "superblocks of the log", source };
    let mut slots = Vec::new();
    for at in superblock::SLOT_OFFSETS {
        slots.push(disk.read(Part::Log, at, SLOT_BYTES as u64).map_err(io)?);
    }
    let (newest, slot) = match superblock::choose(&slots[0], &slots[1]) {
        Ok(found) => found,
        // It is not blank or foreign, as far as is known.
        Err(error) => return Err(disk.bad.first().map_or(error.into(), |(_, source)| io(*source))),
    };
    let opened = |of: &Superblock| (of.charter.generation, of.charter.term);
    match superblock::decode(&slots[slot ^ 1]) {
        Ok(older)
            if newest.charter.active.as_deref() == Some(config.my_name()) && opened(&older) != opened(&newest) =>
        {
            Ok((older, slot ^ 1, Some(newest)))
        }
        _ => Ok((newest, slot, None)),
    }
}

/// A log, as far as it can be read.
struct FoundLog {
    log: LogStart,
    /// The first record past the checkpoint that was durable and cannot be read.
    lost: Option<Lsn>,
    /// Where in the log it stopped: a batch that is torn, and where the next one would be.
    stops: Vec<Range<u64>>,
    /// The term of the first record that the lineage does not know.
    alien: Option<TermId>,
}

/// Walks the log. What is damaged at or below the checkpoint costs reach: it is walked from behind there then (L2).
fn read_log(config: &NodeConfig, superblock: &Superblock, disk: &mut dyn BlockingDisk) -> Result<FoundLog, IoError> {
    let checkpoint = superblock.checkpoint;
    let (walked, mut found) = walk_log(config, superblock, superblock.tail, disk)?;
    if walked.missing.is_some() {
        let (walked, again) = walk_log(config, superblock, superblock.behind, disk)?;
        found = again;
        if walked.missing.is_some() {
            // Not even the first batch behind the checkpoint: the chain goes on where it should stand.
            let (geometry, limit) = (found.log.geometry, config.index_limit());
            found.log.tail = ScanStart { address: walked.next, prev_crc: walked.prev_crc, first: checkpoint.next() };
            (found.log.end, found.log.index) = (checkpoint, LogIndex::new(geometry.size, limit));
        }
    }
    Ok(found)
}

fn walk_log(
    config: &NodeConfig,
    superblock: &Superblock,
    from: ScanStart,
    disk: &mut dyn BlockingDisk,
) -> Result<(Walked, FoundLog), IoError> {
    let geometry = geometry(config);
    let lineage = Lineage::new(superblock.lineage.clone());
    let mut chain = Known { lineage: &lineage, alien: None, index: LogIndex::new(geometry.size, config.index_limit()) };
    let read = |offset, length| disk.read(Part::Log, offset, length);
    let walked = scan_into(&geometry, superblock.stream, from, superblock.checkpoint, read, &mut chain)?;
    let end = chain.alien.map_or(walked.end, |(alien, _)| walked.end.min(alien.prev()));
    let mut index = chain.index;
    if end < walked.end {
        index.truncate(end);
    }
    let lost = match walked.verdict {
        Verdict::Damage { lsn, .. } if end >= lsn.prev() => Some(lsn),
        _ => None,
    };
    let log = LogStart {
        geometry,
        stream: superblock.stream,
        tail: from,
        next: walked.next,
        prev_crc: walked.prev_crc,
        term_number: walked.term.map_or(0, |t| t.number),
        end,
        index,
    };
    let block = |at: u64| at..at + BLOCK as u64;
    let torn = walked.torn.map(|t| geometry.offset(t.address)..geometry.offset(t.address) + (walked.next - t.address));
    // Where the lap has room for any batch the next one does not stand at its beginning.
    let left = geometry.size - walked.next % geometry.size;
    let most = batch::MAX_BATCH_BYTES.min(geometry.size / 8).max(BLOCK as u64 + batch::MAX_RECORD_BYTES);
    let lap = (left < most).then(|| block(geometry.start));
    let stops = [block(geometry.offset(walked.next))].into_iter().chain(lap).chain(torn).collect();
    Ok((walked, FoundLog { log, lost, stops, alien: chain.alien.map(|(_, id)| id) }))
}

/// A round of applying was under way, and what it was to write cannot be read: the stores hold a part of it, and are no image until they
/// have been compared with a peer's.
fn give_up_image(config: &NodeConfig, superblock: &mut Superblock, log: &mut LogStart) {
    let checkpoint = superblock.checkpoint;
    superblock.applying = checkpoint;
    superblock.zero = false;
    superblock.lost = Some(checkpoint.next());
    superblock.gap = Some(Gap {
        rollback: None,
        since: checkpoint,
        everything: true,
        grain: config.undo_grain(),
        overwritten_in: None,
    });
    // As new as the process: what the ring still holds is foreign to it.
    log.stream = config.incarnation.0;
    log.prev_crc = batch::seed(log.stream);
    log.term_number = 0;
    log.end = checkpoint;
    log.index = LogIndex::new(log.geometry.size, config.index_limit());
    log.tail = ScanStart { address: log.next, prev_crc: log.prev_crc, first: checkpoint.next() };
    superblock.history_stream = log.stream;
    (superblock.stream, superblock.tail, superblock.behind) = (log.stream, log.tail, log.tail);
}

/// That records are lost is on record: what proves it is wiped, or it would be found again behind the records that take their place.
/// So is what cannot be read: it could be again one day.
fn wipe_ahead(log: &LogStart, disk: &mut Sectors) -> Result<(), IoError> {
    let read = |offset, length| disk.read(Part::Log, offset, length);
    let ahead = headers_ahead(&log.geometry, log.stream, log.next, read)?;
    let blank = crate::buf::BufMut::zeroed(BLOCK).freeze();
    let bad: Vec<u64> = disk.bad.iter().map(|(at, _)| *at).filter(|at| *at >= RING_START).collect();
    for offset in ahead.into_iter().chain(bad) {
        disk.write(Part::Log, offset, &blank)?;
    }
    disk.flush(Part::Log)
}

/// Whose lists cannot be read, and why.
pub type ListsLost = Vec<(NodeId, String)>;

/// The lists of what peers lack (B1). One that is shorter than it was is of no use: its peer will be compared in full.
fn read_bitmaps(
    config: &NodeConfig,
    superblock: &Superblock,
    log: &LogStart,
    disk: &mut dyn BlockingDisk,
) -> Result<(Vec<Bitmap>, ListsLost), RecoveryError> {
    let sizes: Vec<u64> = config.volumes.iter().map(|v| v.size).collect();
    let dropped = log.tail.first.prev();
    let (mut bitmaps, mut lost) = (Vec::new(), Vec::new());
    for (index, node) in config.nodes.iter().enumerate() {
        let peer = NodeId(index as u8);
        let Some(state) = superblock.bitmaps.iter().find(|b| b.peer == node.name) else {
            let from = if superblock.lineage.is_empty() { Lsn(0) } else { dropped };
            let bits = DirtySet::bounded(&sizes, config.bits_limit());
            bitmaps.push(Bitmap::new(bits, u128::from(superblock.sequence), from));
            continue;
        };
        let part = Part::Bitmap { peer, half: state.half };
        let mut bits = Bits { set: DirtySet::bounded(&sizes, config.bits_limit()), bad: false };
        let chain = match read_chain(part, "list of what a peer lacks", state.stream, disk, &mut bits) {
            Ok(found) => chain_end(&found),
            Err(RecoveryError::Io { source, .. }) if is_lost(source) => {
                lost.push((
                    peer,
                    format!("bitmap.{}.{} in its dir cannot be read, errno {}", node.name, state.half, source.errno),
                ));
                let none = DirtySet::bounded(&sizes, config.bits_limit());
                bitmaps.push(Bitmap::lost(none, state, config.incarnation.0));
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut bitmap = Bitmap::recovered(bits.set, state, chain);
        if chain.address < state.listed || bits.bad {
            lost.push((peer, format!("bitmap.{}.{} in its dir is damaged", node.name, state.half)));
            bitmap.from = Lsn(u64::MAX);
        }
        bitmaps.push(bitmap);
    }
    Ok((bitmaps, lost))
}

/// A growing part, walked from its beginning.
fn read_chain(
    part: Part,
    what: &'static str,
    stream: u128,
    disk: &mut dyn BlockingDisk,
    sink: &mut dyn Sink,
) -> Result<Walked, RecoveryError> {
    let io = |source| RecoveryError::Io { what, source };
    let size = disk.size(part).map_err(io)? / 4096 * 4096;
    let start = ScanStart { address: 0, prev_crc: batch::seed(stream), first: Lsn(1) };
    let geometry = Geometry { start: 0, size };
    scan_into(&geometry, stream, start, Lsn(0), |offset, length| disk.read(part, offset, length), sink).map_err(io)
}

/// Where a growing part goes on: behind its last whole batch. What is torn was never durable, and protects nothing: all of it
/// is written anew.
fn chain_end(found: &Walked) -> Chain {
    let behind = ScanStart { address: found.next, prev_crc: found.prev_crc, first: found.end.next() };
    let ScanStart { address, prev_crc, first } = found.torn.unwrap_or(behind);
    Chain { address, prev_crc, next: first }
}

/// A list of what a peer lacks, read.
struct Bits {
    set: DirtySet,
    bad: bool,
}

impl Sink for Bits {
    fn push(&mut self, batch: BatchEntry, body: &Payload) {
        for meta in &batch.metas {
            let at = meta.payload_at as usize;
            // The walk has checked that the payload is there.
            let piece = &body[at..at + meta.length as usize];
            self.bad |= meta.volume != PIECE_VOLUME || self.set.add_piece(piece).is_err();
        }
    }

    fn push_torn(&mut self, _batch: BatchEntry, _body: &Payload) {}

    /// What was listed and does not count is dirty for nothing.
    fn void_from(&mut self, _first: Lsn) {}
}

/// Without it there is no way back: a disk that failed for a moment should not cost that.
const HISTORY: &str = "file history in its dir, which leads back to a valid image (start again when it can be read; without it, remove it, and only a resync makes this replica whole)";

/// An open gap's undo: which blocks it holds, and where it goes on (R1).
fn read_gap(
    config: &NodeConfig,
    superblock: &Superblock,
    disk: &mut dyn BlockingDisk,
) -> Result<Option<GapState>, RecoveryError> {
    let Some(gap) = superblock.gap else { return Ok(None) };
    let sizes: Vec<u64> = config.volumes.iter().map(|v| v.size).collect();
    let mut state = GapState::new(gap, &sizes, config.changed_limit(), superblock.history_stream);
    let found = read_chain(Part::History, HISTORY, superblock.history_stream, disk, &mut state)?;
    state.chain = chain_end(&found);
    let damaged = matches!(found.verdict, Verdict::Damage { .. });
    // Its notes were durable before the gap was open; where they could not be written there is no way back either.
    if damaged || state.chain.address == 0 || state.chain.address < superblock.history_bytes {
        state.is_lost();
    }
    Ok(Some(state))
}

/// Records that the lineage does not know are void: the term that followed them began before them (L1).
struct Known<'a> {
    lineage: &'a Lineage,
    /// The first of them, and its term.
    alien: Option<(Lsn, TermId)>,
    index: LogIndex,
}

impl Sink for Known<'_> {
    fn push(&mut self, batch: BatchEntry, body: &Payload) {
        if self.alien.is_none() {
            let (lineage, id) = (self.lineage, batch.term.id);
            let ours = |lsn: Lsn| lineage.is_before_memory(lsn) || lineage.term_at(lsn).is_some_and(|t| t.id == id);
            let mut lsns = (batch.start.first.0..=batch.last().0).map(Lsn);
            self.alien = lsns.find(|lsn| !ours(*lsn)).map(|lsn| (lsn, id));
        }
        Sink::push(&mut self.index, batch, body);
    }

    fn void_from(&mut self, first: Lsn) {
        self.alien = self.alien.filter(|(alien, _)| *alien < first);
        self.index.void_from(first);
    }
}

/// What was read back may never have reached stable storage: a flush that failed has left it in a cache, clean, where no
/// later flush finds it (L4). So everything past the checkpoint, which alone is surely stable, is written once more.
fn stabilise(log: &LogStart, checkpoint: Lsn, disk: &mut dyn BlockingDisk) -> Result<(), IoError> {
    const CHUNK: u64 = 1 << 20;
    // From the batch on that holds the checkpoint, or one before it.
    let mut address = log.index.locate(checkpoint).map_or(log.tail.address, |place| place.address);
    while address < log.next {
        let to_lap_end = log.geometry.size - address % log.geometry.size;
        let length = CHUNK.min(log.next - address).min(to_lap_end);
        let offset = log.geometry.offset(address);
        let bytes = disk.read(Part::Log, offset, length)?;
        disk.write(Part::Log, offset, &bytes)?;
        address += length;
    }
    disk.flush(Part::Log)
}

/// The records past the checkpoint, with their payloads.
fn reload(log: &LogStart, checkpoint: Lsn, disk: &mut dyn BlockingDisk) -> Result<Vec<Record>, IoError> {
    let mut records: Vec<Record> = Vec::new();
    let mut behind = None;
    let mut wanted = checkpoint.next();
    while wanted <= log.end {
        // The scan has just found and checked the same bytes; a disk that now says otherwise is failing.
        let mut place = behind.take().or_else(|| log.index.locate(wanted)).ok_or(IoError { errno: 5 })?;
        let these = loop {
            let (offset, length) = place.read(&log.geometry);
            match look(&log.geometry, log.stream, &place, wanted, &disk.read(Part::Log, offset, length)?) {
                Look::Records(these, next) => {
                    behind = next;
                    break these;
                }
                Look::Next(next) => place = next,
                Look::Lost => return Err(IoError { errno: 5 }),
            }
        };
        wanted = these.last().map_or(Lsn(u64::MAX), |r| r.lsn.next());
        records.extend(these);
    }
    Ok(records)
}

fn check_identity(config: &NodeConfig, found: &Superblock) -> Result<(), RecoveryError> {
    let foreign = |what, found: String, expected: String| Err(RecoveryError::Foreign { what, found, expected });
    if found.resource != config.resource {
        return foreign("resource", found.resource.clone(), config.resource.clone());
    }
    if found.node != config.my_name() {
        return foreign("node", found.node.clone(), config.my_name().to_string());
    }
    if found.log_size != config.log_size {
        return foreign("a log of size", found.log_size.to_string(), config.log_size.to_string());
    }
    if found.block != config.block {
        return foreign("a resource of block size", found.block.to_string(), config.block.to_string());
    }
    let volumes: Vec<(String, u64)> = config.volumes.iter().map(|v| (v.name.clone(), v.size)).collect();
    if found.volumes != volumes {
        return foreign("a resource with volumes", format!("{:?}", found.volumes), format!("{volumes:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::view::data_record;
    use super::*;
    use crate::format::batch::TermRef;

    const STREAM: u128 = 5;

    /// A growing part in memory that is only read.
    struct Memory(Vec<u8>);

    impl BlockingDisk for Memory {
        fn read(&mut self, _: Part, offset: u64, length: u64) -> Result<Payload, IoError> {
            let bytes = (offset..offset + length).map(|at| self.0.get(at as usize).copied().unwrap_or(0));
            Ok(Payload::copy_of(&bytes.collect::<Vec<u8>>()))
        }

        fn size(&mut self, _: Part) -> Result<u64, IoError> {
            Ok(self.0.len() as u64)
        }

        fn write(&mut self, _: Part, _: u64, _: &Payload) -> Result<(), IoError> {
            Err(IoError { errno: 30 })
        }

        fn zero(&mut self, _: Part, _: u64, _: u64) -> Result<(), IoError> {
            Err(IoError { errno: 30 })
        }

        fn flush(&mut self, _: Part) -> Result<(), IoError> {
            Err(IoError { errno: 30 })
        }

        fn truncate(&mut self, _: Part, _: u64) -> Result<(), IoError> {
            Err(IoError { errno: 30 })
        }
    }

    /// A history of batches with two blocks each, and where it stood after each of them.
    fn history(batches: u64) -> (Memory, Vec<Chain>) {
        let (mut chain, mut bytes, mut stood) = (Chain::start(STREAM), Vec::new(), Vec::new());
        for n in 0..batches {
            let block = |i: u64| data_record(VolumeId(0), i * 4096, Payload::copy_of(&[n as u8 + 1; 4096]));
            let mut records = [block(2 * n), block(2 * n + 1)];
            let bufs = chain.append(STREAM, TermRef { number: 0, id: TermId(0) }, &mut records);
            bufs.iter().for_each(|b| bytes.extend_from_slice(b));
            stood.push(chain);
        }
        (Memory(bytes), stood)
    }

    fn found(disk: &mut Memory) -> (Chain, usize, Verdict) {
        let gap = Gap { rollback: Some(Lsn(1)), since: Lsn(1), everything: false, grain: 4096, overwritten_in: None };
        let mut state = GapState::new(gap, &[1 << 20], u64::MAX, STREAM);
        let found = read_chain(Part::History, HISTORY, STREAM, disk, &mut state).unwrap();
        (chain_end(&found), state.saved.bytes() as usize / 4096, found.verdict)
    }

    #[test]
    fn a_torn_batch_at_the_end_of_a_history_is_written_anew() {
        let (mut disk, stood) = history(3);
        assert_eq!(found(&mut disk), (stood[2], 6, Verdict::End));
        // Its second block is torn, then its first one, then its header.
        for torn_at in [2 * BLOCK, BLOCK, 0] {
            disk.0[stood[1].address as usize + torn_at + 100] ^= 1;
            assert_eq!(found(&mut disk), (stood[1], 4, Verdict::End), "torn at {torn_at}");
        }
    }

    #[test]
    fn a_history_that_rotted_in_the_middle_is_damage() {
        let (mut disk, stood) = history(3);
        disk.0[stood[0].address as usize + BLOCK + 100] ^= 1;
        let (_, _, verdict) = found(&mut disk);
        assert!(matches!(verdict, Verdict::Damage { lsn: Lsn(3), .. }), "{verdict:?}");
    }
}
