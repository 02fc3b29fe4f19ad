//! Capabilities as a bit mask: bit *n* is capability number *n* of
//! `linux/capability.h`.

/// Names by number, without the `CAP_` prefix.
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every capability that has a name.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// The 14 that Docker grants by default.
pub const DEFAULT: u64 = mask(&[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
]);

const _: () = assert!(DEFAULT.count_ones() == 14);

/// The bit of one capability, named as Docker takes it: `CAP_` optional, any
/// case; `ALL` gives every bit. `None` for an unknown name.
pub fn parse(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    if name == "ALL" {
        return Some(ALL);
    }
    NAMES.iter().position(|known| *known == name).map(|bit| 1 << bit)
}

const fn mask(names: &[&str]) -> u64 {
    let mut bits = 0;
    let mut i = 0;
    while i < names.len() {
        bits |= bit(names[i].as_bytes());
        i += 1;
    }
    bits
}

const fn bit(name: &[u8]) -> u64 {
    let mut number = 0;
    while number < NAMES.len() {
        if equal(NAMES[number].as_bytes(), name) {
            return 1 << number;
        }
        number += 1;
    }
    panic!("unknown capability")
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_dockers_mask() {
        // CapBnd of a process in an ordinary Docker container.
        assert_eq!(DEFAULT, 0x0000_0000_a804_25fb);
    }

    #[test]
    fn names_parse_in_any_spelling() {
        assert_eq!(parse("cap_sys_admin"), Some(1 << 21));
        assert_eq!(parse("CHECKPOINT_RESTORE"), Some(1 << 40));
        assert_eq!(parse("all"), Some(ALL));
        assert_eq!(parse("CAP_NOPE"), None);
    }
}
