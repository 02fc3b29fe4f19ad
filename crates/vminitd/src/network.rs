//! The guest's NICs, set up by netlink as the host says.
//!
//! The VM's own NIC comes from a template, so what it is called and which hardware address it has
//! means nothing: it is the first there is. Those that are plugged in later are known by their
//! addresses, and waited for. All are named in the order of the request.

mod netlink;

use crate::failure::{Context, Failure};
use netlink::{Batch, Socket, attribute, attributes};
use nix::errno::Errno;
use nix::libc;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};
use vminitd_protocol::GUEST_NIC_LIMIT;
use vminitd_protocol::message::ErrorCode::{InvalidRequest, Unsupported};
use vminitd_protocol::message::{Address, ConfigureNetwork, Interface};

/// Something new; it is an error when it is there.
const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
/// Between two looks for a NIC.
const STEP: Duration = Duration::from_millis(2);
/// From `linux/if_addr.h`, of `ifa_flags`.
const IFA_F_NODAD: u8 = 0x02;
/// From `linux/if_link.h`.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
/// Whether the kernel has IPv6.
static HAS_IPV6: LazyLock<bool> = LazyLock::new(|| Path::new("/proc/net/if_inet6").exists());
/// From `linux/if_arp.h`.
const ARPHRD_ETHER: u16 = 1;

/// What was set up so far.
#[derive(Debug, Default)]
pub struct Network {
    done: Vec<Done>,
    /// The first NIC, once it was seen: a clone need not look for what its template has found.
    first: Option<Nic>,
}

/// What must be undone of a NIC before it is set up otherwise.
#[derive(Debug)]
struct Done {
    index: u32,
    addresses: Vec<Address>,
}

/// A NIC that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Nic {
    index: u32,
    name: String,
    mac: Vec<u8>,
}

impl Network {
    /// Whether nothing is set up, so that a request without interfaces has nothing to do.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Looks for the first NIC ahead. None is no error. It stays down: a container without a
    /// network may find it.
    pub fn look(&mut self) {
        let nics = Socket::open().internal("").and_then(|socket| nics(&socket));
        self.first = nics.ok().and_then(|nics| nics.into_iter().next());
    }

    /// Has the NICs be as the request says and as no former one did. A kernel without IPv6 gets
    /// what there is of IPv4.
    pub fn configure(&mut self, request: &ConfigureNetwork) -> Result<(), Failure> {
        match *HAS_IPV6 {
            true => self.set_up(request),
            false => self.set_up(&ipv4_of(request)),
        }
    }

    fn set_up(&mut self, request: &ConfigureNetwork) -> Result<(), Failure> {
        let socket = Socket::open().internal("open a netlink socket")?;
        self.undo(&socket)?;
        // Until all is done, nobody knows what it is called.
        let first = self.first.take();
        let nics = match (&first, &request.interfaces[..]) {
            (Some(first), [_]) => vec![first.clone()],
            (_, interfaces) => find(&socket, interfaces)?,
        };
        let mut steps = Steps::default();
        steps.rename(&nics);
        for (nic, interface) in nics.iter().zip(&request.interfaces) {
            let mut addresses = interface.addresses.clone();
            if addresses.iter().any(|address| address.ip.len() == 16) {
                addresses.extend(link_local(&interface.mac));
            }
            steps.set_up(nic.index, interface, &addresses);
            self.done.push(Done { index: nic.index, addresses });
        }
        // Behind all addresses: a gateway must be on some NIC's network.
        for (nic, interface) in nics.iter().zip(&request.interfaces) {
            for gateway in &interface.gateways {
                steps.route(nic.index, gateway);
            }
        }
        steps.take(&socket, &[])?;
        let named = nics.into_iter().next().map(|nic| Nic { name: "eth0".into(), ..nic });
        self.first = named.or(first);
        Ok(())
    }

    /// Takes everything back. What has gone with its NIC is no error.
    fn undo(&mut self, socket: &Socket) -> Result<(), Failure> {
        let mut steps = Steps::default();
        for Done { index, addresses } in std::mem::take(&mut self.done) {
            // IPv6 addresses and all routes go with the link.
            for address in addresses.iter().filter(|address| address.ip.len() == 4) {
                steps.address("remove", libc::RTM_DELADDR, 0, index, address);
            }
            let down = link_header(index, 0);
            steps.step(format!("take NIC {index} down"), libc::RTM_NEWLINK, 0, &down);
        }
        steps.take(socket, &[Errno::ENODEV, Errno::EADDRNOTAVAIL])
    }
}

/// A request without what only IPv6 needs.
fn ipv4_of(request: &ConfigureNetwork) -> ConfigureNetwork {
    let mut request = request.clone();
    for interface in &mut request.interfaces {
        interface.addresses.retain(|address| family(&address.ip) == libc::AF_INET);
        interface.gateways.retain(|gateway| family(gateway) == libc::AF_INET);
    }
    request
}

/// The NICs of a request, waited for.
fn find(socket: &Socket, interfaces: &[Interface]) -> Result<Vec<Nic>, Failure> {
    let deadline = Instant::now() + GUEST_NIC_LIMIT;
    loop {
        let missing = match assign(&nics(socket)?, interfaces) {
            Ok(found) => return Ok(found),
            Err(missing) => missing,
        };
        if Instant::now() > deadline {
            let message = match missing {
                0 => "the VM has no NIC".to_owned(),
                at => format!("no NIC has the address {}", mac(&interfaces[at].mac)),
            };
            return Err(Failure::new(Unsupported, message));
        }
        sleep(STEP);
    }
}

/// Which NIC is whose, or the first interface without.
fn assign(nics: &[Nic], interfaces: &[Interface]) -> Result<Vec<Nic>, usize> {
    let Some((first, others)) = nics.split_first() else {
        return if interfaces.is_empty() { Ok(Vec::new()) } else { Err(0) };
    };
    let nic = |(at, interface): (usize, &Interface)| match at {
        0 => Ok(first.clone()),
        _ => others.iter().find(|nic| nic.mac == interface.mac).cloned().ok_or(at),
    };
    interfaces.iter().enumerate().map(nic).collect()
}

/// All NICs, the oldest first.
fn nics(socket: &Socket) -> Result<Vec<Nic>, Failure> {
    let mut found = Vec::new();
    socket
        .dump(libc::RTM_GETLINK, &link_header(0, 0), |link| found.extend(nic(link)))
        .internal("list the NICs")?;
    found.sort_by_key(|nic| nic.index);
    Ok(found)
}

/// The NIC that a link's description is of; `None` of the loopback and of devices without
/// hardware.
fn nic(link: &[u8]) -> Option<Nic> {
    let (header, rest) = link.split_at_checked(16)?;
    let mut nic = Nic {
        index: u32::from_ne_bytes(header[4..8].try_into().ok()?),
        name: String::new(),
        mac: Vec::new(),
    };
    let mut has_hardware = u16::from_ne_bytes([header[2], header[3]]) == ARPHRD_ETHER;
    for (kind, value) in attributes(rest) {
        match kind {
            libc::IFLA_ADDRESS => nic.mac = value.to_vec(),
            libc::IFLA_IFNAME => {
                let name = value.strip_suffix(&[0]).unwrap_or(value);
                nic.name = String::from_utf8_lossy(name).into_owned();
            }
            // A test has no other NICs.
            libc::IFLA_LINKINFO if !cfg!(test) => has_hardware = false,
            _ => {}
        }
    }
    has_hardware.then_some(nic)
}

/// Requests, each with what it is for.
#[derive(Default)]
struct Steps {
    batch: Batch,
    what: Vec<String>,
}

impl Steps {
    fn take(&self, socket: &Socket, tolerated: &[Errno]) -> Result<(), Failure> {
        socket.carry_out(&self.batch, tolerated).map_err(|refused| {
            let what = self.what.get(refused.request).cloned().unwrap_or_default();
            Failure { code: InvalidRequest, errno: refused.errno as i32, message: what }
        })
    }

    fn step(&mut self, what: String, kind: u16, flags: i32, header: &[u8]) -> &mut Batch {
        self.what.push(what);
        self.batch.request(kind, flags, header)
    }

    /// Names the NICs in their order. They are down, all of them.
    fn rename(&mut self, nics: &[Nic]) {
        let wrong = |(at, nic): &(usize, &Nic)| nic.name != format!("eth{at}");
        let wrong: Vec<_> = nics.iter().enumerate().filter(wrong).collect();
        // By names that nobody has: one may have another's.
        for prefix in ["nic", "eth"] {
            for (at, nic) in &wrong {
                let name = format!("{prefix}{at}");
                let header = link_header(nic.index, 0);
                let step = self.step(format!("name a NIC {name}"), libc::RTM_NEWLINK, 0, &header);
                step.attribute(libc::IFLA_IFNAME, format!("{name}\0").as_bytes());
            }
        }
    }

    /// Brings a NIC up. It makes no link-local address of its own, which would be tentative for a
    /// second.
    fn set_up(&mut self, index: u32, interface: &Interface, addresses: &[Address]) {
        if *HAS_IPV6 {
            // On its own and ahead: the kernel looks at it last.
            let mode = attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
            let family = attribute(libc::AF_INET6 as u16, &mode);
            let mut header = link_header(index, 0);
            header[12..].fill(0);
            let step = format!("make NIC {index} choose no address");
            self.step(step, libc::RTM_NEWLINK, 0, &header).attribute(libc::IFLA_AF_SPEC, &family);
        }
        let what = format!("bring up the NIC {} with MTU {}", mac(&interface.mac), interface.mtu);
        self.step(what, libc::RTM_NEWLINK, 0, &link_header(index, libc::IFF_UP as u32))
            .attribute(libc::IFLA_ADDRESS, &interface.mac)
            .attribute(libc::IFLA_MTU, &interface.mtu.to_ne_bytes());
        for address in addresses {
            self.address("add", libc::RTM_NEWADDR, CREATE, index, address);
        }
    }

    fn address(&mut self, verb: &str, kind: u16, flags: i32, index: u32, address: &Address) {
        let Address { ip, prefix_len } = address;
        let family = family(ip);
        let flag = if family == libc::AF_INET6 { IFA_F_NODAD } else { 0 };
        let index = index.to_ne_bytes();
        let header = [&[family as u8, *prefix_len as u8, flag, 0], &index[..]].concat();
        let what = format!("{verb} the address {}/{prefix_len}", shown(ip));
        let step = self.step(what, kind, flags, &header);
        step.attribute(libc::IFA_LOCAL, ip).attribute(libc::IFA_ADDRESS, ip);
        if let Some(broadcast) = broadcast(ip, *prefix_len) {
            step.attribute(libc::IFA_BROADCAST, &broadcast);
        }
    }

    fn route(&mut self, index: u32, gateway: &[u8]) {
        let header = [
            family(gateway) as u8,
            0,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_BOOT,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let what = format!("add the default route by {}", shown(gateway));
        self.step(what, libc::RTM_NEWROUTE, CREATE, &header)
            .attribute(libc::RTA_OIF, &index.to_ne_bytes())
            .attribute(libc::RTA_GATEWAY, gateway);
    }
}

/// `ifinfomsg`; only whether the link is up is changed.
fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
    header
}

fn family(ip: &[u8]) -> i32 {
    if ip.len() == 4 { libc::AF_INET } else { libc::AF_INET6 }
}

/// The link-local address that neighbours expect of a hardware address (RFC 4291, appendix A).
fn link_local(mac: &[u8]) -> Option<Address> {
    let &[a, b, c, d, e, f] = mac else { return None };
    let ip = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    Some(Address { ip: ip.to_vec(), prefix_len: 64 })
}

/// The last address of an IPv4 network that has one.
fn broadcast(ip: &[u8], prefix_len: u32) -> Option<[u8; 4]> {
    let ip = u32::from_be_bytes(ip.try_into().ok()?);
    (1..=30).contains(&prefix_len).then(|| (ip | (u32::MAX >> prefix_len)).to_be_bytes())
}

/// An address in its family's notation.
fn shown(ip: &[u8]) -> String {
    let old = <[u8; 4]>::try_from(ip).map(|ip| Ipv4Addr::from(ip).to_string());
    let new = <[u8; 16]>::try_from(ip).map(|ip| Ipv6Addr::from(ip).to_string());
    old.or(new).unwrap_or_default()
}

fn mac(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        let _ = write!(text, "{}{byte:02x}", if at > 0 { ":" } else { "" });
    }
    text
}

#[cfg(test)]
mod tests;
