//! The process from its first instruction to its exit code.

use std::process::ExitCode;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use container_api::config::Config;
use container_api::paths::{self, AppRoot};
use container_api::{Result, serve};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Args, USAGE};
use crate::audit::Audit;
use crate::daemon::{self, Side, Starter};
use crate::engine::Engine;
use crate::service::Apiserver;
use crate::{app_root, listen, log_file, networks, reconcile, relief, spare, template};

/// Every failure of ours.
const FAILURE: u8 = 125;
/// Threads that wait for the disk at once, and how long an idle one stays.
const BLOCKING_THREADS: usize = 16;
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Room for many callers and containers; more is asked for where the host allows it.
const OPEN_FILES: u64 = 16 << 10;

/// The whole program.
pub fn main() -> ExitCode {
    let args = match Args::parse(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(line) => return failure(&format!("{line} (see --help)")),
    };
    let (root, background) = match args {
        Args::Help => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Args::Version => {
            println!("container-apiserver {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Args::Serve { app_root, daemon } => (app_root, daemon),
    };
    match prepare(&root, background) {
        Ok(Prepared::Caller(Ok(()))) => ExitCode::SUCCESS,
        Ok(Prepared::Caller(Err(line))) => failure(&line),
        Ok(Prepared::Service(root, starter, passed)) => serve(root, starter, passed),
        Err(error) => failure(&error.message),
    }
}

fn failure(line: &str) -> ExitCode {
    eprintln!("container-apiserver: {}", container_api::escape::escape(line));
    ExitCode::from(FAILURE)
}

enum Prepared {
    Caller(std::result::Result<(), String>),
    Service(AppRoot, Starter, usize),
}

/// What must happen while the process has one thread.
fn prepare(root: &std::path::Path, background: bool) -> Result<Prepared> {
    let root = AppRoot::resolve(Some(root))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let passed = listen::passed();
    daemon::close_inherited(passed)?;
    app_root::prepare(&root)?;
    let mut starter = Starter::default();
    if background {
        match daemon::background(&root.logs().join(log_file::FILE))? {
            Side::Caller(told) => return Ok(Prepared::Caller(told)),
            Side::Service(told) => starter = told,
        }
    }
    Ok(Prepared::Service(root, starter, passed))
}

fn serve(root: AppRoot, mut starter: Starter, passed: usize) -> ExitCode {
    match try_serve(&root, &mut starter, passed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the service ends");
            match starter.failed(&error.message) {
                true => ExitCode::from(FAILURE),
                false => failure(&error.message),
            }
        }
    }
}

fn try_serve(root: &AppRoot, starter: &mut Starter, passed: usize) -> Result<()> {
    let lock = app_root::lock(root)?;
    let config = Config::load(&paths::config_file(root)?)?;
    log_file::init(&root.logs())?;
    // Whatever is named relative to here was made absolute.
    std::env::set_current_dir("/")?;
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .build()?;
    let outcome = runtime.block_on(run(root, &lock, config, starter, passed));
    // A thread that is stuck in the kernel must not keep us.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let found = getrlimit(Resource::Nofile);
    let wanted = found.maximum.map_or(OPEN_FILES, |most| most.min(OPEN_FILES));
    if found.current.is_some_and(|current| current < wanted) {
        let _ =
            setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: found.maximum });
    }
}

async fn run(
    root: &AppRoot,
    lock: &app_root::Lock,
    config: Config,
    starter: &mut Starter,
    passed: usize,
) -> Result<()> {
    // Before anything is started: a signal that comes early must not leave it behind.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let store = reconcile::open_store(root)?;
    let audit = Arc::new(Audit::open(root, &config.audit)?);
    let engine = Arc::new(Engine::new(root.clone(), config, store));
    reconcile::reconcile(&engine).await?;
    spare::keeper::clear(&engine).await?;
    let unfinished = template::maker::begin(&engine)?;
    let prober = engine.clone();
    tokio::spawn(async move {
        prober.probe.run(&prober.config.runtime, &prober.config.security).await;
    });
    work_in_background(&engine, unfinished);
    tokio::spawn(audit.clone().observe());
    let listener = UnixListener::from_std(listen::listener(root, passed)?)?;
    tracing::info!(
        app_root = %root.path().display(),
        version = env!("CARGO_PKG_VERSION"),
        containers = engine.containers().len(),
        "the service answers"
    );
    starter.ready();
    engine.restart_all();
    let mut ending = engine.ending.subscribe();
    let why = tokio::select! {
        never = serve::accept(&listener, Arc::new(Apiserver(engine.clone(), audit.clone()))) => match never {},
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        _ = async { while hangup.recv().await.is_some() {} } => "SIGHUP",
        _ = ending.wait_for(|ending| *ending) => "it was asked to",
    };
    tracing::info!(why, "the service ends; containers go on");
    daemon::notify("STOPPING=1");
    engine.end_background().await;
    engine.networks.end().await;
    engine.images.end().await;
    lock.ending();
    // As long as somebody can connect, we are there: callers wait for our end so.
    if passed == 0 {
        let _ = std::fs::remove_file(root.path().join(container_api::apiserver::SOCKET));
    }
    drop(listener);
    audit.close().await;
    Ok(())
}

fn work_in_background(engine: &Arc<Engine>, unfinished: Vec<std::path::PathBuf>) {
    let tasks = [
        tokio::spawn(template::maker::check(engine.clone(), unfinished)),
        tokio::spawn(template::maker::run(engine.clone())),
        tokio::spawn(spare::keeper::run(engine.clone())),
        tokio::spawn(relief::run(engine.clone())),
        tokio::spawn(networks::keeper::run(engine.clone())),
    ];
    engine.background.lock().unwrap_or_else(PoisonError::into_inner).extend(tasks);
}
