//! All that needs the kernel's or root's help: block devices whose contents a process serves, and what a kernel offers.
//!
//! Thin layers, without policy: who owns a device, how long it lives and where its requests go is decided in `src/device` of
//! the main crate. Each system interface stands in a module of its own, and all `unsafe` of devices stands here.
//!
//! | module | what it is |
//! |---|---|
//! | [`front`] | what all kinds of devices have in common: requests out, answers in |
//! | [`fuse`] | a file that this process serves, over `/dev/fuse`, without a mount point |
//! | [`loopdev`] | a loop device over that file |
//! | [`ublk`] | devices whose requests come over io_uring |
//! | [`nbd`] | the kernel as a client of NBD |
//! | [`users`] | who uses a device |
//! | [`mounting`], [`holders`] | mounts, and ending whoever holds one |
//! | [`cgroup`] | a control group for the processes of a service |
//! | [`address`], [`announce`] | addresses of interfaces, and telling the link of them |
//! | [`watchdog`] | a device that resets the machine |
//! | [`memory`] | a process that must not wait for its own device |
//! | [`buffers`] | the memory for requests |
//! | [`room`] | sockets that hold whole requests |
//! | [`probe`] | what a kernel offers |

pub mod address;
pub mod announce;
pub mod buffers;
pub mod cgroup;
pub mod front;
pub mod fuse;
pub mod holders;
pub mod loopdev;
pub mod memory;
pub mod mounting;
pub mod nbd;
pub mod probe;
pub mod room;
pub mod ublk;
pub mod users;
pub mod watchdog;
