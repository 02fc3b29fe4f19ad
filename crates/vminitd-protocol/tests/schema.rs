//! The schema only grows within a generation: names, tags and types of every
//! field, and the bytes of sample messages, equal the frozen copies. To add to
//! the protocol, append to them; a line that exists never changes.

use prost::Message;
use vminitd_protocol::message::*;

const SOURCES: &[&str] = &[
    include_str!("../src/message.rs"),
    include_str!("../src/message/archive.rs"),
    include_str!("../src/message/container.rs"),
    include_str!("../src/message/event.rs"),
    include_str!("../src/message/file_event.rs"),
    include_str!("../src/message/mount.rs"),
    include_str!("../src/message/network.rs"),
    include_str!("../src/message/process.rs"),
    include_str!("../src/message/response.rs"),
    include_str!("../src/message/socket.rs"),
];

/// Every field of every message as `Owner.name: attribute type`, sorted.
fn schema() -> String {
    let mut lines = Vec::new();
    for source in SOURCES {
        let mut owner = String::new();
        let mut attribute = String::new();
        // A long attribute has a line for each of its parts.
        let source = source.replace("#[prost(\n", "#[prost(").replace("\n    )]", ")]");
        let source = source.replace("        oneof", "oneof").replace(",\n        tags", ", tags");
        for line in source.lines().map(str::trim) {
            if let Some(rest) =
                line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub enum "))
            {
                owner = rest.split([' ', '{']).next().unwrap().to_owned();
            } else if let Some(rest) = line.strip_prefix("#[prost(") {
                attribute = rest.trim_end_matches(")]").to_owned();
            } else if !attribute.is_empty() {
                let field = line.trim_start_matches("pub ").trim_end_matches(',');
                lines.push(format!("{owner}.{field} [{attribute}]"));
                attribute.clear();
            } else if let Some((name, number)) = line.trim_end_matches(',').split_once(" = ")
                && number.parse::<i32>().is_ok()
                && name.chars().all(char::is_alphabetic)
            {
                lines.push(format!("{owner}.{name} = {number}"));
            }
        }
    }
    lines.sort();
    lines.join("\n") + "\n"
}

fn check(name: &str, frozen: &str, now: &str) {
    if frozen != now {
        let path = format!("{}/tests/{name}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(path, now).unwrap();
        }
        let gone: Vec<_> = frozen.lines().filter(|l| !now.lines().any(|n| n == *l)).collect();
        let new: Vec<_> = now.lines().filter(|l| !frozen.lines().any(|f| f == *l)).collect();
        panic!(
            "schema differs from tests/{name}\nGONE (never allowed): {gone:#?}\n\
             NEW (UPDATE_SCHEMA=1 appends them): {new:#?}"
        );
    }
}

#[test]
fn fields_are_frozen() {
    check("schema-1.txt", include_str!("schema-1.txt"), &schema());
}

fn process() -> ProcessSpec {
    ProcessSpec {
        process: "init".into(),
        args: vec![b"sh".to_vec(), b"\xff\n".to_vec()],
        env: vec![b"A=b".to_vec()],
        cwd: b"/w".to_vec(),
        user: Some(User {
            name: "web:web".into(),
            uid: Some(0),
            gid: Some(1),
            additional_gids: vec![2, 3],
        }),
        terminal: Some(TerminalSize { rows: 24, columns: 80 }),
        stdio: Some(Stdio { stdin: Some(0), stdout: Some(1), stderr: Some(2), terminal: Some(3) }),
        rlimits: vec![Rlimit { resource: 7, soft: 1024, hard: u64::MAX }],
        capabilities: vminitd_protocol::capability::DEFAULT,
        no_new_privileges: true,
        oom_score_adj: -5,
        umask: Some(0o22),
        seccomp: Vec::new(),
    }
}

fn mounts() -> Vec<MountSpec> {
    let share = ShareSource { tag: "container".into(), name: "0".into(), file: true, copy: true };
    let disk = DiskSource { serial: "volume-0".into(), copy: true };
    let mount = |path: &[u8], source| MountSpec {
        path: path.to_vec(),
        read_only: true,
        source: Some(source),
    };
    vec![mount(b"/a", MountSource::Share(share)), mount(b"/b", MountSource::Disk(disk))]
}

fn requests() -> Vec<Call> {
    let sysctl = Sysctl { name: "a.b".into(), value: "1".into() };
    vec![
        Call::Ping(Ping {}),
        Call::Setup(Setup { entropy: vec![1, 2], wall_clock_ns: 3, sysctls: vec![sysctl.clone()] }),
        Call::MountRoot(MountRoot {
            image_serial: "image".into(),
            upper_serial: "upper".into(),
            ..MountRoot::default()
        }),
        Call::StartContainer(Box::new(StartContainer {
            container: ContainerSpec {
                hostname: "h".into(),
                read_only_root: true,
                masked_paths: vec![b"/m".to_vec()],
                read_only_paths: vec![b"/r".to_vec()],
                tmpfs: vec![TmpfsMount {
                    path: b"/t".to_vec(),
                    size_bytes: 1,
                    mode: Some(0),
                    uid: 2,
                    gid: 3,
                    read_only: true,
                    exec: true,
                    suid: true,
                    dev: true,
                }],
                shm_size_bytes: 4,
                init: true,
                hosts: b"x".to_vec(),
                resolv_conf: b"y".to_vec(),
                limits: Some(Limits { memory_bytes: 5, pids: 6, cpu_milli: 7 }),
                sysctls: vec![sysctl],
                sockets: Vec::new(),
                mounts: Vec::new(),
                virtualization: false,
            },
            process: process(),
        })),
        Call::Exec(Box::new(process())),
        Call::Signal(Signal { process: "p".into(), signal: 15, all: true }),
        Call::Resize(Resize { process: "p".into(), size: TerminalSize { rows: 1, columns: 2 } }),
        Call::Stats(StatsRequest {}),
        Call::Sync(SyncRequest {}),
        Call::BootLog(BootLogRequest {}),
        Call::UnmountRoot(UnmountRoot {}),
        Call::Shutdown(Shutdown {}),
        Call::Processes(ProcessesRequest {}),
        Call::LoadDrivers(LoadDrivers::default()),
        Call::Update(Update { limits: Limits { memory_bytes: 1, pids: 2, cpu_milli: 3 } }),
        Call::ConfigureNetwork(ConfigureNetwork {
            interfaces: vec![Interface {
                mac: vec![2, 0, 0, 0, 0, 1],
                mtu: 1500,
                addresses: vec![Address { ip: vec![10, 0, 0, 2], prefix_len: 24 }],
                gateways: vec![vec![10, 0, 0, 1]],
            }],
        }),
        Call::StartContainer(Box::new(StartContainer {
            container: ContainerSpec {
                sockets: vec![ListenSocket { path: b"/s".to_vec() }],
                ..ContainerSpec::default()
            },
            process: ProcessSpec::default(),
        })),
        Call::ConnectSocket(ConnectSocket { path: b"/s".to_vec(), stream: 300 }),
        Call::AcceptSocket(AcceptSocket { connection: 1, stream: 2 }),
        Call::StartContainer(Box::new(StartContainer {
            container: ContainerSpec { mounts: mounts(), ..ContainerSpec::default() },
            process: ProcessSpec::default(),
        })),
        Call::LoadDrivers(LoadDrivers { virtualization: true }),
        Call::StartContainer(Box::new(StartContainer {
            container: ContainerSpec { virtualization: true, ..ContainerSpec::default() },
            process: ProcessSpec::default(),
        })),
        Call::RaiseFileEvents(RaiseFileEvents {
            tag: "container".into(),
            events: vec![FileEvent {
                token: 1,
                kind: FileEventKind::Moved as i32,
                modified: true,
                closed: true,
                attributes: true,
                file_type: 2,
                path: b"0/a".to_vec(),
                to: b"0/b".to_vec(),
            }],
        }),
    ]
}

fn answers() -> Vec<GuestBody> {
    let reply = |reply| GuestBody::Response(Response { id: 300, reply: Some(reply) });
    let event = |happening| GuestBody::Event(Event { happening: Some(happening) });
    vec![
        reply(Reply::Error(Error { code: 3, errno: -2, message: "m".into() })),
        reply(Reply::Done(Done {})),
        reply(Reply::Pong(Pong {
            kernel_release: "6".into(),
            state: 2,
            uptime_ns: 3,
            memory_bytes: 4,
        })),
        reply(Reply::Started(Started { pid: 5 })),
        reply(Reply::Stats(Stats {
            memory_bytes: 1,
            memory_limit_bytes: 2,
            cpu_usec: 3,
            pids: 4,
            block_read_bytes: 5,
            block_written_bytes: 6,
            inactive_file_bytes: 7,
        })),
        reply(Reply::BootLog(BootLog { text: b"log".to_vec() })),
        reply(Reply::Processes(Processes { pids: vec![1, 300] })),
        event(Happening::ProcessExited(ProcessExited {
            process: "p".into(),
            exit_code: 137,
            signal: 9,
            out_of_memory: true,
            exited_at_ns: 6,
        })),
        event(Happening::OutOfMemory(OutOfMemory {
            kernel_message: "k".into(),
            kills: 1,
            ..Default::default()
        })),
        event(Happening::OutOfMemory(OutOfMemory {
            kernel_message: "k".into(),
            kills: 1,
            process: "p".into(),
            pid: 2,
            anonymous_bytes: 3,
            limit_bytes: 4,
        })),
        event(Happening::SocketConnected(SocketConnected { socket: 1, connection: 2 })),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn encoded_bytes_are_frozen() {
    let mut now = String::new();
    for call in requests() {
        let request = Request { id: 300, call: Some(call) };
        let bytes = request.encode_to_vec();
        assert_eq!(Request::decode(&bytes[..]).unwrap(), request);
        now += &format!("{}\n", hex(&bytes));
    }
    for body in answers() {
        let message = GuestMessage { body: Some(body) };
        let bytes = message.encode_to_vec();
        assert_eq!(GuestMessage::decode(&bytes[..]).unwrap(), message);
        now += &format!("{}\n", hex(&bytes));
    }
    check("bytes-1.txt", include_str!("bytes-1.txt"), &now);
}

#[test]
fn the_largest_useful_request_fits_a_frame() {
    let mut spec = process();
    spec.args = vec![vec![b'a'; 2 << 20]];
    spec.env =
        (0..10_000).map(|i| format!("VARIABLE_{i}={}", "v".repeat(200)).into_bytes()).collect();
    let request = Request { id: 1, call: Some(Call::Exec(Box::new(spec))) };
    assert!(vminitd_protocol::frame::encode(&request).is_ok());
}

proptest::proptest! {
    #[test]
    fn decoding_garbage_never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..500)) {
        let _ = Request::decode(&bytes[..]);
        let _ = GuestMessage::decode(&bytes[..]);
    }
}
