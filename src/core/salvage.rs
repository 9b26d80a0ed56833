//! Setting orphaned writes aside before anything ends them (contract 5, R4): the contents of every block that this
//! replica changed since the fork, as it has them, in a numbered salvage file.

use super::api::*;
use super::bitmap::Chain;
use super::dirty::DirtySet;
use super::node::{Node, Purpose};
use super::notice::Notice;
use super::types::*;
use super::view::ViewRead;
use crate::format::batch::TermRef;

/// Contents taken in one step.
const STEP_BYTES: u64 = 1 << 20;
/// The file exists.
const EEXIST: i32 = 17;

/// A salvage being written.
#[derive(Debug)]
pub struct SetAside {
    left: DirtySet,
    /// Taken from `left`, or found by the search: being read step by step.
    run: Option<Extent>,
    cursor: (VolumeId, u64),
    /// All of it, for the resync that may follow; none where it is not known any more, and everything is set aside.
    pub changed: Option<DirtySet>,
    /// Where the search for data goes on, if everything is set aside.
    search: Option<(VolumeId, u64)>,
    stream: u128,
    term: TermRef,
    chain: Chain,
    reading: Option<ViewRead>,
    bytes: u64,
    records: u64,
}

/// Which orphans are in a salvage, and the blocks that they are in. Kept until they are ended: a session that is lost before that, or a
/// rollback, would have them set aside once more.
#[derive(Clone, Debug)]
pub struct InSalvage {
    term: Option<TermId>,
    fork: Lsn,
    end: Lsn,
    changed: Option<DirtySet>,
}

impl Node {
    /// The blocks of the orphans after `fork`, if a salvage has them already.
    pub(super) fn already_set_aside(&self, fork: Lsn) -> Option<Option<DirtySet>> {
        let (term, end) = (self.lineage.last().map(|t| t.id), self.log.end());
        let done = self.set_aside.as_ref().filter(|d| (d.term, d.fork, d.end) == (term, fork, end))?;
        Some(done.changed.clone())
    }

    /// What this node changed after `fork`, if it still knows (R4): from its log, or from the bits that it keeps for the peer.
    pub(super) fn changed_since(&self, node: NodeId, fork: Lsn) -> Option<DirtySet> {
        let mut changed = DirtySet::bounded(&self.volume_sizes(), self.cfg.changed_limit());
        self.log.changed(fork, self.log.end()).for_each(|e| changed.add(e));
        if self.log.from() > fork.next() {
            let bitmap = &self.bitmaps[node.0 as usize];
            if bitmap.from > fork {
                return None;
            }
            changed.add_all(&bitmap.bits);
        }
        Some(changed)
    }

    pub(super) fn begin_set_aside(
        &mut self,
        node: NodeId,
        session: SessionId,
        fork: Lsn,
        changed: Option<DirtySet>,
    ) -> SetAside {
        let stream = self.draw_id();
        let term = self
            .lineage
            .last()
            .map_or(TermRef { number: 0, id: TermId(0) }, |t| TermRef { number: t.number, id: t.id });
        let mut aside = SetAside {
            changed: changed.clone(),
            search: changed.is_none().then_some((VolumeId(0), 0)),
            left: changed.unwrap_or_else(|| self.unapplied()),
            run: None,
            cursor: (VolumeId(0), 0),
            stream,
            term,
            chain: Chain::start(stream),
            reading: None,
            bytes: 0,
            records: self.log.end().0 - fork.0,
        };
        self.read_orphans(node, session, &mut aside);
        aside
    }

    fn read_orphans(&mut self, node: NodeId, session: SessionId, aside: &mut SetAside) {
        if let Some((volume, offset)) = aside.search {
            let purpose = Purpose::SalvageSearch { peer: node, session };
            return self.io(purpose, Part::Store(volume), IoOp::NextData { offset });
        }
        let Some(extent) = aside.left.take(&mut aside.cursor, &mut aside.run, STEP_BYTES) else { return };
        let (read, parts) = ViewRead::start(&self.overlay, extent);
        let done = read.is_done();
        aside.reading = Some(read);
        for (part, offset, length) in parts {
            let purpose = Purpose::SalvageRead { peer: node, session, part };
            self.io(purpose, Part::Store(extent.volume), IoOp::Read { offset, length });
        }
        if done {
            self.write_orphans(node, session, aside);
        }
    }

    /// Blocks that are in memory and not yet in the store.
    fn unapplied(&self) -> DirtySet {
        let mut set = DirtySet::bounded(&self.volume_sizes(), self.cfg.changed_limit());
        for r in self.overlay.records_from(Lsn(0)) {
            set.add(r.extent());
        }
        set
    }

    /// Where the store holds data, where everything is set aside.
    pub(super) fn salvage_searched(&mut self, node: NodeId, session: SessionId, result: Result<IoData, IoError>) {
        let Some(mut aside) = self.take_aside(node, session) else { return };
        let Some((volume, _)) = aside.search else { return };
        let size = self.cfg.volumes[volume.0 as usize].size;
        let end = match result {
            Ok(IoData::Extent(Some((offset, length)))) => {
                aside.left.add(Extent { volume, offset, length: length.min(size.saturating_sub(offset)) });
                offset.saturating_add(length)
            }
            Ok(_) => size,
            Err(error) => return self.salvage_failed(node, error.errno),
        };
        aside.search = match end < size {
            true => Some((volume, end)),
            false if usize::from(volume.0) + 1 < self.cfg.volumes.len() => Some((VolumeId(volume.0 + 1), 0)),
            false => None,
        };
        if aside.search.is_none() && aside.left.is_empty() {
            return self.orphans_are_safe(node, session, aside.changed);
        }
        self.read_orphans(node, session, &mut aside);
        self.put_aside(node, aside);
    }

    fn write_orphans(&mut self, node: NodeId, session: SessionId, aside: &mut SetAside) {
        let Some(read) = aside.reading.take() else { return };
        aside.bytes += read.extent.length;
        let offset = aside.chain.address;
        let bufs = aside.chain.append(aside.stream, aside.term, &mut read.into_records());
        let part = Part::Salvage(self.next_salvage);
        // Counted, so that another attempt does not write beside it.
        self.resync_ios += 1;
        self.io(Purpose::SalvageWrite { peer: node, session }, part, IoOp::Write { offset, bufs, sync: true });
    }

    pub(super) fn salvage_read(
        &mut self,
        node: NodeId,
        session: SessionId,
        part: usize,
        result: Result<IoData, IoError>,
    ) {
        let Some(mut aside) = self.take_aside(node, session) else { return };
        match result {
            Ok(IoData::Bytes(payload)) => {
                if let Some(read) = &mut aside.reading {
                    read.fill(part, payload);
                    if read.is_done() {
                        self.write_orphans(node, session, &mut aside);
                    }
                }
                self.put_aside(node, aside);
            }
            other => self.salvage_failed(node, other.err().map_or(5, |e| e.errno)),
        }
    }

    pub(super) fn salvage_written(&mut self, node: NodeId, session: SessionId, result: Result<IoData, IoError>) {
        self.resync_ios -= 1;
        let Some(mut aside) = self.take_aside(node, session) else { return };
        if let Err(error) = result {
            if error.errno == EEXIST {
                return self.salvage_is_taken(node);
            }
            return self.salvage_failed(node, error.errno);
        }
        if !aside.left.is_empty() || aside.run.is_some() {
            self.read_orphans(node, session, &mut aside);
            return self.put_aside(node, aside);
        }
        self.part_works("salvage");
        let salvage = self.next_salvage;
        self.next_salvage += 1;
        self.notice(Notice::OrphansSetAside { records: aside.records, bytes: aside.bytes, salvage });
        let (term, end) = (self.lineage.last().map(|t| t.id), self.log.end());
        let fork = Lsn(end.0 - aside.records);
        self.set_aside = Some(InSalvage { term, fork, end, changed: aside.changed.clone() });
        self.orphans_are_safe(node, session, aside.changed);
    }

    /// What an earlier process set aside has this number (a log that was restored from a backup forgets it): it stays as it is.
    fn salvage_is_taken(&mut self, node: NodeId) {
        let taken = self.next_salvage;
        self.next_salvage += 1;
        self.refuse(node, format!("there is a salvage {taken} already, which is kept: the next number is tried"));
    }

    fn salvage_failed(&mut self, node: NodeId, errno: i32) {
        self.part_failed("salvage", errno);
        let words = super::trouble::errno_words(errno);
        let why = format!("orphaned writes could not be set aside: {words}. Make room in the node's dir");
        self.refuse(node, why);
    }
}
