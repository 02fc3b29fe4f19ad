//! `container-network`: networks, addresses, taps, names, published ports, egress.
//!
//! Each network is a network namespace of its own with one bridge; a container has a tap in it.
//! The service's process may end at any time: what carries traffic are processes of their own,
//! which a new service finds again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::types::Timestamp;

/// Name of the service's socket in [`crate::paths::AppRoot::networks`].
pub const SOCKET: &str = "network.sock";
/// The network that a container is on when none is named.
pub const DEFAULT_NETWORK: &str = "default";
/// In place of a network: no network.
pub const NO_NETWORK: &str = "none";
/// The longest answer, that of [`Request::Attach`] on a network that is not up yet included.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Longest name of a network, container name or alias in bytes (RFC 1035, a label).
pub const MAX_NAME: usize = 63;
/// Most networks of one container: its NIC and the four places for hot-plugged devices.
pub const MAX_ATTACHMENTS: usize = 5;
/// The bytes of an interface's MTU that are legal (RFC 8200: IPv6 needs 1280).
pub const MTU: std::ops::RangeInclusive<u32> = 1280..=65_535;

/// What can be asked of `container-network`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "method", content = "parameters")]
pub enum Request {
    /// Makes a network; its namespace is made when the first container comes. Answer: [`Network`].
    #[serde(rename = "dev.container.Network.Create")]
    Create(CreateNetwork),
    /// Removes networks that no container uses (`InUse`); the default one is refused. Answer:
    /// `Vec<String>`, those removed. Nothing is removed when one is refused.
    #[serde(rename = "dev.container.Network.Delete")]
    Delete {
        /// Which.
        names: Vec<String>,
        /// Networks that stopped containers are configured with: refused too.
        in_use: Vec<String>,
    },
    /// Removes all networks that nothing uses, but the default one. Answer: `Vec<String>`.
    #[serde(rename = "dev.container.Network.Prune")]
    Prune {
        /// Networks that containers are configured with.
        in_use: Vec<String>,
    },
    /// Answer: `Vec<Network>`, sorted by name; all when none is named.
    #[serde(rename = "dev.container.Network.List")]
    List {
        /// Which.
        names: Vec<String>,
    },
    /// Checks what a container asks for, without doing anything. Answer: `()`.
    #[serde(rename = "dev.container.Network.Check")]
    Check(ContainerNetwork),
    /// Makes a tap that is on no network yet, for a VM that waits. Answer: [`Parked`] and one
    /// descriptor. It goes with the last descriptor of it.
    #[serde(rename = "dev.container.Network.Park")]
    Park,
    /// Gives a container its addresses, taps, names, rules and published ports: all or nothing.
    /// Answer: [`Attached`] and the descriptors of new taps, one for each attachment (without the
    /// first where `parked` is that).
    #[serde(rename = "dev.container.Network.Attach")]
    Attach(Box<Attach>),
    /// Takes all of that back. One that is not attached is no error. Answer: `()`.
    #[serde(rename = "dev.container.Network.Detach")]
    Detach {
        /// The container's id.
        container: String,
    },
    /// Takes everything back of containers that are not among these, and ends what nobody needs.
    /// Answer: `()`.
    #[serde(rename = "dev.container.Network.Reconcile")]
    Reconcile {
        /// Ids of the containers whose VMs live.
        alive: Vec<String>,
    },
    /// Compares what is recorded, what the kernel has and what runs. Answer:
    /// [`crate::invariants::Findings`].
    #[serde(rename = "dev.container.Network.CheckState")]
    CheckState {
        /// Ids of the containers whose VMs live.
        alive: Vec<String>,
    },
    /// Bytes that a container's NICs have passed. Answer: [`Traffic`].
    #[serde(rename = "dev.container.Network.Traffic")]
    Traffic {
        /// The container's id.
        container: String,
    },
    /// Domains that the host's own resolver asks us for ([`DnsRequest`]). Answer: `Vec<DnsDomain>`
    /// or `()`.
    #[serde(rename = "dev.container.Network.Dns")]
    Dns(DnsRequest),
    /// Ends the service. With `remove` every namespace, bridge, tap, forwarder, resolver, route,
    /// rule and address that it made goes first. Answer: `()`.
    #[serde(rename = "dev.container.Network.Shutdown")]
    Shutdown {
        /// Also what carries traffic.
        remove: bool,
    },
}

/// Where a network leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Out, behind the host's address.
    #[default]
    Nat,
    /// Nowhere but to the other containers on it; published ports answer.
    HostOnly,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Nat => "nat",
            Mode::HostOnly => "host-only",
        })
    }
}

/// A transport protocol.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// What `network create` asks for; what is `None` is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CreateNetwork {
    /// Its name: letters, digits, `_`, `-` and `.`, a letter or digit first, at most [`MAX_NAME`].
    pub name: String,
    /// `--internal` is [`Mode::HostOnly`]; `None`: as the configuration says.
    pub mode: Option<Mode>,
    /// `--subnet`: no host bits, /8 to /29.
    pub subnet: Option<Ipv4Net>,
    /// `--subnet-v6`: no host bits, /48 to /120.
    pub subnet_v6: Option<Ipv6Net>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// Option `isolated`: its containers can't reach each other.
    pub isolated: bool,
    /// Option `mtu`.
    pub mtu: Option<u32>,
    /// `--egress`.
    pub egress: Egress,
    /// `--host-access`.
    pub host_access: HostAccess,
}

/// A network, as it is kept and as `list` and `inspect` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Its name.
    pub id: String,
    /// What it was made with, all chosen.
    pub configuration: NetworkConfig,
    /// `running` while its namespace is up, else `created`.
    pub state: String,
    /// Who is on it.
    #[serde(default)]
    pub attachments: Vec<Attachment>,
    /// What its rules have dropped since its namespace came up, by reason.
    #[serde(default)]
    pub dropped: Vec<Dropped>,
}

/// A network's configuration. JSON names as apple/container's where it has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// Its name.
    pub id: String,
    /// Where it leads.
    pub mode: Mode,
    /// Its IPv4 addresses; the first one is the gateway's.
    pub ipv4_subnet: Ipv4Net,
    /// The gateway, where the resolver listens.
    pub ipv4_gateway: Ipv4Addr,
    /// Its IPv6 addresses.
    pub ipv6_subnet: Ipv6Net,
    /// The gateway.
    pub ipv6_gateway: Ipv6Addr,
    /// Its containers can't reach each other.
    pub isolated: bool,
    /// MTU of its NICs.
    pub mtu: u32,
    /// What its containers may reach outside, unless they say less themselves.
    pub egress: Egress,
    /// What of the host they may reach.
    pub host_access: HostAccess,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub creation_date: Timestamp,
}

/// Packets that were dropped for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Whose; `None`: not one container's.
    pub container: Option<String>,
    /// `egress`, `spoofed`, `host`, `metadata`, `neighbour` …
    pub reason: String,
    /// How many.
    pub packets: u64,
}

/// What may be reached outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// Everything that the network's mode lets out.
    #[default]
    Allow,
    /// These alone; an empty list denies everything.
    Only(Vec<Target>),
}

/// One destination that egress rules allow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A name, exact or `*.` and a name (that name's children, not itself); lower case, without
    /// the last dot.
    Host {
        /// The name.
        name: String,
        /// TCP and UDP to this port alone.
        port: Option<u16>,
    },
    /// Addresses.
    Cidr {
        /// Which.
        net: IpNet,
        /// TCP and UDP to this port alone.
        port: Option<u16>,
    },
}

/// What of the host itself may be reached, at the gateway's address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostAccess {
    /// Nothing; the names of the host don't resolve.
    #[default]
    Denied,
    /// Every TCP port that something listens on at the host's loopback address. UDP is reached
    /// where its ports are named.
    All,
    /// These ports of TCP and UDP.
    Ports(Vec<u16>),
}

/// `--network NAME[,mac=…][,mtu=…][,ip=…][,alias=…]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkChoice {
    /// The network's name.
    pub network: String,
    /// Unicast; `None`: one of ours, locally administered.
    pub mac_address: Option<Mac>,
    /// `None`: the network's.
    pub mtu: Option<u32>,
    /// Fixed addresses within the network's subnets, at most one of a family.
    pub addresses: Vec<IpAddr>,
    /// Further names in the network's resolver.
    pub aliases: Vec<String>,
}

/// An Ethernet address. JSON: `02:00:00:00:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mac({self})")
    }
}

impl std::str::FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let wrong = || format!("{text:?} is not an Ethernet address such as 02:00:00:00:00:01");
        let mut bytes = [0; 6];
        let mut words = text.split([':', '-']);
        for byte in &mut bytes {
            let word = words.next().filter(|word| word.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(word, 16).map_err(|_| wrong())?;
        }
        match words.next() {
            None => Ok(Mac(bytes)),
            Some(_) => Err(wrong()),
        }
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `-p [host-ip:]host-port[-range]:port[-range][/tcp|udp]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishPort {
    /// Where on the host; `None`: the configuration's `publish_address`es.
    pub host_address: Option<IpAddr>,
    /// The first port there; 0: any that is free.
    pub host_port: u16,
    /// The first port in the container.
    pub container_port: u16,
    /// How many ports follow each other; 1 or more.
    pub count: u16,
    /// TCP or UDP.
    #[serde(rename = "proto")]
    pub protocol: Protocol,
}

/// `--dns…`; what is empty is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DnsOptions {
    /// `--dns`: name servers in place of ours.
    pub nameservers: Vec<IpAddr>,
    /// `--dns-domain`.
    pub domain: Option<String>,
    /// `--dns-search`.
    pub search: Vec<String>,
    /// `--dns-option`.
    pub options: Vec<String>,
    /// `--no-dns`: `/etc/resolv.conf` stays the image's.
    pub none: bool,
}

/// All that a container's configuration says of networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerNetwork {
    /// Its networks, the one with the default route first; none: no network.
    pub networks: Vec<NetworkChoice>,
    /// Its published ports.
    pub published_ports: Vec<PublishPort>,
    /// How it resolves names.
    pub dns: DnsOptions,
    /// What it may reach outside; `None`: what its networks allow. A container's own rules apply
    /// in addition to its networks'.
    pub egress: Option<Egress>,
    /// What of the host it may reach, in addition to its networks'.
    pub host_access: HostAccess,
}

/// The answer to [`Request::Park`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// What to call it by.
    pub tap: String,
}

/// See [`Request::Attach`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attach {
    /// The container's id, which is also its first name.
    pub container: String,
    /// Its host name, a name too.
    pub hostname: String,
    /// What it asks for.
    pub options: ContainerNetwork,
    /// The tap of the first attachment, made ahead.
    pub parked: Option<String>,
}

/// The answer to [`Request::Attach`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attached {
    /// In the order asked.
    pub attachments: Vec<Attachment>,
    /// The published ports as they are bound, an entry an address and port.
    pub ports: Vec<BoundPort>,
    /// Name servers for the container.
    pub nameservers: Vec<IpAddr>,
    /// The container's domain, if any.
    pub domain: Option<String>,
    /// Whether the host's names lead somewhere: lines for `/etc/hosts` are not needed, our
    /// resolver knows them.
    pub host_access: bool,
}

/// A container's NIC on a network. JSON names as apple/container's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Whose.
    pub container: String,
    /// Which network.
    pub network: String,
    /// Its name there.
    pub hostname: String,
    /// Further names there.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Address with prefix.
    pub ipv4_address: Ipv4Net,
    /// The gateway; no default route leads there when the network is host-only.
    pub ipv4_gateway: Ipv4Addr,
    /// Address with prefix.
    pub ipv6_address: Ipv6Net,
    /// The gateway.
    pub ipv6_gateway: Ipv6Addr,
    /// Whether a default route leads to the gateways: the first NAT network's.
    pub default_route: bool,
    /// The NIC's address.
    pub mac_address: Mac,
    /// Its MTU.
    pub mtu: u32,
}

/// A port of the host that leads into a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BoundPort {
    /// Address and port on the host.
    pub host: SocketAddr,
    /// The port in the container.
    pub container_port: u16,
    /// TCP or UDP.
    #[serde(rename = "proto")]
    pub protocol: Protocol,
}

/// Bytes of a container's NICs together, seen from the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Received.
    pub rx_bytes: u64,
    /// Sent.
    pub tx_bytes: u64,
}

/// `container system dns`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DnsRequest {
    /// Answer: [`DnsDomain`].
    Create {
        /// The domain.
        domain: String,
        /// `--localhost`: an address that stands for the host's loopback in containers.
        localhost: Option<Ipv4Addr>,
    },
    /// Answer: `()`.
    Delete {
        /// The domain.
        domain: String,
    },
    /// Answer: `Vec<DnsDomain>`.
    List,
}

/// A domain below which containers' names resolve on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsDomain {
    /// The domain.
    pub domain: String,
    /// Where our resolver answers the host.
    pub server: Option<SocketAddr>,
    /// See [`DnsRequest::Create`].
    pub localhost: Option<Ipv4Addr>,
    /// The file of the host's resolver that was written, or what the user has to do.
    pub installed: Option<PathBuf>,
    /// What the user has to do where we may not.
    pub advice: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn macs_round_trip(bytes: [u8; 6]) {
            let mac = Mac(bytes);
            prop_assert_eq!(mac.to_string().parse::<Mac>(), Ok(mac));
        }

        #[test]
        fn mac_parsing_never_panics(text: String) {
            let _ = text.parse::<Mac>();
        }
    }
}
