//! QEMU with the devices that every VM of this project has.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Length of every disk file in bytes, sparse: the guest keeps a device's
/// capacity when the file behind it is exchanged.
const DISK_LEN: u64 = 64 << 30;

/// What a VM is made of.
pub struct Files {
    kernel: PathBuf,
    initramfs: PathBuf,
    image: PathBuf,
    upper: PathBuf,
    warm_image: PathBuf,
    dir: tempfile::TempDir,
}

impl Files {
    /// Takes kernel and initramfs from the bundle and makes the disks.
    pub fn make(bundle: &Path) -> Files {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        make_tree(&tree);
        let (image, upper) = (dir.path().join("image.erofs"), dir.path().join("upper.ext4"));
        run(Command::new("mkfs.erofs").arg("--all-root").arg(&image).arg(&tree));
        match std::env::var_os("DRIVE_UPPER") {
            Some(empty) => {
                run(Command::new("cp").arg("--sparse=always").arg(empty).arg(&upper));
            }
            None => {
                File::create(&upper).unwrap().set_len(1 << 30).unwrap();
                run(Command::new("/sbin/mkfs.ext4").args(["-q", "-F"]).arg(&upper));
            }
        }
        for disk in [&image, &upper] {
            File::options().write(true).open(disk).unwrap().set_len(DISK_LEN).unwrap();
        }
        Files {
            kernel: bundle.join("vmlinux"),
            initramfs: bundle.join("initramfs.cpio"),
            image,
            upper,
            warm_image: bundle.join("warm.erofs"),
            dir,
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
}

fn make_tree(tree: &Path) {
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "srv"] {
        std::fs::create_dir_all(tree.join(dir)).unwrap();
    }
    let busybox = Path::new("/bin/busybox");
    std::fs::copy(busybox, tree.join("bin/busybox")).expect("the static busybox is installed");
    let list = Command::new(busybox).arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(list).unwrap().lines().filter(|name| *name != "busybox") {
        symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    let write = |name: &str, text: &str| std::fs::write(tree.join(name), text).unwrap();
    write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n");
    write("etc/group", "root:x:0:\nweb:x:34:\nstaff:x:50:web\n");
    write("garbage", "no program");
    std::fs::set_permissions(tree.join("garbage"), Permissions::from_mode(0o755)).unwrap();
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A running VM and the host's ends of its ports.
pub struct Vm {
    qemu: Child,
    pub agent: UnixStream,
    pub bulk: UnixStream,
    pub started: Instant,
}

impl Vm {
    /// With the bundle's image in place of the one that was made.
    pub fn boot_warm(files: &Files) -> Vm {
        Self::boot_image(files, &files.warm_image, 256, &[])
    }

    pub fn boot(files: &Files, memory_mib: u32) -> Vm {
        Self::boot_image(files, &files.image, memory_mib, &[])
    }

    /// One whose state can be saved.
    pub fn boot_template(files: &Files) -> Vm {
        let monitor = format!("unix:{},server=on,wait=off", files.path("monitor"));
        Self::boot_image(files, &files.image, 256, &["-monitor", &monitor])
    }

    /// Saves the state, memory with it, and ends the VM.
    pub fn save(self, files: &Files) {
        let mut monitor = UnixStream::connect(files.path("monitor")).unwrap();
        write!(monitor, "migrate \"exec:cat>{}\"\nquit\n", files.path("state")).unwrap();
        let mut said = String::new();
        monitor.read_to_string(&mut said).unwrap();
        assert!(!said.contains("rror"), "{said}");
        self.wait();
    }

    /// A VM that goes on where another was saved.
    pub fn restore(files: &Files) -> Vm {
        let state = format!("exec:cat {}", files.path("state"));
        Self::boot_image(files, &files.image, 256, &["-incoming", &state])
    }

    fn boot_image(files: &Files, image: &Path, memory_mib: u32, more: &[&str]) -> Vm {
        let (agent, agent_end) = UnixStream::pair().unwrap();
        let (bulk, bulk_end) = UnixStream::pair().unwrap();
        let (agent_end, bulk_end) = (OwnedFd::from(agent_end), OwnedFd::from(bulk_end));
        for fd in [&agent_end, &bulk_end] {
            nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
                .unwrap();
        }
        let cpu = std::env::var("DRIVE_CPU").unwrap_or("max,-svm,-la57,-erms,-fsrm".into());
        let cpus = std::env::var("DRIVE_CPUS").unwrap_or("1".into());
        let verbosity = std::env::var("DRIVE_VERBOSITY").unwrap_or("quiet loglevel=4".into());
        let console = std::env::var("DRIVE_CONSOLE").unwrap_or("/dev/null".into());
        let mut command =
            Command::new(std::env::var("QEMU").unwrap_or("qemu-system-x86_64".into()));
        command
            .args(["-M", "q35", "-cpu", &cpu, "-nodefaults", "-display", "none"])
            .args(["-accel", "tcg,tb-size=64", "-no-reboot", "-smp", &cpus])
            .args(["-m", &memory_mib.to_string()])
            .arg("-kernel")
            .arg(&files.kernel)
            .arg("-initrd")
            .arg(&files.initramfs)
            .args([
                "-append",
                &format!("console=ttyS0 {verbosity} panic=-1 oops=panic random.trust_cpu=on cryptomgr.notests"),
            ])
            .args(["-chardev", &format!("file,id=con,path={console}"), "-serial", "chardev:con"])
            .args(["-device", "virtio-serial-pci,max_ports=4"])
            .args(["-chardev", &format!("socket,id=ag,fd={}", agent_end.as_raw_fd())])
            .args(["-device", "virtserialport,chardev=ag,name=agent"])
            .args(["-chardev", &format!("socket,id=bu,fd={}", bulk_end.as_raw_fd())])
            .args(["-device", "virtserialport,chardev=bu,name=bulk"])
            .args([
                "-drive",
                &format!("if=none,id=image,format=raw,readonly=on,file={}", image.display()),
            ])
            .args(["-device", "virtio-blk-pci,drive=image,serial=image"])
            .args([
                "-drive",
                &format!(
                    "if=none,id=upper,format=raw,discard=unmap,file={}",
                    files.upper.display()
                ),
            ])
            .args(["-device", "virtio-blk-pci,drive=upper,serial=upper"])
            .args(["-device", "virtio-balloon-pci,free-page-reporting=on"])
            .args(["-netdev", "user,id=net,restrict=on"])
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .args(more)
            .stdin(Stdio::null());
        let started = Instant::now();
        let qemu = command.spawn().unwrap();
        Vm { qemu, agent, bulk, started }
    }

    /// CPU time that QEMU has used, in seconds: says more than a clock does on
    /// a busy machine.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.qemu.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: f64 = fields[11..13].iter().map(|n| n.parse::<f64>().unwrap()).sum();
        ticks / 100.0
    }

    /// Waits for the VM to power off by itself.
    pub fn wait(mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the VM doesn't power off");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
