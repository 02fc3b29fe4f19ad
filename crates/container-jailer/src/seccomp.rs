//! The system calls that no program in this jail needs, each with its reason.
//!
//! A deny list below the program's own filter (QEMU installs a stricter one by
//! itself): it takes away what would reach kernel code that namespaces and
//! landlock do not cover. Of `ioctl` only the requests in [`ioctl`] are allowed.
//! A forbidden call answers `EPERM`, so a library that merely tries goes on.
//! Calls of another ABI end the process: they would go round the numbers below.

use nix::libc::{self, c_long, sock_filter, sock_fprog};
use rustix::io::Errno;

use crate::args::{Args, Layer};
use crate::error::{Error, Step};
use crate::ioctl;
use crate::process::last_errno;

/// What is forbidden of a call.
enum When {
    Always,
    /// The first argument has one of these bits.
    FirstArgumentHas(u32),
    /// The first argument is none of these.
    FirstArgumentIsNot(&'static [u32]),
}

struct Rule {
    call: c_long,
    when: When,
    errno: i32,
    #[allow(dead_code, reason = "read by people and by the test")]
    reason: &'static str,
}

const fn deny(call: c_long, reason: &'static str) -> Rule {
    Rule { call, when: When::Always, errno: libc::EPERM, reason }
}

const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

const MOUNT: &str = "the root is final; mount code is reachable by a user namespace's owner";
const KEYS: &str = "keyrings are not covered by namespaces";
const TRACE: &str = "reads and writes other processes' memory";
const KERNEL: &str = "replaces or extends the kernel";
const CLOCK: &str = "host-wide state";
const HANDLE: &str = "opens files by number, past the root";

/// The filter, in the order in which it is evaluated.
const RULES: &[Rule] = &[
    deny(libc::SYS_ptrace, TRACE),
    deny(libc::SYS_process_vm_readv, TRACE),
    deny(libc::SYS_process_vm_writev, TRACE),
    deny(libc::SYS_process_madvise, TRACE),
    deny(libc::SYS_pidfd_getfd, TRACE),
    deny(libc::SYS_kcmp, TRACE),
    deny(libc::SYS_mount, MOUNT),
    deny(libc::SYS_umount2, MOUNT),
    deny(libc::SYS_pivot_root, MOUNT),
    deny(libc::SYS_chroot, MOUNT),
    deny(libc::SYS_fsopen, MOUNT),
    deny(libc::SYS_fsconfig, MOUNT),
    deny(libc::SYS_fsmount, MOUNT),
    deny(libc::SYS_fspick, MOUNT),
    deny(libc::SYS_move_mount, MOUNT),
    deny(libc::SYS_open_tree, MOUNT),
    deny(libc::SYS_mount_setattr, MOUNT),
    deny(libc::SYS_setns, "enters another's namespaces"),
    deny(libc::SYS_unshare, "new namespaces reopen privileged kernel code"),
    Rule {
        call: libc::SYS_clone,
        when: When::FirstArgumentHas(NEW_NAMESPACES),
        errno: libc::EPERM,
        reason: "new namespaces reopen privileged kernel code",
    },
    Rule {
        call: libc::SYS_clone3,
        when: When::Always,
        errno: libc::ENOSYS,
        reason: "its flags are in memory, where no filter sees them; libraries fall back to clone",
    },
    deny(libc::SYS_add_key, KEYS),
    deny(libc::SYS_request_key, KEYS),
    deny(libc::SYS_keyctl, KEYS),
    deny(libc::SYS_bpf, KERNEL),
    deny(libc::SYS_perf_event_open, "observes the kernel and other processes"),
    deny(libc::SYS_userfaultfd, "stops the kernel inside its own copies"),
    deny(libc::SYS_init_module, KERNEL),
    deny(libc::SYS_finit_module, KERNEL),
    deny(libc::SYS_delete_module, KERNEL),
    deny(libc::SYS_kexec_load, KERNEL),
    deny(libc::SYS_kexec_file_load, KERNEL),
    deny(libc::SYS_reboot, CLOCK),
    deny(libc::SYS_swapon, CLOCK),
    deny(libc::SYS_swapoff, CLOCK),
    deny(libc::SYS_acct, CLOCK),
    deny(libc::SYS_settimeofday, CLOCK),
    deny(libc::SYS_clock_settime, CLOCK),
    deny(libc::SYS_clock_adjtime, CLOCK),
    deny(libc::SYS_adjtimex, CLOCK),
    deny(libc::SYS_sethostname, CLOCK),
    deny(libc::SYS_setdomainname, CLOCK),
    deny(libc::SYS_syslog, "kernel addresses and the host's messages"),
    deny(libc::SYS_quotactl, CLOCK),
    deny(libc::SYS_name_to_handle_at, HANDLE),
    deny(libc::SYS_open_by_handle_at, HANDLE),
    deny(libc::SYS_fanotify_init, "watches whole file systems"),
    deny(libc::SYS_io_uring_setup, "runs operations that no filter sees"),
    deny(libc::SYS_io_uring_enter, "runs operations that no filter sees"),
    deny(libc::SYS_io_uring_register, "runs operations that no filter sees"),
    Rule {
        call: libc::SYS_socket,
        when: When::FirstArgumentIsNot(&[libc::AF_UNIX as u32]),
        errno: libc::EAFNOSUPPORT,
        reason: "vsock and others are not covered by the network namespace",
    },
    Rule {
        call: libc::SYS_personality,
        when: When::FirstArgumentIsNot(&[0, u32::MAX]),
        errno: libc::EPERM,
        reason: "turns off address randomisation",
    },
];

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
/// The x32 calls share x86_64's architecture word and have this bit.
#[cfg(target_arch = "x86_64")]
const FOREIGN_CALL_BIT: Option<u32> = Some(0x4000_0000);
#[cfg(target_arch = "aarch64")]
const FOREIGN_CALL_BIT: Option<u32> = None;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// Low half of an argument; both architectures are little-endian.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const fn op(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// The rules as a BPF program: each rule is a block that is skipped when the
/// number differs, so that no jump is long. With `kvm` KVM's requests are allowed.
fn program(kvm: bool) -> Vec<sock_filter> {
    let mut program = vec![
        op(LOAD, 0, 0, ARCHITECTURE),
        op(EQUAL, 1, 0, AUDIT_ARCH),
        op(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        op(LOAD, 0, 0, NUMBER),
    ];
    if let Some(bit) = FOREIGN_CALL_BIT {
        program.push(op(AT_LEAST, 0, 1, bit));
        program.push(op(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS));
    }
    let mut add = |call: c_long, block: Vec<sock_filter>| {
        program.push(op(EQUAL, 0, block.len() as u8, call as u32));
        program.extend(block);
    };
    for rule in RULES {
        add(rule.call, block(rule));
    }
    let requests: Vec<u32> = ioctl::allowed(kvm).map(|(number, _)| *number).collect();
    add(libc::SYS_ioctl, refuse_others(1, &requests, libc::EPERM));
    program.push(op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

/// What happens when the number is the rule's. The number is loaded again at
/// the end, for a next rule on the same call.
fn block(rule: &Rule) -> Vec<sock_filter> {
    let refuse = op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | rule.errno as u32);
    let reload = op(LOAD, 0, 0, NUMBER);
    match rule.when {
        When::Always => vec![refuse],
        When::FirstArgumentHas(bits) => {
            vec![op(LOAD, 0, 0, argument(0)), op(ANY_BIT, 0, 1, bits), refuse, reload]
        }
        When::FirstArgumentIsNot(allowed) => refuse_others(0, allowed, rule.errno),
    }
}

/// Refuses a call whose argument is none of these; the kernel, too, looks at the low half alone
/// of those that are compared here.
fn refuse_others(index: u32, allowed: &[u32], errno: i32) -> Vec<sock_filter> {
    let mut block = vec![op(LOAD, 0, 0, argument(index))];
    for (at, value) in allowed.iter().enumerate() {
        // Past the remaining comparisons and the refusal.
        let to_reload = (allowed.len() - at) as u8;
        block.push(op(EQUAL, to_reload, 0, *value));
    }
    let refuse = op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32);
    block.extend([refuse, op(LOAD, 0, 0, NUMBER)]);
    block
}

/// A program that asks the listener about `fallocate`, and about `openat` for
/// reading and writing, and allows the rest.
pub fn notifying() -> Vec<sock_filter> {
    vec![
        op(LOAD, 0, 0, ARCHITECTURE),
        op(EQUAL, 0, 7, AUDIT_ARCH),
        op(LOAD, 0, 0, NUMBER),
        op(EQUAL, 4, 0, libc::SYS_fallocate as u32),
        op(EQUAL, 0, 4, libc::SYS_openat as u32),
        op(LOAD, 0, 0, argument(2)),
        op(AND, 0, 0, libc::O_ACCMODE as u32),
        op(EQUAL, 0, 1, libc::O_RDWR as u32),
        op(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Installs the filter; the last thing before the exec.
pub fn install(args: &Args) -> Result<(), Error> {
    let mut program = program(args.kvm);
    let filter = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies `len` instructions from `filter`.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter)
    };
    if result >= 0 {
        return Ok(());
    }
    match last_errno() {
        Errno::INVAL | Errno::NOSYS => args.missing(Layer::Seccomp, "the kernel has no filters"),
        errno => Err(Error::system(Step::Seccomp, "filter", errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, on one call.
    fn verdict(number: u32, arguments: [u32; 2]) -> u32 {
        execute(&program(false), AUDIT_ARCH, number, &arguments)
    }

    fn execute(program: &[sock_filter], architecture: u32, number: u32, arguments: &[u32]) -> u32 {
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let op = program[at];
            at += 1;
            let jump = match op.code {
                RETURN => return op.k,
                LOAD => {
                    accumulator = match op.k {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        offset => {
                            let at = (0..6).position(|index| argument(index) == offset);
                            arguments[at.unwrap_or_else(|| panic!("load from {offset}"))]
                        }
                    };
                    continue;
                }
                AND => {
                    accumulator &= op.k;
                    continue;
                }
                EQUAL => accumulator == op.k,
                AT_LEAST => accumulator >= op.k,
                ANY_BIT => accumulator & op.k != 0,
                code => panic!("unknown code {code}"),
            };
            at += usize::from(if jump { op.jt } else { op.jf });
        }
    }

    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

    #[test]
    fn every_unconditional_rule_refuses_and_has_a_reason() {
        for rule in RULES {
            assert!(!rule.reason.is_empty());
            if matches!(rule.when, When::Always) {
                let refused = libc::SECCOMP_RET_ERRNO | rule.errno as u32;
                assert_eq!(verdict(rule.call as u32, [0, 0]), refused);
            }
        }
    }

    #[test]
    fn arguments_decide_where_the_rule_says_so() {
        let allow = libc::SECCOMP_RET_ALLOW;
        let clone = libc::SYS_clone as u32;
        assert_eq!(verdict(clone, [libc::CLONE_VM as u32, 0]), allow);
        assert_eq!(verdict(clone, [libc::CLONE_NEWUSER as u32, 0]), EPERM);
        let socket = libc::SYS_socket as u32;
        assert_eq!(verdict(socket, [libc::AF_UNIX as u32, 0]), allow);
        assert_ne!(verdict(socket, [libc::AF_VSOCK as u32, 0]), allow);
        let personality = libc::SYS_personality as u32;
        assert_eq!(verdict(personality, [0, 0]), allow);
        assert_eq!(verdict(personality, [u32::MAX, 0]), allow);
        assert_eq!(verdict(personality, [0x0004_0000, 0]), EPERM);
    }

    /// Requests that a descriptor alone would allow.
    #[test]
    fn ioctl_is_allowed_by_number() {
        let verdict = |kvm, request| {
            execute(&program(kvm), AUDIT_ARCH, libc::SYS_ioctl as u32, &[9, request])
        };
        const KVM_RUN: u32 = 0xae80;
        const KVM_SET_GUEST_DEBUG: u32 = 0x4048_ae9b;
        // TUNSETIFF, -PERSIST, -OWNER, -LINK, -GROUP, TUNATTACHFILTER, TUNSETSTEERINGEBPF,
        // TUNSETFILTEREBPF, TUNSETCARRIER, TUNSETQUEUE.
        let tap = [
            0x4004_54ca,
            0x4004_54cb,
            0x4004_54cc,
            0x4004_54cd,
            0x4004_54ce,
            0x4010_54d5,
            0x8004_54e0,
            0x8004_54e1,
            0x4004_54e2,
            0x4004_54d9,
        ];
        let others = [
            libc::SIOCSIFHWADDR,
            libc::TIOCSTI,
            libc::TIOCLINUX,
            libc::FIONREAD,
            libc::TCGETS,
            libc::FICLONE,
        ];
        for request in tap.into_iter().chain(others.map(|request| request as u32)) {
            assert_eq!(verdict(false, request), EPERM, "{request:x}");
            assert_eq!(verdict(true, request), EPERM, "{request:x}");
        }
        for (request, name) in ioctl::allowed(true) {
            assert_eq!(verdict(true, *request), libc::SECCOMP_RET_ALLOW, "{name}");
        }
        for (request, name) in ioctl::TAP {
            assert_eq!(verdict(false, *request), libc::SECCOMP_RET_ALLOW, "{name}");
        }
        assert_eq!(verdict(false, KVM_RUN), EPERM, "no jail without /dev/kvm needs it");
        assert_eq!(verdict(true, KVM_SET_GUEST_DEBUG), EPERM);
        assert!(program(true).len() < 4096, "the kernel takes no more");
    }

    #[test]
    fn the_listener_is_asked_about_two_calls() {
        let asked = |call: c_long, flags: i32| match execute(
            &notifying(),
            AUDIT_ARCH,
            call as u32,
            &[0, 0, flags as u32],
        ) {
            libc::SECCOMP_RET_USER_NOTIF => true,
            libc::SECCOMP_RET_ALLOW => false,
            other => panic!("{other:x}"),
        };
        assert!(asked(libc::SYS_fallocate, 0));
        assert!(asked(libc::SYS_openat, libc::O_RDWR | libc::O_CLOEXEC));
        for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_ACCMODE, libc::O_PATH] {
            assert!(!asked(libc::SYS_openat, flags), "{flags:x}");
        }
        assert!(!asked(libc::SYS_read, libc::O_RDWR));
        let foreign = execute(&notifying(), !AUDIT_ARCH, libc::SYS_fallocate as u32, &[]);
        assert_eq!(foreign, libc::SECCOMP_RET_ALLOW, "for the other filter");
    }

    #[test]
    fn foreign_calls_end_the_process() {
        if let Some(bit) = FOREIGN_CALL_BIT {
            let number = bit | libc::SYS_ptrace as u32;
            assert_eq!(verdict(number, [0, 0]), libc::SECCOMP_RET_KILL_PROCESS);
        }
        assert_eq!(verdict(libc::SYS_read as u32, [0, 0]), libc::SECCOMP_RET_ALLOW);
    }
}
