//! A real kernel in a real jail: what it is given, what it can't reach, how it
//! ends.

#[path = "support/machine.rs"]
mod machine;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use container_runtime_linux::hypervisor::{
    Disk, Error, Hypervisor, Origin, Qemu, QemuInstall, Vm, open_shared,
};
use machine::{LIMIT, Machine, console_until, runtime};

/// The guest that says so and waits.
const WAITING_GUEST: &str = "echo ready\nwhile :; do /bin/busybox sleep 1; done\n";

#[test]
fn boots_and_powers_off() {
    runtime().block_on(async {
        let machine = Machine::new().await;
        assert!(machine.install.is_current());
        let config = machine.config("echo hello from $$\n/bin/busybox reboot -f\n");
        let began = Instant::now();
        let (vm, mut streams) = Qemu.start(config).await.expect("a VM");
        println!("running after {:?}", began.elapsed());
        console_until(&mut streams, "hello from 1").await;
        println!("PID 1 after {:?}", began.elapsed());
        let exit = tokio::time::timeout(LIMIT, vm.ended()).await;
        let exit = exit.expect("an end");
        assert_eq!((exit.code, exit.signal), (Some(0), None), "{exit}");
        assert_eq!(exit.reason.as_deref(), Some("guest-reset"));
        assert_eq!(vm.ended().await, exit, "asking again is the same");
    });
}

#[test]
fn jail_holds_nothing_else() {
    runtime().block_on(async {
        let machine = Machine::new().await;
        let config = machine.config(WAITING_GUEST);
        let (vm, mut streams) = Qemu.start(config).await.expect("a VM");
        console_until(&mut streams, "ready").await;
        let pid = vm.pid();
        check_status(pid);
        check_namespaces(pid);
        check_root(pid, &machine.install);
        check_descriptors(pid, machine.dir.path());

        vm.kill();
        let exit = tokio::time::timeout(LIMIT, vm.ended()).await;
        assert_eq!(exit.expect("an end").signal, Some(9));
    });
}

#[test]
fn works_for_an_unprivileged_user() {
    if nix::unistd::getuid().is_root() {
        support::again_unprivileged("jail_holds_nothing_else");
    }
}

fn check_status(pid: i32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name}")).trim_start_matches(':').trim().to_owned()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    // The jailer's filter and QEMU's own.
    assert!(field("Seccomp_filters").parse::<u32>().expect("a number") >= 2);
    assert!(field("NSpid").ends_with("\t1"), "pid 1 of its namespace");
    let expected = match nix::unistd::getuid().is_root() {
        true => support::JAIL_IDS.0,
        false => nix::unistd::getuid().as_raw(),
    };
    for id in field("Uid").split_whitespace() {
        assert_eq!(id, expected.to_string());
    }
    assert!(field("Groups").is_empty() || !nix::unistd::getuid().is_root());
}

fn check_namespaces(pid: i32) {
    for namespace in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).expect("a link");
        assert_ne!(of("self"), of(&pid.to_string()), "{namespace}");
    }
}

/// Every path in the jail's root is one of the files that were named.
fn check_root(pid: i32, install: &QemuInstall) {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let mut expected: Vec<PathBuf> = install.files.iter().map(|f| f.target.clone()).collect();
    expected.push("/dev/null".into());
    expected.sort();
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    found.sort();
    assert_eq!(found, expected);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("its mounts");
    for mount in mounts.lines() {
        let options = mount.split(' ').nth(5).expect("options");
        assert!(options.starts_with("ro,nosuid"), "{mount}");
    }
}

fn walk(root: &Path, directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("an entry");
        if entry.path() == root.join("proc") {
            continue;
        }
        match entry.file_type().expect("a type").is_dir() {
            true => walk(root, &entry.path(), found),
            false => {
                let path = entry.path();
                let inside = path.strip_prefix(root).expect("inside");
                found.push(Path::new("/").join(inside));
            }
        }
    }
}

/// Counts descriptors by what they are. Numbers and order are QEMU's affair.
fn check_descriptors(pid: i32, dir: &Path) {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors") {
        let target = fs::read_link(entry.expect("an entry").path()).expect("a target");
        let name = target.to_string_lossy();
        let kind = name.split([':', '[']).next().unwrap_or_default();
        *count.entry(kind.to_owned()).or_default() += 1;
    }
    println!("{count:?}");
    // Stdin; output and error. Shared files show no host path at all.
    assert_eq!(count.remove("/dev/null"), Some(1));
    assert_eq!(count.remove("pipe"), Some(2));
    let upper = dir.join("upper.img").to_string_lossy().into_owned();
    assert!(count.remove(&upper).is_some());
    // QMP, console, two ports.
    assert_eq!(count.remove("socket"), Some(4));
    for internal in ["anon_inode", "/", "/memfd"] {
        count.remove(internal);
    }
    assert!(count.is_empty(), "unexpected descriptors: {count:?}");
}

#[test]
fn disks_are_swapped_and_guests_paused() {
    runtime().block_on(async {
        let machine = Machine::new().await;
        let config = machine.config(WAITING_GUEST);
        let (vm, mut streams) = Qemu.start(config).await.expect("a VM");
        console_until(&mut streams, "ready").await;
        vm.pause().await.expect("paused");
        vm.resume().await.expect("running");
        for name in ["b.img", "c.img"] {
            let path = machine.dir.path().join(name);
            let file = support::disk(&path, b"OTHER\n");
            let began = Instant::now();
            let swapped = vm.swap_disks(vec![(Disk::Upper, Some(file.into()))]).await;
            swapped.expect("swapped");
            println!("{name} after {:?}", began.elapsed());
            assert!(is_open(vm.pid(), &path), "{name} is not open");
        }
        let image = machine.dir.path().join("other.erofs");
        let file = support::disk(&image, b"IMAGE-B\n");
        let refused = vm.swap_disks(vec![(Disk::Image, Some(file.into()))]).await;
        assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
        let shared = open_shared(&support::jail(), &image).await.expect("a file");
        let last = machine.dir.path().join("d.img");
        let file = support::disk(&last, b"LAST\n");
        let both = vec![(Disk::Upper, Some(file.into())), (Disk::Image, Some(shared))];
        vm.swap_disks(both).await.expect("swapped");
        let before = machine.dir.path().join("c.img");
        assert!(is_open(vm.pid(), &before) && is_open(vm.pid(), &last));
        vm.release_swapped().await.expect("released");
        assert!(!is_open(vm.pid(), &before) && is_open(vm.pid(), &last));
        for gone in ["upper.img", "b.img"] {
            let path = machine.dir.path().join(gone);
            assert!(!is_open(vm.pid(), &path), "{gone} is still open");
        }
        let (null, _) = std::os::unix::net::UnixStream::pair().expect("a pair");
        // Neither disk is exchanged when one can't be.
        let other = machine.dir.path().join("e.img");
        support::disk(&other, b"NEVER\n");
        let shared = open_shared(&support::jail(), &other).await.expect("a file");
        let one = vec![(Disk::Image, Some(shared)), (Disk::Upper, Some(null.into()))];
        let refused = vm.swap_disks(one).await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        assert!(!is_open(vm.pid(), &other) && is_open(vm.pid(), &last));
        vm.quit().await.expect("quits");
        let exit = tokio::time::timeout(LIMIT, vm.ended()).await;
        assert_eq!(exit.expect("an end").code, Some(0));
    });
}

fn is_open(pid: i32, path: &Path) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("its descriptors")
        .flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
}

#[test]
fn a_kernel_that_is_none_is_explained() {
    runtime().block_on(async {
        let machine = Machine::new().await;
        let mut config = machine.config(WAITING_GUEST);
        let Origin::Cold { kernel, .. } = &mut config.origin else { unreachable!() };
        *kernel = machine.dir.path().join("image.erofs");
        let error = Qemu.start(config).await.expect_err("no kernel");
        let Error::Died { stderr, .. } = &error else {
            panic!("{error:?}");
        };
        assert!(!stderr.is_empty() && !stderr.contains('\n'), "{error}");
    });
}

#[test]
fn bad_shapes_are_refused_before_anything_exists() {
    runtime().block_on(async {
        let machine = Machine::new().await;
        let mut small = machine.config(WAITING_GUEST);
        small.memory_mib = 16;
        let mut wide = machine.config(WAITING_GUEST);
        wide.vcpus = 100_000;
        let mut short = machine.config(WAITING_GUEST);
        short.upper = tempfile::tempfile().expect("a file").into();
        for config in [small, wide, short] {
            let error = Qemu.start(config).await.expect_err("refused");
            assert!(matches!(error, Error::Config(_)), "{error:?}");
        }
    });
}

const STARTER: &str = "CONTAINER_TEST_STARTER";

/// Not a test: the process that the next one kills.
#[test]
fn starter() {
    if std::env::var_os(STARTER).is_none() {
        return;
    }
    runtime().block_on(async {
        let machine = Machine::new().await;
        let config = machine.config(WAITING_GUEST);
        let (vm, mut streams) = Qemu.start(config).await.expect("a VM");
        console_until(&mut streams, "ready").await;
        println!("\npid {}", vm.pid());
        tokio::time::sleep(LIMIT).await;
    });
}

#[test]
fn qemu_dies_with_its_starter() {
    let mut starter = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "starter", "--nocapture"])
        .env(STARTER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("a starter");
    let output = BufReader::new(starter.stdout.take().expect("its output"));
    let pid = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("pid ")?.parse::<i32>().ok())
        .expect("a VM");
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    starter.kill().expect("killed");
    starter.wait().expect("reaped");
    let deadline = Instant::now() + Duration::from_secs(2);
    while is_running(pid) {
        assert!(Instant::now() < deadline, "QEMU outlives its starter");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A zombie that init has not reaped yet does not run.
fn is_running(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}
