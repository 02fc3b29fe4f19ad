//! A hostile guest, root with all capabilities: what it may not send is seen by nobody. Frames are
//! written to its interface as they are, and looked for on the other side.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use e2e::frame::{self, ALL_NODES, BROADCAST, Mac};
use e2e::world::{LAN, METADATA, SERVER};
use e2e::{Installation, Running, World, tools};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
const PORT: u16 = 6666;
const ROUTER: Mac = [0x33, 0x33, 0, 0, 0, 1];
/// What the frame that may pass says.
const HONEST: &str = "HONEST";

/// A container's interface, as the host tells it.
struct Nic {
    mac: Mac,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    gateway: Ipv4Addr,
    gateway_v6: Ipv6Addr,
}

impl Nic {
    fn of(it: &Installation, container: &str) -> Nic {
        let nic = it.inspect(container)["networks"][0].clone();
        let text = |key: &str| nic[key].as_str().unwrap().split('/').next().unwrap().to_owned();
        let bytes: Vec<u8> = text("macAddress")
            .split(':')
            .map(|word| u8::from_str_radix(word, 16).unwrap())
            .collect();
        Nic {
            mac: bytes.try_into().unwrap(),
            v4: text("ipv4Address").parse().unwrap(),
            v6: text("ipv6Address").parse().unwrap(),
            gateway: text("ipv4Gateway").parse().unwrap(),
            gateway_v6: text("ipv6Gateway").parse().unwrap(),
        }
    }
}

/// Sends a frame from a container.
#[track_caller]
fn send(it: &Installation, container: &str, frame: Vec<u8>) {
    let socat = ["exec", "-i", container, "socat", "-u", "-", "INTERFACE:eth0"];
    it.container(socat).stdin(frame).run().ok();
}

/// What comes to a container's interface.
fn watch(it: &Installation, container: &str) -> Running {
    let words = [
        "exec", container, "tcpdump", "-Z", "root", "-n", "-e", "-l", "-A", "-Q", "in", "-i",
        "eth0",
    ];
    let mut tcpdump = it.container(words).spawn();
    tcpdump.wait_for_stderr("listening on", Duration::from_secs(20));
    tcpdump
}

fn start(it: &Installation, name: &str, network: &str) {
    let words = ["run", "-d", "--name", name, "--network", network, "--cap-add", "ALL"];
    it.run([&words[..], &["tools", "sleep", "10000"]].concat()).ok();
}

#[test]
fn nobody_sees_what_is_forbidden() {
    let world = World::new();
    let it = Installation::new().in_place(&world.host);
    it.load(&tools::image().unwrap());
    it.run(["network", "create", "other"]).ok();
    start(&it, "evil", "default");
    start(&it, "victim", "default");
    start(&it, "stranger", "other");
    let [evil, victim, stranger] = ["evil", "victim", "stranger"].map(|name| Nic::of(&it, name));
    let filter = format!("udp port {PORT}");
    let places = [&world.host, &world.internet, &world.neighbour].map(|place| place.watch(&filter));
    let mut seen = watch(&it, "victim");
    let mut elsewhere = watch(&it, "stranger");

    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let strange: Mac = [2, 0xde, 0xad, 0, 0, 1];
    let nobody = Ipv4Addr::new(evil.v4.octets()[0], evil.v4.octets()[1], evil.v4.octets()[2], 250);
    let nobody_v6 = Ipv6Addr::from(u128::from(evil.v6) ^ 0xbad);
    // The link-local address that goes with its MAC: its own.
    let m = evil.mac;
    let local = Ipv6Addr::from(
        (0xfe80_u128 << 112)
            | u128::from(u64::from_be_bytes([m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]])),
    );
    let udp = |from, to, text: &str| frame::udp4(from, to, (PORT, PORT), text.as_bytes());
    let to = victim.mac;
    let ra = frame::router_advertisement();
    let lies = frame::neighbour_advertisement(evil.gateway_v6, evil.mac);
    let redirect = frame::redirect(nobody_v6, local);
    let attacks: Vec<(&str, Vec<u8>)> = vec![
        ("another's MAC", frame::frame(to, strange, IPV4, &udp(evil.v4, victim.v4, "EVIL-01"))),
        ("another's IPv4", frame::frame(to, evil.mac, IPV4, &udp(nobody, victim.v4, "EVIL-02"))),
        (
            "another's IPv6",
            frame::frame(to, evil.mac, IPV6, &frame::ipv6(nobody_v6, victim.v6, 59, b"EVIL-03")),
        ),
        (
            "an ARP answer for the gateway",
            frame::frame(
                to,
                evil.mac,
                ARP,
                &frame::arp_reply(evil.mac, evil.gateway, to, victim.v4),
            ),
        ),
        (
            "the same to all",
            frame::frame(
                BROADCAST,
                evil.mac,
                ARP,
                &frame::arp_reply(evil.mac, evil.gateway, BROADCAST, evil.gateway),
            ),
        ),
        (
            "a router's advertisement",
            frame::frame(ALL_NODES, evil.mac, IPV6, &frame::icmp6(local, routers, &ra)),
        ),
        ("the same to one", frame::frame(to, evil.mac, IPV6, &frame::icmp6(local, victim.v6, &ra))),
        (
            "behind destination options",
            frame::frame(to, evil.mac, IPV6, &frame::icmp6_behind_options(local, victim.v6, &ra)),
        ),
        (
            "in a fragment",
            frame::frame(to, evil.mac, IPV6, &frame::icmp6_in_fragment(local, victim.v6, &ra)),
        ),
        (
            "a neighbour's advertisement for the gateway",
            frame::frame(to, evil.mac, IPV6, &frame::icmp6(evil.v6, victim.v6, &lies)),
        ),
        (
            "a redirect",
            frame::frame(to, evil.mac, IPV6, &frame::icmp6(local, victim.v6, &redirect)),
        ),
        (
            "a DHCP answer",
            frame::frame(
                to,
                evil.mac,
                IPV4,
                &frame::udp4(evil.v4, victim.v4, (67, 68), b"EVIL-12"),
            ),
        ),
        ("an unknown EtherType", frame::frame(to, evil.mac, 0x88b5, b"EVIL-13")),
        (
            "a VLAN tag",
            frame::frame(
                to,
                evil.mac,
                0x8100,
                &[&[0, 1, 8, 0][..], &udp(evil.v4, victim.v4, "EVIL-14")].concat(),
            ),
        ),
        (
            "a BPDU",
            frame::frame([1, 0x80, 0xc2, 0, 0, 0], evil.mac, 38, &[0x42, 0x42, 3, 0, 0, 0, 0, 0]),
        ),
        (
            "a broadcast",
            frame::frame(BROADCAST, evil.mac, IPV4, &udp(evil.v4, [255; 4].into(), "EVIL-16")),
        ),
        (
            "a router multicast",
            frame::frame(ROUTER, strange, IPV6, &frame::icmp6(local, routers, &ra)),
        ),
    ];
    for (_, bytes) in attacks {
        send(&it, "evil", bytes);
    }
    // Through the gateway to where it may not go: its MAC is what the guest's own neighbours say.
    let gateway = it
        .run([
            "exec",
            "evil",
            "sh",
            "-c",
            &format!("ping -c 1 -W 2 {} >/dev/null; cat /proc/net/arp", evil.gateway),
        ])
        .ok()
        .text();
    let gateway: Vec<u8> = gateway
        .lines()
        .find(|line| line.starts_with(&format!("{} ", evil.gateway)))
        .and_then(|line| line.split_whitespace().nth(3))
        .unwrap_or_else(|| panic!("no gateway: {gateway}"))
        .split(':')
        .map(|word| u8::from_str_radix(word, 16).unwrap())
        .collect();
    let gateway: Mac = gateway.try_into().unwrap();
    let mut forbidden: Vec<Ipv4Addr> =
        [LAN, "198.51.100.2", "10.99.0.2"].map(|text| text.parse().unwrap()).to_vec();
    forbidden.extend(METADATA.iter().filter_map(|text| text.parse::<Ipv4Addr>().ok()));
    forbidden.push(stranger.v4);
    // The LAN behind the host may be reached by a NAT network; its own addresses may not.
    forbidden.retain(|address| *address != Ipv4Addr::new(10, 99, 0, 2));
    for address in forbidden {
        send(&it, "evil", frame::frame(gateway, evil.mac, IPV4, &udp(evil.v4, address, "EVIL-20")));
    }
    // A spoofed source on the way out.
    let server: Ipv4Addr = SERVER.parse().unwrap();
    send(&it, "evil", frame::frame(gateway, evil.mac, IPV4, &udp(nobody, server, "EVIL-21")));

    // The one that may pass, sent last, shows that frames are sent and seen.
    send(&it, "evil", frame::frame(to, evil.mac, IPV4, &udp(evil.v4, victim.v4, HONEST)));
    seen.wait_for_stdout(HONEST, Duration::from_secs(20));
    for place in places {
        assert_eq!(place.seen(), "", "outside");
    }
    let told = |running: Running| {
        it.run(["exec", "victim", "busybox", "killall", "tcpdump"]);
        it.run(["exec", "stranger", "busybox", "killall", "tcpdump"]);
        running.wait(Duration::from_secs(20)).text()
    };
    let at_victim = told(seen);
    elsewhere.close_stdin();
    let at_stranger = told(elsewhere);
    let mac = |mac: Mac| mac.map(|b| format!("{b:02x}")).join(":");
    let from = |text: &str, from: Mac| {
        text.lines().filter(|line| line.contains(&format!(" {} > ", mac(from)))).count()
    };
    assert!(!at_victim.contains("EVIL"), "{at_victim}");
    assert_eq!(from(&at_victim, strange), 0, "{at_victim}");
    // What the bridge says of it when the victim asks is true.
    let truth = format!("Reply {} is-at {}", evil.v4, mac(evil.mac));
    let answers = at_victim.lines().filter(|line| line.contains(&truth)).count();
    assert_eq!(from(&at_victim, evil.mac), 1 + answers, "one frame alone: {at_victim}");
    assert!(
        !at_stranger.contains("EVIL") && !at_stranger.contains(&mac(evil.mac)),
        "{at_stranger}"
    );
    // The victim still knows its gateway, and no other router.
    let routes = it.run(["exec", "victim", "ip", "-6", "route"]).ok().text();
    assert!(!routes.contains("2001:db8:bad"), "{routes}");
    let dropped = it.run(["network", "inspect", "default"]).ok().json()[0]["dropped"].clone();
    let total: u64 = dropped
        .as_array()
        .unwrap()
        .iter()
        .filter(|d| d["container"] == "evil")
        .map(|d| d["packets"].as_u64().unwrap())
        .sum();
    assert!(total >= 17, "{dropped}");
}

#[test]
fn a_storm_of_one_does_not_stop_another() {
    let world = World::new();
    let it = Installation::new().in_place(&world.host);
    it.load(&tools::image().unwrap());
    for name in ["evil", "one", "two"] {
        start(&it, name, "default");
    }
    let evil = Nic::of(&it, "evil");
    let two = Nic::of(&it, "two");
    let mut storm = Vec::new();
    for n in 0..64_u8 {
        let address = Ipv4Addr::new(10, 0, 0, n);
        let reply = frame::arp_reply(evil.mac, address, BROADCAST, address);
        storm.push(frame::frame(BROADCAST, evil.mac, ARP, &reply));
    }
    let file: Vec<u8> = storm.concat();
    // Frames of 60 bytes each, again and again.
    let line = "cat > /storm; while :; do dd if=/storm bs=60 2>/dev/null | \
                socat -u -b 60 - INTERFACE:eth0; done";
    let mut flood = it.container(["exec", "-i", "evil", "sh", "-c", line]).spawn();
    flood.write(&file);
    flood.close_stdin();
    let ping = format!("ping -c 5 -W 2 {}", two.v4);
    it.run(["exec", "one", "sh", "-c", &ping]).ok();
    it.run(["exec", "one", "busybox", "nslookup", "two"]).ok();
    assert!(flood.is_running());
}
