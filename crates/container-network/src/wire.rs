//! What the service says to the processes that carry traffic, on sockets in
//! [`container_api::paths::AppRoot::networks`], in Varlink as everywhere.
//!
//! Both kinds hold descriptors of their network's namespaces and give them back on request, so
//! that a service that comes after a killed one finds them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use container_api::network::{Egress, HostAccess, Protocol};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What can be asked of a resolver. It is started ([`crate::service::start::Start`]) with two
/// sockets in the namespace, UDP and TCP port 53 of the gateway's address, for each family.
#[allow(clippy::large_enum_variant, reason = "one is held at a time")]
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "method", content = "parameters")]
pub enum ResolverRequest {
    /// Replaces all it knows. Answer: `()`.
    #[serde(rename = "dev.container.Resolver.Configure")]
    Configure(ResolverConfig),
    /// Answers that egress rules must let through, as progress ([`Pin`]), until the caller goes.
    /// One caller at a time; the newest has it. Without one, names that egress rules allow are
    /// answered with SERVFAIL.
    #[serde(rename = "dev.container.Resolver.Pins")]
    Pins,
    /// The rules let this pin through: the answer may go out. Answer: `()`.
    #[serde(rename = "dev.container.Resolver.Pinned")]
    Pinned {
        /// The pin's.
        sequence: u64,
    },
    /// Answer: `()` with the descriptors of the network and, if there is one, the user namespace.
    #[serde(rename = "dev.container.Resolver.Namespaces")]
    Namespaces,
    /// What was refused, by container. Answer: `Vec<Refused>`.
    #[serde(rename = "dev.container.Resolver.Refused")]
    Refused,
    /// Ends it. Answer: `()`.
    #[serde(rename = "dev.container.Resolver.End")]
    End,
}

/// All that a resolver knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResolverConfig {
    /// The network's name.
    pub network: String,
    /// The gateway's addresses: where the host's names lead.
    pub gateways: Vec<IpAddr>,
    /// Names also resolve below this domain.
    pub domain: Option<String>,
    /// Where other names are asked for; none: NXDOMAIN, as on a host-only network.
    pub upstreams: Vec<SocketAddr>,
    /// Who is on the network.
    pub containers: Vec<Resident>,
    /// Addresses that no answer from outside may contain unless a rule allows them: the host's own.
    pub host_addresses: Vec<IpAddr>,
    /// Further names that lead where `host.container.internal` leads, lower case.
    pub host_names: Vec<String>,
    /// Not empty: this one answers the host itself on its loopback address (all its sockets are
    /// there). For whoever asks, every container's names resolve below these domains, with their
    /// reverse, [`ResolverConfig::host_names`] are the host's loopback address, and there is
    /// nothing else: other names get REFUSED.
    pub host_domains: Vec<String>,
    /// The network's subnets: addresses of nobody are not asked for outside.
    pub subnets: Vec<IpNet>,
}

/// A container as its network's resolver knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resident {
    /// Its id.
    pub container: String,
    /// All its names here, lower case.
    pub names: Vec<String>,
    /// Its address; questions from it are this container's.
    pub ipv4: Option<Ipv4Addr>,
    /// Its address.
    pub ipv6: Option<Ipv6Addr>,
    /// All rules that apply to it: what every one of them allows.
    pub egress: Vec<Egress>,
    /// What of the host it may reach.
    pub host_access: HostAccess,
    /// Whether it may see the other containers' names.
    pub sees_neighbours: bool,
    /// Containers on its other networks: it alone may see their names here.
    pub elsewhere: Vec<Elsewhere>,
}

/// A container on another network of the one that asks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Elsewhere {
    /// Its names there, lower case.
    pub names: Vec<String>,
    /// Its address there.
    pub ipv4: Option<Ipv4Addr>,
    /// Its address there.
    pub ipv6: Option<Ipv6Addr>,
}

/// Addresses that a container has just learned for an allowed name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pin {
    /// To be named in [`ResolverRequest::Pinned`].
    pub sequence: u64,
    /// Whose.
    pub container: String,
    /// The name asked for.
    pub name: String,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// TCP and UDP to these ports alone; empty: all.
    pub ports: Vec<u16>,
    /// How long, in seconds: the answer's TTL within our bounds.
    pub seconds: u32,
}

/// Questions that were refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// Whose.
    pub container: String,
    /// How many.
    pub questions: u64,
    /// The last few names, the newest last.
    #[serde(default)]
    pub names: Vec<String>,
}

/// What can be asked of a forwarder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "method", content = "parameters")]
pub enum ForwarderRequest {
    /// Replaces what it forwards; connections that it has live on. Brings the listening sockets in
    /// the order of the routes. Answer: `()`.
    #[serde(rename = "dev.container.Forwarder.Configure")]
    Configure(ForwarderConfig),
    /// Adds routes, whose listening sockets come with them: a message holds
    /// [`container_api::varlink::MAX_FDS`], a range of ports may be longer. Answer: `()`.
    #[serde(rename = "dev.container.Forwarder.Add")]
    Add(ForwarderConfig),
    /// As [`ResolverRequest::Namespaces`].
    #[serde(rename = "dev.container.Forwarder.Namespaces")]
    Namespaces,
    /// Answer: [`Connections`].
    #[serde(rename = "dev.container.Forwarder.Connections")]
    Connections,
    /// Ends it, and every connection. Answer: `()`.
    #[serde(rename = "dev.container.Forwarder.End")]
    End,
}

/// All that a forwarder forwards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ForwarderConfig {
    /// Whose.
    pub container: String,
    /// One for each listening socket.
    pub routes: Vec<Route>,
}

/// From a listening socket to an address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the socket listens.
    pub listens: Side,
    /// Where it leads, on the other side. Port 0: the one that the client wanted (redirected
    /// packets, `SO_ORIGINAL_DST`); TCP only.
    pub target: SocketAddr,
    /// Asked where the target refuses a TCP connection or can't be reached: a program may listen on
    /// one family alone. Port 0 as in the target.
    #[serde(default)]
    pub fallback: Option<SocketAddr>,
    /// Which ports of the host, where the target's is 0; empty: all.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Whether the container answers anybody over this network, so that a client may be seen there
    /// by its own address.
    #[serde(default)]
    pub keep_client: bool,
}

/// A side of a forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The host's network.
    Host,
    /// The container's network.
    Container,
}

/// What a forwarder has under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// TCP connections open.
    pub tcp: u64,
    /// UDP clients remembered.
    pub udp: u64,
    /// Connections refused for want of descriptors.
    pub refused: u64,
}
