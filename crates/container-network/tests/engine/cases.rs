//! What networks carry, and what they don't.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use container_api::network::{Egress, HostAccess, Mode, Protocol, Target};
use container_network::wire::Pin;

use crate::guest::{Raw, Setup, Stack, at, config, contains, plan, port};
use crate::world::{Away, BEYOND, HOST, LAN, METADATA, ask, dial, keep, serve, sh, until, within};

const SOON: Duration = Duration::from_secs(3);
/// For what must not come.
const BRIEF: Duration = Duration::from_millis(300);

fn to(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

fn reaches(guest: &Stack, address: &str, port: u16) -> Option<IpAddr> {
    let address = to(address, port);
    guest.run(move || dial(address, SOON))
}

fn blocked(guest: &Stack, address: &str, port: u16) {
    let address = to(address, port);
    assert_eq!(guest.run(move || dial(address, BRIEF)), None, "{address} over TCP");
    assert!(!guest.run(move || ask(address, BRIEF)), "{address} over UDP");
}

/// Containers reach each other and the internet, IPv4 and IPv6; as root the host reaches them.
pub fn carries(away: &Away) {
    let setup = Setup::new(away);
    let net = config("default", 64, Mode::Nat);
    setup.network(&net);
    let (a, b) = (setup.stack(&net, "a", 2), setup.stack(&net, "b", 3));
    a.run(|| serve(80, None));
    for v6 in [false, true] {
        let address = SocketAddr::new(at(&net, 2, v6), 80);
        assert_eq!(b.run(move || dial(address, SOON)), Some(at(&net, 3, v6)), "neighbours");
        assert!(b.run(move || ask(address, SOON)), "neighbours over UDP");
        let index = usize::from(v6);

        assert_eq!(reaches(&a, BEYOND[index], 80), Some(HOST[index].parse().expect("an address")));
        let far = to(BEYOND[index], 53);
        assert!(a.run(move || ask(far, SOON)), "the internet over UDP");
        let ping = format!("ping -c 1 -W 3 {}", BEYOND[index]);
        a.run(move || sh(&ping));
        let gateway = at(&net, 1, v6);
        a.run(move || sh(&format!("ping -c 1 -W 3 {gateway}")));
        if away.root {
            assert!(dial(address, SOON).is_some(), "from the host");
        }
    }
    let traffic = setup.runtime.block_on(setup.engine.traffic("a")).expect("traffic");
    assert!(traffic.rx_bytes > 1000 && traffic.tx_bytes > 1000, "{traffic:?}");
    for (container, reason) in [("a", "spoofed"), ("b", "spoofed"), ("a", "protocol")] {
        assert_eq!(setup.dropped(&net, container, reason), 0, "{container} {reason}");
    }
    setup.end();
}

/// No service of the host's is reached: at its LAN address, one added later, the gateway, or the
/// uplink's addresses.
pub fn the_host_is_closed(away: &Away) {
    let setup = Setup::new(away);
    let net = config("default", 64, Mode::Nat);
    setup.network(&net);
    let a = setup.stack(&net, "a", 2);
    assert!(reaches(&a, BEYOND[0], 80).is_some());
    let mut addresses = setup.engine.host_addresses();
    let later = ["198.51.100.77", "2001:db8:7::77"];
    // Reached at the internet as long as the host doesn't have it.
    away.command(&format!("internet ip addr add {}/32 dev lo", later[0]));
    assert!(reaches(&a, later[0], 80).is_some());
    away.command(&format!("internet ip addr del {}/32 dev lo", later[0]));
    away.command(&format!("host ip addr add {}/32 dev lo", later[0]));
    away.command(&format!("host ip -6 addr add {}/128 dev lo nodad", later[1]));
    until("the new addresses are known", || {
        let known = addresses.borrow_and_update().clone();
        later.iter().all(|later| known.contains(&later.parse().expect("an address")))
    });
    let own = ["192.0.0.1", "192.0.0.2", "192.0.0.5", "192.0.0.6", "fd63:6f6e:7461:696e::5"];
    let gateways = [at(&net, 1, false).to_string(), at(&net, 1, true).to_string()];
    let all = HOST.iter().chain(&later).chain(&own).copied();
    for address in all.chain(gateways.iter().map(String::as_str)) {
        blocked(&a, address, 7777);
    }
    // The loopback of the host, said from within the guest to the outside.
    a.run(|| {
        sh("ip addr del 127.0.0.1/8 dev lo; ip route del local 127.0.0.0/8 table local || true
            sysctl -qw net.ipv4.conf.all.route_localnet=1; sysctl -qw net.ipv4.conf.eth0.route_localnet=1
            ip route add 127.0.0.0/8 via $(ip route show default | cut -d' ' -f3) src 192.168.64.2")
    });
    blocked(&a, "127.0.0.1", 7777);
    assert_eq!(away.heard(), 0, "the host's service was reached");
    assert!(setup.dropped(&net, "a", "host") > 0);
    setup.end();
}

pub fn metadata_is_closed(away: &Away) {
    let setup = Setup::new(away);
    let net = config("default", 64, Mode::Nat);
    setup.network(&net);
    let a = setup.stack(&net, "a", 2);
    assert!(reaches(&a, BEYOND[0], 80).is_some());
    let _ = away.seen();
    for address in METADATA {
        blocked(&a, address, 80);
    }
    for frame in away.seen() {
        for address in METADATA {
            let bytes = match address.parse().expect("an address") {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            assert!(!contains(&frame, &bytes), "{address} was asked");
        }
    }
    assert!(setup.dropped(&net, "a", "metadata") > 0);
    setup.end();
}

fn host(name: &str) -> Target {
    Target::Host { name: name.to_owned(), port: None }
}

fn cidr(net: &str, port: Option<u16>) -> Target {
    Target::Cidr { net: net.parse().expect("a net"), port }
}

fn pin(address: &str, ports: &[u16], seconds: u32) -> Pin {
    Pin {
        sequence: 1,
        container: "a".to_owned(),
        name: "example.com".to_owned(),
        addresses: vec![address.parse().expect("an address")],
        ports: ports.to_vec(),
        seconds,
    }
}

/// Only what rules name is reached: networks, ports, and addresses while they are pinned.
pub fn egress_rules_hold(away: &Away) {
    let setup = Setup::new(away);
    let net = config("default", 64, Mode::Nat);
    setup.network(&net);
    let attach = |name: &str, number: u8, egress: Vec<Egress>| {
        let port = container_network::engine::Port { egress, ..port(&net, name, number) };
        Stack::new(setup.raw_port(&net, &port), &net)
    };
    let a = attach("a", 2, vec![Egress::Only(vec![host("example.com")]), Egress::Allow]);
    let b = attach(
        "b",
        3,
        vec![Egress::Only(vec![
            cidr("198.51.100.0/30", Some(80)),
            cidr("198.51.100.1/32", Some(80)),
            cidr("2001:db8:1::/64", None),
        ])],
    );
    let c = attach("c", 4, vec![Egress::Only(Vec::new())]);
    let d = attach(
        "d",
        5,
        vec![
            Egress::Only(vec![cidr("198.51.100.0/24", None)]),
            Egress::Only(vec![cidr("198.51.100.2/32", Some(80)), cidr("203.0.113.0/24", None)]),
        ],
    );
    let _ = away.seen();
    for guest in [&a, &c] {
        for address in [BEYOND[0], BEYOND[1], LAN[0]] {
            blocked(guest, address, 53);
        }
    }
    assert!(away.seen().iter().all(|f| !contains(f, &[198, 51, 100, 1])), "nothing left");
    assert!(setup.dropped(&net, "a", "egress") > 0);
    assert!(reaches(&b, BEYOND[0], 80).is_some() && reaches(&b, BEYOND[1], 80).is_some());
    blocked(&b, BEYOND[0], 53);
    blocked(&b, LAN[0], 80);
    assert!(reaches(&d, "198.51.100.2", 80).is_some());
    blocked(&d, "198.51.100.2", 53);
    blocked(&d, BEYOND[0], 80);

    let pinned = |pin: Pin| setup.runtime.block_on(setup.engine.pin("default", &pin)).expect("pin");
    pinned(pin(BEYOND[0], &[80], 60));
    assert!(reaches(&a, BEYOND[0], 80).is_some());
    blocked(&a, BEYOND[0], 53);
    blocked(&c, BEYOND[0], 80);
    pinned(pin(BEYOND[1], &[], 60));
    assert!(reaches(&a, BEYOND[1], 80).is_some());
    // A pin ends; one renewed doesn't; a shorter one shortens nothing.
    pinned(pin("198.51.100.2", &[], 2));
    pinned(pin(BEYOND[0], &[80], 1));
    assert!(reaches(&a, "198.51.100.2", 80).is_some());
    until("the pin ends", || reaches_briefly(&a, "198.51.100.2").is_none());
    assert!(reaches(&a, BEYOND[0], 80).is_some());
    // Of all of that nothing is left.
    for name in ["a", "b", "c", "d"] {
        setup.runtime.block_on(setup.engine.detach("default", name)).expect("detaching");
    }
    let handles = setup.engine.handles("default").expect("handles");
    let rules = within(&handles.network, || sh("nft list ruleset"));
    assert!(!rules.contains("e_t") && !rules.contains("192.168.64.2"), "{rules}");
    setup.end();
}

fn reaches_briefly(guest: &Stack, address: &str) -> Option<IpAddr> {
    let address = to(address, 80);
    guest.run(move || dial(address, BRIEF))
}

/// A host-only network lets nothing out, and connections from its own namespace in.
pub fn internal(away: &Away) {
    let setup = Setup::new(away);
    let net = config("inside", 65, Mode::HostOnly);
    setup.network(&net);
    let (a, b) = (setup.stack(&net, "a", 2), setup.stack(&net, "b", 3));
    a.run(|| serve(80, None));
    let _ = away.seen();
    for address in BEYOND.iter().chain(&LAN).chain(&HOST).chain(&METADATA) {
        blocked(&a, address, 53);
        blocked(&a, address, 7777);
        let ping = format!("ping -c 1 -W 1 {address} || true");
        a.run(move || sh(&ping));
    }
    let left = away.seen();
    // The host's own ARP, ND and multicast listening go on.
    let own =
        |f: &[u8]| f[12..14] == [8, 6] || f[38..40] == [0xff, 2] || f[20] == 58 && f[54] >= 130;
    let left: Vec<_> = left.iter().filter(|f| !own(f)).collect();
    assert!(left.is_empty(), "something left: {left:02x?}");
    assert_eq!(away.heard(), 0);
    assert!(setup.dropped(&net, "a", "internal") > 0);
    let namespace = setup.engine.handles("inside").expect("handles").network;
    for v6 in [false, true] {
        let address = SocketAddr::new(at(&net, 2, v6), 80);
        assert!(b.run(move || dial(address, SOON)).is_some(), "neighbours");
        // As a forwarder does.
        assert_eq!(within(&namespace, move || dial(address, SOON)), Some(at(&net, 1, v6)));
        if away.root {
            assert!(dial(address, BRIEF).is_none(), "the host has no way in");
        }
    }
    setup.end();
}

pub fn isolated(away: &Away) {
    let setup = Setup::new(away);
    let mut net = config("default", 64, Mode::Nat);
    net.isolated = true;
    setup.network(&net);
    let (a, b) = (setup.stack(&net, "a", 2), setup.stack(&net, "b", 3));
    a.run(|| serve(80, None));
    for v6 in [false, true] {
        let address = at(&net, 2, v6).to_string();
        blocked(&b, &address, 80);
        // Nor over the gateway.
        let gateway = at(&net, 1, v6);
        b.run(move || sh(&format!("ip route add {address} via {gateway}")));
        blocked(&b, &at(&net, 2, v6).to_string(), 80);
    }
    assert!(reaches(&b, BEYOND[0], 80).is_some());
    setup.end();
}

/// Nothing leads from one network to another, not over the host either.
pub fn other_networks(away: &Away) {
    let setup = Setup::new(away);
    let (one, two) = (config("one", 64, Mode::Nat), config("two", 66, Mode::Nat));
    setup.network(&one);
    setup.network(&two);
    let (a, b) = (setup.stack(&one, "a", 2), setup.stack(&two, "b", 2));
    b.run(|| serve(80, None));
    a.run(|| serve(80, None));
    let _ = away.seen();
    for v6 in [false, true] {
        blocked(&a, &at(&two, 2, v6).to_string(), 80);
        blocked(&a, &at(&two, 1, v6).to_string(), 53);
        // The older network knows the younger one too.
        blocked(&b, &at(&one, 2, v6).to_string(), 80);
    }
    assert!(setup.dropped(&one, "a", "network") > 0 && setup.dropped(&two, "b", "network") > 0);
    let frames = away.seen();
    assert!(frames.iter().all(|f| !contains(f, &[192, 168, 66])), "the LAN was asked");
    setup.end();
}

/// Ports of the gateway lead to a forwarder's port, for whom it is allowed alone.
pub fn host_access(away: &Away) {
    let setup = Setup::new(away);
    let net = config("default", 64, Mode::Nat);
    setup.network(&net);
    let with = |name: &str, number: u8, host_access: HostAccess| {
        let port = container_network::engine::Port { host_access, ..port(&net, name, number) };
        Stack::new(setup.raw_port(&net, &port), &net)
    };
    let a = with("a", 2, HostAccess::Ports(vec![8080, 8081]));
    let b = with("b", 3, HostAccess::All);
    let c = with("c", 4, HostAccess::Denied);
    let namespace = setup.engine.handles("default").expect("handles").network;
    within(&namespace, || serve(4000, None));
    let udp = [8080, 8081, 8082].map(|port| (port, 4000)).into();
    for name in ["a", "b", "c"] {
        let redirected = setup.engine.host_redirect("default", name, 4000, &udp);
        setup.runtime.block_on(redirected).expect("redirecting");
    }
    for v6 in [false, true] {
        let gateway = at(&net, 1, v6).to_string();
        for port in [8080, 8081] {
            assert!(reaches(&a, &gateway, port).is_some());
            let address = to(&gateway, port);
            assert!(a.run(move || ask(address, SOON)));
        }
        assert!(reaches(&b, &gateway, 1234).is_some());
        blocked(&a, &gateway, 8082);
        blocked(&a, &gateway, 4000);
        blocked(&c, &gateway, 8080);
        blocked(&c, &gateway, 4000);
    }
    // An address that stands for the host is the gateway's to whom may reach it, else nobody's.
    let stand_in = "203.0.113.113";
    let addresses = [stand_in.parse().expect("an address")];
    setup.runtime.block_on(setup.engine.localhost(&addresses)).expect("telling");
    assert!(reaches(&a, stand_in, 8080).is_some());
    assert!(reaches(&b, stand_in, 1234).is_some());
    blocked(&a, stand_in, 8082);
    blocked(&c, stand_in, 8080);
    setup.runtime.block_on(setup.engine.localhost(&[])).expect("telling");
    blocked(&a, stand_in, 8080);
    // A name server of the namespace's is no host's port.
    let gateway = SocketAddr::new(at(&net, 1, false), 53);
    let listen = setup.engine.listen("default", Protocol::Udp, gateway);
    let socket = std::net::UdpSocket::from(setup.runtime.block_on(listen).expect("listening"));
    socket.set_nonblocking(false).expect("blocking");
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    });
    for guest in [&a, &b, &c] {
        assert!(guest.run(move || ask(gateway, SOON)), "the name server");
    }
    // Taken back when the forwarder ends.
    setup
        .runtime
        .block_on(setup.engine.host_redirect("default", "a", 0, &Default::default()))
        .expect("closing");
    blocked(&a, &at(&net, 1, false).to_string(), 8080);
    setup.runtime.block_on(setup.engine.detach("default", "b")).expect("detaching");
    setup.end();
}

pub fn parked(away: &Away) {
    let setup = Setup::new(away);
    let net = config("default", 64, Mode::Nat);
    let early = setup.runtime.block_on(setup.engine.park("default")).expect("a tap");
    setup.network(&net);
    let port_e = container_network::engine::Port { tap: Some(early.0), ..port(&net, "e", 9) };
    setup.runtime.block_on(setup.engine.attach("default", &port_e)).expect("attaching");
    let e = Stack::new(Raw::new(early.1, &port_e), &net);
    assert!(reaches(&e, BEYOND[0], 80).is_some());
    let (name, tap) = setup.runtime.block_on(setup.engine.park("default")).expect("a tap");
    let port = container_network::engine::Port { tap: Some(name), ..port(&net, "a", 2) };
    let attached = setup.runtime.block_on(setup.engine.attach("default", &port));
    assert!(attached.expect("attaching").is_none());
    let a = Stack::new(Raw::new(tap, &port), &net);
    assert!(reaches(&a, BEYOND[0], 80).is_some());
    // One that waits where it isn't needed, and one that is gone.
    let other = config("other", 66, Mode::Nat);
    setup.network(&other);
    let (name, tap) = setup.runtime.block_on(setup.engine.park("default")).expect("a tap");
    let port_b = container_network::engine::Port { tap: Some(name), ..self::port(&other, "b", 3) };
    setup.runtime.block_on(setup.engine.attach("other", &port_b)).expect("attaching");
    let b = Stack::new(Raw::new(tap, &port_b), &other);
    assert!(reaches(&b, BEYOND[0], 80).is_some());
    let (name, tap) = setup.runtime.block_on(setup.engine.park("default")).expect("a tap");
    drop(tap);
    let port = container_network::engine::Port { tap: Some(name), ..self::port(&net, "c", 4) };
    let refused = setup.runtime.block_on(setup.engine.attach("default", &port));
    let error = refused.expect_err("refused");
    assert_eq!(error.code, container_api::ErrorCode::NotFound, "{error}");
    // One waits where it was likely needed, and stays when that network goes.
    let third = config("third", 67, Mode::Nat);
    setup.network(&third);
    let (name, tap) = setup.runtime.block_on(setup.engine.park("third")).expect("a tap");
    let links = || {
        let namespace = setup.engine.handles("third").expect("handles").network;
        within(&namespace, || sh("ip -br link"))
    };
    assert!(links().contains(&name), "{}", links());
    setup.runtime.block_on(setup.engine.remove("third")).expect("removing");
    let port_d = container_network::engine::Port { tap: Some(name), ..self::port(&net, "d", 5) };
    setup.runtime.block_on(setup.engine.attach("default", &port_d)).expect("attaching");
    let d = Stack::new(Raw::new(tap, &port_d), &net);
    assert!(reaches(&d, BEYOND[0], 80).is_some());
    setup.end();
}

/// An attachment that fails leaves nothing.
pub fn undo(away: &Away) {
    let setup = Setup::new(away);
    let net = config("default", 64, Mode::Nat);
    setup.network(&net);
    let _a = setup.raw(&net, "a", 2);
    let namespace = setup.engine.handles("default").expect("handles").network;
    let state = || within(&namespace, || sh("nft list ruleset; ip -br link; ip neigh; bridge fdb"));
    let before = state();
    let try_attach = |port: container_network::engine::Port| {
        setup.runtime.block_on(setup.engine.attach("default", &port)).expect_err("refused")
    };
    // The same address, the same Ethernet address, the same container.
    let mut same = port(&net, "b", 2);
    same.attachment.mac_address.0[5] = 9;
    let error = try_attach(same);
    assert!(error.message.contains("a has 192.168.64.2"), "{error}");
    let mut same = port(&net, "b", 3);
    same.attachment.mac_address.0[5] = 2;
    try_attach(same);
    try_attach(port(&net, "a", 4));
    let mut bad = port(&net, "b", 3);
    bad.attachment.mac_address.0[0] = 3;
    try_attach(bad);
    // The kernel refuses it, when the rules are there.
    let mut bad = port(&net, "b", 3);
    bad.attachment.mtu = 1_000_000;
    try_attach(bad);
    assert_eq!(before, state());
    setup.end();
}

/// A service that dies leaves networks that work; the next one takes them over.
pub fn takeover(away: &Away) {
    let net = config("default", 64, Mode::Nat);
    let port_a = container_network::engine::Port {
        egress: vec![Egress::Only(vec![host("example.com")])],
        ..port(&net, "a", 2)
    };
    if let Some(held) = away.before() {
        return after_takeover(away, &net, &port_a, &held);
    }
    let setup = Setup::new(away);
    setup.network(&net);
    let tap_a = setup.runtime.block_on(setup.engine.attach("default", &port_a)).expect("attached");
    let tap_b = setup.runtime.block_on(setup.engine.attach("default", &port(&net, "b", 3)));
    let tap_c = setup.runtime.block_on(setup.engine.attach("default", &port(&net, "c", 4)));
    setup.runtime.block_on(setup.engine.pin("default", &pin(BEYOND[0], &[80], 100))).expect("pin");
    drop(tap_c.expect("attached"));
    let handles = setup.engine.handles("default").expect("handles");
    let taps = [tap_a.expect("a tap"), tap_b.expect("attached").expect("a tap")];
    // A process that holds the namespaces, as a resolver does, and the taps; and this one dies.
    let held = format!("{} {}", keep(&taps[0]), keep(&taps[1]));
    let holder = Command::new("sleep").arg("60").spawn_in(&handles.network);
    away.again(&format!("{holder} {held}"));
}

/// When nobody has kept a namespace but a VM by its tap, its network comes up anew beside it; in
/// the end nothing of either is left.
pub fn lost(away: &Away) {
    let net = config("default", 64, Mode::Nat);
    let state = || away.command("host ip -br link; ip route; ip -6 route; nft list ruleset");
    let uplink = || {
        let record = std::fs::read(away.folder.join("uplink-default.json")).expect("a record");
        serde_json::from_slice::<serde_json::Value>(&record).expect("JSON")["pid"].to_string()
    };
    let alive = |pid: &str| std::path::Path::new("/proc").join(pid).join("exe").exists();
    let Some(held) = away.before() else {
        let before = state();
        let setup = Setup::new(away);
        setup.network(&net);
        setup.network(&config("never_again", 65, Mode::Nat));
        let attached = setup.runtime.block_on(setup.engine.attach("default", &port(&net, "a", 2)));
        let number = keep(&attached.expect("attached").expect("a tap"));
        let holder = Command::new("sleep").arg("60").spawn().expect("a process").id();
        away.again(&format!("{holder}\n{number}\n{}\n{before}", uplink()));
        return;
    };
    let [holder, _, old, before] = held.splitn(4, '\n').collect::<Vec<_>>()[..] else { panic!() };
    let setup = Setup::new(away);
    setup.network(&net);
    assert!(!alive(old) && alive(&uplink()));
    let a = setup.stack(&net, "a", 2);
    assert!(reaches(&a, BEYOND[0], 80).is_some());
    assert!(away.folder.join("uplink-never_again.json").exists());
    setup.runtime.block_on(setup.engine.tidy()).expect("tidying");
    assert!(!away.folder.join("uplink-never_again.json").exists());
    assert!(reaches(&a, BEYOND[0], 80).is_some());
    setup.end();
    assert_eq!(before, state());
    sh(&format!("kill {holder}"));
}

fn after_takeover(
    away: &Away,
    net: &container_api::network::NetworkConfig,
    port_a: &container_network::engine::Port,
    held: &str,
) {
    let words: Vec<i32> = held.split(' ').map(|word| word.parse().expect("a number")).collect();
    let holder = rustix::process::Pid::from_raw(words[0]).expect("a number");
    let holder = rustix::process::pidfd_open(holder, rustix::process::PidfdFlags::empty());
    let holder = holder.expect("the holder");
    let tap = |index: usize| {
        let flags = rustix::process::PidfdGetfdFlags::empty();
        rustix::process::pidfd_getfd(&holder, words[index], flags).expect("a tap")
    };
    let open = |what: &str| -> OwnedFd {
        std::fs::File::open(format!("/proc/{}/ns/{what}", words[0])).expect("a namespace").into()
    };
    let (network, user) = (open("net"), open("user"));
    let uplinks =
        || std::fs::read_to_string(away.folder.join("uplink-default.json")).expect("a record");
    let before = uplinks();
    let setup = Setup::over(away, (!away.root).then_some(&user));
    setup.runtime.block_on(setup.engine.create(&plan(net), Some(network))).expect("taking over");
    let mut there = setup.runtime.block_on(setup.engine.containers("default")).expect("a list");
    there.sort();
    assert_eq!(there, ["a", "b"], "the one whose tap is gone is gone");
    let adopt = |port: &container_network::engine::Port| {
        setup.runtime.block_on(setup.engine.adopt("default", port)).expect("adopting")
    };
    assert!(adopt(port_a) && adopt(&port(net, "b", 3)) && !adopt(&port(net, "c", 4)));
    let a = Stack::new(Raw::new(tap(1), port_a), net);
    let b = Stack::new(Raw::new(tap(2), &port(net, "b", 3)), net);
    // Rules, pins, neighbours and the uplink are as they were.
    assert!(reaches(&a, BEYOND[0], 80).is_some());
    blocked(&a, BEYOND[1], 80);
    assert!(reaches(&b, BEYOND[1], 80).is_some());
    assert_eq!(before, uplinks());
    b.run(|| serve(80, None));
    let address = SocketAddr::new(at(net, 3, true), 80);
    assert!(a.run(move || dial(address, SOON)).is_some());
    if away.root {
        assert!(dial(address, SOON).is_some(), "from the host");
    }
    // And it is all its own now: an address that is free again, the end.
    let _c = setup.raw(net, "d", 4);
    setup.runtime.block_on(setup.engine.detach("default", "a")).expect("detaching");
    // An uplink that dies comes again.
    let pid = serde_json::from_str::<serde_json::Value>(&before).expect("JSON")["pid"].clone();
    sh(&format!("kill -9 {pid}"));
    until("a new uplink", || reaches(&b, BEYOND[0], 80).is_some());
    setup.end();
    sh(&format!("kill {}", words[0]));
}

trait SpawnIn {
    fn spawn_in(&mut self, namespace: &OwnedFd) -> u32;
}

impl SpawnIn for Command {
    fn spawn_in(&mut self, namespace: &OwnedFd) -> u32 {
        let namespace = namespace.try_clone().expect("a duplicate");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
                self.spawn().expect("a process").id()
            });
            thread.join().expect("a thread")
        })
    }
}

/// After the end the host is as it was, and no process is left.
pub fn nothing_is_left(away: &Away) {
    let state = || {
        away.command(
            "host ip -br link; ip -br addr; ip route; ip -6 route; nft list ruleset; \
             sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv6.conf.wan.accept_ra",
        )
    };
    let before = state();
    let setup = Setup::new(away);
    let (one, two) = (config("one", 64, Mode::Nat), config("two", 66, Mode::HostOnly));
    setup.network(&one);
    setup.network(&two);
    let _taps = [setup.raw(&one, "a", 2), setup.raw(&two, "b", 2)];
    let with = state();
    assert_eq!(before != with, away.root, "only root changes the host: {with}");
    let settings = |text: &str| -> Vec<String> {
        text.lines().filter(|l| l.starts_with("net.")).map(str::to_owned).collect()
    };
    assert_eq!(settings(&before), settings(&with), "the host's own settings");
    let record = std::fs::read_to_string(away.folder.join("uplink-one.json")).expect("a record");
    let pid = serde_json::from_str::<serde_json::Value>(&record).expect("JSON")["pid"].clone();
    let alive = || std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert!(alive());
    let kept = setup.engine.handles("one").expect("handles").network;
    setup.end();
    assert!(!alive(), "pasta lives");
    assert_eq!(before, state());
    // Nor in a namespace that somebody keeps.
    let inside = within(&kept, || sh("ip -br link; nft list ruleset"));
    assert!(!inside.contains("br0") && !inside.contains("table"), "{inside}");
}

/// Somebody on the host's LAN who routes to the containers reaches none, not with the host's own
/// address as source either, whatever the host forwards.
pub fn lan(away: &Away) {
    let setup = Setup::new(away);
    let net = config("default", 64, Mode::Nat);
    setup.network(&net);
    let a = setup.stack(&net, "a", 2);
    a.run(|| serve(80, None));
    let frames = a.run(crate::world::packet_socket);
    away.command(
        "host sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
         net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.wan.rp_filter=0",
    );
    for v6 in [false, true] {
        let address = SocketAddr::new(at(&net, 2, v6), 80);
        assert_eq!(away.command(&format!("dial {address}")), "false");
    }
    // As if it were the host on our own link.
    away.command(
        "internet ip -6 addr add fd63:6f6e:7461:696e::5/128 dev lo nodad; \
         ip -6 route add fd00:64::2/128 via 2001:db8::2 src fd63:6f6e:7461:696e::5; \
         ping -6 -c 2 -i 0.2 -W 1 fd00:64::2 || true",
    );
    let mut buffer = [0; 2048];
    while let Ok(length) = rustix::io::read(&frames, &mut buffer) {
        let lan =
            [LAN[1].parse().expect("an address"), "fd63:6f6e:7461:696e::5".parse().expect("")];
        for address in lan {
            let IpAddr::V6(address) = address else { unreachable!() };
            assert!(!contains(&buffer[..length], &address.octets()), "a frame from the LAN");
        }
        assert!(!contains(&buffer[..length], &[203, 0, 113, 1]), "a frame from the LAN");
    }
    setup.end();
}

/// How long things take. Printed; only what would be absurd fails.
pub fn figures(away: &Away) {
    let setup = Setup::new(away);
    let net = config("default", 64, Mode::Nat);
    let begin = Instant::now();
    setup.network(&net);
    println!("a NAT network up: {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    let begin = Instant::now();
    setup.network(&config("inside", 65, Mode::HostOnly));
    println!("a host-only network up: {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    let run = |future| setup.runtime.block_on(future);
    let _ = run(setup.engine.attach("default", &port(&net, "first", 2)));
    for parked in [false, true] {
        let (mut attach, mut detach) = (Vec::new(), Vec::new());
        for number in 10..30 {
            let mut port = port(&net, "measured", number);
            let spare = parked
                .then(|| setup.runtime.block_on(setup.engine.park("default")).expect("a tap"));
            port.tap = spare.as_ref().map(|(name, _)| name.clone());
            let begin = Instant::now();
            let tap = setup.runtime.block_on(setup.engine.attach("default", &port));
            attach.push(begin.elapsed());
            let _tap = tap.expect("attached");
            let begin = Instant::now();
            let done = setup.runtime.block_on(setup.engine.detach("default", "measured"));
            detach.push(begin.elapsed());
            done.expect("detached");
        }
        attach.sort();
        detach.sort();
        let ms = |times: &[Duration]| times[times.len() / 2].as_secs_f64() * 1e3;
        println!(
            "parked {parked}: attach {:.1} ms, detach {:.1} ms (medians of 20)",
            ms(&attach),
            ms(&detach)
        );
        assert!(ms(&attach) < 100.0);
    }
    let (a, b) = (setup.stack(&net, "a", 40), setup.stack(&net, "b", 41));
    let address = SocketAddr::new(at(&net, 40, false), 5000);
    a.run(move || sink(5000));
    let speed = || b.run(move || throughput(address));
    let with = [speed(), speed(), speed()].into_iter().fold(0.0, f64::max);
    let namespace = setup.engine.handles("default").expect("handles").network;
    within(&namespace, || sh("nft delete table bridge container"));
    let without = [speed(), speed(), speed()].into_iter().fold(0.0, f64::max);
    println!("{with:.0} MB/s between containers, {without:.0} MB/s without the bridge's rules");
    setup.end();
}

fn sink(port: u16) {
    let listener = std::net::TcpListener::bind(("0.0.0.0", port)).expect("listening");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = vec![0; 1 << 18];
            while std::io::Read::read(&mut stream, &mut buffer).is_ok_and(|n| n > 0) {}
        }
    });
}

/// Megabytes in a second.
fn throughput(address: SocketAddr) -> f64 {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).expect("connecting");
    let block = vec![0; 1 << 18];
    let begin = Instant::now();
    let blocks = 1200;
    for _ in 0..blocks {
        stream.write_all(&block).expect("writing");
    }
    stream.shutdown(std::net::Shutdown::Write).expect("the end");
    let _ = stream.read(&mut [0]);
    f64::from(blocks) * block.len() as f64 / 1e6 / begin.elapsed().as_secs_f64()
}
