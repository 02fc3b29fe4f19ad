//! Commands with deadlines: nothing in a test may wait for ever.

use std::ffi::OsStr;
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::DEADLINE;

/// A command that is about to run.
pub struct Cmd {
    command: Command,
    shown: String,
    stdin: Option<Vec<u8>>,
    deadline: Duration,
}

impl Cmd {
    /// Any program.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let shown = Path::new(program.as_ref())
            .file_name()
            .unwrap_or(program.as_ref())
            .to_string_lossy()
            .into_owned();
        Self { command: Command::new(program), shown, stdin: None, deadline: DEADLINE }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.shown.push(' ');
        self.shown.push_str(&arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes a variable away.
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Runs in `folder`.
    pub fn current_dir(mut self, folder: impl AsRef<Path>) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// What the command reads; without it, nothing.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Another deadline than [`DEADLINE`].
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs to the end. Panics when the deadline passes.
    #[track_caller]
    pub fn run(mut self) -> Output {
        let stdin = self.stdin.take();
        let deadline = self.deadline;
        let mut running = self.spawn();
        let input = running.stdin.take();
        let feeder = std::thread::spawn(move || {
            if let (Some(mut input), Some(bytes)) = (input, stdin) {
                // The command may end before it has read everything.
                let _ = input.write_all(&bytes);
            }
        });
        let output = running.wait(deadline);
        let _ = feeder.join();
        output
    }

    /// Starts it, with its input and output in the test's hands.
    #[track_caller]
    pub fn spawn(mut self) -> Running {
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child =
            self.command.spawn().unwrap_or_else(|error| panic!("run {}: {error}", self.shown));
        let stdout = child.stdout.take().map(Collector::start);
        let stderr = child.stderr.take().map(Collector::start);
        Running {
            stdin: child.stdin.take(),
            child,
            shown: self.shown,
            stdout,
            stderr,
            started: Instant::now(),
        }
    }
}

/// A command that runs. Killed when dropped before its end.
pub struct Running {
    /// Its input, until closed or taken.
    pub stdin: Option<ChildStdin>,
    child: Child,
    shown: String,
    stdout: Option<Collector>,
    stderr: Option<Collector>,
    started: Instant,
}

impl Running {
    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(pid(self.child.id()), signal).expect("signal a child");
    }

    /// Ends it as Ctrl-C does.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Writes to its input.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("the input is closed");
        stdin.write_all(bytes).and_then(|()| stdin.flush()).expect("write to a child");
    }

    /// Closes its input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until its standard output holds `text`.
    #[track_caller]
    pub fn wait_for_stdout(&mut self, text: &str, deadline: Duration) {
        let end = Instant::now() + deadline;
        let collector = self.stdout.as_mut().expect("stdout is collected");
        while !contains(&collector.bytes, text.as_bytes()) {
            if !collector.receive(end) {
                let stdout = String::from_utf8_lossy(&collector.bytes).into_owned();
                let stderr = self.stderr.as_mut().map(|s| s.so_far()).unwrap_or_default();
                panic!(
                    "{}: no {text:?} within {deadline:?}\nstdout: {stdout}\nstderr: {stderr}",
                    self.shown
                );
            }
        }
    }

    /// Waits until its standard error holds `text`.
    #[track_caller]
    pub fn wait_for_stderr(&mut self, text: &str, deadline: Duration) {
        let end = Instant::now() + deadline;
        let collector = self.stderr.as_mut().expect("stderr is collected");
        while !contains(&collector.bytes, text.as_bytes()) {
            if !collector.receive(end) {
                let stderr = String::from_utf8_lossy(&collector.bytes).into_owned();
                panic!("{}: no {text:?} within {deadline:?}\nstderr: {stderr}", self.shown);
            }
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait for a child").is_none()
    }

    /// Waits for its end; kills it and panics when the deadline passes.
    #[track_caller]
    pub fn wait(mut self, deadline: Duration) -> Output {
        let end = self.started.max(Instant::now()) + deadline;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait for a child") {
                break status;
            }
            if Instant::now() > end {
                kill_group(&mut self.child);
                let stdout = self.stdout.as_mut().map(|s| s.so_far()).unwrap_or_default();
                let stderr = self.stderr.as_mut().map(|s| s.so_far()).unwrap_or_default();
                panic!(
                    "{} did not end within {deadline:?}\nstdout: {stdout}\nstderr: {stderr}",
                    self.shown
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let took = self.started.elapsed();
        // A process left behind could hold the pipes open for ever.
        let end = Instant::now() + Duration::from_secs(10);
        let collect = |collector: Option<Collector>| {
            let mut collector = collector.expect("collected once");
            assert!(collector.receive_all(end), "{}: output stays open", self.shown);
            collector.bytes
        };
        let (stdout, stderr) = (collect(self.stdout.take()), collect(self.stderr.take()));
        Output {
            command: std::mem::take(&mut self.shown),
            code: status.code(),
            signal: status.signal(),
            stdout,
            stderr,
            took,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            kill_group(&mut self.child);
        }
    }
}

fn kill_group(child: &mut Child) {
    let _ = kill_process_group(pid(child.id()), Signal::KILL);
    let _ = child.wait();
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(id.cast_signed()).expect("a process id")
}

/// Reads a stream in a thread, so that no pipe ever fills.
struct Collector {
    chunks: Receiver<Vec<u8>>,
    bytes: Vec<u8>,
    _thread: JoinHandle<()>,
}

impl Collector {
    fn start(mut from: impl Read + Send + 'static) -> Self {
        let (sender, chunks) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                if sender.send(buffer[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { chunks, bytes: Vec::new(), _thread: thread }
    }

    /// Waits for more; false when there is none in time or at all.
    fn receive(&mut self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        match self.chunks.recv_timeout(left) {
            Ok(chunk) => {
                self.bytes.extend_from_slice(&chunk);
                true
            }
            Err(_) => false,
        }
    }

    /// Waits for the end of the stream; false when it does not come in time.
    fn receive_all(&mut self, end: Instant) -> bool {
        while self.receive(end) {}
        matches!(self.chunks.try_recv(), Err(mpsc::TryRecvError::Disconnected))
    }

    fn so_far(&mut self) -> String {
        while let Ok(chunk) = self.chunks.try_recv() {
            self.bytes.extend_from_slice(&chunk);
        }
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}

/// How a command ended. The checks return it, so that they can be chained.
pub struct Output {
    /// What ran, for messages.
    pub command: String,
    /// The exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// Its complaints.
    pub stderr: Vec<u8>,
    /// From its start to its end.
    pub took: Duration,
}

impl Output {
    /// Its output as text, without the last newline.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches('\n').to_owned()
    }

    /// Its complaints as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Its output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}) from {self:?}"))
    }

    /// It must have ended with `code`.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code of {self:?}");
        self
    }

    /// It must have succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.code(0)
    }

    /// It must have failed with `code` and one clear line that holds `text`.
    #[track_caller]
    pub fn fails(self, code: i32, text: &str) -> Self {
        let errors = self.errors();
        assert_eq!(self.code, Some(code), "exit code of {self:?}");
        let lines = errors.trim_end_matches('\n').lines().count();
        assert_eq!(lines, 1, "one line, not {lines}: {self:?}");
        assert!(
            errors.to_lowercase().contains(&text.to_lowercase()),
            "no {text:?} in the message of {self:?}"
        );
        self
    }

    /// Its output must be `text` (and a newline).
    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        assert_eq!(self.text(), text, "output of {self:?}");
        self
    }

    /// Its output must hold `text`.
    #[track_caller]
    pub fn has(self, text: &str) -> Self {
        assert!(self.text().contains(text), "no {text:?} in the output of {self:?}");
        self
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shorten = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            match text.char_indices().nth(2000) {
                Some((at, _)) => format!("{}…", &text[..at]),
                None => text,
            }
        };
        write!(
            f,
            "`{}` (code {:?}, signal {:?}, {:?})\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.code,
            self.signal,
            self.took,
            shorten(&self.stdout),
            shorten(&self.stderr)
        )
    }
}
