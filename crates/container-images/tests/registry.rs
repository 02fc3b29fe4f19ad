//! Pulling: from a real registry, through a proxy that cuts, and from one that lies or is silent.

mod harness;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use container_api::ErrorCode;
use container_api::images::{Credentials, ImageSummary, Pull, Request, Unpacked};
use container_api::types::Platform;
use harness::{Image, Service, layer, noise, run, sha256};

/// docker-registry on a port of its own.
struct Registry {
    directory: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Registry {
    fn start() -> Registry {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:{port}\n",
            directory.path().join("data").display()
        );
        let path = directory.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry must be installed");
        let end = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "the registry does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        Registry { directory, port, child }
    }

    fn push(&self, image: &Image, name: &str) {
        let archive = self.directory.path().join("push.tar");
        std::fs::write(&archive, image.archive(name)).unwrap();
        let source = format!("oci-archive:{}", archive.display());
        let target = format!("docker://127.0.0.1:{}/{name}", self.port);
        run("skopeo", &["copy", "-q", "--dest-tls-verify=false", &source, &target]);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn image(seed: u64) -> Image {
    let layers =
        [layer(&[("one", &noise(3 << 20, seed))]), layer(&[("two", &noise(1 << 20, seed + 1))])];
    Image::new(&Platform::host().architecture, &layers)
}

fn pull(port: u16, name: &str) -> Request {
    Request::Pull(Pull { reference: format!("127.0.0.1:{port}/{name}"), ..Pull::default() })
}

#[tokio::test]
async fn from_a_real_registry() {
    let (registry, service) = (Registry::start(), Service::start());
    registry.push(&image(3), "team/app:1");
    let pulled: ImageSummary = service.call(&pull(registry.port, "team/app:1")).await.unwrap();
    assert_eq!(pulled.reference, format!("127.0.0.1:{}/team/app:1", registry.port));
    let unpacked = service.prepare(&pulled.reference).await.unwrap();
    run("fsck.erofs", &[unpacked.disk.to_str().unwrap()]);
    // By digest, and again: nothing new comes.
    let before = service.content();
    let by_digest = format!("team/app@{}", pulled.descriptor.digest);
    let again: ImageSummary = service.call(&pull(registry.port, &by_digest)).await.unwrap();
    assert_eq!(again.descriptor, pulled.descriptor);
    assert_eq!(service.content(), before);
    let error =
        service.call::<ImageSummary>(&pull(registry.port, "team/nothing")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound, "{error}");
    // What is not here is fetched when it should run.
    registry.push(&image(5), "team/other:1");
    service.prepare(&format!("127.0.0.1:{}/team/other:1", registry.port)).await.unwrap();
    let request = Request::Pull(Pull {
        reference: pulled.reference.clone(),
        platform: Platform::parse("linux/riscv64"),
        ..Pull::default()
    });
    let error = service.call::<ImageSummary>(&request).await.unwrap_err();
    assert!(error.message.contains("linux/riscv64"), "{error}");
}

/// Passes connections on to `port`; those that bring much are cut, `cuts` times.
fn cutting_proxy(port: u16, cuts: u64) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    let left = Arc::new(AtomicU64::new(cuts));
    let (count, through) = (left.clone(), Arc::new(AtomicU64::new(0)));
    let counted = through.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut up_from, mut up_to) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut up_from, &mut up_to));
            let (count, through) = (count.clone(), counted.clone());
            std::thread::spawn(move || relay(server, client, &count, &through));
        }
    });
    (own, through)
}

fn relay(mut server: TcpStream, mut client: TcpStream, cuts: &AtomicU64, through: &AtomicU64) {
    let (mut buffer, mut passed) = (vec![0; 64 << 10], 0);
    while let Ok(n @ 1..) = server.read(&mut buffer) {
        if client.write_all(&buffer[..n]).is_err() {
            break;
        }
        passed += n;
        through.fetch_add(n as u64, Relaxed);
        let cut = passed > 512 << 10
            && cuts.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        if cut {
            break;
        }
    }
    // The other side may have closed it already.
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_was() {
    let (registry, service) = (Registry::start(), Service::start());
    registry.push(&image(7), "app:1");
    let (port, through) = cutting_proxy(registry.port, 4);
    let pulled: ImageSummary = service.call(&pull(port, "app:1")).await.unwrap();
    service.prepare(&pulled.reference).await.unwrap();
    // Four cuts of half a MiB each: had it begun anew, much more would have come.
    let bytes = through.load(Relaxed);
    assert!(bytes < pulled.size + (1 << 20), "{bytes} of {}", pulled.size);
    assert!(!service.content().iter().any(|f| f.contains("ingest")));
}

/// A registry of our own making: answers by path; `None` is silence.
struct Fake {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

type Answer = Option<(u16, Vec<(&'static str, String)>, Vec<u8>)>;
type Answers = HashMap<String, Answer>;

impl Fake {
    fn start(answers: impl FnOnce(u16) -> Answers) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = Arc::new(answers(port));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (answers, log) = (answers.clone(), log.clone());
                std::thread::spawn(move || answer(client.unwrap(), &answers, &log));
            }
        });
        Fake { port, requests }
    }
}

fn answer(client: TcpStream, answers: &Answers, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(client.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if lines.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    log.lock().unwrap().push(head.clone());
    let target = head.split(' ').nth(1).unwrap();
    let path = target.split('?').next().unwrap();
    let authorized = head.to_ascii_lowercase().contains("authorization: bearer secret");
    let known = match authorized {
        true => answers.get(&format!("authorized {path}")).or(answers.get(path)),
        false => answers.get(path),
    };
    let not_found = Some((404, Vec::new(), b"{}".to_vec()));
    let Some((status, headers, body)) = known.unwrap_or(&not_found) else {
        std::thread::sleep(Duration::from_secs(120));
        return;
    };
    let mut text =
        format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let mut client = client;
    // The puller may refuse to read it all.
    let _ = client.write_all(text.as_bytes()).and_then(|()| client.write_all(body));
}

fn served(image: &Image) -> Answers {
    let mut answers = Answers::new();
    answers.insert("/v2/app/manifests/1".into(), Some((200, Vec::new(), image.manifest_bytes())));
    for blob in &image.blobs {
        answers.insert(
            format!("/v2/app/blobs/{}", sha256(blob)),
            Some((200, Vec::new(), blob.clone())),
        );
    }
    answers
}

#[tokio::test]
async fn lies_are_refused() {
    let service = Service::start();
    let good = || Image::new(&Platform::host().architecture, &[layer(&[("a", &noise(50_000, 5))])]);
    let image = good();
    let blob = format!("/v2/app/blobs/{}", sha256(&image.blobs[1]));
    let mut flipped = image.blobs[1].clone();
    flipped[100] ^= 1;
    let mut huge = b"{\"layers\":[],\"x\":\"".to_vec();
    huge.resize(5 << 20, b'x');
    let mut foreign = good();
    foreign.manifest["layers"][0]["mediaType"] =
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
    let mut many = good();
    many.manifest["layers"] = vec![many.manifest["layers"][0].clone(); 600].into();
    let manifest = |image: &Image| Some((200, Vec::new(), image.manifest_bytes()));
    let root = "/v2/app/manifests/1";
    let cases: Vec<(&str, &str, Answer, &str)> = vec![
        ("a flipped bit", &blob, Some((200, Vec::new(), flipped)), "digest mismatch"),
        ("too long a blob", &blob, Some((200, Vec::new(), noise(60_000, 1))), "more bytes"),
        ("a huge manifest", root, Some((200, Vec::new(), huge)), "4 MiB"),
        ("no manifest", root, Some((200, Vec::new(), b"<html>".to_vec())), "malformed"),
        ("schema 1", root, Some((200, Vec::new(), b"{\"fsLayers\":[]}".to_vec())), "schema 1"),
        ("a foreign layer", root, manifest(&foreign), "may not be distributed"),
        ("many layers", root, manifest(&many), "512 layers"),
        (
            "an odd message",
            root,
            Some((400, Vec::new(), b"{\"errors\":[{\"message\":\"\\u001b[31m\\n\"}]}".to_vec())),
            "\\u{1b}",
        ),
    ];
    for (what, path, lie, said) in cases {
        let mut answers = served(&image);
        answers.insert(path.into(), lie);
        let fake = Fake::start(|_| answers);
        let error = service.call::<ImageSummary>(&pull(fake.port, "app:1")).await.unwrap_err();
        assert!(error.message.contains(said) && !error.message.contains('\n'), "{what}: {error}");
    }
    let list: Vec<ImageSummary> = service.call(&Request::List).await.unwrap();
    assert!(list.is_empty());
}

#[tokio::test]
async fn tokens_and_passwords() {
    let service = Service::start();
    let image = Image::new(&Platform::host().architecture, &[layer(&[("a", b"x")])]);
    let fake = Fake::start(|port| {
        let challenge = format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s, t\"");
        let mut answers = Answers::new();
        for (path, answer) in served(&image) {
            answers.insert(format!("authorized {path}"), answer);
            answers.insert(
                path,
                Some((401, vec![("WWW-Authenticate", challenge.clone())], Vec::new())),
            );
        }
        answers.insert("/token".into(), Some((200, Vec::new(), br#"{"token":"secret"}"#.to_vec())));
        answers
    });
    let Request::Pull(mut request) = pull(fake.port, "app:1") else { unreachable!() };
    request.credentials = Some(Credentials { username: "me".into(), password: "pass".into() });
    service.call::<ImageSummary>(&Request::Pull(request)).await.unwrap();
    let requests = fake.requests.lock().unwrap().clone();
    let tokens: Vec<&String> = requests.iter().filter(|r| r.starts_with("GET /token")).collect();
    // One token serves them all; user and password went to the token's address alone.
    assert_eq!(tokens.len(), 1);
    assert!(tokens[0].contains("scope=repository%3Aapp%3Apull"), "{}", tokens[0]);
    let basic = "basic bwu6cgfzcw==";
    let with_password = requests.iter().filter(|r| r.to_ascii_lowercase().contains(basic)).count();
    assert_eq!(with_password, 1);
}

#[tokio::test]
async fn silence_ends_within_twenty_seconds_and_cancels_at_once() {
    let service = Service::start();
    let fake = Fake::start(|_| Answers::from([("/v2/app/manifests/1".to_owned(), None)]));
    let (port, start) = (fake.port, Instant::now());
    {
        let mut client = service.client();
        let request = pull(port, "app:1");
        let call = container_api::images::call::<ImageSummary>(&mut client, &request, &[], |_| {});
        assert!(tokio::time::timeout(Duration::from_millis(300), call).await.is_err());
    }
    let error = service.call::<ImageSummary>(&pull(port, "app:1")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Timeout, "{error}");
    assert!(start.elapsed() < Duration::from_secs(20));
    let start = Instant::now();
    let error = service.call::<ImageSummary>(&pull(free_port(), "app:1")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn an_index_brings_the_wanted_platform_alone() {
    let (registry, service) = (Registry::start(), Service::start());
    let images = ["amd64", "arm64"].map(|a| Image::new(a, &[layer(&[("arch", a.as_bytes())])]));
    for (image, name) in images.iter().zip(["one", "two"]) {
        registry.push(image, &format!("app:{name}"));
    }
    let index = serde_json::json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [images[0].descriptor("amd64"), images[1].descriptor("arm64"),
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": sha256(b"none"),
             "size": 4, "platform": {"os": "unknown", "architecture": "unknown"}}]});
    let entries = [images[0].manifest_bytes(), images[1].manifest_bytes()];
    let index = serde_json::to_vec(&index).unwrap();
    // The real registry wants every entry to exist, so a fake one serves this index.
    let mut answers = Answers::new();
    for image in &images {
        answers.extend(served(image));
    }
    for entry in entries {
        answers.insert(
            format!("/v2/app/manifests/{}", sha256(&entry)),
            Some((200, Vec::new(), entry)),
        );
    }
    answers.insert("/v2/app/manifests/1".into(), Some((200, Vec::new(), index)));
    let fake = Fake::start(|_| answers);
    for platform in ["linux/arm64", "linux/amd64"] {
        let pull = Pull {
            reference: format!("127.0.0.1:{}/app:1", fake.port),
            platform: Platform::parse(platform),
            ..Pull::default()
        };
        let unpacked: Unpacked = service.call(&Request::Prepare { pull }).await.unwrap();
        assert_eq!(unpacked.platform.to_string(), platform);
    }
}
