//! Many connections, and how long a round trip takes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use container_api::network::Protocol;

use super::harness::{Forwarder, Net, connected, eventually, ran_elsewhere};

/// Accepts and keeps connections, in a table of descriptors of its own, and echoes one byte on each
/// for every number that it is sent.
fn echoes(listener: TcpListener) -> (mpsc::Sender<usize>, thread::JoinHandle<()>) {
    let (orders, ordered) = mpsc::channel();
    let (ready, started) = mpsc::channel();
    let server = thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).unwrap();
        ready.send(()).unwrap();
        let mut streams: Vec<TcpStream> = Vec::new();
        for count in ordered {
            while streams.len() < count {
                streams.push(listener.accept().unwrap().0);
            }
            for stream in &mut streams {
                let mut byte = [0];
                // The clients have gone: it is over.
                let Ok(()) = stream.read_exact(&mut byte) else { return };
                stream.write_all(&byte).unwrap();
            }
        }
    });
    started.recv().unwrap();
    (orders, server)
}

fn many(open_files: Option<u64>, count: usize) -> u64 {
    let (host, container) = (Net::new(), Net::new());
    host.command("sysctl", &["-qw", "net.ipv4.ip_local_port_range=1024 65000"]);
    container.command("sysctl", &["-qw", "net.ipv4.ip_local_port_range=1024 65000"]);
    let forwarder = Forwarder::start_with(&host, &container, open_files);
    let listener = container.listen("127.0.0.1:80");
    let target = listener.local_addr().unwrap();
    let at = forwarder.publish(&host, "127.0.0.1:80", Protocol::Tcp, target);
    let (orders, server) = echoes(listener);
    orders.send(count).unwrap();
    let mut clients: Vec<TcpStream> = Vec::new();
    host.run(|| {
        for _ in 0..count {
            clients.push(TcpStream::connect(at).unwrap());
        }
    });
    let round = |clients: &mut Vec<TcpStream>, byte: u8| {
        for client in clients.iter_mut() {
            client.write_all(&[byte]).unwrap();
        }
        for client in clients {
            client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut echo = [0];
            client.read_exact(&mut echo).unwrap();
            assert_eq!(echo, [byte]);
        }
        orders.send(count).unwrap();
        assert_eq!(forwarder.connections().tcp, count as u64);
    };
    for byte in 0..3 {
        round(&mut clients, byte);
    }
    println!("{count} connections: {}", resident(&forwarder));
    // Past the limit they are refused: a reset, and no waiting.
    let mut refused = 0;
    if open_files.is_some() {
        for _ in 0..50 {
            let error = match host.connect(at) {
                Ok(mut extra) => extra.read(&mut [0]).unwrap_err(),
                Err(error) => error,
            };
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        refused = forwarder.connections().refused;
        round(&mut clients, 9);
    }
    drop((orders, clients));
    server.join().unwrap();
    eventually("nothing is left", || forwarder.connections().tcp == 0);
    refused
}

#[test]
fn past_the_limit_connections_are_refused_and_old_ones_live() {
    if ran_elsewhere("load::past_the_limit_connections_are_refused_and_old_ones_live") {
        return;
    }
    // 64 descriptors are kept; the listening socket takes the place of a connection.
    let (limit, workers) = (100, 32);
    assert_eq!(many(Some(limit), workers * (limit as usize - 64) / 2 - 1), 50);
}

#[test]
fn ten_thousand_connections() {
    if ran_elsewhere("load::ten_thousand_connections") {
        return;
    }
    many(None, 10_000);
}

/// The forwarder's memory.
fn resident(forwarder: &Forwarder) -> String {
    let path = format!("/proc/{}/smaps_rollup", forwarder.pid());
    let text = std::fs::read_to_string(path).unwrap();
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    format!("{}, {}", line("Rss:"), line("Private_Dirty:"))
}

/// Megabytes a second that arrive at the other end.
fn throughput(mut from: TcpStream, mut to: TcpStream) -> f64 {
    const BLOCKS: usize = 1_500;
    let began = Instant::now();
    let writer = thread::spawn(move || {
        let block = vec![1; 1 << 20];
        (0..BLOCKS).for_each(|_| from.write_all(&block).unwrap());
    });
    let mut block = vec![0; 1 << 20];
    let mut bytes = 0;
    while let Ok(read) = to.read(&mut block)
        && read > 0
    {
        bytes += read;
    }
    writer.join().unwrap();
    assert_eq!(bytes, BLOCKS << 20);
    bytes as f64 / 1e6 / began.elapsed().as_secs_f64()
}

#[test]
fn much_goes_through() {
    if ran_elsewhere("load::much_goes_through") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    let forwarder = Forwarder::start(&host, &container);
    let listener = container.listen("127.0.0.1:0");
    let target = listener.local_addr().unwrap();
    let at = forwarder.publish(&host, "127.0.0.1:0", Protocol::Tcp, target);
    println!("idle: {}", resident(&forwarder));
    for _ in 0..3 {
        let (client, server) = connected(&container, target, &listener);
        let direct = throughput(client, server);
        let (client, server) = connected(&host, at, &listener);
        println!("direct {direct:.0} MB/s, forwarded {:.0} MB/s", throughput(client, server));
    }
    eventually("nothing is left", || forwarder.connections().tcp == 0);
}

fn median_round_trip(stream: &mut TcpStream, count: usize) -> Duration {
    let mut byte = [0];
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        stream.write_all(&byte).unwrap();
        stream.read_exact(&mut byte).unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    times[count / 2]
}

#[test]
fn a_round_trip_takes_little_longer() {
    if ran_elsewhere("load::a_round_trip_takes_little_longer") {
        return;
    }
    let (host, container) = (Net::new(), Net::new());
    let forwarder = Forwarder::start(&host, &container);
    let listener = container.listen("127.0.0.1:0");
    let target = listener.local_addr().unwrap();
    let at = forwarder.publish(&host, "127.0.0.1:0", Protocol::Tcp, target);
    let echo = |net: &Net, at: SocketAddr| {
        let (client, mut server) = connected(net, at, &listener);
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        thread::spawn(move || {
            let mut byte = [0];
            while server.read_exact(&mut byte).is_ok() {
                server.write_all(&byte).unwrap();
            }
        });
        client
    };
    let mut direct = echo(&container, target);
    let mut forwarded = echo(&host, at);
    // In turns, and the best of them: others use this machine too.
    let added = (0..10)
        .map(|_| {
            let direct = median_round_trip(&mut direct, 1_000);
            let forwarded = median_round_trip(&mut forwarded, 1_000);
            // `cargo xtask bench network-trip` reads this line.
            println!("direct {} ns, forwarded {} ns", direct.as_nanos(), forwarded.as_nanos());
            forwarded.saturating_sub(direct)
        })
        .min()
        .unwrap();
    println!("added: {added:?}");
    if !cfg!(debug_assertions) {
        assert!(added <= Duration::from_micros(60), "a round trip takes {added:?} longer");
    }
}
