//! The commands: typed arguments in, an exit code out. One module per group.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use container_api::apiserver::{ApiClient, Request};
use container_api::images::Pull;
use container_api::{Result, config, images, paths};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::args::{Cli, Command, ProgressKind};
use crate::attach::signals::Signals;
use crate::credentials::{self, Source};
use crate::failure::{Failure, OURS, Outcome, complain, print_line};
use crate::progress::Shown;
use crate::session::Session;

mod audit;
mod check;
mod confirm;
mod copy;
mod dns;
mod exec;
mod image;
mod inspect;
mod kernel;
mod lifecycle;
mod list;
mod logs;
mod network;
mod run;
mod service_logs;
mod stats;
mod system;
mod usage;
mod volume;

/// Calls under way at once when a command names many containers.
const AT_ONCE: usize = 16;

/// A temporary file in the folder of `path`, to take its place when it is whole; its mode is
/// what the caller's umask leaves.
pub fn file_beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)
}

/// Runs the command of a process that began at `begun_ns`, monotonic clock.
pub async fn run(cli: Cli, begun_ns: u64) -> Outcome {
    let named = match &cli.command {
        Command::System(crate::args::system::Command::Start(start)) => start.root.clone(),
        _ => None,
    };
    let session = Session::new(cli.global.app_root.or(named), cli.global.debug)?;
    match &cli.command {
        Command::Run(args) => run::run(&session, args, begun_ns).await,
        Command::Create(args) => run::create(&session, args).await,
        Command::Start(args) => run::start(&session, args, begun_ns).await,
        Command::Stop(args) => lifecycle::stop(&session, args).await,
        Command::Restart(args) => lifecycle::restart(&session, args).await,
        Command::Kill(args) => lifecycle::kill(&session, args).await,
        Command::Delete(args) => lifecycle::delete(&session, args).await,
        Command::Stats(args) => stats::stats(&session, args).await,
        Command::Update(args) => lifecycle::update(&session, args).await,
        Command::Copy(args) => copy::copy(&session, args).await,
        Command::Export(args) => copy::export(&session, args).await,
        Command::Diff(args) => copy::diff(&session, args).await,
        Command::Commit(args) => copy::commit(&session, args).await,
        Command::Rename(args) => copy::rename(&session, args).await,
        Command::Prune => lifecycle::prune(&session).await,
        Command::Wait(args) => lifecycle::wait(&session, args).await,
        Command::List(args) => list::list(&session, args).await,
        Command::Inspect(args) => inspect::inspect(&session, args).await,
        Command::Exec(args) => exec::exec(&session, args).await,
        Command::Logs(args) => logs::logs(&session, args).await,
        Command::Image(command) => image::run(&session, command).await,
        Command::Network(command) => network::run(&session, command).await,
        Command::Volume(command) => volume::run(&session, command).await,
        Command::System(command) => system::run(&session, command).await,
    }
}

/// A call with progress that signals cancel: the connection is closed, and the service sees it.
async fn with_progress<R: DeserializeOwned>(
    client: &mut ApiClient,
    request: &Request,
    fds: &[std::os::fd::BorrowedFd<'_>],
    kind: ProgressKind,
    signals: &mut Signals,
) -> Outcome<R> {
    let mut shown = Shown::new(kind);
    tokio::select! {
        answer = client.call_with_progress(request, fds, |step| shown.update(&step)) => {
            Ok(answer?)
        }
        signal = signals.next() => Err(Failure::interrupted(signal)),
    }
}

/// The user's SSH agent, if there is one.
fn ssh_agent() -> Option<PathBuf> {
    std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The registry of short names, as configured.
fn default_domain(session: &Session) -> String {
    let load = || -> Result<String> {
        let file = paths::config_file(session.root())?;
        Ok(config::Config::load(&file)?.registry.domain)
    };
    // A broken file is the service's to complain about.
    load().unwrap_or_else(|_| config::RegistryConfig::default().domain)
}

/// Puts the user's credentials for the image's registry into `pull`. A helper, which is slow, is
/// asked only when the image is not here or `always`.
async fn add_credentials(
    session: &Session,
    client: &mut ApiClient,
    pull: &mut Pull,
    always: bool,
) -> Outcome<()> {
    match credentials::find(&pull.reference, &default_domain(session))? {
        Source::None => {}
        Source::Stored(found) => pull.credentials = Some(found),
        Source::Helper(helper, server) => {
            let references = vec![pull.reference.clone()];
            let inspect = Request::Images(images::Request::Inspect { references });
            let here = !always
                && client
                    .call_with_progress::<Vec<images::ImageDetails>>(&inspect, &[], |_| {})
                    .await
                    .is_ok();
            if !here {
                session.debug(format_args!("asking docker-credential-{helper}"));
                pull.credentials = credentials::ask(&helper, &server).await?;
            }
        }
    }
    Ok(())
}

/// Does `work` for each id, several at once, and prints each id when it is done. Failures are said
/// one by one, and make the exit code ours.
async fn for_each<F, W>(session: &Session, ids: Vec<String>, work: F) -> Outcome
where
    F: Fn(ApiClient, String) -> W,
    W: Future<Output = Result<String>> + Send + 'static,
{
    let mut running = JoinSet::new();
    let (mut ids, mut code) = (ids.into_iter(), 0);
    loop {
        while running.len() < AT_ONCE
            && let Some(id) = ids.next()
        {
            running.spawn(work(session.connect()?, id));
        }
        match running.join_next().await {
            None => return Ok(code),
            Some(Ok(Ok(line))) => print_line(&line)?,
            Some(Ok(Err(error))) => {
                complain(&error.message);
                code = OURS;
            }
            Some(Err(error)) => {
                complain(&error.to_string());
                code = OURS;
            }
        }
    }
}

/// A deadline for a call in which the service itself waits.
fn beyond(time: Duration) -> Option<Duration> {
    Some(time + container_api::apiserver::SLOW)
}
