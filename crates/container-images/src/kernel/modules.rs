//! Which modules a guest needs, in the order to insert them.
//!
//! Dependencies are read from the modules themselves (`.modinfo`): `modules.dep` is made when a
//! package is installed, so packages don't have it.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use super::contents::ModuleTree;
use super::decompress::decompress;
use super::elf::Elf;
use super::error::{KernelError, Result, io_error};

/// What every guest needs: its disks, its channels to the host, its file systems. What these
/// depend on follows from them.
pub(super) const WANTED: [&str; 6] =
    ["virtio_pci", "virtio_console", "virtio_blk", "erofs", "ext4", "overlay"];

/// What the guest loads when its host says so, off the way to the first program. A kernel without
/// one of them runs containers, and gives no memory back, has no network or no shares.
pub(super) const WANTED_LATER: [&str; 3] = ["virtio_balloon", "virtio_net", "virtiofs"];

/// What a guest has in addition in which VMs may run: KVM, for either vendor's CPU.
pub(super) const WANTED_KVM: [&str; 2] = ["kvm_intel", "kvm_amd"];

/// Largest module in bytes, decompressed.
const MAX_MODULE: u64 = 64 << 20;

/// A module, decompressed.
#[derive(Debug)]
pub(super) struct Module {
    /// Its name, with `_`.
    pub name: String,
    /// The ELF file, with its signature if it has one.
    pub bytes: Vec<u8>,
}

/// What ends a signed module (`MODULE_SIG_STRING` of `linux/module_signature.h`).
const SIGNATURE_MARK: &[u8] = b"~Module signature appended~\n";
/// Bytes of `struct module_signature`, which stands before the mark; its last four are the length
/// of the signature before it, big-endian.
const SIGNATURE_HEADER: usize = 12;

impl Module {
    /// Takes the signature off: the guest would check it at each boot, which emulated costs
    /// milliseconds a module, though whoever could change a module here could change the kernel
    /// beside it. A kernel that insists on signatures (`CONFIG_MODULE_SIG_FORCE`) needs it.
    pub(super) fn strip_signature(&mut self) {
        let Some(rest) = self.bytes.strip_suffix(SIGNATURE_MARK) else { return };
        let Some((rest, header)) = rest.split_last_chunk::<SIGNATURE_HEADER>() else { return };
        let [.., a, b, c, d] = *header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if let Some(module) = rest.len().checked_sub(length) {
            self.bytes.truncate(module);
        }
    }
}

/// Whether a kernel of this configuration loads signed modules only.
pub(super) fn signatures_are_forced(config: Option<&[u8]>) -> bool {
    // Without a configuration nobody knows.
    config.is_none_or(|text| {
        text.split(|b| *b == b'\n').any(|line| line == b"CONFIG_MODULE_SIG_FORCE=y")
    })
}

/// The modules of a guest, each after those that it depends on.
#[derive(Debug, Default)]
pub(super) struct Modules {
    /// Inserted by every boot.
    pub boot: Vec<Module>,
    /// Inserted behind them when the host says so.
    pub later: Vec<Module>,
    /// Behind those, in a guest in which VMs may run; in its initramfs alone.
    pub kvm: Vec<Module>,
}

impl Modules {
    /// Finds `wanted` and, behind them, those of `later` and of `kvm` that there are.
    pub(super) fn resolve(
        version: &str,
        tree: &ModuleTree,
        wanted: &[&str],
        later: &[&str],
        kvm: &[&str],
    ) -> Result<Modules> {
        let mut resolver = Resolver { version, tree, seen: BTreeSet::new(), order: Vec::new() };
        for name in wanted {
            resolver.visit(name, Need::Hard)?;
        }
        let boot = std::mem::take(&mut resolver.order);
        for name in later {
            resolver.visit(name, Need::Soft)?;
        }
        let later = std::mem::take(&mut resolver.order);
        for name in kvm {
            let before = resolver.order.len();
            match resolver.visit(name, Need::Soft) {
                // A kernel whose packages leave out what one vendor's needs.
                Err(KernelError::NoModule { .. }) => resolver.order.truncate(before),
                other => other?,
            }
        }
        Ok(Modules { boot, later, kvm: resolver.order })
    }

    /// All of them.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Module> {
        self.boot.iter_mut().chain(&mut self.later).chain(&mut self.kvm)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Hard,
    /// Loaded when it exists (`softdep=pre:`, [`WANTED_LATER`]).
    Soft,
}

struct Resolver<'a> {
    version: &'a str,
    tree: &'a ModuleTree,
    seen: BTreeSet<String>,
    order: Vec<Module>,
}

impl Resolver<'_> {
    /// Depth first. A cycle, which the kernel's build does not make, ends at its second visit;
    /// recursion is bounded by the number of modules that can be in one chain.
    fn visit(&mut self, name: &str, need: Need) -> Result<()> {
        if self.seen.len() > 256 {
            return Err(KernelError::malformed(self.version, "modules with too many dependencies"));
        }
        if self.seen.contains(name) {
            return Ok(());
        }
        let Some(path) = self.tree.files.get(name) else {
            let builtin = self.tree.builtin.as_ref().is_some_and(|names| names.contains(name));
            return match builtin || need == Need::Soft {
                true => Ok(()),
                false => Err(KernelError::NoModule {
                    version: self.version.into(),
                    module: container_api::escape::escape(name).into_owned(),
                }),
            };
        };
        self.seen.insert(name.to_owned());
        let bytes = read_module(name, path)?;
        for (dependency, need) in dependencies(name, &bytes)? {
            self.visit(&dependency, need)?;
        }
        self.order.push(Module { name: name.to_owned(), bytes });
        Ok(())
    }
}

fn read_module(name: &str, path: &Path) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(io_error("reading", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_MODULE + 1).read_to_end(&mut bytes).map_err(io_error("reading", path))?;
    if bytes.len() as u64 > MAX_MODULE {
        return Err(KernelError::malformed(name, "too large for a module"));
    }
    Ok(decompress(name, &bytes, MAX_MODULE)?.unwrap_or(bytes))
}

/// `depends=` and `softdep=pre:` of a module's information section.
fn dependencies(name: &str, module: &[u8]) -> Result<Vec<(String, Need)>> {
    let section = Elf::new(module).and_then(|elf| elf.section(b".modinfo"));
    let section = section.ok_or_else(|| KernelError::malformed(name, "not a kernel module"))?;
    let mut found = Vec::new();
    for record in section.split(|b| *b == 0) {
        let Ok(record) = std::str::from_utf8(record) else { continue };
        if let Some(list) = record.strip_prefix("depends=") {
            let names = list.split(',').filter(|n| !n.is_empty());
            found.extend(names.map(|n| (n.replace('-', "_"), Need::Hard)));
        } else if let Some(list) = record.strip_prefix("softdep=") {
            let before = list.split_whitespace().skip_while(|w| *w != "pre:").skip(1);
            let names = before.take_while(|w| !w.ends_with(':'));
            found.extend(names.map(|n| (n.replace('-', "_"), Need::Soft)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_taken_off_and_damaged_ones_left() {
        let signed = |length: u32| {
            let mut bytes = b"elf".to_vec();
            bytes.extend_from_slice(b"signature");
            bytes.extend_from_slice(&[0; 8]);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(SIGNATURE_MARK);
            Module { name: "x".into(), bytes }
        };
        for (length, left) in [(9, 3), (12, 0), (13, 12 + 12 + SIGNATURE_MARK.len())] {
            let mut module = signed(length);
            module.strip_signature();
            assert_eq!(module.bytes.len(), left);
        }
        let mut plain = Module { name: "x".into(), bytes: SIGNATURE_MARK.to_vec() };
        plain.strip_signature();
        assert_eq!(plain.bytes, SIGNATURE_MARK);
        assert!(signatures_are_forced(None));
        assert!(signatures_are_forced(Some(b"A=y\nCONFIG_MODULE_SIG_FORCE=y\n")));
        assert!(!signatures_are_forced(Some(b"# CONFIG_MODULE_SIG_FORCE is not set\n")));
    }

    /// An ELF file with nothing but a `.modinfo` section.
    fn module(info: &[u8]) -> Vec<u8> {
        const NAMES: &[u8] = b"\0.modinfo\0.shstrtab\0";
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let (info_at, names_at) = (64, 64 + info.len());
        let headers_at = names_at + NAMES.len();
        elf[40..48].copy_from_slice(&(headers_at as u64).to_le_bytes());
        elf[58..60].copy_from_slice(&64u16.to_le_bytes());
        elf[60..62].copy_from_slice(&2u16.to_le_bytes());
        elf[62..64].copy_from_slice(&1u16.to_le_bytes());
        elf.extend_from_slice(info);
        elf.extend_from_slice(NAMES);
        for (name, at, len) in [(1u32, info_at, info.len()), (10, names_at, NAMES.len())] {
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(len as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf
    }

    fn tree(modules: &[(&str, &str)], builtin: &[&str]) -> (tempfile::TempDir, ModuleTree) {
        let directory = tempfile::tempdir().unwrap();
        let mut tree = ModuleTree::default();
        for (name, info) in modules {
            let path = directory.path().join(name);
            std::fs::write(&path, module(info.as_bytes())).unwrap();
            tree.files.insert((*name).to_owned(), path);
        }
        tree.builtin = Some(builtin.iter().map(|n| (*n).to_owned()).collect());
        (directory, tree)
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|m| m.name.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let (_directory, tree) = tree(
            &[
                ("a", "license=GPL\0depends=b-x,c\0"),
                ("b_x", "depends=c\0softdep=pre: soft absent post: later\0"),
                ("c", "depends=\0"),
                ("soft", "depends=\0"),
                ("later", "depends=\0"),
            ],
            &["builtin"],
        );
        let modules = Modules::resolve("1", &tree, &["a", "builtin", "c"], &[], &[]).unwrap();
        assert_eq!(names(&modules.boot), ["c", "soft", "b_x", "a"]);
        let error = Modules::resolve("6.1", &tree, &["a", "nowhere"], &[], &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "kernel 6.1 has neither a module nowhere nor that driver built in"
        );
    }

    #[test]
    fn later_ones_come_behind_and_may_be_missing() {
        let (_directory, tree) = tree(
            &[
                ("ring", "depends=\0"),
                ("disk", "depends=ring\0"),
                ("balloon", "depends=ring\0"),
                ("net", "depends=failover,ring\0"),
                ("failover", "depends=\0"),
            ],
            &["builtin"],
        );
        let later = ["balloon", "absent", "builtin", "net", "disk"];
        let modules = Modules::resolve("1", &tree, &["disk"], &later, &[]).unwrap();
        assert_eq!(names(&modules.boot), ["ring", "disk"]);
        assert_eq!(names(&modules.later), ["balloon", "failover", "net"]);
    }

    #[test]
    fn kvm_is_what_there_is_of_it() {
        let (_directory, tree) = tree(
            &[
                ("disk", "depends=\0"),
                ("kvm", "depends=irqbypass\0"),
                ("irqbypass", "depends=\0"),
                ("kvm_intel", "depends=kvm\0"),
                ("kvm_amd", "depends=kvm,ccp\0"),
            ],
            &[],
        );
        let modules = Modules::resolve("1", &tree, &["disk"], &[], &WANTED_KVM).unwrap();
        assert_eq!(names(&modules.boot), ["disk"]);
        assert_eq!(names(&modules.kvm), ["irqbypass", "kvm", "kvm_intel"]);
        let modules = Modules::resolve("1", &tree, &["disk"], &[], &["absent"]).unwrap();
        assert!(modules.kvm.is_empty());
    }

    #[test]
    fn cycles_end() {
        let (_directory, tree) = tree(&[("a", "depends=b\0"), ("b", "depends=a\0")], &[]);
        let modules = Modules::resolve("1", &tree, &["a"], &[], &[]).unwrap();
        assert_eq!(names(&modules.boot), ["b", "a"]);
    }
}
