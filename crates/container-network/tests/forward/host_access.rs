//! From the container's side to the host.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;

use container_api::network::Protocol;
use container_network::wire::{ForwarderConfig, ForwarderRequest, Side};

use super::harness::{Forwarder, Net, ran_elsewhere, route};

#[test]
fn a_datagram_reaches_a_port_of_the_host() {
    if ran_elsewhere("host_access::a_datagram_reaches_a_port_of_the_host") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    let forwarder = Forwarder::start(&host, &container);
    let server = host.datagrams("127.0.0.1:0");
    let socket = container.datagrams("[::1]:0");
    let mut way = route(Side::Container, Protocol::Udp, server.local_addr().unwrap());
    forwarder.configure(vec![way.clone()], &[socket.as_fd()]);
    let client = container.datagrams("[::1]:0");
    client.send_to(b"question", socket.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 64];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"question");
    server.send_to(b"answer", from).unwrap();
    let (length, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from), (&b"answer"[..], socket.local_addr().unwrap()));
    // Which port was wanted can't be known: refused.
    way.target.set_port(0);
    let config = ForwarderConfig { container: "test".into(), routes: vec![way] };
    let request = ForwarderRequest::Configure(config);
    forwarder.call::<()>(&request, &[socket.as_fd()]).unwrap_err();
}

#[test]
fn a_redirected_connection_reaches_the_port_it_wanted_if_it_may() {
    if ran_elsewhere("host_access::a_redirected_connection_reaches_the_port_it_wanted_if_it_may") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    for (loopback, family) in [("127.0.0.1", "ip"), ("[::1]", "ip6")] {
        let forwarder = Forwarder::start(&host, &container);
        let wanted = host.listen("127.0.0.1:0");
        let secret = host.listen("127.0.0.1:0");
        let port = |listener: &std::net::TcpListener| listener.local_addr().unwrap().port();
        let listener = container.listen(&format!("{loopback}:0"));
        let rules = format!(
            "table {family} redirects {{
                chain output {{
                    type nat hook output priority -100
                    tcp dport {{ {}, {} }} redirect to :{}
                }}
            }}",
            port(&wanted),
            port(&secret),
            port(&listener)
        );
        container.command("nft", &[&rules]);
        let mut way = route(Side::Container, Protocol::Tcp, "127.0.0.1:0".parse().unwrap());
        way.ports = vec![port(&wanted)];
        forwarder.configure(vec![way], &[listener.as_fd()]);
        let at = |port: u16| -> SocketAddr { format!("{loopback}:{port}").parse().unwrap() };
        let mut client = container.connect(at(port(&wanted))).unwrap();
        let (mut server, _) = wanted.accept().unwrap();
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        let refused = match container.connect(at(port(&secret))) {
            Ok(mut client) => client.read(&mut [0]).unwrap_err().kind(),
            Err(error) => error.kind(),
        };
        assert_eq!(refused, ErrorKind::ConnectionReset);
        secret.set_nonblocking(true).unwrap();
        assert_eq!(secret.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(forwarder.connections().refused, 1);
    }
}
