//! NBD clients: accepted only while this node is active, fed to the core as fast as it takes, answered in one send per
//! round.
//!
//! Nothing that a client does can take more than a bounded amount of memory: a connection has a limit of requests and
//! of bytes that it has not taken yet, all together have one account ([`Budget`]) of bytes that are being received or wait for an
//! answer, and past it, or while the core has no room, nothing is received.

mod budget;
mod client;
mod listeners;
#[cfg(test)]
mod tests;

use super::hub::{ClientTag, ConnId, Hub};
use super::journal::Happening;
use super::net::{ListenError, close_abruptly, end_receiving, give_room, keepalive, nodelay, origin};
use super::ring::Op;
use crate::config::Settings;
use crate::core::{ClientError, ClientOp, Event, Reply, ReqId, TermId, Time};
use crate::device::fenced_name;
use crate::nbd::{Export, Output, Request, Ticket, Want};
use budget::{Budget, STEADY_BYTES, STEADY_MS};
use client::{Client, Life};
use listeners::Listeners;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Connections at a time.
const CLIENTS: usize = 128;
/// A client chooses its export within this.
const HAGGLE_MS: u64 = 30_000;
/// A connection that ends may take what is queued within this.
const LEAVING_MS: u64 = 1000;
/// A client that has said good-bye takes its last replies within this.
const DRAINING_MS: u64 = 10_000;

/// A request that the core has not answered.
struct Pending {
    client: ConnId,
    ticket: Ticket,
    /// Bytes that it counts for in `Clients::budget`.
    held: u64,
    read: bool,
}

/// See the module's page.
pub struct Clients {
    exports: Rc<[Export]>,
    listeners: Listeners,
    conns: BTreeMap<ConnId, Client>,
    pending: HashMap<ReqId, Pending>,
    budget: Budget,
    /// Connections that may have complete requests which were not looked at.
    stalled: BTreeSet<ConnId>,
    /// Connections that may have something to send.
    unsent: BTreeSet<ConnId>,
    /// The core takes requests.
    open: bool,
    last_conn: u64,
    last_request: u64,
}

impl Clients {
    /// Nobody is let in before [`Clients::serve`].
    ///
    /// # Errors
    /// Where listening would fail.
    pub fn new(settings: &Settings) -> Result<Clients, ListenError> {
        let export = |v: &crate::core::VolumeSpec| Export {
            name: v.name.clone(),
            second_name: None,
            size: v.size,
            block: settings.node.block,
            description: format!("{} of {}", v.name, settings.node.resource),
            read_only: false,
        };
        Ok(Clients {
            exports: settings.node.volumes.iter().map(export).collect(),
            listeners: Listeners::new(&settings.nbd)?,
            conns: BTreeMap::new(),
            pending: HashMap::new(),
            budget: Budget::of(settings.node.memory),
            stalled: BTreeSet::new(),
            unsent: BTreeSet::new(),
            open: true,
            last_conn: 0,
            last_request: 0,
        })
    }

    /// `Action::Serve`: whoever asks for a volume as `NAME@TENURE` gets it in this tenure only (C6).
    pub fn serve(&mut self, tenure: TermId, hub: &mut Hub) {
        let named = |e: &Export| Export { second_name: Some(fenced_name(&e.name, tenure)), ..e.clone() };
        self.exports = self.exports.iter().map(named).collect();
        self.listeners.open(hub);
    }

    /// `Action::StopServing`: nobody is let in, and every connection ends (C6). What is queued is still sent.
    pub fn stop_serving(&mut self, hub: &mut Hub) {
        self.listeners.close();
        let all: Vec<ConnId> = self.conns.keys().copied().collect();
        for id in all {
            let Some(client) = self.conns.get_mut(&id) else { continue };
            if client.life == Life::Dead {
                continue;
            }
            client.life = Life::Leaving { until: hub.now.plus_ms(LEAVING_MS) };
            end_receiving(&client.socket);
            self.unsent.insert(id);
        }
    }

    /// Where clients should be able to connect and cannot, and why.
    pub fn shut_doors(&self) -> impl Iterator<Item = (String, &str)> {
        self.listeners.shut()
    }

    /// Lets nobody in any more; those who are stay until their requests are answered.
    pub fn close_doors(&mut self) {
        self.listeners.close();
    }

    /// Whether the core takes requests; while not, none are received.
    pub fn set_open(&mut self, open: bool) {
        self.open = open;
    }

    /// Whether nothing is waiting for an answer or to be sent.
    pub fn settled(&self) -> bool {
        self.pending.is_empty() && self.conns.values().all(|c| c.all_sent() || c.life == Life::Dead)
    }

    /// Connections, for status.
    pub fn count(&self) -> usize {
        self.conns.len()
    }

    /// Takes a completed operation.
    pub fn completed(&mut self, tag: ClientTag, op: Op, result: Result<usize, i32>, hub: &mut Hub) {
        match tag {
            ClientTag::Accept(number) => self.accepted(number, op, result, hub),
            ClientTag::Recv(id) => self.received(id, op, result, hub),
            ClientTag::Send(id) => self.sent(id, op, result, hub),
        }
    }

    fn accepted(&mut self, number: u64, op: Op, result: Result<usize, i32>, hub: &mut Hub) {
        // What came through a door that has been closed meanwhile is closed with it.
        if self.listeners.accepted(number, result.err(), hub)
            && let Op::Accept { accepted: Some(socket), .. } = op
        {
            self.welcome(socket, hub);
        }
    }

    fn welcome(&mut self, socket: OwnedFd, hub: &mut Hub) {
        let from = origin(&socket);
        if self.conns.len() >= CLIENTS {
            let why = format!("{CLIENTS} clients are connected already");
            return hub.journal.complain(&Happening::Refused { from, why });
        }
        self.last_conn += 1;
        let id = ConnId(self.last_conn);
        keepalive(&socket);
        give_room(&socket);
        let socket = Rc::new(nodelay(socket));
        let client = Client::new(socket, self.exports.clone(), from, hub.now.plus_ms(HAGGLE_MS));
        self.conns.insert(id, client);
        self.unsent.insert(id);
        self.progress(id, hub);
    }

    /// Looks at what has been received, hands on what is complete, and receives more if there is room.
    fn progress(&mut self, id: ConnId, hub: &mut Hub) {
        let mut outputs = Vec::new();
        while let Some(client) = self.conns.get_mut(&id) {
            if client.life != Life::Open {
                return self.bury(id);
            }
            let room = match client.session.want() {
                Want::Payload(_) if client.has_reserved() => true,
                Want::Payload(n) => {
                    let room = self.budget.reserve(id, n as u64, hub.now);
                    if room {
                        client.reserve(n as u64, hub.now);
                    }
                    room
                }
                _ if !self.open || !client.has_room() => {
                    self.budget.leave(id);
                    self.stalled.insert(id);
                    false
                }
                Want::Head(n) if client.session.export().is_some() && client.has_come(n) => {
                    self.budget.admit(id, hub.now)
                }
                _ => true,
            };
            if !room {
                return;
            }
            if !client.step(&mut outputs) {
                break;
            }
            for output in outputs.drain(..) {
                self.carry_out(id, output, hub);
            }
        }
        if let Some(client) = self.conns.get_mut(&id)
            && !client.receiving
        {
            let op = client.receive(&mut self.budget);
            hub.client(ClientTag::Recv(id), op);
        }
    }

    fn carry_out(&mut self, id: ConnId, output: Output, hub: &mut Hub) {
        let Some(client) = self.conns.get_mut(&id) else { return };
        match output {
            Output::Send(bytes) => {
                client.replies().1.push_bytes(&bytes);
                self.unsent.insert(id);
            }
            Output::Request(request) => self.request(id, request, hub),
            Output::Close => {
                client.life = Life::Draining { until: None };
                self.unsent.insert(id);
            }
        }
    }

    fn request(&mut self, id: ConnId, request: Request, hub: &mut Hub) {
        let Some(client) = self.conns.get_mut(&id) else { return };
        let Request { ticket, op } = request;
        let (held, read) = match &op {
            ClientOp::Write { payload, .. } => (payload.len() as u64, false),
            ClientOp::Read { length, .. } => (*length, true),
            _ => (0, false),
        };
        client.outstanding += 1;
        client.reading += if read { held } else { 0 };
        // What a write holds was reserved before it was received.
        match read {
            true => self.budget.asked(held),
            false => self.budget.arrived(client.hand_over(held)),
        }
        self.last_request += 1;
        let req = ReqId(self.last_request);
        self.pending.insert(req, Pending { client: id, ticket, held, read });
        hub.events.push_back(Event::Client { req, op });
    }

    /// `Action::Complete`.
    pub fn complete(&mut self, req: ReqId, result: Result<Reply, ClientError>) {
        let Some(Pending { client: id, ticket, held, read }) = self.pending.remove(&req) else { return };
        self.budget.answered(held);
        let Some(client) = self.conns.get_mut(&id) else { return };
        client.outstanding -= 1;
        client.reading -= if read { held } else { 0 };
        if client.life != Life::Dead {
            let (session, replies) = client.replies();
            session.reply(&ticket, result, replies);
            self.unsent.insert(id);
        }
    }

    /// Hands on what was held back and now has room.
    pub fn resume(&mut self, hub: &mut Hub) {
        if !self.open {
            return;
        }
        for line in 0..self.budget.first().len() {
            while let Some(first) = self.budget.first()[line] {
                self.progress(first, hub);
                if self.budget.first()[line] == Some(first) {
                    break;
                }
            }
        }
        for id in std::mem::take(&mut self.stalled) {
            self.progress(id, hub);
        }
    }

    /// Hands replies to the ring: everything of a round in one send per connection.
    pub fn flush(&mut self, hub: &mut Hub) {
        for id in std::mem::take(&mut self.unsent) {
            let Some(client) = self.conns.get_mut(&id) else { continue };
            if let Some(op) = client.send() {
                hub.client(ClientTag::Send(id), op);
            }
            self.ending(id, hub);
        }
    }

    /// Ends a connection that has nothing more to do.
    fn ending(&mut self, id: ConnId, hub: &mut Hub) {
        let Some(client) = self.conns.get_mut(&id) else { return };
        let sent = client.all_sent();
        match &mut client.life {
            Life::Draining { .. } if client.outstanding == 0 && sent => self.kill(id),
            Life::Draining { until: until @ None } if client.outstanding == 0 => {
                *until = Some(hub.now.plus_ms(DRAINING_MS));
            }
            Life::Leaving { .. } if sent => self.kill(id),
            _ => {}
        }
    }

    fn received(&mut self, id: ConnId, op: Op, result: Result<usize, i32>, hub: &mut Hub) {
        let Some(client) = self.conns.get_mut(&id) else { return };
        client.receiving = false;
        match (client.life, result) {
            (Life::Open, Ok(n)) if n > 0 => client.received(op, n, hub.now),
            (Life::Open, Err(libc::EINTR | libc::EAGAIN)) => client.received(op, 0, hub.now),
            (Life::Open, _) => return self.kill(id),
            _ => return self.bury(id),
        }
        self.progress(id, hub);
    }

    fn sent(&mut self, id: ConnId, op: Op, result: Result<usize, i32>, hub: &mut Hub) {
        let Some(client) = self.conns.get_mut(&id) else { return };
        let dead = client.life == Life::Dead;
        let rest = match result {
            Ok(n) if !dead => client.sent(op, n),
            Err(libc::EINTR | libc::EAGAIN) if !dead => client.sent(op, 0),
            _ => {
                client.send_failed();
                return self.kill(id);
            }
        };
        match rest {
            Some(op) => {
                hub.client(ClientTag::Send(id), op);
            }
            // More may have been queued meanwhile, and taken replies make room.
            None => {
                self.unsent.insert(id);
            }
        }
    }

    /// When [`Clients::tick`] is wanted at the latest.
    pub fn deadline(&self) -> Option<Time> {
        self.conns
            .values()
            .flat_map(|c| [c.until(), c.late_at(&self.budget)])
            .flatten()
            .chain(self.listeners.deadline())
            .min()
    }

    /// Ends what has taken too long.
    pub fn tick(&mut self, hub: &mut Hub) {
        self.listeners.tick(hub);
        self.end_slow(hub);
        let late = |c: &Client| c.until().is_some_and(|t| t <= hub.now);
        let late: Vec<ConnId> = self.conns.iter().filter(|(_, c)| late(c)).map(|(id, _)| *id).collect();
        for id in late {
            if let Some(client) = self.conns.get(&id)
                && client.life == Life::Open
            {
                let why = format!("it did not choose an export within {} s", HAGGLE_MS / 1000);
                hub.journal.complain(&Happening::Refused { from: client.from.clone(), why });
            }
            self.kill(id);
        }
    }

    /// Ends those who hold memory for a write that they do not send, while others wait for it.
    fn end_slow(&mut self, hub: &mut Hub) {
        let slow = |c: &Client| c.late_at(&self.budget).is_some_and(|t| t <= hub.now);
        let slow: Vec<ConnId> = self.conns.iter().filter(|(_, c)| slow(c)).map(|(id, _)| *id).collect();
        for id in slow {
            if let Some(client) = self.conns.get(&id) {
                let (bytes, seconds) = (STEADY_BYTES >> 20, STEADY_MS / 1000);
                let why = format!(
                    "of a write of {} bytes that it began it sent less than {bytes} MiB in {seconds} s, while others waited for the memory",
                    client.reserved()
                );
                hub.journal.complain(&Happening::Refused { from: client.from.clone(), why });
            }
            self.kill(id);
        }
    }

    /// Ends a connection. It is forgotten when nothing of it is in flight any more.
    fn kill(&mut self, id: ConnId) {
        if let Some(client) = self.conns.get_mut(&id) {
            client.life = Life::Dead;
            close_abruptly(&client.socket);
            self.budget.leave(id);
        }
        self.bury(id);
    }

    fn bury(&mut self, id: ConnId) {
        if self.conns.get(&id).is_some_and(|c| c.life == Life::Dead && c.idle()) {
            if let Some(client) = self.conns.remove(&id) {
                client.give_back(&mut self.budget);
            }
            self.stalled.remove(&id);
        }
    }
}
