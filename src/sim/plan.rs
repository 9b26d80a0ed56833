//! What a seed decides beforehand: the resource, the hardware, the load, and which faults there are (swarm testing: each
//! seed has its own mix, and some have none of a kind).

use super::client::Habits;
use super::disk::DiskMood;
use super::rng::Rng;
use super::shrink::Less;
use super::truth::Geometry;
use crate::core::config::TABLES;
use crate::core::{Incarnation, Keeper, Mode, NodeConfig, NodeId, NodeSpec, OnStall, Takeover, VolumeSpec};

/// Kinds of faults and commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    Crash,
    PowerCut,
    PowerCutAll,
    Freeze,
    Cut,
    Partition,
    OneWay,
    Hang,
    SlowLink,
    Garble,
    ReadErrors,
    WriteErrors,
    FlushErrors,
    SlowDisk,
    FullDisk,
    Rot,
    Promote,
    Force,
    Demote,
    Switchover,
    Connect,
    Disconnect,
    Verify,
}

/// All of them, with the weight that each has where it is in the mix.
pub const TROUBLES: [(Trouble, u64); 23] = [
    (Trouble::Crash, 10),
    (Trouble::PowerCut, 10),
    (Trouble::PowerCutAll, 3),
    (Trouble::Freeze, 6),
    (Trouble::Cut, 10),
    (Trouble::Partition, 8),
    (Trouble::OneWay, 4),
    (Trouble::Hang, 4),
    (Trouble::SlowLink, 4),
    (Trouble::Garble, 3),
    (Trouble::ReadErrors, 2),
    (Trouble::WriteErrors, 2),
    (Trouble::FlushErrors, 2),
    (Trouble::SlowDisk, 4),
    (Trouble::FullDisk, 3),
    (Trouble::Rot, 4),
    (Trouble::Promote, 4),
    (Trouble::Force, 5),
    (Trouble::Demote, 3),
    (Trouble::Switchover, 8),
    (Trouble::Connect, 3),
    (Trouble::Disconnect, 3),
    (Trouble::Verify, 3),
];

/// What the caller fixes, rather than the seed.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Logs so large that they never wrap and no peer ever falls out of them.
    pub large_logs: bool,
    /// No faults of disks.
    pub sound_disks: bool,
    /// A store read beside a write of the same block may see a part of either.
    pub torn_reads: bool,
    /// What is left out of the world that the seed draws.
    pub less: Less,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Plan {
    pub modes: Vec<Mode>,
    pub geometry: Geometry,
    /// One for each node.
    pub log_sizes: Vec<u64>,
    pub memory: u64,
    pub window: u64,
    pub tables: u64,
    pub history_size: u64,
    pub allow_invalid: bool,
    pub stall_ms: u64,
    pub on_stall: OnStall,
    pub durable_write: bool,
    pub heartbeat_ms: u64,
    pub flush_ms: u64,
    pub apply_ms: u64,
    pub habits: Habits,
    pub disk: DiskMood,
    pub tells_holes: bool,
    pub net_delay_us: u64,
    /// Payloads travel packed.
    pub compress: bool,
    /// The driver gathers events for up to this long before it polls.
    pub batch_us: u64,
    /// Mean time between two troubles.
    pub trouble_us: u64,
    pub troubles: Vec<(Trouble, u64)>,
    /// How long things go wrong, in µs.
    pub storm_us: u64,
    /// Of a thousand chaos ticks, so many look at a copy of a node's disk.
    pub inspect_per_mille: u64,
    /// At the end a bit is turned over, to be found.
    pub audit: bool,
    /// What reports positions overtakes what carries data.
    pub overtaking: bool,
    /// Troubles that are drawn and do not strike.
    pub less: Less,
}

impl Plan {
    /// Draws the plan of a seed.
    pub fn draw(rng: &mut Rng, scope: &Scope) -> Plan {
        let nodes = rng.pick(&[2, 2, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5]);
        let style = rng.below(4);
        let modes: Vec<Mode> = (0..nodes).map(|i| mode(style, i, rng)).collect();
        let block = rng.pick(&[4096, 4096, 4096, 512]);
        let volumes = (0..rng.between(1, 2)).map(|_| rng.between(64, 256)).collect();
        let alike = rng.pick(&[Some(384 << 10), Some(512 << 10), Some(1 << 20), None, None]);
        let log_size = |_: &Mode| alike.unwrap_or_else(|| rng.pick(&[384 << 10, 512 << 10, 1 << 20]));
        let log_sizes =
            if scope.large_logs { vec![1 << 30; modes.len()] } else { modes.iter().map(log_size).collect() };
        let mut troubles: Vec<(Trouble, u64)> = TROUBLES.to_vec();
        let share = rng.pick(&[200, 500, 800]);
        troubles.retain(|_| rng.per_mille(share));
        if scope.sound_disks {
            use Trouble::*;
            troubles.retain(|(t, _)| !matches!(t, ReadErrors | WriteErrors | FlushErrors | FullDisk | Rot));
        }
        let mut plan = Plan {
            modes,
            geometry: Geometry { block, volumes },
            log_sizes,
            memory: rng.pick(&[64 << 10, 256 << 10, 1 << 20, 8 << 20]),
            window: rng.pick(&[32 << 10, 256 << 10, 4 << 20]),
            tables: TABLES,
            history_size: u64::MAX,
            allow_invalid: false,
            stall_ms: rng.pick(&[200, 500, 2000]),
            on_stall: if rng.per_mille(200) { OnStall::Suspend } else { OnStall::Degrade },
            durable_write: rng.per_mille(150),
            heartbeat_ms: rng.pick(&[20, 50, 100]),
            flush_ms: rng.pick(&[5, 50, 500]),
            apply_ms: rng.pick(&[5, 50, 500]),
            habits: habits(rng),
            disk: DiskMood {
                access_us: rng.pick(&[20, 100, 1000]),
                flush_us: rng.pick(&[50, 500, 5000]),
                atom: if scope.torn_reads { 512 } else { block },
                slow: 1,
                ..DiskMood::default()
            },
            tells_holes: rng.coin(),
            net_delay_us: rng.pick(&[20, 200, 2000]),
            compress: rng.per_mille(30),
            batch_us: rng.pick(&[0, 20, 200]),
            trouble_us: rng.pick(&[30_000, 100_000, 300_000, 1_000_000]),
            troubles,
            storm_us: rng.between(2_000_000, 12_000_000),
            audit: rng.per_mille(200),
            inspect_per_mille: rng.pick(&[50, 150, 400]),
            overtaking: rng.per_mille(300),
            less: scope.less.clone(),
        };
        plan.draw_bounds(rng, scope);
        scope.less.leave_out(&mut plan);
        plan
    }

    /// Little memory for what changed, little room for history and salvage; and sometimes no history at all.
    fn draw_bounds(&mut self, rng: &mut Rng, scope: &Scope) {
        self.tables = rng.pick(&[TABLES, TABLES, 4096, 2048, 1024]);
        if !scope.sound_disks {
            self.disk.room = rng.pick(&[None, None, None, Some(64 << 10), Some(256 << 10), Some(1 << 20)]);
        }
        self.allow_invalid = rng.per_mille(200);
        if self.allow_invalid && rng.coin() {
            self.history_size = rng.pick(&[32 << 10, 256 << 10]);
        }
    }

    /// What kind of world it is, to be counted.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> + use<> {
        let kinds = [
            ("worlds of five nodes", self.modes.len() == 5),
            ("worlds of two volumes", self.geometry.volumes.len() == 2),
            ("worlds of small blocks", self.geometry.block == 512),
            ("worlds that suspend", self.on_stall == OnStall::Suspend),
            ("worlds of durable writes", self.durable_write),
            ("worlds with packed frames", self.compress),
            ("worlds without holes", !self.tells_holes),
            ("worlds of logs of different sizes", self.log_sizes.iter().any(|s| *s != self.log_sizes[0])),
        ];
        kinds.into_iter().filter_map(|(kind, is)| is.then_some(kind))
    }

    /// The configuration of one process of a node.
    pub fn config(&self, me: NodeId, incarnation: u128, boot: u128) -> NodeConfig {
        let spec = |(i, mode): (usize, &Mode)| NodeSpec {
            name: name(i),
            mode: *mode,
            bandwidth: None,
            takeover: Takeover::of(*mode),
        };
        let volume =
            |(i, blocks): (usize, &u64)| VolumeSpec { name: format!("disk{i}"), size: blocks * self.geometry.block };
        NodeConfig {
            resource: "sim".into(),
            nodes: self.modes.iter().enumerate().map(spec).collect(),
            me,
            volumes: self.geometry.volumes.iter().enumerate().map(volume).collect(),
            block: self.geometry.block as u32,
            log_size: self.log_sizes[me.0 as usize],
            keeper: Keeper::Alone,
            stall_ms: self.stall_ms,
            on_stall: self.on_stall,
            durable_write: self.durable_write,
            heartbeat_ms: self.heartbeat_ms,
            memory: self.memory,
            window: self.window,
            tables: self.tables,
            history_size: self.history_size,
            allow_invalid: self.allow_invalid,
            flush_ms: self.flush_ms,
            apply_ms: self.apply_ms,
            incarnation: Incarnation(incarnation),
            boot,
        }
    }

    /// How long a request to an active that waits for nobody may take, in µs: some rounds of its own flushing and applying.
    pub fn patience_us(&self) -> u64 {
        2_000_000 + 3000 * (self.flush_ms + self.apply_ms)
    }

    /// The same where it may wait for peers: each is given up after a stall, at a write and at a change of the charter.
    pub fn stalls_us(&self) -> u64 {
        self.patience_us() + 1000 * self.stall_ms * (2 * self.modes.len() as u64 + 2)
    }

    /// Whether clients of this node wait until another member is in sync (C10).
    pub fn keeps_two(&self, node: NodeId) -> bool {
        let others_sync = self.nodes().any(|n| n != node && self.modes[n.0 as usize] == Mode::Sync);
        self.on_stall == OnStall::Suspend && others_sync
    }

    /// The nodes of the resource.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.modes.len() as u8).map(NodeId)
    }
}

/// Names sort like their numbers.
pub fn name(node: usize) -> String {
    ["alpha", "beta", "gamma", "offsite", "zulu"][node].into()
}

fn mode(style: u64, node: usize, rng: &mut Rng) -> Mode {
    match style {
        0 | 1 if node < 2 => Mode::Sync,
        0 => Mode::Sync,
        1 => Mode::Async,
        2 => Mode::Async,
        _ => rng.pick(&[Mode::Sync, Mode::Async]),
    }
}

fn habits(rng: &mut Rng) -> Habits {
    Habits {
        depth: rng.pick(&[1, 4, 16, 64]),
        think_us: rng.pick(&[1000, 5000, 20_000]),
        max_blocks: rng.pick(&[1, 4, 16]),
        writes: 10,
        reads: rng.pick(&[1, 5, 10]),
        flushes: rng.pick(&[1, 3]),
        zeroes: rng.pick(&[0, 1]),
        discards: rng.pick(&[0, 1, 3]),
        fua_per_mille: rng.pick(&[0, 50, 300]),
        hot_per_mille: rng.pick(&[0, 300, 800]),
    }
}
