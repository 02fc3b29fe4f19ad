//! An installation of its own for each test: app root, service, containers.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::busybox;
use crate::command::{Cmd, Output};
use crate::layout::Image;
use crate::processes::{self, Process};
use crate::start_mode::{self, StartMode};

/// A user to whom no file of this machine belongs.
const PLAIN_USER: u32 = 12_345;

/// One app root and the binaries that serve it. On drop the service is stopped, and a
/// process that survives that is killed and reported.
pub struct Installation {
    folder: TempDir,
    app_root: PathBuf,
    binaries: PathBuf,
    /// Command that the binaries are run through, such as `setpriv … --`.
    prefix: Vec<String>,
    mode: Option<StartMode>,
    /// Whether the test leaves it to the mode how VMs start.
    follows_mode: AtomicBool,
}

impl Default for Installation {
    fn default() -> Self {
        Self::new()
    }
}

impl Installation {
    /// An empty one.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("container-e2e-").tempdir().expect("tempdir");
        let app_root = folder.path().join("root");
        Self::at(folder, app_root, StartMode::of_the_run())
    }

    /// An empty one whose VMs start as the product decides, whatever the run was given.
    pub fn without_mode() -> Self {
        let folder = tempfile::Builder::new().prefix("container-e2e-").tempdir().expect("tempdir");
        let app_root = folder.path().join("root");
        Self::at(folder, app_root, None)
    }

    /// An empty one, with its app root at `below` in the temporary folder.
    pub fn with_app_root(below: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("container-e2e-").tempdir().expect("tempdir");
        let app_root = folder.path().join(below);
        Self::at(folder, app_root, StartMode::of_the_run())
    }

    /// An empty one of a plain user: whoever runs the test, or for root a user to whom no file of
    /// this machine belongs.
    pub fn of_plain_user() -> Self {
        if processes::is_root() { Self::of_user(PLAIN_USER) } else { Self::new() }
    }

    /// The same with the busybox image loaded, without what a login would have set.
    pub fn of_plain_user_with_busybox() -> Self {
        let it = Self::of_plain_user();
        it.load_as_its_user();
        it
    }

    /// One of a plain user who has the ids from `first` on, `count` of them, in `/etc/subuid` and
    /// `/etc/subgid`, and set-user-id programs that work: in a mount namespace that has these
    /// files. With the busybox image loaded.
    ///
    /// # Panics
    /// Unless root makes it.
    pub fn of_plain_user_with_ids(first: u32, count: u32) -> Self {
        assert!(processes::is_root(), "this makes a user, hence root runs it");
        let mut it = Self::of_user(PLAIN_USER);
        let write = |name: &str, text: String| {
            std::fs::write(it.scratch().join(name), text).expect("write a file of /etc");
        };
        for file in ["subuid", "subgid"] {
            write(file, format!("plain:{first}:{count}\n"));
        }
        let known = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd");
        write("passwd", format!("{known}plain:x:{PLAIN_USER}:{PLAIN_USER}::/:/bin/sh\n"));
        let script = "for file in subuid subgid passwd; do mount --bind \"$0/$file\" /etc/$file \
                      || exit; done; exec \"$@\"";
        let namespace = ["unshare", "--mount", "sh", "-c", script].map(str::to_owned);
        let scratch = it.scratch().display().to_string();
        // Those that newuidmap has to have.
        let kept = it
            .prefix
            .drain(..)
            .filter(|word| !matches!(word.as_str(), "--no-new-privs" | "--bounding-set=-all"));
        let kept: Vec<_> = kept.collect();
        it.prefix = namespace.into_iter().chain([scratch]).chain(kept).collect();
        it.load_as_its_user();
        it
    }

    fn load_as_its_user(&self) {
        let archive = self.scratch().join("image.tar");
        busybox::image().and_then(|i| i.write_archive(&archive)).expect("the busybox image");
        self.bare(["image", "load", "--input"]).arg(&archive).run().ok();
    }

    /// An empty one of the user `uid`, for a test that runs as root: every command runs as
    /// that user, without any privilege left.
    fn of_user(uid: u32) -> Self {
        use std::os::unix::fs::{PermissionsExt, chown};
        let mut it = Self::without_mode();
        for folder in [it.scratch(), it.app_root()] {
            let open = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(folder, open).expect("open a folder");
            chown(folder, Some(uid), Some(uid)).expect("give a folder away");
        }
        if !is_open_to_all(&it.binaries) {
            it.binaries = copy_binaries(&it.binaries, &it.scratch().join("prefix"));
        }
        let number = |name: &str| format!("--{name}={uid}");
        it.prefix = ["setpriv".to_owned(), number("reuid"), number("regid")]
            .into_iter()
            .chain(["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"].map(str::to_owned))
            .chain(["--no-new-privs", "--", "env"].map(str::to_owned))
            .chain([format!("HOME={}", it.scratch().display())])
            .collect();
        it
    }

    /// The same with other programs: those in a folder.
    pub fn with_binaries(mut self, folder: PathBuf) -> Self {
        self.binaries = folder;
        self
    }

    /// The same, with all its commands in a place of a [`crate::World`].
    pub fn in_place(mut self, place: &crate::world::Place) -> Self {
        self.prefix = place.prefix().into_iter().chain(self.prefix.clone()).collect();
        self
    }

    /// The same, with all its commands run through another, such as `unshare … --`.
    pub fn behind(mut self, command: &[&str]) -> Self {
        let command = command.iter().map(ToString::to_string);
        self.prefix = command.chain(self.prefix.clone()).collect();
        self
    }

    fn at(folder: TempDir, app_root: PathBuf, mode: Option<StartMode>) -> Self {
        crate::isolation::isolate();
        std::fs::create_dir_all(&app_root).expect("create the app root");
        let it = Self {
            folder,
            app_root,
            binaries: binaries(),
            prefix: Vec::new(),
            mode,
            follows_mode: AtomicBool::new(false),
        };
        it.configure("");
        if matches!(mode, Some(StartMode::Template | StartMode::Spare)) {
            start_mode::link_templates(&it.app_root);
        }
        it
    }

    /// One with the busybox image loaded.
    pub fn with_busybox() -> Self {
        let it = Self::new();
        it.load(&busybox::image().expect("the busybox image"));
        it
    }

    /// One with the busybox image loaded by a service that was started with the configuration
    /// `toml`, whatever way to start the run was given.
    pub fn with_config(toml: &str) -> Self {
        let it = Self::without_mode();
        it.configure(toml);
        it.load(&busybox::image().expect("the busybox image"));
        it
    }

    /// The app root.
    pub fn app_root(&self) -> &Path {
        &self.app_root
    }

    /// A folder for the test's own files, removed with the installation.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// The folder with the binaries.
    pub fn binaries(&self) -> &Path {
        &self.binaries
    }

    /// The directory of a container.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.app_root.join("containers").join(id)
    }

    /// Writes the configuration: `toml` with dotted keys (`runtime.accelerator = 'tcg'`),
    /// and the QEMU, the kernel and the way to start that the run was given, unless `toml` speaks
    /// of them.
    pub fn configure(&self, toml: &str) {
        let mut config = toml.to_owned();
        let given =
            |key: &str, variable: &str| std::env::var_os(variable).filter(|_| !toml.contains(key));
        if let Some(qemu) = given("runtime.qemu", "CONTAINER_TEST_QEMU") {
            config.push_str(&other_qemu(Path::new(&qemu)));
        }
        if let Some(kernel) = given("kernel.path", "CONTAINER_TEST_KERNEL") {
            config.push_str(&format!("\nkernel.path = {:?}\n", kernel.to_string_lossy()));
        }
        let decides = ["runtime.template", "runtime.spare"].iter().any(|key| toml.contains(key));
        self.follows_mode.store(!decides, Ordering::Relaxed);
        if let Some(mode) = self.mode.filter(|_| !decides) {
            config.push_str(mode.config());
        }
        let file = self.app_root.join("config.toml");
        if config.is_empty() {
            let _ = std::fs::remove_file(file);
        } else {
            std::fs::write(file, config).expect("write config.toml");
        }
    }

    /// `container ARGS…` for this installation.
    pub fn container<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Cmd {
        let mut args = args.into_iter().peekable();
        let starts = |word: &A| matches!(word.as_ref().to_str(), Some("run" | "start"));
        if args.peek().is_some_and(starts) {
            self.await_spare();
        }
        self.command().args(args)
    }

    /// In the mode of spares: until one is there. An installation that can't have one, such as one
    /// with a broken configuration, is left alone.
    fn await_spare(&self) {
        let follows = self.follows_mode.load(Ordering::Relaxed);
        if self.mode != Some(StartMode::Spare) || !follows {
            return;
        }
        if self.command().args(["system", "start"]).run().code != Some(0) {
            return;
        }
        let status = self.command().args(["system", "status", "--format", "json"]).run();
        if status.code == Some(0) && status.json()["problems"] == serde_json::json!([]) {
            self.wait_for_spare();
        }
    }

    fn command(&self) -> Cmd {
        let program = self.binaries.join("container");
        let command = match self.prefix.split_first() {
            Some((first, rest)) => Cmd::new(first).args(rest).arg(program),
            None => Cmd::new(program),
        };
        command.env("CONTAINER_APP_ROOT", &self.app_root)
    }

    /// `container ARGS…` with the installation's folder as home, and nothing else that a login sets.
    pub fn bare<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Cmd {
        let command = self.container(args).env("HOME", self.scratch());
        command.env_remove("XDG_RUNTIME_DIR").env_remove("USER")
    }

    /// Runs `container ARGS…` to its end.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        self.container(args).run()
    }

    /// Loads an image.
    #[track_caller]
    pub fn load(&self, image: &Image) {
        let archive = self.scratch().join("load.tar");
        image.write_archive(&archive).expect("write an archive");
        self.load_archive(&archive);
        let _ = std::fs::remove_file(archive);
    }

    /// Loads the archive of an image.
    #[track_caller]
    pub fn load_archive(&self, archive: &Path) {
        self.container(["image", "load", "--input"]).arg(archive).run().ok();
    }

    /// The process of the apiserver, from `system status`.
    #[track_caller]
    pub fn apiserver_pid(&self) -> u32 {
        let status = self.run(["system", "status", "--format", "json"]).ok().json();
        let pid = status["apiserverPid"].as_u64().expect("apiserverPid");
        u32::try_from(pid).expect("a process id")
    }

    /// One container as `inspect` shows it.
    #[track_caller]
    pub fn inspect(&self, id: &str) -> serde_json::Value {
        self.run(["inspect", id]).ok().json()[0].clone()
    }

    /// The status of a container, or nothing when there is none.
    pub fn status(&self, id: &str) -> Option<String> {
        let list = self.run(["list", "--all", "--format", "json"]).ok().json();
        let list = list.as_array()?.clone();
        let found = list
            .iter()
            .find(|container| container["id"] == id || container["configuration"]["id"] == id)?;
        found["status"].as_str().map(str::to_owned)
    }

    /// Stops the service and fails when a process stays.
    pub fn stop(&self) -> Result<()> {
        if self.binaries.join("container").exists() && !self.processes().is_empty() {
            let output = self.run(["system", "stop"]);
            if output.code != Some(0) {
                eprintln!("stop: {output:?}");
            }
        }
        let strays = self.strays(Duration::from_secs(5));
        for stray in &strays {
            processes::kill(stray.pid, Signal::KILL);
        }
        anyhow::ensure!(strays.is_empty(), "processes outlived the service: {strays:#?}");
        Ok(())
    }

    fn strays(&self, patience: Duration) -> Vec<Process> {
        let end = Instant::now() + patience;
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() > end {
                return left;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What a failed test needs to be understood.
    fn show_logs(&self) {
        let logs = self.app_root.join("logs");
        let mut files: Vec<PathBuf> = Vec::new();
        for folder in [logs, self.app_root.join("containers")] {
            collect_logs(&folder, &mut files);
        }
        for file in files {
            if let Ok(bytes) = std::fs::read(&file) {
                let text = String::from_utf8_lossy(&bytes);
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines[lines.len().saturating_sub(25)..].join("\n");
                eprintln!("--- {}\n{tail}", file.display());
            }
        }
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        if panicking {
            self.show_logs();
        }
        // A panic in a panic would end the whole test program.
        let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.stop()))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("stopping the service failed")));
        for process in self.processes() {
            processes::kill(process.pid, Signal::KILL);
        }
        if let Err(error) = stopped {
            if panicking {
                eprintln!("{error:#}");
            } else {
                panic!("{error:#}");
            }
        }
    }
}

/// Whether every user may enter the folder.
fn is_open_to_all(folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    folder.ancestors().filter(|above| !above.as_os_str().is_empty()).all(|above| {
        std::fs::metadata(above).is_ok_and(|found| found.permissions().mode() & 0o001 != 0)
    })
}

/// Copies the build tree's binaries and kernel, in the same order of folders; returns
/// the binaries' folder.
fn copy_binaries(from: &Path, to: &Path) -> PathBuf {
    let binaries = to.join("release");
    std::fs::create_dir_all(&binaries).expect("create a folder");
    for entry in std::fs::read_dir(from).expect("the binaries").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            std::fs::copy(entry.path(), binaries.join(entry.file_name())).expect("copy a binary");
        }
    }
    Cmd::new("cp").arg("-rT").arg(from.join("../share")).arg(to.join("share")).run().ok();
    binaries
}

/// The settings for a QEMU that lies in `folder` as its packages unpack.
fn other_qemu(folder: &Path) -> String {
    let arch = std::env::consts::ARCH;
    let show = |below: String| format!("{:?}", folder.join(below).to_string_lossy());
    format!(
        "\nruntime.qemu = {}\nruntime.qemu_libraries = [{}]\nruntime.qemu_data = {}\n",
        show(format!("usr/bin/qemu-system-{arch}")),
        show(format!("usr/lib/{arch}-linux-gnu")),
        show("usr/share/qemu".to_owned()),
    )
}

fn collect_logs(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_logs(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            files.push(path);
        }
    }
}

/// The folder with the binaries under test: `CONTAINER_TEST_BIN_DIR`, or the release
/// binaries of the target directory that this program lies in.
pub fn binaries() -> PathBuf {
    if let Some(folder) = std::env::var_os("CONTAINER_TEST_BIN_DIR") {
        return folder.into();
    }
    target().expect("the target directory").join("release")
}

/// Cargo's target directory: this program lies two or three folders below it.
pub fn target() -> Result<PathBuf> {
    let program = std::env::current_exe().context("the path of this program")?;
    let mark = |folder: &&Path| folder.join("CACHEDIR.TAG").exists();
    let found = program.ancestors().find(mark);
    found.map(Path::to_owned).context("this program does not lie in a target directory")
}
