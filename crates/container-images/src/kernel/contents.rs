//! Picks kernel, configuration and modules out of packages and archives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use container_api::escape::escape_bytes;
use container_rootfs::{Entry, EntryKind, Limits, TarReader};

use super::error::{KernelError, Result, io_error};
use super::image::{MAX_KERNEL, is_version};

/// Bytes taken out of all archives together.
const MAX_TOTAL: u64 = 4 << 30;
/// Modules in all archives together. Ubuntu's full set has about 7,000.
const MAX_MODULES: usize = 50_000;
/// Bytes of a text file (`config`, `modules.builtin`).
const MAX_TEXT: u64 = 16 << 20;
/// Symbolic links from the member that was asked for to the file.
const MAX_LINKS: usize = 8;

/// Everything of use, with modules and kernels as files in a directory of their own.
#[derive(Debug)]
pub(super) struct Contents {
    directory: PathBuf,
    total: u64,
    files: usize,
    /// Kernel files by their path in the archive.
    pub kernels: Vec<(String, PathBuf)>,
    /// `config-VERSION` by version.
    pub configs: BTreeMap<String, Vec<u8>>,
    /// What is in `lib/modules/VERSION`, by version.
    pub modules: BTreeMap<String, ModuleTree>,
}

/// `lib/modules/VERSION`.
#[derive(Debug, Default)]
pub(super) struct ModuleTree {
    /// Names (with `_`) and files, still compressed; the original name for messages.
    pub files: BTreeMap<String, PathBuf>,
    /// Names (with `_`) of drivers that are built in; `None` without `modules.builtin`.
    pub builtin: Option<BTreeSet<String>>,
}

/// What an entry of an archive is to us.
enum Role {
    Kernel,
    Config(String),
    Builtin(String),
    Module { version: String, name: String },
}

impl Contents {
    /// Nothing yet; files go to `directory`.
    pub(super) fn new(directory: &Path) -> Contents {
        Contents {
            directory: directory.to_owned(),
            total: 0,
            files: 0,
            kernels: Vec::new(),
            configs: BTreeMap::new(),
            modules: BTreeMap::new(),
        }
    }

    /// Takes what is of use from an archive. With `member` the kernel is the file of that path and
    /// no other.
    ///
    /// The result says where to look when that member was a link.
    pub(super) fn add_archive(
        &mut self,
        name: &str,
        archive: impl Read,
        member: Option<&str>,
    ) -> Result<Option<String>> {
        let malformed = |e: &dyn std::error::Error| {
            let source = e.source().map(|s| format!(": {s}")).unwrap_or_default();
            KernelError::malformed(name, format!("{e}{source}"))
        };
        let mut tar = TarReader::new(archive, Limits::default());
        let mut link = None;
        while let Some(entry) = tar.next_entry().map_err(|e| malformed(&e))? {
            let Some(path) = normal_path(&entry.path) else { continue };
            if member == Some(path.as_str())
                && let Some(target) = link_target(&path, &entry)
            {
                link = Some(target);
                continue;
            }
            let EntryKind::File { segments: None, .. } = entry.kind else { continue };
            let Some(role) = role(&path, member) else { continue };
            let data = TarData { tar: &mut tar };
            self.take(name, &path, role, data)?;
        }
        Ok(link)
    }

    fn take(&mut self, archive: &str, path: &str, role: Role, data: impl Read) -> Result<()> {
        match role {
            Role::Kernel => {
                let file = self.save(archive, path, data, MAX_KERNEL)?;
                self.kernels.push((path.to_owned(), file));
            }
            Role::Config(version) => {
                let text = self.text(archive, path, data)?;
                self.configs.insert(version, text);
            }
            Role::Builtin(version) => {
                let text = self.text(archive, path, data)?;
                let names = String::from_utf8_lossy(&text)
                    .lines()
                    .filter_map(|line| module_name(line.rsplit('/').next().unwrap_or(line)))
                    .collect();
                self.modules.entry(version).or_default().builtin = Some(names);
            }
            Role::Module { version, name } => {
                if self.files >= MAX_MODULES {
                    return Err(KernelError::malformed(archive, "too many modules"));
                }
                let file = self.save(archive, path, data, MAX_KERNEL)?;
                self.modules.entry(version).or_default().files.insert(name, file);
            }
        }
        Ok(())
    }

    fn text(&mut self, archive: &str, path: &str, data: impl Read) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        let read = data.take(MAX_TEXT + 1).read_to_end(&mut text);
        read.map_err(|e| {
            KernelError::malformed(archive, format!("{}: {e}", escape_bytes(path.as_bytes())))
        })?;
        self.count(archive, text.len() as u64)?;
        if text.len() as u64 > MAX_TEXT {
            return Err(KernelError::malformed(path, "too large"));
        }
        Ok(text)
    }

    fn count(&mut self, archive: &str, bytes: u64) -> Result<()> {
        self.total = self.total.saturating_add(bytes);
        match self.total > MAX_TOTAL {
            true => Err(KernelError::malformed(archive, "more than 4 GiB of kernel and modules")),
            false => Ok(()),
        }
    }

    fn save(
        &mut self,
        archive: &str,
        path: &str,
        mut data: impl Read,
        limit: u64,
    ) -> Result<PathBuf> {
        self.files += 1;
        let target = self.directory.join(format!("{}", self.files));
        let mut file = File::create(&target).map_err(io_error("writing", &target))?;
        let mut buffer = vec![0; 128 << 10];
        let mut size = 0u64;
        loop {
            let n = match data.read(&mut buffer) {
                Ok(0) => return Ok(target),
                Ok(n) => n,
                Err(e) => {
                    let at = escape_bytes(path.as_bytes());
                    return Err(KernelError::malformed(archive, format!("{at}: {e}")));
                }
            };
            size += n as u64;
            self.count(archive, n as u64)?;
            if size > limit {
                return Err(KernelError::malformed(path, "too large"));
            }
            file.write_all(&buffer[..n]).map_err(io_error("writing", &target))?;
        }
    }

    /// Takes a member through its links: `open` opens the archive anew.
    pub(super) fn add_member(
        &mut self,
        name: &str,
        member: &str,
        mut open: impl FnMut() -> Result<Box<dyn Read>>,
    ) -> Result<()> {
        let wrong = || KernelError::malformed(member, "leads out of the archive");
        let mut member = normal_path(member.as_bytes()).ok_or_else(wrong)?;
        for _ in 0..MAX_LINKS {
            self.modules.clear();
            self.kernels.clear();
            match self.add_archive(name, open()?, Some(&member))? {
                Some(target) if self.kernels.is_empty() => member = target,
                _ => return Ok(()),
            }
        }
        Err(KernelError::malformed(member, "too many links"))
    }
}

/// The data of a tar's current entry.
struct TarData<'a, R> {
    tar: &'a mut TarReader<R>,
}

impl<R: Read> Read for TarData<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.tar.read_data(buf).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
    }
}

/// `path` without a leading `/` or `./`; `None` for one with `..` or that is not UTF-8.
fn normal_path(path: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(path).ok()?;
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn link_target(path: &str, entry: &Entry) -> Option<String> {
    match &entry.kind {
        EntryKind::HardLink(target) => normal_path(target),
        EntryKind::Symlink(target) if target.starts_with(b"/") => normal_path(target),
        EntryKind::Symlink(target) => {
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            normal_path(&[directory.as_bytes(), b"/", target].concat())
        }
        _ => None,
    }
}

/// A module's name of its file's: without `.ko` and compression, `-` as `_` as the kernel has it.
fn module_name(file: &str) -> Option<String> {
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|e| file.strip_suffix(e))?;
    (!stem.is_empty()).then(|| stem.replace('-', "_"))
}

fn role(path: &str, member: Option<&str>) -> Option<Role> {
    let parts: Vec<&str> = path.split('/').collect();
    let below_usr = if parts[0] == "usr" { &parts[1..] } else { &parts[..] };
    let file = *parts.last()?;
    match below_usr {
        ["lib", "modules", version, rest @ ..] if is_version(version) => {
            let version = (*version).to_owned();
            match rest {
                ["modules.builtin"] => return Some(Role::Builtin(version)),
                ["vmlinuz"] if member.is_none() => return Some(Role::Kernel),
                [.., file] => {
                    let name = module_name(file);
                    return name.map(|name| Role::Module { version, name });
                }
                [] => return None,
            }
        }
        ["boot", file] if file.starts_with("config-") => {
            return Some(Role::Config(file["config-".len()..].to_owned()));
        }
        _ => {}
    }
    let is_kernel = match member {
        Some(member) => member == path,
        None => {
            ["vmlinuz", "vmlinux", "bzImage"].iter().any(|p| file.starts_with(p)) || file == "Image"
        }
    };
    is_kernel.then_some(Role::Kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(normal_path(b"./boot//x").unwrap(), "boot/x");
        assert_eq!(normal_path(b"/a/../b"), None);
        assert_eq!(module_name("virtio-rng.ko.xz").unwrap(), "virtio_rng");
        assert_eq!(module_name("modules.order"), None);
        assert!(matches!(role("boot/vmlinuz-6.1.0", None), Some(Role::Kernel)));
        assert!(role("boot/vmlinuz-6.1.0", Some("boot/other")).is_none());
        assert!(matches!(
            role("usr/lib/modules/6.1.0/kernel/fs/erofs/erofs.ko", None),
            Some(Role::Module { version, name }) if version == "6.1.0" && name == "erofs"
        ));
        assert!(role("lib/modules/../kernel/erofs.ko", None).is_none());
    }

    #[test]
    fn a_member_is_found_through_links() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |path: &str, link: Option<&str>, content: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            match link {
                Some(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    builder.append_link(&mut header, path, target).unwrap();
                }
                None => {
                    header.set_size(content.len() as u64);
                    builder.append_data(&mut header, path, content).unwrap();
                }
            }
        };
        add("opt/vmlinux.container", Some("vmlinux-6.1"), b"");
        add("opt/vmlinux-6.1", None, b"kernel");
        add("opt/vmlinux-9", None, b"another");
        add("loop", Some("loop"), b"");
        let bytes = builder.into_inner().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut contents = Contents::new(directory.path());
        let open = || Ok(Box::new(std::io::Cursor::new(bytes.clone())) as Box<dyn Read>);
        contents.add_member("t", "/opt/vmlinux.container", open).unwrap();
        let [(path, file)] = &contents.kernels[..] else { panic!("{contents:?}") };
        assert_eq!(path, "opt/vmlinux-6.1");
        assert_eq!(std::fs::read(file).unwrap(), b"kernel");
        contents.add_member("t", "loop", open).unwrap_err();
        contents.add_member("t", "../x", open).unwrap_err();
    }
}
