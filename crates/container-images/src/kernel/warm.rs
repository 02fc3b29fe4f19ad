//! The image of the throwaway container that makes a VM warm: the guest's init under the name
//! `/warm-up`, and what that reads, changes and removes.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use container_api::paths::DISK_LEN;
use container_rootfs::{ImageBuilder, Limits};

use super::error::{KernelError, Result, io_error};

/// Directories of a container's root.
const DIRECTORIES: [&str; 14] = [
    "bin",
    "dev",
    "etc",
    "etc/directory",
    "lib",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "usr/lib",
    "var",
];

/// Files with their content.
const FILES: [(&str, &str); 8] = [
    ("etc/changed", "a line\n"),
    ("etc/directory/file", "a line\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/removed", "a line\n"),
    ("etc/renamed", "a line\n"),
    ("etc/replaced", "a line\n"),
];

/// Writes the image to `path`, a new file that everybody may read.
pub(super) fn write(path: &Path, init: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |e| io_error("writing", path)(e);
    let malformed = |e: &dyn std::error::Error| {
        let source = e.source().map(|s| format!(": {s}")).unwrap_or_default();
        KernelError::malformed(path.to_string_lossy(), format!("{e}{source}"))
    };
    let layer = layer(init).map_err(failed)?;
    let file = File::options().read(true).write(true).create_new(true).open(path);
    let file = file.map_err(failed)?;
    file.set_permissions(PermissionsExt::from_mode(0o644)).map_err(failed)?;
    let mut builder = ImageBuilder::new(file, Limits::default()).map_err(failed)?;
    builder.apply_layer(&layer[..], |_| ControlFlow::Continue(())).map_err(|e| malformed(&e))?;
    let summary = builder.finish(DISK_LEN).map_err(|e| malformed(&e))?;
    summary.file.sync_all().map_err(failed)
}

fn layer(init: &[u8]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut entry = |name: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content)
    };
    for name in DIRECTORIES {
        let mode = if name == "tmp" { 0o1777 } else { 0o755 };
        entry(name, tar::EntryType::Directory, mode, &[])?;
    }
    for (name, content) in FILES {
        entry(name, tar::EntryType::Regular, 0o644, content.as_bytes())?;
    }
    entry("warm-up", tar::EntryType::Regular, 0o755, init)?;
    tar.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    #[test]
    fn it_is_sound_sparse_and_has_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("warm.erofs");
        let program = vec![0x5a; 300_000];
        write(&path, &program).unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.len(), DISK_LEN);
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        assert_eq!(metadata.mode() & 0o777, 0o644);
        let tool = |name: &str, arguments: &[&str]| {
            let output = Command::new(name).args(arguments).arg(&path).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
            text
        };
        tool("fsck.erofs", &[]);
        let listed = tool("dump.erofs", &["--path=/warm-up"]);
        assert!(listed.contains("300000"), "{listed}");
    }
}
