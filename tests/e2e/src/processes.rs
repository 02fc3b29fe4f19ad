//! Which processes belong to an installation: found from outside, through /proc, so
//! that a process which the product forgot is seen too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use crate::Installation;

/// The helper's name, of which the kernel keeps 15 bytes.
const HELPER: &str = "container-runti";

/// One process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its parent's number.
    pub parent: u32,
    /// The program's name, at most 15 bytes.
    pub name: String,
    /// Its arguments, joined by blanks.
    pub arguments: String,
}

impl Installation {
    /// The processes that belong to this installation.
    pub fn processes(&self) -> Vec<Process> {
        of_app_root(self.app_root())
    }

    /// The process of this installation with that name (at most 15 bytes of it are kept).
    #[track_caller]
    pub fn process(&self, name: &str) -> Process {
        let short = &name[..name.len().min(15)];
        let all = self.processes();
        let mut found = all.iter().filter(|process| process.name == short);
        let first = found.next().unwrap_or_else(|| panic!("no process {name} in {all:#?}"));
        first.clone()
    }

    /// The helpers of containers: neither spares nor what makes a template.
    pub fn helpers(&self) -> Vec<Process> {
        let containers = self.app_root().join("containers");
        let mut all = self.processes();
        all.retain(|process| process.name == HELPER && has_open_below(process.pid, &containers));
        all
    }

    /// The QEMU processes that are neither spares nor become a template; one whose helper has died
    /// is among them.
    pub fn qemus(&self) -> Vec<Process> {
        let containers = self.app_root().join("containers");
        let mut all = self.processes();
        let others: Vec<u32> = all
            .iter()
            .filter(|process| process.name == HELPER)
            .map(|helper| helper.pid)
            .filter(|pid| !has_open_below(*pid, &containers))
            .collect();
        all.retain(|process| {
            process.name.starts_with("qemu-system") && !others.contains(&process.parent)
        });
        all
    }
}

/// Every process that has `app_root` in its arguments, environment, folder or open
/// files, and all their children; the caller itself is left out.
pub fn of_app_root(app_root: &Path) -> Vec<Process> {
    let all = all();
    let own = std::process::id();
    let mut found: BTreeSet<u32> =
        all.values().filter(|process| touches(process.pid, app_root)).map(|p| p.pid).collect();
    found.remove(&own);
    loop {
        let children: Vec<u32> = all
            .values()
            .filter(|process| found.contains(&process.parent) && !found.contains(&process.pid))
            .map(|process| process.pid)
            .collect();
        if children.is_empty() {
            break;
        }
        found.extend(children);
    }
    found.iter().filter_map(|pid| all.get(pid).cloned()).collect()
}

/// Kills a process that a test or this harness started.
pub fn kill(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // It may have ended just now.
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process is there (a zombie is not).
pub fn exists(pid: u32) -> bool {
    read(pid).is_some()
}

/// Memory that is the process's own, in KiB: anonymous pages, which no other shares.
pub fn private_kib(pid: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = rollup.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some(field("Private_Dirty:")? + field("Private_Clean:")?)
}

/// Memory that is there for this process alone, in KiB: anonymous pages and what is swapped out,
/// and pages of files in memory that it maps to share, as a VM that booted has its RAM. Of a
/// template's RAM, which is mapped copy-on-write, only the copies count.
pub fn own_kib(pid: u32) -> Option<u64> {
    smaps(pid).map(|(ram, rest)| ram + rest)
}

/// Of [`own_kib`], what is the RAM of a VM.
pub fn ram_kib(pid: u32) -> Option<u64> {
    smaps(pid).map(|(ram, _)| ram)
}

/// The most of [`ram_kib`] that was seen while `work` went on.
pub fn peak_ram_kib(pid: u32, work: impl FnOnce()) -> u64 {
    use std::sync::atomic::{AtomicBool, Ordering};
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(ram_kib(pid).unwrap_or(0));
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            peak
        });
        // A watcher that is not told would keep a failure waiting for ever.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        let peak = watch.join().expect("the watcher");
        outcome.map_or_else(|panic| std::panic::resume_unwind(panic), |()| peak)
    })
}

/// A process's own memory in KiB: in files in memory, and elsewhere.
fn smaps(pid: u32) -> Option<(u64, u64)> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let (mut ram, mut rest) = (0, 0);
    let (mut is_ram, mut is_shared) = (false, false);
    for line in smaps.lines() {
        let (first, words) = line.split_once(' ').unwrap_or((line, ""));
        let kib = || words.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
        match first {
            "Anonymous:" | "Swap:" if is_ram => ram += kib(),
            "Anonymous:" | "Swap:" => rest += kib(),
            "Rss:" if is_ram && is_shared => ram += kib(),
            _ if !first.ends_with(':') => {
                // A file on a mount of its own, as a template's RAM, has no other name there.
                is_ram = words.contains("/memfd:") || words.ends_with(" /");
                is_shared = words.as_bytes().get(3) == Some(&b's');
            }
            _ => {}
        }
    }
    Some((ram, rest))
}

/// Time on a processor that it has used.
pub fn cpu_time(pid: u32) -> Option<std::time::Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let per_second = rustix::param::clock_ticks_per_second();
    Some(std::time::Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// Whether this is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn all() -> BTreeMap<u32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, read(pid)?)))
        .collect()
}

fn read(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold any byte, also parentheses.
    let (before, after) = stat.rsplit_once(") ")?;
    let name = before.split_once('(')?.1.to_owned();
    let mut fields = after.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ").trim().to_owned();
    Some(Process { pid, parent, name, arguments })
}

/// Whether a process has a file open below `folder`.
pub fn has_open_below(pid: u32, folder: &Path) -> bool {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    links
        .filter_map(|link| std::fs::read_link(link.path()).ok())
        .any(|target| target.starts_with(folder))
}

fn touches(pid: u32, app_root: &Path) -> bool {
    let root = app_root.as_os_str().as_encoded_bytes();
    let holds = |bytes: &[u8]| bytes.windows(root.len()).any(|window| window == root);
    let folder = format!("/proc/{pid}");
    for file in ["cmdline", "environ"] {
        if std::fs::read(format!("{folder}/{file}")).is_ok_and(|bytes| holds(&bytes)) {
            return true;
        }
    }
    let here = std::fs::read_link(format!("{folder}/cwd"));
    here.is_ok_and(|here| here.starts_with(app_root)) || has_open_below(pid, app_root)
}
