//! What the service remembers: a file a network, a file an attached container.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use container_api::network::{
    Attachment, BoundPort, ContainerNetwork, DnsDomain, HostAccess, NetworkConfig,
};
use container_api::{ApiError, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::names;

/// Longest record read, in bytes: what is longer is none of ours.
const MAX_RECORD: u64 = 4 << 20;
/// The names of files whose writing was not finished begin with it; no other record's does.
const UNFINISHED: &str = ".new-";

/// An attached container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its id.
    pub container: String,
    /// Its host name.
    pub hostname: String,
    /// What it asked for.
    pub options: ContainerNetwork,
    /// What it got, in the order asked.
    pub attachments: Vec<Attachment>,
    /// Its published ports.
    pub ports: Vec<BoundPort>,
    /// Where packets to the host are redirected to, by network.
    #[serde(default)]
    pub redirects: BTreeMap<String, Redirect>,
    /// A number that grows with each attachment: the order of names.
    #[serde(default)]
    pub sequence: u64,
}

/// Ports in a network's namespace that stand for the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// TCP, of both families.
    pub tcp: u16,
    /// UDP, of both families, by the port of the host: a datagram doesn't tell where it was sent.
    pub udp: BTreeMap<u16, u16>,
}

/// What of the host a container may reach: what it was given, and its network.
pub fn joined(a: &HostAccess, b: &HostAccess) -> HostAccess {
    match (a, b) {
        (HostAccess::All, _) | (_, HostAccess::All) => HostAccess::All,
        (HostAccess::Denied, other) | (other, HostAccess::Denied) => other.clone(),
        (HostAccess::Ports(a), HostAccess::Ports(b)) => {
            let mut ports: Vec<u16> = a.iter().chain(b).copied().collect();
            ports.sort_unstable();
            ports.dedup();
            HostAccess::Ports(ports)
        }
    }
}

/// The directory of `container_api::paths::AppRoot::networks` and what is in it.
#[derive(Clone, Debug)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// Makes the directories, and removes what was not finished in them.
    pub fn open(directory: &Path) -> Result<Records> {
        let records = Records { directory: directory.to_owned() };
        for directory in [records.directory.clone(), records.run(), records.attachments()] {
            DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(|e| {
                ApiError::from(e).context(format!("creating {}", directory.display()))
            })?;
        }
        for directory in [records.directory.clone(), records.attachments()] {
            for name in names_in(&directory)?.iter().filter(|name| name.starts_with(UNFINISHED)) {
                remove(&directory, name)?;
            }
        }
        Ok(records)
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Sockets of the processes that carry traffic.
    pub fn run(&self) -> PathBuf {
        self.directory.join("run")
    }

    fn attachments(&self) -> PathBuf {
        self.directory.join("attachments")
    }

    /// All networks. One that can't be read is said in the log and left out.
    pub fn networks(&self) -> Result<Vec<NetworkConfig>> {
        let all: Vec<NetworkConfig> = load_all(&self.directory)?;
        Ok(all.into_iter().filter(|config| names::check_network(&config.id).is_ok()).collect())
    }

    /// Writes a network down; it is on the disk when this returns.
    pub fn keep_network(&self, config: &NetworkConfig) -> Result<()> {
        write(&self.directory, &format!("{}.json", config.id), config, true)
    }

    /// Forgets a network.
    pub fn forget_network(&self, name: &str) -> Result<()> {
        remove(&self.directory, &format!("{name}.json"))
    }

    /// All attached containers, as [`Records::networks`].
    pub fn attached(&self) -> Result<Vec<Record>> {
        load_all(&self.attachments())
    }

    /// Writes an attachment down: another process finds it when this one is killed. A host that
    /// starts again has no containers, so the disk need not have it.
    pub fn keep_attached(&self, record: &Record) -> Result<()> {
        write(&self.attachments(), &file_name(&record.container), record, false)
    }

    /// Files whose writing was not finished.
    pub fn unfinished(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for directory in [self.directory.clone(), self.attachments()] {
            let names = names_in(&directory)?.into_iter();
            found.extend(
                names.filter(|name| name.starts_with(UNFINISHED)).map(|name| directory.join(name)),
            );
        }
        Ok(found)
    }

    /// Forgets an attachment.
    pub fn forget_attached(&self, container: &str) -> Result<()> {
        remove(&self.attachments(), &file_name(container))
    }

    /// The domains of `system dns`.
    pub fn domains(&self) -> Result<Vec<DnsDomain>> {
        match File::open(self.directory.join("dns").join("domains.json")) {
            Ok(file) => parse(file).map_err(|e| e.context("reading the domains")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes them down.
    pub fn keep_domains(&self, domains: &[DnsDomain]) -> Result<()> {
        let directory = self.directory.join("dns");
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        write(&directory, "domains.json", &domains, true)
    }
}

/// A container's id is 128 bytes of letters, digits, `_`, `.`, `-` at most; the service takes no
/// other.
fn file_name(container: &str) -> String {
    format!("{container}.json")
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory)
        .map_err(|e| ApiError::from(e).context(format!("reading {}", directory.display())))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    Ok(names)
}

fn load_all<T: DeserializeOwned>(directory: &Path) -> Result<Vec<T>> {
    let mut found = Vec::new();
    for name in names_in(directory)? {
        if name.starts_with('.') || !name.ends_with(".json") {
            continue;
        }
        let path = directory.join(&name);
        match File::open(&path).map_err(ApiError::from).and_then(parse) {
            Ok(record) => found.push(record),
            Err(error) => tracing::error!(path = %path.display(), %error, "a record is left out"),
        }
    }
    Ok(found)
}

fn parse<T: DeserializeOwned>(file: File) -> Result<T> {
    let mut text = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(|e| {
        ApiError::new(container_api::ErrorCode::InvalidData, format!("malformed: {e}"))
    })
}

fn write(directory: &Path, name: &str, value: &impl Serialize, durable: bool) -> Result<()> {
    let path = directory.join(name);
    let failed = |e: io::Error| ApiError::from(e).context(format!("writing {}", path.display()));
    let text = serde_json::to_vec_pretty(value).map_err(|e| failed(e.into()))?;
    let new = directory.join(format!("{UNFINISHED}{name}"));
    let attempt = || {
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&new, &path)?;
        if durable {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    };
    attempt().map_err(|error| {
        let _ = fs::remove_file(&new);
        failed(error)
    })
}

fn remove(directory: &Path, name: &str) -> Result<()> {
    let path = directory.join(name);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(ApiError::from(e).context(format!("removing {}", path.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::tests::network;

    #[test]
    fn records_come_back_and_remains_go() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path()).unwrap();
        let config = network("run", "10.0.0.0/24", "fd00::/64");
        records.keep_network(&config).unwrap();
        records.keep_network(&network("dns", "10.0.1.0/24", "fd01::/64")).unwrap();
        let record = Record {
            container: "web".into(),
            hostname: "web".into(),
            options: ContainerNetwork::default(),
            attachments: Vec::new(),
            ports: Vec::new(),
            redirects: BTreeMap::new(),
            sequence: 7,
        };
        records.keep_attached(&record).unwrap();
        fs::write(directory.path().join(".new-x.json"), "half").unwrap();
        fs::write(directory.path().join("broken.json"), "{").unwrap();
        let records = Records::open(directory.path()).unwrap();
        assert!(!directory.path().join(".new-x.json").exists());
        let names: Vec<String> = records.networks().unwrap().into_iter().map(|n| n.id).collect();
        assert_eq!(names, ["dns", "run"]);
        assert_eq!(records.attached().unwrap(), [record]);
        assert!(records.domains().unwrap().is_empty());
        records.forget_attached("web").unwrap();
        records.forget_attached("web").unwrap();
        records.forget_network("run").unwrap();
        assert_eq!(records.attached().unwrap(), []);
        assert_eq!(records.networks().unwrap().len(), 1);
    }

    #[test]
    fn host_access_adds_up() {
        let ports = |ports: &[u16]| HostAccess::Ports(ports.to_vec());
        assert_eq!(joined(&HostAccess::Denied, &ports(&[1])), ports(&[1]));
        assert_eq!(joined(&ports(&[2, 1]), &ports(&[2, 3])), ports(&[1, 2, 3]));
        assert_eq!(joined(&ports(&[2]), &HostAccess::All), HostAccess::All);
    }
}
