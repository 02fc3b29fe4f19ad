//! PID 1 of the guest: one static binary, one thread, no shell and no library
//! beside it.
//!
//! ```text
//! boot: tmpfs root, modules, /proc /sys /dev, ports
//!   └─► server: one epoll loop
//!         agent port ── requests ──► root (EROFS + ext4 = overlay), launch, signals
//!         bulk port  ◄─ mux ─► pipes and terminals of the processes
//!         SIGCHLD    ── reap ──► exit events
//! ```
//!
//! Code that never runs costs nothing here, code that runs once costs its
//! translation when the VM is emulated: hence no runtime, no threads, and
//! system calls made directly.

mod announcer;
mod archive;
mod block;
mod boot;
mod cgroup;
mod device_filter;
mod failure;
mod files;
mod kernel_log;
mod launch;
mod loopback;
mod modules;
mod network;
mod root;
mod server;
mod setup;
mod sys;
mod validate;
mod warm_up;

use std::fmt::Display;

/// Does what the name says that it was called by.
pub fn main() -> ! {
    let name = std::env::args_os().next().unwrap_or_default();
    if name == warm_up::PATH {
        warm_up::run()
    }
    if name == launch::REHEARSAL {
        std::process::exit(0)
    }
    if name == launch::INIT {
        launch::serve_as_init()
    }
    run()
}

/// Boots the guest and serves the host until it powers off. A fault ends PID 1,
/// which makes the kernel panic: the host reads the reason on the console.
fn run() -> ! {
    std::panic::set_hook(Box::new(|info| fatal_line(info)));
    let fault = match boot::boot() {
        Ok(booted) => server::serve(booted),
        Err(failure) => failure,
    };
    fatal_line(&fault);
    // Ends PID 1, hence the VM (`panic=-1` on the command line).
    std::process::exit(1)
}

fn fatal_line(what: &dyn Display) {
    eprintln!("vminitd: fatal: {what}");
}
