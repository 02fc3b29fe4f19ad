//! Small files, read and written with bounds.

use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Reads a regular file of at most `max` bytes. A path that leads to something
/// else, as a hostile image may have it, is an error and never blocks.
pub fn read_regular(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)?;
    let meta = file.metadata()?;
    if meta.mode() & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() || meta.len() > max {
        return Err(io::Error::from_raw_os_error(nix::libc::EFBIG));
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    Read::by_ref(&mut file).take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a kernel file (`/proc`, `/sys`), at most 64 KiB, trimmed at its end.
pub fn read_kernel(path: impl AsRef<Path>) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(64 << 10).read_to_string(&mut text)?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

/// Writes a kernel file in one call.
pub fn write_kernel(path: impl AsRef<Path>, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}
