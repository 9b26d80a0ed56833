//! The client of one active: what it has asked, what it was promised, and whether the answers are true (invariant 3).

use super::rng::Rng;
use super::truth::{Geometry, Pos, Span, Truth, fill, stamps};
use crate::core::{ClientError, ClientOp, Lsn, Reply, ReqId, Segment, TermId, VolumeId};
use std::collections::{BTreeMap, VecDeque};

/// What a client does, in relative weights and sizes.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Requests that it keeps in flight.
    pub depth: u64,
    /// Mean µs between a completion and the next request.
    pub think_us: u64,
    /// Longest write or read, in blocks.
    pub max_blocks: u64,
    pub writes: u64,
    pub reads: u64,
    pub flushes: u64,
    pub zeroes: u64,
    pub discards: u64,
    /// Of a thousand changes, so many are FUA.
    pub fua_per_mille: u64,
    /// Of a thousand requests, so many go to the first few blocks.
    pub hot_per_mille: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Change {
        span: Span,
        fua: bool,
    },
    /// Everything in `covers` of its volume had completed when it was asked.
    Flush {
        covers: Lsn,
    },
    Read {
        volume: VolumeId,
        block: u64,
        count: u64,
        from: Lsn,
    },
    Extents {
        volume: VolumeId,
        block: u64,
        count: u64,
        from: Lsn,
    },
}

#[derive(Clone, Debug)]
struct Request {
    what: What,
    asked_at: u64,
    /// Its record, once it was accepted.
    lsn: Option<Lsn>,
    /// Asked in an earlier session: nobody waits for it.
    abandoned: bool,
}

/// What a completion promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// This record is seen, or written: it survives the death of a process, and of any one in-sync node.
    pub kept: Option<Pos>,
    /// This one survives a power cut.
    pub durable: Option<Pos>,
    /// This change was told to be done, and a later flush covers it.
    pub done: Option<(VolumeId, Pos)>,
    /// µs that the request took, for whom somebody waited.
    pub took_us: Option<u64>,
}

/// The requests to one node in one term.
#[derive(Debug)]
pub struct Client {
    pub term: TermId,
    /// The device is there: requests may be made.
    pub live: bool,
    requests: BTreeMap<ReqId, Request>,
    /// Changes that the node has not yet accepted, in order.
    unaccepted: VecDeque<ReqId>,
    accepted: Lsn,
    /// The newest change of each volume that was told to be done, in this term or before: clients outlive the active.
    completed: Vec<Lsn>,
}

impl Client {
    /// The clients of a node that begins to serve at this position, and what had completed for them in each volume.
    pub fn new(term: TermId, start: Lsn, completed: Vec<Lsn>) -> Client {
        Client { term, live: true, requests: BTreeMap::new(), unaccepted: VecDeque::new(), accepted: start, completed }
    }

    /// Requests that somebody waits for.
    pub fn in_flight(&self) -> usize {
        self.requests.values().filter(|r| !r.abandoned).count()
    }

    /// When the oldest of them was asked: they are numbered in the order of asking.
    pub fn oldest(&self) -> Option<u64> {
        self.requests.values().find(|r| !r.abandoned).map(|r| r.asked_at)
    }

    /// In words, for a report.
    pub fn describe_oldest(&self) -> String {
        let oldest = self.requests.iter().filter(|(_, r)| !r.abandoned).min_by_key(|(_, r)| r.asked_at);
        oldest.map_or_else(String::new, |(id, r)| format!("{id:?} {:?} record {:?}", r.what, r.lsn))
    }

    /// Its session ends: what was under way may be done or not.
    pub fn abandon(&mut self) {
        self.live = false;
        self.requests.values_mut().for_each(|r| r.abandoned = true);
    }

    /// Draws the next request.
    pub fn ask(
        &mut self,
        id: ReqId,
        now: u64,
        habits: &Habits,
        geometry: &Geometry,
        stamps: &mut u64,
        rng: &mut Rng,
    ) -> ClientOp {
        let volume = VolumeId(rng.below(geometry.volumes.len() as u64) as u16);
        let size = geometry.volumes[volume.0 as usize];
        let reach = if rng.per_mille(habits.hot_per_mille) { size.min(8) } else { size };
        let count = rng.between(1, habits.max_blocks.min(reach));
        let block = rng.below(reach - count + 1);
        let (offset, length) = (block * geometry.block, count * geometry.block);
        let fua = rng.per_mille(habits.fua_per_mille);
        let change = |stamp| What::Change { span: Span { volume, block, count, stamp }, fua };
        let from = self.accepted;
        let weights = [habits.writes, habits.reads, habits.flushes, habits.zeroes, habits.discards];
        let (what, op) = match draw(&weights, rng) {
            0 => {
                let stamp = *stamps;
                *stamps += count;
                let payload = fill(stamp, count, geometry.block);
                (change(stamp), ClientOp::Write { volume, offset, payload, fua })
            }
            1 if rng.per_mille(50) => {
                (What::Extents { volume, block, count, from }, ClientOp::Extents { volume, offset, length })
            }
            1 => (What::Read { volume, block, count, from }, ClientOp::Read { volume, offset, length }),
            2 => (What::Flush { covers: self.completed[volume.0 as usize] }, ClientOp::Flush { volume }),
            3 => (change(0), ClientOp::Zeroes { volume, offset, length, fua, may_discard: rng.coin() }),
            _ => (change(0), ClientOp::Discard { volume, offset, length, fua }),
        };
        self.enter(id, now, what);
        op
    }

    /// Reads one whole volume.
    pub fn ask_all(&mut self, id: ReqId, now: u64, volume: VolumeId, geometry: &Geometry) -> ClientOp {
        let count = geometry.volumes[volume.0 as usize];
        self.enter(id, now, What::Read { volume, block: 0, count, from: self.accepted });
        ClientOp::Read { volume, offset: 0, length: count * geometry.block }
    }

    /// Flushes a volume.
    pub fn ask_flush(&mut self, id: ReqId, now: u64, volume: VolumeId) -> ClientOp {
        self.enter(id, now, What::Flush { covers: self.completed[volume.0 as usize] });
        ClientOp::Flush { volume }
    }

    fn enter(&mut self, id: ReqId, now: u64, what: What) {
        if matches!(what, What::Change { .. }) {
            self.unaccepted.push_back(id);
        }
        self.requests.insert(id, Request { what, asked_at: now, lsn: None, abandoned: false });
    }

    /// The node has accepted records up to here: those are the oldest changes asked for, one record each.
    ///
    /// # Errors
    /// If it accepted what nobody asked for.
    pub fn accepted(&mut self, up_to: Lsn, truth: &mut Truth) -> Result<(), String> {
        while self.accepted < up_to {
            let Some(id) = self.unaccepted.pop_front() else {
                return Err(format!("record {:?} was accepted and nobody asked for it", self.accepted.next()));
            };
            let Some(request) = self.requests.get_mut(&id) else { continue };
            if let What::Change { span, .. } = request.what {
                self.accepted = truth.append(self.term, span);
                request.lsn = Some(self.accepted);
            }
        }
        Ok(())
    }

    /// An answer has come.
    ///
    /// # Errors
    /// If it is not true, in words.
    pub fn completed(
        &mut self,
        id: ReqId,
        now: u64,
        result: &Result<Reply, ClientError>,
        may_fail: bool,
        truth: &Truth,
    ) -> Result<Promise, String> {
        let Some(request) = self.requests.remove(&id) else {
            return Err(format!("{id:?} was answered with {result:?}, and is not under way"));
        };
        let took_us = (!request.abandoned).then_some(now - request.asked_at);
        let reply = match result {
            Ok(reply) => reply,
            Err(ClientError::NotActive) if request.abandoned => return Ok(Promise::default()),
            Err(ClientError::Io(_)) if may_fail => return Ok(Promise::default()),
            Err(error) => return Err(format!("{id:?} ({:?}) failed: {error}", request.what)),
        };
        if request.abandoned {
            return Ok(Promise::default());
        }
        let pos = |lsn| Pos { term: self.term, lsn };
        match (request.what, reply) {
            (What::Change { span, fua }, Reply::Done) => {
                let Some(lsn) = request.lsn else { return Err(format!("{id:?} was done before it was accepted")) };
                let completed = &mut self.completed[span.volume.0 as usize];
                *completed = (*completed).max(lsn);
                let (kept, done) = (Some(pos(lsn)), Some((span.volume, pos(lsn))));
                Ok(Promise { kept, durable: fua.then_some(pos(lsn)), done, took_us })
            }
            (What::Flush { covers }, Reply::Done) => {
                Ok(Promise { durable: (covers > Lsn(0)).then(|| pos(covers)), took_us, ..Promise::default() })
            }
            (What::Read { volume, block, count, from }, Reply::Data(segments)) => {
                let kept = self.check_read(truth, volume, block, count, from, segments)?;
                Ok(Promise { kept, took_us, ..Promise::default() })
            }
            (What::Extents { volume, block, count, from }, Reply::Extents(runs)) => {
                self.check_extents(truth, volume, block, count, from, runs)?;
                Ok(Promise { took_us, ..Promise::default() })
            }
            (what, _) => Err(format!("{id:?} ({what:?}) was answered with {result:?}")),
        }
    }

    fn check_read(
        &self,
        truth: &Truth,
        volume: VolumeId,
        block: u64,
        count: u64,
        from: Lsn,
        segments: &[Segment],
    ) -> Result<Option<Pos>, String> {
        let (stamps, bytes) = stamps(segments, truth.geometry.block);
        if bytes != count * truth.geometry.block {
            return Err(format!("a read of {count} blocks brought {bytes} bytes"));
        }
        let mut newest: Option<Pos> = None;
        for (n, stamp) in stamps.into_iter().enumerate() {
            let index = truth.geometry.index(volume, block + n as u64);
            let shown = stamp.and_then(|s| truth.shown(self.term, index, from, self.accepted, s));
            let Some(shown) = shown else {
                let want = truth.value(Pos { term: self.term, lsn: from }, index);
                let where_ = format!("{volume:?} block {}", block + n as u64);
                return Err(format!(
                    "a read of {where_} showed stamp {stamp:?}; it held {want} at {from:?}, and nothing up to {:?} wrote what was shown",
                    self.accepted
                ));
            };
            if let Some(pos) = shown.filter(|p| newest.is_none_or(|old| !truth.contains(old, *p))) {
                newest = Some(pos);
            }
        }
        Ok(newest)
    }

    fn check_extents(
        &self,
        truth: &Truth,
        volume: VolumeId,
        block: u64,
        count: u64,
        from: Lsn,
        runs: &[(u64, bool)],
    ) -> Result<(), String> {
        let size = truth.geometry.block;
        if runs.iter().map(|(n, _)| n).sum::<u64>() != count * size {
            return Err(format!("extents of {count} blocks cover {runs:?}"));
        }
        let mut at = block * size;
        for &(length, zero) in runs {
            for b in (at / size..(at + length) / size).filter(|_| zero) {
                if truth.shown(self.term, truth.geometry.index(volume, b), from, self.accepted, 0).is_none() {
                    return Err(format!("{volume:?} block {b} is said to be zero, and was not since {from:?}"));
                }
            }
            at += length;
        }
        Ok(())
    }
}

fn draw(weights: &[u64], rng: &mut Rng) -> usize {
    let mut at = rng.below(weights.iter().sum());
    for (i, weight) in weights.iter().enumerate() {
        if at < *weight {
            return i;
        }
        at -= weight;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Term, TermId};

    const TERM: TermId = TermId(1);
    const V: VolumeId = VolumeId(0);

    fn setup() -> (Client, Truth) {
        let mut truth = Truth::new(Geometry { block: 512, volumes: vec![4] });
        truth.learn(&[Term { number: 1, id: TERM, first: Lsn(1) }]).unwrap();
        (Client::new(TERM, Lsn(0), vec![Lsn(0)]), truth)
    }

    fn write(client: &mut Client, id: u64, stamp: u64, fua: bool) {
        let span = Span { volume: V, block: 0, count: 1, stamp };
        client.enter(ReqId(id), 0, What::Change { span, fua });
    }

    fn data(stamp: u64) -> Result<Reply, ClientError> {
        let segment = if stamp == 0 { Segment::Zero(512) } else { Segment::Data(fill(stamp, 1, 512)) };
        Ok(Reply::Data(vec![segment]))
    }

    fn read(client: &mut Client, id: u64) {
        let from = client.accepted;
        client.enter(ReqId(id), 0, What::Read { volume: V, block: 0, count: 1, from });
    }

    #[test]
    fn a_read_may_show_what_was_accepted_and_nothing_older() {
        let (mut client, mut truth) = setup();
        write(&mut client, 1, 10, false);
        client.accepted(Lsn(1), &mut truth).unwrap();
        (2..=5).for_each(|id| read(&mut client, id));
        write(&mut client, 6, 20, false);
        let done =
            |client: &mut Client, truth: &Truth, id, stamp| client.completed(ReqId(id), 1, &data(stamp), false, truth);
        assert!(done(&mut client, &truth, 2, 0).is_err(), "older than the newest accepted");
        assert!(done(&mut client, &truth, 3, 20).is_err(), "not accepted yet");
        let shown = done(&mut client, &truth, 4, 10).unwrap();
        assert_eq!(shown.kept, Some(Pos { term: TERM, lsn: Lsn(1) }));
        client.accepted(Lsn(2), &mut truth).unwrap();
        assert_eq!(done(&mut client, &truth, 5, 20).unwrap().kept, Some(Pos { term: TERM, lsn: Lsn(2) }));
    }

    #[test]
    fn a_flush_promises_what_had_completed_when_it_came() {
        let (mut client, mut truth) = setup();
        write(&mut client, 1, 10, false);
        write(&mut client, 2, 20, false);
        client.accepted(Lsn(2), &mut truth).unwrap();
        client.ask_flush(ReqId(3), 0, V);
        client.completed(ReqId(1), 0, &Ok(Reply::Done), false, &truth).unwrap();
        client.ask_flush(ReqId(4), 0, V);
        let promise = client.completed(ReqId(3), 0, &Ok(Reply::Done), false, &truth).unwrap();
        assert_eq!(promise.durable, None);
        let promise = client.completed(ReqId(4), 0, &Ok(Reply::Done), false, &truth).unwrap();
        assert_eq!(promise.durable, Some(Pos { term: TERM, lsn: Lsn(1) }));
    }

    #[test]
    fn answers_that_make_no_sense_are_told() {
        let (mut client, mut truth) = setup();
        write(&mut client, 1, 10, true);
        assert!(client.completed(ReqId(1), 0, &Ok(Reply::Done), false, &truth).is_err(), "done before accepted");
        assert!(client.completed(ReqId(1), 0, &Ok(Reply::Done), false, &truth).is_err(), "answered twice");
        write(&mut client, 2, 20, true);
        assert!(client.completed(ReqId(2), 0, &Err(ClientError::Io(5)), false, &truth).is_err());
        write(&mut client, 3, 30, true);
        assert!(
            client.completed(ReqId(3), 0, &Err(ClientError::NotActive), false, &truth).is_err(),
            "C6: nobody was told"
        );
        assert!(client.accepted(Lsn(5), &mut truth).is_err(), "more than was asked for");
    }

    #[test]
    fn zero_extents_are_checked() {
        let (mut client, mut truth) = setup();
        write(&mut client, 1, 10, false);
        client.accepted(Lsn(1), &mut truth).unwrap();
        let from = Lsn(1);
        let mut extents = |runs: &[(u64, bool)]| {
            client.enter(ReqId(9), 0, What::Extents { volume: V, block: 0, count: 2, from });
            client.completed(ReqId(9), 0, &Ok(Reply::Extents(runs.to_vec())), false, &truth).is_ok()
        };
        assert!(extents(&[(512, false), (512, true)]));
        assert!(!extents(&[(1024, true)]));
        assert!(!extents(&[(512, false)]));
    }
}
