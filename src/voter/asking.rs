//! The asking side: carries questions to the voters of a resource, and answers back. Each voter has a thread, so that one who is slow or gone
//! delays no other; what is lost is asked again by the core. Between questions it looks whether the voter is there, so that people
//! hear of one that is gone before it is needed.

use super::frame::{Frame, Hello, Seen};
use super::registry::Registry;
use super::stream::{Stream, StreamError};
use super::{Notes, VoterNote, shown_id};
use crate::core::register::{Answer, Question, VoterId};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Questions that wait for one voter: the newest. One round is asked at a time, so older ones are of no use any more.
const WAITING_MAX: usize = 4;
/// How often a voter is looked at that is asked nothing.
const LOOK: Duration = Duration::from_secs(5);
const STACK: usize = 128 << 10;

/// Where answers go: the voter's name, and what it said. Called from any thread.
pub type Deliver = Arc<dyn Fn(&str, Answer) + Send + Sync>;

/// Where a voter is.
#[derive(Clone)]
pub enum At {
    /// In this process.
    Here,
    There(SocketAddr),
}

/// Who asks, and how patiently.
#[derive(Clone)]
pub struct Asker {
    pub resource: String,
    pub node: String,
    /// This node's own voter.
    pub own: Arc<Registry>,
    /// A dial, and an answer, are waited for so long.
    pub patience: Duration,
    pub deliver: Deliver,
    pub notes: Notes,
}

/// See the module's page. Its threads end with it.
pub struct Asking {
    voters: BTreeMap<String, Arc<Voter>>,
}

/// One voter, shared with its thread.
struct Voter {
    questions: Mutex<Questions>,
    came: Condvar,
    seen: Mutex<View>,
}

#[derive(Default)]
struct Questions {
    waiting: VecDeque<Question>,
    ended: bool,
}

/// How a voter was found last.
#[derive(Default)]
struct View {
    heard: Option<Instant>,
    /// Why it did not answer when it was last asked.
    silent: Option<String>,
    id: Option<VoterId>,
}

enum Task {
    Ask(Box<Question>),
    Look,
    End,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Asking {
    /// Starts a thread for each of `voters`.
    ///
    /// # Errors
    /// Where the system has no thread.
    pub fn start(asker: &Asker, voters: Vec<(String, At)>) -> std::io::Result<Asking> {
        let mut asking = Asking { voters: BTreeMap::new() };
        for (name, at) in voters {
            let voter = Arc::new(Voter { questions: Mutex::default(), came: Condvar::new(), seen: Mutex::default() });
            let mut way = Way { asker: asker.clone(), name: name.clone(), at, voter: voter.clone(), open: None };
            asking.voters.insert(name, voter);
            std::thread::Builder::new().name("asking".into()).stack_size(STACK).spawn(move || way.run())?;
        }
        Ok(asking)
    }

    /// Asks a voter. It may be lost.
    pub fn ask(&self, voter: &str, question: Question) {
        let Some(voter) = self.voters.get(voter) else { return };
        let mut questions = held(&voter.questions);
        questions.waiting.push_back(question);
        if questions.waiting.len() > WAITING_MAX {
            questions.waiting.pop_front();
        }
        voter.came.notify_one();
    }

    /// Each voter as it was last found, for `status`.
    pub fn view(&self) -> Value {
        let shown = |(name, voter): (&String, &Arc<Voter>)| {
            let seen = held(&voter.seen);
            json!({
                "name": name,
                "answers": seen.silent.is_none() && seen.heard.is_some(),
                "heard_s": seen.heard.map(|at| (at.elapsed().as_secs_f64() * 10.0).round() / 10.0),
                "id": seen.id.map(shown_id),
                "why": seen.silent,
            })
        };
        self.voters.iter().map(shown).collect()
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        for voter in self.voters.values() {
            held(&voter.questions).ended = true;
            voter.came.notify_one();
        }
    }
}

impl Voter {
    /// The next thing to do; a look after a while without any.
    fn next(&self, idle: Duration) -> Task {
        let until = Instant::now() + idle;
        let mut questions = held(&self.questions);
        loop {
            if questions.ended {
                return Task::End;
            }
            if let Some(question) = questions.waiting.pop_front() {
                return Task::Ask(Box::new(question));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Task::Look;
            }
            questions = self.came.wait_timeout(questions, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A voter's thread.
struct Way {
    asker: Asker,
    name: String,
    at: At,
    voter: Arc<Voter>,
    /// The connection, and whom it introduced this node as.
    open: Option<(Stream, VoterId)>,
}

impl Way {
    fn run(&mut self) {
        let mut idle = Duration::ZERO;
        loop {
            let said = match self.voter.next(idle) {
                Task::End => return,
                Task::Ask(question) => self.exchange(Frame::Question(*question)),
                Task::Look => self.exchange(Frame::Look),
            };
            idle = LOOK;
            self.note(said.as_ref().err());
            match said {
                Ok(Frame::Answer(answer)) => {
                    held(&self.voter.seen).id = Some(answer.from);
                    (self.asker.deliver)(&self.name, answer);
                }
                Ok(Frame::Seen(Seen { id, .. })) => held(&self.voter.seen).id = id,
                _ => {}
            }
        }
    }

    /// Remembers whether it answered, and says so where that has changed.
    fn note(&self, failed: Option<&String>) {
        let mut seen = held(&self.voter.seen);
        let was_silent = seen.silent.is_some();
        seen.silent = failed.cloned();
        let voter = self.name.clone();
        let note = match failed {
            None => {
                seen.heard = Some(Instant::now());
                was_silent.then_some(VoterNote::VoterAnswers { voter })
            }
            Some(why) => (!was_silent).then(|| VoterNote::VoterSilent { voter, why: why.clone() }),
        };
        drop(seen);
        note.into_iter().for_each(|note| (self.asker.notes)(note));
    }

    fn hello(&self) -> Hello {
        let Asker { resource, node, own, .. } = &self.asker;
        let own = own.id(resource).unwrap_or_default();
        Hello { resource: resource.clone(), voter: self.name.clone(), node: node.clone(), own }
    }

    /// Says something, and what came back.
    fn exchange(&mut self, frame: Frame) -> Result<Frame, String> {
        let hello = self.hello();
        let At::There(address) = self.at else {
            let own = &self.asker.own;
            return match frame {
                Frame::Question(question) => own.ask(&hello, &question).map(Frame::Answer),
                _ => own.look(&hello).map(Frame::Seen),
            }
            .map_err(|refusal| refusal.to_string());
        };
        // Whoever has another voter by now is somebody else.
        self.open = self.open.take().filter(|(_, as_whom)| *as_whom == hello.own);
        loop {
            let used = self.open.is_some();
            match self.attempt(&hello, address, &frame) {
                Ok(Frame::Refused(why)) => {
                    self.open = None;
                    return Err(format!("it refuses: {why}"));
                }
                Ok(frame @ (Frame::Answer(_) | Frame::Seen(_))) => return Ok(frame),
                // One that was in use may have been closed at the other end since: one more, of its own.
                Err(StreamError::Closed | StreamError::Io(_)) if used => self.open = None,
                Ok(_) => {
                    self.open = None;
                    return Err("what it says is no answer".into());
                }
                Err(e) => {
                    self.open = None;
                    return Err(e.to_string());
                }
            }
        }
    }

    fn attempt(&mut self, hello: &Hello, address: SocketAddr, frame: &Frame) -> Result<Frame, StreamError> {
        let patience = self.asker.patience;
        let (stream, _) = match &mut self.open {
            Some(open) => open,
            none => {
                let socket = TcpStream::connect_timeout(&address, patience)?;
                let mut stream = Stream::new(socket, Vec::new())?;
                stream.send(&Frame::Hello(hello.clone()), patience)?;
                none.insert((stream, hello.own))
            }
        };
        stream.send(frame, patience)?;
        stream.next(patience, patience)
    }
}
