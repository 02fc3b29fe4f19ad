//! Another user of the host: are the sockets and the files closed to it?

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::report::{Answer, tell};

/// Tries to reach each path: to connect to a socket, to read a file, to list a directory. What is
/// not there is not refused, so it is told.
pub fn knock(paths: &[OsString]) -> Result<(), String> {
    let (mut through, mut refused) = (Vec::new(), 0);
    for path in paths {
        let path = Path::new(path);
        match reach(path) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => refused += 1,
            Err(error) => through.push(format!("{}: {error}", path.display())),
            Ok(how) => through.push(format!("{} {how}", path.display())),
        }
    }
    // SAFETY: reads a number.
    let uid = unsafe { nix::libc::getuid() };
    tell("other-user", Answer::of(through, format!("{refused} paths refused to uid {uid}")));
    Ok(())
}

fn reach(path: &Path) -> std::io::Result<&'static str> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_socket() {
        return UnixStream::connect(path).map(|_| "answers");
    }
    if kind.is_dir() {
        return fs::read_dir(path).map(|_| "can be listed");
    }
    fs::File::open(path).map(|_| "can be read")
}
