//! Kernel bundles: a distribution's kernel and the modules that a guest needs, made ready to boot.
//!
//! ```text
//! .deb, tar ──► contents (kernel file, config, lib/modules) ──► image (uncompressed)
//!                                                          └──► modules (in insertion order)
//! binary ───────────────────────────────────────────────────► image
//!                        image + modules + guest init ──► bundle directory, put in place in one step
//!                                          guest init ──► image of the warm-up container, beside it
//! ```
//!
//! Packages are bytes from outside: every size is bounded, nothing in them is run, and a failure at
//! any point leaves the bundle that was there.

mod bundle;
mod config;
mod contents;
mod cpio;
mod deb;
mod decompress;
mod elf;
mod error;
mod image;
mod install;
mod modules;
mod warm;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use container_api::images::KernelBundle;

use contents::Contents;
pub use error::{KernelError, Result};
pub use install::{Spooled, install, remove_unfinished};

/// Where a bundle comes from.
#[derive(Debug)]
pub enum Source {
    /// A kernel file with everything built in.
    Binary {
        /// For messages.
        name: String,
        /// The file.
        file: File,
    },
    /// An archive laid out like a root directory, or one with a kernel somewhere.
    Tar {
        /// For messages.
        name: String,
        /// The file; seekable.
        file: File,
        /// The kernel's path in it, when it is not to be searched for.
        member: Option<String>,
    },
    /// Debian packages: kernel and modules may be in one or in several.
    Debs(Vec<(String, File)>),
}

/// Makes a bundle for `architecture` (Go's name) at `output`; what was there is replaced, and stays
/// when anything fails. `init` is the guest's first program; `source_name` goes into the record.
pub fn make(
    output: &Path,
    source: Source,
    init: &Path,
    architecture: &str,
    source_name: &str,
) -> Result<KernelBundle> {
    let new = bundle::unfinished(output)?;
    let parts = parts(source, new.path(), architecture, source_name)?;
    let directory = new.path().join("bundle");
    std::fs::create_dir(&directory).map_err(error::io_error("creating", &directory))?;
    let mut record = bundle::write(&directory, &parts, init)?;
    // What was unpacked lies beside the bundle, and is not needed any more.
    let finished = bundle::unfinished(output)?;
    std::fs::rename(&directory, finished.path())
        .map_err(error::io_error("renaming", &directory))?;
    bundle::place(finished, output)?;
    record.path = output.to_owned();
    Ok(record)
}

/// Builds the initramfs of the bundle in `directory` anew, for another `init`.
pub fn rebuild_initramfs(directory: &Path, init: &Path) -> Result<KernelBundle> {
    bundle::rebuild_initramfs(directory, init)
}

fn parts(
    source: Source,
    scratch: &Path,
    architecture: &str,
    source_name: &str,
) -> Result<bundle::Parts> {
    let directory = scratch.join("unpacked");
    std::fs::create_dir(&directory).map_err(error::io_error("creating", &directory))?;
    let mut contents = Contents::new(&directory);
    let modules_needed = matches!(source, Source::Debs(_));
    match source {
        Source::Binary { name, mut file } => {
            let bytes = read_kernel(&name, &mut file)?;
            return without_modules(&name, bytes, architecture, source_name);
        }
        Source::Tar { name, file, member } => read_tar(&name, &file, member, &mut contents)?,
        Source::Debs(packages) => {
            for (name, file) in packages {
                contents.add_archive(&name, deb::data(&name, file)?, None)?;
            }
        }
    }
    let (path, file) = choose_kernel(&contents, source_name)?;
    let bytes = bundle::read_bounded(&file, image::MAX_KERNEL)?;
    if contents.modules.is_empty() && !modules_needed {
        return without_modules(&path, bytes, architecture, source_name);
    }
    with_modules(&path, bytes, contents, architecture, source_name)
}

fn read_tar(
    name: &str,
    file: &File,
    member: Option<String>,
    contents: &mut Contents,
) -> Result<()> {
    let open = || -> Result<Box<dyn Read>> {
        let mut file = file.try_clone().map_err(error::io_error("reading", name))?;
        file.seek(SeekFrom::Start(0)).map_err(error::io_error("reading", name))?;
        deb::stream(name, file)
    };
    match member {
        Some(member) => contents.add_member(name, &member, open),
        None => contents.add_archive(name, open()?, None).map(drop),
    }
}

fn read_kernel(name: &str, file: &mut File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file.take(image::MAX_KERNEL + 1).read_to_end(&mut bytes);
    read.map_err(error::io_error("reading", name))?;
    match bytes.len() as u64 > image::MAX_KERNEL {
        true => Err(KernelError::malformed(name, "too large for a kernel")),
        false => Ok(bytes),
    }
}

/// The one kernel in the archives, or of several the one that modules are there for.
fn choose_kernel(contents: &Contents, source_name: &str) -> Result<(String, PathBuf)> {
    let missing =
        |what: &str| KernelError::Missing { source_name: source_name.into(), what: what.into() };
    let has_modules = |path: &str| {
        contents
            .modules
            .keys()
            .any(|v| path.ends_with(&format!("-{v}")) || path.contains(&format!("/{v}/")))
    };
    match &contents.kernels[..] {
        [] => Err(missing("kernel")),
        [one] => Ok(one.clone()),
        several => {
            let fitting: Vec<_> = several.iter().filter(|(path, _)| has_modules(path)).collect();
            match fitting[..] {
                [one] => Ok(one.clone()),
                _ => {
                    let names: Vec<&str> =
                        several.iter().take(8).map(|(p, _)| p.as_str()).collect();
                    let problem =
                        format!("several kernels, name one of them: {}", names.join(", "));
                    Err(KernelError::malformed(
                        source_name,
                        container_api::escape::escape(&problem),
                    ))
                }
            }
        }
    }
}

fn without_modules(
    name: &str,
    bytes: Vec<u8>,
    architecture: &str,
    source_name: &str,
) -> Result<bundle::Parts> {
    let image = image::bootable(name, bytes, architecture)?;
    Ok(bundle::Parts {
        version: image.version.unwrap_or_else(|| "0-unknown".into()),
        architecture: architecture.into(),
        source: source_name.into(),
        config: config::embedded(&image.bytes),
        kernel: image.bytes,
        modules: modules::Modules::default(),
    })
}

fn with_modules(
    path: &str,
    bytes: Vec<u8>,
    mut contents: Contents,
    architecture: &str,
    source_name: &str,
) -> Result<bundle::Parts> {
    let image = image::bootable(path, bytes, architecture)?;
    let version = match image.version {
        Some(version) => version,
        None => contents.modules.keys().next().cloned().unwrap_or_default(),
    };
    let tree =
        contents.modules.get(&version).filter(|t| t.builtin.is_some() || !t.files.is_empty());
    let tree = tree.ok_or_else(|| KernelError::Missing {
        source_name: source_name.into(),
        what: format!("modules of kernel {version} (give the package with them too)"),
    })?;
    let config = contents.configs.remove(&version);
    let mut needed = modules::Modules::resolve(
        &version,
        tree,
        &modules::WANTED,
        &modules::WANTED_LATER,
        &modules::WANTED_KVM,
    )?;
    if !modules::signatures_are_forced(config.as_deref()) {
        needed.iter_mut().for_each(modules::Module::strip_signature);
    }
    Ok(bundle::Parts {
        modules: needed,
        config,
        version,
        architecture: architecture.into(),
        source: source_name.into(),
        kernel: image.bytes,
    })
}
