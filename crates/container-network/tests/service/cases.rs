//! What may happen to a service.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use container_api::ErrorCode;
use container_api::network::{
    Attached, BoundPort, ContainerNetwork, CreateNetwork, DnsDomain, DnsRequest, Network, Parked,
    Protocol, PublishPort, Request,
};

use crate::installation::{Installation, kill, on, resolve, resolve_at};
use crate::world::{Away, dial, serve, sh, until};

const SOON: Duration = Duration::from_secs(2);

fn published(host_port: u16) -> ContainerNetwork {
    let port = PublishPort {
        host_address: None,
        host_port,
        container_port: 80,
        count: 1,
        protocol: Protocol::Tcp,
    };
    ContainerNetwork { published_ports: vec![port], ..on(&["default"]) }
}

fn gateway(attached: &Attached) -> Ipv4Addr {
    attached.attachments[0].ipv4_gateway
}

fn own(attached: &Attached) -> Ipv4Addr {
    attached.attachments[0].ipv4_address.addr()
}

fn host_ports(attached: &Attached) -> Vec<SocketAddr> {
    attached.ports.iter().map(|port: &BoundPort| port.host).collect()
}

/// The host as far as the service changes it.
fn host_state() -> String {
    sh("ip -br link | cut -d' ' -f1 | sort; ip route; ip -6 route | sort
        cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding")
}

/// Names, published ports and connections survive a killed service, and the next one has them.
pub fn a_service_may_die(away: &Away) {
    let before = host_state();
    let installation = Installation::new(away);
    let (web, web_stack) = installation.guest("web", published(0));
    let (db, db_stack) = installation.guest("db", on(&["default"]));
    web_stack.run(|| serve(80, None));
    let ports = host_ports(&web);
    assert_eq!(ports.len(), 2, "{ports:?}");
    for port in &ports {
        assert!(dial(*port, SOON).is_some(), "{port}");
    }
    let server = gateway(&web);
    let ask = || db_stack.run(move || resolve(server, "web"));
    until("a name", || ask() == Some(own(&web)));
    let mut connection = TcpStream::connect(ports[0]).expect("a connection");
    connection.set_read_timeout(Some(SOON)).expect("a limit");
    let mut lines = BufReader::new(connection.try_clone().expect("a duplicate"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("a greeting");
    installation.kill();
    assert_eq!(ask(), Some(own(&web)), "nobody waits for a service");
    assert!(dial(ports[1], SOON).is_some());
    let begin = Instant::now();
    installation.start();
    println!("a new service answers after {} ms", begin.elapsed().as_millis());
    assert_eq!(ask(), Some(own(&web)));
    connection.write_all(b"still here\n").expect("sending");
    line.clear();
    lines.read_line(&mut line).expect("an echo");
    assert_eq!(line, "still here\n");
    // What the next one does is right for what the first one has done.
    let (new, _new_stack) = installation.guest("new", on(&["default"]));
    assert!(own(&new) != own(&web) && own(&new) != own(&db));
    until("a new name", || db_stack.run(move || resolve(server, "new")) == Some(own(&new)));
    let listed: Vec<Network> = installation.call(&Request::List { names: vec![] }).expect("a list");
    assert_eq!(listed[0].attachments.len(), 3);
    installation.call::<()>(&Request::Detach { container: "web".into() }).expect("detaching");
    assert!(dial(ports[0], SOON).is_none());
    until("the name is gone", || ask().is_none());
    installation.call::<()>(&Request::Reconcile { alive: vec!["db".into()] }).expect("tidying");
    until("the name is gone", || db_stack.run(move || resolve(server, "new")).is_none());
    installation.call::<()>(&Request::Shutdown { remove: true }).expect("the end");
    until("the end of all processes", || {
        !sh("ps -eo args").contains(&*installation.root.to_string_lossy())
    });
    assert_eq!(host_state(), before);
    let run = installation.root.join("networks/run");
    let left: Vec<_> = std::fs::read_dir(run).expect("a folder").flatten().collect();
    assert!(!left.iter().any(|e| e.file_name().to_string_lossy().ends_with(".sock")), "{left:?}");
}

/// A resolver or a forwarder that dies is followed by another.
pub fn processes_may_die(away: &Away) {
    let installation = Installation::new(away);
    let (web, stack) = installation.guest("web", published(0));
    stack.run(|| serve(80, None));
    let (server, port) = (gateway(&web), host_ports(&web)[0]);
    for round in 0..2 {
        let resolver = installation.process("resolver-default.sock").expect("a resolver");
        kill(resolver);
        let begin = Instant::now();
        until("names again", || stack.run(move || resolve(server, "web")) == Some(own(&web)));
        let took = begin.elapsed();
        println!("names again after {} ms", took.as_millis());
        kill(installation.process("forward-web.sock").expect("a forwarder"));
        until("a forwarder again", || dial(port, SOON).is_some());
        if round == 0 {
            // A service that is killed is no worse at it.
            installation.kill();
            installation.start();
        }
    }
    // All die at once: the service finds what is left.
    installation.kill();
    kill(installation.process("resolver-default.sock").expect("a resolver"));
    installation.start();
    until("names again", || stack.run(move || resolve(server, "web")) == Some(own(&web)));
}

/// Refusals, each before anything is made.
pub fn requests_are_refused(away: &Away) {
    let installation = Installation::new(away);
    let refused = |request: &Request| installation.call::<serde_json::Value>(request).unwrap_err();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let error = installation.attach("web", published(port)).unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists, "{error}");
    if !away.root {
        let error = installation.attach("web", published(80)).unwrap_err();
        assert_eq!(error.code, ErrorCode::PermissionDenied, "{error}");
        assert!(error.message.contains("publish a port from 1024 on"), "{error}");
    }
    let create = |subnet: &str| {
        let subnet = Some(subnet.parse().expect("a subnet"));
        Request::Create(CreateNetwork { name: "x".into(), subnet, ..CreateNetwork::default() })
    };
    let error = refused(&create("203.0.113.128/25"));
    assert!(error.message.contains("the host has a route to 203.0.113.0/24"), "{error}");
    refused(&create("192.168.64.0/25"));
    refused(&Request::Delete { names: vec!["lost".into()], in_use: vec![] });
    let listed: Vec<Network> = installation.call(&Request::List { names: vec![] }).expect("a list");
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].state, "created", "nothing was made");
}

/// A domain of the host leads to containers, whatever dies.
pub fn names_on_the_host(away: &Away) {
    let installation = Installation::new(away);
    let (web, _stack) = installation.guest("web", on(&["default"]));
    let create = DnsRequest::Create { domain: "lab".into(), localhost: None };
    let domain: DnsDomain = installation.call(&Request::Dns(create)).expect("a domain");
    assert!(domain.advice.is_some_and(|advice| advice.contains("lab")));
    let server = domain.server.expect("a server");
    let known = || resolve_at(server, "web.lab") == Some(own(&web));
    until("a name on the host", known);
    assert_eq!(resolve_at(server, "web"), None);
    assert_eq!(resolve_at(server, "example.com"), None);
    installation.kill();
    assert!(known());
    installation.start();
    assert!(known(), "the same process answers");
    kill(installation.process("resolver-~host.sock").expect("a resolver"));
    until("a name on the host again", known);
    installation.call::<()>(&Request::Detach { container: "web".into() }).expect("detaching");
    until("the name is gone", || !known());
    let delete = DnsRequest::Delete { domain: "lab".into() };
    installation.call::<()>(&Request::Dns(delete)).expect("deleting");
    assert!(installation.process("resolver-~host.sock").is_none());
}

/// How long things take.
pub fn figures(away: &Away) {
    let installation = Installation::new(away);
    let (_, _tap) = installation.call_for_fds::<Parked>(&Request::Park).expect("parking");
    let begin = Instant::now();
    let mut held = vec![installation.attach("first", on(&["default"])).expect("attaching")];
    println!("the first attachment takes {:?}", begin.elapsed());
    let mut times = Vec::new();
    for n in 0..20 {
        let begin = Instant::now();
        held.push(installation.attach(&format!("c{n}"), on(&["default"])).expect("attaching"));
        times.push(begin.elapsed());
    }
    times.sort();
    println!("another takes {:?} (median), {:?} at most", times[10], times[19]);
    let begin = Instant::now();
    installation.attach("ports", published(0)).expect("attaching");
    println!("one with a port takes {:?}", begin.elapsed());
}
