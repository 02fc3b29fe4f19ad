//! The distribution's packages, downloaded and unpacked without installing them:
//! no root, and nothing of the machine is changed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{make_dir, output, remove_dir, run};

/// One package source of this machine's apt, as its own configuration has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Address of the archive.
    pub uri: String,
    /// Suite, such as `bookworm`.
    pub suite: String,
    /// Component, such as `main`.
    pub component: String,
    /// Who publishes it, such as `Debian`.
    pub origin: String,
    /// Keyring that signs it, when the source names one.
    pub signed_by: String,
}

impl Source {
    /// As one line of a `sources.list`.
    pub fn line(&self) -> String {
        let options = match self.signed_by.as_str() {
            "" => String::new(),
            keyring => format!("[signed-by={keyring}] "),
        };
        format!("deb {options}{} {} {}", self.uri, self.suite, self.component)
    }
}

/// The sources that this machine's apt is configured with, of `origin` alone.
pub fn sources(origin: &str) -> Result<Vec<Source>> {
    let listed = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(SIGNED_BY)",
        "Identifier: Packages",
    ]))?;
    let mut sources: Vec<Source> = listed
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split('|').collect();
            let [uri, suite, component, origin, signed_by] = fields[..] else { return None };
            // apt leaves a field that a source does not have as it was written.
            let signed_by = if signed_by.starts_with("$(") { "" } else { signed_by };
            Some(Source {
                uri: uri.to_owned(),
                suite: suite.to_owned(),
                component: component.to_owned(),
                origin: origin.to_owned(),
                signed_by: signed_by.to_owned(),
            })
        })
        .filter(|source| source.origin == origin)
        .collect();
    sources.sort();
    sources.dedup();
    Ok(sources)
}

/// An apt that may have sources and lists of its own.
pub struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// The machine's own sources and lists.
    pub fn of_the_machine() -> Self {
        Self { options: Vec::new() }
    }

    /// Sources and lists of its own below `state`, with the suite `release` preferred;
    /// [`Apt::update`] fills it.
    pub fn with_sources(state: &Path, lines: &[String], release: &str) -> Result<Self> {
        make_dir(&state.join("lists/partial"))?;
        make_dir(&state.join("cache/archives/partial"))?;
        let list = state.join("sources.list");
        std::fs::write(&list, lines.join("\n") + "\n").context("write sources.list")?;
        let set = |name: &str, path: &Path| format!("{name}={}", path.display());
        let options = vec![
            set("Dir::Etc::SourceList", &list),
            "Dir::Etc::SourceParts=-".to_owned(),
            set("Dir::State::Lists", &state.join("lists")),
            set("Dir::Cache", &state.join("cache")),
            "APT::Sandbox::User=".to_owned(),
            format!("APT::Default-Release={release}"),
        ];
        Ok(Self { options })
    }

    /// Fetches the lists.
    pub fn update(&self) -> Result<()> {
        run(self.command("apt-get").args(["update", "-q"]))
    }

    /// The packages that `package` depends on, itself first, of those accepted by `wanted`.
    pub fn closure(&self, package: &str, wanted: fn(&str) -> bool) -> Result<Vec<String>> {
        let mut found = vec![package.to_owned()];
        let mut at = 0;
        while at < found.len() {
            let listed = output(self.command("apt-cache").args(["depends", &found[at]]))?;
            for line in listed.lines() {
                let Some(name) = line.trim_start().strip_prefix("Depends: ") else { continue };
                if wanted(name) && !found.iter().any(|known| known == name) {
                    found.push(name.to_owned());
                }
            }
            at += 1;
        }
        Ok(found)
    }

    /// The version that would be installed.
    pub fn candidate(&self, package: &str) -> Result<String> {
        let listed = output(self.command("apt-cache").args(["policy", package]))?;
        listed
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "))
            .filter(|version| *version != "(none)")
            .map(str::to_owned)
            .with_context(|| format!("this machine's package sources have no {package}"))
    }

    /// What an installation of `packages` would bring or replace on this machine.
    pub fn install_set(&self, packages: &[&str]) -> Result<Vec<String>> {
        let planned = output(
            self.command("apt-get")
                .args(["install", "--simulate", "--no-install-recommends", "-q"])
                .args(packages),
        )?;
        // Inst NAME [OLD] (NEW …)
        let named = planned.lines().filter_map(|line| {
            let rest = line.strip_prefix("Inst ")?;
            let name = rest.split(' ').next()?;
            let version = rest.split_once('(')?.1.split(' ').next()?;
            Some(format!("{name}={version}"))
        });
        Ok(named.collect())
    }

    /// Downloads packages into `folder`, which it empties first; returns the files.
    pub fn download(&self, packages: &[String], folder: &Path) -> Result<Vec<PathBuf>> {
        remove_dir(folder)?;
        make_dir(folder)?;
        run(self
            .command("apt-get")
            .args(["-o", "APT::Sandbox::User=", "download", "-q"])
            .args(packages)
            .current_dir(folder))?;
        let files: Vec<PathBuf> = std::fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        if files.len() != packages.len() {
            bail!("{} of {} packages were downloaded", files.len(), packages.len());
        }
        Ok(files)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C.UTF-8");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

/// Unpacks package files below `folder`, as dpkg would, without its scripts.
pub fn unpack(files: &[PathBuf], folder: &Path) -> Result<()> {
    make_dir(folder)?;
    for file in files {
        run(Command::new("dpkg-deb").arg("--extract").arg(file).arg(folder))?;
    }
    Ok(())
}
