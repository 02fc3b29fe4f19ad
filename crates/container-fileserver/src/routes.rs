//! Shares whose owners are mapped in different ways, as one file system.
//!
//! Each way has a file system of its own; the upper bits of an inode's number say which. Share i is
//! reached by its name in the root alone, which leads to the one that is meant for it: no number
//! that a guest makes up has a share seen with another's owners.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::libc;
use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SerializableFileSystem, SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse;
use virtiofsd::soft_idmap::Id;

use crate::Result;
use crate::filesystem::Shares;
use crate::ids::Identities;
use crate::owners::{Maps, Owners};

/// Inode numbers count up from 1, hence stay below.
const SHIFT: u32 = 48;

/// All shares.
pub struct Routes {
    systems: Vec<Shares>,
    /// The file system of each share.
    of_share: Vec<usize>,
    identities: Identities,
    /// Whether it was said how to get more ids.
    said: AtomicBool,
}

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// What the library refuses is not permitted, nor an id that the host has no place for.
fn refused(failure: io::Error) -> io::Error {
    match failure.raw_os_error() {
        None if failure.kind() == io::ErrorKind::PermissionDenied => error(libc::EPERM),
        Some(libc::EINVAL) => error(libc::EPERM),
        _ => failure,
    }
}

impl Routes {
    /// None yet.
    pub fn new(identities: Identities) -> Routes {
        let said = AtomicBool::new(false);
        Routes { systems: Vec::new(), of_share: Vec::new(), identities, said }
    }

    /// How the file systems to add map ids, for shares with these owners on the host.
    pub fn plan<'a>(
        &mut self,
        shares: impl Iterator<Item = (&'a Owners, (u32, u32))>,
    ) -> Result<Vec<Maps>> {
        let (mut known, mut all) = (BTreeMap::new(), Vec::new());
        for (owners, (uid, gid)) in shares {
            let maps = owners.maps(&self.identities, uid, gid)?;
            let system = *known.entry(format!("{maps:?}")).or_insert_with(|| {
                all.push(maps);
                all.len() - 1
            });
            self.of_share.push(system);
        }
        Ok(all)
    }

    /// The next file system of the plan.
    pub fn add(&mut self, shares: Shares) {
        self.systems.push(shares);
    }

    fn of(&self, inode: u64) -> io::Result<(&Shares, u64)> {
        let (system, inode) = split(inode);
        let system = self.systems.get(system).ok_or_else(|| error(libc::EBADF))?;
        Ok((system, inode))
    }

    /// As [`Self::of`], where both must be in one.
    fn of_both(&self, one: u64, other: u64) -> io::Result<(&Shares, u64, u64)> {
        let (system, one_there) = self.of(one)?;
        match split(other) {
            (other, there) if other == split(one).0 => Ok((system, one_there, there)),
            _ => Err(error(libc::EXDEV)),
        }
    }

    /// Says once in a log why an owner is refused that the user has no id for.
    fn explained(&self, failure: io::Error, uid: Option<u32>, gid: Option<u32>) -> io::Error {
        let failure = refused(failure);
        let Some(advice) = &self.identities.advice else { return failure };
        let lacks = uid.is_some_and(|id| !self.identities.users.has(id))
            || gid.is_some_and(|id| !self.identities.groups.has(id));
        if failure.raw_os_error() == Some(libc::EPERM)
            && lacks
            && !self.said.swap(true, Ordering::Relaxed)
        {
            eprintln!("container-fileserver: files of other users than you are refused: {advice}");
        }
        failure
    }

    /// As [`Self::of`], for who makes a file. "No id" would leave it to the server.
    fn of_maker(&self, ctx: Context, parent: u64) -> io::Result<(&Shares, u64)> {
        match (ctx.uid.into_inner(), ctx.gid.into_inner()) {
            (u32::MAX, _) | (_, u32::MAX) => Err(error(libc::EPERM)),
            _ => self.of(parent),
        }
    }

    fn made<T>(&self, made: io::Result<T>, ctx: Context) -> io::Result<T> {
        let (uid, gid) = (ctx.uid.into_inner(), ctx.gid.into_inner());
        made.map_err(|failure| self.explained(failure, Some(uid), Some(gid)))
    }
}

/// Which file system, and the number there.
fn split(inode: u64) -> (usize, u64) {
    ((inode >> SHIFT) as usize, inode & ((1 << SHIFT) - 1))
}

/// The number that the guest gets for an inode of the file system that `near` is in.
fn tagged(near: u64, mut entry: Entry) -> Entry {
    if entry.inode != 0 {
        entry.inode |= near >> SHIFT << SHIFT;
    }
    entry
}

/// Functions of one inode, that its file system answers.
macro_rules! routed {
    {
        $(
            fn $name:ident$(<$generic:ident: $bound:path>)?(
                &self, ctx: Context, inode: u64 $(, $argument:ident: $kind:ty)* $(,)?
            ) -> $answer:ty;
        )*
    } => {
        $(
            fn $name$(<$generic: $bound>)?(
                &self, ctx: Context, inode: u64 $(, $argument: $kind)*
            ) -> io::Result<$answer> {
                let (system, inode) = self.of(inode)?;
                system.$name(ctx, inode $(, $argument)*)
            }
        )*
    }
}

impl FileSystem for Routes {
    type Inode = u64;
    type Handle = u64;
    type DirIter = <Shares as FileSystem>::DirIter;

    routed! {
        fn readlink(&self, ctx: Context, inode: u64) -> Vec<u8>;
        fn read<W: ZeroCopyWriter>(
            &self, ctx: Context, inode: u64, handle: u64, w: W, size: u32, offset: u64,
            lock_owner: Option<u64>, flags: u32,
        ) -> usize;
        fn write<R: ZeroCopyReader>(
            &self, ctx: Context, inode: u64, handle: u64, r: R, size: u32, offset: u64,
            lock_owner: Option<u64>, delayed_write: bool, kill_priv: bool, flags: u32,
        ) -> usize;
        fn flush(&self, ctx: Context, inode: u64, handle: u64, lock_owner: u64) -> ();
        fn fsync(&self, ctx: Context, inode: u64, datasync: bool, handle: u64) -> ();
        fn fsyncdir(&self, ctx: Context, inode: u64, datasync: bool, handle: u64) -> ();
        fn statfs(&self, ctx: Context, inode: u64) -> libc::statvfs64;
        fn lseek(&self, ctx: Context, inode: u64, handle: u64, offset: u64, whence: u32) -> u64;
        fn fallocate(
            &self, ctx: Context, inode: u64, handle: u64, mode: u32, offset: u64, length: u64,
        ) -> ();
        fn release(
            &self, ctx: Context, inode: u64, flags: u32, handle: u64, flush: bool,
            flock_release: bool, lock_owner: Option<u64>,
        ) -> ();
        fn releasedir(&self, ctx: Context, inode: u64, flags: u32, handle: u64) -> ();
        fn readdir(
            &self, ctx: Context, inode: u64, handle: u64, size: u32, offset: u64,
        ) -> Self::DirIter;
        fn open(
            &self, ctx: Context, inode: u64, kill_priv: bool, flags: u32,
        ) -> (Option<u64>, OpenOptions);
        fn opendir(
            &self, ctx: Context, inode: u64, flags: u32,
        ) -> (Option<u64>, OpenOptions);
        fn access(&self, ctx: Context, inode: u64, mask: u32) -> ();
        fn getattr(
            &self, ctx: Context, inode: u64, handle: Option<u64>,
        ) -> (fuse::Attr, Duration);
        fn getxattr(&self, ctx: Context, inode: u64, name: &CStr, size: u32) -> GetxattrReply;
        fn listxattr(&self, ctx: Context, inode: u64, size: u32) -> ListxattrReply;
        fn setxattr(
            &self, ctx: Context, inode: u64, name: &CStr, value: &[u8], flags: u32,
            extra_flags: SetxattrFlags,
        ) -> ();
        fn removexattr(&self, ctx: Context, inode: u64, name: &CStr) -> ();
        fn unlink(&self, ctx: Context, inode: u64, name: &CStr) -> ();
        fn rmdir(&self, ctx: Context, inode: u64, name: &CStr) -> ();
    }

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        let mut agreed = FsOptions::all();
        for system in &self.systems {
            agreed &= system.init(capable)?;
        }
        Ok(agreed)
    }

    fn destroy(&self) {
        self.systems.iter().for_each(Shares::destroy);
    }

    fn forget(&self, ctx: Context, inode: u64, count: u64) {
        if let Ok((system, inode)) = self.of(inode) {
            system.forget(ctx, inode, count);
        }
    }

    fn batch_forget(&self, ctx: Context, requests: Vec<(u64, u64)>) {
        let mut all = vec![Vec::new(); self.systems.len()];
        for (inode, count) in requests {
            let (system, inode) = split(inode);
            if let Some(requests) = all.get_mut(system) {
                requests.push((inode, count));
            }
        }
        for (system, requests) in self.systems.iter().zip(all) {
            system.batch_forget(ctx, requests);
        }
    }

    /// Of the root, which is all that a guest's kernel asks for: the file system of every share.
    /// The root itself is a place of ours that nobody may open.
    fn syncfs(&self, ctx: Context, inode: u64) -> io::Result<()> {
        if split(inode).1 != fuse::ROOT_ID {
            let (system, inode) = self.of(inode)?;
            return system.syncfs(ctx, inode);
        }
        for share in 0..self.of_share.len() {
            let name = CString::new(share.to_string())?;
            let found = self.lookup(ctx, fuse::ROOT_ID, &name)?.inode;
            let (system, there) = self.of(found)?;
            let synced = system.syncfs(ctx, there);
            system.forget(ctx, there, 1);
            synced?;
        }
        Ok(())
    }

    fn lookup(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let parent = match split(parent) {
            (_, fuse::ROOT_ID) => {
                let share = name.to_str().ok().and_then(|name| name.parse::<usize>().ok());
                let system = share.and_then(|share| self.of_share.get(share));
                let system = system.ok_or_else(|| error(libc::ENOENT))?;
                (*system as u64) << SHIFT | fuse::ROOT_ID
            }
            _ => parent,
        };
        let (system, there) = self.of(parent)?;
        Ok(tagged(parent, system.lookup(ctx, there, name)?))
    }

    fn setattr(
        &self,
        ctx: Context,
        inode: u64,
        attr: fuse::SetattrIn,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(fuse::Attr, Duration)> {
        let (system, inode) = self.of(inode)?;
        let uid = valid.contains(SetattrValid::UID).then(|| attr.uid.into_inner());
        let gid = valid.contains(SetattrValid::GID).then(|| attr.gid.into_inner());
        let set = system.setattr(ctx, inode, attr, handle, valid);
        match uid.is_some() || gid.is_some() {
            true => set.map_err(|failure| self.explained(failure, uid, gid)),
            false => set,
        }
    }

    fn create(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions)> {
        let (system, there) = self.of_maker(ctx, parent)?;
        let made = system.create(ctx, there, name, mode, kill_priv, flags, umask, extensions);
        let (entry, handle, options) = self.made(made, ctx)?;
        Ok((tagged(parent, entry), handle, options))
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
        let (system, there) = self.of_maker(ctx, parent)?;
        let made = system.mknod(ctx, there, name, mode, rdev, umask, extensions);
        Ok(tagged(parent, self.made(made, ctx)?))
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
        let (system, there) = self.of_maker(ctx, parent)?;
        let made = system.mkdir(ctx, there, name, mode, umask, extensions);
        Ok(tagged(parent, self.made(made, ctx)?))
    }

    fn symlink(
        &self,
        ctx: Context,
        linkname: &CStr,
        parent: u64,
        name: &CStr,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        let (system, there) = self.of_maker(ctx, parent)?;
        let made = system.symlink(ctx, linkname, there, name, extensions);
        Ok(tagged(parent, self.made(made, ctx)?))
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
        let (system, olddir, newdir) = self.of_both(olddir, newdir)?;
        system.rename(ctx, olddir, oldname, newdir, newname, flags)
    }

    fn link(&self, ctx: Context, inode: u64, newparent: u64, newname: &CStr) -> io::Result<Entry> {
        let (system, inode, there) = self.of_both(inode, newparent)?;
        Ok(tagged(newparent, system.link(ctx, inode, there, newname)?))
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
        let (system, inode_in, inode_out) = self.of_both(inode_in, inode_out)?;
        system.copyfilerange(
            ctx, inode_in, handle_in, offset_in, inode_out, handle_out, offset_out, len, flags,
        )
    }
}

/// A VM with shares is not moved.
impl SerializableFileSystem for Routes {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_one_mapping_have_one_file_system() {
        let mut routes = Routes::new(Identities::everybody());
        let words = ["-", "uid=5", "-", "uid=5", "uid=6"];
        let owners = words.map(|word| Owners::parse(word).unwrap());
        let plan = routes.plan(owners.iter().map(|owners| (owners, (0, 0)))).unwrap();
        assert_eq!(plan.len(), 3);
        assert_eq!(routes.of_share, [0, 1, 0, 1, 2]);
        // The same wish means another thing where the owner on the host is another.
        let wish = Owners::parse("uid=5").unwrap();
        let mut routes = Routes::new(Identities::everybody());
        routes.plan([(&wish, (1, 1)), (&wish, (2, 2))].into_iter()).unwrap();
        assert_eq!(routes.of_share, [0, 1]);
    }

    #[test]
    fn numbers_say_where_they_belong() {
        assert_eq!(split(3 << SHIFT | 7), (3, 7));
        assert_eq!(split(fuse::ROOT_ID), (0, fuse::ROOT_ID));
        let routes = Routes::new(Identities::everybody());
        let ctx = Context { uid: 0.into(), gid: 0.into(), pid: 1 };
        assert_eq!(
            routes.getattr(ctx, u64::MAX, None).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        routes.batch_forget(ctx, vec![(u64::MAX, 1)]);
        let nobody = Context { uid: u32::MAX.into(), ..ctx };
        let refused = routes.mkdir(nobody, 2, c"a", 0, 0, Extensions::default()).err().unwrap();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        let crossing = routes.rename(ctx, 1, c"a", 1 << SHIFT | 1, c"b", 0);
        assert!(crossing.is_err());
        assert_eq!(routes.lookup(ctx, 1, c"0").err().unwrap().raw_os_error(), Some(libc::ENOENT));
    }
}
