//! `logs`.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use container_api::apiserver::{ApiClient, Request};
use container_api::{ErrorCode, Result};
use tokio::time::Instant;

use crate::args::container::{Logs, Tail};
use crate::attach::conversation::{finish, reconnect};
use crate::attach::pipe;
use crate::attach::pump::{self, Pump, Sink, Stopped};
use crate::failure::{Failure, NO_READER, OURS, Outcome};
use crate::session::Session;

/// How long a service that was lost may take to answer again.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Bytes of the two streams.
type Bytes = [u64; 2];

/// Copies what the container has printed to our own output and error output. When the service goes
/// away meanwhile, `--follow` goes on with the one that comes after it.
pub async fn logs(session: &Session, args: &Logs) -> Outcome {
    let mut client = session.connect()?;
    let mut tail = args.lines.and_then(|Tail(lines)| lines);
    let mut shown = [0, 0];
    loop {
        let request =
            Request::Logs { id: args.id.clone(), follow: args.follow, tail, boot: args.boot };
        let sinks = [Sink::stdout(), Sink::stderr()];
        let (answer, bytes, lost) = read(session, &mut client, &request, shown, sinks).await?;
        match answer {
            Err(e) if args.follow && e.code == ErrorCode::Disconnected => session.debug(e),
            answer => return Ok(answer.map(|()| if lost { OURS } else { 0 })?),
        }
        shown = [shown[0].max(bytes[0]), shown[1].max(bytes[1])];
        let lost = Instant::now();
        let holds = loop {
            client = reconnect(session, lost, false).await?;
            match still_holds(session, &mut client, args, shown).await? {
                // The connection was one to the service that ends.
                Err(e) if e.code == ErrorCode::Disconnected && lost.elapsed() < GIVE_UP => {
                    session.debug(e);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                holds => break holds?,
            }
        };
        // Of a log that was shown whole, all that was shown is skipped. Of the end of one, and of
        // one that was rotated away, only what comes from now on can be told apart.
        if tail.is_some() || !holds {
            (tail, shown) = (Some(0), [0, 0]);
        }
    }
}

/// Whether the log is as long as what was shown of it.
async fn still_holds(
    session: &Session,
    client: &mut ApiClient,
    args: &Logs,
    shown: Bytes,
) -> Outcome<Result<bool>> {
    let request = Request::Logs { id: args.id.clone(), follow: false, tail: None, boot: args.boot };
    let null = || File::options().write(true).open("/dev/null");
    let failed = |e| Failure::io("/dev/null", e);
    let sinks = [null().map_err(failed)?, null().map_err(failed)?];
    let sinks = sinks.map(|file| Sink::Owned(file.into()));
    let (answer, bytes, _) = read(session, client, &request, [0, 0], sinks).await?;
    Ok(answer.map(|()| bytes[0] >= shown[0] && bytes[1] >= shown[1]))
}

/// One call: its answer, the bytes that came, and whether they could not be passed on.
async fn read(
    session: &Session,
    client: &mut ApiClient,
    request: &Request,
    skip: Bytes,
    [out, err]: [Sink; 2],
) -> Outcome<(Result<()>, Bytes, bool)> {
    let failed = |e| Failure::io("making the streams", e);
    let (mut output, far_output) = stream(skip[0], out).map_err(failed)?;
    let (mut error, far_error) = stream(skip[1], err).map_err(failed)?;
    // How long reading takes is up to whoever reads us, not to a clock.
    let fds = [far_output.as_fd(), far_error.as_fd()];
    let counters = [&output, &error].map(|p| p.as_ref().map(Pump::counter));
    let answer = tokio::select! {
        answer = client.call(request, &fds, None) => answer,
        failure = no_reader(&mut output) => return Err(failure),
    };
    drop((far_output, far_error));
    let lost = finish(session, [(&mut output, "output"), (&mut error, "error output")]).await;
    Ok((answer, counters.map(|c| c.map_or(0, |c| c.bytes())), lost))
}

fn stream(skip: u64, sink: Sink) -> std::io::Result<(Option<Pump>, OwnedFd)> {
    let (near, far) = pipe()?;
    Ok((Some(pump::output_after(skip, near, sink)?), far))
}

/// Resolves when what we print is not read any more.
async fn no_reader(pump: &mut Option<Pump>) -> Failure {
    if let Some(running) = pump {
        let stopped = (&mut running.stopped).await;
        *pump = None;
        match stopped {
            Ok(Stopped::NoReader) => return Failure::Code(NO_READER),
            Ok(Stopped::Failed(error)) => return Failure::io("standard output", error),
            _ => {}
        }
    }
    std::future::pending().await
}
