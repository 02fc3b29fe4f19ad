//! What a request is, for the log and for the audit trail; never what a caller keeps secret.
//!
//! Values of environment variables, credentials and what streams carry are left out. The words of
//! a command are kept: an audit without them says little.

use container_api::apiserver::{CreateOptions, ProcessOptions, Request};
use container_api::archive::ArchiveWork;
use container_api::images;
use container_api::mounts::MountOptions;
use container_api::network;
use container_api::seccomp::Seccomp;
use container_api::types::ByteString;
use serde_json::{Map, Value, json};

/// Longest text of one argument, in characters.
const MAX_TEXT: usize = 256;
/// Most items of one list.
const MAX_ITEMS: usize = 64;

/// A request in the log's and the audit trail's words.
#[derive(Debug)]
pub struct Description {
    /// Its name.
    pub operation: &'static str,
    /// What it is about: a container, an image, a network, a volume.
    pub subject: Option<String>,
    /// What was asked.
    pub arguments: Map<String, Value>,
    /// What becomes of it when the trail can't be written.
    pub weight: Weight,
}

/// How much a request matters to the trail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// It changes nothing and is not recorded.
    Reads,
    /// It is recorded before it begins, or refused.
    Changes,
    /// As [`Weight::Changes`], but a full disk doesn't stop it: it ends or frees something.
    Frees,
}

impl Description {
    fn new(operation: &'static str, weight: Weight) -> Description {
        Description { operation, subject: None, arguments: Map::new(), weight }
    }

    fn about(mut self, subject: &str) -> Description {
        self.subject = Some(short(subject));
        self
    }

    /// Notes an argument, unless it is empty.
    fn with(mut self, name: &str, value: Value) -> Description {
        let nothing = match &value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::String(text) => text.is_empty(),
            _ => false,
        };
        if !nothing {
            self.arguments.insert(name.to_owned(), value);
        }
        self
    }
}

/// Describes a request.
pub fn describe(request: &Request) -> Description {
    use Weight::{Changes, Frees, Reads};
    let new = Description::new;
    match request {
        Request::Status => new("status", Reads),
        Request::Shutdown { stop_containers, .. } => {
            new("shutdown", Frees).with("stopContainers", json!(stop_containers))
        }
        Request::Images(request) => images(request),
        Request::Create(options) => create(options),
        Request::Start { id, .. } => new("start", Changes).about(id),
        Request::Attach { id, .. } => new("attach", Changes).about(id),
        Request::Exec { id, process, .. } => process_of(new("exec", Changes).about(id), process),
        Request::Archive { id, work, .. } => {
            let path = match work {
                ArchiveWork::Read { path, .. } | ArchiveWork::Write { path, .. } => {
                    short(&path.to_string_lossy())
                }
                _ => String::new(),
            };
            let weight = if work.changes() { Changes } else { Reads };
            new(work.name(), weight).about(id).with("path", json!(path))
        }
        Request::Commit { id, options } => new("commit", Changes)
            .about(id)
            .with("image", json!(options.name.as_deref().map(short)))
            .with("changes", texts(&options.changes)),
        Request::Rename { id, name } => {
            new("rename", Changes).about(id).with("name", json!(short(name)))
        }
        Request::Wait { id, .. } => new("wait", Reads).about(id),
        Request::Signal { id, process_id, signal } => new("signal", Frees)
            .about(id)
            .with("process", json!(process_id.as_deref().map(short)))
            .with("signal", json!(short(signal))),
        Request::Resize { id, .. } => new("resize", Reads).about(id),
        Request::Stop { id, signal, timeout_ms } => new("stop", Frees)
            .about(id)
            .with("signal", json!(signal.as_deref().map(short)))
            .with("timeoutMs", json!(timeout_ms)),
        Request::Delete { id, force } => new("delete", Frees).about(id).with("force", json!(force)),
        Request::List => new("list", Reads),
        Request::Inspect { id } => new("inspect", Reads).about(id),
        Request::Logs { id, .. } => new("logs", Reads).about(id),
        Request::Stats { .. } => new("stats", Reads),
        Request::Update { id, cpus, memory_in_bytes } => new("update", Changes)
            .about(id)
            .with("cpus", json!(cpus))
            .with("memoryInBytes", json!(memory_in_bytes)),
        Request::DiskUsage => new("disk usage", Reads),
        Request::CheckState { .. } => new("system check", Reads),
        Request::PruneSystem => new("system prune", Frees),
        Request::Networks(request) => networks(request),
        Request::CreateVolume(volume) => new("volume create", Changes)
            .about(&volume.name)
            .with("options", json!(volume.options))
            .with("sizeInBytes", json!(volume.size_in_bytes)),
        Request::DeleteVolume { name } => new("volume delete", Frees).about(name),
        Request::ListVolumes => new("volume list", Reads),
        Request::PruneVolumes => new("volume prune", Frees),
        Request::Prune => new("prune", Frees),
    }
}

fn seccomp(seccomp: &Seccomp) -> &'static str {
    match seccomp {
        Seccomp::Default => "default",
        Seccomp::Unconfined => "unconfined",
        Seccomp::Profile { .. } => "profile",
    }
}

fn create(options: &CreateOptions) -> Description {
    let described = Description::new("create", Weight::Changes)
        .with("image", json!(short(&options.image.reference)))
        .with("capAdd", texts(&options.cap_add))
        .with("capDrop", texts(&options.cap_drop))
        .with("seccomp", json!(seccomp(&options.security.seccomp)))
        .with("noNewPrivileges", json!(options.security.no_new_privileges))
        .with("mounts", list(&options.mounts, mount))
        .with("networks", list(&options.network.networks, |n| json!(short(&n.network))))
        .with("ports", json!(options.network.published_ports.len()))
        .with("publishAll", json!(options.publish_all))
        .with("sockets", list(&options.publish_sockets, |s| json!(s.host_path)))
        .with("ssh", json!(options.ssh))
        .with("readOnly", json!(options.read_only))
        .with("virtualization", json!(options.virtualization))
        .with("virtualizationConfirmed", json!(options.virtualization_confirmed))
        .with(
            "restart",
            match options.restart {
                container_api::types::RestartPolicy::No => Value::Null,
                other => json!(other),
            },
        )
        .with("cpus", json!(options.cpus))
        .with("memoryInBytes", json!(options.memory_in_bytes))
        .with("kernel", json!(options.kernel));
    let described = process_of(described, &options.process);
    match &options.name {
        Some(name) => described.about(name),
        None => described,
    }
}

fn mount(mount: &MountOptions) -> Value {
    let mode = if mount.read_only { "ro" } else { "rw" };
    json!(format!("{}:{}:{mode}", bytes(&mount.source), bytes(&mount.destination)))
}

/// Of the environment the names alone.
fn process_of(described: Description, process: &ProcessOptions) -> Description {
    let name = |variable: &ByteString| {
        let name = variable.0.split(|byte| *byte == b'=').next().unwrap_or_default();
        json!(short(&String::from_utf8_lossy(name)))
    };
    described
        .with("command", list(&process.arguments, |word| json!(bytes(word))))
        .with("environment", list(&process.environment, name))
        .with("user", json!(process.user.as_deref().map(short)))
        .with("terminal", json!(process.terminal))
}

fn networks(request: &network::Request) -> Description {
    use Weight::{Changes, Frees, Reads};
    let new = Description::new;
    match request {
        network::Request::Create(wanted) => new("network create", Changes).about(&wanted.name),
        network::Request::Delete { names, .. } => {
            new("network delete", Frees).about(&names.join(" "))
        }
        network::Request::Prune { .. } => new("network prune", Frees),
        network::Request::List { .. } => new("network list", Reads),
        network::Request::Dns(_) => new("dns", Changes),
        _ => new("network", Changes),
    }
}

fn images(request: &images::Request) -> Description {
    use Weight::{Changes, Frees, Reads};
    let new = Description::new;
    match request {
        images::Request::Pull(pull) => new("image pull", Changes).about(&pull.reference),
        images::Request::Load { name } => {
            new("image load", Changes).with("name", json!(name.as_deref().map(short)))
        }
        images::Request::Save { references, .. } => {
            new("image save", Reads).with("references", texts(references))
        }
        images::Request::Commit { options, .. } => {
            new("image commit", Changes).with("name", json!(options.name.as_deref().map(short)))
        }
        images::Request::List => new("image list", Reads),
        images::Request::Inspect { .. } => new("image inspect", Reads),
        images::Request::Tag { source, target } => {
            new("image tag", Changes).about(target).with("source", json!(short(source)))
        }
        images::Request::Delete { references, all, .. } => {
            new("image delete", Frees).with("references", texts(references)).with("all", json!(all))
        }
        images::Request::Prune { all, .. } => new("image prune", Frees).with("all", json!(all)),
        images::Request::Prepare { pull } => new("image prepare", Changes).about(&pull.reference),
        images::Request::EmptyUpper => new("empty upper", Changes),
        images::Request::FormatVolume(_) => new("format volume", Changes),
        images::Request::InstallKernel(_) => new("kernel set", Changes),
        images::Request::DiskUsage { .. } => new("disk usage", Reads),
        images::Request::CheckStore { .. } => new("image check", Reads),
        images::Request::Shutdown => new("image shutdown", Frees),
    }
}

/// A stranger's text, escaped and bounded.
pub fn short(text: &str) -> String {
    let cut: String = text.chars().take(MAX_TEXT).collect();
    container_api::escape::escape(&cut).into_owned()
}

fn bytes(text: &ByteString) -> String {
    short(&text.to_string_lossy())
}

fn texts(all: &[String]) -> Value {
    list(all, |text| json!(short(text)))
}

/// The first items of a list, and how many there are when that is more.
fn list<T>(all: &[T], show: impl Fn(&T) -> Value) -> Value {
    let mut shown: Vec<Value> = all.iter().take(MAX_ITEMS).map(show).collect();
    if all.len() > MAX_ITEMS {
        shown.push(json!(format!("and {} more", all.len() - MAX_ITEMS)));
    }
    Value::Array(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_left_out_and_words_are_bounded() {
        let mut options = CreateOptions::default();
        options.image.reference = "box\u{1b}[2J".into();
        options.image.credentials =
            Some(images::Credentials { username: "me".into(), password: "hunter2".into() });
        options.process.environment = vec!["TOKEN=hunter2".into(), "EMPTY=".into()];
        options.process.arguments = vec!["x".repeat(10_000).as_str().into(); 1000];
        let described = describe(&Request::Create(Box::new(options)));
        let text = Value::Object(described.arguments.clone()).to_string();
        assert!(!text.contains("hunter2") && !text.contains('\u{1b}'), "{text}");
        assert_eq!(described.arguments["environment"], json!(["TOKEN", "EMPTY"]));
        assert!(text.len() < MAX_ITEMS * (MAX_TEXT + 16) + 1000, "{}", text.len());
        assert!(text.contains("and 936 more"));
        assert_eq!(described.weight, Weight::Changes);
    }

    #[test]
    fn what_only_reads_is_told_from_what_changes() {
        assert_eq!(describe(&Request::List).weight, Weight::Reads);
        let stop = Request::Stop { id: "web".into(), signal: None, timeout_ms: 5 };
        let described = describe(&stop);
        assert_eq!((described.operation, described.weight), ("stop", Weight::Frees));
        assert_eq!(described.subject.as_deref(), Some("web"));
    }
}
