//! The host and the internet of a case, and the ways between the processes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};

const CASE: &str = "ENGINE_TEST_CASE";
const STAGE: &str = "ENGINE_TEST_STAGE";
const WAY: &str = "ENGINE_TEST_WAY";
const AGAIN: &str = "again";
const LIMIT: Duration = Duration::from_secs(90);

/// The host's addresses on its LAN, and the internet's there and beyond.
pub const HOST: [&str; 2] = ["203.0.113.2", "2001:db8::2"];
pub const LAN: [&str; 2] = ["203.0.113.1", "2001:db8::1"];
pub const BEYOND: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];
pub const METADATA: [&str; 4] =
    ["169.254.169.254", "168.63.129.16", "100.100.100.200", "fd00:ec2::254"];

/// The user of cases run by root "as user".
const NOT_ROOT: u32 = 12_345;

/// What a case is given.
pub type Case = fn(&Away);

/// The program of a test: the cases that its arguments name, or all, each in both ways; or, started
/// again by itself, a part of one. It understands as much of the test runner's language as there is
/// need of: `--list` (none of the cases is `--ignored`), names, `--exact`.
pub fn main(cases: &[(&str, Case)]) -> ExitCode {
    if let Ok(case) = std::env::var(CASE) {
        let (_, body) = cases.iter().find(|(name, _)| *name == case).expect("a known case");
        match std::env::var(STAGE).as_deref() {
            Ok("world") => return host(&case),
            _ => away(*body),
        }
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |option: &str| arguments.iter().any(|argument| argument == option);
    if given("--ignored") {
        return ExitCode::SUCCESS;
    }
    if given("--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let exact = given("--exact");
    let mut failed = 0;
    for (name, _) in cases {
        for way in ["root", "user"] {
            let full = format!("{name} as {way}");
            let named = |filter: &&String| match exact {
                true => filter.as_str() == *name,
                false => full.contains(filter.as_str()),
            };
            if !filters.is_empty() && !filters.iter().any(named) {
                continue;
            }
            let begin = Instant::now();
            let verdict = if run(name, way) { "ok" } else { "FAILED" };
            println!("test {full} ... {verdict} ({:.1} s)", begin.elapsed().as_secs_f32());
            failed += u32::from(verdict != "ok");
        }
    }
    ExitCode::from(u8::from(failed > 0))
}

/// Runs one case in one way. Answer: whether it was good.
fn run(case: &str, way: &str) -> bool {
    let mut command = itself(case);
    command.env(STAGE, "world").env(WAY, way);
    let root = nix::unistd::geteuid().is_root();
    let user = way == "user";
    // SAFETY: this process has one thread.
    unsafe { command.pre_exec(move || enter(root, user)) };
    bounded(command)
}

/// Into namespaces of the world's own, with all capabilities there. A user isn't called root in his:
/// the kernel lets nobody without capabilities pass on that identity.
fn enter(root: bool, user: bool) -> std::io::Result<()> {
    if root && user {
        // Where the device isn't everybody's, here it is.
        unshare(CloneFlags::CLONE_NEWNS)?;
        use nix::mount::{MsFlags, mount};
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
        mount(Some("tmpfs"), "/dev/net", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
        use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
        umask(Mode::empty());
        let everybody = Mode::from_bits_truncate(0o666);
        mknod("/dev/net/tun", SFlag::S_IFCHR, everybody, makedev(10, 200))?;
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(NOT_ROOT.into(), NOT_ROOT.into(), NOT_ROOT.into())?;
        nix::unistd::setresuid(NOT_ROOT.into(), NOT_ROOT.into(), NOT_ROOT.into())?;
        // Else its files in /proc are still root's.
        nix::sys::prctl::set_dumpable(true)?;
    }
    if !root || user {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let inside = u32::from(user);
        unshare(CloneFlags::CLONE_NEWUSER)?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("{inside} {uid} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("{inside} {gid} 1"))?;
        use rustix::thread as t;
        let mut all = t::capabilities(None)?;
        all.inheritable = all.permitted;
        t::set_capabilities(None, all)?;
        for capability in all.permitted.iter() {
            t::configure_capability_in_ambient_set(capability, true)?;
        }
    }
    unshare(CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

fn itself(case: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env(CASE, case);
    command
}

fn bounded(mut command: Command) -> bool {
    let mut child = command.spawn().expect("a process for the case");
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waiting") {
            return status.success();
        }
        if begin.elapsed() > LIMIT {
            eprintln!("the case takes too long");
            let _ = child.kill();
            let _ = child.wait();
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs commands of a shell; panics when one fails.
pub fn sh(script: &str) -> String {
    let output = Command::new("sh")
        .args(["-ec", script])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .output()
        .expect("sh");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs something on a thread in a network namespace.
pub fn within<T: Send + 'static>(
    namespace: &OwnedFd,
    body: impl FnOnce() -> T + Send + 'static,
) -> T {
    let namespace = namespace.try_clone().expect("a duplicate");
    let thread = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering a namespace");
        body()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A new network namespace.
pub fn namespace() -> OwnedFd {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        std::fs::File::open("/proc/thread-self/ns/net").expect("the namespace").into()
    })
    .join()
    .expect("the thread")
}

/// The world of a case: this process's namespace is the host.
fn host(case: &str) -> ExitCode {
    let internet = namespace();
    let number = internet.as_raw_fd();
    let own = std::process::id();
    // Addresses that are still looked for twice would have the first packets wait.
    let no_waiting =
        || sh("for i in all default; do echo 0 >/proc/sys/net/ipv6/conf/$i/accept_dad; done");
    no_waiting();
    within(&internet, no_waiting);
    sh(&format!(
        "ip link set lo up
         ip link add wan type veth peer name inet netns /proc/{own}/fd/{number}
         ip addr add 203.0.113.2/24 dev wan; ip -6 addr add 2001:db8::2/64 dev wan nodad
         ip link set wan up"
    ));
    within(&internet, || {
        sh("ip link set lo up
            ip addr add 203.0.113.1/24 dev inet; ip -6 addr add 2001:db8::1/64 dev inet nodad
            for a in 198.51.100.1 198.51.100.2 169.254.169.254 168.63.129.16 100.100.100.200; do
              ip addr add $a/32 dev lo
            done
            for a in 2001:db8:1::1 2001:db8:1::2 fd00:ec2::254; do
              ip -6 addr add $a/128 dev lo nodad
            done
            ip link set inet up
            ip route add 192.168.0.0/16 via 203.0.113.2
            ip -6 route add fd00::/16 via 2001:db8::2");
    });
    sh("ip route add default via 203.0.113.1; ip -6 route add default via 2001:db8::1
        range=/proc/sys/net/ipv4/ping_group_range
        echo 0 2147483647 2>/dev/null >$range || echo $(id -g) $(id -g) >$range");
    for address in LAN.iter().chain(&BEYOND) {
        until("the internet answers", || {
            sh(&format!("ping -n -c 1 -W 0.1 {address} >/dev/null && echo yes || true")) == "yes\n"
        });
    }
    let heard = Arc::new(AtomicU64::new(0));
    serve(7777, Some(heard.clone()));
    let capture = within(&internet, || {
        serve(80, None);
        for address in BEYOND.iter().chain(&LAN).chain(&METADATA) {
            // One for all addresses would answer from its nearest.
            echo(UdpSocket::bind((*address, 53)).expect("listening"), None);
        }
        packet_socket()
    });
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let folder = tempdir();
    let mut command = itself(case);
    command.env(STAGE, "case").env("ENGINE_TEST_FOLDER", &folder);
    command.env("ENGINE_TEST_CAPTURE", keep(&capture)).env("ENGINE_TEST_DOOR", keep(&theirs));
    let user = std::env::var(WAY).as_deref() == Ok("user");
    // SAFETY: the closure makes system calls alone.
    unsafe { command.pre_exec(move || prepare(user)) };
    let answering = internet.try_clone().expect("a duplicate");
    std::thread::spawn(move || answer(ours, &answering, &heard));
    let mut good = bounded(command);
    if good && folder.join(AGAIN).exists() {
        // What a case leaves for a process that comes after it.
        let mut second = itself(case);
        second.env(STAGE, "case").env("ENGINE_TEST_FOLDER", &folder);
        second.env("ENGINE_TEST_CAPTURE", keep(&capture)).env("ENGINE_TEST_DOOR", keep(&theirs));
        // SAFETY: as above.
        unsafe { second.pre_exec(move || prepare(user)) };
        good = bounded(second);
    }
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        if let Ok(serde_json::Value::Object(process)) = serde_json::from_str(&text)
            && let Some(pid) = process.get("pid").and_then(serde_json::Value::as_i64)
        {
            let pid = nix::unistd::Pid::from_raw(pid as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            eprintln!("an uplink was left");
        }
        if !good && entry.path().extension().is_some_and(|e| e == "log") {
            eprintln!("{}: {text}", entry.path().display());
        }
    }
    let _ = std::fs::remove_dir_all(folder);
    ExitCode::from(u8::from(!good))
}

/// In the process of the case: gone with its parent; as a user without capabilities.
fn prepare(user: bool) -> std::io::Result<()> {
    // SAFETY: a plain system call.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if user {
        use rustix::thread::{CapabilitySet, CapabilitySets};
        let none = CapabilitySet::empty();
        rustix::thread::clear_ambient_capability_set()?;
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, none)?;
    }
    Ok(())
}

fn tempdir() -> PathBuf {
    tempfile::Builder::new().prefix("engine-").tempdir().expect("a folder").keep()
}

/// Lets a descriptor be inherited; its number.
pub fn keep(descriptor: &impl AsFd) -> String {
    let fd = descriptor.as_fd().try_clone_to_owned().expect("a duplicate");
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).expect("inheriting");
    let number = fd.as_raw_fd();
    std::mem::forget(fd);
    number.to_string()
}

fn inherited(variable: &str) -> OwnedFd {
    let number: RawFd = std::env::var(variable).expect(variable).parse().expect("a number");
    // SAFETY: the parent left this descriptor to us, and it is taken once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Answers commands: `host SCRIPT`, `internet SCRIPT`, `heard`, `dial ADDRESS` (from the
/// internet), each one line.
fn answer(door: UnixStream, internet: &OwnedFd, heard: &AtomicU64) {
    let mut writer = door.try_clone().expect("a duplicate");
    for line in BufReader::new(door).lines() {
        let Ok(line) = line else { return };
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let rest = rest.to_owned();
        let reply = match word {
            "host" => sh(&rest),
            "internet" => within(internet, move || sh(&rest)),
            "heard" => heard.load(Ordering::SeqCst).to_string(),
            "dial" => within(internet, move || {
                let address: SocketAddr = rest.parse().expect("an address");
                dial(address, Duration::from_millis(400)).is_some().to_string()
            }),
            other => panic!("unknown command {other}"),
        };
        let reply = reply.replace('\n', "\u{1}");
        if writeln!(writer, "{reply}").is_err() {
            return;
        }
    }
}

/// TCP and UDP on a port of all addresses of the calling thread's namespace: says who asked.
pub fn serve(port: u16, heard: Option<Arc<AtomicU64>>) {
    let address = SocketAddr::from(([0u16; 8], port));
    let listener = TcpListener::bind(address).expect("listening");
    let socket = UdpSocket::bind(address).expect("listening");
    let count = heard.clone();
    echo(socket, heard);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Some(heard) = &count {
                heard.fetch_add(1, Ordering::SeqCst);
            }
            std::thread::spawn(move || greet(stream));
        }
    });
}

fn echo(socket: UdpSocket, heard: Option<Arc<AtomicU64>>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            if let Some(heard) = &heard {
                heard.fetch_add(1, Ordering::SeqCst);
            }
            let _ = socket.send_to(&buffer[..length], peer);
        }
    });
}

fn greet(mut stream: TcpStream) {
    let peer = stream.peer_addr().map(|a| a.ip().to_canonical().to_string()).unwrap_or_default();
    let _ = writeln!(stream, "{peer}");
    let _ = std::io::copy(&mut stream.try_clone().expect("a duplicate"), &mut stream);
}

/// Connects and reads the greeting: the client's address as the server saw it.
pub fn dial(address: SocketAddr, limit: Duration) -> Option<IpAddr> {
    let stream = TcpStream::connect_timeout(&address, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).ok()?;
    line.trim().parse().ok()
}

/// Sends a datagram. Answer: whether it came back.
pub fn ask(address: SocketAddr, limit: Duration) -> bool {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).expect("a socket");
    socket.set_read_timeout(Some(limit)).expect("a limit");
    let mut buffer = [0; 16];
    socket.send_to(b"hello", address).is_ok() && socket.recv(&mut buffer).is_ok_and(|n| n == 5)
}

/// A socket that sees every frame of the calling thread's namespace.
pub fn packet_socket() -> OwnedFd {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: a plain system call; the descriptor is new.
    unsafe {
        let fd = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            protocol.into(),
        );
        assert!(fd >= 0, "packet socket: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

/// What a case has of the world.
pub struct Away {
    door: std::cell::RefCell<(BufReader<UnixStream>, UnixStream)>,
    capture: std::fs::File,
    pub folder: PathBuf,
    /// Whether it is root in the host.
    pub root: bool,
}

impl Away {
    /// See [`answer`].
    pub fn command(&self, line: &str) -> String {
        let mut door = self.door.borrow_mut();
        writeln!(door.1, "{}", line.replace('\n', "; ")).expect("the world");
        let mut reply = String::new();
        door.0.read_line(&mut reply).expect("the world");
        assert!(reply.ends_with('\n'), "the world failed at: {line}");
        reply.trim_end().replace('\u{1}', "\n")
    }

    /// How often the host's own service was reached.
    pub fn heard(&self) -> u64 {
        self.command("heard").parse().expect("a number")
    }

    /// Has another process of this case come after this one, which finds `what`.
    pub fn again(&self, what: &str) {
        std::fs::write(self.folder.join(AGAIN), what).expect("a file");
    }

    /// What the process before this one left.
    pub fn before(&self) -> Option<String> {
        std::fs::read_to_string(self.folder.join(AGAIN)).ok()
    }

    /// The frames that the internet has seen since the last look.
    pub fn seen(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = [0; 65_536];
        while let Ok(length) = (&self.capture).read(&mut buffer) {
            frames.push(buffer[..length].to_vec());
        }
        frames
    }
}

/// Runs a case in this process.
fn away(body: fn(&Away)) {
    let door = UnixStream::from(inherited("ENGINE_TEST_DOOR"));
    let away = Away {
        door: std::cell::RefCell::new((
            BufReader::new(door.try_clone().expect("a duplicate")),
            door,
        )),
        capture: inherited("ENGINE_TEST_CAPTURE").into(),
        folder: std::env::var_os("ENGINE_TEST_FOLDER").expect("a folder").into(),
        root: std::env::var(WAY).as_deref() == Ok("root"),
    };
    body(&away);
}

/// Waits for a condition.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(10), "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
