//! The container's file systems.
//!
//! What doesn't depend on the request is made before it comes: `/proc`, `/sys`
//! and `/dev` with all that is mounted in them, and the files over those in
//! `/etc`, as detached mounts. Then the root is changed and the old one dropped;
//! only then are targets resolved. So no symbolic link of an image leads
//! anywhere but into the container.

use super::child::mount_on;
use super::{ETC, devices, paths, socket, sources};
use crate::failure::{Context, Failure};
use crate::root::ROOT;
use crate::sys;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};
use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use vminitd_protocol::message::ErrorCode::{InvalidRequest, Mount};
use vminitd_protocol::message::{
    ContainerSpec, DEFAULT_MASKED_PATHS, DEFAULT_READ_ONLY_PATHS, MountSource, MountSpec,
    TmpfsMount,
};

const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// Where the trees are made, each at its place in the container.
const STAGE: &str = "/run/ahead";

/// Detached mounts that the container's root gets.
pub struct Trees {
    proc: OwnedFd,
    sys: OwnedFd,
    dev: OwnedFd,
    /// The default paths that exist, hence are masked and read-only in them.
    masked: Vec<&'static str>,
    read_only: Vec<&'static str>,
    etc: [EtcFile; 3],
}

/// A file that is laid over one of the image.
struct EtcFile {
    target: &'static str,
    file: File,
    tree: OwnedFd,
}

/// Makes what every container has, with what is masked by default.
pub fn prepare() -> Result<Trees, Failure> {
    let at = |path: &str| format!("{STAGE}{path}");
    devices::build(&at("/dev"))?;
    for (kind, path, flags) in [
        ("proc", "/proc", PLAIN),
        ("sysfs", "/sys", PLAIN | MsFlags::MS_RDONLY),
        ("cgroup2", "/sys/fs/cgroup", PLAIN | MsFlags::MS_RDONLY),
    ] {
        mount_on(kind, &at(path), kind, flags, "")
            .context(Mount, || format!("mount {kind} for {path}"))?;
    }
    let null = at("/dev/null");
    let masked = present(DEFAULT_MASKED_PATHS, |path| paths::mask(path, &null))?;
    let read_only = present(DEFAULT_READ_ONLY_PATHS, paths::bind_read_only)?;
    let etc = [
        EtcFile::create("/etc/hostname")?,
        EtcFile::create("/etc/hosts")?,
        EtcFile::create("/etc/resolv.conf")?,
    ];
    let trees = Trees {
        proc: detach("/proc")?,
        sys: detach("/sys")?,
        dev: detach("/dev")?,
        masked,
        read_only,
        etc,
    };
    Ok(trees)
}

/// The paths that there are, once something was done to their staged ones.
fn present(
    paths: &[&'static str],
    apply: impl Fn(&Path) -> Result<bool, Failure>,
) -> Result<Vec<&'static str>, Failure> {
    let mut found = Vec::with_capacity(paths.len());
    for path in paths {
        if apply(Path::new(&format!("{STAGE}{path}")))? {
            found.push(*path);
        }
    }
    Ok(found)
}

/// Takes a tree from where it was made.
fn detach(path: &str) -> Result<OwnedFd, Failure> {
    let staged = CString::new(format!("{STAGE}{path}")).expect("no NUL in a constant");
    let tree = sys::open_whole_tree(&staged).context(Mount, || format!("pick {path} up"))?;
    umount2(staged.as_c_str(), MntFlags::MNT_DETACH)
        .context(Mount, || format!("unmount the staged {path}"))?;
    Ok(tree)
}

impl EtcFile {
    /// A new one: a former container may have changed the last one's attributes.
    fn create(target: &'static str) -> Result<Self, Failure> {
        let path = target.replacen("/etc", ETC, 1);
        let _ = fs::remove_file(&path);
        let options = File::options().write(true).create_new(true).open(&path);
        let file = options.context(Mount, || format!("create {path}"))?;
        let name = CString::new(path).expect("no NUL in a constant");
        let tree = sys::open_tree(&name).context(Mount, || format!("pick {name:?} up"))?;
        Ok(EtcFile { target, file, tree })
    }

    /// Lays it over one of the image, made when missing. An image in which that
    /// is impossible does without.
    fn lay(&mut self, content: &[u8]) -> Result<(), Failure> {
        self.file.write_all(content).context(Mount, || format!("write {}", self.target))?;
        let path = Path::new(self.target);
        if !path.exists() {
            // A dangling link leads to where the file is expected to be.
            let place = fs::read_link(path)
                .map_or_else(|_| path.to_owned(), |link| Path::new("/etc").join(link));
            if let Some(parent) = place.parent() {
                let _ = fs::create_dir_all(parent);
            }
            let _ = File::options().create(true).append(true).open(&place);
        }
        if fs::metadata(path).is_ok_and(|meta| meta.is_file()) {
            let target = CString::new(self.target).expect("no NUL in a constant");
            let _ = sys::move_mount(&self.tree, &target);
        }
        Ok(())
    }
}

/// What a container's file systems are made of beside those that every one has.
#[derive(Clone, Copy, Default)]
pub struct Given<'a> {
    /// The root's mount, where this namespace doesn't have it yet.
    pub root: Option<&'a OwnedFd>,
    /// Trees of block volumes, in the order of their mounts.
    pub volumes: &'a [OwnedFd],
}

/// Makes `/` the container's root, with all that belongs in it.
pub fn build(
    trees: Trees,
    spec: &ContainerSpec,
    given: Given<'_>,
    terminal: Option<u32>,
) -> Result<(), Failure> {
    if let Some(root) = given.root {
        let place = CString::new(ROOT).expect("no NUL in a constant");
        sys::move_mount(root, &place).context(Mount, || "take the container's root over")?;
    }
    let sockets = socket::pick_up(&spec.sockets)?;
    let sources = sources::open(&spec.mounts, given.volumes)?;
    change_root()?;
    let Trees { proc, sys, dev, masked, read_only, etc } = trees;
    attach(dev, c"/dev")?;
    devices::adapt(terminal, spec.shm_size_bytes, spec.virtualization)?;
    let ahead = has_all(&spec.masked_paths, &masked) && has_all(&spec.read_only_paths, &read_only);
    if ahead {
        attach(proc, c"/proc")?;
        attach(sys, c"/sys")?;
    } else {
        mount_kernel("proc", "/proc", PLAIN)?;
        mount_kernel("sysfs", "/sys", PLAIN | MsFlags::MS_RDONLY)?;
        mount_kernel("cgroup2", "/sys/fs/cgroup", PLAIN | MsFlags::MS_RDONLY)?;
    }
    lay_mounts(spec, sources)?;
    lay_etc(spec, etc)?;
    for (tree, wanted) in sockets.into_iter().zip(&spec.sockets) {
        socket::lay(tree, wanted)?;
    }
    let done = |list: &[&str], path: &[u8]| ahead && list.iter().any(|p| p.as_bytes() == path);
    for path in spec.masked_paths.iter().filter(|path| !done(&masked, path)) {
        paths::mask(path_of(path), "/dev/null")?;
    }
    for path in spec.read_only_paths.iter().filter(|path| !done(&read_only, path)) {
        paths::bind_read_only(path_of(path))?;
    }
    if spec.read_only_root {
        paths::make_read_only(Path::new("/"))?;
    }
    Ok(())
}

/// Whether a request asks for all that is done ahead.
fn has_all(asked: &[Vec<u8>], done: &[&str]) -> bool {
    done.iter().all(|path| asked.iter().any(|asked| asked == path.as_bytes()))
}

/// A path of a request.
pub fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn lay_etc(spec: &ContainerSpec, files: [EtcFile; 3]) -> Result<(), Failure> {
    let hosts =
        if spec.hosts.is_empty() { default_hosts(&spec.hostname) } else { spec.hosts.clone() };
    let hostname = format!("{}\n", spec.hostname).into_bytes();
    for (mut file, content) in files.into_iter().zip([&hostname, &hosts, &spec.resolv_conf]) {
        let mounted = spec.mounts.iter().any(|m| path_of(&m.path) == Path::new(file.target));
        if content.is_empty() || mounted {
            continue; // The image's own, or the user's.
        }
        file.lay(content)?;
        if spec.read_only_root {
            paths::make_read_only(Path::new(file.target))?;
        }
    }
    Ok(())
}

fn default_hosts(hostname: &str) -> Vec<u8> {
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n"
    )
    .into_bytes()
}

/// Attaches a tree in the container, its place made when missing.
fn attach(tree: OwnedFd, target: &CStr) -> Result<(), Failure> {
    let attached = sys::move_mount(&tree, target).or_else(|errno| {
        let Errno::ENOENT = errno else { return Err(errno) };
        let _ = fs::create_dir_all(OsStr::from_bytes(target.to_bytes()));
        sys::move_mount(&tree, target)
    });
    attached.context(Mount, || format!("mount {}", target.to_string_lossy()))
}

fn change_root() -> Result<(), Failure> {
    chdir(ROOT).context(Mount, || "enter the container's root")?;
    pivot_root(".", ".").context(Mount, || "change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context(Mount, || "drop the old root")?;
    chdir("/").context(Mount, || "enter the new root")
}

fn mount_kernel(kind: &str, target: &str, flags: MsFlags) -> Result<(), Failure> {
    // Fails below /sys when the directory exists already, and may.
    let _ = fs::create_dir_all(target);
    mount_on(kind, target, kind, flags, "").context(Mount, || format!("mount {kind} at {target}"))
}

/// Mounts all that was asked for, parents first.
fn lay_mounts(spec: &ContainerSpec, sources: Vec<OwnedFd>) -> Result<(), Failure> {
    enum Item<'a> {
        Tmpfs(&'a TmpfsMount),
        Mount(&'a MountSpec, OwnedFd),
    }
    let tmpfs = spec.tmpfs.iter().map(|tmpfs| (path_of(&tmpfs.path), Item::Tmpfs(tmpfs)));
    let mounts = spec.mounts.iter().zip(sources);
    let mounts = mounts.map(|(mount, tree)| (path_of(&mount.path), Item::Mount(mount, tree)));
    let mut items: Vec<_> = tmpfs.chain(mounts).collect();
    items.sort_by_key(|(path, _)| depth(path));
    items.into_iter().try_for_each(|(_, item)| match item {
        Item::Tmpfs(tmpfs) => mount_tmpfs(tmpfs),
        Item::Mount(mount, tree) => lay_mount(mount, &tree),
    })
}

/// How far down a path is: parents are mounted first.
pub fn depth(path: &Path) -> usize {
    path.components().count()
}

/// Mounts a tree where it was asked for, in this process's root.
pub fn lay_mount(spec: &MountSpec, tree: &OwnedFd) -> Result<(), Failure> {
    let path = path_of(&spec.path);
    let shown = path.display();
    let target = CString::new(&*spec.path).map_err(|_| Failure::invalid("a NUL byte in a path"))?;
    match &spec.source {
        Some(MountSource::Share(share)) if share.file => place_file(path)?,
        _ => fs::create_dir_all(path)
            .context(InvalidRequest, || format!("create the directory {shown} for a mount"))?,
    }
    sys::move_mount(tree, &target).context(Mount, || format!("mount {shown}"))?;
    if spec.read_only { paths::make_read_only(path) } else { Ok(()) }
}

/// Makes sure that there is a file to mount another one on.
fn place_file(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(Failure::new(
                InvalidRequest,
                format!("a file can't be mounted on the directory {shown}"),
            ));
        }
        Ok(_) => return Ok(()),
        Err(_) => {}
    }
    let what = || format!("create the file {shown} for a mount");
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).context(InvalidRequest, what)?;
    }
    File::options().append(true).create(true).open(path).context(InvalidRequest, what)?;
    Ok(())
}

fn mount_tmpfs(tmpfs: &TmpfsMount) -> Result<(), Failure> {
    let path = path_of(&tmpfs.path);
    let shown = path.display();
    fs::create_dir_all(path).context(InvalidRequest, || format!("create {shown} for a tmpfs"))?;
    let mut flags = MsFlags::empty();
    for (allowed, flag) in [
        (tmpfs.exec, MsFlags::MS_NOEXEC),
        (tmpfs.suid, MsFlags::MS_NOSUID),
        (tmpfs.dev, MsFlags::MS_NODEV),
        (!tmpfs.read_only, MsFlags::MS_RDONLY),
    ] {
        flags.set(flag, !allowed);
    }
    let mode = tmpfs.mode.unwrap_or(0o1777) & 0o7777;
    let mut data = format!("mode={mode:o},uid={},gid={}", tmpfs.uid, tmpfs.gid);
    if tmpfs.size_bytes > 0 {
        data += &format!(",size={}", tmpfs.size_bytes);
    }
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(data.as_str()))
        .context(Mount, || format!("mount a tmpfs at {shown}"))
}
