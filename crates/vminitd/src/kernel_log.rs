//! The kernel's log: all of it for the host, and its lines about killed processes.

use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use vminitd_protocol::MAX_BOOT_LOG;

/// The newest part of the log as `dmesg` has it.
pub fn snapshot() -> nix::Result<Vec<u8>> {
    const READ_ALL: i32 = 3;
    let mut text = vec![0u8; MAX_BOOT_LOG];
    // SAFETY: the buffer is as long as said.
    let n = unsafe { libc::klogctl(READ_ALL, text.as_mut_ptr().cast(), text.len() as i32) };
    text.truncate(Errno::result(n)? as usize);
    Ok(text)
}

/// Follows the log from where it was opened.
#[derive(Debug)]
pub struct Follower {
    file: Option<File>,
}

impl Follower {
    /// Follows what is logged from now on. A kernel without `/dev/kmsg` has
    /// nothing to follow.
    pub fn new() -> Self {
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        let mut follower = Follower { file: file.ok() };
        follower.skip();
        follower
    }

    /// Passes over what has been logged until now.
    pub fn skip(&mut self) {
        if let Some(file) = &mut self.file {
            // A log that can't be sought is followed from its beginning.
            let _ = file.seek(SeekFrom::End(0));
        }
    }

    /// The newest new line that tells of a process killed for want of memory.
    pub fn killed_process(&mut self) -> Option<Killed> {
        let file = self.file.as_mut()?;
        let mut found = None;
        let mut record = [0u8; 8192];
        // One read gives one record; EAGAIN ends it, EPIPE says that some were lost.
        for _ in 0..10_000 {
            let n = match file.read(&mut record) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => continue,
                Err(_) => break,
            };
            let text = String::from_utf8_lossy(&record[..n]);
            let line = text.split_once(';').map_or("", |(_, rest)| rest);
            let line = line.lines().next().unwrap_or("");
            found = Killed::parse(line).or(found);
        }
        found
    }
}

/// What the kernel says of a process that it killed for want of memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Killed {
    /// The whole line.
    pub line: String,
    /// The process's `comm`.
    pub name: String,
    /// Its id in the guest's first PID namespace.
    pub pid: u32,
    /// Memory that it held for itself in bytes.
    pub anonymous_bytes: u64,
}

impl Killed {
    /// Of a line such as `…: Killed process 12 (dd) total-vm:9kB, anon-rss:8kB, …`.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once("Killed process ")?;
        // A name may hold anything, the numbers behind it have their own form.
        let (name, numbers) = rest.rsplit_once(") total-vm:")?;
        let (pid, name) = name.split_once(" (")?;
        let kib = numbers.split(", ").find_map(|n| n.strip_prefix("anon-rss:")?.strip_suffix("kB"));
        Some(Killed {
            line: line.to_owned(),
            name: name.to_owned(),
            pid: pid.parse().ok()?,
            anonymous_bytes: kib.and_then(|kib| kib.parse::<u64>().ok())?.saturating_mul(1024),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn killed_processes_are_told() {
        let of = |name: &str| {
            Killed::parse(&format!(
                "Memory cgroup out of memory: Killed process 12 ({name}) total-vm:90kB, \
                 anon-rss:8kB, file-rss:4kB, shmem-rss:0kB, UID:0 pgtables:404kB oom_score_adj:0"
            ))
        };
        for name in ["dd", "a) (b", ") total-vm:1kB, ", ""] {
            let killed = of(name).unwrap();
            assert_eq!((killed.pid, &*killed.name, killed.anonymous_bytes), (12, name, 8192));
        }
        for line in ["", "Killed process", "Killed process x (y) total-vm:1kB, anon-rss:1kB"] {
            assert_eq!(Killed::parse(line), None);
        }
    }
}
