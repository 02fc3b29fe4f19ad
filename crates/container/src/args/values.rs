//! Values with a form of their own: sizes, limits, tmpfs mounts, labels, platforms.

use std::collections::BTreeMap;

use container_api::config::parse_size;
use container_api::escape::escape;
use container_api::types::{Platform, Rlimit, Tmpfs};
use container_api::{ApiError, Result};

use super::later::not_supported;

/// Names that `--ulimit` takes (Docker's, which are the kernel's without `RLIMIT_`).
const RLIMITS: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// `--pids-limit`: a number of processes, or -1 (and Docker's 0) for none of its own.
pub fn pids(number: i64) -> Result<Option<u64>> {
    match number {
        -1 | 0 => Ok(None),
        number => match u64::try_from(number) {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(ApiError::invalid(format!("--pids-limit {number}: use -1 for none"))),
        },
    }
}

/// `--cpus`: a whole number of at least one.
pub fn cpus(text: &str) -> Result<u32> {
    let wrong = || ApiError::invalid(format!("'{}' is not a number of CPUs", escape(text)));
    match text.parse::<u32>() {
        Ok(0) => Err(wrong()),
        Ok(number) => Ok(number),
        Err(_) => match text.parse::<f64>() {
            Ok(part) if part.is_finite() && part > 0.0 && part.fract() != 0.0 => {
                Err(not_supported(format_args!("a part of a CPU (--cpus {})", escape(text))))
            }
            Ok(whole) if whole >= 1.0 && whole <= f64::from(u32::MAX) => Ok(whole as u32),
            _ => Err(wrong()),
        },
    }
}

/// `--memory`: bytes, in whole MiB (a part of one is rounded up).
pub fn memory(text: &str) -> Result<u64> {
    let bytes = parse_size(text).map_err(|e| e.context("--memory"))?;
    if bytes == 0 {
        return Err(ApiError::invalid("--memory must not be zero"));
    }
    let rounded = bytes.checked_next_multiple_of(1 << 20);
    rounded.ok_or_else(|| ApiError::invalid("--memory is too large"))
}

/// `--ulimit NAME=SOFT[:HARD]`; `-1` and `unlimited` lift a limit.
pub fn ulimit(text: &str) -> Result<Rlimit> {
    let wrong = |why: &str| {
        let shown = escape(text);
        ApiError::invalid(format!("--ulimit {shown}: {why} (such as nofile=1024:2048)"))
    };
    let (name, limits) = text.split_once('=').ok_or_else(|| wrong("no limit"))?;
    let name = name.to_ascii_lowercase();
    let name = name.strip_prefix("rlimit_").unwrap_or(&name);
    if !RLIMITS.contains(&name) {
        return Err(wrong("no such limit"));
    }
    let value = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        number => number.parse::<u64>().map_err(|_| wrong("not a number")),
    };
    let (soft, hard) = match limits.split_once(':') {
        Some((soft, hard)) => (value(soft)?, value(hard)?),
        None => (value(limits)?, value(limits)?),
    };
    if soft > hard {
        return Err(wrong("the soft limit is above the hard one"));
    }
    Ok(Rlimit { limit: format!("RLIMIT_{}", name.to_ascii_uppercase()), soft, hard })
}

/// `--tmpfs PATH[:OPTION,…]`.
pub fn tmpfs(text: &str) -> Result<Tmpfs> {
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    if !destination.starts_with('/') || destination == "/" {
        let message = format!("--tmpfs {}: not an absolute path below /", escape(text));
        return Err(ApiError::invalid(message));
    }
    let options = options.split(',').filter(|o| !o.is_empty()).map(String::from).collect();
    Ok(Tmpfs { destination: destination.into(), options })
}

/// `--label KEY[=VALUE]`; the last of a key wins.
pub fn labels(texts: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if key.is_empty() {
            return Err(ApiError::invalid(format!("--label {}: no key", escape(text))));
        }
        Ok((key.to_owned(), value.to_owned()))
    };
    texts.iter().map(pair).collect()
}

/// `--platform`, which wins over `--os` and `--arch`; `None` when none of them was given.
pub fn platform(
    platform: Option<&str>,
    os: Option<&str>,
    arch: Option<&str>,
) -> Result<Option<Platform>> {
    let wrong = |flag: &str, text: &str| {
        let message = format!("{flag} {}: not a platform (such as linux/amd64)", escape(text));
        ApiError::invalid(message)
    };
    if let Some(text) = platform {
        return Platform::parse(text).map(Some).ok_or_else(|| wrong("--platform", text));
    }
    if os.is_none() && arch.is_none() {
        return Ok(None);
    }
    let host = Platform::host();
    let os = os.unwrap_or(&host.os);
    let arch = match arch {
        // `--arch arm64/v8` names a variant too.
        Some(arch) if arch.is_empty() => return Err(wrong("--arch", arch)),
        Some(arch) => arch,
        None => &host.architecture,
    };
    let text = format!("{os}/{arch}");
    Platform::parse(&text).map(Some).ok_or_else(|| wrong("--os and --arch", &text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_of_cpus() {
        assert_eq!(cpus("4").unwrap(), 4);
        assert_eq!(cpus("4.0").unwrap(), 4);
        assert!(cpus("0.5").unwrap_err().message.contains("not supported yet"));
        for wrong in ["0", "-1", "", "many", "nan", "inf", "1e99"] {
            cpus(wrong).unwrap_err();
        }
    }

    #[test]
    fn memory_is_in_whole_mebibytes() {
        assert_eq!(memory("512m").unwrap(), 512 << 20);
        assert_eq!(memory("1").unwrap(), 1 << 20);
        memory("0").unwrap_err();
        memory("lots").unwrap_err();
    }

    #[test]
    fn limits() {
        let limit = ulimit("nofile=1024:2048").unwrap();
        assert_eq!((&*limit.limit, limit.soft, limit.hard), ("RLIMIT_NOFILE", 1024, 2048));
        assert_eq!(ulimit("core=0").unwrap().hard, 0);
        assert_eq!(ulimit("RLIMIT_STACK=unlimited").unwrap().soft, u64::MAX);
        for wrong in ["nofile", "nofile=", "nofile=2:1", "files=1", "nofile=x", "=1"] {
            ulimit(wrong).unwrap_err();
        }
    }

    #[test]
    fn tmpfs_mounts() {
        assert_eq!(
            tmpfs("/run:size=64m,noexec").unwrap(),
            Tmpfs { destination: "/run".into(), options: vec!["size=64m".into(), "noexec".into()] }
        );
        assert_eq!(tmpfs("/tmp").unwrap().options, Vec::<String>::new());
        tmpfs("tmp").unwrap_err();
        tmpfs("/").unwrap_err();
    }

    #[test]
    fn platforms() {
        let linux = |text| Platform::parse(text);
        assert_eq!(platform(None, None, None).unwrap(), None);
        assert_eq!(platform(None, None, Some("x86_64")).unwrap(), linux("linux/amd64"));
        assert_eq!(platform(Some("linux/arm64"), None, Some("amd64")).unwrap(), linux("arm64"));
        for wrong in ["linux/", "a/b/c/d", "", "linux/amd 64"] {
            platform(Some(wrong), None, None).unwrap_err();
        }
        platform(None, Some("a/b/c"), None).unwrap_err();
    }

    #[test]
    fn labels_are_pairs() {
        let given = ["a=b=c".to_owned(), "flag".to_owned()];
        let labels = labels(&given).unwrap();
        assert_eq!((&*labels["a"], &*labels["flag"]), ("b=c", ""));
        super::labels(&["=x".to_owned()]).unwrap_err();
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = (cpus(&text), memory(&text), ulimit(&text), tmpfs(&text));
            let _ = platform(Some(&text), None, None);
        }
    }
}
