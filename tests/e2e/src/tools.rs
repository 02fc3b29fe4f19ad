//! An image with network tools of this machine: busybox, socat, tcpdump, OpenSSH's, and what they
//! load.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::busybox;
use crate::layer::Layer;
use crate::layout::Image;

/// The name that [`image`] loads under.
pub const NAME: &str = "tools";

/// Programs beside busybox's.
const PROGRAMS: &[&str] =
    &["/usr/bin/socat", "/usr/bin/ssh-add", "/usr/bin/ssh-keygen", "/usr/bin/tcpdump"];

/// The image.
pub fn image() -> Result<Image> {
    let mut files = BTreeSet::new();
    for program in PROGRAMS {
        files.insert(PathBuf::from(program));
        files.extend(libraries(program)?);
    }
    let contents: Vec<(String, Vec<u8>)> = files
        .iter()
        .map(|path| {
            let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            Ok((path.to_string_lossy().trim_start_matches('/').to_owned(), bytes))
        })
        .collect::<Result<_>>()?;
    let layer = Layer::build(|entries| {
        let folders: BTreeSet<&Path> =
            contents.iter().flat_map(|(path, _)| Path::new(path).ancestors().skip(1)).collect();
        for folder in folders.iter().filter(|folder| !folder.as_os_str().is_empty()) {
            entries.dir(&folder.to_string_lossy());
        }
        for (path, bytes) in &contents {
            entries.file(path, 0o755, bytes);
        }
    });
    Ok(Image::new(
        "docker.io/library/tools:latest",
        vec![busybox::layer()?, layer],
        json!({ "Env": ["PATH=/usr/bin:/bin"], "Cmd": ["sh"] }),
    ))
}

/// What a program loads, the loader included, by the paths under which it looks.
fn libraries(program: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    ensure!(output.status.success(), "ldd {program}: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}
