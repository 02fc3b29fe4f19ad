//! Files and directories, of the image and of the container's own disk.

use super::SCRATCH;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, access};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::SystemTime;

/// Written in one go: beyond what fits a journal's first block or a delayed
/// allocation of one extent.
const LARGE: usize = 1 << 20;

/// What programs look at when they start.
const READ: &[&str] = &[
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    super::PATH,
    "/proc/self/stat",
    "/proc/self/status",
    "/proc/self/maps",
    "/proc/self/mountinfo",
    "/proc/self/cmdline",
    "/proc/self/cgroup",
    "/proc/self/limits",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/sys/kernel/ngroups_max",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu/online",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/cpu.max",
    "/dev/null",
    "/dev/zero",
    "/dev/urandom",
    "/dev/tty",
    "/usr/bin/not-there",
];

/// Reads the image and the kernel's file systems.
pub fn read() {
    let mut buffer = [0; 4096];
    for path in READ {
        let _ = fs::symlink_metadata(path);
        let _ = access(*path, AccessFlags::R_OK);
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let Ok(file) = nix::fcntl::open(*path, flags, Mode::empty()) else { continue };
        let mut file = File::from(file);
        let _ = file.metadata();
        let _ = file.read(&mut buffer);
        let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read(&mut buffer));
    }
    for dir in ["/", "/etc", "/usr/bin", "/dev", "/proc/self/fd", "/sys/fs/cgroup"] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let _ = entry.metadata();
            let _ = fs::read_link(entry.path());
        }
    }
    let _ = std::env::current_dir();
    let _ = std::env::set_current_dir("/usr/bin").and_then(|()| std::env::set_current_dir("/"));
    let _ = nix::sys::statvfs::statvfs("/");
    if let Ok(mut null) = File::options().write(true).open("/dev/null") {
        let _ = null.write_all(b"nothing");
    }
}

/// Writes to the container's disk, and over what the image has.
pub fn write() {
    let _ = fresh_files(Path::new(SCRATCH));
    let _ = changed_image();
}

fn fresh_files(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir.join("a/b"))?;
    let at = |name: &str| dir.join(name);
    let mut file = File::options().read(true).write(true).create_new(true).open(at("file"))?;
    file.write_all(b"a line\n")?;
    file.write_all(&vec![7; LARGE])?;
    file.sync_all()?;
    file.seek(SeekFrom::Start(4096))?;
    file.read_exact(&mut [0; 4096])?;
    file.set_len(100)?;
    file.set_modified(SystemTime::UNIX_EPOCH)?;
    file.set_permissions(Permissions::from_mode(0o640))?;
    if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        let _ = lock.unlock();
    }
    let _ = chown(at("file"), Some(1), Some(1));
    let _ = fs::hard_link(at("file"), at("link"));
    let _ = symlink("file", at("symlink"));
    let _ = fs::read_link(at("symlink"));
    let _ = fs::copy(at("symlink"), at("copy"));
    fs::rename(at("file"), at("a/b/renamed"))?;
    let mut appended = File::options().append(true).open(at("a/b/renamed"))?;
    appended.write_all(b"more\n")?;
    appended.sync_data()?;
    drop(appended);
    let _ = nix::unistd::mkfifo(&at("fifo"), Mode::S_IRUSR | Mode::S_IWUSR);
    for n in 0..16 {
        fs::write(at(&format!("small-{n}")), "x")?;
    }
    fs::remove_file(at("link"))?;
    let open = File::open(at("copy"))?;
    fs::remove_file(at("copy"))?;
    drop(open);
    fs::remove_file(at("a/b/renamed"))?;
    fs::remove_dir(at("a/b"))
}

/// Copies up, renames and hides files of the image.
fn changed_image() -> io::Result<()> {
    File::options().append(true).open("/etc/changed")?.write_all(b"more\n")?;
    let _ = fs::set_permissions("/etc/changed", Permissions::from_mode(0o600));
    let _ = fs::rename("/etc/renamed", "/etc/renamed.old");
    let _ = fs::write("/etc/replaced.new", "new\n");
    let _ = fs::rename("/etc/replaced.new", "/etc/replaced");
    let _ = fs::remove_file("/etc/removed");
    let _ = fs::remove_dir_all("/etc/directory");
    let _ = fs::create_dir("/etc/directory");
    let _ = nix::sys::stat::utimensat(
        AT_FDCWD,
        "/etc/group",
        &nix::sys::time::TimeSpec::UTIME_NOW,
        &nix::sys::time::TimeSpec::UTIME_NOW,
        nix::sys::stat::UtimensatFlags::NoFollowSymlink,
    );
    Ok(())
}
