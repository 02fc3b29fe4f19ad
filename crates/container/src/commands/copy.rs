//! `copy`, `export`, `diff`, `commit`, `rename`.
//!
//! ```text
//! files ◄──thread──► pipe ◄── helper ◄── guest
//!                    pipe ◄── what went wrong, one line
//! ```
//! The far ends of the pipes go to the service with the request; it answers when the guest is done.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use container_api::apiserver::{Request, SLOW};
use container_api::archive::ArchiveWork;
use container_api::images::ImageSummary;
use container_api::types::{ExitRecord, Stdio};
use container_api::{ApiError, ErrorCode};
use container_archive::{
    ArchiveError, Kind, Owner, Packing, Rules, Source, TarReader, Unpacked, Unpacker, View,
    pack_path, records,
};
use tokio::task::spawn_blocking;

use super::{file_beside, with_progress};
use crate::args::ProgressKind;
use crate::args::copy::{Commit, Copy, Diff, End, Export, Rename, Route};
use crate::attach::pipe;
use crate::attach::signals::Signals;
use crate::failure::{Failure, Outcome, print, print_line, warn};
use crate::render::size;
use crate::session::Session;

/// Longest complaint that is shown, in bytes.
const MAX_COMPLAINT: u64 = 8 << 10;
/// Most bytes of a list of changes.
const MAX_CHANGES: u64 = 256 << 20;
/// After our side gave up: how long the other may take to say why.
const REASON_LIMIT: Duration = Duration::from_secs(5);

/// Extended attributes that go along.
fn is_taken(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"security.capability"
}

/// Extended attributes that are set here.
fn is_set(name: &[u8]) -> bool {
    name.starts_with(b"user.")
}

const FILES: Packing = Packing { xattr: is_taken, layer: false, leave_out: &[] };

/// Copies files.
pub async fn copy(session: &Session, args: &Copy) -> Outcome {
    let done = match args.route()? {
        Route::In { from, id, path } => copy_in(session, args, from, &id, &path).await?,
        Route::Out { id, path, to } => copy_out(session, args, &id, &path, to).await?,
    };
    if done.left_out > 0 {
        warn(&format!("{} devices were not copied", done.left_out));
    }
    if !args.quiet {
        let to = args.destination.to_string_lossy();
        let line = format!("Successfully copied {} to {to}", size(done.bytes));
        // Nothing can be done when even this does not get through.
        let _ = writeln!(io::stderr(), "{}", container_api::escape::escape(&line));
    }
    Ok(0)
}

async fn copy_in(
    session: &Session,
    args: &Copy,
    from: End,
    id: &str,
    path: &[u8],
) -> Outcome<Unpacked> {
    let End::Host(from) = from else {
        if io::stdin().is_terminal() {
            return Err(ApiError::invalid("standard input is a terminal, not an archive").into());
        }
        let work = args.write(path, None);
        return transfer(session, id, work, |mut near| {
            let bytes =
                io::copy(&mut io::stdin().lock(), &mut near).map_err(ArchiveError::Stream)?;
            Ok(Unpacked { bytes, ..Unpacked::default() })
        })
        .await;
    };
    let (parent, name, source) =
        View::Host.source(&from, args.follow_link).map_err(|error| failed(&error))?;
    let work = args.write(path, Some(source.name));
    transfer(session, id, work, move |near| {
        let mut out = Counted { inner: near, bytes: 0 };
        pack_path(&mut out, parent.as_fd(), &name, b".", FILES)?;
        Ok(Unpacked { bytes: out.bytes, ..Unpacked::default() })
    })
    .await
}

async fn copy_out(
    session: &Session,
    args: &Copy,
    id: &str,
    path: &[u8],
    to: End,
) -> Outcome<Unpacked> {
    let End::Host(to) = to else {
        let bytes = to_stdout(session, id, args.read(path, true)).await?;
        return Ok(Unpacked { bytes, ..Unpacked::default() });
    };
    let root = nix::unistd::geteuid().is_root();
    let owner = if args.archive && root { Owner::Kept } else { Owner::Caller };
    let rules = Rules { owner, special_bits: false, devices: false, xattr: is_set };
    let name = Source::name_of(path);
    transfer(session, id, args.read(path, false), move |near| {
        let mut reader = TarReader::new(near);
        let first = reader.next_entry()?.ok_or(ArchiveError::Damaged("it is empty"))?;
        if !matches!(&first.path[..], b"." | b"./") {
            return Err(ArchiveError::Damaged("it has no top"));
        }
        let source = Source { name, directory: first.kind == Kind::Directory };
        let place = View::Host.destination(&to, &source)?;
        let done = Unpacker::new(place, rules).run(&mut reader, Some(first))?;
        reader.drain();
        Ok(done)
    })
    .await
}

/// Writes a container's files as one archive.
pub async fn export(session: &Session, args: &Export) -> Outcome {
    let Some(path) = &args.output else {
        return to_stdout(session, &args.id, ArchiveWork::Export).await.map(|_| 0);
    };
    let failed = |error| Failure::io(path.display(), error);
    let file = file_beside(path).map_err(failed)?;
    let mut out = file.reopen().map_err(failed)?;
    transfer(session, &args.id, ArchiveWork::Export, move |mut near| {
        let what = || "write the archive".to_owned();
        io::copy(&mut near, &mut out).map_err(|source| ArchiveError::Io { what: what(), source })
    })
    .await?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(0)
}

async fn to_stdout(session: &Session, id: &str, work: ArchiveWork) -> Outcome<u64> {
    if io::stdout().is_terminal() {
        let message = "an archive is not for a terminal: redirect it to a file";
        return Err(ApiError::invalid(message).into());
    }
    transfer(session, id, work, |mut near| {
        let mut out = io::stdout().lock();
        let what = || "write to standard output".to_owned();
        let failed = |source| ArchiveError::Io { what: what(), source };
        let bytes = io::copy(&mut near, &mut out).map_err(failed)?;
        out.flush().map_err(failed)?;
        Ok(bytes)
    })
    .await
}

/// Shows what a container has changed.
pub async fn diff(session: &Session, args: &Diff) -> Outcome {
    let bytes = transfer(session, &args.id, ArchiveWork::Diff, |near| {
        let mut bytes = Vec::new();
        near.take(MAX_CHANGES).read_to_end(&mut bytes).map_err(ArchiveError::Stream)?;
        Ok(bytes)
    })
    .await?;
    let mut text = String::new();
    for change in records(&bytes) {
        let path = String::from_utf8_lossy(&change.path).into_owned();
        let line = format!("{} {path}", char::from(change.kind));
        text.push_str(&container_api::escape::escape(&line));
        text.push('\n');
    }
    print(&text)?;
    Ok(0)
}

/// Makes an image of a container.
pub async fn commit(session: &Session, args: &Commit) -> Outcome {
    let mut client = session.connect()?;
    let request = Request::Commit { id: args.id.clone(), options: args.options() };
    let mut signals = Signals::ending().map_err(|e| Failure::io("taking signals", e))?;
    let image: ImageSummary =
        with_progress(&mut client, &request, &[], ProgressKind::Auto, &mut signals).await?;
    print_line(&image.descriptor.digest)?;
    Ok(0)
}

/// Gives a container another id.
pub async fn rename(session: &Session, args: &Rename) -> Outcome {
    let mut client = session.connect()?;
    let request = Request::Rename { id: args.id.clone(), name: args.name.clone() };
    client.call::<()>(&request, &[], Some(SLOW)).await?;
    Ok(0)
}

fn failed(error: &ArchiveError) -> Failure {
    if let ArchiveError::Io { source, .. } = error
        && source.kind() == io::ErrorKind::BrokenPipe
    {
        return Failure::Code(crate::failure::NO_READER);
    }
    ApiError::new(ErrorCode::InvalidArgument, error.line()).into()
}

/// Lets the guest work, and `local` at our end of its stream.
async fn transfer<T: Send + 'static>(
    session: &Session,
    id: &str,
    work: ArchiveWork,
    local: impl FnOnce(File) -> Result<T, ArchiveError> + Send + 'static,
) -> Outcome<T> {
    let mut client = session.connect()?;
    let inwards = work.changes();
    let (reader, writer) = pipe().map_err(|e| Failure::io("making a pipe", e))?;
    let (near, far) = if inwards { (writer, reader) } else { (reader, writer) };
    let (complaints, complain) = pipe().map_err(|e| Failure::io("making a pipe", e))?;
    let stdio = Stdio { stdin: inwards, stdout: !inwards, stderr: true };
    let request = Request::Archive { id: id.to_owned(), work, stdio };
    let mut local = spawn_blocking(move || local(near.into()));
    let said = spawn_blocking(move || complaint(complaints));
    let call = async {
        let fds = [far.as_fd(), complain.as_fd()];
        let record = client.call::<ExitRecord>(&request, &fds, None).await;
        // Now nobody but the service holds these ends: both threads see the end.
        drop((far, complain));
        record
    };
    tokio::pin!(call);
    let mut here = None;
    let record = loop {
        tokio::select! {
            done = &mut local, if here.is_none() => match joined(done) {
                // The other side knows better, if it is not what broke the stream.
                Err(ArchiveError::Stream(_) | ArchiveError::Damaged(_)) if inwards => {
                    here = Some(Err(ArchiveError::Damaged("the stream broke")));
                }
                Err(error @ ArchiveError::Damaged(_)) => {
                    match tokio::time::timeout(REASON_LIMIT, &mut call).await {
                        Ok(record) => { here = Some(Err(error)); break record; }
                        Err(_) => return Err(failed(&error)),
                    }
                }
                Err(error) => return Err(failed(&error)),
                done => here = Some(done),
            },
            record = &mut call => break record,
        }
    }?;
    if record.exit_code != 0 {
        let said = said.await.unwrap_or_default();
        let message = if said.trim().is_empty() { record.reason } else { said };
        return Err(ApiError::new(ErrorCode::InvalidArgument, message).into());
    }
    let done = match here {
        Some(done) => done,
        None => joined(local.await),
    };
    done.map_err(|error| failed(&error))
}

fn joined<T>(
    done: Result<Result<T, ArchiveError>, tokio::task::JoinError>,
) -> Result<T, ArchiveError> {
    done.unwrap_or_else(|error| Err(ArchiveError::Refused(error.to_string())))
}

fn complaint(complaints: OwnedFd) -> String {
    let mut said = Vec::new();
    let _ = File::from(complaints).take(MAX_COMPLAINT).read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

/// Counts what is written.
struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
