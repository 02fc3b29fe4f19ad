//! What VMs are made of here: an image whose one file is the probe, and an initramfs whose init is.
//! Both are made in memory, so that nothing has to be fetched.

use std::io;

use container_api::ram::sha256;
use container_api::types::Platform;
use serde_json::{Value, json};

/// The program in the image.
pub const PROGRAM: &str = "/container-probe";

const BLOCK: usize = 512;

/// An OCI archive of one image, named `reference`, with the probe in it.
pub fn archive(reference: &str, probe: &[u8]) -> io::Result<Vec<u8>> {
    let mut blobs: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |media_type: &str, bytes: Vec<u8>| -> Value {
        let digest = sha256(&bytes);
        let size = bytes.len();
        blobs.push((format!("blobs/sha256/{digest}"), bytes));
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
    };
    let layer = tar(&[(&PROGRAM[1..], 0o755, probe)])?;
    let diff_id = format!("sha256:{}", sha256(&layer));
    let layer = add("application/vnd.oci.image.layer.v1.tar", layer);
    let platform = Platform::host();
    let config = json!({
        "os": platform.os,
        "architecture": platform.architecture,
        "variant": platform.variant,
        "config": {"Entrypoint": [PROGRAM]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config = add("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer],
    });
    let mut manifest = add(media_type, manifest.to_string().into_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": reference});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]}).to_string();
    let mut files: Vec<(&str, u32, &[u8])> = vec![
        ("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", 0o644, index.as_bytes()),
    ];
    files.extend(blobs.iter().map(|(path, bytes)| (path.as_str(), 0o644, bytes.as_slice())));
    tar(&files)
}

/// A ustar archive of files: path, mode, content.
fn tar(files: &[(&str, u32, &[u8])]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for (path, mode, bytes) in files {
        let mut header = [0_u8; BLOCK];
        let mut put = |at: usize, room: usize, text: &str| match text.len() <= room {
            true => {
                header[at..at + text.len()].copy_from_slice(text.as_bytes());
                Ok(())
            }
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path}: too long"))),
        };
        put(0, 100, path)?;
        put(100, 8, &format!("{mode:07o}"))?;
        put(108, 8, "0000000")?;
        put(116, 8, "0000000")?;
        put(124, 12, &format!("{:011o}", bytes.len()))?;
        put(136, 12, "00000000000")?;
        // The checksum's own field counts as spaces.
        put(148, 8, "        ")?;
        put(156, 1, "0")?;
        put(257, 8, "ustar\u{0}00")?;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    Ok(out)
}

/// The initramfs `original` (uncompressed) with `init` in place of its own, and a file `/conduct`.
pub fn initramfs(mut original: Vec<u8>, init: &[u8], conduct: &str) -> io::Result<Vec<u8>> {
    const FILE: u32 = 0o100_000;
    let files: [(&str, u32, &[u8]); 3] = [
        ("init", FILE | 0o755, init),
        ("conduct", FILE | 0o644, conduct.as_bytes()),
        ("TRAILER!!!", 0, b""),
    ];
    // A later archive's files take the place of an earlier one's; between them zeros are passed by.
    original.resize(original.len().next_multiple_of(BLOCK), 0);
    for (name, mode, bytes) in files {
        let size = u32::try_from(bytes.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{name}: too big")))?;
        original.extend_from_slice(b"070701");
        let name_size = name.len() as u32 + 1;
        // Inode, mode, owner, group, links, time, size, four of devices, the name's size, checksum.
        for field in [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
            original.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        original.extend_from_slice(name.as_bytes());
        original.push(0);
        original.resize(original.len().next_multiple_of(4), 0);
        original.extend_from_slice(bytes);
        original.resize(original.len().next_multiple_of(4), 0);
    }
    original.resize(original.len().next_multiple_of(BLOCK), 0);
    Ok(original)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_as_their_readers_want_them() {
        let bytes = tar(&[("a/b", 0o755, b"hello"), ("c", 0o644, b"")]).unwrap();
        assert_eq!(bytes.len(), 5 * BLOCK);
        assert_eq!(&bytes[257..263], b"ustar\0");
        let octal = |range: std::ops::Range<usize>| {
            let text = std::str::from_utf8(&bytes[range]).unwrap().trim_matches(['\0', ' ']);
            u32::from_str_radix(text, 8).unwrap()
        };
        let mut header = bytes[..BLOCK].to_vec();
        header[148..156].fill(b' ');
        assert_eq!(octal(148..156), header.iter().map(|b| u32::from(*b)).sum::<u32>());
        assert_eq!((octal(124..136), octal(100..108)), (5, 0o755));
        tar(&[(&"x".repeat(101), 0, b"")]).unwrap_err();

        let whole = initramfs(b"070701".to_vec(), b"init", "lies").unwrap();
        assert_eq!(whole.len() % BLOCK, 0);
        assert_eq!(whole.windows(6).filter(|w| w == b"070701").count(), 4);
    }

    #[test]
    fn an_image_leads_to_its_blobs() {
        let text = archive("check:1", b"program").unwrap();
        let text = String::from_utf8_lossy(&text);
        let layer = sha256(&tar(&[("container-probe", 0o755, b"program")]).unwrap());
        assert_eq!(text.matches(&layer).count(), 3, "blob, manifest, configuration");
        assert!(text.contains("check:1"));
    }
}
