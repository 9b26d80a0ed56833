//! What both kinds of connections have in common: received bytes, and sockets.

mod inbox;
mod outbox;
mod sockets;

pub use inbox::{Ahead, Inbox};
pub use outbox::Outbox;
pub use sockets::{ListenError, Listener, close_abruptly, end_receiving, nodelay, origin, tcp_socket};
