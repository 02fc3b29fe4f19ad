//! A guest and a hypervisor of the test's own: the guest's half of the protocol without a VM, and
//! with the vices that a hostile one may have.

mod guest;
pub mod world;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use container_api::network::Mac;
use container_runtime_linux::hypervisor::{
    Disk, Error, ExtraNic, Hypervisor, Nic, Origin, Vm, VmConfig, VmExit, VmStreams,
};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, mpsc, watch};

/// What can befall a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// The hypervisor is killed.
    Killed,
    /// The guest's channel is closed, the VM lives on.
    Hangs,
    /// The guest sends what is no message.
    Babbles,
    /// The first process exits by itself.
    Exits,
    /// It exits, and then the guest sends what is no message and stays.
    ExitsBabbling,
    /// The kernel kills a process for want of memory.
    OutOfMemory,
}

/// How a VM comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birth {
    /// Its guest answers.
    Well,
    /// There is none.
    Fails,
    /// Its guest never answers.
    Hangs,
    /// Its guest's kernel panics.
    Panics,
    /// Its process is killed before the guest answers.
    Dies,
}

/// What a fake VM and its guest do wrong on purpose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vices {
    /// A disk is not swapped.
    pub swap: Option<Disk>,
    /// The root is not mounted.
    pub mount: bool,
    /// The throwaway container's program fails.
    pub warm_up: bool,
}

/// What was done with the VMs, for the test to look at.
#[derive(Debug, Default)]
pub struct Deeds {
    /// How each came to be: restored or not.
    pub restored: Vec<bool>,
    /// Which disks were swapped, and whether a file came behind them.
    pub swapped: Vec<(Disk, bool)>,
    /// How often the former ones were closed.
    pub released: usize,
    /// How many taps the newest VM was made with.
    pub taps: usize,
    /// Which NICs were plugged.
    pub plugged: Vec<Mac>,
    /// The balloon, as it was set.
    pub balloon: Vec<u64>,
    /// What the guest was asked for.
    pub calls: Vec<&'static str>,
}

/// A hypervisor whose VMs are tasks.
pub struct Fake {
    births: RefCell<VecDeque<Birth>>,
    /// Of whichever VM works.
    mishaps: Arc<Mutex<mpsc::UnboundedReceiver<Mishap>>>,
    vices: Vices,
    /// See [`Deeds`].
    pub deeds: Rc<RefCell<Deeds>>,
}

impl Fake {
    /// One whose VMs come to be like this, one after another, and well after that.
    pub fn new(births: &[Birth], vices: Vices) -> (Fake, mpsc::UnboundedSender<Mishap>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let fake = Fake {
            births: RefCell::new(births.iter().copied().collect()),
            mishaps: Arc::new(Mutex::new(receiver)),
            vices,
            deeds: Rc::default(),
        };
        (fake, sender)
    }
}

pub struct FakeVm {
    exit: Rc<watch::Sender<Option<VmExit>>>,
    vices: Vices,
    deeds: Rc<RefCell<Deeds>>,
    memory: Rc<Cell<u64>>,
}

fn killed() -> VmExit {
    VmExit { signal: Some(9), ..VmExit::default() }
}

impl Hypervisor for Fake {
    type Vm = FakeVm;

    async fn start(&self, config: VmConfig) -> Result<(FakeVm, VmStreams), Error> {
        tokio::task::yield_now().await;
        let restored = matches!(config.origin, Origin::Template { .. });
        self.deeds.borrow_mut().restored.push(restored);
        let first = usize::from(matches!(config.nic, Nic::Tap(_)));
        self.deeds.borrow_mut().taps = first + config.more_nics.len();
        let birth = self.births.borrow_mut().pop_front().unwrap_or(Birth::Well);
        if birth == Birth::Fails {
            return Err(Error::Config("no such VM".into()));
        }
        let (agent, guest_agent) = UnixStream::pair().unwrap();
        let (bulk, guest_bulk) = UnixStream::pair().unwrap();
        let (console, guest_console) = UnixStream::pair().unwrap();
        let exit = Rc::new(watch::Sender::new(None));
        let memory = Rc::new(Cell::new(u64::from(config.memory_mib) << 20));
        let nature =
            guest::Nature { vices: self.vices, deeds: self.deeds.clone(), memory: memory.clone() };
        let mishaps = self.mishaps.clone();
        let life = exit.clone();
        tokio::task::spawn_local(async move {
            let mut console = guest_console;
            let _ = console.write_all(b"booting\n").await;
            let mut ended = life.subscribe();
            let lives = async {
                match birth {
                    Birth::Well => {
                        let mishaps = mishaps.lock_owned().await;
                        guest::live(guest_agent, guest_bulk, mishaps, nature).await
                    }
                    Birth::Panics => {
                        let words = b"Kernel panic - not syncing: double fault\n";
                        let _ = console.write_all(words).await;
                        let reason = Some("guest-reset".into());
                        VmExit { code: Some(0), reason, ..VmExit::default() }
                    }
                    Birth::Dies => killed(),
                    Birth::Hangs | Birth::Fails => std::future::pending().await,
                }
            };
            tokio::select! {
                exit = lives => {
                    life.send_if_modified(|old| old.is_none() && { *old = Some(exit); true });
                }
                _ = ended.wait_for(Option::is_some) => {}
            }
        });
        let vm = FakeVm { exit, vices: self.vices, deeds: self.deeds.clone(), memory };
        Ok((vm, VmStreams { agent, bulk, console }))
    }
}

impl Vm for FakeVm {
    fn pid(&self) -> i32 {
        4242
    }

    async fn pause(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn resume(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn swap_disks(&self, disks: Vec<(Disk, Option<OwnedFd>)>) -> Result<(), Error> {
        for (disk, file) in disks {
            if self.vices.swap == Some(disk) {
                return Err(Error::Config("no such disk".into()));
            }
            self.deeds.borrow_mut().swapped.push((disk, file.is_some()));
        }
        Ok(())
    }

    async fn release_swapped(&self) -> Result<(), Error> {
        self.deeds.borrow_mut().released += 1;
        Ok(())
    }

    async fn save(&self, state: OwnedFd) -> Result<(), Error> {
        std::fs::File::from(state).write_all(b"state").unwrap();
        Ok(())
    }

    async fn set_balloon(&self, bytes: u64) -> Result<(), Error> {
        self.deeds.borrow_mut().balloon.push(bytes);
        self.memory.set(bytes);
        Ok(())
    }

    async fn plug_disk(&self, _: &str, _: OwnedFd, _: bool) -> Result<(), Error> {
        Ok(())
    }

    async fn plug_share(&self, _: &str, _: OwnedFd) -> Result<(), Error> {
        Ok(())
    }

    async fn plug_nic(&self, nic: ExtraNic) -> Result<(), Error> {
        self.deeds.borrow_mut().plugged.push(nic.mac);
        Ok(())
    }

    fn own_memory(&self) -> std::io::Result<u64> {
        Ok(1 << 20)
    }

    fn trim(&self) -> bool {
        false
    }

    fn cpu_time(&self) -> std::io::Result<Duration> {
        Ok(Duration::from_millis(5))
    }

    async fn quit(&self) -> Result<(), Error> {
        self.kill();
        Ok(())
    }

    fn kill(&self) {
        self.exit.send_if_modified(|old| {
            old.is_none() && {
                *old = Some(killed());
                true
            }
        });
    }

    async fn ended(&self) -> VmExit {
        let mut exit = self.exit.subscribe();
        exit.wait_for(Option::is_some).await.unwrap().clone().unwrap()
    }
}
