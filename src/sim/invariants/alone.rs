//! Invariant 2: a copy of any node's disk, at any moment, brought up with nobody else there, is exactly the device after
//! some prefix of its lineage's writes; and not an older one than the node had reported durable.

use super::super::brain::Brain;
use super::super::disk::{Blocking, SimDisk};
use super::super::rng::Rng;
use super::super::truth::{Pos, Truth, stamps};
use super::{Violation, broken};
use crate::core::{Action, ClientOp, Command, CommandId, Event, Lsn, NodeConfig, Reply, ReqId, Term, Time, VolumeId};
use std::collections::BTreeMap;

const NAME: &str = "2 a valid image";
/// Steps after which a node that is brought up alone is held to be stuck.
const PATIENCE: u64 = 20_000;

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// It served this image, after this position (none: the beginning of everything).
    Serves { lineage: Vec<Term>, at: Lsn, blocks: Vec<Option<u64>> },
    /// It refused, in these words.
    Refused(String),
}

struct Solitude<B> {
    brain: B,
    disk: SimDisk,
    rng: Rng,
    now: u64,
    done: BTreeMap<(u64, u64), u64>,
    /// Stamps of the blocks of each volume.
    replies: BTreeMap<u64, Vec<Option<u64>>>,
    block: u64,
    outcome: Option<Result<(), String>>,
}

/// Brings up a disk alone: recovery, a forced promotion with everyone else named as off, and a read of all there is.
pub fn bring_up<B: Brain>(config: NodeConfig, mut disk: SimDisk, rng: Rng) -> Result<Outcome, Violation> {
    let off: Vec<String> = config.peers().map(|n| config.name(n).to_string()).collect();
    let (volumes, block) = (config.volumes.clone(), u64::from(config.block));
    let brain = B::start(config, &mut Blocking { disk: &mut disk, calls: None }, Time(1_000_000))
        .map_err(|e| broken(NAME, format!("recovery refused a disk that nothing had damaged: {e}")))?;
    let mut alone = Solitude {
        brain,
        disk,
        rng,
        now: 1_000_000,
        done: BTreeMap::new(),
        replies: BTreeMap::new(),
        block,
        outcome: None,
    };
    let command = Command::Promote { force: true, off };
    alone.brain.handle(Time(alone.now), Event::Command { id: CommandId(1), command });
    let mut steps = 0;
    while alone.outcome.is_none() {
        alone.step()?;
        steps += 1;
        if steps > PATIENCE {
            return Err(broken(NAME, "a forced promotion, all alone, came to no end"));
        }
    }
    if let Some(Err(why)) = alone.outcome {
        return Ok(Outcome::Refused(why));
    }
    let mut lineage = alone.brain.lineage().to_vec();
    let Some(opened) = lineage.pop() else { return Err(broken(NAME, "it serves without a lineage")) };
    for (n, volume) in volumes.iter().enumerate() {
        let op = ClientOp::Read { volume: VolumeId(n as u16), offset: 0, length: volume.size };
        alone.brain.handle(Time(alone.now), Event::Client { req: ReqId(n as u64), op });
    }
    while alone.replies.len() < volumes.len() {
        alone.step()?;
        steps += 1;
        if steps > 2 * PATIENCE {
            return Err(broken(NAME, "reads of a node all alone came to no end"));
        }
    }
    let blocks = alone.replies.into_values().flatten().collect();
    Ok(Outcome::Serves { lineage, at: opened.first.prev(), blocks })
}

impl<B: Brain> Solitude<B> {
    fn step(&mut self) -> Result<(), Violation> {
        self.brain.poll(Time(self.now));
        while let Some(action) = self.brain.next_action() {
            self.act(action)?;
        }
        let io = self.done.pop_first();
        let deadline = self.brain.deadline().map_or(u64::MAX, |t| t.0);
        match io {
            Some(((at, _), token)) if at <= deadline => {
                self.now = self.now.max(at);
                if let Some((id, result)) = self.disk.complete(token, &mut self.rng) {
                    self.brain.handle(Time(self.now), Event::IoDone { id, result });
                }
            }
            other => {
                if let Some((key, token)) = other {
                    self.done.insert(key, token);
                }
                self.now = self.now.max(deadline.min(self.now + 10_000)) + 1;
            }
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> Result<(), Violation> {
        match action {
            Action::Io { id, part, op } => {
                let (token, delay) = self.disk.submit(id, part, op, &mut self.rng).map_err(|e| broken("9 disk", e))?;
                self.done.insert((self.now + delay, token), token);
            }
            Action::Connect { peer } => self.brain.handle(Time(self.now), Event::ConnectFailed { peer }),
            Action::CommandDone { result, .. } => self.outcome = Some(result.map(|_| ()).map_err(|e| e.to_string())),
            Action::Complete { req, result: Ok(Reply::Data(segments)) } => {
                self.replies.insert(req.0, stamps(&segments, self.block).0);
            }
            Action::Complete { req, result } => {
                return Err(broken(NAME, format!("a read, all alone, was answered with {result:?} ({req:?})")));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Compares an image with the truth; `least` is what it must hold.
pub fn check_image(
    lineage: &[Term],
    at: Lsn,
    blocks: &[Option<u64>],
    least: &[Pos],
    truth: &Truth,
) -> Result<(), Violation> {
    let pos = lineage.iter().rev().find(|t| t.first <= at).map(|t| Pos { term: t.id, lsn: at });
    if pos.is_none() && at > Lsn(0) {
        return Err(broken(NAME, format!("it serves after {at:?}, which is in no term of {lineage:?}")));
    }
    if let Some(pos) = pos
        && truth.settle(pos).is_some_and(|p| p.lsn > truth.end(p.term))
    {
        return Err(broken(NAME, format!("it serves after {pos:?}, which nobody ever wrote")));
    }
    if let Some(lacking) = least.iter().find(|l| !pos.is_some_and(|p| truth.contains(p, **l)) && l.lsn > Lsn(0)) {
        return Err(broken(
            NAME,
            format!("it serves after {pos:?}, which is older than {lacking:?}, reported durable or promised"),
        ));
    }
    for (index, found) in blocks.iter().enumerate() {
        let want = pos.map_or(0, |p| truth.value(p, index));
        if *found != Some(want) {
            let also = when(pos, index, *found, truth);
            return Err(broken(
                NAME,
                format!("after {pos:?} block {index} must hold stamp {want} and holds {found:?}{also}"),
            ));
        }
    }
    if blocks.len() != truth.geometry.blocks() {
        return Err(broken(NAME, format!("it has {} blocks", blocks.len())));
    }
    Ok(())
}

/// Where else in this history the block held this, for the report.
fn when(pos: Option<Pos>, index: usize, found: Option<u64>, truth: &Truth) -> String {
    let (Some(pos), Some(found)) = (pos, found) else { return String::new() };
    let at = (0..pos.lsn.0 + 2000).rev().find(|lsn| truth.value(Pos { lsn: Lsn(*lsn), ..pos }, index) == found);
    at.map_or_else(|| ", which it never held in this lineage".into(), |lsn| format!(", as it did at {lsn}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::TermId;
    use crate::sim::truth::{Geometry, Span};

    #[test]
    fn an_image_is_a_prefix_and_not_an_old_one() {
        let term = Term { number: 1, id: TermId(1), first: Lsn(1) };
        let mut truth = Truth::new(Geometry { block: 512, volumes: vec![2] });
        truth.learn(&[term]).unwrap();
        for (block, stamp) in [(0, 5), (1, 6), (0, 7)] {
            truth.append(TermId(1), Span { volume: VolumeId(0), block, count: 1, stamp });
        }
        let pos = |lsn| Pos { term: TermId(1), lsn: Lsn(lsn) };
        let check = |at, blocks: [u64; 2], least: &[Pos]| {
            check_image(&[term], Lsn(at), &blocks.map(Some), least, &truth).is_ok()
        };
        assert!(check(2, [5, 6], &[pos(1), pos(2)]));
        assert!(!check(2, [5, 6], &[pos(3)]), "older than reported");
        assert!(!check(2, [7, 6], &[]), "a later write");
        assert!(!check(3, [5, 6], &[]), "an older one");
        assert!(!check(4, [7, 6], &[]), "a position that never was");
        assert!(check(0, [0, 0], &[]));
    }
}
