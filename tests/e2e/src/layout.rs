//! Images written as OCI layouts and as archives, without any container tool.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::layer::Layer;
use crate::sha256_hex;

/// How layers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    None,
    /// With gzip.
    Gzip,
    /// With zstd; by the program, which the test packages bring.
    Zstd,
}

impl Compression {
    fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// An image to be written.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name and tag, as `load` shall know it.
    pub reference: String,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// The `config` object of the image configuration: `Env`, `Cmd` and so on.
    pub config: Value,
    /// The architecture, in Go's spelling.
    pub architecture: String,
    /// How the layers are stored.
    pub compression: Compression,
}

impl Image {
    /// An image for this machine.
    pub fn new(reference: &str, layers: Vec<Layer>, config: Value) -> Self {
        Self {
            reference: reference.to_owned(),
            layers,
            config,
            architecture: host_architecture().to_owned(),
            compression: Compression::None,
        }
    }

    /// Writes an OCI layout into the folder `layout`.
    pub fn write_layout(&self, layout: &Path) -> Result<()> {
        write_index(layout, &[self.write_manifest(layout)?])
    }

    /// Writes an OCI archive, the tar of a layout.
    pub fn write_archive(&self, archive: &Path) -> Result<()> {
        write_archive_of(archive, |layout| self.write_layout(layout))
    }

    /// Writes what `docker save` writes: `manifest.json` and a tar per layer.
    pub fn write_docker_archive(&self, archive: &Path) -> Result<()> {
        write_archive_of(archive, |folder| {
            let (config, names) = self.write_docker_parts(folder)?;
            let manifest =
                json!([{"Config": config, "RepoTags": [self.reference], "Layers": names}]);
            std::fs::write(folder.join("manifest.json"), manifest.to_string())?;
            Ok(())
        })
    }

    fn write_docker_parts(&self, folder: &Path) -> Result<(String, Vec<String>)> {
        let mut names = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in &self.layers {
            let mut bytes = Vec::new();
            layer.open()?.read_to_end(&mut bytes)?;
            let digest = sha256_hex(&bytes);
            let name = format!("{digest}/layer.tar");
            std::fs::create_dir_all(folder.join(&digest))?;
            std::fs::write(folder.join(&name), &bytes)?;
            names.push(name);
            diff_ids.push(format!("sha256:{digest}"));
        }
        let config = self.image_config(&diff_ids).to_string();
        let name = format!("{}.json", sha256_hex(config.as_bytes()));
        std::fs::write(folder.join(&name), config)?;
        Ok((name, names))
    }

    /// Writes the blobs of this image into a layout; returns the manifest's descriptor.
    pub fn write_manifest(&self, layout: &Path) -> Result<Value> {
        let blobs = blobs(layout)?;
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in &self.layers {
            let (blob, diff_id) = write_layer(&blobs, layer, self.compression)?;
            layers.push(blob.descriptor(self.compression.media_type()));
            diff_ids.push(diff_id);
        }
        let config = write_json(&blobs, &self.image_config(&diff_ids))?;
        let manifest = write_json(
            &blobs,
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
                "layers": layers,
            }),
        )?;
        let mut descriptor = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": self.reference});
        descriptor["platform"] = json!({"os": "linux", "architecture": self.architecture});
        Ok(descriptor)
    }

    fn image_config(&self, diff_ids: &[String]) -> Value {
        json!({
            "created": "2024-01-01T00:00:00Z",
            "os": "linux",
            "architecture": self.architecture,
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [],
        })
    }
}

/// Several images under one name: an index in the index, as a multi-platform image is.
pub fn write_multi_platform(archive: &Path, reference: &str, images: &[Image]) -> Result<()> {
    write_archive_of(archive, |layout| {
        let mut manifests = Vec::new();
        for image in images {
            let mut descriptor = image.write_manifest(layout)?;
            descriptor.as_object_mut().context("descriptor")?.remove("annotations");
            manifests.push(descriptor);
        }
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = write_json(
            &blobs(layout)?,
            &json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}),
        )?;
        let mut descriptor = index.descriptor(media_type);
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": reference});
        write_index(layout, &[descriptor])
    })
}

/// The `index.json` and the marker of a layout.
pub fn write_index(layout: &Path, manifests: &[Value]) -> Result<()> {
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    std::fs::write(layout.join("index.json"), index.to_string()).context("write index.json")?;
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
        .context("write oci-layout")
}

/// Go's name of this machine's architecture.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Fills a folder by `fill` and packs it into the file `archive`.
pub fn write_archive_of(archive: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let beside = archive.parent().context("archive without a folder")?;
    let folder = tempfile::tempdir_in(beside).context("create a folder")?;
    fill(folder.path())?;
    let file =
        std::fs::File::create(archive).with_context(|| format!("create {}", archive.display()))?;
    let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
    tar.append_dir_all("", folder.path()).context("pack the archive")?;
    tar.into_inner().and_then(|mut writer| writer.flush()).context("finish the archive")
}

struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    fn descriptor(&self, media_type: &str) -> Value {
        json!({
            "mediaType": media_type,
            "digest": format!("sha256:{}", self.digest),
            "size": self.size,
        })
    }
}

fn blobs(layout: &Path) -> Result<PathBuf> {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
    Ok(blobs)
}

fn write_json(blobs: &Path, value: &Value) -> Result<Blob> {
    let bytes = value.to_string();
    let digest = sha256_hex(bytes.as_bytes());
    std::fs::write(blobs.join(&digest), &bytes).context("write a blob")?;
    Ok(Blob { digest, size: bytes.len() as u64 })
}

fn write_layer(blobs: &Path, layer: &Layer, compression: Compression) -> Result<(Blob, String)> {
    let mut stored = tempfile::NamedTempFile::new_in(blobs).context("create a blob")?;
    let diff_id = copy_compressed(layer, compression, stored.as_file_mut())?;
    let mut reader = std::fs::File::open(stored.path()).context("open a blob")?;
    let (digest, size) = digest_and_size(&mut reader)?;
    stored.persist(blobs.join(&digest)).context("name a blob")?;
    Ok((Blob { digest, size }, format!("sha256:{diff_id}")))
}

/// Writes the layer's tar to `to`; returns the digest of what was not yet compressed.
fn copy_compressed(
    layer: &Layer,
    compression: Compression,
    to: &mut std::fs::File,
) -> Result<String> {
    let mut from = Hashing { inner: layer.open()?, hasher: Sha256::new() };
    match compression {
        Compression::None => {
            std::io::copy(&mut from, to).context("write a layer")?;
        }
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(to, flate2::Compression::fast());
            std::io::copy(&mut from, &mut encoder).context("write a layer")?;
            encoder.finish().context("write a layer")?;
        }
        Compression::Zstd => zstd(&mut from, to)?,
    }
    Ok(hex(&from.hasher.finalize()))
}

fn zstd(from: &mut dyn Read, to: &std::fs::File) -> Result<()> {
    let mut child = Command::new("zstd")
        .args(["--quiet", "--stdout", "-3"])
        .stdin(Stdio::piped())
        .stdout(to.try_clone().context("clone a descriptor")?)
        .spawn()
        .context("run zstd")?;
    let mut stdin = child.stdin.take().context("zstd without input")?;
    std::io::copy(from, &mut stdin).context("write to zstd")?;
    drop(stdin);
    if !child.wait().context("wait for zstd")?.success() {
        bail!("zstd failed");
    }
    Ok(())
}

fn digest_and_size(from: &mut dyn Read) -> Result<(String, u64)> {
    let mut hashing = Hashing { inner: from, hasher: Sha256::new() };
    let size = std::io::copy(&mut hashing, &mut std::io::sink()).context("read a blob")?;
    Ok((hex(&hashing.hasher.finalize()), size))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
