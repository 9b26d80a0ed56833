//! What both kinds of connections have in common: received bytes, and sockets.

mod inbox;
mod outbox;
mod pace;
mod sockets;

pub use inbox::{Ahead, Inbox};
pub use outbox::Outbox;
pub use pace::Pace;
pub use sockets::{
    ListenError, Listener, close_abruptly, end_receiving, give_room, keepalive, nodelay, origin, tcp_socket,
};
