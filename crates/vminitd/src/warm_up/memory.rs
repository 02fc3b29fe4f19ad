//! Memory: the heap, mappings of nothing and of files.

use nix::libc::{self, MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_EXEC, PROT_READ, PROT_WRITE};
use std::fs::File;
use std::os::fd::AsRawFd;

const PAGE: usize = 4096;
/// Large enough for more than one page table.
const LEN: usize = 4 << 20;

/// Maps, touches, protects and gives back.
pub fn use_it() {
    let grown: Vec<Vec<u8>> = (1..64).map(|n| vec![n; n as usize * 512]).collect();
    drop(std::hint::black_box(grown));
    let all = PROT_READ | PROT_WRITE;
    with_mapping(LEN, all, MAP_PRIVATE | MAP_ANONYMOUS, -1, |at| {
        touch(at, LEN);
        // SAFETY: within the mapping, which nothing else refers to.
        unsafe {
            libc::mprotect(at.add(PAGE).cast(), PAGE, PROT_READ);
            libc::madvise(at.cast(), LEN, libc::MADV_DONTNEED);
            libc::mremap(at.cast(), LEN, LEN / 2, 0);
        }
    });
    with_mapping(PAGE, all, MAP_SHARED | MAP_ANONYMOUS, -1, |at| touch(at, PAGE));
    // As a dynamic linker maps a library.
    if let Ok(program) = File::open(super::PATH) {
        let fd = program.as_raw_fd();
        with_mapping(LEN / 4, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, |at| {
            // SAFETY: the first page of a file that is longer.
            std::hint::black_box(unsafe { at.read_volatile() });
        });
        with_mapping(PAGE, all, MAP_PRIVATE, fd, |at| touch(at, PAGE));
    }
    let path = "/tmp/warm-up-mapped";
    let file = File::options().read(true).write(true).create_new(true).open(path);
    if let Ok(file) = file
        && file.set_len(PAGE as u64).is_ok()
    {
        with_mapping(PAGE, all, MAP_SHARED, file.as_raw_fd(), |at| {
            touch(at, PAGE);
            // SAFETY: the whole mapping.
            unsafe { libc::msync(at.cast(), PAGE, libc::MS_SYNC) };
        });
    }
    let _ = std::fs::remove_file(path);
}

/// Runs `work` with the address of a new mapping and removes that.
fn with_mapping(len: usize, protection: i32, flags: i32, fd: i32, work: impl FnOnce(*mut u8)) {
    // SAFETY: the kernel chooses the address, so nothing is replaced.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, 0) };
    if at != libc::MAP_FAILED {
        work(at.cast());
        // SAFETY: what was mapped above; a part that is gone already is no error.
        unsafe { libc::munmap(at, len) };
    }
}

/// Writes to every page.
fn touch(at: *mut u8, len: usize) {
    for offset in (0..len).step_by(PAGE) {
        // SAFETY: within a writable mapping of this length.
        unsafe { at.add(offset).write_volatile(1) };
    }
}
