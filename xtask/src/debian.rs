//! Images of this machine's own distribution, made by mmdebstrap from its own package
//! sources: no container tool and no registry takes part.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use e2e::{Image, Layer};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::apt;
use crate::stamp::Stamp;
use crate::workspace::{Workspace, make_dir, run, step};

/// The name that the image is loaded under.
pub const NAME: &str = "debian-python:latest";

/// What is in it beside the distribution's essence: a language, and a database.
const PACKAGES: &[&str] = &["python3-minimal", "sqlite3"];

/// The name that the image of [`programs`] is loaded under.
const PROGRAMS_NAME: &str = "debian-programs:latest";

/// Programs that keep data, for tests.
const PROGRAMS: &[&str] = &["git", "postgresql"];

/// What makes their root smaller.
const SHRINK: &str = include_str!("../assets/programs.sh");

/// Of all images.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program in the top layer: reads its input and says what it saw.
const PROGRAM: &str = include_str!("../assets/hello.py");

/// The distribution of this machine.
pub struct Distribution {
    /// What its package archive calls itself.
    origin: String,
    /// Its release, such as `bookworm`.
    codename: String,
}

impl Distribution {
    /// Reads `os-release`.
    pub fn of_the_machine() -> Result<Self> {
        let text = std::fs::read_to_string("/etc/os-release").context("read os-release")?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .map(|value| value.trim_matches('"').to_owned())
        };
        let origin = match field("ID").as_deref() {
            Some("debian") => "Debian",
            Some("ubuntu") => "Ubuntu",
            other => bail!("only Debian and Ubuntu are supported, not {other:?}"),
        };
        let codename = field("VERSION_CODENAME").context("os-release has no VERSION_CODENAME")?;
        Ok(Self { origin: origin.to_owned(), codename })
    }

    /// Its release, such as `bookworm`.
    pub fn codename(&self) -> &str {
        &self.codename
    }

    /// The package sources, one line each, as this machine's apt has them.
    pub fn sources(&self) -> Result<Vec<apt::Source>> {
        let mut sources = apt::sources(&self.origin)?;
        sources.retain(|source| source.suite.starts_with(&self.codename));
        if sources.is_empty() {
            bail!("no package source of {} {} is configured", self.origin, self.codename);
        }
        Ok(sources)
    }

    /// Makes a root file system with `packages` in it, as a tar.
    pub fn root_file_system(&self, packages: &[&str], tar: &Path) -> Result<()> {
        self.customized_root(packages, None, tar)
    }

    /// The same; `hook` is a program that changes the root, whose path is its argument.
    pub fn customized_root(
        &self,
        packages: &[&str],
        hook: Option<&Path>,
        tar: &Path,
    ) -> Result<()> {
        let fresh = tar.with_extension("new.tar");
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", "--variant=essential", "--format=tar"]);
        if !packages.is_empty() {
            command.arg(format!("--include={}", packages.join(",")));
        }
        if let Some(hook) = hook {
            command.arg(format!("--customize-hook={}", hook.display()));
        }
        command.arg(&self.codename).arg(&fresh);
        command.args(self.sources()?.iter().map(apt::Source::line));
        // The same input gives the same image.
        command.env("SOURCE_DATE_EPOCH", "1700000000");
        run(&mut command)?;
        std::fs::rename(&fresh, tar).context("rename the root file system")
    }
}

/// An OCI archive of three layers: the distribution, python and sqlite, a program. Made once.
pub fn image(workspace: &Workspace) -> Result<PathBuf> {
    made_once(workspace, "debian", PACKAGES, ("program", PROGRAM), |distribution, folder| {
        let [base, full] = root_file_systems(distribution, folder)?;
        step("image: packing the layers into an OCI archive");
        let python = folder.join("python.tar");
        difference(&base, &full, &python)?;
        let program = Layer::build(|entries| {
            entries.dir("app").file("app/hello.py", 0o755, PROGRAM.as_bytes());
        });
        Ok(Image::new(
            &format!("docker.io/library/{NAME}"),
            vec![Layer::File(base), Layer::File(python), program],
            json!({
                "Env": [PATH],
                "WorkingDir": "/app",
                "Cmd": ["python3", "/app/hello.py"],
            }),
        ))
    })
}

/// An OCI archive with [`PROGRAMS`], for tests. Made once.
pub fn programs(workspace: &Workspace) -> Result<PathBuf> {
    let root = workspace.target.join("demo/programs.tar");
    let archive =
        made_once(workspace, "programs", PROGRAMS, ("shrink", SHRINK), |distribution, _| {
            let (codename, packages) = (&distribution.codename, PROGRAMS.join(", "));
            step(format!("image: mmdebstrap makes {codename} with {packages}"));
            let shrink = workspace.root.join("xtask/assets/programs.sh");
            distribution.customized_root(PROGRAMS, Some(&shrink), &root)?;
            Ok(Image::new(
                &format!("docker.io/library/{PROGRAMS_NAME}"),
                vec![Layer::File(root.clone())],
                json!({ "Env": [PATH], "Cmd": ["sh"] }),
            ))
        })?;
    // Nothing else is made of it; it is there when the archive was made just now.
    match std::fs::remove_file(&root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", root.display()))
        }
        _ => Ok(archive),
    }
}

/// The archive `NAME.oci.tar` of an image that is made of the distribution, packages and a further
/// named input; made when one of these has changed.
fn made_once(
    workspace: &Workspace,
    name: &str,
    packages: &[&str],
    (input, content): (&str, &str),
    make: impl FnOnce(&Distribution, &Path) -> Result<Image>,
) -> Result<PathBuf> {
    let folder = workspace.target.join("demo");
    make_dir(&folder)?;
    let archive = folder.join(format!("{name}.oci.tar"));
    let distribution = Distribution::of_the_machine()?;
    let stamp = Stamp::new(folder.join(format!("{name}.stamp")))
        .word("release", &distribution.codename)
        .word("packages", &packages.join(" "))
        .word(input, content);
    if stamp.is_current() && archive.exists() {
        return Ok(archive);
    }
    make(&distribution, &folder)?.write_archive(&archive)?;
    stamp.write()?;
    Ok(archive)
}

/// The distribution without and with [`PACKAGES`], as tars.
pub fn root_file_systems(distribution: &Distribution, folder: &Path) -> Result<[PathBuf; 2]> {
    let (base, full) = (folder.join("base.tar"), folder.join("full.tar"));
    for (tar, packages) in [(&base, &[] as &[&str]), (&full, PACKAGES)] {
        let stamp = Stamp::new(tar.with_extension("stamp"))
            .word("release", &distribution.codename)
            .word("packages", &packages.join(" "));
        if !stamp.is_current() || !tar.exists() {
            let what = packages.first().map(|name| format!(" with {name}")).unwrap_or_default();
            step(format!("image: mmdebstrap makes {}{what}", distribution.codename));
            distribution.root_file_system(packages, tar)?;
            stamp.write()?;
        }
    }
    Ok([base, full])
}

/// Writes to `layer` what turns the tree of `lower` into that of `upper`: entries that
/// are new or different, and whiteouts for those that are gone.
fn difference(lower: &Path, upper: &Path, layer: &Path) -> Result<()> {
    let mut gone = fingerprints(lower)?;
    let mut builder = tar::Builder::new(
        std::fs::File::create(layer).with_context(|| format!("create {}", layer.display()))?,
    );
    let mut archive = open_tar(upper)?;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        if gone.remove(&path).is_some_and(|old| old == fingerprint(&entry, &content)) {
            continue;
        }
        let mut header = entry.header().clone();
        match entry.link_name()? {
            Some(target) => builder.append_link(&mut header, &path, &target)?,
            None => builder.append_data(&mut header, &path, content.as_slice())?,
        }
    }
    for path in gone.into_keys() {
        let Some(name) = path.file_name() else { continue };
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        let whiteout = path.with_file_name(format!(".wh.{}", name.to_string_lossy()));
        builder.append_data(&mut header, whiteout, std::io::empty())?;
    }
    builder.finish().context("finish a layer")
}

type Fingerprint = (u8, u32, u64, u64, Option<PathBuf>, [u8; 32]);

fn fingerprints(tar: &Path) -> Result<BTreeMap<PathBuf, Fingerprint>> {
    let mut archive = open_tar(tar)?;
    let mut found = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        found.insert(entry.path()?.into_owned(), fingerprint(&entry, &content));
    }
    Ok(found)
}

fn fingerprint<R: Read>(entry: &tar::Entry<'_, R>, content: &[u8]) -> Fingerprint {
    let header = entry.header();
    (
        header.entry_type().as_byte(),
        header.mode().unwrap_or_default(),
        header.uid().unwrap_or_default(),
        header.gid().unwrap_or_default(),
        entry.link_name().ok().flatten().map(|link| link.into_owned()),
        Sha256::digest(content).into(),
    )
}

fn open_tar(path: &Path) -> Result<tar::Archive<std::io::BufReader<std::fs::File>>> {
    let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    Ok(tar::Archive::new(std::io::BufReader::new(file)))
}
