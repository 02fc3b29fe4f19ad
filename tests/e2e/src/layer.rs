//! Layers of an image, written entry by entry; also hostile ones.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The uncompressed tar of one layer.
#[derive(Clone, Debug)]
pub enum Layer {
    /// In memory.
    Bytes(Vec<u8>),
    /// A file, for what is too large.
    File(PathBuf),
}

impl Layer {
    /// A layer made by `fill`.
    pub fn build(fill: impl FnOnce(&mut Entries)) -> Self {
        let mut entries = Entries { tar: tar::Builder::new(Vec::new()) };
        fill(&mut entries);
        Self::Bytes(entries.tar.into_inner().expect("a tar in memory"))
    }

    /// Opens the tar for reading.
    pub fn open(&self) -> Result<Box<dyn std::io::Read + '_>> {
        Ok(match self {
            Self::Bytes(bytes) => Box::new(bytes.as_slice()),
            Self::File(path) => Box::new(
                std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?,
            ),
        })
    }
}

/// Adds entries to a layer. All panic on failure: it is memory alone.
pub struct Entries {
    tar: tar::Builder<Vec<u8>>,
}

impl Entries {
    /// A directory, mode 0755.
    pub fn dir(&mut self, path: &str) -> &mut Self {
        self.special(path, tar::EntryType::Directory, 0o755, "")
    }

    /// A file with its mode.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> &mut Self {
        self.owned_file(path, mode, (0, 0), content)
    }

    /// A file with its mode, uid and gid.
    pub fn owned_file(
        &mut self,
        path: &str,
        mode: u32,
        (uid, gid): (u64, u64),
        content: &[u8],
    ) -> &mut Self {
        let mut header = header(tar::EntryType::Regular, mode, content.len() as u64);
        header.set_uid(uid);
        header.set_gid(gid);
        self.entry(header, path, "", content)
    }

    /// A symbolic link to `target`.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.special(path, tar::EntryType::Symlink, 0o777, target)
    }

    /// A hard link to the entry `target`.
    pub fn hardlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.special(path, tar::EntryType::Link, 0o644, target)
    }

    /// Extended attributes and the file that has them.
    pub fn file_with_xattrs(
        &mut self,
        path: &str,
        mode: u32,
        xattrs: &[(&str, &[u8])],
        content: &[u8],
    ) -> &mut Self {
        let names: Vec<String> =
            xattrs.iter().map(|(name, _)| format!("SCHILY.xattr.{name}")).collect();
        let records = names.iter().zip(xattrs).map(|(name, (_, value))| (name.as_str(), *value));
        self.tar.append_pax_extensions(records).expect("a tar in memory");
        self.file(path, mode, content)
    }

    /// What marks `path` of a lower layer as deleted.
    pub fn whiteout(&mut self, path: &str) -> &mut Self {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let slash = if folder.is_empty() { "" } else { "/" };
        self.file(&format!("{folder}{slash}.wh.{name}"), 0o644, b"")
    }

    /// What hides everything that lower layers have in `folder`.
    pub fn opaque(&mut self, folder: &str) -> &mut Self {
        self.file(&format!("{folder}/.wh..wh..opq"), 0o644, b"")
    }

    /// An entry of any kind, with its path and link taken as they are: `..`, a leading
    /// slash and other words that no honest writer uses stay in.
    pub fn special(
        &mut self,
        path: &str,
        kind: tar::EntryType,
        mode: u32,
        link: &str,
    ) -> &mut Self {
        self.entry(header(kind, mode, 0), path, link, b"")
    }

    /// A device with its numbers.
    pub fn device(
        &mut self,
        path: &str,
        kind: tar::EntryType,
        major: u32,
        minor: u32,
    ) -> &mut Self {
        let mut header = header(kind, 0o666, 0);
        header.set_device_major(major).expect("ustar");
        header.set_device_minor(minor).expect("ustar");
        self.entry(header, path, "", b"")
    }

    /// A header that says `size` and brings nothing: for archives that lie.
    pub fn lying_size(&mut self, path: &str, size: u64) -> &mut Self {
        let header = header(tar::EntryType::Regular, 0o644, size);
        self.entry(header, path, "", b"")
    }

    /// Bytes as they are, for broken headers.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.tar.get_mut().write_all(bytes).expect("memory");
        self
    }

    fn entry(
        &mut self,
        mut header: tar::Header,
        path: &str,
        link: &str,
        content: &[u8],
    ) -> &mut Self {
        // The tar crate refuses the hostile names, so the fields are written here.
        // Long names go into a pax record.
        if path.len() > 99 || link.len() > 99 {
            let records = [("path", path.as_bytes()), ("linkpath", link.as_bytes())];
            let used = records.into_iter().filter(|(_, value)| !value.is_empty());
            self.tar.append_pax_extensions(used).expect("a tar in memory");
        }
        let fields = header.as_old_mut();
        copy_truncated(&mut fields.name, path.as_bytes());
        copy_truncated(&mut fields.linkname, link.as_bytes());
        header.set_cksum();
        self.tar.append(&header, content).expect("a tar in memory");
        self
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn copy_truncated(field: &mut [u8; 100], value: &[u8]) {
    field.fill(0);
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_back_as_written() {
        let long = "d/".repeat(80) + "file";
        let layer = Layer::build(|entries| {
            entries.dir("bin").file("bin/a", 0o755, b"hello").symlink("b", "bin/a");
            entries.file(&long, 0o644, b"deep").whiteout("etc/gone");
            entries.special("../../escape", tar::EntryType::Regular, 0o644, "");
        });
        let mut archive = tar::Archive::new(layer.open().unwrap());
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap())
            .collect();
        assert_eq!(names, ["bin", "bin/a", "b", &long, "etc/.wh.gone", "../../escape"]);
    }
}
