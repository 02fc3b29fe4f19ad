//! The shares as a file system: what is there, without what would be dangerous on the host.
//!
//! Set-user-id and set-group-id bits stay out: a file that a guest made must not run as its owner
//! on the host. Device nodes fail for want of a capability. Of extended attributes only those of users
//! pass ([`crate::xattr`]).

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use nix::libc;
use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SerializableFileSystem, SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse;
use virtiofsd::passthrough::PassthroughFs;

const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

/// The root of the process, whose entries are the shares.
pub struct Shares(pub PassthroughFs);

/// Functions that are those of the file system below.
macro_rules! passed_on {
    {
        $(
            fn $name:ident$(<$($generic:ident: $bound:path),*>)?(
                &self $(, $argument:ident: $kind:ty)* $(,)?
            ) $(-> $answer:ty)?;
        )*
    } => {
        $(
            fn $name$(<$($generic: $bound),*>)?(&self $(, $argument: $kind)*) $(-> $answer)? {
                self.0.$name($($argument),*)
            }
        )*
    }
}

pub(crate) use passed_on;

impl FileSystem for Shares {
    type Inode = <PassthroughFs as FileSystem>::Inode;
    type Handle = <PassthroughFs as FileSystem>::Handle;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    passed_on! {
        fn init(&self, capable: FsOptions) -> io::Result<FsOptions>;
        fn destroy(&self);
        fn lookup(&self, ctx: Context, parent: Self::Inode, name: &CStr) -> io::Result<Entry>;
        fn forget(&self, ctx: Context, inode: Self::Inode, count: u64);
        fn batch_forget(&self, ctx: Context, requests: Vec<(Self::Inode, u64)>);
        fn getattr(&self,
            ctx: Context,
            inode: Self::Inode,
            handle: Option<Self::Handle>,
        ) -> io::Result<(fuse::Attr, Duration)>;
        fn readlink(&self, ctx: Context, inode: Self::Inode) -> io::Result<Vec<u8>>;
        fn read<W: ZeroCopyWriter>(
            &self,
            ctx: Context,
            inode: Self::Inode,
            handle: Self::Handle,
            w: W,
            size: u32,
            offset: u64,
            lock_owner: Option<u64>,
            flags: u32,
        ) -> io::Result<usize>;
        fn flush(
            &self,
            ctx: Context,
            inode: Self::Inode,
            handle: Self::Handle,
            lock_owner: u64,
        ) -> io::Result<()>;
        fn fsync(
            &self,
            ctx: Context,
            inode: Self::Inode,
            datasync: bool,
            handle: Self::Handle,
        ) -> io::Result<()>;
        fn release(
            &self,
            ctx: Context,
            inode: Self::Inode,
            flags: u32,
            handle: Self::Handle,
            flush: bool,
            flock_release: bool,
            lock_owner: Option<u64>,
        ) -> io::Result<()>;
        fn statfs(&self, ctx: Context, inode: Self::Inode) -> io::Result<libc::statvfs64>;
        fn getxattr(
            &self,
            ctx: Context,
            inode: Self::Inode,
            name: &CStr,
            size: u32,
        ) -> io::Result<GetxattrReply>;
        fn listxattr(
            &self,
            ctx: Context,
            inode: Self::Inode,
            size: u32,
        ) -> io::Result<ListxattrReply>;
        fn readdir(
            &self,
            ctx: Context,
            inode: Self::Inode,
            handle: Self::Handle,
            size: u32,
            offset: u64,
        ) -> io::Result<Self::DirIter>;
        fn fsyncdir(
            &self,
            ctx: Context,
            inode: Self::Inode,
            datasync: bool,
            handle: Self::Handle,
        ) -> io::Result<()>;
        fn releasedir(
            &self,
            ctx: Context,
            inode: Self::Inode,
            flags: u32,
            handle: Self::Handle,
        ) -> io::Result<()>;
        fn lseek(
            &self,
            ctx: Context,
            inode: Self::Inode,
            handle: Self::Handle,
            offset: u64,
            whence: u32,
        ) -> io::Result<u64>;
        fn syncfs(&self, ctx: Context, inode: Self::Inode) -> io::Result<()>;
        fn unlink(&self, ctx: Context, parent: Self::Inode, name: &CStr) -> io::Result<()>;
        fn rmdir(&self, ctx: Context, parent: Self::Inode, name: &CStr) -> io::Result<()>;
        fn rename(
            &self,
            ctx: Context,
            olddir: Self::Inode,
            oldname: &CStr,
            newdir: Self::Inode,
            newname: &CStr,
            flags: u32,
        ) -> io::Result<()>;
        fn link(
            &self,
            ctx: Context,
            inode: Self::Inode,
            newparent: Self::Inode,
            newname: &CStr,
        ) -> io::Result<Entry>;
        fn write<R: ZeroCopyReader>(
            &self,
            ctx: Context,
            inode: Self::Inode,
            handle: Self::Handle,
            r: R,
            size: u32,
            offset: u64,
            lock_owner: Option<u64>,
            delayed_write: bool,
            kill_priv: bool,
            flags: u32,
        ) -> io::Result<usize>;
        fn fallocate(
            &self,
            ctx: Context,
            inode: Self::Inode,
            handle: Self::Handle,
            mode: u32,
            offset: u64,
            length: u64,
        ) -> io::Result<()>;
        fn symlink(
            &self,
            ctx: Context,
            linkname: &CStr,
            parent: Self::Inode,
            name: &CStr,
            extensions: Extensions,
        ) -> io::Result<Entry>;
        fn setxattr(
            &self,
            ctx: Context,
            inode: Self::Inode,
            name: &CStr,
            value: &[u8],
            flags: u32,
            extra_flags: SetxattrFlags,
        ) -> io::Result<()>;
        fn removexattr(&self, ctx: Context, inode: Self::Inode, name: &CStr) -> io::Result<()>;
        fn copyfilerange(
            &self,
            ctx: Context,
            inode_in: Self::Inode,
            handle_in: Self::Handle,
            offset_in: u64,
            inode_out: Self::Inode,
            handle_out: Self::Handle,
            offset_out: u64,
            len: u64,
            flags: u64,
        ) -> io::Result<usize>;
        fn open(
            &self,
            ctx: Context,
            inode: Self::Inode,
            kill_priv: bool,
            flags: u32,
        ) -> io::Result<(Option<Self::Handle>, OpenOptions)>;
        fn opendir(
            &self,
            ctx: Context,
            inode: Self::Inode,
            flags: u32,
        ) -> io::Result<(Option<Self::Handle>, OpenOptions)>;
        fn access(&self, ctx: Context, inode: Self::Inode, mask: u32) -> io::Result<()>;
    }

    fn create(
        &self,
        ctx: Context,
        parent: Self::Inode,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<Self::Handle>, OpenOptions)> {
        let mode = mode & !SET_ID;
        self.0.create(ctx, parent, name, mode, kill_priv, flags, umask, extensions)
    }

    fn mknod(
        &self,
        ctx: Context,
        parent: Self::Inode,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        if matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        self.0.mknod(ctx, parent, name, mode & !SET_ID, rdev, umask, extensions)
    }

    fn mkdir(
        &self,
        ctx: Context,
        parent: Self::Inode,
        name: &CStr,
        mode: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        self.0.mkdir(ctx, parent, name, mode & !SET_ID, umask, extensions)
    }

    fn setattr(
        &self,
        ctx: Context,
        inode: Self::Inode,
        attr: fuse::SetattrIn,
        handle: Option<Self::Handle>,
        valid: SetattrValid,
    ) -> io::Result<(fuse::Attr, Duration)> {
        if valid.contains(SetattrValid::MODE) && attr.mode & SET_ID != 0 {
            let (now, _) = self.0.getattr(ctx, inode, handle)?;
            // What the host gave may stay.
            if attr.mode & SET_ID & !now.mode != 0 {
                return Err(io::Error::from_raw_os_error(libc::EPERM));
            }
        }
        self.0.setattr(ctx, inode, attr, handle, valid)
    }
}

/// A VM with shares is not moved.
impl SerializableFileSystem for Shares {}
