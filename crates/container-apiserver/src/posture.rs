//! What keeps a container in, read from the kernel where the kernel tells it.

use std::fs;
use std::path::Path;

use container_api::paths::container_files as names;
use container_api::posture::{Exposed, Layer, LayerState, Posture, Reach};
use container_api::runtime::VmSpec;
use container_api::types::ContainerSnapshot;

use crate::directory::read_json;
use crate::process::Handle;

/// Namespaces of a hypervisor: the kernel's name of each (`/proc/PID/ns`), and ours.
const NAMESPACES: [(&str, &str); 7] = [
    ("user", "user"),
    ("mnt", "mount"),
    ("pid", "pid"),
    ("net", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
];

/// Sets of capabilities in `/proc/PID/status`.
const CAPABILITIES: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// The posture of a container whose files are in `directory`.
pub fn of(snapshot: &ContainerSnapshot, hypervisor: Option<&Handle>, directory: &Path) -> Posture {
    let config = &snapshot.configuration;
    let mut posture = Posture {
        accelerator: snapshot.accelerator,
        virtualization: config.virtualization,
        mounts: config
            .mounts
            .iter()
            .map(|mount| Exposed {
                source: mount.source.clone(),
                destination: mount.destination.clone(),
                read_only: mount.read_only,
            })
            .collect(),
        network: Reach {
            networks: config.network.networks.iter().map(|choice| choice.network.clone()).collect(),
            egress: config.network.egress.clone(),
            host_access: config.network.host_access.clone(),
            published_ports: snapshot.ports.clone(),
            published_sockets: config.published_sockets.clone(),
            ssh: config.ssh,
        },
        ..Posture::default()
    };
    let Some(hypervisor) = hypervisor.filter(|_| snapshot.hypervisor_pid.is_some()) else {
        return posture;
    };
    // The configuration may be another by now than it was at the start.
    let spec: Option<VmSpec> = read_json(&directory.join(names::VM_SPEC)).ok();
    posture.allowed_missing = spec.map(|spec| spec.allow_missing).unwrap_or_default();
    let process = format!("/proc/{}", hypervisor.identity().pid);
    let process = Path::new(&process);
    posture.jail = layers(process, Path::new("/proc/self"), &posture.allowed_missing);
    let cgroups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
    posture.cgroups = cgroups.lines().map(String::from).collect();
    // Another process may have the number by now.
    if hypervisor.has_ended() {
        posture.jail.clear();
        posture.cgroups.clear();
    }
    posture
}

/// The layers around the process with the folder `process` in `/proc`; `own` is this one's.
fn layers(process: &Path, own: &Path, allowed: &[String]) -> Vec<Layer> {
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    };
    let layer = |name: &str, held: Option<bool>, evidence: String| {
        let state = match held {
            Some(true) => LayerState::Held,
            _ if allowed.iter().any(|layer| layer == name) => LayerState::AllowedMissing,
            Some(false) => LayerState::Missing,
            None => LayerState::Unread,
        };
        Layer { name: name.to_owned(), state, evidence }
    };
    let mut layers: Vec<Layer> = NAMESPACES
        .iter()
        .map(|(kernels, name)| {
            let of = |process: &Path| fs::read_link(process.join("ns").join(kernels)).ok();
            match (of(process), of(own)) {
                (Some(its), Some(ours)) => {
                    let held = its != ours;
                    let whose = if held { "its own" } else { "shared with the service" };
                    layer(name, Some(held), format!("{}, {whose}", its.display()))
                }
                _ => layer(name, None, "its namespace can't be read".into()),
            }
        })
        .collect();
    let missing = |name: &str| format!("the kernel tells no {name}");
    layers.push(match field("Uid").map(|uids| uids.split_whitespace().collect::<Vec<_>>()) {
        Some(uids) => {
            layer("uid", Some(!uids.contains(&"0")), format!("on the host {}", uids.join(" ")))
        }
        None => layer("uid", None, missing("uid")),
    });
    let sets: Vec<_> = CAPABILITIES.iter().map(|set| (set, field(set))).collect();
    let some = sets
        .iter()
        .filter(|(_, bits)| bits.is_some_and(|bits| bits.bytes().any(|digit| digit != b'0')));
    let some: Vec<_> =
        some.map(|(set, bits)| format!("{set} {}", bits.unwrap_or_default())).collect();
    layers.push(match (sets.iter().all(|(_, bits)| bits.is_some()), some.is_empty()) {
        (false, _) => layer("capabilities", None, missing("capabilities")),
        (true, true) => layer("capabilities", Some(true), "none in any set".into()),
        (true, false) => layer("capabilities", Some(false), some.join(", ")),
    });
    layers.push(match field("NoNewPrivs") {
        Some(value) => {
            layer("no-new-privileges", Some(value == "1"), format!("NoNewPrivs {value}"))
        }
        None => layer("no-new-privileges", None, missing("NoNewPrivs")),
    });
    layers.push(seccomp(field("Seccomp"), field("Seccomp_filters"), &layer));
    let reason = "can't be read from outside; the jailer ends where it can't set it up";
    layers.push(layer("landlock", None, reason.into()));
    layers
}

/// The jail's filter and the hypervisor's own.
fn seccomp(
    mode: Option<&str>,
    filters: Option<&str>,
    layer: &impl Fn(&str, Option<bool>, String) -> Layer,
) -> Layer {
    let Some(mode) = mode else {
        return layer("seccomp", None, "the kernel tells no Seccomp".into());
    };
    let count: Option<u32> = filters.and_then(|count| count.parse().ok());
    // The hypervisor's own is one of them.
    let held = mode == "2" && count.is_none_or(|count| count >= 2);
    let count = count.map_or("an unknown number of".into(), |count| count.to_string());
    layer("seccomp", Some(held), format!("mode {mode}, {count} filters"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const GOOD: &str = "Name:\tqemu\nUid:\t1000 1000 1000 1000\nCapInh:\t0000000000000000\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
        CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n";

    /// A process as `/proc` shows it, whose namespaces are `number` but those in `shared`.
    fn process(number: u32, shared: &[&str], status: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("ns")).unwrap();
        for (name, _) in NAMESPACES {
            let number = if shared.contains(&name) { 1 } else { number };
            symlink(format!("{name}:[{number}]"), folder.path().join("ns").join(name)).unwrap();
        }
        fs::write(folder.path().join("status"), status).unwrap();
        folder
    }

    fn state(layers: &[Layer], name: &str) -> LayerState {
        layers.iter().find(|layer| layer.name == name).unwrap().state
    }

    #[test]
    fn a_whole_jail() {
        let (own, its) = (process(1, &[], ""), process(2, &[], GOOD));
        let layers = layers(its.path(), own.path(), &[]);
        assert_eq!(layers.len(), 12);
        for layer in &layers {
            let expected = match layer.name.as_str() {
                "landlock" => LayerState::Unread,
                _ => LayerState::Held,
            };
            assert_eq!(layer.state, expected, "{layer:?}");
        }
    }

    #[test]
    fn each_layer_that_is_missing_shows() {
        let own = process(1, &[], "");
        for (kernels, name) in NAMESPACES {
            let its = process(2, &[kernels], GOOD);
            let found = layers(its.path(), own.path(), &[]);
            assert_eq!(state(&found, name), LayerState::Missing);
            let found = layers(its.path(), own.path(), &[name.to_owned()]);
            assert_eq!(state(&found, name), LayerState::AllowedMissing);
        }
        for (name, was, is) in [
            ("uid", "1000 1000 1000 1000", "1000 0 1000 1000"),
            ("capabilities", "CapBnd:\t0", "CapBnd:\t8"),
            ("no-new-privileges", "NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("seccomp", "Seccomp:\t2", "Seccomp:\t0"),
            // QEMU's own alone.
            ("seccomp", "filters:\t3", "filters:\t1"),
        ] {
            let its = process(2, &[], &GOOD.replace(was, is));
            let found = layers(its.path(), own.path(), &["net".to_owned()]);
            assert_eq!(state(&found, name), LayerState::Missing, "{name}");
        }
    }

    #[test]
    fn what_can_not_be_read_is_not_held() {
        let own = process(1, &[], "");
        let nothing = tempfile::tempdir().unwrap();
        for layer in layers(nothing.path(), own.path(), &[]) {
            assert_eq!(layer.state, LayerState::Unread, "{layer:?}");
        }
        let found = layers(own.path(), own.path(), &["landlock".to_owned()]);
        assert_eq!(state(&found, "landlock"), LayerState::AllowedMissing);
    }
}
