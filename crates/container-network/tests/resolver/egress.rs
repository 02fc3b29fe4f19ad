//! Egress rules: what is asked outside, what is told, and when.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use container_api::network::{Egress, Target};
use container_network::wire::ResolverConfig;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, CNAME, HTTPS, SVCB, TXT};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::harness::{Asker, Outside, Resolver, addresses, config, only, packet};

fn a(a: u8, b: u8, c: u8, d: u8) -> RData {
    RData::A(A::new(a, b, c, d))
}

fn cname(to: &str) -> RData {
    RData::CNAME(CNAME(Name::from_ascii(to).unwrap()))
}

fn outside() -> Outside {
    let hint = SVCB::new(1, Name::root(), Vec::new());
    Outside::with(&[
        ("ok.example.", a(198, 51, 100, 1)),
        ("ok.example.", RData::TXT(TXT::new(vec!["secret".into()]))),
        ("ok.example.", RData::HTTPS(HTTPS(hint))),
        ("cdn.ok.example.", cname("edge.cdn.example.")),
        ("edge.cdn.example.", a(198, 51, 100, 2)),
        ("rebind.ok.example.", a(127, 0, 0, 1)),
        ("rebind.ok.example.", a(10, 0, 0, 1)),
        ("rebind.ok.example.", a(100, 64, 0, 1)),
        ("rebind.ok.example.", a(169, 254, 169, 254)),
        ("rebind.ok.example.", a(168, 63, 129, 16)),
        ("rebind.ok.example.", a(198, 51, 100, 77)),
        ("mixed.ok.example.", a(192, 168, 1, 1)),
        ("mixed.ok.example.", a(198, 51, 100, 3)),
        ("mixed.ok.example.", a(172, 16, 5, 5)),
    ])
}

fn restricted(outside: &Outside) -> ResolverConfig {
    let mut known = config(&[outside.address]);
    let private = Target::Cidr { net: "172.16.5.0/24".parse().unwrap(), port: None };
    let Egress::Only(mut targets) = only(&["ok.example", "*.ok.example"]) else { unreachable!() };
    targets.push(private);
    known.containers[0].egress = vec![Egress::Only(targets)];
    known
}

#[test]
fn nothing_but_allowed_names_leaves() {
    let outside = outside();
    let resolver = Resolver::with(&restricted(&outside));
    let tunnels = [
        ("ZGF0YQ.tunnel.example.", RecordType::TXT),
        ("ZGF0YQ.tunnel.example.", RecordType::A),
        ("ZGF0YQ.tunnel.example.", RecordType::NULL),
        ("edge.cdn.example.", RecordType::A),
        ("xok.example.", RecordType::A),
        ("ok.example.evil.example.", RecordType::A),
        ("8.8.8.8.in-addr.arpa.", RecordType::PTR),
        ("singlelabel.", RecordType::A),
        ("com.", RecordType::NS),
        (".", RecordType::NS),
    ];
    for (name, kind) in tunnels {
        let reply = resolver.ask(2, name, kind);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name} {kind}");
        let reply = resolver.ask_tcp(2, &packet(name, kind)).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name} {kind}");
    }
    // Nor do other types of names that are allowed.
    for kind in [RecordType::TXT, RecordType::HTTPS, RecordType::NULL, RecordType::CNAME] {
        let reply = resolver.ask(2, "ok.example.", kind);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(reply.answers.is_empty() && reply.authorities.is_empty(), "{kind}");
    }
    assert_eq!(outside.asked(), Vec::<String>::new());
    let refused = resolver.refused();
    assert_eq!(refused.len(), 1);
    assert!(refused[0].container == "id-web" && refused[0].questions >= 18);
    // The neighbour's names are the network's own business, and the neighbour has no rules.
    assert_eq!(addresses(&resolver.ask(2, "db.", RecordType::A)).len(), 1);
    assert_eq!(resolver.ask(3, "ok.example.", RecordType::TXT).answers.len(), 1);
}

#[test]
fn an_answer_waits_for_its_pin_and_the_spelling_stays_here() {
    let outside = outside();
    let resolver = Resolver::with(&restricted(&outside));
    let pins = resolver.pins();
    let asker = Asker::new(resolver.address, 2);
    asker.send(&packet("cDn.Ok.eXample.", RecordType::A));
    let pin = pins.next();
    assert_eq!((pin.container.as_str(), pin.name.as_str()), ("id-web", "cdn.ok.example"));
    assert_eq!(pin.addresses, [IpAddr::from([198, 51, 100, 2])]);
    assert!(pin.ports.is_empty() && (120..=130).contains(&pin.seconds), "{pin:?}");
    assert!(asker.receive(Duration::from_millis(200)).is_none(), "not before it is in force");
    resolver.confirm(pin.sequence);
    let reply = asker.receive(Duration::from_secs(5)).unwrap();
    assert_eq!(addresses(&reply), [Ipv4Addr::new(198, 51, 100, 2)]);
    // The name that was asked for has the address: names in between are not its business.
    assert_eq!(reply.answers[0].name.to_ascii(), "cDn.Ok.eXample.");
    assert_eq!(outside.asked(), ["udp cdn.ok.example. A"]);
    // In force already.
    assert_eq!(addresses(&asker.ask("cdn.ok.example.", RecordType::A).unwrap()).len(), 1);
    assert!(pins.none());
}

#[test]
fn addresses_inside_are_left_out() {
    let outside = outside();
    let resolver = Resolver::with(&restricted(&outside));
    let reply = resolver.ask(2, "rebind.ok.example.", RecordType::A);
    assert!(addresses(&reply).is_empty());
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    let asker = Asker::new(resolver.address, 2);
    let pins = resolver.pins();
    asker.send(&packet("mixed.ok.example.", RecordType::A));
    let pin = pins.next();
    // The private one that a rule allows needs no pin.
    assert_eq!(pin.addresses, [IpAddr::from([198, 51, 100, 3])]);
    resolver.confirm(pin.sequence);
    let told = addresses(&asker.receive(Duration::from_secs(5)).unwrap());
    assert_eq!(told, [Ipv4Addr::new(198, 51, 100, 3), Ipv4Addr::new(172, 16, 5, 5)]);
}

#[test]
fn the_next_service_takes_over() {
    let outside = outside();
    let resolver = Resolver::with(&restricted(&outside));
    let pins = resolver.pins();
    let asker = Asker::new(resolver.address, 2);
    asker.send(&packet("ok.example.", RecordType::A));
    let lost = pins.next();
    // The service dies before it has told its rules, and another one comes.
    drop(pins);
    assert!(asker.receive(Duration::from_millis(300)).is_none());
    let start = Instant::now();
    let pins = resolver.pins();
    let again = pins.next();
    assert_eq!(again.addresses, lost.addresses);
    resolver.confirm(again.sequence);
    assert_eq!(addresses(&asker.receive(Duration::from_secs(5)).unwrap()).len(), 1);
    let took = start.elapsed();
    println!("answered {took:?} after the next service came");
    drop(pins);
    // What is in force needs no service, and a third one hears of it.
    assert_eq!(addresses(&asker.ask("ok.example.", RecordType::A).unwrap()).len(), 1);
    assert_eq!(resolver.pins().next().addresses, lost.addresses);
}

#[test]
fn without_a_service_an_allowed_name_fails() {
    let outside = outside();
    let resolver = Resolver::with(&restricted(&outside));
    let reply = resolver.ask(2, "ok.example.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert!(reply.answers.is_empty());
}

#[test]
fn changed_rules_forget_what_is_in_force() {
    let outside = outside();
    let mut known = restricted(&outside);
    let resolver = Resolver::with(&known);
    let pins = resolver.pins();
    let asker = Asker::new(resolver.address, 2);
    let announced = || {
        asker.send(&packet("ok.example.", RecordType::A));
        let pin = pins.next();
        resolver.confirm(pin.sequence);
        assert_eq!(addresses(&asker.receive(Duration::from_secs(5)).unwrap()).len(), 1);
        pin
    };
    assert!(announced().ports.is_empty());
    resolver.configure(&known);
    assert_eq!(addresses(&asker.ask("ok.example.", RecordType::A).unwrap()).len(), 1);
    assert!(pins.none(), "nothing changed for it");
    let target = Target::Host { name: "ok.example".into(), port: Some(443) };
    known.containers[0].egress.push(Egress::Only(vec![target]));
    resolver.configure(&known);
    assert_eq!(announced().ports, [443]);
}
