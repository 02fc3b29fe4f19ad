//! What a container may ask of networks, before the network service is asked.

use std::borrow::Cow;

use container_api::apiserver::CreateOptions;
use container_api::escape::escape;
use container_api::network::{
    ContainerNetwork, DEFAULT_NETWORK, Egress, HostAccess, MAX_ATTACHMENTS, NO_NETWORK,
    NetworkChoice, PublishPort,
};
use container_api::network_options::{dns_option, domain, exposed, is_name, nameserver};
use container_api::types::PublishSocket;
use container_api::{ApiError, Result};

/// Most ports of one container, ranges counted port by port: each is a descriptor or two.
const MAX_PORTS: usize = 4096;
/// Most aliases of one container on one network.
const MAX_ALIASES: usize = 64;
/// Most name servers, search domains and options each.
const MAX_DNS: usize = 32;

/// What a container asks for when the configuration says on which network those are that name none
/// (`[network] default`). One that needs a network has the default one, whatever that says.
pub fn configured<'o>(options: &'o CreateOptions, default: &str) -> Cow<'o, CreateOptions> {
    let needed = options.publish_all || needs_network(&options.network);
    let unchanged = default == DEFAULT_NETWORK || default == NO_NETWORK && needed;
    if unchanged || !options.network.networks.is_empty() {
        return Cow::Borrowed(options);
    }
    let choice = NetworkChoice { network: default.to_owned(), ..NetworkChoice::default() };
    let mut options = options.clone();
    options.network.networks.push(choice);
    Cow::Owned(options)
}

/// What a new container's networks come to: the default one where none is named, none where that
/// is asked for.
pub fn resolve(options: &CreateOptions) -> Result<ContainerNetwork> {
    let mut network = options.network.clone();
    let needed = options.publish_all || needs_network(&network);
    check_dns(&network)?;
    let none = |choice: &NetworkChoice| choice.network == NO_NETWORK;
    if network.networks.iter().any(none) {
        let plain = NetworkChoice { network: NO_NETWORK.into(), ..NetworkChoice::default() };
        if network.networks != [plain] {
            return Err(ApiError::invalid("--network none stands alone and has no options"));
        }
        if needed {
            let message = "--network none excludes --publish, --egress and --host-access";
            return Err(ApiError::invalid(message));
        }
        network.networks.clear();
        return Ok(network);
    }
    if network.networks.is_empty() {
        let choice = NetworkChoice { network: DEFAULT_NETWORK.into(), ..NetworkChoice::default() };
        network.networks.push(choice);
    }
    check_choices(&network.networks)?;
    check_ports(&network.published_ports)?;
    Ok(network)
}

fn needs_network(network: &ContainerNetwork) -> bool {
    let egress = network.egress.as_ref().is_some_and(|egress| *egress != Egress::Only(Vec::new()));
    !network.published_ports.is_empty() || egress || network.host_access != HostAccess::Denied
}

fn check_choices(choices: &[NetworkChoice]) -> Result<()> {
    if choices.len() > MAX_ATTACHMENTS {
        let message = format!("a container can be on {MAX_ATTACHMENTS} networks at most");
        return Err(ApiError::invalid(message));
    }
    for (place, choice) in choices.iter().enumerate() {
        let shown: String = choice.network.chars().take(80).collect();
        let shown = escape(&shown);
        if !is_name(&choice.network) {
            return Err(ApiError::invalid(format!("'{shown}' is not a network's name")));
        }
        let before = &choices[..place];
        if before.iter().any(|other| other.network == choice.network) {
            return Err(ApiError::invalid(format!("network '{shown}' is named twice")));
        }
        if choice.aliases.len() > MAX_ALIASES || !choice.aliases.iter().all(|name| is_name(name)) {
            let message = format!("network '{shown}': {MAX_ALIASES} aliases at most, each a name");
            return Err(ApiError::invalid(message));
        }
        let mac = choice.mac_address.filter(|mac| mac.0[0] & 1 == 1 || mac.0 == [0; 6]);
        if let Some(mac) = mac {
            return Err(ApiError::invalid(format!("{mac} is not the address of one interface")));
        }
        let taken = |mac| before.iter().any(|other| other.mac_address == Some(mac));
        if let Some(mac) = choice.mac_address.filter(|mac| taken(*mac)) {
            return Err(ApiError::invalid(format!("{mac} is given twice")));
        }
    }
    Ok(())
}

fn check_ports(ports: &[PublishPort]) -> Result<()> {
    let all: usize = ports.iter().map(|port| usize::from(port.count)).sum();
    if all > MAX_PORTS {
        return Err(ApiError::invalid(format!("{all} ports are published: {MAX_PORTS} at most")));
    }
    for (place, port) in ports.iter().enumerate() {
        let fits = |first: u16| u32::from(first) + u32::from(port.count) <= 1 << 16;
        let host = port.host_port == 0 || fits(port.host_port);
        if port.count == 0 || port.container_port == 0 || !fits(port.container_port) || !host {
            return Err(ApiError::invalid("a published port is out of range"));
        }
        if let Some(other) = ports[..place].iter().find(|other| collide(other, port)) {
            let message = format!(
                "host port {}/{} is published twice",
                port.host_port.max(other.host_port),
                port.protocol
            );
            return Err(ApiError::invalid(message));
        }
    }
    Ok(())
}

/// Whether two published ports want one port of the host.
fn collide(a: &PublishPort, b: &PublishPort) -> bool {
    let overlap = |a: u16, b: u16, a_count: u16, b_count: u16| {
        u32::from(a) < u32::from(b) + u32::from(b_count)
            && u32::from(b) < u32::from(a) + u32::from(a_count)
    };
    a.protocol == b.protocol
        && a.host_address == b.host_address
        && a.host_port > 0
        && b.host_port > 0
        && overlap(a.host_port, b.host_port, a.count, b.count)
}

fn check_dns(network: &ContainerNetwork) -> Result<()> {
    let dns = &network.dns;
    let longest = dns.nameservers.len().max(dns.search.len()).max(dns.options.len());
    if longest > MAX_DNS {
        return Err(ApiError::invalid(format!("more than {MAX_DNS} of one --dns option")));
    }
    for address in &dns.nameservers {
        nameserver(&address.to_string())?;
    }
    if let Some(name) = &dns.domain {
        domain("--dns-domain", name)?;
    }
    for name in &dns.search {
        domain("--dns-search", name)?;
    }
    for option in &dns.options {
        dns_option(option)?;
    }
    if dns.none && (longest > 0 || dns.domain.is_some()) {
        return Err(ApiError::invalid("--no-dns excludes all other --dns options"));
    }
    Ok(())
}

/// Adds what an image exposes and nothing publishes yet, each on any free port of the host. Ports
/// that can't be understood are told.
pub fn publish_all(
    network: &mut ContainerNetwork,
    image_ports: &[String],
    warnings: &mut Vec<String>,
) -> Result<()> {
    for text in image_ports {
        let port = match exposed(text) {
            Ok(port) => port,
            Err(error) => {
                warnings.push(format!("{error}: not published"));
                continue;
            }
        };
        let covered = |there: &PublishPort| {
            let last = |p: &PublishPort| p.container_port + (p.count - 1);
            there.protocol == port.protocol
                && there.container_port <= port.container_port
                && last(there) >= last(&port)
        };
        if !network.published_ports.iter().any(covered) {
            network.published_ports.push(port);
        }
    }
    check_ports(&network.published_ports)
}

/// Sockets to publish.
pub fn check_sockets(sockets: &[PublishSocket]) -> Result<()> {
    for (place, socket) in sockets.iter().enumerate() {
        if !socket.host_path.is_absolute() || !socket.container_path.starts_with('/') {
            return Err(ApiError::invalid("--publish-socket needs absolute paths"));
        }
        if sockets[..place].iter().any(|other| other.host_path == socket.host_path) {
            let path = socket.host_path.display().to_string();
            return Err(ApiError::invalid(format!("{} is published twice", escape(&path))));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use container_api::network_options::{network, publish};

    fn asks(network: &ContainerNetwork) -> Result<ContainerNetwork> {
        resolve(&CreateOptions { network: network.clone(), ..CreateOptions::default() })
    }

    fn choices(texts: &[&str]) -> ContainerNetwork {
        let networks = texts.iter().map(|text| network(text).unwrap()).collect();
        ContainerNetwork { networks, ..ContainerNetwork::default() }
    }

    fn ports(texts: &[&str]) -> ContainerNetwork {
        let published_ports = texts.iter().map(|text| publish(text).unwrap()).collect();
        ContainerNetwork { published_ports, ..ContainerNetwork::default() }
    }

    #[test]
    fn none_is_none_and_nothing_is_the_default() {
        assert!(asks(&choices(&["none"])).unwrap().networks.is_empty());
        for wrong in [&["none", "a"] as &[&str], &["none,mtu=1400"], &["none", "none"]] {
            asks(&choices(wrong)).unwrap_err();
        }
        let mut with_port = ports(&["80:80"]);
        assert_eq!(asks(&with_port).unwrap().networks[0].network, DEFAULT_NETWORK);
        with_port.networks = choices(&["none"]).networks;
        asks(&with_port).unwrap_err();
        let all = |network: &ContainerNetwork| {
            let network = network.clone();
            resolve(&CreateOptions { network, publish_all: true, ..CreateOptions::default() })
        };
        assert_eq!(all(&ContainerNetwork::default()).unwrap().networks.len(), 1);
        all(&choices(&["none"])).unwrap_err();
        let nothing = asks(&ContainerNetwork::default()).unwrap();
        assert_eq!(nothing.networks[0].network, DEFAULT_NETWORK);
    }

    #[test]
    fn the_configuration_says_what_nothing_means() {
        let on = |network: &ContainerNetwork, default: &str| {
            let network = network.clone();
            let asked = CreateOptions { network, ..CreateOptions::default() };
            let found = resolve(&configured(&asked, default)).unwrap().networks;
            found.into_iter().map(|choice| choice.network).collect::<Vec<_>>()
        };
        let nothing = ContainerNetwork::default();
        assert_eq!(on(&nothing, DEFAULT_NETWORK), [DEFAULT_NETWORK]);
        assert_eq!(on(&nothing, "corp"), ["corp"]);
        assert!(on(&nothing, NO_NETWORK).is_empty());
        assert_eq!(on(&ports(&["80:80"]), NO_NETWORK), [DEFAULT_NETWORK]);
        assert_eq!(on(&ports(&["80:80"]), "corp"), ["corp"]);
        assert_eq!(on(&choices(&["back"]), "corp"), ["back"]);
        assert!(on(&choices(&["none"]), "corp").is_empty());
    }

    #[test]
    fn choices_must_differ() {
        asks(&choices(&["a", "b", "c", "d", "e"])).unwrap();
        for wrong in [
            &["a", "b", "c", "d", "e", "f"] as &[&str],
            &["a", "a"],
            &["a,mac=01:00:00:00:00:01"],
            &["a,mac=00:00:00:00:00:00"],
            &["a,mac=02:00:00:00:00:01", "b,mac=02:00:00:00:00:01"],
        ] {
            asks(&choices(wrong)).expect_err(&format!("{wrong:?}"));
        }
        let mut hostile = choices(&["a"]);
        hostile.networks[0].network = "n".repeat(300);
        assert!(asks(&hostile).unwrap_err().message.len() < 200);
    }

    #[test]
    fn ports_must_differ() {
        asks(&ports(&["80:80", "80:80/udp", "127.0.0.1:80:80", "0:1", "0:1"])).unwrap();
        for wrong in [&["80:80", "80:81"] as &[&str], &["80-90:80-90", "85:1"], &["1-5000:1-5000"]]
        {
            asks(&ports(wrong)).expect_err(&format!("{wrong:?}"));
        }
    }

    #[test]
    fn what_an_image_exposes_is_published_once() {
        let mut network = ports(&["8080:80"]);
        let mut warnings = Vec::new();
        let exposed = ["80/tcp", "80/udp", "443", "x"].map(String::from);
        publish_all(&mut network, &exposed, &mut warnings).unwrap();
        let all: Vec<_> =
            network.published_ports.iter().map(|p| (p.host_port, p.container_port)).collect();
        assert_eq!(all, [(8080, 80), (0, 80), (0, 443)]);
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn lines_of_a_file_stay_lines() {
        let mut network = ContainerNetwork::default();
        network.dns.search = vec!["a\nnameserver 1.1.1.1".into()];
        asks(&network).unwrap_err();
        network.dns.search = vec!["a".into()];
        network.dns.none = true;
        asks(&network).unwrap_err();
    }
}
