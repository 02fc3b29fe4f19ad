//! Processes that prepare something are started at a low priority, and get the usual one back when
//! they are ready.

use rustix::process::{Pid, Resource, getrlimit, setpriority_process};

/// While something is prepared (`nice(2)`).
pub const LOW: i32 = 10;
/// `CAP_SYS_NICE`.
const SYS_NICE: u32 = 23;
/// The limit that allows a niceness of 0 (`getrlimit(2)`, `RLIMIT_NICE`).
const MAY_BE_USUAL: u64 = 20;

/// Whether this process may undo [`LOW`]; where not, nothing is prepared at a low priority.
pub fn can_be_undone() -> bool {
    let limit = getrlimit(Resource::Nice).current;
    limit.is_none_or(|limit| limit >= MAY_BE_USUAL) || has_capability()
}

fn has_capability() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    effective.is_some_and(|mask| mask & (1 << SYS_NICE) != 0)
}

/// Gives all threads of a process the usual priority.
pub fn undo(pid: i32) {
    set(pid, 0);
}

/// Gives all threads of a process the low priority.
pub fn lower(pid: i32) {
    set(pid, LOW);
}

fn set(pid: i32, niceness: i32) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
    for task in tasks.flatten() {
        let task = task.file_name().to_str().and_then(|tid| Pid::from_raw(tid.parse().ok()?));
        if let Some(task) = task
            && let Err(error) = setpriority_process(Some(task), niceness)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid, %error, "a process keeps its priority");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getpriority_process;
    use std::process::Command;

    #[test]
    fn a_low_priority_is_undone_where_that_is_allowed() {
        let mut child = Command::new("nice").args(["-n", "10", "sleep", "60"]).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while getpriority_process(Some(pid)) != Ok(10) {
            assert!(std::time::Instant::now() < end);
        }
        lower(child.id() as i32);
        assert_eq!(getpriority_process(Some(pid)), Ok(10));
        undo(child.id() as i32);
        let expected = if can_be_undone() { 0 } else { 10 };
        assert_eq!(getpriority_process(Some(pid)), Ok(expected));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
