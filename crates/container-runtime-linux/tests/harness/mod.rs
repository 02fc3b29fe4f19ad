//! Drives the helper as the service drives it, in real VMs: a container's directory, the helper's
//! process, its calls.
//!
//! Needs the build tree's kernel bundle (or `CONTAINER_TEST_BUNDLE`), `mkfs.erofs`, `mkfs.ext4` and
//! a static busybox.

pub mod template;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use container_api::output_log::{LogReader, OutputStream};
use container_api::runtime::{GuestNetwork, Request, State, VmSpec};
use container_api::types::{
    Accelerator, ContainerConfig, ExitRecord, ProcessConfig, Resources, Stdio, Timestamp,
};
use container_api::varlink::Client;
use container_api::{ApiError, socket};
use container_runtime_linux::hypervisor::{DISK_LEN, Source, install};

use crate::support;

/// Longer than any step takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(120);
pub const NONE: Stdio = Stdio { stdin: false, stdout: false, stderr: false };
pub const OUT: Stdio = Stdio { stdin: false, stdout: true, stderr: true };
pub const PIPE: Stdio = Stdio { stdin: true, stdout: true, stderr: false };

/// Where [`disks`] puts the image.
pub const IMAGE: &str = "images/image.erofs";

/// A container whose helper was started.
pub struct Run {
    pub directory: tempfile::TempDir,
    pub helper: Child,
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.helper.kill();
        let _ = self.helper.wait();
    }
}

pub fn bundle() -> PathBuf {
    match std::env::var_os("CONTAINER_TEST_BUNDLE") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/share/container/kernel"),
    }
}

pub fn tool(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An image of busybox as EROFS, and an empty ext4 disk, both of a disk's length.
pub fn disks(directory: &Path) {
    disks_with(directory, &[]);
}

/// [`disks`], with further programs in the image.
pub fn disks_with(directory: &Path, programs: &[&Path]) {
    let tree = directory.join("tree");
    for sub in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        fs::create_dir_all(tree.join(sub)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
    fs::copy(busybox.expect("busybox (package busybox-static)"), tree.join("bin/busybox")).unwrap();
    for name in
        "sh cat chmod true sleep echo stty head yes dd kill id uname tail mount seq ls pwd env"
            .split(' ')
    {
        symlink("busybox", tree.join("bin").join(name)).unwrap();
    }
    for program in programs {
        fs::copy(program, tree.join("bin").join(program.file_name().unwrap())).unwrap();
    }
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(tree.join("bin/garbage"), "no program").unwrap();
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    // As in an app root: images and spares beside one another.
    fs::create_dir(directory.join("images")).unwrap();
    tool("mkfs.erofs", &["--quiet", "--all-root", &path(IMAGE), &path("tree")]);
    let upper = File::create(directory.join("upper.img")).unwrap();
    upper.set_len(256 << 20).unwrap();
    tool("/usr/sbin/mkfs.ext4", &["-q", "-F", &path("upper.img")]);
    for name in [IMAGE, "upper.img"] {
        let file = File::options().write(true).open(directory.join(name)).unwrap();
        file.set_len(DISK_LEN).unwrap();
    }
    fs::remove_dir_all(tree).unwrap();
}

pub fn process(script: &str) -> ProcessConfig {
    ProcessConfig {
        executable: "/bin/sh".into(),
        arguments: vec!["-c".into(), script.into()],
        environment: vec!["PATH=/bin".into()],
        working_directory: "/".into(),
        ..ProcessConfig::default()
    }
}

pub fn config(script: &str) -> ContainerConfig {
    let image = serde_json::json!({
        "reference": "localhost/test:latest",
        "descriptor": { "mediaType": "x", "digest": "sha256:0", "size": 0 },
    });
    ContainerConfig {
        id: "test".into(),
        image: serde_json::from_value(image).unwrap(),
        platform: container_api::types::Platform::host(),
        init_process: process(script),
        resources: Resources { cpus: 1, memory_in_bytes: 256 << 20 },
        hostname: "test".into(),
        labels: Default::default(),
        read_only: false,
        tmpfs: Vec::new(),
        mounts: Vec::new(),
        pids_limit: None,
        restart_memory: None,
        shm_size: 64 << 20,
        use_init: false,
        capabilities: vec!["CAP_KILL".into(), "CAP_SETUID".into(), "CAP_SETGID".into()],
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        stop_signal: "SIGTERM".into(),
        kernel: None,
        image_volumes: Vec::new(),
        virtualization: false,
        auto_remove: false,
        restart: container_api::types::RestartPolicy::No,
        creation_date: Timestamp::now(),
        runtime_handler: "container-runtime-linux".into(),
        network: Default::default(),
        published_sockets: Vec::new(),
        security: container_api::seccomp::Security::default(),
        ssh: false,
    }
}

pub fn write_json(path: PathBuf, value: &impl serde::Serialize) {
    fs::write(path, serde_json::to_vec(value).unwrap()).unwrap();
}

/// How a container gets its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Cold,
    Template,
    Spare,
}

impl Way {
    /// What `CONTAINER_TEST_WAY` says; a boot when it says nothing.
    pub fn of_environment() -> Way {
        match std::env::var("CONTAINER_TEST_WAY").as_deref() {
            Ok("template") => Way::Template,
            Ok("spare") => Way::Spare,
            Ok("cold") | Err(_) => Way::Cold,
            Ok(other) => panic!("CONTAINER_TEST_WAY={other}"),
        }
    }
}

/// A VM whose disks are not known yet.
pub async fn spec(resources: Resources) -> VmSpec {
    let binary = std::env::var_os("CONTAINER_TEST_QEMU").map(PathBuf::from);
    let source = Source { binary, ..Source::default() };
    let hypervisor = install::discover(&source, &support::jail()).await.unwrap();
    VmSpec {
        mappable: false,
        kernel: bundle().join("vmlinux"),
        initramfs: bundle().join("initramfs.cpio"),
        template: None,
        nic: false,
        network: None,
        resources,
        accelerator: Accelerator::Tcg,
        virtualization: false,
        image_disk: PathBuf::new(),
        upper_disk: PathBuf::new(),
        shares: Vec::new(),
        hidden: Vec::new(),
        volumes: Vec::new(),
        maintenance: false,
        hypervisor: serde_json::to_value(hypervisor).unwrap(),
        jail_uid: support::JAIL_IDS.0,
        allow_missing: Vec::new(),
        log_max_size: 1 << 20,
        log_max_files: 3,
    }
}

/// The helper program in a mode.
pub fn helper(mode: &str, directory: &Path) -> Child {
    helper_with_taps(mode, directory, &[])
}

/// The helper program with taps.
pub fn helper_with_taps(mode: &str, directory: &Path, taps: &[OwnedFd]) -> Child {
    use std::os::unix::process::CommandExt;
    let program = std::env::var_os("CONTAINER_TEST_HELPER");
    let program = program.unwrap_or(env!("CARGO_BIN_EXE_container-runtime-linux").into());
    let mut command = Command::new(program);
    command.arg(mode).arg(directory);
    if taps.is_empty() {
        return command.spawn().unwrap();
    }
    command.args(["--taps", &taps.len().to_string()]);
    // Above the numbers that they are to have.
    let high = |tap: &OwnedFd| {
        let number = nix::fcntl::fcntl(tap, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(100)).unwrap();
        // SAFETY: the call has just made it.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    let high: Vec<OwnedFd> = taps.iter().map(high).collect();
    let numbers: Vec<_> = high.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: between fork and exec it calls dup2 alone.
    unsafe {
        command.pre_exec(move || {
            for (to, from) in (3..).zip(&numbers) {
                if nix::libc::dup2(*from, to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn().unwrap()
}

/// A container's network: how its guest sets it up, and what it leads to.
#[derive(Default)]
pub struct Net {
    pub guest: Option<GuestNetwork>,
    pub taps: Vec<OwnedFd>,
}

impl Run {
    pub async fn boot(config: ContainerConfig) -> Run {
        Run::begin(Way::of_environment(), config).await
    }

    pub async fn begin(way: Way, config: ContainerConfig) -> Run {
        let directory = tempfile::tempdir().unwrap();
        disks(directory.path());
        Run::begin_in(way, directory, config).await
    }

    pub async fn boot_in(directory: tempfile::TempDir, config: ContainerConfig) -> Run {
        Run::begin_in(Way::of_environment(), directory, config).await
    }

    pub async fn begin_in(way: Way, directory: tempfile::TempDir, config: ContainerConfig) -> Run {
        Run::begin_with(way, directory, config, Net::default()).await
    }

    pub async fn begin_with(
        way: Way,
        directory: tempfile::TempDir,
        config: ContainerConfig,
        net: Net,
    ) -> Run {
        let path = directory.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        let mut spec = spec(config.resources).await;
        spec.nic = net.guest.is_some();
        spec.network = net.guest;
        spec.image_disk = path.join(IMAGE);
        spec.upper_disk = path.join("upper.img");
        write_json(path.join("config.json"), &config);
        // A shape that no VM can have is for the cold way to refuse.
        let template = match way {
            Way::Template | Way::Spare if config.resources.memory_in_bytes >= 96 << 20 => {
                Some(template::of_shape(config.resources, spec.nic).await)
            }
            _ => None,
        };
        spec.template = template.map(|template| template.files());
        write_json(path.join("vm.json"), &spec);
        let helper = match template {
            Some(template) if way == Way::Spare => {
                let mut taps = net.taps.into_iter();
                let first = Vec::from_iter(taps.next());
                let spare = template.spare(path, &spec, &first).await;
                drop(first);
                spare.adopt(path, taps.collect()).await
            }
            _ => helper_with_taps("run", path, &net.taps),
        };
        Run { directory, helper }
    }

    pub async fn client(&self) -> Client {
        let end = Instant::now() + LIMIT;
        loop {
            match socket::connect(self.directory.path(), "runtime.sock") {
                Ok(stream) => return Client::new(stream).unwrap(),
                Err(e) if Instant::now() > end => panic!("{e}\n{}", self.log()),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    pub async fn call<R: serde::de::DeserializeOwned>(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<R, ApiError> {
        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.client().await.call(&request, &borrowed, Some(LIMIT)).await
    }

    pub async fn start(&self, stdio: Stdio, fds: Vec<OwnedFd>) -> Result<(), ApiError> {
        self.call(Request::Start { stdio, size: None, trace: false }, fds).await
    }

    pub async fn exec(
        &self,
        id: &str,
        process: ProcessConfig,
        stdio: Stdio,
        fds: Vec<OwnedFd>,
    ) -> Result<(), ApiError> {
        let request = Request::Exec { process_id: id.into(), process, stdio, size: None };
        self.call(request, fds).await
    }

    pub async fn wait(&self, id: &str) -> Result<ExitRecord, ApiError> {
        self.call(Request::Wait { process_id: id.into() }, Vec::new()).await
    }

    pub async fn stop(&self, timeout_ms: u64) -> ExitRecord {
        self.call(Request::Stop { signal: 15, timeout_ms }, Vec::new()).await.unwrap()
    }

    pub async fn state(&self) -> State {
        self.call(Request::State, Vec::new()).await.unwrap()
    }

    /// The record in the file, once the helper has ended.
    pub async fn left(&mut self) -> ExitRecord {
        let end = Instant::now() + LIMIT;
        while self.helper.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the helper stays\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!self.directory.path().join("runtime.sock").exists());
        let text = fs::read(self.directory.path().join("exit.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("runtime.log")).unwrap_or_default()
    }

    pub fn logged(&self, stream: OutputStream) -> Vec<u8> {
        let mut reader = LogReader::open(&self.directory.path().join("output.log")).unwrap();
        let entries = std::iter::from_fn(|| reader.next_entry().unwrap());
        entries.filter(|e| e.stream == stream).flat_map(|e| e.bytes).collect()
    }
}

/// A pipe: (ours, the helper's), read by us or written by us.
pub fn output_pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (read.into(), write)
}

pub fn input_pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (write.into(), read)
}

pub async fn read_all(mut from: File) -> Vec<u8> {
    let read = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).unwrap();
        all
    });
    tokio::time::timeout(LIMIT, read).await.expect("output ends").unwrap()
}
