//! Who the program is, and what it shares with the host: nothing.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use rustix::io::Errno;

use crate::args::{Args, Layer};
use crate::descriptors;
use crate::error::{Error, Step};
use crate::process::{self, last_errno};

/// The uid and gid inside the jail; not 0, so that no capability comes with
/// an exec.
pub const INNER_ID: u32 = 1000;

/// The ids outside the jail that `INNER_ID` stands for.
pub struct Ids {
    uid: u32,
    gid: u32,
    /// The caller may map ids that are not its own.
    privileged: bool,
    /// Group of /dev/kvm where the caller can give it away.
    kvm_group: Option<u32>,
}

impl Ids {
    /// Whether the caller has rights over other users' files and ids.
    pub fn is_privileged(&self) -> bool {
        self.privileged
    }

    /// Root must name unprivileged ids; all others can use only their own.
    pub fn for_caller(args: &Args) -> Result<Ids, Error> {
        let uid = rustix::process::getuid().as_raw();
        let gid = rustix::process::getgid().as_raw();
        if uid == 0 {
            let (Some(uid), Some(gid)) = (args.host_uid, args.host_gid) else {
                return Err(Error::Usage("root must give --host-uid and --host-gid".into()));
            };
            return Ok(Ids { uid, gid, privileged: true, kvm_group: kvm_group(args) });
        }
        if args.host_uid.is_some_and(|id| id != uid) || args.host_gid.is_some_and(|id| id != gid) {
            return Err(Error::Usage("only root can use ids that are not its own".into()));
        }
        Ok(Ids { uid, gid, privileged: false, kvm_group: None })
    }
}

/// The group that may open /dev/kvm, if access goes by group.
fn kvm_group(args: &Args) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    if !args.kvm {
        return None;
    }
    let meta = fs::metadata("/dev/kvm").ok()?;
    (meta.mode() & 0o060 == 0o060 && meta.gid() != 0).then_some(meta.gid())
}

/// Enters a new user namespace in which `INNER_ID` is the only id.
pub fn enter_user_namespace(ids: &Ids) -> Result<(), Error> {
    if !ids.privileged {
        unshare(libc::CLONE_NEWUSER).map_err(user_namespace_error)?;
        return write_maps("self", ids, true).map_err(|errno| map_error("uid_map", errno));
    }
    let groups: Vec<u32> = ids.kvm_group.into_iter().collect();
    // SAFETY: the pointer and the length describe one vector.
    if unsafe { libc::setgroups(groups.len(), groups.as_ptr()) } < 0 {
        return Err(map_error("setgroups", last_errno()));
    }
    // Only a process outside the new namespace has the right to map an id
    // that is not its own, so a child that stays behind writes the maps.
    let target = std::process::id().to_string();
    let (read, write) = descriptors::pipe()?;
    let write_number = write.as_raw_fd();
    let mapper = process::run_in_child(|| {
        let mut byte = [0u8];
        // The first process writes one byte after its unshare; end of file
        // means that it failed or died, so this copy must be closed.
        descriptors::close_copy(write_number);
        match rustix::io::read(read.as_fd(), &mut byte) {
            Ok(1) => write_maps(&target, ids, false),
            Ok(_) => Ok(()),
            Err(errno) => Err(errno),
        }
    })?;
    let unshared = unshare(libc::CLONE_NEWUSER);
    if unshared.is_ok() {
        let _ = rustix::io::write(&write, b"x");
    }
    drop(write);
    let mapped = process::wait_for_child(mapper, "uid_map");
    unshared.map_err(user_namespace_error)?;
    mapped
}

/// Writes the maps of process `pid`. `deny` forbids `setgroups` first, as an
/// unprivileged writer must.
fn write_maps(pid: &str, ids: &Ids, deny: bool) -> Result<(), Errno> {
    let write = |file: &str, text: &str| {
        fs::write(format!("/proc/{pid}/{file}"), text)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    if deny {
        write("setgroups", "deny")?;
    }
    write("uid_map", &format!("{INNER_ID} {} 1\n", ids.uid))?;
    write("gid_map", &format!("{INNER_ID} {} 1\n", ids.gid))
}

fn map_error(what: &str, errno: Errno) -> Error {
    Error::system(Step::UidMap, what, errno)
}

fn user_namespace_error(errno: Errno) -> Error {
    let what = match errno {
        Errno::NOSPC => "unshare (sysctl user.max_user_namespaces is too low)",
        Errno::PERM => "unshare (sysctl kernel.unprivileged_userns_clone may forbid it)",
        Errno::INVAL => "unshare (the kernel has no user namespaces)",
        _ => "unshare",
    };
    Error::system(Step::UserNamespace, what, errno)
}

/// A mount namespace, which can't be missing.
pub fn enter_mount_namespace() -> Result<(), Error> {
    unshare(libc::CLONE_NEWNS)
        .map_err(|errno| Error::system(Step::Namespaces, "unshare mount", errno))
}

/// Enters all other namespaces.
pub fn enter_others(args: &Args) -> Result<(), Error> {
    enter_mount_namespace()?;
    for (layer, flag) in [
        (Layer::Pid, libc::CLONE_NEWPID),
        (Layer::Net, libc::CLONE_NEWNET),
        (Layer::Ipc, libc::CLONE_NEWIPC),
        (Layer::Uts, libc::CLONE_NEWUTS),
        (Layer::Cgroup, libc::CLONE_NEWCGROUP),
    ] {
        match unshare(flag) {
            Ok(()) => {}
            Err(errno @ (Errno::INVAL | Errno::NOSPC)) => args.missing(layer, errno)?,
            Err(errno) => {
                let what = format!("unshare {}", layer.name());
                return Err(Error::system(Step::Namespaces, what, errno));
            }
        }
    }
    Ok(())
}

/// Becomes `INNER_ID`, with the namespace's capabilities kept for the steps
/// that follow.
pub fn become_inner_uid() -> Result<(), Error> {
    let failed = |what: &str| Error::system(Step::Uid, what, last_errno());
    // SAFETY: the calls change this process's own attributes, by value; raw
    // calls, as the C library's would also work on threads that don't exist.
    unsafe {
        if libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 {
            return Err(failed("PR_SET_KEEPCAPS"));
        }
        if libc::syscall(libc::SYS_setresgid, INNER_ID, INNER_ID, INNER_ID) < 0 {
            return Err(failed("setresgid"));
        }
        if libc::syscall(libc::SYS_setresuid, INNER_ID, INNER_ID, INNER_ID) < 0 {
            return Err(failed("setresuid"));
        }
    }
    crate::confine::raise_permitted()
}

fn unshare(flag: libc::c_int) -> Result<(), Errno> {
    // SAFETY: changes the namespaces of this single-threaded process.
    if unsafe { libc::unshare(flag) } < 0 {
        return Err(last_errno());
    }
    Ok(())
}
