//! Indexes and manifests from a registry.

use std::sync::Arc;

use container_api::ErrorCode;
use container_api::types::Platform;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};

use super::session::{Failure, STALL, Session, TRIES, read_bounded};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::oci::{
    DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, INDEX, MANIFEST, MAX_MANIFEST, Manifest,
};
use crate::reference::Reference;
use crate::store::Lease;

/// Tries of the first request: a wrong name should not take long to be told.
const FIRST_TRIES: u32 = 3;
/// Indexes may hold indexes; deeper than this nobody nests them.
const MAX_DEPTH: usize = 3;
/// Manifests that are fetched only to find out their platform.
const MAX_GUESSES: usize = 8;

/// A document that was fetched and stored.
#[derive(Debug)]
pub(super) struct Fetched {
    pub descriptor: Descriptor,
    pub document: Document,
}

impl Session {
    /// The document that the reference names.
    pub(super) async fn root(&self, reference: &Reference, lease: &Arc<Lease>) -> Result<Fetched> {
        self.fetch(&reference.version(), reference.digest(), FIRST_TRIES, lease).await
    }

    async fn fetch(
        &self,
        version: &str,
        expected: Option<Digest>,
        tries: u32,
        lease: &Arc<Lease>,
    ) -> Result<Fetched> {
        if let Some(digest) = expected {
            lease.hold(digest);
            if lease.store().has(digest, None) {
                return self.stored(digest, lease);
            }
        }
        let (bytes, media_type) = self.retry(tries, || self.fetch_bytes(version, expected)).await?;
        let what = format!("{}/{}", self.registry, self.repository);
        let document = Document::parse(&what, &bytes)?;
        let media_type = check_type(&document, media_type);
        let digest = lease.put(&bytes)?;
        let mut descriptor = plain(digest, bytes.len() as u64);
        descriptor.media_type = media_type;
        Ok(Fetched { descriptor, document })
    }

    fn stored(&self, digest: Digest, lease: &Arc<Lease>) -> Result<Fetched> {
        let bytes = lease.store().read(digest, MAX_MANIFEST)?;
        let document = Document::parse(&digest.to_string(), &bytes)?;
        let mut descriptor = plain(digest, bytes.len() as u64);
        // The document says what it is, when it says anything.
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Own {
            media_type: Option<String>,
        }
        let own = serde_json::from_slice::<Own>(&bytes).ok().and_then(|own| own.media_type);
        descriptor.media_type = check_type(&document, own.unwrap_or_default());
        Ok(Fetched { descriptor, document })
    }

    async fn fetch_bytes(
        &self,
        version: &str,
        expected: Option<Digest>,
    ) -> std::result::Result<(Vec<u8>, String), Failure> {
        let separator = if expected.is_some() { '@' } else { ':' };
        let operation = format!("fetching {}{separator}{version}", self.repository);
        let operation = operation.as_str();
        let accept = [INDEX, DOCKER_LIST, MANIFEST, DOCKER_MANIFEST].join(", ");
        let mut headers = HeaderMap::new();
        headers.insert(
            ACCEPT,
            HeaderValue::from_str(&accept).map_err(|e| Error::Internal(e.to_string()))?,
        );
        let response = self.get(operation, &format!("manifests/{version}"), headers, &[]).await?;
        let header = |name: &str| {
            response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
        };
        let announced = header("docker-content-digest").and_then(|d| d.parse::<Digest>().ok());
        let media_type = header(CONTENT_TYPE.as_str()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let body = tokio::time::timeout(STALL, read_bounded(response, MAX_MANIFEST as usize));
        let bytes = match body.await {
            Err(_) => return Err(self.stalled(operation)),
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                let problem = "the answer is cut, or larger than 4 MiB";
                let error = self.error(operation, problem, ErrorCode::InvalidData);
                return Err(Failure { error: error.into(), transient: true, pause: None });
            }
        };
        let actual = Digest::of(&bytes);
        match expected.or(announced) {
            Some(expected) if expected != actual => {
                let what = format!("{}/{}", self.registry, self.repository);
                Err(Error::Digest { what, expected, actual }.into())
            }
            _ => Ok((bytes, media_type)),
        }
    }

    /// The manifest for `wanted`, in `root` or below it.
    pub(super) async fn choose(
        &self,
        root: &Fetched,
        wanted: &Platform,
        reference: &Reference,
        lease: &Arc<Lease>,
    ) -> Result<Manifest> {
        let mut available = Vec::new();
        let mut guesses = 0;
        let mut queue = vec![(root.document.clone(), 0)];
        while let Some((document, depth)) = queue.pop() {
            let entries = match document {
                Document::Manifest(manifest) => return Ok(manifest),
                Document::Index(index) => index.manifests,
            };
            if depth >= MAX_DEPTH {
                return Err(Error::malformed(reference.to_string(), "an index nested too deep"));
            }
            let mut rest = Vec::new();
            for entry in sorted(entries, wanted) {
                let nested = entry.media_type == INDEX || entry.media_type == DOCKER_LIST;
                let platform = entry.platform.as_ref().and_then(|p| p.to_platform());
                let attestation = entry.platform.is_some() && platform.is_none();
                match platform {
                    Some(platform) if platform.matches(wanted) => {
                        let fetched = self.child(&entry, lease).await?;
                        if let Document::Manifest(manifest) = fetched.document {
                            return Ok(manifest);
                        }
                        rest.push((fetched.document, depth + 1));
                    }
                    Some(platform) => available.push(platform),
                    None if attestation => {}
                    // Without a platform: an index, or a manifest whose configuration tells.
                    None => {
                        guesses += 1;
                        if guesses > MAX_GUESSES {
                            continue;
                        }
                        let fetched = self.child(&entry, lease).await?;
                        match (nested, &fetched.document) {
                            (_, Document::Manifest(manifest)) if self.is_image(manifest) => {
                                rest.push((fetched.document, depth + 1));
                            }
                            (_, Document::Manifest(_)) => {}
                            (_, Document::Index(_)) => rest.push((fetched.document, depth + 1)),
                        }
                    }
                }
            }
            rest.reverse();
            queue.extend(rest);
        }
        available.dedup();
        Err(Error::NoPlatform { image: reference.to_string(), wanted: wanted.clone(), available })
    }

    fn is_image(&self, manifest: &Manifest) -> bool {
        manifest.check_runnable(&self.repository).is_ok()
    }

    async fn child(&self, entry: &Descriptor, lease: &Arc<Lease>) -> Result<Fetched> {
        if entry.size > MAX_MANIFEST {
            return Err(Error::malformed(&entry.digest, "a manifest larger than 4 MiB"));
        }
        let digest = entry.digest()?;
        self.fetch(&digest.to_string(), Some(digest), TRIES, lease).await
    }
}

/// Entries whose variant is the wanted one come first; else the index's order stays.
fn sorted(mut entries: Vec<Descriptor>, wanted: &Platform) -> Vec<Descriptor> {
    entries.sort_by_key(|entry| {
        let platform = entry.platform.as_ref().and_then(|p| p.to_platform());
        platform.is_none_or(|p| p.variant != wanted.variant)
    });
    entries
}

fn plain(digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: String::new(),
        digest: digest.to_string(),
        size,
        platform: None,
        annotations: Default::default(),
    }
}

/// The type that a registry announced, when it fits what came.
fn check_type(document: &Document, announced: String) -> String {
    let (fitting, default) = match document {
        Document::Index(_) => ([INDEX, DOCKER_LIST], INDEX),
        Document::Manifest(_) => ([MANIFEST, DOCKER_MANIFEST], MANIFEST),
    };
    if fitting.contains(&announced.as_str()) { announced } else { default.to_owned() }
}
