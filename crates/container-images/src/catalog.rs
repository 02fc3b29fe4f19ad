//! Images that are here: found by name or digest, their platforms, what is shown of them.

use std::collections::{BTreeMap, BTreeSet};

use container_api::images::{ImageDetails, ImageSummary, ImageVariant};
use container_api::types::{self, Platform};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::oci::{ConfigFile, Descriptor, Document, MAX_CONFIG, Manifest};
use crate::reference::Reference;
use crate::store::Store;

/// Indexes may hold indexes; deeper than this nobody nests them.
const MAX_DEPTH: usize = 4;
/// Manifests of one image that are looked at.
const MAX_VARIANTS: usize = 1000;
/// Digits of a digest that stand for an image.
const MIN_SHORT_DIGEST: usize = 12;

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The full reference.
    pub name: String,
    /// An index or a manifest.
    pub descriptor: types::Descriptor,
}

/// One platform of an image.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    pub platform: Platform,
    pub digest: Digest,
    pub size: u64,
    /// What is here of it; `None` when the manifest itself is not.
    pub local: Option<LocalVariant>,
}

/// A platform whose manifest and configuration are here.
#[derive(Clone, Debug)]
pub(crate) struct LocalVariant {
    pub manifest: Manifest,
    pub config: ConfigFile,
    /// Whether all layers are here too.
    pub complete: bool,
}

impl Variant {
    pub fn is_complete(&self) -> bool {
        self.local.as_ref().is_some_and(|local| local.complete)
    }
}

impl Store {
    /// Finds an image by reference, or by the beginning of its digest.
    pub fn find(&self, text: &str, default_domain: &str) -> Result<Found> {
        let reference = Reference::parse(text, default_domain);
        if let Ok(reference) = &reference {
            let name = reference.to_string();
            if let Some(descriptor) = self.named(&name) {
                return Ok(Found { name, descriptor });
            }
        }
        if let Some(found) = self.find_by_digest(text)? {
            return Ok(found);
        }
        Err(Error::NoImage(reference?.to_string()))
    }

    fn find_by_digest(&self, text: &str) -> Result<Option<Found>> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !is_hex || digits.len() < MIN_SHORT_DIGEST {
            return Ok(None);
        }
        let prefix = format!("sha256:{digits}");
        let fitting: Vec<_> =
            self.names().into_iter().filter(|(_, d)| d.digest.starts_with(&prefix)).collect();
        let digests: BTreeSet<&String> = fitting.iter().map(|(_, d)| &d.digest).collect();
        if digests.len() > 1 {
            return Err(Error::Ambiguous(text.to_owned()));
        }
        Ok(fitting.into_iter().next().map(|(name, descriptor)| Found { name, descriptor }))
    }

    /// The platforms of an image, in the order of its index.
    pub(crate) fn variants(&self, descriptor: &types::Descriptor) -> Result<Vec<Variant>> {
        let mut out = Vec::new();
        self.collect_variants(&descriptor.into(), 0, &mut out)?;
        Ok(out)
    }

    fn collect_variants(
        &self,
        descriptor: &Descriptor,
        depth: usize,
        out: &mut Vec<Variant>,
    ) -> Result<()> {
        if depth > MAX_DEPTH || out.len() >= MAX_VARIANTS {
            return Err(Error::malformed(
                &descriptor.digest,
                "an index nested too deep or too large",
            ));
        }
        let digest = descriptor.digest()?;
        let announced = descriptor.platform.as_ref().map(|p| p.to_platform());
        match self.document(digest) {
            Ok(Document::Index(index)) => {
                for child in &index.manifests {
                    self.collect_variants(child, depth + 1, out)?;
                }
            }
            Ok(Document::Manifest(manifest)) => {
                let Some(local) = self.local_variant(manifest)? else { return Ok(()) };
                let platform = announced.flatten().or_else(|| local.config.platform());
                if let Some(platform) = platform {
                    out.push(Variant {
                        platform,
                        digest,
                        size: descriptor.size,
                        local: Some(local),
                    });
                }
            }
            // Not fetched: normal below an index, where its platform stands.
            Err(Error::NoBlob(_)) if depth > 0 => {
                if let Some(platform) = announced.flatten() {
                    out.push(Variant { platform, digest, size: descriptor.size, local: None });
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// `None` for a manifest that is no image (an attestation), or whose configuration is missing.
    fn local_variant(&self, manifest: Manifest) -> Result<Option<LocalVariant>> {
        let Ok(config) = manifest.config.digest().and_then(|digest| self.config(digest)) else {
            return Ok(None);
        };
        let complete = manifest
            .layers
            .iter()
            .all(|layer| layer.digest().is_ok_and(|digest| self.has(digest, Some(layer.size))));
        Ok(Some(LocalVariant { manifest, config, complete }))
    }

    /// The complete variant for `wanted` (the host's platform when `None`).
    pub(crate) fn choose(&self, found: &Found, wanted: Option<&Platform>) -> Result<Variant> {
        let variants = self.variants(&found.descriptor)?;
        choose(variants, wanted, |v| v.is_complete(), &found.name)
    }

    /// What `list` shows.
    pub fn summary(&self, found: &Found) -> Result<ImageSummary> {
        let variants: Vec<Variant> =
            self.variants(&found.descriptor)?.into_iter().filter(Variant::is_complete).collect();
        let host = Platform::host();
        let first = variants.iter().find(|v| v.platform.matches(&host)).or(variants.first());
        let created = first.and_then(|v| v.local.as_ref()).and_then(|l| l.config.created());
        let mut blobs: BTreeMap<String, u64> =
            BTreeMap::from([(found.descriptor.digest.clone(), found.descriptor.size)]);
        for variant in &variants {
            blobs.insert(variant.digest.to_string(), variant.size);
            if let Some(local) = &variant.local {
                let parts = local.manifest.layers.iter().chain([&local.manifest.config]);
                blobs.extend(parts.map(|d| (d.digest.clone(), d.size)));
            }
        }
        Ok(ImageSummary {
            reference: found.name.clone(),
            descriptor: found.descriptor.clone(),
            platforms: variants.into_iter().map(|v| v.platform).collect(),
            created,
            size: blobs.values().fold(0, |sum, size| sum.saturating_add(*size)),
        })
    }

    /// What `inspect` shows.
    pub fn details(&self, found: &Found) -> Result<ImageDetails> {
        let mut variants = Vec::new();
        for variant in self.variants(&found.descriptor)? {
            let Some(local) = variant.local.filter(|l| l.complete) else { continue };
            let bytes = self.read(local.manifest.config.digest()?, MAX_CONFIG)?;
            let config = serde_json::from_slice(&bytes)
                .map_err(|e| Error::malformed(&local.manifest.config.digest, e.to_string()))?;
            variants.push(ImageVariant {
                platform: variant.platform,
                digest: variant.digest.to_string(),
                size: local.manifest.layers.iter().fold(0, |sum, l| sum.saturating_add(l.size)),
                config,
            });
        }
        Ok(ImageDetails { name: found.name.clone(), index: found.descriptor.clone(), variants })
    }
}

/// The first of `variants` that `usable` accepts and that is for `wanted`; one whose variant
/// (`v7`, `v8`) is the same is preferred.
pub(crate) fn choose(
    variants: Vec<Variant>,
    wanted: Option<&Platform>,
    usable: impl Fn(&Variant) -> bool,
    image: &str,
) -> Result<Variant> {
    let wanted = wanted.cloned().unwrap_or_else(Platform::host);
    let fits = |v: &&Variant| v.platform.matches(&wanted) && usable(v);
    let exact = variants.iter().filter(fits).find(|v| v.platform.variant == wanted.variant);
    if let Some(variant) = exact.or_else(|| variants.iter().find(fits)) {
        return Ok(variant.clone());
    }
    let mut available: Vec<Platform> = variants.into_iter().map(|v| v.platform).collect();
    available.dedup();
    Err(Error::NoPlatform { image: image.to_owned(), wanted, available })
}
