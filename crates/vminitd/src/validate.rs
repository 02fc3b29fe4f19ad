//! What a request may hold. The host is trusted, its callers are not: a value
//! that makes no sense is refused with its name before anything is changed.

use crate::failure::Failure;
use crate::launch::filter;
use vminitd_protocol::message::{
    Archive, ArchiveWork, ConfigureNetwork, ContainerSpec, FileEvent, Interface, Limits, MountRoot,
    MountSource, MountSpec, ProcessSpec, RaiseFileEvents,
};
use vminitd_protocol::{
    MAX_ADDRESSES, MAX_FILE_EVENT_BYTES, MAX_FILE_EVENTS, MAX_INTERFACES, MAX_SOCKET_PATH,
    MAX_SOCKETS,
};

const MAX_NAME: usize = 128;
const MAX_HOSTNAME: usize = 64;
const MAX_STRINGS: usize = 100_000;
const MAX_PATHS: usize = 1000;
const MAX_PATH: usize = 4095;
const MAX_FILE: usize = 1 << 20;
const RESOURCES: u32 = 16;
/// IPv6 needs 1280.
const MTU: std::ops::RangeInclusive<u32> = 1280..=65_535;

/// Checks a process.
pub fn process(spec: &ProcessSpec) -> Result<(), Failure> {
    name(&spec.process)?;
    let strings = spec.args.len().saturating_add(spec.env.len());
    check(!spec.args.is_empty(), "no program is given")?;
    check(strings <= MAX_STRINGS, "too many arguments and variables")?;
    check(spec.args.iter().all(|s| !s.contains(&0)), "a NUL byte in an argument")?;
    check(spec.env.iter().all(|s| !s.contains(&0)), "a NUL byte in a variable")?;
    check(spec.cwd.is_empty() || path(&spec.cwd), "working directory is not an absolute path")?;
    for limit in &spec.rlimits {
        check(limit.resource < RESOURCES, "unknown resource limit")?;
        check(limit.soft <= limit.hard, "soft resource limit is above the hard one")?;
    }
    check((-1000..=1000).contains(&spec.oom_score_adj), "oom_score_adj is beyond range")?;
    let instructions = spec.seccomp.len() / filter::INSTRUCTION;
    let whole = spec.seccomp.len().is_multiple_of(filter::INSTRUCTION);
    check(whole && instructions <= filter::MAX, "a system call filter has a wrong length")?;
    streams(spec)
}

fn streams(spec: &ProcessSpec) -> Result<(), Failure> {
    let stdio = spec.stdio.unwrap_or_default();
    let mut numbers: Vec<u32> = if spec.terminal.is_some() {
        stdio.terminal.into_iter().collect()
    } else {
        check(stdio.terminal.is_none(), "a terminal stream without a terminal")?;
        [stdio.stdin, stdio.stdout, stdio.stderr].into_iter().flatten().collect()
    };
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    check(numbers.len() == count, "a stream number is used twice")
}

/// Checks a copy of files.
pub fn archive(request: &Archive) -> Result<(), Failure> {
    name(&request.process)?;
    let spec = ProcessSpec { stdio: request.stdio, ..ProcessSpec::default() };
    streams(&spec)?;
    let path = match &request.work {
        Some(ArchiveWork::Read(read)) => &read.path[..],
        Some(ArchiveWork::Write(write)) => {
            check(!write.name.contains(&b'/'), "a name with a slash")?;
            &write.path
        }
        _ => &[],
    };
    check(path.len() <= MAX_PATH && !path.contains(&0), "a path is too long, or has a NUL byte")?;
    check(request.mounts.len() <= MAX_PATHS, "too many paths")?;
    disks(&request.mounts)
}

/// Checks what is mounted with a root.
pub fn root(request: &MountRoot) -> Result<(), Failure> {
    check(request.volumes.len() <= MAX_PATHS, "too many paths")?;
    disks(&request.volumes)
}

fn disks(mounts: &[MountSpec]) -> Result<(), Failure> {
    let disk = |mount: &MountSpec| matches!(mount.source, Some(MountSource::Disk(_)));
    check(mounts.iter().all(disk), "a mount is no disk")?;
    mounts.iter().try_for_each(mount)
}

/// Checks changes of files.
pub fn file_events(request: &RaiseFileEvents) -> Result<(), Failure> {
    let events = &request.events;
    check((1..=MAX_NAME).contains(&request.tag.len()), "a tag is empty or too long")?;
    check(events.len() <= MAX_FILE_EVENTS, "too many changes of files")?;
    let bytes: usize = events.iter().map(|event| event.path.len() + event.to.len()).sum();
    check(bytes <= MAX_FILE_EVENT_BYTES, "the paths of changed files are too long")?;
    check(events.iter().all(FileEvent::has_valid_paths), "the path of a changed file is not valid")
}

/// Checks a container.
pub fn container(spec: &ContainerSpec) -> Result<(), Failure> {
    let hostname = &spec.hostname;
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    check(
        (1..=MAX_HOSTNAME).contains(&hostname.len()) && hostname.bytes().all(legal),
        "host name is not valid",
    )?;
    let mounts = spec.tmpfs.len() + spec.mounts.len();
    let lists = spec.masked_paths.len() + spec.read_only_paths.len() + mounts;
    check(lists <= MAX_PATHS, "too many paths")?;
    let mut paths = spec.masked_paths.iter().chain(&spec.read_only_paths);
    check(paths.all(|p| path(p)), "a masked or read-only path is not absolute")?;
    for tmpfs in &spec.tmpfs {
        check(path(&tmpfs.path), "tmpfs path is not absolute")?;
        check(tmpfs.path.iter().any(|b| *b != b'/'), "a tmpfs can't replace the root")?;
    }
    spec.mounts.iter().try_for_each(mount)?;
    check(spec.sockets.len() <= MAX_SOCKETS, "too many sockets")?;
    spec.sockets.iter().try_for_each(|socket| socket_path(&socket.path))?;
    check(spec.hosts.len() <= MAX_FILE, "hosts file is too long")?;
    check(spec.resolv_conf.len() <= MAX_FILE, "resolv.conf is too long")?;
    spec.limits.as_ref().map_or(Ok(()), limits)
}

fn mount(mount: &MountSpec) -> Result<(), Failure> {
    check(path(&mount.path), "a mount's path is not absolute")?;
    check(mount.path.iter().any(|b| *b != b'/'), "a mount can't replace the root")?;
    check(mount.source.is_some(), "a mount's source is not known here")?;
    if let Some(MountSource::Share(share)) = &mount.source {
        let digits = !share.name.is_empty() && share.name.bytes().all(|b| b.is_ascii_digit());
        check(digits, "a share's name is not a number")?;
    }
    Ok(())
}

/// Checks the path of a socket.
pub fn socket_path(socket: &[u8]) -> Result<(), Failure> {
    check(path(socket) && socket.len() <= MAX_SOCKET_PATH, "a socket's path is not valid")
}

/// Checks a cgroup's limits.
pub fn limits(limits: &Limits) -> Result<(), Failure> {
    check(limits.cpu_milli <= 10_000_000, "CPU limit is beyond range")
}

/// Checks the NICs of a guest.
pub fn network(request: &ConfigureNetwork) -> Result<(), Failure> {
    let interfaces = &request.interfaces;
    check(interfaces.len() <= MAX_INTERFACES, "too many NICs")?;
    for (at, interface) in interfaces.iter().enumerate() {
        self::interface(interface)?;
        let twice = interfaces[..at].iter().any(|other| other.mac == interface.mac);
        check(!twice, "two NICs have one hardware address")?;
    }
    for len in [4, 16] {
        let gateways = interfaces.iter().flat_map(|interface| &interface.gateways);
        let count = gateways.filter(|gateway| gateway.len() == len).count();
        check(count <= 1, "two default routes of one family")?;
    }
    Ok(())
}

fn interface(interface: &Interface) -> Result<(), Failure> {
    let Interface { mac, mtu, addresses, gateways } = interface;
    let unicast = mac.len() == 6 && mac[0] & 1 == 0 && mac.iter().any(|byte| *byte != 0);
    check(unicast, "a hardware address is not a unicast one of 6 bytes")?;
    check(MTU.contains(mtu), "an MTU is beyond range")?;
    check(addresses.len() <= MAX_ADDRESSES, "too many addresses")?;
    for address in addresses {
        let bits = ip_bits(&address.ip);
        check(bits.is_some_and(|bits| address.prefix_len <= bits), "an address is not valid")?;
    }
    check(gateways.iter().all(|gateway| ip_bits(gateway).is_some()), "a gateway is not valid")
}

fn ip_bits(ip: &[u8]) -> Option<u32> {
    match ip.len() {
        4 => Some(32),
        16 => Some(128),
        _ => None,
    }
}

/// Checks a signal number.
pub fn signal(signal: u32) -> Result<i32, Failure> {
    check((1..=64).contains(&signal), "signal number is not valid")?;
    Ok(signal as i32)
}

fn name(name: &str) -> Result<(), Failure> {
    check((1..=MAX_NAME).contains(&name.len()), "process name is not 1 to 128 bytes")
}

/// Absolute, of legal length, without NUL. Where it leads is decided inside the
/// container's root, so it can't lead out of it.
fn path(path: &[u8]) -> bool {
    path.first() == Some(&b'/') && path.len() <= MAX_PATH && !path.contains(&0)
}

fn check(ok: bool, message: &str) -> Result<(), Failure> {
    if ok { Ok(()) } else { Err(Failure::invalid(message)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vminitd_protocol::MAX_FILE_PATH;
    use vminitd_protocol::message::{Address, Rlimit, Stdio, TerminalSize, TmpfsMount};

    fn good() -> ProcessSpec {
        ProcessSpec { process: "p".into(), args: vec![b"true".to_vec()], ..Default::default() }
    }

    fn bad(change: impl FnOnce(&mut ProcessSpec)) {
        let mut spec = good();
        change(&mut spec);
        assert!(process(&spec).is_err(), "{spec:?}");
    }

    #[test]
    fn changes_of_files() {
        let event = |path: &[u8]| FileEvent { path: path.to_vec(), ..FileEvent::default() };
        let check = |events| file_events(&RaiseFileEvents { tag: "t".into(), events });
        assert_eq!(check(vec![event(b"0/a"); MAX_FILE_EVENTS]), Ok(()));
        check(vec![event(b"0/a"); MAX_FILE_EVENTS + 1]).unwrap_err();
        for path in [&b""[..], b"/0/a", b"0/\0", &[b'a'; MAX_FILE_PATH + 1]] {
            check(vec![event(path)]).unwrap_err();
        }
        check(vec![event(&[b'a'; MAX_FILE_PATH]); 9]).unwrap_err();
        file_events(&RaiseFileEvents::default()).unwrap_err();
    }

    #[test]
    fn processes() {
        assert_eq!(process(&good()), Ok(()));
        bad(|p| p.process.clear());
        bad(|p| p.args.clear());
        bad(|p| p.args = vec![b"a\0b".to_vec()]);
        bad(|p| p.env = vec![b"A=\0".to_vec()]);
        bad(|p| p.cwd = b"relative".to_vec());
        bad(|p| p.rlimits = vec![Rlimit { resource: 16, soft: 0, hard: 0 }]);
        bad(|p| p.rlimits = vec![Rlimit { resource: 1, soft: 2, hard: 1 }]);
        bad(|p| p.oom_score_adj = -1001);
        bad(|p| p.seccomp = vec![0; 12]);
        bad(|p| p.seccomp = vec![0; 8 * 4097]);
        bad(|p| p.stdio = Some(Stdio { stdin: Some(1), stdout: Some(1), ..Default::default() }));
        bad(|p| p.stdio = Some(Stdio { terminal: Some(1), ..Default::default() }));
        let mut tty = good();
        tty.terminal = Some(TerminalSize { rows: 1, columns: 1 });
        tty.stdio = Some(Stdio { terminal: Some(1), ..Default::default() });
        assert_eq!(process(&tty), Ok(()));
    }

    #[test]
    fn networks() {
        let interface = |last: u8| Interface {
            mac: vec![2, 0, 0, 0, 0, last],
            mtu: 1500,
            addresses: vec![Address { ip: vec![10, 0, 0, last], prefix_len: 24 }],
            gateways: Vec::new(),
        };
        let good = || ConfigureNetwork { interfaces: (1..=5).map(interface).collect() };
        assert_eq!(network(&good()), Ok(()));
        let bad = |change: fn(&mut Vec<Interface>)| {
            let mut request = good();
            change(&mut request.interfaces);
            assert!(network(&request).is_err(), "{request:?}");
        };
        bad(|i| i.push(Interface { mac: vec![2; 6], ..i[0].clone() }));
        bad(|i| i[0].mac = i[1].mac.clone());
        for mac in [vec![], vec![0; 6], vec![1, 0, 0, 0, 0, 0], vec![2; 7]] {
            let mut request = good();
            request.interfaces[0].mac = mac;
            assert!(network(&request).is_err(), "{request:?}");
        }
        bad(|i| i[0].mtu = 1279);
        bad(|i| i[0].mtu = 65_536);
        bad(|i| i[0].addresses[0].prefix_len = 33);
        bad(|i| i[0].addresses[0].ip.clear());
        bad(|i| i[0].addresses = vec![i[0].addresses[0].clone(); MAX_ADDRESSES + 1]);
        bad(|i| i[0].gateways = vec![vec![10, 0, 0]]);
        bad(|i| i[0].gateways = vec![vec![10, 0, 0, 1], vec![10, 0, 0, 2]]);
        bad(|i| (0..2).for_each(|at| i[at].gateways = vec![vec![10, 0, 0, 1]]));
    }

    #[test]
    fn containers() {
        let good = ContainerSpec { hostname: "box".into(), ..Default::default() };
        assert_eq!(container(&good), Ok(()));
        for hostname in ["", "a b", "a\nb", &"x".repeat(65)] {
            let spec = ContainerSpec { hostname: hostname.into(), ..good.clone() };
            assert!(container(&spec).is_err());
        }
        for path in [&b"tmp"[..], b"/", b"//", b"", b"/\0"] {
            let tmpfs = vec![TmpfsMount { path: path.to_vec(), ..Default::default() }];
            assert!(container(&ContainerSpec { tmpfs, ..good.clone() }).is_err());
        }
    }
}
