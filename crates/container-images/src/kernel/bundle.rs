//! A bundle's files, and how one takes another's place.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use container_api::images::{
    BUNDLE_INITRAMFS, BUNDLE_KERNEL, BUNDLE_KVM_INITRAMFS, BUNDLE_RECORD, BUNDLE_WARM_IMAGE,
    KernelBundle,
};
use sha2::{Digest, Sha256};

use super::config;
use super::cpio::CpioWriter;
use super::elf::Elf;
use super::error::{KernelError, Result, io_error};
use super::modules::Modules;
use super::warm;

const CONFIG: &str = "config";
const MODULES: &str = "modules";
/// In a bundle, and at the root of the initramfs: one path per line, in the order to insert; by
/// every boot, and when the host says so.
const MODULE_LISTS: [&str; 2] = ["modules.list", "drivers.list"];
/// The same for the modules that the initramfs has in addition in which there is KVM.
const KVM_LIST: &str = "kvm.list";
/// What the names of unfinished bundles begin with.
pub(super) const UNFINISHED: &str = ".bundle-";
/// Largest guest init program, in bytes.
const MAX_INIT: u64 = 64 << 20;

/// The parts of a bundle.
#[derive(Debug)]
pub(super) struct Parts {
    pub version: String,
    pub architecture: String,
    pub source: String,
    pub kernel: Vec<u8>,
    pub config: Option<Vec<u8>>,
    pub modules: Modules,
}

/// A directory beside `target` for what is to become `target`; removed when dropped.
pub(super) fn unfinished(target: &Path) -> Result<tempfile::TempDir> {
    let parent = parent(target);
    fs::create_dir_all(parent).map_err(io_error("creating", parent))?;
    tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(parent)
        .map_err(io_error("creating a directory in", parent))
}

fn parent(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes a bundle into the empty `directory`.
pub(super) fn write(directory: &Path, parts: &Parts, init: &Path) -> Result<KernelBundle> {
    let modules = directory.join(MODULES);
    fs::DirBuilder::new().mode(0o755).create(&modules).map_err(io_error("creating", &modules))?;
    let mut index = 0;
    let lists = [&parts.modules.boot, &parts.modules.later, &parts.modules.kvm];
    for (list_name, list) in MODULE_LISTS.iter().chain([&KVM_LIST]).zip(lists) {
        let mut text = String::new();
        for module in list {
            let name = format!("{index:02}-{}.ko", module.name);
            index += 1;
            write_file(&modules.join(&name), &module.bytes)?;
            text.push_str(&format!("/{MODULES}/{name}\n"));
        }
        write_file(&directory.join(list_name), text.as_bytes())?;
    }
    write_file(&directory.join(BUNDLE_KERNEL), &parts.kernel)?;
    if let Some(config) = &parts.config {
        write_file(&directory.join(CONFIG), config)?;
    }
    let mut bundle = KernelBundle {
        path: PathBuf::new(),
        version: parts.version.clone(),
        architecture: parts.architecture.clone(),
        source: parts.source.clone(),
        digests: BTreeMap::from([(BUNDLE_KERNEL.to_owned(), sha256(&parts.kernel))]),
        virtualization: !parts.modules.kvm.is_empty()
            || parts.config.as_deref().is_some_and(config::has_kvm),
    };
    write_init(directory, init, &mut bundle)?;
    Ok(bundle)
}

/// Writes what holds the init, the initramfs and the warm image, and then the record.
fn write_init(directory: &Path, init: &Path, bundle: &mut KernelBundle) -> Result<()> {
    let init_bytes = read_bounded(init, MAX_INIT)?;
    if Elf::new(&init_bytes).is_none_or(|elf| !elf.is_complete()) {
        return Err(KernelError::malformed(init.to_string_lossy(), "not a complete program"));
    }
    let mut write = |name: &str, lists: &[&'static str]| {
        let archive = initramfs(directory, &init_bytes, lists)?;
        bundle.digests.insert(name.to_owned(), sha256(&archive));
        write_file(&directory.join(name), &archive)
    };
    write(BUNDLE_INITRAMFS, &MODULE_LISTS)?;
    let kvm = directory.join(KVM_LIST);
    if kvm.metadata().is_ok_and(|list| list.len() > 0) {
        write(BUNDLE_KVM_INITRAMFS, &[&MODULE_LISTS[..], &[KVM_LIST]].concat())?;
    }
    warm::write(&directory.join(BUNDLE_WARM_IMAGE), &init_bytes)?;
    let record = serde_json::to_vec_pretty(&bundle)
        .map_err(|e| KernelError::malformed(BUNDLE_RECORD, e.to_string()))?;
    write_file(&directory.join(BUNDLE_RECORD), &record)
}

fn initramfs(directory: &Path, init: &[u8], list_names: &[&'static str]) -> Result<Vec<u8>> {
    let (mut lists, mut modules) = (Vec::new(), Vec::new());
    for &list_name in list_names {
        let path = directory.join(list_name);
        let list = match fs::read_to_string(&path) {
            // A bundle of a version that had one list.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(io_error("reading", &path))?,
        };
        for line in list.lines() {
            let name = line.strip_prefix("/modules/").filter(|n| !n.contains('/') && *n != "..");
            let name =
                name.ok_or_else(|| KernelError::malformed(list_name, "a path not in modules"))?;
            let path = directory.join(MODULES).join(name);
            let bytes = fs::read(&path).map_err(io_error("reading", &path))?;
            modules.push((format!("{MODULES}/{name}"), bytes));
        }
        lists.push((list_name, list));
    }
    let pack = || -> io::Result<Vec<u8>> {
        let mut cpio = CpioWriter::new(Vec::new());
        // The kernel opens /dev/console for init before anything is mounted.
        cpio.directory("dev")?;
        cpio.device("dev/console", 5, 1)?;
        for name in ["proc", "sys", "run", MODULES] {
            cpio.directory(name)?;
        }
        cpio.file("init", 0o755, init)?;
        for (name, list) in &lists {
            cpio.file(name, 0o644, list.as_bytes())?;
        }
        for (name, bytes) in &modules {
            cpio.file(name, 0o644, bytes)?;
        }
        cpio.finish()
    };
    pack().map_err(io_error("packing", directory.join(BUNDLE_INITRAMFS)))
}

/// Replaces what holds the init in the bundle in `directory`: with another `init`, the same modules.
pub(super) fn rebuild_initramfs(directory: &Path, init: &Path) -> Result<KernelBundle> {
    let record = directory.join(BUNDLE_RECORD);
    let mut bundle = KernelBundle::read(directory)
        .map_err(|e| KernelError::malformed(record.to_string_lossy(), e.message))?;
    bundle.path = PathBuf::new();
    let new = unfinished(directory)?;
    for name in [BUNDLE_KERNEL, CONFIG, KVM_LIST].into_iter().chain(MODULE_LISTS) {
        link(&directory.join(name), &new.path().join(name))?;
    }
    let modules = new.path().join(MODULES);
    fs::create_dir(&modules).map_err(io_error("creating", &modules))?;
    let old = directory.join(MODULES);
    for entry in fs::read_dir(&old).map_err(io_error("reading", &old))? {
        let entry = entry.map_err(io_error("reading", &old))?;
        link(&entry.path(), &modules.join(entry.file_name()))?;
    }
    write_init(new.path(), init, &mut bundle)?;
    place(new, directory)?;
    bundle.path = directory.to_owned();
    Ok(bundle)
}

fn link(from: &Path, to: &Path) -> Result<()> {
    match fs::hard_link(from, to) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(io_error("linking", from)),
    }
}

/// Puts a finished bundle in its place, in one step; what was there is removed.
pub(super) fn place(new: tempfile::TempDir, target: &Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use std::os::unix::fs::PermissionsExt;
    let failed = |e| io_error("replacing", target)(e);
    fs::set_permissions(new.path(), fs::Permissions::from_mode(0o755)).map_err(failed)?;
    sync_directory(new.path()).map_err(failed)?;
    match fs::rename(new.path(), target) {
        Ok(()) => {
            // The directory is no longer there under its temporary name.
            let _ = new.keep();
        }
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
            ) =>
        {
            // The exchange leaves the old bundle under the temporary name, and that is removed.
            renameat_with(CWD, new.path(), CWD, target, RenameFlags::EXCHANGE)
                .map_err(|e| failed(e.into()))?;
        }
        Err(e) => return Err(failed(e)),
    }
    sync_directory(parent(target)).map_err(failed)
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a file that everybody may read, whatever the umask: QEMU has a uid of its own.
fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let write = || -> io::Result<()> {
        let mut file = BufWriter::new(File::create_new(path)?);
        file.get_ref().set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(bytes)?;
        file.into_inner()?.sync_all()
    };
    write().map_err(io_error("writing", path))
}

pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io_error("reading", path))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io_error("reading", path))?;
    match bytes.len() as u64 > limit {
        true => Err(KernelError::malformed(path.to_string_lossy(), "too large")),
        false => Ok(bytes),
    }
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
