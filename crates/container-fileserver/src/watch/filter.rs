//! What the watcher may ask of the kernel: to read directories and to watch them.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::{Result, at};

/// Whatever their arguments.
const CALLS: &[libc::c_long] = &[
    // Directories.
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_getdents64,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_close,
    // Messages.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_ppoll,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    // Memory, and other threads.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
#[cfg(target_arch = "x86_64")]
const MORE: &[libc::c_long] = &[libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const MORE: &[libc::c_long] = &[];

/// Applies it to this thread.
pub fn apply() -> Result<()> {
    install().map_err(at("the watcher's system call filter"))
}

fn install() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let calls = CALLS.iter().chain(MORE);
    let mut allowed: BTreeMap<_, _> = calls.map(|call| (*call, Vec::new())).collect();
    allowed.insert(libc::SYS_openat, vec![directories()?]);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(allowed, refuse, SeccompAction::Allow, arch)?;
    let filter: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&filter)?;
    Ok(())
}

/// Only directories are opened, to read.
fn directories() -> seccompiler::Result<SeccompRule> {
    let directory = libc::O_DIRECTORY as u64;
    let forbidden = (libc::O_ACCMODE | libc::O_CREAT) as u64;
    let flags = SeccompCmpOp::MaskedEq(directory | forbidden);
    let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, flags, directory)
        .map_err(seccompiler::Error::Backend)?;
    SeccompRule::new(vec![condition]).map_err(seccompiler::Error::Backend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn directories_are_read_and_files_are_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "text").unwrap();
        let path = directory.path().to_owned();
        std::thread::spawn(move || {
            // As the jail does.
            nix::sys::prctl::set_no_new_privs().unwrap();
            apply().unwrap();
            assert_eq!(fs::read_dir(&path).unwrap().flatten().count(), 1);
            assert_eq!(fs::symlink_metadata(path.join("file")).unwrap().size(), 4);
            for failed in [
                fs::read(path.join("file")).map(drop),
                fs::write(path.join("other"), ""),
                fs::remove_file(path.join("file")),
                fs::create_dir(path.join("sub")),
                std::process::Command::new("/bin/true").status().map(drop),
            ] {
                assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EPERM));
            }
        })
        .join()
        .unwrap();
    }
}
