//! Paths in the container, and memory file systems.

use std::collections::BTreeSet;

use container_api::apiserver::CreateOptions;
use container_api::config::parse_size;
use container_api::escape::{escape, escape_bytes};
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
    let shown = || escape_bytes(&path[..path.len().min(200)]);
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

/// Refuses two mounts at one place, of whatever kinds, as which of them is seen would be left to
/// their order; and those in the kernel's own file systems.
pub fn check_places(asked: &CreateOptions) -> Result<()> {
    let mounts = asked.mounts.iter().map(|mount| mount.destination.as_bytes());
    let tmpfs = asked.tmpfs.iter().map(|tmpfs| tmpfs.destination.as_bytes());
    let mut places = BTreeSet::new();
    for place in mounts.chain(tmpfs).map(plain) {
        let shown = escape_bytes(&place);
        if matches!(place.split(|byte| *byte == b'/').nth(1), Some(b"proc" | b"sys")) {
            let message = format!("nothing can be mounted at {shown}: not in /proc and /sys");
            return Err(ApiError::invalid(message));
        }
        if !places.insert(place) {
            return Err(ApiError::invalid(format!("two mounts have the destination {shown}")));
        }
    }
    Ok(())
}

/// Checks `--tmpfs`.
pub fn check_tmpfs(mounts: &[Tmpfs]) -> Result<()> {
    for mount in mounts {
        check_path("tmpfs", mount.destination.as_bytes())?;
        if mount.destination.bytes().all(|b| b == b'/') {
            return Err(ApiError::invalid("a tmpfs can't be the container's root"));
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
    }

    #[test]
    fn two_mounts_at_one_place() {
        use container_api::mounts::{MountKind, MountOptions};
        let mount = |kind, destination: &str| MountOptions {
            kind,
            destination: destination.into(),
            ..MountOptions::default()
        };
        let asked = |mounts: &[MountOptions], memory: &[&str]| CreateOptions {
            mounts: mounts.to_vec(),
            tmpfs: memory.iter().map(|at| tmpfs(at, &[])).collect(),
            ..CreateOptions::default()
        };
        let (bind, volume) = (mount(MountKind::Bind, "/a"), mount(MountKind::Volume, "//a/./"));
        check_places(&asked(std::slice::from_ref(&bind), &["/a/b", "/b"])).unwrap();
        check_places(&asked(&[bind.clone(), volume.clone()], &[])).unwrap_err();
        check_places(&asked(&[bind], &["/a/"])).unwrap_err();
        check_places(&asked(&[volume], &["/a"])).unwrap_err();
        check_places(&asked(&[], &["/a", "/a//"])).unwrap_err();
        check_places(&asked(&[], &["/proc/x"])).unwrap_err();
        check_places(&asked(&[], &["/system", "/dev/shm"])).unwrap();
    }
}
