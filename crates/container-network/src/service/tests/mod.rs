//! The service with a kernel and processes that stand in for the real ones.

mod fake;
mod flow;
mod invariants;

use container_api::network::{
    Attachment, ContainerNetwork, Egress, HostAccess, Mac, Mode, NetworkConfig,
};
use container_api::types::Timestamp;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::service::records::Record;
use crate::service::subnet;

/// A NAT network.
pub fn network(name: &str, v4: &str, v6: &str) -> NetworkConfig {
    let (ipv4_subnet, ipv6_subnet): (Ipv4Net, Ipv6Net) = (v4.parse().unwrap(), v6.parse().unwrap());
    NetworkConfig {
        id: name.into(),
        mode: Mode::Nat,
        ipv4_subnet,
        ipv4_gateway: subnet::gateway_v4(ipv4_subnet),
        ipv6_subnet,
        ipv6_gateway: subnet::gateway_v6(ipv6_subnet),
        isolated: false,
        mtu: 1500,
        egress: Egress::Allow,
        host_access: HostAccess::Denied,
        labels: Default::default(),
        creation_date: Timestamp::now(),
    }
}

/// A container with the addresses at these places of these networks.
pub fn record(container: &str, places: &[(&NetworkConfig, u8)]) -> Record {
    let attachment = |(config, place): &(&NetworkConfig, u8)| {
        let v4 = u32::from(config.ipv4_subnet.network()) + u32::from(*place);
        let v6 = u128::from(config.ipv6_subnet.network()) + u128::from(*place);
        Attachment {
            container: container.into(),
            network: config.id.clone(),
            hostname: container.into(),
            aliases: Vec::new(),
            ipv4_address: Ipv4Net::new(v4.into(), config.ipv4_subnet.prefix_len()).unwrap(),
            ipv4_gateway: config.ipv4_gateway,
            ipv6_address: Ipv6Net::new(v6.into(), config.ipv6_subnet.prefix_len()).unwrap(),
            ipv6_gateway: config.ipv6_gateway,
            default_route: true,
            mac_address: Mac([2, 0, 0, 0, 0, *place]),
            mtu: 1500,
        }
    };
    Record {
        container: container.into(),
        hostname: container.into(),
        options: ContainerNetwork::default(),
        attachments: places.iter().map(attachment).collect(),
        ports: Vec::new(),
        redirects: Default::default(),
        sequence: 0,
    }
}
