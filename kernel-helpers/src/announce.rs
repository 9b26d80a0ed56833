//! Who has an address, and telling everyone on the link that it is here now: ARP for IPv4, neighbour discovery for IPv6.

use super::address::Interface;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const EVERYONE: [u8; 6] = [0xff; 6];

type Mac = [u8; 6];

/// A socket that sends and receives whole frames of one protocol on one interface.
struct Link {
    socket: OwnedFd,
    mac: Mac,
}

impl Link {
    fn open(interface: Interface, mac: Mac, protocol: u16) -> io::Result<Link> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: numbers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol.to_be())) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just made it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zeros is a value of this plain structure.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = interface.index as i32;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: a structure that lives until the call returns, and its length.
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Link { socket, mac })
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: memory that lives until the call returns, and its length.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next frame that comes until then.
    fn receive(&self, until: Instant) -> io::Result<Option<Vec<u8>>> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, timeout)? == 0 {
            return Ok(None);
        }
        let mut frame = vec![0; 2048];
        // SAFETY: as above.
        let length = unsafe { libc::recv(self.socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        frame.truncate(length as usize);
        Ok(Some(frame))
    }
}

/// Asks so often, and waits so long each time.
const PROBES: u32 = 2;
const PROBE: Duration = Duration::from_millis(100);
const ANNOUNCEMENTS: u32 = 3;
const BETWEEN: Duration = Duration::from_millis(10);

/// Asks the link who has the address: the hardware address of whoever answers. Nobody, where the interface is no Ethernet.
///
/// # Errors
/// Where the kernel lets nothing be sent there.
pub fn who_has(interface: Interface, ip: IpAddr) -> io::Result<Option<String>> {
    let Some(mac) = interface.mac else { return Ok(None) };
    let (link, question) = match ip {
        IpAddr::V4(ip) => (Link::open(interface, mac, ETH_P_ARP)?, arp(1, mac, Ipv4Addr::UNSPECIFIED, [0; 6], ip)),
        IpAddr::V6(ip) => (Link::open(interface, mac, ETH_P_IPV6)?, solicitation(mac, ip)),
    };
    for _ in 0..PROBES {
        link.send(&question)?;
        let until = Instant::now() + PROBE;
        while let Some(frame) = link.receive(until)? {
            let claimed = match ip {
                IpAddr::V4(ip) => claims_v4(&frame, ip),
                IpAddr::V6(ip) => claims_v6(&frame, ip),
            };
            if let Some(other) = claimed.filter(|m| *m != link.mac) {
                let digits: Vec<String> = other.iter().map(|b| format!("{b:02x}")).collect();
                return Ok(Some(digits.join(":")));
            }
        }
    }
    Ok(None)
}

/// Tells everyone on the link that the address is here.
///
/// # Errors
/// Where the kernel lets nothing be sent there.
pub fn announce(interface: Interface, ip: IpAddr) -> io::Result<()> {
    let Some(mac) = interface.mac else { return Ok(()) };
    let (link, frames) = match ip {
        IpAddr::V4(ip) => {
            // Some listen to questions, some to answers.
            let frames = vec![arp(1, mac, ip, [0; 6], ip), arp(2, mac, ip, EVERYONE, ip)];
            (Link::open(interface, mac, ETH_P_ARP)?, frames)
        }
        IpAddr::V6(ip) => (Link::open(interface, mac, ETH_P_IPV6)?, vec![advertisement(mac, ip)]),
    };
    for round in 0..ANNOUNCEMENTS {
        if round > 0 {
            std::thread::sleep(BETWEEN);
        }
        frames.iter().try_for_each(|f| link.send(f))?;
    }
    Ok(())
}

fn ethernet(to: Mac, from: Mac, protocol: u16) -> Vec<u8> {
    [&to[..], &from, &protocol.to_be_bytes()].concat()
}

fn arp(operation: u16, mac: Mac, ip: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(EVERYONE, mac, ETH_P_ARP);
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4]);
    frame.extend_from_slice(&operation.to_be_bytes());
    frame.extend_from_slice(&[&mac[..], &ip.octets(), &target_mac, &target.octets()].concat());
    frame
}

/// Whose hardware address an ARP frame gives for `ip`.
fn claims_v4(frame: &[u8], ip: Ipv4Addr) -> Option<Mac> {
    let arp = frame.get(14..42)?;
    let is_arp = frame[12..14] == ETH_P_ARP.to_be_bytes() && arp[..6] == [0, 1, 8, 0, 6, 4];
    (is_arp && arp[14..18] == ip.octets()).then(|| arp[8..14].try_into().ok()).flatten()
}

fn icmpv6(mac: Mac, to_mac: Mac, from: Ipv6Addr, to: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let length = message.len() as u16;
    let pseudo = [&from.octets()[..], &to.octets(), &u32::from(length).to_be_bytes(), &[0, 0, 0, ICMPV6]].concat();
    let sum = checksum(&[&pseudo[..], &message].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(to_mac, mac, ETH_P_IPV6);
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&[ICMPV6, 255]);
    frame.extend_from_slice(&[&from.octets()[..], &to.octets(), &message].concat());
    frame
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn solicitation(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let last = ip.octets();
    let group =
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(last[13]), u16::from_be_bytes([last[14], last[15]]));
    let to_mac = [0x33, 0x33, 0xff, last[13], last[14], last[15]];
    let message = [&[NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &ip.octets()].concat();
    icmpv6(mac, to_mac, Ipv6Addr::UNSPECIFIED, group, message)
}

fn advertisement(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    let everyone = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let head = [NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    let message = [&head[..], &ip.octets(), &[2, 1], &mac].concat();
    icmpv6(mac, [0x33, 0x33, 0, 0, 0, 1], ip, everyone, message)
}

/// Whose hardware address an IPv6 frame gives for `ip`.
fn claims_v6(frame: &[u8], ip: Ipv6Addr) -> Option<Mac> {
    let message = frame.get(54..)?;
    let is_advertisement = frame[12..14] == ETH_P_IPV6.to_be_bytes()
        && frame[20] == ICMPV6
        && message.first() == Some(&NEIGHBOUR_ADVERTISEMENT)
        && message.get(8..24) == Some(&ip.octets()[..]);
    is_advertisement.then(|| frame[6..12].try_into().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn claims_are_understood() {
        let ip = Ipv4Addr::new(10, 0, 0, 10);
        assert_eq!(claims_v4(&arp(2, MAC, ip, [1; 6], Ipv4Addr::new(10, 0, 0, 9)), ip), Some(MAC));
        let question = arp(1, MAC, Ipv4Addr::UNSPECIFIED, [0; 6], ip);
        assert_eq!((question.len(), claims_v4(&question, ip)), (42, None), "a question claims nothing");
        assert_eq!(claims_v4(&question[..41], ip), None);
        let ip: Ipv6Addr = "fd00::10".parse().unwrap();
        assert_eq!(claims_v6(&advertisement(MAC, ip), ip), Some(MAC));
        assert_eq!(claims_v6(&solicitation(MAC, ip), ip), None);
    }

    /// A message with its checksum in it sums up to nothing.
    #[test]
    fn checksums_are_those_of_the_protocol() {
        let ip: Ipv6Addr = "fd00::10".parse().unwrap();
        for frame in [advertisement(MAC, ip), solicitation(MAC, ip)] {
            let length = u16::from_be_bytes([frame[18], frame[19]]);
            let pseudo = [&frame[22..54], &u32::from(length).to_be_bytes(), &[0, 0, 0, ICMPV6]].concat();
            assert_eq!(checksum(&[&pseudo[..], &frame[54..]].concat()), 0);
            assert_eq!(frame.len(), 54 + usize::from(length));
        }
    }
}
