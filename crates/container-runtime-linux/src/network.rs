//! How a guest's NICs are set up.

use container_api::network::Mac;
use container_api::runtime::{GuestInterface, GuestNetwork};
use std::net::IpAddr;

use vminitd_protocol::message::{Address, Call, ConfigureNetwork, Interface};

/// Sets them up; `None` when the container has no network.
pub fn configure(network: Option<&GuestNetwork>) -> Option<Call> {
    let interfaces = &network?.interfaces;
    (!interfaces.is_empty()).then(|| call(interfaces))
}

/// Sets one up and takes it down again, so that a spare has gone through it before. The addresses
/// are those of documents (RFC 5737, RFC 3849).
pub fn warm_up() -> [Call; 2] {
    let address = |text: &str| text.parse().expect("a constant");
    let interface = GuestInterface {
        mac_address: Mac([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        addresses: vec![address("192.0.2.2/24"), address("2001:db8::2/64")],
        gateways: ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().expect("a constant")).into(),
    };
    [call(&[interface]), call(&[])]
}

fn call(interfaces: &[GuestInterface]) -> Call {
    let interfaces = interfaces.iter().map(interface).collect();
    Call::ConfigureNetwork(ConfigureNetwork { interfaces })
}

fn interface(interface: &GuestInterface) -> Interface {
    let addresses = interface
        .addresses
        .iter()
        .map(|net| Address { ip: bytes(net.addr()), prefix_len: net.prefix_len().into() });
    Interface {
        mac: interface.mac_address.0.to_vec(),
        mtu: interface.mtu,
        addresses: addresses.collect(),
        gateways: interface.gateways.iter().copied().map(bytes).collect(),
    }
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_interfaces_nothing_is_asked() {
        assert_eq!(configure(None), None);
        assert_eq!(configure(Some(&GuestNetwork::default())), None);
    }

    #[test]
    fn both_families_are_told() {
        let [up, down] = warm_up();
        let Call::ConfigureNetwork(up) = up else { panic!("{up:?}") };
        let interface = &up.interfaces[0];
        let prefixes: Vec<_> =
            interface.addresses.iter().map(|a| (a.ip.len(), a.prefix_len)).collect();
        assert_eq!(prefixes, [(4, 24), (16, 64)]);
        assert_eq!(interface.gateways[0], [192, 0, 2, 1]);
        assert_eq!(down, Call::ConfigureNetwork(ConfigureNetwork::default()));
    }
}
