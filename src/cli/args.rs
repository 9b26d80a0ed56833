//! The arguments, and the help that explains them to a stranger.

use clap::{Args, Parser, Subcommand, ValueHint};
use std::path::PathBuf;

const ABOUT: &str = "A replicated block device for Linux, wholly in userspace.";

const START: &str = "\
To see it work, as any user and with nothing set up:
  understudy demo

To run it, write one file, the same on every node, and on each node:
  understudy create data.toml --node alpha    once: format this node's parts
  understudy run data.toml --node alpha       the daemon, in the foreground
and then on one of them, to make it serve the device:
  understudy promote data.toml --node alpha
With a third machine that has a vote and no data, the other node takes over by itself when one dies:
  understudy witness data.toml --node w1

Exit codes: 0 done, 1 refused or failed (the reason is on standard error), 2 usage.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "understudy", version, about = ABOUT, after_help = START, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// Which resource, and which of its nodes.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// The resource's file; a bare name means /etc/understudy/NAME.toml
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Which node of the file is meant [default: the one called like this host]
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Format this node's log and stores, once, before its first run
    ///
    /// Makes the files of this node, or takes the block devices that the file names, and writes an empty log. What already holds
    /// something is refused and left as it is, unless --force is given.
    #[command(after_help = "Example:\n  understudy create data.toml --node alpha")]
    Create {
        #[command(flatten)]
        target: Target,
        /// Overwrite what the log and the stores hold. The data of this node is lost
        #[arg(long)]
        force: bool,
    },
    /// Run this node's daemon in the foreground
    ///
    /// It starts as a passive, unless it was active and can know that nobody else was since. It ends on SIGINT, SIGTERM or
    /// `understudy stop`.
    #[command(after_help = "Example:\n  understudy run data.toml --node alpha")]
    Run {
        #[command(flatten)]
        target: Target,
    },
    /// Run a witness in the foreground: a vote on who is active, without data
    ///
    /// One process keeps the votes of any number of resources, whose files all name its address. It needs a few MiB, and a folder that
    /// outlives it. It ends on SIGINT, SIGTERM or `understudy stop`.
    #[command(after_help = "\
Examples:
  understudy witness data.toml --node w1
  understudy status data.toml --node w1      which resources it keeps, and who is active there")]
    Witness {
        #[command(flatten)]
        target: Target,
    },
    /// Make this node active: it serves the device
    ///
    /// Refused, with the reason, where another node is active, may be active, or may hold writes that this one lacks. --force
    /// goes on where that can be answered for, says what is lost, and records it.
    #[command(after_help = "\
Examples:
  understudy promote data.toml --node alpha
  understudy promote data.toml --node beta --force --off alpha    alpha is dead for certain")]
    Promote {
        #[command(flatten)]
        target: Target,
        /// Go on although this node may lack writes, which are then given up
        #[arg(long)]
        force: bool,
        /// Nodes that cannot be reached and that you have made sure are off, separated by commas
        #[arg(long, value_name = "NODES", value_delimiter = ',', requires = "force")]
        off: Vec<String>,
    },
    /// Make this node passive: it stops serving once every in-sync node holds everything
    #[command(after_help = "Example:\n  understudy demote data.toml --node alpha")]
    Demote {
        #[command(flatten)]
        target: Target,
        /// Stop serving although no other in-sync node holds everything
        #[arg(long)]
        force: bool,
    },
    /// Hand the active role from this node to another, losing nothing
    ///
    /// Refused where the other node is not in sync.
    #[command(
        after_help = "Example, on the active node alpha:\n  understudy switchover data.toml --node alpha --to beta"
    )]
    Switchover {
        #[command(flatten)]
        target: Target,
        /// The node that becomes active
        #[arg(long, value_name = "NODE")]
        to: String,
    },
    /// Link this node with a peer again, after `disconnect`
    ///
    /// With --dry-run nothing is linked: the peer is asked, and it is said which of the two would follow the other, whether from the
    /// log or by a resync, how much would be sent, and which records would be set aside. Exit code 1 if the link would be refused, or
    /// if the peer cannot be asked and nothing is known of it.
    #[command(after_help = "\
Examples:
  understudy connect data.toml beta --node alpha --dry-run
  understudy connect data.toml beta --node alpha")]
    Connect {
        #[command(flatten)]
        target: Target,
        /// The node to link with
        peer: String,
        /// Only say what it would do
        #[arg(long)]
        dry_run: bool,
        /// Print the forecast as JSON, one object in one line
        #[arg(long, requires = "dry_run")]
        json: bool,
    },
    /// Cut the link between this node and a peer, until `connect`
    ///
    /// Refused where the peer is the only other in-sync node, since from then on one failure would lose data.
    #[command(after_help = "Example:\n  understudy disconnect data.toml beta --node alpha")]
    Disconnect {
        #[command(flatten)]
        target: Target,
        /// The node to part from
        peer: String,
        /// Part even from the only other in-sync node
        #[arg(long)]
        force: bool,
    },
    /// Show the state of this node and what it knows of its peers
    #[command(after_help = "\
Examples:
  understudy status data.toml --node alpha --watch
  understudy status data.toml --node alpha --json | jq -r '.in_sync[]'")]
    Status {
        #[command(flatten)]
        target: Target,
        /// Print JSON, one object in one line
        #[arg(long)]
        json: bool,
        /// Show it anew each second until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Follow what happens on this node, one line each, until interrupted
    #[command(after_help = "Example:\n  understudy events data.toml --node alpha --json | jq .event")]
    Events {
        #[command(flatten)]
        target: Target,
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Compare this node's data with every connected passive, while both go on
    ///
    /// To be run on the active node. Says which ranges differ, and which peers were not compared and why. Exit code 0 if all that was
    /// compared is the same now; 1 if something differs and was not repaired, or a comparison did not come to its end.
    #[command(after_help = "\
Examples:
  understudy verify data.toml --node alpha --repair
  understudy verify data.toml --node alpha --json | jq '.peers[].ranges[]'")]
    Verify {
        #[command(flatten)]
        target: Target,
        /// Send the active's content of what differs to the passive
        #[arg(long)]
        repair: bool,
        /// Print JSON, one object in one line
        #[arg(long)]
        json: bool,
    },
    /// Show what this node's log holds: records, terms, room, and which peers it reaches back to
    ///
    /// The log is a ring. Its oldest records go when room is wanted and the store has them; a peer that was further behind by then gets
    /// the blocks that changed instead (a resync).
    #[command(after_help = "Example:\n  understudy log data.toml --node alpha")]
    Log {
        #[command(flatten)]
        target: Target,
        /// Print JSON, one object in one line
        #[arg(long)]
        json: bool,
    },
    /// Look at orphaned writes: what a node wrote that its resource went on without
    ///
    /// A node that comes back with writes that the active does not have sets the contents of those blocks aside, in DIR/salvage.N,
    /// before it follows. These commands only read, whether the daemon runs or not. To give the room back, remove the file.
    #[command(after_help = "\
Examples:
  understudy salvage list data.toml --node alpha
  understudy salvage show data.toml 1 --node alpha
  understudy salvage export data.toml 1 --node alpha --to delta.raw")]
    Salvage {
        #[command(subcommand)]
        what: SalvageCommand,
    },
    /// Begin or end an operator's work, during which nobody takes over by itself
    ///
    /// It stands in the charter, so it holds for all nodes, and until it is ended. Any order of stopping and starting daemons and machines
    /// is safe meanwhile; a passive that is gone is still dropped, and a promotion by hand goes on working.
    #[command(after_help = "\
Examples:
  understudy maintenance data.toml on --node alpha
  understudy maintenance data.toml off --node alpha")]
    Maintenance {
        #[command(flatten)]
        target: Target,
        /// Whether it begins or ends
        #[arg(value_parser = ["on", "off"])]
        state: String,
    },
    /// Change who votes on who is active
    ///
    /// Who votes stands in the charter; the file says where they are found. A change needs a majority of the old voters and of the new.
    #[command(after_help = "\
Examples:
  understudy voters replace data.toml w1 --node alpha            w1 has lost its folder, and is back with an empty one
  understudy voters replace data.toml w1 --with w2 --node alpha")]
    Voters {
        #[command(subcommand)]
        what: VotersCommand,
    },
    /// End this node's daemon
    #[command(after_help = "Example:\n  understudy stop data.toml --node alpha")]
    Stop {
        #[command(flatten)]
        target: Target,
    },
    /// Make the block devices of an active node: /dev/understudy/RESOURCE-VOLUME
    ///
    /// It takes root. With device = "auto" in the file the daemon does this by itself when its node becomes active, if it runs as root.
    /// A device lives on when this command ends, and over restarts of the daemon, until `detach`, or until the node is no longer active.
    #[command(after_help = "\
Examples:
  understudy attach data.toml --node alpha
  understudy attach data.toml --node alpha --follow    beside a daemon without root: whenever it becomes active")]
    Attach {
        #[command(flatten)]
        target: Target,
        /// Only of this volume; may be given more than once
        #[arg(long, value_name = "VOLUME")]
        volume: Vec<String>,
        /// Stay, and make them whenever the node becomes active
        #[arg(long)]
        follow: bool,
        /// Nothing can be written through them
        #[arg(long)]
        read_only: bool,
    },
    /// Take the block devices of a node down
    ///
    /// Refused for one that is in use: mounted, swap, part of another device, or open. Also cleans up what the process of a device left
    /// behind that was killed.
    #[command(after_help = "Example:\n  understudy detach data.toml --node alpha")]
    Detach {
        #[command(flatten)]
        target: Target,
        /// Only of this volume; may be given more than once
        #[arg(long, value_name = "VOLUME")]
        volume: Vec<String>,
        /// Also one that is in use: from then on it fails every request, and goes when its last user does
        #[arg(long)]
        force: bool,
    },
    /// Say what this machine offers, what is missing, and how to get it
    ///
    /// With a FILE also whether the places of this node's parts will do. Exit code 1 if the daemon cannot run here.
    #[command(after_help = "\
Examples:
  understudy doctor
  understudy doctor data.toml --node alpha --json | jq -r '.findings[] | select(.verdict != \"good\") | .what'")]
    Doctor {
        /// The resource's file; a bare name means /etc/understudy/NAME.toml
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
        /// Which node of the file is meant [default: the one called like this host]
        #[arg(long, value_name = "NODE", requires = "file")]
        node: Option<String>,
        /// Print JSON, one object in one line
        #[arg(long)]
        json: bool,
    },
    /// Try the handoff of an active node again
    ///
    /// A node whose mount, address or service failed, and which no other node could relieve, stays active with nothing above its
    /// device. When what was wrong is mended, this goes up again: check, mount, address, service.
    #[command(after_help = "Example:\n  understudy retry data.toml --node alpha")]
    Retry {
        #[command(flatten)]
        target: Target,
    },
    /// Show earlier handoffs of a node, phase by phase
    ///
    /// Reads the node's own record, whether its daemon runs or not.
    #[command(after_help = "\
Examples:
  understudy history data.toml --node alpha
  understudy history data.toml --node alpha --json | jq -r 'select(.failed) | .time + \" \" + .failed'")]
    History {
        #[command(flatten)]
        target: Target,
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// One task of a handoff; started by the daemon
    #[command(hide = true)]
    HandoffTask { work: String },
    /// The process that a device belongs to; started by the daemon and by `attach`
    #[command(hide = true)]
    DeviceHelper {
        #[command(flatten)]
        target: Target,
        #[arg(long)]
        volume: String,
        #[arg(long)]
        kind: String,
        #[arg(long)]
        tenure: String,
        #[arg(long)]
        read_only: bool,
    },
    /// See it work: a real pair on this machine, killed in mid-write and checked
    ///
    /// Needs no root and no file: everything is in a temporary folder. Writes as a database does, kills the active, lets the passive take
    /// over with a witness, and checks that every completed write is there. The exit code is not 0 if anything fails.
    #[command(after_help = "Example:\n  understudy demo --keep")]
    Demo {
        /// Leave the pair running, and print how to use it
        #[arg(long)]
        keep: bool,
        /// How long to write before the active is killed
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
        seconds: u32,
        /// Whether a write waits for the passive, or not: then the last ones are lost with the active
        #[arg(long, value_name = "MODE", default_value = "sync", value_parser = ["sync", "async"])]
        mode: String,
        /// Without a witness: an operator promotes the passive. Always so with --mode async
        #[arg(long)]
        alone: bool,
    },
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  understudy completions bash > /etc/bash_completion.d/understudy")]
    Completions { shell: clap_complete::Shell },
    /// Print the names of a resource's nodes, one a line: for the completion scripts
    #[command(hide = true, after_help = "Example:\n  understudy nodes data.toml")]
    Nodes {
        /// The resource's file
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum VotersCommand {
    /// List a voter as it is now, or another one in its place
    #[command(after_help = "Example:\n  understudy voters replace data.toml w1 --node alpha")]
    Replace {
        #[command(flatten)]
        target: Target,
        /// Which voter
        voter: String,
        /// The voter of the file that takes its place
        #[arg(long, value_name = "VOTER")]
        with: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum SalvageCommand {
    /// List what this node has set aside: number, term, blocks, bytes, when
    #[command(after_help = "Example:\n  understudy salvage list data.toml --node alpha")]
    List {
        #[command(flatten)]
        target: Target,
        /// Print JSON, one array in one line
        #[arg(long)]
        json: bool,
    },
    /// Show which ranges of which volumes were set aside
    #[command(after_help = "Example:\n  understudy salvage show data.toml 1 --node alpha --json | jq .ranges")]
    Show {
        #[command(flatten)]
        target: Target,
        /// Which one, as `list` numbers them
        number: u32,
        /// Print JSON, one object in one line
        #[arg(long)]
        json: bool,
    },
    /// Write what was set aside of one volume to a raw image
    ///
    /// Without --base the image is sparse and holds nothing but the blocks that were set aside; `show` tells which. With --base it is a
    /// copy of that image, with those blocks in it as the node had them: other blocks are as in the base.
    #[command(after_help = "\
Examples:
  understudy salvage export data.toml 1 --node alpha --volume disk0 --to delta.raw
  understudy salvage export data.toml 1 --node alpha --to whole.raw --base backup.raw")]
    Export {
        #[command(flatten)]
        target: Target,
        /// Which one, as `list` numbers them
        number: u32,
        /// Which volume; may be left out where there is only one
        #[arg(long, value_name = "VOLUME")]
        volume: Option<String>,
        /// The image, which must not exist yet
        #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath)]
        to: PathBuf,
        /// An image or store of the volume that nobody writes to, which is copied first
        #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath)]
        base: Option<PathBuf>,
        /// Export what can be read of a damaged one
        #[arg(long)]
        partial: bool,
        /// Print JSON, one object in one line
        #[arg(long)]
        json: bool,
    },
}
