//! Guest kernels: set, refused, kept.

use std::path::PathBuf;

use e2e::{Cmd, Installation, busybox, installation, sha256_hex};

/// The bundle of the build tree, or the one the run was given.
fn bundle() -> PathBuf {
    match std::env::var_os("CONTAINER_TEST_KERNEL") {
        Some(path) => path.into(),
        None => installation::binaries().join("../share/container/kernel"),
    }
}

fn kernel_of(it: &Installation) -> String {
    let status = it.run(["system", "status", "--format", "json"]).ok().json();
    status["kernelPath"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn what_is_no_kernel_is_refused_and_the_old_one_stays() {
    let it = Installation::with_busybox();
    let before = kernel_of(&it);
    let whole = std::fs::read(bundle().join("vmlinux")).unwrap();
    let file = it.scratch().join("kernel");
    let set = |more: &[&str]| {
        it.container(["system", "kernel", "set", "--binary"]).arg(&file).args(more).run()
    };

    std::fs::write(&file, b"no kernel at all").unwrap();
    set(&[]).fails(125, "kernel");
    std::fs::write(&file, &whole[..whole.len() / 3]).unwrap();
    let output = set(&[]);
    assert_eq!(output.code, Some(125), "{output:?}");
    let mut foreign = whole.clone();
    // The machine field of an ELF header: AArch64 for x86-64 and the other way round.
    let machine: u16 = if cfg!(target_arch = "x86_64") { 183 } else { 62 };
    foreign[18..20].copy_from_slice(&machine.to_le_bytes());
    std::fs::write(&file, &foreign).unwrap();
    set(&[]).fails(125, "arch");
    std::fs::write(&file, &whole).unwrap();
    set(&["--digest", &format!("sha256:{}", "0".repeat(64))]).fails(125, "digest");
    set(&["--digest", "md5:1"]).fails(125, "digest");
    it.run(["system", "kernel", "set", "--binary", "/no/such/file"]).fails(125, "/no/such/file");
    it.run(["system", "kernel", "set"]).code(125);

    assert_eq!(kernel_of(&it), before);
    it.run(["run", "--rm", "busybox", "true"]).ok();
}

#[test]
fn a_tar_with_kernel_and_modules_becomes_the_default() {
    let it = Installation::new();
    it.configure("# no kernel.path, which would win\n");
    it.load(&busybox::image().unwrap());
    // Laid out as a package unpacks, from the bundle's own parts.
    let version = {
        let json = std::fs::read(bundle().join("bundle.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        json["version"].as_str().unwrap().to_owned()
    };
    let root = kernel_tree();
    let tar = it.scratch().join("kernel.tar.gz");
    let folders: Vec<&str> =
        ["boot", "lib", "usr"].into_iter().filter(|name| root.join(name).exists()).collect();
    Cmd::new("tar")
        .args(["--create", "--gzip", "--file"])
        .arg(&tar)
        .arg("--directory")
        .arg(&root)
        .args(folders)
        .run()
        .ok();
    let digest = format!("sha256:{}", sha256_hex(&std::fs::read(&tar).unwrap()));
    let before = kernel_of(&it);
    it.container(["system", "kernel", "set", "--tar"])
        .arg(&tar)
        .args(["--digest", &digest])
        .run()
        .ok();
    assert_ne!(kernel_of(&it), before);
    it.run(["run", "--rm", "busybox", "uname", "-r"]).ok().prints(&version);
    // The same kernel again is no error.
    it.container(["system", "kernel", "set", "--tar"]).arg(&tar).run().ok();
    it.container(["system", "kernel", "set", "--force", "--tar"]).arg(&tar).run().ok();
    it.run(["run", "--rm", "busybox", "true"]).ok();
}

/// The unpacked kernel package of the build tree, or of the kernel that the run was given.
fn kernel_tree() -> PathBuf {
    let folder = match std::env::var_os("CONTAINER_TEST_KERNEL") {
        Some(bundle) => PathBuf::from(bundle).join("../kernel"),
        None => installation::binaries().join("../kernel"),
    };
    let unpacked = folder.join("unpacked");
    if !unpacked.join("boot").exists() {
        let fresh = tempfile::tempdir_in(&folder).unwrap();
        for entry in std::fs::read_dir(folder.join("packages")).unwrap().flatten() {
            Cmd::new("dpkg-deb").arg("--extract").arg(entry.path()).arg(fresh.path()).run().ok();
        }
        // Another test may have been faster.
        let _ = std::fs::rename(fresh.path(), &unpacked);
    }
    unpacked
}

#[test]
fn a_container_may_have_a_kernel_of_its_own() {
    let it = Installation::with_busybox();
    it.container(["run", "--rm", "--kernel"])
        .arg(bundle())
        .args(["busybox", "echo", "own"])
        .run()
        .ok()
        .prints("own");
}
