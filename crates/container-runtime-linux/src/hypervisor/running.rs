//! A running QEMU as a [`Vm`].

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use container_api::memory;

use super::child::{Child, VmExit};
use super::devices::{self, Disk};
use super::error::{Error, Phase};
use super::plug::{self, Plugs};
use super::qmp::Qmp;
use super::qmp_commands as qmp;
use super::{ExtraNic, REQUEST_DEADLINE, Vm, migration, usage};

/// Above the sets given on the command line.
const FIRST_FREE_FDSET: u32 = 16;

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
    /// What each disk sits on, by [`Disk::index`].
    swaps: tokio::sync::Mutex<[FileNode; 4]>,
    generation: AtomicU32,
    next_fdset: AtomicU32,
}

/// A block node over one descriptor set, or over none.
#[derive(Debug)]
pub(super) struct FileNode {
    pub(super) name: String,
    fdset: Option<u32>,
}

impl FileNode {
    fn first(disk: Disk) -> FileNode {
        FileNode { name: devices::file_node_name(disk, 0), fdset: disk.fdset() }
    }
}

impl Running {
    pub(super) fn new(child: Child, qmp: Qmp, ram: OwnRam, root_ports: u32) -> Running {
        let [image, upper] = Disk::OWN.map(FileNode::first);
        let [first, second] = Disk::SLOTS.map(FileNode::first);
        let swaps = [image, upper, first, second];
        Running {
            child,
            qmp,
            ram,
            plugs: Plugs::new(root_ports),
            swaps: tokio::sync::Mutex::new(swaps),
            generation: AtomicU32::new(1),
            next_fdset: AtomicU32::new(FIRST_FREE_FDSET),
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
    pub(super) async fn add_file(
        &self,
        name: String,
        file: OwnedFd,
        read_only: bool,
    ) -> Result<FileNode, Error> {
        if read_only {
            check_unwritable(&file)?;
        }
        let fdset = self.next_fdset.fetch_add(1, Ordering::Relaxed);
        let add = qmp::AddFd { fdset_id: fdset };
        self.qmp.execute_with(&add, Some(file.as_fd()), REQUEST_DEADLINE).await?;
        let options = devices::file_node(&name, fdset, read_only);
        let added = self.request(&qmp::BlockdevAdd(options)).await;
        if let Err(error) = added {
            let _ = self.request(&qmp::RemoveFd { fdset_id: fdset }).await;
            return Err(error);
        }
        Ok(FileNode { name, fdset: Some(fdset) })
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

    async fn swap_disk(&self, disk: Disk, file: OwnedFd) -> Result<(), Error> {
        // Held over the whole exchange: two swaps of a disk must not mix.
        let mut swaps = self.swaps.lock().await;
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let name = devices::file_node_name(disk, generation);
        let node = self.add_file(name, file, disk.read_only()).await?;
        let top = devices::top_node(disk.name(), &node.name, disk.read_only());
        let reopen = qmp::BlockdevReopen { options: vec![top] };
        let reopened = self.request(&reopen).await;
        // Whichever of the two is unused now goes.
        let current = &mut swaps[disk.index()];
        let unused = match &reopened {
            Ok(_) => std::mem::replace(current, node),
            Err(_) => node,
        };
        let removed = self.remove_file(unused).await;
        reopened.and(removed)
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

/// A descriptor that QEMU could open again for writing must not reach it.
fn check_unwritable(file: &OwnedFd) -> Result<(), Error> {
    let failed = Error::io(Phase::Running, "examining a shared disk");
    let stat = nix::sys::statvfs::fstatvfs(file).map_err(|errno| failed(errno.into()))?;
    if !stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY) {
        return Err(Error::Config("a shared disk must be opened on a read-only mount".into()));
    }
    Ok(())
}
