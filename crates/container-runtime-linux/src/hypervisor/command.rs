//! QEMU's command line.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use container_api::network::Mac;

use super::Accelerator;
use super::arch::HOST;
use super::devices::{self, Disk, ROOT_PORTS};
use super::install::{FIRMWARE_DIR, PLUGIN_PATH, QemuInstall};

/// The translator's cache in MiB: 32 is the least that does not thrash when a
/// container starts, large programs want more, and it costs memory only as it
/// fills.
pub const TRANSLATION_CACHE_MIB: u32 = 256;

/// What QEMU may allocate beside the guest's RAM and its cache, in MiB.
const OWN_DATA_MIB: u64 = 1024;

/// The descriptor numbers of one VM in its jail.
#[derive(Debug, Clone)]
pub struct Numbers {
    /// Where the guest comes from.
    pub guest: Guest,
    /// What the RAM is mapped from.
    pub ram: Ram,
    /// The NIC's tap.
    pub tap: Option<RawFd>,
    /// Those of further NICs, and their hardware addresses.
    pub more_taps: Vec<(RawFd, Mac)>,
    /// Disks in the order of [`Disk::OWN`].
    pub disks: [RawFd; 2],
    /// QMP socket.
    pub monitor: RawFd,
    /// Sockets of the ports in device order.
    pub ports: [RawFd; 2],
    /// Console socket.
    pub console: RawFd,
    /// The page of [`super::trim`].
    pub trim: Option<RawFd>,
}

/// Where the guest comes from.
#[derive(Debug, Clone, Copy)]
pub enum Guest {
    /// From a kernel and an initramfs, which QEMU opens again.
    Boot { kernel: RawFd, initramfs: RawFd },
    /// From a state that QMP names.
    Incoming,
}

/// What a VM's RAM is mapped from.
#[derive(Debug, Clone, Copy)]
pub enum Ram {
    /// Memory that QEMU makes.
    Own,
    /// A file that the VM writes to.
    Shared(RawFd),
    /// A file whose pages are copied when they are written.
    CopyOnWrite(RawFd),
}

/// What of a configuration the command line needs.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What executes guest code.
    pub accelerator: Accelerator,
    /// Whether the CPU can run VMs itself.
    pub virtualization: bool,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// Places for devices that come later.
    pub root_ports: u32,
}

/// The program and what is the same in every use of it.
pub fn base(install: &QemuInstall) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec![install.binary.clone().into()];
    let fixed = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-L",
        FIRMWARE_DIR,
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ];
    words.extend(fixed.iter().map(OsString::from));
    words
}

/// The monitor on an inherited socket.
pub fn monitor(socket: &OwnedFd) -> Vec<OsString> {
    monitor_on(socket.as_raw_fd())
}

fn monitor_on(number: RawFd) -> Vec<OsString> {
    let chardev = format!("socket,id=qmp,fd={number}");
    ["-chardev", &chardev, "-mon", "chardev=qmp,mode=control"].iter().map(OsString::from).collect()
}

/// The environment: where libraries are, and nothing of the caller's.
pub fn environment(install: &QemuInstall) -> Vec<OsString> {
    vec![format!("LD_LIBRARY_PATH={}", install.library_path).into()]
}

/// The whole command line of a VM. A guest that boots runs at once, another
/// as soon as its state has come in.
pub fn vm(install: &QemuInstall, shape: Shape, numbers: Numbers) -> Vec<OsString> {
    let mut words = base(install);
    words.push("-no-reboot".into());
    let mut push = |option: &str, value: String| words.extend([option.into(), value.into()]);
    push("-M", HOST.machine_argument(&install.features, "ram"));
    push("-accel", accelerator(shape.accelerator));
    if let Some(page) = numbers.trim {
        let cache = u64::from(TRANSLATION_CACHE_MIB) << 20;
        push("-plugin", format!("{PLUGIN_PATH},page={page},cache={cache}"));
    }
    push("-cpu", HOST.cpu(shape.accelerator, shape.virtualization).into());
    push("-smp", format!("cpus={0},sockets=1,cores={0},threads=1", shape.vcpus));
    let memory = shape.memory_mib;
    push("-m", format!("{memory}M"));
    push("-object", memory_backend(numbers.ram, memory));
    match numbers.guest {
        Guest::Boot { kernel, initramfs } => {
            push("-kernel", format!("/proc/self/fd/{kernel}"));
            push("-initrd", format!("/proc/self/fd/{initramfs}"));
            push("-append", HOST.kernel_command_line());
        }
        Guest::Incoming => push("-incoming", "defer".into()),
    }
    let slots = devices::slots(shape.root_ports);
    let files = numbers.disks.map(Some).into_iter().chain(slots.iter().map(|_| None));
    for (disk, fd) in Disk::OWN.iter().chain(slots).zip(files) {
        let number = disk.first_number();
        let name = devices::file_node_name(number);
        let file = match fd {
            Some(fd) => {
                push("-add-fd", format!("set={number},fd={fd}"));
                devices::file_node(&name, number, disk.read_only())
            }
            None => devices::empty_node(&name),
        };
        push("-blockdev", file.to_string());
        push("-blockdev", devices::top_node(disk.name(), &name, disk.read_only()).to_string());
    }
    for (port, fd) in devices::Port::ALL.into_iter().zip(numbers.ports) {
        push("-chardev", format!("socket,id={},fd={fd}", port.name()));
    }
    push("-chardev", format!("socket,id=console,fd={}", numbers.console));
    push("-serial", "chardev:console".into());
    let taps = numbers.tap.into_iter().chain(numbers.more_taps.iter().map(|(fd, _)| *fd));
    for (number, fd) in taps.enumerate() {
        push("-netdev", format!("tap,id={},fd={fd},vhost=off", devices::netdev(number)));
    }
    let nic = numbers.tap.is_some();
    let more: Vec<Mac> = numbers.more_taps.iter().map(|(_, mac)| *mac).collect();
    for device in devices::devices(&install.features, nic, &more, shape.root_ports) {
        push("-device", device.argument);
    }
    words.extend(monitor_on(numbers.monitor));
    words
}

fn memory_backend(ram: Ram, mib: u32) -> String {
    let file = |fd, share| {
        format!("memory-backend-file,id=ram,size={mib}M,mem-path=/proc/self/fd/{fd},share={share}")
    };
    match ram {
        Ram::Own => format!("memory-backend-memfd,id=ram,size={mib}M,share=on"),
        Ram::Shared(fd) => file(fd, "on"),
        Ram::CopyOnWrite(fd) => file(fd, "off"),
    }
}

fn accelerator(accelerator: Accelerator) -> String {
    match accelerator {
        Accelerator::Kvm => "kvm".into(),
        Accelerator::Tcg => format!("tcg,tb-size={TRANSLATION_CACHE_MIB}"),
    }
}

/// What of a VM's shape is the same in every VM that this program starts on
/// this QEMU: a changed device or option changes it.
pub fn identity(install: &QemuInstall, accelerator: Accelerator, virtualization: bool) -> String {
    let root_ports = ROOT_PORTS;
    let shape = Shape { accelerator, virtualization, memory_mib: 0, vcpus: 0, root_ports };
    let numbers = Numbers {
        guest: Guest::Boot { kernel: 0, initramfs: 0 },
        ram: Ram::Shared(0),
        tap: Some(0),
        more_taps: Vec::new(),
        disks: [0; 2],
        monitor: 0,
        ports: [0; 2],
        console: 0,
        trim: None,
    };
    let words = vm(install, shape, numbers);
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Limits of a VM's process, by the jailer's names.
pub fn limits(shape: Shape) -> Vec<(&'static str, u64)> {
    let memory = u64::from(shape.memory_mib) << 20;
    let own = u64::from(TRANSLATION_CACHE_MIB) + OWN_DATA_MIB;
    vec![
        ("nofile", 4096),
        // Threads: one a vCPU, the pool of block requests (at most 64 each
        // disk), and a few.
        ("nproc", 512 + u64::from(shape.vcpus)),
        // The RAM's memfd counts as a file, too.
        ("fsize", memory.max(super::DISK_LEN)),
        ("data", memory + (own << 20)),
        ("memlock", 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::install::Features;
    use super::*;

    #[test]
    fn nothing_of_a_container_is_on_the_command_line() {
        let install: QemuInstall = serde_json::from_value(serde_json::json!({
            "binary": "/q", "files": [], "libraryPath": "/lib", "version": "1.2.3",
            "stamp": {"inode": 1, "len": 1, "ctime": [1, 1]}, "features": Features::default(),
        }))
        .expect("an install");
        let shape = Shape {
            accelerator: Accelerator::Tcg,
            virtualization: false,
            memory_mib: 128,
            vcpus: 1,
            root_ports: 0,
        };
        let numbers = Numbers {
            guest: Guest::Boot { kernel: 10, initramfs: 11 },
            ram: Ram::Own,
            tap: None,
            more_taps: Vec::new(),
            disks: [12, 13],
            monitor: 14,
            ports: [15, 16],
            console: 17,
            trim: None,
        };
        let words = vm(&install, shape, numbers);
        let paths: Vec<String> = words
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .filter(|word| word.starts_with('/'))
            .collect();
        assert_eq!(paths, ["/q", "/firmware", "/proc/self/fd/10", "/proc/self/fd/11"]);
        assert!(words.iter().any(|word| word == "-sandbox"));
    }
}
