//! Which device nodes count in the container: Docker's default rules, as a BPF
//! program on its cgroup. Making nodes is allowed, using them is not, except for
//! the few that a container has. Without it root in a container, which holds
//! `MKNOD`, could write the raw disks and speak on the VM's console.

use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// One instruction, as `struct bpf_insn` of `linux/bpf.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: src << 4 | dst, offset, immediate }
}

/// `r{dst} = *(u32 *)(r{src} + offset)`
const fn load(dst: u8, src: u8, offset: i16) -> Instruction {
    instruction(0x61, dst, src, offset, 0)
}
/// `if r{dst} == immediate skip`
const fn skip_if_equal(dst: u8, immediate: i32, skip: i16) -> Instruction {
    instruction(0x15, dst, 0, skip, immediate)
}
/// `if r{dst} != immediate skip`
const fn skip_unless_equal(dst: u8, immediate: i32, skip: i16) -> Instruction {
    instruction(0x55, dst, 0, skip, immediate)
}
/// `r{dst} = immediate`
const fn set(dst: u8, immediate: i32) -> Instruction {
    instruction(0xb7, dst, 0, 0, immediate)
}
const EXIT: Instruction = instruction(0x95, 0, 0, 0, 0);

/// Major number of `/dev/kvm`, and its minor one.
pub const MISC: u64 = 10;
/// See [`MISC`].
pub const KVM_MINOR: u64 = 232;

/// Where [`FOR_KVM`] goes into [`PROGRAM`]: behind the loads and the "allow".
const KVM_AT: usize = 4;
/// Allows `/dev/kvm`, whatever is done with it.
const FOR_KVM: [Instruction; 6] = [
    load(3, 1, 0),
    instruction(0x57, 3, 0, 0, 0xffff), // r3 &= 0xffff
    skip_unless_equal(3, 2, 3),
    skip_unless_equal(4, MISC as i32, 2),
    skip_unless_equal(5, KVM_MINOR as i32, 1),
    EXIT,
];

/// The program, with or without `/dev/kvm`.
fn program(kvm: bool) -> Vec<Instruction> {
    let (first, rest) = PROGRAM.split_at(KVM_AT);
    let more = if kvm { &FOR_KVM[..] } else { &[] };
    [first, more, rest].concat()
}

/// The context is `struct bpf_cgroup_dev_ctx`: access in the upper and type in
/// the lower half of the first word, then major and minor. Each rule skips to
/// the "allow" at the end.
const PROGRAM: [Instruction; 22] = [
    load(2, 1, 0),
    load(4, 1, 4),
    load(5, 1, 8),
    set(0, 1),
    // Access is mknod alone (1 << 16) of a block (1) or character device (2).
    skip_if_equal(2, 0x1_0001, 16),
    skip_if_equal(2, 0x1_0002, 15),
    // From here on character devices only: the type is the lower half.
    instruction(0x57, 2, 0, 0, 0xffff), // r2 &= 0xffff
    skip_unless_equal(2, 2, 12),
    // 1:3 null, 1:5 zero, 1:7 full, 1:8 random, 1:9 urandom.
    skip_unless_equal(4, 1, 5),
    skip_if_equal(5, 3, 11),
    skip_if_equal(5, 5, 10),
    skip_if_equal(5, 7, 9),
    skip_if_equal(5, 8, 8),
    skip_if_equal(5, 9, 7),
    // 5:0 tty, 5:1 console, 5:2 ptmx.
    skip_unless_equal(4, 5, 3),
    skip_if_equal(5, 0, 5),
    skip_if_equal(5, 1, 4),
    skip_if_equal(5, 2, 3),
    // 136 to 143: terminals.
    instruction(0x57, 4, 0, 0, !7), // r4 &= !7
    skip_if_equal(4, 136, 1),
    set(0, 0),
    EXIT,
];

/// Puts the filter on a cgroup, in place of the one that is there.
pub fn attach(cgroup: BorrowedFd<'_>, kvm: bool) -> nix::Result<()> {
    const BPF_PROG_LOAD: i32 = 5;
    const BPF_PROG_ATTACH: i32 = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;

    #[repr(C)]
    #[derive(Default)]
    struct Load {
        program_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    let instructions = program(kvm);
    let mut load = Load {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    let program = bpf(BPF_PROG_LOAD, &mut load)?;
    // SAFETY: the call has just made this descriptor.
    let program = unsafe { OwnedFd::from_raw_fd(program) };

    let mut attach = [cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32, BPF_CGROUP_DEVICE, 0];
    bpf(BPF_PROG_ATTACH, &mut attach).map(drop)
}

fn bpf<T>(command: i32, attributes: &mut T) -> nix::Result<RawFd> {
    // SAFETY: `T` begins as the command's part of `union bpf_attr`, whose size
    // is told, and what it points to outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    Errno::result(result).map(|fd| fd as RawFd)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn run(program: &[Instruction], access: u32, kind: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        loop {
            let i = program[at];
            let (dst, immediate) = ((i.registers & 15) as usize, i.immediate as i64 as u64);
            at += 1;
            match i.code {
                0x61 => registers[dst] = context[i.offset as usize / 4].into(),
                0x15 if registers[dst] == immediate => at += i.offset as usize,
                0x55 if registers[dst] != immediate => at += i.offset as usize,
                0x15 | 0x55 | 0x05 => {}
                0x57 => registers[dst] &= immediate,
                0xb7 => registers[dst] = immediate,
                0x95 => return registers[0] != 0,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    const MKNOD: u32 = 1;
    const READ: u32 = 2;
    const WRITE: u32 = 4;
    const BLOCK: u32 = 1;
    const CHARACTER: u32 = 2;

    #[test]
    fn kvm_alone_is_added() {
        let plain = program(false);
        for (major, minor) in (0..256).flat_map(|major| (0..256).map(move |minor| (major, minor))) {
            for kind in [BLOCK, CHARACTER] {
                let allowed = |program: &[_]| run(program, READ | WRITE, kind, major, minor);
                let kvm = (kind, major, minor) == (CHARACTER, 10, 232);
                assert!(!kvm || !allowed(&plain));
                assert_eq!(allowed(&program(true)), kvm || allowed(&plain), "{major}:{minor}");
            }
        }
    }

    #[test]
    fn dockers_rules() {
        let allows = |access, kind, major, minor| run(&program(false), access, kind, major, minor);
        assert!(allows(MKNOD, BLOCK, 254, 0) && allows(MKNOD, CHARACTER, 4, 64));
        for (major, minor) in
            [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, 0), (143, 9)]
        {
            assert!(allows(READ | WRITE, CHARACTER, major, minor), "{major}:{minor}");
            assert!(!allows(READ, BLOCK, major, minor), "{major}:{minor}");
        }
        // mem, kmem, kmsg, console's hardware, a tty, virtio-serial ports, fuse.
        for (major, minor) in [
            (1, 1),
            (1, 2),
            (1, 11),
            (4, 64),
            (4, 0),
            (5, 3),
            (135, 0),
            (144, 0),
            (243, 1),
            (10, 229),
        ] {
            assert!(!allows(READ, CHARACTER, major, minor), "{major}:{minor}");
            assert!(!allows(WRITE | MKNOD, CHARACTER, major, minor), "{major}:{minor}");
        }
        assert!(!allows(READ | WRITE, BLOCK, 254, 16));
    }
}
