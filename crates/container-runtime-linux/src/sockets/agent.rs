//! The user's SSH agent, as a container may use it: it may ask which keys there are, and have
//! something signed. Nothing else gets through (adding and removing keys, locking, smart cards and
//! libraries for them, extensions), whatever the agent would say to it.
//!
//! The protocol: `length u32, type u8, content`, big-endian, one answer to each request
//! (draft-ietf-sshm-ssh-agent). Both sides are strangers: lengths are bounded, and a request is
//! taken apart and has to be whole. A refused request is answered as an agent answers what it
//! can't do.

pub mod filter;
mod record;

use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

use super::Stream;
pub use filter::MAX_MESSAGE;
use filter::{FAILURE, Request};
pub use record::{Outcome, Record, note};

/// How long the agent may take: it may ask its user.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// Signatures that may come at once, and how many more each second.
const SIGNATURES: (f64, f64) = (60.0, 5.0);
/// Requests of any kind, likewise.
const REQUESTS: (f64, f64) = (300.0, 50.0);

/// How much a container may ask for, over all its connections.
#[derive(Debug)]
pub struct Limits {
    requests: Mutex<Bucket>,
    signatures: Mutex<Bucket>,
}

impl Default for Limits {
    fn default() -> Self {
        let bucket = |rate| Mutex::new(Bucket::new(rate, Instant::now()));
        Limits { requests: bucket(REQUESTS), signatures: bucket(SIGNATURES) }
    }
}

#[derive(Debug)]
struct Bucket {
    most: f64,
    each_second: f64,
    left: f64,
    then: Instant,
}

impl Bucket {
    fn new((most, each_second): (f64, f64), now: Instant) -> Bucket {
        Bucket { most, each_second, left: most, then: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.then).as_secs_f64();
        self.left = (self.left + passed * self.each_second).min(self.most);
        self.then = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

fn take(bucket: &Mutex<Bucket>) -> bool {
    bucket.lock().expect("no holder panics").take(Instant::now())
}

/// Where it is told what came of requests.
type Note<'a> = &'a (dyn Fn(Outcome<'_>) + Send + Sync);

/// Answers a program's requests until it goes. `link` is where the agent is.
pub(super) async fn serve(stream: &Stream, link: &Path, limits: &Limits, note: Note<'_>) {
    let mut agent = None;
    let mut input = Vec::new();
    loop {
        let request = match next(stream, &mut input).await {
            Ok(Some(request)) => request,
            // Without this the stream would be cut, with the last answer on its way.
            Ok(None) => return stream.bulk.finish(stream.number),
            Err(reason) => return note(Outcome::Refused(reason)),
        };
        let answer = answer(&mut agent, link, limits, &request, note).await;
        if !send(stream, &filter::frame(&answer)).await {
            return;
        }
    }
}

/// What a request is answered with.
async fn answer(
    agent: &mut Option<UnixStream>,
    link: &Path,
    limits: &Limits,
    message: &[u8],
    note: Note<'_>,
) -> Vec<u8> {
    let refused = || vec![FAILURE];
    if !take(&limits.requests) {
        note(Outcome::Refused("too many requests"));
        return refused();
    }
    let request = match filter::request(message) {
        Ok(request) => request,
        Err(reason) => {
            note(Outcome::Refused(reason));
            return refused();
        }
    };
    let key = match &request {
        Request::Identities => None,
        Request::Sign { key } => Some(filter::fingerprint(key)),
    };
    if key.is_some() && !take(&limits.signatures) {
        note(Outcome::Refused("too many signatures"));
        return refused();
    }
    let exchange = timeout(ANSWER_LIMIT, exchange(agent, link, message)).await;
    let outcome = exchange.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let answer = match outcome {
        Ok(answer) => Some(answer).filter(|answer| filter::answers(&request, answer)),
        Err(error) => {
            tracing::info!(%error, "the SSH agent does not answer");
            *agent = None;
            None
        }
    };
    if let Some(key) = &key {
        note(if answer.is_some() { Outcome::Signed(key) } else { Outcome::NotSigned(key) });
    }
    answer.unwrap_or_else(refused)
}

/// Asks the agent. One that has gone is looked for anew, once: it may be another one by now.
async fn exchange(
    agent: &mut Option<UnixStream>,
    link: &Path,
    message: &[u8],
) -> io::Result<Vec<u8>> {
    if let Some(known) = agent {
        match ask(known, message).await {
            Ok(answer) => return Ok(answer),
            Err(_) => *agent = None,
        }
    }
    // A link's target may be longer than a socket's address: it is reached through its directory.
    let mut new = connect(link).await?;
    let answer = ask(&mut new, message).await?;
    *agent = Some(new);
    Ok(answer)
}

async fn connect(link: &Path) -> io::Result<UnixStream> {
    let place = std::fs::read_link(link)?;
    let (Some(directory), Some(name)) = (place.parent(), place.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let name = name.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    let stream = container_api::socket::try_connect(directory, name)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

async fn ask(agent: &mut UnixStream, message: &[u8]) -> io::Result<Vec<u8>> {
    agent.write_all(&filter::frame(message)).await?;
    let length = agent.read_u32().await? as usize;
    if length == 0 || length > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut answer = vec![0; length];
    agent.read_exact(&mut answer).await?;
    Ok(answer)
}

/// The next request; `None` at the end. `input` keeps what came beyond it.
async fn next(stream: &Stream, input: &mut Vec<u8>) -> Result<Option<Vec<u8>>, &'static str> {
    let mut bytes = Vec::new();
    loop {
        if let Some(request) = filter::split(input)? {
            return Ok(Some(request));
        }
        stream.bulk.read(stream.number, &mut bytes).await;
        if bytes.is_empty() {
            return if input.is_empty() { Ok(None) } else { Err("it ends too early") };
        }
        input.extend_from_slice(&bytes);
    }
}

/// Sends all of it; false when the program has gone.
async fn send(stream: &Stream, mut bytes: &[u8]) -> bool {
    let (bulk, number) = (&stream.bulk, stream.number);
    while !bytes.is_empty() {
        if !bulk.writable(number).await {
            return false;
        }
        let mut taken = 0;
        let filled = bulk.fill(number, |room| {
            taken = room.len().min(bytes.len());
            room[..taken].copy_from_slice(&bytes[..taken]);
            Ok(taken)
        });
        if filled.is_err() {
            return false;
        }
        bytes = &bytes[taken..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_emptied_and_fills_again() {
        let began = Instant::now();
        let mut bucket = Bucket::new((3.0, 2.0), began);
        let mut at = |seconds, count| {
            let now = began + Duration::from_secs(seconds);
            (0..count).filter(|_| bucket.take(now)).count()
        };
        assert_eq!((at(0, 5), at(1, 5), at(1000, 5)), (3, 2, 3));
    }
}
