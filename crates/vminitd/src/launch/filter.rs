//! The filter of a process's system calls. The host makes it; here it is only handed to the
//! kernel, which checks every instruction before it takes it.

use crate::failure::{Context, Failure};
use nix::errno::Errno;
use nix::libc;
use vminitd_protocol::message::ErrorCode::InvalidRequest;

/// Bytes of an instruction.
pub const INSTRUCTION: usize = size_of::<libc::sock_filter>();
/// Most instructions that the kernel takes.
pub const MAX: usize = 4096;
/// A filter that looks at a call's architecture and number, and allows it: for rehearsals.
pub const ALL: &[u8] = &[
    0x20, 0, 0, 0, 4, 0, 0, 0, // load the architecture
    0x15, 0, 0, 0, 0, 0, 0, 0, // compare it
    0x20, 0, 0, 0, 0, 0, 0, 0, // load the number
    0x35, 0, 0, 0, 0, 0, 0, 0, // compare it
    0x06, 0, 0, 0, 0, 0, 0xff, 0x7f, // allow
];

/// Installs it for this process and what it becomes; an empty one is none.
pub fn install(program: &[u8]) -> Result<(), Failure> {
    if program.is_empty() {
        return Ok(());
    }
    let filter: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel reads the instructions, which outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    Errno::result(result).map(drop).context(InvalidRequest, || "install the system call filter")
}
