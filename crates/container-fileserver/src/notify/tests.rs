//! The announcer's requests against a real directory, which none of them may change.

use super::*;
use crate::announce::{ANNOUNCER, ELSEWHERE};
use crate::events::{Event, Place};
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tempfile::TempDir;
use virtiofsd::passthrough::{Config, PassthroughFs};

/// A directory `0` with a file, as the file system that is served.
struct Served {
    directory: TempDir,
    files: Notifying<PassthroughFs>,
    /// `0`.
    share: u64,
}

fn guest() -> Context {
    Context { uid: 0.into(), gid: 0.into(), pid: 7 }
}

fn announcer() -> Context {
    Context { uid: ANNOUNCER.into(), gid: 0.into(), pid: 0 }
}

fn code<T>(result: io::Result<T>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

fn times(token: u64) -> (fuse::SetattrIn, SetattrValid) {
    (fuse::SetattrIn { mtime: token, ..fuse::SetattrIn::default() }, SetattrValid::MTIME)
}

impl Served {
    fn new() -> Served {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("0")).unwrap();
        fs::write(directory.path().join("0/file"), "text").unwrap();
        let root_dir = directory.path().to_str().unwrap().to_owned();
        let inner = PassthroughFs::new(Config { root_dir, ..Config::default() }).unwrap();
        let files = Notifying(inner, Some(Arc::new(Announcements::new().unwrap())));
        files.init(FsOptions::empty()).unwrap();
        let share = files.lookup(guest(), fuse::ROOT_ID, c"0").unwrap().inode;
        Served { directory, files, share }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join("0").join(name)
    }

    /// Sends an event of `name`, and of `to`, and begins to tell it.
    fn tell(&self, changes: u32, name: &str, to: Option<&str>) -> u64 {
        let parent = fs::metadata(self.directory.path().join("0")).unwrap().ino();
        let place = |name: &str| Place { parent, path: format!("0/{name}").into_bytes() };
        let all = self.files.1.as_ref().unwrap();
        let token = 1000 + all.make_up() % 1000;
        let (place, to) = (place(name), to.map(place));
        all.sent(Event { token, changes, kind: libc::S_IFREG, place, to });
        let (attr, valid) = times(token);
        self.files.setattr(announcer(), fuse::ROOT_ID, attr, None, valid).unwrap();
        token
    }

    fn find(&self, ctx: Context, name: &CStr) -> io::Result<Entry> {
        self.files.lookup(ctx, self.share, name)
    }

    fn mknod(&self, name: &CStr) -> io::Result<Entry> {
        let mode = libc::S_IFREG | 0o600;
        self.files.mknod(announcer(), self.share, name, mode, 0, 0, Extensions::default())
    }
}

/// All that a directory holds, with what is known of it.
fn snapshot(directory: &Path) -> Vec<(String, u64, i64, i64, u32, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .flatten()
        .map(|entry| {
            let found = entry.metadata().unwrap();
            let content = fs::read(entry.path()).unwrap_or_default();
            let name = entry.file_name().into_string().unwrap();
            let changed = (found.mtime_nsec(), found.ctime_nsec());
            (name, found.ino(), changed.0, changed.1, found.mode(), content)
        })
        .collect();
    all.sort();
    all
}

#[test]
fn what_is_new_is_made_once_for_the_announcer_alone() {
    let it = Served::new();
    fs::write(it.path("new"), "new").unwrap();
    let before = snapshot(&it.path(""));
    it.tell(change::CREATED, "new", None);
    assert_eq!(code(it.find(announcer(), c"new")), libc::ENOENT);
    let there = it.find(guest(), c"new").unwrap().inode;
    assert_eq!(code(it.mknod(c"other")), libc::EPERM);
    assert_eq!(it.mknod(c"new").unwrap().inode, there);
    assert_eq!(it.find(announcer(), c"new").unwrap().inode, there);
    assert_eq!(code(it.mknod(c"new")), libc::EPERM);
    // What is not there is not made.
    it.tell(change::CREATED, "none", None);
    assert_eq!(code(it.mknod(c"none")), libc::ENOENT);
    assert_eq!(snapshot(&it.path("")), before);
}

#[test]
fn what_is_gone_is_removed_once_and_nothing_else() {
    let it = Served::new();
    let inode = it.find(guest(), c"file").unwrap().inode;
    fs::remove_file(it.path("file")).unwrap();
    it.tell(change::DELETED, "file", None);
    // The guest's own inode, so that whoever watches it hears of it.
    assert_eq!(it.find(announcer(), c"file").unwrap().inode, inode);
    assert_eq!(code(it.find(guest(), c"file")), libc::ENOENT);
    it.files.unlink(announcer(), it.share, c"file").unwrap();
    assert_eq!(code(it.files.unlink(announcer(), it.share, c"file")), libc::EPERM);

    // It is there again: neither is it found gone, nor removed.
    it.tell(change::DELETED, "file", None);
    assert!(it.find(announcer(), c"file").unwrap().inode >> 63 == 1);
    fs::write(it.path("file"), "again").unwrap();
    let before = snapshot(&it.path(""));
    assert_eq!(code(it.find(announcer(), c"file")), libc::ENOENT);
    assert_eq!(code(it.files.unlink(announcer(), it.share, c"file")), libc::EBUSY);
    assert_eq!(snapshot(&it.path("")), before);
}

#[test]
fn what_has_moved_is_moved_once() {
    let it = Served::new();
    let inode = it.find(guest(), c"file").unwrap().inode;
    fs::rename(it.path("file"), it.path("other")).unwrap();
    let before = snapshot(&it.path(""));
    it.tell(change::MOVED, "file", Some("other"));
    let rename =
        |old: &CStr, new: &CStr| it.files.rename(announcer(), it.share, old, it.share, new, 0);
    assert_eq!(it.find(announcer(), c"file").unwrap().inode, inode);
    assert_eq!(code(it.find(announcer(), c"other")), libc::ENOENT);
    assert_eq!(code(rename(c"other", c"file")), libc::EPERM);
    rename(c"file", c"other").unwrap();
    assert_eq!(code(rename(c"file", c"other")), libc::EPERM);

    let elsewhere = CString::new(ELSEWHERE).unwrap();
    it.tell(change::MOVED_OUT, "none", None);
    let out =
        |name: &CStr| it.files.rename(announcer(), it.share, name, fuse::ROOT_ID, &elsewhere, 0);
    assert_eq!(code(out(c"other")), libc::EPERM);
    out(c"none").unwrap();
    it.tell(change::MOVED_IN, "other", None);
    it.files.rename(announcer(), fuse::ROOT_ID, &elsewhere, it.share, c"other", 0).unwrap();
    assert_eq!(snapshot(&it.path("")), before);
}

#[test]
fn the_announcer_changes_nothing_whatever_it_asks_for() {
    let it = Served::new();
    let file = it.find(guest(), c"file").unwrap().inode;
    let before = snapshot(&it.path(""));
    let token = it.tell(change::MODIFIED | change::CLOSED, "file", None);
    let (files, ctx, share) = (&it.files, announcer(), it.share);
    let (attr, valid) = times(token);
    files.setattr(ctx, file, attr, None, valid).unwrap();
    let writes = (libc::O_WRONLY | libc::O_TRUNC) as u32;
    let (handle, _) = files.open(ctx, file, false, writes).unwrap();
    assert_eq!(handle, Some(NO_FILE));
    files.flush(ctx, file, NO_FILE, 0).unwrap();
    files.release(ctx, file, 0, NO_FILE, false, false, None).unwrap();
    // A stranger can't use it.
    assert_eq!(code(files.fallocate(guest(), file, NO_FILE, 0, 0, 10)), libc::EBADF);

    let set = |attr, valid| code(files.setattr(ctx, file, attr, None, valid));
    let none = Extensions::default;
    for refused in [
        set(fuse::SetattrIn { mtime: token + 1, ..attr }, valid),
        set(attr, valid | SetattrValid::SIZE),
        set(attr, valid | SetattrValid::MTIME_NOW),
        set(attr, SetattrValid::MODE),
        code(files.setattr(ctx, fuse::ROOT_ID, attr, None, valid)),
        code(files.open(ctx, file, false, libc::O_RDWR as u32)),
        code(files.create(ctx, share, c"x", 0o600, false, 0, 0, none())),
        code(files.mknod(ctx, share, c"x", libc::S_IFREG, 0, 0, none())),
        code(files.mkdir(ctx, share, c"x", 0o700, 0, none())),
        code(files.symlink(ctx, c"y", share, c"x", none())),
        code(files.link(ctx, file, share, c"x")),
        code(files.unlink(ctx, share, c"file")),
        code(files.rmdir(ctx, share, c"file")),
        code(files.rename(ctx, share, c"file", share, c"x", 0)),
        code(files.fallocate(ctx, file, 1, 0, 0, 10)),
        code(files.setxattr(ctx, file, c"user.a", b"b", 0, SetxattrFlags::empty())),
        code(files.removexattr(ctx, file, c"user.a")),
        code(files.copyfilerange(ctx, file, 1, 0, file, 2, 0, 1, 0)),
    ] {
        assert_eq!(refused, libc::EPERM);
    }
    assert_eq!(snapshot(&it.path("")), before);
    // Others with its user are themselves.
    let other = Context { pid: 5, ..announcer() };
    assert_eq!(code(files.open(other, file, false, libc::O_RDONLY as u32)), 0);
}
