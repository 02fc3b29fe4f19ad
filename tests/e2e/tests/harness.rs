//! The harness against the real tools: what it writes must be what they read.

use e2e::registry::skopeo;
use e2e::{Cmd, Compression, Registry, busybox, layout};

#[test]
fn skopeo_reads_the_archives_in_every_compression() {
    let folder = tempfile::tempdir().unwrap();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let archive = folder.path().join("image.tar");
        let mut image = busybox::image().unwrap();
        image.compression = compression;
        image.write_archive(&archive).unwrap();
        let source = format!("oci-archive:{}", archive.display());
        let config = skopeo(["inspect", "--config", &source]).run().ok().json();
        assert_eq!(config["config"]["Cmd"][0], "sh");
    }
    let archive = folder.path().join("docker.tar");
    busybox::image().unwrap().write_docker_archive(&archive).unwrap();
    skopeo(["inspect", &format!("docker-archive:{}", archive.display())]).run().ok();
}

#[test]
fn a_registry_takes_what_skopeo_pushes() {
    let registry = Registry::start();
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("image.tar");
    let mut other = busybox::image().unwrap();
    other.architecture = "s390x".to_owned();
    let images = [busybox::image().unwrap(), other];
    layout::write_multi_platform(&archive, "many:1", &images).unwrap();
    registry.push(&format!("oci-archive:{}", archive.display()), "library/many:1");
    let raw = Cmd::new("curl")
        .args(["--silent", "--fail", "-H"])
        .arg("Accept: application/vnd.oci.image.index.v1+json")
        .arg(format!("http://{}/v2/library/many/manifests/1", registry.address()))
        .run()
        .ok();
    assert_eq!(raw.json()["manifests"].as_array().unwrap().len(), 2);
}

#[test]
fn umoci_unpacks_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    let mut image = busybox::image().unwrap();
    image.reference = "latest".to_owned();
    image.compression = Compression::Gzip;
    image.write_layout(&layout).unwrap();
    let bundle = folder.path().join("bundle");
    Cmd::new("umoci")
        .args(["unpack", "--rootless", "--image"])
        .arg(format!("{}:latest", layout.display()))
        .arg(&bundle)
        .run()
        .ok();
    assert!(bundle.join("rootfs/bin/busybox").exists());
}
