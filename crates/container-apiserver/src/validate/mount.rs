//! Paths in the container, and memory file systems.

use container_api::config::parse_size;
use container_api::escape::escape;
use container_api::types::Tmpfs;
use container_api::{ApiError, Result};

/// Longest path in bytes (`PATH_MAX`, with its NUL).
const MAX_PATH: usize = 4095;

/// Paths that are hidden from a container (Docker's and podman's list).
pub const DEFAULT_MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that are read-only in a container.
pub const DEFAULT_READONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Checks an absolute path in the container without `.` or `..`; `what` names it in the error.
pub fn check_path(what: &str, path: &[u8]) -> Result<()> {
    let shown = || container_api::escape::escape_bytes(&path[..path.len().min(200)]);
    if path.first() != Some(&b'/') {
        return Err(ApiError::invalid(format!("{what} '{}' is not an absolute path", shown())));
    }
    if path.len() > MAX_PATH || path.contains(&0) {
        return Err(ApiError::invalid(format!("{what} '{}' is not a possible path", shown())));
    }
    if path.split(|b| *b == b'/').any(|part| part == b"..") {
        return Err(ApiError::invalid(format!("{what} '{}' must not contain '..'", shown())));
    }
    Ok(())
}

/// A path that [`check_path`] lets pass, without `.`, doubled and last slashes; the root is empty.
pub fn plain(path: &[u8]) -> Vec<u8> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.flat_map(|part| [b"/", part].concat()).collect()
}

/// Checks `--masked-path` and `--read-only-path`.
pub fn check_paths(what: &str, paths: &[String]) -> Result<()> {
    paths.iter().try_for_each(|path| check_path(what, path.as_bytes()))
}

/// Checks `--tmpfs`.
pub fn check_tmpfs(mounts: &[Tmpfs]) -> Result<()> {
    for (i, mount) in mounts.iter().enumerate() {
        check_path("tmpfs", mount.destination.as_bytes())?;
        if mount.destination.bytes().all(|b| b == b'/') {
            return Err(ApiError::invalid("a tmpfs can't be the container's root"));
        }
        if mounts[..i].iter().any(|other| other.destination == mount.destination) {
            let shown = escape(&mount.destination);
            return Err(ApiError::invalid(format!("two tmpfs at '{shown}'")));
        }
        mount.options.iter().try_for_each(|option| check_option(option))?;
    }
    Ok(())
}

fn check_option(option: &str) -> Result<()> {
    let flags = [
        "ro",
        "rw",
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "sync",
        "async",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
    ];
    let number = |value: &str, radix| u32::from_str_radix(value, radix).is_ok();
    let fine = match option.split_once('=') {
        None => flags.contains(&option),
        Some(("size", value)) => {
            let percent = value.strip_suffix('%').is_some_and(|p| p.parse::<u8>().is_ok());
            percent || parse_size(value).is_ok()
        }
        Some(("nr_inodes" | "nr_blocks", value)) => parse_size(value).is_ok(),
        Some(("mode", value)) => number(value, 8),
        Some(("uid" | "gid", value)) => number(value, 10),
        Some(_) => false,
    };
    match fine {
        true => Ok(()),
        false => Err(ApiError::invalid(format!("unknown tmpfs option '{}'", escape(option)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tmpfs(destination: &str, options: &[&str]) -> Tmpfs {
        let options = options.iter().map(|s| (*s).to_owned()).collect();
        Tmpfs { destination: destination.into(), options }
    }

    #[test]
    fn memory_file_systems() {
        check_tmpfs(&[tmpfs("/tmp", &["size=64m", "mode=1777", "noexec", "uid=5"])]).unwrap();
        for (path, option) in [
            ("tmp", "ro"),
            ("/", "ro"),
            ("//", "ro"),
            ("/a/../b", "ro"),
            ("/t", "size=x"),
            ("/t", "mode=9"),
            ("/t", "context=x"),
            ("/t\0", "ro"),
        ] {
            check_tmpfs(&[tmpfs(path, &[option])]).unwrap_err();
        }
        check_tmpfs(&[tmpfs("/t", &[]), tmpfs("/t", &[])]).unwrap_err();
    }
}
