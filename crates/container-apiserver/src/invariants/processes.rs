//! Every process that belongs to this installation is known: found through `/proc`, so that one
//! which was forgotten is seen too.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use container_api::invariants::Findings;
use container_api::{ApiError, Result};

use crate::directory::NEW;
use crate::engine::Engine;
use crate::helper::Helper;
use crate::process::Stat;

/// How the names of our programs and of hypervisors begin.
const PROGRAMS: [&str; 2] = ["container-", "qemu-system-"];

/// A process, as `/proc` shows it.
#[derive(Clone, Debug)]
struct Process {
    pid: i32,
    parent: i32,
    uid: u32,
    name: String,
    words: Vec<u8>,
}

/// See the module.
pub async fn known(engine: &Arc<Engine>) -> Result<Findings> {
    // Whom their sockets lead to is known from here on.
    engine.images.look();
    engine.networks.look();
    let (root, uids) = (engine.root.path().to_owned(), engine.jail_uids.range());
    let scan = move || ours(&root, uids);
    let ours = tokio::task::spawn_blocking(scan);
    let ours = ours.await.map_err(|e| ApiError::internal(e.to_string()))??;
    // After the scan: what was started meanwhile is not in it, and what it holds was started before.
    let mut known = roots(engine);
    loop {
        let children =
            ours.values().filter(|p| known.contains(&p.parent) && !known.contains(&p.pid));
        let children: Vec<i32> = children.map(|process| process.pid).collect();
        if children.is_empty() {
            break;
        }
        known.extend(children);
    }
    // Not before: a child of this service is not known for that.
    known.insert(std::process::id() as i32);
    let mut findings = Findings::default();
    for process in ours.values() {
        let (name, pid) = (container_api::escape::escape(&process.name), process.pid);
        let wrong = || format!("process {pid} ({name}) belongs to nothing that is known");
        findings.look((!known.contains(&pid) && !is_carrier(engine, process)).then(wrong));
    }
    Ok(findings)
}

/// What carries traffic outlives the network service, which checks it by itself.
fn is_carrier(engine: &Engine, process: &Process) -> bool {
    let command = process.words.split(|b| *b == 0).nth(1);
    let carries = matches!(command, Some(b"resolver" | b"forward"));
    carries && process.name.starts_with("container-netwo") && engine.networks.has_traces()
}

/// Processes whose descendants are known with them.
fn roots(engine: &Engine) -> BTreeSet<i32> {
    let machines = engine.containers().into_iter().filter_map(|container| container.live().machine);
    let mut known: BTreeSet<i32> =
        machines.map(|machine| machine.helper.handle.identity().pid).collect();
    known.extend(engine.spares.processes());
    let companions = [engine.images.process(), engine.networks.process()];
    known.extend(companions.into_iter().flatten().map(|identity| identity.pid));
    if engine.templates.making().is_some() {
        known.extend(makers(engine.templates.root()));
    }
    known
}

fn makers(templates: &Path) -> Vec<i32> {
    let entries = std::fs::read_dir(templates).into_iter().flatten().flatten();
    let unfinished = entries.filter(|e| e.file_name().to_string_lossy().starts_with(NEW));
    let maker = |path: PathBuf| Helper::find_in(&path).ok().flatten();
    unfinished.filter_map(|e| Some(maker(e.path())?.handle.identity().pid)).collect()
}

/// The processes of the installation in `root`, whose jails as root have the user ids `uids`.
fn ours(root: &Path, uids: std::ops::Range<u32>) -> std::io::Result<BTreeMap<i32, Process>> {
    let mut ours = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile is none of anybody's.
        let Some(process) = read(pid) else { continue };
        if is_of(&process, root, &uids) {
            ours.insert(pid, process);
        }
    }
    Ok(ours)
}

fn is_of(process: &Process, root: &Path, uids: &std::ops::Range<u32>) -> bool {
    if !PROGRAMS.iter().any(|program| process.name.starts_with(program)) {
        return false;
    }
    uids.contains(&process.uid) || names(&process.words, root) || has_open(process.pid, root)
}

/// Whether a command line names `root` or what is in it.
fn names(words: &[u8], root: &Path) -> bool {
    let root = root.as_os_str().as_encoded_bytes();
    let mut places = words.windows(root.len()).enumerate();
    places.any(|(at, window)| {
        window == root && matches!(words.get(at + root.len()), None | Some(0 | b'/'))
    })
}

fn has_open(pid: i32, root: &Path) -> bool {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
    targets.any(|target| target.starts_with(root))
}

fn read(pid: i32) -> Option<Process> {
    let Stat { name, parent, .. } = Stat::of(pid).ok()?;
    let uid = std::fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    Some(Process { pid, parent, uid, name, words })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_names_a_root_as_a_whole() {
        let root = Path::new("/a/root");
        for of in ["x\0/a/root\0", "x\0/a/root", "x\0/a/root/containers/y\0", "x --in=/a/root\0"] {
            assert!(names(of.as_bytes(), root), "{of:?}");
        }
        for other in ["", "x\0/a/root2\0", "x\0/a/roo", "x\0/a/root-b/c\0"] {
            assert!(!names(other.as_bytes(), root), "{other:?}");
        }
    }

    #[test]
    fn processes_are_read_as_they_are() {
        let own = read(std::process::id() as i32).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id() as i32);
        assert_eq!(own.uid, nix::unistd::geteuid().as_raw());
        assert!(!own.words.is_empty());
        assert!(read(-1).is_none());
    }
}
