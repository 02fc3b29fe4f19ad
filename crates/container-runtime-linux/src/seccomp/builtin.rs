//! The built-in profile: Docker's set of allowed calls as the reference.
//!
//! Refused with EPERM is everything else: keys, namespaces, mounts, modules, other file handles,
//! tracing of the kernel, swap, clocks, io_uring. Most of it wants a capability that a container
//! doesn't have; the filter keeps it from the kernel's code at all.

use container_api::seccomp::{Action, ArchMap, Argument, Comparison, Filter, Profile, Rule};

/// Flags of `clone` that make namespaces: mount, cgroup, uts, ipc, user, pid, net.
const NAMESPACES: u64 = 0x7e02_0000;
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
const ENOSYS: u32 = 38;
/// Linux, Linux32, both with the old layout of `uname`, and the question.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// What every program may do.
const ALWAYS: &[&str] = &[
    // Files and directories.
    "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 \
     faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat \
     fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 \
     fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 \
     inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl lchown lchown32 link \
     linkat _llseek lseek lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat \
     open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read \
     readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64 \
     splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs tee \
     truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice \
     write writev cachestat",
    // Attributes of files.
    "fgetxattr flistxattr fremovexattr fsetxattr getxattr lgetxattr listxattr llistxattr \
     lremovexattr lsetxattr removexattr setxattr getxattrat listxattrat removexattrat setxattrat",
    // Waiting.
    "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
     epoll_wait epoll_wait_old eventfd eventfd2 io_cancel io_destroy io_getevents io_pgetevents \
     io_pgetevents_time64 io_setup io_submit pause poll ppoll ppoll_time64 pselect6 \
     pselect6_time64 select signalfd signalfd4",
    // Memory.
    "brk madvise membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 \
     mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
     remap_file_pages map_shadow_stack shmat shmctl shmdt shmget",
    // Processes and threads.
    "execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv \
     futex_wake get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid getpriority \
     getrlimit getrusage getsid gettid ioprio_get ioprio_set kill pidfd_open pidfd_send_signal \
     prctl prlimit64 process_mrelease process_vm_readv process_vm_writev ptrace restart_syscall \
     rseq sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
     sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
     sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield \
     set_robust_list set_thread_area set_tid_address setpgid setpriority setrlimit setsid tgkill \
     tkill ugetrlimit vfork wait4 waitid waitpid",
    // Signals.
    "rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
     rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn",
    // Who one is, within one's capabilities.
    "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 \
     getresgid getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid \
     setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 \
     setresuid setresuid32 setreuid setreuid32 setuid setuid32",
    // Time.
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
     clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep \
     setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 \
     timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 \
     timerfd_settime timerfd_settime64 times",
    // Sockets and queues.
    "accept accept4 bind connect getpeername getsockname getsockopt ipc listen mq_getsetattr \
     mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
     mq_unlink msgctl msgget msgrcv msgsnd recv recvfrom recvmmsg recvmmsg_time64 recvmsg semctl \
     semget semop semtimedop semtimedop_time64 send sendmmsg sendmsg sendto setsockopt shutdown \
     socketcall socketpair",
    // Narrowing oneself further.
    "landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr \
     lsm_list_modules seccomp",
    // The machine.
    "getrandom sysinfo uname",
    // Only ARM has these.
    "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    // Only x86 has these.
    "arch_prctl modify_ldt",
];

/// What a capability allows beside.
const WITH_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_BPF", "bpf"),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_PERFMON", "perf_event_open"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie \
         mount mount_setattr move_mount open_tree open_tree_attr perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns statmount syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYSLOG", "syslog"),
];

/// The profile.
pub fn profile() -> Profile {
    let mut syscalls: Vec<Rule> = ALWAYS.iter().map(|names| allow(names)).collect();
    for (capability, names) in WITH_CAPABILITY {
        let includes = Filter { caps: vec![(*capability).into()], ..Filter::default() };
        syscalls.push(Rule { includes, ..allow(names) });
    }
    let argument = |value, op| vec![Argument { index: 0, value, value_two: 0, op }];
    for value in PERSONALITIES {
        let args = argument(value, Comparison::Equal);
        syscalls.push(Rule { args, ..allow("personality") });
    }
    // All families but two: the kernel's ciphers, and the way to a hypervisor.
    let families = [
        (AF_ALG, Comparison::Less),
        (AF_ALG + 1, Comparison::Equal),
        (AF_VSOCK, Comparison::Greater),
    ];
    for (value, op) in families {
        syscalls.push(Rule { args: argument(value, op), ..allow("socket") });
    }
    // Threads and processes, no namespaces. The flags of `clone3` lie in memory, which a filter
    // can't see: without it programs fall back to `clone`.
    let excludes = Filter { caps: vec!["CAP_SYS_ADMIN".into()], ..Filter::default() };
    let args = argument(NAMESPACES, Comparison::MaskedEqual);
    syscalls.push(Rule { args, excludes: excludes.clone(), ..allow("clone") });
    let (action, errno_ret) = (Action::Errno, Some(ENOSYS));
    syscalls.push(Rule { action, errno_ret, excludes, ..allow("clone3") });
    let map = |name: &str, other: &str| ArchMap {
        architecture: name.into(),
        sub_architectures: vec![other.into()],
    };
    Profile {
        default_action: Action::Errno,
        arch_map: vec![
            map("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
            map("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
        ],
        syscalls,
        ..Profile::default()
    }
}

fn allow(names: &str) -> Rule {
    let names = names.split_whitespace().map(str::to_owned).collect();
    Rule { names, action: Action::Allow, ..Rule::default() }
}

/// Every name of the profile, for a test of the table.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = &'static str> {
    let with = WITH_CAPABILITY.iter().map(|(_, names)| names);
    ALWAYS.iter().chain(with).flat_map(|names| names.split_whitespace())
}
