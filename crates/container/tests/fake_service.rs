//! The program against a service that only pretends: exit codes, streams, cancellation.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use container_api::apiserver::{Created, PrunedSystem, Request, SOCKET};
use container_api::trace::{Trace, now_ns};
use container_api::types::{ContainerStats, DiskUsage, ExitRecord, Timestamp};
use container_api::varlink::{Reply, Responder, Service, serve};
use container_api::{ApiError, ErrorCode, Result};

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);

/// Whose arguments say what it pretends: `echo CODE`, `hang`, `missing`, `forbidden`, `panic`.
#[derive(Default)]
struct Fake {
    arguments: Mutex<Vec<String>>,
    seen: Mutex<Vec<String>>,
    ended: tokio::sync::Notify,
    looks: Mutex<u64>,
}

impl Fake {
    fn argument(&self, index: usize) -> String {
        self.arguments.lock().unwrap().get(index).cloned().unwrap_or_default()
    }

    fn saw(&self, what: impl Into<String>) {
        self.seen.lock().unwrap().push(what.into());
    }

    /// Copies the input to the output, and says something on the error output.
    fn play(self: &Arc<Self>, fds: Vec<OwnedFd>) {
        let fake = self.clone();
        std::thread::spawn(move || {
            let mut files: Vec<File> = fds.into_iter().map(File::from).collect();
            let mut error = files.pop().unwrap();
            let mut output = files.pop().unwrap();
            let mut bytes = b"no input".to_vec();
            if let Some(mut input) = files.pop() {
                bytes.clear();
                input.read_to_end(&mut bytes).unwrap();
            }
            // The record may well be there before the last of the output.
            fake.ended.notify_one();
            std::thread::sleep(Duration::from_millis(50));
            output.write_all(&bytes).unwrap();
            error.write_all(b"to stderr").unwrap();
        });
    }

    fn record(&self) -> ExitRecord {
        let (exit_code, reason) = match self.argument(0).as_str() {
            "panic" => (125, "guest kernel panic: \u{1b}[31mbad"),
            _ => (self.argument(1).parse().unwrap(), "exited"),
        };
        ExitRecord {
            exit_code,
            signal: None,
            out_of_memory: false,
            stop_requested: false,
            out_of_memory_kills: Vec::new(),
            reason: reason.into(),
            exited_date: Timestamp::now(),
        }
    }
}

/// What the container uses at each look: half a CPU's time.
fn row(look: u64) -> ContainerStats {
    ContainerStats {
        id: "box\u{7}".into(),
        memory_usage_bytes: 1 << 20,
        memory_limit_bytes: 1 << 30,
        host_memory_bytes: 1 << 25,
        cpu_usage_usec: look * 500_000,
        sampled_at_ns: look * 1_000_000_000,
        network_rx_bytes: None,
        network_tx_bytes: None,
        block_read_bytes: 0,
        block_write_bytes: 0,
        num_processes: 2,
    }
}

struct Shared(Arc<Fake>);

impl Service for Shared {
    type Request = Request;

    async fn call(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        responder: &Responder,
    ) -> Result<Reply> {
        let fake = &self.0;
        match request {
            Request::Create(options) => {
                let words = options.process.arguments.iter();
                *fake.arguments.lock().unwrap() =
                    words.map(|a| a.to_string_lossy().into_owned()).collect();
                Reply::new(&Created { id: "box".into(), warnings: vec!["odd\n".into()] })
            }
            Request::Start { trace: true, .. } => {
                let mut fds = fds;
                let trace = Trace::new(fds.pop().unwrap(), "helper");
                trace.span("boot", now_ns());
                if fake.argument(0) == "missing" {
                    return Err(ApiError::new(ErrorCode::ProgramNotFound, "no 'missing'"));
                }
                fake.play(fds);
                Reply::done()
            }
            Request::Stats { ids } => {
                let mut looks = fake.looks.lock().unwrap();
                *looks += 1;
                if ids.iter().any(|id| id == "gone") || (!ids.is_empty() && *looks > 3) {
                    return Err(ApiError::new(ErrorCode::NotFound, "no container 'gone'"));
                }
                Reply::new(&vec![row(*looks)])
            }
            Request::Update { id, cpus, memory_in_bytes } => {
                fake.saw(format!("update {id} {cpus:?} {memory_in_bytes:?}"));
                match id.as_str() {
                    "small" => Err(ApiError::invalid("the VM has 1 CPU")),
                    _ => Reply::done(),
                }
            }
            Request::DiskUsage => Reply::new(&DiskUsage::default()),
            Request::PruneSystem => {
                Reply::new(&PrunedSystem { templates: 1, spares: 2, reclaimed: 3 << 20 })
            }
            Request::Start { .. } => match fake.argument(0).as_str() {
                "missing" => Err(ApiError::new(ErrorCode::ProgramNotFound, "no 'missing'")),
                "forbidden" => Err(ApiError::new(ErrorCode::ProgramNotExecutable, "forbidden")),
                "hang" => {
                    fake.saw("start");
                    responder.hung_up().await;
                    fake.saw("hung up");
                    Reply::done()
                }
                _ => {
                    fake.play(fds);
                    Reply::done()
                }
            },
            Request::Wait { .. } => {
                tokio::select! {
                    () = fake.ended.notified() => Reply::new(&fake.record()),
                    () = responder.hung_up() => Reply::done(),
                }
            }
            Request::Signal { signal, .. } => {
                fake.saw(signal);
                fake.ended.notify_one();
                Reply::done()
            }
            Request::Delete { force, .. } => {
                fake.saw(format!("delete {force}"));
                Reply::done()
            }
            other => Err(ApiError::invalid(format!("{other:?}"))),
        }
    }
}

fn start_service(root: &Path) -> Arc<Fake> {
    let fake = Arc::new(Fake::default());
    let listener = container_api::socket::bind(root, SOCKET).unwrap();
    listener.set_nonblocking(false).unwrap();
    let shared = fake.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let service = Arc::new(Shared(shared.clone()));
            std::thread::spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let _ = runtime.block_on(serve(service, stream));
            });
        }
    });
    fake
}

fn container(root: &Path, words: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_container"))
        .args(words)
        .env("CONTAINER_APP_ROOT", root)
        .env("DOCKER_CONFIG", root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs it with `input`; the exit code, and what it said.
fn run(root: &Path, words: &[&str], input: &[u8]) -> (i32, Vec<u8>, String) {
    let mut child = container(root, words);
    // One that does not read its input may be gone before it is written.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = finish(child);
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), output.stdout, said)
}

fn finish(mut child: Child) -> Output {
    let end = Instant::now() + DEADLINE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("it hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn streams_are_whole_and_the_exit_code_is_the_programs() {
    let root = tempfile::tempdir().unwrap();
    start_service(root.path());
    // Within what pipes hold: the output is looked at after the end.
    let bytes: Vec<u8> = (0..60_000u32).map(|i| (i * 7) as u8).collect();
    let (code, output, said) = run(root.path(), &["run", "-i", "img", "echo", "42"], &bytes);
    assert_eq!((code, said.as_str()), (42, "Warning: odd\nto stderr"));
    assert!(output == bytes);
    let (code, output, _) = run(root.path(), &["run", "img", "echo", "0"], b"unread");
    assert_eq!((code, output), (0, b"no input".to_vec()));
}

#[test]
fn failures_have_dockers_codes_and_one_line() {
    let root = tempfile::tempdir().unwrap();
    start_service(root.path());
    let run = |words: &[&str]| {
        let (code, output, said) = run(root.path(), words, b"");
        assert!(output.is_empty() || words[0] == "run");
        (code, said.lines().last().unwrap_or_default().to_owned())
    };
    assert_eq!(run(&["run", "img", "missing"]), (127, "Error: no 'missing'".into()));
    assert_eq!(run(&["run", "img", "forbidden"]), (126, "Error: forbidden".into()));
    let (code, said) = run(&["run", "img", "panic"]);
    assert_eq!(code, 125);
    assert!(said.ends_with("Error: guest kernel panic: \\u{1b}[31mbad"), "{said}");
    assert_eq!(run(&["run", "--nonsense", "img"]).0, 125);
    assert_eq!(run(&["run", "-it", "img"]), (125, "Error: the input device is not a TTY".into()));
    assert_eq!(run(&["--app-root", "/nonexistent", "list"]).0, 125);
}

#[test]
fn an_interrupt_cancels_a_start_and_removes_the_container() {
    let root = tempfile::tempdir().unwrap();
    let fake = start_service(root.path());
    let child = container(root.path(), &["run", "img", "hang"]);
    let seen = |what: &str| fake.seen.lock().unwrap().iter().any(|s| s == what);
    let end = Instant::now() + DEADLINE;
    while !seen("start") {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(finish(child).status.code(), Some(130));
    while !seen("hung up") {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(seen("delete true"));
}

#[test]
fn stats_show_one_moment_or_go_on_until_they_are_interrupted() {
    let root = tempfile::tempdir().unwrap();
    let fake = start_service(root.path());
    let shown = |words: &[&str]| {
        *fake.looks.lock().unwrap() = 0;
        let (code, output, said) = run(root.path(), words, b"");
        (code, String::from_utf8(output).unwrap() + &said)
    };
    let (code, table) = shown(&["stats", "--no-stream"]);
    let line = table.lines().nth(1).unwrap();
    assert_eq!(code, 0);
    assert!(line.starts_with("box\\u{7}") && line.contains("50.00%"), "{table}");
    let (code, json) = shown(&["stats", "--format", "json"]);
    assert!(code == 0 && json.contains("\"cpuUsageUsec\":500000"), "{json}");
    let missing = (125, "Error: no container 'gone'\n".to_owned());
    assert_eq!(shown(&["stats", "--no-stream", "gone"]), missing);
    // Streaming ends with the last of the containers named.
    let (code, tables) = shown(&["stats", "box"]);
    assert_eq!((code, tables.matches("Container ID").count()), (0, 4), "{tables}");
    assert!(!tables.contains('\u{1b}'), "{tables}");

    let mut child = container(root.path(), &["stats"]);
    let mut first = [0; 12];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(finish(child).status.code(), Some(0));
}

#[test]
fn limits_usage_and_prune() {
    let root = tempfile::tempdir().unwrap();
    let fake = start_service(root.path());
    let run = |words: &[&str]| {
        let (code, output, said) = run(root.path(), words, b"");
        (code, String::from_utf8(output).unwrap(), said)
    };
    let (code, output, said) = run(&["update", "-m", "64m", "box", "small"]);
    let refusal = "Error: the VM has 1 CPU\n";
    assert_eq!((code, output.as_str(), said.as_str()), (125, "box\n", refusal));
    assert!(fake.seen.lock().unwrap().contains(&"update box None Some(67108864)".to_owned()));
    let (code, table, _) = run(&["system", "df"]);
    assert!(code == 0 && table.contains("Templates"), "{table}");
    let (code, output, _) = run(&["system", "prune"]);
    let removed = "Removed 1 template and 2 spares\nReclaimed 3.0 MB in disk space\n";
    assert_eq!((code, output.as_str()), (0, removed));
}

#[test]
fn a_trace_has_the_spans_of_all_and_is_written_when_the_start_fails() {
    let root = tempfile::tempdir().unwrap();
    let fake = start_service(root.path());
    let path = root.path().join("trace.json");
    let file = path.to_str().unwrap();
    for (program, expected) in [("echo", 7), ("missing", 127)] {
        let (code, ..) = run(root.path(), &["run", "--trace", file, "img", program, "7"], b"");
        assert_eq!(code, expected);
        let text = std::fs::read_to_string(&path).unwrap();
        for word in ["\"traceEvents\"", "process_name", "connect", "create", "helper", "boot"] {
            assert!(text.contains(word), "{program}: no {word} in {text}");
        }
        std::fs::remove_file(&path).unwrap();
    }
    fake.arguments.lock().unwrap().clear();
    let words = ["run", "--trace", "/nonexistent/trace", "img", "echo", "0"];
    let (code, output, said) = run(root.path(), &words, b"");
    assert_eq!((code, output.is_empty()), (125, true));
    assert!(said.starts_with("Error: --trace /nonexistent/trace"), "{said}");
    assert!(fake.arguments.lock().unwrap().is_empty(), "something was created");
}
