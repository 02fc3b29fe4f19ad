//! What the hypervisor's jail and its filters cost: starts and throughput with them and without, in
//! turns.
//!
//! The side *with* them is the installation as it was built. The other is a copy of it in which one
//! program is replaced: in place of `container-jailer` stands `assets/open-jail.c`, which takes the
//! same command line and executes QEMU with the same descriptors, but in the caller's namespaces,
//! with the caller's uid, capabilities and limits, and without Landlock, our filter, and QEMU's own
//! (`-sandbox`). No release binary has a way to do that, and none gets one for a benchmark. A VM
//! that was started so is looked at before anything is measured: it has no filter and is in no
//! namespace of its own.
//!
//! On both sides there is a process that makes another and ends, and shared files lie on read-only
//! mounts. The time until the jail of a program that does nothing is made and gone is stated for both:
//! that of the other side is the part of a jail's cost that the differences leave out.
//!
//! Not in these figures: the file server of bind mounts makes its jail itself, in what a mount adds
//! to a start (`mount-start`); the services of images and networks close themselves in once.

mod made;
mod sides;
mod start;
mod throughput;

pub use made::made;
pub use start::start;
pub use throughput::throughput;

use anyhow::Result;

use super::Bench;
use super::figure::Figure;

/// All of it.
pub fn jail(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mut figures = made(bench)?;
    figures.extend(start(bench)?);
    figures.extend(throughput(bench)?);
    Ok(figures)
}
