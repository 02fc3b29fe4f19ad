//! A client that gives a program its input.

use std::io;
use std::sync::Arc;

use super::descriptor::Descriptor;
use super::sink::Sink;
use crate::guest::{Bulk, Filled};

/// What the end of a client's input means.
#[derive(Clone, Debug)]
pub enum AtEnd {
    /// A pipe: the program's input ends.
    Finish,
    /// A terminal's socket: the client has detached, the program's terminal stays. Its output ends
    /// with it.
    Detach(Arc<Sink>),
}

/// Where a client's input goes.
#[derive(Clone, Copy, Debug)]
pub enum Into {
    /// To this stream.
    Stream(u32),
    /// Nowhere: the program has no input, but the client's end shows that it has gone.
    Nowhere,
}

/// Copies until the client or the program has had enough. Back-pressure: nothing is read that the
/// stream has no room for.
pub async fn copy(bulk: Arc<Bulk>, descriptor: Arc<Descriptor>, into: Into, at_end: AtEnd) {
    let result = match into {
        Into::Stream(stream) => copy_to(&bulk, &descriptor, stream).await,
        Into::Nowhere => discard(&descriptor).await.map(|()| true),
    };
    let ended = result.unwrap_or_else(|error| {
        tracing::debug!(%error, "a client's input failed");
        true
    });
    match (ended, at_end, into) {
        (true, AtEnd::Finish, Into::Stream(stream)) => bulk.finish(stream),
        (true, AtEnd::Detach(sink), _) => sink.give_up(),
        _ => {}
    }
}

/// True when the client has ended, false when the program takes no more.
async fn copy_to(bulk: &Bulk, descriptor: &Descriptor, stream: u32) -> io::Result<bool> {
    loop {
        if !bulk.writable(stream).await {
            return Ok(false);
        }
        let fill = descriptor.read_with(|fd| {
            bulk.fill(stream, |room| nix::unistd::read(fd, room).map_err(io::Error::from))
        });
        let filled = tokio::select! {
            filled = fill => filled?,
            () = bulk.write_closed(stream) => return Ok(false),
        };
        if filled == Filled::Ended {
            return Ok(true);
        }
    }
}

async fn discard(descriptor: &Descriptor) -> io::Result<()> {
    let mut buffer = [0; 1024];
    let mut read = |fd: &_| nix::unistd::read(fd, &mut buffer).map_err(io::Error::from);
    while descriptor.read_with(&mut read).await? > 0 {}
    Ok(())
}
