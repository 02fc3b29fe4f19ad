//! A client's socket and a stream of the guest, joined.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::Stream;
use crate::guest::Filled;

/// Copies both ways until both have ended, or one is cut.
pub async fn join(stream: &Stream, client: UnixStream) {
    let (read, write) = client.into_split();
    let outcome = tokio::try_join!(to_guest(stream, read), to_client(stream, write));
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection of a socket was cut");
    }
}

/// Ends the stream's input with the client's.
async fn to_guest(stream: &Stream, client: OwnedReadHalf) -> io::Result<()> {
    let (bulk, number) = (&stream.bulk, stream.number);
    loop {
        if !bulk.writable(number).await {
            // The program has gone, and its last words are on their way.
            return Ok(());
        }
        if fill(stream, &client).await? == Filled::Ended {
            bulk.finish(number);
            return Ok(());
        }
    }
}

/// Waits for the client, or for the program to take no more.
async fn fill(stream: &Stream, client: &OwnedReadHalf) -> io::Result<Filled> {
    tokio::select! {
        readable = client.readable() => readable?,
        () = stream.bulk.write_closed(stream.number) => return Ok(Filled::Ended),
    }
    match stream.bulk.fill(stream.number, |room| client.try_read(room)) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Filled::NoRoom),
        other => other,
    }
}

async fn to_client(stream: &Stream, mut client: OwnedWriteHalf) -> io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        stream.bulk.read(stream.number, &mut bytes).await;
        if bytes.is_empty() {
            return client.shutdown().await;
        }
        client.write_all(&bytes).await?;
    }
}
