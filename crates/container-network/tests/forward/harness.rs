//! Two network namespaces, the forwarder between them, and what is needed to look at it.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use container_api::network::Protocol;
use container_api::varlink::Client;
use container_network::wire::{Connections, ForwarderConfig, ForwarderRequest, Route, Side};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns, unshare};
use serde::de::DeserializeOwned;

/// Longest wait for what should come at once.
pub const SOON: Duration = Duration::from_secs(20);

/// Runs the test again as root of a user namespace, unless it is root already. The caller returns
/// when this is true: the test has run.
pub fn ran_elsewhere(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return false;
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .status()
        .expect("unshare of util-linux");
    assert!(status.success(), "{test} in a user namespace: {status}");
    true
}

/// Waits until something is so.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !so() {
        assert!(Instant::now() < end, "{what}: not so within {SOON:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A network namespace with a loopback interface.
pub struct Net(OwnedFd);

impl Net {
    pub fn new() -> Net {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            Net(std::fs::File::open("/proc/thread-self/ns/net").unwrap().into())
        })
        .join()
        .unwrap()
    }

    /// Runs something in it; sockets that it makes stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    pub fn listen(&self, address: &str) -> TcpListener {
        let listener = self.run(|| TcpListener::bind(address).unwrap());
        // Many may come before one is accepted.
        rustix::net::listen(&listener, 4096).unwrap();
        listener
    }

    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.run(|| TcpStream::connect(address))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        Ok(stream)
    }

    pub fn datagrams(&self, address: &str) -> UdpSocket {
        let socket = self.run(|| UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    }

    pub fn command(&self, program: &str, arguments: &[&str]) {
        let status = self.run(|| Command::new(program).args(arguments).status().unwrap());
        assert!(status.success(), "{program} {arguments:?}: {status}");
    }
}

impl AsFd for Net {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A forwarder that runs. It ends with this value.
pub struct Forwarder {
    child: Child,
    directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Forwarder {
    pub fn start(host: &Net, container: &Net) -> Forwarder {
        Self::start_with(host, container, None)
    }

    /// With a limit on open files.
    pub fn start_with(host: &Net, container: &Net, open_files: Option<u64>) -> Forwarder {
        let directory = tempfile::tempdir().unwrap();
        let control = container_api::socket::bind(directory.path(), "forward.sock").unwrap();
        let (socket, network) = (control.as_raw_fd(), container.as_fd().as_raw_fd());
        let mut command = Command::new(env!("CARGO_BIN_EXE_container-network"));
        command.args(["forward", "--name", "test"]);
        command.args(["--control", &socket.to_string(), "--network", &network.to_string()]);
        if !std::path::Path::new("/sys/kernel/security/landlock").exists() {
            command.args(["--allow-missing", "landlock"]);
        }
        let prepare = move || {
            for fd in [socket, network] {
                // SAFETY: both are open in the parent until the child has started.
                let fd = unsafe { BorrowedFd::borrow_raw(fd) };
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            if let Some(limit) = open_files {
                use nix::sys::resource::{Resource, setrlimit};
                setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
            }
            Ok(())
        };
        // SAFETY: calls nothing but fcntl and setrlimit.
        unsafe { command.pre_exec(prepare) };
        // A child lives in the network namespace of the thread that makes it.
        let child = host.run(|| command.spawn().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Forwarder { child, directory, runtime }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn call<R: DeserializeOwned>(
        &self,
        request: &ForwarderRequest,
        fds: &[BorrowedFd<'_>],
    ) -> container_api::Result<(R, Vec<OwnedFd>)> {
        let stream = container_api::socket::connect(self.directory.path(), "forward.sock")?;
        self.runtime
            .block_on(async { Client::new(stream)?.call_for_fds(request, fds, Some(SOON)).await })
    }

    pub fn configure(&self, routes: Vec<Route>, sockets: &[BorrowedFd<'_>]) {
        let config = ForwarderConfig { container: "test".into(), routes };
        self.call::<()>(&ForwarderRequest::Configure(config), sockets).unwrap();
    }

    /// Publishes one port; where it is on the host.
    pub fn publish(&self, host: &Net, on: &str, protocol: Protocol, to: SocketAddr) -> SocketAddr {
        let route = route(Side::Host, protocol, to);
        match protocol {
            Protocol::Tcp => {
                let listener = host.listen(on);
                self.configure(vec![route], &[listener.as_fd()]);
                listener.local_addr().unwrap()
            }
            Protocol::Udp => {
                let socket = host.datagrams(on);
                self.configure(vec![route], &[socket.as_fd()]);
                socket.local_addr().unwrap()
            }
        }
    }

    pub fn connections(&self) -> Connections {
        self.call(&ForwarderRequest::Connections, &[]).unwrap().0
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        eventually("the forwarder has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn route(listens: Side, protocol: Protocol, target: SocketAddr) -> Route {
    Route { protocol, listens, target, fallback: None, ports: Vec::new(), keep_client: false }
}

/// A port and what it leads to: (client, server).
pub fn connected(host: &Net, at: SocketAddr, server: &TcpListener) -> (TcpStream, TcpStream) {
    let client = host.connect(at).unwrap();
    let (server, _) = server.accept().unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    server.set_write_timeout(Some(SOON)).unwrap();
    (client, server)
}

/// Ends a connection with a reset.
pub fn reset(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}
