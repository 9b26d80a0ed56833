//! One node of a resource: the state machine that a driver runs. The slices of its state have modules of their own;
//! this one holds them together and routes events.

use super::api::*;
use super::bitmap::{Bitmap, ListWrite, Reclaim};
use super::charter::Change;
use super::client::Clients;
use super::command::Operation;
use super::config::NodeConfig;
use super::gap::{GapState, Rollback};
use super::hello::Charter;
use super::latency::Latencies;
use super::lineage::Lineage;
use super::log::Log;
use super::log_index::Place;
use super::notice::Notice;
use super::overlay::Overlay;
use super::peer::Peer;
use super::recovery::Recovered;
use super::store::Store;
use super::superblock::Super;
use super::times::AcceptTimes;
use super::types::*;
use std::collections::{BTreeMap, VecDeque};

/// What the node does. Changed only by `Node::set_stage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Passive,
    /// On the way to active: makes durable what it holds, opens a term (L1).
    Promoting,
    Active,
    /// Serves no more; waits until all is durable on the members.
    Demoting,
}

/// How long a restarted active waits for nodes that do not answer before it resumes: so many heartbeats, and time enough
/// for the others to dial it.
const RESUME_HEARTBEATS: u64 = 10;
const RESUME_MS: u64 = 1500;

/// What a completed I/O was for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    Log {
        io: super::flights::LogIo,
    },
    Super,
    /// A piece of a read: the read, and the index of its slot.
    Read {
        read: u64,
        slot: usize,
    },
    /// Where the store holds data, for a client.
    Map {
        map: u64,
    },
    ApplyWrite {
        bytes: u64,
    },
    /// A list that must be durable before the ring drops records (B1).
    Bitmap {
        write: ListWrite,
    },
    /// The undo of a closed gap is cut off; if that fails, it is only space.
    HistoryCut,
    RollbackHeader,
    RollbackBody,
    RollbackWrite,
    RollbackFlush,
    /// Undo that was put back is cut off.
    Rewound,
    /// Room for the undo of a resync.
    Reserve {
        peer: NodeId,
        session: SessionId,
    },
    /// Undo on its way to the history.
    Undo {
        peer: NodeId,
        session: SessionId,
    },
    /// A step of a resync being received.
    Resync {
        peer: NodeId,
        session: SessionId,
        index: usize,
    },
    /// Contents for a peer.
    Content {
        peer: NodeId,
        session: SessionId,
        job: u64,
        part: usize,
    },
    /// Where a store holds data.
    Search {
        peer: NodeId,
        session: SessionId,
    },
    /// A chunk that is compared, here and on the passive.
    Verify {
        job: u64,
        part: usize,
    },
    Question {
        peer: NodeId,
        session: SessionId,
        id: u64,
        part: usize,
    },
    /// Records for a node that is being promoted.
    Tail {
        peer: NodeId,
        session: SessionId,
        from: Lsn,
        place: Place,
    },
    SalvageSearch {
        peer: NodeId,
        session: SessionId,
    },
    /// The list of own changes since the fork is in the history.
    GapNoted {
        peer: NodeId,
        session: SessionId,
    },
    SalvageRead {
        peer: NodeId,
        session: SessionId,
        part: usize,
    },
    ApplyFlush,
    /// A batch read back for a peer.
    Feed {
        peer: NodeId,
        session: SessionId,
        from: Lsn,
        place: Place,
    },
    SalvageWrite {
        peer: NodeId,
        session: SessionId,
    },
}

/// A replica and its part in replication. See `docs/architecture.md` for how it is driven.
pub struct Node {
    pub(super) cfg: NodeConfig,
    pub(super) now: Time,
    pub(super) stage: Stage,
    pub(super) lineage: Lineage,
    pub(super) charter: Charter,
    /// A change of the charter that is not over (C4).
    pub(super) change: Option<Change>,
    /// Durable on the active and every in-sync member, as far as this node knows (S1).
    pub(super) committed: Lsn,
    pub(super) log: Log,
    pub(super) overlay: Overlay,
    pub(super) store: Store,
    pub(super) superblock: Super,
    pub(super) clients: Clients,
    /// One for each node of the resource; this node's own is not used.
    pub(super) peers: Vec<Peer>,
    pub(super) operation: Option<Operation>,
    pub(super) fault: Option<String>,
    pub(super) suspended: bool,
    /// A node with a higher generation was met (C8).
    pub(super) is_outvoted: bool,
    /// Until then a restarted active waits to hear from everyone before it resumes.
    pub(super) resume_at: Time,
    /// When this process began.
    pub(super) began: Time,
    /// Whom it last let be promoted: until that node has said what came of it, this one needs its word (C9). Durable.
    pub(super) pledge: Option<String>,
    /// Whom this node lets be promoted; it claims nothing itself while that session lasts.
    pub(super) granted: Option<(NodeId, SessionId)>,
    /// This node was active in its charter when it started and may resume once the members agree (C9).
    pub(super) may_resume: bool,
    /// The active asked for durability up to here.
    pub(super) flush_to: Lsn,
    /// Fresh and proven zero, or descended from such a replica: position 0 means zeros.
    pub(super) zero: bool,
    pub(super) accept_times: AcceptTimes,
    pub(super) next_salvage: u32,
    /// What the newest salvage of this process holds: a rejoin that fails after it does not write it again.
    pub(super) set_aside: Option<super::salvage::InSalvage>,
    /// One for each node of the resource; this node's own is not used.
    pub(super) bitmaps: Vec<Bitmap>,
    pub(super) reclaim: Reclaim,
    /// Records from here on were durable here and are no more (L2): this node does not serve before it has followed another one past them.
    pub(super) lost: Option<Lsn>,
    pub(super) gap: Option<GapState>,
    pub(super) rollback: Option<Rollback>,
    /// I/Os under way that a resync or its preparation began, whatever became of its session: a rollback waits for them, and so does
    /// the next session, which would write to the same places.
    pub(super) resync_ios: u64,
    /// The history ran out in the middle of a resync: the undo is to be put back.
    pub(super) unwind: bool,
    /// What a resync was seen to need of it at least, in bytes: it is not tried again with less.
    pub(super) history_floor: u64,
    pub(super) history_stream: u128,
    pub(super) verify: Option<super::verify::Verify>,
    pub(super) verify_jobs: u64,
    pub(super) ids_drawn: u64,
    pub(super) troubles: super::trouble::Troubles,
    /// How long writes and flushes of clients took, and those of the log.
    pub(super) write_times: Latencies,
    pub(super) flush_times: Latencies,
    pub(super) log_times: Latencies,
    purposes: BTreeMap<IoId, Purpose>,
    next_io: u64,
    out: VecDeque<Action>,
}

impl Node {
    /// A node that stands where recovery found it, passive until it is promoted or may resume.
    pub fn new(cfg: NodeConfig, recovered: Recovered, now: Time) -> Node {
        let overlay = recovered.overlay(cfg.volumes.len());
        let log = Log::new(recovered.log.clone(), cfg.durable_write, cfg.flush_ms);
        let sb = &recovered.superblock;
        let was_active = sb.charter.active.as_deref() == Some(cfg.my_name());
        let may_resume = was_active && !sb.log_errors && sb.lost.is_none();
        let mut node = Node {
            now,
            stage: Stage::Passive,
            lineage: Lineage::new(sb.lineage.clone()),
            charter: sb.charter.clone(),
            change: None,
            // A round is begun only with what is committed (S1).
            committed: sb.checkpoint.max(sb.applying),
            overlay,
            store: Store::new(sb.checkpoint, sb.applying, now),
            clients: Clients::new(cfg.volumes.len()),
            peers: cfg.nodes.iter().map(|_| Peer::default()).collect(),
            operation: None,
            fault: None,
            suspended: false,
            is_outvoted: false,
            began: now,
            resume_at: now.plus_ms(cfg.heartbeat_ms * RESUME_HEARTBEATS + RESUME_MS),
            pledge: sb.pledge.clone(),
            granted: None,
            may_resume,
            flush_to: Lsn(0),
            zero: sb.zero,
            accept_times: AcceptTimes::default(),
            next_salvage: sb.next_salvage,
            set_aside: None,
            bitmaps: recovered.bitmaps.clone(),
            reclaim: Reclaim::without(recovered.unreadable, now),
            lost: sb.lost,
            gap: recovered.gap.clone(),
            rollback: None,
            resync_ios: 0,
            unwind: false,
            history_floor: 0,
            history_stream: sb.history_stream,
            verify: None,
            verify_jobs: 0,
            ids_drawn: 0,
            troubles: super::trouble::Troubles::default(),
            write_times: Latencies::default(),
            flush_times: Latencies::default(),
            log_times: Latencies::default(),
            purposes: BTreeMap::new(),
            next_io: 0,
            out: VecDeque::new(),
            log,
            superblock: Super::new(sb.clone(), recovered.slot),
            cfg,
        };
        node.notice(Notice::Started {
            role: if was_active { "was active".into() } else { "passive".into() },
            received: node.log.end().0,
            durable: node.log.durable().0,
            applied: node.store.applied().0,
        });
        node.say_what_is_damaged(&recovered.lists_lost);
        // The incarnation on disk is this process's before it speaks to anyone (C1).
        node.persist(super::superblock::Then::Nothing);
        node
    }

    /// Takes in one thing that happened.
    pub fn handle(&mut self, now: Time, event: Event) {
        self.now = self.now.max(now);
        match event {
            Event::Client { req, op } => self.client_request(req, op),
            Event::IoDone { id, result } => self.io_done(id, result),
            Event::PeerUp { peer, session } => self.peer_up(peer, session),
            Event::PeerDown { peer, session } => self.peer_down(peer, session),
            Event::ConnectFailed { peer } => self.connect_failed(peer),
            Event::PeerMessage { peer, session, message } => self.peer_message(peer, session, message),
            Event::PeerHeard { peer, session } => self.peer_heard(peer, session),
            Event::Command { id, command } => self.command(id, command),
            Event::VoterAnswered { .. } => {} // Nobody has been asked.
        }
    }

    /// Group commit and everything that waits for a time: once after a batch of events, and at `deadline`.
    pub fn poll(&mut self, now: Time) {
        self.now = self.now.max(now);
        self.poll_operation();
        self.poll_links();
        self.poll_clients();
        self.poll_verify();
        self.accept_times.mark(self.now, self.log.end());
        self.advance();
        self.poll_charter();
        if self.clients.waiting_for_room() > 0 || self.has_deferred() {
            // Somebody waits for memory: what is held becomes durable, committed and applied as soon as can be.
            let written = self.log.written();
            self.log.want_durable(written);
            if self.role() == Role::Active {
                self.flush_to = self.flush_to.max(written);
            }
        }
        while let Some((io, part, op)) = self.log.poll(self.now) {
            self.io(Purpose::Log { io }, part, op);
        }
        self.poll_unwind();
        self.poll_store();
        self.poll_reclaim();
        self.poll_superblock();
        self.feed_peers();
        self.acknowledge();
        self.validate();
    }

    /// The next thing to do, in order.
    pub fn next_action(&mut self) -> Option<Action> {
        self.out.pop_front()
    }

    /// When `poll` is wanted at the latest.
    pub fn deadline(&self) -> Option<Time> {
        let links = self.link_deadline();
        let log = self.log.flush_due();
        let store = self.store_deadline();
        let reclaim = self.reclaim_deadline();
        // Past that time it waits for what others say, which is an event.
        let waits = self.may_resume && self.operation.is_none() && self.now < self.resume_at;
        let resume = waits.then_some(self.resume_at);
        let feed = self.feed_deadline();
        [links, log, store, reclaim, resume, feed].into_iter().flatten().min()
    }

    /// Whether the driver should go on reading from clients.
    pub fn accepts_writes(&self) -> bool {
        self.clients.waiting_for_room() == 0
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The newest record that this node holds.
    pub fn accepted(&self) -> Lsn {
        self.log.end()
    }

    pub fn role(&self) -> Role {
        match self.stage {
            Stage::Active | Stage::Demoting => Role::Active,
            Stage::Passive | Stage::Promoting => Role::Passive,
        }
    }

    /// accepted, written, durable, committed, applied, checkpointed: for checks and for status.
    pub fn watermarks(&self) -> [Lsn; 6] {
        let (applied, checkpointed) = (self.store.applied(), self.superblock.checkpoint());
        [self.log.end(), self.log.written(), self.log.durable(), self.committed, applied, checkpointed]
    }

    /// Terms, oldest first.
    pub fn lineage(&self) -> &[Term] {
        self.lineage.terms()
    }

    pub fn charter(&self) -> &Charter {
        &self.charter
    }

    /// The log's part is read and written through the page cache: its I/Os go one by one.
    pub fn log_is_cached(&mut self) {
        self.log.go_one_by_one();
    }

    /// Whether it holds a valid image, or leads back to one (contract 3).
    pub fn has_image(&self) -> bool {
        self.gap.as_ref().is_none_or(|gap| gap.state.rollback.is_some())
    }

    /// The order of the watermarks (STYLE: one chain, checked at every step).
    fn validate(&self) {
        let [accepted, written, durable, committed, applied, checkpointed] = self.watermarks();
        assert!(
            accepted >= written && written >= durable,
            "accepted {accepted:?} written {written:?} durable {durable:?}"
        );
        assert!(durable.min(committed) >= applied, "durable {durable:?} committed {committed:?} applied {applied:?}");
        assert!(applied >= checkpointed, "applied {applied:?} checkpointed {checkpointed:?}");
    }

    pub(super) fn set_stage(&mut self, stage: Stage) {
        use Stage::*;
        let allowed = matches!(
            (self.stage, stage),
            (Passive, Promoting)
                | (Promoting, Active)
                | (Promoting, Passive)
                | (Active, Demoting)
                | (Demoting, Passive | Active)
        );
        assert!(allowed, "{:?} to {stage:?} is not a transition", self.stage);
        self.stage = stage;
    }

    pub(super) fn act(&mut self, action: Action) {
        self.out.push_back(action);
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        self.out.push_back(Action::Notice(notice));
    }

    pub(super) fn io(&mut self, purpose: Purpose, part: Part, op: IoOp) {
        let id = IoId(self.next_io);
        self.next_io += 1;
        self.purposes.insert(id, purpose);
        self.act(Action::Io { id, part, op });
    }

    fn io_done(&mut self, id: IoId, result: Result<IoData, IoError>) {
        // The driver answers each I/O once; an answer to nothing is its bug.
        let purpose = self.purposes.remove(&id).expect("an I/O that was asked for");
        match purpose {
            Purpose::Log { io } => {
                let failed_before = self.log.failed().is_some();
                let began = self.log.done(io, result.map(|_| ()).map_err(|e| e.errno));
                self.log_took(self.now.since_us(began));
                if let Some(errno) = self.log.failed().filter(|_| !failed_before) {
                    self.storage_failed("log", errno);
                }
            }
            Purpose::Super => self.superblock_written(result),
            Purpose::Read { read, slot } => self.read_done(read, slot, result),
            Purpose::Map { map } => self.map_read(map, result),
            Purpose::ApplyWrite { bytes } => self.apply_written(bytes, result),
            Purpose::ApplyFlush => self.apply_flushed(result),
            Purpose::Feed { peer, session, from, place } => self.feed_read(peer, session, from, place, result),
            Purpose::Verify { job, part } => self.verify_read(job, part, result),
            Purpose::Question { peer, session, id, part } => self.question_read(peer, session, id, part, result),
            Purpose::Bitmap { write } => self.bitmap_written(write, result),
            Purpose::HistoryCut => self.resync_ios -= 1,
            Purpose::RollbackHeader => self.rollback_header(result),
            Purpose::RollbackBody => self.rollback_body(result),
            Purpose::RollbackWrite => self.rollback_written(result),
            Purpose::RollbackFlush => self.rollback_flushed(result),
            Purpose::Rewound => self.rewound(result),
            Purpose::Reserve { peer, session } => self.room_found(peer, session, result),
            Purpose::Undo { peer, session } => self.undo_written(peer, session, result),
            Purpose::Resync { peer, session, index } => self.resync_io_done(peer, session, index, result),
            Purpose::Content { peer, session, job, part } => self.content_read(peer, session, job, part, result),
            Purpose::Search { peer, session } => self.search_done(peer, session, result),
            Purpose::Tail { peer, session, from, place } => self.tail_read(peer, session, from, place, result),
            Purpose::SalvageSearch { peer, session } => self.salvage_searched(peer, session, result),
            Purpose::GapNoted { peer, session } => self.gap_noted(peer, session, result),
            Purpose::SalvageRead { peer, session, part } => self.salvage_read(peer, session, part, result),
            Purpose::SalvageWrite { peer, session } => self.salvage_written(peer, session, result),
        }
    }

    /// The active is told of it with the next acknowledgement.
    fn log_took(&mut self, us: u64) {
        self.log_times.add(self.now, us);
        for target in self.peers.iter_mut().filter_map(super::peer::Peer::target_mut) {
            target.disk_us = target.disk_us.max(us);
        }
    }

    /// A failed log or superblock is final for this process (L4): it acknowledges nothing more.
    pub(super) fn storage_failed(&mut self, part: &str, errno: i32) {
        self.notice(Notice::StorageFailed { part: part.into(), errno });
        if self.fault.is_none() {
            self.fault = Some(format!("{part}: {}", super::trouble::errno_words(errno)));
            self.abandon_operation(part);
            self.superblock.log_failed();
            if part != "superblock" {
                self.persist(super::superblock::Then::Remember);
            }
            for peer in self.cfg.peers() {
                self.close_link(peer, "storage failed", true);
            }
        }
    }

    /// A new random identity, drawn from the incarnation that the driver drew (SplitMix64, Steele et al. 2014).
    pub(super) fn draw_id(&mut self) -> u128 {
        let mut next = || {
            self.ids_drawn += 1;
            let seed = (self.cfg.incarnation.0 >> 64) as u64 ^ self.cfg.incarnation.0 as u64;
            let mut z = seed.wrapping_add(self.ids_drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        (u128::from(next()) << 64) | u128::from(next())
    }
}
