//! The forwarder as a process: what it may do, what it gives back, how it ends.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use container_api::network::Protocol;
use container_network::wire::{ForwarderConfig, ForwarderRequest, Side};

use super::harness::{Forwarder, Net, connected, eventually, ran_elsewhere, route};

#[test]
fn every_thread_of_it_is_confined() {
    if ran_elsewhere("process::every_thread_of_it_is_confined") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    let forwarder = Forwarder::start_with(&host, &container, Some(128));
    let server = container.listen("127.0.0.1:0");
    let inside = container.listen("127.0.0.1:0");
    let listener = host.listen("127.0.0.1:0");
    let target = server.local_addr().unwrap();
    forwarder.configure(
        vec![
            route(Side::Host, Protocol::Tcp, target),
            route(Side::Container, Protocol::Tcp, target),
        ],
        &[listener.as_fd(), inside.as_fd()],
    );
    // So many that a second worker is needed.
    let at = listener.local_addr().unwrap();
    let _all: Vec<_> = (0..40).map(|_| connected(&host, at, &server)).collect();
    let mut threads = 0;
    for thread in std::fs::read_dir(format!("/proc/{}/task", forwarder.pid())).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
        };
        let name = field("Name:");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            // CAP_NET_RAW, for sockets with a client's address, where published ports lead.
            let kept = name == "inwards" && ["CapPrm:", "CapEff:"].contains(&set);
            let expected = if kept { "2000" } else { "" };
            assert_eq!(field(set).trim_start_matches('0'), expected, "{set} of {name}");
        }
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
        threads += 1;
    }
    assert_eq!(threads, 4, "the main thread, one each way, and a further one");
}

#[test]
fn it_gives_the_namespace_back_and_ends_when_asked() {
    if ran_elsewhere("process::it_gives_the_namespace_back_and_ends_when_asked") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    let mut forwarder = Forwarder::start(&host, &container);
    let ((), fds) = forwarder.call(&ForwarderRequest::Namespaces, &[]).unwrap();
    let inode = |fd: std::os::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
    assert_eq!(fds.len(), 1);
    assert_eq!(inode(fds[0].as_fd()), inode(container.as_fd()));
    let server = container.listen("127.0.0.1:0");
    let at = forwarder.publish(&host, "127.0.0.1:0", Protocol::Tcp, server.local_addr().unwrap());
    let (mut client, mut server) = connected(&host, at, &server);
    forwarder.call::<()>(&ForwarderRequest::End, &[]).unwrap();
    assert!(forwarder.ended().success());
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    host.listen(&at.to_string());
}

#[test]
fn routes_are_replaced_and_added_while_connections_live_on() {
    if ran_elsewhere("process::routes_are_replaced_and_added_while_connections_live_on") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    let forwarder = Forwarder::start(&host, &container);
    let server = container.listen("127.0.0.1:0");
    let target = server.local_addr().unwrap();
    let first = forwarder.publish(&host, "127.0.0.1:0", Protocol::Tcp, target);
    let (mut client, mut old) = connected(&host, first, &server);
    // Other ports in the place of the first, which is free again at once; in two messages.
    let listeners: Vec<_> = (0..20).map(|_| host.listen("127.0.0.1:0")).collect();
    for (at, group) in listeners.chunks(16).enumerate() {
        let routes = vec![route(Side::Host, Protocol::Tcp, target); group.len()];
        let fds: Vec<_> = group.iter().map(AsFd::as_fd).collect();
        let config = ForwarderConfig { container: "test".into(), routes };
        let request = match at {
            0 => ForwarderRequest::Configure(config),
            _ => ForwarderRequest::Add(config),
        };
        forwarder.call::<()>(&request, &fds).unwrap();
    }
    drop(host.listen(&first.to_string()));
    for listener in &listeners {
        let (mut client, mut server) = connected(&host, listener.local_addr().unwrap(), &server);
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
    }
    client.write_all(b"x").unwrap();
    old.read_exact(&mut [0]).unwrap();
    // A message that says less than it brings changes nothing.
    let config = ForwarderConfig { container: "test".into(), routes: Vec::new() };
    let request = ForwarderRequest::Configure(config);
    forwarder.call::<()>(&request, &[listeners[0].as_fd()]).unwrap_err();
    let (_client, _server) = connected(&host, listeners[0].local_addr().unwrap(), &server);
    eventually("all others have gone", || forwarder.connections().tcp == 2);
}
