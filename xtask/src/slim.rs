//! `make kernel`: a guest kernel with only what guests need, from the distribution's kernel
//! source package and the configuration in `kernel/`. Nothing is installed.
//!
//! ```text
//! linux-source ──► tree ──┐
//! kernel/*.config ────────┴─► allnoconfig ──► every line held? ──► vmlinux ──► bundle
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{self, Apt};
use crate::stamp::Stamp;
use crate::workspace::{ARCH, Workspace, make_dir, remove_dir, run, step};
use crate::{build, kernel};

/// The package that depends on the newest source package.
const PACKAGE: &str = "linux-source";
/// Unresolved options that one message names.
const NAMED: usize = 20;

/// A kernel that was built.
pub struct Slim {
    /// The bundle, as `kernel.path` and `make test KERNEL=` take it.
    pub bundle: PathBuf,
    /// Addresses and names of its symbols.
    pub symbols: PathBuf,
}

/// Builds the kernel and says what to do with it; with `kvm` the variant with KVM.
pub fn make(workspace: &Workspace, kvm: bool) -> Result<()> {
    let made = build(workspace, kvm)?;
    let folder = made.bundle.parent().unwrap_or(&made.bundle);
    println!("container system kernel set --binary {}/vmlinux", folder.display());
    println!("make test KERNEL={}", made.bundle.display());
    Ok(())
}

/// Builds the kernel, unless nothing has changed since.
pub fn build(workspace: &Workspace, kvm: bool) -> Result<Slim> {
    let folder = workspace.target.join("slim-kernel");
    let name = if kvm { "slim-kvm" } else { "slim" };
    let output = folder.join(name);
    make_dir(&output)?;
    let tree = source(&folder)?;
    let wanted = configuration(&workspace.root.join("kernel"), kvm)?;
    let image = output.join("vmlinux");
    let stamp = Stamp::new(output.join("stamp"))
        .word("source", &tree.to_string_lossy())
        .word("configuration", &wanted);
    if !stamp.is_current() || !image.exists() {
        compile(&tree, &wanted, &output, name)?;
        stamp.write()?;
    }
    let init = build::guest(workspace, ())?;
    build::host(workspace)?;
    let bundle = output.join("bundle");
    let images = workspace.release().join("container-images");
    kernel::bundle_of_binary(&images, &image, &init, &bundle)?;
    Ok(Slim { bundle, symbols: output.join("System.map") })
}

/// The source tree, downloaded and unpacked once.
fn source(folder: &Path) -> Result<PathBuf> {
    let link = folder.join("source");
    if let Ok(tree) = std::fs::read_link(&link)
        && tree.join("Kconfig").exists()
    {
        return Ok(tree);
    }
    let apt = Apt::of_the_machine();
    apt.candidate(PACKAGE).context("run apt-get update")?;
    let names = apt.closure(PACKAGE, |name| name.starts_with("linux-source-"))?;
    let name = names.get(1).with_context(|| format!("{PACKAGE} depends on no source package"))?;
    step(format!("slim kernel: downloading {name} (it is not installed)"));
    let packages = apt.download(std::slice::from_ref(name), &folder.join("packages"))?;
    let unpacked = folder.join("unpacked");
    remove_dir(&unpacked)?;
    apt::unpack(&packages, &unpacked)?;
    let archive = largest_archive(&unpacked.join("usr/src"))?;
    let fresh = folder.join("tree.new");
    remove_dir(&fresh)?;
    make_dir(&fresh)?;
    step("slim kernel: unpacking its source");
    run(Command::new("tar")
        .arg("--extract")
        .arg("--directory")
        .arg(&fresh)
        .arg("--file")
        .arg(&archive))?;
    remove_dir(&unpacked)?;
    remove_dir(&folder.join("packages"))?;
    let top = only_entry(&fresh)?;
    let version = version(&top)?;
    let tree = folder.join(format!("linux-{version}"));
    remove_dir(&tree)?;
    std::fs::rename(&top, &tree).context("rename the source tree")?;
    remove_dir(&fresh)?;
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&tree, &link).context("link the source tree")?;
    Ok(tree)
}

/// The archive of the source: Ubuntu's package has it in a folder, with others beside.
fn largest_archive(folder: &Path) -> Result<PathBuf> {
    let mut found: Option<(u64, PathBuf)> = None;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).context("read the unpacked package")? {
            let entry = entry?;
            let (kind, path) = (entry.file_type()?, entry.path());
            let size = entry.metadata()?.len();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file()
                && path.to_string_lossy().contains(".tar.")
                && found.as_ref().is_none_or(|(largest, _)| size > *largest)
            {
                found = Some((size, path));
            }
        }
    }
    found.map(|(_, path)| path).context("the source package has no archive")
}

fn only_entry(folder: &Path) -> Result<PathBuf> {
    let mut entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    match (entries.pop(), entries.is_empty()) {
        (Some(entry), true) => Ok(entry.path()),
        _ => bail!("the archive of the source does not hold one folder"),
    }
}

/// `VERSION.PATCHLEVEL.SUBLEVEL` of a source tree.
fn version(tree: &Path) -> Result<String> {
    let text = std::fs::read_to_string(tree.join("Makefile")).context("read the Makefile")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix('='));
        line.map(str::trim).with_context(|| format!("the Makefile has no {name}"))
    };
    Ok(format!("{}.{}.{}", field("VERSION")?, field("PATCHLEVEL")?, field("SUBLEVEL")?))
}

/// What is asked of the kernel.
fn configuration(folder: &Path, kvm: bool) -> Result<String> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let mut text = read(&format!("{ARCH}.config"))?;
    if kvm {
        text.push_str(&read("kvm.config")?);
    }
    Ok(text)
}

/// Configures and builds; what other work there is on the machine goes first.
fn compile(tree: &Path, wanted: &str, output: &Path, name: &str) -> Result<()> {
    let objects = output.join("build");
    make_dir(&objects)?;
    let all = output.join("all.config");
    std::fs::write(&all, wanted).context("write the configuration")?;
    let make = || {
        let mut command = Command::new("nice");
        command.args(["-n", "19", "make", "--silent", "-C"]).arg(tree);
        let mut objects_option = std::ffi::OsString::from("O=");
        objects_option.push(&objects);
        command.arg(objects_option).arg(format!("LOCALVERSION=-{name}"));
        // The same source and compiler give the same kernel.
        command.env("KBUILD_BUILD_TIMESTAMP", "2023-11-14 22:13:20 UTC");
        command.env("KBUILD_BUILD_USER", "container").env("KBUILD_BUILD_HOST", "container");
        command
    };
    step(format!("slim kernel: configuring {name}"));
    run(make().env("KCONFIG_ALLCONFIG", &all).arg("allnoconfig"))?;
    let got = std::fs::read_to_string(objects.join(".config")).context("read .config")?;
    check(wanted, &got)?;
    let (target, image) = match ARCH {
        "aarch64" => ("Image", "arch/arm64/boot/Image"),
        _ => ("vmlinux", "vmlinux"),
    };
    step(format!("slim kernel: compiling {name} (minutes)"));
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    run(make().arg(format!("-j{jobs}")).arg(target))?;
    let image = objects.join(image);
    let to = output.join("vmlinux");
    match ARCH {
        // An Image has no symbols.
        "aarch64" => std::fs::copy(&image, &to).map(drop).context("copy the kernel")?,
        _ => run(Command::new("objcopy").arg("--strip-all").arg(&image).arg(&to))?,
    }
    for (from, to) in [(".config", "config"), ("System.map", "System.map")] {
        std::fs::copy(objects.join(from), output.join(to)).with_context(|| format!("copy {to}"))?;
    }
    Ok(())
}

/// Checks that every wanted line is in the complete configuration.
fn check(wanted: &str, got: &str) -> Result<()> {
    let has = |line: &str| got.lines().any(|found| found == line);
    let held = |line: &&str| match line.strip_suffix("=n") {
        // Also one that this kernel does not know.
        Some(option) => !got.lines().any(|found| found.starts_with(&format!("{option}="))),
        None => has(line),
    };
    let lines = wanted.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let lost: Vec<&str> = lines.filter(|line| !held(line)).collect();
    if lost.is_empty() {
        return Ok(());
    }
    let named = lost.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    bail!(
        "{} lines of the configuration did not hold with this kernel: {named}\n\
         (an option that it does not have, or that another one hides)",
        lost.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_did_not_hold_are_named() {
        let got = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\nCONFIG_AB=y\n";
        check("# CONFIG_Z=y\n\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_D=n\nCONFIG_C=\"x\"\n", got).unwrap();
        let error = check("CONFIG_A=y\nCONFIG_B=y\nCONFIG_AB=n\nCONFIG_C=\"y\"\n", got);
        let message = error.unwrap_err().to_string();
        assert!(message.starts_with("3 lines"), "{message}");
        for name in ["CONFIG_B=y", "CONFIG_AB=n", "CONFIG_C=\"y\""] {
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn checked_in_configurations_are_whole() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel");
        for name in ["x86_64.config", "aarch64.config", "kvm.config"] {
            let text = std::fs::read_to_string(folder.join(name)).unwrap();
            let mut seen = std::collections::BTreeSet::new();
            for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
                let (option, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
                assert!(option.starts_with("CONFIG_") && !value.is_empty(), "{name}: {line}");
                assert!(seen.insert(option), "{name}: {option} twice");
            }
        }
        let both = configuration(&folder, true).unwrap();
        assert!(both.contains("CONFIG_KVM=y") && both.contains("CONFIG_IKCONFIG=y"));
        assert!(!configuration(&folder, false).unwrap().contains("CONFIG_KVM=y"));
    }
}
