//! Files that a jail should not have, and descriptors that it should not be able to use further.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use nix::libc;

use crate::report::Answer;

/// Places that every host has, and no jail.
const USUAL: [&str; 8] = [
    "/etc/passwd",
    "/etc/hostname",
    "/bin/sh",
    "/usr/bin",
    "/home",
    "/root",
    "/run",
    "/sys/kernel",
];

/// Those of the host: the usual ones, those named, and by detours.
pub fn of_the_host(named: &[PathBuf]) -> Answer {
    let detours = ["/proc/1/root/etc/passwd", "/proc/self/cwd/../../../etc/passwd"];
    let all: Vec<&Path> = USUAL
        .iter()
        .chain(&detours)
        .map(Path::new)
        .chain(named.iter().map(PathBuf::as_path))
        .collect();
    let there = all.iter().filter(|path| fs::symlink_metadata(path).is_ok());
    let there = there.map(|path| format!("{} is there", path.display())).collect();
    Answer::of(there, format!("{} files of the host are not there", all.len()))
}

/// A new file anywhere, or its own program.
pub fn writing() -> Answer {
    let mut through = Vec::new();
    let mut places = 0;
    for place in ["/", "/dev", "/proc", "/tmp", "/bin", "/var"] {
        let path = Path::new(place).join(format!("attempt-{}", std::process::id()));
        places += 1;
        if File::create_new(&path).is_ok() {
            let _ = fs::remove_file(&path);
            through.push(format!("a file in {place}"));
        }
    }
    let own = OpenOptions::new().append(true).open("/proc/self/exe");
    // A program that runs can't be written to anyway; what matters is who says so.
    if own.is_ok_and(|_| true) {
        through.push("its own program can be written".into());
    }
    Answer::of(through, format!("no file in {places} places, nor in its own program"))
}

/// Which descriptors there are, beside those that there should be.
pub fn descriptors(expected: &[i32]) -> Answer {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return Answer::Skipped("/proc/self/fd can't be read".into());
    };
    let found: BTreeSet<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // The listing's own is gone by now.
    let there: Vec<i32> = found.into_iter().filter(|fd| is_open(*fd)).collect();
    let more = there.iter().filter(|fd| !expected.contains(fd));
    let more = more.map(|fd| {
        let target = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
        format!("descriptor {fd}: {}", target.display())
    });
    Answer::of(more.collect(), format!("{} descriptors, as named", there.len()))
}

fn is_open(fd: i32) -> bool {
    // SAFETY: reads flags.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// A file that may be written by its descriptor, opened again by its name in `/proc`: its mode and
/// its mount allow that, landlock does not.
pub fn own(fd: i32) -> Answer {
    match OpenOptions::new().write(true).open(format!("/proc/self/fd/{fd}")) {
        Ok(_) => Answer::Open("a disk of its own opens a second time".into()),
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            Answer::Held(format!("a disk of its own does not open a second time: {error}"))
        }
        Err(error) => Answer::Skipped(format!("a disk of its own: {error}")),
    }
}

/// Every way to change a file that other VMs read, by its descriptor.
pub fn shared(fd: i32) -> Answer {
    let path = PathBuf::from(format!("/proc/self/fd/{fd}"));
    let mut through = Vec::new();
    let mut held = 0;
    let mut attempt = |what: &str, done: bool| match done {
        true => through.push(what.to_owned()),
        false => held += 1,
    };
    attempt("it opens for writing", OpenOptions::new().write(true).open(&path).is_ok());
    attempt("it opens for both", OpenOptions::new().read(true).write(true).open(&path).is_ok());
    let name = c"user.attempt";
    // SAFETY: a descriptor, numbers, and strings that end.
    unsafe {
        attempt("its mode can be changed", libc::fchmod(fd, 0o666) == 0);
        attempt("it can be cut", libc::ftruncate(fd, 0) == 0);
        attempt("it can be written", libc::write(fd, c"x".as_ptr().cast(), 1) == 1);
        attempt("it can be allocated", libc::fallocate(fd, 0, 0, 4096) == 0);
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        attempt("holes can be made", libc::fallocate(fd, punch, 0, 4096) == 0);
        let set = libc::fsetxattr(fd, name.as_ptr(), c"x".as_ptr().cast(), 1, 0);
        attempt("it takes attributes", set == 0);
        attempt("its times can be set", libc::futimens(fd, std::ptr::null()) == 0);
        let write = libc::PROT_READ | libc::PROT_WRITE;
        let mapped = libc::mmap(std::ptr::null_mut(), 4096, write, libc::MAP_SHARED, fd, 0);
        attempt("it can be mapped for writing", mapped != libc::MAP_FAILED);
    }
    Answer::of(through, format!("{held} ways to change it are refused"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn without_landlock_a_file_opens_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(own(file.as_file().as_raw_fd()), Answer::Open(_)));
    }

    #[test]
    fn a_host_without_a_jail_is_found_out() {
        assert!(matches!(of_the_host(&[]), Answer::Open(text) if text.contains("/etc/passwd")));
        let file = tempfile::NamedTempFile::new().unwrap();
        let answer = shared(file.as_file().as_raw_fd());
        assert!(matches!(answer, Answer::Open(text) if text.contains("it can be written")));
        let fd = file.as_file().as_raw_fd();
        assert!(
            matches!(descriptors(&[0, 1, 2]), Answer::Open(text) if text.contains(&format!("descriptor {fd}")))
        );
    }
}
