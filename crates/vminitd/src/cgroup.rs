//! The container's cgroup, in one that is made once per boot and holds the
//! device filter: a container's end removes only its own.

use crate::device_filter;
use crate::failure::{Context, Failure};
use crate::files::{read_kernel, write_kernel};
use crate::sys;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};
use vminitd_protocol::GUEST_KILL_LIMIT;
use vminitd_protocol::message::ErrorCode::{Exhausted, Internal};
use vminitd_protocol::message::{Limits, Stats};

/// Where the container's cgroup is.
const PATH: &str = "/sys/fs/cgroup/box/container";
const PARENT: &str = "/sys/fs/cgroup/box";
const CONTROLLERS: [&str; 4] = ["+memory", "+pids", "+cpu", "+io"];
/// CPU quota's period in microseconds.
/// How long processes may take to stand still: one may wait for a disk.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
const CPU_PERIOD_USEC: u64 = 100_000;

/// Memory that the container can't have, so that it runs out before the VM
/// does and the kernel kills in the container: what the kernel, PID 1 and the
/// file systems need beyond what they have already.
const fn reserve_bytes(total: u64) -> u64 {
    (4 << 20) + total / 64
}

/// Makes what all containers of this boot have: controllers and device filter.
pub fn create_parent() -> Result<(), Failure> {
    enable_controllers("/sys/fs/cgroup");
    fs::create_dir(PARENT).internal("create the cgroup of containers")?;
    enable_controllers(PARENT);
    if let Err(errno) = device_filter::attach(open_cgroup(PARENT)?.as_fd(), false) {
        // A kernel without BPF on cgroups; the host sees it in the boot log.
        eprintln!("vminitd: containers run without a device filter: {}", errno.desc());
    }
    Ok(())
}

/// Lets the container use `/dev/kvm`.
pub fn allow_kvm() -> Result<(), Failure> {
    device_filter::attach(open_cgroup(PARENT)?.as_fd(), true).internal("allow /dev/kvm")
}

/// Offers the controllers to the cgroups below one.
fn enable_controllers(cgroup: &str) {
    let control = format!("{cgroup}/cgroup.subtree_control");
    if write_kernel(&control, &CONTROLLERS.join(" ")).is_ok() {
        return;
    }
    for controller in CONTROLLERS {
        // Each on its own: a kernel may lack one.
        let _ = write_kernel(&control, controller);
    }
}

/// Creates the container's cgroup.
pub fn create() -> Result<(), Failure> {
    fs::create_dir(PATH).internal("create the container's cgroup")?;
    lift_limits()
}

/// Undoes [`limit`], but for the memory's, which every start sets.
pub fn lift_limits() -> Result<(), Failure> {
    set_others(&Limits::default())
}

/// Removes it with all that it has counted, and creates it anew.
///
/// # Errors
/// `Internal` when processes in it don't end within [`GUEST_KILL_LIMIT`].
pub fn renew() -> Result<(), Failure> {
    kill_all();
    let deadline = Instant::now() + GUEST_KILL_LIMIT;
    loop {
        match fs::remove_dir(PATH) {
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                return Err(error).internal("remove the container's cgroup");
            }
            Err(_) if Instant::now() > deadline => return Err(still_populated()),
            Err(_) => sleep(Duration::from_millis(1)),
            Ok(()) => return create(),
        }
    }
}

fn open_cgroup(path: &str) -> Result<OwnedFd, Failure> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).context(Internal, || format!("open {path}"))
}

/// The container's cgroup, for a process to be made in.
pub fn open_own() -> Result<OwnedFd, Failure> {
    open_cgroup(PATH)
}

/// What a container's cgroup can have at most.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    memory_bytes: u64,
    /// What was free when it was measured.
    free_bytes: u64,
}

impl Room {
    /// That of the VM as it is now, without a container: what is free, less the
    /// reserve.
    pub fn measure() -> Self {
        let (total, available) = memory_info();
        let memory_bytes = available.saturating_sub(reserve_bytes(total));
        Room { memory_bytes, free_bytes: sys::free_bytes() }
    }

    /// The same some mounts later, told by what is free: asking for what is
    /// available takes milliseconds, when that is emulated for the first time.
    pub fn now(self) -> Self {
        let free_bytes = sys::free_bytes();
        let memory_bytes = (self.memory_bytes + free_bytes).saturating_sub(self.free_bytes);
        Room { memory_bytes, free_bytes }
    }

    fn memory_max(self, limits: &Limits) -> u64 {
        match limits.memory_bytes {
            0 => self.memory_bytes,
            bytes => bytes.min(self.memory_bytes),
        }
    }
}

/// Sets the limits of a container that begins in a cgroup of [`create`].
pub fn limit(limits: &Limits, room: Room) -> Result<(), Failure> {
    set("memory.max", &room.memory_max(limits).to_string())?;
    if (limits.pids, limits.cpu_milli) == (0, 0) {
        return Ok(());
    }
    set_others(limits)
}

/// Gives a living container other limits.
///
/// # Errors
/// `Exhausted` when the container holds more memory than it may have and the
/// kernel can't take back; nothing is changed then, and nobody killed.
pub fn update(limits: &Limits, room: Room) -> Result<(), Failure> {
    let memory = room.memory_max(limits);
    let held = held_bytes(number("memory.current"), &read("memory.stat"));
    if held > memory {
        let message = format!("the container holds {held} bytes, more than a limit of {memory}");
        return Err(Failure::new(Exhausted, message));
    }
    set("memory.max", &memory.to_string())?;
    set_others(limits)
}

fn set_others(limits: &Limits) -> Result<(), Failure> {
    let pids = if limits.pids == 0 { threads_max() / 10 * 9 } else { limits.pids };
    set("pids.max", &pids.to_string())?;
    let cpu = match limits.cpu_milli {
        0 => format!("max {CPU_PERIOD_USEC}"),
        milli => format!("{} {CPU_PERIOD_USEC}", milli * (CPU_PERIOD_USEC / 1000)),
    };
    set("cpu.max", &cpu)
}

/// Of `current` bytes, what can't be dropped or written back.
fn held_bytes(current: u64, stat: &str) -> u64 {
    let given_back = ["inactive_file", "active_file", "slab_reclaimable"];
    given_back.iter().fold(current, |left, key| left.saturating_sub(keyed(stat, key)))
}

fn set(name: &str, value: &str) -> Result<(), Failure> {
    match write_kernel(format!("{PATH}/{name}"), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.context(Exhausted, || format!("set {name} of the cgroup to {value}")),
    }
}

/// Memory of the VM in bytes; 0 when the kernel doesn't tell.
pub fn total_memory_bytes() -> u64 {
    memory_info().0
}

/// All of the VM's memory and what is available, in bytes; 0 for what the
/// kernel doesn't tell.
fn memory_info() -> (u64, u64) {
    let info = read_kernel("/proc/meminfo").unwrap_or_default();
    let bytes = |key| {
        let line = info.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    };
    (bytes("MemTotal:"), bytes("MemAvailable:"))
}

fn threads_max() -> u64 {
    read_kernel("/proc/sys/kernel/threads-max").ok().and_then(|n| n.parse().ok()).unwrap_or(4096)
}

/// File whose change tells of memory events.
pub fn memory_events() -> io::Result<fs::File> {
    fs::File::open(format!("{PATH}/memory.events"))
}

/// How many processes the kernel has killed for want of memory.
pub fn oom_kills() -> u64 {
    keyed(&read("memory.events"), "oom_kill")
}

/// The memory limit in bytes; 0 when there is none.
pub fn memory_limit_bytes() -> u64 {
    number("memory.max")
}

/// Every process of the container.
pub fn pids() -> Vec<i32> {
    let list = fs::read_to_string(format!("{PATH}/cgroup.procs")).unwrap_or_default();
    list.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Kills every process of the container.
pub fn kill_all() {
    if write_kernel(format!("{PATH}/cgroup.kill"), "1").is_err() {
        for pid in pids() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}

/// Makes every process of the container stand still, until [`thaw`].
pub fn freeze() -> Result<(), Failure> {
    set("cgroup.freeze", "1")?;
    let deadline = Instant::now() + FREEZE_LIMIT;
    while keyed(&read("cgroup.events"), "frozen") == 0 {
        if Instant::now() > deadline {
            thaw();
            return Err(Failure::new(Internal, "the container does not stand still"));
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Lets them go on.
pub fn thaw() {
    let _ = set("cgroup.freeze", "0");
}

/// What the container uses now.
pub fn stats() -> Stats {
    let io = read("io.stat");
    Stats {
        memory_bytes: number("memory.current"),
        memory_limit_bytes: memory_limit_bytes(),
        cpu_usec: keyed(&read("cpu.stat"), "usage_usec"),
        pids: number("pids.current"),
        block_read_bytes: sum_io(&io, "rbytes="),
        block_written_bytes: sum_io(&io, "wbytes="),
        inactive_file_bytes: keyed(&read("memory.stat"), "inactive_file"),
    }
}

fn read(name: &str) -> String {
    read_kernel(format!("{PATH}/{name}")).unwrap_or_default()
}

fn number(name: &str) -> u64 {
    read(name).parse().unwrap_or(0)
}

fn keyed(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

fn sum_io(text: &str, key: &str) -> u64 {
    let words = text.split_whitespace().filter_map(|word| word.strip_prefix(key));
    words.filter_map(|value| value.parse::<u64>().ok()).sum()
}

/// Whether no process is left in the cgroup.
pub fn is_empty() -> bool {
    keyed(&read("cgroup.events"), "populated") == 0
}

/// An error for a container that is still dying.
pub fn still_populated() -> Failure {
    Failure::new(Internal, "processes of the container don't end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_files_are_read() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0";
        assert_eq!(keyed(events, "oom_kill"), 2);
        assert_eq!(keyed(events, "oom"), 3);
        assert_eq!(keyed(events, "nothing"), 0);
    }

    #[test]
    fn limits_stay_within_the_room() {
        let room = Room { memory_bytes: 100, free_bytes: 0 };
        let limit = |memory_bytes| Limits { memory_bytes, ..Limits::default() };
        assert_eq!([0, 7, 101].map(|bytes| room.memory_max(&limit(bytes))), [100, 7, 100]);
        let stat = "anon 60\ninactive_file 20\nactive_file 10\nslab_reclaimable 5";
        assert_eq!(held_bytes(100, stat), 65);
        assert_eq!(held_bytes(10, stat), 0);
    }

    #[test]
    fn io_is_summed_over_devices() {
        let io = "254:0 rbytes=10 wbytes=1 rios=2\n254:16 rbytes=5 wbytes=7 rios=1";
        assert_eq!((sum_io(io, "rbytes="), sum_io(io, "wbytes=")), (15, 8));
    }
}
