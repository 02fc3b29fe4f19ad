//! A forwarded connection behaves as a direct one.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::thread;

use container_api::network::Protocol;
use container_network::wire::Side;

use super::harness::{Forwarder, Net, connected, eventually, ran_elsewhere, reset, route};

fn read_all(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn each_side_may_end_first_and_go_on_reading() {
    if ran_elsewhere("streams::each_side_may_end_first_and_go_on_reading") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    let forwarder = Forwarder::start(&host, &container);
    let server = container.listen("127.0.0.1:0");
    let at = forwarder.publish(&host, "127.0.0.1:0", Protocol::Tcp, server.local_addr().unwrap());
    for turned in [false, true] {
        let (client, server) = connected(&host, at, &server);
        let (mut first, mut second) = if turned { (server, client) } else { (client, server) };
        first.write_all(b"question").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&mut second).unwrap(), b"question");
        assert_eq!(forwarder.connections().tcp, 1);
        second.write_all(b"answer").unwrap();
        drop(second);
        assert_eq!(read_all(&mut first).unwrap(), b"answer");
        eventually("nothing is left", || forwarder.connections().tcp == 0);
    }
}

#[test]
fn a_reset_is_a_reset_and_what_came_before_it_arrives() {
    if ran_elsewhere("streams::a_reset_is_a_reset_and_what_came_before_it_arrives") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    let forwarder = Forwarder::start(&host, &container);
    let server = container.listen("127.0.0.1:0");
    let at = forwarder.publish(&host, "127.0.0.1:0", Protocol::Tcp, server.local_addr().unwrap());
    for turned in [false, true] {
        let (client, server) = connected(&host, at, &server);
        let (mut first, mut second) = if turned { (server, client) } else { (client, server) };
        first.write_all(b"last words").unwrap();
        let mut words = [0; 10];
        second.read_exact(&mut words).unwrap();
        reset(first);
        assert_eq!(second.read(&mut words).unwrap_err().kind(), ErrorKind::ConnectionReset);
        eventually("nothing is left", || forwarder.connections().tcp == 0);
    }
    // A server that closes what it has not read resets; its answer still comes.
    for _ in 0..50 {
        let (mut client, mut server) = connected(&host, at, &server);
        client.write_all(b"unread").unwrap();
        eventually("the question is there", || rustix::io::ioctl_fionread(&server).unwrap() == 6);
        server.write_all(b"answer").unwrap();
        drop(server);
        let mut answer = [0; 6];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
        assert_eq!(client.read(&mut answer).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn nobody_listens_then_somebody_does() {
    if ran_elsewhere("streams::nobody_listens_then_somebody_does") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    let forwarder = Forwarder::start(&host, &container);
    let server = container.listen("127.0.0.1:0");
    let target = server.local_addr().unwrap();
    drop(server);
    let at = forwarder.publish(&host, "127.0.0.1:0", Protocol::Tcp, target);
    // The host's kernel has accepted it by then, so that it is a reset instead of a refusal. It
    // may come before the client looks.
    let refused = match host.connect(at) {
        Ok(mut client) => client.read(&mut [0]).unwrap_err().kind(),
        Err(error) => error.kind(),
    };
    assert_eq!(refused, ErrorKind::ConnectionReset);
    let server = container.listen(&target.to_string());
    let (mut client, mut server) = connected(&host, at, &server);
    server.write_all(b"late").unwrap();
    let mut word = [0; 4];
    client.read_exact(&mut word).unwrap();
}

#[test]
fn families_mix_and_a_fallback_is_asked() {
    if ran_elsewhere("streams::families_mix_and_a_fallback_is_asked") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    let forwarder = Forwarder::start(&host, &container);
    let v4 = container.listen("127.0.0.1:0");
    let v6 = container.listen("[::1]:0");
    let listeners = [host.listen("[::1]:0"), host.listen("127.0.0.1:0"), host.listen("[::]:0")];
    let fds: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    let only_v6 = SocketAddr::new([127, 0, 0, 1].into(), v6.local_addr().unwrap().port());
    let mut routes = vec![
        route(Side::Host, Protocol::Tcp, v4.local_addr().unwrap()),
        route(Side::Host, Protocol::Tcp, v6.local_addr().unwrap()),
        route(Side::Host, Protocol::Tcp, only_v6),
    ];
    routes[2].fallback = v6.local_addr().ok();
    forwarder.configure(routes, &fds);
    for (at, server) in listeners.iter().zip([&v4, &v6, &v6]) {
        let mut at = at.local_addr().unwrap();
        if at.ip().is_unspecified() {
            at.set_ip([127, 0, 0, 1].into());
        }
        let (mut client, mut server) = connected(&host, at, server);
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        server.write_all(b"y").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn much_goes_both_ways_at_once_and_a_slow_reader_holds_up_nobody_else() {
    if ran_elsewhere("streams::much_goes_both_ways_at_once_and_a_slow_reader_holds_up_nobody_else")
    {
        return;
    }
    const MUCH: usize = 48 << 20;
    let (host, container) = (Net::new(), Net::new());
    let forwarder = Forwarder::start(&host, &container);
    let server = container.listen("127.0.0.1:0");
    let at = forwarder.publish(&host, "127.0.0.1:0", Protocol::Tcp, server.local_addr().unwrap());
    // One that doesn't read: its sender is held up, at last.
    let (stuck_client, stuck_server) = connected(&host, at, &server);
    stuck_client.set_nonblocking(true).unwrap();
    let chunk = vec![7; 1 << 20];
    let mut stuck = 0;
    let mut full = 0;
    eventually("the sender is held up", || match (&stuck_client).write(&chunk) {
        Ok(written) => {
            (stuck, full) = (stuck + written, 0);
            false
        }
        Err(_) => {
            full += 1;
            full > 100
        }
    });
    let (client, server) = connected(&host, at, &server);
    let pattern = |seed: usize| -> Vec<u8> {
        (0..MUCH).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 11) as u8).collect()
    };
    thread::scope(|scope| {
        for (mut writer, mut reader, seed) in [(&client, &server, 1), (&server, &client, 2)] {
            scope.spawn(move || {
                writer.write_all(&pattern(seed)).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || assert!(read_all(&mut reader).unwrap() == pattern(seed)));
        }
    });
    eventually("the other has ended", || forwarder.connections().tcp == 1);
    // And all that the stuck one was given comes when it is read.
    drop(stuck_client);
    assert_eq!(read_all(&mut &stuck_server).unwrap().len(), stuck);
}

#[test]
fn a_client_that_goes_before_it_is_connected_leaves_nothing() {
    if ran_elsewhere("streams::a_client_that_goes_before_it_is_connected_leaves_nothing") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    // An address where packets go and nothing answers: a neighbour that is known and not there.
    container.command("ip", &["link", "add", "hole", "type", "veth", "peer", "name", "end"]);
    container.command("ip", &["addr", "add", "192.0.2.1/24", "dev", "hole"]);
    container.command("ip", &["link", "set", "hole", "up"]);
    container.command("ip", &["link", "set", "end", "up"]);
    let known = "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev hole";
    container.command("sh", &["-c", known]);
    let forwarder = Forwarder::start(&host, &container);
    let target = "192.0.2.9:80".parse().unwrap();
    let at = forwarder.publish(&host, "127.0.0.1:0", Protocol::Tcp, target);
    let clients: Vec<_> = (0..20).map(|_| host.connect(at).unwrap()).collect();
    eventually("all are on their way", || forwarder.connections().tcp == 20);
    for client in clients {
        reset(client);
    }
    eventually("nothing is left", || forwarder.connections().tcp == 0);
}
