//! What the tests of this crate need around a VM: binaries, a kernel, a tiny
//! guest.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use container_runtime_linux::hypervisor::{DISK_LEN, Jail};

/// An unprivileged uid and gid for jails made by root.
pub const JAIL_IDS: (u32, u32) = (64_321, 64_321);

/// The uncompressed kernel of the build tree's bundle, or of
/// `CONTAINER_TEST_KERNEL`, a bundle or a kernel.
pub fn kernel() -> PathBuf {
    let path = match std::env::var_os("CONTAINER_TEST_KERNEL") {
        Some(path) if Path::new(&path).is_dir() => Path::new(&path).join("vmlinux"),
        Some(path) => path.into(),
        None => workspace().join("target/share/container/kernel/vmlinux"),
    };
    assert!(path.is_file(), "no kernel at {path:?}: run `make` first");
    path
}

/// The bundle's modules whose names contain one of these words, in the order
/// in which they are inserted.
pub fn modules(words: &[&str]) -> Vec<PathBuf> {
    let directory = kernel().with_file_name("modules");
    let mut modules: Vec<PathBuf> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| words.iter().any(|word| path.to_string_lossy().contains(word)))
        .collect();
    modules.sort();
    modules
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The jailer of `make test`'s build; else it is built here.
pub fn jailer() -> PathBuf {
    if let Some(directory) = std::env::var_os("CONTAINER_TEST_BIN_DIR")
        && std::env::var_os("CONTAINER_TEST_JAILER").is_none()
    {
        return Path::new(&directory).join("container-jailer");
    }
    if let Some(path) = std::env::var_os("CONTAINER_TEST_JAILER") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("own path");
    let profile = exe.parent().and_then(Path::parent).expect("target/debug");
    let target = profile.parent().expect("target");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "container-jailer"])
        .arg("--target-dir")
        .arg(target)
        .status()
        .expect("cargo");
    assert!(built.success());
    target.join("debug/container-jailer")
}

/// A jail for the user that runs the test.
pub fn jail() -> Jail {
    Jail {
        jailer: jailer(),
        host_ids: nix::unistd::getuid().is_root().then_some(JAIL_IDS),
        allow_missing: Vec::new(),
    }
}

/// A sparse file of a disk's length.
pub fn disk(path: &Path, content: &[u8]) -> fs::File {
    let mut file = fs::File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(path)
        .expect("a disk");
    file.set_len(DISK_LEN).expect("its length");
    file.write_all(content).expect("its content");
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("its mode");
    file
}

/// Writes an initramfs of busybox, a script as `/init` and the modules that it
/// names.
pub fn initramfs(path: &Path, script: &str) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| fs::read(path).ok())
        .expect("busybox (package busybox-static)");
    let mut archive = Vec::new();
    entry(&mut archive, "dev", 0o040_755, (0, 0), b"");
    entry(&mut archive, "dev/console", 0o020_600, (5, 1), b"");
    entry(&mut archive, "bin", 0o040_755, (0, 0), b"");
    entry(&mut archive, "bin/busybox", 0o100_755, (0, 0), &busybox);
    entry(&mut archive, "modules", 0o040_755, (0, 0), b"");
    for module in modules(&[".ko"]) {
        let name = format!("modules/{}", module.file_name().expect("a name").to_string_lossy());
        if script.contains(&name) {
            entry(&mut archive, &name, 0o100_644, (0, 0), &fs::read(&module).expect("a module"));
        }
    }
    entry(&mut archive, "init", 0o100_755, (0, 0), script.as_bytes());
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), b"");
    fs::write(path, archive).expect("an initramfs");
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("its mode");
}

/// One entry of a `newc` archive.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let inode = archive.len() as u32 + 1;
    let fields = [
        inode,
        mode,
        0,
        0,
        1,
        0,
        content.len() as u32,
        0,
        0,
        device.0,
        device.1,
        name.len() as u32 + 1,
        0,
    ];
    archive.extend(b"070701");
    for field in fields {
        write!(archive, "{field:08x}").expect("memory");
    }
    archive.extend(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// Runs one test of this binary again as an unprivileged user, with all it
/// needs in a directory that this user can reach.
pub fn again_unprivileged(test: &str) {
    again_unprivileged_with(test, &[]);
}

/// [`again_unprivileged`] with more in the environment.
pub fn again_unprivileged_with(test: &str, environment: &[(&str, String)]) {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    let copy = |from: &Path, name: &str| {
        let to = dir.path().join(name);
        // By another process: a program can't start while any process has it
        // open for writing, and other tests fork meanwhile.
        let copied = Command::new("cp").arg("-r").arg(from).arg(&to).status();
        assert!(copied.expect("cp").success());
        to
    };
    let exe = copy(&std::env::current_exe().expect("own path"), "tests");
    let jailer = copy(&jailer(), "container-jailer");
    copy(&kernel().with_file_name("modules"), "modules");
    let kernel = copy(&kernel(), "vmlinux");
    let output = Command::new("setpriv")
        .args(["--reuid=12345", "--regid=12345", "--clear-groups"])
        .arg(exe)
        .args([OsStr::new("--exact"), OsStr::new(test)])
        .arg("--nocapture")
        .current_dir("/")
        .env("CONTAINER_TEST_JAILER", jailer)
        .env("CONTAINER_TEST_KERNEL", kernel)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .output()
        .expect("setpriv");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "as an unprivileged user: {text}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}
