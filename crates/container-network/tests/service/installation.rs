//! A running service, and containers on its networks.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use container_api::network::{
    Attach, Attached, Attachment, ContainerNetwork, Egress, HostAccess, NetworkChoice, Request,
    SOCKET,
};
use container_api::varlink::Client;
use container_api::{Result, socket};
use container_network::engine::Port;
use serde::de::DeserializeOwned;

use crate::guest::{Raw, Stack, config};
use crate::world::{Away, until};

/// An app root and its service.
pub struct Installation {
    pub root: PathBuf,
    pub service: RefCell<i32>,
    runtime: tokio::runtime::Runtime,
    launcher: RefCell<(Child, ChildStdin, BufReader<ChildStdout>)>,
    _folder: tempfile::TempDir,
}

impl Installation {
    /// Starts the service, as whoever this process is. Afterwards this process has a user namespace
    /// of its own where it needs one to play the guests.
    pub fn new(away: &Away) -> Installation {
        let folder = tempfile::Builder::new().prefix("network-").tempdir().expect("a folder");
        let root = folder.path().to_owned();
        let mut launcher = Command::new("sh")
            .args(["-c", "while read -r line; do eval \"$line\"; done"])
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .env("PROGRAM", env!("CARGO_BIN_EXE_container-network"))
            .env("ROOT", &root)
            .env("HOME", &root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let input = launcher.stdin.take().expect("its input");
        let output = BufReader::new(launcher.stdout.take().expect("its output"));
        if !away.root {
            play_guests();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let installation = Installation {
            root,
            service: RefCell::new(0),
            runtime: runtime.expect("a runtime"),
            launcher: RefCell::new((launcher, input, output)),
            _folder: folder,
        };
        installation.start();
        installation
    }

    /// Starts the service, and waits until it answers.
    pub fn start(&self) {
        let (_, input, output) = &mut *self.launcher.borrow_mut();
        writeln!(
            input,
            "\"$PROGRAM\" serve --app-root \"$ROOT\" 2>>\"$ROOT/log\" >/dev/null & echo $!"
        )
        .expect("the shell");
        let mut line = String::new();
        output.read_line(&mut line).expect("the shell");
        *self.service.borrow_mut() = line.trim().parse().expect("a process id");
        until("the service answers", || {
            self.call::<serde_json::Value>(&Request::List { names: vec![] }).is_ok()
        });
    }

    /// Ends the service as nothing else would.
    pub fn kill(&self) {
        kill(*self.service.borrow());
    }

    pub fn call<R: DeserializeOwned>(&self, request: &Request) -> Result<R> {
        self.call_for_fds(request).map(|(answer, _)| answer)
    }

    pub fn call_for_fds<R: DeserializeOwned>(
        &self,
        request: &Request,
    ) -> Result<(R, Vec<OwnedFd>)> {
        self.runtime.block_on(async {
            let stream = socket::try_connect(&self.root.join("networks"), SOCKET)?;
            let limit = Some(Duration::from_secs(20));
            Client::new(stream)?.call_for_fds(request, &[], limit).await
        })
    }

    pub fn attach(
        &self,
        name: &str,
        options: ContainerNetwork,
    ) -> Result<(Attached, Vec<OwnedFd>)> {
        self.call_for_fds(&Request::Attach(Box::new(Attach {
            container: name.into(),
            hostname: name.into(),
            options,
            parked: None,
        })))
    }

    /// A container with a stack behind its tap.
    pub fn guest(&self, name: &str, options: ContainerNetwork) -> (Attached, Stack) {
        let (attached, taps) = self.attach(name, options).expect("attaching");
        let attachment: &Attachment = &attached.attachments[0];
        let mut net = config("default", 64, container_api::network::Mode::Nat);
        net.ipv4_gateway = attachment.ipv4_gateway;
        net.ipv6_gateway = attachment.ipv6_gateway;
        let port = Port {
            tap: None,
            attachment: attachment.clone(),
            egress: vec![Egress::Allow],
            host_access: HostAccess::Denied,
        };
        let tap = taps.into_iter().next().expect("a tap");
        (attached, Stack::new(Raw::new(tap, &port), &net))
    }

    /// The process behind a socket of those that carry traffic.
    pub fn process(&self, name: &str) -> Option<i32> {
        let stream = socket::try_connect(&self.root.join("networks/run"), name).ok()?;
        Some(socket::peer(&stream).ok()?.pid)
    }

    /// The service's log, when something has failed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = self.call::<()>(&Request::Shutdown { remove: true });
        let (launcher, ..) = &mut *self.launcher.borrow_mut();
        let _ = launcher.kill();
        let _ = launcher.wait();
    }
}

/// Sends SIGKILL.
pub fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("a process to kill");
}

/// Root of a user namespace, to make guests with. This process has one thread.
fn play_guests() {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).expect("a user namespace");
    std::fs::write("/proc/self/setgroups", "deny").expect("setgroups");
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).expect("uid_map");
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).expect("gid_map");
}

/// The networks of a container.
pub fn on(networks: &[&str]) -> ContainerNetwork {
    let choice = |name: &&str| NetworkChoice { network: (*name).into(), ..Default::default() };
    ContainerNetwork { networks: networks.iter().map(choice).collect(), ..Default::default() }
}

/// Asks the name server for an IPv4 address, once.
pub fn resolve(server: Ipv4Addr, name: &str) -> Option<Ipv4Addr> {
    resolve_at((server, 53).into(), name)
}

/// As [`resolve`], at a port.
pub fn resolve_at(server: SocketAddr, name: &str) -> Option<Ipv4Addr> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a limit");
    socket.send_to(&question, server).ok()?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).ok()?;
    // One answer, whose data is the last thing of the message when no EDNS was asked for.
    let good = length > question.len() && answer[..2] == question[..2] && answer[7] > 0;
    let data = good.then(|| &answer[length - 4..length])?;
    Some(Ipv4Addr::new(data[0], data[1], data[2], data[3]))
}
