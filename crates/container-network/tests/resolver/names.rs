//! What it knows itself, how fast, and what it is confined to.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use container_api::network::HostAccess;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::harness::{Asker, Resolver, addresses, config, packet};

#[test]
fn containers_find_each_other_and_not_the_host() {
    let mut known = config(&[]);
    known.containers[1].host_access = HostAccess::All;
    known.containers[1].ipv6 = Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3));
    let resolver = Resolver::with(&known);
    for name in ["db.", "DB.", "id-db.", "db.test."] {
        let reply = resolver.ask(2, name, RecordType::A);
        assert_eq!(addresses(&reply), [Ipv4Addr::new(127, 0, 0, 3)], "{name}");
        assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
        assert_eq!(reply.queries[0].name.to_ascii(), name);
    }
    let reply = resolver.ask(2, "db.", RecordType::AAAA);
    assert_eq!(addresses(&reply), [known.containers[1].ipv6.unwrap()]);
    let reply = resolver.ask(2, "3.0.0.127.in-addr.arpa.", RecordType::PTR);
    assert_eq!(reply.answers[0].data.to_string(), "id-db.test.");
    for host in ["host.container.internal.", "host.docker.internal."] {
        let nobody = resolver.ask(2, host, RecordType::A);
        assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
        let gateway = resolver.ask(3, host, RecordType::A);
        assert_eq!(addresses(&gateway), [Ipv4Addr::new(192, 0, 2, 1)]);
    }
    // Nobody outside is asked, so there is nothing else.
    let nobody = resolver.ask(2, "data.example.com.", RecordType::TXT);
    assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
    let refused = resolver.refused();
    assert_eq!((refused[0].container.as_str(), refused[0].questions), ("id-web", 1));
    assert_eq!(refused[0].names, ["data.example.com"]);
    // Over TCP, and several questions on one connection.
    let reply = resolver.ask_tcp(2, &packet("db.", RecordType::A)).unwrap();
    assert_eq!(addresses(&reply), [Ipv4Addr::new(127, 0, 0, 3)]);
}

#[test]
fn strangers_get_no_answer() {
    let resolver = Resolver::with(&config(&[]));
    let stranger = Asker::new(resolver.address, 9);
    stranger.send(&packet("db.", RecordType::A));
    // Answered in order, so that one is dropped by now.
    resolver.ask(2, "db.", RecordType::A);
    assert!(stranger.receive(Duration::from_millis(50)).is_none());
    assert!(resolver.ask_tcp(9, &packet("db.", RecordType::A)).is_err());
}

#[test]
fn the_host_asks_for_its_domains() {
    let mut known = config(&[]);
    known.domain = None;
    known.host_domains = vec!["box".into()];
    known.host_names = vec!["host.box".into()];
    let resolver = Resolver::with(&known);
    let reply = resolver.ask(1, "db.box.", RecordType::A);
    assert_eq!(addresses(&reply), [Ipv4Addr::new(127, 0, 0, 3)]);
    let reply = resolver.ask(1, "host.box.", RecordType::A);
    assert_eq!(addresses(&reply), [Ipv4Addr::LOCALHOST]);
    let reply = resolver.ask(1, "example.com.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn a_name_takes_less_than_a_millisecond() {
    let mut known = config(&[]);
    // As many as a network holds with room for more.
    for n in 0..2000 {
        let mut other = crate::harness::resident(&format!("c{n}"), 0);
        other.ipv4 = Some(Ipv4Addr::new(127, 9, (n >> 8) as u8, n as u8));
        known.containers.push(other);
    }
    let resolver = Resolver::with(&known);
    let asker = Asker::new(resolver.address, 2);
    let mut took: Vec<Duration> = (0..2000)
        .map(|n| {
            let start = Instant::now();
            let reply = asker.ask(&format!("c{n}.test."), RecordType::A).unwrap();
            assert_eq!(reply.answers.len(), 1);
            start.elapsed()
        })
        .collect();
    took.sort();
    let (median, p99) = (took[1000], took[1980]);
    println!("a lookup over UDP on loopback: median {median:?}, 99th of a hundred {p99:?}");
    // Others use this machine too: what most take is the scheduler's.
    assert!(took[200] < Duration::from_millis(1), "{:?}", took[200]);
}

#[test]
fn it_is_confined_and_holds_the_namespace() {
    let resolver = Resolver::with(&config(&[]));
    assert_eq!(resolver.status("CapEff"), "0000000000000000");
    assert_eq!(resolver.status("CapPrm"), "0000000000000000");
    assert_eq!(resolver.status("NoNewPrivs"), "1");
    assert_eq!(resolver.status("Seccomp"), "2");
    assert_eq!(resolver.status("Threads"), "1");
    let held = resolver.namespaces();
    let own = std::fs::metadata("/proc/self/ns/net").unwrap();
    use std::os::unix::fs::MetadataExt;
    let same = std::fs::File::from(held.into_iter().next().unwrap()).metadata().unwrap();
    assert_eq!((same.dev(), same.ino()), (own.dev(), own.ino()));
    resolver.end();
}
