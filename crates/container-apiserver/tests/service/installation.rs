//! An installation in a temporary directory.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as StdStdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use container_api::apiserver::{
    ApiClient, CreateOptions, Created, QUICK, Request, SLOW, SystemStatus,
};
use container_api::paths::AppRoot;
use container_api::types::{ContainerSnapshot, ExitRecord, Status, Stdio, VmOrigin};
use container_api::{ApiError, Result};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Programs, a kernel and an app root; everything started here ends with it.
pub struct Installation {
    directory: TempDir,
    pub root: AppRoot,
    /// Items of progress that creations have brought.
    pub progress: AtomicUsize,
}

impl Installation {
    /// One whose service is not started.
    pub fn new() -> Installation {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("bin");
        let kernel = directory.path().join("share/container/kernel");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(&kernel).unwrap();
        for file in ["vmlinux", "initramfs.cpio", "warm.erofs"] {
            std::fs::write(kernel.join(file), "fake").unwrap();
        }
        let service = Path::new(env!("CARGO_BIN_EXE_container-apiserver"));
        let fake = service.parent().unwrap().join("examples/fake_services");
        for (from, name) in [
            (service, "container-apiserver"),
            (&fake, "container-runtime-linux"),
            (&fake, "container-images"),
            (&fake, "container-jailer"),
            (&fake, "container-network"),
        ] {
            // Not by this process: a child that another test forks just then would hold the copy
            // open for writing, and it could not be executed.
            let copied = Command::new("cp").arg(from).arg(bin.join(name)).status().unwrap();
            assert!(copied.success());
        }
        let root = AppRoot::resolve(Some(&directory.path().join("root"))).unwrap();
        Installation { directory, root, progress: AtomicUsize::new(0) }
    }

    /// One whose service answers.
    pub fn started() -> Installation {
        let installation = Installation::new();
        installation.start_service();
        installation
    }

    fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.directory.path().join("bin/container-apiserver"));
        command.arg("--app-root").arg(self.root.path()).args(arguments);
        command.env_remove("NOTIFY_SOCKET").stdin(StdStdio::null());
        command
    }

    /// One with this configuration, whose service answers.
    pub fn configured(config: &str) -> Installation {
        let installation = Installation::new();
        installation.configure(config);
        installation.start_service();
        installation
    }

    /// Writes the configuration.
    pub fn configure(&self, config: &str) {
        if !self.root.path().exists() {
            std::fs::DirBuilder::new().mode(0o700).create(self.root.path()).unwrap();
        }
        std::fs::write(self.root.path().join("config.toml"), config).unwrap();
    }

    /// Tells the stand-ins what to do ([`fake_services`]).
    pub fn tell(&self, what: &str, text: &str) {
        std::fs::write(self.path(&format!("fake-{what}")), text).unwrap();
    }

    /// Memory in MiB of the templates that were begun to be made.
    pub fn made(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(self.path("made")).unwrap_or_default();
        let first = |line: &str| line.split(' ').next().unwrap().parse().unwrap();
        text.lines().map(first).collect()
    }

    /// Process ids of those who made them.
    pub fn makers(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.path("made")).unwrap_or_default();
        text.lines().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect()
    }

    /// The names in a directory of the app root.
    pub fn list(&self, directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Waits until a question has the answer that is wanted.
    pub async fn until_status(
        &self,
        what: &str,
        condition: impl Fn(&SystemStatus) -> bool,
    ) -> SystemStatus {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.client().status().await.unwrap();
            if condition(&status) {
                return status;
            }
            assert!(Instant::now() < end, "not within 20 s: {what}: {status:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Creates, starts and ends a container; how its VM came to be.
    pub async fn run(&self, options: CreateOptions) -> VmOrigin {
        let id = options.name.clone().unwrap();
        let request = Request::Create(Box::new(options));
        self.client().call_with_progress::<Created>(&request, &[], |_| {}).await.unwrap();
        self.start(&id).await.unwrap();
        let origin = self.inspect(&id).await.unwrap().vm_origin.unwrap();
        self.delete(&id, true).await.unwrap();
        origin
    }

    /// Starts the service in the background, as `system start` does.
    pub fn start_service(&self) {
        let (code, error) = self.try_start_service();
        assert_eq!(code, 0, "{error}");
    }

    pub fn try_start_service(&self) -> (i32, String) {
        let output = self.program(&["--daemon"]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap(), error)
    }

    /// The service as a service manager starts it, with its socket and a place to report to.
    pub fn managed(&self, listener: UnixListener, notify: &Path) -> Child {
        let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
        let program = self.path("bin/container-apiserver");
        Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(program)
            .arg("--app-root")
            .arg(self.root.path())
            .env("NOTIFY_SOCKET", notify)
            .stdin(OwnedFd::from(listener))
            .spawn()
            .unwrap()
    }

    pub fn client(&self) -> ApiClient {
        ApiClient::connect(&self.root).unwrap()
    }

    pub fn service_pid(&self) -> i32 {
        std::fs::read_to_string(self.root.lock()).unwrap().trim().parse().unwrap()
    }

    pub fn kill_service(&self) {
        let pid = self.service_pid();
        kill(pid, Signal::KILL);
        wait_until("the service is gone", || !alive(pid));
    }

    pub async fn create(&self, id: &str, behaviour: &str) -> Result<Created> {
        let options = options(id, behaviour);
        let request = Request::Create(Box::new(options));
        let count = |_| _ = self.progress.fetch_add(1, Ordering::Relaxed);
        self.client().call_with_progress(&request, &[], count).await
    }

    pub async fn start(&self, id: &str) -> Result<()> {
        let request = Request::Start {
            id: id.into(),
            stdio: Stdio::default(),
            size: None,
            trace: false,
            ssh_agent: None,
        };
        self.client().call(&request, &[], Some(SLOW)).await
    }

    pub async fn stop(&self, id: &str) -> Result<()> {
        let request = Request::Stop { id: id.into(), signal: None, timeout_ms: 1000 };
        self.client().call(&request, &[], Some(SLOW)).await
    }

    pub async fn delete(&self, id: &str, force: bool) -> Result<()> {
        self.client().call(&Request::Delete { id: id.into(), force }, &[], Some(QUICK)).await
    }

    pub async fn inspect(&self, id: &str) -> Result<ContainerSnapshot> {
        self.client().inspect(id).await
    }

    pub async fn wait(&self, id: &str) -> Result<ExitRecord> {
        let wait = async { self.client().wait(id, None).await };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap_or_else(|_| Err(ApiError::internal("the wait does not end")))
    }

    pub async fn status(&self) -> BTreeMap<String, Status> {
        let list = self.client().list().await.unwrap();
        list.into_iter().map(|c| (c.configuration.id, c.status)).collect()
    }

    /// Names in the containers' directory, temporary ones too.
    pub fn directories(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.containers()).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Processes whose arguments name something in this installation.
    fn processes(&self) -> Vec<i32> {
        let needle = self.directory.path().to_str().unwrap().to_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&arguments).contains(&needle) {
                found.push(pid);
            }
        }
        found
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        // One that was about to be started is there on the next look.
        for _ in 0..1000 {
            let pids = self.processes();
            if pids.is_empty() {
                break;
            }
            for pid in pids {
                kill(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

pub fn options(id: &str, behaviour: &str) -> CreateOptions {
    let mut options = CreateOptions { name: Some(id.into()), ..CreateOptions::default() };
    options.image.reference = "debian".into();
    options.labels.insert("fake".into(), behaviour.into());
    options
}

pub fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process is there and not a zombie.
pub fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
}

#[track_caller]
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
