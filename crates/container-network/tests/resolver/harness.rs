//! A resolver, those who ask it, the service that configures it, and a server outside.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use container_api::network::{Egress, Target};
use container_api::varlink::Client;
use container_network::wire::{Pin, Refused, Resident, ResolverConfig, ResolverRequest};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// How long anything may take that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Spawning inherits descriptors: one at a time.
static SPAWNING: Mutex<()> = Mutex::new(());

/// A resolver's process.
pub struct Resolver {
    child: Child,
    directory: tempfile::TempDir,
    /// Where it answers, over UDP and TCP.
    pub address: SocketAddr,
}

impl Resolver {
    pub fn start() -> Resolver {
        let directory = tempfile::tempdir().unwrap();
        let control = UnixListener::bind(directory.path().join("control.sock")).unwrap();
        let (udp, tcp) = both(Ipv4Addr::LOCALHOST);
        let address = udp.local_addr().unwrap();
        let network: OwnedFd = std::fs::File::open("/proc/self/ns/net").unwrap().into();
        let all: Vec<OwnedFd> = vec![control.into(), network, udp.into(), tcp.into()];
        let numbers: Vec<String> = all.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        let guard = SPAWNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        inherit(&all);
        let child = Command::new(env!("CARGO_BIN_EXE_container-network"))
            .args(["resolver", "--name", "test", "--control", &numbers[0]])
            .args(["--network", &numbers[1], "--sockets", &numbers[2..].join(",")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        drop(all);
        drop(guard);
        Resolver { child, directory, address }
    }

    /// One that knows `config`.
    pub fn with(config: &ResolverConfig) -> Resolver {
        let resolver = Resolver::start();
        resolver.configure(config);
        resolver
    }

    pub fn configure(&self, config: &ResolverConfig) {
        self.service(async |client| {
            let request = ResolverRequest::Configure(config.clone());
            client.call::<_, ()>(&request, &[], Some(PATIENCE)).await.unwrap();
        });
    }

    pub fn confirm(&self, sequence: u64) {
        self.service(async |client| {
            let request = ResolverRequest::Pinned { sequence };
            client.call::<_, ()>(&request, &[], Some(PATIENCE)).await.unwrap();
        });
    }

    pub fn refused(&self) -> Vec<Refused> {
        self.service(async |client| {
            client.call(&ResolverRequest::Refused, &[], Some(PATIENCE)).await.unwrap()
        })
    }

    pub fn namespaces(&self) -> Vec<OwnedFd> {
        self.service(async |client| {
            let request = ResolverRequest::Namespaces;
            client.call_for_fds::<_, ()>(&request, &[], Some(PATIENCE)).await.unwrap().1
        })
    }

    /// Ends it as the service does.
    pub fn end(mut self) {
        self.service(async |client| {
            client.call::<_, ()>(&ResolverRequest::End, &[], Some(PATIENCE)).await.unwrap();
        });
        until("the process ends", || self.child.try_wait().unwrap());
    }

    /// A line of its `/proc/PID/status`.
    pub fn status(&self, key: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    }

    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Hears of pins until it is dropped.
    pub fn pins(&self) -> Pins {
        let stream = self.connect();
        let closer = stream.try_clone().unwrap();
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            block_on(async {
                let mut client = Client::new(stream).unwrap();
                let progress = |pin: Pin| drop(sender.send(pin));
                // Ends with the connection.
                let _ = client
                    .call_with_progress::<_, _, ()>(&ResolverRequest::Pins, &[], None, progress)
                    .await;
            });
        });
        // Served in order on one thread: when a later connection is answered, this one is known.
        self.refused();
        Pins { receiver, closer, thread: Some(thread) }
    }

    fn connect(&self) -> std::os::unix::net::UnixStream {
        container_api::socket::connect(self.directory.path(), "control.sock").unwrap()
    }

    fn service<T>(&self, call: impl AsyncFnOnce(&mut Client) -> T) -> T {
        let stream = self.connect();
        block_on(async { call(&mut Client::new(stream).unwrap()).await })
    }

    /// Asks over UDP from `127.0.0.last`.
    pub fn ask(&self, last: u8, name: &str, kind: RecordType) -> Message {
        Asker::new(self.address, last).ask(name, kind).expect("an answer")
    }

    /// Asks over TCP from `127.0.0.last`.
    pub fn ask_tcp(&self, last: u8, packet: &[u8]) -> std::io::Result<Message> {
        let mut stream = self.tcp(last);
        stream.write_all(&(packet.len() as u16).to_be_bytes())?;
        stream.write_all(packet)?;
        read_message(&mut stream)
    }

    /// A connection from `127.0.0.last`.
    pub fn tcp(&self, last: u8) -> TcpStream {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket,
        };
        let fd =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, last, 0)).unwrap();
        let SocketAddr::V4(to) = self.address else { unreachable!() };
        connect(fd.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
        let stream = TcpStream::from(fd);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The service's ear.
pub struct Pins {
    receiver: mpsc::Receiver<Pin>,
    closer: std::os::unix::net::UnixStream,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Pins {
    pub fn next(&self) -> Pin {
        self.receiver.recv_timeout(PATIENCE).expect("a pin")
    }

    pub fn none(&self) -> bool {
        self.receiver.try_recv().is_err()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = self.closer.shutdown(std::net::Shutdown::Both);
        let _ = self.thread.take().unwrap().join();
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// UDP and TCP at the same free port.
fn both(address: Ipv4Addr) -> (UdpSocket, TcpListener) {
    until("a port that is free for both", || {
        let tcp = TcpListener::bind((address, 0)).unwrap();
        let udp = UdpSocket::bind(tcp.local_addr().unwrap()).ok()?;
        Some((udp, tcp))
    })
}

fn inherit(all: &[OwnedFd]) {
    for fd in all {
        rustix::io::fcntl_setfd(fd.as_fd(), rustix::io::FdFlags::empty()).unwrap();
    }
}

/// Waits for a condition.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read_message(stream: &mut TcpStream) -> std::io::Result<Message> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes)?;
    Message::from_vec(&bytes).map_err(std::io::Error::other)
}

/// A socket of a container.
pub struct Asker {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Asker {
    pub fn new(to: SocketAddr, last: u8) -> Asker {
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        Asker { socket, to }
    }

    pub fn send(&self, packet: &[u8]) {
        self.socket.send_to(packet, self.to).unwrap();
    }

    pub fn receive(&self, wait: Duration) -> Option<Message> {
        self.socket.set_read_timeout(Some(wait)).unwrap();
        let mut buffer = [0; 65_535];
        let (n, from) = self.socket.recv_from(&mut buffer).ok()?;
        assert_eq!(from, self.to);
        Some(Message::from_vec(&buffer[..n]).unwrap())
    }

    pub fn ask(&self, name: &str, kind: RecordType) -> Option<Message> {
        self.send(&packet(name, kind));
        self.receive(Duration::from_secs(8))
    }
}

/// A question with EDNS.
pub fn packet(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(Name::from_ascii(name).unwrap(), kind)];
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.edns = Some(edns);
    message.to_vec().unwrap()
}

/// The addresses of an answer.
pub fn addresses(message: &Message) -> Vec<IpAddr> {
    let address = |record: &Record| match &record.data {
        RData::A(a) => Some(IpAddr::from(a.0)),
        RData::AAAA(a) => Some(IpAddr::from(a.0)),
        _ => None,
    };
    message.answers.iter().filter_map(address).collect()
}

/// A container at `127.0.0.last`.
pub fn resident(name: &str, last: u8) -> Resident {
    Resident {
        container: format!("id-{name}"),
        names: vec![format!("id-{name}"), name.into()],
        ipv4: Some(Ipv4Addr::new(127, 0, 0, last)),
        sees_neighbours: true,
        ..Resident::default()
    }
}

/// Two containers, `web` at 2 and `db` at 3.
pub fn config(upstreams: &[SocketAddr]) -> ResolverConfig {
    ResolverConfig {
        network: "test".into(),
        gateways: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        domain: Some("test".into()),
        upstreams: upstreams.to_vec(),
        containers: vec![resident("web", 2), resident("db", 3)],
        host_addresses: vec!["198.51.100.77".parse().unwrap()],
        ..ResolverConfig::default()
    }
}

/// A rule that allows these names alone.
pub fn only(names: &[&str]) -> Egress {
    let host = |name: &&str| Target::Host { name: (*name).into(), port: None };
    Egress::Only(names.iter().map(host).collect())
}

type Respond = dyn Fn(&Message) -> Vec<Vec<u8>> + Send + Sync;

/// A server outside that says what a test wants, and remembers what it was asked.
pub struct Outside {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Outside {
    /// `respond` gives the packets to send back over UDP; over TCP the first.
    pub fn start(respond: impl Fn(&Message) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Outside {
        let (udp, tcp) = both(Ipv4Addr::LOCALHOST);
        let address = udp.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let respond: Arc<Respond> = Arc::new(respond);
        let answer = {
            let asked = asked.clone();
            Arc::new(move |packet: &[u8], over: &str| {
                let question = Message::from_vec(packet).unwrap();
                let query = &question.queries[0];
                let line = format!("{over} {} {}", query.name.to_ascii(), query.query_type);
                asked.lock().unwrap().push(line);
                respond(&question)
            })
        };
        let over_udp = answer.clone();
        // Both threads end with the test's process.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((n, from)) = udp.recv_from(&mut buffer) {
                for packet in over_udp(&buffer[..n], "udp") {
                    let _ = udp.send_to(&packet, from);
                }
            }
        });
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let Ok(question) = read_message(&mut stream) else { continue };
                for packet in answer(&question.to_vec().unwrap(), "tcp").into_iter().take(1) {
                    let length = (packet.len() as u16).to_be_bytes();
                    let _ = stream.write_all(&length).and_then(|()| stream.write_all(&packet));
                }
            }
        });
        Outside { address, asked }
    }

    /// One with these records; names that it doesn't know are none.
    pub fn with(records: &[(&str, RData)]) -> Outside {
        let named = |(name, data): &(&str, RData)| {
            Record::from_rdata(Name::from_ascii(name).unwrap(), 120, data.clone())
        };
        let records: Vec<Record> = records.iter().map(named).collect();
        Outside::start(move |question| vec![answer(question, &records).to_vec().unwrap()])
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// The chain of aliases and what it leads to.
pub fn answer(question: &Message, records: &[Record]) -> Message {
    let mut reply = Message::response(question.metadata.id, OpCode::Query);
    reply.queries = question.queries.clone();
    let (mut name, kind) = (question.queries[0].name.clone(), question.queries[0].query_type);
    while let Some(alias) = records.iter().find(|r| {
        r.name == name && r.record_type() == RecordType::CNAME && reply.answers.len() < 20
    }) {
        let RData::CNAME(to) = &alias.data else { unreachable!() };
        name = to.0.clone();
        reply.answers.push(alias.clone());
    }
    let found = records.iter().filter(|r| r.name == name && r.record_type() == kind);
    reply.answers.extend(found.cloned());
    if reply.answers.is_empty() && !records.iter().any(|r| r.name == name) {
        reply.metadata.response_code = ResponseCode::NXDomain;
    }
    reply
}

/// `dnsmasq` with these options, which ends with it.
pub struct Dnsmasq {
    child: Child,
    pub address: SocketAddr,
}

impl Dnsmasq {
    pub fn start(options: &[&str]) -> Dnsmasq {
        let address = both(Ipv4Addr::LOCALHOST).0.local_addr().unwrap();
        let guard = SPAWNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let child = Command::new("dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"])
            .args(["--pid-file=", "--bind-interfaces", "--listen-address=127.0.0.1", "--user="])
            .args([&format!("--port={}", address.port()), "--local-ttl=60"])
            .args(options)
            .spawn()
            .expect("dnsmasq (package dnsmasq-base) is installed");
        drop(guard);
        let dnsmasq = Dnsmasq { child, address };
        until("dnsmasq listens", || TcpStream::connect(address).ok());
        dnsmasq
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
