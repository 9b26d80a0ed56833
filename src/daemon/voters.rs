//! The voters of a node's resource, as its daemon reaches them: this node's own, in this process, and the others, over connections of their
//! own. Nothing of it runs in the loop: a vote waits for a disk, and a question for somebody else's.

use super::handle::{LoopHandle, Request};
use super::journal::Happening;
use super::{DaemonError, system};
use crate::config::Settings;
use crate::core::Keeper;
use crate::core::register::{Answer, Question};
use crate::core::{Mode, Takeover};
use crate::voter::Notes;
use crate::voter::asking::{Asker, Asking, At};
use crate::voter::registry::Registry;
use crate::voter::server::Server;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// An answer is waited for at least so long: a disk may need it.
const PATIENCE_MS: u64 = 500;

/// See the module's page.
pub struct Voters {
    keeper: Keeper,
    takeover: Takeover,
    sync_nodes: usize,
    /// None where the active keeps the charter alone.
    asking: Option<(Asking, Server)>,
}

impl Voters {
    /// Opens this node's vote, and begins to look at the others. The node's folder must be locked.
    pub fn start(settings: &Settings, handle: &LoopHandle) -> Result<Voters, DaemonError> {
        let node = &settings.node;
        let takeover = node.nodes[usize::from(node.me.0)].takeover;
        let sync_nodes = node.nodes.iter().filter(|n| n.mode == Mode::Sync).count();
        let mut voters = Voters { keeper: node.keeper.clone(), takeover, sync_nodes, asking: None };
        let Keeper::Voters(voting) = &node.keeper else { return Ok(voters) };
        let (noting, delivering) = (handle.clone(), handle.clone());
        let notes: Notes = Arc::new(move |note| {
            // A loop that has ended wants no more of them.
            noting.send(Request::NoteVoter { note });
        });
        let deliver = Arc::new(move |voter: &str, answer: Answer| {
            delivering.send(Request::VoterAnswered { voter: voter.to_owned(), answer: Box::new(answer) });
        });
        let own = Arc::new(Registry::of_node(node.my_name(), &node.resource, &settings.dir, notes.clone())?);
        let server = Server::new(own.clone(), notes.clone());
        let asker = Asker {
            resource: node.resource.clone(),
            node: node.my_name().to_owned(),
            own,
            patience: Duration::from_millis(voting.round_ms.max(PATIENCE_MS)),
            deliver,
            notes,
        };
        let at = |address: Option<_>| address.map_or(At::Here, At::There);
        let all = settings.voters.iter().map(|v| (v.name.clone(), at(v.address))).collect();
        let asking = Asking::start(&asker, all).map_err(system("start a thread"))?;
        voters.asking = Some((asking, server));
        Ok(voters)
    }

    /// Who answers those who ask this node's voter.
    pub fn server(&self) -> Option<Server> {
        self.asking.as_ref().map(|(_, server)| server.clone())
    }

    /// `Action::AskVoter`.
    pub fn ask(&self, voter: &str, question: Question) {
        if let Some((asking, _)) = &self.asking {
            asking.ask(voter, question);
        }
    }

    /// What the choice of a keeper means, for the events.
    pub fn happening(&self) -> Happening {
        Happening::Keeper { keeper: self.name(), what: self.meaning() }
    }

    fn name(&self) -> &'static str {
        match self.keeper {
            Keeper::Alone => "alone",
            Keeper::Voters(_) => "voters",
        }
    }

    fn meaning(&self) -> String {
        match &self.keeper {
            Keeper::Alone if self.sync_nodes > 1 => {
                "no node takes over by itself: when the active is lost, an operator promotes another. With a witness ([witness.w1] in the file) they could"
                    .into()
            }
            Keeper::Alone => "no node takes over by itself: an operator promotes".into(),
            Keeper::Voters(voting) => {
                let most = voting.voters.len() / 2 + 1;
                let this = match self.takeover {
                    Takeover::Automatic => {
                        format!("this node takes over by itself once the active was silent for {} ms", patience_ms(voting.lease_ms, voting.round_ms))
                    }
                    Takeover::Manual => "this node does not take over by itself: an operator promotes it".into(),
                };
                format!("{most} of {} decide who is active; {this}", voting.voters.join(", "))
            }
        }
    }

    /// Adds to what the core says of the keeper what the daemon knows of the voters.
    pub fn add_to(&self, status: &mut Map<String, Value>) {
        let mut ours = self.view();
        let Some(Value::Object(core)) = status.get_mut("keeper") else {
            status.insert("keeper".into(), ours);
            return;
        };
        for voter in ours["voters"].as_array_mut().into_iter().flatten() {
            let of_core = core["voters"].as_array().into_iter().flatten().find(|v| v["name"] == voter["name"]);
            voter["votes"] = of_core.map_or(Value::Null, |v| v["votes"].clone());
        }
        if let Value::Object(ours) = ours {
            core.extend(ours);
        }
    }

    /// For `status`.
    fn view(&self) -> Value {
        let mut view = json!({ "kind": self.name(), "what": self.meaning() });
        if let (Keeper::Voters(voting), Some((asking, _))) = (&self.keeper, &self.asking) {
            let listed = |v: &&Value| voting.voters.iter().any(|name| v["name"] == name.as_str());
            view["voters"] = asking.view().as_array().into_iter().flatten().filter(listed).cloned().collect();
            view["takes_over"] = match self.takeover {
                Takeover::Automatic => "automatic".into(),
                Takeover::Manual => "manual".into(),
            };
            view["lease_ms"] = voting.lease_ms.into();
            view["round_ms"] = voting.round_ms.into();
        }
        view
    }
}

/// How long a passive waits for word of its active (C3): a lease with the drift of clocks, and a round.
fn patience_ms(lease_ms: u64, round_ms: u64) -> u64 {
    lease_ms + lease_ms.div_ceil(100) + round_ms
}
