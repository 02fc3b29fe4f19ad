//! System calls that nix doesn't wrap.

use nix::Result;
use nix::errno::Errno;
use nix::libc;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// What [`fork`] returns.
pub enum Forked {
    /// In the parent.
    Parent {
        /// The child, as the parent's PID namespace names it.
        pid: i32,
        /// A stable handle of it.
        pidfd: OwnedFd,
    },
    /// In the child.
    Child,
}

/// `clone3` with a copy of the address space, like fork: the child begins in
/// the namespaces of `flags` and in `cgroup`.
pub fn fork(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked> {
    /// From `linux/sched.h`; libc has it in a type that is too narrow.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers; all zero is its documented default.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags as u64 | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and with no stack given this is fork; the process
    // has one thread, so the child may go on with everything it has.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match Errno::result(pid)? {
        0 => Ok(Forked::Child),
        pid => {
            // SAFETY: the kernel has just stored a new descriptor there.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// Sends a signal to exactly the process behind the handle.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo is allowed and means what kill would send.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<u8>(), 0)
    };
    Errno::result(result).map(drop)
}

/// A detached copy of the mount at `path`, to be attached elsewhere.
pub fn open_tree(path: &CStr) -> Result<OwnedFd> {
    clone_tree(path, 0)
}

/// A detached copy of the mount at `path` and of all below it.
pub fn open_whole_tree(path: &CStr) -> Result<OwnedFd> {
    clone_tree(path, libc::AT_RECURSIVE as u32)
}

fn clone_tree(path: &CStr, flags: u32) -> Result<OwnedFd> {
    let flags = flags | libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: `path` is NUL-terminated.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    // SAFETY: a successful call returns a new descriptor.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches what [`open_tree`] gave at `target`.
pub fn move_mount(tree: impl AsFd, target: &CStr) -> Result<()> {
    /// From `linux/mount.h`.
    const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
    /// From `linux/mount.h`: `target` may be a symbolic link.
    const MOVE_MOUNT_T_SYMLINKS: u32 = 0x10;
    let from = tree.as_fd().as_raw_fd();
    // SAFETY: both paths are NUL-terminated.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from,
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS,
        )
    };
    Errno::result(result).map(drop)
}

/// Marks every descriptor from `first` on to be closed by exec.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: the call only changes descriptor flags.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

/// Closes every descriptor but the standard streams and these two. Only for a
/// child that never touches another owned descriptor again.
pub fn close_all_but(one: impl AsFd, other: impl AsFd) -> Result<()> {
    let (one, other) = (one.as_fd().as_raw_fd() as u32, other.as_fd().as_raw_fd() as u32);
    let (low, high) = (one.min(other), one.max(other));
    for (first, end) in [(3, low), (low + 1, high), (high + 1, u32::MAX)] {
        if first < end {
            // SAFETY: the caller gives up whatever owned these descriptors.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) };
            Errno::result(result)?;
        }
    }
    Ok(())
}

/// Closes every descriptor from `first` on. Only for a child that never touches
/// an owned descriptor again.
pub fn close_from(first: u32) -> Result<()> {
    // SAFETY: the caller gives up whatever owned these descriptors.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    Errno::result(result).map(drop)
}

/// `prctl` with one argument.
pub fn prctl(option: i32, argument: u64) -> Result<()> {
    prctl_value(option, argument).map(drop)
}

/// `prctl` with one argument and an answer.
pub fn prctl_value(option: i32, argument: u64) -> Result<i32> {
    // SAFETY: used with options whose argument is an integer.
    Errno::result(unsafe { libc::prctl(option, argument, 0, 0, 0) })
}

/// Sets the calling process's permitted, effective and inheritable capabilities.
pub fn capset(permitted: u64, effective: u64, inheritable: u64) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: both have the layout of version 3 in linux/capability.h.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Gives the calling process an empty session keyring.
pub fn new_session_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: a null name asks for an anonymous keyring. A kernel without
    // keyrings has nothing to protect.
    unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>());
    }
}

/// Processors that run.
pub fn processors() -> i64 {
    // SAFETY: asks for a number.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }
}

/// Memory that is free or holds blocks of devices, in bytes; 0 when the kernel
/// doesn't tell.
pub fn free_bytes() -> u64 {
    // SAFETY: sysinfo is plain data; all zero is valid.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call.
    unsafe { libc::sysinfo(&raw mut info) };
    (info.freeram + info.bufferram) * u64::from(info.mem_unit)
}

/// `execve` with byte strings; returns only an error.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> Errno {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer and outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Errno::last()
}

/// An `ioctl` whose argument is an integer, or none.
pub fn ioctl_int(fd: impl AsFd, request: libc::Ioctl, argument: u64) -> Result<i32> {
    // SAFETY: used with requests that take an integer.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, argument) })
}

/// An `ioctl` that reads or writes one `T`.
pub fn ioctl_ref<T>(fd: impl AsFd, request: libc::Ioctl, argument: &mut T) -> Result<i32> {
    // SAFETY: used with requests whose argument is a `T`.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut *argument) })
}
