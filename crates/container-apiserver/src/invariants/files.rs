//! Nothing is half-made or left behind: what is being made has a name that says so, and somebody
//! who makes it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use container_api::Result;
use container_api::escape::escape;
use container_api::invariants::Findings;
use container_api::paths::container_files as names;

use crate::directory::{GONE, NEW};
use crate::engine::Engine;

/// See the module.
pub fn finished(engine: &Engine) -> Result<Findings> {
    let mut findings = Findings::default();
    let root = &engine.root;
    let making: BTreeSet<String> = engine.reserved().into_iter().collect();
    for name in list(&root.containers())? {
        let made_for = name.strip_prefix(NEW).map(of_whom);
        let is_leftover = match made_for {
            Some(id) => !making.contains(id),
            None => name.starts_with(GONE),
        };
        findings.look(is_leftover.then(|| left("containers", &name)));
    }
    // Their own makers remove them when they fail: whoever looks again finds them gone.
    for (place, folder, made) in [
        ("volumes", root.volumes(), false),
        ("templates", root.templates(), engine.templates.making().is_some()),
    ] {
        for name in list(&folder)? {
            let is_leftover = name.starts_with(GONE) || name.starts_with(NEW) && !made;
            findings.look(is_leftover.then(|| left(place, &name)));
        }
    }
    for container in engine.containers() {
        let (id, path) = (container.id(), engine.directory(&container));
        let has_vm = container.live().machine.is_some();
        for name in list(&path)? {
            let what = format!("containers/{id}");
            findings.look(match name.as_str() {
                hidden if hidden.starts_with('.') => Some(left(&what, hidden)),
                names::SOCKET if !has_vm => Some(format!("socket {what}/{name} has no owner")),
                _ => None,
            });
        }
    }
    Ok(findings)
}

/// The container of `<id>-<process>-<number>`.
fn of_whom(rest: &str) -> &str {
    rest.rsplitn(3, '-').nth(2).unwrap_or(rest)
}

fn left(place: &str, name: &str) -> String {
    format!("{place}/{} was left by an operation that is over", escape(name))
}

/// Names in a directory; none in one that is gone by now.
fn list(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let name = |entry: io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect()
}
