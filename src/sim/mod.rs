//! The deterministic simulator: the real core in a world that is made of one seed, with everything going wrong.
//!
//! [`run`] plays one seed. [`world`] holds the nodes, the queue of what is to happen and the way events go in; [`acts`] is what
//! comes out, [`watch`] what is looked at as nodes step; [`disk`] and [`net`] are what the nodes stand on; [`client`] asks and
//! judges the answers; [`chaos`] and [`rot`] break things and [`operator`] gives commands at bad moments; [`healing`] mends all and demands
//! progress, [`resolve`] decides what only a person can; [`audit`] verifies; [`voters`] keep the charter where
//! no operator does; [`truth`] knows what really happened, and
//! [`invariants`] what must hold.

pub mod acts;
pub mod audit;
pub mod brain;
pub mod chaos;
pub mod client;
pub mod disk;
pub mod healing;
pub mod invariants;
pub mod net;
pub mod operator;
pub mod plan;
pub mod report;
pub mod resolve;
pub mod rng;
pub mod rot;
pub mod run;
#[cfg(test)]
mod scenes;
pub mod shrink;
pub mod slot;
pub mod truth;
pub mod voters;
pub mod watch;
pub mod world;
