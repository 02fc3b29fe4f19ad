//! `system logs --otlp` against a collector: a small HTTP server in Python, which is busy at first.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

/// Prints its port, then each request's path, type and body in one line; refuses the first.
const COLLECTOR: &str = r#"
import http.server, sys
codes = [int(code) for code in sys.argv[1:]]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print(self.path, self.headers["Content-Type"], body.decode(), flush=True)
        self.send_response(codes.pop(0) if len(codes) > 1 else codes[0])
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"#;

struct Collector {
    server: Child,
    lines: BufReader<ChildStdout>,
    url: String,
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Collector {
    /// Answers with these, the last one for ever.
    fn start(codes: &[&str]) -> Collector {
        let mut command = Command::new("python3");
        command.args(["-c", COLLECTOR]).args(codes).stdout(Stdio::piped());
        let mut server = command.spawn().expect("python3");
        let mut lines = BufReader::new(server.stdout.take().expect("its output"));
        let mut port = String::new();
        lines.read_line(&mut port).expect("its port");
        Collector { server, lines, url: format!("http://127.0.0.1:{}", port.trim()) }
    }

    /// The body of the next request.
    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a request");
        let body = line.strip_prefix("/v1/logs application/json ").expect(&line);
        serde_json::from_str(body).expect("JSON")
    }
}

/// `container system logs` with an app root that has three lines.
fn logs(root: &std::path::Path, arguments: &[&str]) -> Command {
    let line = |level: &str, what: &str| {
        format!(
            r#"{{"timestamp":"2026-01-02T03:04:05Z","level":"{level}","message":"{what}","target":"a::b"}}"#
        )
    };
    let lines =
        [line("INFO", "one"), line("DEBUG", "hidden"), line("WARN", "two"), "no json".into()];
    std::fs::create_dir_all(root.join("logs")).expect("a folder");
    std::fs::write(root.join("logs/apiserver.log"), lines.join("\n") + "\n").expect("a log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_container"));
    command.env("CONTAINER_APP_ROOT", root).args(["system", "logs", "--last", "100000d"]);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn messages(body: &Value) -> Vec<&str> {
    fn list(value: &Value) -> std::slice::Iter<'_, Value> {
        value.as_array().expect("a list").iter()
    }
    list(&body["resourceLogs"])
        .flat_map(|one| list(&one["scopeLogs"]))
        .flat_map(|one| list(&one["logRecords"]))
        .map(|one| one["body"]["stringValue"].as_str().expect("text"))
        .collect()
}

#[test]
fn lines_reach_a_collector_that_was_busy() {
    let root = tempfile::tempdir().expect("a folder");
    let mut collector = Collector::start(&["503", "200"]);
    let url = collector.url.clone();
    let about = "process == 'container-apiserver' AND level != ''";
    let sent = logs(root.path(), &["--predicate", about, "--otlp", &url]).output().expect("it");
    assert_eq!(sent.status.code(), Some(0), "{sent:?}");
    assert!(sent.stdout.is_empty() && sent.stderr.is_empty(), "{sent:?}");
    let (refused, taken) = (collector.next(), collector.next());
    assert_eq!(messages(&refused), ["one", "two"]);
    assert_eq!(refused, taken, "the same again");
    let service = &taken["resourceLogs"][0]["resource"]["attributes"][0]["value"]["stringValue"];
    assert_eq!(service, "container-apiserver");
}

#[test]
fn lines_that_come_are_sent_too() {
    let root = tempfile::tempdir().expect("a folder");
    let mut collector = Collector::start(&["200"]);
    let url = collector.url.clone();
    let mut follower = logs(root.path(), &["-f", "--otlp", &url]).spawn().expect("it");
    assert_eq!(messages(&collector.next()), ["one", "two", "no json"]);
    let mut file = std::fs::File::options()
        .append(true)
        .open(root.path().join("logs/apiserver.log"))
        .expect("the log");
    std::io::Write::write_all(&mut file, b"more\n").expect("a line");
    assert_eq!(messages(&collector.next()), ["more"]);
    follower.kill().expect("it runs");
    follower.wait().expect("its end");
}

#[test]
fn a_collector_that_refuses_or_is_away_is_told() {
    let root = tempfile::tempdir().expect("a folder");
    let collector = Collector::start(&["400"]);
    let refused = logs(root.path(), &["--otlp", &collector.url]).output().expect("it");
    let url = collector.url.clone();
    drop(collector);
    let away = logs(root.path(), &["--otlp", &url]).output().expect("it");
    let wrong = logs(root.path(), &["--otlp", "https://a"]).output().expect("it");
    for (output, words) in
        [(refused, "400 Bad Request"), (away, "Connection refused"), (wrong, "begins with http://")]
    {
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(words) && text.trim_end().lines().count() == 1, "{text}");
    }
}
