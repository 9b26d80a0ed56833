//! Addresses of interfaces: added and removed by rtnetlink.

use nix::ifaddrs::getifaddrs;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
/// The kernel does not wait for its own search for duplicates, which has been made by then.
const IFA_F_NODAD: u32 = 2;

const HEADER: usize = 16;

/// An address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    pub ip: IpAddr,
    pub prefix: u8,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl std::str::FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Network, ()> {
        let (ip, prefix) = text.split_once('/').ok_or(())?;
        let ip: IpAddr = ip.parse().map_err(|_| ())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let digits = prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|p| digits && *p <= most).ok_or(())?;
        Ok(Network { ip, prefix })
    }
}

/// An interface as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    /// None where it is no Ethernet.
    pub mac: Option<[u8; 6]>,
}

/// Looks an interface up by its name.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] where there is none.
pub fn interface(name: &str) -> io::Result<Interface> {
    const ETHER: u16 = libc::ARPHRD_ETHER;
    for entry in getifaddrs()?.filter(|e| e.interface_name == name) {
        if let Some(link) = entry.address.as_ref().and_then(|a| a.as_link_addr()) {
            let mac = link.addr().filter(|_| link.hatype() == ETHER);
            return Ok(Interface { index: link.ifindex() as u32, mac });
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {name}")))
}

/// Which interface of this machine has the address.
///
/// # Errors
/// Where the kernel does not say.
pub fn holder(ip: IpAddr) -> io::Result<Option<String>> {
    let is_it = |address: &nix::sys::socket::SockaddrStorage| match ip {
        IpAddr::V4(ip) => address.as_sockaddr_in().is_some_and(|a| a.ip() == ip),
        IpAddr::V6(ip) => address.as_sockaddr_in6().is_some_and(|a| a.ip() == ip),
    };
    Ok(getifaddrs()?.find(|e| e.address.as_ref().is_some_and(is_it)).map(|e| e.interface_name))
}

/// Adds an address to an interface.
///
/// # Errors
/// The kernel's refusal; [`io::ErrorKind::AlreadyExists`] where the interface has it.
pub fn add(interface: Interface, network: Network) -> io::Result<()> {
    let create = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    exchange(&message(libc::RTM_NEWADDR, create, interface, network))
}

/// Removes it; one that is not there is fine. With the first address of a network in an interface the kernel removes all the others of it,
/// unless it is told otherwise: what goes with it is put back.
///
/// # Errors
/// The kernel's refusal.
pub fn remove(interface: Interface, network: Network) -> io::Result<()> {
    let before = networks_beside(interface, network)?;
    match exchange(&message(libc::RTM_DELADDR, 0, interface, network)) {
        Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) => return Ok(()),
        other => other?,
    }
    let after = networks_beside(interface, network)?;
    let put_back = |other: &Network| match add(interface, *other) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            let what = format!("{other} went with it, and is not to be put back: {e}");
            Err(io::Error::new(e.kind(), what))
        }
        _ => Ok(()),
    };
    before.iter().filter(|n| !after.contains(n)).try_for_each(put_back)
}

/// The other addresses of an interface in an IPv4 network, in the kernel's order.
fn networks_beside(interface: Interface, network: Network) -> io::Result<Vec<Network>> {
    let of = |entry: nix::ifaddrs::InterfaceAddress| {
        let index = nix::net::if_::if_nametoindex(entry.interface_name.as_str()).ok()?;
        let ip = IpAddr::V4(entry.address.as_ref()?.as_sockaddr_in()?.ip());
        let mask = entry.netmask.as_ref()?.as_sockaddr_in()?.ip();
        let other = Network { ip, prefix: u32::from(mask).count_ones() as u8 };
        (index == interface.index && other.prefix == network.prefix && ip != network.ip).then_some(other)
    };
    Ok(getifaddrs()?.filter_map(of).collect())
}

fn message(kind: u16, flags: u16, interface: Interface, network: Network) -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16 | flags;
    let family = if network.ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&1u32.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&[family as u8, network.prefix, 0, 0]);
    bytes.extend_from_slice(&interface.index.to_ne_bytes());
    match network.ip {
        IpAddr::V4(ip) => {
            attribute(&mut bytes, IFA_LOCAL, &ip.octets());
            attribute(&mut bytes, IFA_ADDRESS, &ip.octets());
            if network.prefix < 31 {
                let hosts = u32::MAX.checked_shr(u32::from(network.prefix)).unwrap_or(0);
                attribute(&mut bytes, IFA_BROADCAST, &(u32::from(ip) | hosts).to_be_bytes());
            }
        }
        IpAddr::V6(ip) => {
            attribute(&mut bytes, IFA_LOCAL, &ip.octets());
            attribute(&mut bytes, IFA_ADDRESS, &ip.octets());
            attribute(&mut bytes, IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
        }
    }
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

fn attribute(bytes: &mut Vec<u8>, kind: u16, data: &[u8]) {
    bytes.extend_from_slice(&((4 + data.len()) as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Sends one message, and takes the acknowledgement.
fn exchange(message: &[u8]) -> io::Result<()> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: memory that lives until the call returns, and its length.
    if unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut buffer = [0u8; 4096];
    loop {
        // SAFETY: as above.
        let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if length >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // The only answer to one request with NLM_F_ACK: an error, or zero.
    let errno = i32::from_ne_bytes([buffer[HEADER], buffer[HEADER + 1], buffer[HEADER + 2], buffer[HEADER + 3]]);
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-errno)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_shown() {
        for text in ["10.0.0.10/24", "0.0.0.0/0", "fd00::10/64", "10.0.0.1/32"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        for text in ["10.0.0.10", "10.0.0.10/33", "fd00::/129", "x/8", "10.0.0.1/", "10.0.0.1/+8", "10.0.0.1/8/8"] {
            assert_eq!(text.parse::<Network>(), Err(()), "{text}");
        }
    }

    #[test]
    fn this_machine_has_a_loopback() {
        let lo = interface("lo").unwrap();
        assert_eq!((lo.index > 0, lo.mac), (true, None));
        assert_eq!(interface("nothing0").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
