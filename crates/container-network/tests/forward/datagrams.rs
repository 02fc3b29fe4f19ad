//! UDP.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use container_api::network::Protocol;
use container_network::wire::Side;

use super::harness::{Forwarder, Net, eventually, ran_elsewhere, route};

#[test]
fn each_client_gets_its_own_answers_from_the_address_it_asked() {
    if ran_elsewhere("datagrams::each_client_gets_its_own_answers_from_the_address_it_asked") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    host.command("ip", &["addr", "add", "192.0.2.1/32", "dev", "lo"]);
    host.command("ip", &["addr", "add", "2001:db8::1/128", "dev", "lo", "nodad"]);
    let forwarder = Forwarder::start(&host, &container);
    let server = container.datagrams("127.0.0.1:0");
    for (on, asked) in [
        ("0.0.0.0:0", ["127.0.0.1", "192.0.2.1"]),
        ("[::]:0", ["::1", "2001:db8::1"]),
        ("[::]:0", ["127.0.0.1", "192.0.2.1"]),
    ] {
        let target = server.local_addr().unwrap();
        let port = forwarder.publish(&host, on, Protocol::Udp, target).port();
        let bind = if asked[0].contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        let clients = [host.datagrams(bind), host.datagrams(bind)];
        let mut from = Vec::new();
        let mut buffer = [0; 2048];
        for (number, client) in clients.iter().enumerate() {
            for asked in asked {
                let asked = SocketAddr::new(asked.parse().unwrap(), port);
                let question = format!("{number} {asked}");
                client.send_to(question.as_bytes(), asked).unwrap();
                let (length, sender) = server.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], question.as_bytes());
                from.push((number, asked, sender));
            }
        }
        for (number, asked, sender) in from.iter().rev() {
            server.send_to(asked.to_string().as_bytes(), sender).unwrap();
            let (length, answerer) = clients[*number].recv_from(&mut buffer).unwrap();
            assert_eq!(answerer, *asked);
            assert_eq!(&buffer[..length], asked.to_string().as_bytes());
        }
        assert_eq!(forwarder.connections().udp, 4);
    }
}

#[test]
fn a_late_server_an_empty_and_a_long_datagram() {
    if ran_elsewhere("datagrams::a_late_server_an_empty_and_a_long_datagram") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    let forwarder = Forwarder::start(&host, &container);
    let target = container.datagrams("[::1]:0").local_addr().unwrap();
    let at = forwarder.publish(&host, "127.0.0.1:0", Protocol::Udp, target);
    let client = host.datagrams("127.0.0.1:0");
    for _ in 0..3 {
        client.send_to(b"too early", at).unwrap();
    }
    eventually("the client is known", || forwarder.connections().udp == 1);
    let server = container.datagrams(&target.to_string());
    server.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut buffer = vec![0; 70_000];
    eventually("the server hears the client", || {
        client.send_to(b"now", at).unwrap();
        server.recv_from(&mut buffer).is_ok_and(|(length, _)| &buffer[..length] == b"now")
    });
    server.set_read_timeout(Some(super::harness::SOON)).unwrap();
    for length in [0, 1, 1472, 60_000] {
        client.send_to(&vec![b'x'; length], at).unwrap();
        let (arrived, sender) = loop {
            let (arrived, sender) = server.recv_from(&mut buffer).unwrap();
            // Some that were sent again, above, come late.
            if buffer[..arrived] != *b"now" {
                break (arrived, sender);
            }
        };
        assert_eq!(arrived, length);
        server.send_to(&vec![b'y'; length], sender).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap().0, length);
    }
}

#[test]
fn a_crowd_of_clients_takes_no_room_from_streams() {
    if ran_elsewhere("datagrams::a_crowd_of_clients_takes_no_room_from_streams") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    let forwarder = Forwarder::start_with(&host, &container, Some(256));
    let server = container.datagrams("127.0.0.1:0");
    let streams = container.listen("127.0.0.1:0");
    let (datagrams, listener) = (host.datagrams("127.0.0.1:0"), host.listen("127.0.0.1:0"));
    forwarder.configure(
        vec![
            route(Side::Host, Protocol::Udp, server.local_addr().unwrap()),
            route(Side::Host, Protocol::Tcp, streams.local_addr().unwrap()),
        ],
        &[datagrams.as_fd(), listener.as_fd()],
    );
    let clients: Vec<_> = (0..400).map(|_| host.datagrams("127.0.0.1:0")).collect();
    for client in &clients {
        client.send_to(b"x", datagrams.local_addr().unwrap()).unwrap();
    }
    eventually("some are remembered", || forwarder.connections().udp == (256 - 64) / 4);
    let at = listener.local_addr().unwrap();
    let all: Vec<_> = (0..100).map(|_| super::harness::connected(&host, at, &streams)).collect();
    assert_eq!(forwarder.connections().tcp, all.len() as u64);
    assert_eq!(forwarder.connections().refused, 0);
}
