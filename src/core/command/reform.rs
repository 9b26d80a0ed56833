//! What an operator changes of the register itself: maintenance, and who votes (C7).

use super::*;
use crate::core::register::{Entry, Voter};

/// What is wanted of the entry, beside its charter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::core) enum Wish {
    Maintenance(bool),
    /// `with` in the place of `voter`, or `voter` itself anew; added, where the charter does not list it.
    Voter {
        voter: String,
        with: Option<String>,
    },
}

impl Wish {
    /// The voter whose id has to be asked for.
    pub(in crate::core) fn newcomer(&self) -> Option<&String> {
        match self {
            Wish::Maintenance(_) => None,
            Wish::Voter { voter, with } => Some(with.as_ref().unwrap_or(voter)),
        }
    }

    /// The entry as it is wanted; the newcomer is `met`.
    pub(in crate::core) fn applied(&self, entry: &Entry, met: Option<&Voter>) -> Entry {
        let mut wanted = entry.clone();
        match self {
            Wish::Maintenance(on) => wanted.maintenance = *on,
            Wish::Voter { voter, .. } => {
                let Some(met) = met else { return wanted };
                let known = wanted.voters.contains(met);
                match wanted.voters.iter().position(|v| v.name == *voter) {
                    Some(place) => wanted.voters[place] = met.clone(),
                    None if known => {}
                    None => wanted.voters.push(met.clone()),
                }
            }
        }
        wanted
    }
}

impl Node {
    pub(super) fn begin_reform(&mut self, id: CommandId, wish: Wish) -> Result<(), Refusal> {
        self.check_free()?;
        let Some(voters) = &self.voters else { return Err(Refusal::NoVoters) };
        self.check_active()?;
        if let Wish::Voter { voter, with: Some(with) } = &wish {
            let listed = |name: &String| voters.known().voters.iter().any(|v| v.name == *name);
            if !listed(voter) || listed(with) {
                let votes = voters.known().voters.iter().map(|v| v.name.clone()).collect();
                return Err(Refusal::NotAVoter { voter: voter.clone(), with: with.clone(), votes });
            }
        }
        self.operation = Some(Operation { id: Some(id), kind: Kind::Reform, since: self.now, contradicted: None });
        self.wish(wish);
        Ok(())
    }

    pub(super) fn poll_reform(&mut self) {
        let Some(voters) = &self.voters else { return };
        if !voters.has_wish() && self.change.is_none() {
            let entry = voters.known();
            let votes: Vec<&str> = entry.voters.iter().map(|v| v.name.as_str()).collect();
            let maintenance = if entry.maintenance { "maintenance is on: nobody takes over by itself; " } else { "" };
            let text = format!("{maintenance}the voters are {}", votes.join(", "));
            let id = self.operation.take().and_then(|o| o.id);
            return self.answer(id, Ok(text));
        }
        if self.operation_is_late() {
            let names = self.voting().map_or(Vec::new(), |v| v.voters.clone());
            let silent = self.voters.as_ref().map_or(Vec::new(), |v| v.silent(&names));
            if let Some(voters) = &mut self.voters {
                voters.forget_wish();
            }
            let id = self.operation.take().and_then(|o| o.id);
            self.answer(id, Err(Refusal::VotersSilent { voters: silent }));
        }
    }
}
