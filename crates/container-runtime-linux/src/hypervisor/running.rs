//! A running QEMU as a [`Vm`].

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use container_api::memory;

use super::child::{Child, VmExit};
use super::devices::{self, Disk};
use super::error::{Error, Phase};
use super::plug::{self, Plugs};
use super::qmp::{Qmp, Sent};
use super::qmp_commands as qmp;
use super::trim::Trimmer;
use super::{ExtraNic, REQUEST_DEADLINE, Vm, migration, usage};

/// Above the numbers of nodes and descriptor sets given on the command line.
const FIRST_FREE_NUMBER: u32 = 16;

/// Where a VM's RAM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnRam {
    /// In a file that it alone has, and that others could map.
    Shared,
    /// In copies of a file's pages, made as they are written.
    Copied,
}

/// Guest code runs, or is paused by us.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pub(super) qmp: Qmp,
    pub(super) ram: OwnRam,
    pub(super) plugs: Plugs,
    trimmer: Option<Trimmer>,
    /// Held over a whole exchange: two of them must not mix.
    swaps: tokio::sync::Mutex<Swaps>,
    next_number: AtomicU32,
}

/// What disks sit on.
#[derive(Debug)]
struct Swaps {
    /// By [`Disk::index`].
    current: [FileNode; 4],
    /// What they sat on.
    unused: Vec<FileNode>,
}

/// A block node over one descriptor set, or over none.
#[derive(Debug)]
pub(super) struct FileNode {
    pub(super) name: String,
    fdset: Option<u32>,
}

impl FileNode {
    fn first(disk: Disk) -> FileNode {
        let number = disk.first_number();
        let fdset = disk.has_file().then_some(number);
        FileNode { name: devices::file_node_name(number), fdset }
    }
}

impl Running {
    pub(super) fn new(
        child: Child,
        qmp: Qmp,
        ram: OwnRam,
        root_ports: u32,
        trimmer: Option<Trimmer>,
    ) -> Running {
        let [image, upper] = Disk::OWN.map(FileNode::first);
        let [first, second] = Disk::SLOTS.map(FileNode::first);
        let swaps = Swaps { current: [image, upper, first, second], unused: Vec::new() };
        Running {
            child,
            qmp,
            ram,
            plugs: Plugs::new(root_ports),
            trimmer,
            swaps: tokio::sync::Mutex::new(swaps),
            next_number: AtomicU32::new(FIRST_FREE_NUMBER),
        }
    }

    pub(super) async fn request<C: super::qmp::Command>(
        &self,
        command: &C,
    ) -> Result<C::Answer, Error> {
        self.qmp.execute(command, REQUEST_DEADLINE).await
    }
}

impl Running {
    /// Adds a block node over a file.
    pub(super) async fn add_file(&self, file: OwnedFd, read_only: bool) -> Result<FileNode, Error> {
        let node = self.new_node(true);
        let add = async { self.add(&node, Some(&file), read_only).await?.answer().await };
        if let Err(error) = in_time("adding a disk's file", add).await {
            let _ = self.remove_file(node).await;
            return Err(error);
        }
        Ok(node)
    }

    /// A node that is to be added.
    fn new_node(&self, has_file: bool) -> FileNode {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        FileNode { name: devices::file_node_name(number), fdset: has_file.then_some(number) }
    }

    /// Has a node added over a file, or over nothing; it is there once the answer is. What may
    /// follow is sent ahead of that, but for descriptors: QEMU keeps only the one that came last.
    async fn add(
        &self,
        node: &FileNode,
        file: Option<&OwnedFd>,
        read_only: bool,
    ) -> Result<Sent<qmp::BlockdevAdd>, Error> {
        let Some((file, fdset)) = file.zip(node.fdset) else {
            let options = devices::empty_node(&node.name);
            return self.qmp.send(&qmp::BlockdevAdd(options), None).await;
        };
        if read_only {
            check_unwritable(file)?;
        }
        let named = self.qmp.send(&qmp::AddFd { fdset_id: fdset }, Some(file.as_fd())).await?;
        let options = devices::file_node(&node.name, fdset, read_only);
        let added = self.qmp.send(&qmp::BlockdevAdd(options), None).await?;
        named.answer().await?;
        Ok(added)
    }

    /// Adds nodes over files, and puts them behind disks all at once.
    async fn exchange(
        &self,
        disks: &[(Disk, Option<OwnedFd>)],
        nodes: &mut Vec<(Disk, FileNode)>,
    ) -> Result<(), Error> {
        let mut added = Vec::new();
        for (disk, file) in disks {
            nodes.push((*disk, self.new_node(file.is_some())));
            if let Some((_, node)) = nodes.last() {
                added.push(self.add(node, file.as_ref(), disk.read_only()).await?);
            }
        }
        let top = |(disk, node): &(Disk, FileNode)| {
            devices::top_node(disk.name(), &node.name, disk.read_only())
        };
        let options = nodes.iter().map(top).collect();
        let reopened = self.qmp.send(&qmp::BlockdevReopen { options }, None).await?;
        for added in added {
            added.answer().await?;
        }
        reopened.answer().await.map(drop)
    }

    /// Removes one that nothing uses.
    pub(super) async fn remove_file(&self, node: FileNode) -> Result<(), Error> {
        let removed = self.request(&qmp::BlockdevDel { node_name: node.name }).await;
        let Some(fdset_id) = node.fdset else { return removed.map(drop) };
        let closed = self.request(&qmp::RemoveFd { fdset_id }).await;
        removed.and(closed).map(drop)
    }
}

impl Vm for Running {
    fn pid(&self) -> i32 {
        self.child.pid()
    }

    async fn pause(&self) -> Result<(), Error> {
        self.request(&qmp::Stop {}).await.map(drop)
    }

    async fn resume(&self) -> Result<(), Error> {
        self.request(&qmp::Cont {}).await.map(drop)
    }

    async fn swap_disks(&self, disks: Vec<(Disk, Option<OwnedFd>)>) -> Result<(), Error> {
        let mut swaps = self.swaps.lock().await;
        let mut nodes = Vec::new();
        let swapped = in_time("exchanging disks", self.exchange(&disks, &mut nodes)).await;
        for (disk, node) in nodes {
            if swapped.is_ok() {
                let old = std::mem::replace(&mut swaps.current[disk.index()], node);
                swaps.unused.push(old);
            } else {
                let _ = self.remove_file(node).await;
            }
        }
        swapped
    }

    async fn release_swapped(&self) -> Result<(), Error> {
        let unused = std::mem::take(&mut self.swaps.lock().await.unused);
        let mut released = Ok(());
        for node in unused {
            released = released.and(self.remove_file(node).await);
        }
        released
    }

    async fn save(&self, state: OwnedFd) -> Result<(), Error> {
        migration::save(&self.qmp, &state).await
    }

    async fn set_balloon(&self, bytes: u64) -> Result<(), Error> {
        self.request(&qmp::Balloon { value: bytes }).await.map(drop)
    }

    async fn plug_disk(&self, serial: &str, file: OwnedFd, read_only: bool) -> Result<(), Error> {
        plug::disk(self, serial, file, read_only).await
    }

    async fn plug_share(&self, tag: &str, server: OwnedFd) -> Result<(), Error> {
        plug::share(self, tag, server).await
    }

    async fn plug_nic(&self, nic: ExtraNic) -> Result<(), Error> {
        plug::nic(self, nic).await
    }

    fn own_memory(&self) -> std::io::Result<u64> {
        memory::own_with_memfds(self.child.pid())
    }

    fn cpu_time(&self) -> std::io::Result<Duration> {
        usage::cpu_time(self.child.pid())
    }

    fn trim(&self) -> bool {
        self.trimmer.as_ref().is_some_and(Trimmer::ask)
    }

    async fn quit(&self) -> Result<(), Error> {
        self.request(&qmp::Quit {}).await.map(drop)
    }

    fn kill(&self) {
        self.child.kill();
    }

    async fn ended(&self) -> VmExit {
        let mut exit = self.child.wait().await;
        exit.reason = self.qmp.shutdown_reason();
        exit
    }
}

/// Several requests that belong together, in the time of one.
async fn in_time<T>(
    operation: &str,
    requests: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let (phase, limit) = (Phase::Running, REQUEST_DEADLINE);
    tokio::time::timeout(limit, requests)
        .await
        .unwrap_or_else(|_| Err(Error::TimedOut { phase, operation: operation.into(), limit }))
}

/// A descriptor that QEMU could open again for writing must not reach it.
fn check_unwritable(file: &OwnedFd) -> Result<(), Error> {
    let failed = Error::io(Phase::Running, "examining a shared disk");
    let stat = nix::sys::statvfs::fstatvfs(file).map_err(|errno| failed(errno.into()))?;
    if !stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY) {
        return Err(Error::Config("a shared disk must be opened on a read-only mount".into()));
    }
    Ok(())
}
