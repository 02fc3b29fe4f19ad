//! Archives in and out, disks, and what stays after failures, through the service's socket.

mod harness;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use container_api::ErrorCode;
use container_api::images::{DiskUsage, ImageDetails, ImageSummary, Pull, Removed, Request};
use container_api::types::Platform;
use harness::{Image, Service, gzip, layer, noise, oci_archive, run, sha256};

fn write(service: &Service, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = service.directory.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn host() -> String {
    Platform::host().architecture
}

fn delete(references: &[&str], in_use: &[&str]) -> Request {
    let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
    Request::Delete {
        references: owned(references),
        all: references.is_empty(),
        force: false,
        in_use: owned(in_use),
    }
}

#[tokio::test]
async fn an_image_is_loaded_unpacked_saved_and_removed() {
    let service = Service::start();
    let image = Image::new(
        &host(),
        &[layer(&[("a", b"one"), ("b", b"x")]), layer(&[("a", b"two"), (".wh.b", b"")])],
    );
    let archive = write(&service, "app.tar", &image.archive("app:1"));
    let loaded = service.load(&archive).await.unwrap();
    assert_eq!(loaded[0].reference, "docker.io/library/app:1");
    assert_eq!(loaded[0].platforms, [Platform { variant: None, ..Platform::host() }]);

    let unpacked = service.prepare("app:1").await.unwrap();
    assert_eq!(unpacked.config.cmd, ["sh"]);
    assert_eq!(std::fs::metadata(&unpacked.disk).unwrap().len(), container_api::paths::DISK_LEN);
    run("fsck.erofs", &[unpacked.disk.to_str().unwrap()]);
    let out = service.directory.path().join("out");
    let extract = format!("--extract={}", out.display());
    run("fsck.erofs", &[&extract, unpacked.disk.to_str().unwrap()]);
    assert_eq!(std::fs::read(out.join("a")).unwrap(), b"two");
    assert!(!out.join("b").exists());

    // Saved twice it is the same archive, and others can read it.
    let mut saved = Vec::new();
    for name in ["one.tar", "two.tar"] {
        let file = File::create(service.directory.path().join(name)).unwrap();
        let request = Request::Save { references: vec!["app:1".into()], platform: None };
        service.call_with::<()>(&request, &[file.as_fd()]).await.unwrap();
        saved.push(std::fs::read(service.directory.path().join(name)).unwrap());
    }
    assert!(saved[0] == saved[1]);
    let path = service.directory.path().join("one.tar");
    for form in ["oci-archive", "docker-archive"] {
        let text = run("skopeo", &["inspect", &format!("{form}:{}", path.display())]);
        assert!(text.contains("2024-01-01"), "{text}");
    }

    // In use it stays; then it goes, and leaves nothing.
    let digest = unpacked.manifest_digest.as_str();
    let error = service.call::<Removed>(&delete(&["app:1"], &[digest])).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InUse);
    let kept: Removed = service.call(&delete(&[], &[digest])).await.unwrap();
    assert_eq!(kept.kept_in_use, ["docker.io/library/app:1"]);
    let usage = |in_use: &[&str]| {
        let in_use = in_use.iter().map(|digest| (*digest).to_owned()).collect();
        Request::DiskUsage { in_use }
    };
    let used: DiskUsage = service.call(&usage(&[digest])).await.unwrap();
    assert_eq!((used.images, used.unreferenced, used.unused), (1, 0, 0));
    let unused: DiskUsage = service.call(&usage(&[])).await.unwrap();
    assert_eq!((unused.unreferenced, unused.unused), (0, unused.blobs + unused.disks));
    let removed: Removed = service.call(&delete(&["app:1"], &[])).await.unwrap();
    assert_eq!(removed.references, ["docker.io/library/app:1"]);
    assert!(removed.reclaimed > 0);
    assert!(service.content().is_empty(), "{:?}", service.content());
    let usage: DiskUsage = service.call(&usage(&[])).await.unwrap();
    assert_eq!((usage.images, usage.blobs, usage.disks), (0, 0, 0));
}

#[tokio::test]
async fn what_skopeo_and_umoci_write_is_read() {
    let service = Service::start();
    let root = service.directory.path().to_str().unwrap().to_owned();
    run("umoci", &["init", "--layout", &format!("{root}/layout")]);
    run("umoci", &["new", "--image", &format!("{root}/layout:app")]);
    std::fs::create_dir(format!("{root}/tree")).unwrap();
    std::fs::write(format!("{root}/tree/hello"), "hello").unwrap();
    run(
        "umoci",
        &[
            "insert",
            "--rootless",
            "--image",
            &format!("{root}/layout:app"),
            &format!("{root}/tree"),
            "/tree",
        ],
    );
    let source = format!("oci:{root}/layout:app");
    run("skopeo", &["copy", "-q", &source, &format!("oci-archive:{root}/oci.tar:h.example/app:1")]);
    run(
        "skopeo",
        &["copy", "-q", &source, &format!("docker-archive:{root}/docker.tar:h.example/app:2")],
    );
    run("tar", &["-C", &format!("{root}/layout"), "-cf", &format!("{root}/umoci.tar"), "."]);
    let docker = std::fs::read(format!("{root}/docker.tar")).unwrap();
    std::fs::write(format!("{root}/gzip.tar"), gzip(&docker)).unwrap();
    std::fs::write(format!("{root}/zstd.tar"), zstd::encode_all(&docker[..], 1).unwrap()).unwrap();
    for (file, name) in [
        ("oci.tar", "h.example/app:1"),
        ("docker.tar", "h.example/app:2"),
        ("umoci.tar", "docker.io/library/app:latest"),
        ("gzip.tar", "h.example/app:2"),
        ("zstd.tar", "h.example/app:2"),
    ] {
        let loaded = service.load(format!("{root}/{file}").as_ref()).await.unwrap();
        assert_eq!(loaded[0].reference, name, "{file}");
        let disk = service.prepare(name).await.unwrap().disk;
        run("fsck.erofs", &[disk.to_str().unwrap()]);
    }
    let list: Vec<ImageSummary> = service.call(&Request::List).await.unwrap();
    assert_eq!(list.len(), 3);
}

#[tokio::test]
async fn platforms_of_an_index() {
    let service = Service::start();
    let images = ["amd64", "arm64"].map(|a| Image::new(a, &[layer(&[("arch", a.as_bytes())])]));
    let mut blobs: Vec<Vec<u8>> = images.iter().flat_map(|i| i.blobs.clone()).collect();
    blobs.extend(images.iter().map(Image::manifest_bytes));
    let index = serde_json::to_vec(&serde_json::json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [images[0].descriptor("amd64"), images[1].descriptor("arm64")]}))
    .unwrap();
    let descriptor = serde_json::json!({"mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": sha256(&index), "size": index.len(),
        "annotations": {"io.containerd.image.name": "h.example/multi:1"}});
    blobs.push(index);
    let archive = write(&service, "multi.tar", &oci_archive(&[descriptor], &blobs));
    let loaded = service.load(&archive).await.unwrap();
    assert_eq!(loaded[0].platforms.len(), 2);
    let pull = |platform: &str| Pull {
        reference: "h.example/multi:1".into(),
        platform: Platform::parse(platform),
        ..Pull::default()
    };
    let mut disks = Vec::new();
    for platform in ["linux/amd64", "linux/arm64/v8"] {
        let request = Request::Prepare { pull: pull(platform) };
        let unpacked: container_api::images::Unpacked = service.call(&request).await.unwrap();
        disks.push(unpacked.disk);
    }
    assert_ne!(disks[0], disks[1]);
    let request = Request::Inspect { references: vec!["h.example/multi:1".into()] };
    let details: Vec<ImageDetails> = service.call(&request).await.unwrap();
    assert_eq!(details[0].variants.len(), 2);
}

/// Each of these is refused with one line, and leaves nothing.
#[tokio::test]
async fn hostile_archives_leave_nothing() {
    let service = Service::start();
    let good = || Image::new(&host(), &[layer(&[("a", &noise(100_000, 7))])]);
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("no image", layer(&[("hello", b"world")])),
        ("garbage", noise(5000, 3)),
        ("empty", Vec::new()),
        ("a path that leads out", layer_with_raw_path(b"../../../evil", b"x")),
        ("bad index", layer(&[("index.json", b"{\"manifests\":7}")])),
        ("both kinds", layer(&[("index.json", b"{\"manifests\":[],\"layers\":[]}")])),
        ("bad docker", layer(&[("manifest.json", b"[{\"Config\":\"c\",\"Layers\":[\"l\"]}]")])),
        ("bad name", good().archive("Not A Name")),
    ];
    let whole = good().archive("app:1");
    cases.push(("truncated", whole[..whole.len() / 2].to_vec()));
    let mut lying = good();
    lying.blobs[1][500] ^= 1;
    let honest = good();
    let mut blobs = vec![honest.blobs[0].clone(), honest.manifest_bytes()];
    let name = format!("blobs/sha256/{}", &sha256(&honest.blobs[1])["sha256:".len()..]);
    cases.push(("a lying blob", layer(&[(&name, &lying.blobs[1])])));
    cases.push(("a missing layer", oci_archive(&[honest.descriptor("x")], &blobs)));
    let mut sized = good();
    sized.manifest["layers"][0]["size"] = 5.into();
    blobs.push(honest.blobs[1].clone());
    blobs.push(sized.manifest_bytes());
    cases.push(("a wrong size", oci_archive(&[sized.descriptor("x")], &blobs)));
    for (what, bytes) in cases {
        let archive = write(&service, "bad.tar", &bytes);
        let error = service.load(&archive).await.unwrap_err();
        assert!(
            matches!(error.code, ErrorCode::InvalidData | ErrorCode::InvalidArgument),
            "{what}: {error:?}"
        );
        assert!(!error.message.contains('\n'), "{what}: {error}");
        assert!(service.content().is_empty(), "{what}: {:?}", service.content());
    }
    let list: Vec<ImageSummary> = service.call(&Request::List).await.unwrap();
    assert!(list.is_empty());
}

fn layer_with_raw_path(path: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.as_mut_bytes()[..path.len()].copy_from_slice(path);
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512) + 1024, 0);
    out
}

#[tokio::test]
async fn a_layer_that_is_not_what_its_diff_id_says() {
    let service = Service::start();
    let mut image = Image::new(&host(), &[layer(&[("a", b"1")])]);
    let config = String::from_utf8(image.blobs[0].clone()).unwrap();
    let real = sha256(&layer(&[("a", b"1")]));
    image.blobs[0] = config.replace(&real, &sha256(b"other")).into_bytes();
    image.manifest["config"]["digest"] = sha256(&image.blobs[0]).into();
    let archive = write(&service, "app.tar", &image.archive("app:1"));
    service.load(&archive).await.unwrap();
    let error = service.prepare("app:1").await.unwrap_err();
    assert!(error.message.contains("digest mismatch"), "{error}");
    assert!(!service.content().iter().any(|f| f.starts_with("erofs/")));
}

#[tokio::test]
async fn one_unpack_serves_all_who_ask() {
    let service = Service::start();
    let image = Image::new(&host(), &[layer(&[("a", &noise(8 << 20, 9))])]);
    let archive = write(&service, "app.tar", &image.archive("app:1"));
    service.load(&archive).await.unwrap();
    let all =
        tokio::join!(service.prepare("app:1"), service.prepare("app:1"), service.prepare("app:1"));
    let disks = [all.0.unwrap().disk, all.1.unwrap().disk, all.2.unwrap().disk];
    assert!(disks.iter().all(|d| *d == disks[0]));
    assert_eq!(service.content().iter().filter(|f| f.starts_with("erofs/")).count(), 1);
}

#[tokio::test]
async fn a_killed_service_leaves_nothing_half_done() {
    let mut service = Service::start();
    let image = Image::new(&host(), &[layer(&[("a", &noise(24 << 20, 11))])]);
    let archive = write(&service, "app.tar", &image.archive("app:1"));
    for wait in [5, 30, 60, 120] {
        let file = File::open(&archive).unwrap();
        let mut client = service.client();
        let load = Request::Load { name: None };
        let fds = [file.as_fd()];
        let call = client.call::<_, Vec<ImageSummary>>(&load, &fds, None);
        let _ = tokio::time::timeout(std::time::Duration::from_millis(wait), call).await;
        service = service.kill_and_restart();
        let unfinished = service.content().into_iter().filter(|f| f.contains("ingest/")).count();
        assert_eq!(unfinished, 0);
    }
    service.load(&archive).await.unwrap();
    for wait in [5, 40, 80] {
        let mut client = service.client();
        let pull = Pull { reference: "app:1".into(), ..Pull::default() };
        let prepare = Request::Prepare { pull };
        let call = client.call::<_, container_api::images::Unpacked>(&prepare, &[], None);
        let _ = tokio::time::timeout(std::time::Duration::from_millis(wait), call).await;
        service = service.kill_and_restart();
        assert!(
            !service.content().iter().any(|f| f.contains("erofs/.")),
            "{:?}",
            service.content()
        );
    }
    let disk = service.prepare("app:1").await.unwrap().disk;
    run("fsck.erofs", &[disk.to_str().unwrap()]);
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_its_load() {
    let service = Service::start();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let image = Image::new(&host(), &[layer(&[("a", &noise(1 << 20, 13))])]);
    let bytes = image.archive("app:1");
    writer.write_all(&bytes[..4096]).unwrap();
    {
        let mut client = service.client();
        let load = Request::Load { name: None };
        let fds = [reader.as_fd()];
        let call =
            container_api::images::call::<Vec<ImageSummary>>(&mut client, &load, &fds, |_| {});
        let waited = tokio::time::timeout(std::time::Duration::from_millis(300), call).await;
        assert!(waited.is_err(), "the archive is not complete");
    }
    // The writer stays open: nothing but the hang-up can end the load.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !service.content().is_empty() {
        assert!(std::time::Instant::now() < end, "{:?}", service.content());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn tags_move_and_missing_images_are_told() {
    let service = Service::start();
    let image = Image::new(&host(), &[layer(&[("a", b"1")])]);
    let archive = write(&service, "app.tar", &image.archive("app:1"));
    let digest = service.load(&archive).await.unwrap()[0].descriptor.digest.clone();
    let tag =
        |source: &str, target: &str| Request::Tag { source: source.into(), target: target.into() };
    let tagged: ImageSummary = service.call(&tag(&digest[7..20], "h.example/x")).await.unwrap();
    assert_eq!(tagged.reference, "h.example/x:latest");
    let error = service.call::<ImageSummary>(&tag("nothing", "x")).await.unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (ErrorCode::NotFound, "no image 'docker.io/library/nothing:latest'")
    );
    let error = service.call::<ImageSummary>(&tag("app:1", "Bad Name\n")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    // One of two names goes although a container uses the image.
    let removed: Removed = service.call(&delete(&["app:1"], &[&digest])).await.unwrap();
    assert_eq!(removed.reclaimed, 0);
    service.prepare("h.example/x").await.unwrap();
}

/// The sandbox holds even when the store's own directory leads elsewhere.
#[tokio::test]
async fn nothing_is_written_outside() {
    let service = Service::start();
    let outside = tempfile::tempdir().unwrap();
    let image = Image::new(&host(), &[layer(&[("a", b"1")])]);
    let archive = write(&service, "app.tar", &image.archive("app:1"));
    service.load(&archive).await.unwrap();
    std::fs::remove_dir(service.images().join("erofs")).unwrap();
    std::os::unix::fs::symlink(outside.path(), service.images().join("erofs")).unwrap();
    let error = service.prepare("app:1").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PermissionDenied, "{error}");
}
