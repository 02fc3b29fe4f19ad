//! One more layer on an image that is here: `commit`.
//!
//! The layer is what a guest made of its disk: it is stored as it comes, under its own digest, and
//! read by nobody before it is unpacked as any other.

use std::collections::BTreeMap;
use std::io::Read;

use container_api::archive::CommitOptions;
use container_api::types::Timestamp;
use serde_json::{Map, Value, json};

use crate::archive::{CallerReader, archive_error};
use crate::catalog::Found;
use crate::change::Change;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::oci::{CONFIG, Descriptor, Document, LAYER, MANIFEST, MAX_CONFIG, MAX_LAYERS};
use crate::reference::Reference;
use crate::store::Lease;

/// What a whole archive ends with.
const END: [u8; 1024] = [0; 1024];

/// Makes and names the image; the lease holds what it needs until then.
pub fn commit(
    base: &str,
    options: &CommitOptions,
    layer: CallerReader,
    default_domain: &str,
    lease: &Lease,
) -> Result<Found> {
    let changes = options.changes.iter().map(|text| Change::parse(text));
    let changes: Vec<Change> = changes.collect::<Result<_>>()?;
    let name = name(options, default_domain)?;
    let base: Digest =
        base.parse().map_err(|_| Error::malformed("commit", "the image's digest is none"))?;
    lease.hold(base);
    let Document::Manifest(mut manifest) = lease.store().document(base)? else {
        return Err(Error::malformed("commit", "the image is an index"));
    };
    if manifest.layers.len() >= MAX_LAYERS {
        return Err(Error::malformed("commit", "the image has 512 layers: no more are possible"));
    }
    let config = manifest.config.digest()?;
    lease.hold(config);
    for layer in &manifest.layers {
        let digest = layer.digest()?;
        lease.hold(digest);
        if !lease.store().has(digest, Some(layer.size)) {
            return Err(Error::NoBlob(digest));
        }
    }
    let (digest, size) = store_layer(layer, lease)?;
    let bytes = lease.store().read(config, MAX_CONFIG)?;
    let bytes = configuration(&bytes, digest, options, &changes)?;
    manifest.config = descriptor(CONFIG, lease.put(&bytes)?, bytes.len());
    manifest.layers.push(Descriptor { size, ..descriptor(LAYER, digest, 0) });
    manifest.media_type = MANIFEST.into();
    let bytes = json_bytes(&manifest)?;
    let descriptor = descriptor(MANIFEST, lease.put(&bytes)?, bytes.len()).to_wire();
    lease.store().change_names(|names| {
        names.insert(name.clone(), descriptor.clone());
    })?;
    Ok(Found { name, descriptor })
}

fn name(options: &CommitOptions, default_domain: &str) -> Result<String> {
    let text = options.name.clone().unwrap_or_default();
    let reference = Reference::parse(&text, default_domain)?;
    if reference.tag().is_none() {
        let problem = "a new name has a tag, not a digest";
        return Err(Error::Reference { text, problem });
    }
    Ok(reference.to_string())
}

/// Stores the layer; one that was cut off has no end.
fn store_layer(mut layer: CallerReader, lease: &Lease) -> Result<(Digest, u64)> {
    let mut ingest = lease.ingest()?;
    let (mut buffer, mut tail) = (vec![0; 256 << 10], Vec::new());
    loop {
        let n = layer.read(&mut buffer).map_err(archive_error("reading"))?;
        if n == 0 {
            break;
        }
        ingest.append(&buffer[..n])?;
        tail.extend_from_slice(&buffer[n.saturating_sub(END.len())..n]);
        tail.drain(..tail.len().saturating_sub(END.len()));
    }
    if tail != END {
        return Err(Error::malformed("layer", "it was cut off"));
    }
    ingest.commit()
}

fn descriptor(media_type: &str, digest: Digest, size: usize) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: digest.to_string(),
        size: size as u64,
        platform: None,
        annotations: BTreeMap::new(),
    }
}

fn json_bytes(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::Internal(e.to_string()))
}

/// The object under `key`, made where there is none.
fn object<'a>(parent: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = parent.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it is one")
}

fn list<'a>(parent: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let value = parent.entry(key).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().expect("it is one")
}

/// The configuration of the new image: the old one's, whatever else is in it, with what changes.
fn configuration(
    bytes: &[u8],
    layer: Digest,
    options: &CommitOptions,
    changes: &[Change],
) -> Result<Vec<u8>> {
    let malformed = |_| Error::malformed("configuration", "it is no object");
    let mut config: Map<String, Value> = serde_json::from_slice(bytes).map_err(malformed)?;
    // What Docker's older releases wrote of the container that an image was made from.
    for gone in ["container", "container_config", "id", "parent"] {
        config.remove(gone);
    }
    let now = Timestamp::now().to_string();
    config.insert("created".into(), json!(now));
    if let Some(author) = &options.author {
        config.insert("author".into(), json!(author));
    }
    let run = object(&mut config, "config");
    for change in changes {
        change.apply(run);
    }
    list(object(&mut config, "rootfs"), "diff_ids").push(json!(layer.to_string()));
    let mut history = Map::new();
    history.insert("created".into(), json!(now));
    history.insert("created_by".into(), json!("container commit"));
    for (key, value) in [("author", &options.author), ("comment", &options.message)] {
        if let Some(value) = value {
            history.insert(key.into(), json!(value));
        }
    }
    list(&mut config, "history").push(Value::Object(history));
    json_bytes(&config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    use crate::meter::Meter;
    use crate::oci::Manifest;
    use crate::store::Store;

    fn options(name: &str, changes: &[&str]) -> CommitOptions {
        CommitOptions {
            name: Some(name.into()),
            author: Some("me".into()),
            message: Some("why".into()),
            changes: changes.iter().map(|c| (*c).to_string()).collect(),
            pause: true,
        }
    }

    fn layer(bytes: &[u8]) -> CallerReader {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        CallerReader::new(file.into(), Arc::new(Meter::new("Saving image")))
    }

    fn base(lease: &Lease) -> String {
        let config = br#"{"os":"linux","architecture":"amd64","odd":1,
            "config":{"Cmd":["old"],"Env":["A=1"]},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST.into(),
            config: descriptor(CONFIG, lease.put(config).unwrap(), config.len()),
            layers: Vec::new(),
        };
        lease.put(&json_bytes(&manifest).unwrap()).unwrap().to_string()
    }

    #[test]
    fn an_image_gets_one_more_layer() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path()).unwrap());
        let lease = store.lease();
        let base = base(&lease);
        let archive = [vec![7; 512], END.to_vec()].concat();
        let options = options("new:v1", &["CMD [\"sh\"]", "ENV B=2"]);
        let found = commit(&base, &options, layer(&archive), "docker.io", &lease).unwrap();
        lease.settle().unwrap();
        assert_eq!(found.name, "docker.io/library/new:v1");
        let digest: Digest = found.descriptor.digest.parse().unwrap();
        let Document::Manifest(manifest) = store.document(digest).unwrap() else { panic!() };
        assert_eq!(manifest.layers[0].digest, Digest::of(&archive).to_string());
        let config = store.config(manifest.config.digest().unwrap()).unwrap();
        assert_eq!(config.diff_ids("c").unwrap(), [Digest::of(&archive)]);
        let wire = config.to_wire();
        assert_eq!((wire.cmd, wire.env), (vec!["sh".into()], vec!["A=1".into(), "B=2".into()]));
        let text = store.read(manifest.config.digest().unwrap(), MAX_CONFIG).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("\"odd\":1") && text.contains("\"comment\":\"why\""), "{text}");
    }

    #[test]
    fn a_layer_without_an_end_is_refused_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path()).unwrap());
        let lease = store.lease();
        let base = base(&lease);
        for cut in [&[][..], &[7; 512], &END[..1000]] {
            commit(&base, &options("new", &[]), layer(cut), "docker.io", &lease).unwrap_err();
        }
        commit(&base, &options("", &[]), layer(&END), "docker.io", &lease).unwrap_err();
        commit(&base, &options("x", &["RUN y"]), layer(&END), "docker.io", &lease).unwrap_err();
        lease.settle().unwrap();
        assert!(store.names().is_empty());
    }
}
