//! Devices for a VM that was restored from a template that had none of them.

#[path = "support/machine.rs"]
mod machine;
#[expect(dead_code, reason = "other tests use the rest")]
mod support;
#[path = "support/template.rs"]
mod template;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use container_runtime_linux::hypervisor::{Disk, Error, RamSharing, Vm, open_shared};
use machine::{LIMIT, guest, runtime};
use template::Template;

/// A vhost-user file server, killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Debian's virtiofsd: QEMU's own until QEMU 7, a package of its own since.
fn virtiofsd() -> PathBuf {
    let paths = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"].map(PathBuf::from);
    let found = paths.into_iter().find(|path| path.exists());
    found.expect("virtiofsd (package qemu-system-common, or virtiofsd)")
}

/// Serves a directory; returns the connection for the VM.
fn serve(directory: &Path, socket: &Path) -> (Server, OwnedFd) {
    let mut option = std::ffi::OsString::from("source=");
    option.push(directory);
    let mut command = Command::new(virtiofsd());
    command.arg(format!("--socket-path={}", socket.display())).arg("-o").arg(option);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server(command.spawn().expect("a file server"));
    let began = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return (server, stream.into()),
            Err(error) => assert!(began.elapsed() < LIMIT, "{error}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Has the guest wait for a file to exist.
fn appears(path: &str) -> String {
    format!(
        "n=0; while [ ! -e {path} ] && [ $n -lt 3000 ]; do n=$((n+1)); usleep 10000; done; [ -e {path} ]"
    )
}

#[test]
fn a_clone_gets_disks_and_shared_directories() {
    runtime().block_on(async {
        let modules = ["virtio", "failover", "fuse"];
        let template = Template::new(&modules, false, "mkdir /share").await;
        let (vm, mut streams) = template.restore(RamSharing::Copy).await;

        let path = template.machine.path("volume");
        let file = support::disk(&path, b"VOLUME\n");
        let began = Instant::now();
        vm.plug_disk("volume-1", file.into(), false).await.expect("plugged");
        let asked = began.elapsed();
        guest(&mut streams, &appears("/dev/vde")).await;
        println!("a disk: asked in {asked:?}, there after {:?}", began.elapsed());
        assert_eq!(guest(&mut streams, "cat /sys/block/vde/serial").await, "volume-1");
        let first = "dd if=/dev/vde bs=7 count=1 2>/dev/null";
        assert_eq!(guest(&mut streams, first).await, "VOLUME");
        guest(&mut streams, "echo WRITTEN | dd of=/dev/vde conv=fsync 2>/dev/null").await;
        let mut written = [0; 7];
        use std::os::unix::fs::FileExt;
        let file = fs::File::open(&path).expect("the disk");
        file.read_exact_at(&mut written, 0).expect("its content");
        assert_eq!(&written, b"WRITTEN");

        // A slot is empty until it gets a file, and can be written then.
        assert_eq!(guest(&mut streams, "cat /sys/block/vdd/serial").await, "slot-1");
        let empty = "dd if=/dev/vdd bs=4096 count=1 2>/dev/null | tr -d '\\0' | wc -c";
        assert_eq!(guest(&mut streams, empty).await, "0");
        let path = template.machine.path("slot");
        let began = Instant::now();
        let file = support::disk(&path, b"BEHIND\n");
        vm.swap_disks(vec![(Disk::SecondSlot, Some(file.into()))]).await.expect("swapped");
        println!("a slot: swapped in {:?}", began.elapsed());
        let first = "echo 1 >/proc/sys/vm/drop_caches; blockdev --flushbufs /dev/vdd; \
                     dd if=/dev/vdd bs=7 count=1 2>/dev/null";
        assert_eq!(guest(&mut streams, first).await, "BEHIND");
        guest(&mut streams, "echo CHANGED | dd of=/dev/vdd conv=fsync 2>/dev/null").await;
        let file = fs::File::open(&path).expect("the slot's file");
        file.read_exact_at(&mut written, 0).expect("its content");
        assert_eq!(&written, b"CHANGED");
        vm.swap_disks(vec![(Disk::SecondSlot, None)]).await.expect("emptied");
        vm.release_swapped().await.expect("released");
        guest(&mut streams, "blockdev --flushbufs /dev/vdd").await;
        assert_eq!(guest(&mut streams, empty).await, "0");

        let read_only = support::disk(&template.machine.path("shared"), b"SHARED\n");
        let refused = vm.plug_disk("shared", read_only.into(), true).await;
        assert!(matches!(refused, Err(Error::Config(_))), "can be written: {refused:?}");
        let shared = open_shared(&support::jail(), &template.machine.path("shared")).await;
        vm.plug_disk("shared", shared.expect("a file"), true).await.expect("plugged");
        guest(&mut streams, &appears("/dev/vdf")).await;
        assert_eq!(guest(&mut streams, "cat /sys/block/vdf/ro").await, "1");

        let directory = template.machine.path("directory");
        fs::create_dir(&directory).expect("a directory");
        fs::write(directory.join("from-host"), "host\n").expect("a file");
        let socket = template.machine.path("fs.sock");
        let (_server, connection) = serve(&directory, &socket);
        let began = Instant::now();
        vm.plug_share("data", connection).await.expect("plugged");
        let asked = began.elapsed();
        let mount = "n=0; until mount -t virtiofs data /share 2>/dev/null || [ $n -gt 3000 ]; \
                     do n=$((n+1)); usleep 10000; done; cat /share/from-host";
        assert_eq!(guest(&mut streams, mount).await, "host");
        println!("a share: asked in {asked:?}, mounted after {:?}", began.elapsed());
        guest(&mut streams, "echo guest > /share/from-guest").await;
        let said = fs::read_to_string(directory.join("from-guest"));
        assert_eq!(said.expect("a file"), "guest\n");
    });
}

#[test]
fn what_can_not_work_is_refused() {
    runtime().block_on(async {
        let template = Template::new(&["virtio", "failover"], false, "true").await;
        let (vm, _streams) = template.restore(RamSharing::CopyOnWrite).await;
        let (socket, _other) = UnixStream::pair().expect("a pair");
        let refused = vm.plug_share("data", socket.into()).await;
        assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
        let disk = || support::disk(&template.machine.path("volume"), b"");
        let refused = vm.plug_disk("a,b=c", disk().into(), false).await;
        assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
        for number in 1..=4 {
            let plugged = vm.plug_disk(&format!("disk-{number}"), disk().into(), false).await;
            plugged.expect("plugged");
        }
        let refused = vm.plug_disk("disk-5", disk().into(), false).await;
        assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
    });
}
