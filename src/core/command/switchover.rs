//! Stepping down: demotion, release to an heir, switchover. Nothing is released before all is durable on the members.

use super::*;

impl Node {
    /// Whether this node would begin to step down now: nothing above its devices is touched for a command that would be refused.
    pub fn may_step_down(&self) -> Result<(), Refusal> {
        self.check_free()?;
        self.check_active()
    }

    pub(super) fn begin_demote(&mut self, id: CommandId, to: Option<NodeId>, forced: bool) -> Result<(), Refusal> {
        self.may_step_down()?;
        self.set_stage(Stage::Demoting);
        self.act(Action::StopServing);
        let end = self.log.end();
        self.flush_to = self.flush_to.max(end);
        self.log.want_durable(end);
        self.operation = Some(Operation {
            id: Some(id),
            kind: Kind::Demote { to, forced, released: false },
            since: self.now,
            contradicted: None,
        });
        Ok(())
    }

    pub(super) fn begin_switchover(&mut self, id: CommandId, to: &str) -> Result<(), Refusal> {
        let node = self.node_called(to)?;
        self.may_step_down()?;
        if node == self.cfg.me {
            return Err(Refusal::AlreadyActive { node: to.to_string() });
        }
        let peer = &self.peers[node.0 as usize];
        if !self.is_member(node) || !peer.is_streamed() || self.change.is_some() {
            let why = peer.why.clone().unwrap_or_else(|| "it has not caught up".into());
            return Err(Refusal::NotInSync { peer: to.to_string(), why });
        }
        self.begin_demote(id, Some(node), false)
    }

    pub(super) fn poll_demote(&mut self, to: Option<NodeId>, forced: bool, released: bool) {
        if !released {
            let whole = self.committed == self.log.end() && self.log.is_settled() && self.change.is_none();
            let late = self.operation_is_late();
            if whole || (late && forced) {
                return self.release(to);
            }
            if late {
                // Nothing was given up: it goes on serving.
                let what = "the in-sync members did not make the last writes durable; the node serves on (use --force to demote all the same)";
                self.serve_on(what);
            }
            return;
        }
        if self.change.is_none() {
            self.released(to);
        } else if self.operation_is_late()
            && let Some(change) = self.change.take()
        {
            // Whoever has heard of the release goes by it, so this node does too (C7).
            self.charter = change.charter;
            self.released(None);
        }
    }

    /// A later promotion has come of the release that is not confirmed by everyone: it is over.
    pub(in crate::core) fn is_released(&self) -> bool {
        matches!(self.operation, Some(Operation { kind: Kind::Demote { released: true, .. }, .. }))
    }

    pub(in crate::core) fn released_to(&mut self, later: &Charter) {
        let Some(Operation { kind: Kind::Demote { to, .. }, .. }) = self.operation else { return };
        self.change = None;
        self.charter = later.clone();
        self.persist(Then::Remember);
        self.released(to);
    }

    pub(super) fn operation_is_late(&self) -> bool {
        self.operation.as_ref().is_some_and(|o| self.now.since_us(o.since) > PATIENCE_MS * 1000)
    }

    pub(super) fn serve_on(&mut self, what: &str) {
        let id = self.operation.take().and_then(|o| o.id);
        self.set_stage(Stage::Active);
        // Sessions of clients were ended; new ones may come, where nobody else was promoted meanwhile.
        if let Some(term) = self.lineage.last().filter(|_| !self.is_outvoted) {
            let term = term.id;
            self.act(Action::Serve { term, continues: Some(term) });
        }
        self.answer(id, Err(Refusal::TimedOut { what: what.into() }));
    }

    pub(super) fn release(&mut self, to: Option<NodeId>) {
        let mut charter: Charter = self.charter.clone();
        charter.active = None;
        charter.heir = to.map(|n| self.cfg.name(n).to_string());
        charter.released = Some(self.log.end());
        if let Some(Operation { kind: Kind::Demote { released, .. }, .. }) = &mut self.operation {
            *released = true;
        }
        self.ask(charter, None);
    }

    /// The release is durable here and at the members: this node is passive.
    pub(super) fn released(&mut self, to: Option<NodeId>) {
        let id = self.operation.take().and_then(|o| o.id);
        self.set_stage(Stage::Passive);
        let end = self.log.end();
        for req in self.clients.reset(end, end) {
            self.complete(req, Err(ClientError::NotActive));
        }
        self.notice(Notice::Demoted { end: end.0 });
        match to {
            Some(node) => {
                if let Some(session) = self.peers[node.0 as usize].session() {
                    self.send(node, session, PeerMsg::TakeOver);
                }
                self.operation =
                    Some(Operation { id, kind: Kind::Watch { to: node }, since: self.now, contradicted: None });
            }
            None => self.answer(id, Ok(format!("{} is passive, its log ends at {}", self.cfg.my_name(), end.0))),
        }
        self.renegotiate_after_release(to);
    }

    pub(super) fn renegotiate_after_release(&mut self, to: Option<NodeId>) {
        for node in self.cfg.peers() {
            // The heir ends the session itself when it promotes.
            if Some(node) != to {
                self.close_link(node, "it was demoted", true);
            }
        }
    }

    pub(super) fn poll_watch(&mut self, to: NodeId) {
        let peer = &self.peers[to.0 as usize];
        let name = self.cfg.name(to).to_string();
        let serves =
            matches!(peer.link, Link::Target(_)) && peer.hello.as_ref().is_some_and(|h| h.role == Role::Active);
        if serves {
            let id = self.operation.take().and_then(|o| o.id);
            self.answer(id, Ok(format!("{name} is active")));
        } else if self.operation_is_late() {
            let id = self.operation.take().and_then(|o| o.id);
            self.close_link(to, "it did not take over", true);
            let me = self.cfg.my_name();
            let what = format!(
                "{name} did not take over; nobody serves now. See its events; `understudy promote` on {name} or {me} ends this"
            );
            self.answer(id, Err(Refusal::TimedOut { what }));
        }
    }

    /// The active has released its role to this node.
    pub(in crate::core) fn take_over(&mut self, node: NodeId) {
        if self.peers[node.0 as usize].target_mut().is_none() {
            return;
        }
        // Its hello is of the time when it was active; the charter it sent since says that it is not.
        if self.charter.active.is_none() && self.charter.heir.as_deref() == Some(self.cfg.my_name()) {
            if let Some(hello) = &mut self.peers[node.0 as usize].hello {
                hello.role = Role::Passive;
            }
            // A refusal is seen on the other side, where the command was given, as a time-out with the remedy.
            let _ = self.begin_promote(None, false, &[]);
        }
    }
}
