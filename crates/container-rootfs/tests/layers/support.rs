//! Making layers, building images of them, looking into the images.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::process::Command;

use container_rootfs::{ApplyError, ErofsReader, FileKind, ImageBuilder, Inode, Limits, Summary};

/// Length that test images get.
pub const LEN: u64 = 1 << 32;

/// A layer being written.
pub struct Layer(Vec<u8>);

/// Fields of a header beyond name and type.
#[derive(Clone, Copy)]
pub struct Attrs {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
}

pub const ATTRS: Attrs = Attrs { mode: 0o644, uid: 0, gid: 0, mtime: 1_700_000_000 };

impl Layer {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// A whole entry of any type.
    pub fn entry(mut self, flag: u8, name: &str, link: &str, attrs: Attrs, data: &[u8]) -> Self {
        self.0.extend(header(flag, name.as_bytes(), link.as_bytes(), attrs, data.len() as u64));
        self.data(data)
    }

    /// Bytes, padded to a block.
    pub fn data(mut self, data: &[u8]) -> Self {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(b'0', name, "", ATTRS, data)
    }

    pub fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "", Attrs { mode: 0o755, ..ATTRS }, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target, Attrs { mode: 0o777, ..ATTRS }, b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, target, ATTRS, b"")
    }

    /// A pax header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            let mut len = rest.len() + 1;
            while len != rest.len() + len.to_string().len() {
                len = rest.len() + len.to_string().len();
            }
            text.extend(len.to_string().into_bytes());
            text.extend(rest);
        }
        self.entry(b'x', "pax", "", ATTRS, &text)
    }

    pub fn bytes(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    /// Without the archive's end.
    pub fn unfinished(self) -> Vec<u8> {
        self.0
    }
}

pub fn header(flag: u8, name: &[u8], link: &[u8], attrs: Attrs, size: u64) -> [u8; 512] {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(tar::EntryType::new(flag));
    header.set_mode(attrs.mode);
    header.set_uid(attrs.uid);
    header.set_gid(attrs.gid);
    header.set_mtime(attrs.mtime);
    header.set_size(size);
    header.set_cksum();
    *header.as_bytes()
}

/// A finished image.
pub struct Image {
    pub reader: ErofsReader<File>,
    pub summary: Summary,
    _file: tempfile::NamedTempFile,
}

pub fn try_build(layers: &[Vec<u8>], limits: Limits) -> Result<Image, ApplyError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut builder = ImageBuilder::new(file.reopen().unwrap(), limits).unwrap();
    for layer in layers {
        builder.apply_layer(&layer[..], |_| ControlFlow::Continue(()))?;
    }
    let summary = builder.finish(LEN).unwrap();
    assert_eq!(summary.file.metadata().unwrap().len(), LEN);
    let output = Command::new("fsck.erofs")
        .arg(file.path())
        .output()
        .expect("fsck.erofs (package erofs-utils) runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("<E>"), "fsck.erofs: {text}");
    let reader = ErofsReader::open(file.reopen().unwrap()).unwrap();
    Ok(Image { reader, summary, _file: file })
}

pub fn build(layers: &[Vec<u8>]) -> Image {
    try_build(layers, Limits::default()).unwrap()
}

impl Image {
    /// Every path but the root's with one line on what is there.
    pub fn list(&self) -> BTreeMap<String, String> {
        let mut out = BTreeMap::new();
        self.list_into(&self.reader.root().unwrap(), "", &mut out);
        out
    }

    fn list_into(&self, dir: &Inode, prefix: &str, out: &mut BTreeMap<String, String>) {
        for entry in self.reader.read_dir(dir, usize::MAX).unwrap() {
            let path = format!("{prefix}{}", entry.name.escape_ascii());
            let inode = self.reader.inode(entry.nid).unwrap();
            let what = match inode.kind {
                FileKind::File if inode.size <= 100 => {
                    let data = self.reader.read_inode(&inode, 100).unwrap();
                    format!("file {}", data.escape_ascii())
                }
                FileKind::File => format!("file of {}", inode.size),
                FileKind::Symlink => {
                    format!("-> {}", self.reader.read_link(&inode).unwrap().escape_ascii())
                }
                FileKind::Directory => "dir".to_string(),
                other => format!("{other:?}"),
            };
            out.insert(path.clone(), what);
            if inode.kind == FileKind::Directory {
                self.list_into(&inode, &format!("{path}/"), out);
            }
        }
    }

    /// The list as lines `path: what`.
    pub fn lines(&self) -> Vec<String> {
        self.list().into_iter().map(|(path, what)| format!("{path}: {what}")).collect()
    }

    pub fn inode(&self, path: &str) -> Inode {
        self.reader.lookup_no_follow(path.as_bytes()).unwrap()
    }

    pub fn read(&self, path: &str) -> Vec<u8> {
        self.reader.read_file(path.as_bytes(), 1 << 26).unwrap()
    }
}
