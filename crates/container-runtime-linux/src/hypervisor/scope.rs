//! A cgroup for each VM, with limits, from the service manager of the host.
//!
//! ```text
//! systemd, cgroup 2:   container.slice ─► container-vm-PID.scope   helper, QEMU, file server
//! else:                the cgroup that the service has; the guest's own limits hold
//! ```
//! systemd owns the tree, so it is asked for a transient scope, by `busctl`, which comes with it.
//! A plain user's own manager is asked only where it runs the service: a scope of the manager ends
//! with it, when the user logs out and does not linger, while a service that a login started stays.
//! The VM starts meanwhile: the limits hold a moment later.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use container_api::types::Accelerator;
use tokio::process::Command;

use super::command::{Shape, TRANSLATION_CACHE_MIB};

/// What QEMU, helper and file server need beside the guest's RAM.
const OVERHEAD_MIB: u64 = 256;
/// Threads beside those of the CPUs: QEMU's workers, the helper's, the file server's.
const TASKS: u64 = 256;
/// CPUs' worth of time beside the guest's: disks, streams.
const MORE_CPUS: u64 = 1;
/// For an answer of the service manager.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between looks whether this process has been moved.
const STEP: Duration = Duration::from_millis(50);

/// Limits of a scope.
#[derive(Debug, PartialEq, Eq)]
struct Limits {
    memory_bytes: u64,
    tasks: u64,
    /// CPU time in a second of time.
    cpu_usec: u64,
}

impl Limits {
    fn of(shape: Shape) -> Limits {
        let cache = match shape.accelerator {
            Accelerator::Tcg => TRANSLATION_CACHE_MIB,
            Accelerator::Kvm => 0,
        };
        let mib = u64::from(shape.memory_mib) + u64::from(cache) + OVERHEAD_MIB;
        let vcpus = u64::from(shape.vcpus);
        let cpu_usec = (vcpus + MORE_CPUS) * 1_000_000;
        Limits { memory_bytes: mib << 20, tasks: vcpus + TASKS, cpu_usec }
    }
}

/// Whose service manager gives a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manager {
    System,
    User(u32),
}

/// The manager to ask; `cgroup` is this process's `/proc/self/cgroup`. The error is why none is.
fn manager(uid: u32, cgroup: &str) -> Result<Manager, &'static str> {
    let unified = cgroup.lines().find_map(|line| line.strip_prefix("0::"));
    match (uid, unified) {
        (_, None) => Err("no unified cgroup tree"),
        (0, _) => Ok(Manager::System),
        (uid, Some(path)) if path.contains(&format!("/user@{uid}.service/")) => {
            Ok(Manager::User(uid))
        }
        _ => Err("the service was started by a login, not by the user's service manager"),
    }
}

/// The words of `busctl` that ask for a scope of `pids`.
fn words(manager: Manager, pids: [i32; 2], limits: &Limits) -> Vec<String> {
    let [helper, qemu] = pids;
    let bus = match manager {
        Manager::System => "--system",
        Manager::User(_) => "--user",
    };
    let mut words: Vec<String> = [
        bus,
        "--quiet",
        "call",
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
    ]
    .map(String::from)
    .into();
    let mut properties = vec![
        vec!["PIDs".into(), "au".into(), "2".into(), helper.to_string(), qemu.to_string()],
        vec!["Slice".into(), "s".into(), "container.slice".into()],
        vec!["Description".into(), "s".into(), "Virtual machine of a container".into()],
        vec!["CollectMode".into(), "s".into(), "inactive-or-failed".into()],
    ];
    let numbers = [
        ("MemoryMax", limits.memory_bytes),
        ("TasksMax", limits.tasks),
        ("CPUQuotaPerSecUSec", limits.cpu_usec),
    ];
    properties.extend(numbers.map(|(name, n)| vec![name.into(), "t".into(), n.to_string()]));
    words.extend([format!("container-vm-{qemu}.scope"), "fail".into()]);
    words.push(properties.len().to_string());
    words.extend(properties.into_iter().flatten());
    // No further units.
    words.push("0".into());
    words
}

/// Has a VM's process, and this one, put into a cgroup of their own, where there is one to have.
/// Returns at once.
pub fn enclose(qemu: i32, shape: Shape) {
    if !Path::new("/run/systemd/system").is_dir() {
        return;
    }
    let uid = nix::unistd::geteuid().as_raw();
    match manager(uid, &own_cgroup()) {
        Ok(manager) => drop(tokio::spawn(ask(manager, qemu, Limits::of(shape)))),
        Err(reason) => tracing::info!(reason, "the VM has no cgroup of its own"),
    }
}

async fn ask(manager: Manager, qemu: i32, limits: Limits) {
    let before = own_cgroup();
    let mut command = Command::new("busctl");
    command.args(words(manager, [std::process::id() as i32, qemu], &limits));
    if let Manager::User(uid) = manager {
        command.env("XDG_RUNTIME_DIR", format!("/run/user/{uid}"));
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    let reason = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) if output.status.success() => match moved(&before).await {
            true => return told(),
            false => "systemd did not move the VM".to_owned(),
        },
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            container_api::escape::escape(text.trim()).into_owned()
        }
        Ok(Err(error)) => format!("busctl: {error}"),
        Err(_) => format!("systemd did not answer within {} s", PATIENCE.as_secs()),
    };
    tracing::warn!(reason, "the VM has no cgroup of its own");
}

/// Waits until this process is in another cgroup than `before`.
async fn moved(before: &str) -> bool {
    let steps = PATIENCE.as_millis() / STEP.as_millis();
    for _ in 0..steps {
        if own_cgroup() != before {
            return true;
        }
        tokio::time::sleep(STEP).await;
    }
    false
}

/// Says what the kernel holds the VM to.
fn told() {
    let cgroup = own_cgroup();
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    let limit = |name: &str| {
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup{path}/{name}"));
        // A controller that was not delegated has no file.
        text.map_or_else(|_| "none".to_owned(), |text| text.trim().to_owned())
    };
    let (memory, pids, cpu) = (limit("memory.max"), limit("pids.max"), limit("cpu.max"));
    tracing::info!(cgroup = path, memory, pids, cpu, "the VM has a cgroup of its own");
}

fn own_cgroup() -> String {
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_the_systems_manager_a_user_the_one_that_runs_the_service() {
        assert_eq!(manager(0, "0::/system.slice/container.service\n"), Ok(Manager::System));
        let own = "0::/user.slice/user-7.slice/user@7.service/app.slice/container.service\n";
        assert_eq!(manager(7, own), Ok(Manager::User(7)));
        assert!(manager(8, own).is_err(), "another user's");
        assert!(manager(7, "0::/user.slice/user-7.slice/session-3.scope\n").is_err());
        assert!(manager(0, "4:memory:/x\n").is_err());
    }

    #[test]
    fn a_scope_has_room_for_the_guest_and_what_runs_it() {
        let mut shape = Shape {
            accelerator: Accelerator::Kvm,
            virtualization: false,
            memory_mib: 1024,
            vcpus: 2,
            root_ports: 0,
        };
        let limits = Limits::of(shape);
        assert_eq!(limits, Limits { memory_bytes: 1280 << 20, tasks: 258, cpu_usec: 3_000_000 });
        shape.accelerator = Accelerator::Tcg;
        assert!(Limits::of(shape).memory_bytes > limits.memory_bytes);
        let words = words(Manager::User(7), [10, 11], &limits).join(" ");
        assert!(words.starts_with("--user "), "{words}");
        let text = "container-vm-11.scope fail 7 PIDs au 2 10 11 Slice s container.slice ";
        assert!(words.contains(text), "{words}");
        let text = "MemoryMax t 1342177280 TasksMax t 258 CPUQuotaPerSecUSec t 3000000 0";
        assert!(words.ends_with(text), "{words}");
    }
}
