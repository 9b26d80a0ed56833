//! The generic netlink family `nbd`: as much of it as makes a device and takes it apart.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const CMD_CONNECT: u8 = 1;
const CMD_DISCONNECT: u8 = 2;

const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_TIMEOUT: u16 = 4;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_CLIENT_FLAGS: u16 = 6;
const ATTR_SOCKETS: u16 = 7;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

/// The device number goes when it is disconnected.
const CFLAG_DESTROY_ON_DISCONNECT: u64 = 1;

const HEADER: usize = 16;
const GENL_HEADER: usize = 4;
const NESTED: u16 = 1 << 15;

/// What a device is to be like.
pub struct Request<'a> {
    pub size: u64,
    pub block: u32,
    /// Transmission flags as the protocol numbers them.
    pub flags: u16,
    /// Seconds after which the kernel gives a request up.
    pub timeout_s: u64,
    pub sockets: &'a [BorrowedFd<'a>],
    /// Shown in sysfs as `backend`.
    pub identifier: &'a str,
}

/// A message that is being put together.
struct Message(Vec<u8>);

impl Message {
    fn new(family: u16, command: u8) -> Message {
        const REQUEST_ACK: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&family.to_ne_bytes());
        bytes.extend_from_slice(&REQUEST_ACK.to_ne_bytes());
        bytes.extend_from_slice(&1u32.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&[command, 1, 0, 0]);
        Message(bytes)
    }

    fn attribute(&mut self, kind: u16, data: &[u8]) {
        let length = (4 + data.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, &[text.as_bytes(), &[0]].concat());
    }

    fn done(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut message = Message(Vec::new());
    message.attribute(kind, data);
    message.0
}

/// The family, as this kernel numbers it.
pub struct Family {
    socket: OwnedFd,
    id: u16,
}

impl Family {
    /// # Errors
    /// [`ErrorKind::NotFound`] where the kernel has no NBD loaded.
    pub fn open() -> io::Result<Family> {
        // SAFETY: numbers only.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_GENERIC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just made it.
        let mut family = Family { socket: unsafe { OwnedFd::from_raw_fd(fd) }, id: 0 };
        let mut message = Message::new(GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
        message.text(CTRL_ATTR_FAMILY_NAME, "nbd");
        let answer = family.exchange(message)?;
        let id = find(&answer, CTRL_ATTR_FAMILY_ID).and_then(|d| d.try_into().ok()).map(u16::from_ne_bytes);
        family.id = id.ok_or(ErrorKind::NotFound)?;
        Ok(family)
    }

    /// Makes a device; its number.
    pub fn connect(&self, request: &Request<'_>) -> io::Result<u32> {
        let mut message = Message::new(self.id, CMD_CONNECT);
        message.attribute(ATTR_SIZE_BYTES, &request.size.to_ne_bytes());
        message.attribute(ATTR_BLOCK_SIZE_BYTES, &u64::from(request.block).to_ne_bytes());
        message.attribute(ATTR_SERVER_FLAGS, &u64::from(request.flags).to_ne_bytes());
        message.attribute(ATTR_CLIENT_FLAGS, &CFLAG_DESTROY_ON_DISCONNECT.to_ne_bytes());
        message.attribute(ATTR_TIMEOUT, &request.timeout_s.to_ne_bytes());
        message.text(ATTR_BACKEND_IDENTIFIER, request.identifier);
        let item = |fd: &BorrowedFd<'_>| {
            attribute(SOCK_ITEM | NESTED, &attribute(SOCK_FD, &(fd.as_raw_fd() as u32).to_ne_bytes()))
        };
        message.attribute(ATTR_SOCKETS | NESTED, &request.sockets.iter().flat_map(item).collect::<Vec<u8>>());
        let answer = self.exchange(message)?;
        let index = find(&answer, ATTR_INDEX).and_then(|d| d.try_into().ok()).map(u32::from_ne_bytes);
        index.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "the kernel did not say which NBD device it made"))
    }

    /// Takes a device apart. One that is not there is none to complain about.
    pub fn disconnect(&self, index: u32) -> io::Result<()> {
        let mut message = Message::new(self.id, CMD_DISCONNECT);
        message.attribute(ATTR_INDEX, &index.to_ne_bytes());
        match self.exchange(message) {
            Err(e) if !matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => Err(e),
            _ => Ok(()),
        }
    }

    /// Sends a message, and takes answers up to the last, which says whether it was carried out: the attributes of those before.
    fn exchange(&self, message: Message) -> io::Result<Vec<u8>> {
        let bytes = message.done();
        // SAFETY: memory that lives until the call returns, and its length.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut attributes = Vec::new();
        loop {
            let mut buffer = [0u8; 8192];
            // SAFETY: as above.
            let length = unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if length < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            let mut rest = &buffer[..length as usize];
            while rest.len() >= HEADER {
                let length = (u32_at(rest, 0) as usize).clamp(HEADER, rest.len());
                let (one, behind) = rest.split_at(length);
                if u16::from_ne_bytes([one[4], one[5]]) == libc::NLMSG_ERROR as u16 {
                    let errno = -(u32_at(one, HEADER) as i32);
                    return if errno == 0 { Ok(attributes) } else { Err(io::Error::from_raw_os_error(errno)) };
                }
                attributes.extend_from_slice(one.get(HEADER + GENL_HEADER..).unwrap_or_default());
                rest = behind.get((length.next_multiple_of(4) - length).min(behind.len())..).unwrap_or_default();
            }
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// The data of an attribute.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let found = u16::from_ne_bytes([attributes[2], attributes[3]]) & !NESTED;
        let data = attributes.get(4..length)?;
        if found == kind {
            return Some(data);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_again() {
        let mut message = Message(Vec::new());
        message.text(7, "abc");
        message.attribute(9 | NESTED, &attribute(1, &5u32.to_ne_bytes()));
        message.attribute(2, &6u16.to_ne_bytes());
        assert_eq!(find(&message.0, 7), Some(&b"abc\0"[..]));
        assert_eq!(find(find(&message.0, 9).unwrap(), 1), Some(&5u32.to_ne_bytes()[..]));
        assert_eq!(find(&message.0, 2), Some(&6u16.to_ne_bytes()[..]));
        assert_eq!(find(&message.0, 3), None);
        assert_eq!(find(&message.0[..6], 7), None, "cut short");
    }
}
