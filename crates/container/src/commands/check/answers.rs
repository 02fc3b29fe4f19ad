//! The probe's lines, and the rows that they become. A line is what a guest says: what is not said
//! has not held.

use std::collections::BTreeMap;

use super::{Row, Verdict};

/// One attempt of the probe's.
pub struct Attempt {
    /// As the probe names it.
    pub key: &'static str,
    area: &'static str,
    check: &'static str,
    /// Layers of `[security] allow_missing` without which it succeeds.
    layers: &'static [&'static str],
}

const fn attempt(key: &'static str, area: &'static str, check: &'static str) -> Attempt {
    Attempt { key, area, check, layers: &[] }
}

const fn of_layers(
    key: &'static str,
    check: &'static str,
    layers: &'static [&'static str],
) -> Attempt {
    Attempt { key, area: "jail", check, layers }
}

/// As root with all capabilities and no filter, in a container.
pub const GUEST: &[Attempt] = &[
    attempt("read-only-mount", "mounts", "a read-only mount can't be changed"),
    attempt("kvm", "guest", "a container can't run virtual machines"),
    attempt("modules", "guest", "the guest's kernel takes no module"),
    attempt("devices", "guest", "memory and disks of the machine don't open"),
    attempt("agent-ports", "guest", "the agent's ports don't open"),
    attempt("vsock", "guest", "no vsock leads to the host"),
    attempt("other-processes", "guest", "no process outside of the container is seen"),
];

/// The same, over its network.
pub const NETWORK: &[Attempt] = &[
    attempt("host-addresses", "network", "the host's addresses can't be reached"),
    attempt("metadata", "network", "metadata addresses can't be reached"),
    attempt("other-network", "network", "another network can't be reached"),
];

/// As a container that asks for nothing.
pub const DEFAULTS: &[Attempt] = &[
    attempt("default-privileges", "container", "capabilities and filter are the defaults"),
    attempt("default-calls", "container", "system calls are refused"),
    attempt("masked-paths", "container", "paths are hidden and read-only"),
];

/// In a hypervisor's place.
pub const JAIL: &[Attempt] = &[
    of_layers("jail-privileges", "no privilege is held or gained", &[]),
    of_layers("jail-files", "the host's files are not there", &[]),
    of_layers("jail-writing", "nothing can be written", &[]),
    of_layers("jail-descriptors", "no descriptor but its own is open", &[]),
    of_layers("jail-landlock", "a descriptor can't be opened again", &["landlock"]),
    of_layers("jail-shared", "what VMs share can't be changed", &[]),
    of_layers("jail-processes", "other processes can't be seen or touched", &["pid"]),
    of_layers("jail-network", "no socket leads out", &["net", "seccomp", "landlock"]),
    of_layers("jail-namespaces", "no namespace can be made", &["seccomp"]),
    of_layers("jail-calls", "system calls are refused", &["seccomp"]),
    of_layers("jail-tap", "a tap can't be changed", &["seccomp"]),
];

/// As another user of the host.
pub const USER: &[Attempt] =
    &[attempt("other-user", "host", "another user can't reach services and files")];

/// In a container with limits.
pub const PROCESSES: &[Attempt] = &[attempt("process-limit", "limits", "processes are limited")];
/// The same, of memory.
pub const MEMORY: &[Attempt] = &[attempt("memory-limit", "limits", "memory is limited")];

/// The rows of attempts: from what the probe said, or from why it could not be asked.
pub fn rows(
    attempts: &'static [Attempt],
    said: &Result<String, String>,
    allowed_missing: &[String],
) -> Vec<Row> {
    let lines = said.as_deref().map(lines).unwrap_or_default();
    let row = |attempt: &Attempt| {
        let Attempt { area, check, layers, .. } = *attempt;
        let (result, evidence) = match (said, lines.get(attempt.key)) {
            (Err(why), _) => (Verdict::NotRun, why.clone()),
            // The first word on it counts: a later one may be another's.
            (_, Some(("held", text))) => (Verdict::Pass, (*text).to_owned()),
            (_, Some(("skipped", text))) => (Verdict::NotRun, (*text).to_owned()),
            (_, Some(("open", text))) => {
                let allowed = layers.iter().find(|l| allowed_missing.iter().any(|a| a == *l));
                match allowed {
                    Some(layer) => {
                        let evidence = format!("{text} ([security] allow_missing has {layer})");
                        (Verdict::AllowedMissing, evidence)
                    }
                    None => (Verdict::Fail, (*text).to_owned()),
                }
            }
            (_, Some((word, _))) => (Verdict::Fail, format!("the probe said {word:?}")),
            (Ok(_), None) => (Verdict::Fail, "the probe did not say how this ended".into()),
        };
        Row { area, check, result, evidence }
    };
    attempts.iter().map(row).collect()
}

fn lines(text: &str) -> BTreeMap<&str, (&str, &str)> {
    let mut lines = BTreeMap::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, '\t');
        if let (Some(key), Some(word), Some(text)) = (parts.next(), parts.next(), parts.next()) {
            lines.entry(key).or_insert((word, text));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(attempts: &'static [Attempt], text: &str, allowed: &[&str]) -> Vec<Verdict> {
        let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
        rows(attempts, &Ok(text.into()), &allowed).into_iter().map(|row| row.result).collect()
    }

    /// Each layer in turn gives way.
    #[test]
    fn every_attempt_that_gets_through_is_red() {
        for attempts in [GUEST, NETWORK, DEFAULTS, JAIL, USER, PROCESSES, MEMORY] {
            let all: String = attempts.iter().map(|a| format!("{}\theld\tx\n", a.key)).collect();
            assert!(results(attempts, &all, &[]).iter().all(|r| *r == Verdict::Pass));
            for (n, attempt) in attempts.iter().enumerate() {
                let open = all
                    .replace(&format!("{}\theld", attempt.key), &format!("{}\topen", attempt.key));
                assert_eq!(results(attempts, &open, &[])[n], Verdict::Fail, "{}", attempt.key);
                for layer in attempt.layers {
                    let allowed = results(attempts, &open, &[layer]);
                    assert_eq!(allowed[n], Verdict::AllowedMissing, "{}", attempt.key);
                }
                let silent = all.replace(attempt.key, "nothing");
                assert_eq!(results(attempts, &silent, &[])[n], Verdict::Fail, "{}", attempt.key);
            }
        }
    }

    #[test]
    fn what_was_not_tried_is_never_green() {
        let not = rows(USER, &Err("no root".into()), &[]);
        assert_eq!((not[0].result, not[0].evidence.as_str()), (Verdict::NotRun, "no root"));
        assert_eq!(results(USER, "other-user\tskipped\tx", &[]), [Verdict::NotRun]);
        assert_eq!(results(USER, "other-user\tmaybe\tx", &[]), [Verdict::Fail]);
        assert_eq!(results(USER, "other-user\topen\tx\nother-user\theld\tx", &[]), [Verdict::Fail]);
        assert_eq!(results(USER, "other-user held", &[]), [Verdict::Fail]);
    }
}
