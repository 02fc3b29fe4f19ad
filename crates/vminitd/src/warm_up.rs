//! The program of a throwaway container: it does once what programs usually do.
//!
//! An emulator translates the kernel's code when it first runs, which costs the
//! first container of a VM ten times what the second one pays. So a VM that is
//! to be a spare, or a template's source, runs this first. It is the guest's
//! init under the name `/warm-up`, in an image with a few files for it.
//!
//! Nothing here may fail, wait for anything or keep anything: what a kernel or
//! an image lacks is passed over. It uses no network and reads no identity:
//! what the kernel draws at the first use of those must be drawn by each clone
//! of a template itself.

mod files;
mod memory;
mod processes;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;

/// Where this program is in the image.
pub const PATH: &str = "/warm-up";
/// Argument of a copy that ends at once.
pub const CHILD: &str = "child";
/// Where it works; on the upper disk.
const SCRATCH: &str = "/tmp/warm-up";
/// Written to the output, so that streams are used as much as their window.
const OUTPUT: usize = 64 << 10;

/// Does it all.
pub fn run() -> ! {
    if std::env::args_os().nth(1).is_some_and(|word| word == CHILD) {
        println!("child of {}", std::os::unix::process::parent_id());
        std::process::exit(0);
    }
    streams();
    files::read();
    files::write();
    memory::use_it();
    processes::start();
    let _ = std::fs::remove_dir_all(SCRATCH);
    // SAFETY: flushes; takes no argument.
    unsafe { nix::libc::sync() };
    std::process::exit(0)
}

fn streams() {
    let mut stdin = std::io::stdin();
    let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
    let _ = (stdin.is_terminal(), stdout.is_terminal(), stderr.is_terminal());
    let _ = writeln!(stderr, "warm-up");
    let line = [b'.'; 1023];
    for _ in 0..OUTPUT / (line.len() + 1) {
        let _ = stdout.write_all(&line).and_then(|()| stdout.write_all(b"\n"));
    }
    let _ = stdout.flush();
    let mut ready = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, PollTimeout::ZERO).is_ok_and(|n| n > 0) {
        let _ = stdin.read(&mut [0; 4096]);
    }
}
