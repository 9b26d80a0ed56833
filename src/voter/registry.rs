//! The votes of a voter, by resource, each in a file of its own; and who is answered.
//!
//! **Who may make a record.** Nobody is authenticated, so what anybody can bring about must be harmless. A question to no id in particular
//! (the way to find a voter's id, asked when a charter is founded or a voter is replaced) makes a blank vote where there is none: it has
//! no power until a charter lists its id, and there are at most [`RECORDS_MAX`]. Any other question about a resource that is not here is
//! refused. Who does not name the vote's id, a random number, learns it only while nothing was accepted, or if the asker's own
//! voter is one of those that the accepted charter lists: so a second resource of the same name cannot take the first one's charter for
//! its own.

use super::file::{self, Found, Owner, VoteFile};
use super::frame::{Hello, Seen};
use super::{Notes, VoterError, VoterNote, shown_id};
use crate::core::register::{Acceptor, Answer, Entry, Question, Vote, VoterId};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Resources of a witness, at most.
pub const RECORDS_MAX: usize = 1000;

const SUFFIX: &str = "vote";

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("this is the voter {me:?}, and {voter:?} was asked: look at the addresses in the file")]
    NotMe { me: String, voter: String },
    #[error(
        "this node belongs to the resource {mine:?}, and was asked about {asked:?}: look at the addresses in the files"
    )]
    OtherResource { mine: String, asked: String },
    #[error(
        "{me} holds no vote of {resource:?}: its folder was lost or is another one. Have the data nodes list it as it is now: `understudy voters replace`"
    )]
    Unknown { me: String, resource: String },
    #[error(
        "{me} keeps {RECORDS_MAX} resources already, and no more: remove the files of those that are gone from its folder, then restart it"
    )]
    TooMany { me: String },
    #[error(
        "{me} keeps the charter of a resource called {resource:?} whose voters are {}, and this node's own voter is none of them. If that is another \
         resource, give this one another name. If it is gone for good, remove its vote from the folder of {me}", voters.join(", "))]
    OtherVoters { me: String, resource: String, voters: Vec<String> },
    #[error("the question contradicts an earlier one of the same attempt")]
    Contradiction,
    #[error("{me} cannot use its vote of {resource:?}: {why}")]
    Broken { me: String, resource: String, why: String },
}

/// Where the votes are.
enum Place {
    /// The one of a data node.
    File { resource: String },
    /// Those of a witness, and the lock that keeps another process out.
    Folder { dir: PathBuf, _lock: Flock<File> },
}

/// See the module's page.
pub struct Registry {
    me: String,
    place: Place,
    records: Mutex<BTreeMap<String, Arc<Mutex<Record>>>>,
    /// Beside the records, whose locks are held while their disk is waited for.
    ids: Mutex<BTreeMap<String, VoterId>>,
    notes: Notes,
}

/// A vote in memory and on disk.
struct Record {
    owner: Owner,
    acceptor: Acceptor,
    file: VoteFile<File>,
    /// What the acceptor holds is durable.
    durable: bool,
    /// Why it was not, when that was last tried; said once.
    failing: Option<String>,
}

/// The votes that there are: a poisoned lock is one whose holder panicked, and whatever it changed is written before it counts.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// The voter of a data node: one vote, made if it is not there.
    ///
    /// # Errors
    /// If the file cannot be used, and is not merely damaged.
    pub fn of_node(node: &str, resource: &str, dir: &Path, notes: Notes) -> Result<Registry, VoterError> {
        let path = dir.join(SUFFIX);
        let place = Place::File { resource: resource.into() };
        let registry = Registry { me: node.into(), place, records: Mutex::default(), ids: Mutex::default(), notes };
        let record = registry.open(resource, &path)?;
        held(&registry.records).insert(resource.into(), Arc::new(Mutex::new(record)));
        Ok(registry)
    }

    /// The votes of a witness, as its folder has them.
    ///
    /// # Errors
    /// If the folder or any vote in it cannot be used, and is not merely damaged.
    pub fn of_witness(witness: &str, dir: &Path, notes: Notes) -> Result<Registry, VoterError> {
        let failed = |what| move |source| VoterError::Io { what, path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(failed("make"))?;
        let folder = File::open(dir).map_err(failed("open"))?;
        let lock = Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => VoterError::InUse { path: dir.to_owned() },
            other => failed("lock")(other.into()),
        })?;
        let place = Place::Folder { dir: dir.to_owned(), _lock: lock };
        let registry = Registry { me: witness.into(), place, records: Mutex::default(), ids: Mutex::default(), notes };
        for entry in std::fs::read_dir(dir).map_err(failed("look into"))? {
            let path = entry.map_err(failed("look into"))?.path();
            let resource = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
            if path.extension().is_some_and(|e| e == SUFFIX) && crate::config::name_is_good(&resource) {
                let record = registry.open(&resource, &path)?;
                held(&registry.records).insert(resource, Arc::new(Mutex::new(record)));
            }
        }
        Ok(registry)
    }

    /// The name of this voter.
    pub fn name(&self) -> &str {
        &self.me
    }

    /// Opens a vote, or makes it.
    fn open(&self, resource: &str, path: &Path) -> Result<Record, VoterError> {
        let owner = Owner { resource: resource.into(), voter: self.me.clone() };
        match file::open(path, &owner)? {
            Found::Vote(found) => {
                let (file, vote) = *found;
                held(&self.ids).insert(resource.into(), vote.id);
                return Ok(Record { owner, acceptor: Acceptor::new(vote), file, durable: false, failing: None });
            }
            Found::Damaged(why) => {
                file::set_aside(path)?;
                let aside = path.with_extension("damaged").display().to_string();
                (self.notes)(VoterNote::VoteDamaged { resource: resource.into(), path: aside, why: why.to_string() });
            }
            Found::Nothing => {}
        }
        let drawn =
            drawn().map_err(|source| VoterError::Io { what: "draw the id of", path: path.to_owned(), source })?;
        let vote = Vote { id: drawn, ..Vote::default() };
        let file = file::create(path, &owner, &vote)?;
        held(&self.ids).insert(resource.into(), drawn);
        (self.notes)(VoterNote::VoterMade { resource: resource.into(), id: shown_id(drawn) });
        Ok(Record { owner, acceptor: Acceptor::new(vote), file, durable: true, failing: None })
    }

    /// Whether whoever says this is answered at all.
    ///
    /// # Errors
    /// If another voter is meant, or another resource.
    pub fn greet(&self, hello: &Hello) -> Result<(), Refusal> {
        if hello.voter != self.me {
            return Err(Refusal::NotMe { me: self.me.clone(), voter: hello.voter.clone() });
        }
        match &self.place {
            Place::File { resource } if *resource != hello.resource => {
                Err(Refusal::OtherResource { mine: resource.clone(), asked: hello.resource.clone() })
            }
            _ => Ok(()),
        }
    }

    fn broken(&self, resource: &str, why: impl ToString) -> Refusal {
        Refusal::Broken { me: self.me.clone(), resource: resource.into(), why: why.to_string() }
    }

    fn record(&self, resource: &str, may_make: bool) -> Result<Arc<Mutex<Record>>, Refusal> {
        let mut records = held(&self.records);
        if let Some(record) = records.get(resource) {
            return Ok(record.clone());
        }
        let Place::Folder { dir, .. } = &self.place else {
            return Err(Refusal::Unknown { me: self.me.clone(), resource: resource.into() });
        };
        if !may_make {
            return Err(Refusal::Unknown { me: self.me.clone(), resource: resource.into() });
        }
        if records.len() >= RECORDS_MAX {
            return Err(Refusal::TooMany { me: self.me.clone() });
        }
        let path = dir.join(format!("{resource}.{SUFFIX}"));
        let record = self.open(resource, &path).map_err(|e| self.broken(resource, e))?;
        let record = Arc::new(Mutex::new(record));
        records.insert(resource.into(), record.clone());
        Ok(record)
    }

    /// Answers a question. What the answer promises is durable.
    ///
    /// # Errors
    /// If the asker gets no answer, why.
    pub fn ask(&self, hello: &Hello, question: &Question) -> Result<Answer, Refusal> {
        self.greet(hello)?;
        let record = self.record(&hello.resource, question.to == VoterId::default())?;
        let mut record = held(&record);
        self.admit(&record, hello, question.to)?;
        let before = record.acceptor.vote().clone();
        if contradicts(&before, question) {
            return Err(Refusal::Contradiction);
        }
        let fresh = drawn().map_err(|e| self.broken(&hello.resource, e))?;
        let answer = record.acceptor.asked(question, fresh);
        let changed = *record.acceptor.vote() != before;
        record.durable &= !changed;
        let id = record.acceptor.vote().id;
        if id != before.id {
            held(&self.ids).insert(hello.resource.clone(), id);
            (self.notes)(VoterNote::VoterStale { resource: hello.resource.clone(), id: shown_id(id) });
        }
        self.make_durable(&mut record)?;
        Ok(answer)
    }

    fn make_durable(&self, record: &mut Record) -> Result<(), Refusal> {
        if record.durable {
            return Ok(());
        }
        let resource = record.owner.resource.clone();
        match record.file.store(record.acceptor.vote()) {
            Ok(()) => {
                record.durable = true;
                if record.failing.take().is_some() {
                    (self.notes)(VoterNote::VoteWritten { resource });
                }
                Ok(())
            }
            Err(e) => {
                let why = format!("it cannot be made durable: {e}");
                if record.failing.as_ref() != Some(&why) {
                    (self.notes)(VoterNote::VoteNotWritten { resource: resource.clone(), why: why.clone() });
                }
                record.failing = Some(why.clone());
                Err(self.broken(&resource, why))
            }
        }
    }

    /// What this voter is, for whoever watches it. Nothing is made or changed.
    ///
    /// # Errors
    /// If the asker is not to know.
    pub fn look(&self, hello: &Hello) -> Result<Seen, Refusal> {
        self.greet(hello)?;
        let Some(record) = held(&self.records).get(&hello.resource).cloned() else {
            return Ok(Seen { id: None, version: 0 });
        };
        let record = held(&record);
        self.admit(&record, hello, VoterId::default())?;
        let vote = record.acceptor.vote();
        Ok(Seen { id: Some(vote.id), version: vote.accepted.as_ref().map_or(0, |(_, entry)| entry.version()) })
    }

    /// See the module's page.
    fn admit(&self, record: &Record, hello: &Hello, to: VoterId) -> Result<(), Refusal> {
        let vote = record.acceptor.vote();
        let Some((_, entry)) = vote.accepted.as_ref().filter(|_| to != vote.id) else { return Ok(()) };
        let Entry { voters, former, .. } = entry;
        if voters.iter().chain(former).any(|v| v.id == hello.own) {
            return Ok(());
        }
        let (me, resource) = (self.me.clone(), hello.resource.clone());
        Err(Refusal::OtherVoters { me, resource, voters: voters.iter().map(|v| v.name.clone()).collect() })
    }

    /// The id of the vote of a resource, if there is one.
    pub fn id(&self, resource: &str) -> Option<VoterId> {
        held(&self.ids).get(resource).copied()
    }

    /// Each vote, for `status`.
    pub fn view(&self) -> Value {
        let records: Vec<_> = held(&self.records).iter().map(|(name, record)| (name.clone(), record.clone())).collect();
        let shown = |(resource, record): &(String, Arc<Mutex<Record>>)| {
            // Its disk is being waited for: then so much must do.
            let Ok(record) = record.try_lock() else {
                return json!({ "resource": resource, "problem": "its vote is being written" });
            };
            let vote = record.acceptor.vote();
            let charter = vote.accepted.as_ref().map(|(_, entry)| &entry.charter);
            let voters = vote.accepted.iter().flat_map(|(_, entry)| &entry.voters);
            json!({
                "resource": resource,
                "id": shown_id(vote.id),
                "listed": vote.accepted.as_ref().is_some_and(|(_, e)| e.voters.iter().any(|v| v.id == vote.id)),
                "generation": vote.generation,
                "version": charter.map(|c| c.version),
                "term": charter.map(|c| c.term),
                "active": charter.and_then(|c| c.active.clone()),
                "in_sync": charter.map(|c| c.in_sync.iter().map(|m| m.node.clone()).collect::<Vec<_>>()),
                "voters": voters.map(|v| v.name.clone()).collect::<Vec<_>>(),
                "problem": record.failing,
            })
        };
        records.iter().map(shown).collect()
    }
}

/// No honest asker sends two entries under one ballot; the acceptor takes that for granted.
fn contradicts(vote: &Vote, question: &Question) -> bool {
    let (Some(entry), Some((ballot, accepted))) = (&question.accept, &vote.accepted) else { return false };
    question.generation == vote.generation && *ballot == question.ballot && accepted != entry
}

fn drawn() -> std::io::Result<VoterId> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| std::io::Error::other(e.to_string()))?;
    Ok(VoterId(u128::from_le_bytes(bytes)))
}
