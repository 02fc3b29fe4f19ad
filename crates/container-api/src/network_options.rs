//! How a user writes what [`crate::network`] holds: `--network`, `--publish`, `--egress`,
//! `--host-access`, `--dns…`, `--publish-socket`.
//!
//! All of it is text to types: nothing is looked up, nothing is resolved.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::Path;

use ipnet::IpNet;

use crate::escape::escape;
use crate::network::{
    Egress, HostAccess, MAX_NAME, MTU, Mac, NetworkChoice, Protocol, PublishPort, Target,
};
use crate::types::PublishSocket;
use crate::{ApiError, Result};

/// Longest domain name in bytes, without the last dot (RFC 1035).
const MAX_DOMAIN: usize = 253;
/// Most bytes of a unix socket's address.
const MAX_SOCKET: usize = 107;
/// How much of a wrong word is shown.
const SHOWN: usize = 80;

fn wrong(flag: &str, text: &str, why: impl std::fmt::Display) -> ApiError {
    let shown: String = text.chars().take(SHOWN).collect();
    let more = if shown.len() < text.len() { "…" } else { "" };
    ApiError::invalid(format!("{flag} {}{more}: {why}", escape(&shown)))
}

/// Whether `text` may be the name of a network, a container or an alias.
pub fn is_name(text: &str) -> bool {
    let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    text.len() <= MAX_NAME
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(letters)
}

/// Whether `text` is a domain name, without a dot at its end.
pub fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=MAX_NAME).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    text.len() <= MAX_DOMAIN && text.split('.').all(label)
}

/// `--network NAME[,mac=…][,mtu=…][,ip=…][,alias=…]`; `ip` and `alias` may be repeated.
pub fn network(text: &str) -> Result<NetworkChoice> {
    let wrong = |why: &str| wrong("--network", text, why);
    let mut words = text.split(',');
    let name = words.next().unwrap_or_default();
    if !is_name(name) {
        return Err(wrong("not a network's name"));
    }
    let mut choice = NetworkChoice { network: name.into(), ..NetworkChoice::default() };
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| wrong("KEY=VALUE is needed"))?;
        match key {
            "mac" if choice.mac_address.is_some() => return Err(wrong("two of mac")),
            "mac" => choice.mac_address = Some(value.parse::<Mac>().map_err(|e| wrong(&e))?),
            "mtu" if choice.mtu.is_some() => return Err(wrong("two of mtu")),
            "mtu" => choice.mtu = Some(mtu(value).map_err(|e| wrong(&e))?),
            "ip" => choice.addresses.push(value.parse().map_err(|_| wrong("not an address"))?),
            "alias" if is_name(value) => choice.aliases.push(value.to_ascii_lowercase()),
            "alias" => return Err(wrong("not a name")),
            _ => return Err(wrong("mac, mtu, ip and alias are known")),
        }
    }
    for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        if choice.addresses.iter().filter(|address| family(address)).count() > 1 {
            return Err(wrong("two addresses of one family"));
        }
    }
    Ok(choice)
}

/// A value of `mtu`.
pub fn mtu(text: &str) -> std::result::Result<u32, String> {
    text.parse().ok().filter(|mtu| MTU.contains(mtu)).ok_or_else(|| {
        format!("'{}' is not an MTU from {} to {}", escape(text), MTU.start(), MTU.end())
    })
}

/// `--publish [[HOST-IP:]HOST-PORT[-LAST]:]PORT[-LAST][/tcp|udp]`. Without a port of the host, or
/// with 0, it is any that is free.
pub fn publish(text: &str) -> Result<PublishPort> {
    let wrong = |why: &str| wrong("--publish", text, why);
    let (ports, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return Err(wrong("the protocol is tcp or udp")),
    };
    let (address, ports) = match ports.strip_prefix('[') {
        Some(rest) => {
            let (inside, ports) = rest.split_once("]:").ok_or_else(|| wrong("']:' is missing"))?;
            (Some(inside), ports)
        }
        None => match ports.rsplit_once(':').and_then(|(before, _)| before.rsplit_once(':')) {
            Some((address, _)) => (Some(address), &ports[address.len() + 1..]),
            None => (None, ports),
        },
    };
    let in_brackets = text.starts_with('[');
    let host_address = match address {
        None => None,
        Some(text) => match text.parse::<IpAddr>() {
            Ok(IpAddr::V6(_)) if !in_brackets => {
                return Err(wrong("an IPv6 address needs brackets: [::1]:80:80"));
            }
            Ok(IpAddr::V4(_)) if in_brackets => return Err(wrong("not an IPv6 address")),
            Ok(address) => Some(address),
            Err(_) => return Err(wrong("not an address of the host")),
        },
    };
    let (host, container) = match ports.rsplit_once(':') {
        Some((host, container)) => (host, container),
        None => ("", ports),
    };
    let container = port_range(container).filter(|range| *range.start() > 0);
    let container = container.ok_or_else(|| wrong("not a port of the container"))?;
    let count = container.end() - container.start();
    let host = match host {
        "" => 0..=0,
        text => port_range(text).ok_or_else(|| wrong("not a port of the host"))?,
    };
    if *host.start() > 0 && host.end() - host.start() != count {
        return Err(wrong("the ranges differ in length"));
    }
    if *host.start() == 0 && *host.end() > 0 {
        return Err(wrong("port 0 is any free one: it begins no range"));
    }
    if count == u16::MAX {
        return Err(wrong("too many ports"));
    }
    Ok(PublishPort {
        host_address,
        host_port: *host.start(),
        container_port: *container.start(),
        count: count + 1,
        protocol,
    })
}

/// `FIRST[-LAST]`.
fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = number(first)?..=number(last)?;
    (!range.is_empty()).then_some(range)
}

/// Digits alone: `parse` takes a `+` too.
fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

/// A port that an image exposes: `80`, `80/tcp`, `8000-8010/udp`.
pub fn exposed(text: &str) -> Result<PublishPort> {
    let published = publish(text).map_err(|_| wrong("the image's port", text, "not a port"))?;
    match published.host_address.is_none() && !text.contains(':') {
        true => Ok(published),
        false => Err(wrong("the image's port", text, "not a port")),
    }
}

/// All `--egress` flags together; `None` when there is none.
pub fn egress<S: AsRef<str>>(texts: &[S]) -> Result<Option<Egress>> {
    let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    if texts.is_empty() {
        return Ok(None);
    }
    if texts.contains(&"allow") {
        return match texts.iter().all(|text| *text == "allow") {
            true => Ok(Some(Egress::Allow)),
            false => Err(ApiError::invalid("--egress allow stands alone: it allows everything")),
        };
    }
    let mut targets = Vec::new();
    for text in texts.into_iter().filter(|text| *text != "deny") {
        let known = text.strip_prefix("allow=");
        let known = known.ok_or_else(|| {
            wrong("--egress", text, "deny, allow, or allow=HOST[:PORT] or allow=CIDR[:PORT]")
        })?;
        let found = target(known).map_err(|why| wrong("--egress", text, why))?;
        if !targets.contains(&found) {
            targets.push(found);
        }
    }
    Ok(Some(Egress::Only(targets)))
}

/// `HOST`, `*.HOST`, an address or a CIDR, each with or without `:PORT`; IPv6 with a port stands
/// in brackets.
fn target(text: &str) -> std::result::Result<Target, &'static str> {
    const NEITHER: &str = "not a host name, an address or a CIDR";
    const PORT: &str = "not a port";
    let port = |text: &str| number(text).filter(|port| *port > 0).ok_or(PORT);
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or("']' is missing")?;
        let net = net(inside)?.filter(|net| matches!(net, IpNet::V6(_))).ok_or(NEITHER)?;
        return match after.strip_prefix(':') {
            Some(text) => Ok(Target::Cidr { net, port: Some(port(text)?) }),
            None if after.is_empty() => Ok(Target::Cidr { net, port: None }),
            None => Err(PORT),
        };
    }
    if let Some(net) = net(text)? {
        return Ok(Target::Cidr { net, port: None });
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, text)) => (host, Some(port(text)?)),
        None => (text, None),
    };
    if let Some(net) = net(host)? {
        return match net {
            IpNet::V4(_) => Ok(Target::Cidr { net, port }),
            IpNet::V6(_) => Err("IPv6 with a port needs brackets: [fd00::/8]:443"),
        };
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let below = name.strip_prefix("*.").unwrap_or(&name);
    // What looks like an address and is none must not become a name.
    let numeric =
        below.split('.').next_back().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    match is_domain(below) && !numeric {
        true => Ok(Target::Host { name, port }),
        false => Err(NEITHER),
    }
}

/// `None`: neither an address nor a CIDR. One with host bits is an error.
fn net(text: &str) -> std::result::Result<Option<IpNet>, &'static str> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Some(IpNet::from(address)));
    }
    match text.parse::<IpNet>() {
        Ok(net) if net.addr() == net.network() => Ok(Some(net)),
        Ok(_) => Err("the address has host bits"),
        Err(_) => Ok(None),
    }
}

/// All `--host-access[=PORT,…]` flags together, a value each or none.
pub fn host_access<S: AsRef<str>>(values: &[Option<S>]) -> Result<HostAccess> {
    let mut ports = Vec::new();
    for value in values {
        let Some(text) = value else { return Ok(HostAccess::All) };
        for word in text.as_ref().split(',') {
            let port = number(word).filter(|port| *port > 0);
            ports.push(port.ok_or_else(|| wrong("--host-access", text.as_ref(), "not ports"))?);
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(if values.is_empty() { HostAccess::Denied } else { HostAccess::Ports(ports) })
}

/// `--dns`: an address of a name server.
pub fn nameserver(text: &str) -> Result<IpAddr> {
    match text.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() || address.is_multicast() => {
            Err(wrong("--dns", text, "no name server can be there"))
        }
        Ok(IpAddr::V6(address)) if link_local(address) => {
            Err(wrong("--dns", text, "a link-local address means nothing in the container"))
        }
        Ok(address) => Ok(address),
        Err(_) => Err(wrong("--dns", text, "not an address")),
    }
}

fn link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

/// `--dns-domain` and `--dns-search`.
pub fn domain(flag: &str, text: &str) -> Result<String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    match is_domain(name) {
        true => Ok(name.to_ascii_lowercase()),
        false => Err(wrong(flag, text, "not a domain name")),
    }
}

/// `--dns-option`: a word of `resolv.conf(5)`'s `options`.
pub fn dns_option(text: &str) -> Result<String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b':');
    match !text.is_empty() && text.len() <= MAX_NAME && text.bytes().all(fits) {
        true => Ok(text.into()),
        false => Err(wrong("--dns-option", text, "not an option such as ndots:2")),
    }
}

/// `--publish-socket HOST:CONTAINER`; both are paths, the host's becomes absolute.
pub fn publish_socket(text: &str) -> Result<PublishSocket> {
    const FLAG: &str = "--publish-socket";
    let (host, container) =
        text.split_once(':').ok_or_else(|| wrong(FLAG, text, "HOST-PATH:CONTAINER-PATH"))?;
    if host.is_empty() || host.contains('\0') {
        return Err(wrong(FLAG, text, "no path on the host"));
    }
    let host_path = std::path::absolute(Path::new(host))
        .map_err(|e| ApiError::from(e).context(format!("{FLAG} {}", escape(host))))?;
    let fits = container.len() <= MAX_SOCKET && !container.contains(['\0', ':']);
    if !container.starts_with('/') || container.ends_with('/') || !fits {
        let why =
            format!("an absolute path of at most {MAX_SOCKET} bytes is needed in the container");
        return Err(wrong(FLAG, text, why));
    }
    Ok(PublishSocket { host_path, container_path: container.into() })
}

#[cfg(test)]
mod tests;
