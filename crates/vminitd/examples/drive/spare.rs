//! What a template and a spare VM do before they are somebody's.

use crate::cases::{container, process, sh, sleeping, start};
use crate::client::Client;
use crate::vm::{Files, Vm};
use std::time::Instant;
use vminitd_protocol::message::*;

fn stats(client: &mut Client) -> Stats {
    match client.call(Call::Stats(StatsRequest {})) {
        Reply::Stats(stats) => stats,
        other => panic!("no statistics: {other:?}"),
    }
}

/// Further containers in one VM; none sees what the others have left.
pub fn again(files: &Files) {
    let mut client = Client::boot(files);
    for n in 0..6 {
        let at = Instant::now();
        client.root();
        let rooted = at.elapsed();
        client.started(start(process("main", &["true"])));
        let started = at.elapsed();
        assert_eq!(client.exit("main").exit_code, 0);
        println!("       start {n}: root {rooted:?}, running {started:?}, exit {:?}", at.elapsed());
        client.done(Call::UnmountRoot(UnmountRoot {}));
    }
    // One that leaves all that it can: processes, files in memory, a kill.
    client.root();
    client.started(start(process("main", &["sleep", "1000"])));
    let look = "cut -d ' ' -f 1-4 /proc/mounts; ls /dev/shm / /dev; ps -o pid,args; \
                grep oom_kill /sys/fs/cgroup/memory.events";
    let first = sh(&mut client, "look", look);
    let fill = "(sleep 1000 &); dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null; \
                dd if=/dev/zero of=/written bs=1M count=20 2>/dev/null; sync; rm /written; \
                exec dd if=/dev/zero of=/dev/null bs=190M count=1";
    assert_eq!(sh(&mut client, "eater", fill).0, 137);
    client.until(|c| !c.ooms.is_empty());
    let full = stats(&mut client);
    assert!(full.block_written_bytes >= 20 << 20, "{full:?}");
    client.done(Call::Signal(Signal { process: "main".into(), signal: 9, all: false }));
    client.exit("main");
    client.done(Call::UnmountRoot(UnmountRoot {}));
    client.root();
    client.started(start(process("main", &["sleep", "1000"])));
    let fresh = stats(&mut client);
    println!("       {fresh:?}");
    assert!(fresh.pids == 1 && fresh.memory_bytes < 8 << 20, "{fresh:?}");
    assert!(fresh.cpu_usec < full.cpu_usec && fresh.block_written_bytes < 1 << 20, "{fresh:?}");
    assert!(fresh.memory_limit_bytes > full.memory_limit_bytes - (8 << 20), "{fresh:?} {full:?}");
    assert_eq!(sh(&mut client, "look", look), first);
    client.done(Call::Signal(Signal { process: "main".into(), signal: 9, all: false }));
    assert!(!client.exit("main").out_of_memory);
    client.shut_down();
}

/// The NIC, set up again and again while there is no process, and not otherwise.
pub fn network(files: &Files) {
    let request = |last: u8| {
        let address = |last: u8| vec![192, 0, 2, last];
        let interface = Interface {
            mac: vec![2, 0, 0, 0, 0, last],
            mtu: 1300 + u32::from(last),
            addresses: vec![Address { ip: address(last), prefix_len: 24 }],
            gateways: vec![address(1)],
        };
        Call::ConfigureNetwork(ConfigureNetwork { interfaces: vec![interface] })
    };
    let mut client = Client::boot(files);
    assert_eq!(client.error(request(2)).code(), ErrorCode::InvalidState);
    client.set_up(vec![]);
    client.done(Call::ConfigureNetwork(ConfigureNetwork::default()));
    client.done(request(2));
    let mut wrong = ConfigureNetwork::default();
    wrong.interfaces.push(Interface { mac: vec![1; 6], mtu: 1500, ..Interface::default() });
    let refused = client.error(Call::ConfigureNetwork(wrong));
    assert_eq!(refused.code(), ErrorCode::InvalidRequest);
    // The drivers that the boot has left out, but the NIC's, which is there.
    client.done(Call::LoadDrivers(LoadDrivers::default()));
    client.root();
    let at = Instant::now();
    client.done(request(3));
    println!("       again: {:?}", at.elapsed());
    client.started(start(process("main", &["sleep", "1000"])));
    assert_eq!(client.error(request(4)).code(), ErrorCode::InvalidState);
    let look = "ip -4 -o address show dev eth0 | tr -s ' ' | cut -d' ' -f4; ip route | head -1; \
                cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu";
    let seen = sh(&mut client, "look", look).1;
    let expected = "192.0.2.3/24\ndefault via 192.0.2.1 dev eth0 \n02:00:00:00:00:03\n1303\n";
    assert_eq!(seen, expected);
    client.shut_down();
}

/// Requests that what was made ahead doesn't fit, and none at all.
pub fn ahead(files: &Files) {
    let mut client = Client::boot(files);
    let mut check =
        |spec: ContainerSpec, mut process: ProcessSpec, script: &str, expected: &str| {
            client.root();
            // Fails once before: what was made ahead is spent.
            if spec.init {
                let nothing = StartContainer {
                    container: spec.clone(),
                    process: ProcessSpec {
                        process: "main".into(),
                        args: vec![b"/none".to_vec()],
                        ..Default::default()
                    },
                };
                let failed = client.error(Call::StartContainer(Box::new(nothing)));
                assert_eq!(failed.code(), ErrorCode::CommandNotFound);
            }
            client.streams(&mut process);
            let start = StartContainer { container: spec, process };
            client.started(Call::StartContainer(Box::new(start)));
            assert_eq!(sh(&mut client, "look", script).1, expected, "{script}");
            client.done(Call::Signal(Signal { process: "main".into(), signal: 9, all: false }));
            client.exit("main");
            client.done(Call::UnmountRoot(UnmountRoot {}));
            client.root();
            client.done(Call::UnmountRoot(UnmountRoot {}));
        };
    let sleep = || process("main", &["sleep", "1000"]);
    let usual = "grep -c -e ' /proc' -e ' /sys' /proc/mounts; (echo x > /proc/sys/kernel/hostname) 2> /dev/null || echo ro; \
                 wc -c < /proc/kcore; ls -ld /dev/shm | cut -c1-10; df -m /dev/shm | \
                 tail -1 | tr -s ' ' | cut -d' ' -f2; cut -d' ' -f5 /proc/self/mountinfo | \
                 grep -c /run; ls -l /etc/hosts | cut -c1-10; cat /etc/hostname";
    let mounts = |tail: &str| format!("14\nro\n0\n{tail}-rw-r--r--\nbox\n");
    let shm = "drwxrwxrwt\n64\n0\n";
    let small = ContainerSpec { shm_size_bytes: 8 << 20, ..container() };
    // The first one is made at the start.
    check(container(), sleep(), usual, &mounts(shm));
    check(container(), sleep(), "chmod 777 /etc/hosts; chmod 700 /dev/shm", "");
    check(container(), sleep(), usual, &mounts(shm));
    check(small, sleep(), usual, &mounts("drwxrwxrwt\n8\n0\n"));
    // One path more, and one less.
    let mut more = container();
    more.masked_paths.push(b"/proc/version".to_vec());
    check(more, sleep(), "wc -c < /proc/version", "0\n");
    let mut less = container();
    less.masked_paths.retain(|path| path != b"/proc/kcore");
    less.read_only_paths.clear();
    let look = "test -s /proc/kcore && echo whole; ls /sys/firmware | wc -l; \
                echo 5 > /proc/sys/net/ipv4/ip_default_ttl; cat /proc/sys/net/ipv4/ip_default_ttl";
    check(less, sleep(), look, "whole\n0\n5\n");
    let sysctls = vec![Sysctl { name: "net.ipv4.ip_default_ttl".into(), value: "7".into() }];
    let limits = Some(Limits { memory_bytes: 64 << 20, pids: 30, cpu_milli: 500 });
    let look = "cat /proc/sys/net/ipv4/ip_default_ttl; \
                cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max; cat /proc/1/comm";
    check(
        ContainerSpec { sysctls, limits, init: true, ..container() },
        sleep(),
        look,
        "7\n30\n50000 100000\ninit\n",
    );
    let plain = "cat /proc/sys/net/ipv4/ip_default_ttl /sys/fs/cgroup/cpu.max";
    // The network is the VM's, which has one container in its life, and so are its parameters.
    check(container(), sleep(), plain, "7\nmax 100000\n");
    let size = Some(TerminalSize { rows: 5, columns: 6 });
    let look = "ls /dev/pts; test -c /dev/console && stty size < /dev/pts/0";
    let on_terminal = || ProcessSpec { terminal: size, ..sleep() };
    check(container(), on_terminal(), look, "0\nptmx\n5 6\n");
    check(container(), on_terminal(), look, "0\nptmx\n5 6\n");
    // Longer than a socket takes.
    let env = (0..10_000).map(|n| format!("VARIABLE_{n}=value").into_bytes()).collect();
    let many = ProcessSpec { env, ..sleep() };
    check(container(), many, "tr '\\0' '\\n' < /proc/1/environ | grep -c VARIABLE_", "10000\n");
    let adjusted = ProcessSpec { oom_score_adj: 77, ..sleep() };
    check(container(), adjusted, "cat /proc/1/oom_score_adj", "77\n");
    // Parameters of the VM, as a template's maker sets them, take the launcher's place by another:
    // the next container's first process is older than its start.
    client.set_up(vec![Sysctl { name: "vm.drop_caches".into(), value: "3".into() }]);
    let Reply::Pong(before) = client.call(Call::Ping(Ping {})) else { panic!("no pong") };
    client.root();
    client.started(start(sleep()));
    let (_, ticks) = sh(&mut client, "look", "cut -d ' ' -f 22 /proc/1/stat");
    let began_ns = ticks.trim().parse::<u64>().expect("ticks") * 10_000_000;
    assert!(began_ns <= before.uptime_ns, "{began_ns} {}", before.uptime_ns);
    client.shut_down();
}

/// The first container of a VM that was saved after others: what a start from a
/// template takes, whose kernel the emulator translates anew.
pub fn restored(files: &Files) {
    let mut client = Client::greet(Vm::boot_template(files));
    for terminal in [None, Some(TerminalSize { rows: 24, columns: 80 })] {
        client.root();
        client.started(start(ProcessSpec { terminal, ..process("main", &["true"]) }));
        client.exit("main");
        client.done(Call::UnmountRoot(UnmountRoot {}));
    }
    client.vm.save(files);
    let runs = std::env::var("DRIVE_RUNS").map_or(1, |n| n.parse().unwrap());
    for n in 0..runs {
        let mut client = Client::greet(Vm::restore(files));
        let before = client.vm.cpu_seconds();
        let at = Instant::now();
        client.root();
        let rooted = at.elapsed();
        client.started(start(process("main", &["true"])));
        let started = at.elapsed();
        assert_eq!(client.exit("main").exit_code, 0);
        let used = client.vm.cpu_seconds() - before;
        println!(
            "       restored {n}: root {rooted:?}, running {started:?}, exit {:?}, QEMU's time {used:.2} s",
            at.elapsed()
        );
        client.shut_down();
    }
}

/// Balloon, network card and shares come when they are asked for, once.
pub fn drivers(files: &Files) {
    let mut client = Client::boot(files);
    let refused = client.error(Call::LoadDrivers(LoadDrivers::default()));
    assert_eq!(refused.code(), ErrorCode::InvalidState);
    client.root();
    let at = Instant::now();
    client.done(Call::LoadDrivers(LoadDrivers::default()));
    println!("       drivers: {:?}", at.elapsed());
    let at = Instant::now();
    client.done(Call::LoadDrivers(LoadDrivers::default()));
    println!("       again: {:?}", at.elapsed());
    client.started(start(process("main", &["sleep", "1000"])));
    let script = "ls /sys/bus/virtio/drivers | grep -c -e balloon -e net -e virtiofs; \
                  grep -c virtiofs /proc/filesystems";
    assert_eq!(sh(&mut client, "look", script).1, "3\n1\n");
    client.shut_down();
}

/// Limits of a living container.
pub fn update(files: &Files) {
    let mut client = sleeping(files);
    let all = stats(&mut client).memory_limit_bytes;
    let set = |client: &mut Client, memory_bytes, cpu_milli, pids| {
        let limits = Limits { memory_bytes, pids, cpu_milli };
        client.call(Call::Update(Update { limits }))
    };
    let done = Reply::Done(Done {});
    assert_eq!(set(&mut client, 64 << 20, 500, 50), done);
    let read = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max";
    assert_eq!(sh(&mut client, "a", read).1, "67108864\n50000 100000\n50\n");
    let hold = "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null";
    assert_eq!(sh(&mut client, "b", hold).0, 0);
    match set(&mut client, 16 << 20, 0, 0) {
        Reply::Error(error) => {
            println!("       {}", error.message);
            assert_eq!(error.code(), ErrorCode::Exhausted);
        }
        other => panic!("a limit below what is held: {other:?}"),
    }
    assert_eq!(sh(&mut client, "c", read).1, "67108864\n50000 100000\n50\n");
    assert_eq!(set(&mut client, 8 << 30, 0, 0), done);
    assert_eq!(stats(&mut client).memory_limit_bytes, all);
    assert!(sh(&mut client, "d", read).1.contains("\nmax 100000\n"));
    client.shut_down();
}

/// The program of the throwaway container, in its own image.
pub fn warm_up(files: &Files) {
    let mut client = Client::greet(Vm::boot_warm(files));
    for n in 0..3 {
        client.root();
        let at = Instant::now();
        let mut spec = process("main", &["/warm-up"]);
        let stdio = client.streams(&mut spec);
        client.started(Call::StartContainer(Box::new(StartContainer {
            container: container(),
            process: spec,
        })));
        let started = at.elapsed();
        assert_eq!(client.exit("main").exit_code, 0);
        let (out, err) = (stdio.stdout.unwrap(), stdio.stderr.unwrap());
        client.until(|c| c.ended(out) && c.ended(err));
        println!("       warm-up {n}: running {started:?}, exit {:?}", at.elapsed());
        assert!(client.output[&out].len() >= 60 << 10);
        let told = String::from_utf8_lossy(&client.output[&err]);
        assert_eq!(told, "warm-up\n");
        client.done(Call::UnmountRoot(UnmountRoot {}));
    }
    client.shut_down();
}
