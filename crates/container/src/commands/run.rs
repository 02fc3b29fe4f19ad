//! `run`, `create` and `start`.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use container_api::apiserver::{ApiClient, CreateOptions, Created, Request, SLOW};
use container_api::types::Status;
use container_api::{ApiError, ErrorCode, Result};

use super::confirm::confirm;
use super::{add_credentials, file_beside, ssh_agent, with_progress};
use crate::args::container::{Create, Run, Start};
use crate::args::mount::open_sources;
use crate::attach::conversation::{Program, begin_wait, converse};
use crate::attach::signals::Signals;
use crate::attach::{Attachment, check_terminal};
use crate::failure::{Failure, Outcome, print_line, warn};
use crate::session::Session;
use crate::trace::{Tracer, step};

/// What is asked on a terminal when the configuration says so.
const VIRTUALIZATION: &str = "Virtual machines in the container expose more of its guest kernel, and of QEMU or of the \
     host's KVM. Allow them?";

/// How long the removal of a container may take that never ran to its end.
const CLEAN_UP: Duration = Duration::from_secs(30);

/// `run`: creates, starts and, unless detached, stays to the end.
pub async fn run(session: &Session, args: &Run, begun_ns: u64) -> Outcome {
    traced(args.trace.as_deref(), begun_ns, async |tracer| run_with(session, args, tracer).await)
        .await
}

/// Does `work` with a tracer if one is asked for, and keeps its trace however the work ends.
async fn traced(
    path: Option<&Path>,
    begun_ns: u64,
    work: impl AsyncFnOnce(Option<&Tracer>) -> Outcome,
) -> Outcome {
    let Some(path) = path else { return work(None).await };
    let tracer = Tracer::prepare(path, begun_ns)?;
    let outcome = work(Some(&tracer)).await;
    tracer.finish(outcome)
}

async fn run_with(session: &Session, args: &Run, tracer: Option<&Tracer>) -> Outcome {
    let options = args.create.options(|name| std::env::var_os(name))?;
    if options.ssh && ssh_agent().is_none() {
        warn("--ssh: SSH_AUTH_SOCK names no agent");
    }
    let process = &options.process;
    let (interactive, terminal) = (process.interactive, process.terminal);
    if !args.detach {
        check_terminal(interactive, terminal)?;
    }
    let ours = options.auto_remove;
    let mut signals = signals(Signals::forwarded())?;
    let mut client = step(tracer, "connect", session.connect_or_start()).await?;
    let making = make(session, &mut client, &args.create, options, &mut signals);
    let id = step(tracer, "create", making).await?;
    let attachment = match args.detach {
        true => Attachment::none(terminal),
        false => attachment(interactive, terminal)?,
    };
    let program = Program { id: id.clone(), process_id: None, ours };
    // Asked before the start: a container that removes itself can't be asked about afterwards.
    let wait = (!args.detach).then(|| begin_wait(session, &program));
    let starting = start_vm(&mut client, &id, &attachment, tracer, &mut signals);
    let started = step(tracer, "start", starting).await;
    drop(client);
    if let Err(failure) = started {
        let interrupted = matches!(failure, Failure::Code(_));
        if ours || interrupted {
            discard(session, &id, &mut signals).await;
        }
        return Err(failure);
    }
    session.debug(format_args!("{id} runs"));
    match wait {
        None => print_line(&id).map(|()| 0),
        Some(wait) => {
            let running = attachment.begin().map_err(|e| Failure::io("attaching", e))?;
            let conversation = converse(session, &program, running, &mut signals, wait);
            step(tracer, "run to the end", conversation).await
        }
    }
}

/// `create`: prints the id.
pub async fn create(session: &Session, args: &Create) -> Outcome {
    let options = args.options(|name| std::env::var_os(name))?;
    let mut signals = signals(Signals::ending())?;
    let mut client = session.connect_or_start().await?;
    let id = make(session, &mut client, args, options, &mut signals).await?;
    print_line(&id).map(|()| 0)
}

/// `start`: starts, and with `--attach` or `--interactive` stays to the end.
pub async fn start(session: &Session, args: &Start, begun_ns: u64) -> Outcome {
    traced(args.trace.as_deref(), begun_ns, async |tracer| start_with(session, args, tracer).await)
        .await
}

async fn start_with(session: &Session, args: &Start, tracer: Option<&Tracer>) -> Outcome {
    let mut signals = signals(Signals::forwarded())?;
    let mut client = step(tracer, "connect", session.connect_or_start()).await?;
    let attach = args.attach || args.interactive;
    let container = client.inspect(&args.id).await?;
    let id = container.configuration.id;
    let process = &container.configuration.init_process;
    let attachment = match attach {
        true => {
            check_terminal(args.interactive, process.terminal)?;
            attachment(args.interactive, process.terminal)?
        }
        false => Attachment::none(process.terminal),
    };
    let program = Program { id: id.clone(), process_id: None, ours: false };
    // One that has ended before answers with its old record until it is started.
    let early = attach && container.status == Status::Created;
    let wait = early.then(|| begin_wait(session, &program));
    let starting = start_vm(&mut client, &id, &attachment, tracer, &mut signals);
    step(tracer, "start", starting).await?;
    drop(client);
    if !attach {
        return print_line(&id).map(|()| 0);
    }
    let wait = wait.unwrap_or_else(|| begin_wait(session, &program));
    let running = attachment.begin().map_err(|e| Failure::io("attaching", e))?;
    let conversation = converse(session, &program, running, &mut signals, wait);
    step(tracer, "run to the end", conversation).await
}

fn signals(taken: std::io::Result<Signals>) -> Outcome<Signals> {
    taken.map_err(|e| Failure::io("taking signals", e))
}

fn attachment(interactive: bool, terminal: bool) -> Outcome<Attachment> {
    Attachment::new(interactive, terminal).map_err(|e| Failure::io("making the streams", e))
}

/// Creates the container and what is said about it outside: warnings and the id's file.
async fn make(
    session: &Session,
    client: &mut ApiClient,
    args: &Create,
    mut options: CreateOptions,
    signals: &mut Signals,
) -> Outcome<String> {
    let id_file = args.management.cidfile.as_deref().map(IdFile::prepare).transpose()?;
    add_credentials(session, client, &mut options.image, false).await?;
    session.debug("creating the container");
    let sources = open_sources(&options.mounts)?;
    let sources: Vec<_> = sources.iter().map(AsFd::as_fd).collect();
    let mut request = Request::Create(Box::new(options));
    let progress = args.fetch.progress;
    let mut created = with_progress(client, &request, &sources, progress, signals).await;
    if let (Err(Failure::Error(error)), Request::Create(options)) = (&created, &mut request)
        && error.code == ErrorCode::ConfirmationRequired
        && confirm(VIRTUALIZATION, signals).await?
    {
        options.virtualization_confirmed = true;
        created = with_progress(client, &request, &sources, progress, signals).await;
    }
    let created: Created = created?;
    for warning in &created.warnings {
        warn(warning);
    }
    if let Some(file) = id_file
        && let Err(error) = file.write(&created.id)
    {
        discard(session, &created.id, signals).await;
        return Err(error.into());
    }
    Ok(created.id)
}

/// Starts the container; a signal meanwhile closes the connection, which cancels the start.
async fn start_vm(
    client: &mut ApiClient,
    id: &str,
    attachment: &Attachment,
    tracer: Option<&Tracer>,
    signals: &mut Signals,
) -> Outcome<()> {
    let (stdio, size) = (attachment.stdio(), attachment.size());
    let request = Request::Start {
        id: id.to_owned(),
        stdio,
        size,
        trace: tracer.is_some(),
        ssh_agent: ssh_agent(),
    };
    let mut far = attachment.far();
    far.extend(tracer.map(Tracer::fd));
    tokio::select! {
        answer = client.call(&request, &far, Some(SLOW)) => Ok(answer?),
        signal = signals.next() => Err(Failure::interrupted(signal)),
    }
}

/// Removes a container that nobody can want any more. Another signal ends the wait for it.
async fn discard(session: &Session, id: &str, signals: &mut Signals) {
    let delete = async {
        let request = Request::Delete { id: id.to_owned(), force: true };
        session.connect()?.call::<()>(&request, &[], Some(CLEAN_UP)).await
    };
    tokio::select! {
        outcome = delete => match outcome {
            // It may have removed itself.
            Err(error) if error.code != ErrorCode::NotFound => {
                warn(&format!("{id} was not removed: {error}"));
            }
            _ => {}
        },
        _ = signals.next() => {}
    }
}

/// `--cidfile`: written whole or not at all, and never over another file.
struct IdFile<'a> {
    path: &'a Path,
    file: tempfile::NamedTempFile,
}

impl IdFile<'_> {
    /// Finds out whether the file can be written before anything is created.
    fn prepare(path: &Path) -> Result<IdFile<'_>> {
        let failed =
            |e: std::io::Error| ApiError::from(e).context(format!("--cidfile {}", path.display()));
        if path.symlink_metadata().is_ok() {
            return Err(failed(std::io::Error::new(
                std::io::ErrorKind::AlreadyExists,
                "the file exists already: remove it, or name another",
            )));
        }
        let file = file_beside(path).map_err(failed)?;
        Ok(IdFile { path, file })
    }

    fn write(mut self, id: &str) -> Result<()> {
        let written = self.file.write_all(id.as_bytes());
        let kept = written
            .and_then(|()| self.file.persist_noclobber(self.path).map(drop).map_err(|e| e.error));
        kept.map_err(|e| ApiError::from(e).context(format!("--cidfile {}", self.path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_file_is_whole_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id");
        let first = IdFile::prepare(&path).unwrap();
        let second = IdFile::prepare(&path).unwrap();
        assert!(!path.exists());
        first.write("abc").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "abc");
        assert_eq!(second.write("def").unwrap_err().code, ErrorCode::AlreadyExists);
        let error = IdFile::prepare(&path).err().unwrap();
        assert!(error.message.contains("exists already"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(IdFile::prepare(&folder.path().join("no/such/id")).is_err());
    }
}
