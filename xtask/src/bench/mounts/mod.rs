//! Mounts and disks: what a bind mount and a volume add to a start, and how fast a bind mount and the
//! container's own disk are, against bare QEMUs with one program in all guests
//! (`assets/files.c`).

mod io;
mod machine;
mod start;

pub use io::{FILES, disk, exec, share};
pub use start::{mount, volume};
