//! Two nodes that each think the device is theirs: what an operator is told, on either side. `FILE` stands for the file that the command
//! was given, which the command line puts in.

use super::hello::Charter;
use std::cmp::Ordering;

fn demote(node: &str) -> String {
    format!("`understudy demote FILE --node {node} --force`")
}

fn promote(node: &str) -> String {
    format!("`understudy promote FILE --node {node} --force`")
}

/// What active `me` says of active `peer`.
pub(super) fn words(me: &str, mine: &Charter, peer: &str, theirs: &Charter) -> String {
    match mine.generation.0.cmp(&theirs.generation.0) {
        Ordering::Less => outvoted(me, peer),
        Ordering::Greater => format!(
            "both nodes are active (split brain). {me} was promoted by force and goes on; {peer} was active before, and is suspended once it hears \
             of it. {}",
            choice(me, peer)
        ),
        Ordering::Equal => format!(
            "both nodes are active (split brain), each promoted while the other was taken for dead; neither has precedence, and both go on. Stop \
             the clients of one, then {} and {}, and {} or {}: whose data is to be kept. The other follows it by itself, and what it wrote \
             since they parted is set aside",
            demote(me),
            demote(peer),
            promote(me),
            promote(peer)
        ),
    }
}

/// What active `me` says when `peer` has seen a later promotion by force (C8).
pub(super) fn outvoted(me: &str, peer: &str) -> String {
    format!(
        "split brain: {peer} knows of a later promotion by force, so {me} is suspended. To keep what was promoted: stop the clients of {me}, then \
         {}; it follows by itself, and what it wrote since they parted is set aside. To keep the data of {me}: demote the one that was promoted \
         as well (if that is {peer}: {}), then {}",
        demote(me),
        demote(peer),
        promote(me)
    )
}

fn choice(kept: &str, other: &str) -> String {
    format!(
        "To keep the data of {kept}: stop the clients of {other}, then {}; it follows by itself, and what it wrote since they parted is set \
         aside. To keep the data of {other}: that and {}, then {}",
        demote(other),
        demote(kept),
        promote(other)
    )
}

/// What passive `me`, which follows one of two actives, says of the other.
pub(super) fn two_actives(followed: &str, other: &str) -> String {
    format!(
        "{other} is active, and so is {followed} (split brain): `understudy status FILE --node {followed}` and the same of {other} say what to do"
    )
}

/// Why a passive does not follow `active`, whose charter has been replaced by force (C7, C8).
pub(super) fn replaced(active: &str) -> String {
    format!(
        "another node was promoted by force since {active} was: {} lets it follow, and what it wrote since they parted is set aside",
        demote(active)
    )
}

/// The same where neither charter replaces the other.
pub(super) fn conflict(active: &str, passive: &str) -> String {
    format!(
        "{active} and the active that {passive} followed were each promoted by force while the other was taken for dead. To keep the data of \
         {active}: {}, then {}. To keep the other's: {}, then promote a node that has it, by force",
        demote(active),
        promote(active),
        demote(active)
    )
}
