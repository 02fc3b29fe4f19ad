//! System calls by number, and what `/proc` says of this process.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc::{self, c_long};

/// A call with arguments that do nothing where it is allowed: null pointers, descriptors that are
/// not open, flags that no kernel knows.
pub struct Call {
    /// Its name.
    pub name: &'static str,
    number: c_long,
    arguments: [c_long; 5],
}

/// A call in a table.
pub const fn call(name: &'static str, number: c_long, arguments: [c_long; 5]) -> Call {
    Call { name, number, arguments }
}

impl Call {
    /// Makes it. The error is the system's.
    pub fn make(&self) -> Result<(), Errno> {
        let [a, b, c, d, e] = self.arguments;
        // SAFETY: the tables hold null pointers and numbers alone; every such call fails, or
        // changes nothing but this process.
        match unsafe { libc::syscall(self.number, a, b, c, d, e) } {
            -1 => Err(Errno::last()),
            _ => Ok(()),
        }
    }

    /// Whether a filter refused it, rather than the kernel's own code its arguments.
    pub fn is_filtered(&self, filtered: &[Errno]) -> Result<Errno, String> {
        match self.make() {
            Err(errno) if filtered.contains(&errno) => Ok(errno),
            Err(errno) => Err(format!("{}: {errno:?}, so the kernel looked at it", self.name)),
            Ok(()) => Err(format!("{} succeeded", self.name)),
        }
    }
}

/// Which of the calls no filter refused.
pub fn unfiltered(calls: &[Call], filtered: &[Errno]) -> Vec<String> {
    calls.iter().filter_map(|call| call.is_filtered(filtered).err()).collect()
}

/// A field of `/proc/self/status`; empty when it is not there.
pub fn status(field: &str) -> String {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// A path as the C library takes it.
pub fn c_path(path: &Path) -> Result<CString, String> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| "a path with NUL".to_owned())
}

/// A mount; the strings may be empty.
pub fn mount(source: &str, target: &Path, kind: &str, flags: u64) -> Result<(), Errno> {
    let (Ok(source), Ok(kind)) = (CString::new(source), CString::new(kind)) else {
        return Err(Errno::EINVAL);
    };
    let target = c_path(target).map_err(|_| Errno::EINVAL)?;
    // SAFETY: strings that end, and no data.
    let done = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null())
    };
    if done < 0 { Err(Errno::last()) } else { Ok(()) }
}

/// A device's node.
pub fn device(path: &Path, kind: libc::mode_t, major: u32, minor: u32) -> Result<(), Errno> {
    let path = c_path(path).map_err(|_| Errno::EINVAL)?;
    // SAFETY: a string that ends, and numbers.
    let done = unsafe { libc::mknod(path.as_ptr(), kind | 0o600, libc::makedev(major, minor)) };
    if done < 0 { Err(Errno::last()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_refusal_is_no_filter() {
        let close = call("close", libc::SYS_close, [-1, 0, 0, 0, 0]);
        assert_eq!(close.make(), Err(Errno::EBADF));
        assert_eq!(close.is_filtered(&[Errno::EBADF]), Ok(Errno::EBADF));
        assert_eq!(unfiltered(&[close], &[Errno::EPERM]).len(), 1);
        let getpid = call("getpid", libc::SYS_getpid, [0; 5]);
        assert_eq!(unfiltered(&[getpid], &[Errno::EPERM]), ["getpid succeeded"]);
    }

    #[test]
    fn fields_of_the_status() {
        assert!(!status("Pid").is_empty());
        assert_eq!(status("Nothing"), "");
    }
}
