//! Frames, made by hand.

use std::net::{Ipv4Addr, Ipv6Addr};

pub type Mac = [u8; 6];
pub const ALL: Mac = [0xff; 6];

pub fn ethernet(to: Mac, from: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), body].concat()
}

fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub fn arp(op: u16, mac: Mac, ip: Ipv4Addr, to_mac: Mac, to: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4];
    [&head[..], &op.to_be_bytes(), &mac, &ip.octets(), &to_mac, &to.octets()].concat()
}

/// `fragment`: the field with flags and offset.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
    let length = (20 + body.len()) as u16;
    let mut head = [0; 20];
    head[0] = 0x45;
    head[2..4].copy_from_slice(&length.to_be_bytes());
    head[4..6].copy_from_slice(&[0x12, 0x34]);
    head[6..8].copy_from_slice(&fragment.to_be_bytes());
    head[8] = 64;
    head[9] = protocol;
    head[12..16].copy_from_slice(&from.octets());
    head[16..20].copy_from_slice(&to.octets());
    let check = sum(&[&head]);
    head[10..12].copy_from_slice(&check.to_be_bytes());
    [&head[..], body].concat()
}

pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, hops: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0][..], &length, &[next, hops], &from.octets(), &to.octets(), body].concat()
}

pub fn udp(from: u16, to: u16, body: &[u8]) -> Vec<u8> {
    let length = (8 + body.len()) as u16;
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], body].concat()
}

pub fn icmp(kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = [&[kind, code, 0, 0][..], body].concat();
    let check = sum(&[&bytes]);
    bytes[2..4].copy_from_slice(&check.to_be_bytes());
    bytes
}

pub fn icmp6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = [&[kind, 0, 0, 0][..], body].concat();
    let length = (bytes.len() as u32).to_be_bytes();
    let check = sum(&[&from.octets(), &to.octets(), &length, &[0, 0, 0, 58], &bytes]);
    bytes[2..4].copy_from_slice(&check.to_be_bytes());
    bytes
}

/// A neighbour message's body: flags, target and one option of a kind with an address.
pub fn nd(flags: u32, target: Ipv6Addr, option: u8, mac: Mac) -> Vec<u8> {
    [&flags.to_be_bytes()[..], &target.octets(), &[option, 1], &mac].concat()
}

pub fn solicited(target: Ipv6Addr) -> Ipv6Addr {
    let octets = target.octets();
    let low = u16::from_be_bytes([octets[14], octets[15]]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(octets[13]), low)
}

pub fn multicast(to: Ipv6Addr) -> Mac {
    let octets = to.octets();
    [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]
}
