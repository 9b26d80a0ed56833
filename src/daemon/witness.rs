//! The process of a witness: a voter for any number of resources, and nothing else. It holds no data and serves nobody but those who ask.

use super::journal::{Happening, Journal};
use super::net::Listener;
use super::{DaemonError, process, system};
use crate::config::Witness;
use crate::control::{Backend, Server as Control};
use crate::core::Command;
use crate::voter::registry::Registry;
use crate::voter::server::Server;
use crate::voter::{Notes, VoterNote};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, sync_channel};
use std::time::Duration;

/// What waits to be written to the journal; more of it is lost.
const BACKLOG: usize = 256;
/// After a failed accept (too many open files, say) the next one waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the process waits for.
enum Wanted {
    Note(VoterNote),
    Subscribe(Sender<Receiver<String>>),
    NotListening(String),
    Stop,
}

/// What the control socket asks.
#[derive(Clone)]
struct Handle {
    name: String,
    address: String,
    dir: String,
    registry: Arc<Registry>,
    wanted: SyncSender<Wanted>,
}

/// Runs a witness in this thread until it is told to stop, by its control socket, SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
/// Whatever keeps it from starting, in words.
pub fn run(witness: &Witness) -> Result<(), DaemonError> {
    process::raise_open_files();
    let (wanted, waiting) = sync_channel(BACKLOG);
    let into = wanted.clone();
    let notes: Notes = Arc::new(move |note| {
        // Whoever causes that many may cause the rest unseen.
        let _ = into.try_send(Wanted::Note(note));
    });
    let mut journal = Journal::new();
    let registry = Arc::new(Registry::of_witness(&witness.name, &witness.dir, notes.clone())?);
    let listener = Listener::tcp(witness.address).map_err(DaemonError::Peers)?;
    let socket = listener.fd().try_clone().map_err(system("listen"))?;
    let signal = process::signals().map_err(system("handle signals"))?;
    let signal = signal.try_clone().map_err(system("handle signals"))?;
    let thread = |name: &str, body: Box<dyn FnOnce() + Send>| {
        let spawned = std::thread::Builder::new().name(name.into()).stack_size(128 << 10).spawn(body);
        spawned.map(drop).map_err(system("start a thread"))
    };
    let (server, into) = (Server::new(registry.clone(), notes), wanted.clone());
    thread("accept", Box::new(move || accept(&TcpListener::from(socket), &server, &into)))?;
    let into = wanted.clone();
    thread("signals", Box::new(move || await_signal(signal, &into)))?;
    let handle = Handle {
        name: witness.name.clone(),
        address: witness.address.to_string(),
        dir: witness.dir.display().to_string(),
        registry,
        wanted,
    };
    let _control = Control::start(&witness.control, handle)?;
    process::notify("READY=1");
    journal.note(&Happening::Listening { address: witness.address.to_string() });
    for wanted in waiting {
        match wanted {
            Wanted::Note(note @ VoterNote::AskerRefused { .. }) => journal.complain(&note),
            Wanted::Note(note) => journal.note(&note),
            Wanted::NotListening(why) => {
                journal.complain(&Happening::NotListening { address: witness.address.to_string(), why });
            }
            // Whoever asked may have gone.
            Wanted::Subscribe(reply) => drop(reply.send(journal.subscribe())),
            Wanted::Stop => break,
        }
    }
    journal.note(&Happening::Stopping);
    process::notify("STOPPING=1");
    // Whatever an answer promises is durable before it is sent, so the threads may end where they are.
    Ok(())
}

fn accept(listener: &TcpListener, server: &Server, wanted: &SyncSender<Wanted>) {
    loop {
        match listener.accept() {
            Ok((socket, _)) => server.serve(socket, Vec::new()),
            Err(e) => {
                let _ = wanted.try_send(Wanted::NotListening(e.to_string()));
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// The descriptor becomes readable at a signal.
fn await_signal(signal: OwnedFd, wanted: &SyncSender<Wanted>) {
    use std::io::Read;
    let mut signal = std::os::unix::net::UnixStream::from(signal);
    // However that ends, there is nothing more to wait for.
    let _ = signal.read(&mut [0]);
    let _ = wanted.send(Wanted::Stop);
}

impl Backend for Handle {
    fn command(&self, _: Command) -> Result<Value, String> {
        Err(self.no_node())
    }

    fn status(&self) -> Value {
        json!({
            "node": self.name,
            "role": "witness",
            "state": "witness",
            "address": self.address,
            "dir": self.dir,
            "resources": self.registry.view(),
        })
    }

    fn subscribe(&self) -> Receiver<String> {
        let (reply, answer) = mpsc::channel();
        let _ = self.wanted.send(Wanted::Subscribe(reply));
        // A process that ends has no more events: the receiver of a channel without a sender says just that.
        answer.recv().unwrap_or_else(|_| mpsc::channel().1)
    }

    fn retry(&self) -> Result<Value, String> {
        Err(self.no_node())
    }

    fn stop(&self) {
        let _ = self.wanted.send(Wanted::Stop);
    }
}

impl Handle {
    fn no_node(&self) -> String {
        format!("{} is a witness: it has no data and no role to change. Ask one of the resource's nodes", self.name)
    }
}
