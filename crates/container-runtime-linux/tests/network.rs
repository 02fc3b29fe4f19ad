//! Containers with networks, in each way of getting a VM: what their guests set up, and that bytes
//! go through it. The other end of every NIC is a tap in a network namespace of the test's own.

#[expect(dead_code, reason = "other tests of this crate use the rest")]
mod harness;
#[path = "support/lan.rs"]
mod lan;
#[expect(dead_code, reason = "other tests of this crate use the rest")]
mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use container_api::network::Mac;
use container_api::runtime::{GuestInterface, GuestNetwork, Request};
use container_api::types::Stdio;
use harness::{
    LIMIT, NONE, Net, Run, Way, config, disks, output_pipe, process, read_all, template,
};
use lan::Lan;

const WAYS: [Way; 3] = [Way::Cold, Way::Template, Way::Spare];
const STDOUT: Stdio = Stdio { stdin: false, stdout: true, stderr: false };
const HOSTS: &str = "127.0.0.1\tlocalhost\n10.9.1.2\ttest\n";
const RESOLV_CONF: &str = "nameserver 10.9.1.1\nsearch example.test\n";

/// NIC number `n` of a container: 10.9.n.2 and fd09:n::2, with the host's end at `.1`.
fn interface(n: u8) -> GuestInterface {
    let address = |text: String| text.parse().unwrap();
    let gateways = [format!("10.9.{n}.1"), format!("fd09:{n}::1")];
    GuestInterface {
        mac_address: Mac([0x02, 0x42, 0, 0, 0, n]),
        mtu: 1400 + u32::from(n),
        addresses: vec![address(format!("10.9.{n}.2/24")), address(format!("fd09:{n}::2/64"))],
        gateways: gateways.iter().filter(|_| n == 1).map(|ip| ip.parse().unwrap()).collect(),
    }
}

/// A container with `count` NICs that runs a script, and its network.
async fn begin(way: Way, count: u8, script: &str) -> (Run, Lan) {
    const NAMES: [&str; 3] = ["one", "two", "three"];
    let lan = Lan::new();
    let interfaces: Vec<_> = (1..=count).map(interface).collect();
    let tap = |n: u8| {
        let addresses = [format!("10.9.{n}.1/24"), format!("fd09:{n}::1/64")];
        lan.tap(NAMES[usize::from(n) - 1], &addresses.each_ref().map(|a| a.as_str()))
    };
    let taps = (1..=count).map(tap).collect();
    let guest = Some(GuestNetwork {
        interfaces,
        hosts: HOSTS.into(),
        resolv_conf: Some(RESOLV_CONF.into()),
    });
    let directory = tempfile::tempdir().unwrap();
    disks(directory.path());
    let run = Run::begin_with(way, directory, config(script), Net { guest, taps }).await;
    (run, lan)
}

/// What a script prints in a container that runs.
async fn exec(run: &Run, id: &str, script: &str) -> String {
    let (out, end) = output_pipe();
    run.exec(id, process(script), STDOUT, vec![end]).await.unwrap();
    let out = String::from_utf8(read_all(out).await).unwrap();
    let record = run.wait(id).await.unwrap();
    assert_eq!(record.exit_code, 0, "{script}: {out}");
    out
}

/// Connects until somebody listens.
fn connect(address: &str) -> TcpStream {
    let end = Instant::now() + LIMIT;
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < end, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Bytes out of the container and into it, by both families, over NIC number `n`.
async fn bytes_flow(run: &Run, lan: &Lan, n: u8) {
    for host in [format!("10.9.{n}.1"), format!("fd09:{n}::1")] {
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let address = format!("{bracketed}:7000");
        let listener = lan.within(move || TcpListener::bind(address).unwrap());
        let reader = tokio::task::spawn_blocking(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(b"welcome\n").unwrap();
            (all.len(), peer.ip().to_string())
        });
        let send =
            format!("dd if=/dev/zero bs=1000 count=3000 2>/dev/null | busybox nc {host} 7000");
        assert_eq!(exec(run, &format!("send-{host}"), &send).await, "welcome\n");
        let (len, peer) = reader.await.unwrap();
        let guest = if host.contains(':') { format!("fd09:{n}::2") } else { format!("10.9.{n}.2") };
        assert_eq!((len, peer), (3_000_000, guest));
    }
    let serve = "exec busybox nc -ll -p 80 -e busybox sh -c 'cat /big'";
    let id = format!("serve-{n}");
    run.exec(&id, process(serve), NONE, vec![]).await.unwrap();
    for guest in [format!("10.9.{n}.2:80"), format!("[fd09:{n}::2]:80")] {
        let len = lan.within(move || {
            let mut all = Vec::new();
            connect(&guest).read_to_end(&mut all).unwrap();
            all.len()
        });
        assert_eq!(len, 2_000_000);
    }
    run.call::<()>(Request::Signal { process_id: id.clone(), signal: 9 }, vec![]).await.unwrap();
    run.wait(&id).await.unwrap();
}

#[tokio::test]
async fn a_container_has_the_network_that_it_was_given() {
    // The first thing that it does is to use it.
    let script = "busybox nc 10.9.1.1 6000 </dev/null; head -c 2000000 /dev/zero > /big; \
                  while :; do sleep 1; done";
    for way in WAYS {
        let (mut run, lan) = begin(way, 1, script).await;
        let first = lan.within(|| TcpListener::bind("10.9.1.1:6000").unwrap());
        run.start(NONE, vec![]).await.unwrap();
        first.set_nonblocking(true).unwrap();
        let end = Instant::now() + LIMIT;
        while let Err(error) = first.accept() {
            assert!(Instant::now() < end, "{way:?}: {error}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let files = exec(&run, "files", "cat /etc/hosts /etc/resolv.conf").await;
        assert_eq!(files, format!("{HOSTS}{RESOLV_CONF}"), "{way:?}");
        let links = exec(&run, "links", "busybox ip -o link; busybox ip -o address").await;
        let link = links.lines().find(|line| line.contains("eth0:")).expect("eth0");
        assert!(link.contains("mtu 1401") && link.contains("02:42:00:00:00:01"), "{links}");
        assert!(links.contains("10.9.1.2/24") && links.contains("fd09:1::2/64"), "{links}");
        assert!(!links.contains("tentative") && !links.contains("192.0.2."), "{links}");
        let routes = exec(&run, "routes", "busybox ip route; busybox ip -6 route").await;
        assert!(routes.contains("default via 10.9.1.1 dev eth0"), "{routes}");
        assert!(routes.contains("default via fd09:1::1 dev eth0"), "{routes}");
        bytes_flow(&run, &lan, 1).await;
        let neighbours = lan.ip("neigh show dev one");
        let known = neighbours.lines().filter(|line| line.contains("lladdr"));
        assert!(known.clone().count() >= 2, "{neighbours}");
        for line in known.filter(|line| !line.starts_with("fe80:")) {
            assert!(line.contains("02:42:00:00:00:01"), "{way:?}: {neighbours}");
        }
        run.stop(0).await;
        run.left().await;
        // It goes with the VM.
        let links = lan.ip("-o link");
        assert!(!links.contains("one"), "{way:?}: {links}");
    }
}

#[tokio::test]
async fn further_networks_have_nics_of_their_own() {
    let script = "head -c 2000000 /dev/zero > /big; while :; do sleep 1; done";
    for way in WAYS {
        let (mut run, lan) = begin(way, 3, script).await;
        run.start(NONE, vec![]).await.unwrap();
        let links = exec(&run, "links", "busybox ip -o link; busybox ip -o address").await;
        for n in 1..=3 {
            let name = format!(": eth{}: ", n - 1);
            let link = links.lines().find(|line| line.contains(&name)).expect(&name);
            assert!(link.contains(&format!("02:42:00:00:00:0{n}")), "{way:?}: {links}");
            assert!(link.contains(&format!("mtu 140{n}")), "{way:?}: {links}");
            bytes_flow(&run, &lan, n).await;
        }
        run.stop(0).await;
        run.left().await;
        assert_eq!(lan.ip("-o link").lines().count(), 1, "{way:?}");
    }
}

#[tokio::test]
async fn a_container_without_a_network_has_a_nic_that_is_down() {
    for way in WAYS {
        let directory = tempfile::tempdir().unwrap();
        disks(directory.path());
        let net = Net { guest: Some(GuestNetwork::default()), taps: Vec::new() };
        let script = "cat /etc/hosts; busybox ip -o address";
        let mut run = Run::begin_with(way, directory, config(script), net).await;
        let (out, end) = output_pipe();
        run.start(STDOUT, vec![end]).await.unwrap();
        let out = String::from_utf8(read_all(out).await).unwrap();
        assert!(out.contains("127.0.0.1\tlocalhost") && !out.contains("eth0"), "{way:?}: {out}");
        assert_eq!(run.left().await.exit_code, 0);
    }
}

#[tokio::test]
async fn taps_that_do_not_fit_are_refused() {
    let lan = Lan::new();
    // A container of one interface with two taps.
    let taps = vec![lan.tap("one", &[]), lan.tap("two", &[])];
    let directory = tempfile::tempdir().unwrap();
    disks(directory.path());
    let one = GuestNetwork { interfaces: vec![interface(1)], ..GuestNetwork::default() };
    let net = Net { guest: Some(one.clone()), taps };
    let mut run = Run::begin_with(Way::Cold, directory, config("true"), net).await;
    let reason = run.left().await.reason;
    assert!(reason.contains("1 network interfaces, but 2 taps"), "{reason}");

    // A spare that is offered what is no tap stays a spare; one whose NIC leads nowhere becomes
    // no container with a network.
    let template = template::of_shape(config("").resources, true).await;
    let directory = tempfile::tempdir().unwrap();
    disks(directory.path());
    let path = directory.path();
    let mut spec = harness::spec(config("").resources).await;
    spec.nic = true;
    spec.template = Some(template.files());
    spec.image_disk = path.join(harness::IMAGE);
    spec.upper_disk = path.join("upper.img");
    let mut spare = template.spare(path, &spec, &[]).await;
    spec.network = Some(one);
    harness::write_json(path.join("config.json"), &config("true"));
    harness::write_json(path.join("vm.json"), &spec);
    let adopt = |taps| Request::Adopt { directory: path.to_owned(), taps };
    let null = std::fs::File::open("/dev/null").unwrap();
    let call = template::call_with::<()>;
    for (taps, fds) in [(1, vec![null.as_fd()]), (1, vec![]), (0, vec![null.as_fd()])] {
        let error = call(&spare.directory, adopt(taps), &fds).await.unwrap_err();
        assert_eq!(error.code, container_api::ErrorCode::InvalidArgument, "{error}");
    }
    let tap = lan.tap("three", &[]);
    let error = call(&spare.directory, adopt(1), &[tap.as_fd()]).await.unwrap_err();
    assert!(error.message.contains("its VM has 0 taps"), "{error}");
    let end = Instant::now() + LIMIT;
    while spare.helper.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the helper stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Prints what a network adds to a start: the least and the middle of several, in turns.
#[tokio::test]
#[ignore = "a measurement"]
async fn cost() {
    let rounds = std::env::var("CONTAINER_TEST_ROUNDS").map_or(9, |n| n.parse().unwrap());
    for way in [Way::Spare, Way::Template, Way::Cold] {
        let mut took = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (count, took) in (0..).zip(&mut took) {
                took.push(started_after(way, count).await);
            }
        }
        for (count, took) in took.into_iter().enumerate() {
            let (clock, cpu): (Vec<_>, Vec<_>) = took.into_iter().unzip();
            for (what, mut took) in [("clock", clock), ("CPU of the VM", cpu)] {
                took.sort_unstable();
                let (least, middle) = (took[0], took[took.len() / 2]);
                eprintln!("{way:?}, {count} NICs, {what}: least {least:?}, middle {middle:?}");
            }
        }
    }
}

/// From the beginning of the helper, or of the adoption, to the program's; then the CPU time that
/// the VM has used by then, which says more on a busy machine.
async fn started_after(way: Way, count: u8) -> (Duration, Duration) {
    let (mut run, _lan) = begin(way, count, "exec sleep 1000").await;
    let before = if way == Way::Spare { cpu_time(&run).await } else { Duration::ZERO };
    let file = tempfile::NamedTempFile::new().unwrap();
    let append = std::fs::File::options().append(true).open(file.path()).unwrap();
    let start = Request::Start { stdio: NONE, size: None, trace: true };
    run.call::<()>(start, vec![append.into()]).await.unwrap();
    let used = cpu_time(&run).await - before;
    run.stop(0).await;
    run.left().await;
    let text = std::fs::read_to_string(file.path()).unwrap();
    let spans: Vec<container_api::trace::Span> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = spans.iter().map(|span| span.begin_ns).min().unwrap();
    let started = spans.iter().find(|span| span.name == "program started").unwrap();
    (Duration::from_nanos(started.end_ns - first), used)
}

/// What the VM's threads have used.
async fn cpu_time(run: &Run) -> Duration {
    let pid = run.state().await.hypervisor_pid.unwrap();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}
