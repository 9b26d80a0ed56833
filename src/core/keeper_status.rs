//! What `understudy status` says of who keeps the charter.

use super::node::Node;
use super::takeover::Course;
use super::types::*;
use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub struct KeeperStatus {
    /// alone or voters.
    pub kind: &'static str,
    /// Of the charter that this node knows to stand.
    pub version: u64,
    /// An operator is at work: nobody takes over by itself.
    pub maintenance: bool,
    /// What the voters are asked, and have not agreed to yet.
    pub asking: Option<&'static str>,
    /// Who has not answered that.
    pub silent: Vec<String>,
    /// Why the voters are of no use to this node as they are.
    pub stuck: Option<String>,
    /// None under `alone`.
    pub voters: Vec<VoterStatus>,
    /// Of the newest takeover by this process.
    pub course: Option<TakeoverStatus>,
}

#[derive(Clone, Debug, Serialize)]
pub struct VoterStatus {
    pub name: String,
    /// The charter lists it: the others of the file have no vote before they are put in the place of one.
    pub votes: bool,
    /// Seconds since it last answered this node.
    pub heard_s: Option<f64>,
}

/// When each phase of a takeover was over, in ms since the last word of the active before; none where it is not.
#[derive(Clone, Debug, Serialize)]
pub struct TakeoverStatus {
    pub detected_ms: u64,
    pub durable_ms: Option<u64>,
    pub agreed_ms: Option<u64>,
    pub opened_ms: Option<u64>,
}

impl TakeoverStatus {
    fn of(course: &Course) -> TakeoverStatus {
        let ms = |at: Time| at.since_us(course.heard) / 1000;
        TakeoverStatus {
            detected_ms: ms(course.began),
            durable_ms: course.asked.map(ms),
            agreed_ms: course.agreed.map(ms),
            opened_ms: course.opened.map(ms),
        }
    }
}

impl Node {
    pub(super) fn keeper_status(&self, now: Time) -> KeeperStatus {
        let mut status = KeeperStatus {
            kind: self.cfg.keeper.word(),
            version: self.charter.version,
            maintenance: false,
            asking: None,
            silent: Vec::new(),
            stuck: None,
            voters: Vec::new(),
            course: self.watch.course.as_ref().map(TakeoverStatus::of),
        };
        let (Some(voters), Some(voting)) = (&self.voters, self.voting()) else { return status };
        let listed: Vec<&String> = voters.known().voters.iter().map(|v| &v.name).collect();
        let others = voting.voters.iter().filter(|name| !listed.contains(name));
        status.voters = listed
            .iter()
            .copied()
            .chain(others)
            .map(|name| VoterStatus {
                name: name.clone(),
                votes: listed.contains(&name),
                heard_s: voters.heard(name).map(|at| now.since_us(at) as f64 / 1e6),
            })
            .collect();
        status.maintenance = voters.known().maintenance;
        status.asking = voters.asking();
        status.silent = if status.asking.is_some() { voters.silent(&voting.voters) } else { Vec::new() };
        status.stuck = voters.stuck.as_ref().map(ToString::to_string);
        status
    }
}
