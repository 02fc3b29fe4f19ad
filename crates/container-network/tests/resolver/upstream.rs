//! Names outside: a real server, and servers that fail.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::harness::{Asker, Dnsmasq, Outside, Resolver, addresses, answer, config, packet};

fn a(last: u8) -> RData {
    RData::A(A::new(198, 51, 100, last))
}

#[test]
fn a_real_server_answers_and_is_remembered() {
    let many: Vec<String> =
        (1..=76).map(|n| format!("--host-record=many.example,198.51.100.{n}")).collect();
    let mut options = vec![
        "--host-record=www.example,198.51.100.1,2001:db8::80",
        "--cname=alias.example,www.example",
        "--txt-record=text.example,some text",
        "--mx-host=example,mail.example,10",
        "--local=/example/",
    ];
    options.extend(many.iter().map(String::as_str));
    let dnsmasq = Dnsmasq::start(&options);
    let resolver = Resolver::with(&config(&[dnsmasq.address]));
    let reply = resolver.ask(2, "www.example.", RecordType::A);
    assert_eq!(addresses(&reply), [Ipv4Addr::new(198, 51, 100, 1)]);
    assert!(reply.answers[0].ttl <= 60 && reply.metadata.recursion_available);
    let reply = resolver.ask(2, "www.example.", RecordType::AAAA);
    assert_eq!(addresses(&reply).len(), 1);
    let reply = resolver.ask(2, "alias.example.", RecordType::A);
    assert_eq!((reply.answers.len(), addresses(&reply).len()), (2, 1));
    let reply = resolver.ask(2, "text.example.", RecordType::TXT);
    assert!(reply.answers[0].data.to_string().contains("some text"));
    let reply = resolver.ask(2, "example.", RecordType::MX);
    assert_eq!(reply.answers.len(), 1);
    let reply = resolver.ask(2, "nobody.example.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    // Too long for UDP on both sides.
    let reply = resolver.ask(2, "many.example.", RecordType::A);
    assert!(reply.metadata.truncation && reply.answers.is_empty());
    let reply = resolver.ask_tcp(2, &packet("many.example.", RecordType::A)).unwrap();
    assert_eq!(addresses(&reply).len(), 76);
    drop(dnsmasq);
    let reply = resolver.ask(3, "WWW.example.", RecordType::A);
    assert_eq!(addresses(&reply).len(), 1, "remembered");
    let reply = resolver.ask(2, "mail.example.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    // Another server may say something else.
    let other = Outside::with(&[("www.example.", a(9))]);
    resolver.configure(&config(&[other.address]));
    let reply = resolver.ask(3, "www.example.", RecordType::A);
    assert_eq!(addresses(&reply), [Ipv4Addr::new(198, 51, 100, 9)]);
}

#[test]
fn servers_that_fail_are_passed_over() {
    let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let silent = Outside::start(|_| Vec::new());
    let failing = Outside::start(|question| {
        let code = ResponseCode::ServFail;
        let mut reply = Message::error_msg(question.metadata.id, OpCode::Query, code);
        reply.queries = question.queries.clone();
        vec![reply.to_vec().unwrap()]
    });
    let works = Outside::with(&[("a.example.", a(1)), ("b.example.", a(2))]);
    let all = [nobody, failing.address, silent.address, works.address];
    let resolver = Resolver::with(&config(&all));
    assert_eq!(addresses(&resolver.ask(2, "a.example.", RecordType::A)).len(), 1);
    // From now on the one that works is asked first.
    assert_eq!(addresses(&resolver.ask(2, "b.example.", RecordType::A)).len(), 1);
    assert_eq!(silent.asked().len(), 1);
}

#[test]
fn a_server_of_old_is_asked_without_extensions() {
    let old = Outside::start(|question| {
        let mut reply = answer(question, &[]);
        reply.metadata.response_code = ResponseCode::NXDomain;
        if question.edns.is_some() {
            let code = ResponseCode::FormErr;
            reply = Message::error_msg(question.metadata.id, OpCode::Query, code);
        }
        vec![reply.to_vec().unwrap()]
    });
    let resolver = Resolver::with(&config(&[old.address]));
    let reply = resolver.ask(2, "a.example.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn forged_answers_are_not_taken() {
    let outside = Outside::start(|question| {
        let name = question.queries[0].name.clone();
        let good =
            answer(question, &[hickory_proto::rr::Record::from_rdata(name.clone(), 60, a(1))]);
        let mut wrong_id = good.clone();
        wrong_id.metadata.id ^= 1;
        let mut wrong_name = good.clone();
        wrong_name.queries[0].name = Name::from_ascii("other.example.").unwrap();
        let mut no_answer = good.clone();
        no_answer.metadata.message_type = hickory_proto::op::MessageType::Query;
        let mut bytes = [wrong_id, wrong_name, no_answer].map(|m| m.to_vec().unwrap()).to_vec();
        bytes.extend([vec![], vec![0xff; 600], good.to_vec().unwrap()[..20].to_vec()]);
        bytes.push(good.to_vec().unwrap());
        bytes
    });
    let resolver = Resolver::with(&config(&[outside.address]));
    let reply = resolver.ask(2, "a.example.", RecordType::A);
    assert_eq!(addresses(&reply), [Ipv4Addr::new(198, 51, 100, 1)]);
}

#[test]
fn the_same_question_is_asked_once() {
    let outside = Outside::start(|question| {
        std::thread::sleep(Duration::from_millis(300));
        let name = question.queries[0].name.clone();
        let record = hickory_proto::rr::Record::from_rdata(name, 60, a(1));
        vec![answer(question, &[record]).to_vec().unwrap()]
    });
    let resolver = Resolver::with(&config(&[outside.address]));
    let askers: Vec<Asker> = (0..20).map(|n| Asker::new(resolver.address, 2 + n % 2)).collect();
    for asker in &askers {
        asker.send(&packet("a.example.", RecordType::A));
    }
    for asker in &askers {
        assert_eq!(addresses(&asker.receive(Duration::from_secs(5)).unwrap()).len(), 1);
    }
    assert_eq!(outside.asked(), ["udp a.example. A"]);
}

#[test]
fn what_is_the_hosts_own_is_left_out() {
    let own = RData::A(A::new(198, 51, 100, 77));
    let outside = Outside::with(&[
        ("rebind.example.", own),
        ("rebind.example.", a(1)),
        ("office.example.", RData::A(A::new(10, 1, 2, 3))),
        ("loop.example.", RData::CNAME(CNAME(Name::from_ascii("loop.example.").unwrap()))),
    ]);
    let resolver = Resolver::with(&config(&[outside.address]));
    let reply = resolver.ask(2, "rebind.example.", RecordType::A);
    assert_eq!(addresses(&reply), [Ipv4Addr::new(198, 51, 100, 1)]);
    // Without rules, private addresses are the business of whoever runs the network.
    let reply = resolver.ask(2, "office.example.", RecordType::A);
    assert_eq!(addresses(&reply), [Ipv4Addr::new(10, 1, 2, 3)]);
    let reply = resolver.ask(2, "loop.example.", RecordType::A);
    assert!(addresses(&reply).is_empty());
}
