//! A small image around the distribution's static busybox.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::layer::Layer;
use crate::layout::Image;

/// The name that [`image`] loads under.
pub const NAME: &str = "busybox";

/// The programs of busybox that the tests run.
const APPLETS: &[&str] = &[
    "sh",
    "ash",
    "cat",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "free",
    "grep",
    "head",
    "hostname",
    "id",
    "kill",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mknod",
    "mkfifo",
    "more",
    "mount",
    "mv",
    "nc",
    "nproc",
    "od",
    "ping",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "setsid",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "tail",
    "tar",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "tty",
    "umount",
    "uname",
    "uniq",
    "vi",
    "wc",
    "which",
    "whoami",
    "xargs",
    "yes",
    "chmod",
    "chown",
    "ip",
    "unshare",
    "su",
    "reboot",
    "poweroff",
    "top",
    "awk",
    "basename",
    "dirname",
    "diff",
    "cmp",
];

/// Where Debian and Ubuntu put the static busybox.
pub const PROGRAM: &str = "/bin/busybox";

/// The root file system of the image.
pub fn layer() -> Result<Layer> {
    let busybox = std::fs::read(PROGRAM)
        .with_context(|| format!("read {PROGRAM} (package busybox-static)"))?;
    Ok(Layer::build(|entries| {
        for folder in ["bin", "dev", "etc", "home", "home/app", "proc", "root", "sys", "usr"] {
            entries.dir(folder);
        }
        entries.special("tmp", tar::EntryType::Directory, 0o1777, "");
        entries.dir("var").dir("var/log");
        entries.file("bin/busybox", 0o755, &busybox);
        for applet in APPLETS {
            entries.symlink(&format!("bin/{applet}"), "busybox");
        }
        entries.file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\n\
              daemon:x:1:1:daemon:/:/bin/false\n\
              app:x:1000:1001:An app:/home/app:/bin/sh\n",
        );
        entries.file("etc/group", 0o644, b"root:x:0:\ndaemon:x:1:\nwheel:x:10:app\napp:x:1001:\n");
        // Not a program, and one that says it is.
        entries.file("etc/not-executable", 0o644, b"data\n");
        entries.file("etc/broken", 0o755, b"\x7fELF is not enough\n");
    }))
}

/// The image, with a shell as its command.
pub fn image() -> Result<Image> {
    Ok(Image::new(
        "docker.io/library/busybox:latest",
        vec![layer()?],
        json!({
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["sh"],
        }),
    ))
}

/// Writes the image's OCI archive.
pub fn write_archive(archive: &Path) -> Result<()> {
    image()?.write_archive(archive)
}
