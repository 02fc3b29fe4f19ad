//! What a guest must be able to do.

use crate::client::Client;
use crate::spare;
use crate::vm::Files;
use std::time::{Duration, Instant};
use vminitd_protocol::capability;
use vminitd_protocol::message::*;

type Case = fn(&Files);

/// Every case by name.
pub const ALL: &[(&str, Case)] = &[
    ("thin", thin),
    ("failures", failures),
    ("streams", streams),
    ("throughput", throughput),
    ("terminal", terminal),
    ("exec", exec),
    ("signals", signals),
    ("inside", inside),
    ("spec", spec),
    ("telling", telling),
    ("read-only", read_only),
    ("init", init),
    ("oom", oom),
    ("again", spare::again),
    ("ahead", spare::ahead),
    ("restored", spare::restored),
    ("drivers", spare::drivers),
    ("update", spare::update),
    ("network", spare::network),
    ("warm-up", spare::warm_up),
    ("hostile", hostile),
    ("malformed", malformed),
    ("stalled", stalled),
    ("reconnect", reconnect),
    ("init-terminal", init_terminal),
];

pub fn process(name: &str, args: &[&str]) -> ProcessSpec {
    ProcessSpec {
        process: name.into(),
        args: args.iter().map(|a| a.as_bytes().to_vec()).collect(),
        capabilities: capability::DEFAULT,
        ..Default::default()
    }
}

pub fn container() -> ContainerSpec {
    let bytes = |list: &[&str]| list.iter().map(|p| p.as_bytes().to_vec()).collect();
    ContainerSpec {
        hostname: "box".into(),
        masked_paths: bytes(DEFAULT_MASKED_PATHS),
        read_only_paths: bytes(DEFAULT_READ_ONLY_PATHS),
        ..Default::default()
    }
}

pub fn start(process: ProcessSpec) -> Call {
    Call::StartContainer(Box::new(StartContainer { container: container(), process }))
}

fn exec_call(process: ProcessSpec) -> Call {
    Call::Exec(Box::new(process))
}

/// Runs a shell script as an exec and gives its exit code and output.
pub fn sh(client: &mut Client, name: &str, script: &str) -> (u32, String) {
    run(client, process(name, &["sh", "-c", script]))
}

fn run(client: &mut Client, mut spec: ProcessSpec) -> (u32, String) {
    let name = spec.process.clone();
    let stdio = client.streams(&mut spec);
    client.started(exec_call(spec));
    let exit = client.exit(&name);
    let (out, err) = (stdio.stdout.unwrap(), stdio.stderr.unwrap());
    client.until(|c| c.ended(out) && c.ended(err));
    let text = [&client.output[&out][..], &client.output[&err][..]].concat();
    (exit.exit_code, String::from_utf8_lossy(&text).into_owned())
}

/// A container whose first process sleeps.
pub fn sleeping(files: &Files) -> Client {
    let mut client = Client::rooted(files);
    client.started(start(process("main", &["sleep", "1000"])));
    client
}

fn thin(files: &Files) {
    let mut client = Client::boot(files);
    let at = Instant::now();
    client.root();
    println!("       setup and root: {:?}", at.elapsed());
    let at = Instant::now();
    client.started(start(process("main", &["true"])));
    println!(
        "       start: {:?}, QEMU's time since boot {:.2} s",
        at.elapsed(),
        client.vm.cpu_seconds()
    );
    assert_eq!(client.exit("main").exit_code, 0);
    println!("       start to exit: {:?}", at.elapsed());
    client.shut_down();
}

fn failures(files: &Files) {
    let mut client = Client::rooted(files);
    let mut fails = |spec: ProcessSpec, code: ErrorCode| {
        let error = client.error(start(spec));
        println!("       {:?}: {}", error.code(), error.message);
        assert_eq!(error.code(), code, "{}", error.message);
    };
    fails(process("main", &["no-such"]), ErrorCode::CommandNotFound);
    fails(process("main", &["/no/such"]), ErrorCode::CommandNotFound);
    fails(process("main", &["/etc/passwd"]), ErrorCode::NotExecutable);
    fails(process("main", &["/etc"]), ErrorCode::NotExecutable);
    fails(process("main", &["/garbage"]), ErrorCode::NotExecutable);
    let user = User { name: "nobody-here".into(), ..Default::default() };
    fails(ProcessSpec { user: Some(user), ..process("main", &["true"]) }, ErrorCode::BadUser);
    let cwd = b"/etc/passwd/x".to_vec();
    fails(ProcessSpec { cwd, ..process("main", &["true"]) }, ErrorCode::BadCwd);
    fails(ProcessSpec { args: vec![], ..process("main", &[]) }, ErrorCode::InvalidRequest);
    client.started(start(process("main", &["sh", "-c", "exit 7"])));
    assert_eq!(client.exit("main").exit_code, 7);
    client.shut_down();
}

fn streams(files: &Files) {
    let mut client = Client::rooted(files);
    let mut spec = process("main", &["sh", "-c", "cat; echo problem >&2; exit 3"]);
    let stdio = client.streams(&mut spec);
    client.started(start(spec));
    client.write(stdio.stdin.unwrap(), b"in\0\xff\n", true);
    assert_eq!(client.exit("main").exit_code, 3);
    let (out, err) = (stdio.stdout.unwrap(), stdio.stderr.unwrap());
    client.until(|c| c.ended(out) && c.ended(err));
    assert_eq!(client.output[&out], b"in\0\xff\n");
    assert_eq!(client.output[&err], b"problem\n");
    client.shut_down();
}

fn throughput(files: &Files) {
    let mut client = sleeping(files);
    let data: Vec<u8> =
        (0..100u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for (name, args) in [
        ("in and out, 4 KiB at once", &["cat"][..]),
        ("in and out, 128 KiB at once", &["dd", "bs=128k"]),
        ("in", &["dd", "bs=128k", "of=/dev/null"]),
        ("out", &["dd", "bs=128k", "if=/dev/zero", "count=800"]),
    ] {
        let mut spec = process("p", args);
        let stdio = client.streams(&mut spec);
        let (at, cpu) = (Instant::now(), client.vm.cpu_seconds());
        client.started(exec_call(spec));
        client.write(stdio.stdin.unwrap(), &data, true);
        assert_eq!(client.exit("p").exit_code, 0);
        let out = stdio.stdout.unwrap();
        client.until(|c| c.ended(out));
        let (seconds, cpu) = (at.elapsed().as_secs_f64(), client.vm.cpu_seconds() - cpu);
        println!(
            "       {name}: {:.1} MiB/s, {:.1} MiB per second of QEMU's time",
            100.0 / seconds,
            100.0 / cpu
        );
        let received = client.output.insert(out, Vec::new()).unwrap();
        match name {
            "in" => assert!(received.is_empty()),
            "out" => assert_eq!(received.len(), 100 << 20),
            _ => assert!(received == data),
        }
    }
    client.shut_down();
}

fn terminal(files: &Files) {
    let mut client = Client::rooted(files);
    let size = Some(TerminalSize { rows: 31, columns: 97 });
    let script = "tty; stty size; echo $TERM; test -c /dev/console && echo console; read x; stty size; echo got $x; seq 20000; exit 5";
    let mut spec = ProcessSpec { terminal: size, ..process("main", &["sh", "-c", script]) };
    let stream = client.streams(&mut spec).terminal.unwrap();
    client.started(start(spec));
    client.until(|c| String::from_utf8_lossy(&c.output[&stream]).contains("console"));
    let size = TerminalSize { rows: 10, columns: 20 };
    client.done(Call::Resize(Resize { process: "main".into(), size }));
    client.write(stream, b"hello\n", false);
    assert_eq!(client.exit("main").exit_code, 5);
    client.until(|c| c.ended(stream));
    let text = String::from_utf8_lossy(&client.output[&stream]).into_owned();
    for part in ["/dev/pts/0\r\n31 97\r\nxterm\r\n", "10 20\r\ngot hello\r\n1\r\n", "\r\n20000\r\n"]
    {
        assert!(text.contains(part), "{part:?} is not in {:?}", &text[..text.len().min(300)]);
    }
    client.shut_down();
}

fn exec(files: &Files) {
    let mut client = sleeping(files);
    for n in 0..8 {
        let at = Instant::now();
        client.started(exec_call(process("t", &["true"])));
        assert_eq!(client.exit("t").exit_code, 0);
        println!("       exec {n}: {:?}", at.elapsed());
    }
    assert_eq!(sh(&mut client, "a", "exit 9").0, 9);
    let (_, same) = sh(
        &mut client,
        "b",
        "for n in pid mnt net uts ipc cgroup; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n; done; cat /proc/self/cgroup; hostname",
    );
    assert_eq!(same, "0::/\nbox\n");
    // A background child that keeps the stream doesn't delay the exit.
    let (code, out) = sh(&mut client, "c", "sleep 1000 & echo here; exit 4");
    assert_eq!((code, out.as_str()), (4, "here\n"));
    // A terminal of its own.
    let size = Some(TerminalSize { rows: 5, columns: 6 });
    let mut spec = ProcessSpec { terminal: size, ..process("d", &["sh", "-c", "tty; stty size"]) };
    let stream = client.streams(&mut spec).terminal.unwrap();
    client.started(exec_call(spec));
    client.exit("d");
    client.until(|c| c.ended(stream));
    assert_eq!(client.output[&stream], b"/dev/pts/0\r\n5 6\r\n");
    assert_eq!(client.error(exec_call(process("e", &["nope"]))).code(), ErrorCode::CommandNotFound);
    assert_eq!(client.error(exec_call(process("main", &["true"]))).code(), ErrorCode::InUse);
    let at = Instant::now();
    client.done(Call::Signal(Signal { process: "main".into(), signal: 9, all: false }));
    let exit = client.exit("main");
    println!("       kill to exit: {:?}", at.elapsed());
    assert_eq!((exit.exit_code, exit.signal, exit.out_of_memory), (137, 9, false));
    assert_eq!(client.error(exec_call(process("f", &["true"]))).code(), ErrorCode::InvalidState);
    client.shut_down();
}

fn signals(files: &Files) {
    let mut client = Client::rooted(files);
    let script = "trap 'echo term; exit 42' TERM; echo ready; while :; do sleep 0.1; done";
    let mut spec = process("main", &["sh", "-c", script]);
    let out = client.streams(&mut spec).stdout.unwrap();
    client.started(start(spec));
    client.until(|c| c.output[&out] == b"ready\n");
    client.done(Call::Signal(Signal { process: "main".into(), signal: 15, all: false }));
    assert_eq!(client.exit("main").exit_code, 42);
    let gone = Call::Signal(Signal { process: "main".into(), signal: 9, all: false });
    assert_eq!(client.error(gone).code(), ErrorCode::NoSuchProcess);
    client.shut_down();
}

fn inside(files: &Files) {
    let mut client = sleeping(files);
    let mut check = |script: &str, expected: &str| {
        let (_, out) = sh(&mut client, "x", script);
        assert_eq!(out, expected, "{script}");
    };
    check(
        "grep CapBnd /proc/self/status; grep CapEff /proc/self/status; grep CapInh /proc/self/status; grep CapAmb /proc/self/status",
        "CapBnd:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n",
    );
    check(
        "exec grep -E 'SigIgn|SigBlk' /proc/self/status",
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n",
    );
    check("ls /proc/self/fd", "0\n1\n2\n3\n");
    check(
        "umask; pwd; echo $HOME $PATH $HOSTNAME",
        "0022\n/\n/root /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin box\n",
    );
    check("cat /etc/hostname; grep -c localhost /etc/hosts", "box\n2\n");
    check("cat /proc/1/oom_score_adj; ulimit -n; ulimit -Hn", "0\n1024\n1048576\n");
    check(
        "ls -A /dev | tr '\\n' ' '",
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ",
    );
    check(
        "wc -c < /proc/kcore; ls /sys/firmware | wc -l; echo x 2>&1 > /proc/sys/kernel/hostname || echo ro",
        "0\n0\nsh: can't create /proc/sys/kernel/hostname: Read-only file system\nro\n",
    );
    check(
        "touch /sys/x 2>/dev/null || echo ro; touch /sys/fs/cgroup/x 2>/dev/null || echo ro; touch /new && echo rw",
        "ro\nro\nrw\n",
    );
    check("ping -c 1 -W 2 127.0.0.1 > /dev/null && echo up; ls /sys/class/net", "up\nlo\n");
    check(
        "hostname x 2>/dev/null || echo refused; mount -t tmpfs t /tmp 2>/dev/null || echo refused",
        "refused\nrefused\n",
    );
    check(
        "df -m /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; ls -ld /dev/shm | cut -c1-10",
        "64\ndrwxrwxrwt\n",
    );
    check("cut -d' ' -f5 /proc/self/mountinfo | grep -c /run", "0\n");
    check("ps -o pid,args | head -2 | tail -1", "    1 sleep 1000\n");

    // Nodes can be made and not used.
    check(
        "mknod /dev/d b 254 16 && cat /dev/d; mknod /dev/k c 1 11 && cat /dev/k; mknod /dev/n c 1 3 && cat /dev/n",
        "cat: can't open '/dev/d': Operation not permitted\ncat: can't open '/dev/k': Operation not permitted\n",
    );

    client.shut_down();
}

/// User, directory, limits and strings of a process.
fn spec(files: &Files) {
    let mut client = sleeping(files);
    let user = |name: &str| Some(User { name: name.into(), ..Default::default() });
    let as_web = ProcessSpec {
        user: user("web"),
        ..process(
            "u",
            &["sh", "-c", "id; echo $HOME; echo hi > /dev/stderr; grep CapEff /proc/self/status"],
        )
    };
    let (_, out) = run(&mut client, as_web);
    assert_eq!(
        out,
        "uid=33(web) gid=34(web) groups=34(web),50(staff)\n/srv\nCapEff:\t0000000000000000\nhi\n"
    );
    let numeric = ProcessSpec {
        user: user("1234:5678"),
        cwd: b"/made/here".to_vec(),
        ..process("u", &["sh", "-c", "id -u; id -g; pwd"])
    };
    assert_eq!(run(&mut client, numeric).1, "1234\n5678\n/made/here\n");
    let limits = vec![Rlimit { resource: 7, soft: 77, hard: 88 }];
    let limited = ProcessSpec {
        rlimits: limits,
        no_new_privileges: true,
        umask: Some(0o77),
        ..process(
            "u",
            &["sh", "-c", "ulimit -n; ulimit -Hn; grep NoNewPrivs /proc/self/status; umask"],
        )
    };
    assert_eq!(run(&mut client, limited).1, "77\n88\nNoNewPrivs:\t1\n0077\n");
    let odd = ProcessSpec {
        args: vec![b"printf".to_vec(), b"%s".to_vec(), b"a\n\xff b".to_vec()],
        env: vec![b"PATH=/bin".to_vec()],
        ..process("u", &[])
    };
    assert_eq!(run(&mut client, odd).1, "a\n\u{fffd} b");
    let env = (0..10_000).map(|n| format!("VARIABLE_{n}=value").into_bytes()).collect();
    let many = ProcessSpec { env, ..process("u", &["sh", "-c", "env | grep -c VARIABLE_"]) };
    assert_eq!(run(&mut client, many).1, "10000\n");

    client.shut_down();
}

/// What the guest tells of itself.
fn telling(files: &Files) {
    let mut client = sleeping(files);
    let Reply::BootLog(log) = client.call(Call::BootLog(BootLogRequest {})) else { panic!() };
    assert!(String::from_utf8_lossy(&log.text).contains("Linux version"));
    let Reply::Stats(stats) = client.call(Call::Stats(StatsRequest {})) else { panic!() };
    assert!(stats.pids == 1 && stats.cpu_usec > 0 && stats.memory_bytes > 0, "{stats:?}");
    let Reply::Processes(list) = client.call(Call::Processes(ProcessesRequest {})) else {
        panic!()
    };
    assert_eq!(list.pids.len(), 1);
    client.done(Call::Sync(SyncRequest {}));
    client.shut_down();
}

fn read_only(files: &Files) {
    let mut client = Client::rooted(files);
    let tmpfs = TmpfsMount {
        path: b"/scratch/a".to_vec(),
        size_bytes: 1 << 20,
        mode: Some(0o700),
        ..Default::default()
    };
    let spec = ContainerSpec {
        read_only_root: true,
        tmpfs: vec![tmpfs],
        shm_size_bytes: 8 << 20,
        resolv_conf: b"nameserver 192.0.2.1\n".to_vec(),
        ..container()
    };
    let process = process("main", &["sleep", "1000"]);
    client.started(Call::StartContainer(Box::new(StartContainer { container: spec, process })));
    let mut check = |script: &str, expected: &str| {
        let (_, out) = sh(&mut client, "x", script);
        assert_eq!(out, expected, "{script}");
    };
    check("touch /x /etc/hosts 2>/dev/null || echo ro; touch /scratch/a/b && echo rw", "ro\nrw\n");
    check(
        "grep ' /scratch/a ' /proc/mounts | sed s/,inode64//",
        "tmpfs /scratch/a tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k,mode=700 0 0\n",
    );
    check(
        "df -m /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; cat /etc/resolv.conf",
        "8\nnameserver 192.0.2.1\n",
    );
    client.shut_down();
}

fn init(files: &Files) {
    let mut client = Client::rooted(files);
    let script = "trap 'echo int; exit 6' INT; (sleep 0.2 & ) ; echo $$; cat /proc/1/comm; ls -l /proc/1/fd 2>/dev/null | wc -l; cat > /dev/null & while :; do sleep 0.1; done";
    let mut spec = process("main", &["sh", "-c", script]);
    let out = client.streams(&mut spec).stdout.unwrap();
    let with_init = ContainerSpec { init: true, ..container() };
    client.started(Call::StartContainer(Box::new(StartContainer {
        container: with_init,
        process: spec,
    })));
    client.until(|c| c.output[&out].iter().filter(|b| **b == b'\n').count() >= 2);
    std::thread::sleep(Duration::from_millis(700));
    let zombies = sh(&mut client, "z", "grep -l 'State:.Z' /proc/[0-9]*/status | wc -l").1;
    assert_eq!(zombies, "0\n");
    client.done(Call::Signal(Signal { process: "main".into(), signal: 2, all: false }));
    assert_eq!(client.exit("main").exit_code, 6);
    client.until(|c| c.ended(out));
    println!("       {:?}", String::from_utf8_lossy(&client.output[&out]));
    client.shut_down();
}

fn oom(files: &Files) {
    let mut client = sleeping(files);
    let fill = "dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null; ";
    let eat = "exec dd if=/dev/zero of=/dev/null bs=190M count=1";
    let at = Instant::now();
    assert_eq!(sh(&mut client, "eater", &format!("{fill}{eat}")).0, 137);
    println!("       killed after {:?}", at.elapsed());
    client.until(|c| !c.ooms.is_empty());
    println!("       {:?}", client.ooms[0]);
    let oom = &client.ooms[0];
    assert!(oom.kernel_message.contains("dd") && oom.process == "dd" && oom.pid > 1, "{oom:?}");
    assert!(oom.anonymous_bytes > 50 << 20 && oom.limit_bytes > oom.anonymous_bytes, "{oom:?}");
    // The rest of the container and the guest live on.
    assert_eq!(sh(&mut client, "after", "exit 1").0, 1);
    client.shut_down();
}

fn hostile(files: &Files) {
    let mut client = Client::rooted(files);
    assert_eq!(client.error(exec_call(process("a", &["true"]))).code(), ErrorCode::InvalidState);
    assert_eq!(client.error(Call::Setup(Setup::default())).code(), ErrorCode::InvalidState);
    assert_eq!(client.error(Call::Stats(StatsRequest {})).code(), ErrorCode::InvalidState);
    // What the container does to its own first process's descriptors and to
    // those that join it.
    let script =
        "kill -STOP -1; while :; do kill -STOP -1 2>/dev/null; kill -KILL -1 2>/dev/null; done";
    client.started(start(process("main", &["sh", "-c", script])));
    for n in 0..10 {
        let name = format!("e{n}");
        let _ = client.send(exec_call(process(&name, &["true"])));
    }
    let Reply::Pong(pong) = client.call(Call::Ping(Ping {})) else { panic!() };
    println!("       {pong:?}");
    client.shut_down();
}

/// A frame that is no request is answered; lost framing ends the VM.
fn malformed(files: &Files) {
    let mut client = Client::boot(files);
    client.send_raw(&[3, 0, 0, 0, 0xff, 0xff, 0xff]);
    client.until(|c| c.has_response(0));
    client.call(Call::Ping(Ping {}));
    client.send_raw(&[0xff; 8]);
    client.vm.wait();
}

/// A host that takes no output stops that process, and nothing else.
fn stalled(files: &Files) {
    let mut client = Client::rooted(files);
    let mut spec = process("main", &["yes"]);
    let out = client.streams(&mut spec).stdout.unwrap();
    client.output.remove(&out);
    client.started(start(spec));
    std::thread::sleep(Duration::from_millis(500));
    for n in 0..3 {
        let at = Instant::now();
        assert_eq!(sh(&mut client, "a", "echo x; exit 3"), (3, "x\n".into()));
        println!("       exec {n} beside a stalled stream: {:?}", at.elapsed());
    }
    client.done(Call::Signal(Signal { process: "main".into(), signal: 9, all: false }));
    client.call(Call::Ping(Ping {}));
    assert!(!client.exits.contains_key("main"), "told before the output is out");
    client.output.insert(out, Vec::new());
    assert_eq!(client.exit("main").exit_code, 137);
    client.until(|c| c.ended(out));
    assert!(client.output[&out].len() > vminitd_protocol::STREAM_WINDOW);
    client.shut_down();
}

/// A new host connection begins with a handshake in the middle of everything.
fn reconnect(files: &Files) {
    let mut client = sleeping(files);
    client.connect_again();
    let Reply::Pong(pong) = client.call(Call::Ping(Ping {})) else { panic!() };
    assert_eq!(pong.state(), GuestState::Running);
    assert_eq!(sh(&mut client, "a", "echo x; exit 3"), (3, "x\n".into()));
    client.shut_down();
}

fn init_terminal(files: &Files) {
    let mut client = Client::rooted(files);
    let size = Some(TerminalSize { rows: 24, columns: 80 });
    let script = "trap 'echo int; exit 6' INT; echo ready; while :; do sleep 0.1; done";
    let mut spec = ProcessSpec { terminal: size, ..process("main", &["sh", "-c", script]) };
    let stream = client.streams(&mut spec).terminal.unwrap();
    let with_init = ContainerSpec { init: true, ..container() };
    client.started(Call::StartContainer(Box::new(StartContainer {
        container: with_init,
        process: spec,
    })));
    client.until(|c| c.output[&stream].starts_with(b"ready"));
    client.write(stream, b"\x03", false);
    assert_eq!(client.exit("main").exit_code, 6);
    client.until(|c| c.ended(stream));
    client.shut_down();
}
