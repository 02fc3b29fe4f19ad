//! A service of its own for each test, and images made for it.

// Each test file uses a part of this.
#![allow(dead_code)]

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use container_api::images::{Progress, Pull, Request, SOCKET, Unpacked};
use container_api::varlink::Client;
use container_api::{Result, socket};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

const DEADLINE: Duration = Duration::from_secs(60);

/// A running service in a directory of its own.
pub struct Service {
    pub directory: tempfile::TempDir,
    child: Child,
}

impl Service {
    pub fn start() -> Service {
        Service::start_in(tempfile::tempdir().unwrap())
    }

    pub fn start_in(directory: tempfile::TempDir) -> Service {
        // Where the kernel has no Landlock, everything else is tested all the same.
        let child = Command::new(env!("CARGO_BIN_EXE_container-images"))
            .args(["serve", "--allow-missing", "landlock", "--app-root"])
            .arg(directory.path())
            .spawn()
            .unwrap();
        let service = Service { directory, child };
        let end = Instant::now() + DEADLINE;
        while socket::connect(&service.images(), SOCKET).is_err() {
            assert!(Instant::now() < end, "the service does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        service
    }

    pub fn images(&self) -> PathBuf {
        self.directory.path().join("images")
    }

    /// Kills the service at once, and starts it again on what it left.
    pub fn kill_and_restart(mut self) -> Service {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        Service::start_in(directory)
    }

    pub fn client(&self) -> Client {
        Client::new(socket::connect(&self.images(), SOCKET).unwrap()).unwrap()
    }

    pub async fn call<R: DeserializeOwned>(&self, request: &Request) -> Result<R> {
        self.call_with(request, &[]).await
    }

    pub async fn call_with<R: DeserializeOwned>(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<R> {
        let mut client = self.client();
        client.call_with_progress(request, fds, Some(DEADLINE), |_: Progress| {}).await
    }

    pub async fn load(&self, archive: &Path) -> Result<Vec<container_api::images::ImageSummary>> {
        let file = std::fs::File::open(archive).unwrap();
        self.call_with(&Request::Load { name: None }, &[file.as_fd()]).await
    }

    pub async fn prepare(&self, reference: &str) -> Result<Unpacked> {
        let pull = Pull { reference: reference.into(), ..Pull::default() };
        self.call(&Request::Prepare { pull }).await
    }

    /// Files in the store, by path below `images`, that make up content.
    pub fn content(&self) -> Vec<String> {
        let mut found = Vec::new();
        for directory in ["content/blobs/sha256", "content/ingest", "erofs"] {
            for entry in std::fs::read_dir(self.images().join(directory)).unwrap() {
                found.push(format!("{directory}/{}", entry.unwrap().file_name().to_string_lossy()));
            }
        }
        found.sort();
        found
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Ended already where a test has killed it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A layer with these files.
pub fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Bytes that do not compress, the same each time.
pub fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let step = |seed: &mut u64| {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed as u8
    };
    (0..len).map(|_| step(&mut seed)).collect()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image in pieces: change one and see what is said about it.
pub struct Image {
    pub blobs: Vec<Vec<u8>>,
    pub manifest: serde_json::Value,
}

impl Image {
    /// An image for `architecture` whose layers are stored with gzip.
    pub fn new(architecture: &str, layers: &[Vec<u8>]) -> Image {
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": ["sh"], "Env": ["A=b"], "WorkingDir": "/"},
            "rootfs": {"type": "layers",
                "diff_ids": layers.iter().map(|l| sha256(l)).collect::<Vec<_>>()},
        });
        let mut blobs = vec![serde_json::to_vec(&config).unwrap()];
        blobs.extend(layers.iter().map(|l| gzip(l)));
        let descriptor = |kind: &str, blob: &Vec<u8>| {
            serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": sha256(blob), "size": blob.len()})
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &blobs[0]),
            "layers": blobs[1..].iter().map(|b| descriptor("layer.v1.tar+gzip", b)).collect::<Vec<_>>(),
        });
        Image { blobs, manifest }
    }

    pub fn manifest_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.manifest).unwrap()
    }

    /// The manifest's entry in an index.
    pub fn descriptor(&self, architecture: &str) -> serde_json::Value {
        let bytes = self.manifest_bytes();
        serde_json::json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": sha256(&bytes), "size": bytes.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    }

    /// An OCI layout archive with this image under `name`.
    pub fn archive(&self, name: &str) -> Vec<u8> {
        let mut descriptor = self.descriptor("amd64");
        descriptor["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        let mut blobs = self.blobs.clone();
        blobs.push(self.manifest_bytes());
        oci_archive(&[descriptor], &blobs)
    }
}

/// An OCI layout archive.
pub fn oci_archive(descriptors: &[serde_json::Value], blobs: &[Vec<u8>]) -> Vec<u8> {
    let index = serde_json::json!({"schemaVersion": 2, "manifests": descriptors});
    let index = serde_json::to_vec(&index).unwrap();
    let names: Vec<String> =
        blobs.iter().map(|b| format!("blobs/sha256/{}", &sha256(b)["sha256:".len()..])).collect();
    let mut files: Vec<(&str, &[u8])> =
        vec![("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#), ("index.json", &index)];
    files.extend(names.iter().map(String::as_str).zip(blobs.iter().map(Vec::as_slice)));
    layer(&files)
}

/// Runs a tool that must be installed and must succeed; its output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program} must be installed: {e}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
