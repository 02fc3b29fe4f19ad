//! Copies a directory with all that belongs to it: owners, modes, times, attributes, links.

use nix::libc;
use nix::sys::stat::UtimensatFlags::NoFollowSymlink;
use nix::sys::stat::{Mode, SFlag, mknod, utimensat};
use nix::sys::time::TimeSpec;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

/// Directories within each other.
const MAX_DEPTH: usize = 1000;
/// Bytes of an attribute, and of the list of their names (`XATTR_SIZE_MAX`).
const MAX_ATTRIBUTE: usize = 64 << 10;

/// Copies what is in `from` into the directory `to`, and `from`'s own attributes to it. Neither is
/// used by anybody else. Whatever is mounted below `from` stays out.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let meta = fs::metadata(from)?;
    let mut copier = Copier { device: meta.dev(), links: HashMap::new() };
    copier.directory(from, to, &meta, 0)
}

struct Copier {
    device: u64,
    /// Copies of files with several names, by inode.
    links: HashMap<u64, PathBuf>,
}

impl Copier {
    fn directory(
        &mut self,
        from: &Path,
        to: &Path,
        meta: &Metadata,
        depth: usize,
    ) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other("directories are too deep"));
        }
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            let meta = fs::symlink_metadata(&from)?;
            if meta.is_dir() {
                if meta.dev() == self.device {
                    fs::create_dir(&to)?;
                    self.directory(&from, &to, &meta, depth + 1)?;
                }
            } else {
                self.file(&from, &to, &meta)?;
            }
        }
        // Last: what was made in it has changed its times.
        adopt(from, to, meta)
    }

    fn file(&mut self, from: &Path, to: &Path, meta: &Metadata) -> io::Result<()> {
        if meta.nlink() > 1 {
            if let Some(first) = self.links.get(&meta.ino()) {
                return fs::hard_link(first, to);
            }
            self.links.insert(meta.ino(), to.to_owned());
        }
        let kind = meta.file_type();
        if kind.is_symlink() {
            symlink(fs::read_link(from)?, to)?;
        } else if kind.is_file() {
            io::copy(&mut File::open(from)?, &mut File::create_new(to)?)?;
        } else {
            let kind = SFlag::from_bits_truncate(meta.mode() & libc::S_IFMT);
            mknod(to, kind, Mode::from_bits_truncate(0o600), meta.rdev())?;
        }
        adopt(from, to, meta)
    }
}

/// Gives a copy the original's attributes.
fn adopt(from: &Path, to: &Path, meta: &Metadata) -> io::Result<()> {
    lchown(to, Some(meta.uid()), Some(meta.gid()))?;
    attributes(from, to)?;
    if !meta.file_type().is_symlink() {
        // After the owner, whose change takes set-id bits away.
        fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    }
    let time = |seconds, nanoseconds| TimeSpec::new(seconds, nanoseconds);
    let accessed = time(meta.atime(), meta.atime_nsec());
    let modified = time(meta.mtime(), meta.mtime_nsec());
    utimensat(nix::fcntl::AT_FDCWD, to, &accessed, &modified, NoFollowSymlink)
        .map_err(io::Error::from)
}

/// All that the kernel lists, file capabilities and access lists among them.
fn attributes(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    let mut names = vec![0u8; MAX_ATTRIBUTE];
    // SAFETY: the buffer has the length that is given, the path ends with NUL.
    let len = unsafe { libc::llistxattr(from.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    if len < 0 {
        return unless_unsupported(io::Error::last_os_error());
    }
    for name in names[..len as usize].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        // Those of overlayfs are its own business.
        if !name.to_bytes().starts_with(b"trusted.overlay.") {
            attribute(&from, &to, name)?;
        }
    }
    Ok(())
}

fn attribute(from: &CStr, to: &CStr, name: &CStr) -> io::Result<()> {
    let mut value = vec![0u8; MAX_ATTRIBUTE];
    let (buffer, len) = (value.as_mut_ptr().cast(), value.len());
    // SAFETY: the buffer has the length that is given, both names end with NUL.
    let len = unsafe { libc::lgetxattr(from.as_ptr(), name.as_ptr(), buffer, len) };
    if len < 0 {
        return unless_unsupported(io::Error::last_os_error());
    }
    let value = value.as_ptr().cast();
    // SAFETY: as above; so many bytes were just written there.
    let set = unsafe { libc::lsetxattr(to.as_ptr(), name.as_ptr(), value, len as usize, 0) };
    if set < 0 { unless_unsupported(io::Error::last_os_error()) } else { Ok(()) }
}

/// A file system without attributes has none to keep.
fn unless_unsupported(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENODATA) => Ok(()),
        _ => Err(error),
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_all_of_the_original() {
        let directory = std::env::temp_dir().join(format!("tree-{}", std::process::id()));
        let (from, to) = (directory.join("from"), directory.join("to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("sub/file"), "text").unwrap();
        fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(from.join("sub/file"), from.join("other")).unwrap();
        symlink("/nowhere", from.join("link")).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o1777)).unwrap();
        let pipe = Mode::from_bits_truncate(0o600);
        nix::unistd::mkfifo(&from.join("pipe"), pipe).unwrap();
        let old = TimeSpec::new(1_000_000_000, 5);
        for path in ["sub", "link", "other"] {
            let path = from.join(path);
            utimensat(nix::fcntl::AT_FDCWD, &path, &old, &old, NoFollowSymlink).unwrap();
        }
        copy(&from, &to).unwrap();
        for name in ["", "sub", "sub/file", "other", "link", "pipe"] {
            let meta = |root: &Path| fs::symlink_metadata(root.join(name)).unwrap();
            let (one, two) = (meta(&from), meta(&to));
            let facts = |m: &Metadata| (m.mode(), m.uid(), m.gid(), m.nlink(), m.mtime());
            assert_eq!(facts(&one), facts(&two), "{name}");
        }
        assert_eq!(fs::read_to_string(to.join("other")).unwrap(), "text");
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/nowhere"));
        fs::remove_dir_all(&directory).unwrap();
    }
}
