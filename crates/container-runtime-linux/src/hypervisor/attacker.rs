//! An attacker in the hypervisor's place: a probe in a jail that is made as a VM's is, with
//! descriptors of the same kinds.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::Accelerator;
use super::child::Child;
use super::command::{self, Shape};
use super::error::{Error, Phase};
use super::install::unix_stream;
use super::jail::{self, Descriptors, Jail, JailFile, Program, check_tap};

/// The longest that all attempts may take together.
const DEADLINE: Duration = Duration::from_secs(20);
/// Most bytes that are read of what the attacker says: it is jailed since it is not trusted.
const MAX_WORDS: u64 = 64 << 10;
/// Where the probe is in the jail.
const PROGRAM: &str = "/container-probe";
/// Seconds for which the neighbour waits; it is killed before.
const NEIGHBOUR: &str = "60";

/// What is attacked, and by what.
#[derive(Debug, Clone, Default)]
pub struct Attack {
    /// The probe, static.
    pub probe: PathBuf,
    /// A file like a VM's own disk: everybody may write to it, so that the jail alone decides.
    pub own: PathBuf,
    /// A file like those that VMs share.
    pub shared: PathBuf,
    /// Whether hypervisors here get `/dev/kvm`.
    pub kvm: bool,
    /// Processes outside to look for, beside those that this makes.
    pub processes: Vec<i32>,
    /// Files outside to look for.
    pub files: Vec<PathBuf>,
    /// An abstract socket outside to look for.
    pub name: Option<String>,
}

/// Runs the probe in a jail beside another such jail. Answer: the lines that it wrote.
///
/// # Errors
/// When the jail can't be made, or takes too long.
pub async fn attack(jail: &Jail, attack: &Attack) -> Result<Vec<u8>, Error> {
    let neighbour =
        spawn(jail, attack, Descriptors::new(Vec::new())?, &["sleep", NEIGHBOUR]).await?;
    let (ours, theirs) =
        StdStream::pair().map_err(Error::io(Phase::Spawn, "making a socket pair"))?;
    let disk = std::fs::File::options().read(true).write(true).open(&attack.own);
    let disk = disk.map_err(Error::io(Phase::Prepare, "opening a file for the probe"))?;
    let kept = vec![OwnedFd::from(theirs), OwnedFd::from(disk)];
    let [out, disk_number] = [&kept[0], &kept[1]].map(AsRawFd::as_raw_fd);
    let mut descriptors = Descriptors::new(kept)?;
    let shared_number = descriptors.share(attack.shared.clone());
    let tap = match check_tap(jail).await {
        Ok(()) => Some(descriptors.tap()),
        Err(_) => None,
    };
    let numbers = [0, 1, 2, out, disk_number, shared_number].into_iter().chain(tap);
    let numbers: Vec<_> = numbers.map(|number| number.to_string()).collect();
    let mut words: Vec<OsString> = vec!["jail".into()];
    let mut push = |option: &str, value: OsString| words.extend([option.into(), value]);
    push("--out", out.to_string().into());
    push("--fds", numbers.join(",").into());
    push("--own", disk_number.to_string().into());
    push("--shared", shared_number.to_string().into());
    if let Some(tap) = tap {
        push("--tap", tap.to_string().into());
    }
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    for pid in [own, neighbour.pid()].iter().chain(&attack.processes) {
        push("--pid", pid.to_string().into());
    }
    for path in [&attack.own, &attack.shared].into_iter().chain(&attack.files) {
        push("--file", path.into());
    }
    if let Some(name) = &attack.name {
        push("--abstract", name.into());
    }
    let attacker = spawn(jail, attack, descriptors, &words).await?;
    let mut said = Vec::new();
    let hear = async {
        unix_stream(ours)?
            .take(MAX_WORDS)
            .read_to_end(&mut said)
            .await
            .map_err(Error::io(Phase::Spawn, "reading what the probe says"))
    };
    let heard = tokio::time::timeout(DEADLINE, hear).await;
    attacker.kill();
    attacker.wait().await;
    neighbour.kill();
    neighbour.wait().await;
    heard.map_err(|_| Error::TimedOut {
        phase: Phase::Spawn,
        operation: "the probe in the jail".into(),
        limit: DEADLINE,
    })??;
    Ok(said)
}

/// Starts the probe as a VM of the smallest shape would be.
async fn spawn(
    jail: &Jail,
    attack: &Attack,
    descriptors: Descriptors,
    words: &[impl AsRef<std::ffi::OsStr>],
) -> Result<Child, Error> {
    let files = [JailFile { source: attack.probe.clone(), target: Path::new(PROGRAM).into() }];
    let accelerator = if attack.kvm { Accelerator::Kvm } else { Accelerator::Tcg };
    let shape =
        Shape { accelerator, virtualization: false, memory_mib: 128, vcpus: 1, root_ports: 0 };
    let program = Program {
        files: &files,
        descriptors,
        kvm: attack.kvm,
        limits: command::limits(shape),
        env: Vec::new(),
        command: [PROGRAM.into()]
            .into_iter()
            .chain(words.iter().map(|word| word.as_ref().to_owned()))
            .collect(),
    };
    jail::spawn(jail, program).await
}
