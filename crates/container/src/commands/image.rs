//! `image …`.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use container_api::apiserver::{ApiClient, QUICK, Request, SLOW};
use container_api::images::{self, ImageDetails, ImageSummary, Removed};
use container_api::{ApiError, Result};
use serde::de::DeserializeOwned;

use super::{add_credentials, default_domain, file_beside, with_progress};
use crate::args::image::{Command, Delete, List, Load, Pull, Save};
use crate::args::{Format, ProgressKind};
use crate::attach::conversation::finish;
use crate::attach::pipe;
use crate::attach::pump::{self, Sink};
use crate::attach::signals::Signals;
use crate::failure::{Failure, OURS, Outcome, print, print_line};
use crate::render::{self, rows};
use crate::session::Session;

/// Runs one of the commands.
pub async fn run(session: &Session, command: &Command) -> Outcome {
    let mut client = session.connect_or_start().await?;
    match command {
        Command::List(args) => list(session, &mut client, args).await?,
        Command::Pull(args) => pull(session, &mut client, args).await?,
        Command::Save(args) => save(session, &mut client, args).await?,
        Command::Load(args) => load(&mut client, args).await?,
        Command::Tag(args) => {
            let request =
                images::Request::Tag { source: args.source.clone(), target: args.target.clone() };
            let named: ImageSummary = call(&mut client, request).await?;
            print_line(&named.reference)?;
        }
        Command::Delete(args) => delete(&mut client, args).await?,
        Command::Prune(args) => {
            let request = images::Request::Prune { all: args.all, in_use: Vec::new() };
            let removed: Removed = slow(&mut client, request).await?;
            for reference in &removed.references {
                print_line(reference)?;
            }
            print(&format!("Reclaimed {} in disk space\n", render::size(removed.reclaimed)))?;
        }
        Command::Inspect(args) => {
            let request = images::Request::Inspect { references: args.images.clone() };
            let found: Vec<ImageDetails> = call(&mut client, request).await?;
            print(&render::pretty(&found)?)?;
        }
    }
    Ok(0)
}

async fn call<R: DeserializeOwned>(client: &mut ApiClient, request: images::Request) -> Result<R> {
    client.call(&Request::Images(request), &[], Some(QUICK)).await
}

async fn slow<R: DeserializeOwned>(client: &mut ApiClient, request: images::Request) -> Result<R> {
    client.call(&Request::Images(request), &[], Some(SLOW)).await
}

async fn list(session: &Session, client: &mut ApiClient, args: &List) -> Outcome<()> {
    let found: Vec<ImageSummary> = call(client, images::Request::List).await?;
    let domain = default_domain(session);
    if args.quiet {
        for image in &found {
            print_line(&rows::short_reference(&image.reference, &domain))?;
        }
        return Ok(());
    }
    match args.format {
        Format::Table if args.verbose => {
            let references = found.iter().map(|image| image.reference.clone()).collect();
            let details: Vec<ImageDetails> =
                call(client, images::Request::Inspect { references }).await?;
            let pairs: Vec<_> = found.into_iter().zip(details).collect();
            print(&rows::images_verbose(&pairs, &domain))
        }
        Format::Table => print(&rows::images(&found, &domain)),
        format => print(&render::data(format, "images", &found)?),
    }
}

async fn pull(session: &Session, client: &mut ApiClient, args: &Pull) -> Outcome<()> {
    let mut pull = images::Pull {
        reference: args.reference.clone(),
        platform: args.platform.get()?,
        scheme: args.fetch.scheme.into(),
        max_concurrent_downloads: args.fetch.max_concurrent_downloads,
        credentials: None,
    };
    add_credentials(session, client, &mut pull, true).await?;
    let request = Request::Images(images::Request::Pull(pull));
    let image: ImageSummary =
        with_progress(client, &request, &[], args.fetch.progress, &mut ending()?).await?;
    print_line(&image.reference)
}

fn ending() -> Outcome<Signals> {
    Signals::ending().map_err(|e| Failure::io("taking signals", e))
}

async fn delete(client: &mut ApiClient, args: &Delete) -> Outcome<()> {
    match (args.images.is_empty(), args.all) {
        (true, false) => {
            return Err(ApiError::invalid("no images specified and --all not supplied").into());
        }
        (false, true) => {
            return Err(ApiError::invalid("images specified together with --all").into());
        }
        _ => {}
    }
    let request = images::Request::Delete {
        references: args.images.clone(),
        all: args.all,
        force: args.force,
        in_use: Vec::new(),
    };
    let removed: Removed = slow(client, request).await?;
    for reference in &removed.references {
        print_line(reference)?;
    }
    for reference in &removed.kept_in_use {
        crate::failure::warn(&format!("{reference} is used by a container: not deleted"));
    }
    Ok(())
}

async fn load(client: &mut ApiClient, args: &Load) -> Outcome<()> {
    let request = Request::Images(images::Request::Load { name: args.name.clone() });
    let named = args.input.as_deref().filter(|path| *path != Path::new("-"));
    let stdin = io::stdin();
    let source: OwnedFd = match named {
        Some(path) => File::open(path).map_err(|e| Failure::io(path.display(), e))?.into(),
        None if stdin.is_terminal() => {
            let message = "no archive: name one with --input, or redirect standard input";
            return Err(ApiError::invalid(message).into());
        }
        None => stdin.as_fd().try_clone_to_owned().map_err(|e| Failure::io("standard input", e))?,
    };
    let file = File::from(source);
    let kind = file.metadata().map_err(|e| Failure::io("the archive", e))?.file_type();
    if kind.is_dir() {
        return Err(ApiError::invalid("the archive is a directory").into());
    }
    let mut signals = ending()?;
    let loaded: Vec<ImageSummary> = if kind.is_file() {
        with_progress(client, &request, &[file.as_fd()], args.progress, &mut signals).await?
    } else {
        // Not handed over itself: somebody else reads it too, and expects it to block.
        let failed = |e| Failure::io("making the streams", e);
        let (reader, writer) = pipe().map_err(failed)?;
        let _pump = pump::output(file.into(), Sink::Owned(writer)).map_err(failed)?;
        with_progress(client, &request, &[reader.as_fd()], args.progress, &mut signals).await?
    };
    for image in &loaded {
        print_line(&format!("Loaded image: {}", image.reference))?;
    }
    Ok(())
}

async fn save(session: &Session, client: &mut ApiClient, args: &Save) -> Outcome<()> {
    let platform = args.platform.get()?;
    let request =
        Request::Images(images::Request::Save { references: args.references.clone(), platform });
    match args.output.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => save_file(client, &request, path, args.progress).await,
        None => save_stdout(session, client, &request, args.progress).await,
    }
}

/// Written whole or not at all.
async fn save_file(
    client: &mut ApiClient,
    request: &Request,
    path: &Path,
    progress: ProgressKind,
) -> Outcome<()> {
    let failed = |e| Failure::io(path.display(), e);
    // A device or a pipe (`/dev/stdout`, a named one) can't be replaced.
    if path.metadata().is_ok_and(|m| !m.is_file()) {
        let file = File::options().write(true).open(path).map_err(failed)?;
        return with_progress(client, request, &[file.as_fd()], progress, &mut ending()?).await;
    }
    let file = file_beside(path).map_err(failed)?;
    let fds = [file.as_file().as_fd()];
    with_progress::<()>(client, request, &fds, progress, &mut ending()?).await?;
    file.persist(path).map(drop).map_err(|e| failed(e.error))
}

async fn save_stdout(
    session: &Session,
    client: &mut ApiClient,
    request: &Request,
    progress: ProgressKind,
) -> Outcome<()> {
    if io::stdout().is_terminal() {
        let message = "an archive is not for a terminal: name a file with --output, or redirect";
        return Err(ApiError::invalid(message).into());
    }
    let failed = |e| Failure::io("making the streams", e);
    let (reader, writer) = pipe().map_err(failed)?;
    let mut output = Some(pump::output(reader, Sink::stdout()).map_err(failed)?);
    let answer =
        with_progress::<()>(client, request, &[writer.as_fd()], progress, &mut ending()?).await;
    drop(writer);
    let lost = finish(session, [(&mut output, "archive"), (&mut None, "")]).await;
    answer?;
    if lost { Err(Failure::Code(OURS)) } else { Ok(()) }
}
