//! Containers: a tap's other side, as bare frames or with a kernel's stack behind it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use container_api::network::{Attachment, Egress, HostAccess, Mac, Mode, NetworkConfig};
use container_api::types::Timestamp;
use container_network::engine::{Engine, NetworkPlan, Port};
use nix::libc;

use crate::world::{Away, namespace, sh, until, within};

pub fn config(name: &str, number: u8, mode: Mode) -> NetworkConfig {
    NetworkConfig {
        id: name.to_owned(),
        mode,
        ipv4_subnet: format!("192.168.{number}.0/24").parse().expect("a subnet"),
        ipv4_gateway: Ipv4Addr::new(192, 168, number, 1),
        ipv6_subnet: format!("fd00:{number}::/64").parse().expect("a subnet"),
        ipv6_gateway: format!("fd00:{number}::1").parse().expect("an address"),
        isolated: false,
        mtu: 1500,
        egress: Egress::Allow,
        host_access: HostAccess::Denied,
        labels: Default::default(),
        creation_date: Timestamp::now(),
    }
}

pub fn plan(config: &NetworkConfig) -> NetworkPlan {
    NetworkPlan { config: config.clone(), others: Vec::new(), localhost: Vec::new() }
}

pub fn port(config: &NetworkConfig, container: &str, number: u8) -> Port {
    let IpAddr::V6(ipv6) = at(config, number, true) else { unreachable!() };
    let IpAddr::V4(ipv4) = at(config, number, false) else { unreachable!() };
    let third = config.ipv4_gateway.octets()[2];
    Port {
        tap: None,
        attachment: Attachment {
            container: container.to_owned(),
            network: config.id.clone(),
            hostname: container.to_owned(),
            aliases: Vec::new(),
            ipv4_address: ipnet::Ipv4Net::new(ipv4, 24).expect("a prefix"),
            ipv4_gateway: config.ipv4_gateway,
            ipv6_address: ipnet::Ipv6Net::new(ipv6, 64).expect("a prefix"),
            ipv6_gateway: config.ipv6_gateway,
            default_route: true,
            mac_address: Mac([2, 0, 0, 0, third, number]),
            mtu: 1500,
        },
        egress: vec![Egress::Allow],
        host_access: HostAccess::Denied,
    }
}

/// The address of a number on a network.
pub fn at(config: &NetworkConfig, number: u8, v6: bool) -> IpAddr {
    if v6 {
        let [a, b, c, d, ..] = config.ipv6_gateway.segments();
        Ipv6Addr::new(a, b, c, d, 0, 0, 0, number.into()).into()
    } else {
        let [a, b, c, _] = config.ipv4_gateway.octets();
        Ipv4Addr::new(a, b, c, number).into()
    }
}

/// A runtime and an engine in it.
pub struct Setup {
    pub runtime: tokio::runtime::Runtime,
    pub engine: Engine,
}

impl Setup {
    pub fn new(away: &Away) -> Setup {
        Setup::over(away, None)
    }

    pub fn over(away: &Away, user: Option<&OwnedFd>) -> Setup {
        if std::env::var_os("RUST_LOG").is_some() {
            let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).try_init();
        }
        let engine = Engine::enter(user.map(AsFd::as_fd), &away.folder).expect("entering");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(engine.start()).expect("starting");
        Setup { runtime, engine }
    }

    pub fn network(&self, config: &NetworkConfig) {
        self.runtime.block_on(self.engine.create(&plan(config), None)).expect("a network");
    }

    pub fn raw(&self, config: &NetworkConfig, container: &str, number: u8) -> Raw {
        self.raw_port(config, &port(config, container, number))
    }

    pub fn raw_port(&self, config: &NetworkConfig, port: &Port) -> Raw {
        let tap = self
            .runtime
            .block_on(self.engine.attach(&config.id, port))
            .expect("attaching")
            .expect("a tap");
        Raw::new(tap, port)
    }

    pub fn stack(&self, config: &NetworkConfig, container: &str, number: u8) -> Stack {
        Stack::new(self.raw(config, container, number), config)
    }

    /// The address of a network's bridge.
    pub fn bridge_mac(&self, network: &str) -> [u8; 6] {
        let namespace = self.engine.handles(network).expect("handles").network;
        let text = within(&namespace, || sh("ip -br link show br0"));
        let word = text.split_whitespace().nth(2).expect("an address");
        word.parse::<Mac>().expect("an address").0
    }

    /// Packets dropped of a container for a reason.
    pub fn dropped(&self, config: &NetworkConfig, container: &str, reason: &str) -> u64 {
        let all = self.runtime.block_on(self.engine.dropped(&config.id)).expect("counters");
        let mine = all.iter().filter(|d| d.container.as_deref() == Some(container));
        mine.filter(|d| d.reason == reason).map(|d| d.packets).sum()
    }

    /// All is removed, and nothing is left.
    pub fn end(self) {
        self.runtime.block_on(self.engine.shutdown()).expect("removing everything");
    }
}

/// A container that is nothing but frames.
pub struct Raw {
    tap: File,
    pub port: Port,
    pub mac: [u8; 6],
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

impl Raw {
    pub fn new(tap: OwnedFd, port: &Port) -> Raw {
        rustix::io::ioctl_fionbio(&tap, true).expect("not blocking");
        Raw {
            tap: tap.into(),
            port: port.clone(),
            mac: port.attachment.mac_address.0,
            ipv4: port.attachment.ipv4_address.addr(),
            ipv6: port.attachment.ipv6_address.addr(),
        }
    }

    pub fn send(&self, frame: &[u8]) {
        // No offloads are asked for.
        let bytes = [&[0; 10][..], frame].concat();
        (&self.tap).write_all(&bytes).expect("sending");
    }

    /// The frames that have come since the last look.
    pub fn seen(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = [0; 66_000];
        while let Ok(length) = (&self.tap).read(&mut buffer) {
            frames.push(buffer[10..length].to_vec());
        }
        frames
    }

    /// Whether a frame with these bytes in it comes.
    pub fn sees(&self, bytes: &[u8]) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(2) {
            if self.seen().iter().any(|frame| contains(frame, bytes)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }
}

pub fn contains(frame: &[u8], bytes: &[u8]) -> bool {
    frame.windows(bytes.len()).any(|window| window == bytes)
}

/// A container with a kernel's stack: a second tap in a namespace, joined to the first by a thread.
pub struct Stack {
    pub namespace: OwnedFd,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Raw>>,
}

nix::ioctl_write_int!(tun_set_iff, b'T', 202);
nix::ioctl_write_int_bad!(tun_set_offload, 0x4004_54d0);

fn own_tap() -> OwnedFd {
    let device = File::options().read(true).write(true).open("/dev/net/tun").expect("tun");
    // SAFETY: all zeros are a valid ifreq; the kernel reads and writes one.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"eth0") {
            *to = *from as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        tun_set_iff(device.as_raw_fd(), (&raw mut request) as libc::c_ulong).expect("a tap");
    }
    device.into()
}

impl Stack {
    pub fn new(raw: Raw, config: &NetworkConfig) -> Stack {
        let space = namespace();
        let Attachment { ipv4_address, ipv6_address, mac_address, .. } =
            raw.port.attachment.clone();
        let (gateway4, gateway6) = (config.ipv4_gateway, config.ipv6_gateway);
        let inner = within(&space, move || {
            let tap = own_tap();
            rustix::io::ioctl_fionbio(&tap, true).expect("not blocking");
            sh(&format!(
                "ip link set lo up
                 ip link set eth0 address {mac_address}
                 ip addr add {ipv4_address} dev eth0
                 ip -6 addr add {ipv6_address} dev eth0 nodad
                 ip link set eth0 up
                 ip route add default via {gateway4}
                 ip -6 route add default via {gateway6}"
            ));
            File::from(tap)
        });
        // As a guest that asks for offloads: checksums and segments of both families.
        for tap in [&raw.tap, &inner] {
            // SAFETY: the argument is a number.
            unsafe { tun_set_offload(tap.as_raw_fd(), 0x1 | 0x2 | 0x4) }.expect("offloads");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 70_000];
            while !stopping.load(Ordering::Relaxed) {
                let mut events = [&raw.tap, &inner]
                    .map(|tap| rustix::event::PollFd::new(tap, rustix::event::PollFlags::IN));
                let limit = rustix::time::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                let _ = rustix::event::poll(&mut events, Some(&limit));
                for (from, to) in [(&raw.tap, &inner), (&inner, &raw.tap)] {
                    while let Ok(length) = (&*from).read(&mut buffer) {
                        if length == 0 {
                            break;
                        }
                        let _ = (&*to).write(&buffer[..length]);
                    }
                }
            }
            raw
        });
        let stack = Stack { namespace: space, stop, thread: Some(thread) };
        until("the guest's link", || {
            within(&stack.namespace, || sh("ip -br link show eth0")).contains("LOWER_UP")
        });
        stack
    }

    /// Runs something in it.
    pub fn run<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> T {
        within(&self.namespace, body)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
