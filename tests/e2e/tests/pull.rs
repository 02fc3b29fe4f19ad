//! Pulling: from the real registry, and from one that misbehaves.

use std::time::{Duration, Instant};

use e2e::serve::{Manners, Serve};
use e2e::{Compression, Image, Installation, Layer, Registry, busybox, layout};
use serde_json::json;

#[test]
fn what_skopeo_pushed_is_pulled_and_runs() {
    let registry = Registry::start();
    let it = Installation::new();
    let archive = it.scratch().join("image.tar");
    let mut image = busybox::image().unwrap();
    image.compression = Compression::Gzip;
    image.write_archive(&archive).unwrap();
    registry.push(&format!("oci-archive:{}", archive.display()), "team/box:1");

    let reference = registry.reference("team/box:1");
    it.run(["image", "pull", &reference]).ok();
    it.run(["image", "list", "--quiet"]).ok().prints(&reference);
    it.run(["run", "--rm", &reference, "echo", "pulled"]).ok().prints("pulled");

    // By digest, and by `run` itself.
    let shown = it.run(["image", "inspect", &reference]).ok().json();
    let digest = shown[0]["index"]["digest"].as_str().expect("a digest").to_owned();
    it.run(["image", "delete", &reference]).ok();
    let by_digest = registry.reference(&format!("team/box@{digest}"));
    it.run(["create", "--name", "box", &by_digest, "true"]).ok();

    it.run(["image", "pull", &registry.reference("team/box:2")]).fails(125, "team/box:2");
    it.run(["image", "pull", &registry.reference("nobody/nothing")]).fails(125, "nothing");
    let wrong = format!("team/box@sha256:{}", "0".repeat(64));
    it.run(["image", "pull", &registry.reference(&wrong)]).code(125);
}

#[test]
fn https_asks_for_a_certificate_that_is_trusted() {
    let registry = Registry::with_tls();
    let it = Installation::new();
    let archive = it.scratch().join("image.tar");
    busybox::image().unwrap().write_archive(&archive).unwrap();
    registry.push(&format!("oci-archive:{}", archive.display()), "box:1");
    let reference = registry.reference("box:1");
    let pull = ["image", "pull", "--scheme", "https", &reference];
    it.run(pull).fails(125, "certificate");
    it.run(["image", "list", "--quiet"]).ok().prints("");
    // The service reads the authorities when it starts.
    it.run(["system", "stop"]).ok();
    it.container(pull).env("SSL_CERT_FILE", registry.authority()).run().ok();
    it.run(["image", "list", "--quiet"]).ok().prints(&reference);
}

#[test]
fn short_names_mean_the_configured_registry() {
    let registry = Registry::start();
    let it = Installation::new();
    it.configure(&format!("registry.domain = '{}'\n", registry.address()));
    let archive = it.scratch().join("image.tar");
    busybox::image().unwrap().write_archive(&archive).unwrap();
    registry.push(&format!("oci-archive:{}", archive.display()), "library/short:latest");
    registry.push(&format!("oci-archive:{}", archive.display()), "short:latest");
    it.run(["image", "pull", "short"]).ok();
    it.run(["image", "inspect", "short"]).ok();
}

#[test]
fn a_platform_can_be_chosen() {
    let registry = Registry::start();
    let it = Installation::new();
    let archive = it.scratch().join("many.tar");
    let mut other = Image::new("x", vec![Layer::build(|e| _ = e.dir("etc"))], json!({}));
    other.architecture = "s390x".to_owned();
    layout::write_multi_platform(&archive, "many:1", &[busybox::image().unwrap(), other]).unwrap();
    registry.push(&format!("oci-archive:{}", archive.display()), "many:1");
    let reference = registry.reference("many:1");
    it.run(["image", "pull", "--platform", "linux/riscv64", &reference]).fails(125, "riscv64");
    it.run(["image", "pull", "--platform", "linux/s390x", &reference]).ok();
    it.run(["image", "pull", &reference]).ok();
    it.run(["create", "--name", "box", &reference, "true"]).ok();
}

/// A layout with a layer of some megabytes that doesn't compress away.
fn large_layout(it: &Installation) -> std::path::PathBuf {
    let folder = it.scratch().join("served");
    std::fs::create_dir(&folder).unwrap();
    let mut state = 1_u32;
    let noise: Vec<u8> = (0..4 << 20)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    let layers = vec![
        busybox::layer().unwrap(),
        Layer::build(|e| _ = e.file("noise", 0o644, &noise)),
        Layer::build(|e| _ = e.file("small", 0o644, b"small")),
    ];
    let image = Image::new("served:1", layers, json!({"Env": ["PATH=/bin"]}));
    image.write_layout(&folder).unwrap();
    folder
}

#[test]
fn tokens_redirects_and_cut_connections() {
    let it = Installation::new();
    let folder = large_layout(&it);
    let manners = Manners {
        wants_token: true,
        redirects: true,
        cuts_after: Some(1 << 20),
        ..Manners::default()
    };
    let server = Serve::start(&folder, manners);
    let reference = server.reference("team/served:1");
    it.run(["image", "pull", &reference]).ok();
    let seen = server.seen();
    assert!(seen.iter().any(|request| request.path.starts_with("/token")), "no token was asked");
    assert!(
        seen.iter().any(|request| request.range.is_some()),
        "a cut download was begun again from the start: {seen:#?}"
    );
    it.run(["create", "--name", "box", &reference, "true"]).ok();
}

#[test]
fn bytes_that_are_not_what_was_promised_are_refused() {
    let it = Installation::new();
    let folder = large_layout(&it);
    let server = Serve::start(&folder, Manners { corrupts: true, ..Manners::default() });
    it.run(["image", "pull", &server.reference("served:1")]).fails(125, "digest");
    it.run(["image", "list", "--quiet"]).ok().prints("");
    // An honest registry with the same image then works: nothing bad was kept.
    let honest = Serve::start(&folder, Manners::default());
    it.run(["image", "pull", &honest.reference("served:1")]).ok();
}

#[test]
fn a_registry_that_is_not_there_fails_soon() {
    let it = Installation::new();
    it.run(["system", "start"]).ok();
    let start = Instant::now();
    let nobody = e2e::registry::free_address();
    it.run(["image", "pull", &format!("{nobody}/any:1")]).fails(125, "127.0.0.1");
    // One that accepts and never says a word.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = silent.local_addr().unwrap();
    let before = Instant::now();
    it.container(["image", "pull", &format!("{address}/any:1")])
        .deadline(Duration::from_secs(60))
        .run()
        .fails(125, "127.0.0.1");
    assert!(before.elapsed() < Duration::from_secs(20), "{:?}", before.elapsed());
    assert!(start.elapsed() < Duration::from_secs(40));
}

#[test]
fn a_pull_can_be_interrupted_and_taken_up_again() {
    let it = Installation::new();
    it.run(["system", "start"]).ok();
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = silent.local_addr().unwrap();
    let running = it.container(["image", "pull", &format!("{address}/any:1")]).spawn();
    std::thread::sleep(Duration::from_millis(500));
    running.signal(rustix::process::Signal::INT);
    assert_eq!(running.wait(Duration::from_secs(5)).code, Some(130));

    // Killed in the middle: the next pull is clean.
    let folder = large_layout(&it);
    let server = Serve::start(&folder, Manners::default());
    let running = it.container(["image", "pull", &server.reference("served:1")]).spawn();
    std::thread::sleep(Duration::from_millis(30));
    running.signal(rustix::process::Signal::KILL);
    drop(running);
    it.run(["image", "pull", &server.reference("served:1")]).ok();
    it.run(["create", "--name", "box", &server.reference("served:1"), "true"]).ok();
}
