//! Finding QEMU, every file it opens, and what it can do.
//!
//! Done once by whoever starts VMs and handed on: it runs QEMU twice. What a
//! QEMU can do is asked from itself, never concluded from its version.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use container_api::paths;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::process::Command;

use super::arch::{Arch, HOST};
use super::error::{Error, Phase};
use super::jail::{self, Descriptors, Jail, JailFile, Program};
use super::qmp::Qmp;
use super::qmp_commands as qmp;

/// The longest that each run of QEMU for discovery may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Where the jail has the firmware.
pub(super) const FIRMWARE_DIR: &str = "/firmware";

/// The plugin that gives translated code back, beside our programs and in the jail.
const PLUGIN: &str = "libcontainer_trim.so";
pub(super) const PLUGIN_PATH: &str = "/libcontainer_trim.so";

/// A QEMU, with everything that a jail needs to run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QemuInstall {
    /// The program, without symbolic links; the same path in the jail.
    pub binary: PathBuf,
    /// Program, libraries, modules and firmware.
    pub files: Vec<JailFile>,
    /// `LD_LIBRARY_PATH` in the jail: the linker's cache is not there.
    pub library_path: String,
    /// `major.minor.micro`, to be shown; decides nothing.
    pub version: String,
    /// Identity of the program file: a cached value is valid while
    /// [`QemuInstall::is_current`].
    pub stamp: FileStamp,
    /// What it can do.
    pub features: Features,
}

/// Enough of a file's metadata to notice that it was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    inode: u64,
    len: u64,
    ctime: (i64, i64),
}

/// What a QEMU can do, as it told itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Features {
    /// Most virtual processors of our machine type.
    pub max_vcpus: u32,
    /// Properties of our machine type.
    pub machine_properties: BTreeSet<String>,
    /// Names from `query-migrate-capabilities`.
    pub migrate_capabilities: BTreeSet<String>,
    /// The balloon reports free pages.
    pub free_page_reporting: bool,
    /// It was built with KVM.
    pub kvm: bool,
    /// `-accel kvm` takes a descriptor for /dev/kvm.
    pub kvm_device: bool,
    /// It takes the plugin that gives translated code back.
    pub trims: bool,
}

impl QemuInstall {
    /// Whether the program is still the one that was examined.
    pub fn is_current(&self) -> bool {
        FileStamp::of(&self.binary).is_ok_and(|stamp| stamp == self.stamp)
    }
}

impl FileStamp {
    fn of(path: &Path) -> io::Result<FileStamp> {
        let meta = std::fs::metadata(path)?;
        Ok(FileStamp {
            inode: meta.ino(),
            len: meta.len(),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// Which QEMU to examine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// The program, or the root of unpacked packages with one; the one in
    /// `PATH` where not given.
    pub binary: Option<PathBuf>,
    /// Directories of libraries, before the usual ones.
    pub libraries: Vec<PathBuf>,
    /// Directory of firmware, before the usual ones.
    pub data: Option<PathBuf>,
}

/// Examines a QEMU. One that is unpacked beside the system's works too: its
/// prefix is searched for libraries, modules and firmware before the system's
/// directories.
pub async fn discover(source: &Source, jail: &Jail) -> Result<QemuInstall, Error> {
    let binary = match &source.binary {
        Some(root) if root.is_dir() => in_root(root, HOST)?,
        Some(binary) => binary.clone(),
        None => find_in_path(HOST)?,
    };
    let failed = Error::io(Phase::Prepare, format!("reading {}", binary.display()));
    let binary = binary.canonicalize().map_err(failed)?;
    let failed = Error::io(Phase::Prepare, format!("reading {}", binary.display()));
    let stamp = FileStamp::of(&binary).map_err(failed)?;
    let prefix = Prefix::of(&binary, source, HOST);

    let mut files = BTreeSet::from([same_place(binary.clone())]);
    let (loader, libraries) = linked(&binary, None, &prefix).await?;
    files.extend(libraries);
    if let Some(module) = prefix.tcg_module() {
        let loader = loader.as_deref();
        files.extend(linked(&module, loader, &prefix).await?.1);
        files.insert(same_place(module));
    }
    let library_path = library_path(&files);
    files.extend(prefix.firmware(HOST)?);

    let mut install = QemuInstall {
        binary,
        files: files.into_iter().collect(),
        library_path,
        version: String::new(),
        stamp,
        features: Features::default(),
    };
    match with_plugin(&install, loader.as_deref(), &prefix, jail).await {
        Ok(install) => Ok(install),
        Err(error) => {
            // All works without it, and an idle VM keeps some more memory.
            tracing::debug!(%error, "this QEMU takes no plugin");
            ask(&mut install, jail).await?;
            Ok(install)
        }
    }
}

/// The same QEMU with the plugin; the error is one of either.
async fn with_plugin(
    install: &QemuInstall,
    loader: Option<&Path>,
    prefix: &Prefix,
    jail: &Jail,
) -> Result<QemuInstall, Error> {
    let failed = Error::io(Phase::Prepare, format!("finding {PLUGIN}"));
    let source = paths::program(PLUGIN).and_then(|path| path.canonicalize()).map_err(failed)?;
    let mut files: BTreeSet<JailFile> = install.files.iter().cloned().collect();
    files.extend(linked(&source, loader, prefix).await?.1);
    let library_path = library_path(&files);
    files.insert(JailFile { source, target: PLUGIN_PATH.into() });
    let mut install =
        QemuInstall { files: files.into_iter().collect(), library_path, ..install.clone() };
    install.features.trims = true;
    ask(&mut install, jail).await?;
    Ok(install)
}

fn find_in_path(arch: &Arch) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    first_program(std::env::split_paths(&path), arch)
}

fn in_root(root: &Path, arch: &Arch) -> Result<PathBuf, Error> {
    first_program(["usr/bin", "bin"].iter().map(|directory| root.join(directory)), arch)
}

fn first_program(
    directories: impl Iterator<Item = PathBuf>,
    arch: &Arch,
) -> Result<PathBuf, Error> {
    let program = format!("qemu-system-{}", arch.qemu_name);
    let mut candidates = directories.map(|directory| directory.join(&program));
    let package = match arch.qemu_name {
        "aarch64" => "qemu-system-arm",
        _ => "qemu-system-x86",
    };
    let found = candidates.find(|candidate| candidate.is_file());
    found.ok_or(Error::NoQemu { program, package })
}

fn same_place(path: PathBuf) -> JailFile {
    JailFile { target: path.clone(), source: path }
}

/// The tree that a QEMU was installed into, and the system's.
struct Prefix {
    prefixes: Vec<PathBuf>,
    libraries: Vec<PathBuf>,
    data: Option<PathBuf>,
    multiarch: &'static str,
    arch_name: &'static str,
}

impl Prefix {
    fn of(binary: &Path, source: &Source, arch: &Arch) -> Prefix {
        let own = binary.parent().and_then(Path::parent);
        let mut prefixes: Vec<PathBuf> = own.map(Path::to_path_buf).into_iter().collect();
        if prefixes.first().is_none_or(|own| own != Path::new("/usr")) {
            prefixes.push("/usr".into());
        }
        Prefix {
            prefixes,
            libraries: source.libraries.clone(),
            data: source.data.clone(),
            multiarch: arch.multiarch,
            arch_name: arch.qemu_name,
        }
    }

    /// Library directories of an own prefix: the linker knows the system's.
    fn own_library_dirs(&self) -> Vec<PathBuf> {
        let own = self.prefixes.iter().filter(|p| *p != Path::new("/usr"));
        let own = own.flat_map(|prefix| {
            // A prefix `X/usr` also has `X/lib`, as unpacked packages do.
            let above = prefix.parent().unwrap_or(prefix).join("lib");
            [
                prefix.join("lib").join(self.multiarch),
                prefix.join("lib"),
                above.join(self.multiarch),
            ]
        });
        let all = self.libraries.iter().cloned().chain(own);
        all.filter(|directory| directory.is_dir()).collect()
    }

    /// The translator, where it is a module of its own. QEMU looks relative to
    /// its program, so only its own prefix counts.
    fn tcg_module(&self) -> Option<PathBuf> {
        let prefix = self.prefixes.first()?;
        let name = format!("qemu/accel-tcg-{}.so", self.arch_name);
        ["lib", "lib64"]
            .iter()
            .flat_map(|lib| [prefix.join(lib).join(self.multiarch), prefix.join(lib)])
            .map(|directory| directory.join(&name))
            .find(|module| module.is_file())
    }

    fn firmware(&self, arch: &Arch) -> Result<Vec<JailFile>, Error> {
        let usual = self.prefixes.iter().flat_map(|prefix| {
            ["qemu", "seabios", "qemu-firmware"].map(|d| prefix.join("share").join(d))
        });
        let searched: Vec<PathBuf> = self.data.iter().cloned().chain(usual).collect();
        let mut files = Vec::new();
        for file in arch.firmware {
            let found = searched
                .iter()
                .map(|directory| directory.join(file.name))
                .find(|path| path.is_file());
            match found {
                Some(source) => {
                    files.push(JailFile { source, target: Path::new(FIRMWARE_DIR).join(file.name) })
                }
                None if file.required => {
                    return Err(Error::MissingFile {
                        what: "firmware",
                        name: file.name.into(),
                        searched,
                    });
                }
                None => {}
            }
        }
        Ok(files)
    }
}

/// The dynamic linker's own list of what an object needs, and the linker.
async fn linked(
    object: &Path,
    loader: Option<&Path>,
    prefix: &Prefix,
) -> Result<(Option<PathBuf>, Vec<JailFile>), Error> {
    let mut command = match loader {
        Some(loader) => {
            let mut command = Command::new(loader);
            command.arg(object);
            command
        }
        None => Command::new(object),
    };
    let dirs = prefix.own_library_dirs();
    let library_path = std::env::join_paths(&dirs).unwrap_or_default();
    command
        .env_clear()
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .env("LD_LIBRARY_PATH", library_path)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let what = format!("listing the libraries of {}", object.display());
    let output = match tokio::time::timeout(DEADLINE, command.output()).await {
        Ok(output) => output.map_err(Error::io(Phase::Prepare, what))?,
        Err(_) => {
            return Err(Error::TimedOut {
                phase: Phase::Prepare,
                operation: what,
                limit: DEADLINE,
            });
        }
    };
    let listed = parse_linked(&String::from_utf8_lossy(&output.stdout));
    let listed =
        listed.map_err(|name| Error::MissingFile { what: "library", name, searched: dirs })?;
    let loader = listed.iter().find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("ld-linux") || name.starts_with("ld64")
    });
    Ok((loader.cloned(), listed.iter().cloned().map(same_place).collect()))
}

/// `name => /path (0x…)` and `/path (0x…)`; the error is a name not found.
fn parse_linked(text: &str) -> Result<Vec<PathBuf>, String> {
    let mut paths = Vec::new();
    for line in text.lines().map(str::trim) {
        let (name, found) = line.split_once(" => ").unwrap_or((line, line));
        if found.starts_with("not found") {
            return Err(name.to_owned());
        }
        let path = found.rsplit_once(" (0x").map_or(found, |(path, _)| path);
        // The kernel's vdso has no path.
        if path.starts_with('/') {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

/// The directories of all libraries, each once, in a fixed order.
fn library_path(files: &BTreeSet<JailFile>) -> String {
    let directories: BTreeSet<_> = files
        .iter()
        .filter(|file| file.target.to_string_lossy().contains(".so"))
        .filter_map(|file| file.target.parent())
        .map(|directory| directory.to_string_lossy().into_owned())
        .collect();
    directories.into_iter().collect::<Vec<_>>().join(":")
}

/// Runs QEMU without a machine, in the jail, and asks.
async fn ask(install: &mut QemuInstall, jail: &Jail) -> Result<(), Error> {
    let (ours, theirs) =
        std::os::unix::net::UnixStream::pair().map_err(Error::io(Phase::Prepare, "socketpair"))?;
    let theirs = std::os::fd::OwnedFd::from(theirs);
    let mut command = super::command::base(install);
    command.extend(["-M", "none", "-accel", "tcg", "-S"].iter().map(OsString::from));
    if install.features.trims {
        command.extend(["-plugin", PLUGIN_PATH].iter().map(OsString::from));
    }
    command.extend(super::command::monitor(&theirs));
    let program = Program {
        files: &install.files,
        descriptors: Descriptors::new(vec![theirs])?,
        kvm: false,
        limits: vec![("nofile", 1024), ("nproc", 256), ("fsize", 0)],
        env: super::command::environment(install),
        command,
    };
    let child = jail::spawn(jail, program).await?;
    let answers = async {
        let stream = unix_stream(ours)?;
        let qmp = Qmp::new(stream);
        qmp.execute(&qmp::Capabilities {}, DEADLINE).await?;
        install.features = features(&qmp, install.features.trims).await?;
        let version = qmp.execute(&qmp::QueryVersion {}, DEADLINE).await?.qemu;
        install.version = format!("{}.{}.{}", version.major, version.minor, version.micro);
        qmp.execute(&qmp::Quit {}, DEADLINE).await.map(drop)
    };
    match answers.await {
        Ok(()) => Ok(()),
        Err(error) => Err(super::qemu::explain(&child, Phase::Prepare, error).await),
    }
}

async fn features(qmp: &Qmp, trims: bool) -> Result<Features, Error> {
    let machines = qmp.execute(&qmp::QueryMachines {}, DEADLINE).await?;
    let machine = machines
        .into_iter()
        .find(|machine| {
            machine.name == HOST.machine || machine.alias.as_deref() == Some(HOST.machine)
        })
        .ok_or_else(|| Error::Config(format!("this QEMU has no machine type {}", HOST.machine)))?;
    let machine_type = qmp::QomListProperties { typename: format!("{}-machine", machine.name) };
    let properties = qmp.execute(&machine_type, DEADLINE).await?;
    let capabilities = qmp.execute(&qmp::QueryMigrateCapabilities {}, DEADLINE).await?;
    let balloon = qmp::DeviceListProperties { typename: "virtio-balloon-pci".into() };
    let balloon = optional(qmp.execute(&balloon, DEADLINE).await)?;
    let kvm = qmp::QomListProperties { typename: "kvm-accel".into() };
    let kvm = optional(qmp.execute(&kvm, DEADLINE).await)?;
    let balloon = balloon.unwrap_or_default();
    let has = |properties: &[qmp::Property], name| properties.iter().any(|p| p.name == name);
    Ok(Features {
        max_vcpus: machine.cpu_max,
        machine_properties: properties.into_iter().map(|p| p.name).collect(),
        migrate_capabilities: capabilities.into_iter().map(|c| c.capability).collect(),
        free_page_reporting: has(&balloon, "free-page-reporting"),
        kvm: kvm.is_some(),
        kvm_device: has(&kvm.unwrap_or_default(), "device"),
        trims,
    })
}

/// The properties of a type that this QEMU may lack.
fn optional(
    answer: Result<Vec<qmp::Property>, Error>,
) -> Result<Option<Vec<qmp::Property>>, Error> {
    match answer {
        Err(Error::Refused { .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// A std stream as a tokio stream.
pub(super) fn unix_stream(stream: std::os::unix::net::UnixStream) -> Result<UnixStream, Error> {
    let failed = || Error::io(Phase::Prepare, "preparing a socket");
    stream.set_nonblocking(true).map_err(failed())?;
    UnixStream::from_std(stream).map_err(failed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_linker_lists() {
        let text = "\tlinux-vdso.so.1 (0x00007f57d76d8000)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f57d74de000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f57d76da000)\n";
        let paths = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_linked(text), Ok(paths.map(PathBuf::from).to_vec()));
        assert_eq!(parse_linked("\tlibx.so.1 => not found\n"), Err("libx.so.1".into()));
    }

    proptest! {
        #[test]
        fn any_linker_output_is_survived(text in ".{0,200}") {
            let _ = parse_linked(&text);
        }
    }
}
