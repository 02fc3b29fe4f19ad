//! What a guest is told of its networks: interfaces, `/etc/hosts`, `/etc/resolv.conf`.

use std::fmt::Write;
use std::net::IpAddr;

use container_api::network::{Attached, Attachment, DnsOptions};
use container_api::runtime::{GuestInterface, GuestNetwork};
use container_api::types::ContainerConfig;
use ipnet::IpNet;

/// Names that every container knows.
const LOCALHOST: &str = "\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
";

/// All of it, for a container that is attached.
pub fn network(config: &ContainerConfig, attached: &Attached) -> GuestNetwork {
    let dns = &config.network.dns;
    let domain = dns.domain.as_deref().or(attached.domain.as_deref());
    GuestNetwork {
        interfaces: attached.attachments.iter().map(interface).collect(),
        hosts: hosts(&config.hostname, domain, &attached.attachments),
        resolv_conf: (!dns.none).then(|| resolv_conf(dns, domain, &attached.nameservers)),
    }
}

fn interface(attachment: &Attachment) -> GuestInterface {
    let gateways = match attachment.default_route {
        true => vec![attachment.ipv4_gateway.into(), attachment.ipv6_gateway.into()],
        false => Vec::new(),
    };
    GuestInterface {
        mac_address: attachment.mac_address,
        mtu: attachment.mtu,
        addresses: vec![IpNet::V4(attachment.ipv4_address), IpNet::V6(attachment.ipv6_address)],
        gateways,
    }
}

fn hosts(hostname: &str, domain: Option<&str>, attachments: &[Attachment]) -> String {
    let mut text = LOCALHOST.to_owned();
    // The full name is the first one, as `hostname -f` wants it.
    let names = match domain {
        Some(domain) => format!("{hostname}.{domain} {hostname}"),
        None => hostname.to_owned(),
    };
    for attachment in attachments {
        let addresses: [IpAddr; 2] =
            [attachment.ipv4_address.addr().into(), attachment.ipv6_address.addr().into()];
        for address in addresses {
            let _ = writeln!(text, "{address}\t{names}");
        }
    }
    text
}

fn resolv_conf(dns: &DnsOptions, domain: Option<&str>, nameservers: &[IpAddr]) -> String {
    let mut text = String::new();
    let nameservers = match dns.nameservers.is_empty() {
        true => nameservers,
        false => &dns.nameservers,
    };
    for nameserver in nameservers {
        let _ = writeln!(text, "nameserver {nameserver}");
    }
    // `domain` and `search` exclude each other: the last one wins.
    let mut search: Vec<&str> = domain.into_iter().collect();
    for name in &dns.search {
        if !search.contains(&&**name) {
            search.push(name);
        }
    }
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::config;

    fn attachment(network: &str, last: u8, default_route: bool) -> Attachment {
        Attachment {
            container: "web".into(),
            network: network.into(),
            hostname: "web".into(),
            aliases: Vec::new(),
            ipv4_address: format!("192.168.64.{last}/24").parse().unwrap(),
            ipv4_gateway: "192.168.64.1".parse().unwrap(),
            ipv6_address: format!("fd00::{last}/64").parse().unwrap(),
            ipv6_gateway: "fd00::1".parse().unwrap(),
            default_route,
            mac_address: "02:00:00:00:00:01".parse().unwrap(),
            mtu: 1500,
        }
    }

    fn attached() -> Attached {
        Attached {
            attachments: vec![attachment("a", 2, true), attachment("b", 3, false)],
            nameservers: vec!["192.168.64.1".parse().unwrap()],
            domain: Some("test".into()),
            ..Attached::default()
        }
    }

    #[test]
    fn a_guest_with_two_networks() {
        let network = network(&config("web"), &attached());
        assert_eq!(network.interfaces.len(), 2);
        assert_eq!(network.interfaces[0].gateways.len(), 2);
        assert!(network.interfaces[1].gateways.is_empty());
        assert!(network.hosts.starts_with("127.0.0.1\tlocalhost\n"));
        for line in ["192.168.64.2\tweb.test web", "fd00::2\tweb.test web", "fd00::3\tweb.test web"]
        {
            assert!(network.hosts.lines().any(|l| l == line), "{line}: {}", network.hosts);
        }
        let text = network.resolv_conf.unwrap();
        assert_eq!(text, "nameserver 192.168.64.1\nsearch test\n");
    }

    #[test]
    fn what_the_user_says_of_names_wins() {
        let mut config = config("web");
        config.network.dns = DnsOptions {
            nameservers: vec!["9.9.9.9".parse().unwrap(), "2620:fe::fe".parse().unwrap()],
            domain: Some("corp".into()),
            search: vec!["corp".into(), "lab".into()],
            options: vec!["ndots:2".into(), "edns0".into()],
            none: false,
        };
        let told = network(&config, &attached());
        assert_eq!(
            told.resolv_conf.unwrap(),
            "nameserver 9.9.9.9\nnameserver 2620:fe::fe\nsearch corp lab\noptions ndots:2 edns0\n"
        );
        assert!(told.hosts.contains("192.168.64.2\tweb.corp web\n"));
        config.network.dns.none = true;
        assert_eq!(network(&config, &attached()).resolv_conf, None);
    }
}
