//! A file system whose guest is told what the host changes.
//!
//! Around the file system that serves: it notes what the guest changes ([`crate::own`]), which
//! inode the guest has for which name, and answers the announcer ([`crate::announce`]), none of
//! whose requests for a change goes any further. Without shares that are watched it only passes
//! on.
//!
//! That set-user-id bits go with a write is agreed with the guest, which else would ask for
//! `security.capability` before each write. The host's kernel takes them, as the server has no
//! FSETID: nothing of it is left to do here (`kill_priv`).

use std::ffi::CStr;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SerializableFileSystem, SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse;

use crate::announce::{Active, Announcements, Role, is_announcer};
use crate::events::change;
use crate::filesystem::passed_on;
use crate::own::Key;

/// The announcer's file, which is no file: handles count up from 1.
const NO_FILE: u64 = u64::MAX;

/// The file system, and what is told where shares are watched.
pub struct Notifying<F>(pub F, pub Option<Arc<Announcements>>);

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl<F: FileSystem<Inode = u64, Handle = u64>> Notifying<F> {
    /// What an announcer is answered from.
    fn announcer(&self, ctx: &Context) -> Option<&Announcements> {
        self.1.as_deref().filter(|_| is_announcer(ctx))
    }

    /// Nothing is changed for the announcer.
    fn not_announcer(&self, ctx: &Context) -> io::Result<()> {
        self.announcer(ctx).map_or(Ok(()), |_| Err(error(libc::EPERM)))
    }

    /// The inode's number on the host; 0 when there is none.
    fn number(&self, ctx: Context, inode: u64) -> u64 {
        self.0.getattr(ctx, inode, None).map_or(0, |(attr, _)| attr.ino)
    }

    /// Makes a change of the guest.
    fn own<T, const N: usize>(
        &self,
        ctx: Context,
        keys: impl FnOnce() -> [Key; N],
        change: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.not_announcer(&ctx)?;
        match &self.1 {
            Some(all) => all.own.make(&keys(), change),
            None => change(),
        }
    }

    fn name(&self, ctx: Context, parent: u64, name: &CStr) -> Key {
        Key::Name(self.number(ctx, parent), name.to_bytes().to_vec())
    }

    fn inode(&self, ctx: Context, inode: u64) -> Key {
        Key::Inode(self.number(ctx, inode))
    }

    fn remember(&self, parent: u64, name: &CStr, entry: Entry) -> Entry {
        if let Some(all) = &self.1 {
            all.remember(parent, name.to_bytes(), entry.inode);
        }
        entry
    }

    /// What a name is in the event that is being told.
    fn role(
        &self,
        all: &Announcements,
        ctx: Context,
        parent: u64,
        name: &CStr,
    ) -> Option<(Active, Role)> {
        let active = all.active()?;
        let root = parent == fuse::ROOT_ID;
        let role = active.role(self.number(ctx, parent), root, name.to_bytes())?;
        Some((active, role))
    }

    /// Whether the host has a name now.
    fn exists(&self, ctx: Context, parent: u64, name: &CStr) -> bool {
        let found = self.0.lookup(ctx, parent, name);
        found.is_ok_and(|entry| {
            self.0.forget(ctx, entry.inode, 1);
            true
        })
    }

    /// What the announcer finds.
    fn find(
        &self,
        all: &Announcements,
        ctx: Context,
        parent: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        match self.role(all, ctx, parent, name) {
            None => self.0.lookup(ctx, parent, name),
            Some((_, Role::New)) => Err(error(libc::ENOENT)),
            Some((active, Role::Gone)) => {
                let moved = active.event.changes != change::DELETED;
                let again = self.exists(ctx, parent, name);
                if again && !moved {
                    return Err(error(libc::ENOENT));
                }
                let known = all.recall(parent, name.to_bytes()).filter(|_| !again);
                let known =
                    known.and_then(|inode| self.known(ctx, inode, active.event.kind, moved));
                Ok(known.unwrap_or_else(|| made_up(all, active.event.kind)))
            }
            Some((active, Role::Target)) => {
                let replaced = all.recall(parent, name.to_bytes());
                let replaced =
                    replaced.and_then(|inode| self.known(ctx, inode, active.event.kind, false));
                replaced.filter(|_| !active.event.is_directory()).ok_or_else(|| error(libc::ENOENT))
            }
        }
    }

    /// An inode that the guest has, if it is of that kind, and gone unless it has `moved`.
    fn known(&self, ctx: Context, inode: u64, kind: u32, moved: bool) -> Option<Entry> {
        let (attr, _) = self.0.getattr(ctx, inode, None).ok()?;
        let gone = moved || attr.nlink == 0 || kind == libc::S_IFDIR;
        (attr.mode & libc::S_IFMT == kind && gone).then(|| entry(inode, attr))
    }

    /// Makes a name, for the announcer only in word.
    fn make(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        make: impl FnOnce() -> io::Result<Entry>,
    ) -> io::Result<Entry> {
        if let Some(all) = self.announcer(&ctx) {
            return self.made(all, ctx, parent, name);
        }
        let made = self.own(ctx, || [self.name(ctx, parent, name)], make)?;
        Ok(self.remember(parent, name, made))
    }

    /// Removes a name, for the announcer only in word.
    fn remove(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        remove: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if let Some(all) = self.announcer(&ctx) {
            return self.removed(all, ctx, parent, name);
        }
        self.own(ctx, || [self.name(ctx, parent, name)], remove)?;
        if let Some(all) = &self.1 {
            all.forget(parent, name.to_bytes());
        }
        Ok(())
    }

    /// The announcer makes what there is already.
    fn made(
        &self,
        all: &Announcements,
        ctx: Context,
        parent: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        let Some((_, Role::New)) = self.role(all, ctx, parent, name) else {
            return Err(error(libc::EPERM));
        };
        let entry = self.0.lookup(ctx, parent, name)?;
        all.done();
        Ok(self.remember(parent, name, entry))
    }

    /// The announcer removes what is gone already.
    fn removed(
        &self,
        all: &Announcements,
        ctx: Context,
        parent: u64,
        name: &CStr,
    ) -> io::Result<()> {
        let role = self.role(all, ctx, parent, name);
        let deleted = role.is_some_and(|(active, role)| {
            role == Role::Gone && active.event.changes == change::DELETED
        });
        if !deleted {
            return Err(error(libc::EPERM));
        }
        if self.exists(ctx, parent, name) {
            return Err(error(libc::EBUSY));
        }
        all.done();
        all.forget(parent, name.to_bytes());
        Ok(())
    }

    /// The announcer moves what was moved already.
    fn moved(
        &self,
        all: &Announcements,
        ctx: Context,
        (olddir, oldname): (u64, &CStr),
        (newdir, newname): (u64, &CStr),
    ) -> io::Result<()> {
        let role = |parent, name| self.role(all, ctx, parent, name).map(|(_, role)| role);
        let roles = (role(olddir, oldname), role(newdir, newname));
        if roles != (Some(Role::Gone), Some(Role::Target)) {
            return Err(error(libc::EPERM));
        }
        if newdir != fuse::ROOT_ID && !self.exists(ctx, newdir, newname) {
            return Err(error(libc::ENOENT));
        }
        all.done();
        self.renamed((olddir, oldname), (newdir, newname));
        Ok(())
    }

    /// What the guest had under one name it has under another.
    fn renamed(&self, (olddir, oldname): (u64, &CStr), (newdir, newname): (u64, &CStr)) {
        let Some(all) = &self.1 else { return };
        let inode = all.recall(olddir, oldname.to_bytes());
        all.forget(olddir, oldname.to_bytes());
        match inode {
            Some(inode) if newdir != fuse::ROOT_ID => {
                all.remember(newdir, newname.to_bytes(), inode);
            }
            _ => all.forget(newdir, newname.to_bytes()),
        }
    }

    /// Times are how the announcer says which event it tells, and how it raises some.
    fn told(
        &self,
        all: &Announcements,
        ctx: Context,
        inode: u64,
        attr: &fuse::SetattrIn,
        valid: SetattrValid,
    ) -> io::Result<(fuse::Attr, Duration)> {
        let times = SetattrValid::ATIME | SetattrValid::MTIME;
        let allowed = times.contains(valid) && valid.contains(SetattrValid::MTIME);
        let known = match inode {
            fuse::ROOT_ID => allowed && all.begin(attr.mtime),
            _ => allowed && all.active().is_some_and(|active| active.event.token == attr.mtime),
        };
        match known {
            true => self.0.getattr(ctx, inode, None),
            false => Err(error(libc::EPERM)),
        }
    }
}

fn entry(inode: u64, attr: fuse::Attr) -> Entry {
    let (attr_timeout, entry_timeout) = (Duration::ZERO, Duration::ZERO);
    Entry { inode, generation: 0, attr, attr_timeout, entry_timeout }
}

/// A file that there is not.
fn made_up(all: &Announcements, kind: u32) -> Entry {
    let inode = all.make_up();
    let attr =
        fuse::Attr { ino: inode, mode: kind, nlink: 1, blksize: 4096, ..fuse::Attr::default() };
    entry(inode, attr)
}

impl<F: FileSystem<Inode = u64, Handle = u64>> FileSystem for Notifying<F> {
    type Inode = u64;
    type Handle = u64;
    type DirIter = F::DirIter;

    passed_on! {
        fn init(&self, capable: FsOptions) -> io::Result<FsOptions>;
        fn destroy(&self);
        fn forget(&self, ctx: Context, inode: u64, count: u64);
        fn batch_forget(&self, ctx: Context, requests: Vec<(u64, u64)>);
        fn getattr(&self, ctx: Context, inode: u64, handle: Option<u64>)
            -> io::Result<(fuse::Attr, Duration)>;
        fn readlink(&self, ctx: Context, inode: u64) -> io::Result<Vec<u8>>;
        fn read<W: ZeroCopyWriter>(
            &self, ctx: Context, inode: u64, handle: u64, w: W, size: u32, offset: u64,
            lock_owner: Option<u64>, flags: u32,
        ) -> io::Result<usize>;
        fn fsync(&self, ctx: Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()>;
        fn statfs(&self, ctx: Context, inode: u64) -> io::Result<libc::statvfs64>;
        fn getxattr(&self, ctx: Context, inode: u64, name: &CStr, size: u32)
            -> io::Result<GetxattrReply>;
        fn listxattr(&self, ctx: Context, inode: u64, size: u32) -> io::Result<ListxattrReply>;
        fn readdir(&self, ctx: Context, inode: u64, handle: u64, size: u32, offset: u64)
            -> io::Result<Self::DirIter>;
        fn fsyncdir(&self, ctx: Context, inode: u64, datasync: bool, handle: u64)
            -> io::Result<()>;
        fn opendir(&self, ctx: Context, inode: u64, flags: u32)
            -> io::Result<(Option<u64>, OpenOptions)>;
        fn releasedir(&self, ctx: Context, inode: u64, flags: u32, handle: u64) -> io::Result<()>;
        fn lseek(&self, ctx: Context, inode: u64, handle: u64, offset: u64, whence: u32)
            -> io::Result<u64>;
        fn syncfs(&self, ctx: Context, inode: u64) -> io::Result<()>;
        fn access(&self, ctx: Context, inode: u64, mask: u32) -> io::Result<()>;
    }

    fn lookup(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        match self.announcer(&ctx) {
            Some(all) => self.find(all, ctx, parent, name),
            None => Ok(self.remember(parent, name, self.0.lookup(ctx, parent, name)?)),
        }
    }

    fn open(
        &self,
        ctx: Context,
        inode: u64,
        _kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        if let Some(all) = self.announcer(&ctx) {
            let closed = |active: Active| active.event.changes & change::CLOSED != 0;
            let writes = flags & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32;
            return match writes && all.active().is_some_and(closed) {
                true => Ok((Some(NO_FILE), OpenOptions::empty())),
                false => Err(error(libc::EPERM)),
            };
        }
        match flags & libc::O_TRUNC as u32 {
            0 => self.0.open(ctx, inode, false, flags),
            _ => {
                let keys = || [self.inode(ctx, inode)];
                self.own(ctx, keys, || self.0.open(ctx, inode, false, flags))
            }
        }
    }

    fn flush(&self, ctx: Context, inode: u64, handle: u64, lock_owner: u64) -> io::Result<()> {
        match handle {
            NO_FILE => Ok(()),
            _ => self.0.flush(ctx, inode, handle, lock_owner),
        }
    }

    fn release(
        &self,
        ctx: Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        if handle == NO_FILE {
            return Ok(());
        }
        let keys = || [self.inode(ctx, inode)];
        self.own(ctx, keys, || {
            self.0.release(ctx, inode, flags, handle, flush, flock_release, lock_owner)
        })
    }

    fn unlink(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(ctx, parent, name, || self.0.unlink(ctx, parent, name))
    }

    fn rmdir(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(ctx, parent, name, || self.0.rmdir(ctx, parent, name))
    }

    fn rename(
        &self,
        ctx: Context,
        olddir: u64,
        oldname: &CStr,
        newdir: u64,
        newname: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        if let Some(all) = self.announcer(&ctx) {
            return self.moved(all, ctx, (olddir, oldname), (newdir, newname));
        }
        let keys = || [self.name(ctx, olddir, oldname), self.name(ctx, newdir, newname)];
        self.own(ctx, keys, || self.0.rename(ctx, olddir, oldname, newdir, newname, flags))?;
        self.renamed((olddir, oldname), (newdir, newname));
        Ok(())
    }

    fn link(&self, ctx: Context, inode: u64, newparent: u64, newname: &CStr) -> io::Result<Entry> {
        let keys = || [self.inode(ctx, inode), self.name(ctx, newparent, newname)];
        let made = self.own(ctx, keys, || self.0.link(ctx, inode, newparent, newname))?;
        Ok(self.remember(newparent, newname, made))
    }

    fn symlink(
        &self,
        ctx: Context,
        linkname: &CStr,
        parent: u64,
        name: &CStr,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        self.make(ctx, parent, name, || self.0.symlink(ctx, linkname, parent, name, extensions))
    }

    fn create(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        _kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions)> {
        let keys = || [self.name(ctx, parent, name)];
        let (entry, handle, options) = self.own(ctx, keys, || {
            self.0.create(ctx, parent, name, mode, false, flags, umask, extensions)
        })?;
        Ok((self.remember(parent, name, entry), handle, options))
    }

    fn mknod(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        self.make(ctx, parent, name, || {
            self.0.mknod(ctx, parent, name, mode, rdev, umask, extensions)
        })
    }

    fn mkdir(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        self.make(ctx, parent, name, || self.0.mkdir(ctx, parent, name, mode, umask, extensions))
    }

    fn setattr(
        &self,
        ctx: Context,
        inode: u64,
        attr: fuse::SetattrIn,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(fuse::Attr, Duration)> {
        if let Some(all) = self.announcer(&ctx) {
            return self.told(all, ctx, inode, &attr, valid);
        }
        let keys = || [self.inode(ctx, inode)];
        let valid = valid & !SetattrValid::KILL_SUIDGID;
        self.own(ctx, keys, || self.0.setattr(ctx, inode, attr, handle, valid))
    }

    fn write<R: ZeroCopyReader>(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        r: R,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        _kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        let keys = || [self.inode(ctx, inode)];
        self.own(ctx, keys, || {
            self.0.write(
                ctx,
                inode,
                handle,
                r,
                size,
                offset,
                lock_owner,
                delayed_write,
                false,
                flags,
            )
        })
    }

    fn fallocate(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let keys = || [self.inode(ctx, inode)];
        self.own(ctx, keys, || self.0.fallocate(ctx, inode, handle, mode, offset, length))
    }

    fn setxattr(
        &self,
        ctx: Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
        extra_flags: SetxattrFlags,
    ) -> io::Result<()> {
        let keys = || [self.inode(ctx, inode)];
        self.own(ctx, keys, || self.0.setxattr(ctx, inode, name, value, flags, extra_flags))
    }

    fn removexattr(&self, ctx: Context, inode: u64, name: &CStr) -> io::Result<()> {
        let keys = || [self.inode(ctx, inode)];
        self.own(ctx, keys, || self.0.removexattr(ctx, inode, name))
    }

    fn copyfilerange(
        &self,
        ctx: Context,
        inode_in: u64,
        handle_in: u64,
        offset_in: u64,
        inode_out: u64,
        handle_out: u64,
        offset_out: u64,
        len: u64,
        flags: u64,
    ) -> io::Result<usize> {
        let keys = || [self.inode(ctx, inode_out)];
        self.own(ctx, keys, || {
            self.0.copyfilerange(
                ctx, inode_in, handle_in, offset_in, inode_out, handle_out, offset_out, len, flags,
            )
        })
    }
}

/// A VM with shares is not moved.
impl<F> SerializableFileSystem for Notifying<F> {}

#[cfg(test)]
mod tests;
