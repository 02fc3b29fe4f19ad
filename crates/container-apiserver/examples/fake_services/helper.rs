//! `container-runtime-linux run`, and what a spare becomes.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use container_api::output_log::{LogLimits, LogWriter, OutputStream};
use container_api::paths::container_files as names;
use container_api::runtime::{self, Phase, State, Usage};
use container_api::trace::{Trace, now_ns};
use container_api::types::*;
use container_api::varlink::serve;
use container_api::varlink::{Reply, Responder, Service};
use container_api::{ApiError, ErrorCode, socket};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::template;

#[derive(Clone)]
struct Now {
    phase: Phase,
    started: Option<Timestamp>,
    exit: Option<ExitRecord>,
}

/// The helper of one container.
pub struct Helper {
    directory: PathBuf,
    behaviour: String,
    hypervisor: Child,
    origin: VmOrigin,
    shape: Resources,
    limits: Mutex<Option<Resources>>,
    listener: Mutex<Option<UnixListener>>,
    now: watch::Sender<Now>,
    _lock: File,
}

/// A process that dies with this one.
pub fn hypervisor() -> std::io::Result<Child> {
    let mut command = Command::new("sleep");
    command.arg("600");
    let parent_dies = || {
        use rustix::process::{Signal, set_parent_process_death_signal};
        Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
    };
    // SAFETY: prctl is async-signal-safe and touches no memory.
    unsafe { command.pre_exec(parent_dies) };
    command.spawn()
}

impl Helper {
    /// Serves the container in `directory` until it has ended.
    pub async fn run(directory: &Path, taps: usize) -> Result<()> {
        std::fs::write(directory.join("taps"), crate::inherited_taps(taps)?.join(" "))?;
        let lock = template::lock(directory)?;
        let spec = template::spec(directory)?;
        anyhow::ensure!(spec.upper_disk.metadata()?.len() == container_api::paths::DISK_LEN);
        let origin = match &spec.template {
            Some(files) => {
                template::restore(&spec, files)?;
                VmOrigin::Template
            }
            None => VmOrigin::Cold,
        };
        let helper = Helper::new(directory, lock, hypervisor()?, origin)?;
        helper.bind()?;
        helper.serve().await
    }

    /// One that holds the container's lock.
    pub fn new(
        directory: &Path,
        lock: File,
        hypervisor: Child,
        origin: VmOrigin,
    ) -> Result<Arc<Helper>> {
        let config: ContainerConfig =
            serde_json::from_slice(&std::fs::read(directory.join(names::CONFIG))?)?;
        let behaviour = config.labels.get("fake").cloned().unwrap_or("sleep".into());
        // As the real one it boots where it can't restore.
        let boots = behaviour == "no-restore" && origin == VmOrigin::Template;
        let origin = if boots { VmOrigin::Cold } else { origin };
        Ok(Arc::new(Helper {
            directory: directory.to_owned(),
            behaviour,
            hypervisor,
            origin,
            shape: template::spec(directory)?.resources,
            limits: Mutex::new(None),
            listener: Mutex::new(None),
            now: watch::Sender::new(Now { phase: Phase::Booting, started: None, exit: None }),
            _lock: lock,
        }))
    }

    /// From now on it can be reached.
    pub fn bind(&self) -> Result<()> {
        let listener = UnixListener::from_std(socket::bind(&self.directory, names::SOCKET)?)?;
        *self.listener.lock().expect("whole") = Some(listener);
        Ok(())
    }

    /// Serves until the container has ended.
    pub async fn serve(self: Arc<Self>) -> Result<()> {
        let listener = self.listener.lock().expect("whole").take().context("bound")?;
        let ended = self.clone();
        let leave = async move {
            ended.until(|now| now.exit.is_some()).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
        };
        let accept = async {
            loop {
                let stream = listener.accept().await?.0.into_std()?;
                tokio::spawn(serve(self.clone(), stream));
            }
        };
        tokio::select! {
            served = accept => served,
            () = leave => Ok(()),
        }
    }

    async fn until(&self, condition: impl FnMut(&Now) -> bool) -> Now {
        self.now.subscribe().wait_for(condition).await.expect("alive").clone()
    }

    fn end(&self, exit_code: u8, signal: Option<i32>, reason: &str) {
        let exit = ExitRecord {
            exit_code,
            signal,
            out_of_memory: false,
            stop_requested: false,
            out_of_memory_kills: Vec::new(),
            reason: reason.into(),
            exited_date: Timestamp::now(),
        };
        let text = serde_json::to_vec(&exit).expect("encodes");
        let _ = std::fs::write(self.directory.join(names::EXIT), text);
        self.now.send_modify(|now| {
            now.phase = Phase::Ended;
            now.exit.get_or_insert(exit);
        });
    }

    async fn start(&self, fds: Vec<OwnedFd>) -> container_api::Result<()> {
        match self.behaviour.as_str() {
            "die" => {
                use rustix::process::{Signal, getpid, kill_process};
                let _ = kill_process(getpid(), Signal::KILL);
            }
            "slow" => std::future::pending().await,
            "no-restore" if self.origin == VmOrigin::Spare => {
                self.end(125, None, "not restored");
                return Err(ApiError::new(ErrorCode::Unavailable, "not restored"));
            }
            "refuse" => {
                self.end(127, None, "no such program");
                return Err(ApiError::new(ErrorCode::ProgramNotFound, "no such program"));
            }
            _ => {}
        }
        self.now.send_modify(|now| {
            now.phase = Phase::Running;
            now.started = Some(Timestamp::now());
        });
        let limits = LogLimits { max_size: 1 << 20, max_files: 2 };
        let mut log = LogWriter::open(&self.directory.join(names::OUTPUT), limits)?;
        log.write(OutputStream::Stdout, b"hello\n", Timestamp::now())?;
        std::fs::write(self.directory.join(names::BOOT_LOG), "booted\n")?;
        for fd in fds.into_iter().skip(1).take(1) {
            File::from(fd).write_all(b"hello\n")?;
        }
        if let Some(code) = self.behaviour.strip_prefix("exit=") {
            self.end(code.parse().expect("a code"), None, "exited");
        }
        Ok(())
    }
}

impl Service for Helper {
    type Request = runtime::Request;

    async fn call(
        &self,
        request: runtime::Request,
        fds: Vec<OwnedFd>,
        responder: &Responder,
    ) -> container_api::Result<Reply> {
        use runtime::Request as R;
        let now = self.now.borrow().clone();
        match request {
            R::WarmUp | R::Adopt { .. } => {
                Err(ApiError::new(ErrorCode::InvalidState, "not a spare"))
            }
            R::Reclaim => Reply::done(),
            R::Update { resources } => {
                if resources.memory_in_bytes > self.shape.memory_in_bytes {
                    return Err(ApiError::invalid("more than the VM has"));
                }
                *self.limits.lock().expect("whole") = Some(resources);
                Reply::done()
            }
            R::State => Reply::new(&State {
                phase: now.phase,
                started_date: now.started,
                exit: now.exit,
                pid: std::process::id() as i32,
                hypervisor_pid: Some(self.hypervisor.id() as i32),
                resources: *self.limits.lock().expect("whole"),
                vm_origin: Some(self.origin),
                out_of_memory_kills: Vec::new(),
            }),
            R::Start { trace, .. } => {
                let mut fds = fds;
                let trace = trace.then(|| fds.pop()).flatten();
                if let Some(file) = trace {
                    Trace::new(file, "fake").span("start", now_ns());
                }
                tokio::select! {
                    started = self.start(fds) => started?,
                    _ = self.until(|now| now.exit.is_some()) => {
                        return Err(ApiError::new(ErrorCode::Unavailable, "it has ended"));
                    }
                }
                Reply::done()
            }
            R::Wait { process_id } if process_id != runtime::INIT_PROCESS => {
                Reply::new(&container_exit(5))
            }
            R::Wait { .. } => tokio::select! {
                now = self.until(|now| now.exit.is_some()) => Reply::new(&now.exit),
                () = responder.hung_up() => Err(ApiError::new(ErrorCode::Cancelled, "gone")),
            },
            R::Stop { signal, .. } => {
                if self.behaviour == "deaf" {
                    std::future::pending::<()>().await;
                }
                self.end(128 + signal as u8, Some(signal), "stopped");
                Reply::new(&self.now.borrow().exit)
            }
            R::Signal { signal, .. } => {
                self.end(128 + signal as u8, Some(signal), "killed");
                Reply::done()
            }
            R::Abort => {
                self.end(125, None, "given up");
                Reply::done()
            }
            R::Exec { process, .. } => {
                for fd in fds {
                    File::from(fd).write_all(process.executable.as_bytes())?;
                }
                Reply::done()
            }
            R::Archive { .. } => Err(ApiError::new(ErrorCode::Unsupported, "the fake can't")),
            R::Attach { .. } | R::Resize { .. } => Reply::done(),
            R::Stats => Reply::new(&Usage {
                pids: 3,
                memory_bytes: 5 << 20,
                cpu_usec: 7,
                host_memory_bytes: 11 << 20,
                ..Usage::default()
            }),
        }
    }
}

fn container_exit(exit_code: u8) -> ExitRecord {
    ExitRecord {
        exit_code,
        signal: None,
        out_of_memory: false,
        stop_requested: false,
        out_of_memory_kills: Vec::new(),
        reason: "exited".into(),
        exited_date: Timestamp::now(),
    }
}
