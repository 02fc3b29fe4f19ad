//! How containers end, in words and as a file.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use container_api::escape::escape;
use container_api::paths::container_files;
use container_api::types::{ExitRecord, OutOfMemoryKill, Timestamp};
use container_api::{ApiError, ErrorCode};
use nix::libc;
use nix::sys::signal::Signal;
use vminitd_protocol::message::{self, OutOfMemory, ProcessExited};

use crate::guest::GuestError;
use crate::hypervisor::VmExit;

/// Exit code of every failure of ours (Docker's).
const FAILURE: u8 = 125;
/// Longest reason in characters.
const MAX_REASON: usize = 400;

/// A failure of the VM, the guest or the helper.
pub fn failure(reason: impl Into<String>) -> ExitRecord {
    record(FAILURE, reason.into())
}

fn record(exit_code: u8, reason: String) -> ExitRecord {
    let reason = shortened(&escape(&reason));
    ExitRecord {
        exit_code,
        signal: None,
        out_of_memory: false,
        stop_requested: false,
        out_of_memory_kills: Vec::new(),
        reason,
        exited_date: Timestamp::now(),
    }
}

/// The program could not be started.
pub fn start_failed(error: &ApiError) -> ExitRecord {
    record(error.code.exit_code(), error.message.clone())
}

/// Killed by us, because it did not end when asked.
pub fn killed(reason: &str) -> ExitRecord {
    let signal = Signal::SIGKILL as i32;
    ExitRecord { signal: Some(signal), ..record(128 + signal as u8, reason.to_owned()) }
}

/// A signal's name, or its number for those without one.
fn signal_name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |s| s.to_string())
}

/// What the guest says about a process's end. `victim` is who was killed last for want of memory.
pub fn of_process(exited: &ProcessExited, memory_mib: u64, victim: Option<&str>) -> ExitRecord {
    let exit_code = u8::try_from(exited.exit_code).unwrap_or(u8::MAX);
    let signal = i32::try_from(exited.signal).ok().filter(|s| (1..=64).contains(s));
    let reason = if exited.out_of_memory {
        let victim = victim.filter(|v| !v.is_empty()).map(|v| format!(": killed {v}"));
        format!("out of memory (limit {memory_mib} MiB){}", victim.unwrap_or_default())
    } else {
        match signal {
            Some(signal) => format!("killed by {}", signal_name(signal)),
            None => "exited".to_owned(),
        }
    };
    let mut record =
        ExitRecord { signal, out_of_memory: exited.out_of_memory, ..record(exit_code, reason) };
    // The guest's clock was set from ours; one that is far off is not believed.
    let told = UNIX_EPOCH + Duration::from_nanos(exited.exited_at_ns);
    if record.exited_date.0.duration_since(told).is_ok_and(|age| age < Duration::from_secs(60)) {
        record.exited_date = Timestamp(told);
    }
    record
}

/// What the guest says about a process that was killed for want of memory; `limit` in bytes is
/// what it is taken to be when the guest does not say.
pub fn of_kill(oom: &OutOfMemory, limit: u64) -> OutOfMemoryKill {
    OutOfMemoryKill {
        process: shortened(&escape(&oom.process)),
        pid: i32::try_from(oom.pid).ok().filter(|pid| *pid > 0),
        date: Timestamp::now(),
        limit_in_bytes: if oom.limit_bytes > 0 { oom.limit_bytes } else { limit },
        message: shortened(&escape(&oom.kernel_message)),
    }
}

/// Why a VM ended that nobody asked to. `console` is the end of the guest's console.
pub fn of_vm(exit: &VmExit, console: &str, booted: bool, memory_mib: u64) -> ExitRecord {
    let too_little = format!("{memory_mib} MiB is too little memory for this guest");
    if let Some(panic) = kernel_panic(console) {
        if !booted && memory_words(console) {
            return failure(format!("{too_little} (guest kernel panic: {panic})"));
        }
        return failure(format!("guest kernel panic: {panic}"));
    }
    if let Some(signal) = exit.signal {
        return failure(format!("hypervisor killed by {}", signal_name(signal)));
    }
    if !booted && memory_words(console) {
        return failure(too_little);
    }
    failure(match (exit.code, exit.reason.as_deref()) {
        (Some(0), Some("guest-shutdown")) => "the guest powered itself off".into(),
        (Some(0), Some("guest-reset")) => "the guest restarted itself".into(),
        _ => format!("hypervisor ended: {exit}"),
    })
}

/// Whether a VM that ended before its guest answered may well come up another time: emulated
/// boots of several CPUs panic or reset, and the emulator itself crashes, very rarely. One that
/// lacks memory always does.
pub fn worth_another_boot(exit: &VmExit, console: &str) -> bool {
    let crashed = matches!(exit.signal, Some(libc::SIGSEGV | libc::SIGABRT | libc::SIGBUS));
    let reset = exit.signal.is_none() && exit.reason.as_deref() == Some("guest-reset");
    (crashed || reset || kernel_panic(console).is_some()) && !memory_words(console)
}

/// The message of the last kernel panic on a console.
fn kernel_panic(console: &str) -> Option<&str> {
    const MARK: &str = "Kernel panic - not syncing: ";
    let at = console.rfind(MARK)? + MARK.len();
    console[at..].lines().next().map(str::trim)
}

/// Whether a console speaks of memory that ran out.
fn memory_words(console: &str) -> bool {
    [
        "ut of memory",
        "not enough memory",
        "deadlocked on memory",
        "Failed to allocate",
        "write error",
    ]
    .iter()
    .any(|words| console.contains(words))
}

/// A guest's failure as other services see it.
pub fn api_error(error: GuestError) -> ApiError {
    use message::ErrorCode as G;
    let code = match &error {
        GuestError::Refused(refused) => match refused.code() {
            G::CommandNotFound => ErrorCode::ProgramNotFound,
            G::NotExecutable => ErrorCode::ProgramNotExecutable,
            G::InvalidRequest | G::BadUser | G::BadCwd => ErrorCode::InvalidArgument,
            G::InvalidState | G::NoSuchProcess => ErrorCode::InvalidState,
            G::InUse => ErrorCode::AlreadyExists,
            G::Exhausted => ErrorCode::ResourceExhausted,
            G::Unsupported => ErrorCode::Unsupported,
            G::Internal | G::Mount => ErrorCode::Internal,
        },
        GuestError::Silent { .. } => ErrorCode::Timeout,
        GuestError::Lost(_) | GuestError::Nonsense { .. } => ErrorCode::Disconnected,
        GuestError::TooLarge(_) => ErrorCode::InvalidArgument,
        GuestError::Generation(_) => ErrorCode::Unavailable,
    };
    ApiError::new(code, shortened(&error.to_string()))
}

/// At most [`MAX_REASON`] characters: a guest may say as much as it likes.
pub fn shortened(text: &str) -> String {
    text.chars().take(MAX_REASON).collect()
}

/// An error with its sources in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |e| e.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Writes the exit record so that a reader sees all of it or none; with `durable` it survives a
/// power loss.
///
/// # Errors
/// Those of the system.
pub fn write(directory: &Path, record: &ExitRecord, durable: bool) -> io::Result<()> {
    let path = directory.join(container_files::EXIT);
    let temporary = directory.join(format!("{}.new", container_files::EXIT));
    let mut options = File::options();
    let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    if durable {
        file.sync_all()?;
    }
    std::fs::rename(&temporary, &path)?;
    if durable {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Removes what a former run of this container has left.
///
/// # Errors
/// Those of the system.
pub fn clear(directory: &Path) -> io::Result<()> {
    match std::fs::remove_file(directory.join(container_files::EXIT)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(exit_code: u32, signal: u32, out_of_memory: bool) -> ProcessExited {
        ProcessExited { exit_code, signal, out_of_memory, ..ProcessExited::default() }
    }

    #[test]
    fn processes() {
        let ended = of_process(&exited(7, 0, false), 64, None);
        assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "exited"));
        let ended = of_process(&exited(137, 9, false), 64, None);
        assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "killed by SIGKILL"));
        let ended = of_process(&exited(137, 9, true), 64, Some("eat\u{1b}"));
        assert!(ended.out_of_memory);
        assert_eq!(ended.reason, "out of memory (limit 64 MiB): killed eat\\u{1b}");
        assert_eq!(of_process(&exited(70_000, 0, false), 64, None).exit_code, 255);
    }

    #[test]
    fn kills() {
        let oom = OutOfMemory { process: "eat\u{1b}".into(), pid: 42, ..OutOfMemory::default() };
        let kill = of_kill(&oom, 64 << 20);
        assert_eq!((kill.process.as_str(), kill.pid), ("eat\\u{1b}", Some(42)));
        assert_eq!(kill.limit_in_bytes, 64 << 20);
        let oom = OutOfMemory { limit_bytes: 1 << 20, ..OutOfMemory::default() };
        let kill = of_kill(&oom, 64 << 20);
        assert_eq!((kill.pid, kill.limit_in_bytes), (None, 1 << 20));
    }

    #[test]
    fn machines() {
        let killed = VmExit { signal: Some(9), ..VmExit::default() };
        assert_eq!(of_vm(&killed, "", true, 64).reason, "hypervisor killed by SIGKILL");
        let console = "[1.0] Kernel panic - not syncing: sysrq triggered\u{1b}[2J\n[1.1] CPU: 0";
        let reset = VmExit { code: Some(0), reason: Some("guest-reset".into()), ..killed };
        let reset = VmExit { signal: None, ..reset };
        assert_eq!(
            of_vm(&reset, console, true, 64).reason,
            "guest kernel panic: sysrq triggered\\u{1b}[2J"
        );
        let console = "Kernel panic - not syncing: System is deadlocked on memory";
        let reason = of_vm(&reset, console, false, 64).reason;
        assert!(reason.starts_with("64 MiB is too little memory"), "{reason}");
        assert_eq!(of_vm(&reset, "", true, 64).reason, "the guest restarted itself");
        assert!(worth_another_boot(&reset, "") && !worth_another_boot(&reset, console));
        let killed = VmExit { signal: Some(9), ..VmExit::default() };
        assert!(!worth_another_boot(&killed, ""));
        let crashed = VmExit { signal: Some(libc::SIGSEGV), ..VmExit::default() };
        assert!(worth_another_boot(&crashed, "") && !worth_another_boot(&crashed, console));
    }

    #[test]
    fn a_record_replaces_the_old_one_whole() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &failure("a"), true).unwrap();
        write(dir.path(), &killed("b"), false).unwrap();
        let bytes = std::fs::read(dir.path().join("exit.json")).unwrap();
        let read: ExitRecord = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((read.exit_code, read.reason.as_str()), (137, "b"));
        clear(dir.path()).unwrap();
        clear(dir.path()).unwrap();
    }
}
