//! The documents of an image: index, manifest, configuration (OCI image-spec, and Docker's forms of
//! the same). All of them come from strangers.

use std::collections::BTreeMap;

use container_api::images::ImageConfig;
use container_api::types::{self, Platform, Timestamp};
use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Largest index or manifest in bytes: what registries accept too.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Largest configuration in bytes.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Most layers of an image. Docker makes at most 127.
pub const MAX_LAYERS: usize = 512;
/// Most entries of an index.
pub const MAX_INDEX: usize = 1000;

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Where an image's full name is written in an archive's index.
pub(crate) const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// The same, or a tag alone.
pub(crate) const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// A reference to content.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformEntry>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The digest, when it is one that we can verify.
    pub fn digest(&self) -> Result<Digest> {
        self.digest
            .parse()
            .map_err(|_| Error::unsupported(&self.digest, "a digest other than sha256"))
    }

    /// As it goes over the wire.
    pub fn to_wire(&self) -> types::Descriptor {
        types::Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: self.size,
        }
    }
}

impl From<&types::Descriptor> for Descriptor {
    fn from(wire: &types::Descriptor) -> Self {
        Descriptor {
            media_type: wire.media_type.clone(),
            digest: wire.digest.clone(),
            size: wire.size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// A platform as an index has it; more fields exist and do not matter here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PlatformEntry {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl PlatformEntry {
    /// `None` for what is no platform: attestations say `unknown/unknown`.
    pub fn to_platform(&self) -> Option<Platform> {
        let variant = self.variant.as_deref().filter(|v| !v.is_empty());
        let text = match variant {
            Some(variant) => format!("{}/{}/{variant}", self.os, self.architecture),
            None => format!("{}/{}", self.os, self.architecture),
        };
        Platform::parse(&text).filter(|p| p.os != "unknown")
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Index {
    pub manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// An index or a manifest.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Index(Index),
    Manifest(Manifest),
}

impl Document {
    /// Parses by content. A document that could be read both ways is refused: two readers would
    /// see two images behind one digest.
    pub fn parse(what: &str, bytes: &[u8]) -> Result<Document> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            fs_layers: Option<serde::de::IgnoredAny>,
        }
        let json =
            |e: serde_json::Error| Error::malformed(what, format!("malformed manifest: {e}"));
        let shape: Shape = serde_json::from_slice(bytes).map_err(json)?;
        match (shape.manifests.is_some(), shape.layers.is_some()) {
            (true, false) => {
                let index: Index = serde_json::from_slice(bytes).map_err(json)?;
                match index.manifests.len() > MAX_INDEX {
                    true => Err(Error::malformed(what, "an index with more than 1000 entries")),
                    false => Ok(Document::Index(index)),
                }
            }
            (false, true) => {
                let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
                match manifest.layers.len() > MAX_LAYERS {
                    true => Err(Error::malformed(what, "more than 512 layers")),
                    false => Ok(Document::Manifest(manifest)),
                }
            }
            (true, true) => Err(Error::malformed(what, "both an index and a manifest")),
            _ if shape.fs_layers.is_some() => {
                Err(Error::unsupported(what, "Docker's manifest schema 1"))
            }
            _ => Err(Error::malformed(what, "neither an index nor a manifest")),
        }
    }
}

/// Whether `bytes` are an index or a manifest of an image.
pub fn check_document(bytes: &[u8]) -> Result<()> {
    Document::parse("document", bytes).map(drop)
}

/// Whether `bytes` are an image configuration with usable digests.
pub fn check_config(bytes: &[u8]) -> Result<()> {
    let config = ConfigFile::parse("configuration", bytes)?;
    let _ = (config.platform(), config.created(), config.to_wire());
    config.diff_ids("configuration").map(drop)
}

impl Manifest {
    /// Refuses artifacts and layers that can't be unpacked, before they are fetched.
    pub fn check_runnable(&self, what: &str) -> Result<()> {
        let config = self.config.media_type.as_str();
        if !config.is_empty() && config != CONFIG && config != DOCKER_CONFIG {
            return Err(Error::unsupported(what, format!("an artifact of type {config}")));
        }
        self.layers.iter().try_for_each(|layer| {
            layer_compression(&layer.media_type)
                .map(drop)
                .map_err(|feature| Error::unsupported(what, feature))
        })
    }
}

/// How a layer of this media type is compressed; the error says what it is instead.
pub(crate) fn layer_compression(
    media_type: &str,
) -> std::result::Result<container_rootfs::Compression, String> {
    use container_rootfs::Compression as C;
    if media_type.contains("foreign") || media_type.contains("nondistributable") {
        return Err(format!("a layer that may not be distributed ({media_type})"));
    }
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Ok(C::None),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(C::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(C::Zstd),
        other => Err(format!("a layer of type {other}")),
    }
}

/// The parts of an image's configuration that matter here.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    config: RawConfig,
    #[serde(default, deserialize_with = "or_default")]
    rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    user: Option<String>,
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    cmd: Vec<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    #[serde(deserialize_with = "or_default")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
}

/// Go writes `null` for what is empty.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    d: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

impl ConfigFile {
    pub fn parse(what: &str, bytes: &[u8]) -> Result<ConfigFile> {
        serde_json::from_slice(bytes)
            .map_err(|e| Error::malformed(what, format!("malformed image configuration: {e}")))
    }

    /// The platform that the image is for.
    pub fn platform(&self) -> Option<Platform> {
        let entry = PlatformEntry {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        };
        entry.to_platform()
    }

    pub fn created(&self) -> Option<Timestamp> {
        self.created.as_ref()?.parse().ok()
    }

    /// Digests of the uncompressed layers, bottom first.
    pub fn diff_ids(&self, what: &str) -> Result<Vec<Digest>> {
        let parse = |id: &String| {
            id.parse().map_err(|_| {
                Error::malformed(what, format!("the diff_id '{id}' is not a sha256 digest"))
            })
        };
        self.rootfs.diff_ids.iter().map(parse).collect()
    }

    /// How to run it.
    pub fn to_wire(&self) -> ImageConfig {
        let text = |t: &Option<String>| t.clone().filter(|t| !t.is_empty());
        let c = &self.config;
        ImageConfig {
            user: text(&c.user),
            env: c.env.clone(),
            entrypoint: c.entrypoint.clone(),
            cmd: c.cmd.clone(),
            working_dir: text(&c.working_dir),
            stop_signal: text(&c.stop_signal),
            volumes: c.volumes.keys().cloned().collect(),
            labels: c.labels.clone(),
            exposed_ports: c.exposed_ports.keys().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart_by_content() {
        let empty = r#"{"mediaType":"m","digest":"d","size":1}"#;
        let manifest = format!(r#"{{"schemaVersion":2,"config":{empty},"layers":[{empty}]}}"#);
        assert!(matches!(Document::parse("m", manifest.as_bytes()), Ok(Document::Manifest(_))));
        assert!(matches!(Document::parse("m", br#"{"manifests":[]}"#), Ok(Document::Index(_))));
        for wrong in
            [r#"{"manifests":[],"layers":[]}"#, r#"{"fsLayers":[]}"#, "{}", "[]", "", "\"x\""]
        {
            Document::parse("m", wrong.as_bytes()).unwrap_err();
        }
        let many = format!(r#"{{"manifests":[{}]}}"#, vec![empty; 1001].join(","));
        Document::parse("m", many.as_bytes()).unwrap_err();
    }

    #[test]
    fn go_writes_null_for_empty() {
        let text = r#"{"os":"linux","architecture":"amd64","created":"2024-01-02T03:04:05Z",
            "config":{"User":"","Env":null,"Cmd":["sh"],"Entrypoint":null,"Volumes":{"/data":{}},
            "Labels":null},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = ConfigFile::parse("c", text.as_bytes()).unwrap();
        assert_eq!(config.platform().unwrap().to_string(), "linux/amd64");
        assert!(config.created().is_some());
        let wire = config.to_wire();
        assert_eq!(
            (wire.user, wire.cmd, wire.volumes),
            (None, vec!["sh".into()], vec!["/data".into()])
        );
        ConfigFile::parse("c", br#"{"config":null,"rootfs":null}"#).unwrap();
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = Document::parse("m", text.as_bytes());
            let _ = ConfigFile::parse("c", text.as_bytes());
            let _ = layer_compression(&text);
        }
    }
}
