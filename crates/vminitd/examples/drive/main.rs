//! Boots a guest in QEMU and drives it through the protocol: the guest's own
//! test, with both halves in one place.
//!
//! ```text
//! drive KERNEL_BUNDLE [CASE…]
//! ```
//!
//! The bundle is a directory with `vmlinux` and `initramfs.cpio`. The disks are
//! made here, by `mkfs.erofs` of a tree with the static busybox, and by
//! `mkfs.ext4` (or copied from `DRIVE_UPPER`). Without cases all run.

mod cases;
mod client;
mod spare;
mod vm;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(bundle) = args.next() else {
        eprintln!("usage: drive KERNEL_BUNDLE [CASE…]");
        return ExitCode::FAILURE;
    };
    let wanted: Vec<String> = args.collect();
    let files = vm::Files::make(bundle.as_ref());
    let mut failed = false;
    for (name, case) in cases::ALL {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        let result = std::panic::catch_unwind(|| case(&files));
        println!("{} {name}", if result.is_ok() { "ok    " } else { "FAILED" });
        failed |= result.is_err();
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
