//! The mirror of [`PeerMsg`] that is encoded: records stand in it without their payloads.

use crate::core::hello::{Charter, Hello, Share};
use crate::core::register::Entry;
use crate::core::{Ack, Extent, Kind, Lsn, PeerMsg, Record, TermId, VolumeId, Watermarks};
use bincode::{Decode, Encode};

/// A record without lsn and payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Meta {
    pub volume: VolumeId,
    pub kind: Kind,
    pub offset: u64,
    pub length: u64,
    pub crc: u32,
}

impl Meta {
    pub(super) fn of(record: &Record) -> Meta {
        Meta { volume: record.volume, kind: record.kind, offset: record.offset, length: record.length, crc: record.crc }
    }

    /// Bytes of payload that travel with it.
    pub(super) fn payload_len(&self) -> u64 {
        if self.kind == Kind::Write { self.length } else { 0 }
    }
}

/// [`PeerMsg`], its records reduced to [`Meta`]s. The order of the variants is the wire format: add at the end only.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum Head {
    Hello(Box<Hello>),
    Ready {
        received: Lsn,
        durable: Lsn,
    },
    ReadyResync {
        since: Lsn,
        everything: bool,
    },
    /// The records' lsns are `first`, `first + 1`, and so on.
    Append {
        first: Lsn,
        records: Vec<Meta>,
        watermarks: Watermarks,
    },
    Heartbeat {
        watermarks: Watermarks,
    },
    Ack(Ack),
    Charter(Charter),
    CharterAck {
        version: u64,
    },
    ResyncBegin {
        bytes: u64,
        runs: u64,
        whole: bool,
    },
    ResyncData {
        records: Vec<Meta>,
        sent_bytes: u64,
    },
    ResyncEnd {
        base: Lsn,
        until: Lsn,
    },
    ResyncDone {
        position: Lsn,
    },
    VerifyAsk {
        id: u64,
        extent: Extent,
        crcs: Vec<u32>,
        chunk: u32,
    },
    VerifyAnswer {
        id: u64,
        differing: Vec<Extent>,
        retry: bool,
    },
    TakeOver,
    Fetch {
        after: Lsn,
        term: TermId,
    },
    Bye {
        why: String,
    },
    Claim(Charter),
    ClaimAnswer {
        version: u64,
        granted: bool,
    },
    Share(Share),
    Lacks {
        piece: Vec<u8>,
    },
    LacksTaken,
    Entry(Box<Entry>),
}

impl Head {
    /// The head of a message.
    pub(super) fn of(message: &PeerMsg) -> Head {
        let metas = |records: &[Record]| records.iter().map(Meta::of).collect();
        match message {
            PeerMsg::Append { records, watermarks } => {
                let first = records.first().map_or(Lsn(0), |r| r.lsn);
                Head::Append { first, records: metas(records), watermarks: *watermarks }
            }
            PeerMsg::ResyncData { records, sent_bytes } => {
                Head::ResyncData { records: metas(records), sent_bytes: *sent_bytes }
            }
            other => Head::without_records(other.clone()),
        }
    }

    fn without_records(message: PeerMsg) -> Head {
        match message {
            PeerMsg::Append { .. } | PeerMsg::ResyncData { .. } => {
                unreachable!("handled by the caller, for their records")
            }
            PeerMsg::Hello(hello) => Head::Hello(hello),
            PeerMsg::Ready { received, durable } => Head::Ready { received, durable },
            PeerMsg::ReadyResync { since, everything } => Head::ReadyResync { since, everything },
            PeerMsg::Lacks { piece } => Head::Lacks { piece },
            PeerMsg::LacksTaken => Head::LacksTaken,
            PeerMsg::Heartbeat { watermarks } => Head::Heartbeat { watermarks },
            PeerMsg::Ack(ack) => Head::Ack(ack),
            PeerMsg::Charter(charter) => Head::Charter(charter),
            PeerMsg::CharterAck { version } => Head::CharterAck { version },
            PeerMsg::ResyncBegin { bytes, runs, whole } => Head::ResyncBegin { bytes, runs, whole },
            PeerMsg::ResyncEnd { base, until } => Head::ResyncEnd { base, until },
            PeerMsg::ResyncDone { position } => Head::ResyncDone { position },
            PeerMsg::VerifyAsk { id, extent, crcs, chunk } => Head::VerifyAsk { id, extent, crcs, chunk },
            PeerMsg::VerifyAnswer { id, differing, retry } => Head::VerifyAnswer { id, differing, retry },
            PeerMsg::Claim(charter) => Head::Claim(charter),
            PeerMsg::ClaimAnswer { version, granted } => Head::ClaimAnswer { version, granted },
            PeerMsg::TakeOver => Head::TakeOver,
            PeerMsg::Fetch { after, term } => Head::Fetch { after, term },
            PeerMsg::Bye { why } => Head::Bye { why },
            PeerMsg::Share(share) => Head::Share(share),
            PeerMsg::Entry(entry) => Head::Entry(entry),
        }
    }

    /// The message, given its records in full.
    pub(super) fn with_records(self, records: Vec<Record>) -> PeerMsg {
        match self {
            Head::Hello(hello) => PeerMsg::Hello(hello),
            Head::Ready { received, durable } => PeerMsg::Ready { received, durable },
            Head::ReadyResync { since, everything } => PeerMsg::ReadyResync { since, everything },
            Head::Lacks { piece } => PeerMsg::Lacks { piece },
            Head::LacksTaken => PeerMsg::LacksTaken,
            Head::Append { watermarks, .. } => PeerMsg::Append { records, watermarks },
            Head::Heartbeat { watermarks } => PeerMsg::Heartbeat { watermarks },
            Head::Ack(ack) => PeerMsg::Ack(ack),
            Head::Charter(charter) => PeerMsg::Charter(charter),
            Head::CharterAck { version } => PeerMsg::CharterAck { version },
            Head::ResyncBegin { bytes, runs, whole } => PeerMsg::ResyncBegin { bytes, runs, whole },
            Head::ResyncData { sent_bytes, .. } => PeerMsg::ResyncData { records, sent_bytes },
            Head::ResyncEnd { base, until } => PeerMsg::ResyncEnd { base, until },
            Head::ResyncDone { position } => PeerMsg::ResyncDone { position },
            Head::VerifyAsk { id, extent, crcs, chunk } => PeerMsg::VerifyAsk { id, extent, crcs, chunk },
            Head::VerifyAnswer { id, differing, retry } => PeerMsg::VerifyAnswer { id, differing, retry },
            Head::Claim(charter) => PeerMsg::Claim(charter),
            Head::ClaimAnswer { version, granted } => PeerMsg::ClaimAnswer { version, granted },
            Head::TakeOver => PeerMsg::TakeOver,
            Head::Fetch { after, term } => PeerMsg::Fetch { after, term },
            Head::Bye { why } => PeerMsg::Bye { why },
            Head::Share(share) => PeerMsg::Share(share),
            Head::Entry(entry) => PeerMsg::Entry(entry),
        }
    }

    /// The records' metas, and the lsn of the first where they have one.
    pub(super) fn metas(&self) -> (Option<Lsn>, &[Meta]) {
        match self {
            Head::Append { first, records, .. } => (Some(*first), records),
            Head::ResyncData { records, .. } => (None, records),
            _ => (None, &[]),
        }
    }

    /// Every position that the message names.
    pub(super) fn positions(&self) -> Vec<Lsn> {
        match self {
            Head::Hello(h) => {
                let mut all = vec![h.received, h.durable, h.committed, h.applied, h.log_from];
                all.extend(h.lineage.iter().map(|t| t.first));
                all.extend(h.charter.released);
                all.extend(h.gap.and_then(|g| g.rollback));
                all
            }
            Head::Fetch { after, .. } => vec![*after],
            Head::Ready { received, durable } => vec![*received, *durable],
            Head::ReadyResync { since, .. } => vec![*since],
            Head::Append { first, watermarks: w, .. } => vec![*first, w.committed, w.accepted, w.flush_to],
            Head::Heartbeat { watermarks: w } => vec![w.committed, w.accepted, w.flush_to],
            Head::Ack(ack) => vec![ack.received, ack.durable, ack.applied, ack.streamed],
            Head::Charter(c) | Head::Claim(c) => c.released.into_iter().collect(),
            Head::Entry(entry) => entry.charter.released.into_iter().collect(),
            Head::ResyncEnd { base, until } => vec![*base, *until],
            Head::ResyncDone { position } => vec![*position],
            _ => Vec::new(),
        }
    }

    /// Every run of bytes on a volume that the message names beside its records.
    pub(super) fn extents(&self) -> &[Extent] {
        match self {
            Head::VerifyAsk { extent, .. } => std::slice::from_ref(extent),
            Head::VerifyAnswer { differing, .. } => differing,
            _ => &[],
        }
    }
}
