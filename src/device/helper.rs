//! The process that a device belongs to.
//!
//! It makes the device, serves it, looks after the connection, and takes the device down: when it is asked to and nobody uses it, or
//! once its tenure is over. Then every request fails, the name is given free at once, and the device goes with its last user.

use super::NAME_MAX;
use super::asking::{self, Ask};
use super::connect::{Attempt, Target, await_end, unix_socket};
use super::engine::{EngineHandle, Heard, Order};
use super::kind::{self, Device, DeviceError, Plan};
use super::record::{Held, Record, RecordError, socket};
use crate::config::{DeviceKind, Settings};
use crate::core::TermId;
use crate::nbd_client::negotiate::Export;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use understudy_kernel::front::Shape;
use understudy_kernel::{memory, users};

/// How long a device that nobody uses may take to go: udev and the like look at devices when they like.
const GOES_WITHIN: Duration = Duration::from_secs(3);
/// The same behind that for one that cannot be kept any more, on a busy machine. Together less than a daemon waits for the answer.
const MUST_GO_WITHIN: Duration = Duration::from_secs(9);
/// How often the node's file is read for another place of its daemon, while that is not found.
const LOOKS_ELSEWHERE: Duration = Duration::from_secs(1);
/// Pauses between attempts to connect, the first and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(200)];

/// Why a helper did not make its device.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    #[error("{0} has no unix socket among its nbd addresses, and a device needs one: add \"unix:/PATH\"")]
    NoUnixSocket(String),
    #[error("there is no volume {0:?}")]
    NoVolume(String),
    #[error(
        "a device would be called {0}, and the path of its process' socket would be too long: choose a shorter name for the resource or the volume"
    )]
    NameTooLong(String),
    #[error("{0}")]
    Unserved(String),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: io::Error },
}

fn system(what: &'static str) -> impl Fn(io::Error) -> HelperError {
    move |source| HelperError::System { what, source }
}

/// What a helper is started for.
pub struct Job {
    target: Target,
    record: Record,
    /// How long to wait for a daemon that is gone.
    wait: Duration,
    /// The node's folder: its owner may ask.
    dir: PathBuf,
}

impl Job {
    /// The device of one volume of a node, in one tenure.
    ///
    /// # Errors
    /// Where the file has no such volume, or no way to its daemon.
    pub fn new(
        settings: &Settings,
        volume: &str,
        kind: DeviceKind,
        tenure: TermId,
        read_only: bool,
    ) -> Result<Job, HelperError> {
        let node = settings.node.my_name().to_string();
        let nbd = unix_socket(settings).ok_or_else(|| HelperError::NoUnixSocket(node.clone()))?;
        if !settings.node.volumes.iter().any(|v| v.name == volume) {
            return Err(HelperError::NoVolume(volume.to_string()));
        }
        let record = Record {
            resource: settings.node.resource.clone(),
            volume: volume.to_string(),
            node,
            tenure: format!("{:032x}", tenure.0),
            kind: kind::choose(kind)?,
            read_only,
            device: None,
            pid: std::process::id(),
        };
        if record.name().len() > NAME_MAX {
            return Err(HelperError::NameTooLong(record.name()));
        }
        let target = Target::new(settings, nbd, volume, tenure);
        let wait = Duration::from_millis(settings.device_wait_ms);
        Ok(Job { target, record, wait, dir: settings.dir.clone() })
    }
}

/// What the helper waits for.
enum Event {
    Heard(usize, Heard),
    /// This engine.
    Connected(usize),
    /// The tenure is over, in words.
    Over(String),
    Asked(Ask, UnixStream),
    Terminate,
}

/// A device, the threads that serve it, and where connections that are over go.
type Made = (Device, Vec<EngineHandle>, Sender<(usize, UnixStream)>);

/// See the module's page.
struct Helper {
    name: String,
    device: Device,
    engines: Vec<EngineHandle>,
    held: Held,
    record: Record,
    /// By engine.
    connected: Vec<bool>,
    /// Why it fails for ever.
    failed: Option<String>,
    gone: bool,
    /// Who is to be told when nothing is left.
    farewells: Vec<(UnixStream, Result<Value, String>)>,
    events: Receiver<Event>,
    /// Connections that are over go to the thread that makes new ones.
    lost: Sender<(usize, UnixStream)>,
}

/// Makes the device, says so in one line on `out`, and serves it to its end.
///
/// # Errors
/// Whatever keeps it from making the device, in words.
pub fn run(job: Job, out: &mut dyn Write) -> Result<(), HelperError> {
    let helper = match Helper::start(job) {
        Ok(helper) => helper,
        Err(e) => {
            let _ = writeln!(out, "{}", json!({ "failed": e.to_string() }));
            return Err(e);
        }
    };
    let _ = writeln!(out, "{}", json!({ "ready": helper.status() }));
    let _ = out.flush();
    helper.serve();
    Ok(())
}

impl Helper {
    fn start(job: Job) -> Result<Helper, HelperError> {
        let (target, mut record) = (&job.target, job.record.clone());
        let name = record.name();
        // Without the right to it, it must do without.
        let _ = memory::flush_io();
        let _ = memory::spare_us();
        // It was started by an inode, and would be called "exe".
        let _ = fs::write("/proc/self/comm", "understudy-dev");
        let (sender, events) = mpsc::channel();
        signals(&sender).map_err(system("handle signals"))?;
        // Only ublk lets a device be taken up by another process.
        let same = |r: &Record| (r.kind, r.read_only, r.tenure.clone());
        let goes_on = |left: &Record| left.kind == DeviceKind::Ublk && same(left) == same(&record);
        let (mut held, left) = Held::take(&name, goes_on)?;
        let goes_on = left.is_some();
        let (stream, export) = match target.attempt() {
            Attempt::Connected(stream, export) => (stream, export),
            Attempt::Over(why) | Attempt::Not(why) => return Err(HelperError::Unserved(why)),
        };
        if left.is_none() {
            held.write(record.clone())?;
        }
        let begun = Helper::make(job, &mut held, &mut record, left, (stream, export), &sender);
        let (device, engines, lost) = match begun {
            Ok(made) => made,
            Err(e) => {
                // One that goes on is left to the next helper, as it was left to this one.
                if !goes_on {
                    held.discard();
                }
                return Err(e);
            }
        };
        // All that is needed is there by now.
        let _ = memory::lock_all();
        let connected = vec![true; engines.len()];
        Ok(Helper {
            name,
            device,
            engines,
            held,
            record,
            connected,
            failed: None,
            gone: false,
            farewells: Vec::new(),
            events,
            lost,
        })
    }

    /// The device, its threads and its names.
    fn make(
        Job { target, wait, dir, .. }: Job,
        held: &mut Held,
        record: &mut Record,
        left: Option<Record>,
        (stream, export): (UnixStream, Export),
        sender: &Sender<Event>,
    ) -> Result<Made, HelperError> {
        // First what may be refused.
        listen(&record.name(), &dir, sender)
            .map_err(system("make the socket on which the device's process is asked"))?;
        let mut first = Some(stream);
        let heard = sender.clone();
        let plan = Plan {
            shape: shape(&export, record.read_only),
            record: &record.clone(),
            left,
            connect: &mut || match first.take().map_or_else(|| target.attempt(), |s| Attempt::Connected(s, export)) {
                Attempt::Connected(stream, _) => Ok(stream),
                Attempt::Over(why) | Attempt::Not(why) => Err(io::Error::other(why)),
            },
            // Nobody listens any more once the helper is at its end.
            heard: Arc::new(move |engine, h| drop(heard.send(Event::Heard(engine, h)))),
            prepared: &mut |node: &str| {
                record.device = Some(node.to_string());
                held.write(record.clone()).map_err(io::Error::other)
            },
        };
        let (device, engines) = Device::make(plan)?;
        let lost = connector(target, wait, engines.clone(), sender.clone()).map_err(system("start a thread"))?;
        held.make_link()?;
        Ok((device, engines, lost))
    }

    fn serve(mut self) {
        while !self.gone {
            match self.events.recv() {
                Ok(event) => self.handle(event),
                Err(_) => break,
            }
        }
        if self.failed.is_none() {
            let _ = fs::remove_file(socket(&self.name));
            super::launch::forget_log(&self.name);
        }
        self.held.remove();
        self.farewells.iter().for_each(|(stream, result)| asking::answer(stream, result));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Heard(engine, heard) => self.hear(engine, heard),
            Event::Connected(engine) => {
                say("connected again");
                self.connected[engine] = true;
            }
            Event::Over(why) => self.fail(&why),
            Event::Asked(Ask::Status, stream) => asking::answer(&stream, &Ok(self.status())),
            Event::Asked(Ask::Detach { force }, stream) => {
                let result = if force { Ok(self.give_up("it was detached by force")) } else { self.detach() };
                // That it is gone is said when it is: whoever asked may look at once.
                if self.gone {
                    self.farewells.push((stream, result));
                } else {
                    asking::answer(&stream, &result);
                }
            }
            Event::Terminate => match self.detach() {
                Ok(_) => say("ended by a signal"),
                Err(why) => say(&format!("asked to end by a signal: {why}")),
            },
        }
    }

    fn hear(&mut self, engine: usize, heard: Heard) {
        match heard {
            Heard::Lost { why, stream } => {
                say(&format!("the connection to the daemon is lost ({why})"));
                self.connected[engine] = false;
                let _ = self.lost.send((engine, stream));
            }
            Heard::Gone => self.gone = true,
            Heard::Broken { why } => {
                // The engine has closed its end: the kernel fails what is asked from now on.
                say(&format!("the kernel does not take what it is given: {why}"));
                let _ = self.device.sweep();
                self.gone = true;
            }
        }
    }

    fn status(&self) -> Value {
        json!({
            "device": self.record.device,
            "kind": self.record.kind,
            "read_only": self.record.read_only,
            "tenure": self.record.tenure,
            "node": self.record.node,
            "connected": self.is_connected(),
            "under_way": self.under_way(),
            "failed": self.failed,
            "remark": self.device.remark(),
        })
    }

    fn is_connected(&self) -> bool {
        self.connected.iter().all(|c| *c)
    }

    fn under_way(&self) -> usize {
        self.engines.iter().map(EngineHandle::under_way).sum()
    }

    fn users(&self) -> Vec<String> {
        users::of(&self.device.path())
    }

    /// Takes the device down if nobody uses it.
    fn detach(&mut self) -> Result<Value, String> {
        let under_way = self.under_way();
        if !self.is_connected() && self.failed.is_none() && under_way > 0 {
            return Err(format!(
                "{under_way} request(s) wait for the daemon, which is not there: start it, or use --force, which fails them"
            ));
        }
        let in_use = |users: Vec<String>, name: &str| {
            let who = if users.is_empty() { "somebody has it open".to_string() } else { users.join("; ") };
            format!("/dev/understudy/{name} is in use: {who}. Unmount or close it first; --force makes it fail")
        };
        let users = self.users();
        // A mount that cannot be seen from here holds it, too.
        if !users.is_empty() || self.device.is_claimed() {
            return Err(in_use(users, &self.name));
        }
        self.device.detach().map_err(|e| format!("the kernel does not take the device down: {e}"))?;
        if self.await_gone(GOES_WITHIN) {
            return Ok(json!({ "gone": true }));
        }
        match self.device.keep() {
            Ok(()) => Err(in_use(self.users(), &self.name)),
            // There is no way back.
            Err(_) if self.await_gone(MUST_GO_WITHIN) => Ok(json!({ "gone": true })),
            Err(_) => Err(format!(
                "/dev/understudy/{} is on its way out, which cannot be taken back, and the kernel has not let go of it yet: somebody has just opened it, or this machine is very busy",
                self.name
            )),
        }
    }

    /// Handles whatever comes until the device is gone, but for other questions, which are refused meanwhile.
    fn await_gone(&mut self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while !self.gone {
            let left = until.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::Asked(Ask::Status, stream)) => asking::answer(&stream, &Ok(self.status())),
                Ok(Event::Asked(_, stream)) => asking::answer(&stream, &Err("the device is being taken down".into())),
                Ok(Event::Terminate) => {}
                Ok(other) => self.handle(other),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    /// Fails it for ever, and has it go with its last user.
    fn give_up(&mut self, why: &str) -> Value {
        let users = self.users();
        self.fail(why);
        let gone = self.await_gone(if users.is_empty() { GOES_WITHIN } else { Duration::ZERO });
        json!({ "gone": gone, "users": users })
    }

    fn fail(&mut self, why: &str) {
        if self.failed.is_some() {
            return;
        }
        say(&format!("it fails from now on: {why}"));
        self.failed = Some(why.to_string());
        self.engines.iter().for_each(|e| e.tell(Order::Fail));
        if let Err(e) = self.held.give_up() {
            say(&format!("its record stays in the way of another device of its name: {e}"));
        }
        if let Err(e) = self.device.detach() {
            say(&format!("the kernel does not take the device down: {e}"));
        }
    }
}

fn shape(export: &Export, read_only: bool) -> Shape {
    Shape { size: export.size, block: export.block, read_only: read_only || export.is_read_only() }
}

/// A line in the helper's own log.
fn say(what: &str) {
    let now = crate::daemon::rfc3339(std::time::SystemTime::now());
    let _ = writeln!(io::stderr(), "{now} {what}");
}

/// SIGTERM asks for the end; what is typed at a terminal, and its end, mean nothing.
fn signals(events: &Sender<Event>) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let ignored = Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT] {
        signal_hook::flag::register(signal, ignored.clone())?;
    }
    let (mut read, write) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGTERM, write)?;
    let events = events.clone();
    let body = move || {
        while matches!(io::Read::read(&mut read, &mut [0]), Ok(1)) {
            if events.send(Event::Terminate).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(body).map(drop)
}

/// The socket on which the helper is asked, and the thread behind it.
fn listen(name: &str, dir: &std::path::Path, events: &Sender<Event>) -> io::Result<()> {
    let path = socket(name);
    // Of a helper that is dead: this one holds the lock.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let owner = fs::metadata(dir)?;
    std::os::unix::fs::lchown(&path, Some(owner.uid()), Some(owner.gid()))?;
    let events = events.clone();
    let body = move || {
        for stream in listener.incoming().flatten() {
            // What is no question gets no answer.
            if let Ok(question) = asking::read_question(&stream)
                && events.send(Event::Asked(question, stream)).is_err()
            {
                return;
            }
        }
    };
    std::thread::Builder::new().name("questions".into()).stack_size(128 << 10).spawn(body).map(drop)
}

/// The thread that makes a new connection for each that is lost.
fn connector(
    target: Target,
    wait: Duration,
    engines: Vec<EngineHandle>,
    events: Sender<Event>,
) -> io::Result<Sender<(usize, UnixStream)>> {
    let (lost, waiting) = mpsc::channel::<(usize, UnixStream)>();
    let body = move || {
        let mut target = target;
        for (engine, stream) in waiting {
            await_end(stream);
            match reconnect(&mut target, wait) {
                Ok(stream) => {
                    // Said first: the connection may be lost again at once.
                    let _ = events.send(Event::Connected(engine));
                    engines[engine].tell(Order::Connection(stream));
                }
                Err(why) => {
                    let _ = events.send(Event::Over(why));
                    return;
                }
            }
        }
    };
    std::thread::Builder::new().name("connector".into()).stack_size(256 << 10).spawn(body)?;
    Ok(lost)
}

fn reconnect(target: &mut Target, wait: Duration) -> Result<UnixStream, String> {
    let began = Instant::now();
    let mut pause = PAUSES[0];
    let mut asked = Instant::now();
    loop {
        // It may be that the daemon is there, and its file was changed meanwhile.
        if asked.elapsed() >= LOOKS_ELSEWHERE {
            asked = Instant::now();
            if let Some(moved) = target.moved() {
                match moved.attempt() {
                    Attempt::Connected(stream, _) => {
                        *target = moved;
                        return Ok(stream);
                    }
                    Attempt::Over(why) => return Err(why),
                    Attempt::Not(_) => {}
                }
            }
        }
        match target.attempt() {
            Attempt::Connected(stream, _) => return Ok(stream),
            Attempt::Over(why) => return Err(why),
            Attempt::Not(why) if began.elapsed() >= wait => {
                return Err(format!("its daemon has been gone for {} s (device_wait_ms): {why}", wait.as_secs()));
            }
            Attempt::Not(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(PAUSES[1]);
    }
}
