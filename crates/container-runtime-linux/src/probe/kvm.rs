//! Times a loop in a throw-away VM against the same loop on the host.
//!
//! It happens in a forked process: a vCPU that is stuck in the kernel can be
//! stopped by SIGKILL alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::libc;

const DEVICE: &str = "/dev/kvm";

/// Rounds of the comparison at most; the best of each side counts, so that a
/// process that was preempted once is not judged by it.
const ROUNDS: usize = 5;

/// A round in which the guest took at most that many times the host's time ends
/// the comparison: more could only make it better.
const ENOUGH: u32 = 2;

/// Guest memory: one page of code.
const PAGE: usize = 4096;

/// Best times of the same loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// On the host.
    pub host: Duration,
    /// In the VM.
    pub guest: Duration,
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The device file can't be used; the text says what to do.
    #[error("{DEVICE}: {0}")]
    Device(String),
    /// A VM could not be made or did not do what it must.
    #[error("a test VM failed: {0}")]
    Vm(String),
    /// The deadline passed first; the host's time, if it was known by then.
    #[error("a test VM did not end in time")]
    TooSlow {
        /// Best time of the loop on the host.
        host: Option<Duration>,
    },
    /// The process for the test could not be made.
    #[error("can't fork")]
    Fork(#[source] io::Error),
}

/// How long it may take to make the test VM. Where the host itself is emulated
/// the first one costs 70 ms, on a busy one seconds, which says nothing of how fast guests run.
const SETUP_DEADLINE: Duration = Duration::from_secs(10);

/// A guest may take that many times the host's time before it is given up: on an emulated host
/// the loop costs tens of milliseconds, and the process may be preempted.
const PATIENCE: u32 = 12;

/// How long the guest's side may take where `limit` is usual.
pub fn guest_limit(host: Duration, limit: Duration) -> Duration {
    limit.max(host * PATIENCE)
}

/// Runs the comparison; the guest's side of it as long as [`guest_limit`] says, what it needs is
/// made before.
pub fn prove(limit: Duration) -> Result<Proof, Failure> {
    check_opens()?;
    let (mut read, write) = pipe().map_err(Failure::Fork)?;
    // SAFETY: the child calls nothing that another thread's lock could stop:
    // the C library makes its allocator usable after a fork.
    let child = unsafe { libc::fork() };
    match child {
        0 => {
            drop(read);
            in_child(write);
        }
        pid if pid > 0 => {
            drop(write);
            let mut report =
                read_until(&mut read, Instant::now() + SETUP_DEADLINE, |text| text.ends_with('\n'));
            if report.starts_with("host") {
                let host = match parse_report(&report) {
                    Ok(Proof { host, .. }) | Err(Failure::TooSlow { host: Some(host) }) => host,
                    Err(_) => Duration::ZERO,
                };
                let limit = guest_limit(host, limit);
                report += &read_until(&mut read, Instant::now() + limit, |_| false);
            }
            // SAFETY: signals and reaps our own child, which nobody else waits
            // for.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
            let proof = parse_report(&report)?;
            check_opens_unprivileged()?;
            Ok(proof)
        }
        _ => Err(Failure::Fork(io::Error::last_os_error())),
    }
}

fn check_opens() -> Result<(), Failure> {
    let opened = OpenOptions::new().read(true).write(true).open(DEVICE);
    opened.map(drop).map_err(|error| {
        Failure::Device(match error.kind() {
            io::ErrorKind::NotFound => {
                "not present (no virtualization, or the module is not loaded)".into()
            }
            io::ErrorKind::PermissionDenied => {
                "permission denied (add the user to group kvm)".into()
            }
            _ => error.to_string(),
        })
    })
}

/// Whether QEMU will be able to open the device too: it has an unprivileged
/// uid even where this process is root.
fn check_opens_unprivileged() -> Result<(), Failure> {
    let meta = std::fs::metadata(DEVICE).map_err(|error| Failure::Device(error.to_string()))?;
    let for_all = meta.mode() & 0o006 == 0o006;
    let for_group = meta.mode() & 0o060 == 0o060 && meta.gid() != 0;
    if nix::unistd::geteuid().is_root() && !for_all && !for_group {
        return Err(Failure::Device(format!(
            "mode {:o} and group {} keep QEMU's unprivileged uid out \
             (chgrp kvm {DEVICE} && chmod 660 {DEVICE})",
            meta.mode() & 0o777,
            meta.gid()
        )));
    }
    Ok(())
}

/// Lines: `host NS` (when the VM is ready), `done HOST_NS GUEST_NS` (the best so far, after each
/// round), `error TEXT`.
fn in_child(mut report: File) -> ! {
    let result = compare(|line| {
        let _ = report.write_all(line.as_bytes());
    });
    if let Err(error) = result {
        let _ = writeln!(report, "error {}", error.to_string().replace('\n', " "));
    }
    // SAFETY: ends the forked process without running the parent's exit code.
    unsafe { libc::_exit(0) }
}

/// Both sides in turn, in one VM: making it can cost more than the whole limit
/// allows for rounds where the host itself is emulated.
fn compare(mut say: impl FnMut(String)) -> Result<(), kvm_ioctls::Error> {
    let code = Page::with(GUEST_CODE);
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: GUEST_BASE,
        memory_size: PAGE as u64,
        userspace_addr: &raw const *code as u64,
    };
    // SAFETY: the page outlives the VM, both belong to this function, and
    // nothing else in it touches the page.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    let mut proof = Proof { host: host_loop(), guest: Duration::MAX };
    say(format!("host {}\n", proof.host.as_nanos()));
    for _ in 0..ROUNDS {
        set_up(&vm, &vcpu)?;
        proof.guest = proof.guest.min(guest_loop(&mut vcpu)?);
        proof.host = proof.host.min(host_loop());
        say(format!("done {} {}\n", proof.host.as_nanos(), proof.guest.as_nanos()));
        if proof.guest <= proof.host * ENOUGH {
            break;
        }
    }
    Ok(())
}

fn guest_loop(vcpu: &mut VcpuFd) -> Result<Duration, kvm_ioctls::Error> {
    let began = Instant::now();
    match vcpu.run()? {
        exit if is_the_end(&exit) => Ok(began.elapsed()),
        // Any other exit means that the code did not run as it should.
        _ => Err(kvm_ioctls::Error::new(libc::EPROTO)),
    }
}

#[repr(C, align(4096))]
struct Page([u8; PAGE]);

impl Page {
    fn with(code: &[u8]) -> Box<Page> {
        let mut page = Box::new(Page([0; PAGE]));
        page.0[..code.len()].copy_from_slice(code);
        page
    }
}

#[cfg(target_arch = "x86_64")]
mod machine {
    use super::*;

    pub const GUEST_BASE: u64 = 0;

    /// 32-bit: `mov ecx, 1000000; 1: dec ecx; jnz 1b; hlt`.
    pub const GUEST_CODE: &[u8] = &[0xb9, 0x40, 0x42, 0x0f, 0x00, 0x49, 0x75, 0xfd, 0xf4];

    /// Flat protected mode at address 0: real mode itself is emulated by KVM on
    /// old processors that are fast otherwise.
    pub fn set_up(vm: &VmFd, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        // Where those processors keep what they need for a guest without
        // paging; others ignore it.
        let _ = vm.set_tss_address(0xfffb_d000);
        let mut sregs = vcpu.get_sregs()?;
        let flat = |segment: &mut kvm_bindings::kvm_segment, kind: u8, selector: u16| {
            segment.base = 0;
            segment.limit = 0xffff_ffff;
            segment.selector = selector;
            segment.type_ = kind;
            segment.present = 1;
            segment.dpl = 0;
            segment.db = 1;
            segment.s = 1;
            segment.l = 0;
            segment.g = 1;
        };
        flat(&mut sregs.cs, 0xb, 8);
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
            flat(segment, 0x3, 16);
        }
        sregs.cr0 |= 1;
        vcpu.set_sregs(&sregs)?;
        let mut regs = vcpu.get_regs()?;
        regs.rip = GUEST_BASE;
        regs.rflags = 2;
        vcpu.set_regs(&regs)
    }

    pub fn is_the_end(exit: &VcpuExit<'_>) -> bool {
        matches!(exit, VcpuExit::Hlt)
    }

    pub fn host_loop() -> Duration {
        let began = Instant::now();
        // SAFETY: counts a register down, touches nothing else.
        unsafe {
            std::arch::asm!("2:", "dec {0:e}", "jnz 2b", inout(reg) 1_000_000u32 => _,
                options(nomem, nostack));
        }
        began.elapsed()
    }
}

#[cfg(target_arch = "aarch64")]
mod machine {
    use super::*;

    pub const GUEST_BASE: u64 = 0x4000_0000;
    const PROGRAM_COUNTER: u64 = 0x6030_0000_0010_0040;

    /// `movz w0, #0x4240; movk w0, #0xf, lsl 16; 1: subs w0, w0, #1; b.ne 1b;
    /// movz w1, #0x1000, lsl 16; str w0, [x1]`: ends with a store to an address
    /// where nothing is.
    pub const GUEST_CODE: &[u8] = &[
        0x00, 0x48, 0x88, 0x52, 0xe0, 0x01, 0xa0, 0x72, 0x00, 0x04, 0x00, 0x71, 0xe1, 0xff, 0xff,
        0x54, 0x01, 0x00, 0xa2, 0x52, 0x20, 0x00, 0x00, 0xb9,
    ];

    pub fn set_up(vm: &VmFd, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        let mut target = kvm_bindings::kvm_vcpu_init::default();
        vm.get_preferred_target(&mut target)?;
        vcpu.vcpu_init(&target)?;
        vcpu.set_one_reg(PROGRAM_COUNTER, &GUEST_BASE.to_le_bytes())?;
        Ok(())
    }

    pub fn is_the_end(exit: &VcpuExit<'_>) -> bool {
        matches!(exit, VcpuExit::MmioWrite(0x1000_0000, _))
    }

    pub fn host_loop() -> Duration {
        let began = Instant::now();
        // SAFETY: counts a register down, touches nothing else.
        unsafe {
            std::arch::asm!("2:", "subs {0:w}, {0:w}, #1", "b.ne 2b",
                inout(reg) 1_000_000u32 => _, options(nomem, nostack));
        }
        began.elapsed()
    }
}

use machine::{GUEST_BASE, GUEST_CODE, host_loop, is_the_end, set_up};

/// Reads until `enough`, end of file, the deadline, or more than a report can be.
fn read_until(from: &mut File, deadline: Instant, enough: impl Fn(&str) -> bool) -> String {
    use std::os::fd::AsFd;
    let mut text = Vec::new();
    let mut chunk = [0; 256];
    while text.len() < PAGE && !enough(&String::from_utf8_lossy(&text)) {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled = [nix::poll::PollFd::new(from.as_fd(), nix::poll::PollFlags::POLLIN)];
        let milliseconds = left.as_millis().min(u128::from(u16::MAX)) as u16;
        match nix::poll::poll(&mut polled, milliseconds) {
            Ok(1..) => match from.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(count) => text.extend_from_slice(&chunk[..count]),
            },
            Err(nix::errno::Errno::EINTR) if !left.is_zero() => {}
            _ => break,
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn parse_report(report: &str) -> Result<Proof, Failure> {
    let duration = |word: Option<&str>| {
        let nanoseconds = word.and_then(|word| word.parse().ok())?;
        Some(Duration::from_nanos(nanoseconds))
    };
    let (mut host, mut proof) = (None, None);
    for line in report.lines() {
        let mut words = line.split(' ');
        match words.next() {
            Some("host") => host = duration(words.next()),
            Some("done") => {
                if let (Some(host), Some(guest)) = (duration(words.next()), duration(words.next()))
                {
                    proof = Some(Proof { host, guest });
                }
            }
            Some("error") => {
                let text = line.trim_start_matches("error ");
                return Err(Failure::Vm(text.to_owned()));
            }
            _ => {}
        }
    }
    // What was measured by the deadline counts, however many rounds that was.
    proof.ok_or(Failure::TooSlow { host })
}

fn pipe() -> io::Result<(File, File)> {
    let mut fds: [RawFd; 2] = [0; 2];
    // SAFETY: writes two descriptors into an array of two.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call just returned both.
    unsafe { Ok((File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1]))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_as_far_as_they_go() {
        let proof = parse_report("host 300\ndone 300 900\ndone 290 310\n").expect("a proof");
        assert_eq!(proof.guest, Duration::from_nanos(310));
        let Err(Failure::TooSlow { host: Some(host) }) = parse_report("host 300\n") else {
            panic!("not too slow");
        };
        assert_eq!(host, Duration::from_nanos(300));
        assert!(matches!(parse_report("error Invalid argument"), Err(Failure::Vm(_))));
        assert!(matches!(parse_report("done x"), Err(Failure::TooSlow { host: None })));
    }

    #[test]
    fn a_slow_host_is_given_time() {
        let usual = Duration::from_millis(100);
        assert_eq!(guest_limit(Duration::from_micros(300), usual), usual);
        assert_eq!(guest_limit(Duration::from_millis(30), usual), Duration::from_millis(360));
    }

    #[test]
    fn the_host_runs_the_loop() {
        // 10^6 iterations: at least a tick of any clock, at most a second.
        let time = host_loop();
        assert!(time > Duration::ZERO && time < Duration::from_secs(1));
    }
}
