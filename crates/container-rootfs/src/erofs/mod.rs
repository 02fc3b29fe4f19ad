//! EROFS, uncompressed, in blocks of 4 KiB.
//!
//! Source: the kernel's `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`.

mod dirent;
pub(crate) mod format;
pub(crate) mod read;
pub(crate) mod write;
pub(crate) mod xattr;
