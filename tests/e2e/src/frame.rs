//! Ethernet frames that no honest guest sends, for attacks from inside one.

use std::net::{Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Everyone.
pub const BROADCAST: Mac = [0xff; 6];
/// All nodes, over IPv6.
pub const ALL_NODES: Mac = [0x33, 0x33, 0, 0, 0, 1];

const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;
const UDP: u8 = 17;

/// A frame with a payload.
pub fn frame(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [&to[..], &from, &ethertype.to_be_bytes(), payload].concat();
    // The least that Ethernet carries.
    bytes.resize(bytes.len().max(60), 0);
    bytes
}

/// An IPv4 packet.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, payload.to_vec()].concat()
}

/// UDP over IPv4.
pub fn udp4(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut datagram = [ports.0, ports.1, length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(payload);
    ipv4(from, to, UDP, &datagram)
}

/// An IPv6 packet whose payload begins with a header of the kind `next`.
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next, 255]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(payload);
    bytes
}

/// ICMPv6, its checksum right: nobody drops it for that.
fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend((message.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, ICMPV6]);
    pseudo.extend(message);
    let sum = checksum(&pseudo);
    let mut message = message.to_vec();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// A message of ICMPv6 in a packet.
pub fn icmp6(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    ipv6(from, to, ICMPV6, &icmpv6(from, to, message))
}

/// The same behind destination options.
pub fn icmp6_behind_options(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    // Six bytes of padding.
    let options = [ICMPV6, 0, 1, 4, 0, 0, 0, 0];
    let payload = [&options[..], &icmpv6(from, to, message)].concat();
    ipv6(from, to, DESTINATION_OPTIONS, &payload)
}

/// The same as the only fragment of itself.
pub fn icmp6_in_fragment(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let fragment = [ICMPV6, 0, 0, 0, 0, 0, 0, 7];
    ipv6(from, to, FRAGMENT, &[&fragment[..], &icmpv6(from, to, message)].concat())
}

/// A router's advertisement of a prefix and of itself.
pub fn router_advertisement() -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0).octets());
    message
}

/// A neighbour's advertisement that `address` is at `mac`.
pub fn neighbour_advertisement(address: Ipv6Addr, mac: Mac) -> Vec<u8> {
    [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &address.octets(), &[2, 1], &mac].concat()
}

/// A redirect of `address` to `better`.
pub fn redirect(address: Ipv6Addr, better: Ipv6Addr) -> Vec<u8> {
    [&[137, 0, 0, 0, 0, 0, 0, 0][..], &better.octets(), &address.octets()].concat()
}

/// An answer over ARP that `address` is at `mac`.
pub fn arp_reply(mac: Mac, address: Ipv4Addr, to: Mac, asked_by: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 2];
    bytes.extend(mac);
    bytes.extend(address.octets());
    bytes.extend(to);
    bytes.extend(asked_by.octets());
    bytes
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_come_out_even() {
        let [a, b] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
        assert_eq!(checksum(&ipv4(a, b, UDP, b"")[..20]), 0);
        let frame = frame(BROADCAST, [2; 6], 0x800, &udp4(a, b, (1, 2), b"x"));
        assert_eq!(frame.len(), 60);
    }
}
