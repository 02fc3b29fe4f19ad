//! The host's own resolvers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;

/// Most of them: what C libraries read.
const MOST: usize = 3;
/// Longest file read.
const MAX_FILE: u64 = 64 << 10;

/// Those that `resolv.conf` names; without one the host's loopback address, as `resolv.conf(5)` has
/// it.
pub fn of_host(file: &Path) -> Vec<SocketAddr> {
    use std::io::Read;
    let mut text = String::new();
    let read =
        std::fs::File::open(file).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    if let Err(error) = read {
        tracing::debug!(%error, file = %file.display(), "the host names no resolvers");
    }
    let found = parse(&text, |name| nix::net::if_::if_nametoindex(name).ok());
    match found.is_empty() {
        false => found,
        true => vec![(Ipv4Addr::LOCALHOST, 53).into()],
    }
}

fn parse(text: &str, index: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let word = (words.next() == Some("nameserver")).then(|| words.next())??;
        if let Ok(address) = word.parse::<IpAddr>() {
            return Some(SocketAddr::new(address, 53));
        }
        let (address, scope) = word.split_once('%')?;
        let scope = scope.parse().ok().or_else(|| index(scope))?;
        Some(SocketAddrV6::new(address.parse::<Ipv6Addr>().ok()?, 53, 0, scope).into())
    };
    text.lines().filter_map(server).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_usual_file() {
        let text = "# a comment\nsearch lan\nnameserver 127.0.0.53\nnameserver  fe80::1%eth0 # x\n\
                    nameserver\nnameserver nonsense\noptions edns0\nnameserver 2001:db8::1\n\
                    nameserver 192.0.2.1\n";
        let found: Vec<String> = parse(text, |name| (name == "eth0").then_some(4))
            .iter()
            .map(|a| a.to_string())
            .collect();
        assert_eq!(found, ["127.0.0.53:53", "[fe80::1%4]:53", "[2001:db8::1]:53"]);
        let missing = of_host(Path::new("/nonexistent"));
        assert_eq!(missing, [SocketAddr::from(([127, 0, 0, 1], 53))]);
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = parse(&text, |_| None);
        }
    }
}
