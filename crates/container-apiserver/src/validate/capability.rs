//! Capabilities: names, the default set, and what `--cap-add` and `--cap-drop` make of it.

use container_api::escape::escape;
use container_api::{ApiError, Result};

/// All capabilities of Linux, in the order of their numbers (`capabilities(7)`).
pub const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container has without being asked (Docker's and podman's set).
pub const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
];

enum Named {
    Everything,
    One(&'static str),
}

fn parse(name: &str) -> Result<Named> {
    let upper = name.to_ascii_uppercase();
    if upper == "ALL" {
        return Ok(Named::Everything);
    }
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let found = ALL.iter().find(|known| known.strip_prefix("CAP_") == Some(bare));
    found
        .map(|one| Named::One(one))
        .ok_or_else(|| ApiError::invalid(format!("unknown capability '{}'", escape(name))))
}

fn parse_all(names: &[String]) -> Result<(bool, Vec<&'static str>)> {
    let (mut everything, mut list) = (false, Vec::new());
    for name in names {
        match parse(name)? {
            Named::Everything => everything = true,
            Named::One(one) => list.push(one),
        }
    }
    Ok((everything, list))
}

/// The set that remains, as Docker works it out: `ALL` added means all but those dropped, `ALL`
/// dropped means only those added, and else added ones win over dropped ones.
pub fn resolve(add: &[String], drop: &[String]) -> Result<Vec<String>> {
    let (add_all, add) = parse_all(add)?;
    let (drop_all, drop) = parse_all(drop)?;
    let keep = |name: &&str| match (add_all, drop_all) {
        (true, _) => !drop.contains(name),
        (false, true) => add.contains(name),
        (false, false) => add.contains(name) || DEFAULT.contains(name) && !drop.contains(name),
    };
    Ok(ALL.iter().filter(|name| keep(name)).map(|name| (*name).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Vec<String> {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        resolve(&own(add), &own(drop)).unwrap()
    }

    #[test]
    fn as_docker_does() {
        assert_eq!(set(&[], &[]), DEFAULT);
        assert_eq!(set(&["all"], &[]).len(), 41);
        assert_eq!(set(&["ALL"], &["NET_RAW"]).len(), 40);
        assert!(set(&[], &["ALL"]).is_empty());
        assert_eq!(set(&["chown"], &["ALL"]), ["CAP_CHOWN"]);
        assert_eq!(set(&["CAP_NET_ADMIN"], &["cap_mknod"]).len(), 14);
        assert!(set(&["MKNOD"], &["MKNOD"]).contains(&"CAP_MKNOD".to_owned()));
        let error = resolve(&["CAP_\u{1b}".into()], &[]).unwrap_err();
        assert_eq!(error.message, "unknown capability 'CAP_\\u{1b}'");
    }
}
