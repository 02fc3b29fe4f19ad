//! In a network namespace of the test's own, with bridges in place of NICs.

use super::*;
use std::process::Command;

const AGAIN: &str = "VMINITD_TEST_IN_NAMESPACE";

/// Whether this process has a network of its own; else the test runs once more in one that has.
fn in_namespace(test: &str) -> bool {
    if std::env::var_os(AGAIN).is_some() {
        return true;
    }
    let mut again = Command::new("unshare");
    again.args(["--map-root-user", "--net"]).arg(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture"]).env(AGAIN, "1");
    let output = again.output().expect("unshare (package util-linux)");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
    false
}

fn ip(arguments: &str) -> String {
    let command = Command::new("ip").args(arguments.split(' ')).output().expect("ip (iproute2)");
    assert!(command.status.success(), "{arguments}: {}", String::from_utf8_lossy(&command.stderr));
    String::from_utf8(command.stdout).unwrap()
}

fn interface(last: u8) -> Interface {
    let mut v6 = vec![0xfd, 0, 0, 0, 0, 0, 0, last];
    v6.resize(15, 0);
    v6.push(2);
    Interface {
        mac: vec![2, 0, 0, 0, 0, last],
        mtu: 1400 + u32::from(last),
        addresses: vec![
            Address { ip: vec![10, 0, last, 2], prefix_len: 24 },
            Address { ip: v6, prefix_len: 64 },
        ],
        gateways: Vec::new(),
    }
}

#[test]
fn nics_are_as_the_last_request_says() {
    if !in_namespace("network::tests::nics_are_as_the_last_request_says") {
        return;
    }
    let mut network = Network::default();
    // Nothing is there, and nothing is asked for.
    network.configure(&ConfigureNetwork::default()).unwrap();

    ip("link add first type bridge");
    ip("link add eth0 address 02:00:00:00:00:02 type bridge");
    ip("link add other address 02:00:00:00:00:03 type bridge");
    let mut one = interface(1);
    let mut gateway = one.addresses[1].ip.clone();
    gateway[15] = 1;
    one.gateways = vec![vec![10, 0, 1, 1], gateway];
    // Not in the order in which the kernel has them.
    let request = ConfigureNetwork { interfaces: vec![one, interface(3), interface(2)] };
    network.configure(&request).unwrap();
    let links = ip("-o link");
    for (name, last) in [("eth0", 1), ("eth1", 3), ("eth2", 2)] {
        let line = links.lines().find(|line| line.contains(&format!(": {name}: "))).expect(name);
        assert!(line.contains(&format!("02:00:00:00:00:0{last}")), "{line}");
        assert!(line.contains(&format!("mtu 140{last} ")) && line.contains(",UP"), "{line}");
        let addresses = ip(&format!("-o address show dev {name}"));
        assert!(addresses.contains(&format!("10.0.{last}.2/24 brd 10.0.{last}.255")));
        assert!(addresses.contains(&format!("fd00:0:0:{last}::2/64")), "{addresses}");
        assert!(addresses.contains(&format!("fe80::ff:fe00:{last}/64")), "{addresses}");
        assert!(!addresses.contains("tentative"), "{addresses}");
    }
    assert!(ip("route show default").starts_with("default via 10.0.1.1 dev eth0"));
    assert!(ip("-6 route show default").starts_with("default via fd00:0:0:1::1 dev eth0"));

    // Other addresses: nothing of the old ones stays.
    let mut again = interface(7);
    again.gateways = vec![vec![10, 0, 7, 1]];
    network.configure(&ConfigureNetwork { interfaces: vec![again] }).unwrap();
    let addresses = ip("-o address show");
    assert!(!addresses.contains("10.0.1.") && !addresses.contains("10.0.3."), "{addresses}");
    assert!(addresses.contains("10.0.7.2/24") && !addresses.contains("fd00:0:0:1:"));
    assert!(ip("route show default").starts_with("default via 10.0.7.1 dev eth0"));
    assert_eq!(ip("-6 route show default"), "");
    assert!(ip("-o link show dev eth0").contains("02:00:00:00:00:07"));
    assert!(!ip("-o link show dev eth1").contains(",UP"));

    // Without a network it is down, also after a look ahead, and as usable as before.
    network.configure(&ConfigureNetwork::default()).unwrap();
    network.look();
    assert!(!ip("-o link").contains(",UP"));
    assert_eq!(ip("-o address show dev eth0"), "");
    network.configure(&ConfigureNetwork { interfaces: vec![interface(7)] }).unwrap();
    let addresses = ip("-o address show dev eth0");
    assert!(addresses.contains("10.0.7.2/24") && addresses.contains("fe80::ff:fe00:7/64"));

    // As where the kernel has no IPv6.
    let mut both = interface(4);
    both.gateways = vec![vec![10, 0, 4, 1], both.addresses[1].ip.clone()];
    network.set_up(&ipv4_of(&ConfigureNetwork { interfaces: vec![both] })).unwrap();
    assert!(ip("-4 -o address show dev eth0").contains("10.0.4.2/24"));
    assert_eq!(ip("-6 -o address show dev eth0") + &ip("-6 route show default"), "");
    assert!(ip("route show default").starts_with("default via 10.0.4.1 dev eth0"));

    // What can't be is told with its reason, and undone by the next request.
    let mut lost = interface(1);
    lost.gateways = vec![vec![192, 0, 2, 1]];
    let failure = network.configure(&ConfigureNetwork { interfaces: vec![lost] }).unwrap_err();
    let told = failure.to_string();
    assert!(told.contains("192.0.2.1") && told.contains("unreachable"), "{told}");
    network.configure(&ConfigureNetwork::default()).unwrap();
    assert!(network.is_empty());
    assert_eq!(ip("-4 -o address show"), "");
    assert_eq!(ip("-6 -o address show"), "");
    assert!(!ip("-o link").contains(",UP"));
}

#[test]
fn a_nic_may_be_late() {
    if !in_namespace("network::tests::a_nic_may_be_late") {
        return;
    }
    ip("link add eth0 type bridge");
    let request = ConfigureNetwork { interfaces: vec![interface(1), interface(2)] };
    let plugs = std::thread::spawn(|| {
        sleep(Duration::from_millis(100));
        ip("link add late address 02:00:00:00:00:02 type bridge");
    });
    Network::default().configure(&request).unwrap();
    plugs.join().unwrap();
    assert!(ip("-o address show dev eth1").contains("10.0.2.2/24"));
}

#[test]
fn the_first_nic_is_the_oldest_whatever_its_address() {
    let nic = |index, mac: u8| Nic { index, name: String::new(), mac: vec![2, 0, 0, 0, 0, mac] };
    let interfaces = [interface(1), interface(2)];
    // The second's address is also the one that the first came with.
    let found = assign(&[nic(2, 2), nic(3, 2)], &interfaces).unwrap();
    assert_eq!(found.iter().map(|nic| nic.index).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(assign(&[], &interfaces), Err(0));
    assert_eq!(assign(&[nic(2, 2), nic(3, 9)], &interfaces), Err(1));
    assert_eq!(assign(&[nic(2, 2)], &[]), Ok(vec![]));
}
