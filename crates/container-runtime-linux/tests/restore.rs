//! Templates on a real QEMU: a VM is saved once and restored many times.

#[path = "support/machine.rs"]
mod machine;
mod support;
#[path = "support/template.rs"]
mod template;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use container_runtime_linux::hypervisor::{
    Error, Hypervisor, Origin, Qemu, RamSharing, Vm, VmStreams,
};
use machine::{LIMIT, Machine, guest, runtime};
use template::{MIB, Template, checksum};

#[test]
fn a_saved_vm_is_restored_many_times() {
    runtime().block_on(async {
        let template = Template::new(&["virtio", "failover"], true, "value=before").await;
        let mut clones = Vec::new();
        for number in 0..3 {
            let began = Instant::now();
            let (vm, mut streams) = template.restore(RamSharing::CopyOnWrite).await;
            let runs = began.elapsed();
            let said = guest(&mut streams, "echo $value; ls -1 /sys/class/net").await;
            println!("restored in {runs:?}, answered after {:?}", began.elapsed());
            assert_eq!(said, "before\neth0\nlo");
            guest(&mut streams, &format!("value=clone-{number}")).await;
            clones.push((vm, streams));
        }
        for (number, (vm, streams)) in clones.iter_mut().enumerate() {
            assert_eq!(guest(streams, "echo $value").await, format!("clone-{number}"));
            vm.kill();
        }
    });
}

#[test]
fn clones_have_memory_of_their_own() {
    runtime().block_on(async {
        let template = Template::new(&[], false, "echo template > /tmp/file").await;
        let before = checksum(&template.ram);
        for sharing in [RamSharing::CopyOnWrite, RamSharing::Copy] {
            let (vm, mut streams) = template.restore(sharing).await;
            assert_eq!(guest(&mut streams, "cat /tmp/file").await, "template", "{sharing:?}");
            guest(&mut streams, "echo clone > /tmp/file; sync").await;
            assert_eq!(guest(&mut streams, "cat /tmp/file").await, "clone", "{sharing:?}");
            vm.kill();
            vm.ended().await;
            assert_eq!(checksum(&template.ram), before, "{sharing:?}");
        }
    });
}

/// Waits until the VM holds at most that much of the host's memory.
async fn shrinks_to(vm: &impl Vm, limit: u64) -> Duration {
    let began = Instant::now();
    loop {
        let held = vm.own_memory().expect("its memory");
        if held <= limit {
            return began.elapsed();
        }
        assert!(began.elapsed() < LIMIT, "still holds {} MiB", held / MIB);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Bytes in memfds that a process holds.
fn memfds(pid: i32) -> u64 {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
    let paths = descriptors.map(|entry| entry.expect("a descriptor").path());
    let is_memfd = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:"))
    };
    paths
        .filter(is_memfd)
        .map(|path| fs::metadata(path).map_or(0, |meta| meta.blocks() * 512))
        .sum()
}

const FILL: &str = "dd if=/dev/urandom of=/tmp/fill bs=1M count=100 2>/dev/null";

#[test]
fn freed_memory_returns_and_the_template_stays() {
    runtime().block_on(async {
        let first = "mount -o remount,size=200m /tmp; echo template > /tmp/file";
        let template = Template::new(&["virtio", "failover"], false, first).await;
        // The worst case: the jail's own uid may write to the file.
        fs::set_permissions(&template.ram, fs::Permissions::from_mode(0o666)).expect("its mode");
        let before = checksum(&template.ram);
        let file = fs::metadata(&template.ram).expect("the RAM");
        let (sibling, mut sibling_streams) = template.restore(RamSharing::CopyOnWrite).await;
        guest(&mut sibling_streams, &format!("{FILL}; md5sum < /tmp/fill > /tmp/sum")).await;
        let held = sibling.own_memory().expect("its memory");
        assert!(held > 100 * MIB, "{held}");
        for sharing in [RamSharing::CopyOnWrite, RamSharing::Copy] {
            let (vm, mut streams) = template.restore(sharing).await;
            guest(&mut streams, "true").await;
            let idle = vm.own_memory().expect("its memory");
            guest(&mut streams, FILL).await;
            let full = vm.own_memory().expect("its memory");
            assert!(full > idle + 80 * MIB, "{sharing:?}: from {idle} to {full}");
            guest(&mut streams, "rm /tmp/fill").await;
            let took = shrinks_to(&vm, full - 75 * MIB).await;
            let now = vm.own_memory().expect("its memory") / MIB;
            println!("{sharing:?}: {} MiB, {} full, {now} after {took:?}", idle / MIB, full / MIB);
            if sharing == RamSharing::CopyOnWrite {
                let held = memfds(vm.pid()) / MIB;
                assert!(held < 2, "{held} MiB beside its own copies and the device state");
            }
            assert!(vm.cpu_time().expect("its time") > Duration::ZERO);
            assert_eq!(guest(&mut streams, "cat /tmp/file").await, "template");
        }
        assert_eq!(checksum(&template.ram), before);
        let after = fs::metadata(&template.ram).expect("the RAM");
        assert_eq!((after.blocks(), after.mtime_nsec()), (file.blocks(), file.mtime_nsec()));
        guest(&mut sibling_streams, "md5sum < /tmp/fill | cmp - /tmp/sum").await;
        assert_eq!(guest(&mut sibling_streams, "cat /tmp/file").await, "template");
    });
}

#[test]
fn a_balloon_takes_memory_and_gives_it_back() {
    runtime().block_on(async {
        let template = Template::new(&["virtio", "failover"], false, "true").await;
        let (vm, mut streams) = template.restore(RamSharing::CopyOnWrite).await;
        let free = "awk '/MemFree/ { print int($2 / 1024) }' /proc/meminfo";
        let free_mib = async |streams: &mut VmStreams| -> u64 {
            guest(streams, free).await.parse().expect("a number")
        };
        let before = free_mib(&mut streams).await;
        for (bytes, lack) in [(156 * MIB, 80..=110), (256 * MIB, 0..=20)] {
            vm.set_balloon(bytes).await.expect("a balloon");
            let began = Instant::now();
            while !lack.contains(&before.saturating_sub(free_mib(&mut streams).await)) {
                assert!(began.elapsed() < LIMIT, "the balloon does not move");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
}

#[test]
fn works_for_an_unprivileged_user() {
    if nix::unistd::getuid().is_root() {
        support::again_unprivileged("clones_have_memory_of_their_own");
    }
}

#[test]
fn what_is_no_template_is_refused() {
    runtime().block_on(async {
        let machine = Machine::new().await;
        fs::write(machine.path("state"), "no state at all").expect("a file");
        let state = || File::open(machine.path("state")).expect("the state").into();
        let start = async |ram: PathBuf| {
            let sharing = RamSharing::CopyOnWrite;
            let origin = Origin::Template { ram, state: state(), sharing };
            Qemu.start(machine.with_origin(origin)).await.map(drop).expect_err("refused")
        };
        let ram = machine.path("ram");
        let error = start(ram.clone()).await;
        assert!(matches!(error, Error::Io { .. }), "not there: {error:?}");
        let file = File::create(&ram).expect("a file");
        file.set_len(128 * MIB).expect("its length");
        let error = start(ram.clone()).await;
        assert!(matches!(error, Error::Config(_)), "too short: {error:?}");
        file.set_len(256 * MIB).expect("its length");
        let began = Instant::now();
        let error = start(ram).await;
        let Error::Died { stderr, .. } = &error else { panic!("{error:?}") };
        assert!(!stderr.is_empty() && !stderr.contains('\n'), "{error}");
        assert!(began.elapsed() < Duration::from_secs(20));
    });
}
