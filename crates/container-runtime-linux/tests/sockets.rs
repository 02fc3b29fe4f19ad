//! Unix sockets between host and container, in each way of getting a VM.

#[expect(dead_code, reason = "other tests of this crate use the rest")]
mod harness;
#[expect(dead_code, reason = "other tests of this crate use the rest")]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use container_api::ErrorCode;
use container_api::types::{ContainerConfig, PublishSocket, SSH_AUTH_SOCK, Stdio};
use harness::{LIMIT, NONE, Run, Way, config, disks_with, output_pipe, process, read_all, tool};

const WAYS: [Way; 3] = [Way::Cold, Way::Template, Way::Spare];
const STDOUT: Stdio = Stdio { stdin: false, stdout: true, stderr: false };

/// A container with the program of `support/sock.c`.
async fn begin(way: Way, directory: tempfile::TempDir, config: ContainerConfig) -> Run {
    let program = directory.path().join("sock");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/sock.c");
    tool("cc", &["-static", "-O1", "-o", program.to_str().unwrap(), source.to_str().unwrap()]);
    disks_with(directory.path(), &[&program]);
    let run = Run::begin_in(way, directory, config).await;
    run.start(NONE, Vec::new()).await.unwrap();
    run
}

async fn exec(run: &Run, id: &str, script: &str) -> String {
    let (out, end) = output_pipe();
    run.exec(id, process(script), STDOUT, vec![end]).await.unwrap();
    let out = String::from_utf8(read_all(out).await).unwrap();
    let record = run.wait(id).await.unwrap();
    assert_eq!(record.exit_code, 0, "{script}: {out}");
    out
}

fn patient(stream: &UnixStream) {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
}

#[tokio::test]
async fn a_published_socket_leads_to_the_programs() {
    for way in WAYS {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("app.sock");
        let mut config = config("sleep 1000");
        config.published_sockets = vec![PublishSocket {
            host_path: place.clone(),
            container_path: "/tmp/app.sock".into(),
        }];
        let run = begin(way, directory, config).await;
        // Nobody listens yet.
        let mut early = UnixStream::connect(&place).unwrap();
        patient(&early);
        assert_eq!(early.read(&mut [0]).unwrap(), 0);
        let (mut out, end) = output_pipe();
        run.exec("echo", process("exec sock echo /tmp/app.sock"), STDOUT, vec![end]).await.unwrap();
        let mut line = [0; 10];
        out = tokio::task::spawn_blocking(move || {
            out.read_exact(&mut line).unwrap();
            out
        })
        .await
        .unwrap();
        // Several at once, small and large; the answer comes at the end of what is said.
        let clients: Vec<_> = [0, 1, 100, 3 << 20, 1 << 20]
            .into_iter()
            .map(|length: usize| {
                let place = place.clone();
                std::thread::spawn(move || {
                    let stream = UnixStream::connect(place).unwrap();
                    patient(&stream);
                    let said: Vec<u8> = (0..length).map(|i| ((i * 7) >> 3) as u8).collect();
                    (&stream).write_all(&said).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                    let mut heard = Vec::new();
                    (&stream).read_to_end(&mut heard).unwrap();
                    assert!(heard == said, "{length} bytes");
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        // A client that goes in the middle disturbs nobody.
        drop(UnixStream::connect(&place).unwrap());
        run.stop(0).await;
        drop(out);
        let end = Instant::now() + LIMIT;
        while place.exists() {
            assert!(Instant::now() < end, "the socket stays behind");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[tokio::test]
async fn a_socket_in_anothers_place_fails_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("app.sock");
    let _other = UnixListener::bind(&place).unwrap();
    let mut config = config("sleep 1000");
    let container_path = "/tmp/app.sock".into();
    config.published_sockets = vec![PublishSocket { host_path: place.clone(), container_path }];
    harness::disks(directory.path());
    let run = Run::begin_in(Way::Cold, directory, config).await;
    let error = run.start(NONE, Vec::new()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists);
    assert!(error.message.contains("app.sock"), "{error}");
    UnixStream::connect(&place).expect("the other one is still there");
}

/// An agent that knows `key`, and notes all that it is asked.
struct Agent {
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Agent {
    fn at(place: &Path, key: u8) -> Agent {
        let listener = UnixListener::bind(place).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let notes = heard.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, notes) = (stream.unwrap(), notes.clone());
                std::thread::spawn(move || {
                    loop {
                        let mut length = [0; 4];
                        match stream.read_exact(&mut length) {
                            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return,
                            outcome => outcome.unwrap(),
                        }
                        let mut message = vec![0; u32::from_be_bytes(length) as usize];
                        stream.read_exact(&mut message).unwrap();
                        // It does whatever it is asked.
                        let kind = match message[0] {
                            11 => 12,
                            13 => 14,
                            _ => 6,
                        };
                        notes.lock().unwrap().push(message);
                        stream.write_all(&[0, 0, 0, 2, kind, key]).unwrap();
                    }
                });
            }
        });
        Agent { heard }
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

const LIST: &str = "000000010b";
const LISTED_BY_1: &str = "000000020c01";
const LISTED_BY_2: &str = "000000020c02";
/// Key `k`, data `d`.
const SIGN: &str = "0000000f0d000000016b000000016400000000";
const SIGNED: &str = "000000020e01";
const FAILURE: &str = "0000000105";

fn link(directory: &Path, agent: &Path) {
    let place = directory.join("ssh-agent");
    let _ = std::fs::remove_file(&place);
    std::os::unix::fs::symlink(agent, place).unwrap();
}

#[tokio::test]
async fn the_agent_lists_and_signs_and_does_nothing_else() {
    for way in WAYS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let [first, second] = ["one.sock", "two.sock"].map(|name| path.join(name));
        let agent = Agent::at(&first, 1);
        link(&path, &first);
        // It is there from the first moment on, for every user.
        let talk = format!("sock talk {SSH_AUTH_SOCK}");
        let mut config =
            config(&format!("{talk} {LIST} > /tmp/first; chmod 644 /tmp/first; sleep 1000"));
        config.ssh = true;
        let run = begin(way, directory, config).await;
        let seen =
            exec(&run, "first", "until [ -s /tmp/first ]; do sleep 0.1; done; cat /tmp/first");
        assert_eq!(seen.await, LISTED_BY_1);
        assert_eq!(agent.heard(), [[11]]);
        assert_eq!(exec(&run, "sign", &format!("{talk} {SIGN}")).await, SIGNED);
        assert_eq!(agent.heard().len(), 1);
        // Add an identity, remove all, lock, a smart card's, an extension: none is heard of.
        for (at, kind) in [17, 25, 18, 19, 22, 23, 20, 21, 26, 27].into_iter().enumerate() {
            let request = format!("00000002{kind:02x}00");
            let answer = exec(&run, &format!("no{at}"), &format!("{talk} {request}{LIST}")).await;
            assert_eq!(answer, format!("{FAILURE}{LISTED_BY_1}"), "kind {kind}");
            assert_eq!(agent.heard(), [[11]]);
        }
        // A length that can't be: the end.
        assert_eq!(exec(&run, "long", &format!("{talk} 7fffffff0b")).await, "");
        // Another agent is followed at once; one that is gone is a refusal.
        let other = Agent::at(&second, 2);
        link(&path, &second);
        assert_eq!(exec(&run, "other", &format!("{talk} {LIST}")).await, LISTED_BY_2);
        assert_eq!((agent.heard().len(), other.heard().len()), (0, 1));
        link(&path, Path::new("/nowhere/agent"));
        assert_eq!(exec(&run, "gone", &format!("{talk} {LIST}")).await, FAILURE);
        run.stop(0).await;
    }
}
