//! A throwaway container: runs `/warm-up` of the warm image, so that what every start goes through
//! has been gone through before, in the guest's memory and in the emulator's translations. Nothing
//! of it is left, and no user's program has anything to do with it.

use std::time::Duration;

use container_api::runtime::INIT_PROCESS;
use tokio::sync::mpsc;
use vminitd_protocol::REQUEST_TIMEOUT;
use vminitd_protocol::message::{
    Call, ContainerSpec, DEFAULT_MASKED_PATHS, DEFAULT_READ_ONLY_PATHS, DiskSource, Limits,
    MountSource, MountSpec, ProcessSpec, StartContainer, TerminalSize, UnmountRoot, User,
};
use vminitd_protocol::{capability, message};

use crate::guest::{Guest, GuestError, GuestEvent};
use crate::hypervisor::Disk;
use crate::process::Process;
use crate::setup;

/// For one throwaway container.
const LIMIT: Duration = Duration::from_secs(120);

/// Why a throwaway container did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest.
    #[error("the throwaway container")]
    Guest(#[from] GuestError),
    /// The host.
    #[error("the throwaway container: {0}")]
    Host(String),
    /// Its program.
    #[error("the throwaway container's program ended with exit code {0}")]
    Failed(u32),
    /// It takes too long.
    #[error("the throwaway container did not end within {} s", LIMIT.as_secs())]
    Endless,
}

/// What the throwaway's program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// What programs usually do: files, memory, processes. For a template, whose memory keeps what
    /// the kernel prepared for it at no cost to its clones.
    Usual,
    /// Nothing: a start and an end. For a spare, which pays for every translation with memory that
    /// is its own, and with time while others start.
    Nothing,
}

impl Work {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Work::Usual => &["/warm-up"],
            Work::Nothing => &["/warm-up", "child"],
        }
    }
}

/// Where one has its volume: a place that its image does not have, as most volumes are.
const VOLUME: &[u8] = b"/volume";

/// Runs one without and one with a terminal. The guest is set up and has no root, before and after.
/// Behind `slots` are volumes, which both write to.
///
/// # Errors
/// [`Error`]; the VM is of no use then.
pub async fn run(
    guest: &Guest,
    events: &mut mpsc::Receiver<GuestEvent>,
    work: Work,
    slots: &[Disk],
) -> Result<(), Error> {
    for terminal in [false, true] {
        let once = once(guest, events, work, slots, terminal);
        tokio::time::timeout(LIMIT, once).await.map_err(|_| Error::Endless)??;
    }
    Ok(())
}

async fn once(
    guest: &Guest,
    events: &mut mpsc::Receiver<GuestEvent>,
    work: Work,
    slots: &[Disk],
    terminal: bool,
) -> Result<(), Error> {
    let process = Process::open(INIT_PROCESS, guest.bulk.clone(), terminal, true, None)
        .map_err(|e| Error::Host(e.to_string()))?;
    let start = start(process.stdio(), work, slots, terminal);
    let ask = |call| guest.control.command(call, REQUEST_TIMEOUT);
    let mount = setup::mount_root(start.container.mounts.clone());
    tokio::try_join!(ask(mount), ask(Call::StartContainer(Box::new(start))))?;
    let code = ended(events).await?;
    process.collect().await;
    ask(Call::UnmountRoot(UnmountRoot {})).await?;
    if code == 0 { Ok(()) } else { Err(Error::Failed(code)) }
}

/// Waits for the end of the program.
async fn ended(events: &mut mpsc::Receiver<GuestEvent>) -> Result<u32, GuestError> {
    loop {
        match events.recv().await {
            Some(GuestEvent::Exited(exited)) => return Ok(exited.exit_code),
            Some(GuestEvent::OutOfMemory(_) | GuestEvent::SocketConnected(_)) => {}
            Some(GuestEvent::Lost(reason)) => return Err(GuestError::Lost(reason)),
            None => return Err(GuestError::Lost("it was closed".into())),
        }
    }
}

/// As a container with the defaults is started.
fn start(stdio: message::Stdio, work: Work, slots: &[Disk], terminal: bool) -> StartContainer {
    let volume = |(index, slot): (usize, &Disk)| MountSpec {
        path: [VOLUME, index.to_string().as_bytes()].concat(),
        read_only: false,
        source: Some(MountSource::Disk(DiskSource { serial: slot.name().into(), copy: true })),
    };
    let bytes = |paths: &[&str]| paths.iter().map(|p| p.as_bytes().to_vec()).collect();
    StartContainer {
        container: ContainerSpec {
            hostname: "warm-up".into(),
            masked_paths: bytes(DEFAULT_MASKED_PATHS),
            read_only_paths: bytes(DEFAULT_READ_ONLY_PATHS),
            limits: Some(Limits::default()),
            mounts: slots.iter().enumerate().map(volume).collect(),
            ..ContainerSpec::default()
        },
        process: ProcessSpec {
            process: INIT_PROCESS.into(),
            args: bytes(work.arguments()),
            env: bytes(&["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]),
            cwd: b"/".to_vec(),
            user: Some(User::default()),
            terminal: terminal.then_some(TerminalSize { rows: 24, columns: 80 }),
            stdio: Some(stdio),
            capabilities: capability::DEFAULT,
            ..ProcessSpec::default()
        },
    }
}
