//! The kernel modules of the initramfs, in lists, each in order: `/modules.list`
//! for every boot, `/drivers.list` for when the host says so, and, in the
//! initramfs of VMs in which VMs may run, `/kvm.list`. After those nothing can
//! be loaded any more.
//!
//! One after another, though a second CPU would take half of it: emulated CPUs
//! that patch and run kernel code at the same time hang for ever in one of two
//! hundred boots (measured, QEMU 7.2).

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use vminitd_protocol::message::ErrorCode::Unsupported;

use crate::failure::Failure;
use crate::files::write_kernel;

/// Longest list of modules in bytes.
const LIST_LIMIT: u64 = 64 << 10;

/// The device that KVM has where it works.
pub const KVM: &str = "/dev/kvm";

/// Where securityfs is while the lock is put on.
const SECURITY: &str = "/run/security";

/// The driver of NICs, as the list of what a boot leaves out has it.
const NETWORK: &str = "virtio_net.";

/// What is left of the initramfs, which the guest's root hides.
#[derive(Debug)]
pub struct Initramfs {
    directory: OwnedFd,
    /// How many of the drivers that the boot has left out are inserted.
    drivers: usize,
    /// Nothing can be inserted any more.
    sealed: bool,
}

impl Initramfs {
    /// Takes the directory that is the root until then.
    pub fn open() -> nix::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open("/", flags, Mode::empty()).map(|directory| Initramfs {
            directory,
            drivers: 0,
            sealed: false,
        })
    }

    /// Inserts what every boot needs.
    pub fn load_modules(&mut self) {
        self.load("modules.list", 0, None);
        self.remove("init");
    }

    /// Inserts what a boot leaves out, with `virtualization` KVM too, and has the
    /// kernel take nothing more. Again: nothing.
    ///
    /// # Errors
    /// `Unsupported` when KVM is wanted and does not work in this guest.
    pub fn load_drivers(&mut self, virtualization: bool) -> Result<(), Failure> {
        if !self.sealed {
            self.load("drivers.list", self.drivers, None);
            if virtualization {
                // One vendor's refuses to work on the other's CPU.
                self.load("kvm.list", 0, None);
            }
            seal();
            self.sealed = true;
        }
        match virtualization && !Path::new(KVM).exists() {
            true => Err(Failure::new(
                Unsupported,
                "the guest has no /dev/kvm: its kernel has no KVM for this CPU",
            )),
            false => Ok(()),
        }
    }

    /// Inserts, of these, what NICs need. Again: nothing.
    pub fn load_network(&mut self) {
        if self.drivers == 0 && !self.sealed {
            self.drivers = self.load("drivers.list", 0, Some(NETWORK));
        }
    }

    /// Inserts the modules of a list but the first ones, up to the one that is called so, and
    /// frees their memory. One that fails is told on the console: what needs it says the rest.
    /// Returns how many there were.
    fn load(&self, list: &str, skipped: usize, last: Option<&str>) -> usize {
        let text = self.read_list(list).unwrap_or_default();
        let paths = text.lines().map(|l| l.trim_start_matches('/')).filter(|l| !l.is_empty());
        let mut count = 0;
        for path in paths.skip(skipped) {
            if let Err(errno) = insert(&self.directory, path) {
                eprintln!("vminitd: module {path}: {}", errno.desc());
            }
            self.remove(path);
            count += 1;
            if last.is_some_and(|name| path.contains(name)) {
                return count;
            }
        }
        self.remove(list);
        count
    }

    /// The list; `None` with a kernel that has everything built in.
    fn read_list(&self, name: &str) -> Option<String> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let list = openat(&self.directory, name, flags, Mode::empty()).ok()?;
        let mut text = String::new();
        File::from(list).take(LIST_LIMIT).read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn remove(&self, path: &str) {
        let _ = unlinkat(&self.directory, path, UnlinkatFlags::NoRemoveDir);
    }
}

fn insert(initramfs: &OwnedFd, path: &str) -> Result<(), Errno> {
    let file = openat(initramfs, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    match finit_module(file.as_fd(), c"", ModuleInitFlags::empty()) {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

/// No module from now on, and root can't get at the kernel's memory, ports and
/// registers either. A kernel without one of these is as it is.
fn seal() {
    let _ = write_kernel("/proc/sys/kernel/modules_disabled", "1");
    let (none, plain) = (None::<&str>, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV);
    if fs::create_dir(SECURITY).is_ok()
        && mount(Some("securityfs"), SECURITY, Some("securityfs"), plain, none).is_ok()
    {
        let _ = write_kernel(format!("{SECURITY}/lockdown"), "integrity");
        let _ = umount(SECURITY);
    }
    let _ = fs::remove_dir(SECURITY);
}
