//! Connections to the other nodes.
//!
//! A connection that we dialed belongs to the peer that was dialed. One that we accepted belongs to nobody until its first
//! frame is a Hello of a node of our resource: strangers are few, short-lived, and reach nothing. One session per peer: a new
//! one ends the old one.

mod conn;
#[cfg(test)]
mod tests;
mod way;

use super::hub::{ConnId, Hub, PeerTag};
use super::journal::Happening;
use super::net::{ListenError, Listener, Pace, nodelay, origin, tcp_socket};
use super::ring::{Address, Op};
use crate::config::Settings;
use crate::core::hello::Hello;
use crate::core::{Event, Incarnation, Mode, NodeConfig, NodeId, PeerMsg, SessionId, Time};
use crate::wire;
use conn::{Conn, State};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use way::Way;

/// A dial takes no longer than this.
const DIAL_MS: u64 = 5000;
/// Who does not say its name in this time is sent away.
const STRANGER_MS: u64 = 5000;
/// Strangers at a time.
const STRANGERS: usize = 32;
/// A session that ends may send for this long what is still queued.
const LEAVING_MS: u64 = 1000;
/// Who was heard within so many heartbeats lives, and no longer ago than this.
const LIVES_HEARTBEATS: u64 = 3;
const LIVES_MS: u64 = 2000;
/// After a failed accept (too many open files, say) the next one waits.
const ACCEPT_PAUSE_MS: u64 = 100;

/// See the module's page.
pub struct Peers {
    node: NodeConfig,
    addresses: BTreeMap<NodeId, SocketAddr>,
    listener: Listener,
    /// When to accept again after a failure.
    accept_at: Option<Time>,
    conns: BTreeMap<ConnId, Conn>,
    sessions: BTreeMap<NodeId, (SessionId, ConnId)>,
    /// Which daemon of a peer the latest session was with, and when it was last heard.
    lives: BTreeMap<NodeId, (Incarnation, Time)>,
    last_conn: u64,
    last_session: u64,
    /// Why dialing a peer last failed: said once, and not with each attempt.
    failing: BTreeMap<NodeId, String>,
    /// One for each node of the file; this node's own is not used.
    ways: Vec<Way>,
    /// Whoever asks this node's voter is handed on to it.
    voter: Option<crate::voter::server::Server>,
}

impl Peers {
    /// Listens for peers.
    pub fn new(settings: &Settings) -> Result<Peers, ListenError> {
        let compress = |node: usize| settings.peers.iter().any(|p| usize::from(p.node.0) == node && p.compress);
        let ways = settings.node.nodes.iter().enumerate().map(|(i, spec)| Way::new(spec, compress(i)));
        Ok(Peers {
            node: settings.node.clone(),
            addresses: settings.peers.iter().map(|p| (p.node, p.address)).collect(),
            listener: Listener::tcp(settings.listen)?,
            accept_at: None,
            conns: BTreeMap::new(),
            sessions: BTreeMap::new(),
            lives: BTreeMap::new(),
            last_conn: 0,
            last_session: 0,
            failing: BTreeMap::new(),
            ways: ways.collect(),
            voter: None,
        })
    }

    /// From now on this node has a voter.
    pub fn set_voter(&mut self, voter: crate::voter::server::Server) {
        self.voter = Some(voter);
    }

    /// Where peers can connect.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.address()
    }

    /// Dials `peer` there from now on.
    #[cfg(test)]
    pub fn set_address(&mut self, peer: NodeId, address: SocketAddr) {
        self.addresses.insert(peer, address);
    }

    /// Begins to accept.
    pub fn start(&mut self, hub: &mut Hub) {
        self.accept_at = None;
        hub.peer(PeerTag::Accept, Op::Accept { socket: self.listener.fd().clone(), accepted: None });
    }

    /// `Action::Connect`.
    pub fn dial(&mut self, peer: NodeId, hub: &mut Hub) {
        let under_way = |c: &Conn| matches!(c.state, State::Dialing { peer: p, .. } if p == peer);
        if self.conns.values().any(under_way) {
            return;
        }
        let socket = match self.addresses.get(&peer).map(|a| (a, tcp_socket(*a))) {
            Some((address, Ok(socket))) => (Address::from(*address), socket),
            other => {
                let why = other.and_then(|(_, r)| r.err()).map_or("it has no address".into(), |e| e.to_string());
                return self.dial_failed(peer, why, hub);
            }
        };
        let (address, socket) = socket;
        let id = self.next_conn();
        let op = Op::Connect { socket: socket.clone(), address: Box::new(address) };
        let dial = hub.peer(PeerTag::Connect(id), op);
        self.conns.insert(id, Conn::new(socket, State::Dialing { peer, dial, until: hub.now.plus_ms(DIAL_MS) }));
    }

    fn dial_failed(&mut self, peer: NodeId, why: String, hub: &mut Hub) {
        if self.failing.get(&peer) != Some(&why) {
            hub.journal.complain(&Happening::DialFailed { peer: self.node.name(peer).into(), why: why.clone() });
            self.failing.insert(peer, why);
        }
        hub.events.push_back(Event::ConnectFailed { peer });
    }

    /// `Action::Send`. What belongs to a session that is over is dropped.
    pub fn send(&mut self, peer: NodeId, session: SessionId, message: &PeerMsg, hub: &mut Hub) {
        let Some(id) = self.session(peer, session) else { return };
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let way = &mut self.ways[usize::from(peer.0)];
        match way.encode(message) {
            Ok(frame) => {
                let limit = way.pace.as_mut();
                let hold = limit.is_some() && !message.overtakes();
                if let Some(pace) = limit.filter(|_| !hold) {
                    // It waits for nothing, and counts all the same.
                    pace.spend(frame.length() as u64);
                }
                conn.queue(frame, hold);
            }
            Err(e) => {
                let what = format!("a message to {} cannot be sent: {e}", self.node.name(peer));
                hub.journal.note(&Happening::Defect { what });
                self.lost(id, hub);
            }
        }
    }

    /// Bytes of payload sent to a peer since the start, and bytes that went over the wire for it.
    pub fn traffic(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        let named = self.node.nodes.iter().zip(&self.ways);
        named.map(|(spec, way)| (spec.name.as_str(), way.sent_bytes, way.wire_bytes))
    }

    /// The peers that could not be dialed when it was last tried, and why.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.failing.iter().map(|(peer, why)| (self.node.name(*peer), why.as_str()))
    }

    /// `Action::Close`. What is queued is still sent.
    pub fn close(&mut self, peer: NodeId, session: SessionId, hub: &mut Hub) {
        if let Some(id) = self.session(peer, session) {
            self.sessions.remove(&peer);
            self.leave(id, hub);
        }
    }

    fn session(&self, peer: NodeId, session: SessionId) -> Option<ConnId> {
        self.sessions.get(&peer).filter(|(s, _)| *s == session).map(|(_, id)| *id)
    }

    /// Hands what is queued for peers of this mode to the ring; those who have not said who they are count as async.
    pub fn flush(&mut self, mode: Mode, hub: &mut Hub) {
        for (id, conn) in &mut self.conns {
            let of = match conn.state {
                State::Session { peer, .. } => {
                    if let Some(pace) = &mut self.ways[usize::from(peer.0)].pace {
                        conn.release(pace, hub.now);
                    }
                    self.node.nodes[usize::from(peer.0)].mode
                }
                _ => Mode::Async,
            };
            if of == mode
                && let Some(op) = conn.next_send()
            {
                hub.peer(PeerTag::Send(*id), op);
            }
        }
    }

    /// When [`Peers::tick`] is wanted at the latest.
    pub fn deadline(&self) -> Option<Time> {
        let turn = |c: &Conn| match c.state {
            State::Session { peer, .. } if c.awaits_turn() => {
                self.ways[usize::from(peer.0)].pace.as_ref().map(Pace::opens_at)
            }
            _ => None,
        };
        let each = self.conns.values().flat_map(|c| [c.until(), turn(c)]);
        each.chain([self.accept_at]).flatten().min()
    }

    /// Ends what has taken too long.
    pub fn tick(&mut self, hub: &mut Hub) {
        if self.accept_at.is_some_and(|t| t <= hub.now) {
            self.start(hub);
        }
        let late: Vec<ConnId> =
            self.conns.iter().filter(|(_, c)| c.until().is_some_and(|t| t <= hub.now)).map(|(id, _)| *id).collect();
        for id in late {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            match &mut conn.state {
                State::Dialing { dial, until, .. } => {
                    hub.cancel(*dial);
                    *until = Time(u64::MAX);
                }
                State::Stranger { from, .. } => {
                    let why = format!("it did not say which node it is within {} s", STRANGER_MS / 1000);
                    hub.journal.complain(&Happening::Refused { from: from.clone(), why });
                    self.kill(id);
                }
                _ => self.kill(id),
            }
        }
    }

    /// Takes a completed operation.
    pub fn completed(&mut self, tag: PeerTag, op: Op, result: Result<usize, i32>, hub: &mut Hub) {
        match tag {
            PeerTag::Accept => self.accepted(op, result, hub),
            PeerTag::Connect(id) => self.connected(id, result, hub),
            PeerTag::Recv(id) => self.received(id, op, result, hub),
            PeerTag::Send(id) => self.sent(id, op, result, hub),
        }
    }

    fn accepted(&mut self, op: Op, result: Result<usize, i32>, hub: &mut Hub) {
        match (op, result) {
            (Op::Accept { accepted: Some(socket), .. }, Ok(_)) => {
                self.stranger(socket, hub);
                self.start(hub);
            }
            (_, Err(libc::ECONNABORTED | libc::EINTR | libc::EAGAIN)) => self.start(hub),
            (_, result) => {
                let why = result.err().map_or("no connection came".into(), errno_text);
                hub.journal.complain(&Happening::NotListening { address: self.shown_address(), why });
                self.accept_at = Some(hub.now.plus_ms(ACCEPT_PAUSE_MS));
            }
        }
    }

    fn shown_address(&self) -> String {
        self.address().map_or_else(|| "the node's address".into(), |a| a.to_string())
    }

    fn stranger(&mut self, socket: OwnedFd, hub: &mut Hub) {
        let from = origin(&socket);
        let strangers = self.conns.values().filter(|c| matches!(c.state, State::Stranger { .. })).count();
        if strangers >= STRANGERS {
            let why = format!("{STRANGERS} other connections have not yet said which node they are");
            return hub.journal.complain(&Happening::Refused { from, why });
        }
        let id = self.next_conn();
        let state = State::Stranger { from, until: hub.now.plus_ms(STRANGER_MS) };
        self.conns.insert(id, Conn::new(Rc::new(nodelay(socket)), state));
        self.receive(id, hub);
    }

    fn connected(&mut self, id: ConnId, result: Result<usize, i32>, hub: &mut Hub) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.dialing = false;
        let State::Dialing { peer, .. } = conn.state else { return self.bury(id) };
        match result {
            Ok(_) => {
                self.begin(id, peer, hub);
                self.receive(id, hub);
            }
            Err(errno) => {
                self.kill(id);
                let why = if errno == libc::ECANCELED { errno_text(libc::ETIMEDOUT) } else { errno_text(errno) };
                self.dial_failed(peer, why, hub);
            }
        }
    }

    /// The connection becomes the session of `peer`, and an older one ends.
    fn begin(&mut self, id: ConnId, peer: NodeId, hub: &mut Hub) {
        if let Some((old, old_conn)) = self.sessions.remove(&peer) {
            hub.events.push_back(Event::PeerDown { peer, session: old });
            self.kill(old_conn);
        }
        self.failing.remove(&peer);
        self.last_session += 1;
        let session = SessionId(self.last_session);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.state = State::Session { peer, session };
        }
        self.sessions.insert(peer, (session, id));
        hub.events.push_back(Event::PeerUp { peer, session });
    }

    fn receive(&mut self, id: ConnId, hub: &mut Hub) {
        if let Some(conn) = self.conns.get_mut(&id) {
            let op = conn.receive();
            hub.peer(PeerTag::Recv(id), op);
        }
    }

    fn received(&mut self, id: ConnId, op: Op, result: Result<usize, i32>, hub: &mut Hub) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.receiving = false;
        match (&conn.state, result) {
            (State::Dead | State::Leaving { .. } | State::Dialing { .. }, _) => return self.bury(id),
            (_, Ok(0)) => return self.lost(id, hub),
            (_, Ok(n)) => conn.received(op, n),
            (_, Err(libc::EINTR | libc::EAGAIN)) => conn.received(op, 0),
            (_, Err(_)) => return self.lost(id, hub),
        }
        if let State::Session { peer, .. } = &conn.state
            && let Some((_, heard)) = self.lives.get_mut(peer)
        {
            *heard = hub.now;
        }
        let before = hub.events.len();
        self.messages(id, hub);
        if hub.events.len() == before
            && let Some(State::Session { peer, session }) = self.conns.get(&id).map(|c| &c.state)
        {
            hub.events.push_back(Event::PeerHeard { peer: *peer, session: *session });
        }
        let open = |c: &Conn| matches!(c.state, State::Session { .. } | State::Stranger { .. });
        if self.conns.get(&id).is_some_and(open) {
            self.receive(id, hub);
        } else {
            self.bury(id);
        }
    }

    /// Hands on all messages that have come in full.
    fn messages(&mut self, id: ConnId, hub: &mut Hub) {
        while let Some(conn) = self.conns.get_mut(&id) {
            if conn.is_askers() {
                return self.hand_over(id, hub);
            }
            let message = match conn.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(e) => return self.garbage(id, &e.to_string(), hub),
            };
            match (&conn.state, message) {
                (State::Session { peer, session }, message) => {
                    if let PeerMsg::Hello(hello) = &message {
                        self.ways[usize::from(peer.0)].greeted(hello);
                        self.lives.insert(*peer, (hello.incarnation, hub.now));
                    }
                    hub.events.push_back(Event::PeerMessage { peer: *peer, session: *session, message });
                }
                (State::Stranger { .. }, PeerMsg::Hello(hello)) => self.introduced(id, hello, hub),
                (State::Stranger { .. }, _) => return self.garbage(id, "it did not begin with its name", hub),
                _ => return,
            }
        }
    }

    /// A stranger asks for the voter, which has connections of its own.
    fn hand_over(&mut self, id: ConnId, hub: &mut Hub) {
        let Some(voter) = self.voter.clone() else {
            return self.garbage(
                id,
                "it asks for a voter, and this node has none: its file names no witness and no voters",
                hub,
            );
        };
        // Where the system has no descriptor left the connection ends, and whoever asks tries again.
        if let Some(Ok((socket, already))) = self.conns.remove(&id).map(Conn::give_away) {
            voter.serve(socket.into(), already);
        }
    }

    /// A stranger has said who it is.
    fn introduced(&mut self, id: ConnId, hello: Box<Hello>, hub: &mut Hub) {
        let refusal = if hello.resource != self.node.resource {
            format!("it belongs to the resource {:?}, this node to {:?}", hello.resource, self.node.resource)
        } else {
            match self.node.find(&hello.node) {
                Some(peer) if self.another_lives(peer, &hello, hub.now) => format!(
                    "another daemon of {:?} is connected and alive. Is this a copy of that node? Only one of the two may run",
                    hello.node
                ),
                Some(peer) if peer != self.node.me => {
                    self.begin(id, peer, hub);
                    self.ways[usize::from(peer.0)].greeted(&hello);
                    self.lives.insert(peer, (hello.incarnation, hub.now));
                    if let Some((session, _)) = self.sessions.get(&peer) {
                        let message = PeerMsg::Hello(hello);
                        hub.events.push_back(Event::PeerMessage { peer, session: *session, message });
                    }
                    return;
                }
                Some(_) => format!("it says that it is {:?}, which is this node itself", hello.node),
                None => format!("no node of this resource is called {:?}", hello.node),
            }
        };
        if let Some(conn) = self.conns.get_mut(&id) {
            // Cannot be too large; and if it were, the other side would see the connection end all the same.
            if let Ok(frame) = wire::encode(&PeerMsg::Bye { why: format!("refused: {refusal}") }, false) {
                conn.queue(frame, false);
            }
        }
        self.refused(id, &refusal, hub);
        self.leave(id, hub);
    }

    /// Whether the session that there is with this node is with another process, which was heard just now: one that ended has closed it,
    /// or is silent. A copy of a node would take its place at the others, and its role (C5).
    fn another_lives(&self, peer: NodeId, hello: &Hello, now: Time) -> bool {
        let within_ms = (self.node.heartbeat_ms * LIVES_HEARTBEATS).min(LIVES_MS);
        let known = self.lives.get(&peer).filter(|_| self.sessions.contains_key(&peer));
        known.is_some_and(|(one, heard)| *one != hello.incarnation && now.since_us(*heard) < within_ms * 1000)
    }

    fn garbage(&mut self, id: ConnId, why: &str, hub: &mut Hub) {
        self.refused(id, why, hub);
        self.lost(id, hub);
    }

    fn refused(&mut self, id: ConnId, why: &str, hub: &mut Hub) {
        let from = match self.conns.get(&id).map(|c| &c.state) {
            Some(State::Stranger { from, .. }) => from.clone(),
            Some(State::Session { peer, .. }) => self.node.name(*peer).to_string(),
            _ => return,
        };
        hub.journal.complain(&Happening::Refused { from, why: why.into() });
    }

    fn sent(&mut self, id: ConnId, op: Op, result: Result<usize, i32>, hub: &mut Hub) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let dead = conn.state == State::Dead;
        if let (State::Session { peer, .. }, Ok(n)) = (&conn.state, result) {
            self.ways[usize::from(peer.0)].wire_bytes += n as u64;
        }
        let rest = match result {
            Ok(n) if !dead => conn.sent(op, n),
            Err(libc::EINTR | libc::EAGAIN) if !dead => conn.sent(op, 0),
            _ => {
                conn.send_failed();
                return self.lost(id, hub);
            }
        };
        match rest {
            Some(op) => {
                hub.peer(PeerTag::Send(id), op);
            }
            None if conn.all_sent() && matches!(conn.state, State::Leaving { .. }) => self.kill(id),
            None => {}
        }
    }

    /// The connection is gone: its session, if it had one, is over.
    fn lost(&mut self, id: ConnId, hub: &mut Hub) {
        if let Some(State::Session { peer, session }) = self.conns.get(&id).map(|c| c.state.clone()) {
            self.sessions.remove(&peer);
            hub.events.push_back(Event::PeerDown { peer, session });
        }
        self.kill(id);
    }

    /// Ends a connection once what is queued was sent.
    fn leave(&mut self, id: ConnId, hub: &mut Hub) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.all_sent() {
            return self.kill(id);
        }
        conn.state = State::Leaving { until: hub.now.plus_ms(LEAVING_MS) };
        // At most what a second's limit lets pass (see `NodeConfig::window_of`), and the good-bye behind it should arrive.
        conn.say_last_words();
    }

    /// Ends a connection. It is forgotten when nothing of it is in flight any more.
    fn kill(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.state = State::Dead;
            conn.cut();
        }
        self.bury(id);
    }

    fn bury(&mut self, id: ConnId) {
        if self.conns.get(&id).is_some_and(|c| c.state == State::Dead && c.idle()) {
            self.conns.remove(&id);
        }
    }

    fn next_conn(&mut self) -> ConnId {
        self.last_conn += 1;
        ConnId(self.last_conn)
    }
}

fn errno_text(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}
