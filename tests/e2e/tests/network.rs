//! Networks of containers, in a world of their own: with root, whose service has a leg in the
//! host's network, and as a plain user.

use std::collections::BTreeMap;
use std::time::Duration;

use e2e::world::{LAN, METADATA, Place, SERVER, SERVER_V6};
use e2e::{Installation, World, busybox, tools, wait_for};

const SOON: Duration = Duration::from_secs(30);

/// An installation with the busybox image, on the world's host.
fn installed(world: &World) -> Installation {
    let it = Installation::new().in_place(&world.host);
    it.load(&busybox::image().unwrap());
    it
}

/// What the shell of a container prints.
#[track_caller]
fn sh(it: &Installation, container: &str, line: &str) -> String {
    it.run(["exec", container, "sh", "-c", line]).ok().text()
}

/// What a web server says to a container, once it does.
#[track_caller]
fn get(it: &Installation, container: &str, url: &str) -> String {
    // Its own time limit (`-T`) crashes in Debian's static build.
    let fetch = format!("busybox timeout 10 busybox wget -q -O - '{url}'");
    wait_for(url, e2e::DEADLINE, || {
        let said = it.run(["exec", container, "sh", "-c", &fetch]);
        (said.code == Some(0)).then(|| said.text())
    })
}

/// Whether a container reaches a web server.
fn reaches(it: &Installation, container: &str, url: &str) -> bool {
    let fetch = format!("busybox timeout 3 busybox wget -q -O - {url}");
    it.run(["exec", container, "sh", "-c", &fetch]).code == Some(0)
}

/// Starts a container that waits.
#[track_caller]
fn start(it: &Installation, name: &str, args: &[&str]) {
    let words = [&["run", "-d", "--name", name], args, &["busybox", "sleep", "10000"]].concat();
    it.run(words).ok();
}

/// Starts a web server in a container that says its own name.
#[track_caller]
fn start_web(it: &Installation, name: &str, args: &[&str]) {
    let script = "mkdir /www; hostname > /www/index.html; exec busybox httpd -f -p 80 -h /www";
    let words = [&["run", "-d", "--name", name], args, &["busybox", "sh", "-c", script]].concat();
    it.run(words).ok();
}

#[test]
fn containers_on_one_network_know_and_reach_each_other() {
    let world = World::new();
    let it = installed(&world);
    it.run(["network", "create", "--subnet", "10.5.0.0/24", "back"]).ok().prints("back");
    start_web(&it, "web", &["--network", "back,alias=www,ip=10.5.0.9"]);
    start(&it, "client", &["--network", "back"]);
    start(&it, "other", &["--network", "default"]);
    for name in ["web", "www", "10.5.0.9"] {
        assert_eq!(get(&it, "client", &format!("http://{name}")), "web");
    }
    let web = it.inspect("web");
    let v6 = web["networks"][0]["ipv6Address"].as_str().unwrap().split('/').next().unwrap();
    assert_eq!(get(&it, "client", &format!("http://[{v6}]")), "web");
    assert!(sh(&it, "client", "busybox nslookup 10.5.0.9").contains("web"));
    // The container's own files.
    assert_eq!(sh(&it, "web", "hostname"), "web");
    assert!(sh(&it, "web", "cat /etc/hosts").contains("10.5.0.9\tweb"));
    assert_eq!(sh(&it, "web", "cat /etc/resolv.conf"), "nameserver 10.5.0.1");
    // Another network.
    assert!(!reaches(&it, "other", "http://10.5.0.9"));
    assert!(!reaches(&it, "other", "http://web"));
    let list = it.run(["list"]).ok().text();
    assert!(list.contains("10.5.0.9/24"), "{list}");
    let network = it.run(["network", "inspect", "back"]).ok().json();
    assert_eq!(network[0]["attachments"].as_array().unwrap().len(), 2);
    it.run(["network", "delete", "back"]).fails(125, "back");
}

#[test]
fn the_internet_is_reached_and_the_host_is_not() {
    let world = World::new();
    let it = installed(&world);
    let _servers = [
        world.internet.serve(&format!("{SERVER}:80"), "internet"),
        world.internet.serve(&format!("[{SERVER_V6}]:80"), "internet"),
    ];
    let names = world.name_server(&[&format!("--address=/example.test/{SERVER}")]);
    let _own = [
        world.host.serve("127.0.0.1:81", "loopback"),
        world.host.serve(&format!("{LAN}:81"), "lan"),
        world.host.serve("198.51.100.2:81", "uplink"),
        world.host.serve("[2001:db8:99::1]:81", "lan"),
    ];
    start(&it, "c1", &["--network", "default"]);
    assert_eq!(get(&it, "c1", &format!("http://{SERVER}")), "internet");
    assert_eq!(get(&it, "c1", "http://example.test"), "internet");
    assert_eq!(get(&it, "c1", &format!("http://[{SERVER_V6}]")), "internet");
    drop(names);
    let watched = world.internet.watch(&format!(
        "host {}",
        METADATA.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>().join(" or host ")
    ));
    for address in [
        "127.0.0.1:81",
        "10.99.0.1:81",
        "198.51.100.2:81",
        "[2001:db8:99::1]:81",
        "host.container.internal:81",
        "host.docker.internal:81",
    ] {
        assert!(!reaches(&it, "c1", &format!("'http://{address}'")), "{address}");
    }
    let gateway = it.inspect("c1")["networks"][0]["ipv4Gateway"].as_str().unwrap().to_owned();
    assert!(!reaches(&it, "c1", &format!("http://{gateway}:81")));
    // An address that comes later.
    world.host.sh("ip address add 10.98.0.1/24 dev lan");
    let _late = world.host.serve("10.98.0.1:81", "late");
    assert!(!reaches(&it, "c1", "http://10.98.0.1:81"));
    for address in METADATA {
        let address = if address.contains(':') { format!("[{address}]") } else { address.into() };
        assert!(!reaches(&it, "c1", &format!("'http://{address}'")), "{address}");
    }
    assert_eq!(watched.seen(), "", "metadata addresses are seen by nobody");
    // Asked for, it is there.
    start(&it, "c2", &["--network", "default", "--host-access=81"]);
    assert_eq!(get(&it, "c2", "http://host.container.internal:81"), "loopback");
}

#[test]
fn published_ports_lead_into_containers() {
    let world = World::new();
    let it = installed(&world);
    start_web(&it, "web", &["--network", "default", "-p", "8080:80", "-p", "0:80"]);
    for address in ["127.0.0.1:8080", "[::1]:8080"] {
        assert_eq!(world.host.fetch(&format!("http://{address}")), "web", "{address}");
    }
    let ports = it.inspect("web")["ports"].clone();
    let any = ports
        .as_array()
        .unwrap()
        .iter()
        .find(|port| !port["host"].as_str().unwrap().ends_with(":8080"));
    let any = any.expect("a free port")["host"].as_str().unwrap().to_owned();
    assert_eq!(world.host.fetch(&format!("http://{any}")), "web");
    // In use: nothing is started.
    it.run(["create", "--name", "late", "-p", "8080:80", "busybox", "true"]).ok();
    it.run(["start", "late"]).fails(125, "8080");
    assert_eq!(it.status("late").as_deref(), Some("created"));
    assert_eq!(it.helpers().len(), 1);
    // The neighbour reaches nothing that is published on the host's loopback, nor a container.
    let address = it.inspect("web")["networks"][0]["ipv4Address"].as_str().unwrap().to_owned();
    let address = address.split('/').next().unwrap();
    world.neighbour.sh("ip route add 192.168.0.0/16 via 10.99.0.1");
    for url in [format!("http://{address}"), format!("http://{LAN}:8080")] {
        let curl = world.neighbour.command("curl").args(["-s", "--max-time", "3", &url]).run();
        assert_ne!(curl.code, Some(0), "{url}");
    }
    // Elsewhere on the host, and over UDP.
    it.load(&tools::image().unwrap());
    let udp = format!("{LAN}:5353:53/udp");
    let server = ["socat", "UDP4-RECVFROM:53,fork", "EXEC:cat"];
    let words = [&["run", "-d", "--name", "echo", "-p", &udp, "tools"][..], &server].concat();
    it.run(words).ok();
    wait_for("an answer over UDP", SOON, || {
        let line = format!("echo hello | socat -t 2 - UDP4:{LAN}:5353");
        let said = world.neighbour.command("sh").args(["-c", &line]).run().text();
        (said == "hello").then_some(())
    });
    it.run(["stop", "-t", "1", "web"]).ok();
    // Its last packets are counted first.
    wait_for("nobody listens any more", SOON, || {
        let curl = world.host.command("curl").args(["-s", "http://127.0.0.1:8080"]).run();
        (curl.code == Some(7)).then_some(())
    });
}

#[test]
fn nothing_leaves_an_internal_network() {
    let world = World::new();
    let it = installed(&world);
    it.run(["network", "create", "--internal", "inside"]).ok();
    let _server = world.internet.serve(&format!("{SERVER}:80"), "internet");
    let _names = world.name_server(&[&format!("--address=/example.test/{SERVER}")]);
    start_web(&it, "web", &["--network", "inside", "-p", "8080:80"]);
    start(&it, "client", &["--network", "inside"]);
    let watched = world.internet.watch("not arp and not icmp6");
    assert!(!reaches(&it, "client", &format!("http://{SERVER}")));
    assert!(!reaches(&it, "client", &format!("'http://[{SERVER_V6}]'")));
    assert!(!reaches(&it, "client", "http://example.test"));
    for line in [
        format!("ping -c 1 -W 2 {SERVER}"),
        format!("busybox ping6 -c 1 -W 2 {SERVER_V6}"),
        "busybox nslookup secret.tunnel.test".to_owned(),
        format!("busybox nslookup secret.tunnel.test {SERVER}"),
    ] {
        assert_ne!(it.run(["exec", "client", "sh", "-c", &line]).code, Some(0), "{line}");
    }
    assert_eq!(watched.seen(), "", "nothing is seen");
    assert_eq!(get(&it, "client", "http://web"), "web");
    assert_eq!(world.host.fetch("http://127.0.0.1:8080"), "web");
}

#[test]
fn egress_rules_let_named_places_through() {
    let world = World::new();
    let it = installed(&world);
    world.internet.sh("ip address add 203.0.113.11 dev lo");
    let _servers = [
        world.internet.serve(&format!("{SERVER}:80"), "good"),
        world.internet.serve("203.0.113.11:80", "bad"),
    ];
    let _names = world.name_server(&[
        &format!("--address=/good.test/{SERVER}"),
        "--address=/bad.test/203.0.113.11",
        "--address=/rebind.good.test/10.99.0.1",
        "--log-queries",
    ]);
    let rules = ["--network", "default", "--egress", "allow=good.test", "--egress", "deny"];
    start(&it, "c1", &rules);
    let watched = world.internet.watch("udp port 53 or host 203.0.113.11");
    assert!(!reaches(&it, "c1", "http://bad.test"));
    assert!(!reaches(&it, "c1", "http://203.0.113.11"));
    assert!(!reaches(&it, "c1", "http://secret.good.test"), "its children are not named");
    assert_ne!(it.run(["exec", "c1", "busybox", "nslookup", "-type=txt", "good.test"]).code, None);
    let seen = watched.seen();
    assert!(!seen.contains("bad.test") && !seen.contains("secret"), "{seen}");
    assert!(!seen.contains("203.0.113.11") && !seen.contains("TXT"), "{seen}");
    // Before its name was asked for, even the good address is closed.
    assert!(!reaches(&it, "c1", &format!("http://{SERVER}")));
    assert_eq!(get(&it, "c1", "http://good.test"), "good");
    // A name that leads home is no way in.
    start(&it, "c2", &["--network", "default", "--egress", "allow=*.good.test"]);
    let _own = world.host.serve(&format!("{LAN}:80"), "host");
    assert!(!reaches(&it, "c2", "http://rebind.good.test"));
    let dropped = it.run(["network", "inspect", "default"]).ok().json()[0]["dropped"].clone();
    let counted = dropped.as_array().unwrap().iter().any(|d| d["container"] == "c1");
    assert!(counted, "{dropped}");
    denied_packets_are_in_the_audit_trail(&it);
}

/// What `container` was denied, by the audit trail: how many records, and how many packets of each
/// reason.
fn denied(it: &Installation, container: &str) -> (usize, BTreeMap<String, u64>) {
    let list = ["system", "audit", "list", "--subject", container, "--format", "json"];
    let rows = it.run(list).ok().json();
    let rows = rows.as_array().unwrap().iter().filter(|row| row["what"] == "deniedPackets");
    let (mut records, mut packets) = (0, BTreeMap::new());
    for row in rows {
        records += 1;
        for (reason, count) in row["counts"].as_object().unwrap() {
            *packets.entry(reason.clone()).or_default() += count.as_u64().unwrap();
        }
    }
    (records, packets)
}

/// Goes on where the egress rules were tested: `c1` has been denied packets and names.
fn denied_packets_are_in_the_audit_trail(it: &Installation) {
    const FLOOD: u64 = 500;
    let before = wait_for("the first records", SOON, || {
        let (_, packets) = denied(it, "c1");
        (packets.contains_key("egress") && packets.contains_key("name")).then_some(packets)
    });
    it.run(["system", "audit", "list", "--subject", "c1"]).ok().has("bad.test").has("egress");
    // What is dropped without a word.
    let flood = format!("busybox ping -q -c {FLOOD} -i 0.002 -W 1 {} || true", METADATA[0]);
    assert!(sh(it, "c1", &flood).contains(&format!("{FLOOD} packets transmitted, 0 ")));
    // The last counters go with the container, and are told before.
    it.run(["delete", "--force", "c1"]).ok();
    let records = wait_for("all of the flood", SOON, || {
        let (records, packets) = denied(it, "c1");
        let of_flood: u64 = packets.values().sum::<u64>() - before.values().sum::<u64>();
        (of_flood >= FLOOD).then_some(records)
    });
    assert!(records <= 30, "{records} records of one container");
    it.run(["system", "audit", "verify"]).ok().has("intact");
}

#[test]
fn a_killed_service_is_not_missed_and_a_stopped_one_leaves_nothing() {
    let world = World::new();
    let before = world.host_state();
    let it = installed(&world);
    start_web(&it, "web", &["--network", "default", "-p", "8080:80"]);
    start(&it, "client", &["--network", "default"]);
    let service = it.process("container-network");
    // A connection that is open all the while.
    let line = "(printf 'GET / HTTP/1.0\\r\\n'; sleep 3; printf '\\r\\n'; sleep 1) | \
                socat -t 5 - TCP4:127.0.0.1:8080";
    let connection = world.host.command("sh").args(["-c", line]).spawn();
    e2e::processes::kill(service.pid, rustix::process::Signal::KILL);
    wait_for("names are known", SOON, || {
        (it.run(["exec", "client", "busybox", "nslookup", "web"]).code == Some(0)).then_some(())
    });
    let answer = connection.wait(SOON).ok().text();
    assert!(answer.ends_with("web"), "{answer}");
    assert_eq!(world.host.fetch("http://127.0.0.1:8080"), "web");
    start_web(&it, "late", &["--network", "default", "-p", "8081:80"]);
    assert_eq!(world.host.fetch("http://127.0.0.1:8081"), "late");
    assert_eq!(get(&it, "late", "http://web"), "web");
    it.run(["stop", "-t", "1", "late"]).ok();
    it.run(["system", "stop"]).ok();
    assert_eq!(world.host_state(), before, "the host is as it was");
}

#[test]
fn a_plain_user_has_networks() {
    let world = World::new();
    // Without root the world is the user's already: a plain user's way is the same.
    let it = Installation::of_plain_user().in_place(&world.host);
    it.load(&busybox::image().unwrap());
    let before = world.host_state();
    let _server = world.internet.serve(&format!("{SERVER}:80"), "internet");
    let _own = [
        world.host.serve("127.0.0.1:81", "loopback"),
        world.host.serve(&format!("{LAN}:81"), "lan"),
    ];
    start_web(&it, "web", &["--network", "default", "-p", "8080:80"]);
    start(&it, "client", &["--network", "default"]);
    assert_eq!(get(&it, "client", "http://web"), "web");
    assert_eq!(get(&it, "client", &format!("http://{SERVER}")), "internet");
    assert_eq!(world.host.fetch("http://127.0.0.1:8080"), "web");
    for address in ["127.0.0.1:81", "10.99.0.1:81", "198.51.100.2:81"] {
        assert!(!reaches(&it, "client", &format!("http://{address}")), "{address}");
    }
    it.run(["create", "--name", "low", "-p", "80:80", "busybox", "true"]).ok();
    if e2e::processes::is_root() {
        it.run(["start", "low"]).fails(125, "80");
    }
    it.run(["system", "stop"]).ok();
    assert_eq!(world.host_state(), before, "the host is as it was");
}

#[test]
fn what_can_not_be_is_refused() {
    let world = World::new();
    let it = installed(&world);
    for (subnet, why) in [
        ("10.5.0.1/24", "host bits"),
        ("10.5.0.0/31", "10.5.0.0/31"),
        ("10.99.0.0/16", "10.99.0.0"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("127.0.0.0/8", "127.0.0.0/8"),
        ("224.0.0.0/8", "224.0.0.0/8"),
    ] {
        it.run(["network", "create", "--subnet", subnet, "wrong"]).fails(125, why);
    }
    it.run(["network", "create", "--subnet", "10.5.0.0/24", "one"]).ok();
    it.run(["network", "create", "--subnet", "10.5.0.0/16", "two"]).fails(125, "one");
    it.run(["network", "create", "one"]).fails(125, "one");
    it.run(["network", "create", &"n".repeat(300)]).fails(125, "name");
    it.run(["network", "delete", "default"]).fails(125, "default");
    it.run(["network", "delete", "one", "missing"]).fails(125, "missing");
    it.run(["create", "--network", "missing", "busybox", "true"]).fails(125, "missing");
    it.run(["create", "--network", "one,ip=10.6.0.1", "busybox", "true"]).fails(125, "10.6.0.1");
    it.run(["create", "--network", "one,ip=10.5.0.1", "busybox", "true"]).fails(125, "10.5.0.1");
    it.run(["create", "--network", "none", "-p", "80:80", "busybox", "true"]).fails(125, "none");
    let quiet = it.run(["network", "list", "--quiet"]).ok().text();
    assert_eq!(quiet, "default\none");
    it.run(["network", "prune"]).ok().prints("one");
    assert!(it.processes().iter().all(|process| !process.name.starts_with("pasta")));
}

/// What the program behind a published port takes its client for.
fn seen_as(client: &Place, address: &str) -> String {
    wait_for(address, SOON * 3, || {
        let line = format!("echo | socat -t 3 - {address}");
        let said = client.command("sh").args(["-c", &line]).run().text();
        (!said.is_empty()).then_some(said)
    })
}

#[test]
fn clients_are_seen_by_their_own_addresses() {
    let world = World::new();
    for plain_user in [false, true] {
        let it = match plain_user {
            true => Installation::of_plain_user(),
            false => Installation::new(),
        }
        .in_place(&world.host);
        it.load(&tools::image().unwrap());
        it.run(["network", "create", "--internal", "inside"]).ok();
        let script = "socat TCP4-LISTEN:80,fork,reuseaddr SYSTEM:'echo $SOCAT_PEERADDR' & \
                      socat TCP6-LISTEN:80,fork,reuseaddr,ipv6only SYSTEM:'echo $SOCAT_PEERADDR' & \
                      exec socat UDP4-RECVFROM:53,fork SYSTEM:'echo $SOCAT_PEERADDR'";
        for (name, network, first) in [("who", "default", 8080), ("inner", "inside", 8090)] {
            let mut words = vec!["run".to_owned(), "-d".into(), "--name".into(), name.into()];
            for port in [
                format!("{LAN}:{first}:80"),
                format!("[2001:db8:99::1]:{first}:80"),
                format!("127.0.0.1:{first}:80"),
                format!("[::1]:{first}:80"),
                format!("{LAN}:{first}:53/udp"),
            ] {
                words.extend(["-p".into(), port]);
            }
            words.extend(["--network", network, "tools", "sh", "-c", script].map(str::to_owned));
            it.run(words).ok();
        }
        let gateway = |name: &str| {
            let about = it.inspect(name)["networks"][0]["ipv4Gateway"].clone();
            about.as_str().unwrap().to_owned()
        };
        let (near, far) = (&world.host, &world.neighbour);
        assert_eq!(seen_as(far, &format!("TCP4:{LAN}:8080")), "10.99.0.2");
        let v6 = seen_as(far, "TCP6:[2001:db8:99::1]:8080");
        assert_eq!(v6, "[2001:0db8:0099:0000:0000:0000:0000:0002]");
        assert_eq!(seen_as(far, &format!("UDP4:{LAN}:8080")), "10.99.0.2");
        // The host itself: by its LAN's address, and by the gateway's where it is loopback.
        assert_eq!(seen_as(near, &format!("TCP4:{LAN}:8080")), LAN);
        assert_eq!(seen_as(near, "TCP4:127.0.0.1:8080"), gateway("who"));
        assert!(seen_as(near, "TCP6:[::1]:8080").starts_with("[fd"));
        // A network that leads nowhere has no way back to anybody.
        assert_eq!(seen_as(far, &format!("TCP4:{LAN}:8090")), gateway("inner"));
        assert_eq!(seen_as(far, &format!("UDP4:{LAN}:8090")), gateway("inner"));
        it.run(["system", "stop"]).ok();
    }
}

#[test]
fn a_published_port_fails_no_request_under_load() {
    const REQUESTS: usize = 400;
    let world = World::new();
    let it = installed(&world);
    start_web(&it, "web", &["--network", "default", "-p", "8080:80"]);
    world.host.fetch("http://127.0.0.1:8080");
    // ApacheBench gives up at the first error; it says how many answers were good.
    let ab = world
        .host
        .command("ab")
        .args(["-q", "-s", "60", "-n", &REQUESTS.to_string(), "-c", "16"])
        .arg("http://127.0.0.1:8080/")
        .run()
        .ok()
        .text();
    let says = |name: &str, number: usize| {
        let line = ab.lines().find(|line| line.starts_with(name));
        line.is_some_and(|line| line.ends_with(&format!(" {number}")))
    };
    assert!(says("Complete requests:", REQUESTS) && says("Failed requests:", 0), "{ab}");
    assert!(!ab.contains("Non-2xx"), "{ab}");
}

/// The IPv4 subnet of a network.
fn subnet(it: &Installation, network: &str) -> String {
    let network = it.run(["network", "inspect", network]).ok().json();
    network[0]["configuration"]["ipv4Subnet"].as_str().unwrap().to_owned()
}

#[test]
fn the_default_network_is_there_and_nobody_elses() {
    let world = World::new();
    // Of IPv6 the host wants to know nothing.
    world.host.sh("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6");
    let _server = world.internet.serve(&format!("{SERVER}:80"), "internet");
    let (one, two) = (installed(&world), installed(&world));
    // Both at once.
    let words = ["run", "-d", "--name", "web", "-p", "0:80", "busybox", "sleep", "10000"];
    let starts = [&one, &two].map(|it| it.container(words).spawn());
    for start in starts {
        start.wait(e2e::DEADLINE).ok();
    }
    assert_ne!(subnet(&one, "default"), subnet(&two, "default"));
    for it in [&one, &two] {
        assert_eq!(get(it, "web", &format!("http://{SERVER}")), "internet");
        assert_eq!(it.inspect("web")["networks"][0]["network"], "default");
    }
    // What the host gets while no container runs.
    let taken = subnet(&two, "default");
    two.run(["network", "create", "--subnet", "10.5.0.0/24", "chosen"]).ok();
    two.run(["system", "stop"]).ok();
    world.host.sh(&format!("ip route add {taken} dev lan; ip route add 10.5.0.0/24 dev lan"));
    two.run(["start", "web"]).ok();
    assert_ne!(subnet(&two, "default"), taken);
    let chosen = ["run", "--rm", "--network", "chosen", "busybox", "true"];
    two.run(chosen).fails(125, "10.5.0.0/24");
}

#[test]
fn where_networks_cannot_be_had_one_line_says_so() {
    let world = World::new();
    let it = installed(&world);
    world.host.sh("mount --bind /dev/null \"$(readlink -f \"$(command -v nft)\")\"");
    let refused = it.run(["run", "--rm", "busybox", "true"]).fails(125, "package nftables");
    assert!(refused.errors().contains("--network none"), "{refused:?}");
    assert_eq!(it.run(["list", "--all", "--quiet"]).ok().text(), "");
    let interfaces = ["run", "--rm", "--network", "none", "busybox", "ls", "/sys/class/net"];
    it.run(interfaces).ok().prints("lo");
    // Said once for all.
    it.run(["system", "stop"]).ok();
    it.configure("network.default = 'none'\n");
    it.run(["run", "--rm", "busybox", "ls", "/sys/class/net"]).ok().prints("lo");
    it.run(["run", "--rm", "-p", "80:80", "busybox", "true"]).fails(125, "nftables");
}
